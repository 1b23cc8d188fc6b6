"""What a run was asked, the true answers, and what is answered before unlearning, after it, and by a retrained model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from harness.core.benchmark import roles_of
from harness.core.errors import UsageError
from harness.core.evaluator import metric_of
from harness.reading.formats import NO_NUMBER, plain
from harness.storage.identity import comparable
from harness.storage.records import RunResult, RunSpec
from harness.storage.store import Store

Turns = tuple[str, ...]
REFERENCES = {"before": "untouched", "retrained": "retrained"}
"""Whose answers a sample has besides the run's → the method whose recorded runs gave them."""


@dataclass(frozen=True)
class Sample:
    """A question with its answers; None where none is recorded."""

    task: str
    """The set that it belongs to, such as `forget`."""
    question: str
    """What was asked."""
    true: Any
    """What the data say: a text, or of multiple choice the number of the right one."""
    before: str | None
    """What the model before unlearning says."""
    after: str | None
    """What the run's last point says."""
    retrained: str | None
    """What a model says that never saw what was to be forgotten."""


def samples_of(result: RunResult, store: Store, task: str = "") -> list[Sample]:
    """The questions of a run, in order, with their answers.

    The answers before, and of the retrained model, are those of recorded runs of `untouched` and `retrained` on the same data.

    Args:
        result: the run.
        store: where it is recorded.
        task: only these questions, such as `forget`.
    """
    questions = store.questions(result.spec)
    after = _answers(result, store)
    ends = {whose: _reference(result.spec, method, store) for whose, method in REFERENCES.items()}
    samples = []
    for question in questions:
        if not task or question.task == task:
            turns = tuple(question.turns)
            answers = {whose: texts.get(turns) for whose, texts in ends.items()}
            samples.append(Sample(question.task, question.question, question.answer, after=after.get(turns), **answers))
    return samples


def written_samples(result: RunResult, store: Store) -> list[Sample]:
    """Those that the run has answers to, of the set that was to be forgotten first.

    Raises:
        UsageError: if no answer of the run is on record.
    """
    samples = [sample for sample in samples_of(result, store) if sample.after is not None]
    if not samples:
        raise UsageError(
            f"run {result.spec.run_id} has no written answers on record: nothing asked for any, as in multiple choice."
        )
    forgetting = roles_of(result.spec.bench).forgetting
    match = metric_of(forgetting[0]) if forgetting else None
    return sorted(samples, key=lambda sample: match is None or sample.task != match[1].part)


def _answers(result: RunResult, store: Store) -> Mapping[Turns, str]:
    """What was answered at a run's last point."""
    return store.texts(result.spec.folder.as_posix(), result.points[-1].index) if result.points else {}


def _reference(spec: RunSpec, method: str, store: Store) -> Mapping[Turns, str]:
    """The answers of a recorded run of a reference method on the same data, of the lowest seed that has any."""
    runs = [store.read(place) for place in store.places(f"{spec.bench}/*/{method}/*")]
    alike = [run for run in runs if comparable(run.spec) == comparable(spec)]
    return next((texts for run in sorted(alike, key=lambda run: run.spec.seed) if (texts := _answers(run, store))), {})


@dataclass(frozen=True)
class Samples:
    """Samples on a terminal, one below the other, so that answers can be compared line by line."""

    samples: Sequence[Sample]
    """In order."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Each question in bold, under it a line for each answer; whose answers are missing is said once, at the end."""
        missing = [whose for whose in REFERENCES if all(getattr(sample, whose) is None for sample in self.samples)]
        for sample in self.samples:
            yield Text.assemble((f"{sample.task}: ", "dim"), (plain(sample.question), "bold"))
            for whose in ("true", "before", "after", "retrained"):
                if whose not in missing:
                    answer = getattr(sample, whose)
                    yield Text(f"  {whose:<10} {NO_NUMBER if answer is None else plain(str(answer))}", overflow="fold")
            yield Text("")
        for whose in missing:
            method = REFERENCES[whose]
            yield Text(f"no answers {whose} are on record; harness run --method {method} makes them.", style="dim")
