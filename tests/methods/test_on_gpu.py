"""On a GPU curvature and methods do what they do on the CPU, within rounding, and work in bfloat16."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from harness.core.config import resolve
from harness.core.method import METHODS, UnlearningContext
from harness.data.rows import collate
from harness.numerics.likelihood import answer_labels
from methods.curvature import passes, portions, products
from methods.curvature.factors import Sums, covariance_sums
from methods.curvature.gradients import gradient_matrices
from methods.curvature.layers import mlp_layers
from methods.curvature.signals import SampledLabels, true_labels
from methods.curvature.solve import Solver
from methods.curvature.spectrum import LayerCurvature, eigenbases, square_sums
from methods.gauss_newton.config import KFADEConfig
from tests.architectures import SETTINGS
from tests.conftest import ContextMaker
from tests.gpu import DEVICE, ON_GPU
from tests.methods.test_curvature import PAD, data, llama

pytestmark = ON_GPU
ROWS = data(200)


def sums(dtype: torch.dtype, device: str, estimator: str) -> tuple[Sums, list[LayerCurvature]]:
    """What the passes over data sum up, and the curvature made of it."""
    model = llama(dtype=dtype).to(device)
    layers = mlp_layers(model)
    labels = SampledLabels(ROWS, 1, 0)
    made = [LayerCurvature(None, None, None, None) for _ in layers]
    whole = Sums()
    if estimator in ("kfac", "ekfac"):
        whole = covariance_sums(model, layers, ROWS, PAD, labels)
        made = eigenbases(layers, Sums(dict(whole.a), dict(whole.s), {}, whole.tokens, whole.labels))
    if estimator in ("ekfac", "diagonal"):
        squares = square_sums(model, layers, ROWS, PAD, labels, made)
        whole.squares = squares.squares
        for i, basis in enumerate(made):
            basis.corrected = squares.squares[i] / squares.labels
    return whole, made


def direction(dtype: torch.dtype, device: str, estimator: str) -> Tensor:
    """The damped Newton direction of a forget gradient, as one vector."""
    model = llama(dtype=dtype).to(device)
    layers = mlp_layers(model)
    gradients = gradient_matrices(model, layers, ROWS[:9], PAD, true_labels(sum(e.label_count for e in ROWS[:9]), "margin", 0))
    solver = Solver(layers, sums(dtype, device, estimator)[1], gradients)
    matrices = solver.direction(0.1, scale="mean_eigenvalue").matrices
    assert {matrix.device.type for matrix in matrices} == {device}
    return torch.cat([matrix.flatten().cpu().double() for matrix in matrices])


@pytest.mark.parametrize("estimator", ["kfac", "ekfac", "diagonal", "identity"])
def test_directions_are_those_of_the_cpu(estimator: str):
    here, expected = (direction(torch.float32, device, estimator) for device in (DEVICE, "cpu"))
    assert (here - expected).norm() < 1e-3 * expected.norm()
    rough = direction(torch.bfloat16, DEVICE, estimator)
    assert torch.cosine_similarity(rough, expected, dim=0) > 0.98


def relative(these: Mapping[int, Tensor], those: Mapping[int, Tensor]) -> float:
    return max(float((these[key] - those[key]).norm() / those[key].norm()) for key in those)


def test_sums_of_low_precision_are_those_of_numbers_that_were_cast_first(monkeypatch: pytest.MonkeyPatch):
    fast, made = sums(torch.bfloat16, DEVICE, "ekfac")
    monkeypatch.setattr(products, "LOW", ())
    cast, _ = sums(torch.bfloat16, DEVICE, "kfac")
    assert relative(fast.a, cast.a) < 1e-5
    assert relative(fast.s, cast.s) < 5e-3, "the gradients are bfloat16, and come out of products whose order of sums is free"
    model = llama(dtype=torch.bfloat16).to(DEVICE)
    in_full = square_sums(model, mlp_layers(model), ROWS, PAD, SampledLabels(ROWS, 1, 0), made)
    assert relative(fast.squares, in_full.squares) < 1e-2, "rounded to TF32"


def portioned(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on there is room for one block at a time, and between passes for nothing."""
    monkeypatch.setattr(portions, "free_bytes", lambda device: 0)


@pytest.mark.parametrize("estimator", ["kfac", "ekfac"])
def test_a_step_in_portions_is_the_step_at_once(estimator: str, make_context: ContextMaker, monkeypatch: pytest.MonkeyPatch):
    chosen = {"estimator": estimator, "step_size": 0.05, "damping": 0.1, "damping_scale": "mean_eigenvalue"}
    moved = []
    for turns in (1, 2):
        context = make_context()
        context.model.to(DEVICE)
        if turns == 2:
            portioned(monkeypatch)
        start = [layer.matrix() for layer in mlp_layers(context.model)]
        (progress,) = METHODS.get("kfade").steps(context, resolve(KFADEConfig, chosen, owner="kfade"))
        assert progress.logged.get("layer_portions", 1) == turns
        now = [layer.matrix() for layer in mlp_layers(context.model)]
        moved.append(torch.cat([(a - b).flatten().double() for a, b in zip(now, start, strict=True)]))
    assert (moved[1] - moved[0]).norm() < 1e-3 * moved[0].norm()


def test_gradients_of_logits_in_parts_are_those_of_all_at_once(monkeypatch: pytest.MonkeyPatch):
    model = llama(dtype=torch.float32).to(DEVICE)
    layers, signal = mlp_layers(model), true_labels(sum(e.label_count for e in ROWS), "margin", 0)
    whole = gradient_matrices(model, layers, ROWS, PAD, signal)
    monkeypatch.setattr(passes, "LOGITS_AT_ONCE", 1)
    for part, expected in zip(gradient_matrices(model, layers, ROWS, PAD, signal), whole, strict=True):
        assert (part - expected).norm() < 1e-5 * expected.norm()


def test_labels_are_drawn_as_on_the_cpu():
    batch = collate(ROWS, list(range(len(ROWS))), PAD)
    logits = torch.randn(len(answer_labels(batch)), 1000, generator=torch.Generator().manual_seed(0))
    labels = SampledLabels(ROWS, 1, 0)
    (here,), (there,) = labels(logits.to(DEVICE), batch.to(DEVICE)), labels(logits, batch)
    assert (here.cpu().argmin(dim=1) == there.argmin(dim=1)).double().mean() > 0.995, "but for ties within rounding"


def test_batches_are_sized_by_what_a_gpu_has_free():
    model = llama(dtype=torch.float32).to(DEVICE)
    tokens = portions.tokens_at_once(model, mlp_layers(model), lambda some: 0, otherwise=7)
    assert tokens == (7 if DEVICE == "cpu" else portions.MOST_TOKENS)


def run(method: str, context: UnlearningContext) -> Tensor:
    """How far a method moves the weights, as one vector."""
    start = {name: p.detach().cpu().double().clone() for name, p in context.model.named_parameters()}
    chosen = METHODS.get(method)
    for _ in chosen.steps(context, resolve(chosen.config, SETTINGS[method], owner=method)):
        pass
    return torch.cat([(p.detach().cpu().double() - start[name]).flatten() for name, p in context.model.named_parameters()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", SETTINGS)
def test_every_method_moves_the_weights(method: str, dtype: torch.dtype, make_context: ContextMaker):
    context = make_context()
    context.model.to(DEVICE, dtype)
    moved = run(method, context)
    assert math.isfinite(float(moved.norm()))
    assert float(moved.norm()) > 0
    assert {p.device.type for p in context.model.parameters()} == {DEVICE}
    assert {p.dtype for p in context.model.parameters()} == {dtype}


@pytest.mark.parametrize("method", ["ga", "grad_diff", "npo", "rmu", "kfade", "predictor_corrector"])
def test_methods_go_where_they_go_on_the_cpu(method: str, make_context: ContextMaker):
    there, here = make_context(), make_context()
    here.model.to(DEVICE)
    assert torch.cosine_similarity(run(method, here), run(method, there), dim=0) > 0.99
