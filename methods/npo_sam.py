"""Sharpness-aware NPO (NPO+SAM): NPO's gradient is taken where a small step against it leads, so that relearning has it harder.

g = ∇F(θ),   step along ∇F(θ + ρ g/‖g‖) + λ ∇R(θ),   F NPO's forget term, R the retain term

(arXiv:2502.05374, ICML 2025; OPTML-Group/Unlearn-Smooth `WMDP/src/unlearn/base.py`, `SAMTrainer`). Both gradients of the forget
term see the whole step's forget examples; the retain term's is taken at θ. NPO itself is as in `npo`; Unlearn-Smooth pools
the loss of a batch's texts, over WMDP's, and takes one log σ of it, where `reduction=mean` has one of each text. A point
between two steps is measured at θ.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveFloat

from harness.core.config import settings
from harness.core.memory import MemoryItem, ModelShape
from harness.core.method import Progress, UnlearningContext, method
from methods._settings import Epochs
from methods.first_order.loop import Data, Loss, Losses, Part, unlearn
from methods.first_order.losses import retain_term
from methods.first_order.preference import npo_term
from methods.first_order.recipe import RetainedRecipe, retained_memory_items, trained_bytes

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


log = logging.getLogger(__name__)


@settings
class NPOSAMConfig(RetainedRecipe):
    """Settings of NPO+SAM; the defaults are NPO's, and the radius that of its repository's `run_wmdp_unlearn.sh`."""

    epochs: Epochs = 10
    """Passes over the forget set."""
    frozen_partner: bool = True
    """Give a forget example the same retain partner in every epoch, as NPO's repository does."""
    beta: PositiveFloat = 0.1
    """β: how fast the ascent fades out; towards 0 it is GA on summed losses."""
    reduction: Literal["sum", "mean"] = "sum"
    """Whether an answer's loss is summed over its tokens, or their mean."""
    radius: PositiveFloat = 0.01
    """ρ: how far the point lies at which the forget gradient is taken."""
    retain_weight: PositiveFloat = 1.0
    """λ, the weight of the retain term."""


def memory_items(shape: ModelShape, config: NPOSAMConfig) -> list[MemoryItem]:
    """What NPO holds, beside the weights before the perturbation and one more gradient."""
    return [*retained_memory_items(shape, config), MemoryItem("perturbation", 2 * trained_bytes(shape))]


@method(
    "npo_sam",
    config=NPOSAMConfig,
    source="arXiv:2502.05374",
    memory=memory_items,
    takes_adapter=True,
)
def npo_sam(context: UnlearningContext, config: NPOSAMConfig) -> Iterator[Progress]:
    """Train, measuring after every epoch."""
    from harness.numerics.group import summed

    perturbation = Perturbation(context.model, config.radius)
    forget: list[Loss] = []

    def losses(data: Data) -> Losses:
        forget[:] = [npo_term(context, data, config.beta, config.reduction)]
        retain = retain_term(context, config)
        assert retain is not None  # λ is positive

        def at_the_weights(part: Part) -> Tensor:
            perturbation.undo()
            return retain(part)

        return Losses(forget[0], at_the_weights)

    def perturb(parts: Sequence[Part], _: Sequence[Part]) -> None:
        (tokens,) = summed(sum(part.batch.tokens for part in parts))
        context.costs.count(int(tokens))
        perturbation.do(forget[0], parts)

    yield from unlearn(context, config, losses, before_step=perturb)


class Perturbation:
    """Moves what is trained of a model by ρ g/‖g‖, and back to the last bit.

    Args:
        model: moved in place; the parameters that want gradients at the moment.
        radius: ρ.
    """

    def __init__(self, model: PreTrainedModel, radius: float) -> None:
        self._model, self._radius = model, radius
        self._weights: list[Tensor] = []
        self._before: list[Tensor] = []
        self._looked = False

    def do(self, loss: Loss, parts: Sequence[Part]) -> None:
        """Along the gradient of a loss that is the sum over these parts, and over the processes."""
        import torch

        from harness.numerics.group import add_up

        self._weights = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        gradient = [torch.zeros_like(weight) for weight in self._weights]
        for part in parts:
            shares = torch.autograd.grad(loss(part), self._weights, allow_unused=True)
            for sum_, share in zip(gradient, shares, strict=True):
                if share is not None:
                    sum_.add_(share)
        add_up(gradient)
        norm = torch.stack([g.float().norm().to(gradient[0].device) for g in gradient]).norm()
        self._before = [weight.detach().clone() for weight in self._weights]
        with torch.no_grad():
            scale = self._radius / norm.clamp(min=torch.finfo(norm.dtype).tiny)
            for weight, g in zip(self._weights, gradient, strict=True):
                weight.add_(g * scale.to(g.device))
        if not self._looked:
            self._looked = True
            self._say_what_rounding_left(gradient)

    def _say_what_rounding_left(self, gradient: Sequence[Tensor]) -> None:
        """A step of ρ over billions of bfloat16 weights may be too short for most of them to move at all."""
        meant = sum(int(g.count_nonzero()) for g in gradient)
        moved = sum(int((weight != before).sum()) for weight, before in zip(self._weights, self._before, strict=True))
        if moved < meant / 2:
            log.warning(
                "npo_sam: with radius=%g %.0f %% of the weights are moved, the rest is rounded away in %s; take --dtype "
                "float32 or a larger radius",
                *(self._radius, 100 * moved / meant, str(self._weights[0].dtype).removeprefix("torch.")),
            )

    def undo(self) -> None:
        """To the weights before; nothing where they are there."""
        import torch

        with torch.no_grad():
            for weight, before in zip(self._weights, self._before, strict=False):
                weight.copy_(before)
        self._before = []
