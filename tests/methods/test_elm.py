"""ELM against its formulas, worked out by hand from full logits; its contexts, its sampling, and what it leaves behind."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from harness.core.config import resolve
from harness.core.errors import Diverged, UsageError
from harness.core.memory import ModelShape
from harness.core.method import METHODS, Progress, UnlearningContext
from harness.core.problem import Problem, Stage
from harness.core.text import Example
from harness.data.rows import Encoded, collate, token_ids
from harness.models import memory
from methods import elm
from methods.elm import continuations, texts
from methods.elm.config import ELMConfig
from methods.elm.losses import erased, mean_of_each, retain_losses, soft_cross_entropy
from methods.elm.texts import Concept, Entry, schedule
from methods.elm.words import EXPERT, NOVICE, TURNS
from methods.first_order.adapters import Adapters, linear_maps, without_adapters
from tests.conftest import ContextMaker
from tests.methods.test_loku import bits, look, same_bits, shift, some_logits


def config_of(**changes: Any) -> ELMConfig:
    usual = {"layers": [0, 1], "rank": 4, "rounds": 8, "new_tokens": [2, 5], "contexts": "texts", "points": 2, "lr": 1e-3}
    return resolve(ELMConfig, {**usual, **changes}, owner="elm")


def run(context: UnlearningContext, **changes: Any) -> list[Progress]:
    return list(elm.elm(context, config_of(**changes)))


def log_p(model: PreTrainedModel, ids: list[int], temperature: float = 1.0) -> Tensor:
    """[T, V] of one text, float64."""
    with torch.no_grad():
        return (model(input_ids=torch.tensor([ids])).logits[0].double() / temperature).log_softmax(-1)


def concept(context: UnlearningContext, **changes: Any) -> Concept:
    return Concept(context, context.stages[0], 0, config_of(**changes))


@pytest.fixture
def two_stages(nano_problem: Problem) -> Problem:
    (stage,) = nano_problem.stages
    stages = [Stage("bio", stage.forget[:5], stage.retain[:12]), Stage("cyber", stage.forget[5:], stage.retain[12:])]
    return replace(nano_problem, stages=stages)


# ---------------------------------------------------------------- the losses


def test_target_is_the_base_moved_from_the_expert_to_the_novice():
    """By hand, token by token: two texts of three and two positions, eta 5, so strengths 1, 3, 5 and 1, 5."""
    generator = torch.Generator().manual_seed(0)
    base, expert, novice = (torch.randn(5, 6, generator=generator) for _ in range(3))
    found = erased(base, expert, novice, torch.tensor([3, 2]), eta=5.0, temperature=1.2, top_k=4)
    for row, strength in enumerate((1, 3, 5, 1, 5)):
        logs = []
        for z in (base[row], expert[row], novice[row]):
            scaled = [float(x) / 1.2 for x in z]
            total = math.log(sum(math.exp(x) for x in scaled))
            logs.append([x - total for x in scaled])
        scores = [p - strength * (e - n) for p, e, n in zip(*logs, strict=True)]
        kept = sorted(scores)[-4:]
        odds = [math.exp(x) if x in kept else 0.0 for x in scores]
        assert found[row].tolist() == pytest.approx([x / sum(odds) for x in odds], rel=1e-9)
        assert sum(x > 0 for x in found[row].tolist()) == 4


def test_a_text_of_one_token_has_strength_1():
    z = torch.zeros(1, 3)
    found = erased(z, torch.tensor([[1.0, 0, 0]]), z, torch.tensor([1]), eta=1000.0, temperature=1.0, top_k=3)
    assert found[0].tolist() == pytest.approx([1 / (1 + 2 * math.e), math.e / (1 + 2 * math.e), math.e / (1 + 2 * math.e)])


def test_gradient_of_soft_cross_entropy_is_p_minus_q():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    q = torch.rand(4, 7, generator=generator, dtype=torch.float64)
    q = q / q.sum(dim=1, keepdim=True)
    losses = soft_cross_entropy(logits, q)
    p = logits.detach().softmax(dim=-1)
    torch.testing.assert_close(losses.detach(), -(q * p.log()).sum(dim=-1))
    losses.sum().backward()
    torch.testing.assert_close(logits.grad, p - q)


@pytest.mark.parametrize("kind", ["cross_entropy", "kl"])
def test_retain_loss_holds_the_likeliest_token_or_the_whole_distribution(kind: str):
    before = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 3.0]], dtype=torch.float64)
    logits = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]], dtype=torch.float64, requires_grad=True)
    losses = retain_losses(logits, before, kind)
    losses.sum().backward()
    p, p0 = logits.detach().softmax(-1), before.softmax(-1)
    if kind == "cross_entropy":
        target = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]], dtype=torch.float64)
        torch.testing.assert_close(losses.detach(), -p.log()[[0, 1], [0, 2]])
    else:
        target = p0
        torch.testing.assert_close(losses.detach(), (p0 * (p0.log() - p.log())).sum(-1))
    torch.testing.assert_close(logits.grad, p - target)


def test_every_text_has_a_mean_of_its_own():
    batch = collate([Encoded([1, 2, 3], 1), Encoded([1, 2], 1)], [0, 1], 0)
    assert mean_of_each(torch.tensor([1.0, 3.0, 7.0]), batch).tolist() == [2, 7]


@pytest.mark.parametrize("retain_loss", ["cross_entropy", "kl"])
def test_terms_of_the_first_step_are_those_of_the_formula(retain_loss: str, nano_context: UnlearningContext):
    """Adapters start at 0, so every term is one of the model as it was; contexts are aligned at their right ends."""
    model, tokenizer = nano_context.model, nano_context.tokenizer
    about = concept(nano_context)
    erase = retain = fluency = 0.0
    followed = continuations.continuations(nano_context, [about], [Entry(0, k) for k in range(4)], config_of())
    for turn in range(4):
        text = about.forget[turn]
        expert, novice, _ = about._drawn("erase", turn)
        (x,), (knowing,), (ignorant,) = (token_ids(tokenizer, [joined]) for joined in (text, expert + text, novice + text))
        assert knowing[-len(x) :] == ignorant[-len(x) :] == x
        strength = torch.linspace(1, 1000, len(x), dtype=torch.float64)[:, None]
        scores = log_p(model, x, 1.2)
        scores = scores - strength * (log_p(model, knowing, 1.2)[-len(x) :] - log_p(model, ignorant, 1.2)[-len(x) :])
        for row, position in zip(scores, log_p(model, x), strict=True):
            best = row.topk(50)
            q = best.values.softmax(0)
            erase -= float((q * position[best.indices]).sum()) / len(x)
        (r,) = token_ids(tokenizer, [about._retain[turn]])
        p0 = log_p(model, r)
        retain -= float(p0.max(dim=-1).values.mean()) if retain_loss == "cross_entropy" else 0.0
        whole = followed[0, turn].input_ids
        assert whole[: len(x)] == x
        nll = [-float(log_p(model, whole)[i - 1, whole[i]]) for i in range(len(x) + 1, len(whole))]
        fluency += sum(nll) / len(nll)
    first = run(nano_context, retain_loss=retain_loss)[0]
    assert first.logged["forget_term"] == pytest.approx(erase, rel=1e-3)
    assert first.logged["retain_term"] == pytest.approx(retain, rel=1e-5, abs=1e-5)
    assert first.logged["fluency_term"] == pytest.approx(fluency, rel=1e-5)


def test_a_term_without_weight_is_left_out_and_weights_multiply(make_context: ContextMaker):
    whole = run(make_context(), rounds=4)[0].logged
    found = run(make_context(), rounds=4, retain_weight=0, fluency_weight=0, erase_weight=0.5)[0].logged
    assert set(found) == {"forget_term", "gradient_norm", "learning_rate"}
    assert found["forget_term"] == pytest.approx(0.5 * whole["forget_term"], rel=1e-5)


def test_training_lowers_what_it_minimises(nano_context: UnlearningContext):
    losses = [p.logged["fluency_term"] for p in run(nano_context, rounds=100, lr=1e-2)]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


# ---------------------------------------------------------------- sampling


def tiny(kind: str) -> PreTrainedModel:
    shapes: dict[str, dict[str, Any]] = {
        "llama": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12},
        "gpt_neo": {"hidden_size": 8, "num_layers": 2, "num_heads": 2, "attention_types": [[["global"], 2]]},
        "phi": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, vocab_size=20, initializer_range=0.8, eos_token_id=0, **shapes[kind])
        return AutoModelForCausalLM.from_config(config).eval()


class Ends:
    eos_token_id = 0


@pytest.mark.parametrize("guidance", [0.0, 3.0])
@pytest.mark.parametrize("kind", ["llama", "gpt_neo", "phi"])
def test_continuations_are_drawn_from_the_guided_distribution(kind: str, guidance: float):
    """Against one text at a time, without padding and without a cache of keys and values."""
    model = tiny(kind)
    texts, experts, novices = [[1, 2, 3, 4], [5, 6]], [[7], [8, 9, 10]], [[11, 12], [13]]
    budgets = [6, 9]
    uniform = np.random.default_rng(0).random((9, 2), dtype=np.float32)
    found = continuations.guided(model, Ends(), texts, experts, novices, budgets, guidance, uniform)
    for i, tokens in enumerate(found):
        expected: list[int] = []
        for number in uniform[: budgets[i], i]:
            plain, expert, novice = (log_p(model, ids + expected)[-1] for ids in (texts[i], experts[i], novices[i]))
            p = (plain + guidance * (novice - expert)).softmax(0)
            token = int(torch.searchsorted(p.cumsum(0), torch.tensor(float(number), dtype=torch.float64)))
            if token == 0:
                break
            expected.append(token)
        assert tokens == expected
    assert [len(tokens) for tokens in found] != [0, 0]


def test_a_continuation_ends_at_its_budget_or_the_end_token():
    model = tiny("llama")
    uniform = np.random.default_rng(1).random((12, 3), dtype=np.float32)
    found = continuations.guided(model, Ends(), [[1], [2], [3]], [[4]] * 3, [[5]] * 3, [2, 12, 1], 0.0, uniform)
    assert len(found[0]) <= 2
    assert len(found[2]) <= 1
    assert not any(0 in tokens for tokens in found)


def test_continuations_are_sampled_once_and_found_again(make_context: ContextMaker, monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    real = continuations.guided

    def counted(*arguments: Any) -> list[list[int]]:
        calls.append(len(arguments[2]))
        return real(*arguments)

    monkeypatch.setattr(continuations, "guided", counted)
    first = make_context()
    again = replace(make_context(), cache=first.cache)
    run(first, rounds=40)
    assert calls == [12], "every forget text once, however often it is taken"
    run(again, rounds=40, lr=1e-4)
    assert calls == [12]
    run(replace(make_context(), cache=first.cache), rounds=40, guidance=1.0)
    assert calls == [12, 12]


# ---------------------------------------------------------------- stages and contexts


def test_a_round_takes_its_stages_as_often_as_they_are_named():
    found = schedule(config_of(order=[0, 0, 1], rounds=2), 2)
    assert [(e.stage, e.turn) for e in found] == [(0, 0), (0, 1), (1, 0), (0, 2), (0, 3), (1, 1)]
    assert [(e.stage, e.turn) for e in schedule(config_of(rounds=2), 2)] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    with pytest.raises(UsageError, match=r"order=\[0, 2\]: there are stages 0 to 1. Set order=\[0,1\]"):
        schedule(config_of(order=[0, 2]), 2)


def test_steps_and_points(make_context: ContextMaker, two_stages: Problem):
    found = run(make_context(problem=two_stages), order=[0, 0, 1], rounds=9, points=3)
    assert [p.step for p in found] == [1, 2, 3, 4, 5, 6], "27 entries, four in a step"
    assert [p.step for p in found if p.measure_here] == [2, 4, 6]
    assert {p.logged["learning_rate"] for p in found} == {1e-3}


def corpus(nano_problem: Problem) -> Problem:
    return replace(nano_problem, stages=[Stage("bio", [Example("", "x" * 60)] * 2, [Example("", "y" * 60)] * 2)])


def test_sentences_name_the_concept_and_are_drawn_anew(make_context: ContextMaker, nano_problem: Problem, monkeypatch):
    monkeypatch.setattr(texts, "UNKNOWN_SHARE", 1.0)
    about = Concept(
        context := make_context(problem=corpus(nano_problem)),
        context.stages[0],
        0,
        config_of(contexts="sentences", concepts=["locks and keys"]),
    )
    drawn = [about._drawn("erase", turn) for turn in range(200)]
    for told, sentences in zip(zip(*drawn, strict=True), (EXPERT, NOVICE), strict=False):
        assert set(told) == {sentence.format(concept="locks and keys") + "\n" for sentence in sentences}
    assert {turn for _, _, turn in drawn} == {f". {sentence}" for sentence in TURNS}
    assert len(EXPERT) == len(NOVICE) == 10
    assert len(set(TURNS)) == 20
    assert all("locks and keys" in expert and "locks and keys" in novice for expert, novice, _ in drawn)


def test_texts_are_filtered_and_cut(make_context: ContextMaker, nano_problem: Problem):
    texts = [Example("", "a" * n) for n in (50, 51, 900)]
    context = make_context(problem=replace(nano_problem, stages=[Stage("bio", texts, texts)]))
    assert [len(text) for text in concept(context).forget] == [51, 700]
    with pytest.raises(UsageError, match="bio: no text is longer than min_characters=2000"):
        concept(context, min_characters=2000)


# ---------------------------------------------------------------- the model, before and after


def test_without_its_adapters_a_model_answers_as_before(nano_context: UnlearningContext):
    model = nano_context.model
    before = some_logits(model)
    adapters = Adapters(model, linear_maps(model), 4, alpha=8, seed=0, dropout=0.5)
    adapters.make()
    shift(model)
    model.train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not torch.equal(some_logits(model), before)
    with without_adapters(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        assert torch.equal(some_logits(model), before)
    assert model.training
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    with pytest.raises(Diverged), without_adapters(model):
        raise Diverged("a test")
    assert model.training
    assert not torch.equal(some_logits(model), before)


def test_the_model_is_plain_at_points_and_training_goes_on_as_if_it_never_was(make_context: ContextMaker):
    measured, alone = make_context(), make_context()
    plain = look(measured.model)
    for progress in elm.elm(measured, config_of(points=4, rounds=16)):
        if progress.measure_here:
            assert look(measured.model) == plain
            assert not measured.model.training
    run(alone, points=1, rounds=16)
    assert same_bits(bits(alone.model), bits(measured.model))
    assert look(measured.model) == plain


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_that_is_closed_leaves_a_plain_model(steps: int, nano_context: UnlearningContext):
    plain = look(nano_context.model)
    going = elm.elm(nano_context, config_of(rounds=16, points=2))
    for _ in range(steps):
        next(going)
    going.close()
    assert look(nano_context.model) == plain
    assert not any(module.training for module in nano_context.model.modules())


def test_only_the_chosen_maps_move(nano_context: UnlearningContext):
    before = bits(nano_context.model)
    run(nano_context, layers=[1], target_modules="attention")
    moved = [name for name, value in bits(nano_context.model).items() if not torch.equal(value, before[name])]
    assert moved == [f"model.layers.1.self_attn.{n}_proj.weight" for n in "qkvo"]


def test_the_seed_decides_and_the_global_random_numbers_do_not(check_seed: Any):
    check_seed(lambda context: run(context, dropout=0.3))


# ---------------------------------------------------------------- refusals, published settings, memory


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"layers": [1, 7]}, r"layers=\[1, 7\]: the model has layers 0 to 1. Set layers=\[0,1\]\.$"),
        ({"order": [0, 1]}, r"order=\[0, 1\]: there are stages 0 to 0"),
        ({"contexts": "sentences"}, r"concepts=\[\]: say what each of the 1 stages is about"),
        ({"contexts": "sentences", "concepts": ["x"]}, r"does not know \d+ of the \d+ words of elm's contexts"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(
    settings: dict[str, Any], says: str, nano_context: UnlearningContext
):
    plain, before = look(nano_context.model), bits(nano_context.model)
    with pytest.raises(UsageError, match=says):
        run(nano_context, **settings)
    assert look(nano_context.model) == plain
    assert same_bits(bits(nano_context.model), before)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"new_tokens": [9, 3]}, r"new_tokens=\[9, 3\]: the least is more than the most"),
        ({"erase_weight": 0, "retain_weight": 0, "fluency_weight": 0}, "all three terms have weight 0"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], says: str):
    with pytest.raises(UsageError, match=says):
        config_of(**settings)


def test_published_settings_are_the_readmes():
    method = METHODS.get("elm")
    told = resolve(method.config, method.preset("wmdp", "zephyr-7b"), owner="elm")
    assert (told.lr, told.weight_decay, told.rounds, told.order, told.batch_size) == (5e-5, 0.01, 3000, (0, 0, 1), 4)
    assert (told.rank, told.alpha, told.dropout, told.layers, told.target_modules) == (256, 16, 0.05, (4, 5, 6, 7), "all")
    assert (told.eta, told.temperature, told.top_k, told.guidance, told.new_tokens) == (1000, 1.2, 50, 3, (100, 300))
    assert (told.erase_weight, told.retain_weight, told.fluency_weight, told.retain_loss) == (1, 1, 1, "cross_entropy")
    assert (told.min_characters, told.max_characters, told.contexts, len(told.concepts)) == (50, 700, "sentences", 2)
    assert len(schedule(told, 2)) // told.batch_size == 2250


def test_memory_is_that_of_the_adapted_maps():
    from transformers import MistralConfig

    shape = ModelShape(memory.meta_model(MistralConfig()), 2, retain_rows=1000, answer_tokens=500)
    held = {h.what: h.bytes for h in elm.memory_items(shape, ELMConfig())}
    attention = [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096)]
    sizes = 4 * [*attention, (14336, 4096), (14336, 4096), (4096, 14336)]
    assert held["weights kept aside"] == 2 * sum(a * b for a, b in sizes)
    assert held["adapters"] == 16 * 256 * sum(a + b for a, b in sizes)
