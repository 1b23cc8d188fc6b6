"""Weights stored with few bits: each goes to the nearest step of its group, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

from harness.numerics import rounding


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 64), (4, 3), (2, None)])
def test_each_weight_goes_to_the_nearest_step_of_its_group(bits: int, group: int | None):
    weight = torch.randn(5, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).float()
    found = rounding.rounded(weight, bits, group)
    highest = 2 ** (bits - 1) - 1
    for row in range(5):
        for start in range(0, 200, group or 200):
            part = weight[row, start : start + (group or 200)].double()
            grid = torch.arange(-highest, highest + 1).double() * part.abs().max() / highest
            nearest = grid[(part[:, None] - grid).abs().argmin(dim=1)]
            got = found[row, start : start + (group or 200)].double()
            torch.testing.assert_close(got, nearest, rtol=1e-5, atol=1e-6)


def test_zeros_stay_zeros_and_types_stay_types():
    assert rounding.rounded(torch.zeros(2, 5), 4, 64).equal(torch.zeros(2, 5))
    assert rounding.rounded(torch.ones(2, 5, dtype=torch.bfloat16), 8).dtype == torch.bfloat16
    assert rounding.rounded(torch.tensor([[float("nan"), 1.0]]), 8).isnan().any()


def test_what_is_on_the_grid_stays_where_it_is():
    weight = rounding.rounded(torch.randn(4, 128, generator=torch.Generator().manual_seed(0)), 4, 64)
    torch.testing.assert_close(rounding.rounded(weight, 4, 64), weight)
