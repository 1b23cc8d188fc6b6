"""The meta-evaluation: the models that metrics are tried on, and what is measured of them.

Two pools of models (one knows the forget set, one never did) say how faithful a metric is; unlearned models, as they are and
disturbed, say how robust it is (`harness.core.pools`; what comes of it: `harness.reading.meta`). Every model is an ordinary
record in a results folder of its own, so that what is done is not done again.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from harness.core.benchmark import BENCHMARKS, roles_of
from harness.core.config import JSON, resolve
from harness.core.errors import UsageError
from harness.core.evaluator import metric_of
from harness.core.fields import Field, folder, number, seeds, text
from harness.core.method import METHODS, Method
from harness.core.options import Options, Preset
from harness.core.pools import DISTURBED_MODEL, LEARNING_RATE, POOL_MODEL, RETRAINED, PoolModelConfig
from harness.models.small import small_name
from harness.running.plan import Plan, plan
from harness.running.request import MACHINE, MEASURING, WHAT
from harness.running.trials import EvalPlans, TrialSpec

LEARNT: dict[bool, Sequence[dict[str, JSON]]] = {
    knows: (
        {"learnt": usual},
        {"learnt": other},
        {"learnt": usual, "number": 1, "share_of_epochs": 0.5},
        {"learnt": usual, "number": 2, "share_of_epochs": 0.5, "share_of_lr": 0.5},
        {"learnt": other, "number": 1, "share_of_epochs": 0.5},
    )
    for knows, usual, other in ((True, "full", "paraphrased"), (False, "retain", "wrong"))
}
"""The models of each pool that are trained from their base: whether they know the forget set → settings."""
TUNED: Sequence[dict[str, JSON]] = tuple(
    {"tuned_on": texts, "lr": lr}
    for texts, lr in (
        ("retain", 3e-6),
        ("benign", 3e-6),
        ("retain", LEARNING_RATE),
        ("general", LEARNING_RATE),
    )
)
"""What is made of each of those, in turn."""
UNLEARNED = ("ga", "grad_diff", "idk", "kfade", "npo", "simnpo", "soul")
PRESETS: Sequence[Preset] = ("published", "tuned")
"""With what, and with which two settings, the models are unlearned that are disturbed; all take seconds on mini."""
RETRAINED_MODELS = 2
"""How many retrained ones are relearned to judge by."""
FEWEST, MOST = 5, 500
"""Models of a pool and world: at least those that are trained from their base."""


@dataclass(frozen=True, kw_only=True)
class MetaRequest:
    """On what metrics are tried."""

    bench: Annotated[str, Field(text, WHAT, short="-b", metavar="NAME", completes="benches")] = "tofu10"
    """The benchmark whose metrics are tried."""
    worlds: Annotated[tuple[int, ...], Field(seeds, WHAT, metavar="NUMBERS")] = (0, 2)
    """Seeds of the embedded worlds, parted by commas."""
    models: Annotated[int, Field(number(FEWEST, MOST), WHAT, metavar="NUMBER")] = 25
    """Models of each of the two pools, in each world; five are trained from their base, the others fine-tuned from those."""
    limit: Annotated[int | None, Field(number(), MEASURING, metavar="NUMBER")] = None
    """At most this many rows per split."""
    device: Annotated[str, Field(text, MACHINE, completes="auto|cpu|cuda|mps")] = "auto"
    """auto, cpu, cuda, cuda:N, mps."""
    data_dir: Annotated[Path | None, Field(folder, MACHINE, metavar="DIR", variable="HARNESS_DATA")] = None
    """A folder laid out by hub id, used before the hub."""

    def study(self) -> MetaStudy:
        """What is to be done.

        Raises:
            UsageError: for a device that is not there, and as `MetaStudy`.
        """
        from harness.numerics.placement import pick_device

        options = Options(limit=self.limit, device=pick_device(self.device), data_dir=self.data_dir)
        return MetaStudy(options, self.bench, self.worlds, self.models)


def _made(name: str) -> Method[Any]:
    """What makes such a model."""
    from harness.models import disturbed_models, pool_models

    return pool_models.METHOD if name == POOL_MODEL else disturbed_models.METHOD


@dataclass(frozen=True)
class MetaTrial(TrialSpec):
    """A model that metrics are tried on: made by what no list of methods holds."""

    def plan(self, eval_plans: EvalPlans) -> Plan:
        """Decide the run."""
        measured = self.eval_plan(eval_plans)
        decided = plan(self.bench, self.model, _made(self.method), {**self.chosen}, self.options, measured=measured)
        words = ["harness", "meta", "--bench", self.bench, "--worlds", self.model.partition("@")[2] or "0"]
        return replace(decided, selection=self.selection, command=shlex.join(words))


@dataclass
class MetaStudy:
    """The meta-evaluation, or a part of it.

    Args:
        options: device, limit and so on; evaluators and seeds are the study's.
        bench: whose metrics.
        worlds: seeds of the embedded worlds.
        models: of each pool in each world.

    Raises:
        UsageError: for a benchmark that does not say which of its metrics tell what is known.
    """

    options: Options = field(default_factory=Options)
    bench: str = "tofu10"
    worlds: Sequence[int] = (0, 2)
    models: int = 25

    def __post_init__(self) -> None:
        BENCHMARKS.get(self.bench)
        roles = roles_of(self.bench)
        if not roles.knowledge:
            able = [name for name in BENCHMARKS.names() if roles_of(name).knowledge]
            raise UsageError(
                f"{self.bench} does not say which of its metrics tell whether what is to be forgotten is known. "
                f"Take one of {', '.join(able)}."
            )
        names = [*roles.knowledge, *roles.kept[:1]]
        owners = [match[0].name for name in names if (match := metric_of(name))]
        self._options = replace(self.options, evals=tuple(dict.fromkeys(owners)), rows="none")

    def trials(self) -> list[MetaTrial]:
        """Every model: the unlearned ones; then the pools, first those trained from their base, then what is made of them."""
        return [*self._disturbed(), *self._pools()]

    def _pools(self) -> Iterator[MetaTrial]:
        for index in range(self.models):
            for world, knows in product(self.worlds, (True, False)):
                trained, rounds = LEARNT[knows][index % FEWEST], index // FEWEST
                settings = {**trained, **(TUNED[(rounds - 1) % len(TUNED)] if rounds else {})}
                yield self._trial(POOL_MODEL, world, settings, seed=rounds)

    def _disturbed(self) -> Iterator[MetaTrial]:
        for world in self.worlds:
            for number_of in range(RETRAINED_MODELS):
                yield self._trial(DISTURBED_MODEL, world, {"method": RETRAINED, "number": number_of})
            for name in UNLEARNED:
                for preset in self._presets(name, small_name(world, "").partition("@")[0]):
                    yield self._trial(DISTURBED_MODEL, world, {"method": name, "preset": preset})

    def _presets(self, name: str, family: str) -> Iterator[Preset]:
        """Those of a method that differ."""
        method, seen = METHODS.get(name), []
        for preset in PRESETS:
            if preset == "published" or any(e.preset == preset and e.holds_for(self.bench, family) for e in method.presets):
                config = resolve(method.config, method.preset(self.bench, family, preset), owner=name)
                if config not in seen:
                    seen.append(config)
                    yield preset

    def _trial(self, made: str, world: int, settings: dict[str, JSON], seed: int = 0) -> MetaTrial:
        options = replace(self._options, seed=seed)
        model = small_name(world, "")
        called = (
            f"pool {'P' if PoolModelConfig(learnt=settings['learnt']).knows else 'N'}" if made == POOL_MODEL else "disturbed"
        )
        return MetaTrial(
            *(self.bench, model, made, options, {}, settings), selection="meta-evaluation", called=f"{called}, {model}"
        )
