"""The families of models that are trained on the spot: their names, and how their learning rates go with published ones."""

from __future__ import annotations

import re

from harness.core.arithmetic import Arithmetic
from harness.core.errors import UsageError
from harness.core.options import MOST_SEED
from harness.core.problem import Problem

SMALL_MODELS = ("mini", "scratch")
"""Families of models that are trained on the spot."""
WORDINGS = "wordings"
"""The last word in the name of a mini model whose world can be asked in several ways: `mini@wordings`, `mini@1-wordings`."""
SMALL_MODEL_FACTOR = 100.0
"""What a published learning rate is multiplied with on them, for every first-order method and for fine-tuning attacks alike;
chosen on mini@1 (see results/tuning/README.md)."""


def small_world(model: str) -> tuple[int, Arithmetic]:
    """The world's seed and the arithmetic that a mini model's name says: `mini`, `mini@1`, `mini@portable`, `mini@1-portable`.

    Raises:
        UsageError: for another name.
    """
    match = re.fullmatch(r"mini(?:@(?:([0-9]{1,10})(-portable)?|(portable)))?", model)
    if not match or int(match[1] or 0) > MOST_SEED:
        raise UsageError(
            f"'{model[:80]}' is no model: after mini@ comes the world's seed, such as mini@1; or portable, for weights that "
            "are the same on every x86-64 processor; or both, mini@1-portable; on ToFU a last word wordings as well, such as "
            "mini@1-wordings."
        )
    return int(match[1] or 0), "portable" if match[2] or match[3] else ""


def without_wordings(model: str) -> tuple[str, bool]:
    """A mini model's name without its last word `wordings`, and whether it had it.

    >>> without_wordings("mini@1-wordings"), without_wordings("mini@wordings"), without_wordings("mini")
    (('mini@1', True), ('mini', True), ('mini', False))
    """
    plain = next((plain for end in ("-", "@") if (plain := model.removesuffix(f"{end}{WORDINGS}")) != model), model)
    return plain, plain != model


def small_name(seed: int, arithmetic: Arithmetic, more: str = "") -> str:
    """The name of a mini model, as it is recorded: `mini` is short for `mini@0`.

    Args:
        seed: of its world.
        arithmetic: as `small_world` says it.
        more: a last word, such as `wordings`.
    """
    parts = [part for part in (str(seed) if seed else "", arithmetic, more) if part]
    return f"mini@{'-'.join(parts)}" if parts else "mini"


def learning_rate_factor(problem: Problem) -> float:
    """What a published learning rate is multiplied with on a problem's model."""
    return SMALL_MODEL_FACTOR if trained_on_the_spot(problem) else 1.0


def trained_on_the_spot(problem: Problem) -> bool:
    """Whether a problem's model is one of these families: it knows its embedded world and nothing else."""
    return (problem.family or problem.model.partition("@")[0]) in SMALL_MODELS
