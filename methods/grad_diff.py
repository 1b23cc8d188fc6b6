"""Gradient difference (GradDiff, GD): ascent on the forget set, descent on the retain set.

L = −POOL(forget) + λ POOL(retain), POOL the token-pooled mean cross-entropy; λ = 1 (arXiv:2401.06121; locuslab/tofu
`dataloader.py`, loss "grad_diff"; the same in open-unlearning). SOUL's authors take λ = 0.3 and learning rate 5e-6.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat

from harness.core.config import settings
from harness.core.method import Progress, UnlearningContext, method
from methods.first_order.loop import Data, Losses, Part, unlearn
from methods.first_order.recipe import PairedRecipe, keeps_no_copy, memory_items

if TYPE_CHECKING:
    from torch import Tensor


@settings
class GradDiffConfig(PairedRecipe):
    """Settings of GradDiff."""

    retain_weight: NonNegativeFloat = 1.0
    """λ, the weight of the retain term."""


@method(
    "grad_diff",
    config=GradDiffConfig,
    source="arXiv:2401.06121",
    memory=memory_items,
    takes_adapter=True,
    takes_shards=keeps_no_copy,
)
def grad_diff(context: UnlearningContext, config: GradDiffConfig) -> Iterator[Progress]:
    """Train, measuring after every epoch."""
    from harness.numerics.training import pooled_nll

    def forget(part: Part) -> Tensor:
        return -pooled_nll(context.model, part.batch, part.labels)

    def retain(part: Part) -> Tensor:
        return config.retain_weight * pooled_nll(context.model, part.batch, part.labels)

    def losses(data: Data) -> Losses:
        return Losses(forget, retain)

    yield from unlearn(context, config, losses)
