"""Every beginning of a text, continued in one pass, against `transformers`' own `generate` of each by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from harness.numerics import beginnings
from harness.numerics.beginnings import NOTHING, continued_beginnings
from tests.numerics.test_decoding import family

LENGTH = 24
END = 1


def texts(model: Any) -> list[list[int]]:
    """Two random texts, one that the model knows by heart but for a token, and one that ends early."""
    ids = torch.randint(5, model.config.vocab_size, (4, LENGTH), generator=torch.Generator().manual_seed(1))
    by_heart = model.generate(ids[:1, :4], max_length=LENGTH, min_length=LENGTH, do_sample=False)[0]
    ids[1] = by_heart
    ids[1, LENGTH // 2] = 7
    ids[3, LENGTH // 2 :] = END
    return ids.tolist()


def generated(model: Any, text: list[int], length: int) -> list[int]:
    """What `generate` says behind the first so many tokens."""
    prompt = torch.tensor([text[:length]])
    out = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_length=len(text), do_sample=False, eos_token_id=END, pad_token_id=0
    )
    return out[0, length:].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["llama", "gpt_neo"])
@pytest.mark.parametrize("held", [80_000, 3 * LENGTH])
def test_continuations_are_those_of_each_beginning_by_itself(name: str, held: int, monkeypatch: pytest.MonkeyPatch):
    """Whatever is spared because the text itself is likeliest, and however few go through the model at once."""
    monkeypatch.setattr(beginnings, "TOKENS_HELD", held)
    model = family(name)
    asked = texts(model)
    for text, found in zip(asked, continued_beginnings(model, asked, [END]), strict=True):
        for length in range(1, LENGTH):
            row = found.continuations[length]
            assert (row[:length] == NOTHING).all()
            said = row[length:][row[length:] != NOTHING].tolist()
            assert said == generated(model, text, length)


def test_likeliest_and_losses_are_those_of_one_pass_over_the_text():
    model = family("llama")
    asked = texts(model)
    with torch.no_grad():
        scores = model(torch.tensor(asked)).logits[:, :-1].double().log_softmax(dim=-1)
    for text, row, found in zip(asked, scores, continued_beginnings(model, asked, [END]), strict=True):
        assert (found.likeliest == row.argmax(dim=-1).numpy()).all()
        expected = -row[torch.arange(LENGTH - 1), torch.tensor(text[1:])].numpy()
        np.testing.assert_allclose(found.losses.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_texts_of_different_lengths_come_back_in_their_order():
    model = family("llama")
    asked = [text[: 10 + 3 * number] for number, text in enumerate(texts(model))]
    found = continued_beginnings(model, asked, [END])
    alone = [continued_beginnings(model, [text], [END])[0] for text in asked]
    assert all((a.continuations == b.continuations).all() for a, b in zip(found, alone, strict=True))


def test_a_text_known_by_heart_costs_no_continuation(monkeypatch: pytest.MonkeyPatch):
    """Where the likeliest token is the text's own, nothing is computed but the text itself."""
    model = family("llama")
    model.lm_head.weight.data[: END + 1] = 0  # no end token is ever likeliest
    ids = model.generate(torch.tensor([[9, 8, 7]]), max_length=LENGTH, min_length=LENGTH, do_sample=False)[0].tolist()
    grown: list[int] = []
    monkeypatch.setattr(beginnings, "_grown", lambda *args: grown.extend(args[3].tolist()) or np.zeros((len(args[2]), LENGTH)))
    continued_beginnings(model, [ids], [END])
    assert all(length < 3 for length in grown)
