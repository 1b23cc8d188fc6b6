"""Saturation and importance (SatImp): ascent on the forget set, most on tokens that are neither certain nor nearly forgotten.

L = −c mean_t(p_t^β₁ (1 − p_t)^β₂ · nll_t) + λ R(retain),   p_t the label's probability, without gradient

(arXiv:2505.11953; tmlr-group/SatImp `dataloader/dataloader_sat.py`, loss "satimp_gd"; open-unlearning `trainer/utils.py`,
`compute_satimp_loss`). The mean runs over the step's labels. Constants are those of open-unlearning's class; the authors
recommend β₂ = 0.1 where it takes 1. Its weights c = 1, λ = 0.1 are the authors' too; its configuration `SatImp.yaml` turns them
round (c = 0.1, λ = 1), so that the retain term weighs a hundred times as much beside the forget term.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat, PositiveFloat

from harness.core.config import settings
from harness.core.method import Progress, UnlearningContext, method
from methods.first_order.loop import Data, Losses, Part, unlearn
from methods.first_order.losses import retain_term, token_nll
from methods.first_order.recipe import RetainedRecipe, keeps_no_copy, retained_memory_items

if TYPE_CHECKING:
    from torch import Tensor


@settings
class SatImpConfig(RetainedRecipe):
    """Settings of SatImp; the defaults are those of open-unlearning's class."""

    beta1: NonNegativeFloat = 5.0
    """β₁, of the saturation: tokens that have become unlikely count for less."""
    beta2: NonNegativeFloat = 1.0
    """β₂, of the importance: tokens that are nearly certain count for less."""
    forget_weight: PositiveFloat = 1.0
    """c, the weight of the forget term."""
    retain_weight: NonNegativeFloat = 0.1
    """λ, the weight of the retain term; with 0 there is none."""


@method(
    "satimp",
    config=SatImpConfig,
    source="arXiv:2505.11953",
    memory=retained_memory_items,
    takes_adapter=True,
    takes_shards=keeps_no_copy,
)
def satimp(context: UnlearningContext, config: SatImpConfig) -> Iterator[Progress]:
    """Train, measuring after every epoch."""

    def forget(part: Part) -> Tensor:
        nll = token_nll(context.model, part.batch)
        likely = (-nll.detach()).exp()
        weights = likely**config.beta1 * (1 - likely) ** config.beta2
        return -config.forget_weight * (weights * nll).sum() / part.labels

    def losses(data: Data) -> Losses:
        return Losses(forget, retain_term(context, config))

    yield from unlearn(context, config, losses)
