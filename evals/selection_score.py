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
from dataclasses import replace
from statistics import fmean, median

import numpy as np

from evals import _scores, _tofu
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan, MetricFamily, evaluator
from harness.core.metric import Metric, Number, Plain, harmonic_mean, metrics_by_name
from harness.statistics.measurements import groups_of
from harness.statistics.two_sample import ks

METRIC = Metric(
    "selection_score",
    title="Selection score",
    unit="p-value × harmonic mean",
    better="higher",
    about="what settings are chosen by on rows that are not reported: how much is forgotten times how much is kept",
    range=(0.0, 1.0),
    statistic=Plain("it chooses, it does not report", compared=False),
    contains=("retain_probability",),
)


def metrics(plan: EvalPlan) -> Sequence[Metric]:
    """The score, under the unit of its kind."""
    return (replace(METRIC, unit="share forgotten × share kept") if _scores.has_choices(plan) else METRIC,)


@evaluator("selection_score", version=_tofu.tested_version, metrics=MetricFamily(metrics, metrics_by_name((METRIC,))))
def measure(context: EvalContext, metric: Metric) -> Number:
    """The score, and how many rows say what is forgotten."""
    return _of_choices(context) if _scores.has_choices(context.plan) else _of_tofu(context)


def _of_tofu(context: EvalContext) -> Number:
    rows = _tofu.tested_ratio(context)
    others = [_tofu.tested_ratio(context.of(reference)) for reference in context.references]
    parts = [part(context, task).values for task in _tofu.UTILITY_TASKS for part in (_tofu.probability, _tofu.truth_ratio)]
    if not others:
        raise LookupError("it compares with a retrained model, and this run has none")
    if not all(np.isfinite(values).all() for values in (rows.values, *parts)):
        raise LookupError("a likelihood is not finite")
    quality = median(ks(rows.values, other.values).p for other in others)
    return Number(quality * harmonic_mean([float(values.mean()) for values in parts]), len(rows.values))


def _of_choices(context: EvalContext) -> Number:
    forgotten, hazardous, kept, n = _scores.forgotten(context.plan), [], [], 0
    evaluator = EVALUATORS.get("multiple_choice")
    for metric in evaluator.metrics_of(context.plan):
        try:
            (rows,) = groups_of(evaluator.measure(context, metric))
        except LookupError as error:
            raise LookupError(f"{metric.name}: {error}") from error
        known = max(0.0, float(rows.values.mean()) - _scores.CHANCE) / (1 - _scores.CHANCE)
        if metric.part in forgotten:
            hazardous.append(known)
            n += len(rows.values)
        elif metric.better == "higher":
            kept.append(known)
    if not kept:
        raise LookupError("this benchmark has no questions about what is to be kept")
    return Number((1 - fmean(hazardous)) * fmean(kept), n)
