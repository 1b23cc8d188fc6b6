"""Points along one fixed direction of some layers: at a KL measured on retain rows, or where the damage is that of a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pydantic import PositiveFloat, PositiveInt

from harness.core.config import settings
from harness.core.memory import MemoryItem, ModelShape
from harness.core.method import Budget, Progress, UnlearningContext
from harness.core.problem import Stage
from methods._settings import LayerNumbers, Points

if TYPE_CHECKING:
    from torch import Tensor

    from harness.data.rows import Encoded
    from methods.curvature.layers import Layer, Line


LENGTHS = ("target_kl", "steps", "kl_rows")
"""The settings that say how far it goes, and where on the way a point is."""


@settings
class FixedDirection:
    """Settings of a method that goes along one direction of the MLPs on each stage."""

    target_kl: PositiveFloat = 0.1
    """Nats per token on retain rows, after a stage's last step; spread evenly over its steps."""
    steps: Points = 4
    """How many points on each stage, all along one direction."""
    layers: LayerNumbers | None = None
    """Decoder layers whose MLPs are moved, from 0; all if not given."""
    kl_rows: PositiveInt = 200
    """How many retain sequences the KL is measured on."""


def memory_items(shape: ModelShape, config: FixedDirection) -> list[MemoryItem]:
    """The direction, the weights as they were, and what the model said before."""
    from methods.curvature.layers import mlp_layers, sizes

    spectrum = sizes(mlp_layers(shape.model, config.layers)).spectrum
    rows = min(config.kl_rows, shape.retain_rows)
    return [
        MemoryItem("direction", 2 * spectrum),
        MemoryItem("KL log-probabilities", rows * shape.answer_tokens * shape.vocabulary * 4, where="cpu"),
    ]


def points_along(
    context: UnlearningContext,
    config: FixedDirection,
    layers: list[Layer],
    direction: Callable[[Stage], list[Tensor]],
    retain: Callable[[Stage], list[Encoded]],
) -> Iterator[Progress]:
    """Move, stage after stage; every step is a point. With a budget each stage takes one step, to its share of the budget.

    Args:
        context: whose model is moved.
        config: how far.
        layers: what is moved.
        direction: of a stage, from where the model is then: [out, in (+ 1)] for each layer.
        retain: the rows of a stage that the KL is measured on.

    Raises:
        Diverged: if no length meets the KL or the budget.
    """
    from methods.curvature.layers import Line

    taken, total = 0, len(context.stages) * (1 if context.budget else config.steps)
    for number, stage in enumerate(context.stages):
        line = Line(layers, direction(stage))
        if context.budget:
            steps = iter([_to_budget(context, context.budget, line, number)])
        else:
            steps = _steps(context, config, line, retain(stage))
        for logged in steps:
            taken += 1
            yield Progress(taken, logged, measure_here=True, total=total)


def _steps(context: UnlearningContext, config: FixedDirection, line: Line, rows: list[Encoded]) -> Iterator[dict[str, float]]:
    from harness.data.rows import pad_id
    from harness.numerics.likelihood import AnswerDistributions
    from methods.gauss_newton.step import step_for_kl

    before = AnswerDistributions(context.model, rows, pad_id(context.tokenizer))

    def kl_at(length: float) -> float:
        line.go(length)
        context.costs.count(sum(len(e.input_ids) for e in rows))
        return before.kl(context.model)

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


def drawn_rows(
    context: UnlearningContext, stage: Stage, count: int, stream: str, max_length: int | None = None
) -> list[Encoded]:
    """Retain rows of a stage as tokens, drawn by the seed, in their order.

    Args:
        context: whose tokenizer and seed.
        stage: whose rows.
        count: how many at most.
        stream: names the draw.
        max_length: tokens they are cut to.
    """
    from harness.core.streams import streams
    from harness.data.rows import encode

    retain = encode(stage.retain, context.tokenizer, max_length)
    chosen = streams(context.seed, stream, stage.name).numpy().permutation(len(retain))[:count]
    return [retain[i] for i in sorted(chosen.tolist())]
