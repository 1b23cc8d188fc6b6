"""Products by oneDNN against float64, and where they stay away."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from harness.core.arithmetic import PORTABLE
from harness.numerics import products
from harness.numerics.products import LEAST_ROWS, OnednnLinear, in_wide_products, onednn_products

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


# ---------------------------------------------------------------- wide models


def random_model(width: int = 24) -> LlamaForCausalLM:
    """A random Llama in float32."""
    torch.manual_seed(0)
    shape = {"intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
    return LlamaForCausalLM(LlamaConfig(hidden_size=width, **shape)).eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [made(LEAST_ROWS, 33), made(3, 7, 33), made(2, 3, 5, 33), made(20, 66)[:, ::2]])
@pytest.mark.parametrize("wanted", ["all", "rows", "weight"])
@pytest.mark.parametrize("out", [17, 60])
def test_gradients_of_a_wide_layer_are_those_of_float64(
    rows: Tensor, bias: bool, wanted: str, out: int, calls: list[torch.Size]
):
    plain = nn.Linear(33, out, bias=bias).requires_grad_(wanted != "rows")
    layer, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    layer.__class__ = OnednnLinear
    inputs = [tensor.clone().requires_grad_(wanted != "weight") for tensor in (rows, rows.double())]
    outputs = [mine(tensor) for mine, tensor in zip((layer, exact), inputs, strict=True)]
    up = made(*rows.shape[:-1], out)
    for output in outputs:
        output.backward(up.to(output.dtype))
    assert len(calls) == {"all": 3, "rows": 2, "weight": 2}[wanted], "no product more than is asked for"
    found = [outputs[0], inputs[0].grad, layer.weight.grad, layer.bias.grad if bias else None]
    expected = [outputs[1], inputs[1].grad, exact.weight.grad, exact.bias.grad if bias else None]
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5)


def test_a_wide_model_and_its_copies_multiply_by_onednn(calls: list[torch.Size], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(products, "LEAST_WIDTH", 24)
    model = random_model()
    in_wide_products(model)
    for each in (model, copy.deepcopy(model)):
        calls.clear()
        each(input_ids=torch.arange(20).reshape(2, 10)).logits.sum().backward()
        linear = [module for module in each.modules() if isinstance(module, nn.Linear)]
        assert {type(module) for module in linear} == {OnednnLinear}
        assert len(calls) == 3 * len(linear), "forward, back to the inputs, back to the weights"


@pytest.mark.parametrize("case", ["narrow", "bfloat16", "portable", "no oneDNN"])
def test_other_models_are_left_as_they_are(case: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(products, "LEAST_WIDTH", 24)
    if case == "portable":
        for name, value in PORTABLE.items():
            monkeypatch.setenv(name, value)
    if case == "no oneDNN":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model = random_model(width=20 if case == "narrow" else 24)
    if case == "bfloat16":
        model = model.bfloat16()
    in_wide_products(model)
    assert OnednnLinear not in {type(module) for module in model.modules()}


def test_what_a_wide_layer_cannot_multiply_by_onednn_is_torchs_own(calls: list[torch.Size]):
    layer = nn.Linear(33, 17)
    layer.__class__ = OnednnLinear
    layer(made(LEAST_ROWS - 1, 33)).sum().backward()
    assert layer.bfloat16()(made(20, 33).bfloat16()).dtype == torch.bfloat16
    assert calls == []
