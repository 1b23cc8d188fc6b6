"""The leading singular vectors of a weight or of its gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from harness.core.streams import streams

if TYPE_CHECKING:
    from torch import Tensor

    from harness.numerics.anatomy import LinearMap

EXACT_UP_TO = 1024
"""The smaller side of a matrix up to which its SVD is exact; a 7B model has 224 matrices four times as wide."""


def leading_singular(matrix: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular vectors and values: exact for small matrices, else by a seeded randomised method.

    The global random numbers are left as they are.

    Args:
        matrix: [m, n].
        rank: r, min(m, n) at most.
        seed: of the randomised method.

    Returns:
        (U [m, r], Σ [r], V [n, r]).
    """
    import torch

    if min(matrix.shape) <= EXACT_UP_TO:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left[:, :rank], values[:rank], right[:rank].T
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        streams(seed, "singular vectors").seed_torch()
        return torch.svd_lowrank(matrix, q=rank)


def fewest_components(maps: Iterable[LinearMap]) -> tuple[str, int]:
    """The name of the map that has the fewest singular values, and how many."""
    most = {linear.name: min(linear.matrix().shape) for linear in maps}
    return min(most.items(), key=lambda item: item[1])
