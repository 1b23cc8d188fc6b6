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

import numpy as np

from evals import _tofu
from harness.core.evaluator import EvalContext, evaluator
from harness.core.metric import Metric, Rows, TwoSample
from harness.statistics.two_sample import ks

METRICS = (
    Metric(
        "forget_quality",
        title="Forget quality",
        unit="p-value",
        better="higher",
        about="p-value of a Kolmogorov-Smirnov test between the truth ratios of this model and of a retrained one",
        range=(0.0, 1.0),
        statistic=TwoSample(ks, "p", "resampled p-values are biased"),
        part="forget",
        cluster="author",
    ),
    Metric(
        "forget_quality_d",
        title="KS distance",
        unit="KS distance",
        better="lower",
        about="the largest distance between the distributions of both models' truth ratios",
        range=(0.0, 1.0),
        statistic=TwoSample(ks, "distance", "see forget_quality"),
        short="KS D",
        part="forget",
        cluster="author",
    ),
)


@evaluator("forget_quality", version=_tofu.tested_version, metrics=METRICS)
def measure(context: EvalContext, metric: Metric) -> Rows:
    """What is tested of every forget row."""
    rows = _tofu.tested_ratio(context)
    if not np.isfinite(rows.values).all():
        raise LookupError("a truth ratio is not finite")
    return rows
