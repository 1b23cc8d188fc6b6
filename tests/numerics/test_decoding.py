"""The loop that continues texts against `transformers`' own `generate`, family by family."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from harness.core.evaluator import GenerationRequest, Sampling
from harness.numerics.decoding import can_decode, decode
from harness.numerics.generation import _generated
from tests import architectures
from tests.numerics.test_likelihood import short_context

TIE = 1e-4
"""Tokens that are as likely as that, in nats, may be taken for each other."""
OTHERS = {"bloom", "mpt", "phi3", "mamba", "rwkv"}
"""Families that are given no positions, need inputs of their own or leave more behind than keys and values."""
WINDOW = 40
"""Of the families with a sliding window."""


def family(name: str, window: int = 4096) -> Any:
    """A random model of a family, with weights large enough for its answers to differ."""
    model = copy.deepcopy(architectures.model(name))
    if getattr(model.config, "sliding_window", None):
        model.config.sliding_window = window
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.4, generator=generator)
    return model


def asked(model: Any, count: int = 11) -> tuple[list[list[int]], list[int], list[int]]:
    """Ragged prompts, budgets that have nothing to do with their lengths, and three tokens that end answers."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 12, (count,), generator=generator).tolist()
    prompts = [torch.randint(5, model.config.vocab_size, (length,), generator=generator).tolist() for length in lengths]
    return prompts, torch.randint(1, 16, (count,), generator=generator).tolist(), [0, 1, 2]


def greedy(model: Any, prompts: Sequence[list[int]], budgets: Sequence[int], ends: Sequence[int], rows: int) -> list[list[int]]:
    found = dict(decode(model, prompts, budgets, ends, lambda scores, _: scores.argmax(dim=-1), rows))
    assert sorted(found) == list(range(len(prompts)))
    return [found[number] for number in range(len(prompts))]


def endless(model: Any, prompts: Sequence[list[int]], budgets: Sequence[int], rows: int) -> list[list[int]]:
    """Answers that never end before their budgets."""
    return [
        said for _, said in sorted(decode(model, prompts, budgets, [0], lambda scores, _: scores[:, 1:].argmax(-1) + 1, rows))
    ]


def generated(model: Any, prompts: Sequence[list[int]], budgets: Sequence[int], ends: Sequence[int]) -> list[list[int]]:
    """What `generate` says of each prompt by itself, up to the token that ends it."""
    said = []
    for prompt, budget in zip(prompts, budgets, strict=True):
        (tokens,) = _generated(model, [prompt], [GenerationRequest(("",), Sampling(budget))], list(ends))
        said.append(tokens[: next((i + 1 for i, token in enumerate(tokens) if token in ends), None)])
    return said


def check_same(model: Any, prompts: Sequence[list[int]], found: Sequence[list[int]], wanted: Sequence[list[int]]) -> None:
    """Whether answers agree token by token, but for ties."""
    for prompt, one, other in zip(prompts, found, wanted, strict=True):
        if one == other:
            continue
        same = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
        with torch.no_grad():
            said = model(input_ids=torch.tensor([prompt + one[:same]]), use_cache=False).logits[0, -1].log_softmax(-1)
        assert abs(float(said[one[same]] - said[other[same]])) < TIE


@pytest.mark.parametrize("name", sorted(set(architectures.FAMILIES) - OTHERS))
def test_answers_are_those_of_generate(name: str):
    model = family(name)
    prompts, budgets, ends = asked(model)
    assert can_decode(model, 30)
    wanted = generated(model, prompts, budgets, ends)
    assert len({tuple(answer) for answer in wanted}) > 6, "the model says different things"
    for rows in (1, 4, 64):
        check_same(model, prompts, greedy(model, prompts, budgets, ends, rows), wanted)


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_families_that_leave_more_behind_are_left_to_generate(name: str):
    assert not can_decode(family(name), 30)


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3_text", "gpt_oss"])
def test_a_text_longer_than_a_sliding_window_is_left_to_generate(name: str):
    model = family(name, WINDOW)
    assert can_decode(model, WINDOW - 1)
    assert not can_decode(model, WINDOW)


def test_an_encoder_is_left_to_generate():
    model = family("llama")
    model.config.is_encoder_decoder = True
    assert not can_decode(model, 30)


def test_a_model_on_several_devices_is_left_to_generate():
    model = family("llama")
    model.model.layers[1].to("meta")
    assert not can_decode(model, 30)


def read(model: Any) -> list[tuple[int, int, int]]:
    """The (rows, tokens, slots) of every forward pass from now on."""
    seen: list[tuple[int, int, int]] = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((*kwargs["input_ids"].shape, kwargs["attention_mask"].shape[1])), with_kwargs=True
    )
    return seen


def test_rows_that_have_ended_are_not_computed_and_others_take_their_places():
    model = family("llama")
    prompts, budgets = [[5, 6, 7]] * 40, [3] * 30 + [60] * 10
    seen = read(model)
    endless(model, prompts, budgets, 10)
    needed = sum(2 + budget for budget in budgets)
    assert sum(rows * tokens for rows, tokens, _ in seen) <= 1.2 * needed
    assert max(rows for rows, _, _ in seen) == 10
    assert sum(tokens == 1 for _, tokens, _ in seen) < 100, "steps, where batches one after the other make 3 · 3 + 60"


def test_no_row_is_padded_longer_than_another_needs():
    model = family("llama")
    prompts = [[5] * length for length in (30, 3, 4, 5)]
    seen = read(model)
    endless(model, prompts, [2, 25, 20, 22], 4)
    assert max(slots for _, _, slots in seen) == 31
    assert seen[-1][2] == 3 + 25 - 1


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_every_position_of_a_table_can_be_used(kind: str):
    model = short_context(kind)
    prompts, budgets = [[3] * 14, [4, 5], [6, 7, 8]], [3, 15, 14]
    assert [len(answer) for answer in endless(model, prompts, budgets, 3)] == budgets
