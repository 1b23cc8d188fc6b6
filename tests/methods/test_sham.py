"""The control and the task vector: what they do to the weights, exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.core.config import resolve
from harness.core.method import METHODS, Progress, UnlearningContext
from harness.models.sources import weights_fingerprint
from harness.numerics.anatomy import decoder_layers
from methods.curvature.layers import mlp_layers
from methods.gauss_newton.step import KL_TOLERANCE
from tests.conftest import ContextMaker


def run(context: UnlearningContext, name: str, **settings: Any) -> list[Progress]:
    method = METHODS.get(name)
    return list(method.unlearn(context, resolve(method.config, settings, owner=name)))


def test_sham_goes_along_one_random_direction_to_each_kl(make_context: ContextMaker):
    context = make_context()
    start = {name: p.detach().clone() for name, p in context.model.named_parameters()}
    method = METHODS.get("sham")
    moved, kls, lengths = [], [], []
    for p in method.unlearn(context, resolve(method.config, {"steps": 3, "target_kl": 0.03}, owner="sham")):
        moved.append({name: q.detach() - start[name] for name, q in context.model.named_parameters()})
        kls.append(p.logged["measured_kl"])
        lengths.append(p.logged["length"])
    assert kls == pytest.approx([0.01, 0.02, 0.03], rel=KL_TOLERANCE * 1.01)
    assert lengths == sorted(lengths)
    mlp = {layer.name + ".weight" for layer in mlp_layers(context.model)}
    assert len(mlp) == 3 * len(decoder_layers(context.model))
    for name, way in moved[-1].items():
        assert bool(way.abs().max() > 0) == (name in mlp), name
        if name in mlp:
            assert float(way.norm() / start[name].norm()) == pytest.approx(lengths[-1], rel=1e-3), "as long as its own weights"
            torch.testing.assert_close(moved[0][name] / lengths[0], way / lengths[-1], rtol=1e-2, atol=1e-4)


def test_sham_is_drawn_by_the_seed(make_context: ContextMaker):
    found = []
    for seed in (0, 0, 1):
        context = make_context(seed=seed)
        run(context, "sham", steps=1, target_kl=0.01)
        found.append(weights_fingerprint(context.model))
    assert found[0] == found[1] != found[2]


def test_a_task_vector_is_the_way_of_fine_tuning_backwards(make_context: ContextMaker, monkeypatch: pytest.MonkeyPatch):
    usual = {"epochs": 2, "batch_size": 6, "warmup_epochs": 0, "lr": 1e-3, "scales": [0.5, 2.0]}
    context = make_context()
    start = [p.detach().clone() for p in context.model.parameters()]
    method = METHODS.get("task_vector")
    weights: list[list[torch.Tensor]] = []
    measured = []
    for p in method.unlearn(context, resolve(method.config, usual, owner="task_vector")):
        weights.append([q.detach().clone() for q in context.model.parameters()])
        measured.append(p.measure_here)
        assert p.total == len([0.5, 2.0]) + 4
    assert measured == [False] * 4 + [True] * 2
    learned = weights[3]
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(learned, start, strict=True))
    for scale, at in zip((0.5, 2.0), weights[4:], strict=True):
        for found, first, tuned in zip(at, start, learned, strict=True):
            torch.testing.assert_close(found, first - scale * (tuned - first))


def test_the_fine_tuning_learns_and_going_back_forgets(make_context: ContextMaker):
    from harness.data.rows import encode, pad_id
    from harness.numerics.likelihood import answer_nll

    context = make_context()
    (stage,) = context.stages
    texts, pad = encode(stage.forget, context.tokenizer), pad_id(context.tokenizer)

    def loss() -> float:
        return float(answer_nll(context.model, texts, pad)[0].sum())

    before, losses = loss(), []
    method = METHODS.get("task_vector")
    settings = {"epochs": 2, "batch_size": 6, "warmup_epochs": 0, "lr": 1e-3, "scales": [1.0]}
    for _ in method.unlearn(context, resolve(method.config, settings, owner="task_vector")):
        losses.append(loss())
    assert losses[-2] < before < losses[-1]
