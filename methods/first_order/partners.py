"""Which retain example goes with a forget example."""

from __future__ import annotations

from harness.core.streams import streams


class Partners:
    """Which retain example goes with a forget example.

    Args:
        count: size of the retain set.
        seed: of the fresh draws.
        frozen: (row + U{0..count−1} drawn after `torch.manual_seed(row)`) mod count, the same at every access, as in
            `data_module.py` of the NPO and SimNPO repositories; else drawn anew at every access.
    """

    def __init__(self, count: int, seed: int, frozen: bool) -> None:
        self._count, self._seed, self._frozen = count, seed, frozen
        self._fresh = streams(seed, "partners").torch()

    def __call__(self, row: int) -> int:
        """The retain partner of a row of the forget set."""
        import torch

        generator = streams(self._seed, "frozen partner", row).torch() if self._frozen else self._fresh
        return (row + int(torch.randint(0, self._count, (1,), generator=generator))) % self._count
