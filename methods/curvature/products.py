"""Matrix products of what passes through a layer, summed in float32 whatever the model's type, at the device's full rate.

The product of two bfloat16 or float16 numbers is exact in float32. A GPU's matrix units take them as they are and sum in
float32, many times faster than they multiply float32 numbers: nothing is lost against casting first but the order of sums.

Products of which one side is float32 (rotations, and what has been rotated) may be rounded to TF32, 10 bits behind the point,
where the other side came with at most as many: `no_finer_than`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from harness.numerics.products import multiplies, transposed_product

LOW = (torch.bfloat16, torch.float16)
"""Types whose products are exact in float32."""
WIDE = 4096
"""Columns from which half of a symmetric product is multiplied."""
PANELS = 8
"""Into how many it is cut then: 9/16 of the whole product's operations, and of the sum's bytes that each batch moves."""
SEQUENCES_AT_ONCE = {"cuda": 4}
"""By device, sequences whose products are squared and added together, elsewhere 1: of each, 12 bytes move for an entry in place
of 16, in one product's memory for each of them."""

Buffers = dict[torch.device, Tensor]
"""What `add_squares` writes products to, flat: the largest that was needed on each device."""


def summed_in(dtype: torch.dtype) -> torch.dtype:
    """The type that sums are kept in: float64 for float64, float32 for everything else.

    >>> summed_in(torch.bfloat16)
    torch.float32
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def total_of(totals: dict[int, Tensor], key: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A running sum, which starts at 0: it is added to in place.

    Args:
        totals: where it is kept.
        key: under what.
        shape: its shape.
        like: something on its device, of the type that is summed.

    >>> totals = {}
    >>> _ = total_of(totals, 3, (2,), torch.ones(1, dtype=torch.bfloat16)).add_(1)
    >>> total_of(totals, 3, (2,), torch.ones(1))
    tensor([1., 1.])
    """
    if key not in totals:
        totals[key] = torch.zeros(shape, dtype=summed_in(like.dtype), device=like.device)
    return totals[key]


def add_product(total: Tensor, left: Tensor, right: Tensor, scale: float = 1.0, onednn: bool = False) -> None:
    """Add scale · leftᵀ right to a running sum, in its type.

    Args:
        total: [n, m] of `summed_in`'s type.
        left: [N, n].
        right: [N, m].
        scale: a factor.
        onednn: whether oneDNN is to multiply on a CPU (`methods.curvature.layers.Layer.by_onednn`).

    >>> total = torch.zeros(1, 2)
    >>> add_product(total, torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), scale=0.5)
    >>> total.tolist()
    [[0.5, 1.0]]
    """
    if left.device.type == "cuda" and left.dtype in LOW and right.dtype == left.dtype and total.dtype == torch.float32:
        total.add_(torch.mm(left.T, right, out_dtype=torch.float32), alpha=scale)
    elif onednn and multiplies(left) and multiplies(right):
        total.add_(transposed_product(left, right), alpha=scale)
    else:
        total.addmm_(left.to(total.dtype).T, right.to(total.dtype), alpha=scale)


def add_square(total: Tensor, rows: Tensor, scale: float = 1.0, onednn: bool = False) -> None:
    """Add scale · rowsᵀ rows to a running sum of such products, in its type: of a wide one what lies above the diagonal alone.

    Args:
        total: [n, n] of `summed_in`'s type; `mirrored` makes it whole in the end.
        rows: [N, n].
        scale: a factor.
        onednn: see `add_product`.
    """
    for start, end in _panels(total):
        add_product(total[start:end, start:], rows[:, start:end], rows[:, start:], scale, onednn)


def add_squares(total: Tensor, left: Tensor, right: Tensor, scale: float, buffers: Buffers) -> None:
    """Add scale · Σ_b (left_bᵀ right_b)², squared by entry, to a running sum.

    Args:
        total: [n, m] of `summed_in`'s type.
        left: [B, T, n] of that type.
        right: [B, T, m] of that type.
        scale: a factor.
        buffers: where products are written, again and again.

    >>> total = torch.zeros(1, 2)
    >>> add_squares(total, torch.ones(2, 3, 1), torch.tensor([[[1.0, 0.0]] * 3, [[0.0, 2.0]] * 3]), 0.5, {})
    >>> total.tolist()
    [[4.5, 18.0]]
    """
    at_once = min(SEQUENCES_AT_ONCE.get(total.device.type, 1), len(left))
    entries = at_once * total.numel()
    if total.device not in buffers or buffers[total.device].numel() < entries:
        buffers[total.device] = total.new_empty(entries)
    products = buffers[total.device][:entries].view(at_once, *total.shape)
    for some, others in zip(left.split(at_once), right.split(at_once), strict=True):
        if at_once == 1:
            norms = torch.mm(some[0].T, others[0], out=products[0])
        else:
            norms = torch.linalg.vector_norm(torch.bmm(some.mT, others, out=products[: len(some)]), dim=0)
        total.addcmul_(norms, norms, value=scale)


def mirrored(total: Tensor) -> Tensor:
    """A sum made by `add_square`, whole; in place.

    Args:
        total: [n, n].
    """
    for start, end in _panels(total):
        total[end:, start:end] = total[start:end, end:].T
    return total


def _panels(total: Tensor) -> Iterator[tuple[int, int]]:
    """Where the panels of a symmetric sum begin and end; one panel of a narrow one."""
    wide = len(total)
    step = -(-wide // PANELS) if wide >= WIDE else wide
    for start in range(0, wide, step):
        yield start, min(start + step, wide)


@contextmanager
def no_finer_than(dtype: torch.dtype) -> Iterator[None]:
    """Inside, a GPU rounds the factors of float32 products to TF32 if what comes in has no more digits than that.

    Nothing changes for float32 and float64, and nothing on a CPU. On an H100, for a 7B's layers in bfloat16, an EK-FAC pass
    takes 1.42 times its floor in place of 3.08, and its spectrum is off by 9e-4 (`tests/perf/gpu.py`).

    Args:
        dtype: of what comes in.
    """
    if dtype not in LOW:
        yield
        return
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before
