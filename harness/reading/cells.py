"""What stands in the cells of the leaderboard's page and of its Markdown, and the sentences below its tables."""

from __future__ import annotations

from collections.abc import Sequence

from harness.core.measurement import Absent, Difference
from harness.core.options import Protocol
from harness.reading.added import added
from harness.reading.compared import Run
from harness.reading.differences import LEVEL
from harness.reading.formats import NO_NUMBER, arrow, interval, number, of_unit
from harness.reading.rows import Section, Value


def text_of(value: Value | Absent | None) -> str:
    """The number alone."""
    if not isinstance(value, Value):
        return "absent" if value else NO_NUMBER
    return of_unit(value.value, value.example.unit)


def lines_of(value: Value | Absent | None) -> tuple[str, list[str]]:
    """The number, and lines below it that are needed to read it: seeds, 95 % interval, range over references."""
    if not isinstance(value, Value):
        return text_of(value), []
    unit, small = value.example.unit, []
    if value.seeds > 1:
        small.append(f"{value.seeds} seeds: {of_unit(value.seed_low, unit)} to {of_unit(value.seed_high, unit)}")
    if value.interval:
        small.append(f"[{interval(*value.interval)}]")
    # Only what is computed against each retrained model; others have a range of the references' own numbers.
    if value.across and value.example.reference is None and value.across[0] != value.across[1]:
        small.append(f"({' to '.join(of_unit(end, unit) for end in value.across)})")
    return text_of(value) + (" tie" if value.tie else ""), small


def in_one_line(value: Value | Absent | None) -> str:
    """A number and what is needed to read it."""
    main, small = lines_of(value)
    return " ".join((main, *small))


def oracle_in_one_line(oracle: tuple[str, tuple[float, ...]] | None) -> str:
    """The numbers at the oracle's point."""
    return f"{', '.join(map(number, oracle[1]))} at step {oracle[0]}" if oracle else NO_NUMBER


def unfinished_in_one_line(run: Run) -> str:
    """A failed or interrupted run."""
    return f"{run.status}: {run.spec.method}, seed {run.spec.seed}, {run.folder}" + (f": {run.error}" if run.error else "")


def differences_in_one_line(preset: Protocol, pairs: Sequence[Difference]) -> str:
    """How many differences of a preset are told apart from none."""
    apart = sum(each.p_corrected <= LEVEL for each in pairs)
    return (
        f"{preset}: {apart} of {len(pairs)} differences between two methods (paired bootstrap) are told apart from "
        f"none at {100 * LEVEL:g} %, Holm-corrected for all {len(pairs)}."
    )


def headline(section: Section) -> list[str]:
    """The metrics that are always shown."""
    declared = [m for m in section.metrics if m in section.roles.headline]
    beside = added(str(section.identity["benchmark"]), section.metrics)
    return [*dict.fromkeys([*declared, *beside])] if declared else section.metrics


def heading(section: Section, metric: str) -> str:
    """A metric's name and direction."""
    example = section.example(metric)
    title = section.title(metric) if metric in section.roles.headline else metric
    return f"{title} {arrow(example.better) if example else ''}".strip()
