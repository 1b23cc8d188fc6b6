"""How far the model has moved where it should not: KL(before unlearning ‖ now) on the retain rows.

    KL = Σ_rows Σ_t Σ_v p_before(v) [log p_before(v) − log p_now(v)]  /  number of answer tokens

An axis of figure 3 of "Gauss-Newton Unlearning for the LLM Era" (arXiv:2602.10568), which does not say on which rows; here on
the evaluated retain rows, answers and end tokens alone, in float32 and exact over the vocabulary. It sees damage that accuracy
does not, and also change that is none: a retrained model has a KL of its own, which stands beside it. The distributions of
the model before unlearning are held on the CPU: answer tokens × vocabulary × 4 bytes.
"""

from __future__ import annotations

from evals import _tofu
from harness.core.evaluator import EvalContext, evaluator
from harness.core.metric import RATIO, Metric, Rows

METRIC = Metric(
    "retain_kl",
    title="KL retain",
    unit="nats per token",
    better="lower",
    about="how far the model has moved on the answers to be kept: KL from the model before unlearning to the one after",
    statistic=RATIO,
    part="retain",
    cluster="author",
)


@evaluator("retain_kl", version=1, metrics=(METRIC,), before=_tofu.memoize_before)
def measure(context: EvalContext, metric: Metric) -> Rows:
    """Nats and tokens of every retain row."""
    if context.loaded is None and "divergence" not in context.tables:
        raise LookupError("it compares with the model before unlearning, and a log holds only one model's numbers")
    return _tofu.retain_kl(context)
