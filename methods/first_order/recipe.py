"""The recipe of the first-order methods: settings, and the schedule that follows.

ToFU's (locuslab/tofu `forget.py`, `config/forget.yaml`): an epoch runs over the forget set; AdamW, one epoch of linear warm-up,
linear decay to 0, gradient norm clipped at 1, effective batch 32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from harness.core.config import settings
from harness.core.memory import MemoryItem, ModelShape
from methods._settings import BatchSize, Epochs, Steps, Tokens
from methods.first_order.adapters import adapted_maps
from methods.first_order.adapters import memory_items as adapter_memory_items


@settings
class Recipe:
    """The settings that every first-order method has; the defaults are ToFU's for Llama-2-7B."""

    lr: PositiveFloat = 1e-5
    """Peak learning rate."""
    epochs: Epochs = 5
    """Passes over the forget set."""
    batch_size: BatchSize = 32
    """Forget examples in a step (and as many retain examples, where the method takes any)."""
    warmup_epochs: Annotated[int, Field(ge=0, le=10_000)] | None = 1
    """Epochs of linear warm-up; linear decay to 0 follows. None warms up for a tenth of all steps, as SOUL's authors do."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's, on all parameters."""
    max_steps: Steps | None = None
    """Steps on each stage where what is published counts steps, as on WMDP; `epochs` then says at how many of them, evenly
    spaced, a point is measured."""
    max_length: Tokens | None = None
    """Tokens that texts are cut to; not at all if not given (ToFU's are shorter than its 500)."""


@settings
class PairedRecipe(Recipe):
    """The same for a method that takes retain examples too."""

    frozen_partner: bool = False
    """Give a forget example the same retain partner in every epoch, as the repositories of NPO and SimNPO do (by a seed
    that is reset); otherwise a fresh uniform draw, as in ToFU's."""


@settings
class RetainedRecipe(PairedRecipe):
    """The same with a retain term that may be switched off or be another one."""

    retain_weight: NonNegativeFloat = 1.0
    """λ, the weight of the retain term; with 0 there is none."""
    retain_loss: Literal["nll", "kl"] = "nll"
    """The retain term: POOL(retain), or the mean KL(before ‖ now) over its answers' tokens, as open-unlearning offers it
    (`retain_loss_type`; its mean runs over prompts and padding too)."""


def evenly(steps: int, points: int) -> frozenset[int]:
    """Which of so many steps are measured, for so many points evenly spaced, the last step among them."""
    return frozenset(round(point * steps / points) for point in range(1, points + 1))


def memory_items(shape: ModelShape, recipe: Recipe) -> list[MemoryItem]:
    """What AdamW holds (see `harness.models.memory_items.adamw`), on all weights or on adapters in their place."""
    from harness.models.memory_items import adamw, adamw_by_weight, training_activations

    rows = recipe.batch_size
    shape = replace(shape, row_tokens=min(shape.row_tokens, recipe.max_length or shape.row_tokens))
    parts = _parts(shape, recipe)
    if shape.adapter is not None:
        maps = adapted_maps(shape.model, shape.adapter)
        held = adapter_memory_items(maps, shape.adapter.rank, shape.weight_bytes, "cpu")
        return [*held, training_activations(shape, rows, parts)]
    if shape.optimizer is not None:
        return adamw_by_weight(shape, shape.optimizer, rows, parts)
    *held, _ = adamw(shape)
    return [*held, training_activations(shape, rows, parts, beside=held[0].bytes)]


def _parts(shape: ModelShape, recipe: Recipe) -> int:
    """How many passes a step takes at least: one for the forget rows and one for the retain rows, more where they are long."""
    both = isinstance(recipe, PairedRecipe) and getattr(recipe, "retain_weight", 1) > 0
    tokens = recipe.batch_size * (shape.row_tokens or shape.trained_at_once)
    return (1 + both) * -(-tokens // shape.trained_at_once)


def trained_bytes(shape: ModelShape) -> int:
    """Of what is trained: all weights, or adapters in their place."""
    if shape.adapter is None:
        return shape.parameters * shape.weight_bytes
    maps = adapted_maps(shape.model, shape.adapter)
    return 4 * shape.adapter.rank * sum(sum(linear.module.weight.shape) for linear in maps)


def keeps_no_copy(recipe: Recipe) -> bool:
    """Whether its retain term, if it has one, does without a frozen copy of the model."""
    return not isinstance(recipe, RetainedRecipe) or recipe.retain_loss == "nll" or not recipe.retain_weight


def memory_items_with_copy(shape: ModelShape, recipe: Recipe) -> list[MemoryItem]:
    """The same beside a frozen copy of the model before unlearning; adapters are switched off instead."""
    copied = 0 if shape.adapter else shape.parameters * shape.weight_bytes
    return [*memory_items(shape, recipe), MemoryItem("frozen copy", copied)]


def retained_memory_items(shape: ModelShape, recipe: RetainedRecipe) -> list[MemoryItem]:
    """The same, with a frozen copy where the retain term needs one."""
    return memory_items(shape, recipe) if keeps_no_copy(recipe) else memory_items_with_copy(shape, recipe)


@dataclass(frozen=True)
class Schedule:
    """How many steps there are, and where epochs end (ToFU `forget.py`: `max_steps = epochs·N // batch`)."""

    batch: int
    """Forget examples in a step: the recipe's, or the whole set if it is smaller."""
    steps: int
    """In all."""
    warmup: int
    """Of them warm-up."""
    epoch_ends: frozenset[int]
    """Steps after which a point is measured."""

    @staticmethod
    def of(recipe: Recipe, examples: int) -> Schedule:
        """The schedule of a recipe on a forget set of that many examples."""
        batch = min(recipe.batch_size, examples)
        steps = recipe.max_steps or recipe.epochs * examples // batch
        warmup = max(1, steps // 10) if recipe.warmup_epochs is None else recipe.warmup_epochs * max(1, examples // batch)
        return Schedule(batch, steps, warmup, evenly(steps, recipe.epochs))
