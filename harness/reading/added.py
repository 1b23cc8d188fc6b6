"""Metrics of plug-ins from outside that a benchmark does not know: whoever ran them asked for them, so they stand beside its
headline wherever only that is shown.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.core.benchmark import BENCHMARKS
from harness.core.errors import UsageError
from harness.core.evaluator import EVALUATORS, metric_of


def added(bench: str, measured: Iterable[str]) -> list[str]:
    """Those of evaluators from outside that are not the benchmark's own, in order; none where either is not installed.

    Args:
        bench: the benchmark's name.
        measured: metrics by name.
    """
    try:
        own = {evaluator.name for evaluator in BENCHMARKS.get(bench).evaluators()}
    except UsageError:
        return []
    outside = {name for name in EVALUATORS.names() if EVALUATORS.digests(name)} - own
    return [metric for metric in measured if outside and (match := metric_of(metric)) and match[0].name in outside]
