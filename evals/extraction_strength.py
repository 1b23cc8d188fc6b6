"""How much of a forget answer greedy decoding gives back exactly, once it has been told the beginning (extraction strength).

ES = 1 − min{k : greedy decoding from the first k answer tokens gives the rest exactly} / |y|, without the end token, mean over
rows; 1 where the question alone brings the answer. One teacher-forced pass decides it, since the argmax behind a true prefix is
what greedy decoding says there. Source, and how open-unlearning's definitions differ: `_token_scores.py`. Asked for by
`--evals +extraction_strength`.
"""

from __future__ import annotations

from evals import _token_scores
from harness.core.evaluator import EvalContext, evaluator
from harness.core.metric import Metric, Rows

METRIC = Metric(
    "extraction_strength",
    title="Extraction strength",
    unit="share of the answer",
    better="closer",
    better_alone="lower",
    about="how much of a forget answer the model gives back exactly once it is told the answer's beginning",
    range=(0.0, 1.0),
    part="forget",
    cluster="author",
    short="ES",
)


@evaluator("extraction_strength", version=1, metrics=(METRIC,))
def measure(context: EvalContext, metric: Metric) -> Rows:
    """The share of each forget answer."""
    return _token_scores.forget_rows(context, metric.name)
