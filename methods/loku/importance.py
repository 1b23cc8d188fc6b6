"""Where LoKU's adapters start: the Fisher information of the weights or of random adapters on them, and what it weighs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from harness.core.errors import Diverged
from harness.core.method import UnlearningContext
from harness.core.streams import streams
from harness.numerics.anatomy import LinearMap
from methods.first_order.adapters import Adapters
from methods.first_order.gradients import mini_batch_gradients
from methods.first_order.loop import Data
from methods.first_order.partners import Partners
from methods.first_order.singular import leading_singular
from methods.loku.config import LoKUConfig

if TYPE_CHECKING:
    from torch import Tensor

    from harness.data.rows import Encoded

SCALING = 2
"""s = lora_alpha / rank; the original always has lora_alpha = 2·rank."""
EPSILON = 1e-5
"""ε, beside the retain set's Fisher information and beside w."""
DEVIATION = 0.05
"""σ of the random adapters; `sigma` in all of VILA's configurations."""


def fisher_information(
    context: UnlearningContext, maps: Sequence[LinearMap], data: Data, config: LoKUConfig
) -> tuple[list[Tensor], list[Tensor]]:
    """The diagonal Fisher information of each weight on the forget set, and on retain examples paired with it.

    Σ_B n_B (∇POOL_B)² / Σ_B n_B over mini-batches of one pass over the forget set in an order drawn by the seed. Both sides
    stay on the model's device: 8 bytes for each adapted weight. Leaves the weights of `maps` the only ones with gradients
    switched on.

    Returns:
        (forget, retain), for each map [out, in] float32.
    """
    import torch

    weights = [linear.module.weight for linear in maps]
    sides = []
    for encoded, rows in _sides(context, data, config):
        sums, counted = [torch.zeros_like(linear.matrix(), dtype=torch.float32) for linear in maps], 0
        for labels, gradients in mini_batch_gradients(context, weights, encoded, rows, config.fisher_batch, data.pad):
            for total, linear, gradient in zip(sums, maps, gradients, strict=True):
                oriented = linear.oriented(gradient).float()
                total.addcmul_(oriented, oriented, value=labels)
            counted += labels
        sides.append([total.div_(counted) for total in sums])
    return sides[0], sides[1]


def subspace_information(
    context: UnlearningContext, adapters: Adapters, data: Data, config: LoKUConfig
) -> tuple[Iterator[Tensor], Iterator[Tensor]]:
    """The same in the subspace of adapters (VILA, arXiv:2508.21300): F(B)·F(A), of random adapters A and B on the weights.

    F = max(0, E[g²] − E[g]²), g = ∇POOL_B of a factor, E over the same mini-batches weighted by their labels. A and B are
    Gaussian with standard deviation σ and stay on while it is measured, then they are thrown away.

    Returns:
        (forget, retain), for each map [out, in] float32, made one after the other.
    """
    import torch

    adapters.make()
    generator = streams(context.seed, "importance of adapters", data.stage.name).torch()
    factors = [factor for pair in adapters.factors() for factor in pair]
    try:
        with torch.no_grad():
            for factor in factors:
                factor.copy_(DEVIATION * torch.randn(factor.shape, generator=generator))
        sides = []
        for encoded, rows in _sides(context, data, config):
            means, squares = ([torch.zeros_like(factor) for factor in factors] for _ in range(2))
            counted = 0
            for labels, gradients in mini_batch_gradients(context, factors, encoded, rows, config.fisher_batch, data.pad):
                for mean, square, gradient in zip(means, squares, gradients, strict=True):
                    mean.add_(gradient, alpha=labels)
                    square.addcmul_(gradient, gradient, value=labels)
                counted += labels
            variances = [(q / counted - (m / counted).square()).clamp(min=0) for m, q in zip(means, squares, strict=True)]
            sides.append(zip(variances[::2], variances[1::2], strict=True))
    finally:
        adapters.discard()
    forget, retain = ((up @ down for down, up in side) for side in sides)
    return forget, retain


def _sides(context: UnlearningContext, data: Data, config: LoKUConfig) -> Iterator[tuple[Sequence[Encoded], Sequence[int]]]:
    """The forget set in an order drawn by the seed, and the retain examples that are paired with it."""
    from harness.numerics.training import shuffled_batches

    partner = Partners(len(data.retain), context.seed, config.frozen_partner)
    (order,) = shuffled_batches(len(data.forget), len(data.forget), 1, context.seed)
    yield data.forget, order
    yield data.retain, [partner(row) for row in order]


def row_weights(maps: Sequence[LinearMap], forget: Iterable[Tensor], retain: Iterable[Tensor]) -> list[Tensor]:
    """How much more each row of a weight matters to the forget set than to the retain set: w_i = √ Σ_j F_f/(ε + F_r).

    Args:
        maps: to name them in errors.
        forget: for each map [out, in] the Fisher information on the forget set.
        retain: the same on the retain set.

    Returns:
        For each map [out].

    Raises:
        Diverged: if one is not finite.
    """
    rows = [(f / (EPSILON + r)).sum(dim=1).sqrt() for f, r in zip(forget, retain, strict=True)]
    for linear, weights in zip(maps, rows, strict=True):
        if not weights.isfinite().all():
            raise Diverged(f"the Fisher information of {linear.name} is not finite")
    return rows


def fila(weight: Tensor, rows: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """Adapters that hold the part of a weight that matters most, its rows weighted.

    Args:
        weight: [out, in] float32.
        rows: [out] w.
        rank: r.
        seed: for the randomised SVD of a large weight.

    Returns:
        (A [r, in], B [out, r]); s·B·A is the best approximation of the weight by rank r in the norm ‖diag(w) · ‖ as ε → 0.
    """
    left, values, right = leading_singular(rows[:, None] * weight, rank, seed)
    root = (values / SCALING).sqrt()
    return (right * root).T, left * root / (rows + EPSILON)[:, None]
