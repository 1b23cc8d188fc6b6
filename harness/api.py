"""The Python door: what the command line does, with results that can be looked at and counted on.

    import harness

    runs = harness.run("kfade", bench="tofu10", settings={"target_kl": 0.1})
    runs.table()                                   # a pandas table: one row a run, point and metric
    harness.run(["kfade", "npo"], bench="tofu10").compare("kfade")   # by how much they differ, on the same rows

The keywords are the command line's flags (`harness run --help`), made into the same request. Importing this costs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from harness.core.errors import RunFailed, UsageError
from harness.core.fields import from_python, read
from harness.core.workers import reads_the_script
from harness.reading.runs import Comparison, Runs
from harness.running.request import RunFields, RunRequest, SweepFields, SweepRequest

if TYPE_CHECKING:
    from harness.storage.records import RunResult

RESULTS = "harness-results"
"""Where records go if nothing else is said: in the current folder, as on the command line."""
PathLike = str | Path
Names = str | Sequence[str]


def run(method: Names, *, bench: str, results: PathLike = RESULTS, force: bool = False, **request: Unpack[RunFields]) -> Runs:
    """Unlearn, measure and record; a run that is done is taken from its record.

    Args:
        method: with what, or several of them.
        bench: the benchmark, such as `tofu10`.
        results: where records go.
        force: run anew even if it is done.
        request: what else a run can be asked; see `harness.running.request.RunRequest`.

    Returns:
        One result for each method.

    Raises:
        UsageError: for anything that is not known, not allowed or not there.
        RunFailed: if a run broke off; what it came to is on record.
    """
    from harness.running.sweep import run_all
    from harness.storage.cache import Cache
    from harness.storage.store import Store

    _check_script()
    wanted = read(RunRequest, from_python(RunRequest, {"method": method, "bench": bench, **request}))
    store = Store(Path(results))
    return Runs(_all_done(run_all(wanted.plans(), store, Cache(), force)), store)


def sweep(
    method: Names,
    *,
    bench: Names,
    results: PathLike = RESULTS,
    jobs: int = 1,
    executor: str = "local",
    **request: Unpack[SweepFields],
) -> Runs:
    """Run a grid of settings; finished runs are taken from their records.

    Args:
        method: with what, or several of them.
        bench: the benchmark, or several of them.
        results: where records go.
        jobs: so many runs at a time, each in a process of its own.
        executor: `local`, or `ray`.
        request: what else a sweep can be asked; see `harness.running.request.SweepRequest`.

    Returns:
        One result for each trial, in order.

    Raises:
        UsageError: for anything that is not known, not allowed or not there.
        RunFailed: if a run broke off; the others are done and on record.
    """
    from harness.running.executors import executor_of
    from harness.running.sweep import run_trials
    from harness.storage.cache import Cache
    from harness.storage.store import Store

    _check_script()
    wanted = read(SweepRequest, from_python(SweepRequest, {"method": method, "bench": bench, **request}))
    store = Store(Path(results))
    return Runs(_all_done(run_trials(wanted.sweep().trials(), store, Cache(), executor_of(executor, jobs))), store)


def _check_script() -> None:
    """Refuse what a script asks for while a sweep's worker reads it: it would be asked for again in each."""
    if reads_the_script():
        raise UsageError(
            "with jobs every worker of a sweep reads the script again, and comes to this line. Put what begins runs under "
            '`if __name__ == "__main__":`.'
        )


def load_runs(path: PathLike = RESULTS, *, bench: str = "", method: Names = ()) -> Runs:
    """The runs that are recorded.

    Args:
        path: a results folder.
        bench: only those on this benchmark.
        method: only those of these methods.

    Raises:
        UsageError: if it is no results folder; for a benchmark or a method that neither is here nor was ever run.
    """
    from harness.reading.named import check_names
    from harness.storage.store import Store

    store = Store(Path(path))
    store.check()
    methods = [method] if isinstance(method, str) else method
    every = list(store.runs())
    check_names(bench, methods, (result.spec.bench for result in every), (result.spec.method for result in every))
    wanted = [r for r in every if (not bench or r.spec.bench == bench) and (not methods or r.spec.method in methods)]
    return Runs(wanted, store)


def compare(runs: Runs, against: str = "", budget: float | None = None) -> Comparison:
    """By how much methods differ on the same rows; see `Runs.compare`."""
    return runs.compare(against, budget)


def _all_done(results: Iterable[RunResult]) -> list[RunResult]:
    """The results.

    Raises:
        RunFailed: naming those that are not done.
    """
    every = list(results)
    broken = [result for result in every if result.status != "done"]
    if broken:
        reasons = "; ".join(f"{r.spec.method} ({r.status}): {r.error.partition(chr(10))[0]}" for r in broken)
        raise RunFailed(f"{len(broken)} of {len(every)} runs are not done: {reasons}")
    return every


__all__ = ["RunFailed", "UsageError", "compare", "load_runs", "run", "sweep"]
