"""Reading evaluation logs that other programs wrote, as the tables of `evals/_tofu.py`.

- ToFU's `eval_log_aggregated.json`: task file → metric → {row: value};
- the same with lists in place of dictionaries (SimNPO's and NPO's published logs);
- open-unlearning's `TOFU_EVAL.json`: metric → {"agg_value", "value_by_index"}.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.documents import read_json
from harness.errors import UsageError
from harness.interfaces import Task

QUESTIONS_PER_AUTHOR = 20
_TOFU_TASKS = {
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
    "forget": "eval_log_forget.json",
}
_OU_TASKS = {"retain": "retain", "real_authors": "ra", "world_facts": "wf", "forget": "forget"}
_LIKELIHOOD = ("avg_gt_loss", "num_token_gt", "avg_paraphrased_loss", "average_perturb_loss")
_ANSWERS = ("rouge1_recall", "rougeL_recall")


def read_log(path: Path) -> Mapping[str, pd.DataFrame]:
    """The tables `likelihood` and `answers` of a log; columns the log does not hold are missing.

    Raises:
        UsageError: if it cannot be read, or is none of the three formats.
    """
    told = read_json(path, f"the log {path.name}", finite=False)  # a number that is not finite is told with its place
    if isinstance(told, dict) and _TOFU_TASKS["forget"] in told:
        rows = [row for task, name in _TOFU_TASKS.items() if name in told for row in _tofu_rows(told[name], task, path)]
    elif isinstance(told, dict) and any(key.startswith("forget_") for key in told):
        rows = [row for task, prefix in _OU_TASKS.items() for row in _ou_rows(told, task, prefix, path)]
    else:
        raise UsageError(
            f"{path.name} is no evaluation log known here: expected ToFU's eval_log_aggregated.json "
            f"(with '{_TOFU_TASKS['forget']}') or open-unlearning's TOFU_EVAL.json (with 'forget_…')."
        )
    if not rows:
        raise UsageError(f"the log {path.name} holds no rows.")
    frame = pd.DataFrame(rows)
    keys = ["task", "row", "cluster", *(c for c in ("answer",) if c in frame)]
    tables = {}
    for name, columns in (("likelihood", (*_LIKELIHOOD, "inverse_truth_ratio")), ("answers", _ANSWERS)):
        present = [c for c in columns if c in frame]
        if present:
            tables[name] = frame[[*keys, *present]]
    return tables


def _tofu_rows(metrics: Any, task: str, path: Path) -> list[dict[str, Any]]:
    if not isinstance(metrics, dict) or "avg_gt_loss" not in metrics:
        raise UsageError(f"{path.name}: '{_TOFU_TASKS[task]}' has no avg_gt_loss.")
    # Real authors and world facts have no paraphrase of their own: ToFU writes the true answer's loss there.
    columns = {name: _by_row(metrics[name]) for name in (*_LIKELIHOOD, *_ANSWERS, "generated_text") if name in metrics}
    rows = []
    for key in columns["avg_gt_loss"]:
        row: dict[str, Any] = {"task": task, "row": int(key), "cluster": _cluster(task, int(key))}
        for name, values in columns.items():
            if key not in values:
                raise UsageError(f"{path.name}: '{_TOFU_TASKS[task]}' has no {name} for row {key}.")
            if name == "generated_text":
                row["answer"] = values[key][2]
            else:
                row[name] = _number(values[key], path, f"{_TOFU_TASKS[task]}, {name}, row {key}")
        rows.append(row)
    return sorted(rows, key=lambda row: row["row"])


def _by_row(values: Any) -> dict[str, Any]:
    return {str(i): v for i, v in enumerate(values)} if isinstance(values, list) else dict(values)


def _ou_rows(told: Mapping[str, Any], task: str, prefix: str, path: Path) -> list[dict[str, Any]]:
    def by_index(*names: str) -> Mapping[str, Any]:
        for name in names:
            if isinstance(told.get(name), dict) and told[name].get("value_by_index"):
                return told[name]["value_by_index"]  # type: ignore[no-any-return]
        return {}

    true = by_index(f"{prefix}_Q_A_Prob")
    paraphrased = by_index(f"{prefix}_Q_A_PARA_Prob") if task in ("retain", "forget") else true
    wrong = by_index(f"{prefix}_Q_A_PERT_Prob")
    ratio = by_index(f"{prefix}_truth_ratio", f"{prefix}_Truth_Ratio")
    answer = by_index(f"{prefix}_Q_A_ROUGE")
    keys = sorted({*true, *paraphrased, *wrong, *ratio, *answer}, key=int)
    rows = []
    # open-unlearning numbers rows by the data set's own index; what counts here is their order.
    for number, key in enumerate(keys):
        row: dict[str, Any] = {"task": task, "row": number, "cluster": _cluster(task, number)}
        if key in true:
            row["avg_gt_loss"] = _number(true[key]["avg_loss"], path, f"{prefix}_Q_A_Prob, {key}")
        if key in paraphrased:
            row["avg_paraphrased_loss"] = _number(paraphrased[key]["avg_loss"], path, f"{prefix} paraphrase, {key}")
        if key in wrong:
            row["average_perturb_loss"] = _number(wrong[key]["avg_loss"], path, f"{prefix}_Q_A_PERT_Prob, {key}")
        if key in ratio:
            row["inverse_truth_ratio"] = _number(ratio[key]["score"], path, f"{prefix}_truth_ratio, {key}")
        if key in answer:
            row["rouge1_recall"] = answer[key].get("rouge1_recall")
            row["rougeL_recall"] = answer[key].get("rougeL_recall")
            row["answer"] = answer[key].get("ground_truth")
        rows.append(row)
    return rows


def _cluster(task: str, row: int) -> str:
    return str(row // QUESTIONS_PER_AUTHOR if task in ("retain", "forget") else row)


def _number(value: Any, path: Path, where: str) -> Any:
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        raise UsageError(f"{path.name}: {where}: expected a finite number, found {str(value)[:60]}.")
    return value


def check_same_rows(tables: Mapping[str, pd.DataFrame], task: Task, path: Path) -> None:
    """Refuse a reference whose forget rows are not this task's.

    Raises:
        UsageError: if their number differs or, where the log holds the true answers, one of them.
    """
    likelihood = tables.get("likelihood")
    forget = likelihood[likelihood["task"] == "forget"] if likelihood is not None else pd.DataFrame()
    expected: Sequence[Mapping[str, Any]] = task.questions["forget"]
    if len(forget) != len(expected):
        raise UsageError(f"the reference {path.name} has {len(forget)} forget rows, {task.bench} has {len(expected)} here.")
    if "answer" in forget:
        for told, row in zip(forget["answer"], expected, strict=True):
            if isinstance(told, str) and " ".join(told.split()) != " ".join(row["answer"].split()):
                raise UsageError(
                    f"the reference {path.name} was made on other rows: row {row['row']} says '{told[:50]}', "
                    f"{task.bench} '{row['answer'][:50]}'."
                )
