"""What fine-tuning and rounding the weights bring back: scores on forgotten questions along such attacks (figure 4).

Fine-tuning is on benign, related or forgotten data, rounding to 8 or to 4 bits. A row of panels for each form, a panel for
each kind of data, or where weights were rounded for each set of questions. The untouched model went through the same attacks
and stands beside every method. On ToFU the score is the probability of the true answer, and the retrained model is there too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.core.errors import UsageError
from harness.core.interfaces import FigureOptions, Sheet, figure
from plots import _select, _style
from plots._select import ARMS, CHANCE, LAST, MEDIAN, Group, lower_median

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

START = "attack_start"
KINDS = ("benign", "related", "forget")
"""Kinds of data, in this order; others follow by name."""
TITLES = {"benign": "benign data", "related": "related data", "forget": "forget data"}
ACCURACY = "share of questions"
"""The unit of a score that counts right answers."""
RECOVERED, TRANSFERRED = "steps_to_recover", "transfer"
REFERENCE = "reference arm"
PRECISIONS = ("full", "8 bits", "4 bits")
"""Of weights, in the order of the figure."""
DIRECTIONS = {"lower": "↓", "higher": "↑", "closer": "→ retrained"}


@figure("attack")
def attack(runs: pd.DataFrame, options: FigureOptions) -> Mapping[str, Drawing | Sheet]:
    """For each group of comparable runs a drawing and a table of the curves of each attack that was measured."""
    made: dict[str, Drawing | Sheet] = {}
    lacking: UsageError | None = None
    for of_attack in (_finetuned, _quantised):
        try:
            made |= of_attack(runs)
        except UsageError as error:
            lacking = lacking or error
    if lacking and not made:
        raise lacking
    return made


def _finetuned(runs: pd.DataFrame) -> Mapping[str, Drawing | Sheet]:
    made: dict[str, Drawing | Sheet] = {}
    names = [] if runs.empty else [m for m in sorted(set(runs["metric"])) if m.startswith("attack_") and m != START]
    bench, model = ("wmdp", "mini") if runs.empty else (str(runs["bench"].iloc[0]), str(runs["model"].iloc[0]))

    def advise(bench: str = bench, model: str = model) -> str:
        return _select.advice(bench, model, "kfade,grad_diff,npo", "finetune_attack --points last")

    for group in _select.groups(runs, (START,), "this figure", also=names, advise=advise):
        ends = LAST.pick(group.points)
        ends = ends[~ends["method"].isin(ARMS)]
        forms, kinds = _select.forms_of(ends), _kinds(group)
        if ends.empty or not kinds:
            continue
        left = ends.loc[~ends["protocol"].isin(forms), "folder"].nunique()
        scores = {kind: {s: f"attack_{kind}_{s}" if s else START for s in steps} for kind, steps in kinds.items()}
        table = _table(group, ends[ends["protocol"].isin(forms)], scores, (RECOVERED, TRANSFERRED))
        notes = _reading(group, table) + ([f"Not shown: {left} runs with settings by hand."] if left else [])
        what = "hazardous accuracy" if _counts_answers(group) else "probability of forgotten answers"
        goal = "→ retrained" if (table["method"] == "retrained").any() else "↓ better"
        with _style.style():
            titles = {kind: TITLES.get(kind, kind) for kind in kinds}
            drawing = _draw(group, table, forms, titles, "fine-tuning steps", f"{what}  ({goal})", notes)
            steps = sorted({step for of_kind in kinds.values() for step in of_kind})
            for axes in drawing.axes:
                axes.set_xticks(steps, minor=True)
            drawing.suptitle(f"Fine-tuning after unlearning: {group.title}", fontsize=11)
            made[group.name] = drawing
        made[f"{group.name}-points"] = _sheet(group, table, kinds, notes)
    if not made:
        raise UsageError(f"there are only reference arms. {advise()}")
    return made


def _quantised(runs: pd.DataFrame) -> Mapping[str, Drawing | Sheet]:
    made: dict[str, Drawing | Sheet] = {}
    bench, model = ("wmdp", "mini") if runs.empty else (str(runs["bench"].iloc[0]), str(runs["model"].iloc[0]))

    def advise(bench: str = bench, model: str = model) -> str:
        return _select.advice(bench, model, "kfade,grad_diff,npo", "multiple_choice,quantise_attack --points last")

    for _, of in () if runs.empty else runs.groupby(["bench", "model"], sort=True):
        there = set(of["metric"])
        sets = sorted(m.removesuffix("_8_bit") for m in there if m.endswith("_8_bit"))
        if not sets:
            continue
        full = {
            name: next((m for m in (f"{name}_accuracy", f"{name}_probability") if m in there), f"{name}_accuracy")
            for name in sets
        }
        scores = {name: dict(enumerate((full[name], f"{name}_8_bit", f"{name}_4_bit"))) for name in sets}
        needed, *others = [metric for name in sets for metric in scores[name].values() if metric.endswith("_bit")]
        for group in _select.groups(of, [needed], "this figure", also=[*full.values(), *others], advise=advise):
            ends = LAST.pick(group.points)
            ends = ends[~ends["method"].isin(ARMS)]
            forms = _select.forms_of(ends)
            if ends.empty:
                continue
            known = {name: ends.get(f"{name}_8_bit_better", ends["method"].iloc[:0]).dropna() for name in sets}
            better = {name: str(of_set.iloc[0]) for name, of_set in known.items() if len(of_set)}
            order = sorted(better, key=lambda name: (better[name] == "higher", name))  # what is forgotten first
            table = _table(group, ends[ends["protocol"].isin(forms)], {name: scores[name] for name in order})
            notes = _reading_of_bits(group, table, order)
            titles = {name: f"{name.replace('_', ' ')} {DIRECTIONS[better[name]]}" for name in order}
            counted = "accuracy" if _counts_answers(group) else "probability of the true answer"
            with _style.style():
                drawing = _draw(group, table, forms, titles, "precision of the weights", counted, notes)
                for axes in drawing.axes:
                    axes.set_xticks(range(len(PRECISIONS)), PRECISIONS)
                drawing.suptitle(f"Rounding the weights after unlearning: {group.title}", fontsize=11)
            made[f"{group.name}-bits"] = drawing
            made[f"{group.name}-bits-points"] = _sheet_of_bits(group, table, titles, notes)
    if not made:
        raise UsageError(f"no run but reference arms has scores after quantising. {advise()}")
    return made


# ---------------------------------------------------------------- numbers


def _kinds(group: Group) -> dict[str, list[int]]:
    """Each kind of data and the steps that were measured, 0 first."""
    found: dict[str, set[int]] = {}
    for metric in set(group.runs["metric"]):
        if told := re.fullmatch(r"attack_(.+)_(\d+)", metric):
            found.setdefault(told[1], {0}).add(int(told[2]))
    order = sorted(found, key=lambda kind: (KINDS.index(kind) if kind in KINDS else len(KINDS), kind))
    return {kind: sorted(found[kind]) for kind in order}


def _table(
    group: Group, ends: pd.DataFrame, scores: Mapping[str, Mapping[int, str]], others: Sequence[str] = ()
) -> pd.DataFrame:
    """A line for every (method, form, kind of data, what was measured there)."""
    import pandas as pd

    rows = [(str(m), str(form), of) for (m, form), of in ends.groupby(["method", "protocol"], sort=True)]
    rows += [(str(arm["arm"]), REFERENCE, pd.DataFrame([arm])) for arm in group.arms.to_dict("records")]
    order = {name: i for i, name in enumerate(_select.in_order(method for method, _, _ in rows))}
    rows.sort(key=lambda row: (order[row[0]], row[1]))
    lines = []
    for method, form, points in rows:
        for kind, metrics in scores.items():
            told = {"method": method, "protocol": form, "data": kind}
            for step, metric in metrics.items():
                lines.append({**told, "what": "score", "step": step, **_value(points, metric)})
            for what in others:
                lines.append({**told, "what": what, "step": None, **_value(points, f"attack_{kind}_{what}")})
    table = pd.DataFrame(lines)
    for name in ("step", "n", "seeds"):
        table[name] = table[name].astype("Int64")
    return table


def _value(points: pd.DataFrame, metric: str) -> dict[str, Any]:
    """One number; of several seeds the lower median, and where all of them lie."""
    middle = lower_median(points, metric) if metric in points else None
    if middle is None:
        reasons = sorted(set(points[f"{metric}_absent"].dropna())) if f"{metric}_absent" in points else []
        return {"metric": metric, "value": None, "seeds": 0, "absent": "; ".join(reasons) or "not measured"}
    told = {name: middle[f"{metric}_{name}"] for name in ("low", "high", "n")}
    seeds = {"seeds": int(points[metric].notna().sum()), "seed_low": points[metric].min(), "seed_high": points[metric].max()}
    return {"metric": metric, "value": middle[metric], **told, **seeds, "run": middle["run"], "absent": None}


def _counts_answers(group: Group) -> bool:
    return bool((group.runs["unit"] == ACCURACY).any())


# ---------------------------------------------------------------- drawing


def _draw(
    group: Group,
    table: pd.DataFrame,
    forms: Sequence[str],
    titles: Mapping[str, str],
    across: str,
    up: str,
    notes: Sequence[str],
) -> Drawing:
    """A row of panels for each form, a panel for each title; `across` and `up` stand at the axes."""
    drawing = _style.figure(3.3 * len(titles) + 1.6, 3.2 * len(forms) + 0.9 + 0.14 * len(notes))
    panels = drawing.subplots(len(forms), len(titles), sharex=True, sharey=True, squeeze=False)
    scores = table[(table["what"] == "score") & table["value"].notna()]
    apart = max(0.06, 0.011 * float(scores["step"].max()))
    handles: dict[str, Any] = {}
    for row, form in zip(panels, forms, strict=True):
        for axes, kind in zip(row, titles, strict=True):
            here = scores[(scores["data"] == kind) & scores["protocol"].isin((form, REFERENCE))]
            methods = _select.in_order(here["method"])
            for i, method in enumerate(methods):
                handles[method] = _curve(axes, here[here["method"] == method], method, apart * (i - (len(methods) - 1) / 2))
            if _counts_answers(group):
                axes.axhline(CHANCE, color="#555555", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
                if axes is panels[0, 0]:
                    axes.annotate("chance", (1, CHANCE), xycoords=("axes fraction", "data"), ha="right", va="top", fontsize=7)
            axes.set_title(titles[kind] + (f", {form}" if len(forms) > 1 else ""))
    for axes in panels[:, 0]:
        axes.set_ylabel(up)
    for axes in panels[-1]:
        axes.set_xlabel(across)
    names = _select.in_order(handles)
    drawing.legend([handles[name] for name in names], names, loc="outside right upper", frameon=False)
    _style.caption(drawing, notes, width=60 * len(titles) + 10)
    return drawing


def _curve(axes: Axes, line: pd.DataFrame, method: str, aside: float) -> Any:
    """A method's curve with its intervals, a little aside so that bars do not cover one another."""
    look, arm = _style.look(method), method in ARMS
    line = line.sort_values("step")
    steps, values = line["step"].astype(float).to_numpy() + aside, line["value"].astype(float).to_numpy()
    for x, y, low, high in zip(steps, values, line["low"], line["high"], strict=True):
        if _style.known(low) and _style.known(high):
            axes.vlines(x, min(low, y), max(high, y), color=look.colour, linewidth=0.9, alpha=0.7, zorder=3)
    drawn = axes.plot(steps, values, color=look.colour, marker=look.marker, linewidth=1.2, zorder=5 if arm else 4)[0]
    drawn.set_linestyle("--" if arm else "-")
    drawn.set_markersize(10 if method == "retrained" else 5.5)
    drawn.set_markerfacecolor("white" if method == "untouched" else look.colour)
    drawn.set_markeredgecolor(look.colour if method == "untouched" else "white")
    return drawn


def _reading(group: Group, table: pd.DataFrame) -> list[str]:
    counted = "accuracy" if _counts_answers(group) else "mean probability of the true answer"
    rows = "questions about what was forgotten, none of which is trained on"
    notes = [
        f"Each run at its {LAST.name}, then fine-tuned as a whole. Height: {counted}, n = {group.n(START)} {rows}; bars: 95 % "
        "interval, bootstrap over groups of questions. Curves stand a little aside of one another; all are measured at the "
        "same steps, 0 being the model as it was unlearned.",
        "Dashed: the reference arms, fine-tuned in the same way: what the attack does to a model that was not unlearned.",
    ]
    return [*notes, *_seeds_and_gaps(table, "data, steps"), *group.notes]


def _reading_of_bits(group: Group, table: pd.DataFrame, sets: Sequence[str]) -> list[str]:
    counted = "accuracy" if _counts_answers(group) else "mean probability of the true answer"
    rows = ", ".join(f"{name.replace('_', ' ')} {group.n(f'{name}_8_bit')}" for name in sets)
    return [
        f"Each run at its {LAST.name}, then its linear layers rounded to the nearest: to 8 bits with one scale for each output "
        f"channel, to 4 bits with one for each 64 inputs. Height: {counted}; rows: {rows}; bars: 95 % interval. Points stand a "
        "little aside of one another.",
        "Dashed: the reference arms, rounded in the same way: what rounding does to a model that was not unlearned.",
        *_seeds_and_gaps(table, "questions,", dict(enumerate(PRECISIONS))),
        *group.notes,
    ]


def _seeds_and_gaps(table: pd.DataFrame, what: str, names: Mapping[int, str] | None = None) -> list[str]:
    notes = []
    if table["seeds"].max() > 1:
        notes.append(
            f"Several seeds, at each step: {MEDIAN}, with that run's interval; the CSV has the lowest and highest seed."
        )
    absent = table[table["absent"].notna() & (table["what"] == "score")]
    reasons = absent.groupby(["method", "protocol", "data", "absent"], sort=True)["step"].agg(list).reset_index()
    for line in reasons.to_dict("records"):
        steps = ", ".join((names or {}).get(step, str(step)) for step in line["step"])
        notes.append(f"{line['method']} ({line['protocol']}), {line['data']} {what} {steps}: absent: {line['absent']}.")
    return notes


def _sheet_of_bits(group: Group, table: pd.DataFrame, titles: Mapping[str, str], notes: Sequence[str]) -> Sheet:
    import pandas as pd

    numbers = table.assign(precision=[PRECISIONS[step] for step in table["step"]]).drop(columns=["what", "step"])
    shown = [
        {"questions": titles[str(kind)], "method": str(method), "form": str(form)}
        | {line["precision"]: _cell(line) for line in of.to_dict("records")}
        for (kind, method, form), of in numbers.groupby(["data", "method", "protocol"], sort=False)
    ]
    shown.sort(key=lambda line: [*titles.values()].index(line["questions"]))
    return Sheet(numbers, pd.DataFrame(shown), f"Scores after rounding the weights: {group.title}", notes)


def _sheet(group: Group, table: pd.DataFrame, kinds: Mapping[str, Sequence[int]], notes: Sequence[str]) -> Sheet:
    import pandas as pd

    every = sorted({step for steps in kinds.values() for step in steps})
    shown = []
    for (method, form, kind), of in table.groupby(["method", "protocol", "data"], sort=False):
        lines = of.to_dict("records")
        scores = {line["step"]: line for line in lines if line["what"] == "score"}
        cells = {f"step {step}": _cell(scores[step]) if step in scores else "–" for step in every}
        others = {line["what"]: line for line in lines if line["what"] != "score"}
        reached = others[RECOVERED]["value"]
        cells["steps to recover"] = f"{reached:.0f}" if _style.known(reached) else _never(others[RECOVERED]["absent"])
        cells["update on the fine-tuned base"] = _cell(others[TRANSFERRED])
        shown.append({"data": str(kind), "method": str(method), "form": str(form), **cells})
    order = list(kinds)
    shown.sort(key=lambda line: order.index(line["data"]))
    notes = [
        *notes,
        "steps to recover: the first measured step that is not below the 95 % interval of the untouched model before any "
        "fine-tuning; never: not within the attack",
        "update on the fine-tuned base: the unlearning's change of weights added to the untouched model after the same attack",
    ]
    return Sheet(table, pd.DataFrame(shown), f"Scores along fine-tuning after unlearning: {group.title}", notes)


def _never(reason: str | None) -> str:
    return "never" if reason and reason.startswith("not recovered") else "absent"


def _cell(line: Mapping[str, Any]) -> str:
    if not _style.known(line["value"]):
        return "absent"
    interval = f" ({_style.number(line['low'])} to {_style.number(line['high'])})" if _style.known(line["low"]) else ""
    return _style.number(line["value"]) + interval
