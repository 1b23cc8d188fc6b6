"""Evaluation logs of other programs: the metrics of one that is read, and a run written in their form."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from harness.core.benchmark import BENCHMARKS, LOG_MARK, Benchmark
from harness.core.errors import UsageError
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan, Reference
from harness.core.measurement import Absent, Measurement
from harness.core.options import Variant
from harness.running.measuring import measure
from harness.statistics.measurements import of_summary
from harness.storage.cache import disk_errors
from harness.storage.record_writing import replace_file
from harness.storage.records import RunResult
from harness.storage.store import Store


def score_log(
    benchmark: Benchmark, log_file: Path, reference: Path | None, variant: Variant
) -> dict[str, list[Measurement | Absent]]:
    """The metrics of a log that another program wrote, and of its reference, by this project's definitions.

    Measured are the benchmark's own evaluators, and of those in `benchmark.in_logs` the ones that the log holds rows for. Of a
    summary, which holds no rows, it is that program's own numbers.

    Args:
        benchmark: whose log it is.
        log_file: the log.
        reference: a retrained model's log on the same rows, for forget quality; of a summary, its summary.
        variant: whose definitions.

    Returns:
        name of the log → its measurements, the scored one first.

    Raises:
        UsageError: for a file that is no such log, a reference with other rows, or definitions that the benchmark has not.
    """
    if variant not in (known := getattr(benchmark, "variant_versions", ("original",))):
        raise UsageError(f"{benchmark.name} has the definitions {' and '.join(known)}; take one of them in place of {variant}.")
    in_logs: Mapping[str, Collection[str]] = getattr(benchmark, "in_logs", {})
    heading = _heading(benchmark, log_file)
    if (summary := _summary(benchmark, log_file)) is not None:
        plan = EvalPlan(evaluators=[*benchmark.evaluators(), *map(EVALUATORS.get, in_logs)], variant=variant)
        return _of_summaries(plan, {heading: summary}, (_summary(benchmark, reference), reference))
    tables = benchmark.read_log(log_file)
    columns = {column for table in tables.values() for column in table}
    more = [EVALUATORS.get(name) for name, needs in in_logs.items() if columns & set(needs)]
    plan = EvalPlan(evaluators=[*benchmark.evaluators(), *more], variant=variant)
    references = [Reference(reference.stem, benchmark.read_log(reference))] if reference else []
    contexts = {heading: EvalContext(None, plan, references, dict(tables))}
    for other in references:
        contexts[f"{other.name} (reference)"] = EvalContext(None, plan, references, dict(other.tables))
    return {name: measure(context, "as logged") for name, context in contexts.items()}


def _heading(benchmark: Benchmark, path: Path) -> str:
    """A log's name, and whose it is where that is known."""
    maker = getattr(benchmark, "log_maker", lambda path: "")(path)
    return f"{path.stem} ({maker})" if maker else path.stem


def _summary(benchmark: Benchmark, path: Path | None) -> Mapping[str, float] | None:
    read = getattr(benchmark, "read_summary", None)
    summary: Mapping[str, float] | None = read(path) if read and path else None
    return summary


def _of_summaries(
    plan: EvalPlan, summaries: Mapping[str, Mapping[str, float]], reference: tuple[Mapping[str, float] | None, Path | None]
) -> dict[str, list[Measurement | Absent]]:
    """Numbers as a summary says them, beside those of a retrained model's summary."""
    beside, path = reference
    if path and beside is None:
        raise UsageError(f"{path.name} holds rows and the log is a summary: give the retrained model's summary, or both logs.")
    declared = {metric.name: (e.version_for(plan), metric) for e in plan.evaluators for metric in e.metrics_of(plan)}
    every = {**summaries, **({f"{path.stem} (reference)": beside} if path and beside else {})}
    scored: dict[str, list[Measurement | Absent]] = {}
    for heading, numbers in every.items():
        scored[heading] = []
        for name, value in numbers.items():
            version, metric = declared.get(name, (1, None))
            scored[heading].append(of_summary(name, value, version, metric, (beside or {}).get(name)))
    return scored


def write_log(result: RunResult, store: Store, folder: Path) -> list[Path]:
    """Write what a run's last point measured as the files of another program, marked as ours.

    Args:
        result: the run.
        store: where it is recorded.
        folder: gets the files; made if it is not there.

    Raises:
        UsageError: for a benchmark without such a form, a run without rows, files that are there, or as that form says.
    """
    spec = result.spec
    write = getattr(BENCHMARKS.get(spec.bench), "write_log", None)
    if write is None:
        raise UsageError(f"no other program's logs are written of {spec.bench}.")
    rows = store.rows(spec, result.points[-1].index) if result.points else None
    if rows is None:
        raise UsageError(f"run {spec.run_id} has no rows on record; run it with --rows last, or all.")
    numbers = {m.metric: m.value for m in result.points[-1].measurements if isinstance(m, Measurement)}
    files: Mapping[str, Mapping[str, object]] = write(rows, numbers, spec.variant)
    paths = [folder / name for name in files]
    if existing := next((path for path in paths if path.exists()), None):
        raise UsageError(f"{existing} is there already; give --out another folder.")
    with disk_errors("the folder", "Free some space or choose another with --out"):
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in zip(paths, files.values(), strict=True):
            marked = {**content, LOG_MARK: f"unlearning-harness, run {spec.run_id}"}
            replace_file(path, json.dumps(marked, indent=4).encode())
    return paths
