"""Coming to a stand where the damage is a given one: between two places on a line, one above it and one below."""

from __future__ import annotations

import math
from collections.abc import Callable

from methods.gauss_newton.step import KL_TOLERANCE

TRIES = 30
"""Places between the two that are tried."""


def above(one: float, other: float) -> bool:
    """Whether a damage is above another one by more than `KL_TOLERANCE`, which says how near a given one is met.

    >>> above(1.03, 1.0), above(1.01, 1.0), above(0.97, 1.0)
    (True, False, False)
    """
    return one - other > KL_TOLERANCE * min(one, other)


def between(damage_at: Callable[[float], float], end: float, damages: tuple[float, float], goal: float) -> float | None:
    """The length at which the damage is the goal, within `KL_TOLERANCE`.

    The root of a damage falls about linearly, so that each guess is a secant of it, kept inside a bracket that is halved where
    that does not get there.

    Args:
        damage_at: goes to a length and measures there.
        end: the other length, of either sign.
        damages: at length 0, above the goal, and at the end, below it.
        goal: in nats per token.

    Returns:
        The length, gone to; None, and back at 0, where no place between the two was found.

    >>> round(between(lambda x: (1 + x) ** 2, -1.0, (1.0, 0.0), 0.25), 2)
    -0.5
    """
    over, under, at_over, at_under = 0.0, end, *damages
    for tried in range(TRIES):
        share = 0.5
        if math.isfinite(at_over) and tried < TRIES // 2:
            top, bottom, wanted = (max(0.0, nats) ** 0.5 for nats in (at_over, at_under, goal))
            share = min(0.95, max(0.05, (top - wanted) / max(top - bottom, 1e-12)))
        length = over + (under - over) * share
        damage = damage_at(length)
        if abs(damage - goal) <= KL_TOLERANCE * goal:
            return length
        if damage < goal:
            under, at_under = length, damage
        else:
            over, at_over = length, damage
    damage_at(0.0)
    return None
