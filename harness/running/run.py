"""One run that is planned, top to bottom: prepare the models, measure the references, unlearn, measure the points."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache as memoise
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.core.arithmetic import in_words
from harness.core.benchmark import BENCHMARKS
from harness.core.config import JSON
from harness.core.costs import Costs
from harness.core.errors import Diverged, RunFailed, UsageError, reason
from harness.core.evaluator import EvalContext, Reference
from harness.core.memory import ran_out, trim_heap
from harness.core.method import UnlearningContext
from harness.models.export import ExportOptions
from harness.numerics import group, sharding
from harness.numerics.shared_cache import SharedCache
from harness.running.failures import give_back_memory, outcome
from harness.running.measuring import measure, source_tables
from harness.running.places import Places
from harness.running.plan import Plan
from harness.running.provenance import made_by_other_code, provenance_of
from harness.running.sharded import sharded, sharding_notes
from harness.storage.cache import Cache, disk_errors
from harness.storage.record_writing import Record
from harness.storage.records import SCHEMA_VERSION, Point, Provenance, RunResult
from harness.storage.store import Store
from harness.storage.temporary import sweep, temporary_folder

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.numerics.generation import Generator

log = logging.getLogger(__name__)


def execute(todo: Plan, store: Store, cache: Cache, exports: ExportOptions | None = None, force: bool = False) -> RunResult:
    """Do a run, or what is left of it; a run that is done is returned as it is recorded, and its record stays as it is.

    Args:
        todo: from `harness.running.plan`.
        store: where its record goes.
        cache: where trained models, curvature and texts are kept.
        exports: what else to write at the end; for it a run that is done is unlearned once more, without being measured.
        force: do it anew even if it is done.

    Raises:
        UsageError: for what the user can put right; a run without points then leaves no record, one that is done stays done.
        RunFailed: if the run broke off by itself (a loss that is not finite, or no memory left).
        KeyboardInterrupt: after marking the run as interrupted.
    """
    sweep()
    exports = exports or ExportOptions()
    exports.check()
    with store.open(todo.spec, force) as record:
        if record.result.status == "done":
            if exports:
                with outcome(todo, record, store):
                    _unlearn_again(todo, record, cache, exports)
            return record.result
        result = RunResult(
            schema_version=SCHEMA_VERSION,
            spec=todo.spec,
            status="interrupted",
            selection=todo.selection,
            trial=todo.trial,
            notes=[*todo.problem.notes, *sharding_notes(todo)],
        )
        if not record.written:
            record.result = result
        record.keep_whole_points(todo.options.rows)
        if record.points and (changed := made_by_other_code(record.result)):
            log.warning("%s; its points are measured anew", changed)
            record.keep_points(0)
        with outcome(todo, record, store):
            return _execute(todo, store, record, result, cache, exports)


def attempt(todo: Plan, store: Store, cache: Cache, force: bool = False) -> str:
    """Do a run as `execute` does; whatever goes wrong with it is told, not raised, so that the runs after it go on.

    Returns:
        Why it is not done, or an empty text.
    """
    try:
        execute(todo, store, cache, force=force)
        return ""
    except group.ProcessLost:
        raise  # no run after it could be shared either
    except Exception as error:
        log.debug("a run broke off", exc_info=True)
        message = reason(error)
    give_back_memory(cache)  # only here does nothing refer to the error any more, and by its frames to the model
    return message


def follow(plans: Sequence[Plan], cache: Cache) -> None:
    """Take part in the runs that the first process of a group announces: their work is shared, all else is the first one's.

    Args:
        plans: of the same command, in any order.
        cache: the one that the first process has.

    Raises:
        UsageError: for a model whose weights are not those that the first process has.
        RunFailed: if another process has ended, or no memory is left.
    """
    by_number = {_number(todo): todo for todo in plans}
    run = group.awaited()
    while run != group.END:
        try:
            _take_part(by_number[run], cache)
            run = group.awaited()
        except group.MovedOn as broken_off:
            run = broken_off.run
        except Diverged:  # on all processes
            run = group.awaited()


def _take_part(todo: Plan, cache: Cache) -> None:
    from harness.models import memory

    try:
        context = _load(todo, cache, ExportOptions())
        _check_weights(context.model)
        for _ in Places(todo, context):
            pass
    except Exception as error:
        if not ran_out(error):
            group.check_lost(error)
            raise
        advice = memory.advice(todo.problem, todo.method, todo.config, todo.options)
        raise RunFailed(f"{advice} Points measured so far are kept.") from error


def _begin_together(todo: Plan, model: PreTrainedModel) -> None:
    """Call the other processes of the group to a run, if there are any."""
    if group.processes() > 1:
        group.announce(_number(todo))
        _check_weights(model)


def _check_weights(model: PreTrainedModel) -> None:
    """Refuse to share a run where the processes do not begin with the same weights."""
    from harness.models.sources import weights_fingerprint

    with group.together():
        mine = int(weights_fingerprint(model)[-12:], 16)
        alike = group.first_says(mine) == mine
        (different,) = group.summed(not alike)
    if different:
        raise UsageError(
            f"{different:g} of {group.processes()} processes have other weights than the first one. "
            "Give all of them the same files."
        )


def _number(todo: Plan) -> int:
    """A run's name, as processes tell it one another."""
    return int(todo.spec.run_id, 16)


def _load(todo: Plan, cache: Cache, exports: ExportOptions, names: Sequence[str] = ()) -> UnlearningContext:
    """The model before unlearning, with all that a method is told; where models are trained, these others along with it."""
    from harness.models import memory
    from harness.models.pretraining import TrainedSource, train_all
    from harness.models.sources import source_digest
    from harness.running.measuring import check_base

    plan, options, costs = todo.eval_plan, todo.options, Costs()
    problem = plan.problem
    memory.check(plan, todo.method, todo.config, options)
    check_base(plan)
    with costs.phase("models"):
        needed = [problem.sources[name] for name in ("base", *names) if name in problem.sources]
        train_all([source for source in needed if isinstance(source, TrainedSource)], cache)
        shards = sharded(todo)
        model, tokenizer = problem.sources["base"].load(cache, "cpu" if shards else options.device, options.dtype)
        if shards:
            sharding.shard(model, options.device)
    exports.check(sum(tensor.nbytes for tensor in model.parameters()))
    kept = SharedCache(cache) if group.processes() > 1 else cache
    context = UnlearningContext(
        model, tokenizer, problem, options.seed, kept, costs, source_digest(problem.sources["base"]), adapter=options.adapter
    )
    return replace(context, optimizer=options.optimizer, recompute=options.recompute)


def _execute(todo: Plan, store: Store, record: Record, result: RunResult, cache: Cache, exports: ExportOptions) -> RunResult:
    from harness.models.sources import weights_fingerprint
    from harness.numerics.generation import choose_generator

    plan = todo.eval_plan
    problem = plan.problem
    generator = choose_generator(todo.spec.generator, todo.options.device)
    context = _load(todo, cache, exports, plan.references)
    _begin_together(todo, context.model)
    costs, before = context.costs, weights_fingerprint(context.model)
    result = _with_provenance(todo, store, result, context, before)
    with costs.phase("references"):
        for evaluator in plan.evaluators:
            evaluator.before(EvalContext(context, plan, ()))
        references, untouched = _references(todo, context, generator, before)
    trim_heap()
    result = replace(result, references=_reference_numbers(todo, references, untouched), costs=costs.phases)
    record.write(result)

    result = _measure_points(todo, record, result, context, _ReferenceTables(references, untouched), generator)
    record.keep_rows(todo.options.rows)
    prompts = {
        name: [(problem.template.prompt(row["question"]), row) for row in rows if "question" in row]
        for name, rows in problem.questions.items()
    }
    store.keep_questions(todo.spec, prompts)
    result = replace(result, status="done", costs=costs.phases, points=tuple(record.points))
    result = replace(result, notes=[*result.notes, *_idle(before, record.points)])
    record.write(result)
    exports.check_met(len(record.points))
    _export(todo, exports, context)  # last: a place that cannot be written costs the copy, not the run
    return result


def _with_provenance(todo: Plan, store: Store, result: RunResult, context: UnlearningContext, before: str) -> RunResult:
    """A result that says what made it, and warns where its models were made otherwise than others, or learned too little."""
    from harness.models.origins import badly_learned, made_elsewhere

    made = provenance_of(todo.command, todo.spec, context.tokenizer, before, context.model.device)
    used = {name: source for name, source in todo.problem.sources.items() if name in ("base", *todo.eval_plan.references)}
    others = [*made_elsewhere(used, context.cache), *_began_otherwise(todo, store, made), *badly_learned(used, context.cache)]
    for note in others:
        log.warning("%s", note)
    return replace(result, provenance=made, notes=[*result.notes, *others])


class _ReferenceTables(NamedTuple):
    """What the measured points are compared with."""

    references: list[Reference]
    """Retrained models."""
    untouched: Mapping[str, pd.DataFrame]
    """The tables of the model before unlearning."""


def _references(todo: Plan, context: UnlearningContext, generator: Generator, before: str) -> _ReferenceTables:
    """The retrained models' tables, and those of the model before unlearning, whose weights are `before`."""
    plan, sources = todo.eval_plan, todo.problem.sources
    tables_of = partial(source_tables, plan=plan, options=todo.options, cache=context.cache, generator=generator)
    references = [Reference(name, tables) for name, tables in plan.recorded.items()]
    retrained = {name: tables_of(sources[name]) for name in plan.references if name not in plan.recorded}
    references += [Reference(name, measured.tables) for name, measured in retrained.items()]
    untouched = tables_of(sources["base"], loaded=(context.model, context.tokenizer, before)).tables
    for same in (name for name, measured in retrained.items() if measured.weights == before):
        log.warning("%s has the very weights of the model before unlearning: is it the same checkpoint?", same)
    return _ReferenceTables(references, untouched)


def _reference_numbers(todo: Plan, references: Sequence[Reference], untouched: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """The numbers of the model before unlearning, and of the retrained one if there is one."""
    context = EvalContext(None, todo.eval_plan, references, dict(untouched), untouched)
    numbers = {"untouched": measure(context, todo.selection)}
    if references:
        numbers["retrained"] = measure(context.of(references[0]), todo.selection)
    return numbers


def _measure_points(
    todo: Plan,
    record: Record,
    result: RunResult,
    context: UnlearningContext,
    beside: _ReferenceTables,
    generator: Generator,
) -> RunResult:
    """Unlearn, and add to the record each point that it does not hold yet; the result says what came of the budgets."""
    import torch

    from harness.models.sources import weights_fingerprint

    costs, index = context.costs, 0
    places = Places(todo, context)
    for progress in places:
        weights = weights_fingerprint(context.model)
        if index < len(record.points) and record.points[index].weights != weights:
            log.warning("the replay came to other weights than point %d was measured on; it is measured anew", index)
            record.keep_points(index)
        if index == len(record.points):
            gpus = range(torch.cuda.device_count())
            with costs.phase("evaluation"), torch.random.fork_rng(gpus), temporary_folder() as folder:
                saved = _saver(context.model, context.tokenizer, folder)
                eval_context = EvalContext(
                    context, todo.eval_plan, beside.references, untouched=beside.untouched, saved_path=saved
                )
                measurements = measure(eval_context, todo.selection, generator, weights)
            point = Point(
                index=index,
                step=progress.step,
                logged={k: v if math.isfinite(v) else None for k, v in progress.logged.items()},
                measurements=measurements,
                weights=weights,
                unlearn_seconds=places.seconds,
            )
            record.add(point, eval_context.tables, eval_context.generations)
            record.write(replace(result, costs=costs.phases))
            trim_heap()
        index += 1
    record.keep_points(index)
    return replace(result, notes=[*result.notes, *places.notes], unreached=places.unreached)


def _idle(before: str, points: Sequence[Point]) -> Iterator[str]:
    """What a reader must know of a method that took steps and moved nothing, or by its weight decay alone."""
    if not points or points[-1].step == 0:
        return
    if points[-1].weights == before:
        yield "after the last step the weights are, bit by bit, those before unlearning: nothing was unlearned"
    if all(point.logged.get("gradient_norm") == 0 for point in points):
        yield "the gradient was 0 at every measured step: nothing was learned from the forget set"


def _began_otherwise(todo: Plan, store: Store, made: Provenance) -> list[str]:
    """One sentence where runs on the same model, trained on the spot, are recorded that began with other weights."""
    from harness.models.pretraining import TrainedSource

    earlier = (
        store.began_otherwise(todo.spec, made.weights) if isinstance(todo.problem.sources["base"], TrainedSource) else None
    )
    if earlier is None:
        return []
    machine = in_words(earlier.arithmetic) or f"{earlier.processor}, nothing else is recorded of it"
    return [
        f"runs recorded here began with other weights of this very model (made on {machine}; here {in_words(made.arithmetic)})"
        ": what this run differs from them by is not the methods' alone."
    ]


def _unlearn_again(todo: Plan, record: Record, cache: Cache, exports: ExportOptions) -> None:
    """Make the model of a run that is done once more and keep it, if it is the one that was measured.

    Raises:
        UsageError: if it came to other weights, or met no budget.
    """
    from harness.models.sources import weights_fingerprint

    exports.check_met(len(record.points))
    context, reached = _load(todo, cache, exports), ""
    _begin_together(todo, context.model)
    step, recorded = record.points[-1].step, record.points[-1].weights
    for progress in Places(todo, context):  # the last place counts, and a fingerprint reads every weight
        reached = weights_fingerprint(context.model) if progress.step in (step, progress.total) else ""
    if not reached or reached != recorded:
        raise UsageError(
            f"run {todo.spec.run_id} came to other weights now ({reached or 'none'}) than it was measured on "
            f"({recorded or 'none'}): another kind of machine, or other versions of libraries. Nothing is kept of it, "
            "and its record stays; --force measures it anew, or record it elsewhere with --results."
        )
    _export(todo, exports, context)


def _saver(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Callable[[], Path]:
    @memoise
    def save() -> Path:
        from harness.models.sources import save_checkpoint

        with disk_errors("the temporary folder", "Set TMPDIR to another", within=folder):
            save_checkpoint(model, tokenizer, folder, {})
        return folder

    return save


def _export(todo: Plan, exports: ExportOptions, context: UnlearningContext) -> None:
    """Write the unlearned model, or the difference of its weights from before, where that was asked for."""
    before: Mapping[str, Any] = {}
    if exports.update:
        base, _ = todo.problem.sources["base"].load(context.cache, "cpu", todo.options.dtype)
        before = base.state_dict()
    names = {"run": todo.spec.run_id, "method": todo.spec.method}
    exports.write(context.model, context.tokenizer, _about(todo), before, names)


def _about(todo: Plan) -> dict[str, JSON]:
    """What a later run must know of a saved model: which of the benchmark's it once was, and its questions' template."""
    from harness.models.sources import CheckpointSource, read_sidecar

    problem = todo.problem
    model: JSON = problem.model
    if problem.model.partition("@")[0] not in BENCHMARKS.get(problem.bench).models:
        base = problem.sources["base"]
        model = read_sidecar(base.folder).get("model", "") if isinstance(base, CheckpointSource) else ""
    return {"model": model, "template": problem.template.name, "bench": problem.bench, "run": todo.spec.run_id}
