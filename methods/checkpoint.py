"""Published weights: what others unlearned and released, measured as it is.

The benchmark names such checkpoints as sources (`checkpoint-rmu`, `checkpoint-elm`, …); nothing is trained here, and what
training once cost its authors is not known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from harness.core.config import settings
from harness.core.errors import UsageError, unknown
from harness.core.memory import MemoryItem, ModelShape
from harness.core.method import Progress, UnlearningContext, method
from harness.core.problem import Problem
from harness.numerics.placement import placement

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PREFIX = "checkpoint-"
"""What the names of such sources begin with."""


@settings
class CheckpointConfig:
    """Which published checkpoint."""

    source: str | None = None
    """A source of the benchmark, such as checkpoint-rmu; if not given, the benchmark's first."""


def published(problem: Problem) -> list[str]:
    """The checkpoints that a benchmark names, in its order."""
    return [name for name in problem.sources if name.startswith(PREFIX)]


def none_published(problem: Problem) -> str | None:
    """Why a problem has nothing to load, or None if it has."""
    return None if published(problem) else "it loads published weights, and this benchmark names none for this model"


def not_among(problem: Problem, config: CheckpointConfig) -> str | None:
    """Why a problem has no checkpoint of that name, or None if it has."""
    if config.source is None or config.source in published(problem):
        return None
    return str(unknown("published checkpoint", config.source, published(problem))).rstrip(".")


def memory_items(shape: ModelShape, config: CheckpointConfig) -> list[MemoryItem]:
    """The published weights, beside the model's until they have taken their place."""
    return [MemoryItem("published weights", shape.parameters * shape.weight_bytes, while_measured=False)]


@method(
    "checkpoint",
    config=CheckpointConfig,
    source="published weights",
    skip_reason=none_published,
    clash=not_among,
    memory=memory_items,
    reach="fixed",
)
def unlearn(context: UnlearningContext, config: CheckpointConfig) -> Iterator[Progress]:
    """Put the published weights in place.

    Raises:
        UsageError: if the benchmark has no such checkpoint, or if it is one of another architecture or vocabulary.
    """
    names = published(context.problem)
    if reason := none_published(context.problem) or not_among(context.problem, config):
        raise UsageError(f"checkpoint cannot run on {context.problem.bench} with {context.problem.model}: {reason}.")
    name = config.source or names[0]
    source = context.sources[name]
    model, tokenizer = source.load(context.cache, placement(context.model), str(context.model.dtype).removeprefix("torch."))
    if reason := difference(context.model, context.tokenizer, model, tokenizer):
        raise UsageError(f"source={name} cannot take the place of {context.problem.model}: {reason}.")
    context.costs.saved(source.seconds(context.cache) or 0.0)
    context.model.load_state_dict(model.state_dict())
    yield Progress(1, measure_here=True, total=1)


def difference(
    base: PreTrainedModel, words: PreTrainedTokenizerBase, other: PreTrainedModel, other_words: PreTrainedTokenizerBase
) -> str | None:
    """Why another model's weights would mean something else in the base, in one sentence; None if they fit.

    Args:
        base: the model.
        words: its tokenizer, which stays.
        other: whose weights they are.
        other_words: its tokenizer.
    """
    kinds = base.config.model_type, other.config.model_type
    if kinds[0] != kinds[1]:
        return f"its architecture is {kinds[1]}, the model's {kinds[0]}"
    rows = [len(m.get_input_embeddings().weight) for m in (base, other)]  # type: ignore[arg-type]
    if rows[0] != rows[1]:
        return f"its vocabulary has {rows[1]} tokens, the model's {rows[0]}"
    shapes: list[Mapping[str, tuple[int, ...]]] = [
        {name: tuple(t.shape) for name, t in m.state_dict().items()} for m in (base, other)
    ]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        mine, theirs = (shape.get(name) for shape in shapes)
        if mine != theirs:
            return f"its {name} is {_shown(theirs)}, the model's {_shown(mine)}"
    named, others = ({number: token for token, number in t.get_vocab().items()} for t in (words, other_words))
    for number in range(rows[0]):
        if named.get(number) != others.get(number, named.get(number)):
            return f"its token {number} is '{others[number]}', the model's '{named.get(number)}'"
    return None


def _shown(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "×".join(map(str, shape))
