"""What the model can still do: the harmonic mean of nine numbers (ToFU's model utility).

{ROUGE-L recall, probability, truth ratio} × {retain, real authors, world facts}. The headline uses the geometric truth ratio of
`aggregate_eval_stat.py`, as the published tables do; `model_utility_arithmetic` the arithmetic one of the paper's text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from evals import _tofu
from evals._bootstrap import METHOD, interval
from harness.core.interfaces import Absent, Measurement, Subject, evaluator

VERSION = 1


@evaluator("model_utility", version=VERSION, requests=_tofu.requests)
def measure(subject: Subject) -> Sequence[Measurement | Absent]:
    """`model_utility` and, in the original's definitions, `model_utility_arithmetic`."""
    found = [_utility(subject, "model_utility", arithmetic=False)]
    if subject.task.variant == "original":
        found.append(_utility(subject, "model_utility_arithmetic", arithmetic=True))
    return found


def _utility(subject: Subject, metric: str, arithmetic: bool) -> Measurement | Absent:
    try:
        parts = _tofu.utility_parts(subject, arithmetic)
    except LookupError as error:
        return Absent(metric=metric, reason=str(error))
    value = _tofu.utility(subject, arithmetic)
    if not math.isfinite(value):
        return Absent(metric=metric, reason="one of its nine parts is not finite")
    references = _tofu.reference_values(subject, lambda other: _tofu.utility(other, arithmetic))
    groups = [(np.column_stack([part.values for part in of_task]), of_task[0].clusters) for of_task in parts.values()]
    bounds = interval(groups, lambda *means: _harmonic(np.stack(means)))
    return Measurement(
        metric=metric,
        version=VERSION,
        value=value,
        unit="harmonic mean",
        better="higher",
        n=sum(len(of_task[0].values) for of_task in parts.values()),
        range=(0.0, 1.0),
        reference=references[0] if references else None,
        across_references=(min(references), max(references)) if references else None,
        floor=_tofu.spread(references),
        interval_95=bounds,
        interval_method=METHOD if bounds else "none: fewer than five authors",
        resampled="author, in each task on its own" if bounds else None,
    )


def _harmonic(means: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.asarray(means.shape[0] / (1 / means).sum(axis=0))
