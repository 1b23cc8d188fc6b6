"""Float32 products of models on a CPU by oneDNN, where torch itself takes MKL.

On an AMD EPYC (Zen 5) MKL comes to 105 GFLOP/s on one core and oneDNN, which takes AVX-512 there too, to 230. Sums are taken in
another order, so the last bits differ. Hence of a narrow model, such as those that this project trains itself, only what is
measured goes through here (`onednn_products`); of a wide one everything does, its gradients too (`in_wide_products`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from harness.core.arithmetic import is_portable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAST_ROWS = 8
"""With fewer rows MKL is as fast."""
LEAST_WIDTH = 512
"""Entries of a hidden state from which a model multiplies by oneDNN whatever it does."""


@contextmanager
def onednn_products(model: PreTrainedModel) -> Iterator[None]:
    """Linear layers on the CPU in float32 multiply by oneDNN meanwhile, where no gradient is taken.

    Args:
        model: whose layers; those of a kind of their own (adapters, packed weights) go on as they are.
    """
    # A module's own attribute comes before its class's method; one that is there already (a hook's) stays.
    layers = [m for m in model.modules() if type(m) is nn.Linear and _plain(m.weight) and "forward" not in vars(m)]
    if not _available():
        layers = []
    for layer in layers:
        layer.forward = partial(_product, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def in_wide_products(model: PreTrainedModel) -> None:
    """Have a wide model's linear layers multiply by oneDNN from now on, its gradients too, while it lies on the CPU.

    A narrow one, and one that is not in float32, is left as it is. Training takes about half the time.

    Args:
        model: just loaded; its copies multiply as it does.
    """
    if not is_wide(model) or not _available():
        return
    for module in model.modules():
        if type(module) is nn.Linear and _plain(module.weight):
            module.__class__ = OnednnLinear


def is_wide(model: PreTrainedModel) -> bool:
    """Whether a model's hidden states have `LEAST_WIDTH` entries or more."""
    size: int = getattr(model.config.get_text_config(), "hidden_size", 0)
    return size >= LEAST_WIDTH


class OnednnLinear(nn.Linear):
    """A linear layer that multiplies by oneDNN wherever it can."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., out] W x + b."""
        if not _fits(self, input):
            return F.linear(input, self.weight, self.bias)
        if not torch.is_grad_enabled():
            return onednn(input, self.weight, self.bias)
        product: Tensor = _Linear.apply(input, self.weight, self.bias)
        return product


class _Linear(torch.autograd.Function):
    """x Wᵀ + b and its gradients, g W, gᵀ x and Σ g."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        return onednn(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        of_rows = of_weight = None
        if weight is not None:
            of_rows = onednn(gradient, weight.T)
        if rows is not None:
            of_weight = transposed_product(gradient.flatten(0, -2), rows.flatten(0, -2))
        return of_rows, of_weight, gradient.flatten(0, -2).sum(dim=0) if ctx.needs_input_grad[2] else None


def onednn(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[..., out] rows · weightᵀ + bias by oneDNN, without a gradient.

    Args:
        rows: [..., in] float32 on the CPU.
        weight: [out, in] likewise; either may be transposed.
        bias: [out] or None.
    """
    # What torch's compiler calls; `F.linear` takes oneDNN only for tensors in its layout, copied there and back.
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return product


def _product(layer: nn.Linear, rows: Tensor) -> Tensor:
    if torch.is_grad_enabled() or not _fits(layer, rows):
        return F.linear(rows, layer.weight, layer.bias)
    return onednn(rows, layer.weight, layer.bias)


def _fits(layer: nn.Linear, rows: Tensor) -> bool:
    """Whether oneDNN can multiply these rows, and gains by it; a layer may have been cast or moved since it was chosen."""
    return _plain(rows) and _plain(layer.weight) and rows.numel() >= LEAST_ROWS * layer.in_features


def transposed_product(left: Tensor, right: Tensor) -> Tensor:
    """[n, m] leftᵀ · right by oneDNN, without a gradient; it may lie transposed in memory.

    Args:
        left: [N, n] float32 on the CPU.
        right: [N, m] likewise.
    """
    # The first of two factors is copied where it is transposed; the narrower one costs less.
    return onednn(left.T, right.T) if left.shape[1] <= right.shape[1] else onednn(right.T, left.T).T


def multiplies(rows: Tensor) -> bool:
    """Whether rows can go through oneDNN, and gain by it: float32 on the CPU, and not a few."""
    return _plain(rows) and len(rows) >= LEAST_ROWS


def _available() -> bool:
    """Whether products may go through oneDNN: not in a process that computes alike everywhere (`harness.core.arithmetic`).

    The product is none of torch's public functions: a torch that has it no more goes on with its own.
    """
    return not is_portable() and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _plain(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.layout == torch.strided
