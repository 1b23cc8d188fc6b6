"""Texts behind one prompt against the same texts read whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from harness.data.rows import Encoded
from harness.numerics import likelihood
from harness.numerics.shared_prompts import LEAST_LABELS, shared_beginnings
from tests.numerics.test_likelihood import FAMILIES, WORDS, random_model, short_context


def questions(count: int = 6, answers: int = 7) -> list[Encoded]:
    """Ragged prompts with ragged answers, shuffled, and two texts that share nothing with another."""
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(count):
        prompt = rng.integers(0, WORDS, int(rng.integers(1, 9))).tolist()
        texts += [
            Encoded([*prompt, *rng.integers(0, WORDS, int(rng.integers(1, 12))).tolist()], len(prompt)) for _ in range(answers)
        ]
    texts += [Encoded([1, 2, 3, 4], 3), Encoded([3, 4, 5], 0)]
    return [texts[i] for i in rng.permutation(len(texts))]


def variations(count: int = 5) -> list[Encoded]:
    """Behind each of some prompts: an answer alone, and others that leave a longer one at different places; one there twice."""
    rng = np.random.default_rng(1)
    texts = []
    for _ in range(count):
        prompt, answer = rng.integers(0, WORDS, int(rng.integers(1, 5))).tolist(), rng.integers(0, WORDS, 12).tolist()
        answers = [answer, answer, [WORDS - 1, 3]] + [
            [*answer[: LEAST_LABELS + n], *rng.integers(0, WORDS, int(rng.integers(1, 4)))] for n in range(4)
        ]
        texts += [Encoded([*prompt, *map(int, each)], len(prompt)) for each in answers]
    return [texts[i] for i in rng.permutation(len(texts))]


def read(model: Any) -> list[int]:
    """The padded tokens of every forward pass from now on."""
    seen: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0].numel()))
    return seen


def one_by_one(model: Any, texts: list[Encoded]) -> np.ndarray:
    return np.array([likelihood.answer_nll(model, [text], 0)[0][0] for text in texts])


@pytest.mark.parametrize("made", [questions, variations])
@pytest.mark.parametrize("tokens", [1, 40, 2048])
@pytest.mark.parametrize("family", FAMILIES)
def test_likelihoods_are_those_of_whole_texts(
    family: str, tokens: int, made: Callable[[], list[Encoded]], monkeypatch: pytest.MonkeyPatch
):
    model, texts = random_model(family), made()
    wanted = one_by_one(model, texts)
    monkeypatch.setattr(likelihood, "TOKENS_ON_CPU", tokens)
    heard: list[int] = []
    sums, counts = likelihood.answer_nll(model, texts, 0, heard.append)
    assert counts.tolist() == [text.label_count for text in texts]
    np.testing.assert_allclose(sums / counts, wanted / counts, atol=1e-5)
    assert sum(heard) == len(texts)


def test_a_prompt_is_read_once():
    model = random_model("llama")
    texts = [Encoded([*range(10), 10, word, 12], 10) for word in range(7)]
    seen = read(model)
    likelihood.answer_nll(model, texts, 0)
    assert sum(seen) == 9 + 7 * 3, "the prompt but for its last token; that token and each answer but for its own last"


def test_labels_in_common_are_read_once():
    model = random_model("llama")
    texts = [Encoded([*range(10), *[5] * LEAST_LABELS, word, 12], 10) for word in range(5)]
    alone = Encoded([*range(10), 7, 8, 9], 10)
    seen = read(model)
    found, counts = likelihood.answer_nll(model, texts, 0)
    assert sum(seen) == 9 + LEAST_LABELS + 5 * 2, "up to the last token in common; that token and what follows it"
    np.testing.assert_allclose(found, one_by_one(model, texts), rtol=1e-5)
    assert counts.tolist() == [LEAST_LABELS + 2] * 5
    assert [len(b.tokens) for b in shared_beginnings([*texts, alone])] == [10, 10 + LEAST_LABELS]
    assert [len(b.tokens) for b in shared_beginnings([*texts[:2], alone])] == [10], "to read the prompt again would be more"


def test_batches_behind_long_prompts_hold_fewer_texts(monkeypatch: pytest.MonkeyPatch):
    model = random_model("llama")
    texts = [Encoded([*range(10), 10, word, 12], 10) for word in range(7)]
    monkeypatch.setattr(likelihood, "CONTINUED_ON_CPU", 26)
    seen = read(model)
    likelihood.answer_nll(model, texts, 0)
    assert seen == [9, 2 * 3, 2 * 3, 2 * 3, 3], "each text's keys and values are 12 tokens'"


@pytest.mark.parametrize("family", ["mistral", "gpt_neox"])
def test_other_models_read_whole_texts(family: str):
    model = random_model(family)  # a window of 4 tokens; logits that are not the head's alone
    seen = read(model)
    likelihood.answer_nll(model, [Encoded([*range(10), word], 10) for word in range(7)], 0)
    assert seen == [7 * 11]


def test_texts_whose_first_tokens_differ_share_no_prompt():
    texts = [
        Encoded([1, 2, 3, 4], 2),
        Encoded([1, 5, 3, 4], 2),
        Encoded([1, 2, 7], 2),
        Encoded([1, 2, 3], 1),
        Encoded([1, 2], 0),
    ]
    assert [(b.tokens, b.texts) for b in shared_beginnings(texts)] == [([1, 2], [0, 2])]


def test_padding_does_not_reach_behind_a_table_of_positions():
    model = short_context("gpt2")
    long, short = [3] * 12, [4, 5]
    texts = [Encoded([*long, 6, 7], 12), Encoded([*long, 8], 12), *(Encoded([*short, *[word] * 14], 2) for word in (6, 7))]
    np.testing.assert_allclose(likelihood.answer_nll(model, texts, 0)[0], one_by_one(model, texts), rtol=1e-5)


def test_a_model_in_bfloat16_gives_about_the_same():
    model, texts = random_model("llama").to(torch.bfloat16), questions()
    sums, counts = likelihood.answer_nll(model, texts, 0)
    np.testing.assert_allclose(sums / counts, one_by_one(model, texts) / counts, atol=0.2)
