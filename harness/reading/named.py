"""The names that runs are picked by: those of what is installed, and those that recorded runs have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.core.benchmark import BENCHMARKS
from harness.core.errors import unknown
from harness.core.method import METHODS


def check_names(bench: str, methods: Sequence[str], benches_of_runs: Iterable[str], methods_of_runs: Iterable[str]) -> None:
    """Refuse a name that neither anything here nor any run has: nothing found would be a wrong answer to it.

    Raises:
        UsageError: with the nearest name.
    """
    benches = {*BENCHMARKS.names(), *benches_of_runs}
    if bench and bench not in benches:
        raise unknown(BENCHMARKS.kind, bench, benches, BENCHMARKS.listing)
    known = {*METHODS.names(), *methods_of_runs}
    for name in methods:
        if name not in known:
            raise unknown(METHODS.kind, name, known, METHODS.listing)
