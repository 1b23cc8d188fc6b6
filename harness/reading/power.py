"""The smallest difference that a benchmark can show: asked of the benchmark, on the rows that the store holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.core.errors import UsageError
from harness.core.interfaces import BENCHMARKS, Absent, Measurement, Options
from harness.reading.comparing import REFERENCE_ARMS
from harness.storage.store import Store

if TYPE_CHECKING:
    import pandas as pd


def smallest_differences(bench: str, model: str, store: Store, options: Options) -> Sequence[Measurement | Absent]:
    """Each metric's smallest difference that can be shown, `value` in the metric's own unit.

    Args:
        bench: the benchmark.
        model: what is unlearned.
        store: whose recorded rows are resampled: of each method the first run, at its last point; one seed, nothing corrected.
        options: rows, metric definitions, data folder.

    Raises:
        UsageError: if the benchmark cannot say.
    """
    benchmark = BENCHMARKS.get(bench)
    if not hasattr(benchmark, "power"):
        raise UsageError(f"{bench} does not say what it can show.")
    task = benchmark.task(model, options)
    base = task.sources["base"].identity
    recorded: dict[str, pd.DataFrame] = {}
    for result in store.runs():
        spec = result.spec
        same = (spec.bench, spec.limit, spec.variant, spec.retain) == (bench, options.limit, options.variant, task.retain)
        same = same and spec.method not in REFERENCE_ARMS
        if same and spec.sources.get("base") == base and result.points and spec.method not in recorded:
            rows = store.rows(spec, result.points[-1].index)
            if rows is not None:
                recorded[spec.method] = rows
    return benchmark.power(task, list(recorded.values()))  # type: ignore[no-any-return]
