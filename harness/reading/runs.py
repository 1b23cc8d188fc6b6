"""Recorded runs in Python: a sequence of results that can be looked at as a table, by its answers, and compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from html import escape
from typing import TYPE_CHECKING, overload

from harness.core.errors import UsageError
from harness.core.measurement import Difference, Measurement
from harness.reading.budget_table import met_in_short
from harness.reading.differences import differences
from harness.reading.formats import of_unit
from harness.reading.samples import samples_of
from harness.storage.identity import comparable
from harness.storage.records import RunResult
from harness.storage.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from harness.storage.records import RunSpec

MOST_SHOWN = 20
"""Runs that a notebook shows; the table has all of them."""


class Comparison(Sequence[Difference]):
    """By how much methods differ in each metric, on the same rows."""

    def __init__(self, differences: Sequence[Difference]) -> None:
        self._differences = differences

    @overload
    def __getitem__(self, index: int) -> Difference: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Difference]: ...
    def __getitem__(self, index: int | slice) -> Difference | Sequence[Difference]:
        return self._differences[index]

    def __len__(self) -> int:
        return len(self._differences)

    def table(self) -> pd.DataFrame:
        """One row for each two methods and metric; the columns are the fields of `Difference`."""
        import pandas as pd

        return pd.DataFrame([asdict(each) for each in self])

    def _repr_html_(self) -> str:
        return str(self.table().to_html(index=False)) if len(self) else "<p>nothing to compare</p>"


class Runs(Sequence[RunResult]):
    """Results of runs, with the store that holds their rows and answers.

    Args:
        results: in any order.
        store: where they are recorded.
    """

    def __init__(self, results: Sequence[RunResult], store: Store) -> None:
        self._results = list(results)
        self.store = store

    @overload
    def __getitem__(self, index: int) -> RunResult: ...
    @overload
    def __getitem__(self, index: slice) -> Runs: ...
    def __getitem__(self, index: int | slice) -> RunResult | Runs:
        return Runs(self._results[index], self.store) if isinstance(index, slice) else self._results[index]

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[RunResult]:
        return iter(self._results)

    def __repr__(self) -> str:
        names = ", ".join(f"{r.spec.method} on {r.spec.bench} seed {r.spec.seed}" for r in self._results[:MOST_SHOWN])
        more = f", and {len(self) - MOST_SHOWN} more" if len(self) > MOST_SHOWN else ""
        return f"<{len(self)} run{'s' * (len(self) != 1)}: {names}{more}>"

    def table(self) -> pd.DataFrame:
        """Everything that was measured: one row a run, point and metric; see `Store.frame` for the columns."""
        frame = self.store.frame()
        if frame.empty:
            return frame
        return frame[frame["folder"].isin([result.spec.folder.as_posix() for result in self])].reset_index(drop=True)

    def samples(self, task: str = "") -> pd.DataFrame:
        """Questions with the true answer and what was answered at the last point.

        Args:
            task: only these questions, such as `forget`.

        Returns:
            Columns `run`, `method`, `task`, `question`, `true`, `before`, `after`, `retrained`; the answers before and of the
            retrained model are those of recorded runs of `untouched` and `retrained`, and None where there are none.
        """
        import pandas as pd

        return pd.DataFrame(
            [
                {"run": result.spec.run_id, "method": result.spec.method, **asdict(sample)}
                for result in self
                for sample in samples_of(result, self.store, task)
            ]
        )

    def compare(self, against: str = "", budget: float | None = None) -> Comparison:
        """By how much these runs' methods differ, at their last points or at a budget of damage, on the same rows.

        Args:
            against: the method that all others are compared with; each with each if empty.
            budget: the damage at which runs with budgets are compared, one of theirs; no other runs have any.

        Raises:
            UsageError: if the runs are of several benchmarks, models or settings, none is of that method, or they have budgets
                and none of these is named.
        """
        named: dict[str, list[tuple[RunSpec, int]]] = {}
        for result in self:
            if (index := _compared_at(result, budget)) is not None:
                named.setdefault(result.spec.method, []).append((result.spec, index))
        if against and against not in named:
            raise UsageError(f"none of these runs is of {against}; there are: {', '.join(sorted(named)) or 'none'}.")
        if len({comparable(result.spec) for result in self}) > 1:
            raise UsageError("these runs are not all on one benchmark, model and data; load_runs(path, bench=…) picks them.")
        for method, runs in named.items():
            if len({str(sorted(spec.settings.items(), key=str)) for spec, _ in runs}) > 1:
                raise UsageError(f"these runs of {method} differ in their settings; compare those of one setting.")
        return Comparison(differences(named, self.store, against or None))

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in _cells(r))}</tr>" for r in self[:MOST_SHOWN])
        more = f"<p>and {len(self) - MOST_SHOWN} more</p>" if len(self) > MOST_SHOWN else ""
        heads = "".join(f"<th>{head}</th>" for head in ("benchmark", "model", "method", "seed", "status", "last point"))
        return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>{more}"


def _compared_at(result: RunResult, budget: float | None) -> int | None:
    """The index of the point that a run is compared at; None where it has none.

    Raises:
        UsageError: if it has budgets and none of them is named, or it has none and one is.
    """
    spec = result.spec
    if budget is None and spec.budgets:
        known = ", ".join(f"{each:g}" for each in spec.budgets)
        raise UsageError(f"run {spec.run_id} has points at several damages ({known}): compare(budget=…) says at which.")
    if budget is not None and not spec.budgets:
        raise UsageError(f"run {spec.run_id} has no budgets; run it with budgets, or compare without one.")
    if budget is not None and budget not in spec.budgets:
        raise UsageError(
            f"run {spec.run_id} has no budget {budget:g}; it has {', '.join(f'{each:g}' for each in spec.budgets)}."
        )
    indices = [point.index for point in result.points if budget is None or point.budget == budget]
    return indices[-1] if indices else None


def _cells(result: RunResult) -> list[str]:
    if result.spec.budgets:
        spec = result.spec
        return [spec.bench, spec.model, spec.method, str(spec.seed), result.status, met_in_short(result)]
    last = result.points[-1].measurements if result.points else ()
    values = [f"{m.metric} {of_unit(m.value, m.unit)}" for m in last if isinstance(m, Measurement)]
    spec = result.spec
    return [spec.bench, spec.model, spec.method, str(spec.seed), result.status, ", ".join(values[:4])]
