"""What an evaluator is and what it sees.

After each point of a run the model becomes an `EvalContext`, which is all an evaluator sees; it gives for each of its
metrics rows or a number, and `harness.statistics` makes a `Measurement` of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.core.caching import CacheView
from harness.core.config import JSON
from harness.core.errors import UsageError
from harness.core.memory import MemoryItem, ModelShape
from harness.core.metric import Given, Metric, TwoSample, metrics_by_name
from harness.core.options import Judge, Variant
from harness.core.problem import ROW_KEYS, Problem, Row
from harness.core.registry import Registry

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.core.costs import Costs
    from harness.core.method import UnlearningContext


@dataclass(frozen=True)
class Sampling:
    """How text is drawn from a model."""

    max_tokens: int
    """At most this many new tokens."""
    temperature: float = 0.0
    """0 is greedy."""
    seed: int = 0
    """With the turns said so far it decides what is drawn; without meaning where nothing is."""


@dataclass(frozen=True)
class GenerationRequest:
    """A conversation to be continued."""

    turns: Sequence[str]
    """The user's turns: one for ToFU; a second one is asked after the answer to the first."""
    sampling: Sampling
    """How to draw."""
    by: Literal["subject", "base"] = "subject"
    """Who answers: the model that is measured, or the model before unlearning."""
    chat: bool = False
    """Whether the turns are plain messages for the tokenizer's chat template; else they are rendered, and put one behind the
    other with the answers between them."""


@dataclass(frozen=True)
class Reference:
    """A retrained model, by what was measured of it row by row."""

    name: str
    """`retain-0`, … or the name of a log."""
    tables: Mapping[str, pd.DataFrame]
    """As in `EvalContext.tables`."""


@dataclass(frozen=True)
class EvalPlan:
    """What is measured, of what, and how: decided before anything is loaded."""

    of: Problem | None = None
    """What is unlearned; None where nothing but recorded rows is known."""
    evaluators: Sequence[Evaluator] = ()
    """What measures at every point."""
    variant: Variant = "original"
    """Whose metric definitions."""
    recorded: Mapping[str, Mapping[str, pd.DataFrame]] = field(default_factory=dict)
    """References known only from their evaluation logs: name → tables."""
    judge: Judge | None = None
    """Who grades answers."""
    generator: str = "hf"
    """The back end that writes answers, and reads choices: `hf` or `vllm`."""
    device: str = "cpu"
    """Where a model that is read by another program goes; as in `Options`."""
    data_dir: Path | None = None
    """Where evaluators look for data of their own before they ask the hub."""
    limit: int | None = None
    """At most this many rows of such data."""

    @property
    def problem(self) -> Problem:
        """What is unlearned.

        Raises:
            LookupError: where nothing but recorded rows is known.
        """
        if self.of is None:
            raise LookupError("only recorded rows are known here, not what was asked")
        return self.of

    @property
    def questions(self) -> Mapping[str, Sequence[Row]]:
        """The problem's sets of questions; none where nothing but recorded rows is known."""
        return self.of.questions if self.of else {}

    @property
    def evaluator_inputs(self) -> dict[str, JSON]:
        """What else the numbers rest on, by evaluator: a judge, data of its own; only of those that rest on something.

        Raises:
            UsageError: for data that is missing or malformed.
        """
        return {e.name: dict(inputs) for e in self.evaluators if (inputs := e.evaluator_inputs(self))}

    @property
    def versions(self) -> dict[str, int]:
        """What measures, and which version of its definition."""
        return {e.name: e.version_for(self) for e in self.evaluators}

    @property
    def references(self) -> list[str]:
        """The names of the retrained models that forget quality compares with, the headline one first."""
        return [*self.recorded, *(name for name in self.problem.sources if name.startswith("retain-"))]


@dataclass
class EvalContext:
    """All an evaluator sees: the model as it is now, or the recorded tables of one that is not here."""

    loaded: UnlearningContext | None
    """The model with what belongs to it; None when only tables are known, as when a published log is scored."""
    plan: EvalPlan
    """What is measured, of what, and how."""
    references: Sequence[Reference]
    """The retrained models to compare with, the headline one first."""
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Row-by-row results, one row per (task, row); evaluators share them, the store keeps them."""
    untouched: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """The tables of the model before unlearning, for metrics that are a share of its own; none where they are not known."""
    generations: Mapping[GenerationRequest, str] = field(default_factory=dict)
    """Answers to all evaluators' requests."""
    saved_path: Callable[[], Path] | None = None
    """Writes the model as a checkpoint, once, and says where (for programs that load from disk)."""
    unfinished: list[str] = field(default_factory=list)
    """Why tables hold less than they should, for reasons that may pass (a judge that did not answer): such tables are not kept
    for other runs."""
    evaluator: str = ""
    """Whose metrics are measured at the moment, for messages."""
    builders: dict[str, str] = field(default_factory=dict, repr=False)
    """Table → the module that builds it."""

    def _loaded(self) -> UnlearningContext:
        if self.loaded is None:
            raise LookupError("there is no model here, only its recorded tables")
        return self.loaded

    @property
    def model(self) -> PreTrainedModel:
        """The model that is measured; this and the next three raise LookupError where only tables are known."""
        return self._loaded().model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self._loaded().tokenizer

    @property
    def cache(self) -> CacheView:
        """Where costly things are kept between runs."""
        return self._loaded().cache

    @property
    def costs(self) -> Costs:
        """Where an evaluator says how many tokens it read: `context.costs.count(n)`."""
        return self._loaded().costs

    @property
    def problem(self) -> Problem:
        """What is unlearned; raises LookupError where nothing but recorded rows is known."""
        return self.plan.problem

    def table(self, name: str, build: Callable[[EvalContext], pd.DataFrame]) -> pd.DataFrame:
        """The table of that name, built from the model the first time it is asked for.

        Its columns `task`, `row` and `cluster` (what is resampled together) name a row; the others are to be called as in no
        other table that has the same rows, since the record keeps all tables as one (`harness.running.measuring.check_tables`).

        Raises:
            LookupError: if it is not recorded and there is no model to build it from.
            UsageError: if another module built one of that name, or it lacks one of the columns that name a row.
        """
        module = getattr(build, "__module__", "")
        if (builder := self.builders.setdefault(name, module)) != module:
            raise UsageError(f"{builder} and {module} both keep a table '{name}': give one of them another name.")
        if name not in self.tables:
            if self.loaded is None:
                raise LookupError(f"there is no {name} table in the log")
            built = build(self)
            if missing := [key for key in ROW_KEYS if len(built) and key not in built]:
                raise UsageError(
                    f"what {self.evaluator or module} keeps row by row cannot be recorded: table '{name}' has no column "
                    f"'{missing[0]}'. A row needs task, row and cluster."
                )
            self.tables[name] = built
        return self.tables[name]

    def of(self, reference: Reference) -> EvalContext:
        """One of the references, as an evaluator sees it: recorded tables without a model, beside the same references."""
        return EvalContext(None, self.plan, self.references, tables=dict(reference.tables), untouched=self.untouched)


MeasureMetric = Callable[[EvalContext, Metric], Given]
"""What an evaluator's function is: what it sees, and one of its metrics → rows, or a number."""


def _no_requests(plan: EvalPlan, tokenizer: PreTrainedTokenizerBase) -> Sequence[GenerationRequest]:
    return ()


def _nothing(context: EvalContext) -> None:
    return None


def _no_inputs(plan: EvalPlan) -> Mapping[str, JSON]:
    return {}


@dataclass(frozen=True)
class MetricFamily:
    """Metrics that follow from a problem's sets of questions."""

    of_plan: Callable[[EvalPlan], Sequence[Metric]]
    """Those of a plan."""
    named: Callable[[str], Metric | None]
    """The one of a recorded name, without a plan; None if that is none of them."""


@dataclass(frozen=True)
class Evaluator:
    """A registered evaluator: declares metrics, asks for texts, then gives for each metric rows or a number."""

    name: str
    """Its file's name."""
    version: int | Callable[[EvalPlan], int]
    """Raised when its definition changes; a function of the plan where it changed for some problems or variants alone, so that
    runs on the others keep their names."""
    measure: Callable[[EvalContext, Metric], Given]
    """What a metric is made of: rows, or a number; raises LookupError, with the reason, where it cannot be had. The texts it
    asked for are in `context.generations`; tables it builds go through `context.table`. The rest: `harness.statistics`."""
    metrics: Sequence[Metric] | MetricFamily
    """What it measures; a family where that follows from the problem's sets of questions."""
    requests: Callable[[EvalPlan, PreTrainedTokenizerBase], Sequence[GenerationRequest]] = _no_requests
    """The texts it needs; equal requests of several evaluators are generated once."""
    changes_model: bool = False
    """Whether it edits the model (a fine-tuning attack): such an evaluator runs last, on a reload."""
    before: Callable[[EvalContext], None] = _nothing
    """Is shown the model before unlearning, once in a run, so that it need not be loaded again to compare with."""
    evaluator_inputs: Callable[[EvalPlan], Mapping[str, JSON]] = _no_inputs
    """What its numbers rest on besides the problem, as plain JSON for the run's hash: a judge's name, digests of own data."""
    memory: Callable[[ModelShape], Sequence[MemoryItem]] = lambda shape: ()
    """What it holds besides the model that is measured, where that is more than any evaluator takes."""

    def metrics_of(self, plan: EvalPlan) -> Sequence[Metric]:
        """What it measures by a plan."""
        return self.metrics.of_plan(plan) if isinstance(self.metrics, MetricFamily) else self.metrics

    def metric(self, name: str) -> Metric | None:
        """Its metric of that name, without a plan; None if it has no such."""
        named = self.metrics.named if isinstance(self.metrics, MetricFamily) else metrics_by_name(self.metrics)
        return named(name)

    def compares(self, plan: EvalPlan) -> bool:
        """Whether it needs a retrained model to compare with."""
        return any(isinstance(metric.statistic, TwoSample) for metric in self.metrics_of(plan))

    def version_for(self, plan: EvalPlan) -> int:
        """Its version by a plan."""
        return self.version(plan) if callable(self.version) else self.version

    @property
    def needs_generation(self) -> bool:
        """Whether it asks for texts at all."""
        return self.requests is not _no_requests

    @property
    def rests_on_more(self) -> bool:
        """Whether its numbers rest on more than the problem wherever they are taken: on a judge, say, who may be left out."""
        return self.evaluator_inputs is not _no_inputs


EVALUATORS: Registry[Evaluator] = Registry("evaluator", "evals", "evaluator", "harness list evals")


def evaluator(
    name: str,
    *,
    version: int | Callable[[EvalPlan], int],
    metrics: Sequence[Metric] | MetricFamily,
    requests: Callable[[EvalPlan, PreTrainedTokenizerBase], Sequence[GenerationRequest]] = _no_requests,
    changes_model: bool = False,
    before: Callable[[EvalContext], None] = _nothing,
    evaluator_inputs: Callable[[EvalPlan], Mapping[str, JSON]] = _no_inputs,
    memory: Callable[[ModelShape], Sequence[MemoryItem]] = lambda shape: (),
) -> Callable[[MeasureMetric], MeasureMetric]:
    """Register the decorated function as an evaluator under its file's name."""

    def register(measure: MeasureMetric) -> MeasureMetric:
        EVALUATORS.register(
            name, Evaluator(name, version, measure, metrics, requests, changes_model, before, evaluator_inputs, memory)
        )
        return measure

    return register


def rows_of(table: pd.DataFrame, questions: str, *columns: str) -> pd.DataFrame:
    """A set of questions' rows of a table. A record keeps all tables as one, with other evaluators' rows in it.

    Args:
        table: as `EvalContext.table` gives it.
        questions: the set's name, what the column `task` holds.
        columns: what is needed of them.

    Raises:
        LookupError: where there are none, or a column was not measured or holds no number: a model may have broken.
    """
    rows = table if table.empty else table[table["task"] == questions]
    if rows.empty:
        raise LookupError(f"there are no {questions} rows")
    for column in columns:
        if column not in rows:
            raise LookupError(f"there is no {column} for {questions}")
        if rows[column].isna().all():
            raise LookupError(f"there is no finite {column} for {questions}")
    return rows


def metric_of(name: str) -> tuple[Evaluator, Metric] | None:
    """The evaluator that gives a metric of that name, and the metric as it is declared; None if no evaluator does."""
    whole_names_first = sorted(EVALUATORS.all().values(), key=lambda each: isinstance(each.metrics, MetricFamily))
    for evaluator in whole_names_first:
        if metric := evaluator.metric(name):
            return evaluator, metric
    return None


def title_of(name: str) -> str:
    """A metric's heading as it is declared; its name where no evaluator here has it."""
    match = metric_of(name)
    return match[1].title if match else name.replace("_", " ")
