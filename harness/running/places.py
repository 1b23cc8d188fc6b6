"""The places on a method's way where a point is measured: where it says so, or where its damage meets a budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from harness.core.errors import UsageError
from harness.core.method import Progress, UnlearningContext
from harness.core.progress import progress_bar
from harness.core.streams import streams
from harness.numerics import group
from harness.running.plan import Plan

NOTHING_MEASURED = (
    "ended without a point to measure: nothing is recorded of it. It says where one is by Progress(step, measure_here=True, "
    "total=…), whose step is total at the last one; harness test-plugin checks a method of yours."
)


@dataclass
class Places:
    """A run's places, the model standing at each while it is given.

    Args:
        todo: the run.
        context: whose model is edited in place.
    """

    todo: Plan
    context: UnlearningContext
    notes: list[str] = field(default_factory=list)
    """What a reader must know of them."""
    unreached: Mapping[str, str] = field(default_factory=dict)
    """Budgets that were not met, each with the reason."""
    _before: float = 0.0

    @property
    def seconds(self) -> float:
        """What the method has taken for this place, with nothing cached; one that is started anew begins at 0."""
        return self.context.costs.phases["unlearning"].full_seconds - self._before

    def __iter__(self) -> Iterator[Progress]:
        """Each place.

        Raises:
            UsageError: in the end, where there was none and no budget says why.
        """
        places, given = self._places(), 0
        while True:
            with group.together():  # but not while a point is measured, which the first process does alone
                progress = next(places, None)
            if progress is None:
                break
            yield progress
            given += 1
        if not (given or self.unreached):
            raise UsageError(f"the method {self.todo.method.name} {NOTHING_MEASURED}")

    def _places(self) -> Iterator[Progress]:
        options = self.todo.options
        if not options.budgets:
            for progress in self._steps():
                if progress.measure_here and (options.points == "all" or progress.step == progress.total):
                    yield progress
            return
        from harness.running.budgets import BudgetedRun

        run = BudgetedRun(self.context, options.budgets, self.todo.method.reach, self._steps)
        yield from run.points()
        self.notes += run.notes
        self.unreached = {f"{budget:g}": reason for budget, reason in run.unreached.items()}

    def _steps(self) -> Iterator[Progress]:
        """The method's progress; the clock runs, and the bar moves, only inside it."""
        streams(self.todo.options.seed, "run").seed_torch()
        if (earlier := self.context.costs.phases.get("unlearning")) is not None:
            self._before = earlier.full_seconds
        steps = self.todo.method.steps(self.context, self.todo.config)
        with progress_bar(desc=self.todo.method.name, unit="step") as bar:
            while True:
                with self.context.costs.phase("unlearning"):
                    progress = next(steps, None)
                if progress is None:
                    return
                bar.total = progress.total
                bar.update(progress.step - bar.n)
                yield progress
