"""What fine-tuning and rounding the weights bring back: scores on forgotten questions along such attacks (figure 4).

Fine-tuning is on benign, related or forgotten data, rounding to 8 or to 4 bits. A row of panels for each preset, a panel for
each kind of data, or where weights were rounded for each set of questions. The untouched model went through the same attacks
and stands beside every method. On ToFU the score is the probability of the true answer, and the retrained model is there too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.core.errors import UsageError
from harness.core.figure import FigureOptions, Sheet, figure
from harness.reading.formats import arrow, interval, known, number
from harness.reading.looks import look
from plots import _select, _style
from plots._select import CHANCE, LAST, REFERENCE, REFERENCES, Group

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
PRECISIONS = ("full", "8 bits", "4 bits")
"""Of weights, in the order of the figure."""
MOST_COLUMNS = 3
"""Panels side by side; more are broken into rows."""


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


def _advise(runs: pd.DataFrame, evals: str) -> Callable[..., str]:
    """The command that makes runs of an attack, on the benchmark and model of these runs if no other is named."""
    bench, model = ("wmdp", "mini") if runs.empty else (str(runs["bench"].iloc[0]), str(runs["model"].iloc[0]))

    def advise(bench: str = bench, model: str = model) -> str:
        return _select.advice(bench, model, "kfade,grad_diff,npo", f"{evals} --points last")

    return advise


def _finetuned(runs: pd.DataFrame) -> Mapping[str, Drawing | Sheet]:
    made: dict[str, Drawing | Sheet] = {}
    names = [] if runs.empty else [m for m in sorted(set(runs["metric"])) if m.startswith("attack_") and m != START]
    advise = _advise(runs, "finetune_attack")
    for group in _select.groups(runs, (START,), "this figure", also=names, advise=advise):
        ends, protocols, left = _select.split(LAST.pick(group.points))
        kinds = _kinds(group)
        if ends.empty or not kinds:
            continue
        scores = {kind: {s: f"attack_{kind}_{s}" if s else START for s in steps} for kind, steps in kinds.items()}
        table = _table(group, ends, scores, (RECOVERED, TRANSFERRED))
        notes = [*_reading(group, table), *left]
        what = "hazardous accuracy" if _counts_answers(group) else "probability of forgotten answers"
        goal = "→ retrained" if (table["method"] == "retrained").any() else "↓ better"
        panels = _panels({kind: TITLES.get(kind, kind) for kind in kinds}, protocols)
        title = f"Fine-tuning after unlearning: {group.title}"
        with _style.style():
            drawing = _draw(group, table, panels, _Axes("fine-tuning steps", f"{what}\n({goal})", title, shared=True), notes)
            for axes in drawing.axes:
                axes.set_xticks(sorted({0, *(step for steps in kinds.values() for step in steps if step % 50 == 0)}))
        made[group.name] = drawing
        made[f"{group.name}-points"] = _sheet(group, table, kinds, notes)
    if not made:
        raise UsageError(f"there are only references. {advise()}")
    return made


def _quantised(runs: pd.DataFrame) -> Mapping[str, Drawing | Sheet]:
    made: dict[str, Drawing | Sheet] = {}
    advise = _advise(runs, "multiple_choice,quantise_attack")
    for _, of in () if runs.empty else runs.groupby(["bench", "model"], sort=True):
        scores = _scores_of_bits(set(of["metric"]))
        if not scores:
            continue
        needed, *others = [metric for steps in scores.values() for metric in steps.values() if metric.endswith("_bit")]
        full = [steps[0] for steps in scores.values()]
        for group in _select.groups(of, [needed], "this figure", also=[*full, *others], advise=advise):
            made |= _of_bits(group, scores)
    if not made:
        raise UsageError(f"no run but references has scores after quantising. {advise()}")
    return made


def _scores_of_bits(metrics: Collection[str]) -> dict[str, dict[int, str]]:
    """Each set of questions, and its metric at each precision."""
    scores = {}
    for name in sorted(metric.removesuffix("_8_bit") for metric in metrics if metric.endswith("_8_bit")):
        full = [metric for metric in (f"{name}_accuracy", f"{name}_probability") if metric in metrics]
        scores[name] = dict(enumerate((full[0] if full else f"{name}_accuracy", f"{name}_8_bit", f"{name}_4_bit")))
    return scores


def _of_bits(group: Group, scores: Mapping[str, Mapping[int, str]]) -> dict[str, Drawing | Sheet]:
    """The drawing and the table of a group; nothing where only references were rounded."""
    ends, protocols, left = _select.split(LAST.pick(group.points))
    if ends.empty:
        return {}
    directions = {name: ends.get(f"{name}_8_bit_better", ends["method"].iloc[:0]).dropna() for name in scores}
    better = {name: str(of_set.iloc[0]) for name, of_set in directions.items() if len(of_set)}
    order = sorted(better, key=lambda name: (better[name] == "higher", name))  # what is forgotten first
    table = _table(group, ends, {name: scores[name] for name in order})
    notes = [*_reading_of_bits(group, table, order), *left]
    titles = {name: f"{name.replace('_', ' ')} {arrow(better[name])}" for name in order}
    titles = {name: title + " retrained" * (better[name] == "closer") for name, title in titles.items()}
    counted = "accuracy" if _counts_answers(group) else "probability of\nthe true answer"
    title = f"Rounding the weights after unlearning: {group.title}"
    with _style.style():
        drawing = _draw(
            group, table, _panels(titles, protocols), _Axes("precision of the weights", counted, title, shared=False), notes
        )
        for axes in drawing.axes:
            axes.set_xticks(range(len(PRECISIONS)), PRECISIONS)
    return {f"{group.name}-bits": drawing, f"{group.name}-bits-points": _sheet_of_bits(group, table, titles, notes)}


# ---------------------------------------------------------------- numbers


def _kinds(group: Group) -> dict[str, list[int]]:
    """Each kind of data and the steps that were measured, 0 first."""
    steps: dict[str, set[int]] = {}
    for metric in set(group.runs["metric"]):
        if match := re.fullmatch(r"attack_(.+)_(\d+)", metric):
            steps.setdefault(match[1], {0}).add(int(match[2]))
    order = sorted(steps, key=lambda kind: (KINDS.index(kind) if kind in KINDS else len(KINDS), kind))
    return {kind: sorted(steps[kind]) for kind in order}


def _table(
    group: Group, ends: pd.DataFrame, scores: Mapping[str, Mapping[int, str]], others: Sequence[str] = ()
) -> pd.DataFrame:
    """A line for every (method, protocol, kind of data, what was measured there)."""
    import pandas as pd

    rows = [(str(method), str(protocol), of) for (method, protocol), of in ends.groupby(["method", "preset"], sort=True)]
    rows += [(str(point["arm"]), REFERENCE, pd.DataFrame([point])) for point in group.references.to_dict("records")]
    order = {name: i for i, name in enumerate(_select.in_order(method for method, _, _ in rows))}
    rows.sort(key=lambda row: (order[row[0]], row[1]))
    lines = []
    for method, protocol, points in rows:
        for kind, metrics in scores.items():
            keys = {"method": method, "preset": protocol, "data": kind}
            for step, metric in metrics.items():
                lines.append({**keys, "what": "score", "step": step, **_value(points, metric)})
            for what in others:
                lines.append({**keys, "what": what, "step": None, **_value(points, f"attack_{kind}_{what}")})
    table = pd.DataFrame(lines)
    for name in ("step", "n", "seeds"):
        table[name] = table[name].astype("Int64")
    return table


def _value(points: pd.DataFrame, metric: str) -> dict[str, Any]:
    """One number; of several seeds the lower median, and where all of them lie."""
    value = _select.value_of(points, metric)
    if value is None:
        return {"metric": metric, "value": None, "seeds": 0, "absent": _select.absence(points, metric)}
    del value["step"]  # of unlearning; the table's is the attack's
    return {"metric": metric, **value, "absent": None}


def _counts_answers(group: Group) -> bool:
    return bool((group.runs["unit"] == ACCURACY).any())


# ---------------------------------------------------------------- drawing


class _Panel(NamedTuple):
    """One panel of a drawing."""

    kind: str
    """Whose scores: a kind of data, a set of questions."""
    protocol: str
    """Of the methods that it shows."""
    title: str
    """Above it."""


class _Axes(NamedTuple):
    """What stands at the axes and above a drawing."""

    across: str
    """Under the panels."""
    up: str
    """Beside them."""
    title: str
    """Above all of them."""
    shared: bool
    """Whether all panels have one vertical axis; not where their scores lie far apart."""


def _panels(titles: Mapping[str, str], protocols: Sequence[str]) -> list[list[_Panel]]:
    """Rows of panels: a panel for each title, for each protocol on new rows."""
    columns = len(titles) if len(titles) <= MOST_COLUMNS else math.ceil(len(titles) / math.ceil(len(titles) / MOST_COLUMNS))
    rows = []
    for protocol in protocols:
        more = f", {protocol}" if len(protocols) > 1 else ""
        panels = [_Panel(kind, protocol, title + more) for kind, title in titles.items()]
        rows += [panels[i : i + columns] for i in range(0, len(panels), columns)]
    return rows


def _draw(group: Group, table: pd.DataFrame, panels: Sequence[Sequence[_Panel]], names: _Axes, notes: Sequence[str]) -> Drawing:
    width = _style.panels_width(len(panels[0]))
    drawing = _style.figure(width, 0.5 + 2.3 * len(panels), names.title, notes)
    grid = drawing.subplots(len(panels), len(panels[0]), sharex=True, sharey=names.shared, squeeze=False)
    scores = table[(table["what"] == "score") & table["value"].notna()]
    apart = max(0.08, 0.012 * float(scores["step"].max()))
    handles: dict[str, Any] = {}
    for row, of_row in zip(grid, panels, strict=True):
        for axes, panel in zip(row, of_row, strict=False):
            of_panel = scores[(scores["data"] == panel.kind) & scores["preset"].isin((panel.protocol, REFERENCE))]
            methods = _select.in_order(of_panel["method"])
            for i, method in enumerate(methods):
                aside = apart * (i - (len(methods) - 1) / 2)
                handles[method] = _curve(axes, of_panel[of_panel["method"] == method], method, aside)
            axes.set_title(panel.title)
            if _counts_answers(group) and axes.get_ylim()[0] <= CHANCE:
                _style.line(axes, CHANCE, "chance" if axes is row[len(of_row) - 1] or not names.shared else "")
        for axes in row[len(of_row) :]:
            axes.remove()
        row[0].set_ylabel(names.up)
    for axes in grid[-1]:
        axes.set_xlabel(names.across)
    order = _select.in_order(handles)
    drawing.legend([handles[name] for name in order], order, loc="outside right upper", frameon=False)
    return drawing


def _curve(axes: Axes, line: pd.DataFrame, method: str, aside: float) -> Any:
    """A method's curve with its intervals, a little aside so that bars do not cover one another."""
    drawn, reference = look(method), method in REFERENCES
    line = line.sort_values("step")
    steps, values = line["step"].astype(float).to_numpy() + aside, line["value"].astype(float).to_numpy()
    for x, y, low, high in zip(steps, values, line["low"], line["high"], strict=True):
        if known(low) and known(high):
            axes.vlines(x, min(low, y), max(high, y), color=drawn.colour, linewidth=0.9, alpha=0.7, zorder=3)
    curve = axes.plot(steps, values, color=drawn.colour, marker=drawn.marker, linewidth=1.1, zorder=5 if reference else 4)[0]
    curve.set_linestyle("--" if reference else "-")
    curve.set_markersize(9 if method == "retrained" else 4.5)
    curve.set_markerfacecolor("white" if method == "untouched" else drawn.colour)
    curve.set_markeredgecolor(drawn.colour if method == "untouched" else "white")
    curve.set_markeredgewidth(0.8)
    return curve


def _reading(group: Group, table: pd.DataFrame) -> list[str]:
    counted = "accuracy" if _counts_answers(group) else "mean probability of the true answer"
    rows = "questions about what was forgotten, none of which is trained on"
    notes = [
        f"Each run at its {LAST.name}, then fine-tuned as a whole. Height: {counted}, n = {group.n(START)} {rows}; bars: 95 % "
        "interval, bootstrap over groups of questions. Curves stand a little aside of one another; all are measured at the "
        "same steps, 0 being the model as it was unlearned.",
        f"Dashed: {group.named_references}, fine-tuned in the same way: what the attack does "
        "to a model that was not unlearned.",
    ]
    return [*notes, *_seeds_and_gaps(table, "data, steps"), *group.notes]


def _reading_of_bits(group: Group, table: pd.DataFrame, sets: Sequence[str]) -> list[str]:
    counted = "accuracy" if _counts_answers(group) else "mean probability of the true answer"
    rows = ", ".join(f"{name.replace('_', ' ')} {group.n(f'{name}_8_bit')}" for name in sets)
    return [
        f"Each run at its {LAST.name}, then its linear layers rounded to the nearest: to 8 bits with one scale for each output "
        f"channel, to 4 bits with one for each 64 inputs. Height: {counted}; rows: {rows}; bars: 95 % interval. Points stand a "
        "little aside of one another, and each panel has an axis of its own.",
        f"Dashed: {group.named_references}, rounded in the same way: what rounding does to a model that was not unlearned.",
        *_seeds_and_gaps(table, "questions,", dict(enumerate(PRECISIONS))),
        *group.notes,
    ]


def _seeds_and_gaps(table: pd.DataFrame, what: str, names: Mapping[int, str] | None = None) -> list[str]:
    notes = _select.seeds_note(table)
    absent = table[table["absent"].notna() & (table["what"] == "score")]
    reasons = absent.groupby(["method", "preset", "data", "absent"], sort=True)["step"].agg(list).reset_index()
    for line in reasons.to_dict("records"):
        steps = ", ".join((names or {}).get(step, str(step)) for step in line["step"])
        notes.append(f"{line['method']} ({line['preset']}), {line['data']} {what} {steps}: absent: {line['absent']}.")
    return notes


def _sheet_of_bits(group: Group, table: pd.DataFrame, titles: Mapping[str, str], notes: Sequence[str]) -> Sheet:
    import pandas as pd

    numbers = table.assign(precision=[PRECISIONS[step] for step in table["step"]]).drop(columns=["what", "step"])
    shown = [
        {"questions": titles[str(kind)], "method": str(method), "preset": str(protocol)}
        | {line["precision"]: _cell(line) for line in of.to_dict("records")}
        for (kind, method, protocol), of in numbers.groupby(["data", "method", "preset"], sort=False)
    ]
    shown.sort(key=lambda line: [*titles.values()].index(line["questions"]))
    return Sheet(numbers, pd.DataFrame(shown), f"Scores after rounding the weights: {group.title}", notes)


def _sheet(group: Group, table: pd.DataFrame, kinds: Mapping[str, Sequence[int]], notes: Sequence[str]) -> Sheet:
    import pandas as pd

    every = sorted({step for steps in kinds.values() for step in steps})
    shown = []
    for (method, protocol, kind), of in table.groupby(["method", "preset", "data"], sort=False):
        lines = of.to_dict("records")
        scores = {line["step"]: line for line in lines if line["what"] == "score"}
        cells = {f"step {step}": _cell(scores[step]) if step in scores else "–" for step in every}
        others = {line["what"]: line for line in lines if line["what"] != "score"}
        reached = others[RECOVERED]["value"]
        cells["steps to recover"] = f"{reached:.0f}" if known(reached) else _never(others[RECOVERED]["absent"])
        cells["update on the fine-tuned base"] = _cell(others[TRANSFERRED])
        shown.append({"data": str(kind), "method": str(method), "preset": str(protocol), **cells})
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
    if not known(line["value"]):
        return "absent"
    ends = f" ({interval(line['low'], line['high'])})" if known(line["low"]) else ""
    return number(line["value"]) + ends
