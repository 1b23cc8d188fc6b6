"""Greedy text against a loop written by hand, and answers kept by the weights that gave them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

from harness.cache import Cache
from harness.errors import UsageError
from harness.generation import HFGenerator, choose_generator, generate_all
from harness.interfaces import GenerationRequest, Sampling
from tests.conftest import WORLD, Nano

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUESTIONS = [str(row["question"]) for row in (*WORLD.full[:40:5], *WORLD.world_facts[:4])]


def request(*turns: str, tokens: int = 8, **changes: Any) -> GenerationRequest:
    return GenerationRequest(turns, Sampling(max_tokens=tokens), **changes)


def by_hand(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, tokens: int) -> str:
    """The most likely token, one after the other, without a cache."""
    import torch

    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + tokens:
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def generate(nano: Nano, requests: Sequence[GenerationRequest], model: PreTrainedModel | None = None) -> list[str]:
    return HFGenerator().generate(model or nano.model(), nano.tokenizer, requests)


def test_greedy_text_equals_a_loop_of_argmax(nano: Nano):
    model = nano.model()
    found = generate(nano, [request(q) for q in QUESTIONS])
    assert found == [by_hand(model, nano.tokenizer, q, 8).strip() for q in QUESTIONS]
    assert len(set(found)) > 6, "the model says different things"


def test_prompts_batched_together_are_answered_as_one_by_one(nano: Nano):
    assert len({len(nano.tokenizer(q)["input_ids"]) for q in QUESTIONS}) > 2
    together = generate(nano, [request(q) for q in QUESTIONS])
    assert together == [generate(nano, [request(q)])[0] for q in QUESTIONS]


@pytest.mark.parametrize("size", [1, 3])
def test_answers_do_not_depend_on_how_many_are_asked_at_once(nano: Nano, size: int, monkeypatch: pytest.MonkeyPatch):
    requests = [request(q) for q in QUESTIONS]
    whole = generate(nano, requests)
    monkeypatch.setattr("harness.generation.PROMPTS_PER_BATCH", size)
    assert generate(nano, requests) == whole


def test_each_answer_keeps_to_its_own_budget(nano: Nano):
    budgets = [1, 2, 5, 9]
    found = generate(nano, [request(QUESTIONS[0], tokens=n) for n in budgets])
    assert [len(nano.tokenizer(text)["input_ids"]) for text in found] == budgets
    assert all(found[-1].startswith(text) for text in found)


def test_an_answer_ends_at_the_end_token_and_does_not_show_it(nano: Nano):
    model = nano.model()
    end = nano.tokenizer.eos_token_id

    def favour_the_end(module: object, args: object, output: Any) -> Any:
        output[..., end] = 1e4
        return output

    handle = model.lm_head.register_forward_hook(favour_the_end)
    try:
        assert generate(nano, [request(QUESTIONS[0])], model) == [""]
    finally:
        handle.remove()


@pytest.mark.parametrize("own", [{"repetition_penalty": 50.0}, {"no_repeat_ngram_size": 1}], ids=str)
def test_a_checkpoints_own_generation_settings_do_not_change_greedy_text(nano: Nano, own: dict[str, float]):
    model = nano.model()
    requests = [request(q, tokens=20) for q in QUESTIONS]
    plain = generate(nano, requests, model)
    model.generation_config.update(**own)
    assert generate(nano, requests, model) == plain


def test_a_checkpoint_that_samples_by_default_is_read_greedily(nano: Nano):
    model = nano.model()
    plain = generate(nano, [request(q) for q in QUESTIONS], model)
    model.generation_config.update(do_sample=True, temperature=5.0, top_p=0.9)
    assert generate(nano, [request(q) for q in QUESTIONS], model) == plain


def test_a_second_turn_is_asked_after_the_answer_to_the_first(nano: Nano):
    first, second = QUESTIONS[0], f" {QUESTIONS[1]}"
    model = nano.model()
    said = by_hand(model, nano.tokenizer, first, 4)
    (found,) = generate(nano, [request(first, second, tokens=4)], model)
    assert found == by_hand(model, nano.tokenizer, first + said + second, 4).strip()


def test_sampled_text_differs_from_greedy_and_comes_again_with_the_seed(nano: Nano):
    import torch

    model = nano.model()
    drawn = [GenerationRequest((q,), Sampling(8, temperature=1.0)) for q in QUESTIONS]
    mixed = [*drawn, *(request(q) for q in QUESTIONS)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        one = generate(nano, mixed, model)
        torch.manual_seed(1)
        again = generate(nano, mixed, model)
    assert one == again
    assert one[: len(drawn)] != one[len(drawn) :]
    assert one[len(drawn) :] == generate(nano, [request(q) for q in QUESTIONS], model)


def test_nothing_asked_is_nothing_answered(nano: Nano, cache: Cache):
    assert generate(nano, []) == []
    assert generate_all(HFGenerator(), nano.model(), nano.tokenizer, [], cache, "w") == {}
    assert list(cache.entries()) == []


# ---------------------------------------------------------------- kept answers


class Counting:
    """Says whose weights it was given, and counts how often it was asked."""

    name = "counting"

    def __init__(self) -> None:
        self.asked: list[int] = []

    def generate(self, model: Any, tokenizer: Any, requests: Sequence[GenerationRequest]) -> list[str]:
        self.asked.append(len(requests))
        return [f"{model} says {i}" for i, _ in enumerate(requests)]


REQUESTS = [request("a"), request("b"), request("a"), request("a", tokens=9)]


def test_equal_requests_are_answered_once(cache: Cache):
    generator = Counting()
    found = generate_all(generator, "A", None, REQUESTS, cache, "weights A")
    assert generator.asked == [3]
    assert found == {REQUESTS[0]: "A says 0", REQUESTS[1]: "A says 1", REQUESTS[3]: "A says 2"}


def test_weights_that_have_answered_are_not_asked_again(cache: Cache):
    generator = Counting()
    first = generate_all(generator, "A", None, REQUESTS, cache, "weights A")
    assert generate_all(generator, "never asked", None, REQUESTS, cache, "weights A") == first
    assert generator.asked == [3]


def test_no_model_is_given_another_models_answers(cache: Cache):
    generator = Counting()
    generate_all(generator, "A", None, REQUESTS, cache, "weights A")
    found = generate_all(generator, "B", None, REQUESTS, cache, "weights B")
    assert found[REQUESTS[0]] == "B says 0"


@pytest.mark.parametrize(
    "other",
    [
        [request("b")],
        [request("a", tokens=9)],
        [request("a", "b")],
        [GenerationRequest(("a",), Sampling(8, temperature=0.5))],
        [request("a"), request("b")],
    ],
)
def test_other_requests_are_asked_anew(cache: Cache, other: list[GenerationRequest]):
    generator = Counting()
    generate_all(generator, "A", None, [request("a")], cache, "w")
    generate_all(generator, "A", None, other, cache, "w")
    assert len(generator.asked) == 2


def test_another_back_end_is_asked_anew(cache: Cache):
    one, other = Counting(), Counting()
    other.name = "another"
    generate_all(one, "A", None, REQUESTS, cache, "w")
    generate_all(other, "A", None, REQUESTS, cache, "w")
    assert other.asked == [3]


def test_two_real_models_in_one_cache_answer_for_themselves(nano: Nano, cache: Cache):
    from harness.models import weights_fingerprint

    found = []
    for seed in (0, 1):
        model = nano.model(seed)
        requests = [request(q) for q in QUESTIONS]
        texts = generate_all(HFGenerator(), model, nano.tokenizer, requests, cache, weights_fingerprint(model))
        assert list(texts.values()) == generate(nano, requests, model)
        found.append(list(texts.values()))
    assert found[0] != found[1]


def test_an_unknown_back_end_is_refused_with_those_there_are():
    assert choose_generator("auto").name == "hf"
    with pytest.raises(UsageError, match=r"no generator called 'vlm'\. There are: auto, hf"):
        choose_generator("vlm")
