"""Runs with budgets, sorted into comparisons at equal damage: one for each benchmark, over worlds and seeds.

A world is a model with its data and budget rows; what is compared at one budget is measured in the same worlds. What stands for
a contender (a method with its settings) at a budget is the median over worlds and seeds. Runs that were tries for settings are
in none. Several runs of one contender, world and seed complete one another: what the one with more budgets measured counts.
Imports no torch.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from harness.core.benchmark import roles_of
from harness.core.config import to_json
from harness.core.measurement import Absent, Measurement
from harness.core.metric import MetricRoles
from harness.reading.contenders import Contender, contenders_of, key_of, selections_of
from harness.reading.rows import REFERENCE_METHODS
from harness.storage.cache import canonical, digest
from harness.storage.identity import FIELDS, IDENTITY
from harness.storage.records import Point, RunResult, RunSpec

if TYPE_CHECKING:
    import pandas as pd

JUDGED_AT = 0.01
"""The budget, in nats per token, at which contenders are ranked and told apart; the middle one where it is none of them."""
_WORLD = ("model", "weights", "data", "retrained models", "budget rows")
"""What of a record's identity makes a world; comparisons differ in the rest."""


@dataclass(frozen=True)
class Target:
    """One contender in one world, with one seed, at one budget."""

    contender: Contender
    """Whose."""
    world: str
    """Where."""
    seed: int
    """The unlearning seed."""
    budget: float | None
    """In nats per token; None for a model at its own damage."""


@dataclass(frozen=True)
class Spot(Target):
    """What was measured where a budget was met."""

    damage: float
    """As measured."""
    values: Mapping[str, Measurement | Absent]
    """By metric."""
    places: Mapping[str, tuple[RunSpec, int]]
    """By metric, the run and the index of its point."""

    def number(self, metric: str) -> float | None:
        """A metric's value; None where it was not measured."""
        value = self.values.get(metric)
        return value.value if isinstance(value, Measurement) else None


@dataclass(frozen=True)
class Unmet(Target):
    """Why it was not."""

    reason: str
    """Why."""


@dataclass(frozen=True)
class Middle:
    """A number over worlds and seeds."""

    value: float
    """The median."""
    low: float
    """The lowest."""
    high: float
    """The highest."""
    n: int
    """Worlds × seeds that have it."""
    example: Measurement
    """One of them, for what they share: unit, direction, version."""


@dataclass
class EqualDamage:
    """A comparison of contenders on one benchmark, at the same damages."""

    identity: Mapping[str, object]
    """What all its runs share."""
    spots: Sequence[Spot]
    """Sorted by contender, world, seed and budget."""
    unmet: Sequence[Unmet]
    """Likewise."""
    references: Mapping[str, Mapping[str, Mapping[str, Measurement]]]
    """By world and reference: its measurements by metric."""
    selections: Mapping[str, Sequence[str]]
    """How settings were chosen → the labels of the contenders that it holds for."""
    notes: list[str] = field(default_factory=list)
    """What was left out, and why."""

    @property
    def bench(self) -> str:
        """The benchmark."""
        return str(self.identity["benchmark"])

    @property
    def roles(self) -> MetricRoles:
        """Which part its metrics play."""
        return roles_of(self.bench)

    @property
    def targets(self) -> list[Target]:
        """All that was met, and what was not."""
        return [*self.spots, *self.unmet]

    @property
    def worlds(self) -> list[str]:
        """Their names."""
        return sorted({each.world for each in self.targets})

    @property
    def budgets(self) -> list[float]:
        """All that any run was measured at, or was to be."""
        return sorted({each.budget for each in self.targets if each.budget is not None})

    @property
    def judged_at(self) -> float | None:
        """The budget at which contenders are ranked; None where all stand at their own damage."""
        budgets = self.budgets
        return JUDGED_AT if JUDGED_AT in budgets else budgets[(len(budgets) - 1) // 2] if budgets else None

    @property
    def contenders(self) -> list[Contender]:
        """Those that are measured at budgets, by name."""
        return _in_order(each.contender for each in self.targets if each.budget is not None)

    @property
    def fixed(self) -> list[Contender]:
        """Those at a damage of their own, by name."""
        return _in_order(each.contender for each in self.spots if each.budget is None)

    @property
    def metrics(self) -> list[str]:
        """All that were measured, the headline first."""
        seen, first = dict.fromkeys(metric for spot in self.spots for metric in spot.values), self.roles.headline
        return [m for m in first if m in seen] + sorted(m for m in seen if m not in first)

    def of(self, contender: Contender, budget: float | None) -> list[Spot]:
        """A contender's spots at a budget, one for each world and seed."""
        return [spot for spot in self.spots if spot.contender == contender and spot.budget == budget]

    def middle(self, contender: Contender, budget: float | None, metric: str) -> Middle | None:
        """A contender's number at a budget; None where nothing measured it."""
        return _middle([m for spot in self.of(contender, budget) if isinstance(m := spot.values.get(metric), Measurement)])

    def damage(self, contender: Contender, budget: float | None) -> float | None:
        """The median of the measured damages at a budget."""
        damages = [spot.damage for spot in self.of(contender, budget)]
        return median(damages) if damages else None

    def reference(self, name: str, metric: str) -> Middle | None:
        """A reference's number over worlds; None where none has it."""
        return _middle([m for of in self.references.values() if (m := of.get(name, {}).get(metric))])

    def floor(self, metric: str) -> float | None:
        """The noise floor: the largest over worlds of what two retrained models differ by."""
        values = (spot.values.get(metric) for spot in self.spots)
        return max((m.floor for m in values if isinstance(m, Measurement) and m.floor is not None), default=None)

    def reasons(self, contender: Contender, budget: float) -> list[str]:
        """Why a contender has no point at a budget, each reason with how many worlds × seeds it is about."""
        of = [each.reason for each in self.unmet if each.contender == contender and each.budget == budget]
        alike: dict[str, list[str]] = {}
        for reason in of:
            alike.setdefault(_NUMBER.sub("#", reason), []).append(reason)
        return [_in_one(like) if len(of) == 1 else f"{_in_one(like)} ({len(like)} of {len(of)})" for like in alike.values()]

    def tried(self, contender: Contender) -> int:
        """In how many worlds × seeds a contender was run, whether or not it met a budget."""
        return len({(each.world, each.seed) for each in self.targets if each.contender == contender})

    @property
    def uneven(self) -> list[str]:
        """A note on contenders that were run in fewer worlds × seeds than others: their medians are over others."""
        tried = {each.label: self.tried(each) for each in self.contenders}
        most = max(tried.values(), default=0)
        fewer = [f"{label} ({of})" for label, of in tried.items() if of < most]
        return [f"Run in fewer worlds × seeds than others ({most}), their medians over fewer: {', '.join(fewer)}."] * bool(
            fewer
        )

    @property
    def chosen(self) -> list[str]:
        """A note for each of the ways in which settings were chosen, with whose."""
        return [f"Settings, {how}: {', '.join(labels)}." for how, labels in self.selections.items()]

    def table(self) -> pd.DataFrame:
        """Every number: a row a contender, world, seed, budget and metric, and one for each budget that was not met."""
        import pandas as pd

        rows: list[dict[str, object]] = []
        for spot in self.spots:
            place = self._place(spot) | {"damage": spot.damage}
            for metric, item in spot.values.items():
                spec, index = spot.places[metric]
                rows.append({**place, "metric": metric, **_columns(item), "run": spec.run_id, "point": index})
        rows += [{**self._place(each), "absent": each.reason} for each in self.unmet]
        return pd.DataFrame(rows, columns=COLUMNS)

    def _place(self, each: Target) -> dict[str, object]:
        who = each.contender
        place = {"bench": self.bench, "world": each.world, "contender": who.label, "method": who.method}
        return place | {"preset": who.protocol, "seed": each.seed, "budget": each.budget}


COLUMNS = (
    *("bench", "world", "contender", "method", "preset", "seed", "budget", "damage", "metric"),
    *("version", "value", "low", "high", "unit", "better", "n", "reference", "floor", "absent", "run", "point"),
)


def _columns(item: Measurement | Absent) -> dict[str, object]:
    if isinstance(item, Absent):
        return {"absent": item.reason}
    low, high = item.interval_95 or (None, None)
    names = ("version", "value", "unit", "better", "n", "reference", "floor")
    return {name: getattr(item, name) for name in names} | {"low": low, "high": high}


_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def _in_one(reasons: Sequence[str]) -> str:
    """Reasons that differ in their numbers as one, each number from the lowest to the highest."""
    numbers = zip(*(_NUMBER.findall(reason) for reason in reasons), strict=True)
    ends = [sorted(set(each), key=float) for each in numbers]
    spans = iter([of[0] if len(of) == 1 else f"{of[0]} to {of[-1]}" for of in ends])
    return _NUMBER.sub(lambda _: next(spans), reasons[0])


def _middle(measured: Sequence[Measurement]) -> Middle | None:
    if not measured:
        return None
    values = [m.value for m in measured]
    return Middle(median(values), min(values), max(values), len(values), measured[0])


def _in_order(contenders: Iterable[Contender]) -> list[Contender]:
    return sorted(set(contenders), key=lambda each: (each.method in REFERENCE_METHODS, each.label))


# ---------------------------------------------------------------- out of records


def comparisons(results: Iterable[RunResult]) -> list[EqualDamage]:
    """Records with budgets, sorted into comparisons by benchmark, kind of model and definitions; others are passed over."""
    alike: dict[str, tuple[dict[str, object], list[RunResult]]] = {}
    for result in results:
        if result.spec.budgets and result.trial is None:
            shown = {part.title: part.shown(result.spec) for part in IDENTITY if part.title not in _WORLD}
            identity = {**shown, "model": _without_seed(result.spec.model)}
            alike.setdefault(canonical(identity), (identity, []))[1].append(result)
    made = [_comparison(identity, group) for identity, group in alike.values()]
    return sorted(made, key=lambda each: [str(value) for value in each.identity.values()])


def _without_seed(model: str) -> str:
    """What a model is called whose world does not matter: `mini` of `mini@2`, `mini@wordings` of `mini@2-wordings`."""
    return re.sub(r"@\d+(?:-|$)", "@", model).rstrip("@")


def _comparison(identity: Mapping[str, object], every: Sequence[RunResult]) -> EqualDamage:
    runs, notes = _newest(every)
    worlds, contenders = _worlds(runs), contenders_of(runs)
    by_place: dict[tuple[Contender, str, int], list[RunResult]] = defaultdict(list)
    for result in runs:
        by_place[contenders[key_of(result)], worlds[_world(result.spec)], result.spec.seed].append(result)
    spots: list[Spot] = []
    unmet: list[Unmet] = []
    for (contender, world, seed), of in by_place.items():
        of.sort(key=lambda result: (-len(result.spec.budgets), -len(result.spec.evaluators), result.spec.run_id))
        new_spots = _spots(contender, world, seed, of)
        met = {point.budget for result in of for point in result.points}
        reasons = {float(budget): why for result in reversed(of) for budget, why in result.unreached.items()}
        new_unmet = [Unmet(contender, world, seed, budget, why) for budget, why in reasons.items() if budget not in met]
        if not (new_spots or new_unmet):
            notes.append(f"Not shown, since it has no point with a damage: {contender.label} ({world}, seed {seed}).")
        spots += new_spots
        unmet += new_unmet
    references: dict[str, dict[str, dict[str, Measurement]]] = defaultdict(lambda: defaultdict(dict))
    for result in runs:
        for name, items in result.references.items():
            known = references[worlds[_world(result.spec)]][name]
            known |= {m.metric: m for m in items if isinstance(m, Measurement) and m.metric not in known}
    spots.sort(key=lambda spot: (spot.contender.label, spot.world, spot.seed, spot.budget or float("inf")))
    unmet.sort(key=lambda each: (each.contender.label, each.world, each.seed, each.budget or float("inf")))
    return EqualDamage(identity, spots, unmet, references, selections_of(runs, contenders), notes)


def _spots(contender: Contender, world: str, seed: int, results: Sequence[RunResult]) -> list[Spot]:
    """One for each budget; where several runs measured a metric, the first one's number counts."""
    points: dict[float | None, list[tuple[RunResult, Point]]] = defaultdict(list)
    for result in results:
        for point in result.points:
            if point.damage is not None:
                points[point.budget].append((result, point))
    spots = []
    for budget, of in points.items():
        values: dict[str, Measurement | Absent] = {}
        places: dict[str, tuple[RunSpec, int]] = {}
        for result, point in of:
            for item in point.measurements:
                if item.metric not in values or (isinstance(values[item.metric], Absent) and isinstance(item, Measurement)):
                    values[item.metric], places[item.metric] = item, (result.spec, point.index)
        spots.append(Spot(contender, world, seed, budget, of[0][1].damage or 0.0, values, places))
    return spots


def _newest(results: Sequence[RunResult]) -> tuple[list[RunResult], list[str]]:
    """Finished runs of each method's newest version and of the evaluators' newest ones; says what was left out."""
    notes = [
        f"Not shown, since not done: {r.spec.method} ({r.spec.model}, seed {r.spec.seed}) {r.status}"
        for r in results
        if r.status != "done"
    ]
    done = [result for result in results if result.status == "done"]
    methods: dict[str, int] = {}
    evaluators: dict[str, int] = {}
    for result in done:
        spec = result.spec
        methods[spec.method] = max(methods.get(spec.method, 0), spec.method_version)
        evaluators |= {name: max(evaluators.get(name, 0), version) for name, version in spec.evaluators.items()}
    newest = [
        result
        for result in done
        if result.spec.method_version == methods[result.spec.method]
        and all(version == evaluators[name] for name, version in result.spec.evaluators.items())
    ]
    if left := len(done) - len(newest):
        notes.append(f"Not shown, since there are runs of a newer version of the method or of a metric: {left} runs.")
    return newest, sorted(notes)


def _world(spec: RunSpec) -> str:
    fields_of_world = [name for part in IDENTITY if part.title in _WORLD for name in part.fields]
    document = to_json(spec)
    return digest([document[name] for name in FIELDS if name in fields_of_world])[:8]


def _worlds(results: Iterable[RunResult]) -> dict[str, str]:
    """World → its model's name, with its digest where two worlds have one name."""
    models = {_world(result.spec): result.spec.model for result in results}
    names = list(models.values())
    return {world: model if names.count(model) == 1 else f"{model} ({world})" for world, model in models.items()}
