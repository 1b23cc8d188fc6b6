"""Weights as they are once stored with 8 or 4 bits: rounded to the nearest, symmetric, without calibration data.

    w ≈ s · round(w / s),   s = max |w| / (2^(bits − 1) − 1)

With 8 bits one s for each output channel, with 4 bits one for each group of 64 neighbouring inputs of an output channel (the
last group may be shorter). All linear layers but the output head, as bitsandbytes does, GPT-2's transposed ones among them, and
the experts of a mixture, each by itself; embeddings, norms, biases and routers stay. Weights are put back as floating-point
numbers in the model's own type.

Beside it NF4 (QLoRA, arXiv:2305.14314), as bitsandbytes stores it without double quantisation: the nearest of 16 levels between
−1 and 1, quantiles of a normal distribution, times the largest magnitude of each 64 numbers that follow in memory.
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
NF4 = "nf4"
NF4_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The 16 values of a normal float of 4 bits (arXiv:2305.14314, appendix E)."""
NF4_BLOCK = 64
"""Numbers that share a scale."""
KINDS: tuple[int | str, ...] = (*GROUPS, NF4)
"""All that weights can be rounded to: so many bits, or NF4."""


def quantised(model: PreTrainedModel) -> list[tuple[Tensor, bool]]:
    """The weights that are rounded, each with whether it is [inputs, outputs]; those of experts have a dimension before."""
    head = model.get_output_embeddings()
    linear = [(m.module.weight, m.transposed) for m in anatomy.linear_maps_in(model) if m.module is not head]
    return [*linear, *anatomy.experts(model).values()]


def round_weights(weights: Sequence[tuple[Tensor, bool]], before: Sequence[Tensor], kind: int | str) -> None:
    """Put rounded values into weights, in place.

    Args:
        weights: from `quantised`.
        before: their values before any rounding, in the same order.
        kind: one of `KINDS`: bits, or NF4.
    """
    for (weight, transposed), was in zip(weights, before, strict=True):
        matrices = was.transpose(-1, -2) if transposed else was  # [outputs, inputs], or [experts, outputs, inputs]
        flat = matrices.reshape(-1, matrices.shape[-1])
        values = (rounded(flat, kind, GROUPS[kind]) if isinstance(kind, int) else rounded_to_nf4(flat)).view(matrices.shape)
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


def rounded_to_nf4(weight: Tensor) -> Tensor:
    """A weight as it is after being stored as NF4.

    Args:
        weight: [outputs, inputs].

    Returns:
        The same shape and type.
    """
    import torch
    import torch.nn.functional as F

    numbers = weight.float().reshape(-1)
    blocks = F.pad(numbers, (0, -len(numbers) % NF4_BLOCK)).view(-1, NF4_BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    levels = torch.tensor(NF4_LEVELS, device=weight.device)
    between = (levels[1:] + levels[:-1]) / 2
    nearest = levels[torch.bucketize(torch.where(scale > 0, blocks / scale, torch.zeros_like(blocks)), between)]
    nearest = torch.where(blocks.isfinite(), nearest, blocks)  # a model that is broken stays so
    return (nearest * scale).view(-1)[: len(numbers)].view(weight.shape).to(weight.dtype)
