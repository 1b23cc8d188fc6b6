"""What a person sees of a run: tables for the terminal, from records alone. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.core.costs import Phase
from harness.core.interfaces import Absent, Difference, Measurement, metric_of, roles_of, title_of
from harness.core.metric import in_text
from harness.reading.differences import LEVEL
from harness.storage.records import Point, RunResult

_ARROWS = {"higher": "↑", "lower": "↓", "closer": "→ retrained"}

Values = Mapping[str, Measurement | Absent]


@dataclass
class Columns:
    """A table of short cells; where it is wider than the console, several below one another, the first column repeated.

    A number that is wrapped or cut short reads as another number, so no cell ever is.
    """

    headings: Sequence[str]
    """Over the columns; wrapped between words where the table is wide."""
    title: str | None = None
    """Above the table."""
    left: Sequence[int] = (0,)
    """Columns that are aligned left; the others are aligned right."""
    rows: list[tuple[list[str], str | None]] = field(default_factory=list)
    """Cells and the style of each row."""
    sections: list[int] = field(default_factory=list)
    """Numbers of rows under which there is a line."""

    def add_row(self, *cells: str, style: str | None = None) -> None:
        """Append a row."""
        self.rows.append(([*cells], style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The table, or tables, for a console's width."""
        numbers = range(len(self.headings))
        body = [max((_width(cells[i]) for cells, _ in self.rows), default=0) for i in numbers]
        if sum(max(b, _width(h)) + 3 for b, h in zip(body, self.headings, strict=True)) + 1 <= options.max_width:
            yield self._part(list(numbers), self.headings)
            return
        wrapped = [_wrapped(heading, width) for heading, width in zip(self.headings, body, strict=True)]
        widths = [max(b, _width(h)) + 3 for b, h in zip(body, wrapped, strict=True)]
        parts: list[list[int]] = [[0]]
        for i in numbers[1:]:
            if len(parts[-1]) > 1 and sum(widths[j] for j in parts[-1]) + widths[i] + 1 > options.max_width:
                parts.append([0])
            parts[-1].append(i)
        for part in parts:
            yield self._part(part, wrapped)

    def _part(self, columns: Sequence[int], headings: Sequence[str]) -> Table:
        table = Table(title=self.title if 1 in columns else None, title_justify="left", header_style="bold")
        for i in columns:
            table.add_column(headings[i], justify="left" if i in self.left else "right", overflow="fold")
        for number, (cells, style) in enumerate(self.rows, start=1):
            table.add_row(*(cells[i] for i in columns), style=style, end_section=number in self.sections)
        return table


def _width(cell: str) -> int:
    return max((cell_len(line) for line in cell.splitlines()), default=0)


def _wrapped(heading: str, width: int) -> str:
    """The heading on several lines, none longer than the width or than its longest word."""
    lines = [""]
    for word in heading.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if not lines[-1] or cell_len(longer) <= width else [*lines, word]
    return "\n".join(lines)


def number(value: float | None, digits: int = 4) -> str:
    """A number as a reader wants it: small ones in scientific notation, others with fixed decimals."""
    if value is None:
        return "–"
    if value != 0 and abs(value) < 10 ** (1 - digits):
        return f"{value:.{digits if digits > 4 else max(1, digits - 2)}e}"
    return f"{value:.{digits}f}"


def measurements(found: Iterable[Measurement | Absent]) -> Values:
    """By metric name."""
    return {m.metric: m for m in found}


def run_report(result: RunResult) -> RenderableType:
    """Everything a reader of one run needs on one screen."""
    spec = result.spec
    head = Text.assemble(
        (f"{spec.method}", "bold"), f" on {spec.bench} · model {spec.model} · seed {spec.seed} · run ", (spec.run_id, "bold")
    )
    parts: list[RenderableType] = [head]
    if result.status != "done":
        parts.append(Text(f"{result.status}: {result.error.splitlines()[0] if result.error else 'not finished'}", style="red"))
    if len(result.points) > 1:
        parts.append(_trajectory(result.points, roles_of(spec.bench).trajectory))
    if result.points:
        last = result.points[-1]
        columns = {spec.method: measurements(last.measurements)}
        columns |= {arm: measurements(found) for arm, found in result.arms.items()}
        title = f"after {last.step} steps" if last.step != 1 else "after 1 step"
        parts.append(measurement_table(columns, title if len(result.points) > 1 else None))
        parts += [Text(line, style="dim") for line in _footnotes(result, columns[spec.method], last)]
    parts += [Text(line, style="dim") for line in _costs(result.costs)]
    return Group(*parts)


def measurement_table(columns: Mapping[str, Values], title: str | None = None, digits: int = 4) -> Columns:
    """Measurements side by side, the first column's with interval, direction and noise floor.

    Args:
        columns: heading → its measurements; the first one is the subject.
        title: above the table.
        digits: after the decimal point.
    """
    (subject, values), *others = columns.items()
    names = [name for name, _ in others]
    table = Columns(("metric", subject, "95 % interval", *names, "better", "noise floor", "n"), title)
    for metric, found in values.items():
        if isinstance(found, Absent):
            table.add_row(metric, "absent", *[""] * (4 + len(others)), style="dim")
            continue
        low_high = (
            f"{number(found.interval_95[0], digits)} to {number(found.interval_95[1], digits)}" if found.interval_95 else "–"
        )
        better = _ARROWS[found.better] if found.better else ""
        cells = [_cell(other.get(metric), digits) for _, other in others]
        table.add_row(metric, _cell(found, digits), low_high, *cells, better, number(found.floor, digits), str(found.n))
    return table


def _cell(found: Measurement | Absent | None, digits: int) -> str:
    if not isinstance(found, Measurement):
        return "–"
    text = number(found.value, digits)
    # What is computed against a retrained model depends on which one, so all of them are shown.
    if found.reference is None and found.across_references:
        low, high = found.across_references
        if low != high:
            text += f"\n({number(low, 2)} to {number(high, 2)})"
    return text


def comparison(results: Sequence[RunResult], differing: Sequence[Difference] = ()) -> RenderableType:
    """Several methods on one benchmark and model side by side, at their last points, between the two reference arms.

    Args:
        results: of each method.
        differing: by how much they differ from one of them, on the same rows.
    """
    first = next((result for result in results if result.arms), results[0])
    spec = first.spec
    shown = _shown(results)
    roles = roles_of(spec.bench)
    kept = roles.kept if set(roles.brief) & shown.keys() else ()
    oracle = ["best on the way*"] if roles.oracle_score and set(roles.oracle_score) <= shown.keys() else []
    title = f"{spec.bench} · model {spec.model} · seed {spec.seed}"
    table = Columns(("", *(f"{name} {arrow}".strip() for name, arrow in shown.values()), *oracle, "time", "memory"), title)
    rows = [(result.spec.method, measurements(result.points[-1].measurements), result) for result in results if result.points]
    for arm, found in first.arms.items():
        table.add_row(arm, *_compared(measurements(found), shown, kept), *("" for _ in oracle), "", "", style="dim")
    table.sections.append(len(table.rows))
    for method, values, result in rows:
        phase = result.costs.get("unlearning")
        cost = (f"{phase.full_seconds:.1f} s", f"{phase.peak_bytes / 2**30:.2f} GiB") if phase else ("–", "–")
        style = None if result.status == "done" else "red"
        best = [_best(result.points, roles.oracle_score) for _ in oracle]
        table.add_row(method, *_compared(values, shown, kept), *best, *cost, style=style)
    for result in results:
        if not result.points:
            table.add_row(result.spec.method, result.status, *[""] * (len(table.headings) - 2), style="red")
    parts: list[RenderableType] = [table]
    distance = next((v[roles.ranking] for _, v, _ in rows if roles.ranking in v), None)
    notes = [f"{result.spec.method} {result.status}: {result.error.splitlines()[0]}" for result in results if result.error]
    if isinstance(distance, Measurement) and distance.floor is not None:
        ranked = title_of(roles.ranking)
        notes.append(
            f"{ranked}s at or under {number(distance.floor)} are ties: two retrained models differ by as much. "
            f"In brackets: {in_text(title_of(roles.forgetting[0]))} against each retrained model; "
            f"{in_text(title_of(roles.kept[0]))}'s 95 % interval, by author. → is best closest to retrained."
        )
    if not set(roles.brief) & shown.keys():
        notes.append("In brackets: the 95 % interval.")
    if oracle:
        names = [in_text(title_of(metric)) for metric in roles.oracle_score]
        notes.append(
            f"* the point with the largest {' × '.join(names)}, found by looking at the rows that are reported (an "
            f"oracle): its step, {', '.join(names)}"
        )
    notes.append("settings: " + "; ".join(sorted({r.selection.replace(f" of {r.spec.method} ", " ") for r in results})))
    notes += [f"note: {note}" for note in first.notes]
    if differing:
        parts.append(_differences(differing))
    parts += [Text(note, style="dim") for note in notes]
    return Group(*parts)


def _differences(found: Sequence[Difference]) -> RenderableType:
    """Each method minus the one that all are compared with."""
    metrics, methods = dict.fromkeys(each.metric for each in found), dict.fromkeys(each.first for each in found)
    cells = {(each.first, each.metric): each for each in found}
    headings = [f"{_head(metric)[0]} difference" for metric in metrics]
    table = Columns(("", *headings), f"less {found[0].second}")
    for method in methods:
        of_method = [cells.get((method, metric)) for metric in metrics]
        table.add_row(method, *["–" if each is None else _difference(each) for each in of_method])
    reading = (
        "95 % interval by resampling whole authors or groups of questions, the same for both methods; *: not 0 at "
        f"{100 * LEVEL:g} % (Holm, {len(found)} comparisons). How much seeds differ is not in it."
    )
    return Group(table, Text(reading, style="dim"))


def _difference(each: Difference) -> str:
    star = "*" if each.p_corrected <= LEVEL else ""
    return f"{each.value:+.3f}{star}\n({each.low:+.3f} to {each.high:+.3f})"


def _shown(results: Sequence[RunResult]) -> dict[str, tuple[str, str]]:
    """The metrics that are compared, with heading and arrow: the benchmark's, or all that were measured if none was."""
    measured = {m.metric: m for r in results for point in r.points[-1:] for m in point.measurements}
    brief = roles_of(results[0].spec.bench).brief
    if brief and (not measured or measured.keys() & set(brief)):
        return {metric: _head(metric) for metric in brief}
    arrows = {m: _ARROWS[v.better][0] if isinstance(v, Measurement) and v.better else "" for m, v in measured.items()}
    return {metric: (metric.replace("_", " "), arrow) for metric, arrow in arrows.items()}


def _head(metric: str) -> tuple[str, str]:
    """A metric's heading and arrow, as it is declared."""
    match = metric_of(metric)
    arrow = _ARROWS[match[1].better][0] if match and match[1].better else ""
    return (match[1].short if match else "") or in_text(title_of(metric)), arrow


def _compared(values: Values, shown: Iterable[str], kept: Sequence[str]) -> list[str]:
    """The cells of some metrics: with the range over references, and the interval of what was kept or of all."""
    cells = []
    for metric in shown:
        found = values.get(metric)
        if not isinstance(found, Measurement):
            cells.append("absent" if found else "–")
            continue
        text = number(found.value, 3)
        if found.unit == "p-value" and found.across_references:
            low, high = found.across_references
            text += f"\n({number(low, 2)} to {number(high, 2)})" if low != high else ""
        if (metric in kept or not kept) and found.interval_95:
            text += f"\n({number(found.interval_95[0], 3)} to {number(found.interval_95[1], 3)})"
        cells.append(text)
    return cells


def _best(points: Sequence[Point], factors: Sequence[str]) -> str:
    """The step and the numbers of the point with the largest product of some metrics; empty for a single point."""
    scored = []
    for point in points:
        values = [measurements(point.measurements).get(metric) for metric in factors]
        numbers = [value.value for value in values if isinstance(value, Measurement)]
        if len(numbers) == len(factors):
            scored.append((prod(numbers), point.step, numbers))
    if len(points) < 2 or not scored:
        return ""
    _, step, numbers = max(scored)
    return f"{', '.join(number(value, 3) for value in numbers)}\nat step {step}"


def in_short(result: RunResult) -> str:
    """The last point's numbers that matter most, in a line: what was forgotten and kept, or all where there are neither."""
    values, roles = _last(result), roles_of(result.spec.bench)
    names = {metric: in_text(title_of(metric)) for metric in (*roles.forgetting, *roles.kept)} if roles.brief else {}
    if not names or (values and not values.keys() & set(roles.brief)):
        names = {metric: metric.replace("_", " ") for metric in values}
    told = ((name, v.value if isinstance(v := values.get(m), Measurement) else None) for m, name in names.items())
    return ", ".join(f"{name} {number(value)}" for name, value in told)


def sweep_table(settings: Sequence[Mapping[str, object]], results: Sequence[RunResult], by: str = "") -> RenderableType:
    """Every try with its settings and its numbers at the last point, the best by a metric first and what broke off last.

    What is the same in all tries stands in the title, and what another number contains is left out.

    Args:
        settings: what the grid set in each try.
        results: in the same order.
        by: the metric; the order of the tries if empty, or if no try measured it.
    """
    measured = {metric for result in results for metric in _last(result)}
    contained = {part for whole in measured if (match := metric_of(whole)) for part in match[1].contains}
    all_roles = [roles_of(bench) for bench in dict.fromkeys(result.spec.bench for result in results)]
    swept = [metric for roles in all_roles for metric in (roles.selection, *roles.brief)]
    shown = [m for m in dict.fromkeys((by, *swept)) if m in measured and (m == by or m not in contained)]
    if not set(shown) - {by}:
        shown += sorted(measured - set(shown))
    order = list(zip(settings, results, strict=True))
    if by in measured:
        order.sort(key=lambda item: _rank(item[1], by))
    varied = list(dict.fromkeys(key for chosen in settings for key in chosen))
    facts = {name: [of(result) for _, result in order] for name, of in _FACTS.items()}
    for name, usual in (("retain", "all"), ("status", "done")):
        if set(facts[name]) == {usual}:
            del facts[name]
    same = [name for name in ("benchmark", "model", "retain", "seed") if len(set(facts.get(name, ()))) == 1]
    title = " · ".join(f"{name} {facts.pop(name)[0]}" for name in same)
    headings = [" ".join(_head(metric) if metric in swept else (metric, "")).strip() for metric in shown]
    table = Columns(("run", *facts, *varied, *headings), title, left=range(100))
    for (chosen, result), *told in zip(order, *facts.values(), strict=True):
        values = _last(result)
        cells = [number(v.value, 3) if isinstance(v := values.get(m), Measurement) else "absent" for m in shown]
        table.add_row(result.spec.run_id, *told, *(str(chosen.get(key, "")) for key in varied), *cells)
    if not by or by in measured:
        return table
    told_of = ", ".join(sorted(measured)) or "none"
    return Group(table, Text(f"no try measured '{by}'; in the order of the tries. Measured were: {told_of}", style="red"))


_FACTS: Mapping[str, Callable[[RunResult], str]] = {
    "method": lambda result: result.spec.method,
    "benchmark": lambda result: result.spec.bench,
    "model": lambda result: result.spec.model,
    "retain": lambda result: result.spec.retain,
    "seed": lambda result: str(result.spec.seed),
    "status": lambda result: result.status,
}
"""What tells a sweep's runs apart besides their settings."""


def _rank(result: RunResult, by: str) -> tuple[bool, float]:
    """Smallest for the best of the finished tries; one that broke off comes after them: it is not at its end."""
    found = _last(result).get(by)
    if not isinstance(found, Measurement):
        return True, float("inf")
    if found.better == "closer" and found.reference is not None:
        distance = abs(found.value - found.reference)
    else:
        distance = found.value if found.better == "lower" else -found.value
    return result.status != "done", distance


def _last(result: RunResult) -> Values:
    return measurements(result.points[-1].measurements) if result.points else {}


def _trajectory(points: Sequence[Point], metrics: Sequence[str]) -> Columns:
    measured = measurements(points[0].measurements)
    shown = [m for m in metrics if m in measured] or list(measured)
    table = Columns(("step", *shown), "the way there", left=())
    for point in points:
        values = measurements(point.measurements)
        cells = [values.get(metric) for metric in shown]
        table.add_row(str(point.step), *[number(c.value) if isinstance(c, Measurement) else "absent" for c in cells])
    return table


def _footnotes(result: RunResult, values: Values, last: Point) -> Iterable[str]:
    if result.arms.get("retrained"):
        yield (
            "retrained: the model that never saw the forget set; forget quality compares with it, so it scores 1 against "
            "itself (in brackets: against each retrained model). Noise floor: what two retrained models differ by."
        )
    for found in values.values():
        if isinstance(found, Absent):
            yield f"{found.metric}: absent: {found.reason}"
        elif found.note:
            yield f"{found.metric}: {found.note}"
    yield f"settings: {result.selection}"
    if trial := result.trial:
        by = f"chosen by {trial.metric}" if trial.metric else "nothing chosen"
        yield f"try {trial.index + 1} of {trial.tries} ({trial.search}), {by} on {trial.split}"
    if "measured_kl" in last.logged:
        yield (
            f"KL on retain rows: measured {number(last.logged['measured_kl'])}, predicted α²/2 = "
            f"{number(last.logged['predicted_kl'])} nats per token, step size {number(last.logged['step_size'])}"
        )
    for note in result.notes:
        yield f"note: {note}"


def _costs(costs: Mapping[str, Phase]) -> Iterable[str]:
    if not costs:
        return
    told = []
    for name, phase in costs.items():
        full = f" ({phase.full_seconds:.1f} s with nothing cached)" if phase.full_seconds > phase.seconds + 0.05 else ""
        told.append(f"{name} {phase.seconds:.1f} s{full}")
    peak = max(phase.peak_bytes for phase in costs.values())
    yield f"time: {', '.join(told)}; peak memory {peak / 2**30:.2f} GiB"


class Watch:
    """How far a sweep is: a row for each kind of run, and how long the rest will take at the pace so far.

    Args:
        kinds: of each run, such as its method.
        clock: seconds that only rise.
    """

    def __init__(self, kinds: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._kinds, self._clock = kinds, clock
        self._status: dict[int, str] = {}
        self._began: tuple[float, int] | None = None

    @property
    def finished(self) -> int:
        """Runs that are over, one way or another."""
        return len(self._status)

    def begin(self) -> None:
        """What was on record already has been told; from here on runs take time."""
        self._began = self._clock(), self.finished

    def add(self, index: int, status: str) -> None:
        """A run is over."""
        self._status[index] = status

    def left(self) -> float | None:
        """Seconds; None where no run is over yet since the beginning."""
        if self._began is None or self.finished == self._began[1]:
            return None
        started, before = self._began
        return (self._clock() - started) / (self.finished - before) * (len(self._kinds) - self.finished)

    def __rich__(self) -> Table:
        table = Table(header_style="bold")
        for heading in ("", "runs", "done", "failed", "left"):
            table.add_column(heading, justify="right" if heading else "left")
        for kind in dict.fromkeys(self._kinds):
            of_kind = [self._status.get(i, "") for i, each in enumerate(self._kinds) if each == kind]
            done, over = of_kind.count("done"), sum(map(bool, of_kind))
            table.add_row(kind, *map(str, (len(of_kind), done, over - done, len(of_kind) - over)))
        left = self.left()
        minutes, seconds = divmod(round(left or 0), 60)
        table.caption = f"{self.finished} of {len(self._kinds)}" + (f", about {minutes} min {seconds} s left" if left else "")
        return table


def settings_table(rows: Sequence[tuple[str, object, str]], title: str) -> Table:
    """A method's settings with defaults and what they mean."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for heading in ("setting", "value", "meaning"):
        table.add_column(heading)
    for name, default, meaning in rows:
        table.add_row(name, str(default), meaning)
    return table


def stdout() -> Console:
    """The console for results; wide enough for a table when the output is no terminal."""
    console = _console()
    return console if console.is_terminal else _console(width=160)


def stderr() -> Console:
    """The console for what is told on the way."""
    return _console(stderr=True)


def _console(width: int | None = None, stderr: bool = False) -> Console:
    """Text comes from records, paths and models: `[b]` in it is no markup, and `:key:` no picture."""
    return Console(width=width, stderr=stderr, markup=False, emoji=False)
