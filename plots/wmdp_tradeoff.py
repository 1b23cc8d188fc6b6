"""WMDP: hazardous accuracy against KL on instructions and against what was to be kept (a view of ours).

A table of last points compares methods that forget unequally; along runs' trajectories they compare at equal forgetting.
Above: KL of the model before unlearning to the model after it, on the former's answers to instructions, on a logarithmic axis.
Below: accuracy on what was to be kept. Published and tuned presets stand side by side and share their axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness.core.errors import UsageError
from harness.core.figure import FigureOptions, Sheet, figure
from harness.reading.formats import number
from plots import _select, _style
from plots._select import CHANCE, LAST, MEDIAN, Group
from plots._trajectories import draw_trajectories, legend

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Drawing

HAZARDOUS = ("bio_accuracy", "cyber_accuracy")
KEPT = ("neighbours_accuracy", "general_accuracy", "mmlu_accuracy")
KL = "alpaca_kl"
FORGOTTEN, LEFT = "hazardous", "kept"
"""Means over the questions of the stages, and over those to be kept, made here for each point."""


@figure("wmdp_tradeoff")
def wmdp_tradeoff(runs: pd.DataFrame, options: FigureOptions) -> Mapping[str, Drawing | Sheet]:
    """One drawing and one table of its points for each group of comparable runs."""
    made: dict[str, Drawing | Sheet] = {}
    for group in _select.groups(runs, (*HAZARDOUS, KL), "this figure", also=KEPT, advise=_advice):
        alone = group.bench.partition("wmdp-")[2]  # the one stage's name, where there is one
        hazardous = [name for name in HAZARDOUS if alone in ("", name.removesuffix("_accuracy"))]
        kept = [name for name in KEPT if name in set(group.runs["metric"])]
        points, references = (_with_means(of, hazardous, kept) for of in (group.points, group.references))
        shown, protocols, left = _select.split(points)
        if shown.empty:
            continue
        notes = [*_reading(group, shown, hazardous, kept), *_select.same_settings(shown), *group.notes, *left]
        with _style.style():
            made[group.name] = _draw(group, shown, references, protocols, notes)
        made[f"{group.name}-points"] = _sheet(group, shown, [*hazardous, *kept], notes)
    if not made:
        raise UsageError(f"there are only references. {_advice()}")
    return made


def _advice(bench: str = "wmdp", model: str = "mini") -> str:
    return _select.advice(bench, model, "kfade,rmu,grad_diff", "multiple_choice,alpaca_kl")


def _with_means(points: pd.DataFrame, hazardous: Sequence[str], kept: Sequence[str]) -> pd.DataFrame:
    means = {FORGOTTEN: points[hazardous].mean(axis=1, skipna=False), LEFT: points[kept].mean(axis=1, skipna=False)}
    return points.assign(**means, **{f"{LEFT}_{end}": float("nan") for end in ("low", "high")})


def _draw(
    group: Group, points: pd.DataFrame, references: pd.DataFrame, protocols: Sequence[str], notes: Sequence[str]
) -> Drawing:
    title = f"Forgetting against what it costs: {group.title}"
    drawing = _style.figure(_style.panels_width(len(protocols)), 5.8, title, notes)
    panels = drawing.subplots(2, len(protocols), sharey=True, sharex="row", squeeze=False)
    moved = points[points[KL] > 0]
    for (top, bottom), protocol in zip(panels.T, protocols, strict=True):
        draw_trajectories(top, moved[moved["preset"] == protocol], references.iloc[:0], KL, FORGOTTEN)
        draw_trajectories(bottom, points[points["preset"] == protocol], references, LEFT, FORGOTTEN)
        _style.draw_references(bottom, references.to_dict("records"), LEFT, FORGOTTEN, None)
        last = protocol == protocols[-1]
        for axes in (top, bottom):
            _style.line(axes, CHANCE, "chance" if last else "")
            axes.axhspan(-1, CHANCE, color="#555555", alpha=0.07, zorder=0, linewidth=0)
        for height in references.loc[references["arm"] == "untouched", FORGOTTEN]:
            _style.line(top, height, "untouched\n(KL 0)" if last else "")
        top.set_title(_select.heading(protocol))
        top.set_xlabel("KL on instructions, nats per token,\nlog scale  (← better)")
    kept = [*points[LEFT].dropna(), *references.get(LEFT, points[LEFT].iloc[:0]).dropna()]
    stretched = bool(kept) and _style.score_axis(panels[1, 0], kept)
    for axes in panels[1]:
        axes.set_xlabel("accuracy on what was to be kept" + (",\naxis stretched to the right" * stretched) + "  (→ better)")
    for axes in panels[:, 0]:
        axes.set_ylabel("hazardous accuracy\n(↓ better, to chance)")
    if len(moved):
        _style.log_ticks(panels[0, 0], [*moved[KL]])
    panels[0, 0].set_ylim(min(0.1, points[FORGOTTEN].min() - 0.05), 1.05)
    legend(drawing, points, references)
    return drawing


def _reading(group: Group, points: pd.DataFrame, hazardous: Sequence[str], kept: Sequence[str]) -> list[str]:
    def named(metrics: Sequence[str]) -> str:
        return ", ".join(f"{metric.removesuffix('_accuracy')} (n = {group.n(metric)})" for metric in metrics)

    seeds = points.groupby(["method", "preset"])["seed"].nunique().max()
    several = f"several seeds: hollow markers are their {LAST.name}s, the large one is the {MEDIAN}"
    return [
        f"Line: a run's measured points in order. Large marker: its {LAST.name}; bar: 95 % interval of KL (bootstrap over "
        f"completions, n = {group.n(KL)}); {several if seeds > 1 else 'one seed each'}. References: "
        f"{group.named_references}. Below chance nothing more is forgotten.",
        f"Forgotten: mean of {named(hazardous)}; kept: mean of {named(kept)}; intervals of accuracies are in wmdp_table. "
        "KL does not see what was kept beside it, nor accuracy what was said.",
    ]


def _sheet(group: Group, points: pd.DataFrame, accuracies: Sequence[str], notes: Sequence[str]) -> Sheet:
    """The drawn points."""
    columns = ["method", "preset", "seed", "run", "step", "seconds", *accuracies, KL, f"{KL}_low", f"{KL}_high"]
    numbers = points.sort_values(["method", "preset", "seed", "folder", "index"])[columns].reset_index(drop=True)
    numbers = numbers.astype({"seed": "Int64", "step": "Int64"})
    shown = numbers.drop(columns=["run", "seconds", f"{KL}_low", f"{KL}_high"])
    shown = (
        shown.assign(**{name: shown[name].map(number) for name in (*accuracies, KL)})
        .astype(str)
        .rename(columns={"preset": "preset"})
    )
    return Sheet(numbers, shown, f"Every measured point: {group.title}", notes)
