"""Self-distillation on adjusted logits (UNDIAL): learn the first model's distribution with memorised tokens lowered.

L = mean_t H(softmax(z_θ0,t − β e_y), p_t) + λ R(retain),   e_y the label as a unit vector

(arXiv:2402.10052; dong-river/LLM_unlearning; open-unlearning `trainer/utils.py`, `compute_undial_loss`). The mean runs over the
labels. With `positions=all` it runs over every position of the step's sequences, prompts and padding included, as
open-unlearning's code has it; there the mark of a position without a label, −100, lowers the hundredth token from the
vocabulary's end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeFloat, PositiveFloat

from harness.core.config import settings
from harness.core.errors import UsageError
from harness.core.method import Progress, UnlearningContext, method
from methods._settings import Epochs
from methods.first_order.loop import Data, Losses, Part, unlearn
from methods.first_order.losses import all_logits, model_before, padded, retain_term
from methods.first_order.recipe import RetainedRecipe, memory_items_with_copy

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness.data.rows import Batch


@settings
class UNDIALConfig(RetainedRecipe):
    """Settings of UNDIAL; the defaults are open-unlearning's."""

    lr: PositiveFloat = 1e-4
    """Peak learning rate."""
    epochs: Epochs = 10
    """Passes over the forget set."""
    beta: PositiveFloat = 10.0
    """β, the strength: what a memorised token's logit is lowered by."""
    positions: Literal["answer", "all"] = "answer"
    """Over what the forget term averages: the answers' tokens, or every position of the padded sequences."""
    retain_weight: NonNegativeFloat = 0.0
    """λ, the weight of the retain term; with 0 there is none."""


@method(
    "undial",
    config=UNDIALConfig,
    source="arXiv:2402.10052",
    memory=memory_items_with_copy,
    takes_adapter=True,
)
def undial(context: UnlearningContext, config: UNDIALConfig) -> Iterator[Progress]:
    """Train, measuring after every epoch; a frozen copy of the model before the stage is kept.

    Raises:
        UsageError: with `positions=all`, for a vocabulary of less than a hundred tokens.
    """
    import torch

    from harness.data.rows import NO_LABEL
    from harness.numerics.likelihood import answer_labels, answer_logits

    vocabulary = context.model.get_output_embeddings().weight.shape[0]
    if config.positions == "all" and vocabulary < -NO_LABEL:
        raise UsageError(f"positions=all: this model's vocabulary has {vocabulary} tokens; leave it at positions=answer.")

    def losses(data: Data) -> Losses:
        before = model_before(context)

        def logits(model: PreTrainedModel, batch: Batch) -> Tensor:
            return (
                answer_logits(model, batch) if config.positions == "answer" else all_logits(model, batch)[:, :-1].flatten(0, 1)
            )

        def forget(part: Part) -> Tensor:
            context.costs.count(part.batch.tokens)  # they go through the model before, too
            batch, labels, positions = part.batch, answer_labels(part.batch), part.labels
            if config.positions == "all":
                longest = max(len(data.forget[row].input_ids) for row in data.steps[part.step - 1])
                batch, positions = padded(batch, longest, data.pad), part.examples * (longest - 1)
                marks = torch.nn.functional.pad(batch.labels, (0, longest - batch.labels.shape[1]), value=NO_LABEL)
                labels = marks[:, 1:].flatten() % vocabulary
            lowered = before(lambda model: logits(model, batch))
            return undial_loss(logits(context.model, batch), lowered, labels, config.beta).sum() / positions

        return Losses(forget, retain_term(context, config, before))

    yield from unlearn(context, config, losses)


def undial_loss(logits: Tensor, before: Tensor, labels: Tensor, beta: float) -> Tensor:
    """H(softmax(z_θ0 − β e_y), p) at each position.

    Args:
        logits: [N, V] z_θ.
        before: [N, V] z_θ0.
        labels: [N] y.
        beta: β.

    Returns:
        [N] nats.
    """
    import torch
    import torch.nn.functional as F

    strength = torch.full_like(before[:, :1], -beta)
    return F.cross_entropy(logits, before.scatter_add(-1, labels[:, None], strength).softmax(dim=-1), reduction="none")
