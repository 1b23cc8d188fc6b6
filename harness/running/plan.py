"""A run with everything decided and nothing loaded (no torch), so that a run that is already done is found at once."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from harness.core.benchmark import BENCHMARKS, eval_plan
from harness.core.config import JSON, departures, describe, resolve, to_json
from harness.core.errors import UsageError, cut
from harness.core.evaluator import EvalPlan
from harness.core.method import METHODS, Method
from harness.core.options import MOST_SEED, Options, Preset
from harness.core.problem import Problem
from harness.data.held_out import held_out_digest, hold_out
from harness.data.rows import fingerprint
from harness.numerics.placement import ALL_GPUS
from harness.storage.cache import canonical, file_digest
from harness.storage.records import RunSpec, Trial


@dataclass(frozen=True)
class Plan:
    """A run with everything decided and nothing loaded."""

    spec: RunSpec
    """What names it."""
    eval_plan: EvalPlan
    """Its data and sources, and what measures it."""
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

    @property
    def problem(self) -> Problem:
        """Its data and sources."""
        return self.eval_plan.problem


def read(bench: str, model: str, options: Options) -> EvalPlan:
    """A benchmark's problem and what measures it.

    Raises:
        UsageError: for anything that is not known or not there, and for data that is malformed.
    """
    benchmark = BENCHMARKS.get(bench)
    problem = benchmark.problem(model, options)
    if not hasattr(benchmark, "templates") and options.template not in ("", problem.template.name):
        own = problem.template.name
        raise UsageError(f"{bench} puts its questions in one template, '{own}'; leave out --template {cut(options.template)}.")
    return eval_plan(benchmark, hold_out(problem) if options.budgets else problem, options)


def plan(
    bench: str,
    model: str,
    method: str | Method[Any],
    settings: Mapping[str, JSON],
    options: Options,
    recorded: Mapping[str, JSON] | None = None,
    preset: Preset = "published",
    measured: EvalPlan | None = None,
) -> Plan:
    """Decide a run.

    Args:
        bench: a benchmark's name.
        model: what is unlearned, as the benchmark names it.
        method: a method's name; or one that is in no list.
        settings: what differs from the method's defaults and presets.
        options: seed, limit, device and so on.
        recorded: all settings of an earlier run that is to be repeated; `settings` win over them.
        preset: the method's settings as published, or tuned in one of two versions.
        measured: the benchmark with that model and these options, where it has been read already.

    Raises:
        UsageError: for anything that is not known, not allowed or not there.
    """
    if not 0 <= options.seed <= MOST_SEED:
        raise UsageError(f"the seed {options.seed} is not between 0 and {MOST_SEED:,}.")
    chosen = METHODS.get(method) if isinstance(method, str) else method
    measured = measured or read(bench, model, options)
    problem = measured.problem
    if problem.retain != options.retain:
        raise UsageError(f"{bench} has one retain set; leave out --retain {options.retain}.")
    _check_rows(problem)
    if reason := chosen.skip_reason(problem):
        raise UsageError(f"{chosen.name} cannot run on {bench} with {cut(model)}: {reason}.")
    _check_training(chosen, options)
    _check_metrics(measured)
    family = problem.family or problem.model.partition("@")[0]
    stands_on = chosen.preset(bench, family, preset)
    config = resolve(chosen.config, stands_on, recorded or {}, settings, owner=chosen.name)
    _check_lengths(chosen, stands_on, settings, options)
    if reason := chosen.refusal(problem, config):
        raise UsageError(f"{chosen.name}: {reason}.")
    spec = _spec(measured, chosen, config, options, "" if settings or preset == "published" else preset)
    spec = replace(spec, bench=bench, model=Path(model).name if Path(model).is_dir() else problem.model)
    selection = f"{preset} form: " + (
        f"preset of {chosen.name} for {bench} on {family}" if stands_on else f"defaults of {chosen.name}"
    )
    if recorded:
        selection = "settings of a recorded run"
    # A preset is of a method that trains all weights, by AdamW as it usually is.
    if by_hand := [*sorted(settings), *([] if recorded else spec.trained)]:
        selection += f", then {', '.join(by_hand)} by hand"
    command = _command(spec, options, preset, {**departures(chosen.config, stands_on, to_json(config)), **settings})
    return Plan(spec, measured, chosen, config, options, selection, command)


def _check_training(method: Method[Any], options: Options) -> None:
    """Refuse an adapter for a method that does not train whatever is trainable, and an optimizer that it has no use for."""
    if options.adapter and not method.takes_adapter:
        those = ", ".join(name for name, each in METHODS.all().items() if each.takes_adapter)
        raise UsageError(
            f"{method.name} trains no adapters in place of the weights. Leave out --adapter, or take one of {those}."
        )
    if (optimizer := options.optimizer) is None:
        return
    if not method.takes_optimizer:
        those = ", ".join(name for name, each in METHODS.all().items() if each.takes_optimizer)
        raise UsageError(f"{method.name} does not train by AdamW alone. Leave out --optimizer, or take one of {those}.")
    if optimizer.masters == "none" and (options.adapter or options.dtype == "float32"):
        why = "adapters are float32" if options.adapter else "float32 weights need no masters"
        raise UsageError(f"--optimizer {optimizer}: {why}. Leave out masters=none, or train all weights in --dtype bfloat16.")
    if optimizer.bits == 8 and importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(
            f"--optimizer {optimizer}: moments of 8 bits need bitsandbytes, which is not installed: pip install "
            "'bitsandbytes>=0.50,<1', or leave out bits=8."
        )


def _check_lengths(method: Method[Any], preset: Mapping[str, JSON], settings: Mapping[str, JSON], options: Options) -> None:
    """Refuse how far a method is to go where budgets say it, unless it must be given one for want of a preset.

    And, where there are none, what is read with budgets alone.
    """
    if not options.budgets:
        if unread := [name for name in method.with_budgets if name in settings]:
            what = " and ".join(unread)
            raise UsageError(f"{method.name}: without --budgets {what} changes nothing. Leave out {what}, or give budgets.")
        return
    usual = {**{name: default for name, default, _ in describe(method.config)}, **preset}
    given = [name for name in method.lengths if name in settings]
    if given and any(usual.get(name) is not None for name in method.lengths):
        what = " and ".join(given)
        raise UsageError(f"{method.name}: --budgets say how far it goes, and {what} would change nothing. Leave out {what}.")


def _check_metrics(measured: EvalPlan) -> None:
    """Refuse evaluators of which two give a number of one name: a record could not tell them apart."""
    owners: dict[str, str] = {}
    for evaluator in measured.evaluators:
        for metric in evaluator.metrics_of(measured):
            if (owner := owners.setdefault(metric.name, evaluator.name)) != evaluator.name:
                raise UsageError(
                    f"the evaluators {owner} and {evaluator.name} both give a number '{metric.name}'. Leave one of them out "
                    "of --evals, or give one number another name."
                )


def _check_rows(problem: Problem) -> None:
    """Refuse questions that name no row or no cluster: evaluators need both, and would say so after hours."""
    for of, rows in problem.questions.items():
        for index, row in enumerate(rows):
            for key, kind, what in (("row", int, "a whole number"), ("cluster", str, "a text: what rises and falls together")):
                if not isinstance(row.get(key), kind):
                    raise UsageError(f"the questions '{of}' of {problem.bench} lack '{key}' in row {index}: give each {what}.")


def _spec(measured: EvalPlan, method: Method[Any], config: Any, options: Options, form: Literal["", Preset]) -> RunSpec:
    """What names a run."""
    problem = measured.problem
    return RunSpec(
        bench=problem.bench,
        bench_version=problem.bench_version,
        model=problem.model,
        sources={name: source.identity for name, source in problem.sources.items()},
        method=method.name,
        method_version=method.version,
        config=to_json(config),
        evaluators=measured.versions,
        variant=measured.variant,
        template=asdict(problem.template),
        data=problem.data,
        references={name: file_digest(options.reference) for name in measured.recorded if options.reference},
        seed=options.seed,
        limit=options.limit,
        dtype=options.dtype,
        device=options.device.partition(":")[0],
        generator=options.generator,
        points=options.points,
        form=form,
        evaluator_inputs=measured.evaluator_inputs,
        retain=problem.retain,
        budgets=options.budgets,
        budget_rows=held_out_digest(problem),
        general=fingerprint([asdict(e) for e in problem.general]) if method.reads_general(config) else "",
        adapter=str(options.adapter or ""),
        optimizer=str(options.optimizer or ""),
    )


def _command(spec: RunSpec, options: Options, preset: Preset, settings: Mapping[str, JSON]) -> str:
    """What to type to run it again; without paths.

    Args:
        spec: the run.
        options: what the command line decided.
        preset: whether they stand on the published settings or the tuned ones.
        settings: what is neither a default nor the preset's, or was given by hand.
    """
    judge = options.judge if any("judge" in inputs for inputs in spec.evaluator_inputs.values()) else None
    words = ["harness", "run", "--method", spec.method, "--bench", spec.bench, "--model", spec.model]
    for key, value in settings.items():
        words += ["--set", f"{key}={value if isinstance(value, str) else canonical(value)}"]
    for flag, given, usual in (
        ("--seed", options.seed, 0),
        ("--limit", options.limit, None),
        ("--device", ALL_GPUS if options.device == ALL_GPUS else spec.device, "cpu"),
        ("--dtype", options.dtype, "float32"),
        # Named wherever `auto` might choose otherwise.
        ("--generator", options.generator, "" if spec.device == "cuda" else "hf"),
        ("--variant", options.variant, "original"),
        ("--template", options.template, ""),
        ("--retain", options.retain, "all"),
        ("--preset", preset, "published"),
        ("--evals", ",".join(options.evals), ""),
        ("--points", options.points, "all"),
        ("--budgets", ",".join(f"{budget:g}" for budget in options.budgets), ""),
        ("--adapter", options.adapter, None),
        ("--optimizer", options.optimizer, None),
        ("--judge", judge.name if judge else "", ""),
        ("--judge-repetitions", judge.repetitions if judge else 1, 1),
    ):
        if given != usual:
            words += [flag, str(given)]
    if options.reference:
        words += ["--reference", options.reference.name]
    return shlex.join(words)
