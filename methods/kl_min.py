"""KL minimisation (KL-min): ascent on the forget set, closeness to the model before unlearning on the retain set.

L = −POOL(forget) + K,   K = (1 / (B·L)) Σ_{b, position} KL(p_θ0 ‖ p_θ) on the retain batch

(arXiv:2401.06121; locuslab/tofu `dataloader.py`, loss "KL"). The original averages over *every* position of sequences padded to
L = 500: prompt, answer and padding. That divides K by far more than the answers' tokens and so sets its weight; it is the
default here. `kl_positions=answer` takes the mean over answer tokens instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeFloat

from harness.core.config import settings
from harness.core.errors import UsageError
from harness.core.memory import MemoryItem, ModelShape
from harness.core.method import Progress, UnlearningContext, method
from harness.numerics import anatomy
from methods.first_order.loop import Data, Losses, Part, unlearn
from methods.first_order.losses import all_logits, kl_term, model_before, padded
from methods.first_order.recipe import PairedRecipe, memory_items_with_copy

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness.data.rows import Batch


@settings
class KLMinConfig(PairedRecipe):
    """Settings of KL-min."""

    retain_weight: NonNegativeFloat = 1.0
    """Weight of K."""
    kl_positions: Literal["all_padded", "answer"] = "all_padded"
    """Over what K averages: every position of sequences padded to `pad_length`, as published, or answer tokens."""
    pad_length: Annotated[int, Field(ge=1, le=131_072)] = 500
    """Tokens that retain sequences are padded to with `all_padded`."""


def memory_items(shape: ModelShape, config: KLMinConfig) -> list[MemoryItem]:
    """What training holds, the frozen copy, and both models' log-probabilities at the positions K sees at once."""
    each = config.pad_length if config.kl_positions == "all_padded" else shape.answer_tokens
    positions = min(config.batch_size * each, max(shape.trained_at_once, each))
    return [
        *memory_items_with_copy(shape, config),
        MemoryItem("log-probabilities", 4 * positions * shape.vocabulary * 4, while_measured=False, certain=False),
    ]


@method(
    "kl_min",
    config=KLMinConfig,
    source="arXiv:2401.06121",
    memory=memory_items,
    takes_adapter=True,
)
def kl_min(context: UnlearningContext, config: KLMinConfig) -> Iterator[Progress]:
    """Train, measuring after every epoch; a frozen copy of the model before the stage is kept for K.

    Raises:
        UsageError: if sequences are to be padded beyond a model's table of positions.
    """
    from harness.numerics.training import pooled_nll

    def forget(part: Part) -> Tensor:
        return -pooled_nll(context.model, part.batch, part.labels)

    room = anatomy.window(context.model)
    if config.kl_positions == "all_padded" and room and room.ends and config.pad_length > room.tokens:
        raise UsageError(
            f"pad_length={config.pad_length}: this {context.model.config.model_type} has positions for {room.tokens} tokens. "
            f"Set pad_length={room.tokens}, or kl_positions=answer."
        )

    def losses(data: Data) -> Losses:
        before = model_before(context)
        if config.kl_positions == "answer":
            return Losses(forget, kl_term(context, before, config.retain_weight))

        def everywhere(model: PreTrainedModel, batch: Batch) -> Tensor:
            return all_logits(model, padded(batch, config.pad_length, data.pad)).flatten(0, 1)

        retain = kl_term(context, before, config.retain_weight, everywhere, lambda part: part.examples * config.pad_length)
        return Losses(forget, retain, retain_length=config.pad_length)

    yield from unlearn(context, config, losses)
