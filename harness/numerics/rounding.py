"""Weights as they are once stored with 8 or 4 bits: rounded to the nearest, symmetric, without calibration data.

    w ≈ s · round(w / s),   s = max |w| / (2^(bits − 1) − 1)

With 8 bits one s for each output channel, with 4 bits one for each group of 64 neighbouring inputs of an output channel (the
last group may be shorter). All linear layers but the output head, as bitsandbytes does, GPT-2's transposed ones among them, and
the experts of a mixture, each by itself; embeddings, norms, biases and routers stay. Weights are put back as floating-point
numbers in the model's own type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.numerics import anatomy

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

GROUPS: dict[int, int | None] = {8: None, 4: 64}
"""Bits → inputs that share a scale; None: all of an output channel."""


def quantised(model: PreTrainedModel) -> list[tuple[Tensor, bool]]:
    """The weights that are rounded, each with whether it is [inputs, outputs]; those of experts have a dimension before."""
    head = model.get_output_embeddings()
    linear = [(m.module.weight, m.transposed) for m in anatomy.linear_maps_in(model) if m.module is not head]
    return [*linear, *anatomy.experts(model).values()]


def round_weights(weights: Sequence[tuple[Tensor, bool]], before: Sequence[Tensor], bits: int) -> None:
    """Put rounded values into weights, in place.

    Args:
        weights: from `quantised`.
        before: their values before any rounding, in the same order.
        bits: one of `GROUPS`.
    """
    for (weight, transposed), was in zip(weights, before, strict=True):
        matrices = was.transpose(-1, -2) if transposed else was  # [outputs, inputs], or [experts, outputs, inputs]
        values = rounded(matrices.reshape(-1, matrices.shape[-1]), bits, GROUPS[bits]).view(matrices.shape)
        weight.data.copy_(values.transpose(-1, -2) if transposed else values)


def rounded(weight: Tensor, bits: int, group: int | None = None) -> Tensor:
    """A weight as it is after being stored with so many bits.

    Args:
        weight: [outputs, inputs].
        bits: of each number.
        group: how many neighbouring inputs share a scale; all of an output channel if not given.

    Returns:
        The same shape and type.
    """
    import torch
    import torch.nn.functional as F

    outputs, inputs = weight.shape
    size = group or inputs
    groups = F.pad(weight.float(), (0, -inputs % size)).view(outputs, -1, size)
    highest = 2 ** (bits - 1) - 1
    scale = groups.abs().amax(dim=-1, keepdim=True) / highest
    steps = torch.where(scale > 0, groups / scale, torch.zeros_like(groups)).round().clamp(-highest, highest)
    steps = torch.where(groups.isfinite(), steps, groups)  # a model that is broken stays so
    return (steps * scale).view(outputs, -1)[:, :inputs].to(weight.dtype)  # type: ignore[no-any-return]
