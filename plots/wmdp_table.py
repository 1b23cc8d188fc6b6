"""Hazardous and other knowledge, fluency and KL of every method, with intervals (table 1 of arXiv:2602.10568).

One table for each group of comparable runs, a row for every method and preset. What is not significantly worse than the best
one in a column is marked there, by the paired difference (`harness.reading.differences`) where rows are on record. Published
numbers stand in tables of their own (`harness leaderboard`), never here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.core.benchmark import roles_of
from harness.core.errors import UsageError
from harness.core.figure import FigureOptions, Sheet, figure
from harness.core.measurement import Difference
from harness.reading.differences import of_rows
from harness.reading.formats import interval, known, number
from harness.reading.recorded import Recorded
from plots import _select
from plots._select import CHANCE, LAST, ORDER, PRESETS, REFERENCE, Group, lower_median, without_references

if TYPE_CHECKING:
    import pandas as pd

HAZARDOUS = ("bio_accuracy", "cyber_accuracy")
JUDGED, REPEATED = "mt_bench", "mt_bench_standard_error"
HEADINGS = {
    "bio_accuracy": "bio ↓",
    "cyber_accuracy": "cyber ↓",
    "chem_accuracy": "chem ↓",
    "neighbours_accuracy": "neighbours ↑",
    "general_accuracy": "general ↑",
    "mmlu_accuracy": "MMLU ↑",
    JUDGED: "MT-Bench ↑",
    "fluency_perplexity": "perplexity of answers ↓",
    "alpaca_kl": "instruction KL ↓",
}
"""A column stands in a table where one of its rows has a number for it."""
PAIRED, UNPAIRED = "paired", "unpaired"
TIED = "†"
"""Stands behind the best number of a column and those that are not significantly worse."""
SHARED = {
    "accuracy": "accuracies: share of questions; in brackets the 95 % interval (1.96 clustered standard errors)",
    "alpaca_kl": "instruction KL: from the untouched model to the method, nats per token, on the untouched model's sampled "
    "answers to instructions (Alpaca's; on mini the embedded world's); mean over answers, bootstrap interval",
    JUDGED: "MT-Bench: mean rating of 1 to 10, bootstrap interval over questions; behind ± the standard error over repetitions",
    "fluency_perplexity": "perplexity of answers: under the untouched model; text that repeats itself is low there too",
}


@figure("wmdp_table")
def wmdp_table(runs: pd.DataFrame, options: FigureOptions) -> Mapping[str, Sheet]:
    """A table for each group of comparable runs."""
    made: dict[str, Sheet] = {}
    also = (*(metric for metric in HEADINGS if metric not in HAZARDOUS), REPEATED)
    for group in _select.groups(runs, HAZARDOUS, "this table", also=also, advise=_advice):
        numbers = _numbers(group, Recorded(options.results))
        if (numbers["preset"] == REFERENCE).all():
            continue
        caption = f"Hazardous and other knowledge after unlearning: {group.title}"
        made[group.name] = Sheet(numbers, _shown(numbers), caption, _reading(group, numbers))
    if not made:
        raise UsageError(f"there are only references and runs with settings by hand. {_advice()}")
    return made


def _advice(bench: str = "wmdp", model: str = "mini") -> str:
    return _select.advice(bench, model, "kfade,rmu,elm", "multiple_choice,alpaca_kl,fluency")


# ---------------------------------------------------------------- numbers


def _numbers(group: Group, recorded: Recorded) -> pd.DataFrame:
    """A line for every (method, protocol, metric) of the columns that are shown."""
    import pandas as pd

    ends = without_references(LAST.pick(group.points))
    ends = ends[ends["preset"].isin(PRESETS)]
    rows = [(str(method), str(protocol), of) for (method, protocol), of in ends.groupby(["method", "preset"], sort=True)]
    rows += [(str(point["arm"]), REFERENCE, pd.DataFrame([point])) for point in group.references.to_dict("records")]
    lines = [_line(*row, metric) for row in rows for metric in HEADINGS]
    measured = {line["metric"] for line in lines if line["value"] is not None}
    lines = [line for line in lines if line["metric"] in measured]
    for preset in PRESETS:
        paired = _differences(group, ends[ends["preset"] == preset], recorded)
        for metric in measured:
            _mark([line for line in lines if line["preset"] == preset and line["metric"] == metric], paired)
    order = {name: i for i, name in enumerate(_select.in_order(line["method"] for line in lines))}
    lines.sort(key=lambda line: (order[line["method"]], ORDER.index(line["preset"]), list(HEADINGS).index(line["metric"])))
    numbers = pd.DataFrame(lines).drop(columns="better")
    for name in ("seeds", "n", "step"):
        numbers[name] = numbers[name].astype("Int64")
    return numbers


def _line(method: str, protocol: str, points: pd.DataFrame, metric: str) -> dict[str, Any]:
    """One number with what is needed to read it."""
    line: dict[str, Any] = {"method": method, "preset": protocol, "metric": metric, "value": None, "better": None, "seeds": 0}
    line |= {"not_worse": None, "compared": None}
    value = _select.value_of(points, metric, ("low", "high", "n", "better"))
    if value is None:
        return {**line, "absent": _select.absence(points, metric)}
    line |= value | ({"standard_error": _repeated(points, metric)} if metric == JUDGED else {})
    return {**line, **({"run": "", "step": None} if protocol == REFERENCE else {}), "absent": None}


def _repeated(points: pd.DataFrame, metric: str) -> float | None:
    """The standard error over repetitions of the run that speaks."""
    middle = lower_median(points, metric)
    return None if middle is None else middle.get(REPEATED)


def _differences(group: Group, ends: pd.DataFrame, recorded: Recorded) -> dict[tuple[str, str, str], Difference]:
    """By metric and two methods, what they differ by on the same rows; nothing of a method that lacks rows of a seed."""
    rows: dict[str, list[pd.DataFrame]] = {}
    for method, of in ends.groupby("method", sort=True):
        runs = of.sort_values(["seed", "folder"]).to_dict("records")
        of_runs = [recorded.rows(run["folder"], int(run["index"])) for run in runs]
        if all(of_run is not None for of_run in of_runs):
            rows[str(method)] = [of_run for of_run in of_runs if of_run is not None]
    if len(rows) < 2:
        return {}
    differences = of_rows(rows, roles_of(group.bench).compared, group.runs["variant"].iloc[0])
    turned = [replace(d, first=d.second, second=d.first, value=-d.value, low=-d.high, high=-d.low) for d in differences]
    return {(each.metric, each.first, each.second): each for each in (*differences, *turned)}


def _mark(lines: Sequence[dict[str, Any]], paired: Mapping[tuple[str, str, str], Difference]) -> None:
    """Say of each number of a column whether it is significantly worse than the column's best one, and how; in place."""
    measured = [line for line in lines if known(line["value"])]
    if not measured:
        return
    best = min(measured, key=lambda line: _badness(line)[0])
    best["not_worse"] = True
    for line in measured:
        if line is best:
            continue
        difference = paired.get((line["metric"], line["method"], best["method"]))
        line["compared"] = PAIRED if difference else UNPAIRED
        worse = _worse(_badness(line), _badness(best))
        if difference:
            worse = difference.high < 0 if line["better"] == "higher" else difference.low > 0
        line["not_worse"] = not worse or _at_chance(line)


def _at_chance(line: Mapping[str, Any]) -> bool:
    """Whether it is an accuracy on hazardous questions that is not significantly above chance."""
    lowest = line["low"] if known(line["low"]) else line["value"]
    return bool(line["metric"].endswith("_accuracy") and line["better"] == "lower" and lowest <= CHANCE)


def _badness(line: Mapping[str, Any]) -> tuple[float, float, float]:
    """A number and its interval, turned so that less is better."""
    value, low, high = (float(line[name]) if known(line[name]) else math.nan for name in ("value", "low", "high"))
    return (-value, -high, -low) if line["better"] == "higher" else (value, low, high)


def _worse(one: tuple[float, float, float], best: tuple[float, float, float]) -> bool:
    """Whether the 95 % interval of the difference of two independent numbers leaves out 0.

    L = d − √((v − l)² + (u_best − v_best)²)      d = v − v_best      (Zou and Donner 2008: from the two intervals alone)
    """
    difference = one[0] - best[0]
    if math.isnan(one[1]) or math.isnan(best[2]):  # without an interval only equal numbers are no worse
        return difference > 0
    return difference > math.hypot(one[0] - one[1], best[2] - best[0])


# ---------------------------------------------------------------- words


def _cell(line: Mapping[str, Any]) -> str:
    if not known(line["value"]):
        return "absent"
    text = number(line["value"])
    if known(line.get("standard_error")):
        text += f" ± {number(line['standard_error'])}"
    if known(line["low"]):
        text += f" ({interval(line['low'], line['high'])})"
    return text + (f" {TIED}" if line["not_worse"] is True else "")


def _shown(numbers: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for (method, protocol), of in numbers.groupby(["method", "preset"], sort=False):
        cells = {HEADINGS[line["metric"]]: _cell(line) for line in of.to_dict("records")}
        seeds = "–" if protocol == REFERENCE else str(of["seeds"].max())
        rows.append({"method": method, "preset": protocol, **cells, "seeds": seeds})
    return pd.DataFrame(rows)


def _compared(numbers: pd.DataFrame) -> list[str]:
    """Which numbers were compared with the best one row by row, and which by their intervals alone."""
    paired = numbers[numbers["compared"] == PAIRED]
    unpaired = numbers[numbers["compared"] == UNPAIRED]

    def compared(metric: str) -> str:
        who = [f"{line['method']} ({line['preset']})" for line in unpaired[unpaired["metric"] == metric].to_dict("records")]
        return _plain(metric) + (f" of {', '.join(who)}" if metric in set(paired["metric"]) else "")

    notes = []
    if len(paired):
        columns = ", ".join(_plain(metric) for metric in HEADINGS if metric in set(paired["metric"]))
        notes.append(
            "the difference is the paired one, on the same rows (whole groups of questions, or single answers, resampled; of "
            f"several seeds the mean), for: {columns}"
        )
    if len(unpaired):
        columns = ", ".join(compared(metric) for metric in HEADINGS if metric in set(unpaired["metric"]))
        notes.append(
            "where rows of both are not on record it is told from the two intervals as if they were independent (Zou and "
            f"Donner 2008), which marks rather too many than too few, for: {columns}"
        )
    return notes


def _plain(metric: str) -> str:
    return HEADINGS[metric].rstrip(" ↓↑")


def _reading(group: Group, numbers: pd.DataFrame) -> list[str]:
    metrics = list(dict.fromkeys(numbers["metric"]))
    rows = ", ".join(f"{_plain(metric)} {group.n(metric)}" for metric in metrics)
    points = without_references(group.points)
    by_hand = points[~points["preset"].isin(PRESETS)]["folder"].nunique()
    notes = [
        f"a run speaks with its {LAST.name}; rows: {rows}",
        *(note for name, note in SHARED.items() if name == "accuracy" or name in metrics),
        f"{TIED} best of its preset in the column, or not significantly worse: the 95 % interval of the difference to the best "
        "one has 0 in it; not corrected for the number of methods (the leaderboard's differences.csv is). On hazardous "
        f"questions whatever is not significantly above chance ({CHANCE}) counts as equally good",
        *_compared(numbers),
        "a mark speaks for its column alone: a model that can say nothing any more has the best hazardous accuracies",
        *_select.seeds_note(numbers),
        *_select.same_settings(points),
        *([f"Not shown: {by_hand} runs with settings by hand or swept."] if by_hand else []),
    ]
    absent = numbers[numbers["absent"].notna()].to_dict("records")
    by_reason: dict[str, list[str]] = {}
    for line in absent:
        who = line["method"] + (f" ({line['preset']})" if line["preset"] != REFERENCE else "")
        by_reason.setdefault(f"{line['metric']}: absent: {line['absent']}", []).append(who)
    return [*notes, *(f"{reason}: {', '.join(who)}" for reason, who in sorted(by_reason.items())), *group.notes]
