"""Recorded runs as a reader compares them: what was asked, how its settings were chosen, what its last point measured.

What stands for a run is its last point, never a point picked by looking at the numbers that are reported: that one (the largest
product of some metrics) is kept apart as an oracle. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import get_args

from harness.core.arithmetic import in_words
from harness.core.benchmark import roles_of
from harness.core.costs import Phase
from harness.core.errors import UsageError
from harness.core.measurement import Absent, Measurement
from harness.core.options import Preset, Protocol
from harness.storage.records import Point, Provenance, RunResult, RunSpec
from harness.storage.store import Store

Oracle = tuple[int, tuple[float, ...]]
"""A point's step, and its numbers whose product is the oracle's score, in the benchmark's order."""

PROTOCOLS: Mapping[Protocol, str] = {
    "published": "the published number of epochs, constants and batch; on mini the learning rate alone is scaled",
    "tuned": "settings found with the same number of tries for every method; not comparable to published numbers",
    "tuned2": "the same with twice as many tries, over one constant more of every method; K-FADE's number of steps among them",
    "by hand": "settings given on the command line",
    "other": "the record does not say how its settings were chosen",
}


@dataclass(frozen=True)
class Run:
    """What a row needs of a record."""

    spec: RunSpec
    """What was asked."""
    folder: str
    """Its place in the `runs` folder."""
    link: str
    """What a page links to, relative to the `runs` folder: its folder, or the file that it is packed in."""
    status: str
    """`done`, `failed` or `interrupted`."""
    error: str
    """The first line of why it failed."""
    selection: str
    """On what its settings were chosen."""
    notes: Sequence[str]
    """What a reader must know of its benchmark."""
    step: int
    """Of the last point; 0 if there is none."""
    index: int
    """Of the last point; -1 if there is none."""
    last: Mapping[str, Measurement | Absent]
    """What the last point measured."""
    oracle: Oracle | None
    """Where the oracle's score is largest; None for fewer than two points."""
    references: Mapping[str, Sequence[Measurement | Absent]]
    """The untouched and the retrained model."""
    cost: Phase | None
    """Of unlearning."""
    command: str
    """What to type to run it again."""
    machine: str
    """On what it ran."""
    weights: str
    """The fingerprint of the weights before unlearning: one recipe gives others on another kind of processor."""
    kind: str
    """That kind, as far as it was recorded."""

    @property
    def counts(self) -> bool:
        """Whether its last point is where it was to end."""
        return self.status == "done" and bool(self.last)

    @property
    def versions(self) -> Mapping[str, int]:
        """Evaluator or metric → version of its definition."""
        return {**self.spec.evaluators, **{m.metric: m.version for m in self.last.values() if isinstance(m, Measurement)}}


def protocol(selection: str) -> Protocol:
    """Which protocol a record's words about its settings stand for."""
    if "by hand" in selection or selection == "settings of a recorded run":
        return "by hand"
    presets: Sequence[Preset] = get_args(Preset)
    return next((preset for preset in presets if selection.startswith(f"{preset} form")), "other")


def read_runs(root: Path, skipped: Callable[[str], None]) -> list[Run]:
    """Every run of a results folder, sorted by its place.

    Args:
        root: the results folder.
        skipped: told of each record that cannot be read.

    Raises:
        UsageError: if there is none, or one was written by a newer version.
    """
    store = Store(root)
    runs = []
    for place in store.places():
        try:
            packed = store.packed(place)
            runs.append(_run(place, packed.path.name if packed else f"{place}/", store.read(place)))
        except UsageError as error:
            if store.newer_schema(place):
                raise  # a leaderboard without the newest runs would look complete
            skipped(str(error))
    if not runs:
        raise UsageError(
            f"there are no runs in {store.runs_folder}. harness run --method kfade --bench tofu10 makes one "
            "(--results DIR looks elsewhere)."
        )
    return runs


def _hardware(made: Provenance) -> str:
    """What a run's times are those of; several processes' are not one's."""
    shared = f"{made.processes} processes, each " if made.processes > 1 else ""
    return f"{shared}{made.gpu or made.processor}"


def _run(place: str, link: str, result: RunResult) -> Run:
    last = result.points[-1] if result.points else None
    made = result.provenance
    return Run(
        spec=result.spec,
        folder=place,
        link=link,
        status=result.status,
        error=result.error.strip().partition("\n")[0],
        selection=result.selection,
        notes=result.notes,
        step=last.step if last else 0,
        index=last.index if last else -1,
        last={m.metric: m for m in last.measurements} if last else {},
        oracle=_oracle(result.points, roles_of(result.spec.bench).oracle_score),
        references=result.references,
        cost=result.costs.get("unlearning"),
        command=made.command if made else "",
        machine=f"{_hardware(made)}, {result.spec.dtype}" if made else "",
        weights=made.weights if made else "",
        kind=in_words(made.arithmetic) if made else "",
    )


def _oracle(points: Sequence[Point], factors: Sequence[str]) -> Oracle | None:
    """The point where the product of some metrics is largest, the earliest of equal ones."""
    measured: list[Oracle] = []
    for point in points if len(points) > 1 and factors else ():
        values = {m.metric: m.value for m in point.measurements if isinstance(m, Measurement)}
        if values.keys() >= set(factors):
            measured.append((point.step, tuple(values[name] for name in factors)))
    return max(measured, key=lambda at: prod(at[1]), default=None)
