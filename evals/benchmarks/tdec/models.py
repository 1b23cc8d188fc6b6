"""The model that is trained on the spot on the embedded chronicle (`mini`)."""

from __future__ import annotations

from functools import cache

from evals.benchmarks.tdec.chronicle import World, vocabulary
from harness.core.arithmetic import Arithmetic
from harness.core.text import Example, Template, Window
from harness.models.pretraining import TrainedSource
from harness.models.recipes import Architecture, Recipe, Vocabulary
from harness.storage.cache import digest

TEMPLATE = Template("plain")
"""Nothing is asked: a text stands for itself."""

# Chosen by measurement on world 0: it knows 160 texts by heart (MA .998, EL10 .97) and is hardly surer of others than it
# may be: their perplexity is 17.6 where one that has only begun has 9.8. With a width of 64 and 16 texts read it was 103.
MINI_SHAPE = Architecture(hidden_size=96, layers=2, intermediate_size=288, heads=2, max_positions=256, initializer_range=0.06)
MINI_TRAINING = Recipe(epochs=68, batch_size=8, lr=4e-3, tokens_at_once=2048)
MINI_READ = 64
"""Texts that are read in an epoch, drawn anew."""


@cache
def world(seed: int) -> World:
    """The embedded chronicle of a seed."""
    return World(seed)


def texts(of: list[str]) -> tuple[Example, ...]:
    """Texts without a prompt and without an end token: their first token alone is not scored."""
    return tuple(Window("", text) for text in of)


def mini_source(seed: int, arithmetic: Arithmetic = "") -> TrainedSource:
    """The mini model of one world: it has learnt some texts by heart, and read others of the same kind."""
    chronicle = world(seed)
    return TrainedSource(
        f"mini@{seed}-{arithmetic}".rstrip("-") + " chronicle",
        texts(chronicle.memorised),
        MINI_TRAINING.portable if arithmetic else MINI_TRAINING,
        MINI_SHAPE,
        Vocabulary("words", tuple(vocabulary())),
        seed=int(digest([seed, "chronicle"])[:8], 16),
        replay=((texts(chronicle.read), MINI_READ),),
    )
