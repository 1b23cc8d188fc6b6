"""What a person sees of a run: tables for the terminal, from records alone. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.costs import Phase
from harness.interfaces import Absent, Measurement
from harness.store import Point, RunResult

_ARROWS = {"higher": "↑", "lower": "↓", "closer": "→ retrained"}
_TRAJECTORY = ("forget_quality", "forget_quality_d", "model_utility", "forget_probability", "forget_rouge", "retain_rouge")

Values = Mapping[str, Measurement | Absent]


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
        parts.append(_trajectory(result.points))
    if result.points:
        last = result.points[-1]
        columns = {spec.method: measurements(last.measurements)}
        columns |= {arm: measurements(found) for arm, found in result.arms.items()}
        title = f"after {last.step} steps" if last.step != 1 else "after 1 step"
        parts.append(measurement_table(columns, title if len(result.points) > 1 else None))
        parts += [Text(line, style="dim") for line in _footnotes(result, columns[spec.method], last)]
    parts += [Text(line, style="dim") for line in _costs(result.costs)]
    return Group(*parts)


def measurement_table(columns: Mapping[str, Values], title: str | None = None, digits: int = 4) -> Table:
    """Measurements side by side, the first column's with interval, direction and noise floor.

    Args:
        columns: heading → its measurements; the first one is the subject.
        title: above the table.
        digits: after the decimal point.
    """
    (subject, values), *others = columns.items()
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("metric")
    table.add_column(subject, justify="right")
    table.add_column("95 % interval", justify="right")
    for name, _ in others:
        table.add_column(name, justify="right")
    for heading in ("better", "noise floor", "n"):
        table.add_column(heading, justify="right")
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
    # Forget quality depends on which retrained model it is compared with, so all of them are shown.
    if found.metric.startswith("forget_quality") and found.across_references:
        low, high = found.across_references
        if low != high:
            text += f" ({number(low, 2)} to {number(high, 2)})"
    return text


def _trajectory(points: Sequence[Point]) -> Table:
    table = Table(title="the way there", title_justify="left", header_style="bold")
    table.add_column("step", justify="right")
    shown = [m for m in _TRAJECTORY if m in measurements(points[0].measurements)]
    for metric in shown:
        table.add_column(metric, justify="right")
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
    console = Console()
    return console if console.is_terminal else Console(width=160)
