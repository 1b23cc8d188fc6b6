"""Points at equal damage: where a method's way passes a budget, measured on rows held out for it.

A method that takes steps does not know of it. When a step takes the damage past a budget, the weights before and after that
step are interpolated until the damage measured on all budget rows is the budget, within `TOLERANCE`; the point is measured
there, and the method goes on from where it was. A method whose way has a length of its own is started anew for each budget and
told it. After the largest budget a run ends.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from harness.core.errors import Diverged
from harness.core.method import Progress, Reach, UnlearningContext
from harness.numerics.meeting import TOLERANCE, End, meet
from harness.storage.records import BUDGET, DAMAGE

if TYPE_CHECKING:
    from harness.numerics.damage import Damage, DamageMeter
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
        from harness.numerics.weights import Weights

        left, model = list(self.budgets), self.context.model
        before, done, most, why = self._start, 0.0, 0.0, "it never did so much damage"
        under = self._start  # the last weights that are known, by all rows, to have done less than the next budget
        last: Progress | None = None
        steps = self.steps()
        while left:
            try:
                progress = next(steps, None)
            except Diverged as error:
                why = f"it broke off: {error}"
                break
            if progress is None:
                break
            with self.context.costs.phase("damage"):
                damage, on_all = self._meter.look(left[0])
            after = Weights.of(model)
            most = max(most, damage)
            met = []
            while left and damage >= left[0]:
                if (point := self._between(under, before, after, (done, damage), left[0], progress)) is not None:
                    met.append(left[0])
                    yield point
                left.pop(0)
            if met and last is None:
                self._say_that_the_first_is_long(damage, met)
            if left:
                after.place(model)
            before, done, last = before.then(after), damage, progress
            under = before if on_all else under
        if left and last is not None and left[0] - done <= TOLERANCE * left[0]:  # where it ends is near enough
            before.place(model)
            yield self._point(last, self._damage(), **{BUDGET: left.pop(0), "share_of_step": 1.0})
        for budget in left:
            self.unreached[budget] = f"{why} ({most:.3g} at most)" if why.startswith("it never") else why

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
