"""The meta-evaluation out of its records: how faithful and how robust each metric of a benchmark is.

The records are those of `harness meta`; formulas: `harness.statistics.trust`. A number that cannot be computed is absent, with
its reason. Nothing here knows a metric by name: which there are, and which way they lie where the forget set is known, the
benchmark says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from harness.core.benchmark import roles_of
from harness.core.config import resolve
from harness.core.evaluator import metric_of
from harness.core.measurement import Absent, Measurement
from harness.core.metric import TwoSample
from harness.core.pools import DISTURBANCES, DISTURBED_MODEL, POOL_MODEL, RETRAINED, DisturbedModelConfig, PoolModelConfig
from harness.statistics import trust
from harness.statistics.trust import Estimate
from harness.storage.records import RunResult

if TYPE_CHECKING:
    import numpy as np

KEPT = 0.8
"""The share of the untouched model's utility that an unlearned model must have kept, as in UDS's meta-evaluation."""


@dataclass(frozen=True)
class Judged:
    """A metric, or the closest of several references by it."""

    metric: str
    """Its name."""
    title: str
    """Its heading."""
    known: Literal["higher", "lower"]
    """Which way it lies where the forget set is known."""
    closest: bool = False
    """Whether the reference counts that is the closest, of several; else the first."""

    def value(self, item: Measurement) -> float | None:
        """Its number, larger where more is known; None where only one reference was compared with."""
        value = item.value
        if self.closest:
            if item.across_references is None:
                return None
            value = item.across_references[self.known == "lower"]
        return value if self.known == "higher" else 1 - value


@dataclass(frozen=True)
class PoolModel:
    """A model of a pool, with what was measured of it."""

    world: str
    """The model's name there."""
    config: PoolModelConfig
    """What it has learnt."""
    items: Mapping[str, Measurement | Absent]
    """By metric."""


@dataclass(frozen=True)
class DisturbedModel:
    """An unlearned or retrained model, with what was measured of it at each of `DISTURBANCES`."""

    world: str
    """The model's name there."""
    config: DisturbedModelConfig
    """How it was unlearned."""
    points: Sequence[Mapping[str, Measurement | Absent]]
    """In that order."""
    kept: float | None
    """Its utility as a share of the untouched model's; None where that was not measured."""

    @property
    def counts(self) -> bool:
        """Whether it was unlearned and has kept enough."""
        return self.config.method != RETRAINED and self.kept is not None and self.kept >= KEPT


@dataclass(frozen=True)
class Trust:
    """How far a metric is to be trusted; a text says why there is no such number."""

    judged: Judged
    """The metric."""
    faithfulness: Estimate | str
    """How well it tells both pools apart."""
    same_words: Estimate | str
    """The same of the models alone that were told the forget answers as they stand, and of those that were told none."""
    robustness: Mapping[str, Estimate | str]
    """By what, in `FORMS`: of `relearned`, `8 bits`, `4 bits`, and of relearning and 4 bits together."""
    known: int
    """Models of pool P."""
    never: int
    """Models of pool N."""
    unlearned: int
    """Unlearned models."""


SYMMETRIC, ONE_SIDED = "symmetric", "one-sided"
_RELEARNED, *_BITS = DISTURBANCES[1:]
FORMS = tuple(f"{what}, {form}" for form in (SYMMETRIC, ONE_SIDED) for what in (_RELEARNED, *_BITS, "robustness"))
"""The numbers of robustness, by name."""


@dataclass(frozen=True)
class MetaEvaluation:
    """What the records of one benchmark say."""

    bench: str
    """The benchmark."""
    variant: str
    """Whose metric definitions."""
    pools: Sequence[PoolModel]
    """Models that know, and models that never did."""
    disturbed: Sequence[DisturbedModel]
    """Unlearned and retrained models."""
    references: int
    """Retrained models that metrics compare with."""

    @property
    def worlds(self) -> list[str]:
        """The models' names, in order."""
        return sorted({each.world for each in self.pools})

    def count(self, knows: bool, trained: bool = False) -> list[int]:
        """Models of a pool, world by world; only those that were trained from their base, if asked."""
        of_pool = [each for each in self.pools if each.config.knows == knows]
        counted = [each for each in of_pool if not trained or each.config.tuned_on == "nothing"]
        return [sum(each.world == world for each in counted) for world in self.worlds]

    @property
    def methods(self) -> list[str]:
        """With what models were unlearned."""
        return sorted({each.config.method for each in self.disturbed} - {RETRAINED})

    @cached_property
    def judged(self) -> list[Judged]:
        """The benchmark's metrics; one that compares with references twice, where there are several."""
        listed = []
        for name, known in roles_of(self.bench).knowledge.items():
            match = metric_of(name)
            title = match[1].title if match else name
            listed.append(Judged(name, title, known))
            if match and isinstance(match[1].statistic, TwoSample) and self.references > 1:
                listed.append(Judged(name, f"{title}, closest of {self.references} references", known, closest=True))
        return listed

    @cached_property
    def trust(self) -> list[Trust]:
        """Every metric's numbers, in the benchmark's order."""
        return [self._trust(judged) for judged in self.judged]

    def _trust(self, judged: Judged) -> Trust:
        measured = [each for each in self.pools if _value(judged, each.items) is not None]
        moved = self._moved(judged)
        reason = self._reason(judged, [point for each in self.disturbed for point in each.points])
        return Trust(
            judged,
            self._faithfulness(judged, measured),
            self._faithfulness(judged, [each for each in measured if each.config.same_words]),
            _robustness(moved) if moved else dict.fromkeys(FORMS, reason),
            sum(each.config.knows for each in measured),
            sum(not each.config.knows for each in measured),
            len(moved),
        )

    def _faithfulness(self, judged: Judged, models: Sequence[PoolModel]) -> Estimate | str:
        worlds = []
        for world in self.worlds:
            both = [
                _pool(judged, [each for each in models if each.world == world and each.config.knows == knows])
                for knows in (True, False)
            ]
            if all(len(pool.values) for pool in both):
                worlds.append((both[0], both[1]))
        return trust.faithfulness(worlds) if worlds else self._reason(judged, [each.items for each in self.pools])

    def _reason(self, judged: Judged, measured: Iterable[Mapping[str, Measurement | Absent]]) -> str:
        """Why a metric has no number."""
        items = [item for each in measured if (item := each.get(judged.metric))]
        reason = next((item.reason for item in items if isinstance(item, Absent)), "")
        return reason or ("too few models are recorded" if items else "it was not measured")

    def _moved(self, judged: Judged) -> list[_Moved]:
        """How far it moved, model by model, of those that count and have all numbers."""
        moved = []
        for world in sorted({each.world for each in self.disturbed}):
            of_world = [each for each in self.disturbed if each.world == world]
            values = [(each, [_value(judged, point) for point in each.points]) for each in of_world]
            whole = [(each, known) for each, known in values if len(known) == len(DISTURBANCES) and None not in known]
            by = [known[1] - known[0] for each, known in whole if each.config.method == RETRAINED]  # type: ignore[operator]
            if by:
                of_retrained = sum(by) / len(by)
                moved += [_Moved(each.config.method, known, of_retrained) for each, known in whole if each.counts]  # type: ignore[arg-type]
        return moved


@dataclass(frozen=True)
class _Moved:
    """A metric's values on an unlearned model at each of `DISTURBANCES`."""

    method: str
    values: Sequence[float]
    of_retrained: float
    """By how much relearning moved it on retrained models of the same world."""


def _value(judged: Judged, items: Mapping[str, Measurement | Absent]) -> float | None:
    item = items.get(judged.metric)
    return judged.value(item) if isinstance(item, Measurement) else None


def _pool(judged: Judged, models: Sequence[PoolModel]) -> trust.Pool:
    import numpy as np

    values = np.array([_value(judged, each.items) for each in models], dtype=float)
    return trust.Pool(values, np.array([each.config.cluster for each in models]))


def _robustness(moved: Sequence[_Moved]) -> dict[str, Estimate | str]:
    import numpy as np

    values = np.array([each.values for each in moved])  # [n, disturbances]
    methods, of_retrained = np.array([each.method for each in moved]), np.array([each.of_retrained for each in moved])
    estimates: dict[str, Estimate | str] = {}
    for form in (SYMMETRIC, ONE_SIDED):
        symmetric = form == SYMMETRIC
        parts: dict[str, np.ndarray] = {_RELEARNED: trust.relearning(values[:, 1] - values[:, 0], of_retrained, symmetric)}
        for place, bits in enumerate(_BITS, start=2):
            parts[bits] = trust.rounding(values[:, 0], values[:, place], symmetric)
        estimates |= {f"{what}, {form}": trust.mean(part, methods) for what, part in parts.items()}
        estimates[f"robustness, {form}"] = trust.robustness(parts[_RELEARNED], parts[_BITS[-1]], methods)
    return estimates


# ---------------------------------------------------------------- out of records


def meta_evaluations(runs: Iterable[RunResult]) -> list[MetaEvaluation]:
    """What records say, benchmark by benchmark; those of other rows, definitions or devices apart.

    Args:
        runs: records, of pools and disturbed models or others.
    """
    done = [run for run in runs if run.spec.method in (POOL_MODEL, DISTURBED_MODEL) and run.status == "done" and run.points]
    made = []
    for (bench, variant, *_), group in groupby(sorted(done, key=_identity), key=_identity):
        records = list(group)
        pools = [_pool_model(run) for run in records if run.spec.method == POOL_MODEL]
        disturbed = [_disturbed(run) for run in records if run.spec.method == DISTURBED_MODEL]
        references = min(sum(name.startswith("retain-") for name in run.spec.sources) for run in records)
        made.append(MetaEvaluation(bench, variant, pools, disturbed, references))
    return [each for each in made if each.pools]


def _identity(run: RunResult) -> tuple[str, ...]:
    spec = run.spec
    versions = ",".join(f"{name} {version}" for name, version in sorted(spec.evaluators.items()))
    return (spec.bench, spec.variant, str(spec.bench_version), str(spec.limit or ""), spec.dtype, spec.device, versions)


def _items(measurements: Iterable[Measurement | Absent]) -> dict[str, Measurement | Absent]:
    return {item.metric: item for item in measurements}


def _pool_model(run: RunResult) -> PoolModel:
    config = resolve(PoolModelConfig, run.spec.config, owner=run.spec.method)
    return PoolModel(run.spec.model, config, _items(run.points[-1].measurements))


def _disturbed(run: RunResult) -> DisturbedModel:
    config = resolve(DisturbedModelConfig, run.spec.config, owner=run.spec.method)
    points = [_items(point.measurements) for point in run.points]
    before: Any = _items(run.references.get("untouched", ()))
    kept = next(iter(roles_of(run.spec.bench).kept), "")
    now, then = points[0].get(kept), before.get(kept)
    both = isinstance(now, Measurement) and isinstance(then, Measurement) and then.value
    share = now.value / then.value if both else None  # type: ignore[union-attr]
    return DisturbedModel(run.spec.model, config, points, share)
