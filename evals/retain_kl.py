"""How far the model has moved where it should not: KL(before unlearning ‖ now) on the retain rows.

    KL = Σ_rows Σ_t Σ_v p_before(v) [log p_before(v) − log p_now(v)]  /  number of answer tokens

An axis of figure 3 of "Gauss-Newton Unlearning for the LLM Era" (arXiv:2602.10568), which does not say on which rows; here on
the evaluated retain rows, answers and end tokens alone, in float32 and exact over the vocabulary. It sees damage that accuracy
does not, and also change that is none: a retrained model has a KL of its own, which stands beside it. The distributions of
the model before unlearning are held on the CPU: answer tokens × vocabulary × 4 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evals import _tofu
from evals._bootstrap import METHOD, interval
from harness.core.interfaces import Absent, Measurement, Subject, evaluator

VERSION = 1
METRIC = "retain_kl"


@evaluator("retain_kl", version=VERSION, before=_tofu.hold_before)
def measure(subject: Subject) -> Sequence[Measurement | Absent]:
    """`retain_kl`."""
    try:
        values, authors = _tofu.retain_kl(subject)
    except LookupError as error:
        alone = subject.setting is None and "divergence" not in subject.tables
        reason = (
            "it compares with the model before unlearning, and a log holds only one model's numbers" if alone else str(error)
        )
        return [Absent(metric=METRIC, reason=reason)]
    if not np.isfinite(values).all():
        broken = int((~np.isfinite(values)).any(axis=1).sum())
        return [Absent(metric=METRIC, reason=f"{broken} of {len(values)} rows are not finite")]
    references = _tofu.reference_values(subject, lambda other: _per_token(_tofu.retain_kl(other)[0]))
    bounds = interval([(values, authors)], lambda nats, tokens: nats / tokens)
    return [
        Measurement(
            metric=METRIC,
            version=VERSION,
            value=_per_token(values),
            unit="nats per token",
            better="lower",
            n=len(values),
            range=None,
            reference=references[0] if references else None,
            across_references=(min(references), max(references)) if references else None,
            floor=_tofu.spread(references),
            interval_95=bounds,
            interval_method=METHOD if bounds else "none: fewer than five authors",
            resampled="author" if bounds else None,
        )
    ]


def _per_token(values: np.ndarray) -> float:
    nats, tokens = values.sum(axis=0)
    return float(nats / tokens)
