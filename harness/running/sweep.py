"""Several runs: the methods of one command, a grid of settings, or as many trials for every method. Finished ones are skipped.

Every trial is an ordinary record in the store; what is chosen from them is chosen by reading records. Where they are done is an
executor's business (`harness/running/executors.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.core.errors import UsageError, unknown
from harness.core.measurement import Measurement
from harness.running.plan import Plan
from harness.running.provenance import made_by_other_code
from harness.running.run import attempt
from harness.running.trials import EvalPlans, TrialSpec
from harness.storage.cache import Cache
from harness.storage.records import SCHEMA_VERSION, RunResult
from harness.storage.store import Store

if TYPE_CHECKING:
    from harness.running.executors import Executor

log = logging.getLogger(__name__)


def check_metric(plans: Sequence[Plan]) -> None:
    """Refuse a metric to choose settings by that none of the plans' evaluators declares.

    Raises:
        UsageError: with the nearest one.
    """
    chosen_by = {todo.trial.metric for todo in plans if todo.trial} - {""}
    if not chosen_by:
        return
    known = {m.name for todo in plans for evaluator in todo.eval_plan.evaluators for m in evaluator.metrics_of(todo.eval_plan)}
    for metric in chosen_by - known:
        raise unknown("metric of these evaluators", metric, known, "harness list evals")


def run_all(
    plans: Sequence[Plan],
    store: Store,
    cache: Cache,
    force: bool = False,
    report: Callable[[RunResult], None] = lambda result: None,
) -> list[RunResult]:
    """Do every run, or find it done.

    Args:
        plans: in this order; all are decided before the first one starts, so that a slip costs nothing.
        store: where records go.
        cache: where trained models, curvature and texts are kept.
        force: do finished ones anew.
        report: is shown each result as it comes.

    Returns:
        The results in the same order; one that broke off for whatever reason, or was refused when it started (it does not
        fit, say), has status `failed` and the points it came to.
    """
    results = []
    for todo in plans:
        result = None if force else _done(todo, store)
        if result is None:
            result = _ended(todo, store, attempt(todo, store, cache, force))
        results.append(result)
        report(result)
    return results


def run_trials(
    trials: Sequence[TrialSpec],
    store: Store,
    cache: Cache,
    executor: Executor,
    report: Callable[[int, RunResult], None] = lambda index, result: None,
) -> list[RunResult]:
    """Do every trial, or find it done.

    Args:
        trials: all are planned before the first one starts, so that a slip costs nothing.
        store: where records go.
        cache: where trained models, curvature and texts are kept.
        executor: where they are done.
        report: is shown each result and its position as it comes, those found done first.

    Returns:
        The results in the order of the trials. One that is not done has its reason in `error`.
    """
    eval_plans: EvalPlans = {}
    plans = [todo.plan(eval_plans) for todo in trials]
    check_metric(plans)
    results: dict[int, RunResult] = {}
    for index, todo in enumerate(plans):
        if recorded := _done(todo, store):
            results[index] = replace(recorded, trial=recorded.trial or todo.trial)
            report(index, results[index])
    left = [index for index in range(len(trials)) if index not in results]
    for place, error in executor([trials[index] for index in left], store, cache, False) if left else ():
        index = left[place]
        results[index] = _ended(plans[index], store, error)
        report(index, results[index])
    return [results[index] for index in range(len(trials))]


def _recorded(todo: Plan, store: Store) -> RunResult | None:
    """The record of a run, if there is one that can be read; the run itself tells what is wrong with it."""
    try:
        return store.find(todo.spec)
    except UsageError:
        return None


def _done(todo: Plan, store: Store) -> RunResult | None:
    """The record of a run that is done; a plug-in that has changed since is told of."""
    recorded = _recorded(todo, store)
    if recorded is None or recorded.status != "done":
        return None
    if changed := made_by_other_code(recorded):
        log.warning("%s; it is shown as recorded, and --force runs it anew", changed)
    return recorded


def _ended(todo: Plan, store: Store, error: str) -> RunResult:
    """How a run ended: what is recorded of it, else why nothing is.

    Args:
        todo: the run.
        store: where its record may lie.
        error: why it is not done, or an empty text.
    """
    recorded = _recorded(todo, store)
    if recorded is None or (error and recorded.status == "done"):  # a refusal leaves the record of an earlier run in place
        return RunResult(
            schema_version=SCHEMA_VERSION,
            spec=todo.spec,
            status="failed",
            error=error or "it left no record",
            selection=todo.selection,
            trial=todo.trial,
        )
    return replace(recorded, error=recorded.error or error)


def last_value(result: RunResult, metric: str) -> float | None:
    """A metric at a run's last point, if it was measured."""
    points = result.points[-1:]
    return next((m.value for p in points for m in p.measurements if isinstance(m, Measurement) and m.metric == metric), None)
