"""Hazardous and other knowledge, fluency and KL of every method, with intervals (table 1 of arXiv:2602.10568).

One table for each group of comparable runs, a row for every method and form. Methods that are not significantly worse than the
best one in a column are marked there. Published numbers stand in tables of their own (`harness leaderboard`), never here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError
from harness.interfaces import FigureOptions, Sheet, figure
from plots import _select, _style
from plots._select import ARMS, LAST, MEDIAN, PROTOCOLS, Group, lower_median

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
CHANCE = 0.25
"""Of questions with four choices: below it nothing more is forgotten, so that there all are equally good."""
TIED = "†"
"""Stands behind the best number of a column and those that are not significantly worse."""
REFERENCE = "reference arm"
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
        numbers = _numbers(group)
        if (numbers["protocol"] == REFERENCE).all():
            continue
        caption = f"Hazardous and other knowledge after unlearning: {group.title}"
        made[group.name] = Sheet(numbers, _shown(numbers), caption, _reading(group, numbers))
    if not made:
        raise UsageError(f"there are only reference arms and runs with settings by hand. {_advice()}")
    return made


def _advice(bench: str = "wmdp", model: str = "mini") -> str:
    return _select.advice(bench, model, "kfade,rmu,elm", "multiple_choice,alpaca_kl,fluency")


# ---------------------------------------------------------------- numbers


def _numbers(group: Group) -> pd.DataFrame:
    """A line for every (method, form, metric) of the columns that are shown."""
    import pandas as pd

    ends = LAST.pick(group.points)
    ends = ends[~ends["method"].isin(ARMS) & ends["protocol"].isin(PROTOCOLS)]
    rows = [(str(method), str(form), of) for (method, form), of in ends.groupby(["method", "protocol"], sort=True)]
    arms = [(str(arm["arm"]), REFERENCE, pd.DataFrame([arm])) for arm in group.arms.to_dict("records")]
    lines = [_line(*row, metric) for row in [*rows, *arms] for metric in HEADINGS]
    there = {line["metric"] for line in lines if line["value"] is not None}
    lines = [line for line in lines if line["metric"] in there]
    for form in PROTOCOLS:
        for metric in there:
            _mark([line for line in lines if line["protocol"] == form and line["metric"] == metric])
    order = {name: i for i, name in enumerate(_select.in_order(line["method"] for line in lines))}
    ways = (*PROTOCOLS, REFERENCE)
    lines.sort(key=lambda line: (order[line["method"]], ways.index(line["protocol"]), list(HEADINGS).index(line["metric"])))
    numbers = pd.DataFrame(lines).drop(columns="better")
    for name in ("seeds", "n", "step"):
        numbers[name] = numbers[name].astype("Int64")
    return numbers


def _line(method: str, form: str, points: pd.DataFrame, metric: str) -> dict[str, Any]:
    """One number with what is needed to read it; of several seeds the lower median, and where all of them lie."""
    told: dict[str, Any] = {"method": method, "protocol": form, "metric": metric, "value": None, "not_worse": None}
    told |= {"better": None, "seeds": 0}
    middle = lower_median(points, metric) if metric in points else None
    if middle is None:
        reasons = sorted(set(points[f"{metric}_absent"].dropna())) if f"{metric}_absent" in points else []
        return {**told, "absent": "; ".join(reasons) or "not measured"}
    told |= {"value": middle[metric], **{name: middle[f"{metric}_{name}"] for name in ("low", "high", "n", "better")}}
    told |= {"standard_error": middle.get(REPEATED)} if metric == JUDGED else {}
    told |= {"seeds": int(points[metric].notna().sum()), "seed_low": points[metric].min(), "seed_high": points[metric].max()}
    arm = form == REFERENCE
    return {**told, "run": "" if arm else middle["run"], "step": None if arm else middle["step"], "absent": None}


def _mark(lines: Sequence[dict[str, Any]]) -> None:
    """Say of each number of a column whether it is significantly worse than the column's best one; in place."""
    known = [line for line in lines if _style.known(line["value"])]
    if not known:
        return
    best = min((_badness(line) for line in known), key=lambda bad: bad[0])
    for line in known:
        line["not_worse"] = not _worse(_badness(line), best)


def _badness(line: Mapping[str, Any]) -> tuple[float, float, float]:
    """A number and its interval, turned so that less is better; an accuracy on hazardous questions ends at chance."""
    value, low, high = (float(line[name]) if _style.known(line[name]) else math.nan for name in ("value", "low", "high"))
    if line["better"] == "higher":
        return -value, -high, -low
    hazardous = line["metric"].endswith("_accuracy")
    return tuple(max(CHANCE, x) if hazardous else x for x in (value, low, high))  # type: ignore[return-value]


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
    if not _style.known(line["value"]):
        return "absent"
    text = _style.number(line["value"])
    if _style.known(line.get("standard_error")):
        text += f" ± {_style.number(line['standard_error'])}"
    if _style.known(line["low"]):
        text += f" ({_style.number(line['low'])} to {_style.number(line['high'])})"
    return text + (f" {TIED}" if line["not_worse"] is True else "")


def _shown(numbers: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for (method, form), of in numbers.groupby(["method", "protocol"], sort=False):
        cells = {HEADINGS[line["metric"]]: _cell(line) for line in of.to_dict("records")}
        rows.append({"method": method, "form": form, **cells, "seeds": "–" if form == REFERENCE else str(of["seeds"].max())})
    return pd.DataFrame(rows)


def _reading(group: Group, numbers: pd.DataFrame) -> list[str]:
    there = list(dict.fromkeys(numbers["metric"]))
    rows = ", ".join(f"{HEADINGS[metric].rstrip(' ↓↑')} {group.n(metric)}" for metric in there)
    notes = [
        f"a run speaks with its {LAST.name}; rows: {rows}",
        *(told for name, told in SHARED.items() if name == "accuracy" or name in there),
        f"{TIED} best of its form in the column, or not significantly worse: the 95 % interval of the difference to the best "
        "one, from the two intervals as if they were independent (Zou and Donner 2008), has 0 in it. All answered the same "
        "questions, and what is hard for one is hard for all, so that rather too many are marked than too few; not corrected "
        f"for the number of methods. On hazardous questions whatever is at or below chance ({CHANCE}) counts as equally good",
        "a mark speaks for its column alone: a model that can say nothing any more has the best hazardous accuracies",
    ]
    if numbers["seeds"].max() > 1:
        notes.append(f"several seeds: {MEDIAN}, with that run's interval; the CSV has the lowest and highest seed")
    points = group.points
    by_hand = points[~points["protocol"].isin(PROTOCOLS) & ~points["method"].isin(ARMS)]["folder"].nunique()
    notes += [f"Not shown: {by_hand} runs with settings by hand."] if by_hand else []
    absent = numbers[numbers["absent"].notna()].to_dict("records")
    by_reason: dict[str, list[str]] = {}
    for line in absent:
        who = line["method"] + (f" ({line['protocol']})" if line["protocol"] != REFERENCE else "")
        by_reason.setdefault(f"{line['metric']}: absent: {line['absent']}", []).append(who)
    return [*notes, *(f"{reason}: {', '.join(who)}" for reason, who in sorted(by_reason.items())), *group.notes]
