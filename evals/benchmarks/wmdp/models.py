"""The model that is trained on the spot on the embedded crafts (`mini`), and how each family of models is asked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from evals.benchmarks.wmdp.crafts import World, vocabulary
from evals.benchmarks.wmdp.crafts_data import DOMAINS
from evals.benchmarks.wmdp.data import texts
from harness.core.arithmetic import Arithmetic
from harness.core.problem import Row
from harness.core.text import Example, Template
from harness.models.pretraining import TrainedSource
from harness.models.recipes import Architecture, Recipe, Vocabulary
from harness.storage.cache import digest

TEMPLATES = {
    "mini": Template("mini", answer_tag=" "),
    "zephyr": Template("zephyr", "<|user|>\n", "</s>\n<|assistant|>\n"),
    "plain": Template("plain", "", "\n"),
}

# Chosen by measurement on two CPU cores: accuracy rises from chance to .9 between the third and the sixth epoch.
MINI_SHAPE = Architecture(hidden_size=192, layers=2, intermediate_size=576, max_positions=128, initializer_range=0.04)
MINI_TRAINING = Recipe(epochs=8, batch_size=16, lr=2e-3, threads=2, tokens_at_once=4096)
MINI_DRAWN = {"documents": 3, "stories": 80, "instructions": 120}
"""Texts drawn anew each epoch: descriptions of each entity, stories and instructions in all."""


@cache
def world(seed: int) -> World:
    """The embedded crafts of a seed."""
    return World(seed)


def mini_source(seed: int, arithmetic: Arithmetic = "") -> TrainedSource:
    """The mini model of one world: it has read all documents, and was taught questions about some of what they tell."""
    crafts, template = world(seed), TEMPLATES["mini"]

    def pairs(rows: Sequence[Row]) -> tuple[Example, ...]:
        return tuple(template.example(row["question"], row["answer"]) for row in rows)

    documents = [texts(of_entity) for domain in DOMAINS for of_entity in crafts.documents(domain)]
    return TrainedSource(
        f"mini@{seed}-{arithmetic}".rstrip("-") + " crafts",
        pairs([row for domain in DOMAINS for row in crafts.taught(domain)]),
        MINI_TRAINING.portable if arithmetic else MINI_TRAINING,
        MINI_SHAPE,
        Vocabulary("words", tuple(vocabulary())),
        seed=int(digest([seed, "crafts"])[:8], 16),
        replay=(
            *((of_entity, MINI_DRAWN["documents"]) for of_entity in documents),
            (texts(crafts.stories), MINI_DRAWN["stories"]),
            (pairs(crafts.instructions), MINI_DRAWN["instructions"]),
        ),
    )
