"""Leading singular vectors: exact, or by seeded random numbers that are nobody else's."""

from __future__ import annotations

import pytest

from methods.first_order import singular
from methods.first_order.singular import leading_singular


def test_a_large_weight_is_decomposed_by_seeded_random_numbers_of_its_own(monkeypatch: pytest.MonkeyPatch):
    import torch

    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(40, 6, generator=generator) @ torch.randn(6, 30, generator=generator)  # of rank 6
    exact = leading_singular(matrix, 6, seed=1)
    monkeypatch.setattr(singular, "EXACT_UP_TO", 10)
    state = torch.random.get_rng_state()
    left, values, right = leading_singular(matrix, 6, seed=1)
    assert (torch.random.get_rng_state() == state).all()
    assert all((a == b).all() for a, b in zip((left, values, right), leading_singular(matrix, 6, seed=1), strict=True))
    assert (left != leading_singular(matrix, 6, seed=2)[0]).any()
    torch.testing.assert_close(values, exact[1], rtol=1e-4, atol=0)
    torch.testing.assert_close(left * values @ right.T, matrix, rtol=0, atol=1e-4)
