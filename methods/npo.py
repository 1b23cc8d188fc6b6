"""Negative preference optimisation (NPO): ascent on the forget set that fades out once an answer has become unlikely.

L = −(2/β) mean_b log σ(β [S_θ − S_θ0]_b) + λ POOL(retain),   S the answer's summed negative log-likelihood

(arXiv:2404.05868; licong-lin/negative-preference-optimization `TOFU/dataloader.py`, loss "npo_grad_diff", its default;
`retain_weight=0` is the plain form). S is *not* divided by the answer's length; on WMDP SimNPO's authors run NPO with S/T
instead (`reduction=mean`; OPTML-Group/Unlearn-Simple `WMDP/src/unlearn/GA.py`, `NPO_FT`). S_θ0 is computed once, before a
stage's first step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeFloat, PositiveFloat

from harness.core.config import settings
from harness.core.method import Progress, Setting, method
from methods._settings import Epochs
from methods.first_order.loop import Data, Losses, Part, unlearn
from methods.first_order.losses import answer_nll_sums, reference_nll
from methods.first_order.recipe import PairedRecipe, held

if TYPE_CHECKING:
    from torch import Tensor


@settings
class NPOConfig(PairedRecipe):
    """Settings of NPO; the defaults are its repository's."""

    epochs: Epochs = 10
    """Passes over the forget set."""
    frozen_partner: bool = True
    """Give a forget example the same retain partner in every epoch, as its repository does."""
    beta: PositiveFloat = 0.1
    """β: how fast the ascent fades out; towards 0 it is GA on summed losses."""
    retain_weight: NonNegativeFloat = 1.0
    """λ, the weight of the retain term."""
    reduction: Literal["sum", "mean"] = "sum"
    """Whether an answer's loss is summed over its tokens, or their mean."""


@method(
    "npo",
    config=NPOConfig,
    source="arXiv:2404.05868",
    memory=held,
)
def npo(setting: Setting, config: NPOConfig) -> Iterator[Progress]:
    """Train, measuring after every epoch."""
    import torch

    from harness.numerics.training import pooled_nll

    def retain(part: Part) -> Tensor:
        return config.retain_weight * pooled_nll(setting.model, part.batch, part.labels)

    def losses(data: Data) -> Losses:
        used = sorted({row for rows in data.steps for row in rows})
        before = dict(zip(used, reference_nll(setting, [data.forget[row] for row in used], data.pad), strict=True))

        def forget(part: Part) -> Tensor:
            now, labels = answer_nll_sums(setting.model, part.batch)
            then = torch.stack([before[row] for row in part.rows])
            if config.reduction == "mean":
                now, then = now / labels, then / labels
            return npo_loss(now, then, config.beta).sum() / part.examples

        return Losses(forget, retain if config.retain_weight else None)

    yield from unlearn(setting, config, losses)


def npo_loss(now: Tensor, before: Tensor, beta: float) -> Tensor:
    """−(2/β) log σ(β (S_θ − S_θ0)) for each sequence.

    Args:
        now: [B] S_θ in nats, or S_θ/T.
        before: [B] S_θ0, likewise.
        beta: β.
    """
    import torch.nn.functional as F

    return -2 / beta * F.logsigmoid(beta * (now - before))
