"""Reading evaluation logs that other programs wrote, as the tables of `evals/_tofu.py`.

- ToFU's `eval_log_aggregated.json`: task file → metric → {row: value};
- the same with lists in place of dictionaries (SimNPO's and NPO's published logs);
- open-unlearning's `TOFU_EVAL.json`: metric → {"agg_value", "value_by_index"}, of a membership attack both samples by
  themselves, {"forget", "holdout"};
- its `TOFU_SUMMARY.json`: metric → number, without rows (`read_summary`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from evals.benchmarks.tofu.open_unlearning_files import ATTACKS, PREFIXES, SCORES, metric_names
from evals.benchmarks.tofu.rows import QUESTIONS_PER_AUTHOR
from harness.core.benchmark import LOG_MARK
from harness.core.documents import read_json, whole_number
from harness.core.errors import UsageError, cut
from harness.core.problem import Problem

_TOFU_TASKS = {
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
    "forget": "eval_log_forget.json",
}
_LIKELIHOOD = ("avg_gt_loss", "num_token_gt", "avg_paraphrased_loss", "average_perturb_loss")
_ANSWERS = ("rouge1_recall", "rougeL_recall")


def read_log(path: Path) -> Mapping[str, pd.DataFrame]:
    """The tables `likelihood` and `answers` of a log; columns the log does not hold are missing.

    Raises:
        UsageError: if it cannot be read, or is none of the three formats.
    """
    log = read_json(path, f"the log {path.name}", finite=False)  # a number that is not finite is told with its place
    more: dict[str, pd.DataFrame] = {}
    if isinstance(log, dict) and _TOFU_TASKS["forget"] in log:
        rows = [row for task, name in _TOFU_TASKS.items() if name in log for row in _tofu_rows(log[name], task, path)]
    elif isinstance(log, dict) and any(key.startswith("forget_") for key in log):
        rows = [row for task, prefix in PREFIXES.items() for row in _ou_rows(log, task, prefix, path)]
        more = _ou_scores(log, path)
    else:
        raise UsageError(
            f"{path.name} is no evaluation log known here: expected ToFU's eval_log_aggregated.json "
            f"(with '{_TOFU_TASKS['forget']}') or open-unlearning's TOFU_EVAL.json (with 'forget_…')."
        )
    if not rows and not more:
        raise UsageError(f"the log {path.name} holds no rows.")
    frame = pd.DataFrame(rows, columns=None if rows else ["task", "row", "cluster"])
    keys = ["task", "row", "cluster", *(c for c in ("answer",) if c in frame)]
    tables = {}
    for name, columns in (("likelihood", (*_LIKELIHOOD, "inverse_truth_ratio")), ("answers", _ANSWERS)):
        present = [c for c in columns if c in frame]
        if present:
            tables[name] = frame[[*keys, *present]]
    return {**tables, **more}


def read_summary(path: Path) -> Mapping[str, float] | None:
    """The numbers of open-unlearning's `TOFU_SUMMARY.json` under the names they have here, others under their own.

    None for a file that holds rows, or is something else: `read_log` says what.

    Raises:
        UsageError: if it cannot be read, or a number is not finite.
    """
    log = read_json(path, f"the log {path.name}", finite=False)
    numbers = {name: value for name, value in log.items() if name != LOG_MARK} if isinstance(log, dict) else {}
    if not numbers or any(isinstance(value, dict | list | str) for value in numbers.values()):
        return None
    names = metric_names()
    return {names.get(name, name): _number(value, path, name) for name, value in numbers.items() if value is not None}


def log_maker(path: Path) -> str:
    """Whose a file of open-unlearning's form is, as it says or by its form; empty for other logs."""
    log = read_json(path, f"the log {path.name}", finite=False)
    if not isinstance(log, dict) or _TOFU_TASKS["forget"] in log:
        return ""
    return str(log.get(LOG_MARK, "open-unlearning"))


def _tofu_rows(metrics: Any, task: str, path: Path) -> list[dict[str, Any]]:
    name_of_task = _TOFU_TASKS[task]
    if not isinstance(metrics, dict) or "avg_gt_loss" not in metrics:
        raise UsageError(f"{path.name}: '{name_of_task}' has no avg_gt_loss.")
    # Real authors and world facts have no paraphrase of their own: ToFU writes the true answer's loss there.
    columns = {
        name: _by_row(metrics[name], path, f"{name_of_task}, {name}")
        for name in (*_LIKELIHOOD, *_ANSWERS, "generated_text")
        if name in metrics
    }
    rows = []
    for key in sorted(columns["avg_gt_loss"]):
        row: dict[str, Any] = {"task": task, "row": key, "cluster": _cluster(task, key)}
        for name, values in columns.items():
            where = f"{name_of_task}, {name}, row {key}"
            if key not in values:
                raise UsageError(f"{path.name}: '{name_of_task}' has no {name} for row {key}.")
            if name == "generated_text":
                row["answer"] = _truth(values[key], path, where)
            else:
                row[name] = (_numbers if name == "average_perturb_loss" else _number)(values[key], path, where)
        rows.append(row)
    return _even(rows, path, f"{name_of_task}, average_perturb_loss")


def _ou_rows(log: Mapping[str, Any], task: str, prefix: str, path: Path) -> list[dict[str, Any]]:
    def by_index(*names: str) -> dict[int, Any]:
        for name in names:
            if name not in log:
                continue
            if not isinstance(log[name], dict):
                raise UsageError(f"{path.name}: '{name}' holds no rows; those are in TOFU_EVAL.json, not in its summary.")
            if log[name].get("value_by_index") is not None:
                return _by_row(log[name]["value_by_index"], path, name)
        return {}

    true = by_index(f"{prefix}_Q_A_Prob")
    paraphrased = by_index(f"{prefix}_Q_A_PARA_Prob") if task in ("retain", "forget") else true
    wrong = by_index(f"{prefix}_Q_A_PERT_Prob")
    ratio = by_index(f"{prefix}_truth_ratio", f"{prefix}_Truth_Ratio")
    answer = by_index(f"{prefix}_Q_A_ROUGE")
    scored = [name for name in _ANSWERS if any(isinstance(row, dict) and name in row for row in answer.values())]
    keys = sorted({*true, *paraphrased, *wrong, *ratio, *answer})
    rows = []
    # open-unlearning numbers rows by the data set's own index; what counts here is their order.
    for number, key in enumerate(keys):

        def value(of: Mapping[int, Any], name: str, what: str, key: int = key) -> Any:
            if not isinstance(entry := of.get(key), dict) or name not in entry:
                raise UsageError(f"{path.name}: {prefix}, {what}: row {key} has no {name}.")
            return entry[name]

        row: dict[str, Any] = {"task": task, "row": number, "cluster": _cluster(task, number)}
        if true:
            row["avg_gt_loss"] = _number(value(true, "avg_loss", "Q_A_Prob"), path, f"{prefix}_Q_A_Prob, {key}")
        if paraphrased:
            loss = value(paraphrased, "avg_loss", "paraphrase")
            row["avg_paraphrased_loss"] = _number(loss, path, f"{prefix} paraphrase, {key}")
        if wrong:
            loss = value(wrong, "avg_loss", "Q_A_PERT_Prob")
            row["average_perturb_loss"] = _numbers(loss, path, f"{prefix}_Q_A_PERT_Prob, {key}")
        if ratio:
            row["inverse_truth_ratio"] = _number(value(ratio, "score", "truth ratio"), path, f"{prefix}_truth_ratio, {key}")
        if scored:
            for name in scored:
                row[name] = _number(value(answer, name, "Q_A_ROUGE"), path, f"{prefix}_Q_A_ROUGE, {name}, {key}")
            row["answer"] = truth if isinstance(truth := answer[key].get("ground_truth"), str) else None
        rows.append(row)
    return _even(rows, path, f"{prefix}_Q_A_PERT_Prob")


def _ou_scores(log: Mapping[str, Any], path: Path) -> dict[str, pd.DataFrame]:
    """What a log holds of single answers besides: extraction strength, exact memorisation, attacks, ROUGE of the paraphrase."""
    columns: dict[str, dict[str, dict[int, float]]] = {"forget_tokens": {}, "holdout_tokens": {}, "paraphrases": {}}
    for theirs, ours in SCORES.items():
        if values := _ou_values(log.get(theirs), path, theirs, "score"):
            columns["forget_tokens"][ours] = values
    for theirs, ours in ATTACKS.items():
        entry = attack if isinstance(attack := log.get(theirs), dict) else {}
        for sample in ("forget", "holdout"):
            if values := _ou_values(entry.get(sample), path, f"{theirs}, {sample}", "score"):
                columns[f"{sample}_tokens"][ours] = values
    if values := _ou_values(log.get("forget_Q_A_PARA_ROUGE"), path, "forget_Q_A_PARA_ROUGE", "rougeL_recall"):
        columns["paraphrases"]["paraphrased_answer_rouge"] = values
    return {name: _scored(name, of) for name, of in columns.items() if of}


def _ou_values(entry: Any, path: Path, where: str, field: str) -> dict[int, float]:
    """Row → one of its numbers, rows in order; NaN where the log has none (an answer of no token)."""
    rows = entry.get("value_by_index") if isinstance(entry, dict) else None
    if rows is None:
        return {}
    values = {}
    for number, (key, row) in enumerate(sorted(_by_row(rows, path, where).items())):
        if not isinstance(row, dict) or field not in row:
            raise UsageError(f"{path.name}: {where}: row {key} has no {field}.")
        values[number] = float("nan") if row[field] is None else _number(row[field], path, f"{where}, {key}")
    return values


def _scored(name: str, columns: Mapping[str, Mapping[int, float]]) -> pd.DataFrame:
    task = "holdout" if name == "holdout_tokens" else "forget"
    rows = sorted({row for values in columns.values() for row in values})
    keys = {"task": task, "row": rows, "cluster": [_cluster("forget", row) for row in rows]}
    return pd.DataFrame({**keys, **{ours: [values.get(row) for row in rows] for ours, values in columns.items()}}).astype(
        dict.fromkeys(columns, float)
    )


# ---------------------------------------------------------------- shapes


def _by_row(values: Any, path: Path, where: str) -> dict[int, Any]:
    """Row number → what stands there, out of a dictionary or a list."""
    if isinstance(values, list):
        return dict(enumerate(values))
    if not isinstance(values, dict):
        raise UsageError(f"{path.name}: {where}: expected a value for each row, found {_shown(values)}.")
    numbers = {key: whole_number(key) for key in values}
    if odd := [key for key, number in numbers.items() if number is None]:
        raise UsageError(f"{path.name}: {where}: expected row numbers, found {_shown(odd[0])}.")
    if len(set(numbers.values())) < len(values):
        raise UsageError(f"{path.name}: {where}: a row stands there twice.")
    return {number: values[key] for key, number in numbers.items() if number is not None}


def _number(value: Any, path: Path, where: str) -> float:
    # Compared, since a whole number may be too large for a float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise UsageError(f"{path.name}: {where}: expected a finite number, found {_shown(value)}.")
    return float(value)


def _numbers(value: Any, path: Path, where: str) -> list[float]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"{path.name}: {where}: expected a list of numbers, found {_shown(value)}.")
    return [_number(each, path, where) for each in value]


def _truth(value: Any, path: Path, where: str) -> str:
    if not (isinstance(value, list) and len(value) > 2 and isinstance(value[2], str)):
        raise UsageError(f"{path.name}: {where}: expected question, answer and true answer, found {_shown(value)}.")
    return value[2]


def _even(rows: list[dict[str, Any]], path: Path, where: str) -> list[dict[str, Any]]:
    """The rows, if all of them have as many wrong answers."""
    counts = [len(row["average_perturb_loss"]) for row in rows if "average_perturb_loss" in row]
    for row, count in zip(rows, counts, strict=False):
        if count != counts[0]:
            raise UsageError(f"{path.name}: {where}: row {row['row']} has {count} wrong answers, the first {counts[0]}.")
    return rows


def _shown(value: Any) -> str:
    return cut(repr(value), 60)


def _cluster(task: str, row: int) -> str:
    return str(row // QUESTIONS_PER_AUTHOR if task in ("retain", "forget") else row)


def check_same_rows(tables: Mapping[str, pd.DataFrame], problem: Problem, path: Path) -> None:
    """Refuse a reference whose forget rows are not this problem's.

    Raises:
        UsageError: if their number differs or, where the log holds the true answers, one of them.
    """
    likelihood = tables.get("likelihood")
    forget = likelihood[likelihood["task"] == "forget"] if likelihood is not None else pd.DataFrame()
    expected: Sequence[Mapping[str, Any]] = problem.questions["forget"]
    if len(forget) != len(expected):
        raise UsageError(f"the reference {path.name} has {len(forget)} forget rows, {problem.bench} has {len(expected)} here.")
    if "answer" in forget:
        for answer, row in zip(forget["answer"], expected, strict=True):
            if isinstance(answer, str) and " ".join(answer.split()) != " ".join(row["answer"].split()):
                raise UsageError(
                    f"the reference {path.name} was made on other rows: row {row['row']} says '{answer[:50]}', "
                    f"{problem.bench} '{row['answer'][:50]}'."
                )
