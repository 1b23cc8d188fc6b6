"""Products by oneDNN against float64, and where they stay away."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.core.arithmetic import PORTABLE
from harness.numerics.products import LEAST_ROWS, OneDNNProducts

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN")


def made(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of what goes through oneDNN."""
    seen: list[torch.Size] = []
    through = torch.ops.mkldnn._linear_pointwise

    def spied(rows: Tensor, *rest: object) -> Tensor:
        seen.append(rows.shape)
        return through(rows, *rest)  # type: ignore[no-any-return]

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", spied)
    return seen


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(LEAST_ROWS,), (3, 7), (2, 3, 5)])
def test_a_product_is_that_of_float64(shape: tuple[int, ...], bias: bool, calls: list[torch.Size]):
    layer = torch.nn.Linear(33, 17, bias=bias)
    rows = made(*shape, 33)
    with torch.no_grad(), OneDNNProducts():
        found = layer(rows)
    assert calls == [rows.shape]
    wanted = rows.double() @ layer.weight.double().t() + (layer.bias.double() if bias else 0)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_columns_of_a_larger_matrix_are_rows_too(calls: list[torch.Size]):
    rows, weight = made(20, 66)[:, ::2], made(17, 66)[:, :33]
    with torch.no_grad(), OneDNNProducts():
        found = F.linear(rows, weight)
    assert len(calls) == 1
    torch.testing.assert_close(found.double(), rows.double() @ weight.double().t(), rtol=1e-5, atol=1e-5)


def test_gradients_other_types_and_few_rows_are_torchs_own(calls: list[torch.Size]):
    layer = torch.nn.Linear(33, 17)
    with OneDNNProducts():
        layer(made(20, 33)).sum().backward()
        with torch.no_grad():
            for dtype in (torch.float64, torch.bfloat16):
                assert F.linear(made(20, 33, dtype=dtype), made(17, 33, dtype=dtype)).dtype == dtype
            layer(made(LEAST_ROWS - 1, 33))
            F.linear(made(20, 33), weight=layer.weight, bias=None)
    with torch.no_grad():
        layer(made(20, 33))
    assert layer.weight.grad is not None
    assert calls == []


def test_a_process_that_computes_alike_everywhere_keeps_to_torchs_own(calls: list[torch.Size], monkeypatch: pytest.MonkeyPatch):
    for name, value in PORTABLE.items():
        monkeypatch.setenv(name, value)
    with torch.no_grad(), OneDNNProducts():
        F.linear(made(20, 33), made(17, 33))
    assert calls == []
