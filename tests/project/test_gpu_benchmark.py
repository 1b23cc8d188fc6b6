"""The GPU's benchmark runs at all: on a CPU, with a tiny model."""

from __future__ import annotations

import math

import torch

from tests.perf.gpu import SIZES, measure


def test_every_part_is_timed_and_compared_with_the_floor():
    rows, found = measure(SIZES["tiny"], 4, torch.device("cpu"))
    over_floor = {name: float(ratio) for name, _, ratio, _ in rows if ratio}
    passes = ("K-FAC pass", "forget gradient", "EK-FAC pass")
    one_by_one = "EK-FAC pass, sequences one by one"
    assert {"floor", *passes, one_by_one, *(f"{name}, cast first" for name in passes)} == set(over_floor)
    assert all(math.isfinite(ratio) and ratio > 0 for ratio in over_floor.values())
    assert found["portions of all layers"] == 2
    assert found["error of TF32 in the spectrum"] == 0, "a CPU rounds to nothing"
