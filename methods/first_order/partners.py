"""Which retain example goes with a forget example."""

from __future__ import annotations


class Partners:
    """Which retain example goes with a forget example.

    Args:
        count: size of the retain set.
        seed: of the fresh draws.
        frozen: (row + U{0..count−1} drawn after `torch.manual_seed(row)`) mod count, the same at every access, as in
            `data_module.py` of the NPO and SimNPO repositories; else drawn anew at every access.
    """

    def __init__(self, count: int, seed: int, frozen: bool) -> None:
        import torch

        self._count, self._frozen = count, frozen
        self._fresh = torch.Generator().manual_seed(seed + 1)

    def __call__(self, row: int) -> int:
        """The retain partner of a row of the forget set."""
        import torch

        generator = torch.Generator().manual_seed(row) if self._frozen else self._fresh
        return (row + int(torch.randint(0, self._count, (1,), generator=generator))) % self._count
