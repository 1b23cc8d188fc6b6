"""How likely the true answers are, per token (ToFU's "Prob.").

exp(−loss per token), averaged over rows; for real authors and world facts divided by the sum over the true and the wrong
answers. Source: locuslab/tofu `aggregate_eval_stat.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from evals import _tofu
from harness.core.interfaces import Absent, Measurement, Subject, evaluator

VERSION = 1


@evaluator("probability", version=VERSION)
def measure(subject: Subject) -> Sequence[Measurement | Absent]:
    """`<task>_probability` for each of retain, real_authors, world_facts, forget."""
    return _tofu.means(subject, "probability", VERSION, "probability per token", _tofu.probability)
