"""Greedy text against a loop written by hand, and answers kept by the weights that gave them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from harness.core.errors import UsageError
from harness.core.evaluator import GenerationRequest, Sampling
from harness.numerics.generation import HFGenerator, _texts, choose_generator, generate_all
from harness.numerics.thoughts import without_thoughts
from harness.storage.cache import Cache
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
    monkeypatch.setattr("harness.numerics.generation.PROMPTS_PER_BATCH", size)
    assert generate(nano, requests) == whole


@pytest.mark.parametrize("decodes", [True, False])
def test_what_is_not_answered_yet_is_asked_anew_in_smaller_batches_where_memory_runs_out(
    nano: Nano, decodes: bool, monkeypatch: pytest.MonkeyPatch
):
    import torch

    monkeypatch.setattr("harness.numerics.decoding.can_decode", lambda model, tokens: decodes)
    model = nano.model()
    asked = [drawn(question, float(i % 2), tokens=2 + 3 * i) for i, question in enumerate(QUESTIONS)]
    expected = HFGenerator().generate(model, nano.tokenizer, asked)
    read: list[int] = []

    def embed(module: Any, args: tuple[Any]) -> None:
        read.append(len(args[0]))
        if len(args[0]) > 2 and len(read) > 4:  # some are done by then
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.get_input_embeddings().register_forward_pre_hook(embed)
    assert HFGenerator().generate(model, nano.tokenizer, asked) == expected
    assert max(read) > 2
    assert read[-1] <= 2

    def never(module: Any, args: tuple[Any]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    model.get_input_embeddings().register_forward_pre_hook(never)
    with pytest.raises(torch.OutOfMemoryError):
        HFGenerator().generate(model, nano.tokenizer, asked)


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


def test_a_beginning_that_conversations_share_is_answered_once(nano: Nano, monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []
    whole = HFGenerator._continue

    def counted(model: Any, tokenizer: Any, prompts: Any, requests: Any) -> Iterator[tuple[int, str]]:
        asked.append(len(prompts))
        return whole(model, tokenizer, prompts, requests)

    monkeypatch.setattr(HFGenerator, "_continue", staticmethod(counted))
    one, two = QUESTIONS[0], f" {QUESTIONS[1]}"
    drawn = Sampling(6, temperature=1.0)
    requests = [GenerationRequest(turns, drawn) for turns in ((one,), (one, two), (one, two, " Why?"), (one,))]
    first, second, third, same = generate(nano, requests)
    assert asked == [1, 1, 1]
    assert first == same
    assert len({first, second, third}) == 3
    assert generate(nano, [requests[1]]) == [second], "by itself as well"


def drawn(question: str, temperature: float = 1.0, seed: int = 0, tokens: int = 8) -> GenerationRequest:
    return GenerationRequest((question,), Sampling(tokens, temperature, seed))


def test_sampled_text_differs_from_greedy_and_leaves_it_alone(nano: Nano):
    greedy = [request(q) for q in QUESTIONS]
    mixed = generate(nano, [*(drawn(q) for q in QUESTIONS), *greedy])
    assert mixed[: len(greedy)] != mixed[len(greedy) :]
    assert mixed[len(greedy) :] == generate(nano, greedy)


def test_what_is_drawn_depends_on_turns_and_seed_alone(nano: Nano, monkeypatch: pytest.MonkeyPatch):
    import torch

    requests = [drawn(q, seed=seed) for seed in (0, 1) for q in QUESTIONS]
    state = torch.random.get_rng_state()
    whole = generate(nano, requests)
    assert torch.equal(torch.random.get_rng_state(), state), "the model's own random numbers are left alone"
    assert whole[: len(QUESTIONS)] != whole[len(QUESTIONS) :], "another seed, another text"
    torch.rand(3)
    assert generate(nano, requests[::-1]) == whole[::-1]
    monkeypatch.setattr("harness.numerics.generation.PROMPTS_PER_BATCH", 3)
    assert generate(nano, requests) == whole
    shorter = generate(nano, [drawn(QUESTIONS[0], tokens=3), drawn(QUESTIONS[0], tokens=8)])
    assert shorter[1].startswith(shorter[0])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_with_the_probabilities_of_the_model(nano: Nano, temperature: float):
    import torch

    model, prompt = nano.model(), QUESTIONS[0]
    with torch.no_grad():
        logits = model(torch.tensor([nano.tokenizer(prompt)["input_ids"]])).logits[0, -1]
    wanted = (logits.double() / temperature).softmax(-1)
    found = torch.zeros_like(wanted)
    count = 4000
    texts = generate(nano, [drawn(prompt, temperature, seed, tokens=1) for seed in range(count)], model)
    for text in texts:
        ids = nano.tokenizer(text)["input_ids"]
        found[ids[0] if ids else nano.tokenizer.eos_token_id] += 1 / count
    likely = wanted > 0.005
    assert likely.sum() >= 3, "a draw between several"
    off = (found - wanted).abs() / (wanted * (1 - wanted) / count).sqrt()
    assert off[likely].max() < 4.5, "standard deviations"


def test_batches_are_small_enough_for_long_answers(monkeypatch: pytest.MonkeyPatch):
    from harness.numerics import generation

    monkeypatch.setattr(generation, "TOKENS_PER_BATCH", 100)
    ids = [[0] * n for n in (5, 6, 10, 40, 120)]
    budgets = [10, 10, 30, 10, 10]
    requests = [request("a", tokens=n) for n in budgets]
    assert list(generation._groups(range(5), ids, requests, 256)) == [[0, 1], [2], [3], [4]]
    monkeypatch.setattr(generation, "TOKENS_PER_BATCH", 80_000)
    assert list(generation._groups(range(5), ids, requests, 256)) == [[0, 1, 2, 3, 4]]
    assert list(generation._groups(range(5), ids, requests, 2)) == [[0, 1], [2, 3], [4]]


# ---------------------------------------------------------------- chats

CHAT = (
    "{% if date_string is defined %}{{ date_string }} {% endif %}"
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


def test_a_chat_goes_through_the_tokenizers_template_with_the_answers_so_far(nano: Nano, monkeypatch: pytest.MonkeyPatch):
    import copy

    tokenizer = copy.copy(nano.tokenizer)
    tokenizer.chat_template = CHAT
    seen: list[str] = []

    def answered(model: Any, tokenizer: Any, prompts: Any, requests: Any) -> Iterator[tuple[int, str]]:
        seen.extend(tokenizer.decode(p) for p in prompts)
        return ((i, " Mia . ") for i, _ in enumerate(prompts))

    monkeypatch.setattr(HFGenerator, "_continue", staticmethod(answered))
    asked = GenerationRequest((QUESTIONS[0], QUESTIONS[1]), Sampling(4), chat=True)
    assert HFGenerator().generate(nano.model(), tokenizer, [asked]) == ["Mia ."]
    opening = f"10 Apr 2025 user : {QUESTIONS[0]} assistant :"
    wanted = [opening, f"{opening} Mia . user : {QUESTIONS[1]} assistant :"]
    assert seen == [tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in wanted]


@pytest.mark.parametrize("asks", ["strftime_now('%d %B %Y')", "strftime_now('%Y-%m-%d %H:%M')", "date_string"])
def test_a_template_that_asks_the_clock_gets_a_day_that_does_not_change(nano: Nano, asks: str):
    import copy
    from datetime import datetime

    from harness.numerics.conversations import conversation

    tokenizer = copy.copy(nano.tokenizer)
    tokenizer.chat_template = "{{ " + asks + " }}"
    days = {"date_string": "10 Apr 2025", "strftime_now('%d %B %Y')": "10 April 2025"}
    assert conversation(tokenizer, ["Who?"], []) == days.get(asks, "2025-04-10 00:00")
    tokenizer.chat_template = "{{ strftime_now('%Y') }}"
    messages = [{"role": "user", "content": "Who?"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == str(datetime.now().year), "others have the true clock"


def test_chats_and_rendered_turns_are_answered_together(nano: Nano):
    import copy

    tokenizer = copy.copy(nano.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    requests = [GenerationRequest((q,), Sampling(8), chat=chat) for q in QUESTIONS for chat in (True, False)]
    found = HFGenerator().generate(nano.model(), tokenizer, requests)
    assert found[::2] == found[1::2] == generate(nano, [request(q) for q in QUESTIONS])


def test_a_chat_without_a_template_is_refused(nano: Nano):
    with pytest.raises(UsageError, match="has no chat template"):
        generate(nano, [GenerationRequest(("Who?",), Sampling(4), chat=True)])


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
        [GenerationRequest(("a",), Sampling(8, seed=1))],
        [GenerationRequest(("a",), Sampling(8), chat=True)],
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
    from harness.models.sources import weights_fingerprint

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
    with pytest.raises(UsageError, match=r"no generator called 'vlm'\. There are: auto, hf, vllm"):
        choose_generator("vlm")


def test_special_tokens_around_thoughts_stay_and_others_go(nano: Nano):
    tokenizer = copy.deepcopy(nano.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]", "<|other|>"]})
    marks = tokenizer.convert_tokens_to_ids(["[THINK]", "[/THINK]", "<|other|>"])
    secret, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("what is", "who is"))
    end = tokenizer.eos_token_id
    said = [[marks[0], *secret, marks[1], marks[2], *answer, end], [*answer, marks[2], *answer]]
    first, second = _texts(tokenizer, (end,))(said)
    assert without_thoughts(first) == tokenizer.decode(answer)
    assert first.startswith("[THINK]")
    plain = copy.deepcopy(nano.tokenizer)
    plain.add_special_tokens({"additional_special_tokens": ["[1]", "[2]", "<|other|>"]})
    assert second == _texts(plain, (end,))([said[1]])[0], "as without such marks"


def test_a_template_that_takes_no_conversation_is_one_sentence(nano: Nano):
    tokenizer = copy.deepcopy(nano.tokenizer)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UsageError, match=r"chat template takes no conversation of one turn: roles must alternate"):
        HFGenerator().generate(nano.model(), tokenizer, [GenerationRequest(("who",), Sampling(max_tokens=1), chat=True)])
