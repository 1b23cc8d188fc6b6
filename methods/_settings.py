"""Kinds of settings that several methods have, with bounds beyond which they mean nothing; what a problem must have for them.

A bound is far above what any paper uses; it is there so that a slip ends in a sentence and not in a run without end, or in
gigabytes that are asked for while a run is planned. Bounds are no part of a run's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

from harness.core.errors import UsageError, cut
from harness.core.problem import Problem
from harness.models.origins import configured_by
from harness.models.pretraining import TrainedSource
from harness.models.recipes import Architecture
from harness.numerics import anatomy
from harness.numerics.anatomy import MOST_LAYERS

Epochs = Annotated[int, Field(ge=1, le=10_000)]
"""Passes over a data set."""
Points = Annotated[int, Field(ge=1, le=10_000)]
"""Points that are measured on the way."""
Steps = Annotated[int, Field(ge=1, le=1_000_000)]
"""Optimiser steps."""
BatchSize = Annotated[int, Field(ge=1, le=100_000)]
"""Examples in a step."""
Rank = Annotated[int, Field(ge=1, le=16_384)]
"""Of adapters: the width of the largest models."""
Tokens = Annotated[int, Field(ge=1, le=10_000_000)]
"""A text's length: the longest contexts of today."""
LayerNumber = Annotated[int, Field(ge=0, lt=MOST_LAYERS)]
"""A decoder layer, from 0."""

ANY_ARCHITECTURE = "Take a method that trains all weights, such as grad_diff, npo or simnpo"
"""What to do with an architecture whose parts a method does not know."""


def _different(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(numbers)) < len(numbers):
        raise ValueError("a layer is named twice")
    return numbers


LayerNumbers = Annotated[tuple[LayerNumber, ...], Field(min_length=1, max_length=MOST_LAYERS), AfterValidator(_different)]
"""Different decoder layers."""


def architecture(problem: Problem) -> Architecture | None:
    """The shape of the model that is unlearned where it is trained on the spot; a checkpoint's is read when its run begins."""
    base = problem.sources.get("base")
    return base.architecture if isinstance(base, TrainedSource) else None


def narrowest(problem: Problem) -> int | None:
    """How many singular values the smallest MLP matrix has, where the model that is unlearned is trained on the spot."""
    shape = architecture(problem)
    return min(shape.hidden_size, shape.intermediate_size) if shape else None


def absent_layers(problem: Problem, **given: int | Sequence[int] | None) -> str | None:
    """What `harness.numerics.anatomy.absent_layers` says of the model that is unlearned, from its recipe or its configuration.

    Args:
        problem: whose model.
        given: setting → a number or numbers; None stands for all.
    """
    count = _layers(problem)
    return anatomy.absent_layers(count, **given) if count else None


def _layers(problem: Problem) -> int | None:
    """How many decoder layers there are; None where that is only known when the model is loaded."""
    if shape := architecture(problem):
        return shape.layers
    base = configured_by(problem.sources.get("base"))
    if base is None:
        return None
    try:
        count = getattr(base.config(), "num_hidden_layers", None)
    except UsageError:  # told when the checkpoint is loaded, with all else that is wrong with it
        return None
    return count if isinstance(count, int) else None


def uneven(stages: int, **given: object) -> str | None:
    """Why settings that hold one value for all stages, or one for each, do not fit so many stages; None if they do."""
    for name, values in given.items():
        if isinstance(values, Sequence) and len(values) not in (1, stages):
            each = f", or one for each of the {stages} stages" if stages > 1 else ""
            return f"{name}={cut(str(list(values)))}: give one value{each}"
    return None


def of_stage(values: Sequence[float], number: int, stages: int, setting: str) -> float:
    """The value of a setting that holds one for every stage, or one for all of them.

    Raises:
        UsageError: if it holds another number of them.
    """
    if reason := uneven(stages, **{setting: values}):
        raise UsageError(f"{reason}.")
    return values[number % len(values)]
