"""Float32 products of models on a CPU by oneDNN, where torch itself takes MKL.

On an AMD EPYC (Zen 5) MKL comes to 105 GFLOP/s on one core and oneDNN, which takes AVX-512 there too, to 230. Sums are taken in
another order, so the last bits differ; hence only what is measured goes through here, never what trains a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from harness.core.arithmetic import is_portable

LEAST_ROWS = 8
"""With fewer rows MKL is as fast."""


class OneDNNProducts(TorchFunctionMode):
    """While entered, `F.linear` goes through oneDNN where no gradient is taken and all is float32 on the CPU.

    Not in a process that computes alike everywhere (`harness.core.arithmetic`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.wanted = torch.backends.mkldnn.is_available() and not is_portable()

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Any function's result."""
        if self.wanted and func is F.linear and not kwargs and not torch.is_grad_enabled() and all(map(_plain, args)):
            rows, weight, bias = (*args, None)[:3]
            if rows.numel() >= LEAST_ROWS * weight.shape[1]:
                # What torch's compiler calls; `F.linear` takes oneDNN only for tensors in its layout, copied there and back.
                return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
        return func(*args, **(kwargs or {}))


def _plain(value: Any) -> bool:
    return value is None or (
        isinstance(value, Tensor)
        and value.dtype == torch.float32
        and value.device.type == "cpu"
        and value.layout == torch.strided
    )
