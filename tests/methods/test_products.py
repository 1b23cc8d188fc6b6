"""Products summed in float32 whatever the model's type; what a GPU is given is watched on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from methods.curvature import products
from methods.curvature.products import add_product, add_square, mirrored, no_finer_than, total_of


def drawn(seed: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(300, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_low_precision_inputs_lose_nothing_in_the_sum(dtype: torch.dtype):
    left, right = drawn(0, 5, dtype), drawn(1, 7, dtype)
    totals: dict[int, Tensor] = {}
    for _ in range(2):
        add_product(total_of(totals, 0, (5, 7), left), left, right, scale=0.5)
    exact = left.double().T @ right.double()
    assert totals[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(totals[0].double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("left", "right"), [(20, 30), (30, 20)])
def test_a_wide_product_on_a_cpu_goes_through_onednn(left: int, right: int, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, ...]] = []
    through = products.transposed_product
    monkeypatch.setattr(products, "transposed_product", lambda one, other: seen.append(one.shape) or through(one, other))
    monkeypatch.setattr(products, "multiplies", lambda rows: rows.dtype == torch.float32)
    monkeypatch.setattr(products, "LEAST_WIDTH", 20)
    for dtype in (torch.float32, torch.float64):
        one, other = drawn(0, left, dtype), drawn(1, right, dtype)
        total = torch.ones(left, right, dtype=dtype)
        add_product(total, one, other, scale=0.5)
        torch.testing.assert_close(total.double(), 1 + 0.5 * one.double().T @ other.double(), rtol=1e-5, atol=1e-4)
        add_product(total[:19], one[:, :19], other)
    assert seen == [(300, left)], "neither float64 nor what is narrow"


@pytest.mark.parametrize("columns", [1, 5, 17, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_half_of_a_square_is_all_of_it(dtype: torch.dtype, columns: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(products, "WIDE", 1)
    totals: dict[int, Tensor] = {}
    exact = torch.zeros(columns, columns, dtype=torch.float64)
    for seed in range(2):
        rows = drawn(seed, columns, dtype)
        add_square(total_of(totals, 0, (columns, columns), rows), rows, scale=0.5)
        exact += 0.5 * rows.double().T @ rows.double()
    if columns > products.PANELS:
        assert totals[0].tril(-columns // 2).abs().max() == 0, "far under the diagonal nothing was multiplied"
    torch.testing.assert_close(mirrored(totals[0]).double(), exact, rtol=1e-5, atol=1e-4)


def test_narrow_squares_are_multiplied_whole():
    rows, (one, other) = drawn(0, 40, torch.float32), torch.zeros(2, 40, 40)
    add_square(one, rows)
    assert one.tril(-20).abs().max() > 0
    add_product(other, rows, rows)
    assert torch.equal(mirrored(one), other)


class OnGPU(Tensor):
    """A tensor of the CPU that says it lies on a GPU."""

    @property
    def device(self) -> Any:  # type: ignore[override]
        return torch.device("cuda")


def test_a_gpu_multiplies_low_precision_as_it_is_and_sums_in_float32(monkeypatch: pytest.MonkeyPatch):
    given: list[tuple[torch.dtype, torch.dtype]] = []

    def mm(left: Tensor, right: Tensor, *, out_dtype: torch.dtype) -> Tensor:
        given.append((left.dtype, out_dtype))
        return left.as_subclass(Tensor).to(out_dtype) @ right.as_subclass(Tensor).to(out_dtype)

    monkeypatch.setattr(products.torch, "mm", mm)
    left, right = (drawn(seed, 4, torch.bfloat16).as_subclass(OnGPU) for seed in (0, 1))
    total = torch.ones(4, 4)
    add_product(total, left, right, scale=0.25)
    assert given == [(torch.bfloat16, torch.float32)]
    expected = 1 + 0.25 * left.as_subclass(Tensor).double().T @ right.as_subclass(Tensor).double()
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-4)
    add_product(total, left.float(), right.float())
    assert len(given) == 1, "float32 is multiplied in full"


def test_tf32_is_allowed_for_inputs_of_low_precision_alone_and_for_no_longer():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    for dtype, within in ((torch.float32, before), (torch.float64, before), (torch.bfloat16, "tf32"), (torch.float16, "tf32")):
        with no_finer_than(dtype):
            assert matmul.fp32_precision == within
        assert matmul.fp32_precision == before


def test_an_error_leaves_products_as_they_were():
    before = torch.backends.cuda.matmul.fp32_precision
    with pytest.raises(ZeroDivisionError), no_finer_than(torch.bfloat16):
        raise ZeroDivisionError
    assert torch.backends.cuda.matmul.fp32_precision == before
