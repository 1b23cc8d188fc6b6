"""Direct preference optimisation (DPO): prefer a refusal to the true answer of a forget question.

L = −c mean_b log σ(β [(S_θ − S_θ0)(answer) − (S_θ − S_θ0)(refusal)]_b) + λ R(retain)

with S the summed negative log-likelihood, R as `retain_loss` says, c = 2/β and λ = 1 as in open-unlearning (`dpo_grad_diff` of
the NPO repository); ToFU's own form is c = 1, λ = 0 (arXiv:2401.06121; its branch in locuslab/tofu `dataloader.py` does not run
as shipped). S_θ0 is computed once, before a stage's first step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import PositiveFloat

from harness.core.config import settings
from harness.core.method import Progress, UnlearningContext, method
from methods.first_order.loop import Data, Losses, unlearn
from methods.first_order.losses import retain_term
from methods.first_order.preference import dpo_term
from methods.first_order.recipe import RetainedRecipe, retained_memory_items
from methods.first_order.refusals import Refusals, has_refusals


@settings
class DPOConfig(RetainedRecipe):
    """Settings of DPO."""

    beta: PositiveFloat = 0.1
    """β: how sharply the preference is drawn."""
    scale: Literal["2/beta", "1"] = "2/beta"
    """c, the factor before the loss: 2/β as NPO and open-unlearning have it, or 1 as ToFU."""


@method(
    "dpo",
    config=DPOConfig,
    source="arXiv:2401.06121",
    skip_reason=has_refusals,
    memory=retained_memory_items,
    takes_adapter=True,
)
def dpo(context: UnlearningContext, config: DPOConfig) -> Iterator[Progress]:
    """Train, measuring after every epoch."""

    def losses(data: Data) -> Losses:
        scale = 2 / config.beta if config.scale == "2/beta" else 1.0
        forget = dpo_term(context, data, Refusals(context, data.stage, data.max_length), config.beta, scale)
        return Losses(forget, retain_term(context, config))

    yield from unlearn(context, config, losses)
