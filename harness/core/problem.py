"""What is unlearned: a benchmark with its model chosen, all data read, every source named, nothing loaded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from harness.core.caching import CacheView
from harness.core.config import JSON
from harness.core.options import Retain
from harness.core.text import Example, Template

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    retain_clusters: Sequence[str] = ()
    """What each of these is about (ToFU: its author), where that is known: what is held out is held out whole."""
    evaluated_clusters: Collection[str] = frozenset()
    """Those of them that a metric asks about, where no text's prompt says so: they are never held out."""


@dataclass(frozen=True)
class Probe:
    """A prompt, and what in the continuation gives a fact away."""

    prompt: str
    """What the model reads, template included."""
    words: Sequence[str] = ()
    """Words that must all occur in what it says."""
    text: str = ""
    """Where no such words are known: a text of which it must repeat most."""


@dataclass(frozen=True)
class Fact:
    """Something that may be known, and the ways to ask for it."""

    cluster: str
    """What rises and falls together: whom it is about."""
    probes: Mapping[str, Sequence[Probe]]
    """By wording, such as `paraphrase`: prompts, of which any may give the fact away."""


class ModelSource(Protocol):
    """Where a model comes from: the hub, a folder, or a recipe that trains it on the spot."""

    @property
    def identity(self) -> Mapping[str, JSON]:
        """All that decides the weights: id and revision, or recipe, data and seed. Holds no path of a machine."""

    def load(self, cache: CacheView, device: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model in eval mode and its tokenizer; makes or fetches it first where need be."""

    def seconds(self, cache: CacheView) -> float | None:
        """What making it once cost, where that is known."""


@dataclass(frozen=True)
class Problem:
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
    """What is evaluated, by the set's name (`forget`, `retain`, …); each row has at least `row` and `cluster`."""
    template: Template
    """How questions and answers become text."""
    sources: Mapping[str, ModelSource]
    """`base` (the model before unlearning), `retain-0`, `retain-1`, … and published checkpoints."""
    data: Mapping[str, JSON] = field(default_factory=dict)
    """Each data set with its content hash, for the run's hash and record."""
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
    general: Sequence[Example] = ()
    """Text of no stage and of no reported metric, on which a method may guard what else the model knows."""
    general_clusters: Sequence[str] = ()
    """What each of these is about, where retain sets are about the same: what is held out there is left out of these."""
    guarded: Collection[str] = frozenset()
    """The clusters of evaluated questions that `general` says something else about; of the others no method sees anything."""
    unseen: Sequence[Example] = ()
    """Text about those others: damage is measured on it, and no method reads it."""
    spare: Sequence[Example] = ()
    """Retain text that a limit left out: budget rows, where metrics ask about all that it let through."""
    held_out: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    """Budget rows, where budgets are given: `retain` and `general` text that damage is measured on and nothing else reads."""
    holdout: Callable[[], Sequence[Row]] | None = None
    """Reads questions with answers of the same kind that no model was trained on, to tell members of a training set from; None
    where there are none. Read by those alone who compare with them: nobody else waits for a file, or misses one."""
    paraphrased_questions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Of some sets of `questions`, each row's question in other words."""
    evaluators: Sequence[str] = ()
    """Evaluators by which this model is measured beside the benchmark's own: of what it knows, and another one does not."""
    facts: Callable[[], Mapping[str, Sequence[Fact]]] | None = None
    """Makes the facts of some sets of `questions`, each with the ways to ask for it; None where they are not known."""
    attacks: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    """What an unlearned model may be fine-tuned on to bring back what it forgot: `benign`, `related`, `forget` data."""
    retold: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    """The questions about what is to be forgotten with other answers: `paraphrased`, right ones in other words, and `wrong`.
    Who has learnt the first knows what is to be forgotten; who has learnt the second does not, and has seen such text."""
