"""Gradients of the token-pooled loss, mini-batch after mini-batch, of single parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from harness.core.method import UnlearningContext

if TYPE_CHECKING:
    from torch import Tensor

    from harness.data.rows import Encoded


def mini_batch_gradients(
    context: UnlearningContext,
    parameters: Sequence[Tensor],
    encoded: Sequence[Encoded],
    rows: Sequence[int],
    batch_size: int,
    pad: int,
) -> Iterator[tuple[int, Iterator[Tensor]]]:
    """∇POOL_B of each mini-batch B: neither weighted nor clipped, in the parameter's type.

    A parameter may be moved between two mini-batches. Leaves `parameters` the only ones with gradients switched on.

    Args:
        context: whose model, in the mode it is in.
        parameters: of it.
        encoded: the data set.
        rows: which of it, in order; the last mini-batch is what remains.
        batch_size: examples in a mini-batch.
        pad: see `harness.data.rows.pad_id`.

    Yields:
        (labels of the mini-batch, a gradient for each parameter). A gradient is given up as it is taken, so that those of two
        mini-batches are never held together.
    """
    from harness.numerics import group
    from harness.numerics.training import micro_batches, pooled_nll, tokens_at_once

    context.model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        for start in range(0, len(rows), batch_size):
            chosen, tokens = rows[start : start + batch_size], tokens_at_once(context.model)
            parts = micro_batches(encoded, chosen, pad, context.model.device, tokens)
            labels = parts[0][1]
            context.costs.count(sum(batch.tokens for batch, _ in parts))
            for batch, _ in group.share(parts):
                pooled_nll(context.model, batch, labels).backward()
            group.add_up_gradients(parameters)
            yield labels, map(_taken, parameters)
    finally:
        for parameter in parameters:
            parameter.grad = None


def _taken(parameter: Tensor) -> Tensor:
    gradient, parameter.grad = parameter.grad, None
    assert gradient is not None  # its loss has just been differentiated
    return gradient
