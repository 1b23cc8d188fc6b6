"""Sham: a random step in place of an informed one; what any damage of its size makes a model forget. A control, not a method.

θ ← θ_0 + s n,   n Gaussian, each MLP matrix's part scaled to that matrix's own norm;   s: the KL measured on retain rows

The layers are K-FADE's. Whoever forgets no more than this at the same damage has damaged the model and not unlearned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.core.config import settings
from harness.core.method import Progress, UnlearningContext, method
from harness.core.problem import Problem, Stage
from methods._settings import absent_layers
from methods.gauss_newton.along import LENGTHS, FixedDirection, drawn_rows, memory_items, points_along

if TYPE_CHECKING:
    from torch import Tensor

    from methods.curvature.layers import Layer


@settings
class ShamConfig(FixedDirection):
    """Settings of the control."""


def clash(problem: Problem, config: ShamConfig) -> str | None:
    """Layers that are not there."""
    return absent_layers(problem, layers=config.layers)


@method(
    "sham",
    config=ShamConfig,
    source="control: a random direction",
    clash=clash,
    memory=memory_items,
    reach="free",
    lengths=LENGTHS,
)
def sham(context: UnlearningContext, config: ShamConfig) -> Iterator[Progress]:
    """Move, stage after stage; every step is a point.

    Raises:
        UsageError: for a model whose MLPs are not known, or layers that are not there.
        Diverged: if no length meets the KL.
    """
    from methods.curvature.layers import mlp_layers

    layers = mlp_layers(context.model, config.layers)
    yield from points_along(
        context,
        config,
        layers,
        lambda stage: direction(context, stage, layers),
        lambda stage: drawn_rows(context, stage, config.kl_rows, "sham rows"),
    )


def direction(context: UnlearningContext, stage: Stage, layers: list[Layer]) -> list[Tensor]:
    """[out, in (+ 1)] Gaussian numbers for each layer, as long as its weights, drawn by the seed and the stage."""
    import torch

    from harness.core.streams import streams

    generator = streams(context.seed, "sham direction", stage.name).torch()
    drawn = []
    for layer in layers:
        matrix = layer.matrix()
        noise = torch.randn(matrix.shape, generator=generator).to(matrix.device)
        drawn.append(noise * (matrix.norm() / noise.norm()))
    return drawn
