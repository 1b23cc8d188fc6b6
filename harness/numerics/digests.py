"""A digest of a tensor's bits that is made where the tensor lies, of sums of integers: a CPU and a GPU agree on it to the bit.

A block of 2¹³ words of 32 bits is multiplied, word by word, with fixed numbers of 64 bits and summed up modulo 2⁶⁴:

    h(w) = Σ_j k_j w_j mod 2⁶⁴

(the multilinear family of Carter & Wegman 1979; Lemire & Kaser 2014, arXiv:1202.4961.) Two blocks that differ have the same
sum for one in 2³² choices of the k_j, and two sums are made, by different k_j. Integer sums are exact in any order. What is
left, one 2048th of the bytes, goes through SHA-256.

The k_j are known, so this notices accidents and no forger: he could make other weights of the same digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

WORDS = 2**13
"""Of a block."""
AT_ONCE = {"cpu": 2**18, "cuda": 2**26}
"""Bytes that are summed at a time; four times as many are taken beside the tensor, which on a CPU stay in its caches."""


def tensor_digest(tensor: Tensor) -> bytes:
    """32 bytes that depend on every bit of a tensor's values and on their order, not on its shape and type.

    Args:
        tensor: on any device.

    >>> tensor_digest(torch.tensor([1.0, 2.0])) == tensor_digest(torch.tensor([2.0, 1.0]))
    False
    """
    sums = [part.cpu() for part in _sums(tensor.detach().contiguous().flatten().view(torch.uint8))]
    return hashlib.sha256(torch.cat(sums).numpy().data if sums else b"").digest()


def _sums(raw: Tensor) -> Iterator[Tensor]:
    """[blocks, 2] both sums of each block, some blocks at a time; zeros behind the last bytes change none."""
    keys = _keys(raw.device)
    for part in raw.split(AT_ONCE.get(raw.device.type, AT_ONCE["cpu"])):
        missing = -len(part) % (4 * WORDS)
        if missing or part.storage_offset() % 4:
            part = F.pad(part, (0, missing))
        words = part.view(torch.int32).view(len(part) // (4 * WORDS), WORDS).long()
        yield torch.stack([(words * key).sum(dim=1) for key in keys], dim=1)


@cache
def _keys(device: torch.device) -> Tensor:
    """[2, WORDS] odd numbers of 64 bits: with them no change of one word goes unnoticed."""
    drawn = hashlib.shake_256(b"keys of tensor digests").digest(2 * 8 * WORDS)
    return (torch.frombuffer(bytearray(drawn), dtype=torch.int64).view(2, WORDS) | 1).to(device)
