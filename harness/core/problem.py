"""What is unlearned: a benchmark with its model chosen, all data read, every source named, nothing loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from harness.core.config import JSON
from harness.core.options import Options, Retain, Variant
from harness.core.text import Example, Template

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.core.evaluator import Evaluator
    from harness.storage.cache import Cache

Row = Mapping[str, Any]
"""One row of a data set, as read from its file."""
ROW_KEYS = ("task", "row", "cluster")
"""Columns of every table of rows: the set of questions, the row's number in it, and what rises and falls together."""


@dataclass(frozen=True)
class Stage:
    """One forget set and the retain set that guards it: ToFU has one; WMDP has bio, then cyber."""

    name: str
    """Such as `forget10`."""
    forget: Sequence[Example]
    """What the model should no longer say."""
    retain: Sequence[Example]
    """What it should go on saying."""


class ModelSource(Protocol):
    """Where a model comes from: the hub, a folder, or a recipe that trains it on the spot."""

    @property
    def identity(self) -> Mapping[str, JSON]:
        """All that decides the weights: id and revision, or recipe, data and seed. Holds no path of a machine."""

    def load(self, cache: Cache, device: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model in eval mode and its tokenizer; makes or fetches it first where need be."""

    def seconds(self, cache: Cache) -> float | None:
        """What making it once cost, where that is known."""


@dataclass(frozen=True)
class Task:
    """A benchmark with its model chosen: all data read, every source named, nothing loaded."""

    bench: str
    """Such as `tofu10`."""
    bench_version: int
    """Raised when a change of the benchmark changes numbers."""
    model: str
    """As asked for: `mini@1`, `llama2-7b`, `scratch`, a hub id."""
    stages: Sequence[Stage]
    """What is to be unlearned, in order."""
    questions: Mapping[str, Sequence[Row]]
    """What is evaluated, by task name (`forget`, `retain`, …); each row has at least `row` and `cluster`."""
    template: Template
    """How questions and answers become text."""
    sources: Mapping[str, ModelSource]
    """`base` (the model before unlearning), `retain-0`, `retain-1`, … and published checkpoints."""
    evaluators: Sequence[Evaluator]
    """What is measured at every point."""
    recorded: Mapping[str, Mapping[str, pd.DataFrame]] = field(default_factory=dict)
    """References known only from their evaluation logs: name → tables."""
    data: Mapping[str, JSON] = field(default_factory=dict)
    """Each data set with its content hash, for the run's hash and record."""
    variant: Variant = "original"
    """Whose metric definitions."""
    retain: Retain = "all"
    """Which of the benchmark's texts the stages' retain sets hold."""
    generation_budget: int = 200
    """Tokens an answer may take: with its prompt in the original's definition, by itself in open-unlearning's."""
    family: str = ""
    """Whose presets apply: `mini` of `mini@1`, or of a saved mini model; the model's name up to its `@` if empty."""
    refusals: Sequence[str] = ()
    """What a model that refuses may say, for methods that train on refusals."""
    notes: Sequence[str] = ()
    """What a reader must know of this benchmark with this model, shown under every table."""
    attacks: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    """What an unlearned model may be fine-tuned on to bring back what it forgot: `benign`, `related`, `forget` data."""
    options: Options = field(default_factory=Options)
    """What the command line decided, for evaluators that bring data of their own or ask a judge; set when a run is planned."""

    @property
    def basis(self) -> dict[str, JSON]:
        """What else the numbers rest on, by evaluator: a judge, data of its own; only of those that rest on something.

        Raises:
            UsageError: for data that is missing or malformed.
        """
        return {e.name: dict(inputs) for e in self.evaluators if (inputs := e.basis(self))}

    @property
    def versions(self) -> dict[str, int]:
        """What measures, and which version of its definition."""
        return {e.name: e.version_for(self) for e in self.evaluators}

    @property
    def references(self) -> list[str]:
        """The names of the retrained models that forget quality compares with, the headline one first."""
        return [*self.recorded, *(name for name in self.sources if name.startswith("retain-"))]
