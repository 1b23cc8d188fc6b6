"""Task vector (negation): learn the forget set, and go the same way backwards.

θ ← θ_0 − s (θ_forget − θ_0),   θ_forget the model fine-tuned on the forget set (all stages' sets, one after the other)

(arXiv:2212.04089; MUSE's `tv`, arXiv:2407.06460, with s = 5.) Every scale s is a point of the trade-off curve. No retain data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveFloat

from harness.core.config import settings
from harness.core.memory import MemoryItem, ModelShape
from harness.core.method import Progress, UnlearningContext, method
from methods._settings import Epochs
from methods.first_order.loop import Data, Losses, Part, unlearn
from methods.first_order.recipe import Recipe, memory_items_with_copy

if TYPE_CHECKING:
    from torch import Tensor


@settings
class TaskVectorConfig(Recipe):
    """Settings of the task vector; the recipe is the fine-tuning's."""

    epochs: Epochs = 10
    """Passes over the forget set, to learn it."""
    scales: Annotated[tuple[PositiveFloat, ...], Field(min_length=1, max_length=1_000)] = (0.5, 1.0, 2.0, 5.0)
    """s, how far to go backwards; each is a point."""


def memory_items(shape: ModelShape, config: TaskVectorConfig) -> list[MemoryItem]:
    """What fine-tuning holds, the weights before it, and the vector."""
    return [*memory_items_with_copy(shape, config), MemoryItem("task vector", shape.parameters * shape.weight_bytes)]


@method(
    "task_vector",
    config=TaskVectorConfig,
    source="arXiv:2212.04089",
    memory=memory_items,
    reach="free",
    lengths=("scales",),
)
def task_vector(context: UnlearningContext, config: TaskVectorConfig) -> Iterator[Progress]:
    """Fine-tune without measuring, then measure at each scale."""
    import torch

    from harness.numerics.training import pooled_nll
    from methods.gauss_newton.step import step_for_kl

    weights = list(context.model.parameters())
    before = [weight.detach().clone() for weight in weights]

    def learn(part: Part) -> Tensor:
        return pooled_nll(context.model, part.batch, part.labels)

    def losses(data: Data) -> Losses:
        return Losses(learn)

    taken = 0
    for progress in unlearn(context, config, losses):
        taken = progress.step
        yield replace(progress, measure_here=False, total=(progress.total or 0) + len(config.scales))
    vector = [weight.detach() - start for weight, start in zip(weights, before, strict=True)]

    def go(scale: float) -> None:
        with torch.no_grad():
            for weight, start, towards in zip(weights, before, vector, strict=True):
                weight.copy_(start - scale * towards)

    if (budget := context.budget) is not None:

        def damage_at(scale: float) -> float:
            go(scale)
            return budget.damage()

        scale, _ = step_for_kl(damage_at, budget.nats)
        go(scale)
        yield Progress(taken + 1, {"scale": scale}, measure_here=True, total=taken + 1)
        return
    for number, scale in enumerate(config.scales, start=1):
        go(scale)
        yield Progress(taken + number, {"scale": scale}, measure_here=True, total=taken + len(config.scales))
