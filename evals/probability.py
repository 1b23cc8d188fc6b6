"""How likely the true answers are, per token (ToFU's "Prob.").

exp(−loss per token), averaged over rows; for real authors and world facts divided by the sum over the true and the wrong
answers. Source: locuslab/tofu `aggregate_eval_stat.py`.
"""

from __future__ import annotations

from evals import _tofu
from harness.core.evaluator import EvalContext, evaluator
from harness.core.metric import Metric, Rows

METRICS = _tofu.means("probability", "P", "probability per token", "how likely the true answer is, per token")


@evaluator("probability", version=1, metrics=METRICS)
def measure(context: EvalContext, metric: Metric) -> Rows:
    """`<task>_probability` for each of retain, real_authors, world_facts, forget."""
    return _tofu.probability(context, metric.part)
