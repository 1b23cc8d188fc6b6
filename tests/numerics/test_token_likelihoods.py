"""Token likelihoods against a plain float64 computation, one unpadded text at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.core.errors import UsageError
from harness.data.rows import Encoded
from harness.numerics import token_likelihoods as module
from harness.numerics.likelihood import answer_nll
from harness.numerics.token_likelihoods import token_likelihoods
from tests.numerics.test_likelihood import FAMILIES, by_hand, ragged, random_model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("at_once", [1, 3, 256])
def test_they_equal_the_formulas_in_float64(family: str, at_once: int, monkeypatch: pytest.MonkeyPatch):
    model, texts = random_model(family), ragged(9)
    monkeypatch.setattr(module, "POSITIONS_AT_ONCE", at_once)
    for text, values in zip(texts, token_likelihoods(model, texts, 0), strict=True):
        logits = by_hand(model, text).double().numpy()
        labels = text.input_ids[text.prompt_tokens :]
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        rows = np.arange(len(labels))
        mean = (p * np.log(p)).sum(axis=1)
        np.testing.assert_allclose(values.log_probs, np.log(p[rows, labels]), atol=1e-5)
        assert values.predicted.tolist() == (p.argmax(axis=1) == labels).tolist()
        np.testing.assert_allclose(values.means, mean, atol=1e-5)
        variance = (p * np.log(p) ** 2).sum(axis=1) - mean**2
        np.testing.assert_allclose(values.deviations, np.sqrt(variance), atol=1e-4)


def test_their_sum_is_the_likelihood_that_other_metrics_use():
    model, texts = random_model("llama"), ragged(20)
    sums, counts = answer_nll(model, texts, 0)
    values = token_likelihoods(model, texts, 0)
    np.testing.assert_allclose([-each.log_probs.sum() for each in values], sums, rtol=1e-5)
    assert [len(each.log_probs) for each in values] == counts.tolist()


@pytest.mark.parametrize("tokens", [1, 30, 2048])
def test_batches_change_nothing_and_every_text_is_told_of_once(tokens: int, monkeypatch: pytest.MonkeyPatch):
    model, texts = random_model("llama"), ragged(20)
    wanted = [token_likelihoods(model, [text], 0)[0] for text in texts]
    monkeypatch.setattr(module, "TOKENS_ON_CPU", tokens)
    heard: list[int] = []
    for found, alone in zip(token_likelihoods(model, texts, 0, heard.append), wanted, strict=True):
        for ours, theirs in zip(found, alone, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert sum(heard) == len(texts)


def test_a_word_of_no_probability_adds_nothing():
    """exp(−1000) is 0 in float32: mean and deviation are those of the words that are left."""
    logits = torch.tensor([[0.0, 0.0, -1000.0, float("-inf")]])
    truth, predicted, mean, deviation = module._of_logits(logits, torch.tensor([0]))[:, 0]
    np.testing.assert_allclose([truth, predicted, mean, deviation], [np.log(0.5), 1, np.log(0.5), 0], atol=1e-6)


def test_the_first_tokens_can_be_taken_by_themselves():
    (values,) = token_likelihoods(random_model("llama"), [Encoded([1, 2, 3, 4, 5], 1)], 0)
    assert values.first(3).log_probs.tolist() == values.log_probs[:3].tolist()
    assert len(values.first(3).deviations) == 3


def test_a_text_beyond_the_models_positions_is_refused():
    with pytest.raises(UsageError, match="positions for 32"):
        token_likelihoods(random_model("gpt2"), [Encoded(list(range(10)) * 4, 3)], 0)


def test_no_texts_give_nothing():
    assert token_likelihoods(random_model("llama"), [], 0) == []
