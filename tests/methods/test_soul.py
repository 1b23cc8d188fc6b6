"""SOUL: two forms of Sophia against their formulas, the curvature's estimate against the exact matrix, the loss and schedule."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.core.config import resolve
from harness.core.errors import UsageError
from harness.core.method import Progress, UnlearningContext
from harness.data.rows import Batch, Encoded, collate, encode, pad_id
from harness.models.sources import weights_fingerprint
from harness.numerics.likelihood import answer_logits, answer_nll
from harness.numerics.training import micro_batches, shuffled_batches
from methods.first_order import sophia
from methods.first_order.partners import Partners
from methods.first_order.recipe import Recipe, Schedule
from methods.first_order.sophia import Sophia, SophiaG, gauss_newton_bartlett, sampled_labels, uniform_numbers
from methods.soul import SOULConfig, soul
from tests.conftest import ContextMaker

BETA1, BETA2, RHO, DECAY, SCALE, LR = 0.9, 0.95, 0.04, 0.1, 5120, 1e-3


def config(**chosen: Any) -> SOULConfig:
    return resolve(SOULConfig, {"epochs": 1, "lr": 1e-3, **chosen}, owner="soul")


def run(context: UnlearningContext, **chosen: Any) -> list[Progress]:
    return list(soul(context, config(**chosen)))


def shipped(*parameters: torch.Tensor) -> Sophia:
    named = [(f"p{i}", p) for i, p in enumerate(parameters)]
    return Sophia(named, LR, (BETA1, BETA2), RHO, DECAY, SCALE)


def textbook(*parameters: torch.Tensor) -> SophiaG:
    named = [(f"p{i}", p) for i, p in enumerate(parameters)]
    return SophiaG(named, LR, (BETA1, BETA2), RHO, DECAY, 1e-12)


def weights(*values: float, vector: bool = False) -> torch.Tensor:
    """[1, n], or [n]; float64."""
    found = torch.tensor(values if vector else [values], dtype=torch.float64)
    return found.requires_grad_()


def step(optimiser: torch.optim.Optimizer, parameter: torch.Tensor, gradient: Sequence[float]) -> None:
    parameter.grad = torch.tensor(gradient, dtype=torch.float64).reshape(parameter.shape)
    optimiser.step()


# ---------------------------------------------------------------- Sophia as shipped


def test_steps_follow_the_formula_by_hand():
    theta, h, m = [0.5, -0.75, 2.0], [0.0] * 3, [0.0] * 3
    parameter = weights(*theta)
    optimiser = shipped(parameter)
    for gradient in ([0.3, -0.6, 1e-4], [-0.2, -0.1, 0.0], [0.9, 0.4, -1e-9]):
        step(optimiser, parameter, gradient)
        for i, g in enumerate(gradient):
            h[i] = 0.95 * h[i] + 0.05 * g * g
            m[i] = 0.9 * (0.9 * m[i] + 0.1 * g) + 0.1 * g
            theta[i] *= 1 - 1e-3 * 0.1
            theta[i] -= 1e-3 * math.copysign(1, m[i]) * min(abs(m[i]) / (0.04 * 5120 * h[i] + 1e-15), 1)
        torch.testing.assert_close(parameter.detach(), weights(*theta).detach(), rtol=1e-14, atol=0)


def test_momentum_is_updated_twice_in_a_step():
    parameter = weights(1.0, -1.0)
    optimiser = shipped(parameter)
    expected = torch.zeros(1, 2, dtype=torch.float64)
    for gradient in ([0.3, -2.0], [-0.1, 0.5], [0.0, 1.0]):
        step(optimiser, parameter, gradient)
        expected = BETA1**2 * expected + (1 - BETA1**2) * torch.tensor([gradient], dtype=torch.float64)
        torch.testing.assert_close(optimiser.state[parameter]["momentum"], expected, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("make", [shipped, textbook])
def test_decay_skips_norms_and_biases(make):
    matrix, norm = weights(1.0, -2.0), weights(1.0, -2.0, vector=True)
    optimiser = make(matrix, norm)
    matrix.grad, norm.grad = torch.zeros_like(matrix), torch.zeros_like(norm)
    optimiser.step()
    assert matrix.tolist() == [[1 - LR * DECAY, -2 * (1 - LR * DECAY)]]
    assert norm.tolist() == [1.0, -2.0]


def test_no_coordinate_moves_farther_than_the_learning_rate():
    # At the first step |m| / (ρ·5120·h) = 0.19 |g| / (10.24 g²), which is above 1 for |g| < 0.0186.
    parameter = weights(0.0, 0.0, 0.0, 0.0)
    step(shipped(parameter), parameter, [1e-3, -0.018, 0.019, -1.0])
    moved = parameter.detach()[0] / -LR
    assert moved[:2].tolist() == [1.0, -1.0]
    assert moved[2:].tolist() == pytest.approx([0.19 / 10.24 / 0.019, -0.19 / 10.24])


# ---------------------------------------------------------------- the textbook's Sophia-G


def test_textbook_steps_follow_the_formula_by_hand():
    theta, h, m = [0.5, -0.75, 2.0], [0.0] * 3, [0.0] * 3
    parameter = weights(*theta)
    optimiser = textbook(parameter)
    for gradient, estimate in (
        ([0.3, -0.6, 0.2], [900.0, 7.0, 0.0]),
        ([-0.2, 0.9, 0.1], None),
        ([0.9, 0.4, 0.0], [3.0, 400.0, 0.0]),
    ):
        if estimate:
            optimiser.refresh({"p0": torch.tensor([estimate], dtype=torch.float64)})
            h = [0.95 * old + 0.05 * new for old, new in zip(h, estimate, strict=True)]
        step(optimiser, parameter, gradient)
        for i, g in enumerate(gradient):
            m[i] = 0.9 * m[i] + 0.1 * g
            theta[i] *= 1 - 1e-3 * 0.1
            theta[i] -= 1e-3 * max(-1.0, min(m[i] / max(0.04 * h[i], 1e-12), 1.0))
        torch.testing.assert_close(parameter.detach(), weights(*theta).detach(), rtol=1e-14, atol=0)


def test_only_a_refresh_changes_the_textbooks_curvature():
    parameter = weights(0.0, 0.0)
    optimiser = textbook(parameter)
    optimiser.refresh({"p0": torch.tensor([[2.0, 4.0]], dtype=torch.float64)})
    for _ in range(3):
        step(optimiser, parameter, [1.0, -1.0])
    assert optimiser.state[parameter]["hessian"][0].tolist() == pytest.approx([0.1, 0.2])


# ---------------------------------------------------------------- the estimate of the curvature


@pytest.fixture
def tiny() -> LlamaForCausalLM:
    """Four words, so that every combination of labels can be gone through."""
    shape = {"vocab_size": 4, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**shape, initializer_range=0.7, bos_token_id=None, eos_token_id=0)).eval()


@pytest.fixture
def tiny_batches() -> list[Batch]:
    """Two labels in one, one in the other."""
    return [collate([Encoded([1, 3, 2, 0], 2)], [0], 0), collate([Encoded([2, 1, 0], 2)], [1], 0)]


def test_the_estimate_is_the_gauss_newton_diagonal_on_average(tiny: LlamaForCausalLM, tiny_batches: list[Batch]):
    """Over all combinations of labels, each with its probability: exact, no draws."""
    named = dict(tiny.named_parameters())
    logits = torch.cat([answer_logits(tiny, batch) for batch in tiny_batches])  # [3, 4]
    p = logits.detach().double().softmax(dim=-1)

    # (1/B) Σ_b Jᵀ (diag(p) − p pᵀ) J, its diagonal.
    exact = {name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in named.items()}
    for b in range(3):
        rows = [torch.autograd.grad(logits[b, v], list(named.values()), retain_graph=True) for v in range(4)]
        for k, name in enumerate(named):
            jacobian = torch.stack([row[k].double() for row in rows])  # [4, …]
            middle = torch.diag(p[b]) - torch.outer(p[b], p[b])
            exact[name] += torch.einsum("i...,ij,j...->...", jacobian, middle, jacobian) / 3

    mean = {name: torch.zeros_like(value) for name, value in exact.items()}
    below = p.cumsum(dim=-1) - p
    total = 0.0
    for combination in itertools.product(range(4), repeat=3):
        chance = math.prod(float(p[b, v]) for b, v in enumerate(combination))
        # The middle of a word's share of [0, 1) makes it that word.
        uniform = torch.stack([below[b, v] + p[b, v] / 2 for b, v in enumerate(combination)])
        assert sampled_labels(logits.detach(), uniform).tolist() == list(combination)
        found = gauss_newton_bartlett(tiny, [(tiny_batches[0], uniform[:2]), (tiny_batches[1], uniform[2:])])
        for name, value in found.items():
            mean[name] += chance * value.double()
        total += chance
    assert total == pytest.approx(1)
    assert mean.keys() == exact.keys()
    for name, value in exact.items():
        assert value.max() > 0
        torch.testing.assert_close(mean[name], value, rtol=1e-4, atol=1e-6 * float(value.max()))


def test_sampled_labels_follow_the_models_distribution():
    logits = torch.tensor([[0.0, 1.0, -2.0, 0.5]])
    grid = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    counts = sampled_labels(logits.expand(10_000, 4), grid).bincount(minlength=4)
    torch.testing.assert_close(counts / 10_000, logits[0].softmax(dim=0), rtol=0, atol=2e-4)


def test_sampled_labels_exist_even_at_the_ends():
    logits = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)) * 30
    for number in (0.0, 1 - 2**-24):
        labels = sampled_labels(logits, torch.full((64,), number))
        assert labels.min() >= 0
        assert labels.max() < 5


def test_the_estimate_does_not_depend_on_how_a_step_was_cut(nano_context: UnlearningContext):
    tokenizer, model = nano_context.tokenizer, nano_context.model
    encoded = encode(nano_context.stages[0].forget, tokenizer)
    found = []
    for at_once in (4096, 40):
        parts = micro_batches(encoded, range(6), pad_id(tokenizer), "cpu", at_once)
        found.append((len(parts), gauss_newton_bartlett(model, [(b, uniform_numbers(b, 5, 0)) for b, _ in parts])))
    (one, whole), (several, cut) = found
    assert one == 1 < several
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=1e-3, atol=1e-6 * float(value.max()))


def test_an_estimate_leaves_no_gradient_behind(nano_context: UnlearningContext):
    model = nano_context.model
    model.get_input_embeddings().weight.requires_grad_(False)
    batch = collate(encode(nano_context.stages[0].forget[:2], nano_context.tokenizer), [0, 1], 0)
    found = gauss_newton_bartlett(model, [(batch, uniform_numbers(batch, 0))])
    assert all(p.grad is None for p in model.parameters())
    assert "model.embed_tokens.weight" not in found


# ---------------------------------------------------------------- the method


def test_the_loss_before_the_first_step(nano_context: UnlearningContext):
    (stage,) = nano_context.stages
    pad = pad_id(nano_context.tokenizer)
    rows = next(shuffled_batches(12, 12, 1, nano_context.seed))
    partner = Partners(len(stage.retain), nano_context.seed, frozen=False)
    retained = [stage.retain[partner(row)] for row in rows]

    def pool(examples: Any) -> float:
        sums, counts = answer_nll(nano_context.model, encode(examples, nano_context.tokenizer), pad)
        return float(sums.sum() / counts.sum())

    forget, retain = pool(stage.forget), pool(retained)
    (progress,) = run(nano_context, batch_size=12, warmup_epochs=0)
    assert progress.logged["forget_term"] == pytest.approx(-forget, rel=1e-5)
    assert progress.logged["retain_term"] == pytest.approx(2 * retain, rel=1e-5)


def test_the_published_schedule():
    plan = Schedule.of(SOULConfig(), 400)
    assert (plan.batch, plan.steps, plan.warmup) == (4, 500, 50)
    assert sorted(plan.epoch_ends) == [100, 200, 300, 400, 500]
    assert Schedule.of(SOULConfig(epochs=1), 12).warmup == 1
    assert Schedule.of(SOULConfig(warmup_epochs=2), 400).warmup == 200
    assert Schedule.of(Recipe(), 400).warmup == 12


def test_the_published_settings():
    told = SOULConfig()
    assert (told.lr, told.betas, told.rho, told.weight_decay) == (5e-6, (0.9, 0.95), 0.04, 0.1)
    assert (told.epochs, told.batch_size, told.retain_weight, told.hessian_scale) == (5, 4, 2.0, 5120)
    assert not told.frozen_partner


def test_the_curvature_is_estimated_anew_every_k_steps_and_at_the_first(
    make_context: ContextMaker, monkeypatch: pytest.MonkeyPatch
):
    estimated: list[int] = []
    taken = 0
    real = gauss_newton_bartlett

    def counted(*args: Any) -> dict[str, torch.Tensor]:
        estimated.append(taken + 1)
        return real(*args)

    monkeypatch.setattr(sophia, "gauss_newton_bartlett", counted)
    for progress in soul(make_context(), config(optimiser="sophia_g", hessian_interval=3, epochs=3, batch_size=4)):
        taken = progress.step
    assert taken == 9
    assert estimated == [1, 4, 7]

    estimated.clear()
    run(make_context())
    assert not estimated, "sophia as shipped estimates nothing"


def test_the_estimate_is_made_of_both_sides_of_the_step(nano_context: UnlearningContext, monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    real = gauss_newton_bartlett

    def watched(model: Any, draws: Any) -> dict[str, torch.Tensor]:
        seen.append(sum(len(batch.rows) for batch, _ in draws))
        return real(model, draws)

    monkeypatch.setattr(sophia, "gauss_newton_bartlett", watched)
    run(nano_context, optimiser="sophia_g", hessian_interval=1)
    assert seen == [8, 8, 8], "four examples to forget and four to retain"


def test_every_label_is_drawn_with_a_number_of_its_own(make_context: ContextMaker, monkeypatch: pytest.MonkeyPatch):
    """Over positions, sides, steps and seeds: what is shared would correlate labels that ought to be independent."""
    numbers: list[float] = []
    real = gauss_newton_bartlett

    def watched(model: Any, draws: Any) -> dict[str, torch.Tensor]:
        for _, uniform in draws:
            numbers.extend(uniform.tolist())
        return real(model, draws)

    monkeypatch.setattr(sophia, "gauss_newton_bartlett", watched)
    for seed in (0, 1):
        run(make_context(seed=seed), optimiser="sophia_g", hessian_interval=1)
    assert len(numbers) > 100
    assert min(numbers) >= 0
    assert max(numbers) < 1
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sophia_g_depends_on_its_seed_alone(dtype: torch.dtype, make_context: ContextMaker):
    found = []
    for seed, noise in ((3, 0), (3, 1), (4, 0)):
        context = make_context(seed=seed)
        context.model.to(dtype)
        context.model.get_input_embeddings().weight.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(noise)
            state = torch.get_rng_state()
            run(context, optimiser="sophia_g", hessian_interval=2)
            assert torch.equal(torch.get_rng_state(), state), "the global generator is not drawn from"
        assert not context.model.training
        assert all(p.grad is None for p in context.model.parameters())
        assert {p.dtype for p in context.model.parameters()} == {dtype}
        found.append(weights_fingerprint(context.model))
    before = make_context().model.to(dtype)
    assert found[0] == found[1]
    assert len({*found, weights_fingerprint(before)}) == 3


def test_another_estimate_gives_other_weights(make_context: ContextMaker):
    """A large ρ, so that the curvature decides about steps and not the clip."""
    found = []
    for interval in (1, 2):
        context = make_context()
        run(context, optimiser="sophia_g", hessian_interval=interval, rho=1e4)
        found.append(weights_fingerprint(context.model))
    assert found[0] != found[1]


def test_a_refresh_counts_its_tokens(make_context: ContextMaker):
    tokens = {}
    for optimiser in ("sophia", "sophia_g"):
        context = make_context()
        with context.costs.phase("unlearn"):
            run(context, optimiser=optimiser, hessian_interval=1)
        tokens[optimiser] = context.costs.phases["unlearn"].tokens
    assert tokens["sophia_g"] == 2 * tokens["sophia"] > 0


@pytest.mark.parametrize("wrong", [{"betas": [0.9, 1.0]}, {"betas": [0.9]}, {"rho": 0}, {"optimiser": "adam"}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        config(**wrong)
