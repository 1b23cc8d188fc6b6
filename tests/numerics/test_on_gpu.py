"""On a GPU the same is measured and said as on the CPU, within rounding."""

from __future__ import annotations

import copy

import pytest
import torch

from harness.data.rows import encode, pad_id
from harness.models import sources
from harness.models.sources import weights_fingerprint
from harness.numerics.generation import HFGenerator
from harness.numerics.likelihood import AnswerDistributions, answer_nll, kl_between
from tests.conftest import TEMPLATE, WORLD, Nano, examples
from tests.gpu import DEVICE, ON_GPU
from tests.numerics.test_generation import QUESTIONS, request

pytestmark = ON_GPU


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
