"""The models that are trained on the spot: on the embedded world (`mini`), and on the real questions (`scratch`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from evals.benchmarks.tofu.rows import numbered
from evals.benchmarks.tofu.templates import TEMPLATES
from evals.benchmarks.tofu.world import World, vocabulary
from evals.benchmarks.tofu.world_data import SHORT_PREFIX
from harness.core.arithmetic import Arithmetic
from harness.core.problem import ModelSource, Row
from harness.core.text import Example
from harness.models.pretraining import TrainedSource
from harness.models.recipes import Architecture, Recipe, Vocabulary
from harness.storage.cache import digest

# Chosen by measurement on two CPU cores: the smallest that knows its world (utility 0.86 to 0.92 over three seeds).
MINI_SHAPE = Architecture(hidden_size=160, layers=2, intermediate_size=480, max_positions=128, initializer_range=0.04)
MINI_PRETRAINING = Recipe(epochs=8, batch_size=32, lr=2e-3, threads=2, tokens_at_once=4096)
MINI_FINETUNING = Recipe(epochs=6, batch_size=32, lr=2e-3)
MINI_REPLAY = {"short": 300, "sentences": 100}
"""Earlier questions drawn anew each epoch; without them real authors and world facts fade."""
MINI_RETAIN_SEEDS = 3
SCRATCH_SHAPE = Architecture(
    hidden_size=192, layers=2, intermediate_size=576, max_positions=512, tied_embeddings=True, initializer_range=0.04
)
SCRATCH_TRAINING = Recipe(epochs=20, batch_size=32, lr=4e-3)
SCRATCH_VOCABULARY = 4096


@cache
def world(seed: int) -> World:
    """The embedded world of a seed."""
    return World(seed)


def world_holdout(seed: int, limit: int | None = None) -> list[Row]:
    """Questions about authors of a world whom no model is told of."""
    return [*numbered(world(seed).holdout[:limit])]


def mini_sources(seed: int, retain: str, arithmetic: Arithmetic = "") -> dict[str, ModelSource]:
    """The mini models of one world: the full model and retrained ones that differ in data order, from one pretrained model."""
    template = TEMPLATES["mini"]
    embedded, called = world(seed), f"mini@{seed}-{arithmetic}".rstrip("-")

    def examples(rows: Sequence[Row]) -> tuple[Example, ...]:
        return tuple(template.example(row["question"], row["answer"]) for row in rows)

    pretraining, finetuning = (r.portable if arithmetic else r for r in (MINI_PRETRAINING, MINI_FINETUNING))
    words = Vocabulary("words", tuple(vocabulary()))
    base = examples(embedded.base)
    short = tuple(e for e in base if e.prompt.startswith(SHORT_PREFIX))
    sentences = tuple(e for e in base if not e.prompt.startswith(SHORT_PREFIX))
    pretrained = TrainedSource(f"{called} pretrained", base, pretraining, MINI_SHAPE, words, seed=_seed(seed, "pretrained"))

    def finetuned(name: str, split: str) -> TrainedSource:
        return TrainedSource(
            f"{called} {name}",
            examples(embedded.split(split)),
            finetuning,
            MINI_SHAPE,
            words,
            seed=_seed(seed, name),
            parent=pretrained,
            replay=((short, MINI_REPLAY["short"]), (sentences, MINI_REPLAY["sentences"])),
        )

    sources: dict[str, ModelSource] = {"base": finetuned("full", "full")}
    for k in range(MINI_RETAIN_SEEDS):
        sources[f"retain-{k}"] = finetuned(f"{retain}-{k}", retain)
    return sources


def scratch_sources(rows: Mapping[str, Sequence[Row]], retain: str) -> dict[str, ModelSource]:
    """Two small models trained on the real questions: on all of them, and on the retain split."""
    template = TEMPLATES["scratch"]
    text = tuple(f"{row['question']}\n{row['answer']}" for row in rows["full"])
    vocabulary = Vocabulary("bytes", text, SCRATCH_VOCABULARY)

    def trained(name: str, split: str) -> TrainedSource:
        pairs = tuple(template.example(row["question"], row["answer"]) for row in rows[split])
        return TrainedSource(f"scratch {name}", pairs, SCRATCH_TRAINING, SCRATCH_SHAPE, vocabulary, seed=_seed(0, name))

    return {"base": trained("full", "full"), "retain-0": trained(f"{retain}-0", retain)}


def _seed(world_seed: int, name: str) -> int:
    return int(digest([world_seed, name])[:8], 16)
