"""Forgetting, remaining knowledge and what attacks bring back, of runs with budgets, at the same damage (a view of ours).

Damage is KL from the model before unlearning on rows that nothing trains on and nothing reports, on a logarithmic axis. One
drawing has all methods, their lines the medians over worlds and seeds; in another each has a panel of its own, with the range
over worlds and seeds, before all the others in grey. The tables beside them are those of the leaderboard.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.core.errors import UsageError
from harness.core.evaluator import metric_of, title_of
from harness.core.figure import FigureOptions, Sheet, figure
from harness.core.metric import in_text
from harness.reading.contenders import Contender
from harness.reading.equal_damage import EqualDamage, Middle
from harness.reading.equal_damage_tables import title_at
from harness.reading.formats import number
from harness.reading.looks import look
from harness.reading.recorded import Recorded
from plots import _style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

KINDS = ("benign", "retain", "related", "forget")
"""Kinds of data of attacks by fine-tuning, in this order."""
DASHES = (
    "-",
    (0, (5, 2)),
    (0, (1, 1.2)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (8, 2, 1, 2, 1, 2)),
    (0, (10, 2)),
    (0, (2.5, 1, 1, 1, 1, 1)),
)
"""Of several contenders of one colour: a method's forms and its kin."""
MOST_BANDS = 8
"""With more methods than these their ranges stand in the panels of each alone: bands over bands are mud."""
NEAR = 0.07
"""Levels closer than this share of an axis have one label."""
ACROSS = 5
"""Panels side by side in the drawing with one for each."""
DAMAGE = "damage, nats per token"
STAR = " Star: retrained models at a damage of their own; bar: lowest to highest."


@figure("equal_damage", at_budgets=True)
def equal_damage(runs: pd.DataFrame, options: FigureOptions) -> Mapping[str, Drawing | Sheet]:
    """Two drawings and the tables of each comparison."""
    if runs.empty:
        raise UsageError(f"no run has budgets of damage. {_advice()}")
    recorded = Recorded(options.results)
    made: dict[str, Drawing | Sheet] = {}
    for comparison in recorded.at_equal_damage(sorted(set(runs["folder"]))):
        metrics = _metrics(comparison)
        if not comparison.contenders or not metrics:
            continue
        name = _file_name(comparison)
        with _style.style():
            made[name] = _all_in_one(comparison, metrics)
            made[f"{name}-each"] = _each(comparison, metrics[0])
        made |= {f"{name}-{part}": sheet for part, sheet in recorded.tables(comparison).items()}
    if not made:
        raise UsageError(f"no run that is done met a budget and measured what was forgotten there. {_advice()}")
    return made


def _advice() -> str:
    return "Make some: harness run --method kfade,npo,sham,retrained --bench tofu10 --budgets .003,.01,.03,.1"


def _file_name(comparison: EqualDamage) -> str:
    identity = comparison.identity
    tags = [comparison.bench, str(identity["model"])]
    tags += [str(identity["variant"])] * (identity["variant"] != "original")
    tags += [f"retain-{identity['retain set']}"] * (identity["retain set"] != "all")
    tags += [f"limit{identity['rows per split']}"] * (identity["rows per split"] != "all")
    return "-".join(re.sub("[^A-Za-z0-9@._-]+", "-", tag) for tag in tags)


def _metrics(comparison: EqualDamage) -> list[str]:
    """What is drawn of what methods have at a budget: what ranks, what falls with forgetting, attacks or what was kept."""
    roles, measured = comparison.roles, comparison.metrics
    ends: dict[str, int] = {}
    for metric in measured:
        if (match := re.fullmatch(r"attack_(\w+?)_(\d+)", metric)) and match[1] in KINDS:
            ends[match[1]] = max(ends.get(match[1], 0), int(match[2]))
    attacks = [f"attack_{kind}_{ends[kind]}" for kind in KINDS if kind in ends]
    names = [roles.ranking or next(iter(roles.forgetting), ""), roles.level, *(attacks or roles.kept)]
    return [metric for metric in dict.fromkeys(names) if metric in measured and _lines(comparison, metric)]


# ---------------------------------------------------------------- what is drawn


@dataclass(frozen=True)
class _Line:
    """One contender's way."""

    contender: Contender
    budgets: Sequence[float]
    middles: Sequence[Middle]

    @property
    def values(self) -> list[float]:
        return [middle.value for middle in self.middles]


def _lines(comparison: EqualDamage, metric: str) -> list[_Line]:
    lines = []
    for contender in comparison.contenders:
        known = [(b, m) for b in comparison.budgets if (m := comparison.middle(contender, b, metric))]
        if known:
            lines.append(_Line(contender, [b for b, _ in known], [m for _, m in known]))
    return lines


def _dashes(comparison: EqualDamage) -> dict[str, Any]:
    """Contender → its line: the first one of a colour is drawn through."""
    seen: dict[str, int] = {}
    made = {}
    for contender in comparison.contenders:
        colour = look(contender.method).colour
        number_of = seen[colour] = seen.get(colour, -1) + 1
        made[contender.label] = DASHES[number_of % len(DASHES)]
    return made


def _plot(axes: Axes, line: _Line, dashes: Any, **more: Any) -> None:
    drawn = look(line.contender.method)
    edge = "white" if _style.filled(drawn.marker) else drawn.colour
    usual: dict[str, Any] = {
        "linewidth": 1.0,
        "markersize": 5.5,
        "markeredgewidth": 0.6 if edge == "white" else 1.2,
        "zorder": 3,
    }
    axes.plot(
        line.budgets,
        line.values,
        color=drawn.colour,
        linestyle=dashes,
        marker=drawn.marker,
        markeredgecolor=edge,
        **{**usual, **more},
    )


def _band(axes: Axes, line: _Line, alpha: float) -> None:
    lows, highs = [m.low for m in line.middles], [m.high for m in line.middles]
    axes.fill_between(line.budgets, lows, highs, color=look(line.contender.method).colour, alpha=alpha, linewidth=0, zorder=2)


def _marks(axes: Axes, comparison: EqualDamage, metric: str, named: bool) -> None:
    """The noise floor, the references' levels, and the models that stand at a damage of their own."""
    if metric == comparison.roles.ranking and (floor := comparison.floor(metric)) is not None:
        axes.axhspan(0, floor, color="#2ca02c", alpha=0.13, zorder=0, linewidth=0)
        if named:
            text = f"≤ {number(floor)}: ties (noise floor)"
            axes.annotate(text, (0.02, 0.01), xycoords="axes fraction", va="bottom", fontsize=7, color="#1b6e1b", zorder=7)
    levels = {name: m.value for name in ("untouched", "retrained") if (m := comparison.reference(name, metric))}
    if metric == comparison.roles.ranking:
        levels.pop("retrained", None)  # which is 0 against itself
    near = len(levels) > 1 and max(levels.values()) - min(levels.values()) < NEAR * max(axes.get_ylim()[1], *levels.values())
    names = {"untouched": "untouched,\nretrained"} if near else {name: name for name in levels}
    for name, level in levels.items():
        _style.line(axes, level, names.get(name, "") if named else "")
    if (match := metric_of(metric)) and match[1].chance is not None:
        _style.line(axes, match[1].chance, "chance" if named else "")
    for contender in comparison.fixed:
        middle, damage = comparison.middle(contender, None, metric), comparison.damage(contender, None)
        if middle and damage:
            drawn = look(contender.method)
            ends = [[middle.value - middle.low], [middle.high - middle.value]]
            axes.errorbar(damage, middle.value, yerr=ends, color=drawn.colour, linewidth=0.8, capsize=2, zorder=5)
            size = 11 if contender.method == "retrained" else 6
            axes.plot(
                [damage], [middle.value], drawn.marker, color=drawn.colour, markersize=size, markeredgecolor="white", zorder=6
            )


def _axes(axes: Axes, comparison: EqualDamage) -> None:
    """The axis of damage, with the budgets as its ticks."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    damages = [d for each in comparison.fixed if (d := comparison.damage(each, None))]
    ends = [*comparison.budgets, *damages]
    axes.set_xscale("log")
    axes.set_xlim(min(ends) / 1.35, max(ends) * 1.35)
    axes.xaxis.set_major_locator(FixedLocator(comparison.budgets))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _label(comparison: EqualDamage, metric: str) -> str:
    better = next((m.example.better for line in _lines(comparison, metric) for m in line.middles), None)
    goals = {"lower": "↓ better", "higher": "↑ better", "closer": "→ retrained"}
    title = in_text(title_of(metric))
    return f"{title[:1].upper()}{title[1:]}" + (f"\n({goals[better]})" if better else "")


# ---------------------------------------------------------------- all in one


def _all_in_one(comparison: EqualDamage, metrics: Sequence[str]) -> Drawing:
    rows = math.ceil(len(metrics) / 2)
    columns = min(2, len(metrics))
    width = _style.panels_width(columns) + (1.6 if columns > 1 else 0.8)
    contenders = len(comparison.contenders)
    height = max(3.0 * rows + 0.4, 0.17 * (contenders + 4))
    bands = contenders <= MOST_BANDS
    drawing = _style.figure(width, height, f"Forgetting at equal damage: {title_at(comparison)}", _reading(comparison, bands))
    panels = drawing.subplots(rows, columns, squeeze=False).ravel()
    dashes = _dashes(comparison)
    for axes, metric in zip(panels, metrics, strict=False):
        for line in _lines(comparison, metric):
            if bands:
                _band(axes, line, 0.13)
            _plot(axes, line, dashes[line.contender.label])
        _marks(axes, comparison, metric, named=True)
        _axes(axes, comparison)
        axes.set_xlabel(f"{DAMAGE}\n(log scale, ← better)")
        axes.set_title(_n(comparison, metric), fontsize=7, loc="left")
        axes.set_ylabel(_label(comparison, metric))
        axes.set_ylim(0, 1.03 * axes.get_ylim()[1])  # a marker at the top is not cut
    for axes in panels[len(metrics) :]:
        axes.set_visible(False)
    _legend(drawing, comparison, metrics[0], dashes)
    return drawing


def _legend(drawing: Drawing, comparison: EqualDamage, metric: str, dashes: Mapping[str, Any]) -> None:
    """Names beside the panels, in the order of their numbers where methods are ranked."""
    from matplotlib.lines import Line2D

    budget = comparison.judged_at
    middles = {each.label: comparison.middle(each, budget, metric) for each in comparison.contenders}
    order = sorted(comparison.contenders, key=lambda each: -m.value if (m := middles[each.label]) else math.inf)
    handles = []
    for contender in [*order, *(each for each in comparison.fixed if comparison.damage(each, None))]:
        drawn = look(contender.method)
        handle = Line2D(
            [], [], color=drawn.colour, marker=drawn.marker, label=_broken(contender), linestyle=dashes.get(contender.label, "")
        )
        handle.set(linewidth=1.0, markersize=9 if contender.method == "retrained" else 5.5)
        handle.set_markeredgecolor("white" if _style.filled(drawn.marker) else drawn.colour)
        handles.append(handle)
    title = f"from top to bottom as\n{in_text(title_of(metric))} at {budget:g}"
    legend = drawing.legend(
        handles=handles, loc="outside right upper", frameon=False, fontsize=7, title=title, title_fontsize=7, handlelength=3.4
    )
    legend.set_alignment("left")


# ---------------------------------------------------------------- each for itself


def _each(comparison: EqualDamage, metric: str) -> Drawing:
    lines = _lines(comparison, metric)
    budget = comparison.judged_at
    lines.sort(key=lambda line: m.value if (m := comparison.middle(line.contender, budget, metric)) else math.inf)
    across = min(ACROSS, len(lines))
    rows = math.ceil(len(lines) / across)
    drawing = _style.figure(
        max(_style.panels_width(1), 1.75 * across),
        1.65 * rows + 0.5,
        f"Each method at equal damage: {title_at(comparison)}",
        _alone(comparison, metric),
    )
    panels = drawing.subplots(rows, across, squeeze=False, sharex=True, sharey=True)
    for axes, line in zip(panels.ravel(), lines, strict=False):
        for other in lines:
            axes.plot(other.budgets, other.values, color="#c8c8c8", linewidth=0.6, zorder=1)
        _band(axes, line, 0.25)
        _plot(axes, line, "-", linewidth=1.4)
        _marks(axes, comparison, metric, named=False)
        axes.set_title(_broken(line.contender), fontsize=7)
    for axes in panels.ravel()[len(lines) :]:
        axes.set_visible(False)
    _axes(panels[0, 0], comparison)
    panels[0, 0].set_ylim(bottom=0)
    for number_of, axes in enumerate(panels.ravel()[: len(lines)]):
        axes.tick_params(axis="x", labelsize=6, rotation=45, labelbottom=number_of + across >= len(lines))
    for axes in panels[:, 0]:
        axes.set_ylabel(_label(comparison, metric), fontsize=7)
    return drawing


# ---------------------------------------------------------------- words


def _broken(contender: Contender) -> str:
    """A label on several lines."""
    return contender.label.replace(" (", "\n(").replace(", ", ",\n")


def _n(comparison: EqualDamage, metric: str) -> str:
    """Over how many worlds × seeds a panel's numbers go."""
    counts = {m.n for line in _lines(comparison, metric) for m in line.middles}
    return f"n = {max(counts)}" if len(counts) == 1 else f"n = {min(counts)} to {max(counts)}"


def _shared(comparison: EqualDamage) -> list[str]:
    unmet = {(each.contender.label, each.budget) for each in comparison.unmet}
    named = ", ".join(f"{label} at {budget:g}" for label, budget in sorted(unmet))
    return [
        "Damage: KL from the model before unlearning on rows held out of training, fitting and reporting; retain rows and "
        "general text, the larger of the two. Budgets are met within 2 %.",
        f"Level black dashes: the references.{STAR * any(comparison.damage(each, None) for each in comparison.fixed)}",
        *([f"Not met in every world and seed: {named}; the table says why."] if unmet else []),
        *comparison.chosen,
        *comparison.uneven,
        *comparison.notes,
    ]


def _reading(comparison: EqualDamage, bands: bool) -> list[str]:
    ranges = "bands: lowest to highest" if bands else "ranges are in the drawing with a panel for each"
    worlds = ", ".join(comparison.worlds)
    return [f"Lines: medians over n worlds × seeds (worlds: {worlds}); {ranges}.", *_shared(comparison)]


def _alone(comparison: EqualDamage, metric: str) -> list[str]:
    return [
        f"In order of {in_text(title_of(metric))} at {comparison.judged_at:g}. Line: median over "
        f"{_n(comparison, metric)} (worlds × seeds; worlds: {', '.join(comparison.worlds)}); band: lowest to highest. Grey: "
        f"the other methods. Green: at or under the noise floor, where all tie. Across: {DAMAGE}.",
        *_shared(comparison),
    ]
