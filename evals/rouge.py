"""How much of the true answer the greedy answer repeats (ROUGE-L recall).

Source: locuslab/tofu `evaluate_util.py`: `rouge_score` with stemming, the recall of the longest common subsequence,
greedy decoding.
"""

from __future__ import annotations

from evals import _tofu
from harness.core.evaluator import EvalContext, evaluator
from harness.core.metric import Metric, Rows

METRICS = _tofu.means("rouge", "ROUGE", "ROUGE-L recall", "how much of the true answer the greedy answer repeats")


@evaluator("rouge", version=1, metrics=METRICS, requests=_tofu.requests)
def measure(context: EvalContext, metric: Metric) -> Rows:
    """`<task>_rouge` for each of retain, real_authors, world_facts, forget."""
    return _tofu.rouge(context, metric.part)
