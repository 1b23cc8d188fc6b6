"""What the losses of first-order methods are made of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.core.method import UnlearningContext
from methods.first_order.adapters import without_adapters
from methods.first_order.loop import Loss, Part
from methods.first_order.recipe import RetainedRecipe

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness.data.rows import Batch, Encoded


def token_nll(model: PreTrainedModel, batch: Batch) -> Tensor:
    """[N] −log p of each label, row by row, float32, with gradient."""
    import torch.nn.functional as F

    from harness.numerics.likelihood import answer_labels, answer_logits

    return F.cross_entropy(answer_logits(model, batch), answer_labels(batch), reduction="none")


def answer_nll_sums(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Each sequence's negative log-likelihood summed over its labels, with gradient, and the number of its labels.

    Returns:
        ([B] nats, [B] counts), float32. S and T in the methods' formulas.
    """
    from harness.numerics.likelihood import sums_by_example

    return sums_by_example(token_nll(model, batch), batch), batch.counts.float()


def place_in_answer(batch: Batch) -> Tensor:
    """[N] each label's place in its answer, from 0."""
    import torch

    counts = batch.counts
    return torch.arange(int(counts.sum()), device=counts.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)


def reference_nll(context: UnlearningContext, sequences: Sequence[Encoded], pad: int) -> Tensor:
    """S of the model as it is now for each sequence: what the originals compute with a frozen copy at every step.

    Returns:
        [N] nats, float32, on the model's device.
    """
    import torch

    from harness.numerics.likelihood import answer_nll

    context.costs.count(sum(len(e.input_ids) for e in sequences))
    sums, _ = answer_nll(context.model, sequences, pad)
    return torch.from_numpy(sums).to(context.model.device, torch.float32)


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The model as it is now, which no step changes."""
    return copy.deepcopy(model).requires_grad_(False)


Before = Callable[[Callable[["PreTrainedModel"], "Tensor"]], "Tensor"]
"""Asks the model before a stage something, without gradients."""


def model_before(context: UnlearningContext) -> Before:
    """What asks the model as it is now, whatever is trained later: a frozen copy, or the model with its adapters off.

    Args:
        context: whose model is plain at the moment.
    """
    import torch

    if context.adapter is not None:

        def without(ask: Callable[[PreTrainedModel], Tensor]) -> Tensor:
            with without_adapters(context.model):
                return ask(context.model)

        return without
    copied = frozen_copy(context.model)

    def frozen(ask: Callable[[PreTrainedModel], Tensor]) -> Tensor:
        with torch.no_grad():
            return ask(copied)

    return frozen


def retain_term(context: UnlearningContext, recipe: RetainedRecipe, before: Before | None = None) -> Loss | None:
    """λ times the recipe's retain term; None where there is none.

    Args:
        context: whose model is trained.
        recipe: says which term, and λ.
        before: the model that KL keeps to; where it is needed and not given, the model as it is now.
    """
    from harness.numerics.training import pooled_nll

    if not recipe.retain_weight:
        return None
    if recipe.retain_loss == "nll":
        return lambda part: recipe.retain_weight * pooled_nll(context.model, part.batch, part.labels)
    return kl_term(context, before or model_before(context), recipe.retain_weight)


def kl_term(
    context: UnlearningContext,
    before: Before,
    weight: float,
    logits: Callable[[PreTrainedModel, Batch], Tensor] | None = None,
    positions: Callable[[Part], int] = lambda part: part.labels,
) -> Loss:
    """λ mean_t KL(before ‖ now) over some positions of a step.

    Args:
        context: whose model is trained.
        before: the model that it keeps to.
        weight: λ.
        logits: [N, V] of a model at the positions of a batch; at its labels if not given.
        positions: how many of them the whole step has.
    """
    from harness.numerics.likelihood import answer_logits, kl_per_token

    at = logits or answer_logits

    def kl(part: Part) -> Tensor:
        context.costs.count(part.batch.tokens)  # they go through the model before, too
        target = before(lambda model: at(model, part.batch).log_softmax(dim=-1))
        return weight * kl_per_token(target, at(context.model, part.batch).log_softmax(dim=-1)).sum() / positions(part)

    return kl


def padded(batch: Batch, length: int, pad: int) -> Batch:
    """The batch padded (or cut) to `length` tokens, attention 0 on the padding; its labels stay as they are."""
    import torch.nn.functional as F

    more = length - batch.input_ids.shape[1]
    ids = F.pad(batch.input_ids, (0, more), value=pad)
    return replace(batch, input_ids=ids, attention_mask=F.pad(batch.attention_mask, (0, more)))


def all_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """[B, L, V] float32 logits at every position, padding included: its queries see the tokens before it."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    return logits.float()  # type: ignore[no-any-return]
