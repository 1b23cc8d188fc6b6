"""Weighted gradient ascent (WGA): ascent on the forget set in which tokens that have become unlikely count for less.

L = −mean_t(p_t^β · nll_t) + λ R(retain),   p_t the label's probability, without gradient; the mean over the step's labels

(arXiv:2502.19301; tmlr-group/G-effect; open-unlearning `trainer/utils.py`, `compute_wga_loss`). β = 0 is GradDiff.
G-effect's own code takes β = 5 where none is given, and for a retain term none or KL.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat

from harness.core.config import settings
from harness.core.method import Progress, UnlearningContext, method
from methods.first_order.loop import Data, Losses, Part, unlearn
from methods.first_order.losses import retain_term, token_nll
from methods.first_order.recipe import RetainedRecipe, keeps_no_copy, retained_memory_items

if TYPE_CHECKING:
    from torch import Tensor


@settings
class WGAConfig(RetainedRecipe):
    """Settings of WGA; the defaults are those of open-unlearning's `WGA.yaml` (its experiment on ToFU takes 10 epochs)."""

    beta: NonNegativeFloat = 1.0
    """β: how fast a token's ascent fades out as it becomes unlikely."""


@method(
    "wga",
    config=WGAConfig,
    source="arXiv:2502.19301",
    memory=retained_memory_items,
    takes_adapter=True,
    takes_shards=keeps_no_copy,
)
def wga(context: UnlearningContext, config: WGAConfig) -> Iterator[Progress]:
    """Train, measuring after every epoch."""

    def forget(part: Part) -> Tensor:
        nll = token_nll(context.model, part.batch)
        weights = (-nll.detach()).exp() ** config.beta
        return -(weights * nll).sum() / part.labels

    def losses(data: Data) -> Losses:
        return Losses(forget, retain_term(context, config))

    yield from unlearn(context, config, losses)
