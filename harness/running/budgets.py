"""Points at equal damage: where a method's way passes a budget, measured on rows held out for it.

A method that takes steps does not know of it. When a step takes the damage past a budget, the weights before and after that
step are interpolated until the damage measured on all budget rows is the budget, within `TOLERANCE`; the point is measured
there, and the method goes on from where it was. Far from a budget not every step is looked at. A method whose way has a length
of its own is started anew for each budget and told it. After the largest budget a run ends.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from harness.core.errors import Diverged
from harness.core.method import Progress, Reach, UnlearningContext
from harness.numerics import group
from harness.numerics.meeting import TOLERANCE, End, Pace, meet
from harness.storage.records import BUDGET, DAMAGE

if TYPE_CHECKING:
    from harness.numerics.damage import Damage, DamageMeter, Look
    from harness.numerics.weights import Weights

log = logging.getLogger(__name__)
BROKE = "it broke off: the model's predictions are not finite"

Steps = Callable[[], Iterator[Progress]]
"""Starts the method on the model as it is."""


@dataclass(frozen=True)
class _Goal:
    """What a method with a free length is told."""

    nats: float
    meter: DamageMeter
    context: UnlearningContext

    def damage(self) -> float:
        """On all budget rows."""
        with self.context.costs.phase("damage"):
            return self.meter.damage().nats


class _Taken(NamedTuple):
    """A step that was taken."""

    number: int
    """From 1 on."""
    weights: Weights
    """Behind it."""
    progress: Progress
    """What the method said."""


@dataclass
class BudgetedRun:
    """One run's way past its budgets.

    Args:
        context: whose model is edited in place; its weights are those before unlearning.
        budgets: increasing, in nats per token.
        reach: how the method meets a budget.
        steps: starts the method.
    """

    context: UnlearningContext
    budgets: Sequence[float]
    reach: Reach
    steps: Steps
    unreached: dict[float, str] = field(default_factory=dict)
    """Budgets without a point, each with the reason."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know of the points."""

    def __post_init__(self) -> None:
        from harness.numerics.damage import DamageMeter
        from harness.numerics.weights import Weights

        context = self.context
        with context.costs.phase("damage"):
            self._meter = DamageMeter(context.model, context.tokenizer, context.problem.held_out)
        self._start = Weights.of(context.model)
        self._broke_off = ""
        if "general" not in self._meter.tokens:
            self.notes.append("damage is measured on retain rows alone: the benchmark has no general text for this model")

    def points(self) -> Iterator[Progress]:
        """The method's progress at each budget it reaches, the model placed there; in the end it stands at the last one."""
        from harness.numerics.weights import Weights

        each = {"steps": self._between_steps, "free": self._by_length, "fixed": self._as_it_is}
        stood: Weights | None = None
        for point in each[self.reach]():
            yield point
            stood = Weights.of(self.context.model)
        if stood is not None:
            stood.place(self.context.model)

    def _damage(self) -> Damage:
        with self.context.costs.phase("damage"):
            return self._meter.damage()

    def _point(self, progress: Progress, damage: Damage, **more: float) -> Progress:
        by_kind = {f"damage_{kind}": nats for kind, nats in damage.by_kind.items()}
        tokens = {f"damage_{kind}_tokens": float(count) for kind, count in self._meter.tokens.items()}
        return replace(
            progress, logged={**progress.logged, DAMAGE: damage.nats, **by_kind, **tokens, **more}, measure_here=True
        )

    # ---- a model at its own damage

    def _as_it_is(self) -> Iterator[Progress]:
        for progress in self.steps():
            if progress.measure_here:
                damage = self._damage()
                if math.isinf(damage.nats):
                    self.notes.append("it has no damage: the model's predictions are not finite")
                yield self._point(progress, damage)

    # ---- a length of its own

    def _by_length(self) -> Iterator[Progress]:
        for number, budget in enumerate(self.budgets):
            if number:
                self._start.place(self.context.model)
            self.context.budget = _Goal(budget, self._meter, self.context)
            last: Progress | None = None
            try:
                for progress in self.steps():
                    last = progress
            except Diverged as error:
                self.unreached[budget] = f"it broke off: {error}"
                continue
            damage = self._damage()
            if math.isinf(damage.nats):
                self.unreached[budget] = BROKE
                continue
            if last is None or abs(damage.nats - budget) > TOLERANCE * budget:
                self.unreached[budget] = f"its way ends at a damage of {damage.nats:.3g}"
                continue
            yield self._point(last, damage, **{BUDGET: budget})

    # ---- between two steps

    def _between_steps(self) -> Iterator[Progress]:
        # Of sharded weights processes hold unlike parts, and all of them look at the same steps.
        left, pace = list(self.budgets), Pace(int(group.summed(self._start.bytes)[0]) // group.size())
        before = under = self._start  # the last weights looked at; those known, by all rows, to have done less than is left
        done, most = 0.0, 0.0
        last: Progress | None = None
        for taken in self._taken(pace):
            look, last = self._look(left[0]), taken[-1].progress
            for step in taken if look.nats >= left[0] else taken[-1:]:
                damage, on_all = look if step is taken[-1] else self._look_behind(step, left[0])
                most, met = max(most, damage), []
                while left and damage >= left[0]:
                    ends = (under, before, step.weights)
                    if (point := self._between(*ends, (done, damage), left[0], step.progress)) is not None:
                        met.append(left[0])
                        yield point
                    left.pop(0)
                if met and step.number == 1:
                    self._say_that_the_first_is_long(damage, met)
                if not left:
                    return
                before, done = step.weights, damage
                under = before if on_all else under
            before.place(self.context.model)
            pace.looked(taken[-1].number, done, left[0] if on_all else self._meter.far(left[0]))
        if last is not None and left[0] - done <= TOLERANCE * left[0]:  # where it ends is near enough
            before.place(self.context.model)
            yield self._point(last, self._damage(), **{BUDGET: left.pop(0), "share_of_step": 1.0})
        ended = self._broke_off or f"it never did so much damage ({most:.3g} at most)"
        self.unreached.update(dict.fromkeys(left, ended))

    def _taken(self, pace: Pace) -> Iterator[list[_Taken]]:
        """The method's steps, up to the next one that is to be looked at, or its last; the model is behind that one."""
        from harness.numerics.weights import Weights

        weights, waiting, steps = self._start, list[_Taken](), self.steps()
        for number in itertools.count(1):
            try:
                progress = next(steps, None)
            except Diverged as error:
                progress, self._broke_off = None, f"it broke off: {error}"
            if progress is None:
                break
            weights = weights.then(Weights.of(self.context.model))
            waiting.append(_Taken(number, weights, progress))
            if number >= pace.due:
                yield waiting
                waiting = []
        if waiting:
            weights.place(self.context.model)
            yield waiting

    def _look_behind(self, step: _Taken, budget: float) -> Look:
        step.weights.place(self.context.model)
        return self._look(budget)

    def _look(self, budget: float) -> Look:
        with self.context.costs.phase("damage"):
            return self._meter.look(budget)

    def _between(
        self,
        under: Weights,
        before: Weights,
        after: Weights,
        damages: tuple[float, float],
        budget: float,
        progress: Progress,
    ) -> Progress | None:
        """The point between two steps at a budget, the model placed there; None where no place does so much damage.

        Where a few rows took the weights before the step for less than they are, it lies between earlier ones and those.

        Args:
            under: weights that are known, by all rows, to have done less.
            before: the weights before the step.
            after: those behind it.
            damages: about what the latter two did.
            budget: nats per token, between the two.
            progress: of the step.
        """
        measured: Damage | None = None

        def damage_at(share: float, start: Weights = before, end: Weights = after) -> float:
            nonlocal measured
            start.place(self.context.model, end, share)
            measured = self._damage()
            return measured.nats

        done, passed = damages
        met, several = meet(damage_at, End(0.0, done), End(1.0, passed), budget), {}
        if met.place is None and under is not before and (already := damage_at(0.0)) > budget:
            met = meet(partial(damage_at, start=under, end=before), End(0.0, 0.0), End(1.0, already), budget)
            several = {"over_several_steps": 1.0}
        if met.place is None or measured is None:
            no_place = f"no place between two steps does so much damage; the nearest does {met.nearest:.3g}"
            self.unreached[budget] = f"{BROKE} from step {progress.step} on" if math.isinf(met.nearest) else no_place
            return None
        return self._point(progress, measured, **{BUDGET: budget, "share_of_step": met.place}, **several)

    def _say_that_the_first_is_long(self, damage: float, met: Sequence[float]) -> None:
        within = ", ".join(f"{budget:g}" for budget in met)
        self.notes.append(
            f"the first step alone does a damage of {damage:.3g} nats per token: what stands at {within} lies on the straight "
            "line from the model before unlearning to it; a smaller step size would come there in steps"
        )
