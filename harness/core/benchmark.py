"""What a benchmark is: its models, its data, what is measured, and which part its metrics play."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from harness.core.errors import UsageError
from harness.core.evaluator import EVALUATORS, EvalPlan, Evaluator
from harness.core.metric import NO_ROLES, MetricRoles
from harness.core.options import Options
from harness.core.problem import Problem
from harness.core.registry import Registry

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Needed:
    """Something of the hub that a benchmark needs with a model; what `harness doctor` looks for."""

    id: str
    """The hub id."""
    kind: Literal["data", "model", "tokenizer"]
    """What it is."""
    files: Sequence[str] = ()
    """The files of a data set."""
    about: str = ""
    """Its format and size, for a reader."""
    gate: str = ""
    """The repository where its licence must be accepted before it can be fetched, if there is such a gate."""
    doubt: str = ""
    """What is not certain about it."""
    any_of: Sequence[str] = ()
    """Forms that its files may have instead (`*`: any part of a name); one is enough, the last is one's own."""
    hub_too: bool = False
    """Whether a data set is asked of the hub where a data folder is given that does not hold it."""


class Benchmark(Protocol):
    """A registered benchmark: its models, its data, what is measured.

    One that takes anything from the hub also has `needed(model: str) -> Sequence[Needed]`, for `harness doctor`. One whose
    metrics play parts (a headline, a ranking, what methods are compared in) has `roles: MetricRoles`. One that takes
    `Options.template` has `templates: Mapping[str, Template]`, those it knows by name; any other puts questions in its own.

    One whose logs other programs write may have more than `read_log`: `in_logs: Mapping[str, Collection[str]]`, evaluators
    beside its own, and columns of which a log holds one if it has rows for them; `log_maker(path) -> str`, whose a log is;
    `read_summary(path) -> Mapping[str, float] | None`, the numbers of a file without rows, by metric; and
    `write_log(rows, numbers, variant)`, a run's rows and numbers in such a form, file name → content.
    """

    name: str
    """Such as `tofu10`."""
    version: int
    """Raised when a change changes numbers."""
    models: Mapping[str, str]
    """Model cards it knows, with one line about each; `mini` is always among them."""

    def problem(self, model: str, options: Options) -> Problem:
        """Read the data and name the sources; imports no torch.

        Raises:
            UsageError: for an unknown model, or data that is missing or malformed.
        """

    def evaluators(self) -> Sequence[Evaluator]:
        """What is measured."""

    def read_log(self, path: Path, problem: Problem | None = None) -> Mapping[str, pd.DataFrame]:
        """Tables out of an evaluation log that another program wrote.

        Args:
            path: the log.
            problem: whose rows it must be of; of any where it is scored by itself.

        Raises:
            UsageError: if the file is not such a log (file, and what is wrong with it), or is of other rows.
        """


LOG_MARK = "made_by"
"""The key under which a file that is written in another program's form says who wrote it."""

BENCHMARKS: Registry[Benchmark] = Registry("benchmark", "evals.benchmarks", "benchmark", "harness list benches")


def benchmark(*names: str) -> Callable[[type[Any]], type[Any]]:
    """Register the decorated class under each name; it is made once with each as its argument."""

    def register(cls: type[Any]) -> type[Any]:
        for name in names:
            BENCHMARKS.register(name, cls(name))
        return cls

    return register


def eval_plan(benchmark: Benchmark, problem: Problem, options: Options) -> EvalPlan:
    """What is measured on a problem: by the benchmark's own evaluators, and those that the problem names beside them, where the
    options name none, or one written `+name`.

    Raises:
        UsageError: for an evaluator that is not there, or a reference's log that is none, or of other rows.
    """
    log = options.reference
    own = {e.name: e for e in [*benchmark.evaluators(), *map(EVALUATORS.get, problem.evaluators)]}
    named = {name: EVALUATORS.get(name) for name in (name.removeprefix("+") for name in options.evals)}
    alone = options.evals and not any(name.startswith("+") for name in options.evals)
    return EvalPlan(
        problem,
        list((named if alone else {**own, **named}).values()),
        options.variant,
        recorded={log.stem: benchmark.read_log(log, problem)} if log else {},
        judge=options.judge,
        generator=options.generator,
        device=options.device,
        data_dir=options.data_dir,
        limit=options.limit,
    )


def roles_of(bench: str) -> MetricRoles:
    """Which part a benchmark's metrics play; none of one that is not installed, or says nothing."""
    try:
        roles: MetricRoles = getattr(BENCHMARKS.get(bench), "roles", NO_ROLES)
    except UsageError:
        return NO_ROLES
    return roles
