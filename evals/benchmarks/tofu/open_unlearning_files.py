"""open-unlearning's evaluation files: how it calls our metrics, and a run in their form.

`TOFU_EVAL.json` is metric → {"agg_value", "value_by_index": {row: {…}}}, `TOFU_SUMMARY.json` metric → its aggregated value
(`src/evals/base.py` and `src/evals/metrics/{memorization,privacy}.py`, `mia/utils.py` of locuslab/open-unlearning; names by
`configs/eval/tofu_metrics`). A file written here names its maker beside them, which that project passes over: it reads metrics
by name. Left out is what a record does not hold: ROUGE's F1, inputs and generated texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evals._tofu import GUARD
from harness.core.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

EVAL, SUMMARY = "TOFU_EVAL.json", "TOFU_SUMMARY.json"
PREFIXES = {"retain": "retain", "real_authors": "ra", "world_facts": "wf", "forget": "forget"}
"""Our sets of questions → how its metrics' names begin."""
SCORES = {"extraction_strength": "extraction_strength", "exact_memorization": "exact_memorisation"}
ATTACKS = {f"mia_{attack}": f"membership_{attack}" for attack in ("loss", "zlib", "min_k", "min_k_plus_plus")}
_NORMALISED = ("real_authors", "world_facts")
"""Sets whose probability is a share of all answers'."""


def metric_names() -> dict[str, str]:
    """Its metric → ours, of those that are defined alike."""
    names = {"forget_quality": "forget_quality", "model_utility": "model_utility", **SCORES, **ATTACKS}
    names |= {"forget_Q_A_PARA_Prob": "paraphrased_answer_probability", "forget_Q_A_PARA_ROUGE": "paraphrased_answer_rouge"}
    for task, prefix in PREFIXES.items():
        names[f"{prefix}_Q_A_Prob{'_normalised' if task in _NORMALISED else ''}"] = f"{task}_probability"
        names[f"{prefix}_Q_A_ROUGE"] = f"{task}_rouge"
        names[_truth_ratio(prefix)] = f"{task}_truth_ratio"
    return {**names, "forget_Truth_Ratio": "forget_truth_ratio"}  # what it was called before


def _truth_ratio(prefix: str) -> str:
    return "forget_truth_ratio" if prefix == "forget" else f"{prefix}_Truth_Ratio"


def evaluation(rows: pd.DataFrame, numbers: Mapping[str, float]) -> dict[str, Any]:
    """What `TOFU_EVAL.json` holds of a model.

    Args:
        rows: all its tables as one, as a record keeps them.
        numbers: our metric → its value.

    Raises:
        UsageError: if there are no rows of ToFU's.
    """
    if not {"task", "avg_gt_loss"} <= set(rows):
        raise UsageError("the record holds no losses of ToFU's rows, and open-unlearning's file is made of them.")
    log: dict[str, Any] = {}
    for task, prefix in PREFIXES.items():
        of_task = rows[(rows["task"] == task) & rows["avg_gt_loss"].notna()].sort_values("row")
        if len(of_task):
            log |= _of_task(of_task, task, prefix)
    for theirs, ours in SCORES.items():
        if entry := _by_index(rows, "forget", ours, "score"):
            log[theirs] = entry
    for theirs, ours in ATTACKS.items():
        samples = {sample: _by_index(rows, sample, ours, "score") for sample in ("forget", "holdout")}
        if all(samples.values()):
            log[theirs] = samples
    if entry := _by_index(rows, "forget", "paraphrased_answer_rouge", "rougeL_recall"):
        log["forget_Q_A_PARA_ROUGE"] = entry
    for theirs, ours in metric_names().items():
        if ours in numbers and (theirs in log or theirs in ("forget_quality", "model_utility")):
            log.setdefault(theirs, {})["agg_value"] = numbers[ours]
            log[theirs] |= {"auc": numbers[ours]} if theirs in ATTACKS else {}
    return dict(sorted(log.items()))


def summary(log: Mapping[str, Any]) -> dict[str, Any]:
    """What `TOFU_SUMMARY.json` holds of the same model."""
    return {name: entry["agg_value"] for name, entry in log.items() if isinstance(entry, dict) and "agg_value" in entry}


def _of_task(rows: pd.DataFrame, task: str, prefix: str) -> dict[str, Any]:
    """A set's probabilities, truth ratio and ROUGE."""
    numbers = [str(row) for row in rows["row"]]

    def of(values: Sequence[Mapping[str, Any]], mean: float | None = None) -> dict[str, Any]:
        aggregated = {} if mean is None else {"agg_value": mean}
        return {**aggregated, "value_by_index": dict(zip(numbers, values, strict=True))}

    def probabilities(losses: np.ndarray) -> dict[str, Any]:
        p = np.exp(-losses)
        pairs = zip(p.tolist(), losses.tolist(), strict=True)
        return of([{"prob": each, "avg_loss": loss} for each, loss in pairs], float(p.mean()))

    true = rows["avg_gt_loss"].to_numpy(dtype=float)
    log = {f"{prefix}_Q_A_Prob": probabilities(true)}
    paraphrased = true
    if task not in _NORMALISED and "avg_paraphrased_loss" in rows:
        paraphrased = rows["avg_paraphrased_loss"].to_numpy(dtype=float)
        log[f"{prefix}_Q_A_PARA_Prob"] = probabilities(paraphrased)
    if "average_perturb_loss" in rows and rows["average_perturb_loss"].notna().all():
        wrong = np.array([list(losses) for losses in rows["average_perturb_loss"]], dtype=float)
        log[f"{prefix}_Q_A_PERT_Prob"] = probabilities(wrong)
        inverse = np.exp(-wrong.mean(axis=1)) / (np.exp(-paraphrased) + GUARD)
        log[_truth_ratio(prefix)] = of([{"score": score} for score in inverse.tolist()])
        if task in _NORMALISED:
            share = np.exp(-true) / (np.exp(-true) + np.exp(-wrong).sum(axis=1) + GUARD)
            log[f"{prefix}_Q_A_Prob_normalised"] = of([{"prob": p} for p in share.tolist()], float(share.mean()))
    rouge = [name for name in ("rouge1_recall", "rougeL_recall") if name in rows and rows[name].notna().all()]
    if rouge:
        log[f"{prefix}_Q_A_ROUGE"] = of(rows[rouge].to_dict("records"))
    return log


def _by_index(rows: pd.DataFrame, task: str, column: str, field: str) -> dict[str, Any]:
    """A column of a set's rows, with its mean; nothing where the record holds none."""
    if column not in rows:
        return {}
    own = rows[(rows["task"] == task) & rows[column].notna()].sort_values("row")
    if own.empty:
        return {}
    values = own[column].to_numpy(dtype=float)
    by_index = {str(row): {field: value} for row, value in zip(own["row"], values.tolist(), strict=True)}
    return {"agg_value": float(values.mean()), "value_by_index": by_index}
