"""Coming to a stand where the damage is a given one: when to look on the way, and where on a line between two places."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

TOLERANCE = 0.02
"""How near the measured damage comes to the given one, as a share of it."""
TRIES = 30
"""Places that are tried."""
LONGEST_WAIT = 16
"""Steps from one look to the next, at most."""
KEPT = 256 * 2**20
"""Bytes of weights that are kept of the steps between two looks, at most."""


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


@dataclass
class Pace:
    """When to look at a way again: before its damage can have grown to where more is to be read, or to the budget.

    A damage grows about as the square of a way's length; as its fourth power while the learning rate rises with the steps; and
    faster where a method breaks. The next look comes where the fourth power, or twice the power seen between the last two
    looks, would have it there. The steps in between are kept: where a budget turns out to be passed they are looked at one
    after the other. A peak between two looks that is over by the second goes unseen.
    """

    size: int
    """Bytes of a copy of the weights."""
    due: int = 1
    """The number of the step to look at."""
    _last: tuple[int, float] = (0, 0.0)

    def looked(self, number: int, damage: float, before: float) -> None:
        """Take note of a look.

        Args:
            number: of the step, from 1 on.
            damage: seen there, nats per token.
            before: the damage that the next look is to come before.
        """
        (earlier, then), power = self._last, 4.0
        if then > 0 and damage > then:
            power = max(power, 2 * math.log(damage / then) / math.log(number / earlier))
        growth = (before / damage) ** (1 / power) if damage > 0 else 2.0
        self.due = number + max(1, min(LONGEST_WAIT, KEPT // self.size, int(number * (growth - 1))))
        self._last = (number, damage)
