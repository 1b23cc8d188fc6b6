"""Kinds of settings that several methods have, with bounds beyond which they mean nothing, and what a task must have for them.

A bound is far above what any paper uses; it is there so that a slip ends in a sentence and not in a run without end, or in
gigabytes that are asked for while a run is planned. Bounds are no part of a run's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

from harness.interfaces import Task
from harness.pretraining import Architecture, TrainedSource

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
LayerNumber = Annotated[int, Field(ge=0, lt=1000)]
"""A decoder layer, from 0."""


def _different(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(numbers)) < len(numbers):
        raise ValueError("a layer is named twice")
    return numbers


LayerNumbers = Annotated[tuple[LayerNumber, ...], Field(min_length=1, max_length=1000), AfterValidator(_different)]
"""Different decoder layers."""


def architecture(task: Task) -> Architecture | None:
    """The shape of the model that is unlearned where it is trained on the spot; a checkpoint's is read when its run begins."""
    base = task.sources.get("base")
    return base.architecture if isinstance(base, TrainedSource) else None


def absent_layers(task: Task, setting: str, numbers: Sequence[int] | None) -> str | None:
    """Why a model that is trained on the spot lacks some decoder layers, in one sentence; None where it has them all.

    Args:
        task: whose model.
        setting: the setting that names them.
        numbers: which; None stands for all.
    """
    shape = architecture(task)
    if shape is None or not (missing := [number for number in numbers or () if number >= shape.layers]):
        return None
    given = missing[0] if setting == "layer" else list(numbers or ())
    return f"{setting}={given}: the model has layers 0 to {shape.layers - 1}, {missing} are not among them"


def uneven(task: Task, **given: object) -> str | None:
    """Why settings that hold one value for all stages, or one for each, do not fit a task's stages; None if they do."""
    stages = len(task.stages)
    for name, values in given.items():
        if isinstance(values, tuple) and len(values) not in (1, stages):
            return f"{name}={list(values)}: give one value, or one for each of the {stages} stages"
    return None
