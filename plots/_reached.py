"""Which point speaks where a benchmark marks that enough was forgotten: the first such one, else the last that was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.core.benchmark import roles_of
from harness.core.evaluator import metric_of, title_of
from harness.core.metric import in_text
from harness.reading.formats import known, number
from plots import _select, _style
from plots._select import LAST, MEDIAN, Group

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

REACHED = "reached"
"""Column of `speaking`: whether enough was forgotten at that point; True where the benchmark has no such mark."""


STEP = "step"
"""Column of a point's number of steps."""
WIDE = 10
"""From so many times its lowest value on a metric has a logarithmic axis."""
NEAR = 0.09
"""Levels closer than this share of an axis have one name."""


@dataclass(frozen=True)
class Marked:
    """A group of comparable runs with the metrics that its benchmark's roles name."""

    group: Group
    """The runs."""
    mark: str
    """The metric that is 1 where enough was forgotten; empty if there is none."""
    forgetting: Sequence[str]
    """What says how well was forgotten, first what ranks, where something does."""
    kept: Sequence[str]
    """What says what was kept, as far as it was measured."""

    @property
    def points(self) -> pd.DataFrame:
        """Every measured point of methods, in order."""
        return _select.without_references(self.group.points).sort_values(["folder", "index"])

    @property
    def speaking(self) -> pd.DataFrame:
        """One point for each run, with the column `reached`."""
        ordered = self.points
        if not self.mark:
            return LAST.pick(ordered).assign(**{REACHED: True})
        reached = ordered[self.mark] == 1
        until = ordered[~(reached.groupby(ordered["folder"]).cumsum() - reached).astype(bool)]  # up to the first such point
        chosen = LAST.pick(until)
        return chosen.assign(**{REACHED: chosen[self.mark] == 1})

    @property
    def rule(self) -> str:
        """Which point speaks, for notes."""
        if not self.mark:
            return f"Each run speaks with its {LAST.name}."
        return (
            f"Each run speaks with its first measured point at which {self.mark} is 1; hollow: a run that has none, with its "
            f"{LAST.name}."
        )

    def n(self) -> str:
        """How many runs speak with one voice, for notes."""
        speaking = self.speaking
        seeds = speaking.groupby(["method", "config"])["seed"].nunique()
        if seeds.max() == 1:
            return "One seed each."
        counts = f"{seeds.max()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
        hollow = ", hollow unless all of them got there" if self.mark else ""
        return f"n = {counts} seeds: small markers are runs, large ones their {MEDIAN}{hollow}."


def marked(runs: pd.DataFrame, what: str, advise: Callable[..., str]) -> list[Marked]:
    """The runs' table, cut into groups that may share a figure, by the roles of each one's benchmark.

    Raises:
        UsageError: if nothing is left; names a command that makes such runs.
    """
    groups: list[Marked] = []
    for bench in sorted(set(runs["bench"])) if len(runs) else [""]:
        of_bench = runs[runs["bench"] == bench] if bench else runs
        roles = roles_of(bench)
        forgetting = [metric for metric in dict.fromkeys([roles.ranking, *roles.forgetting]) if metric]
        measured = set(of_bench["metric"]) if len(of_bench) else set()
        kept = [metric for metric in roles.kept if metric in measured]
        needed = [*([roles.reached] if roles.reached else forgetting[:1]), *(kept[:1] or roles.kept[:1])]
        for group in _select.groups(of_bench, needed, what, also=[*forgetting, *kept[1:]], advise=advise):
            groups.append(Marked(group, roles.reached, forgetting, kept))
    return groups


def label(metric: str, points: pd.DataFrame) -> str:
    """A metric as an axis says it, with which way is good."""
    arrows = {"lower": "↓ better", "higher": "↑ better", "closer": "→ retrained"}
    better = next(iter(points[f"{metric}_better"].dropna()), "") if f"{metric}_better" in points else ""
    title = in_text(title_of(metric))
    return f"{title[:1].upper()}{title[1:]}" + (f"\n({arrows[better]})" if better in arrows else "")


def wide_axis(axes: Axes, values: pd.Series) -> None:
    """A logarithmic vertical axis, where perplexities and the like lie far apart; where one of them is 1 or less, none does."""
    lowest, highest = values.min(), values.max()
    if lowest > 1 and highest > WIDE * lowest:
        _style.log_ticks(axes, [*values.dropna()], vertical=True)


def levels(axes: Axes, group: Group, metric: str, named: bool) -> None:
    """Where the references, the noise floor and chance lie, as dashed lines."""
    heights = {str(each["arm"]): float(each[metric]) for each in group.references.to_dict("records") if known(each.get(metric))}
    if (match := metric_of(metric)) and match[1].chance is not None:
        heights["chance"] = match[1].chance
    low, high = axes.get_ylim()
    near = NEAR * (max(high, *heights.values()) - min(low, *heights.values())) if heights else 0.0
    ordered = sorted(heights.items(), key=lambda item: item[1])
    for number_of, (name, height) in enumerate(ordered):
        together = [other for other, its in ordered if abs(its - height) < near]
        first = together[0] == name or abs(ordered[number_of - 1][1] - height) >= near
        _style.line(axes, height, ",\n".join(together) if named and first else "")


def spread(points: pd.DataFrame, metric: str) -> str:
    """The lower median over seeds, and in brackets the lowest and the highest; a dash where nothing was measured."""
    value = _select.value_of(points, metric, ())
    if value is None:
        return "–"
    low, high = value["seed_low"], value["seed_high"]
    shown = "{:g}".format if metric == STEP else number
    return shown(value["value"]) + (f" ({shown(low)} to {shown(high)})" if low != high else "")
