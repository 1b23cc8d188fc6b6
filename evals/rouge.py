"""How much of the true answer the greedy answer repeats (ROUGE-L recall).

Source: locuslab/tofu `evaluate_util.py`: `rouge_score` with stemming, the recall of the longest common subsequence,
greedy decoding.
"""

from __future__ import annotations

from collections.abc import Sequence

from evals import _tofu
from harness.core.interfaces import Absent, Measurement, Subject, evaluator

VERSION = 1


@evaluator("rouge", version=VERSION, requests=_tofu.requests)
def measure(subject: Subject) -> Sequence[Measurement | Absent]:
    """`<task>_rouge` for each of retain, real_authors, world_facts, forget."""
    return _tofu.means(subject, "rouge", VERSION, "ROUGE-L recall", _tofu.rouge)
