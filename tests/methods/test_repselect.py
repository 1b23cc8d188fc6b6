"""RepSelect: the damping by hand and by the original's formula, and an adversary that leaves no trace."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch

from harness.core.config import resolve
from harness.core.errors import Diverged, UsageError
from harness.core.method import UnlearningContext
from harness.core.problem import Problem, Stage
from harness.data.rows import collate, encode, pad_id
from harness.numerics.likelihood import answer_nll
from harness.numerics.training import shuffled_batches
from methods import repselect
from methods.curvature.layers import mlp_layers
from methods.gauss_newton.step import KL_TOLERANCE
from tests.conftest import ContextMaker
from tests.methods.test_loku import bits, look, same_bits, tiny

if TYPE_CHECKING:
    from torch import Tensor

SETTINGS = {"steps": 3, "target_kl": 0.03, "components": 4, "rank": 2, "batch_size": 5, "adversary_lr": 0.1}


def config_of(**changes: Any) -> repselect.RepSelectConfig:
    return resolve(repselect.RepSelectConfig, {**SETTINGS, **changes}, owner="repselect")


def gradient_of(context: UnlearningContext, **changes: Any) -> list[Tensor]:
    (stage,) = context.stages
    return repselect.attacked_gradient(context, stage, mlp_layers(context.model), config_of(**changes))


# ---------------------------------------------------------------- the damping


@pytest.mark.parametrize(
    ("damping", "expected"),
    [("soft", (8 / 4**2, 6 / 3**2, 2.0, 1.0)), ("quadratic", (8 / 4**4, 6 / 3**4, 2.0, 1.0))],
)
def test_a_component_is_damped_on_both_sides(damping: Literal["soft", "quadratic"], expected: tuple[float, ...]):
    """G = U diag(8, 6, 2, 1) Vᵀ and n = 3: σ/σ_n is 4, 3 and 1, once for each side; what is no leading component stays."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(size, 4, generator=generator, dtype=torch.float64)).Q for size in (5, 6))
    values = torch.tensor([8.0, 6.0, 2.0, 1.0], dtype=torch.float64)
    found = repselect.damp(left * values @ right.T, left[:, :3], values[:3], right[:, :3], damping)
    torch.testing.assert_close(found, left * torch.tensor(expected, dtype=torch.float64) @ right.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("damping", ["soft", "quadratic"])
def test_the_damping_is_the_originals_also_where_components_are_inexact(damping: Literal["soft", "quadratic"]):
    """`repselect_simple.py` as of 2026-08: first the inputs' side by V, then the outputs' by U, on what came of that."""
    generator = torch.Generator().manual_seed(1)
    gradient, left, right = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((7, 9), (7, 3), (9, 3)))
    values = torch.tensor([5.0, 2.0, 0.5], dtype=torch.float64)

    def collapsed(matrix: Tensor, vectors: Tensor) -> Tensor:
        by = values if damping == "soft" else values**2
        projected = matrix @ vectors
        return matrix - (projected - projected / (by / by.min())) @ vectors.T

    expected = collapsed(collapsed(gradient, right).T, left).T
    torch.testing.assert_close(repselect.damp(gradient, left, values, right, damping), expected, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- the gradient


@pytest.mark.parametrize("adversary_lr", [1e-9, 0.5])
def test_the_gradient_is_taken_where_the_adversary_went(adversary_lr: float, nano_context: UnlearningContext):
    """By the chain rule, without adapters: with G = ∇_{W + BA}, ∇_B = G Aᵀ and ∇_A = Bᵀ G; B starts at 0."""
    from harness.core.streams import streams

    context, model = nano_context, nano_context.model
    found = gradient_of(context, adversary_lr=adversary_lr)
    layers = mlp_layers(model)
    weights = [layer.module.weight for layer in layers]
    start = [weight.detach().clone() for weight in weights]
    generator = streams(context.seed, "adapters").torch()
    downs = [torch.nn.init.kaiming_uniform_(torch.empty(2, w.shape[1]), a=5**0.5, generator=generator) for w in weights]
    ups = [torch.zeros(len(w), 2) for w in weights]
    forget = encode(context.stages[0].forget, context.tokenizer)

    def gradients(rows: list[int]) -> list[Tensor]:
        with torch.no_grad():
            for weight, first, down, up in zip(weights, start, downs, ups, strict=True):
                weight.copy_(first + up @ down)
        batch = collate([forget[i] for i in rows], range(len(rows)), pad_id(context.tokenizer))
        model.zero_grad()
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss.backward()
        return [weight.grad.clone() for weight in weights]  # type: ignore[union-attr]

    to_learn, to_differentiate = shuffled_batches(12, 12, 2, context.seed)
    for at in (0, 5, 10):
        for i, gradient in enumerate(gradients(to_learn[at : at + 5])):
            learned = downs[i] - adversary_lr * ups[i].T @ gradient
            ups[i] = ups[i] - adversary_lr * gradient @ downs[i].T
            downs[i] = learned
    parts = [gradients(to_differentiate[at : at + 5]) for at in (0, 5, 10)]
    for result, *each in zip(found, *parts, strict=True):
        expected = sum(each[1:], each[0])
        torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_the_adversary_lowers_the_forget_loss_and_leaves_every_bit(make_context: ContextMaker, monkeypatch: pytest.MonkeyPatch):
    from methods.first_order.adapters import Adapters

    context = make_context()
    context.model.get_input_embeddings().weight.requires_grad_(False)
    (stage,) = context.stages
    texts, pad = encode(stage.forget, context.tokenizer), pad_id(context.tokenizer)
    before, plain = bits(context.model), look(context.model)
    losses = [float(answer_nll(context.model, texts, pad)[0].sum())]
    original = Adapters.discard

    def discard(adapters: Adapters) -> None:
        losses.append(float(answer_nll(context.model, texts, pad)[0].sum()))
        original(adapters)

    monkeypatch.setattr(Adapters, "discard", discard)
    repselect.direction(context, stage, mlp_layers(context.model), config_of())
    assert losses[1] < losses[0]
    assert same_bits(bits(context.model), before)
    assert look(context.model) == plain


def test_the_direction_is_the_damped_gradient_as_long_as_the_weights(nano_context: UnlearningContext):
    (stage,) = nano_context.stages
    layers = mlp_layers(nano_context.model)
    expected = []
    for gradient in gradient_of(nano_context):
        left, values, right = torch.linalg.svd(gradient.double(), full_matrices=False)
        values[:4] = values[3] ** 2 / values[:4]
        expected.append(left * values @ right)
    found = torch.cat([each.flatten() for each in repselect.direction(nano_context, stage, layers, config_of())]).double()
    wanted = torch.cat([each.flatten() for each in expected])
    weights = torch.cat([layer.matrix().flatten() for layer in layers]).double()
    torch.testing.assert_close(
        found, wanted * (weights.norm() / wanted.norm()), rtol=1e-3, atol=1e-4 * float(found.abs().max())
    )


def test_a_bias_does_not_move(nano_context: UnlearningContext):
    """GPT-2 has biases, and keeps its weights transposed."""
    context = replace(nano_context, model=tiny("gpt2"))
    layers = mlp_layers(context.model)
    texts = nano_context.stages[0]
    few = replace(texts, forget=texts.forget[:4])
    context.model.resize_token_embeddings(len(context.tokenizer))
    moved = repselect.direction(context, few, layers, config_of())
    for layer, towards in zip(layers, moved, strict=True):
        assert towards.shape == layer.shape
        assert layer.has_bias
        assert (towards[:, -1] == 0).all()
        assert (towards[:, :-1] != 0).any()


# ---------------------------------------------------------------- the method


def test_it_goes_along_one_direction_to_each_kl_and_forgets(make_context: ContextMaker):
    context = make_context()
    (stage,) = context.stages
    texts, pad = encode(stage.forget, context.tokenizer), pad_id(context.tokenizer)
    start, plain = bits(context.model), look(context.model)
    moved, logged, losses = [], [], [float(answer_nll(context.model, texts, pad)[0].sum())]
    for progress in repselect.repselect(context, config_of()):
        assert progress.measure_here
        assert look(context.model) == plain
        moved.append({name: now - start[name] for name, now in bits(context.model).items()})
        logged.append(progress.logged)
        losses.append(float(answer_nll(context.model, texts, pad)[0].sum()))
    assert [each["measured_kl"] for each in logged] == pytest.approx([0.01, 0.02, 0.03], rel=KL_TOLERANCE * 1.01)
    lengths = [each["length"] for each in logged]
    assert lengths == sorted(lengths)
    assert losses == sorted(losses), "each step forgets more"
    mlp = {layer.name + ".weight" for layer in mlp_layers(context.model)}
    for name, way in moved[-1].items():
        assert bool(way.abs().max() > 0) == (name in mlp), name
        torch.testing.assert_close(moved[0][name] / lengths[0], way / lengths[-1], rtol=1e-2, atol=1e-3)


def test_the_seed_decides_and_the_global_random_numbers_do_not(check_seed: Any):
    check_seed(lambda context: list(repselect.repselect(context, config_of(steps=1))))


def test_two_stages_are_two_directions(make_context: ContextMaker, nano_problem: Problem):
    (stage,) = nano_problem.stages
    first, second = Stage("first", stage.forget[:6], stage.retain), Stage("second", stage.forget[6:], stage.retain)
    together = make_context(problem=replace(nano_problem, stages=[first, second]))
    steps = list(repselect.repselect(together, config_of(steps=1)))
    assert [(each.step, each.total) for each in steps] == [(1, 2), (2, 2)]
    apart = make_context(problem=replace(nano_problem, stages=[first]))
    list(repselect.repselect(apart, config_of(steps=1)))
    apart.problem = replace(nano_problem, stages=[second])
    list(repselect.repselect(apart, config_of(steps=1)))
    assert same_bits(bits(apart.model), bits(together.model))


# ---------------------------------------------------------------- what is refused


def test_more_components_than_a_gradient_has_are_refused(nano_context: UnlearningContext):
    with pytest.raises(UsageError, match=r"components=17: the gradient of .*_proj has 16 at most. Set components=2\.$"):
        next(iter(repselect.repselect(nano_context, config_of(components=17))))


def test_more_components_than_the_forget_set_spans_are_refused(nano_context: UnlearningContext):
    """The last MLP hears of the label positions alone: as many components as there are labels."""
    (stage,) = nano_context.stages
    one = replace(stage, forget=stage.forget[:1])
    before = bits(nano_context.model)
    with pytest.raises(
        UsageError, match=r"components=16: the forget set's gradient of .* has rank \d+, .* Set components=\d+\.$"
    ):
        repselect.direction(nano_context, one, mlp_layers(nano_context.model), config_of(components=16))
    assert same_bits(bits(nano_context.model), before)


@pytest.mark.parametrize("adversary_lr", [0, -1, 1e31, "nan"])
def test_an_adversary_that_cannot_learn_is_refused(adversary_lr: Any):
    with pytest.raises(UsageError, match=f"^repselect: adversary_lr=.?{re.escape(str(adversary_lr))}.? is not allowed: "):
        config_of(adversary_lr=adversary_lr)


def test_an_adversary_that_diverges_is_told(nano_context: UnlearningContext):
    before, plain = bits(nano_context.model), look(nano_context.model)
    with pytest.raises(Diverged, match=r"the gradient of .* is not finite; take a smaller adversary_lr"):
        list(repselect.repselect(nano_context, config_of(adversary_lr=1e30)))
    assert same_bits(bits(nano_context.model), before)
    assert look(nano_context.model) == plain


def test_a_gradient_that_is_0_is_told(nano_context: UnlearningContext, monkeypatch: pytest.MonkeyPatch):
    """Fewer components would not help."""
    (stage,), layers = nano_context.stages, mlp_layers(nano_context.model)
    nothing = [torch.zeros_like(layer.linear.matrix()) for layer in layers]
    monkeypatch.setattr(repselect, "attacked_gradient", lambda *_: nothing)
    with pytest.raises(Diverged, match=r"the gradient of model\.layers\.0\..*_proj is 0; take a smaller adversary_lr"):
        repselect.direction(nano_context, stage, layers, config_of())
