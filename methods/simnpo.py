"""SimNPO: NPO without a reference model, on length-normalised losses.

L = c · −(2/β) mean_b log σ(β (S_θ/T − γ)_b) + λ POOL(retain),   S/T the answer's mean negative log-likelihood per token

(arXiv:2410.07163; OPTML-Group/Unlearn-Simple `TOFU/dataloader.py`, loss "simnpo_grad_diff"). γ stands inside the product
with β, as in the code; the paper writes it outside (the same at γ = 0).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat, PositiveFloat

from harness.core.config import settings
from harness.core.interfaces import Progress, Setting, method
from methods._settings import Epochs
from methods.first_order.loop import Data, Losses, Part, unlearn
from methods.first_order.losses import answer_nll_sums
from methods.first_order.recipe import PairedRecipe, held, small_model_presets, wmdp_presets

if TYPE_CHECKING:
    from torch import Tensor

FORGET05 = {"beta": 2.5, "forget_weight": 0.1375}
FORGET10 = {"beta": 4.5, "forget_weight": 0.125}
SMALL = small_model_presets(lr=1e-5)


@settings
class SimNPOConfig(PairedRecipe):
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
    retain_weight: NonNegativeFloat = 1.0
    """λ, the weight of the retain term."""


@method(
    "simnpo",
    config=SimNPOConfig,
    source="arXiv:2410.07163",
    presets={
        **SMALL,
        # With one text at a time the pooled loss that WMDP's form takes is S/T (WMDP/src/unlearn/GA.py, `SimNPO_FT`).
        **wmdp_presets(lr=9.5e-6, beta=0.1, forget_weight=1.0, frozen_partner=False),
        **{("tofu05", family): FORGET05 for family in ("mini", "scratch", "llama2-7b", "phi-1.5", "llama3.2-1b")},
        **{("tofu10", family): FORGET10 for family in ("mini", "scratch", "llama2-7b", "phi-1.5", "llama3.2-1b")},
    },
    memory=held,
    tuned={
        ("tofu05", "mini"): {"lr": 1e-3, "beta": 2.5},
        ("tofu10", "mini"): {"lr": 1.5e-3, "beta": 2.5},
        ("wmdp", "mini"): {"lr": 9.5e-5},
    },
)
def simnpo(setting: Setting, config: SimNPOConfig) -> Iterator[Progress]:
    """Train, measuring after every epoch."""
    from harness.numerics.training import pooled_nll

    def forget(part: Part) -> Tensor:
        sums, counts = answer_nll_sums(setting.model, part.batch)
        return config.forget_weight * simnpo_loss(sums / counts, config.beta, config.gamma).sum() / part.examples

    def retain(part: Part) -> Tensor:
        return config.retain_weight * pooled_nll(setting.model, part.batch, part.labels)

    def losses(data: Data) -> Losses:
        return Losses(forget, retain if config.retain_weight else None)

    yield from unlearn(setting, config, losses)


def simnpo_loss(mean_nll: Tensor, beta: float, gamma: float) -> Tensor:
    """−(2/β) log σ(β (M − γ)) for each sequence.

    Args:
        mean_nll: [B] M = S/T in nats per token.
        beta: β.
        gamma: γ.
    """
    import torch.nn.functional as F

    return -2 / beta * F.logsigmoid(beta * (mean_nll - gamma))
