"""The runs of a sweep as they are asked for, before anything of them is planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from harness.core.config import JSON
from harness.core.errors import UsageError
from harness.core.evaluator import EvalPlan
from harness.core.options import Options, Preset
from harness.running.grid import Axes, Search, axes_of, draws, size
from harness.running.plan import Plan, plan, read
from harness.storage.records import Trial

MOST_RUNS = 10_000
MOST_RUNS_AT_ALL = 1_000_000

EvalPlans = dict[tuple[str, str, Options], EvalPlan]
"""Data that has been read: the trials of a sweep share it."""


@dataclass(frozen=True)
class TrialSpec:
    """One run of a sweep as it was asked for: small enough to be handed to another process, which eval_plans it anew."""

    bench: str
    """The benchmark."""
    model: str
    """What is unlearned."""
    method: str
    """With what."""
    options: Options
    """Seed, device and so on."""
    fixed: Mapping[str, JSON]
    """Settings of every trial."""
    chosen: Mapping[str, JSON]
    """Settings of this one."""
    preset: Preset = "published"
    """On which preset of the method they stand."""
    trial: Trial | None = None
    """Its place in a search for settings."""
    selection: str = ""
    """On what its settings were chosen; said by the plan if empty."""
    called: str = ""
    """What a study calls it, where its method's name does not say it."""

    def eval_plan(self, eval_plans: EvalPlans) -> EvalPlan:
        """Its data and what measures it, read once for all that share it."""
        key = (self.bench, self.model, self.options)
        if key not in eval_plans:
            eval_plans[key] = read(self.bench, self.model, self.options)
        return eval_plans[key]

    def plan(self, eval_plans: EvalPlans) -> Plan:
        """Decide the run; see `harness.running.plan.plan`."""
        settings, measured = {**self.fixed, **self.chosen}, self.eval_plan(eval_plans)
        decided = plan(self.bench, self.model, self.method, settings, self.options, preset=self.preset, measured=measured)
        return replace(decided, trial=self.trial, selection=self.selection or decided.selection)

    def label(self, with_bench: bool = True) -> str:
        """What tells it from the sweep's other runs; its benchmark does not where there is only one."""
        settings = "".join(f" {key}={value}" for key, value in self.chosen.items())
        where = f" on {self.bench}" if with_bench else ""
        return f"{self.called or self.method}{where}{settings} seed {self.options.seed}"

    def __str__(self) -> str:
        return self.label()


@dataclass(frozen=True)
class Sweep:
    """What a sweep was asked for."""

    methods: Sequence[str]
    """With what to unlearn."""
    benches: Sequence[str]
    """On what benchmarks."""
    model: str
    """What is unlearned."""
    seeds: Sequence[int]
    """Unlearning seeds; every setting is tried with each."""
    options: Options
    """Everything else that decides a run; its seed is replaced."""
    axes: Axes
    """What is varied."""
    fixed: Mapping[str, JSON]
    """Settings of every trial."""
    preset: Preset = "published"
    """On which preset of the methods they stand."""
    budget: int | None = None
    """How many settings every method gets to try; the whole grid if not given."""
    search: Search = "grid"
    """How they are drawn from the grid."""
    by: str = ""
    """The metric that settings are chosen by; nothing is chosen if empty."""

    def trials(self) -> list[TrialSpec]:
        """Every run: benchmark by benchmark, method by method, seed by seed.

        Raises:
            UsageError: as `draws` and `axes_of`.
        """
        specs = []
        for bench, method in product(self.benches, self.methods):
            settings = draws(axes_of(method, self.methods, self.axes), self.budget, self.search, method)
            for seed, (index, chosen) in product(self.seeds, enumerate(settings)):
                options, trial = replace(self.options, seed=seed), None
                if self.by or self.budget:
                    rows = f"first {limit} rows per split" if (limit := options.limit) else "all evaluated rows"
                    split = f"{rows} of {bench} on {self.model}, seed {seed}"
                    trial = Trial(index=index, tries=len(settings), search=self.search, metric=self.by, split=split)
                specs.append(TrialSpec(bench, self.model, method, options, self.fixed, chosen, self.preset, trial))
        return specs

    def contradictions(self) -> list[str]:
        """Settings that are both fixed and varied."""
        varied = {key for method in self.methods for key in axes_of(method, self.methods, self.axes)}
        return sorted(varied & {*self.fixed})

    def count(self) -> int:
        """How many runs that is, without listing them."""
        of_methods = (self.budget or size(axes_of(method, self.methods, self.axes)) for method in self.methods)
        return sum(of_methods) * len(self.benches) * len(self.seeds)


def check_count(count: int, yes: bool) -> None:
    """Refuse what looks like a slip.

    Raises:
        UsageError: for more than `MOST_RUNS` runs that nobody has confirmed, or more than can be listed.
    """
    if count > MOST_RUNS_AT_ALL:
        raise UsageError(f"that is {count:.2g} runs, more than one command can hold ({MOST_RUNS_AT_ALL:,}).")
    if count > MOST_RUNS and not yes:
        raise UsageError(f"that is {count} runs; if you mean it, add --yes.")
