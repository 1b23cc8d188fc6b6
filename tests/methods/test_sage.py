"""SAGE: the damped update against the objective that it minimises, and training that goes on as if nothing was damped."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.core.config import resolve, to_json
from harness.core.costs import Costs
from harness.core.errors import UsageError
from harness.core.method import METHODS, Progress, UnlearningContext
from harness.data.rows import collate, encode, pad_id
from harness.models.sources import weights_fingerprint
from harness.storage.cache import Cache
from methods.curvature.layers import Layer, input_groups
from methods.sage import Damping, SAGEConfig, damped_layers, second_moments
from tests import architectures
from tests.conftest import ContextMaker

TRAINED = {"epochs": 3, "batch_size": 4, "lr": 1e-3, "warmup_epochs": 0}


def config_of(**settings: Any) -> SAGEConfig:
    return resolve(SAGEConfig, TRAINED, settings, owner="sage")


def run(name: str, context: UnlearningContext, **settings: Any) -> list[Progress]:
    """A run; what of its settings the method does not have stands at its default."""
    method = METHODS.get(name)
    return list(method.unlearn(context, resolve(method.config, TRAINED, settings, owner=name)))


def moved(context: UnlearningContext) -> None:
    """Another θ."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in context.model.parameters():
            p.add_(0.03 * torch.randn(p.shape, generator=generator))


def inputs_by_hand(context: UnlearningContext, layer: Layer, rows: range) -> Tensor:
    """[tokens, in (+ 1)] what a map reads of retain rows, one text at a time."""
    seen: list[Tensor] = []
    handle = layer.module.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0][0]))
    retain = encode(context.stages[0].retain, context.tokenizer)
    with torch.no_grad():
        for row in rows:
            batch = collate([retain[row]], [row], pad_id(context.tokenizer))
            context.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    handle.remove()
    return torch.cat(seen).double()


def test_second_moments_are_means_over_the_tokens_of_retain_rows(nano_context: UnlearningContext):
    layers = damped_layers(nano_context.model, "all")
    moments = second_moments(nano_context, layers, 24)
    groups = input_groups(layers)
    assert len(layers) == 7 * len(nano_context.model.model.layers)
    assert sorted(moments) == sorted(set(groups))
    for layer, group in zip(layers, groups, strict=True):
        a = inputs_by_hand(nano_context, layer, range(24))
        torch.testing.assert_close(moments[group].double(), a.T @ a / len(a), rtol=1e-4, atol=1e-6)


def test_some_rows_are_drawn_by_the_seed(make_context: ContextMaker):
    def few(seed: int) -> Tensor:
        context = make_context(seed=seed)
        return second_moments(context, damped_layers(context.model, "mlp"), 5)[0]

    assert torch.equal(few(0), few(0))
    assert not torch.allclose(few(0), few(1))


def test_a_bias_reads_a_one(tmp_path: Path):
    context = UnlearningContext(
        copy.deepcopy(architectures.model("gpt2")),
        architectures.tokenizer(),
        architectures.problem(),
        0,
        Cache(tmp_path),
        Costs(),
        "gpt2",
    )
    layers = damped_layers(context.model, "all")
    assert all(layer.has_bias for layer in layers)
    moments = second_moments(context, layers, 4)
    for layer, group in zip(layers, input_groups(layers), strict=True):
        assert moments[group].shape == (layer.shape[1], layer.shape[1])
        assert float(moments[group][-1, -1]) == pytest.approx(1)


@pytest.mark.parametrize("target_modules", ["all", "attention", "mlp"])
@pytest.mark.parametrize("threshold", [0.1, 1.0])
def test_the_damped_update_is_the_least_of_its_objective(
    threshold: float, target_modules: str, nano_context: UnlearningContext
):
    """The gradient of ‖X − ΔW‖² + tr(X Σ Xᵀ)/τ is 0 at it: X − ΔW + X Σ/τ = 0."""
    config = config_of(threshold=threshold, target_modules=target_modules, moment_rows=24)
    layers = damped_layers(nano_context.model, config.target_modules)
    moments, damping = second_moments(nano_context, layers, 24), Damping(nano_context, config)
    start = [layer.matrix().double() for layer in layers]
    moved(nano_context)
    whole = [layer.matrix().double() - before for layer, before in zip(layers, start, strict=True)]
    kept = damping.do()
    left = [layer.matrix().double() - before for layer, before in zip(layers, start, strict=True)]
    for damped, update, group in zip(left, whole, input_groups(layers), strict=True):
        moment = moments[group].double()
        tau = threshold * moment.trace() / len(moment)
        torch.testing.assert_close(damped + damped @ moment / tau, update, rtol=1e-3, atol=1e-5)
    norms = [float(torch.stack([u.square().sum() for u in of]).sum().sqrt()) for of in (left, whole)]
    assert kept == pytest.approx(norms[0] / norms[1], rel=1e-4)
    assert 0 < kept < 1


def test_what_retain_texts_activate_most_is_damped_most(nano_context: UnlearningContext):
    """Along an eigenvector of eigenvalue σ the share τ/(σ + τ) is left."""
    layer = damped_layers(nano_context.model, "all")[0]
    moment = second_moments(nano_context, [layer], 24)[0].double()
    values, vectors = torch.linalg.eigh(moment)
    damping = Damping(nano_context, config_of(threshold=0.5, moment_rows=24))
    before = layer.matrix().double()
    layer.set_matrix((before + torch.ones(len(before), 1).double() @ vectors.sum(dim=1)[None]).float())
    damping.do()
    tau = 0.5 * values.mean()
    torch.testing.assert_close((layer.matrix().double() - before)[0] @ vectors, tau / (values + tau), rtol=1e-3, atol=1e-4)


def test_damping_is_undone_to_the_bit(nano_context: UnlearningContext):
    damping = Damping(nano_context, config_of())
    assert damping.do() == 1.0, "there is no update yet"
    moved(nano_context)
    fingerprint = weights_fingerprint(nano_context.model)
    damping.do()
    assert weights_fingerprint(nano_context.model) != fingerprint
    damping.undo()
    assert weights_fingerprint(nano_context.model) == fingerprint


@pytest.mark.parametrize("update", ["npo", "grad_diff"])
def test_the_method_that_is_damped_trains_as_by_itself(update: str, make_context: ContextMaker):
    of_npo = {"frozen_partner": True}
    plain, damped, hardly = make_context(), make_context(), make_context()
    expected = run(update, plain, **of_npo)
    steps = run("sage", damped, update=update, threshold=0.01)
    run("sage", hardly, update=update, threshold=1e9)
    for mine, theirs in zip(steps, expected, strict=True):
        assert (mine.step, mine.measure_here, mine.total) == (theirs.step, theirs.measure_here, theirs.total)
        assert {name: mine.logged[name] for name in theirs.logged} == theirs.logged, "every step begins undamped"
        assert 0 < mine.logged["update_kept"] < 1
    named = [dict(context.model.named_parameters()) for context in (plain, damped, hardly)]
    maps = {f"{layer.name}.weight" for layer in damped_layers(plain.model, "all")}
    for name, weight in named[0].items():
        assert torch.equal(weight, named[1][name]) == (name not in maps)
        torch.testing.assert_close(named[2][name], weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("threshold", [0, -1, 1e-10, 1e10, "nan"])
def test_a_threshold_that_leaves_nothing_or_all_is_refused(threshold: Any):
    """With a τ that float32 takes for 0 the weights would be no numbers."""
    with pytest.raises(UsageError, match=f"^sage: threshold=.?{re.escape(str(threshold))}.? is not allowed: "):
        config_of(threshold=threshold)


def test_the_least_threshold_leaves_a_model_that_is_one(nano_context: UnlearningContext):
    damping = Damping(nano_context, config_of(threshold=1e-9))
    moved(nano_context)
    assert 0 < damping.do() < 1e-6
    assert all(p.isfinite().all() for p in nano_context.model.parameters())


def test_retain_texts_are_cut_as_in_training(nano_context: UnlearningContext):
    layers = damped_layers(nano_context.model, "mlp")
    retain = encode(nano_context.stages[0].retain, nano_context.tokenizer)
    length = max(len(e.input_ids) for e in retain)
    whole, longest, cut = (second_moments(nano_context, layers, 24, most)[0] for most in (None, length, length - 1))
    assert torch.equal(whole, longest)
    assert not torch.equal(whole, cut)


@pytest.mark.parametrize(
    ("bench", "family"), [("tofu10", "mini"), ("tofu10", "phi-1.5"), ("wmdp", "mini"), ("wmdp-bio", "zephyr-7b")]
)
def test_it_is_trained_as_npo_is(bench: str, family: str):
    npo, sage = (
        to_json(resolve(method.config, method.preset(bench, family), owner=method.name))
        for method in (METHODS.get("npo"), METHODS.get("sage"))
    )
    assert npo.items() <= sage.items()
