"""Sham: a random step in place of an informed one; what any damage of its size makes a model forget. A control, not a method.

θ ← θ_0 + s n,   n Gaussian, each MLP matrix's part scaled to that matrix's own norm;   s: the KL measured on retain rows

The layers are K-FADE's. Whoever forgets no more than this at the same damage has damaged the model and not unlearned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import PositiveFloat, PositiveInt

from harness.core.config import settings
from harness.core.memory import MemoryItem, ModelShape
from harness.core.method import Budget, Progress, UnlearningContext, method
from harness.core.problem import Problem, Stage
from methods._settings import LayerNumbers, Points, absent_layers

if TYPE_CHECKING:
    from torch import Tensor

    from methods.curvature.layers import Layer, Line


@settings
class ShamConfig:
    """Settings of the control."""

    target_kl: PositiveFloat = 0.1
    """Nats per token on retain rows, after a stage's last step; spread evenly over its steps."""
    steps: Points = 4
    """How many points on each stage, all along one direction."""
    layers: LayerNumbers | None = None
    """Decoder layers whose MLPs are moved, from 0; all if not given."""
    kl_rows: PositiveInt = 200
    """How many retain sequences the KL is measured on."""


def memory_items(shape: ModelShape, config: ShamConfig) -> list[MemoryItem]:
    """The direction, the weights as they were, and what the model said before."""
    from methods.curvature.layers import mlp_layers, sizes

    spectrum = sizes(mlp_layers(shape.model, config.layers)).spectrum
    rows = min(config.kl_rows, shape.retain_rows)
    return [
        MemoryItem("direction", 2 * spectrum),
        MemoryItem("KL log-probabilities", rows * shape.answer_tokens * shape.vocabulary * 4, where="cpu"),
    ]


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
)
def sham(context: UnlearningContext, config: ShamConfig) -> Iterator[Progress]:
    """Move, stage after stage; every step is a point.

    Raises:
        UsageError: for a model whose MLPs are not known, or layers that are not there.
        Diverged: if no length meets the KL.
    """
    from methods.curvature.layers import mlp_layers

    layers, taken = mlp_layers(context.model, config.layers), 0
    for number, stage in enumerate(context.stages):
        for logged in _steps(context, stage, number, layers, config):
            taken += 1
            yield Progress(taken, logged, measure_here=True, total=config.steps * len(context.stages))


def _steps(
    context: UnlearningContext, stage: Stage, number: int, layers: list[Layer], config: ShamConfig
) -> Iterator[dict[str, float]]:
    from harness.core.streams import streams
    from harness.data.rows import encode, pad_id
    from harness.numerics.likelihood import AnswerDistributions
    from methods.curvature.layers import Line
    from methods.gauss_newton.step import step_for_kl

    retain = encode(stage.retain, context.tokenizer)
    chosen = streams(context.seed, "sham rows", stage.name).numpy().permutation(len(retain))[: config.kl_rows]
    rows = [retain[i] for i in sorted(chosen.tolist())]
    before = AnswerDistributions(context.model, rows, pad_id(context.tokenizer))
    line = Line(layers, direction(context, stage, layers))

    def kl_at(length: float) -> float:
        line.go(length)
        context.costs.count(sum(len(e.input_ids) for e in rows))
        return before.kl(context.model)

    if context.budget is not None:  # one point, where the damage is that of the budget
        yield _to_budget(context, context.budget, line, number)
        return
    for step in range(1, config.steps + 1):
        length, kl = step_for_kl(kl_at, config.target_kl * step / config.steps)
        line.go(length)
        yield {"length": length, "measured_kl": kl, "kl_tokens": float(before.labels)}


def _to_budget(context: UnlearningContext, budget: Budget, line: Line, number: int) -> dict[str, float]:
    """Go as far as this stage's share of the budget allows."""
    from methods.gauss_newton.step import step_for_kl

    def damage_at(length: float) -> float:
        line.go(length)
        return budget.damage()

    already = budget.damage() if number else 0.0
    length, _ = step_for_kl(damage_at, budget.nats * (number + 1) / len(context.stages), already)
    line.go(length)
    return {"length": length}


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
