"""What a method is, what it sees, and what it yields.

Loading a `Problem` gives an `UnlearningContext`, which is all a method sees; it is a generator that edits the model in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypedDict, TypeVar, Unpack

from harness.core.caching import CacheView
from harness.core.config import JSON
from harness.core.errors import UsageError
from harness.core.memory import MemoryItem, ModelShape
from harness.core.options import LoRA, Optimizer, Preset
from harness.core.problem import ModelSource, Problem, Stage
from harness.core.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.core.costs import Costs
    from harness.core.presets import PresetEntry

C = TypeVar("C")
Reach = Literal["steps", "free", "fixed"]
"""How a method meets a budget of damage. `steps`: the runner finds the place between two steps. `free`: its way has a length
that it chooses itself by `UnlearningContext.budget`, and it is started anew for every budget. `fixed`: it gives one model,
which is measured at its own damage."""


class Budget(Protocol):
    """A damage that a method with a free length is to do."""

    @property
    def nats(self) -> float:
        """How much, per token."""

    def damage(self) -> float:
        """What the model as it is now has done, on rows that no method trains on; infinite if it broke."""


C_contra = TypeVar("C_contra", contravariant=True)


@dataclass
class UnlearningContext:
    """All a method may see. It edits `model` in place."""

    model: PreTrainedModel
    """The model to unlearn from, in eval mode."""
    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer."""
    problem: Problem
    """The benchmark's data, its stages and its sources."""
    seed: int
    """The unlearning seed."""
    cache: CacheView
    """Where curvature and other costly things are kept between runs."""
    costs: Costs
    """Where a method says what took how long: `with context.costs.phase("curvature fit"): …`."""
    identity: str
    """A digest that names these weights without reading them; part of the keys of what depends on them."""
    budget: Budget | None = None
    """The damage that a method with a free length is to do, where budgets are given."""
    adapter: LoRA | None = None
    """What is trained in place of the weights, by a method that `takes_adapter`."""
    optimizer: Optimizer | None = None
    """How AdamW is kept, by a method that `takes_adapter` and has no `own_optimizer`; the usual way if None."""
    recompute: bool = False
    """Whether activations are recomputed whatever the model's size; the results are the same."""

    @property
    def stages(self) -> Sequence[Stage]:
        """What is to be unlearned, in order."""
        return self.problem.stages

    @property
    def sources(self) -> Mapping[str, ModelSource]:
        """Other models of the benchmark: `base`, `retain-0`, …."""
        return self.problem.sources

    def cached(self, kind: str, key: Mapping[str, JSON], make: Callable[[Path], None]) -> Path:
        """The folder of an entry of the cache; the clock counts in full what made it, whoever did.

        Args:
            kind: the sort of thing.
            key: all that decides the value.
            make: fills the folder if there is none yet.
        """
        entry = self.cache.get(kind, key, make)
        if not entry.made_now:
            self.costs.saved(entry.seconds - entry.waited)
        return entry.path


@dataclass(frozen=True)
class Progress:
    """What a method yields after every step."""

    step: int
    """Steps taken so far."""
    logged: Mapping[str, float] = field(default_factory=dict)
    """Numbers worth keeping: losses, norms, predicted and measured KL. They end in the point's record."""
    measure_here: bool = False
    """Whether a point of the trade-off curve is to be measured now."""
    total: int | None = None
    """How many steps there will be, None where nobody knows: for the progress bar, and where `--points last` has its point."""


class Unlearn(Protocol[C_contra]):
    """A method: a generator that edits `context.model` and yields as it goes. The clock runs only inside it."""

    def __call__(self, context: UnlearningContext, config: C_contra) -> Iterator[Progress]:
        """Edit `context.model`, step by step."""


@dataclass(frozen=True)
class Method(Generic[C]):
    """A registered method."""

    name: str
    """Its file's name."""
    config: type[C]
    """Its settings class."""
    source: str
    """The paper that defines it."""
    unlearn: Unlearn[C]
    """The method itself."""
    version: int = 1
    """Raised when a change of the method changes numbers."""
    skip_reason: Callable[[Problem], str | None] = lambda problem: None
    """Why it cannot run on a problem, or None if it can."""
    clash: Callable[[Problem, C], str | None] = lambda problem, config: None
    """Why it cannot run on a problem with these settings, or None if it can: what is known before any model is made."""
    memory: Callable[[ModelShape, C], Sequence[MemoryItem]] = lambda shape, config: ()
    """What it holds besides the weights, before anything is loaded."""
    memory_fallbacks: Sequence[Mapping[str, JSON]] = ()
    """Settings that need less memory, to be proposed where a run does not fit."""
    reach: Reach = "steps"
    """How it meets a budget of damage."""
    lengths: Sequence[str] = ()
    """Settings that say how far it goes, whose place budgets take."""
    with_budgets: Sequence[str] = ()
    """Settings that are read where budgets are given, and nowhere else."""
    reads_general: Callable[[C], bool] = lambda config: False
    """Whether it reads the problem's general text with these settings."""
    takes_adapter: bool = False
    """Whether low-rank adapters can be trained in place of the weights (`UnlearningContext.adapter`): it trains whatever is
    trainable, by the loop of the first-order methods, which sees to them."""
    own_optimizer: bool = False
    """Whether it steps there by an optimizer of its own, not by AdamW (`UnlearningContext.optimizer`)."""

    takes_shards: Callable[[C], bool] | None = None
    """Whether it can, with these settings, train a model of which every process holds a part (`harness.numerics.sharding`):
    the weights themselves, by the loop of the first-order methods, where each part of a step is one pass of the model and no
    copy of it is kept. None if it never can."""

    @property
    def takes_optimizer(self) -> bool:
        """Whether it trains by AdamW in the loop of the first-order methods."""
        return self.takes_adapter and not self.own_optimizer

    def refusal(self, problem: Problem, config: C) -> str | None:
        """Why it cannot run on a problem with these settings, or None if it can; `skip_reason` is about all settings."""
        if reason := self.clash(problem, config):
            return reason
        if self.reads_general(config) and not problem.general:
            return (
                f"{problem.bench} with {problem.model} has no general text to read; put tatsu-lab/alpaca/alpaca_data.json into "
                "the data folder"
            )
        return None

    def steps(self, context: UnlearningContext, config: C) -> Iterator[Progress]:
        """Its progress, step by step.

        Raises:
            UsageError: where the method is no generator: it changed the model before anybody looked.
        """
        steps: object = self.unlearn(context, config)
        if not isinstance(steps, Iterator):
            raise UsageError(
                f"the method {self.name} gives {type(steps).__name__} and yields nothing: write yield Progress(step, "
                "measure_here=True) where a point is to be measured."
            )
        return steps

    @property
    def presets(self) -> list[PresetEntry]:
        """What is published and what was tuned for it; see `harness.core.presets`."""
        from harness.core.presets import presets_of

        return presets_of(self.name, self.config, METHODS.names())

    def preset(self, bench: str, family: str, preset: Preset = "published") -> Mapping[str, JSON]:
        """The settings chosen for a benchmark and a model family (`mini` of `mini@1`), the most specific winning.

        What is tuned stands on what is published.

        Raises:
            UsageError: for tuned settings that the method does not have there; for a faulty file of presets.
        """
        from harness.core.presets import preset_settings

        return preset_settings(self.presets, self.name, bench, family, preset)


METHODS: Registry[Method[Any]] = Registry("method", "methods", "method", "harness list methods")


class Declared(TypedDict, Generic[C], total=False):
    """What a method may say of itself besides its settings and its source; see `Method`."""

    version: int
    skip_reason: Callable[[Problem], str | None]
    clash: Callable[[Problem, C], str | None]
    memory: Callable[[ModelShape, C], Sequence[MemoryItem]]
    memory_fallbacks: Sequence[Mapping[str, JSON]]
    reach: Reach
    lengths: Sequence[str]
    with_budgets: Sequence[str]
    reads_general: Callable[[C], bool]
    takes_adapter: bool
    takes_shards: Callable[[C], bool]
    own_optimizer: bool


def method(name: str, *, config: type[C], source: str, **declared: Unpack[Declared[C]]) -> Callable[[Unlearn[C]], Unlearn[C]]:
    """Register the decorated generator as a method under its file's name.

    Raises:
        UsageError: for a settings class that is none.
    """
    if not hasattr(config, "__dataclass_fields__"):
        raise UsageError(f"the settings of the method {name} are no settings: write @settings above class {config.__name__}.")

    def register(function: Unlearn[C]) -> Unlearn[C]:
        METHODS.register(name, Method(name=name, config=config, source=source, unlearn=function, **declared))
        return function

    return register
