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


@pytest.mark.parametrize("shape", [(5, 64), (3, 200), (1, 1)])
def test_nf4_takes_the_nearest_level_of_its_block(shape: tuple[int, int]):
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    found, levels = rounding.rounded_to_nf4(weight).view(-1).double(), torch.tensor(rounding.NF4_LEVELS).double()
    assert len(levels) == 16
    for start in range(0, weight.numel(), 64):  # in the order of memory, across rows
        block = weight.reshape(-1)[start : start + 64].double()
        grid = levels * block.abs().max()
        nearest = grid[(block[:, None] - grid).abs().argmin(dim=1)]
        torch.testing.assert_close(found[start : start + 64], nearest, rtol=1e-6, atol=1e-7)


def test_nf4_is_what_bitsandbytes_stores():
    """As bitsandbytes 0.50.2 gives it: `dequantize_4bit(*quantize_4bit(w, blocksize=64, quant_type="nf4"))`."""
    weight = torch.linspace(-1, 1, 64, dtype=torch.float64).float()[None] ** 3 * 0.3
    runs = [(-0.3, 2), (-0.208857849, 3), (-0.157521918, 3), (-0.118475251, 2), (-0.085332416, 3), (-0.055432033, 3)]
    runs += [(-0.027315011, 5), (0.0, 22), (0.023874091, 5), (0.048279062, 3), (0.073833697, 2), (0.101374574, 2)]
    runs += [(0.132212952, 2), (0.16878511, 2), (0.216887057, 3), (0.3, 2)]
    expected = torch.tensor([[value for value, count in runs for _ in range(count)]])
    torch.testing.assert_close(rounding.rounded_to_nf4(weight), expected, rtol=1e-7, atol=1e-9)


def test_nf4_leaves_zeros_types_and_what_is_broken():
    assert rounding.rounded_to_nf4(torch.zeros(2, 5)).equal(torch.zeros(2, 5))
    assert rounding.rounded_to_nf4(torch.ones(2, 5, dtype=torch.bfloat16)).equal(torch.ones(2, 5, dtype=torch.bfloat16))
    assert rounding.rounded_to_nf4(torch.tensor([[float("nan"), 1.0]])).isnan().any()
