"""On a GPU the same is measured and said as on the CPU, within rounding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from harness.core.options import Optimizer
from harness.data.rows import encode, pad_id
from harness.models import sources
from harness.models.sources import weights_fingerprint
from harness.numerics.by_weight import joined, split, stochastically_rounded
from harness.numerics.generation import HFGenerator
from harness.numerics.likelihood import AnswerDistributions, answer_nll, kl_between
from tests.conftest import TEMPLATE, WORLD, Nano, examples
from tests.gpu import DEVICE, ON_GPU
from tests.numerics.test_by_weight import numbers, trained
from tests.numerics.test_generation import QUESTIONS, request

pytestmark = ON_GPU
EIGHT_BITS_FROM = 4096
"""Numbers from which bitsandbytes keeps a tensor's moments in 8 bits. Its kernel for GPUs then keeps the sign of a first moment that its
CPU code rounds to 0: of an unembedding, most of whose gradients are near 0, an H100's four steps differed by .31."""


def test_losses_and_divergences_are_those_of_the_cpu(nano: Nano):
    encoded = encode(examples(WORLD.full[:40]), nano.tokenizer)
    pad = pad_id(nano.tokenizer)
    sums, counts = answer_nll(nano.model(), encoded, pad)
    here, same = answer_nll(nano.model().to(DEVICE), encoded, pad)
    assert (counts == same).all()
    assert here == pytest.approx(sums, rel=1e-4)
    before, now = nano.model(), nano.model(1)
    expected = kl_between(before, now, encoded, pad)[0]
    assert kl_between(before.to(DEVICE), now.to(DEVICE), encoded, pad)[0] == pytest.approx(expected, rel=1e-3)
    for kept in ("cpu", DEVICE):
        distributions = AnswerDistributions(before, encoded, pad, kept)
        assert distributions.kl_sums(now)[0] == pytest.approx(expected, rel=1e-3)


def test_halves_and_stochastic_rounding_are_exact():
    exact = numbers().to(DEVICE)
    weights, rest = split(exact)
    assert torch.equal(joined(weights, rest).view(torch.int32), exact.view(torch.int32))
    assert torch.equal(weights.cpu(), split(exact.cpu())[0])
    held = exact.to(torch.bfloat16)
    rounded = stochastically_rounded(held.float(), torch.Generator(DEVICE).manual_seed(0))
    assert torch.equal(rounded.view(torch.int16), held.view(torch.int16))


@pytest.mark.parametrize("bits", [32, 8])
def test_weights_stepped_one_by_one_are_those_of_the_cpu(nano: Nano, bits: Any):
    if bits == 8:
        pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    kept = Optimizer(bits=bits, clip="none")
    expected, here = trained(nano.model(), kept, 1.0), trained(nano.model().to(DEVICE), kept, 1.0, device=DEVICE)
    start = nano.model().state_dict()
    for name, weight in expected.items():
        near = 0.4 if bits == 8 and weight.numel() >= EIGHT_BITS_FROM else 0.05
        assert (here[name].cpu() - weight).norm() <= near * (weight - start[name]).norm() + 1e-6, name


@pytest.mark.parametrize("large", [0, sources.LARGE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fingerprint_does_not_depend_on_where_the_weights_lie(
    nano: Nano, dtype: torch.dtype, large: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sources, "LARGE", large)
    model = nano.model().to(dtype)
    assert weights_fingerprint(copy.deepcopy(model).to(DEVICE)) == weights_fingerprint(model)


def test_answers_are_those_of_the_cpu(nano: Nano):
    asked = [request(TEMPLATE.prompt(question), tokens=12) for question in QUESTIONS]
    here = HFGenerator().generate(nano.model().to(DEVICE), nano.tokenizer, asked)
    assert here == HFGenerator().generate(nano.model(), nano.tokenizer, asked)
