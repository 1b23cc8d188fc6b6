"""Whether the unlearned model can be told from a retrained one on the forget set (ToFU's forget quality).

The p-value of a two-sample Kolmogorov-Smirnov test between the truth ratios of the two models on the same forget rows
(`scipy.stats.ks_2samp`, default method), and its statistic D.
Source: locuslab/tofu `aggregate_eval_stat.py::get_forget_quality`.

One retrained model says little, so the range over all of them stands beside the headline, and the largest D between
two of them is the noise floor: at or under it a method is as good as retraining and is not ranked further.
In open-unlearning's definitions the test compares the guarded ratio, P(wrong) / (P(paraphrase) + 1e-10), as its
`src/evals/metrics/privacy.py::ks_test` does: a model that has collapsed is then told apart from a retrained one.
There is no interval on a p-value: resampled p-values are biased.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from evals import _tofu
from evals._bootstrap import FEWEST_CLUSTERS
from harness.core.errors import UsageError
from harness.core.interfaces import Absent, Measurement, Subject, evaluator


@evaluator("forget_quality", version=_tofu.tested_version)
def measure(subject: Subject) -> Sequence[Measurement | Absent]:
    """`forget_quality` and `forget_quality_d`."""
    names = ("forget_quality", "forget_quality_d")
    try:
        rows = _tofu.tested_ratio(subject)
        others = [_tofu.tested_ratio(_tofu.recorded(subject, i)) for i in range(len(subject.references))]
    except LookupError as error:
        return [Absent(metric=name, reason=str(error)) for name in names]
    if not others:
        reason = "it compares with a retrained model, and this run has none; give one with --reference LOG"
        return [Absent(metric=name, reason=reason) for name in names]
    for reference, other in zip(subject.references, others, strict=True):
        if len(other.values) != len(rows.values):
            raise UsageError(
                f"the reference {reference.name} has {len(other.values)} forget rows, this model {len(rows.values)}: "
                "forget quality needs the same rows."
            )
    if not all(np.isfinite(r.values).all() for r in (rows, *others)):
        return [Absent(metric=name, reason="a truth ratio is not finite") for name in names]
    tests = [_tofu.ks(rows.values, other.values) for other in others]
    pvalue, distance, note = tests[0]
    floor = max((_tofu.ks(a.values, b.values)[1] for a, b in combinations(others, 2)), default=None)
    notes = [note] if note else []
    if floor is not None and distance <= floor:
        notes.append("a tie with retraining: D is at or under the noise floor")
    if len(np.unique(rows.clusters)) < FEWEST_CLUSTERS:
        notes.append("not to be ranked: fewer than five forget authors")
    common: dict[str, Any] = {
        "version": _tofu.tested_version(subject.task),
        "n": len(rows.values),
        "range": (0.0, 1.0),
        "note": "; ".join(notes) or None,
    }
    return [
        Measurement(
            metric=names[0],
            value=pvalue,
            unit="p-value",
            better="higher",
            across_references=(min(t[0] for t in tests), max(t[0] for t in tests)),
            interval_method="none: resampled p-values are biased",
            **common,
        ),
        Measurement(
            metric=names[1],
            value=distance,
            unit="KS distance",
            better="lower",
            across_references=(min(t[1] for t in tests), max(t[1] for t in tests)),
            floor=floor,
            interval_method="none: see forget_quality",
            **common,
        ),
    ]
