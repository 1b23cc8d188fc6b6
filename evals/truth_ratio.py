"""Whether the right answer, put in other words, is likelier than wrong ones (ToFU's truth ratio).

R = P(paraphrase) / geometric mean of P(wrong), each per token. Reported as max(0, 1 − 1/R), on the forget rows as min(R, 1/R).
Source: locuslab/tofu `aggregate_eval_stat.py`.
"""

from __future__ import annotations

from evals import _tofu
from harness.core.evaluator import EvalContext, evaluator
from harness.core.metric import Metric, Rows

METRICS = _tofu.means(
    "truth_ratio", "Truth ratio", "score", "whether the right answer, put in other words, is likelier than wrong ones"
)


@evaluator("truth_ratio", version=1, metrics=METRICS)
def measure(context: EvalContext, metric: Metric) -> Rows:
    """`<task>_truth_ratio` for each of retain, real_authors, world_facts, forget."""
    return _tofu.truth_ratio(context, metric.part)
