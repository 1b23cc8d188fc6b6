"""Random numbers by name: those in use keep the generators that they had, any other name has its own."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest
import torch

from harness.core.streams import HISTORIC, streams

SEEDS = (0, 3)

NUMPY = {
    "refusals": ((10, 7), lambda seed, step, row: np.random.default_rng([seed, step, row])),
    "curvature labels": ((5,), lambda seed, row: np.random.default_rng([seed, row])),
    "kfade rows": ((), lambda seed: np.random.default_rng([seed, 1])),
    "rmu direction": ((1,), lambda seed, number: np.random.default_rng([seed, number])),
    "elm texts": ((1, 9, 2), lambda seed, number, turn, purpose: np.random.default_rng([seed, number, turn, purpose])),
    "sophia labels": ((4, 1, 6), lambda seed, refreshes, side, row: np.random.default_rng([*[seed, refreshes, side], row])),
    "bootstrap": ((), lambda seed: np.random.default_rng(seed)),
    "paired resamples": ((1, 40), lambda seed, place, count: np.random.default_rng([seed, place, count])),
}
"""Name → (a place, the expression that stood in the code before the name)."""
TORCH = {
    "run": ((), lambda seed: torch.Generator().manual_seed(seed)),
    "initial weights": ((), lambda seed: torch.Generator().manual_seed(seed)),
    "batches": ((), lambda seed: torch.Generator().manual_seed(seed)),
    "partners": ((), lambda seed: torch.Generator().manual_seed(seed + 1)),
    "frozen partner": ((8,), lambda seed, row: torch.Generator().manual_seed(row)),
    "adapters": ((), lambda seed: torch.Generator().manual_seed(seed)),
    "singular vectors": ((), lambda seed: torch.Generator().manual_seed(seed)),
    "elm dropout": (
        (5, 100, 2, 3),
        lambda seed, number, steps, index, terms: torch.Generator().manual_seed((seed * steps + number) * terms + index),
    ),
}
PYTHON = {
    "order": ((), lambda seed: random.Random(f"order {seed}")),
    "world": ((), lambda seed: random.Random(f"world {seed}")),
    "wrong answers": ((12,), lambda seed, number: random.Random(f"wrong {seed} {number}")),
    "real authors": ((), lambda seed: random.Random(f"real authors {seed}")),
    "world facts": ((), lambda seed: random.Random(f"world facts {seed}")),
    "crafts": (("bread",), lambda seed, name: random.Random(f"crafts {seed} {name}")),
    "documents": (("a title",), lambda seed, title: random.Random(f"documents {seed} {title}")),
    "stories": ((), lambda seed: random.Random(f"stories {seed}")),
    "instructions": ((), lambda seed: random.Random(f"instructions {seed}")),
    "choices": (("Which?",), lambda seed, question: random.Random(f"choices {seed} {question}")),
    "instructions of a file": ((), lambda seed: random.Random(seed)),
}


def test_every_name_in_use_is_compared_with_what_it_was():
    assert NUMPY.keys() | TORCH.keys() | PYTHON.keys() == HISTORIC.keys()
    assert len(NUMPY) + len(TORCH) + len(PYTHON) == len(HISTORIC)


@pytest.mark.parametrize(("name", "seed"), list(product(NUMPY, SEEDS)))
def test_a_name_in_use_keeps_its_numpy_generator(name: str, seed: int):
    place, before = NUMPY[name]
    assert streams(seed, name, *place).numpy().random(4).tolist() == before(seed, *place).random(4).tolist()


@pytest.mark.parametrize(("name", "seed"), list(product(TORCH, SEEDS)))
def test_a_name_in_use_keeps_its_torch_generator(name: str, seed: int):
    place, before = TORCH[name]
    expected = torch.rand(4, generator=before(seed, *place)).tolist()
    stream = streams(seed, name, *place)
    assert torch.rand(4, generator=stream.torch()).tolist() == expected
    with torch.random.fork_rng(devices=[]):
        stream.seed_torch()
        assert torch.rand(4).tolist() == expected


@pytest.mark.parametrize(("name", "seed"), list(product(PYTHON, SEEDS)))
def test_a_name_in_use_keeps_pythons_generator(name: str, seed: int):
    place, before = PYTHON[name]
    ours, theirs = streams(seed, name, *place).python(), before(seed, *place)
    assert [ours.random() for _ in range(4)] == [theirs.random() for _ in range(4)]


def test_another_name_seed_or_place_draws_other_numbers():
    places = [(0, "a"), (0, "b"), (1, "a"), (0, "a", 1), (0, "a", 2), (0, "a", "1")]
    for kind in ("numpy", "python", "torch"):
        drawn = [getattr(streams(*place), kind)() for place in places]
        first = [float(torch.rand(1, generator=rng)) if kind == "torch" else rng.random() for rng in drawn]
        assert len(set(first)) == len(places)


def test_each_call_begins_anew():
    stream = streams(0, "a")
    assert stream.numpy().random() == stream.numpy().random()


def test_a_place_that_a_name_does_not_have_is_refused():
    with pytest.raises(TypeError):
        streams(0, "partners", 1)
