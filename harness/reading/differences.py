"""What methods differ by on the same rows, from the rows that the store holds: asked of the benchmark, corrected here.

A benchmark says how its metrics follow from rows and resamples whole clusters (`Benchmark.differences`); this module finds the
rows and corrects the p-values for all that is asked together (Holm 1979). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.core.interfaces import BENCHMARKS, Difference
from harness.storage.records import RunSpec
from harness.storage.store import Store

if TYPE_CHECKING:
    import pandas as pd

LEVEL = 0.05
"""A difference whose corrected p-value is at most this is told apart from none."""


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number, in the same order (step-down, Holm 1979)."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def differences(
    measured: Mapping[str, Sequence[tuple[RunSpec, int]]], store: Store, against: str | None = None
) -> list[Difference]:
    """Each two methods' differences on one benchmark and model, in one family of comparisons.

    Args:
        measured: method → the runs that stand for it, one for each seed, each with the index of the point.
        store: where their rows lie.
        against: compare with this one alone; each with each if not given.

    Returns:
        Metric by metric. Empty where the benchmark cannot say; a method of which a run has no rows is in none.
    """
    specs = [spec for runs in measured.values() for spec, _ in runs]
    recorded: dict[str, Sequence[pd.DataFrame]] = {}
    for method, runs in measured.items():
        rows = [store.rows(spec, point) for spec, point in runs]
        if all(of_run is not None and len(of_run) for of_run in rows):
            recorded[method] = [of_run for of_run in rows if of_run is not None]
    if len(recorded) < 2 or specs[0].bench not in BENCHMARKS.names():
        return []
    benchmark = BENCHMARKS.get(specs[0].bench)
    if not hasattr(benchmark, "differences"):
        return []
    found: Sequence[Difference] = benchmark.differences(recorded, specs[0].variant, against)
    corrected = holm([each.p for each in found])
    return [replace(each, p_corrected=p) for each, p in zip(found, corrected, strict=True)]
