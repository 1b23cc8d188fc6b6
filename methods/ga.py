"""Gradient ascent on the forget set (GA), without any retain term.

L = −(token-pooled mean cross-entropy of the forget batch), minimised; the recipe is ToFU's (arXiv:2401.06121;
locuslab/tofu `dataloader.py`, loss "grad_ascent"), see `methods/first_order/`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.core.config import settings
from harness.core.method import Progress, UnlearningContext, method
from methods.first_order.loop import Data, Losses, Part, unlearn
from methods.first_order.recipe import Recipe, keeps_no_copy, memory_items

if TYPE_CHECKING:
    from torch import Tensor


@settings
class GAConfig(Recipe):
    """Settings of GA."""


@method(
    "ga",
    config=GAConfig,
    source="arXiv:2401.06121",
    memory=memory_items,
    takes_adapter=True,
    takes_shards=keeps_no_copy,
)
def ga(context: UnlearningContext, config: GAConfig) -> Iterator[Progress]:
    """Train, measuring after every epoch."""
    from harness.numerics.training import pooled_nll

    def forget(part: Part) -> Tensor:
        return -pooled_nll(context.model, part.batch, part.labels)

    def losses(data: Data) -> Losses:
        return Losses(forget)

    yield from unlearn(context, config, losses)
