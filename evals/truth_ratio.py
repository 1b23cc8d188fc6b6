"""Whether the right answer, put in other words, is likelier than wrong ones (ToFU's truth ratio).

R = P(paraphrase) / geometric mean of P(wrong), each per token. Reported as max(0, 1 − 1/R), on the forget rows as min(R, 1/R).
Source: locuslab/tofu `aggregate_eval_stat.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from evals import _tofu
from harness.core.interfaces import Absent, Measurement, Subject, evaluator

VERSION = 1


@evaluator("truth_ratio", version=VERSION)
def measure(subject: Subject) -> Sequence[Measurement | Absent]:
    """`<task>_truth_ratio` for each of retain, real_authors, world_facts, forget."""
    return _tofu.means(subject, "truth_ratio", VERSION, "score", _tofu.truth_ratio)
