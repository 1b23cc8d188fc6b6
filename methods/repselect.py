"""RepSelect: ascent along what is the forget set's alone, its gradient damped along its own principal components.

adversary    LoRA on the MLPs, one epoch of SGD that lowers the forget loss; it stays on for what follows, and is then removed
gradient     G = Σ_B ∇_W POOL_B(forget), one pass over mini-batches B
damping      U Σ Vᵀ ≈ G by its n leading components, σ_n the smallest of them;
             soft c_i = σ_n/σ_i, quadratic c_i = (σ_n/σ_i)²;   D = I − U diag(1 − c) Uᵀ on the left, likewise V on the right
step         θ ← θ_0 + s D_U G D_V: equal steps along it, none of them looks at the retain set

As U and V are G's own, c counts twice: σ_i becomes σ_n²/σ_i in soft, and what was strongest is weakest.

(Sondej, Yang and Mahdi 2026, "RepSelect: Robust LLM Unlearning via Representation Selectivity", arXiv:2606.17168;
filyp/open-unlearning `src/trainer/unlearn/repselect_simple.py`, `configs/trainer/RepSelectSimple.yaml`; the adapters are peft's
defaults.) The repository's other trainer, `RepSelect`, damps in every step, by components that it collects anew.
Departures: s is chosen by the KL measured on retain rows, spread evenly over the steps, where the original tunes a learning
rate; G is summed in float32, in eval mode; an SVD of a matrix whose smaller side is `EXACT_UP_TO` at most is exact, where the
original's is always a randomised one; a bias stays as it is. Left out: damping by the retain set's components, removing a
component whole (`hard`), one side alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from harness.core.config import settings
from harness.core.errors import Diverged, UsageError
from harness.core.memory import MemoryItem, ModelShape
from harness.core.method import Progress, UnlearningContext, method
from harness.core.problem import Problem, Stage
from methods._settings import BatchSize, Rank, Tokens, absent_layers, narrowest
from methods.gauss_newton import along
from methods.gauss_newton.along import LENGTHS, FixedDirection, drawn_rows, points_along

if TYPE_CHECKING:
    from torch import Tensor

    from methods.curvature.layers import Layer


@settings
class RepSelectConfig(FixedDirection):
    """Settings of RepSelect; the defaults are its repository's for models of 3 to 8 billion parameters on WMDP."""

    damping: Literal["soft", "quadratic"] = "soft"
    """How a component is damped on each side: by σ/σ_n, or by its square."""
    components: Rank = 512
    """n, the principal components of each gradient that are damped; at most the smaller side of the smallest matrix."""
    adversary_lr: Annotated[float, Field(gt=0, le=1e30)] = 0.01
    """The adversary's learning rate in SGD; the original searches from .005 to .5."""
    rank: Rank = 8
    """Of the adversary's adapters; α is the same, so that their scaling is 1."""
    batch_size: BatchSize = 8
    """Forget examples in a mini-batch of either pass."""
    max_length: Tokens | None = None
    """Tokens that texts are cut to; not at all if not given."""


def memory_items(shape: ModelShape, config: RepSelectConfig) -> list[MemoryItem]:
    """What the way along a direction holds; before there is one, the adversary, the gradients' sum and one more of them."""
    from harness.models.memory_items import activations
    from methods.curvature.layers import mlp_layers, sizes

    layers = mlp_layers(shape.model, config.layers)
    gradient = sum(shape.weight_bytes * layer.module.weight.numel() for layer in layers)
    adversary = 4 * 2 * config.rank * sum(sum(layer.module.weight.shape) for layer in layers)
    beyond = max(0, gradient + adversary - sizes(layers).spectrum)
    return [
        *along.memory_items(shape, config),
        MemoryItem("adversary and gradient beyond it", beyond, while_measured=False),
        activations(shape),
    ]


def clash(problem: Problem, config: RepSelectConfig) -> str | None:
    """Layers that are not there, and more components than a small model's gradients have."""
    if (most := narrowest(problem)) and config.components > most:
        return f"components={config.components}: a gradient has {most} at most. Set components={most // 8 or 1}"
    return absent_layers(problem, layers=config.layers)


@method(
    "repselect",
    config=RepSelectConfig,
    source="arXiv:2606.17168",
    clash=clash,
    memory=memory_items,
    memory_fallbacks=({"layers": [3, 4, 5, 6]},),
    reach="free",
    lengths=LENGTHS,
)
def repselect(context: UnlearningContext, config: RepSelectConfig) -> Iterator[Progress]:
    """Move, stage after stage; every step is a point.

    Raises:
        UsageError: for a model whose MLPs are not known, layers or components that are not there.
        Diverged: if no length meets the KL, or the adversary diverges.
    """
    from methods.curvature.layers import mlp_layers
    from methods.first_order.singular import fewest_components

    layers = mlp_layers(context.model, config.layers)
    name, most = fewest_components(layer.linear for layer in layers)
    if config.components > most:
        raise UsageError(
            f"components={config.components}: the gradient of {name} has {most} at most. Set components={most // 8 or 1}."
        )
    yield from points_along(
        context,
        config,
        layers,
        lambda stage: direction(context, stage, layers, config),
        lambda stage: drawn_rows(context, stage, config.kl_rows, "repselect rows", config.max_length),
    )


def direction(context: UnlearningContext, stage: Stage, layers: list[Layer], config: RepSelectConfig) -> list[Tensor]:
    """[out, in (+ 1)] the damped gradient for each layer, all of them together as long as the weights; 0 for a bias.

    Leaves every bit of the model as it was.

    Raises:
        Diverged: if a gradient is not finite, or 0.
        UsageError: if a gradient has fewer components than are damped.
    """
    import torch

    with context.costs.phase("gradient"):
        gradients = attacked_gradient(context, stage, layers, config)
    towards = []
    with context.costs.phase("principal components"):
        for number, (layer, gradient) in enumerate(zip(layers, gradients, strict=True)):
            damped = _damped(layer, gradient, config, context.seed + number)
            towards.append(torch.cat([damped, damped.new_zeros(len(damped), 1)], dim=1) if layer.has_bias else damped)
    scale = _norm(layer.matrix() for layer in layers) / _norm(towards)
    return [each.mul_(scale) for each in towards]


def _norm(matrices: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(matrix.double().square().sum()) for matrix in matrices))


def _damped(layer: Layer, gradient: Tensor, config: RepSelectConfig, seed: int) -> Tensor:
    import torch

    from methods.first_order.singular import leading_singular

    if not gradient.isfinite().all():
        raise Diverged(f"the gradient of {layer.name} is not finite; take a smaller adversary_lr")
    if not gradient.any():
        raise Diverged(f"the gradient of {layer.name} is 0; take a smaller adversary_lr, or leave it out by layers")
    left, values, right = leading_singular(gradient, config.components, seed)
    rank = int((values > values[0] * max(gradient.shape) * torch.finfo(values.dtype).eps).sum())
    if rank < config.components:
        raise UsageError(
            f"components={config.components}: the forget set's gradient of {layer.name} has rank {rank}, and rounding would be "
            f"all that is left of it. Set components={max(1, rank // 2)}."
        )
    return damp(gradient, left, values, right, config.damping)


def attacked_gradient(context: UnlearningContext, stage: Stage, layers: list[Layer], config: RepSelectConfig) -> list[Tensor]:
    """[out, in] float32, for each layer's weight Σ_B ∇POOL_B on the forget set with the adversary on; it is gone afterwards."""
    import torch

    from harness.data.rows import encode, pad_id
    from harness.numerics.training import shuffled_batches
    from methods.first_order.adapters import Adapters
    from methods.first_order.gradients import mini_batch_gradients

    forget, pad = encode(stage.forget, context.tokenizer, config.max_length), pad_id(context.tokenizer)
    to_learn, to_differentiate = shuffled_batches(len(forget), len(forget), 2, context.seed)
    maps = [layer.linear for layer in layers]
    adapters = Adapters(context.model, maps, config.rank, config.rank, context.seed)
    sums = [torch.zeros_like(linear.matrix(), dtype=torch.float32) for linear in maps]
    try:
        adapters.make()
        factors = [factor for pair in adapters.factors() for factor in pair]
        for _, gradients in mini_batch_gradients(context, factors, forget, to_learn, config.batch_size, pad):
            with torch.no_grad():
                for factor, gradient in zip(factors, gradients, strict=True):
                    factor.sub_(gradient, alpha=config.adversary_lr)
        weights = [linear.module.weight for linear in maps]
        for _, gradients in mini_batch_gradients(context, weights, forget, to_differentiate, config.batch_size, pad):
            for total, linear, gradient in zip(sums, maps, gradients, strict=True):
                total.add_(linear.oriented(gradient))
    finally:
        adapters.discard()
    return sums


def damp(gradient: Tensor, left: Tensor, values: Tensor, right: Tensor, damping: Literal["soft", "quadratic"]) -> Tensor:
    """A gradient without what it has most of: D_U G D_V, D = I − U diag(1 − c) Uᵀ.

    Args:
        gradient: G [out, in].
        left: U [out, n] its leading left singular vectors.
        values: Σ [n] its leading singular values, the largest first.
        right: V [in, n] its leading right singular vectors.
        damping: c_i = σ_n/σ_i (soft), or its square (quadratic).

    Returns:
        [out, in].
    """
    share = values[-1] / values
    less = 1 - (share if damping == "soft" else share.square())
    damped = gradient - (gradient @ right * less) @ right.T
    return damped - left @ (less[:, None] * (left.T @ damped))
