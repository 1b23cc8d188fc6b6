"""Records as one table: a row for every number there is, and for every reason why there is none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from harness.core.measurement import Absent, Measurement
from harness.core.problem import ROW_KEYS
from harness.storage.cache import canonical, digest
from harness.storage.identity import comparable
from harness.storage.records import RunResult

if TYPE_CHECKING:
    import pandas as pd


PLACE = ("arm", "index", "step", "seconds", "logged", "budget", "damage")
"""Columns that say where on a run's trajectory a number stands."""


class AllInOne(dict[str, "pd.DataFrame"]):
    """The rows of a record, which keeps all tables as one: whichever table is asked for."""

    def __init__(self, rows: pd.DataFrame) -> None:
        super().__init__()
        self._rows = rows

    def __missing__(self, name: str) -> pd.DataFrame:
        return self._rows

    def __contains__(self, name: object) -> bool:
        return True


def in_one(tables: Iterable[pd.DataFrame]) -> pd.DataFrame | None:
    """Tables of rows as a record keeps them: what belongs to one row side by side; None if there are no rows."""
    keys, merged = list(ROW_KEYS), None
    for table in (table for table in tables if len(table)):
        if merged is not None and set(table) & set(merged) > set(keys):  # two tables fill a column for different tasks
            merged = merged.set_index(keys).combine_first(table.set_index(keys)).reset_index()
        else:
            merged = table if merged is None else merged.merge(table, on=keys, how="outer", sort=False)
    return merged


def frame_of(runs: Iterable[tuple[str, RunResult]]) -> pd.DataFrame:
    """One row per (run, point, metric), and per (run, arm, metric) of the references; see `Store.frame`.

    Args:
        runs: each with its folder relative to `runs`.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for folder, result in runs:
        spec = result.spec
        run = {
            "run": spec.run_id,
            "bench": spec.bench,
            "model": spec.model,
            "source": digest(spec.sources.get("base"))[:8],
            "method": spec.method,
            "method_version": spec.method_version,
            "seed": spec.seed,
            "variant": spec.variant,
            "retain": spec.retain,
            "limit": spec.limit,
            "selection": result.selection,
            "status": result.status,
            "folder": folder,
            "config": canonical(spec.settings),
            "comparable": comparable(spec),
            "budget_rows": spec.budget_rows,
        }
        places: list[tuple[Any, ...]] = [
            ("method", p.index, p.step, p.unlearn_seconds, canonical(p.logged), p.budget, p.damage, p.measurements)
            for p in result.points
        ]
        places += [(arm, *[None] * (len(PLACE) - 1), items) for arm, items in result.references.items()]
        for *place, items in places:
            line = {**run, **dict(zip(PLACE, place, strict=True))}
            rows += [{**line, **_flat(item)} for item in items]
    table = pd.DataFrame(rows)
    return table.sort_values(["folder", "arm", "index", "metric"], ignore_index=True) if len(table) else table


def _flat(item: Measurement | Absent) -> dict[str, Any]:
    """A measurement as one row's columns."""
    if isinstance(item, Absent):
        return {"metric": item.metric, "absent": item.reason}
    columns = {
        name: getattr(item, name)
        for name in ("metric", "version", "value", "unit", "better", "n", "reference", "floor", "note")
    }
    for name, pair in (("", item.interval_95), ("across_", item.across_references)):
        columns[f"{name}low"], columns[f"{name}high"] = pair or (None, None)
    return {**columns, "interval_method": item.interval_method, "resampled": item.resampled, "absent": None}
