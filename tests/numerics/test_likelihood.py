"""What a model thinks of given answers, against plain formulas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from harness.core.errors import UsageError
from harness.data.rows import Encoded, collate
from tests.conftest import Nano

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

WORDS = 13
FAMILIES = ("llama", "mistral", "phi", "gpt2", "gpt_neo", "gemma3_text", "gemma2", "gpt_neox")


def random_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A tiny random model of a family, biases and norms random too, in eval mode."""
    import torch
    import transformers as t

    common: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2}
    wide = {"intermediate_size": 12, "max_position_embeddings": 32}
    config = {
        "llama": lambda: t.LlamaConfig(**common, **wide),
        "mistral": lambda: t.MistralConfig(**common, **wide, num_key_value_heads=1, sliding_window=4),
        "phi": lambda: t.PhiConfig(**common, **wide),
        "gpt2": lambda: t.GPT2Config(vocab_size=WORDS, n_embd=8, n_layer=2, n_head=2, n_positions=32),
        "gpt_neo": lambda: t.GPTNeoConfig(
            vocab_size=WORDS,
            hidden_size=8,
            num_layers=2,
            num_heads=2,
            window_size=4,
            max_position_embeddings=32,
            attention_types=[[["global", "local"], 1]],
        ),
        "gemma3_text": lambda: t.Gemma3TextConfig(**common, **wide, num_key_value_heads=1, head_dim=4),
        "gemma2": lambda: t.Gemma2Config(**common, **wide, num_key_value_heads=1, head_dim=4),  # its logits are capped
        "gpt_neox": lambda: t.GPTNeoXConfig(**common, **wide),  # not among the plain heads: the other branch
    }[family]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = t.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def ragged(count: int = 7, seed: int = 0) -> list[Encoded]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 12, count)
    return [Encoded(rng.integers(0, WORDS, int(n)).tolist(), int(rng.integers(1, n))) for n in lengths]


def by_hand(model: PreTrainedModel, encoded: Encoded) -> Tensor:
    """[labels, V] the full model's logits on one unpadded sequence, at the positions before the labels."""
    import torch

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([encoded.input_ids])).logits[0]
    return logits[encoded.prompt_tokens - 1 : -1].float()


@pytest.mark.parametrize("family", FAMILIES)
def test_answer_logits_equal_the_full_models(family: str):
    import torch

    from harness.numerics.likelihood import answer_labels, answer_logits, answer_rows

    model, encoded = random_model(family), ragged()
    batch = collate(encoded, list(range(10, 10 + len(encoded))), 0)
    with torch.no_grad():
        found = answer_logits(model, batch)
    torch.testing.assert_close(found, torch.cat([by_hand(model, e) for e in encoded]), rtol=1e-4, atol=1e-4)
    assert found.dtype == torch.float32
    assert answer_labels(batch).tolist() == [i for e in encoded for i in e.input_ids[e.prompt_tokens :]]
    assert answer_rows(batch).tolist() == [10 + n for n, e in enumerate(encoded) for _ in e.input_ids[e.prompt_tokens :]]


def test_answer_logits_are_float32_whatever_the_models_type():
    import torch

    from harness.numerics.likelihood import answer_logits

    found = answer_logits(random_model("llama").to(torch.bfloat16), collate(ragged(), list(range(7)), 0))
    assert found.dtype == torch.float32


def test_a_sequence_without_a_prompt_is_scored_from_its_second_token():
    import torch

    from harness.numerics.likelihood import answer_labels, answer_logits

    batch = collate([Encoded([3, 4, 5], 0)], [0], 0)
    assert answer_labels(batch).tolist() == [4, 5]
    with torch.no_grad():
        assert answer_logits(random_model("llama"), batch).shape == (2, WORDS)


def test_nll_is_the_sum_of_the_answers_log_probabilities():
    import torch

    from harness.numerics.likelihood import answer_nll

    model, encoded = random_model("llama"), ragged()
    sums, counts = answer_nll(model, encoded, 0)
    for n, e in enumerate(encoded):
        log_probs = by_hand(model, e).double().log_softmax(-1)
        answer = torch.tensor(e.input_ids[e.prompt_tokens :])
        assert counts[n] == len(answer)
        assert sums[n] == pytest.approx(-float(log_probs.gather(1, answer[:, None]).sum()), rel=1e-5)
    assert sums.dtype == counts.dtype == np.float64


@pytest.mark.parametrize("tokens", [1, 20, 40])
def test_nll_does_not_depend_on_the_batch_size(tokens: int, monkeypatch: pytest.MonkeyPatch):
    from harness.numerics import likelihood

    model, encoded = random_model("llama"), ragged(20)
    whole, _ = likelihood.answer_nll(model, encoded, 0)
    monkeypatch.setattr(likelihood, "TOKENS_PER_BATCH", tokens)
    told: list[int] = []
    parts, _ = likelihood.answer_nll(model, encoded, 0, told.append)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    assert len(told) > 1
    assert sum(told) == 20


def test_margin_is_the_log_odds_of_the_right_token():
    import torch

    from harness.numerics.likelihood import margin

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, WORDS, generator=generator)
    labels = torch.randint(0, WORDS, (3, 5), generator=generator)
    p = logits.double().softmax(-1).gather(-1, labels[..., None])[..., 0]
    torch.testing.assert_close(margin(logits, labels).double(), (p / (1 - p)).log(), rtol=1e-5, atol=1e-5)


def test_margin_is_exact_on_tokens_that_are_all_but_certain():
    import torch

    from harness.numerics.likelihood import margin

    logits = torch.zeros(1, WORDS)
    logits[0, 3] = 60.0  # 1 − p is 1e-25, which a float cannot tell from 0
    assert float(margin(logits, torch.tensor([3]))) == pytest.approx(60 - np.log(WORDS - 1), rel=1e-6)


def test_margin_has_a_finite_gradient_on_tokens_that_are_all_but_certain():
    import torch

    from harness.numerics.likelihood import margin

    logits = torch.zeros(1, WORDS)
    logits[0, 3] = 60.0
    logits.requires_grad_()
    margin(logits, torch.tensor([3])).sum().backward()
    expected = torch.full((1, WORDS), -1 / (WORDS - 1))
    expected[0, 3] = 1.0
    torch.testing.assert_close(logits.grad, expected)


def test_margin_refuses_labels_of_another_shape():
    import torch

    from harness.numerics.likelihood import margin

    with pytest.raises(ValueError, match=r"\(2, 3, 13\) do not predict labels \(3, 2\)"):
        margin(torch.zeros(2, 3, WORDS), torch.zeros(3, 2, dtype=torch.long))


def test_kl_per_token_is_the_sum_over_the_vocabulary():
    import torch

    from harness.numerics.likelihood import kl_per_token

    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(6, WORDS, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    direct = [sum(float(a.exp() * (a - b)) for a, b in zip(row, other, strict=True)) for row, other in zip(p, q, strict=True)]
    torch.testing.assert_close(kl_per_token(p, q), torch.tensor(direct, dtype=torch.float64), rtol=1e-12, atol=0)
    assert float(kl_per_token(p, p).abs().max()) == 0


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_the_number_of_positions_at_a_time_changes_nothing(family: str, monkeypatch: pytest.MonkeyPatch):
    from harness.numerics import likelihood

    model, encoded = random_model(family), ragged(20)
    whole = likelihood.answer_nll(model, encoded, 0)
    for size in (1, 3):
        monkeypatch.setattr(likelihood, "POSITIONS_AT_ONCE", size)
        for mine, theirs in zip(likelihood.answer_nll(model, encoded, 0), whole, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-6)


@pytest.mark.parametrize("what", ["answer_nll", "kl_between"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_texts_are_read_in_smaller_batches_where_memory_runs_out(family: str, what: str, monkeypatch: pytest.MonkeyPatch):
    import torch

    from harness.numerics import likelihood

    model, encoded = random_model(family), [*ragged(20), *[Encoded([1, 2, 3, n], 2) for n in range(6)]]
    models = [random_model(family, 1), model] if what == "kl_between" else [model]

    def measured(progress: Any = None) -> Any:
        return getattr(likelihood, what)(*models, encoded, 0, progress)

    expected, failed, told = measured(), [], []

    def read(module: Any, args: tuple[Tensor]) -> None:
        if args[0].numel() > 40:
            failed.append(args[0].numel())
            raise torch.OutOfMemoryError("CUDA out of memory.")

    for each in models:
        each.get_input_embeddings().register_forward_pre_hook(read)
    for mine, theirs in zip(measured(told.append), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert sum(told) == len(encoded), "each text is told of once"
    assert failed
    tries = len(failed)
    measured()
    assert len(failed) == tries, "the model keeps the size that fitted"


def test_a_pass_of_sharded_weights_is_not_begun_anew(monkeypatch: pytest.MonkeyPatch):
    """The other processes are in the middle of the one that broke off: a second one would wait for them for ever."""
    import torch

    from harness.numerics import room

    monkeypatch.setattr(room, "is_sharded", lambda model: True)
    tried: list[int] = []

    def run(size: int) -> None:
        tried.append(size)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def each(numbers: list[int], rows: int) -> Iterator[tuple[int, None]]:
        yield numbers[0], run(rows)

    model = random_model("llama")
    with pytest.raises(torch.OutOfMemoryError):
        room.with_room(model, 64, 1, run)
    with pytest.raises(torch.OutOfMemoryError):
        list(room.each_with_room(model, 9, 8, each))
    assert tried == [64, 8]


def test_what_a_model_says_has_not_moved_from_itself_and_has_after_a_change():
    import torch

    from harness.numerics.likelihood import AnswerDistributions

    model, encoded = random_model("llama"), ragged()
    before = AnswerDistributions(model, encoded, 0)
    assert abs(before.kl(model)) < 1e-7
    assert before.labels == sum(len(e.input_ids) - e.prompt_tokens for e in encoded)

    base = [by_hand(model, e).double().log_softmax(-1) for e in encoded]
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.1)
    now = [by_hand(model, e).double().log_softmax(-1) for e in encoded]
    direct = sum(float((p.exp() * (p - q)).sum()) for p, q in zip(base, now, strict=True)) / before.labels
    assert direct > 1e-4
    assert before.kl(model) == pytest.approx(direct, rel=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_a_large_vocabulary_is_compared_some_labels_at_a_time(kind: str, monkeypatch: pytest.MonkeyPatch):
    import torch

    from harness.numerics import likelihood

    encoded = ragged()
    before, model = random_model(kind), random_model(kind)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.1)
    whole = likelihood.AnswerDistributions(before, encoded, 0)
    expected, sums = whole.kl(model), whole.kl_sums(model)

    compared: list[int] = []
    plain = likelihood.kl_per_token
    monkeypatch.setattr(likelihood, "kl_per_token", lambda p, q: compared.append(len(p)) or plain(p, q))
    monkeypatch.setattr(likelihood, "ENTRIES_AT_ONCE", 3 * model.config.vocab_size + 1)
    parts = likelihood.AnswerDistributions(before, encoded, 0)
    assert parts.kl(model) == pytest.approx(expected, rel=1e-5)
    assert (max(compared), sum(compared)) == (3, whole.labels)
    for mine, theirs in zip(parts.kl_sums(model), sums, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)

    compared.clear()
    monkeypatch.setattr(likelihood, "is_wide", lambda model: True)
    monkeypatch.setattr(likelihood, "ENTRIES_ON_CPU", 2 * model.config.vocab_size)
    assert likelihood.AnswerDistributions(before, encoded, 0).kl(model) == pytest.approx(expected, rel=1e-5)
    assert (max(compared), sum(compared)) == (2, whole.labels)


# ---------------------------------------------------------------- the context window


def short_context(kind: str) -> Any:
    """A random model with 16 positions."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {
        "gpt2": {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16},
        "opt": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 8, "word_embed_proj_dim": 8},
        "gptj": {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16, "rotary_dim": 2},
        # Linear maps of as many rows as there are positions are no tables of them.
        "llama": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        "bloom": {"hidden_size": 8, "n_layer": 1, "n_head": 2},
    }[kind]
    if kind in ("opt", "llama"):
        shape["max_position_embeddings"] = 16
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=20, **shape)).eval()


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gptj"])
def test_a_text_longer_than_a_table_of_positions_is_refused(kind: str):
    from harness.numerics import likelihood

    model = short_context(kind)
    likelihood.answer_nll(model, [Encoded([3] * 16, 1)], 0)
    with pytest.raises(UsageError, match=rf"a text has 17 tokens, and this {kind} has positions for 16\. .*max_length=16"):
        likelihood.answer_nll(model, [Encoded([3] * 17, 1)], 0)


def test_a_text_longer_than_a_rotary_model_was_made_for_is_said_once(caplog: pytest.LogCaptureFixture):
    from harness.numerics import likelihood

    likelihood._say_longer.cache_clear()
    model = short_context("llama")
    for length in (17, 17, 18, 30):
        likelihood.answer_nll(model, [Encoded([3] * length, 1)], 0)
    assert caplog.messages == ["a text has more than the 16 tokens that this llama is made for"]
    likelihood.answer_nll(short_context("bloom"), [Encoded([3] * 5000, 1)], 0)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_an_answer_longer_than_a_table_of_positions_is_refused(kind: str, nano: Nano):
    from harness.core.evaluator import GenerationRequest, Sampling
    from harness.numerics.generation import HFGenerator

    model = short_context(kind)
    model.resize_token_embeddings(len(nano.tokenizer))
    prompt = nano.tokenizer.decode([7, 8, 9])
    assert HFGenerator().generate(model, nano.tokenizer, [GenerationRequest((prompt,), Sampling(max_tokens=12))])
    with pytest.raises(UsageError, match=rf"take up to 17 tokens, and this {kind} has positions for 16"):
        HFGenerator().generate(model, nano.tokenizer, [GenerationRequest((prompt,), Sampling(max_tokens=14))])
