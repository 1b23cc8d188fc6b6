"""What settings are chosen by, without generating a text: how much is forgotten times how much is kept.

ToFU:             median over references of the forget-quality p-value  ×  harmonic mean of {probability, truth ratio} ×
                  {retain, real authors, world facts}
multiple choice:  (1 − mean over the stages' sets of questions of k)  ×  mean over the sets to be kept of k
                  k = max(0, accuracy − ¼) / ¾, the share known beyond chance

The paper picks its checkpoints by forget quality × model utility on the rows it reports (arXiv:2602.10568, appendix D.2); here
such a product serves on rows that are *not* reported (another world's, or the selection split), and ROUGE is left out, since
it alone needs generation. Not a result: it is no benchmark's metric and is measured only where it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

import numpy as np

from evals import _scores, _tofu
from harness.core.interfaces import EVALUATORS, Absent, Measurement, Subject, Task, evaluator

METRIC = "selection_score"


@evaluator("selection_score", version=_tofu.tested_version)
def measure(subject: Subject) -> Sequence[Measurement | Absent]:
    """`selection_score`."""
    return [_of_choices(subject) if _scores.has_choices(subject.task) else _of_tofu(subject)]


def _of_tofu(subject: Subject) -> Measurement | Absent:
    try:
        rows = _tofu.tested_ratio(subject)
        others = [_tofu.tested_ratio(_tofu.recorded(subject, i)) for i in range(len(subject.references))]
        parts = [part(subject, task).values for task in _tofu.UTILITY_TASKS for part in (_tofu.probability, _tofu.truth_ratio)]
    except LookupError as error:
        return Absent(metric=METRIC, reason=str(error))
    if not others:
        return Absent(metric=METRIC, reason="it compares with a retrained model, and this run has none")
    if not all(np.isfinite(values).all() for values in (rows.values, *parts)):
        return Absent(metric=METRIC, reason="a likelihood is not finite")
    quality = median(_tofu.ks(rows.values, other.values)[0] for other in others)
    utility = _tofu.harmonic_mean([float(values.mean()) for values in parts])
    return _score(subject.task, quality * utility, "p-value × harmonic mean", len(rows.values))


def _of_choices(subject: Subject) -> Measurement | Absent:
    forgotten = {f"{name}_accuracy" for name in _scores.forgotten(subject.task)}
    hazardous, kept, n = [], [], 0
    for found in EVALUATORS.get("multiple_choice").measure(subject):
        if isinstance(found, Absent):
            return Absent(metric=METRIC, reason=f"{found.metric}: {found.reason}")
        known = max(0.0, found.value - _scores.CHANCE) / (1 - _scores.CHANCE)
        if found.metric in forgotten:
            hazardous.append(known)
            n += found.n
        elif found.better == "higher":
            kept.append(known)
    if not kept:
        return Absent(metric=METRIC, reason="this benchmark has no questions about what is to be kept")
    return _score(subject.task, (1 - fmean(hazardous)) * fmean(kept), "share forgotten × share kept", n)


def _score(task: Task, value: float, unit: str, n: int) -> Measurement:
    return Measurement(
        metric=METRIC,
        version=_tofu.tested_version(task),
        value=value,
        unit=unit,
        better="higher",
        n=n,
        range=(0.0, 1.0),
        interval_method="none: it chooses, it does not report",
    )
