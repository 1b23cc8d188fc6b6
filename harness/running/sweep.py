"""Several runs: the methods of one command, a grid of settings, or as many tries for every method. Finished ones are skipped.

Every try is an ordinary record in the store; what is chosen from them is chosen by reading records. Where they are done is an
executor's business (`harness/running/executors.py`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Literal

from harness.core.config import JSON, parse
from harness.core.errors import UsageError, cut, unknown
from harness.core.interfaces import BENCHMARKS, Form, Measurement, Options, Task
from harness.running.plan import Plan, plan
from harness.running.run import attempt
from harness.storage.cache import Cache
from harness.storage.records import SCHEMA_VERSION, RunResult, RunSpec, Trial
from harness.storage.store import Store

if TYPE_CHECKING:
    from harness.running.executors import Executor

MOST_RUNS = 10_000
MOST_RUNS_AT_ALL = 1_000_000
DRAWN_DIGITS = 3
"""Significant digits of a number drawn from a span: as many as one would type."""

Search = Literal["grid", "random"]


# ---------------------------------------------------------------- what is tried


@dataclass(frozen=True)
class Span:
    """Numbers from a lowest to a highest, drawn evenly on a logarithmic scale; whole ones if both ends are."""

    low: float
    """The lowest, above 0."""
    high: float
    """The highest."""

    def draw(self, rng: random.Random) -> float:
        """One of them."""
        value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return round(value)
        return float(f"{value:.{DRAWN_DIGITS}g}")


Axes = Mapping[str, "Sequence[JSON] | Span"]


def axes(grids: Sequence[str]) -> dict[str, list[JSON] | Span]:
    """`["lr=1e-4,1e-3", "layers=[3,4];[5]"]` as name → values, parted by commas, or by semicolons where there are any.

    `lr=1e-5..1e-3` is a span that random tries are drawn from; `ga.lr=…` an axis of one of several methods.

    Raises:
        UsageError: for an axis without values, or one given twice.
    """
    found: dict[str, list[JSON] | Span] = {}
    for text in grids:
        key, equals, values = text.partition("=")
        parts = [part.strip() for part in values.split(";" if ";" in values else ",")]
        if not equals or not key.strip() or not all(parts):
            raise UsageError(f"'{cut(text)}' is no axis of a grid. Write it as key=value,value, for example lr=1e-4,1e-3.")
        if key.strip() in found:
            raise UsageError(f"the axis '{cut(key.strip())}' is given twice.")
        found[key.strip()] = span(text, parts[0]) if ".." in parts[0] else [parse([f"_={part}"])["_"] for part in parts]
    return found


def span(axis: str, text: str) -> Span:
    """`1e-5..1e-3` as a span.

    Raises:
        UsageError: if it is none.
    """
    low, high = (parse([f"_={end}"])["_"] for end in text.split("..", 1))
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
    if not numbers or not 0 < low < high:
        raise UsageError(f"'{cut(axis)}' is no span. Write it as key=low..high with 0 < low < high, for example lr=1e-5..1e-3.")
    return Span(low, high)


def listed_axes(values: Mapping[object, JSON], where: str) -> dict[str, list[JSON] | Span]:
    """Axes out of a mapping: name → list of values, or a span as text.

    Args:
        values: as a file or Python says them.
        where: whence they are, for messages.

    Raises:
        UsageError: for an axis without a list of values.
    """
    return {str(key): _axis(where, str(key), of_axis) for key, of_axis in values.items()}


def _axis(where: str, key: str, values: JSON) -> list[JSON] | Span:
    if isinstance(values, str) and ".." in values:
        return span(f"{key}={values}", values)
    if not isinstance(values, list | tuple) or not values:
        raise UsageError(f"{where}: the axis '{cut(key)}' has no list of values. Write it as {key}: [value, value].")
    # YAML takes 1e-4 for a word, the command line and JSON for a number.
    return [parse([f"_={value}"])["_"] if isinstance(value, str) else value for value in values]


def axes_of(method: str, methods: Sequence[str], found: Axes) -> Axes:
    """A method's axes: those without a method's name before them, and those with its own.

    Raises:
        UsageError: if an axis names a method that is not among the methods.
    """
    own: dict[str, Sequence[JSON] | Span] = {}
    for key, values in found.items():
        owner, dot, name = key.partition(".")
        if dot and owner not in methods:
            raise unknown("method of this sweep", owner, methods)
        if not dot or owner == method:
            own[name if dot else key] = values
    return own


def grid(of: Mapping[str, Sequence[JSON]]) -> Iterator[dict[str, JSON]]:
    """Every combination of the axes' values; one empty combination for no axis."""
    for values in product(*of.values()):
        yield dict(zip(of, values, strict=True))


def size(of: Axes) -> int:
    """How many combinations a grid without spans has."""
    return math.prod(len(values) for values in of.values() if not isinstance(values, Span))


def draws(of: Axes, budget: int | None, search: Search, owner: str) -> list[dict[str, JSON]]:
    """The settings to be tried: the whole grid, or as many of it as the budget allows, always the same ones.

    Args:
        of: the axes.
        budget: how many tries; all if not given.
        search: `grid` spreads them evenly over the grid, `random` draws without repetition.
        owner: whose settings these are, for messages and for the draw.

    Raises:
        UsageError: if there are not so many different ones, or a span is to be walked through.
    """
    spans = [key for key, values in of.items() if isinstance(values, Span)]
    if spans and (search != "random" or budget is None):
        raise UsageError(f"the span of '{spans[0]}' has no end of values; give --search random and --budget N.")
    whole = {key: values for key, values in of.items() if not isinstance(values, Span)}
    count = size(whole)
    if budget is None:
        return list(grid(whole))
    if not of or (not spans and count < budget):
        raise UsageError(
            f"the grid of {owner} has {count} settings and the budget is {budget}: every method gets the same number of "
            "different tries. Add values with --grid, or lower --budget."
        )
    if search == "grid":
        return [_combination(whole, i * count // budget) for i in range(budget)]
    rng = random.Random(f"{owner} {budget}")
    if not spans:
        return [_combination(whole, i) for i in rng.sample(range(count), budget)]
    found: list[dict[str, JSON]] = []
    for _ in range(100 * budget):
        drawn = {key: v.draw(rng) if isinstance(v, Span) else rng.choice(v) for key, v in of.items()}
        if drawn not in found:
            found.append(drawn)
        if len(found) == budget:
            return found
    raise UsageError(f"the spans of {owner} hold fewer than {budget} different settings; widen them, or lower --budget.")


def _combination(of: Mapping[str, Sequence[JSON]], number: int) -> dict[str, JSON]:
    """One combination of the grid, the last axis running fastest, as in `grid`."""
    chosen: dict[str, JSON] = {}
    for key in reversed(list(of)):
        number, place = divmod(number, len(of[key]))
        chosen[key] = of[key][place]
    return {key: chosen[key] for key in of}


# ---------------------------------------------------------------- one try

Tasks = dict[tuple[str, str, Options], Task]
"""Data that has been read: the tries of a sweep share it."""


@dataclass(frozen=True)
class Try:
    """One run of a sweep as it was asked for: small enough to be handed to another process, which plans it anew."""

    bench: str
    """The benchmark."""
    model: str
    """What is unlearned."""
    method: str
    """With what."""
    options: Options
    """Seed, device and so on."""
    fixed: Mapping[str, JSON]
    """Settings of every try."""
    chosen: Mapping[str, JSON]
    """Settings of this one."""
    form: Form = "published"
    """On which form of the method they stand."""
    trial: Trial | None = None
    """Its place in a search for settings."""

    def task(self, tasks: Tasks) -> Task:
        """Its data, read once for all that share it."""
        key = (self.bench, self.model, self.options)
        if key not in tasks:
            tasks[key] = BENCHMARKS.get(self.bench).task(self.model, self.options)
        return tasks[key]

    def plan(self, tasks: Tasks) -> Plan:
        """Decide the run; see `harness.running.plan.plan`."""
        settings, task = {**self.fixed, **self.chosen}, self.task(tasks)
        decided = plan(self.bench, self.model, self.method, settings, self.options, form=self.form, task=task)
        return replace(decided, trial=self.trial)

    def label(self, with_bench: bool = True) -> str:
        """What tells it from the sweep's other runs; its benchmark does not where there is only one."""
        settings = "".join(f" {key}={value}" for key, value in self.chosen.items())
        where = f" on {self.bench}" if with_bench else ""
        return f"{self.method}{where}{settings} seed {self.options.seed}"

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
    """Settings of every try."""
    form: Form = "published"
    """On which form of the methods they stand."""
    budget: int | None = None
    """How many settings every method gets to try; the whole grid if not given."""
    search: Search = "grid"
    """How they are drawn from the grid."""
    by: str = ""
    """The metric that settings are chosen by; nothing is chosen if empty."""

    def tries(self) -> list[Try]:
        """Every run: benchmark by benchmark, method by method, seed by seed.

        Raises:
            UsageError: as `draws` and `axes_of`.
        """
        found = []
        for bench, method in product(self.benches, self.methods):
            settings = draws(axes_of(method, self.methods, self.axes), self.budget, self.search, method)
            for seed, (index, chosen) in product(self.seeds, enumerate(settings)):
                options, trial = replace(self.options, seed=seed), None
                if self.by or self.budget:
                    rows = f"first {limit} rows per split" if (limit := options.limit) else "all evaluated rows"
                    split = f"{rows} of {bench} on {self.model}, seed {seed}"
                    trial = Trial(index=index, tries=len(settings), search=self.search, metric=self.by, split=split)
                found.append(Try(bench, self.model, method, options, self.fixed, chosen, self.form, trial))
        return found

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


# ---------------------------------------------------------------- doing them


def check_metric(plans: Sequence[Plan], store: Store) -> None:
    """Refuse a metric to choose settings by that runs measured alike did not give.

    Where a benchmark has no such record yet, its runs may give it, and it is told at the end.

    Raises:
        UsageError: naming what they gave.
    """
    asked = {todo.trial.metric for todo in plans if todo.trial} - {""}
    if not asked:
        return

    def measured_by(spec: RunSpec) -> tuple[object, ...]:
        return (spec.bench, spec.variant, *sorted(spec.evaluators.items()))

    given: dict[tuple[object, ...], set[str]] = {measured_by(todo.spec): set() for todo in plans}
    for result in store.runs():
        if result.points and (alike := measured_by(result.spec)) in given:
            given[alike] |= {item.metric for item in result.points[-1].measurements}
    known = set().union(*given.values())
    for metric in asked - known if all(given.values()) else ():
        raise unknown("metric of these evaluators", metric, known)


def run_all(
    plans: Sequence[Plan],
    store: Store,
    cache: Cache,
    force: bool = False,
    told: Callable[[RunResult], None] = lambda result: None,
) -> list[RunResult]:
    """Do every run, or find it done.

    Args:
        plans: in this order; all are decided before the first one starts, so that a slip costs nothing.
        store: where records go.
        cache: where trained models, curvature and texts are kept.
        force: do finished ones anew.
        told: is shown each result as it comes.

    Returns:
        The results in the same order; one that broke off for whatever reason, or was refused when it started (it does not
        fit, say), has status `failed` and the points it came to.
    """
    results = []
    for todo in plans:
        found = None if force else _found(todo, store)
        if found is None or found.status != "done":
            found = _ended(todo, store, attempt(todo, store, cache, force))
        results.append(found)
        told(found)
    return results


def run_tries(
    tries: Sequence[Try],
    store: Store,
    cache: Cache,
    executor: Executor,
    told: Callable[[int, RunResult], None] = lambda index, result: None,
) -> list[RunResult]:
    """Do every try, or find it done.

    Args:
        tries: all are planned before the first one starts, so that a slip costs nothing.
        store: where records go.
        cache: where trained models, curvature and texts are kept.
        executor: where they are done.
        told: is shown each result and its position as it comes, those found done first.

    Returns:
        The results in the order of the tries. One that is not done has its reason in `error`.
    """
    tasks: Tasks = {}
    plans = [todo.plan(tasks) for todo in tries]
    check_metric(plans, store)
    results: dict[int, RunResult] = {}
    for index, todo in enumerate(plans):
        found = _found(todo, store)
        if found and found.status == "done":
            results[index] = replace(found, trial=found.trial or todo.trial)
            told(index, results[index])
    left = [index for index in range(len(tries)) if index not in results]
    for place, error in executor([tries[index] for index in left], store, cache, False) if left else ():
        index = left[place]
        results[index] = _ended(plans[index], store, error)
        told(index, results[index])
    return [results[index] for index in range(len(tries))]


def _found(todo: Plan, store: Store) -> RunResult | None:
    """The record of a run, if there is one that can be read; the run itself tells what is wrong with it."""
    try:
        return store.find(todo.spec)
    except UsageError:
        return None


def _ended(todo: Plan, store: Store, error: str) -> RunResult:
    """How a run ended: what is recorded of it, else why nothing is.

    Args:
        todo: the run.
        store: where its record may lie.
        error: why it is not done, or an empty text.
    """
    found = _found(todo, store)
    if found is None or (error and found.status == "done"):  # a refusal leaves the record of an earlier run in place
        return RunResult(
            schema_version=SCHEMA_VERSION,
            spec=todo.spec,
            status="failed",
            error=error or "it left no record",
            selection=todo.selection,
            trial=todo.trial,
        )
    return replace(found, error=found.error or error)


def last_value(result: RunResult, metric: str) -> float | None:
    """A metric at a run's last point, if it was measured."""
    points = result.points[-1:]
    return next((m.value for p in points for m in p.measurements if isinstance(m, Measurement) and m.metric == metric), None)
