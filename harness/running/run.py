"""One run, top to bottom: plan it, prepare the models, measure the arms, unlearn, measure the points.

`plan` decides everything without loading anything (no torch), so that a run that is already done is found at once.
"""

from __future__ import annotations

import gc
import logging
import math
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache as memoise
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.arithmetic import in_words
from harness.core.config import JSON, describe, resolve, to_json
from harness.core.costs import Costs
from harness.core.documents import whole_number
from harness.core.errors import Diverged, RunFailed, UsageError, cut, reason, without_secrets
from harness.core.interfaces import (
    BENCHMARKS,
    EVALUATORS,
    METHODS,
    MOST_SEED,
    Form,
    Method,
    Options,
    Progress,
    Reference,
    Setting,
    Subject,
    Task,
)
from harness.core.progress import progress_bar
from harness.core.streams import streams
from harness.models.export import Keep
from harness.numerics.loading import ALL_GPUS
from harness.running.measuring import measure, source_tables
from harness.running.provenance import provenance_of
from harness.storage.cache import Cache, canonical, disk_errors, file_digest
from harness.storage.record_writing import Record
from harness.storage.records import SCHEMA_VERSION, Point, Provenance, RunResult, RunSpec, Status, Trial
from harness.storage.scratch import sweep, temporary_folder
from harness.storage.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A run with everything decided and nothing loaded."""

    spec: RunSpec
    """What names it."""
    task: Task
    """Its data and sources."""
    method: Method[Any]
    """Its method."""
    config: Any
    """The method's settings."""
    options: Options
    """What the command line decided."""
    selection: str
    """On what the settings were chosen."""
    command: str
    """What to type to run it again; without paths."""
    trial: Trial | None = None
    """Its place in a search for settings; not part of what names it."""


def plan(
    bench: str,
    model: str,
    method: str,
    settings: Mapping[str, JSON],
    options: Options,
    recorded: Mapping[str, JSON] | None = None,
    form: Form = "published",
    task: Task | None = None,
) -> Plan:
    """Decide a run.

    Args:
        bench: a benchmark's name.
        model: what is unlearned, as the benchmark names it.
        method: a method's name.
        settings: what differs from the method's defaults and presets.
        options: seed, limit, device and so on.
        recorded: all settings of an earlier run that is to be repeated; `settings` win over them.
        form: which of the method's presets: as published, or tuned.
        task: the benchmark with that model and these options, where it has been read already.

    Raises:
        UsageError: for anything that is not known, not allowed or not there.
    """
    if not 0 <= options.seed <= MOST_SEED:
        raise UsageError(f"the seed {options.seed} is not between 0 and {MOST_SEED:,}.")
    chosen = METHODS.get(method)
    task = task or BENCHMARKS.get(bench).task(model, options)
    if task.retain != options.retain:
        raise UsageError(f"{bench} has one retain set; leave out --retain {options.retain}.")
    if reason := chosen.cannot(task):
        raise UsageError(f"{method} cannot run on {bench} with {cut(model)}: {reason}.")
    family = task.family or task.model.partition("@")[0]
    if options.evals:
        task = replace(task, evaluators=[EVALUATORS.get(name) for name in options.evals])
    task = replace(task, options=options)
    preset = chosen.preset(bench, family, form)
    config = resolve(chosen.config, preset, recorded or {}, settings, owner=method)
    if reason := chosen.clash(task, config):
        raise UsageError(f"{method}: {reason}.")
    slug = Path(model).name if Path(model).is_dir() else task.model
    spec = RunSpec(
        bench=bench,
        bench_version=task.bench_version,
        model=slug,
        sources={name: source.identity for name, source in task.sources.items()},
        method=method,
        method_version=chosen.version,
        config=to_json(config),
        evaluators=task.versions,
        variant=task.variant,
        template=asdict(task.template),
        data=task.data,
        references={name: file_digest(options.reference) for name in task.recorded if options.reference},
        seed=options.seed,
        limit=options.limit,
        dtype=options.dtype,
        device=options.device.partition(":")[0],
        generator=options.generator,
        points=options.points,
        form="tuned" if form == "tuned" and not settings else "",
        basis=task.basis,
        retain=task.retain,
    )
    judge = options.judge if any("judge" in found for found in spec.basis.values()) else None
    selection = f"{form} form: " + (f"preset of {method} for {bench} on {family}" if preset else f"defaults of {method}")
    if recorded:
        selection = "settings of a recorded run"
    if settings:
        selection += f", then {', '.join(sorted(settings))} by hand"
    words = ["harness", "run", "--method", method, "--bench", bench, "--model", slug]
    for key, value in {**_departures(chosen, preset, config), **settings}.items():
        words += ["--set", f"{key}={value if isinstance(value, str) else canonical(value)}"]
    for flag, given, usual in (
        ("--seed", options.seed, 0),
        ("--limit", options.limit, None),
        ("--device", ALL_GPUS if options.device == ALL_GPUS else spec.device, "cpu"),
        ("--dtype", options.dtype, "float32"),
        # Named wherever `auto` might choose otherwise.
        ("--generator", options.generator, "" if spec.device == "cuda" else "hf"),
        ("--variant", options.variant, "original"),
        ("--retain", options.retain, "all"),
        ("--form", form, "published"),
        ("--evals", ",".join(options.evals), ""),
        ("--points", options.points, "all"),
        ("--judge", judge.name if judge else "", ""),
        ("--judge-repetitions", judge.repetitions if judge else 1, 1),
    ):
        if given != usual:
            words += [flag, str(given)]
    if options.reference:
        words += ["--reference", options.reference.name]
    return Plan(spec, task, chosen, config, options, selection, shlex.join(words))


def _departures(chosen: Method[Any], preset: Mapping[str, JSON], config: Any) -> dict[str, JSON]:
    """The settings that are neither the method's defaults nor its preset's."""
    usual = {**{name: default for name, default, _ in describe(chosen.config)}, **preset}
    return {key: value for key, value in to_json(config).items() if value is not None and value != usual.get(key)}


def execute(todo: Plan, store: Store, cache: Cache, keep: Keep | None = None, force: bool = False) -> RunResult:
    """Do a run, or what is left of it; a run that is done is returned as it is recorded, and its record stays as it is.

    Args:
        todo: from `plan`.
        store: where its record goes.
        cache: where trained models, curvature and texts are kept.
        keep: what else to write at the end; for it a run that is done is unlearned once more, without being measured.
        force: do it anew even if it is done.

    Raises:
        UsageError: for what the user can put right; a run without points then leaves no record, one that is done stays done.
        RunFailed: if the run broke off by itself (a loss that is not finite, or no memory left).
        KeyboardInterrupt: after marking the run as interrupted.
    """
    sweep()
    keep = keep or Keep()
    keep.check()
    with store.open(todo.spec, force) as record:
        if record.result.status == "done":
            if keep:
                with _outcome(todo, record, store):
                    _unlearn_again(todo, record, cache, keep)
            return record.result
        result = RunResult(
            schema_version=SCHEMA_VERSION,
            spec=todo.spec,
            status="interrupted",
            selection=todo.selection,
            trial=todo.trial,
            notes=list(todo.task.notes),
        )
        if not record.written:
            record.result = result
        record.keep_whole_points(todo.options.rows == "last")
        with _outcome(todo, record, store):
            return _execute(todo, store, record, result, cache, keep)


def attempt(todo: Plan, store: Store, cache: Cache, force: bool = False) -> str:
    """Do a run as `execute` does; whatever goes wrong with it is told, not raised, so that the runs after it go on.

    Returns:
        Why it is not done, or an empty text.
    """
    try:
        execute(todo, store, cache, force=force)
        return ""
    except Exception as error:
        log.debug("a run broke off", exc_info=True)
        told = reason(error)
    _let_go(cache)  # only here does nothing refer to the error any more, and by its frames to the model
    return told


def _let_go(cache: Cache) -> None:
    """Give back the memory of a run that broke off, so that the next one has it."""
    cache.let_go()
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _load(todo: Plan, cache: Cache, keep: Keep, names: Sequence[str] = ()) -> Setting:
    """The model before unlearning, with all that a method is told; where models are trained, these others along with it."""
    from harness.models import memory
    from harness.models.pretraining import TrainedSource, train_all
    from harness.models.sources import source_digest
    from harness.running.measuring import check_base

    task, options, costs = todo.task, todo.options, Costs()
    memory.check(task, todo.method, todo.config, options)
    check_base(task)
    with costs.phase("models"):
        needed = [task.sources[name] for name in ("base", *names) if name in task.sources]
        train_all([source for source in needed if isinstance(source, TrainedSource)], cache)
        model, tokenizer = task.sources["base"].load(cache, options.device, options.dtype)
    keep.check(sum(tensor.nbytes for tensor in model.parameters()))
    return Setting(model, tokenizer, task, options.seed, cache, costs, source_digest(task.sources["base"]))


def _execute(todo: Plan, store: Store, record: Record, result: RunResult, cache: Cache, keep: Keep) -> RunResult:
    import torch

    from harness.models.pretraining import made_elsewhere
    from harness.models.sources import weights_fingerprint
    from harness.numerics.generation import choose_generator

    task, options = todo.task, todo.options
    generator = choose_generator(todo.spec.generator, options.device)
    setting = _load(todo, cache, keep, task.references)
    model, tokenizer, costs = setting.model, setting.tokenizer, setting.costs
    before = weights_fingerprint(model)
    made = provenance_of(todo.command, todo.spec.device, tokenizer, before)
    used = {name: source for name, source in task.sources.items() if name in ("base", *task.references)}
    others = [*made_elsewhere(used, cache), *_began_otherwise(todo, store, made)]
    for note in others:
        log.warning("%s", note)
    result = replace(result, provenance=made, notes=[*result.notes, *others])

    with costs.phase("references"):
        for evaluator in task.evaluators:
            evaluator.before(setting)
        tables_of = partial(source_tables, task=task, options=options, cache=cache, generator=generator)
        references = [Reference(name, tables) for name, tables in task.recorded.items()]
        retrained = {name: tables_of(task.sources[name]) for name in task.references if name not in task.recorded}
        references += [Reference(name, found.tables) for name, found in retrained.items()]
        untouched = tables_of(task.sources["base"], loaded=(model, tokenizer, before)).tables
        for same in (name for name, found in retrained.items() if found.weights == before):
            log.warning("%s has the very weights of the model before unlearning: is it the same checkpoint?", same)
    arms = {"untouched": measure(task, Subject(None, task, references, dict(untouched)), todo.selection)}
    if references:
        arms["retrained"] = measure(task, Subject(None, task, references, dict(references[0].tables)), todo.selection)
    result = replace(result, arms=arms, costs=costs.phases)
    record.write(result)

    index = 0
    for progress in _measured_places(todo, setting):
        weights = weights_fingerprint(model)
        if index < len(record.points) and record.points[index].weights != weights:
            log.warning("the replay came to other weights than point %d was measured on; it is measured anew", index)
            record.keep_points(index)
        if index == len(record.points):
            with costs.phase("evaluation"), torch.random.fork_rng(), temporary_folder() as folder:
                subject = Subject(setting, task, references, saved_path=_saver(model, tokenizer, folder))
                measurements = measure(task, subject, todo.selection, generator, weights)
            point = Point(
                index=index,
                step=progress.step,
                logged={k: v if math.isfinite(v) else None for k, v in progress.logged.items()},
                measurements=measurements,
                weights=weights,
                unlearn_seconds=costs.phases["unlearning"].full_seconds,
            )
            record.add(point, subject.tables, subject.generations)
            record.write(replace(result, costs=costs.phases))
        index += 1
    record.keep_points(index)
    if options.rows == "last":
        record.keep_last_rows()
    asked = {
        name: [(task.template.prompt(row["question"]), row) for row in rows if "question" in row]
        for name, rows in task.questions.items()
    }
    store.keep_questions(todo.spec, asked)
    result = replace(result, status="done", costs=costs.phases, points=tuple(record.points))
    result = replace(result, notes=[*result.notes, *_idle(before, record.points)])
    record.write(result)
    _keep(todo, keep, setting)  # last: a place that cannot be written costs the copy, not the run
    return result


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

    earlier = store.began_otherwise(todo.spec, made.weights) if isinstance(todo.task.sources["base"], TrainedSource) else None
    if earlier is None:
        return []
    there = in_words(earlier.arithmetic) or f"{earlier.processor}, nothing else is recorded of it"
    return [
        f"runs recorded here began with other weights of this very model (made on {there}; here {in_words(made.arithmetic)}): "
        "what this run differs from them by is not the methods' alone."
    ]


def _unlearn_again(todo: Plan, record: Record, cache: Cache, keep: Keep) -> None:
    """Make the model of a run that is done once more and keep it, if it is the one that was measured.

    Raises:
        UsageError: if it came to other weights.
    """
    from harness.models.sources import weights_fingerprint

    setting, reached = _load(todo, cache, keep), ""
    step, recorded = (record.points[-1].step, record.points[-1].weights) if record.points else (None, "")
    for progress in _measured_places(todo, setting):  # the last place counts, and a fingerprint reads every weight
        reached = weights_fingerprint(setting.model) if progress.step in (step, progress.total) else ""
    if not reached or reached != recorded:
        raise UsageError(
            f"run {todo.spec.run_id} came to other weights now ({reached or 'none'}) than it was measured on "
            f"({recorded or 'none'}): another kind of machine, or other versions of libraries. Nothing is kept of it, "
            "and its record stays; --force measures it anew, or record it elsewhere with --results."
        )
    _keep(todo, keep, setting)


@contextmanager
def _outcome(todo: Plan, record: Record, store: Store) -> Iterator[None]:
    """Write down how a run ended when it did not end well."""
    from harness.models import memory

    def ended(status: Status, error: str) -> None:
        if record.result.status == "done":
            return  # what went wrong came after it, such as a place where its model cannot be kept
        # A forced run that never began leaves the earlier record.
        if record.written or (status == "failed" and store.status(todo.spec) is None):
            record.write(replace(record.result, status=status, error=error))

    try:
        yield
    except KeyboardInterrupt as stop:  # or a signal that ends a command, with its reason
        ended("interrupted", str(stop) or "interrupted from the keyboard")
        raise
    except UsageError as error:
        if record.points:
            ended("failed", without_paths(str(error)))
        elif record.result.status != "done":
            record.discard()
        raise
    except Diverged as error:
        ended("failed", without_paths(str(error)))
        raise RunFailed(f"{todo.method.name} broke off: {error}. Points measured so far are kept.") from error
    except Exception as error:
        if memory.ran_out(error):
            advice = memory.advice(todo.method, todo.config, todo.options)
            ended("failed", f"{advice}\n{_frames(error)}")
            raise RunFailed(f"{advice} Points measured so far are kept.") from error
        ended("failed", _frames(error))
        raise


def _frames(error: Exception) -> str:
    """The error and where it happened, files named relative to the package."""
    frames = [
        f"{Path(*Path(f.filename).parts[-2:]).as_posix()}:{f.lineno} {f.name}"
        for f in traceback.extract_tb(error.__traceback__)
    ]
    return "\n".join([without_paths(f"{type(error).__name__}: {error}"), *frames])


def without_paths(text: str) -> str:
    """A message whose absolute paths are cut to their last part: records hold no path of the machine, and no secret."""
    return re.sub(r"(?<![\w./:~-])(?:/|[A-Za-z]:\\)(?:[^\s/\\'\"]+[/\\])+", "…/", without_secrets(text))


def _measured_places(todo: Plan, setting: Setting) -> Iterator[Progress]:
    """The method's progress where a point is measured."""
    streams(todo.options.seed, "run").seed_torch()
    for progress in _unlearning(todo, setting):
        if progress.measure_here and (todo.options.points == "all" or progress.step == progress.total):
            yield progress


def _unlearning(todo: Plan, setting: Setting) -> Iterator[Progress]:
    """The method's progress; the clock runs, and the bar moves, only inside it."""
    steps = todo.method.unlearn(setting, todo.config)
    with progress_bar(desc=todo.method.name, unit="step") as bar:
        while True:
            with setting.costs.phase("unlearning"):
                progress = next(steps, None)
            if progress is None:
                return
            bar.total = progress.total
            bar.update(progress.step - bar.n)
            yield progress


def _saver(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Callable[[], Path]:
    @memoise
    def save() -> Path:
        from harness.models.sources import save_checkpoint

        with disk_errors("the temporary folder", "Set TMPDIR to another", within=folder):
            save_checkpoint(model, tokenizer, folder, {})
        return folder

    return save


def _keep(todo: Plan, keep: Keep, setting: Setting) -> None:
    """Write the unlearned model, or the difference of its weights from before, where that was asked for."""
    before: Mapping[str, Any] = {}
    if keep.update:
        base, _ = todo.task.sources["base"].load(setting.cache, "cpu", todo.options.dtype)
        before = base.state_dict()
    keep.write(setting.model, setting.tokenizer, _about(todo), before, {"run": todo.spec.run_id, "method": todo.spec.method})


def _about(todo: Plan) -> dict[str, JSON]:
    """What a later run must know of a saved model: which of the benchmark's it once was, and its questions' template."""
    from harness.models.sources import CheckpointSource, read_sidecar

    task = todo.task
    model: JSON = task.model
    if task.model.partition("@")[0] not in BENCHMARKS.get(task.bench).models:
        base = task.sources["base"]
        model = read_sidecar(base.folder).get("model", "") if isinstance(base, CheckpointSource) else ""
    return {"model": model, "template": task.template.name, "bench": task.bench, "run": todo.spec.run_id}


def pick_device(asked: str) -> str:
    """`auto` as the best device that is here; any other name checked.

    Torch is only asked where a GPU driver can be seen, so that a CPU run that is already done needs no torch.

    Raises:
        UsageError: for a device that is not there.
    """
    if asked == "cpu" or (asked == "auto" and not (Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists())):
        return "cpu"
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = asked.partition(":")
    if asked == "cuda:all":
        if torch.cuda.is_available():
            return asked
        raise UsageError("--device cuda:all spreads a model over all GPUs, and this machine has none that torch can use.")
    there = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if kind not in there or (number and whole_number(number) is None):
        raise UsageError(f"no device called '{cut(asked)}'. There are: auto, cpu, cuda, cuda:N, cuda:all, mps.")
    if (whole_number(number) or 0) >= there[kind]:
        have = f"{there[kind]} {kind} device{'s' * (there[kind] != 1)}"
        raise UsageError(f"this machine has {have}, '{cut(asked)}' is not among them. Use --device cpu or auto.")
    return asked
