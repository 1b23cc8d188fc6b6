"""Products summed in float32 whatever the model's type; what a GPU is given is watched on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from harness.data.rows import Encoded
from harness.numerics.products import in_wide_products
from methods.curvature import products
from methods.curvature.factors import covariance_sums
from methods.curvature.gradients import gradient_matrices
from methods.curvature.layers import mlp_layers
from methods.curvature.products import add_product, add_square, mirrored, no_finer_than, summed_in, total_of
from methods.curvature.signals import SampledLabels, true_labels


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


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of what goes through oneDNN."""
    seen: list[torch.Size] = []
    multiplied = products.transposed_product
    monkeypatch.setattr(products, "transposed_product", lambda one, other: seen.append(one.shape) or multiplied(one, other))
    return seen


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN")
@pytest.mark.parametrize(("left", "right"), [(20, 30), (30, 20)])
def test_a_product_goes_through_onednn_where_that_is_asked_for(left: int, right: int, by_onednn: list[torch.Size]):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        one, other = drawn(0, left, dtype), drawn(1, right, dtype)
        total = torch.ones(left, right, dtype=summed_in(dtype))
        add_product(total, one, other, scale=0.5, onednn=True)
        torch.testing.assert_close(total.double(), 1 + 0.5 * one.double().T @ other.double(), rtol=1e-5, atol=1e-4)
    add_product(torch.ones(left, right), drawn(0, left, torch.float32), drawn(1, right, torch.float32))
    add_product(torch.ones(left, right), drawn(0, left, torch.float32)[:7], drawn(1, right, torch.float32)[:7], onednn=True)
    assert by_onednn == [(300, left)], "float32 alone, not of a few rows, and not unasked"


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN")
def test_curvature_of_wide_models_alone_goes_through_onednn(by_onednn: list[torch.Size], monkeypatch: pytest.MonkeyPatch):
    shape = {"intermediate_size": 600, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    model = LlamaForCausalLM(LlamaConfig(hidden_size=24, **shape)).eval()
    layers, encoded = mlp_layers(model), [Encoded(list(range(n, n + 20)), 3) for n in range(4)]

    def fitted() -> list[Tensor]:
        sums = covariance_sums(model, layers, encoded, 0, SampledLabels(encoded, 1, 0))
        gradients = gradient_matrices(model, layers, encoded, 0, true_labels(68, "margin", 0))
        return [*sums.a.values(), *sums.s.values(), *gradients]

    plain = fitted()
    assert by_onednn == [], "an MLP of 600 makes no wide model of one of 24"
    monkeypatch.setattr("harness.numerics.products.LEAST_WIDTH", 24)
    in_wide_products(model)
    wide = fitted()
    assert len(by_onednn) == len(plain)
    for one, other in zip(plain, wide, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


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
