"""Coming to a stand where the damage is a given one: on a line, between a place with less of it and one with more."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

TOLERANCE = 0.02
"""How near the measured damage comes to the given one, as a share of it."""
TRIES = 30
"""Places that are tried."""


class End(NamedTuple):
    """An end of the line."""

    place: float
    """Where on it."""
    damage: float
    """What is done there, about, in nats per token."""


class Met(NamedTuple):
    """What came of it."""

    place: float | None
    """Where the damage is the given one, gone to; None where no place was found."""
    nearest: float
    """The measured damage that came nearest to it."""


def meet(damage_at: Callable[[float], float], less: End, more: End, goal: float) -> Met:
    """The place between two ends where the damage is the goal, within `TOLERANCE`.

    What a step adds to a KL grows about as its square, so each guess is a secant of its root, kept inside a bracket that is
    halved where that does not get there.

    Args:
        damage_at: goes to a place and measures there.
        less: where it is less than the goal.
        more: where it is more; infinite where the model broke.
        goal: in nats per token.

    >>> met = meet(lambda x: x**2, End(0.0, 0.0), End(1.0, 1.0), goal=0.25)
    >>> round(met.place, 2), round(met.nearest, 2)
    (0.5, 0.25)
    >>> meet(lambda x: 0.0 if x < 0.3 else 1.0, End(0.0, 0.0), End(1.0, 1.0), goal=0.4)  # a jump
    Met(place=None, nearest=0.0)
    """
    nearest = math.inf
    for tried in range(TRIES):
        share = 0.5
        if math.isfinite(more.damage) and tried < TRIES // 2:
            low, high, wanted = (max(0.0, nats) ** 0.5 for nats in (min(less.damage, goal), more.damage, goal))
            share = min(0.95, max(0.05, (wanted - low) / max(high - low, 1e-12)))
        place = less.place + (more.place - less.place) * share
        damage = damage_at(place)
        if abs(damage - goal) <= TOLERANCE * goal:
            return Met(place, damage)
        nearest = min(nearest, damage, key=lambda nats: abs(nats - goal))
        if damage < goal:
            less = End(place, damage)
        else:
            more = End(place, damage)
    return Met(None, nearest)
