"""The study of methods at equal damage: tries on a world of their own, then what they choose, reported on two others.

Everything is an ordinary record. What is chosen is read from the records of the tries every time and written down nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from harness.core.benchmark import roles_of
from harness.core.config import JSON
from harness.core.errors import UsageError, unknown
from harness.core.measurement import Measurement
from harness.core.options import Options
from harness.core.ranges import Arm, arms
from harness.running.studies import EQUAL_DAMAGE, possible
from harness.running.trials import EvalPlans, TrialSpec
from harness.storage.records import RunResult, Trial
from harness.storage.store import Store

Phase = Literal["both", "tries", "reported"]
TRIED_ON, TRIED_SEED = "mini@1", 0
"""The world whose authors no reported number is about."""
CHOSEN_AT = 0.01
"""The damage at which settings are chosen, in nats per token."""
REPORTED_ON = ("mini", "mini@2")
SEEDS = (0, 1, 2)
ATTACKED_SEED = 0
ATTACK = "finetune_attack"
_ANSWERED_AT = (0.01, 0.1)
_BUDGETS = (0.003, 0.01, 0.03, 0.1)


@dataclass(frozen=True)
class OfBench:
    """What is done on a benchmark."""

    tries: int = 12
    """Settings of every method; of none where another benchmark's choice is taken."""
    chosen_on: str = ""
    """The benchmark whose choice is taken; its own if empty."""
    budgets: tuple[float, ...] = _BUDGETS
    """At which likelihoods are measured."""
    answers: bool = True
    """Whether the benchmark's own evaluators measure anything besides."""


BENCHES: Mapping[str, OfBench] = {
    "tofu10": OfBench(),
    "tofu05": OfBench(chosen_on="tofu10"),
    "wmdp-bio": OfBench(6, budgets=(*_BUDGETS, 0.3), answers=False),
}


@dataclass(frozen=True)
class Chosen:
    """A method's settings as its tries chose them."""

    settings: Mapping[str, JSON]
    """What differs from its preset."""
    selection: str = ""
    """On what they were chosen, for every number that rests on them; empty where there was nothing to choose."""


@dataclass
class EqualDamageStudy:
    """The study, or a part of it.

    Args:
        store: where the tries' records are.
        options: device, limit and so on; seeds, evaluators and budgets are the study's.
        benches: on which benchmarks; on all of the study's if empty.
        methods: which methods, or forms of them by their own names; all if empty.
        seeds: unlearning seeds of what is reported.

    Raises:
        UsageError: for a benchmark that the study is not on, or a method that is not known.
    """

    store: Store
    options: Options = field(default_factory=Options)
    benches: Sequence[str] = ()
    methods: Sequence[str] = ()
    seeds: Sequence[int] = ()
    eval_plans: EvalPlans = field(default_factory=dict)
    """Data that has been read."""

    def __post_init__(self) -> None:
        every = arms()
        for bench in self.benches:
            if bench not in BENCHES:
                raise unknown(f"benchmark of the study {EQUAL_DAMAGE}", bench, BENCHES)
        for name in self.methods:
            if not any(name in (arm.name, arm.method) for arm in every):
                raise unknown("method", name, [arm.name for arm in every], "harness list methods")
        self.benches = self.benches or tuple(BENCHES)
        self.arms = [arm for arm in every if not self.methods or {arm.name, arm.method} & {*self.methods}]

    def phases(self, phase: Phase, undecided: bool = False) -> list[Callable[[], list[TrialSpec]]]:
        """What makes the runs of each phase, in order; the second reads what the first recorded.

        Args:
            phase: which.
            undecided: as `reported` has it.
        """
        made: dict[str, Callable[[], list[TrialSpec]]] = {"tries": self.tries, "reported": partial(self.reported, undecided)}
        return [of_phase for name, of_phase in made.items() if phase in (name, "both")]

    # ---- tries

    def tries(self) -> list[TrialSpec]:
        """Every try, benchmark by benchmark, method by method; a benchmark that takes another's choice has that one's."""
        benches = dict.fromkeys(BENCHES[bench].chosen_on or bench for bench in self.benches)
        return [todo for bench in benches for arm in self.arms for todo in self.tries_of(arm, bench)]

    def tries_of(self, arm: Arm, bench: str) -> list[TrialSpec]:
        """A method's tries on a benchmark; none where there is nothing to choose."""
        if not arm.tried:
            return []
        number = BENCHES[bench].tries
        options, metric = self._tried(bench), roles_of(bench).selection
        rows = f"first {limit} rows per split" if (limit := options.limit) else "all evaluated rows"
        split = f"{rows} of {bench} on {TRIED_ON}, seed {TRIED_SEED}, at a damage of {CHOSEN_AT:g} nats per token"
        drawn = arm.tries(bench, TRIED_ON.partition("@")[0], number)
        return [
            TrialSpec(
                *(bench, TRIED_ON, arm.method, options, arm.settings, settings),
                trial=Trial(index=index, tries=number, search="even", metric=metric, split=split),
                called=f"{arm.name}, try {index + 1}",
            )
            for index, settings in enumerate(drawn)
        ]

    def chosen_settings(self, arm: Arm, bench: str) -> Chosen:
        """What a method's tries chose: the highest score at the damage where they are compared, the earlier of equal ones.

        Where none of them did so much damage, or none can run there, its preset.

        Raises:
            UsageError: if not all of its tries are recorded; names the command that makes them.
        """
        on = BENCHES[bench].chosen_on or bench
        drawn = self.tries_of(arm, on)
        tries, _ = possible(drawn, self.eval_plans)
        if not tries:
            return Chosen({})
        records = [self.store.find(todo.plan(self.eval_plans).spec) for todo in tries]
        done = [record for record in records if record and record.status != "interrupted"]
        if len(done) < len(tries):
            raise UsageError(
                f"of the {len(tries)} tries of {arm.name} on {on} {len(done)} are recorded. Make them, other flags as here: "
                f"harness study {EQUAL_DAMAGE} --bench {on} --method '{arm.name}' --phase tries."
            )
        metric = roles_of(on).selection
        scores = [_score(record, metric) for record in done]
        broke, refused = sum(record.status == "failed" for record in done), len(drawn) - len(tries)
        lost = ", ".join(f"{number} {what}" for number, what in ((broke, "failed"), (refused, "refused")) if number)
        tried = f"{len(drawn)} tries" + (f" ({lost})" if lost else "")
        where = f"{tried} on {on} with {TRIED_ON}, seed {TRIED_SEED}, by {metric} at a damage of {CHOSEN_AT:g} nats per token"
        best = max(range(len(scores)), key=lambda index: scores[index])
        if scores[best] == -math.inf:
            return Chosen({}, f"published form: none of {where} came to that damage")
        return Chosen(tries[best].chosen, f"tuned form: best of {where} (number {drawn.index(tries[best]) + 1})")

    # ---- what is reported

    def reported(self, undecided: bool = False) -> list[TrialSpec]:
        """Every reported run: likelihoods at all budgets; at two of them answers, and on one seed attacks.

        Args:
            undecided: list a method whose tries are not all there as well, with its preset in place of what they will choose.

        Raises:
            UsageError: as `chosen_settings`.
        """
        specs: list[TrialSpec] = []
        for bench in self.benches:
            for arm in self.arms:
                chosen = self._chosen(arm, bench, undecided)
                for model in REPORTED_ON:
                    for seed in self.seeds or SEEDS:
                        specs += self._of_seed(arm, bench, model, seed, chosen)
        return specs

    def _chosen(self, arm: Arm, bench: str, undecided: bool) -> Chosen:
        try:
            return self.chosen_settings(arm, bench)
        except UsageError:
            if undecided:
                return Chosen({}, "to be chosen")
            raise

    def _of_seed(self, arm: Arm, bench: str, model: str, seed: int, chosen: Chosen) -> Iterator[TrialSpec]:
        of = BENCHES[bench]
        likelihoods = replace(self.options, seed=seed, evals=tuple(roles_of(bench).likelihood_evaluators), budgets=of.budgets)
        for what, options in (("likelihoods", likelihoods), ("answers", self._answers(of, seed))):
            if options:
                yield TrialSpec(
                    *(bench, model, arm.method, options, arm.settings, chosen.settings),
                    selection=chosen.selection,
                    called=f"{arm.name}, {what}, {model}" + (", to be chosen" if chosen.selection == "to be chosen" else ""),
                )

    def _answers(self, of: OfBench, seed: int) -> Options | None:
        """What is measured at two budgets; None where nothing is."""
        attacked = (f"+{ATTACK}" if of.answers else ATTACK,) if seed == ATTACKED_SEED else ()
        if not (of.answers or attacked):
            return None
        return replace(self.options, seed=seed, evals=attacked, budgets=_ANSWERED_AT, rows="none")

    def _tried(self, bench: str) -> Options:
        """The options of a try."""
        chosen_by = (roles_of(bench).selection,)
        return replace(self.options, seed=TRIED_SEED, evals=chosen_by, budgets=(CHOSEN_AT,), rows="none")


def _score(record: RunResult, metric: str) -> float:
    """A try's score at the damage where tries are compared; minus infinity where it has none."""
    for point in record.points:
        if point.budget == CHOSEN_AT:
            values = [m.value for m in point.measurements if isinstance(m, Measurement) and m.metric == metric]
            return values[0] if values else -math.inf
    return -math.inf
