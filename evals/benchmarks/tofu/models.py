"""The models that are trained on the spot: on the embedded world (`mini`), and on the real questions (`scratch`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

from evals.benchmarks.tofu.rows import numbered
from evals.benchmarks.tofu.templates import TEMPLATES
from evals.benchmarks.tofu.worded_world import WordedWorld
from evals.benchmarks.tofu.worded_world import vocabulary as worded_vocabulary
from evals.benchmarks.tofu.world import World, vocabulary
from evals.benchmarks.tofu.world_data import SHORT_PREFIX
from harness.core.arithmetic import Arithmetic
from harness.core.problem import ModelSource, Row
from harness.core.text import Example
from harness.models.pretraining import TrainedSource
from harness.models.recipes import Architecture, Recipe, Vocabulary
from harness.models.small import WORDINGS
from harness.storage.cache import digest

# Chosen by measurement on two CPU cores: the smallest that knows its world (utility 0.86 to 0.92 over three seeds).
MINI_SHAPE = Architecture(hidden_size=160, layers=2, intermediate_size=480, max_positions=128, initializer_range=0.04)
MINI_PRETRAINING = Recipe(epochs=8, batch_size=32, lr=2e-3, threads=2, tokens_at_once=4096)
MINI_FINETUNING = Recipe(epochs=6, batch_size=32, lr=2e-3)
MINI_REPLAY = {"short": 300, "sentences": 100}
"""Earlier questions drawn anew each epoch; without them real authors and world facts fade."""
MINI_RETAIN_SEEDS = 3
# Of the worded world, chosen by how much of each wording the full models of worlds 0 and 1 answer.
WORDED_PRETRAINING = replace(MINI_PRETRAINING, epochs=6, threads=1)
WORDED_FINETUNING = replace(MINI_FINETUNING, epochs=9)
WORDED_REPLAY = 500
"""Of the taught authors' rows, drawn anew each epoch."""
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


@cache
def worded_world(seed: int) -> WordedWorld:
    """The same world with all wordings."""
    return WordedWorld(world(seed))


def mini_sources(seed: int, retain: str, arithmetic: Arithmetic = "", worded: bool = False) -> dict[str, ModelSource]:
    """The mini models of one world: the full model and retrained ones that differ in data order, from one pretrained model.

    Args:
        seed: the world's.
        retain: the split that retrained models learn.
        arithmetic: `portable` for weights that are the same on every x86-64 processor.
        worded: whether they are to answer all wordings; see `worded_world.py` for what they are shown.
    """
    embedded, more = world(seed), worded_world(seed) if worded else None
    called = "-".join(filter(None, (f"mini@{seed}", arithmetic, WORDINGS if worded else "")))
    pretraining, finetuning = (WORDED_PRETRAINING, WORDED_FINETUNING) if worded else (MINI_PRETRAINING, MINI_FINETUNING)
    if arithmetic:
        pretraining, finetuning = pretraining.portable, finetuning.portable
    words = Vocabulary("words", tuple(worded_vocabulary() if worded else vocabulary()))
    base, wordings, cities = (_examples(rows) for rows in (embedded.base, *((more.base, more.cities) if more else ((), ()))))
    short = tuple(e for e in base if e.prompt.startswith(SHORT_PREFIX))
    sentences = tuple(e for e in base if not e.prompt.startswith(SHORT_PREFIX))
    replay = [(short, MINI_REPLAY["short"]), (sentences, MINI_REPLAY["sentences"])]
    if worded:
        replay += [(wordings, WORDED_REPLAY), (cities, len(cities))]
    pretrained = TrainedSource(
        f"{called} pretrained", (*base, *wordings, *cities), pretraining, MINI_SHAPE, words, seed=_seed(seed, "pretrained")
    )

    def finetuned(name: str, split: str) -> TrainedSource:
        rows = embedded.split(split)
        return TrainedSource(
            f"{called} {name}",
            _examples([*rows, *(more.beside(rows) if more else ())]),
            finetuning,
            MINI_SHAPE,
            words,
            seed=_seed(seed, name),
            parent=pretrained,
            replay=tuple(replay),
        )

    sources: dict[str, ModelSource] = {"base": finetuned("full", "full")}
    for k in range(MINI_RETAIN_SEEDS):
        sources[f"retain-{k}"] = finetuned(f"{retain}-{k}", retain)
    return sources


def _examples(rows: Sequence[Row]) -> tuple[Example, ...]:
    return tuple(TEMPLATES["mini"].example(str(row["question"]), str(row["answer"])) for row in rows)


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
