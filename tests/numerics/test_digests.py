"""Digests of tensors: every bit counts, and how they are made does not."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor, nn

from harness.models import sources
from harness.models.sources import weights_fingerprint
from harness.numerics import digests
from harness.numerics.digests import WORDS, tensor_digest


def integers(tensor: Tensor) -> bytes:
    """The same by Python's integers: Σ k w mod 2⁶⁴ of each block, twice."""
    raw = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    words = [int.from_bytes(raw[i : i + 4].ljust(4, b"\0"), "little", signed=True) for i in range(0, len(raw), 4)]
    keys = [[key % 2**64 for key in table] for table in digests._keys(torch.device("cpu")).tolist()]
    state = hashlib.sha256()
    for start in range(0, len(words), WORDS):
        for table in keys:
            total = sum(key * word for key, word in zip(table, words[start : start + WORDS], strict=False))
            state.update((total % 2**64).to_bytes(8, "little"))
    return state.digest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool])
@pytest.mark.parametrize("count", [0, 1, 3, 4 * WORDS - 1, 4 * WORDS + 5])
def test_sums_are_those_of_integers(dtype: torch.dtype, count: int):
    tensor = (100 * torch.randn(count)).to(dtype)
    assert tensor_digest(tensor) == integers(tensor)


def test_sums_do_not_depend_on_how_many_bytes_are_taken_at_a_time(monkeypatch: pytest.MonkeyPatch):
    tensor = torch.randn(5, WORDS + 3).T  # not contiguous
    whole = tensor_digest(tensor)
    monkeypatch.setitem(digests.AT_ONCE, "cpu", 4 * WORDS)
    assert tensor_digest(tensor) == whole == tensor_digest(tensor.contiguous())
    behind = torch.arange(5, dtype=torch.bfloat16)[1:]
    assert tensor_digest(behind) == tensor_digest(behind.clone()), "a tensor need not begin where a word does"


def test_every_bit_is_noticed():
    zeros = torch.zeros(3 * WORDS, dtype=torch.int32)
    changed = [zeros.clone() for _ in range(6)]
    changed[0][0] = 1
    changed[1][-1] = 1
    changed[2][WORDS] = -(2**31)  # the last bit alone
    changed[3][[1, 2]] = -(2**31)  # twice: what would cancel if the words were not narrower than the sums
    changed[4][[1, 2]] = torch.tensor([1, -1], dtype=torch.int32)
    changed[5][[1, 2]] = torch.tensor([-1, 1], dtype=torch.int32)
    assert len({tensor_digest(each) for each in [zeros, *changed]}) == 7


def test_negative_zero_and_the_payload_of_nan_count():
    with_nan = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert len({tensor_digest(torch.tensor([x])) for x in (0.0, -0.0)} | {tensor_digest(x) for x in with_nan}) == 4


def test_a_fingerprint_is_sha_256_of_all_bytes_but_where_there_are_many(monkeypatch: pytest.MonkeyPatch):
    model = nn.Linear(3, 2)
    expected = hashlib.sha256()
    for name in ("bias", "weight"):
        tensor = model.state_dict()[name]
        expected.update(f"{name} {tuple(tensor.shape)} torch.float32".encode() + tensor.numpy().tobytes())
    assert weights_fingerprint(model) == expected.hexdigest()[:16]
    monkeypatch.setattr(sources, "LARGE", 4 * 8)
    assert weights_fingerprint(model) == expected.hexdigest()[:16]
    monkeypatch.setattr(sources, "LARGE", 4 * 8 - 1)
    before = weights_fingerprint(model)
    assert before.startswith("sums-")
    with torch.no_grad():
        model.weight[1, 1] += 1
    assert weights_fingerprint(model) != before
