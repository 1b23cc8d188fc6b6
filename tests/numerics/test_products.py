"""Products by oneDNN against float64, and where they stay away."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.core.arithmetic import PORTABLE
from harness.numerics.products import LEAST_ROWS, onednn_products

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN")


def made(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of what goes through oneDNN."""
    seen: list[torch.Size] = []
    through = torch.ops.mkldnn._linear_pointwise

    def spied(rows: Tensor, *rest: object) -> Any:
        seen.append(rows.shape)
        return through(rows, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", spied)
    return seen


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [made(LEAST_ROWS, 33), made(3, 7, 33), made(2, 3, 5, 33), made(20, 66)[:, ::2]])
def test_a_product_is_that_of_float64(rows: Tensor, bias: bool, calls: list[torch.Size]):
    layer: Any = nn.Linear(33, 17, bias=bias)
    with torch.no_grad(), onednn_products(layer):
        found = layer(rows)
    assert calls == [rows.shape]
    wanted = rows.double() @ layer.weight.double().t() + (layer.bias.double() if bias else 0)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_gradients_other_types_and_few_rows_are_torchs_own(calls: list[torch.Size]):
    layer: Any = nn.Linear(33, 17)
    with onednn_products(layer):
        layer(made(20, 33)).sum().backward()
        with torch.no_grad():
            layer(made(LEAST_ROWS - 1, 33))
    for dtype in (torch.float64, torch.bfloat16):
        other: Any = nn.Linear(33, 17, dtype=dtype)
        with torch.no_grad(), onednn_products(other):
            assert other(made(20, 33).to(dtype)).dtype == dtype
    assert layer.weight.grad is not None
    assert calls == []


def test_layers_are_left_as_they_were_found_after_an_error_too(calls: list[torch.Size]):
    model: Any = nn.Sequential(nn.Linear(33, 17), nn.Linear(17, 5))
    hooked = model[1].forward = model[1].forward
    with pytest.raises(RuntimeError, match="inner product"), torch.no_grad(), onednn_products(model):
        model(made(200, 3))
    assert "forward" not in vars(model[0])
    assert model[1].forward is hooked, "what another hook put there"
    with torch.no_grad():
        model(made(20, 33))
    assert calls == [torch.Size((200, 3))]


def test_a_process_that_computes_alike_everywhere_keeps_to_torchs_own(calls: list[torch.Size], monkeypatch: pytest.MonkeyPatch):
    for name, value in PORTABLE.items():
        monkeypatch.setenv(name, value)
    layer: Any = nn.Linear(33, 17)
    with torch.no_grad(), onednn_products(layer):
        layer(made(20, 33))
    assert calls == []
