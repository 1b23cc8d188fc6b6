"""The runs of a store as a list: what each is, the settings that it was given, and its headline's numbers. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.core.benchmark import roles_of
from harness.core.config import JSON, departures, written
from harness.core.errors import UsageError
from harness.core.measurement import Measurement
from harness.core.method import METHODS
from harness.core.options import Preset, Protocol
from harness.reading.budget_table import met_in_short
from harness.reading.columns import wrapped
from harness.reading.compared import protocol
from harness.reading.formats import NO_NUMBER, of_unit
from harness.reading.named import check_names
from harness.storage.records import RunResult
from harness.storage.store import Store

NARROWEST = 16
"""Characters of columns that are wrapped."""
WRAPPED = ("settings", "points")
"""Those columns; they hold words."""


@dataclass(frozen=True)
class Listed:
    """A run in a list."""

    result: RunResult
    """Its record."""
    preset: Protocol
    """On which preset its settings stand, or that they were given by hand."""
    settings: Mapping[str, JSON]
    """Those that are neither the method's defaults nor the preset's."""

    @property
    def values(self) -> Mapping[str, Measurement]:
        """What its last point measured, by metric; nothing of a run with budgets, whose last point is one of several."""
        last = self.result.points[-1].measurements if self.result.points and not self.result.spec.budgets else ()
        return {item.metric: item for item in last if isinstance(item, Measurement)}

    @property
    def order(self) -> tuple[object, ...]:
        """By what a list is sorted: benchmark, model, retain set, method, preset, settings, seed."""
        spec = self.result.spec
        return (spec.bench, spec.model, spec.retain, spec.method, self.preset, _in_words(self.settings), spec.seed, spec.run_id)

    def row(self) -> dict[str, JSON]:
        """As plain JSON data, with the headline's numbers."""
        spec, values = self.result.spec, self.values
        return {
            **{"run": spec.run_id, "bench": spec.bench, "model": spec.model, "retain": spec.retain, "method": spec.method},
            **{"preset": self.preset, "settings": dict(self.settings), "seed": spec.seed, "status": self.result.status},
            "points": len(self.result.points),
            **({"budgets": list(spec.budgets), "unreached": dict(self.result.unreached)} if spec.budgets else {}),
            **{metric: values[metric].value if metric in values else None for metric in _headline(spec.bench)},
        }


def listed_runs(
    store: Store, skipped: Callable[[str], None], bench: str = "", methods: Sequence[str] = (), preset: str = ""
) -> list[Listed]:
    """The runs of a store, sorted.

    Args:
        store: where they are.
        skipped: told of each record that cannot be read.
        bench: only those on this benchmark.
        methods: only those of these methods.
        preset: only those whose settings stand on this one: published, tuned, tuned2, by hand or other.

    Raises:
        UsageError: for a benchmark or a method that neither is here nor was ever run.
    """
    parts = [place.split("/") for place in store.places()]
    check_names(bench, methods, (part[0] for part in parts), (part[2] for part in parts))
    runs = []
    for part in parts:
        if (bench and part[0] != bench) or (methods and part[2] not in methods):
            continue
        try:
            result = store.read("/".join(part))
        except UsageError as error:
            skipped(str(error))
            continue
        if not preset or protocol(result.selection) == preset:
            runs.append(Listed(result, protocol(result.selection), given_settings(result)))
    return sorted(runs, key=lambda run: [str(part) for part in run.order])


def given_settings(result: RunResult) -> dict[str, JSON]:
    """The settings of a run that are neither its method's defaults nor the preset's; none of a method that is not here."""
    spec = result.spec
    # What a study's tries chose is tuned, too, and stands on the published preset.
    form: Preset = spec.form or ("tuned" if result.selection.startswith("tuned form: preset") else "published")
    try:
        config, preset = _usual(spec.method, spec.bench, spec.model.partition("@")[0], form)
    except UsageError:
        return spec.trained
    return {**departures(config, preset, spec.config), **spec.trained}


@cache
def _usual(method: str, bench: str, family: str, form: Preset) -> tuple[type, Mapping[str, JSON]]:
    chosen = METHODS.get(method)
    return chosen.config, chosen.preset(bench, family, form)


def _in_words(settings: Mapping[str, JSON]) -> str:
    return ", ".join(f"{name}={written(value)}" for name, value in settings.items())


def _headline(bench: str) -> list[str]:
    roles = roles_of(bench)
    return list(dict.fromkeys((*roles.forgetting, *roles.kept)))


@dataclass(frozen=True)
class RunTables:
    """The runs as tables, one for each benchmark, model, retain set and budgets, as wide as the console allows.

    A number that is wrapped or cut short reads as another one: where there is no room for all, the last columns are left out,
    and that is said.
    """

    runs: Sequence[Listed]
    """Sorted; see `listed_runs`."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The tables."""
        together: dict[tuple[str, str, str, tuple[float, ...]], list[Listed]] = {}
        for run in self.runs:
            spec = run.result.spec
            together.setdefault((spec.bench, spec.model, spec.retain, spec.budgets), []).append(run)
        for (bench, model, retain, budgets), runs in together.items():
            title = f"{bench} · model {model}" + (f" · retain set {retain}" if retain != "all" else "")
            title += f" · budgets {', '.join(f'{budget:g}' for budget in budgets)} nats per token" if budgets else ""
            yield _table(title, bench, runs, options.max_width)


def _table(title: str, bench: str, runs: Sequence[Listed], width: int) -> RenderableType:
    columns: dict[str, list[str]] = {
        "run": [run.result.spec.run_id for run in runs],
        "method": [run.result.spec.method for run in runs],
        "preset": [run.preset for run in runs],
        "settings": [_in_words(run.settings) for run in runs],
        "seed": [str(run.result.spec.seed) for run in runs],
        "status": [run.result.status for run in runs],
    }
    if runs[0].result.spec.budgets:
        columns["points"] = [met_in_short(run.result) for run in runs]
    if not any(columns["settings"]):
        del columns["settings"]
    if set(columns["status"]) == {"done"}:
        del columns["status"]
    numbers = {metric: [run.values.get(metric) for run in runs] for metric in _headline(bench)}
    cells = {
        metric: [of_unit(item.value, item.unit) if item else NO_NUMBER for item in of]
        for metric, of in numbers.items()
        if any(of)
    }
    left = width + 1 - sum(_wide(name, of) for name, of in columns.items())
    headings = {metric: metric.removesuffix("_accuracy").replace("_", " ") for metric in cells}
    if sum(_wide(headings[metric], of) for metric, of in cells.items()) > left:
        headings = {metric: wrapped(headings[metric], max(map(len, of))) for metric, of in cells.items()}
    shown = []
    for metric, of in cells.items():
        left -= _wide(headings[metric], of)
        if left >= 0:
            shown.append(metric)
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(name, no_wrap=name not in WRAPPED, overflow="fold")
    for metric in shown:
        table.add_column(headings[metric], justify="right", no_wrap=True)
    for line in zip(*columns.values(), *(cells[metric] for metric in shown), strict=True):
        table.add_row(*line)
    missing = [metric for metric in cells if metric not in shown]
    if not missing:
        return table
    return Group(table, Text(f"no room for {', '.join(missing)}; a wider terminal or --json shows them.", style="dim"))


def _wide(heading: str, cells: Sequence[str]) -> int:
    """Characters that a column takes, with the gap beside it."""
    widest = max(map(len, (*heading.split("\n"), *cells)))
    return (NARROWEST if heading in WRAPPED and widest > NARROWEST else widest) + 3
