"""Float32 products of models on a CPU by oneDNN, where torch itself takes MKL.

On an AMD EPYC (Zen 5) MKL comes to 105 GFLOP/s on one core and oneDNN, which takes AVX-512 there too, to 230. Sums are taken in
another order, so the last bits differ; hence only what is measured goes through here, and no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.core.arithmetic import is_portable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAST_ROWS = 8
"""With fewer rows MKL is as fast."""


@contextmanager
def onednn_products(model: PreTrainedModel) -> Iterator[None]:
    """Linear layers on the CPU in float32 multiply by oneDNN meanwhile, where no gradient is taken.

    Not in a process that computes alike everywhere (`harness.core.arithmetic`).

    Args:
        model: whose layers; those of a kind of their own (adapters, packed weights) go on as they are.
    """
    # A module's own attribute comes before its class's method; one that is there already (a hook's) stays.
    layers = [m for m in model.modules() if type(m) is nn.Linear and _plain(m.weight) and "forward" not in vars(m)]
    # The product is none of torch's public functions: a torch that has it no more goes on with its own.
    if is_portable() or not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        layers = []
    for layer in layers:
        layer.forward = partial(_product, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _product(layer: nn.Linear, rows: Tensor) -> Tensor:
    if torch.is_grad_enabled() or not _plain(rows) or rows.numel() < LEAST_ROWS * layer.in_features:
        return F.linear(rows, layer.weight, layer.bias)
    # What torch's compiler calls; `F.linear` takes oneDNN only for tensors in its layout, copied there and back.
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, layer.weight, layer.bias, "none", [], "")
    return product


def _plain(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.layout == torch.strided
