"""SimNPO: NPO without a reference model, on length-normalised losses.

L = c · −(2/β) mean_b log σ(β (S_θ/T − γ)_b) + λ R(retain)

with S/T the answer's mean negative log-likelihood per token and R as `retain_loss` says

(arXiv:2410.07163; OPTML-Group/Unlearn-Simple `TOFU/dataloader.py`, loss "simnpo_grad_diff"). γ stands inside the product
with β, as in the code; the paper writes it outside (the same at γ = 0).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import PositiveFloat

from harness.core.config import settings
from harness.core.method import Progress, UnlearningContext, method
from methods._settings import Epochs
from methods.first_order.loop import Data, Losses, Part, unlearn
from methods.first_order.losses import answer_nll_sums, retain_term
from methods.first_order.recipe import RetainedRecipe, keeps_no_copy, retained_memory_items

if TYPE_CHECKING:
    from torch import Tensor


@settings
class SimNPOConfig(RetainedRecipe):
    """Settings of SimNPO; the defaults are its repository's for forget10."""

    epochs: Epochs = 10
    """Passes over the forget set."""
    frozen_partner: bool = True
    """Give a forget example the same retain partner in every epoch, as its repository does."""
    beta: PositiveFloat = 4.5
    """β: how fast the ascent fades out once an answer has become unlikely."""
    gamma: float = 0.0
    """γ, the margin in nats per token that an answer's loss is to pass."""
    forget_weight: PositiveFloat = 0.125
    """c, the weight of the forget term."""


@method(
    "simnpo",
    config=SimNPOConfig,
    source="arXiv:2410.07163",
    memory=retained_memory_items,
    takes_adapter=True,
    takes_shards=keeps_no_copy,
)
def simnpo(context: UnlearningContext, config: SimNPOConfig) -> Iterator[Progress]:
    """Train, measuring after every epoch."""

    def forget(part: Part) -> Tensor:
        sums, counts = answer_nll_sums(context.model, part.batch)
        return config.forget_weight * simnpo_loss(sums / counts, config.beta, config.gamma).sum() / part.examples

    def losses(data: Data) -> Losses:
        return Losses(forget, retain_term(context, config))

    yield from unlearn(context, config, losses)


def simnpo_loss(mean_nll: Tensor, beta: float, gamma: float) -> Tensor:
    """−(2/β) log σ(β (M − γ)) for each sequence.

    Args:
        mean_nll: [B] M = S/T in nats per token.
        beta: β.
        gamma: γ.
    """
    import torch.nn.functional as F

    return -2 / beta * F.logsigmoid(beta * (mean_nll - gamma))
