"""What settings are chosen by, without generating a text: forget quality times utility, both from likelihoods alone.

    score = median over references of the forget-quality p-value  ×  harmonic mean of {probability, truth ratio} × {retain, real
            authors, world facts}

The paper picks its checkpoints by forget quality × model utility on the rows it reports (arXiv:2602.10568, appendix D.2); here
the same product serves on rows that are *not* reported (another world's, or the selection split), and ROUGE is left out, since
it alone needs generation. Not a result: it is no benchmark's metric and is measured only where it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np

from evals import _tofu
from harness.interfaces import Absent, Measurement, Subject, evaluator

VERSION = 1
METRIC = "selection_score"


@evaluator("selection_score", version=VERSION)
def measure(subject: Subject) -> Sequence[Measurement | Absent]:
    """`selection_score`."""
    try:
        rows = _tofu.log_truth_ratio(subject, "forget")
        others = [_tofu.log_truth_ratio(_tofu.recorded(subject, i), "forget") for i in range(len(subject.references))]
        parts = [part(subject, task).values for task in _tofu.UTILITY_TASKS for part in (_tofu.probability, _tofu.truth_ratio)]
    except LookupError as error:
        return [Absent(metric=METRIC, reason=str(error))]
    if not others:
        return [Absent(metric=METRIC, reason="it compares with a retrained model, and this run has none")]
    if not all(np.isfinite(values).all() for values in (rows.values, *parts)):
        return [Absent(metric=METRIC, reason="a likelihood is not finite")]
    quality = median(_tofu.ks(rows.values, other.values)[0] for other in others)
    utility = _tofu.harmonic_mean([float(values.mean()) for values in parts])
    return [
        Measurement(
            metric=METRIC,
            version=VERSION,
            value=quality * utility,
            unit="p-value × harmonic mean",
            better="higher",
            n=len(rows.values),
            range=(0.0, 1.0),
            interval_method="none: it chooses, it does not report",
        )
    ]
