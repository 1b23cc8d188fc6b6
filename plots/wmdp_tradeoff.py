"""WMDP: hazardous accuracy against KL on instructions and against what was to be kept (a view of ours).

A table of last points compares methods that forget unequally; along every run's way they can be compared at equal forgetting.
Above: KL of the model before unlearning to the model after it, on the former's answers to instructions, on a logarithmic axis.
Below: accuracy on what was to be kept. Published and tuned forms stand side by side and share their axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness.core.errors import UsageError
from harness.core.interfaces import FigureOptions, Sheet, figure
from plots import _select, _style
from plots._select import ARMS, CHANCE, LAST, MEDIAN, PROTOCOLS, Group, forms_of
from plots._ways import legend, ways

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
        points, arms = (_with_means(of, hazardous, kept) for of in (group.points, group.arms))
        points = points[~points["method"].isin(ARMS)]
        if points.empty:
            continue
        forms = forms_of(points)
        shown = points[points["protocol"].isin(forms)]
        left = points.loc[~points["protocol"].isin(forms), "folder"].nunique()
        notes = [*_reading(group, shown, hazardous, kept), *_select.same_settings(shown), *group.notes]
        notes += [f"Not shown: {left} runs with settings by hand."] if left else []
        with _style.style():
            made[group.name] = _draw(group, shown, arms, forms, notes)
        made[f"{group.name}-points"] = _sheet(group, shown, [*hazardous, *kept], notes)
    if not made:
        raise UsageError(f"there are only reference arms. {_advice()}")
    return made


def _advice(bench: str = "wmdp", model: str = "mini") -> str:
    return _select.advice(bench, model, "kfade,rmu,grad_diff", "multiple_choice,alpaca_kl")


def _with_means(points: pd.DataFrame, hazardous: Sequence[str], kept: Sequence[str]) -> pd.DataFrame:
    means = {FORGOTTEN: points[hazardous].mean(axis=1, skipna=False), LEFT: points[kept].mean(axis=1, skipna=False)}
    return points.assign(**means, **{f"{LEFT}_{end}": float("nan") for end in ("low", "high")})


def _draw(group: Group, points: pd.DataFrame, arms: pd.DataFrame, forms: list[str], notes: list[str]) -> Drawing:
    drawing = _style.figure(4.2 * len(forms) + (1.6 if len(forms) > 1 else 2.8), 7.6 + 0.11 * len(notes))
    panels = drawing.subplots(2, len(forms), sharey=True, sharex="row", squeeze=False)
    moved = points[points[KL] > 0]
    for column, form in enumerate(forms):
        top, bottom = panels[:, column]
        ways(top, moved[moved["protocol"] == form], arms.iloc[:0], KL, FORGOTTEN)
        ways(bottom, points[points["protocol"] == form], arms, LEFT, FORGOTTEN)
        _style.references(bottom, arms.to_dict("records"), LEFT, FORGOTTEN, None)
        for axes in (top, bottom):
            axes.axhline(CHANCE, color="#555555", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
            axes.axhspan(-1, CHANCE, color="#555555", alpha=0.07, zorder=0, linewidth=0)
        for arm in arms.loc[arms["arm"] == "untouched", FORGOTTEN]:
            top.axhline(arm, color="#555555", linewidth=0.8, zorder=1)
            if not column:
                top.annotate("untouched, KL 0", (0.01, arm - 0.01), xycoords=("axes fraction", "data"), va="top", fontsize=7)
        top.set_title(f"{form} form" if form in PROTOCOLS else form)
        top.set_xlabel("KL on instructions, nats per token, log scale  (← better)")
        bottom.set_xlabel("accuracy on what was to be kept  (→ better)")
    for axes in panels[:, 0]:
        axes.set_ylabel("hazardous accuracy  (↓ better, to chance)")
    panels[0, 0].annotate(
        "chance: below it nothing more is forgotten",
        (0.01, CHANCE - 0.01),
        xycoords=("axes fraction", "data"),
        va="top",
        fontsize=7,
    )
    if len(moved):
        _style.log_ticks(panels[0, 0], [*moved[KL]])
    panels[0, 0].set_ylim(min(0.1, points[FORGOTTEN].min() - 0.05), 1.05)
    legend(drawing, points, arms)
    drawing.suptitle(f"Forgetting against what it costs: {group.title}", fontsize=11)
    _style.caption(drawing, notes, width=72 * len(forms) + (24 if len(forms) == 1 else 8))
    return drawing


def _reading(group: Group, points: pd.DataFrame, hazardous: Sequence[str], kept: Sequence[str]) -> list[str]:
    def told(names: Sequence[str]) -> str:
        return ", ".join(f"{name.removesuffix('_accuracy')} (n = {group.n(name)})" for name in names)

    seeds = points.groupby(["method", "protocol"])["seed"].nunique().max()
    several = f"several seeds: hollow markers are their {LAST.name}s, the large one is the {MEDIAN}"
    return [
        f"Line: a run's measured points in order. Large marker: its {LAST.name}; bar: 95 % interval of KL (bootstrap over "
        f"completions, n = {group.n(KL)}); {several if seeds > 1 else 'one seed each'}.",
        f"Forgotten: mean of {told(hazardous)}; kept: mean of {told(kept)}; intervals of accuracies are in wmdp_table. "
        "KL does not see what was kept beside it, nor accuracy what was said.",
    ]


def _sheet(group: Group, points: pd.DataFrame, accuracies: Sequence[str], notes: list[str]) -> Sheet:
    """The drawn points."""
    columns = ["method", "protocol", "seed", "run", "step", "seconds", *accuracies, KL, f"{KL}_low", f"{KL}_high"]
    numbers = points.sort_values(["method", "protocol", "seed", "folder", "index"])[columns].reset_index(drop=True)
    numbers = numbers.astype({"seed": "Int64", "step": "Int64"})
    shown = numbers.drop(columns=["run", "seconds", f"{KL}_low", f"{KL}_high"])
    shown = shown.assign(**{name: shown[name].map(_style.number) for name in (*accuracies, KL)}).astype(str)
    return Sheet(numbers, shown, f"Every measured point: {group.title}", notes)
