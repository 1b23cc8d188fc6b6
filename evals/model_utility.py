"""What the model can still do: the harmonic mean of nine numbers (ToFU's model utility).

{ROUGE-L recall, probability, truth ratio} × {retain, real authors, world facts}. The headline uses the geometric truth ratio of
`aggregate_eval_stat.py`, as the published tables do; `model_utility_arithmetic` the arithmetic one of the paper's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from evals import _tofu
from harness.core.evaluator import EvalContext, EvalPlan, MetricFamily, evaluator
from harness.core.metric import HARMONIC, Metric, Rows, metrics_by_name

UTILITY = Metric(
    "model_utility",
    title="Utility",
    unit="harmonic mean",
    better="higher",
    about="what the model can still do: the harmonic mean of ROUGE, probability and truth ratio on three sets to be kept",
    range=(0.0, 1.0),
    statistic=HARMONIC,
    cluster="author",
    contains=("retain_probability", "retain_rouge"),
)
ARITHMETIC = replace(
    UTILITY,
    name="model_utility_arithmetic",
    title="Utility (arithmetic)",
    about="model utility with the arithmetic truth ratio of the ToFU paper's text",
)


def metrics(plan: EvalPlan) -> Sequence[Metric]:
    """Utility, and in the original's definitions its arithmetic form."""
    return (UTILITY, ARITHMETIC) if plan.variant == "original" else (UTILITY,)


@evaluator(
    "model_utility", version=1, metrics=MetricFamily(metrics, metrics_by_name((UTILITY, ARITHMETIC))), requests=_tofu.requests
)
def measure(context: EvalContext, metric: Metric) -> Sequence[Rows]:
    """The nine parts, by set of questions."""
    return _tofu.utility_rows(context, arithmetic=metric is ARITHMETIC)
