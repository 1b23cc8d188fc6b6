"""Negative preference optimisation (NPO): ascent on the forget set that fades out once an answer has become unlikely.

L = −(2/β) mean_b log σ(β [S_θ − S_θ0]_b) + λ R(retain)

with S the answer's summed negative log-likelihood and R as `retain_loss` says (arXiv:2404.05868;
licong-lin/negative-preference-optimization `TOFU/dataloader.py`, loss "npo_grad_diff", its default; `retain_weight=0` is the
plain form). S is *not* divided by the answer's length; on WMDP SimNPO's authors run NPO with S/T instead (`reduction=mean`;
OPTML-Group/Unlearn-Simple `WMDP/src/unlearn/GA.py`, `NPO_FT`). S_θ0 is computed once, before a stage's first step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import PositiveFloat

from harness.core.config import settings
from harness.core.method import Progress, UnlearningContext, method
from methods._settings import Epochs
from methods.first_order.loop import Data, Losses, unlearn
from methods.first_order.losses import retain_term
from methods.first_order.preference import npo_term
from methods.first_order.recipe import RetainedRecipe, keeps_no_copy, retained_memory_items


@settings
class NPOConfig(RetainedRecipe):
    """Settings of NPO; the defaults are its repository's."""

    epochs: Epochs = 10
    """Passes over the forget set."""
    frozen_partner: bool = True
    """Give a forget example the same retain partner in every epoch, as its repository does."""
    beta: PositiveFloat = 0.1
    """β: how fast the ascent fades out; towards 0 it is GA on summed losses."""
    reduction: Literal["sum", "mean"] = "sum"
    """Whether an answer's loss is summed over its tokens, or their mean."""


@method(
    "npo",
    config=NPOConfig,
    source="arXiv:2404.05868",
    memory=retained_memory_items,
    takes_adapter=True,
    takes_shards=keeps_no_copy,
)
def npo(context: UnlearningContext, config: NPOConfig) -> Iterator[Progress]:
    """Train, measuring after every epoch."""

    def losses(data: Data) -> Losses:
        return Losses(npo_term(context, data, config.beta, config.reduction), retain_term(context, config))

    yield from unlearn(context, config, losses)
