"""How many tokens of a forget answer the model would say itself, each behind the true ones before it (exact memorisation).

EM = |{t : argmax_v p(v | x, y_<t) = y_t}| / |y|, without the end token, mean over rows. Source: Tirumala et al. 2022
(arXiv:2205.10770); LoKU's *memorisation accuracy* is the same share over a whole sequence. Computed by `_token_scores.py`.
Asked for by `--evals +exact_memorisation`.
"""

from __future__ import annotations

from evals import _token_scores
from harness.core.evaluator import EvalContext, evaluator
from harness.core.metric import Metric, Rows

METRIC = Metric(
    "exact_memorisation",
    title="Exact memorisation",
    unit="share of tokens",
    better="closer",
    better_alone="lower",
    about="how many tokens of a forget answer the model would say itself, each behind the true ones before it",
    range=(0.0, 1.0),
    part="forget",
    cluster="author",
    short="EM",
)


@evaluator("exact_memorisation", version=1, metrics=(METRIC,))
def measure(context: EvalContext, metric: Metric) -> Rows:
    """The share of each forget answer's tokens."""
    return _token_scores.forget_rows(context, metric.name)
