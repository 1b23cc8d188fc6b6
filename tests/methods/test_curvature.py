"""The numerical core against exact matrices: float64, tiny models, no network."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.core.errors import UsageError
from harness.data.rows import Batch, Encoded, batches, collate
from harness.numerics.likelihood import answer_labels, answer_logits
from methods.curvature import passes, products
from methods.curvature.by_curvlinops import curvlinops_curvatures
from methods.curvature.factors import covariance_sums
from methods.curvature.files import load_curvatures, save_curvatures
from methods.curvature.gradients import gradient_matrices
from methods.curvature.layers import Layer, input_groups, mlp_layers
from methods.curvature.passes import backpropagate
from methods.curvature.signals import SampledLabels, SequenceObjective, true_labels
from methods.curvature.solve import Solver
from methods.curvature.spectrum import LayerCurvature, eigenbases, square_sums

PAD = 0


def llama(seed: int = 0, dtype: torch.dtype = torch.float64, layers: int = 2, vocabulary: int = 11) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=8,
        intermediate_size=10,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.5,
        attn_implementation="sdpa",  # the eager one takes its softmax in float32 whatever the model's type
    )
    model = LlamaForCausalLM(config).to(dtype).eval()
    if dtype == torch.float64:
        # transformers' own norm computes in float32 whatever the model's type, which would hide errors under 1e-7.
        for parent in [model.model, *model.model.layers]:
            for name, child in list(parent.named_children()):
                if "norm" in name:
                    exact = nn.RMSNorm(8, eps=child.variance_epsilon, dtype=dtype)
                    exact.load_state_dict(child.state_dict())
                    setattr(parent, name, exact)
    return model


def data(count: int = 5, seed: int = 0, ragged: bool = True, vocabulary: int = 11) -> list[Encoded]:
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        length = int(rng.integers(4, 9)) if ragged else 7
        found.append(Encoded(rng.integers(1, vocabulary, length).tolist(), 1 + (i % 3 if ragged else 1)))
    return found


def one_batch(encoded: Sequence[Encoded]):
    return list(batches(encoded, PAD, 10**6, "cpu"))


def empirical(logits: Tensor, batch) -> list[Tensor]:
    """The gradient at the true labels, un-averaged."""
    return [logits.softmax(-1) - nn.functional.one_hot(answer_labels(batch), logits.shape[1])]


def float64_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """answer_logits gives float32 for real use; exactness is tested in float64."""

    def exact(model, batch):
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
        return logits[:, :-1][batch.labels[:, 1:] != -100]

    monkeypatch.setattr(passes, "answer_logits", exact)


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    float64_logits(monkeypatch)


def weights(layers: Sequence[Layer]) -> list[nn.Parameter]:
    return [layer.module.weight for layer in layers]


def exact_ggn(model: nn.Module, layers: Sequence[Layer], encoded: Sequence[Encoded]) -> Tensor:
    """G = (1/labels) Σ_t J_tᵀ (diag(p) − p pᵀ) J_t over the layers' weights, dense, by autograd."""
    parameters = weights(layers)
    size = sum(p.numel() for p in parameters)
    total, labels = torch.zeros(size, size, dtype=torch.float64), 0
    for e in encoded:
        (batch,) = one_batch([e])
        logits = passes.answer_logits(model, batch)
        for z in logits:
            rows = [torch.autograd.grad(v, parameters, retain_graph=True, allow_unused=True) for v in z]
            jacobian = torch.stack(
                [
                    torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(r, parameters, strict=True)])
                    for r in rows
                ]
            )
            p = z.detach().softmax(0)
            total += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
            labels += 1
    return total / labels


def kfac(model: nn.Module, layers: Sequence[Layer], encoded: Sequence[Encoded], gradient=empirical, samples: int = 1):
    return eigenbases(layers, covariance_sums(model, layers, encoded, PAD, gradient, samples))


def ekfac(model: nn.Module, layers: Sequence[Layer], encoded: Sequence[Encoded], gradient=empirical, samples: int = 1):
    bases = kfac(model, layers, encoded, gradient, samples)
    sums = square_sums(model, layers, encoded, PAD, gradient, bases, samples)
    for i, basis in enumerate(bases):
        basis.corrected = sums.squares[i] / sums.labels
    return bases


def dense(curvature: LayerCurvature, shape: tuple[int, int]) -> Tensor:
    """The layer's block of G over the row-major flattened weight."""
    out, inputs = shape
    q = (
        torch.kron(curvature.q_out, curvature.q_in)
        if curvature.q_in is not None
        else torch.eye(out * inputs, dtype=torch.float64)
    )
    return q @ torch.diag(curvature.spectrum(shape, torch.device("cpu")).double().flatten()) @ q.T


# ---------------------------------------------------------------- factors


def hand_factors(model: nn.Module, layers: Sequence[Layer], encoded: Sequence[Encoded]) -> tuple[list[Tensor], list[Tensor]]:
    """A and S one sequence and one label at a time, by plain autograd on each layer's output."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str):
        def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            output.retain_grad()
            seen[name] = (args[0].detach(), output)

        return hook

    handles = [layer.module.register_forward_hook(keep(layer.name)) for layer in layers]
    a = [torch.zeros(layer.shape[1], layer.shape[1], dtype=torch.float64) for layer in layers]
    s = [torch.zeros(layer.shape[0], layer.shape[0], dtype=torch.float64) for layer in layers]
    tokens = labels = 0
    for e in encoded:
        (batch,) = one_batch([e])
        logits = passes.answer_logits(model, batch)
        nn.functional.cross_entropy(logits, answer_labels(batch), reduction="sum").backward()
        for i, layer in enumerate(layers):
            inputs, output = seen[layer.name]
            inputs, g = inputs.flatten(0, -2), output.grad.flatten(0, -2)
            if layer.has_bias:
                inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
            a[i] += inputs.T @ inputs
            s[i] += g.T @ g
        tokens += len(e.input_ids)
        labels += len(logits)
    for handle in handles:
        handle.remove()
    return [x / tokens for x in a], [x / labels for x in s]


def test_factors_equal_plain_autograd():
    model, encoded = llama(), data()
    layers = mlp_layers(model)
    a, s = hand_factors(model, layers, encoded)
    sums = covariance_sums(model, layers, encoded, PAD, empirical)
    for i, group in enumerate(input_groups(layers)):
        torch.testing.assert_close(sums.a[group] / sums.tokens, a[i], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(sums.s[i] / sums.labels, s[i], rtol=1e-10, atol=1e-12)


def test_gate_and_up_share_one_input_factor():
    layers = mlp_layers(llama())
    assert [layer.name.rsplit(".", 1)[1] for layer in layers] == ["gate_proj", "up_proj", "down_proj"] * 2
    assert input_groups(layers) == [0, 0, 1, 2, 2, 3]


def test_factors_and_spectrum_equal_curvlinops_on_the_same_labels():
    from curvlinops import EKFACLinearOperator
    from curvlinops.kfac import FisherType

    model, encoded = llama(), data(6, ragged=False)
    layers = mlp_layers(model)
    first = encoded[0].prompt_tokens

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, ids: Tensor) -> Tensor:
            return self.inner(input_ids=ids, use_cache=False).logits[:, first - 1 : -1].flatten(0, 1)

    ids = torch.tensor([e.input_ids for e in encoded])
    labels = ids[:, first:]
    operator = EKFACLinearOperator(
        Flat(),
        nn.CrossEntropyLoss(reduction="sum"),
        weights(layers),
        [(ids, labels.flatten())],
        check_deterministic=False,
        fisher_type=FisherType.EMPIRICAL,
        num_data=len(ids),
        num_per_example_loss_terms=labels.shape[1],
    )
    operator.compute_kronecker_factors()
    theirs = operator.state_dict()
    ours = covariance_sums(model, layers, encoded, PAD, empirical)
    factors = [
        (theirs["input_covariances"][f"inner.{x.name}"], theirs["gradient_covariances"][f"inner.{x.name}"]) for x in layers
    ]
    for i, group in enumerate(input_groups(layers)):
        torch.testing.assert_close(ours.a[group] / ours.tokens, factors[i][0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(ours.s[i], factors[i][1], rtol=1e-9, atol=1e-12)
    # The product of the eigenvalue-corrected operator with a vector does not depend on signs or order of eigenvectors.
    mine = ekfac(model, layers, encoded)
    torch.manual_seed(1)
    vectors = [torch.randn_like(p) for p in weights(layers)]
    products = operator @ vectors
    for i, (curvature, v, product) in enumerate(zip(mine, vectors, products, strict=True)):
        spectrum = curvature.spectrum(layers[i].shape, v.device)
        torch.testing.assert_close(
            curvature.rotate_back(curvature.rotate(v) * spectrum) * labels.numel(), product, rtol=1e-6, atol=1e-9
        )


def test_curvlinops_backend_gives_the_same_curvature_on_the_same_draws():
    """Its labels are its own draws, so the two agree in what does not depend on them (A) and, with many, in S."""
    model, encoded = llama(dtype=torch.float32), data(40, ragged=False)
    layers = mlp_layers(model)
    theirs = curvlinops_curvatures(model, layers, encoded, "kfac", 64, 0)
    ours = kfac(model, layers, encoded, SampledLabels(encoded, 64, 0), 64)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.mu, other.mu, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(mine.nu.sum(), other.nu.sum(), rtol=0.1, atol=0)


def test_curvlinops_backend_gives_a_corrected_spectrum():
    model, encoded = llama(dtype=torch.float32), data(40, ragged=False)
    layers = mlp_layers(model)
    theirs = curvlinops_curvatures(model, layers, encoded, "ekfac", 64, 0)
    ours = ekfac(model, layers, encoded, SampledLabels(encoded, 64, 0), 64)
    for mine, other in zip(ours, theirs, strict=True):
        assert other.corrected.shape == mine.corrected.shape
        torch.testing.assert_close(mine.corrected.sum(), other.corrected.sum(), rtol=0.1, atol=0)


def test_curvlinops_backend_refuses_what_it_cannot_mask():
    model = llama(dtype=torch.float32)
    with pytest.raises(UsageError, match="one length"):
        curvlinops_curvatures(model, mlp_layers(model), data(), "kfac", 1, 0)
    bf16 = llama(dtype=torch.bfloat16)
    with pytest.raises(UsageError, match="bfloat16"):
        curvlinops_curvatures(bf16, mlp_layers(bf16), data(ragged=False), "kfac", 1, 0)


def test_one_linear_layer_and_one_label_give_the_exact_ggn():
    """For one position a and g are single vectors, so E[g gᵀ] ⊗ a aᵀ is the Gauss-Newton block itself."""
    model = llama(layers=1)
    layers = mlp_layers(model)[2:]  # down_proj of the only layer
    encoded = [Encoded([3, 5], 1)]

    # All classes with weights √p_k (e_k − p) sum to diag(p) − p pᵀ: the expectation over labels, exactly.
    def every_class(logits: Tensor, batch) -> list[Tensor]:
        p = logits.softmax(-1)
        eye = torch.eye(p.shape[1], dtype=p.dtype)
        return [p[:, k : k + 1].sqrt() * (p - eye[k]) for k in range(p.shape[1])]

    # Only the position that predicts the label carries a gradient; the other would enter A.
    sums = covariance_sums(model, layers, encoded, PAD, every_class)
    exact = exact_ggn(model, layers, encoded)
    seen: list[Tensor] = []
    handle = layers[0].module.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))
    model(input_ids=torch.tensor([[3]]))
    handle.remove()
    a = seen[0][0, 0]
    torch.testing.assert_close(torch.kron(sums.s[0], torch.outer(a, a)), exact, rtol=1e-9, atol=1e-14)


def test_sampled_labels_have_the_exact_expectation():
    model, encoded = llama(), data(3)
    layers = mlp_layers(model)
    samples = 1000
    sampled = covariance_sums(model, layers, encoded, PAD, SampledLabels(encoded, samples, 0), samples)

    def every_class(logits: Tensor, batch) -> list[Tensor]:
        p = logits.softmax(-1)
        eye = torch.eye(p.shape[1], dtype=p.dtype)
        return [p[:, k : k + 1].sqrt() * (p - eye[k]) for k in range(p.shape[1])]

    # Labels of different positions are independent, so cross terms vanish in expectation and each position may be summed alone.
    exact = [torch.zeros_like(sampled.s[i]) for i in range(len(layers))]
    for e in encoded:
        for t in range(max(1, e.prompt_tokens), len(e.input_ids)):
            part = covariance_sums(model, layers, [Encoded(e.input_ids[: t + 1], t)], PAD, every_class)
            for i in range(len(layers)):
                exact[i] += part.s[i]
    for i in range(len(layers)):
        error = (sampled.s[i] - exact[i]).norm() / exact[i].norm()
        assert error < 0.1, (layers[i].name, float(error))


def test_ekfac_spectrum_tends_to_the_exact_diagonal_in_its_basis():
    model, encoded = llama(), data(4)
    layers = mlp_layers(model)
    samples = 1000
    mine = ekfac(model, layers, encoded, SampledLabels(encoded, samples, 0), samples)
    exact = exact_ggn(model, layers, encoded)
    start, errors = 0, []
    for layer, curvature in zip(layers, mine, strict=True):
        out, inputs = layer.shape
        block = exact[start : start + out * inputs, start : start + out * inputs]
        q = torch.kron(curvature.q_out, curvature.q_in)
        diagonal = torch.diag(q.T @ block @ q).reshape(out, inputs)
        errors.append(float((curvature.corrected - diagonal).norm() / diagonal.norm()))
        start += out * inputs
    assert max(errors) < 0.12, errors


def test_diagonal_estimator_tends_to_the_diagonal_of_the_ggn():
    model, encoded = llama(), data(4)
    layers = mlp_layers(model)
    samples = 1000
    none = [LayerCurvature(None, None, None, None) for _ in layers]
    sums = square_sums(model, layers, encoded, PAD, SampledLabels(encoded, samples, 0), none, samples)
    mine = torch.cat([(sums.squares[i] / sums.labels).flatten() for i in range(len(layers))])
    exact = torch.diag(exact_ggn(model, layers, encoded))
    assert float((mine - exact).norm() / exact.norm()) < 0.12


def test_only_what_the_spectrum_multiplies_is_rounded_and_not_what_the_model_does(monkeypatch: pytest.MonkeyPatch):
    matmul, multiply = torch.backends.cuda.matmul, torch.mm
    before, inside, of_spectrum = matmul.fp32_precision, [], []

    def mm(*args, **kwargs):
        of_spectrum.append(matmul.fp32_precision)
        return multiply(*args, **kwargs)

    model, encoded = llama(dtype=torch.bfloat16), data(4)
    layers = mlp_layers(model)
    none = [LayerCurvature(None, None, None, None) for _ in layers]
    # The angles of rotary embeddings are a float32 product in a model of any type.
    model.model.rotary_emb.register_forward_hook(lambda *_: inside.append(matmul.fp32_precision))
    monkeypatch.setattr(torch, "mm", mm)
    square_sums(model, layers, encoded, PAD, SampledLabels(encoded, 1, 0), none)
    assert set(inside) == {before}
    assert set(of_spectrum) == {"tf32"}
    assert matmul.fp32_precision == before


def test_hand_made_ggn_equals_curvlinops():
    from curvlinops import GGNLinearOperator

    model, encoded = llama(), data(4, ragged=False)
    layers = mlp_layers(model, [1])
    first = encoded[0].prompt_tokens

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, ids: Tensor) -> Tensor:
            return self.inner(input_ids=ids, use_cache=False).logits[:, first - 1 : -1].flatten(0, 1)

    ids = torch.tensor([e.input_ids for e in encoded])
    operator = GGNLinearOperator(
        Flat(),
        nn.CrossEntropyLoss(),
        weights(layers),
        [(ids, ids[:, first:].flatten())],
        check_deterministic=False,
        num_data=len(ids),
    )
    exact = exact_ggn(model, layers, encoded)
    torch.manual_seed(0)
    v = torch.randn(len(exact), dtype=torch.float64)
    shaped = [part.view_as(p) for part, p in zip(v.split([p.numel() for p in weights(layers)]), weights(layers), strict=True)]
    product = torch.cat([part.flatten() for part in operator @ shaped])
    torch.testing.assert_close(product, exact @ v, rtol=1e-8, atol=1e-12)


# ---------------------------------------------------------------- the measured KL


def kl(model: nn.Module, encoded: Sequence[Encoded], before: list[Tensor]) -> float:
    total, labels = 0.0, 0
    with torch.no_grad():
        for e, base in zip(encoded, before, strict=True):
            (batch,) = one_batch([e])
            now = passes.answer_logits(model, batch).log_softmax(-1)
            total += float((base.exp() * (base - now)).sum())
            labels += len(now)
    return total / labels


def log_probs(model: nn.Module, encoded: Sequence[Encoded]) -> list[Tensor]:
    with torch.no_grad():
        return [passes.answer_logits(model, one_batch([e])[0]).log_softmax(-1) for e in encoded]


def test_with_the_exact_ggn_measured_kl_is_half_alpha_squared():
    """The calibration behind every step size: predicted KL α²/2 must come true for small α when G is exact.

    G has full rank here (more labels × classes than weights): in directions that G does not see, no α is small.
    """
    model, encoded = llama(), data(80)
    layers = mlp_layers(model, [1])
    g = gradient_matrices(model, layers, data(3, seed=1), PAD, empirical)
    exact = exact_ggn(model, layers, encoded)
    flat = torch.cat([x.flatten() for x in g])
    damping = 1e-6 * float(torch.diag(exact).mean())
    r = torch.linalg.solve(exact + damping * torch.eye(len(exact), dtype=torch.float64), flat)
    direction = r / (r @ exact @ r) ** 0.5
    before = log_probs(model, encoded)
    start = [layer.module.weight.detach().clone() for layer in layers]
    ratios = []
    for alpha in (1e-2, 1e-3, 1e-4):
        steps = direction.split([w.numel() for w in start])
        with torch.no_grad():
            for layer, w, step in zip(layers, start, steps, strict=True):
                layer.module.weight.copy_(w + alpha * step.view_as(w))
        ratios.append(kl(model, encoded, before) / (alpha**2 / 2))
    distance = [abs(ratio - 1) for ratio in ratios]
    assert distance[2] < 0.01, ratios
    assert distance[2] < distance[1] < distance[0], ratios


# ---------------------------------------------------------------- solving


@pytest.mark.parametrize("estimator", [kfac, ekfac])
@pytest.mark.parametrize("damping", [1e-2, 1e-6])
def test_solve_equals_dense_cholesky(estimator, damping):
    model, encoded = llama(), data(8)
    layers = mlp_layers(model)
    curvatures = estimator(model, layers, encoded)
    g = gradient_matrices(model, layers, data(3, seed=1), PAD, empirical)
    direction = Solver(layers, curvatures, g).direction(damping)
    quad = 0.0
    for layer, curvature, gradient, r in zip(layers, curvatures, g, direction.matrices, strict=True):
        block = dense(curvature, layer.shape)
        factor = torch.linalg.cholesky(block + damping * torch.eye(len(block), dtype=torch.float64))
        expected = torch.cholesky_solve(gradient.flatten()[:, None], factor)[:, 0]
        torch.testing.assert_close(r.flatten(), expected, rtol=1e-7, atol=1e-9)
        quad += float(expected @ block @ expected)
    assert direction.g_norm == pytest.approx(quad**0.5, rel=1e-7)
    assert direction.gain == pytest.approx(
        sum(float((a * b).sum()) for a, b in zip(direction.matrices, g, strict=True)), rel=1e-9
    )
    assert direction.damped_norm == pytest.approx(direction.gain**0.5, rel=1e-9)


def test_per_factor_damping_inverts_each_factor():
    model, encoded = llama(), data(8)
    layers = mlp_layers(model)
    curvatures = kfac(model, layers, encoded)
    g = gradient_matrices(model, layers, data(3, seed=1), PAD, empirical)
    direction = Solver(layers, curvatures, g).direction(1e-3, "per_factor")
    for curvature, gradient, r in zip(curvatures, g, direction.matrices, strict=True):
        s = curvature.q_out @ torch.diag(curvature.nu) @ curvature.q_out.T
        a = curvature.q_in @ torch.diag(curvature.mu) @ curvature.q_in.T
        left = torch.linalg.inv(s + 1e-3 * torch.eye(len(s), dtype=torch.float64))
        right = torch.linalg.inv(a + 1e-3 * torch.eye(len(a), dtype=torch.float64))
        torch.testing.assert_close(r, left @ gradient @ right, rtol=1e-8, atol=1e-10)


def test_heuristic_damping_splits_by_the_traces():
    model, encoded = llama(), data(8)
    layers = mlp_layers(model)
    curvatures = kfac(model, layers, encoded)
    g = gradient_matrices(model, layers, data(3, seed=1), PAD, empirical)
    direction = Solver(layers, curvatures, g).direction(1e-3, "heuristic")
    for curvature, gradient, r in zip(curvatures, g, direction.matrices, strict=True):
        s = curvature.q_out @ torch.diag(curvature.nu) @ curvature.q_out.T
        a = curvature.q_in @ torch.diag(curvature.mu) @ curvature.q_in.T
        pi = ((torch.trace(a) / len(a)) / (torch.trace(s) / len(s))) ** 0.5
        left = torch.linalg.inv(s + 1e-3**0.5 / pi * torch.eye(len(s), dtype=torch.float64))
        right = torch.linalg.inv(a + 1e-3**0.5 * pi * torch.eye(len(a), dtype=torch.float64))
        torch.testing.assert_close(r, left @ gradient @ right, rtol=1e-8, atol=1e-10)


def test_factor_damping_needs_factors():
    model, encoded = llama(), data(8)
    layers = mlp_layers(model)
    g = gradient_matrices(model, layers, data(3, seed=1), PAD, empirical)
    with pytest.raises(UsageError, match="estimator=kfac"):
        Solver(layers, ekfac(model, layers, encoded), g).direction(1e-3, "per_factor")


@pytest.mark.parametrize("estimator", [kfac, ekfac])
def test_directions_stay_usable_with_fewer_tokens_than_dimensions(estimator):
    model = llama(dtype=torch.float32)
    layers = mlp_layers(model)
    curvatures = estimator(model, layers, data(1))
    g = gradient_matrices(model, layers, data(3, seed=1), PAD, empirical)
    solver = Solver(layers, curvatures, g)
    for exponent in range(2, 15):
        direction = solver.direction(10.0**-exponent)
        assert direction.g_norm >= 0
        assert direction.gain > 0


def test_identity_direction_is_the_gradient():
    model = llama()
    layers = mlp_layers(model)
    g = gradient_matrices(model, layers, data(3, seed=1), PAD, empirical)
    solver = Solver(layers, [LayerCurvature(None, None, None, None) for _ in layers], g)
    direction = solver.direction(0.0)
    for r, gradient in zip(direction.matrices, g, strict=True):
        torch.testing.assert_close(r, gradient)
    assert direction.g_norm == pytest.approx(sum(float(x.square().sum()) for x in g) ** 0.5)


def test_another_damping_needs_no_new_rotation():
    model, encoded = llama(), data(8)
    layers = mlp_layers(model)
    curvatures = ekfac(model, layers, encoded)
    g = gradient_matrices(model, layers, data(3, seed=1), PAD, empirical)
    solver = Solver(layers, curvatures, g)
    first = solver.direction(1e-3)
    solver.direction(1e-1)
    again = solver.direction(1e-3)
    assert all(torch.equal(a, b) for a, b in zip(first.matrices, again.matrices, strict=True))


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("objective", ["cross_entropy", "margin"])
def test_forget_gradient_equals_autograd(objective):
    from harness.numerics.likelihood import margin

    model, encoded = llama(), data(5)
    layers = mlp_layers(model)
    labels = sum(len(e.input_ids) - max(1, e.prompt_tokens) for e in encoded)
    found = gradient_matrices(model, layers, encoded, PAD, true_labels(labels, objective, 0.0))
    loss = torch.zeros((), dtype=torch.float64)
    for e in encoded:
        (batch,) = one_batch([e])
        logits, true = passes.answer_logits(model, batch), answer_labels(batch)
        if objective == "margin":
            loss = (
                loss - (logits.gather(1, true[:, None])[:, 0] - logits.scatter(1, true[:, None], -torch.inf).logsumexp(1)).sum()
            )
        else:
            loss = loss + nn.functional.cross_entropy(logits, true, reduction="sum")
    expected = torch.autograd.grad(loss / labels, weights(layers))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert margin(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long)).item() == pytest.approx(-np.log(2), rel=1e-6)


@pytest.mark.parametrize("objective", ["npo", "simnpo"])
def test_a_sequence_objectives_gradient_is_minus_the_losses_own(objective):
    """The losses as the first-order methods have them, by autograd; the step raises what they minimise."""
    from methods.first_order.preference import npo_loss
    from methods.simnpo import simnpo_loss

    model, encoded = llama(), data(5)
    layers = mlp_layers(model)
    before = [3.0, 5.0, 2.0, 9.0, 4.0]
    signal = SequenceObjective(5, objective, 0.7, 0.1, before if objective == "npo" else None)
    found = gradient_matrices(model, layers, encoded, PAD, signal)
    loss = torch.zeros((), dtype=torch.float64)
    for e, earlier in zip(encoded, before, strict=True):
        (batch,) = one_batch([e])
        true = answer_labels(batch)
        total = nn.functional.cross_entropy(passes.answer_logits(model, batch), true, reduction="sum")
        loss = loss + (npo_loss(total, earlier, 0.7) if objective == "npo" else simnpo_loss(total / len(true), 0.7, 0.1)) / 5
    expected = torch.autograd.grad(-loss, weights(layers))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_margin_gradient_does_not_vanish_on_a_memorised_token():
    z = torch.zeros(1, 5)
    z[0, 2] = 40.0
    (batch,) = one_batch([Encoded([1, 2], 1)])
    (signal,) = true_labels(1, "margin", 0.0)(z, batch)
    assert signal[0, 2] == pytest.approx(-1.0)
    assert signal[0].sum().abs() < 1e-5
    assert 1.0 < signal.norm() <= 2**0.5
    (clipped,) = true_labels(1, "margin", 0.05)(z, batch)
    assert clipped.norm() < 1e-6


def test_padding_order_and_split_change_nothing(monkeypatch: pytest.MonkeyPatch):
    model, encoded = llama(), data(9)
    layers = mlp_layers(model)
    labels = SampledLabels(encoded, 2, 0)
    whole = covariance_sums(model, layers, encoded, PAD, labels, 2)
    monkeypatch.setattr(passes, "TOKENS_PER_BATCH", 1)  # one sequence at a time: no padding at all
    alone = covariance_sums(model, layers, encoded, PAD, labels, 2)
    parts = covariance_sums(model, layers, encoded, PAD, labels, 2, rows=[7, 1, 4, 0])
    parts += covariance_sums(model, layers, encoded, PAD, labels, 2, rows=[8, 2, 3, 5, 6])
    for other in (alone, parts):
        assert (other.tokens, other.labels) == (whole.tokens, whole.labels)
        for mine, theirs in ((whole.a, other.a), (whole.s, other.s)):
            for key in mine:
                torch.testing.assert_close(mine[key], theirs[key], rtol=1e-9, atol=1e-12)
    bases = eigenbases(layers, whole)
    monkeypatch.setattr(passes, "TOKENS_PER_BATCH", 4096)
    squares = square_sums(model, layers, encoded, PAD, labels, bases, 2)
    split = square_sums(model, layers, encoded, PAD, labels, bases, 2, rows=[7, 1, 4, 0])
    split += square_sums(model, layers, encoded, PAD, labels, bases, 2, rows=[8, 2, 3, 5, 6])
    monkeypatch.setitem(products.SEQUENCES_AT_ONCE, "cpu", 4)  # as on a GPU
    together = square_sums(model, layers, encoded, PAD, labels, bases, 2)
    for key in squares.squares:
        torch.testing.assert_close(squares.squares[key], split.squares[key], rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(squares.squares[key], together.squares[key], rtol=1e-9, atol=1e-14)


class SmallDevice:
    """A device that has no memory for more than some tokens at once; it fails in the middle of a pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
        self.tokens, self.sizes, self.failed = tokens, [], 0
        whole = passes.answer_logits

        def logits(model, batch):
            self.sizes.append(batch.input_ids.numel())
            if self.sizes[-1] > self.tokens:
                self.failed += 1
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return whole(model, batch)

        monkeypatch.setattr(passes, "answer_logits", logits)


def test_a_pass_is_begun_anew_with_smaller_batches_where_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    model, encoded = llama(), [*data(3, ragged=False), *data(12, seed=1)]
    layers = mlp_layers(model)
    labels = SampledLabels(encoded, 1, 0)

    def everything() -> list[Tensor]:
        sums = covariance_sums(model, layers, encoded, PAD, labels)
        found = [*sums.a.values(), *sums.s.values(), torch.tensor([sums.tokens, sums.labels])]
        squares = square_sums(model, layers, encoded, PAD, labels, eigenbases(layers, sums))
        return [*found, *squares.squares.values(), *gradient_matrices(model, layers, encoded, PAD, empirical)]

    monkeypatch.setattr(passes, "TOKENS_PER_BATCH", 64)
    expected = everything()
    device = SmallDevice(monkeypatch, 20)
    for mine, theirs in zip(everything(), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    assert device.failed == 2, "64, 32, and then 16 for all passes that follow"
    assert "memory ran out: begun anew with 16 tokens at once" in caplog.text
    assert not any(module._forward_hooks for module in model.modules())


def test_where_one_sequence_is_too_much_the_error_is_handed_on(monkeypatch: pytest.MonkeyPatch):
    model, encoded = llama(), data(4, ragged=False)
    device = SmallDevice(monkeypatch, 6)  # sequences have 7
    monkeypatch.setattr(passes, "TOKENS_PER_BATCH", 28)
    with pytest.raises(torch.OutOfMemoryError):
        covariance_sums(model, mlp_layers(model), encoded, PAD, empirical)
    assert device.sizes == [28, 14, 7]


def test_other_errors_are_not_tried_again(monkeypatch: pytest.MonkeyPatch):
    model, encoded = llama(), data(4)
    calls = []

    def broken(logits: Tensor, batch) -> list[Tensor]:
        calls.append(1)
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        covariance_sums(model, mlp_layers(model), encoded, PAD, broken)
    assert len(calls) == 1


# ---------------------------------------------------------------- files, types, guards


def test_save_and_load_are_bit_identical(tmp_path):
    model, encoded = llama(dtype=torch.float32), data(8)
    layers = mlp_layers(model)
    curvatures = ekfac(model, layers, encoded)
    save_curvatures(curvatures, layers, tmp_path)
    for mine, theirs in zip(curvatures, load_curvatures(layers, tmp_path, torch.device("cpu")), strict=True):
        for name in ("q_in", "q_out", "mu", "nu", "corrected"):
            assert torch.equal(getattr(mine, name), getattr(theirs, name)), name


@pytest.mark.parametrize("linked", [True, False])
def test_a_basis_that_is_in_files_is_linked(linked: bool, tmp_path, monkeypatch: pytest.MonkeyPatch):
    model, encoded = llama(dtype=torch.float32), data(8)
    layers, (bases, folder) = mlp_layers(model), [tmp_path / name for name in ("bases", "all")]
    bases.mkdir(), folder.mkdir()
    curvatures = ekfac(model, layers, encoded)
    plain = [LayerCurvature(c.q_in, c.q_out, c.mu, c.nu) for c in curvatures]
    save_curvatures(plain, layers, bases)
    assert all(c.corrected is None for c in load_curvatures(layers, bases))

    def refused(*_: object) -> None:
        raise PermissionError("no links on this file system")

    if not linked:
        monkeypatch.setattr("os.link", refused)
    for _ in range(2):  # a portion may be begun anew
        save_curvatures(curvatures, layers, folder, bases=bases)
    assert (folder / "0000.safetensors").samefile(bases / "0000.safetensors") == linked
    for file in bases.iterdir():
        file.unlink()  # the cache may drop it
    for mine, theirs in zip(curvatures, load_curvatures(layers, folder), strict=True):
        for name in ("q_in", "q_out", "mu", "nu", "corrected"):
            assert torch.equal(getattr(mine, name), getattr(theirs, name)), name


def test_a_bfloat16_model_has_float32_factors(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(passes, "answer_logits", answer_logits)
    model, encoded = llama(dtype=torch.bfloat16), data(200)
    layers = mlp_layers(model)
    sums = covariance_sums(model, layers, encoded, PAD, SampledLabels(encoded, 1, 0))
    assert {x.dtype for x in [*sums.a.values(), *sums.s.values()]} == {torch.float32}
    reference = covariance_sums(model.float(), layers, encoded, PAD, SampledLabels(encoded, 1, 0))
    for key in sums.a:
        assert (sums.a[key] - reference.a[key]).norm() / reference.a[key].norm() < 0.03


def test_gradient_checkpointing_and_training_mode_are_refused():
    model = llama()
    layers = mlp_layers(model)
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="checkpointing"):
        covariance_sums(model, layers, data(), PAD, empirical)
    model.gradient_checkpointing_disable()
    model.train()
    with pytest.raises(ValueError, match="training mode"):
        covariance_sums(model, layers, data(), PAD, empirical)


def test_nothing_of_a_batch_is_held_when_the_next_one_goes_through():
    model = llama()
    layers, labels = mlp_layers(model), SampledLabels(data(4), 2, 0)
    earlier: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def signals(logits: Tensor, batch: Batch) -> Iterator[Tensor]:
        for gradient in labels(logits, batch):
            earlier.append(weakref.ref(gradient))
            yield gradient
            del gradient

    def on_input(group: int, a: Tensor) -> Tensor:
        if group == 0:
            alive.append(sum(made() is not None for made in earlier))
        earlier.append(weakref.ref(a))
        return a

    batches = [collate([encoded], [row], PAD) for row, encoded in enumerate(data(4))]
    backpropagate(model, layers, batches, signals, on_input, lambda _, a, g: None)
    assert alive == [0, 0, 0, 0]


def test_an_exception_leaves_no_hooks_and_the_flags_as_they_were():
    model = llama()
    layers = mlp_layers(model)
    model.lm_head.weight.requires_grad_(False)
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}

    def broken(logits: Tensor, batch) -> list[Tensor]:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        covariance_sums(model, layers, data(), PAD, broken)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    assert not any(layer.module._forward_hooks for layer in layers)


# ---------------------------------------------------------------- architectures


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=11, n_embd=6, n_layer=2, n_head=2, n_positions=16, n_inner=8, initializer_range=0.5)
    return GPT2LMHeadModel(config).double().eval()


def gpt_neo() -> nn.Module:
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=11, hidden_size=8, num_layers=2, num_heads=2, intermediate_size=8, max_position_embeddings=16, initializer_range=0.5,
        attention_types=[[["global"], 2]],
    )  # fmt: skip
    return GPTNeoForCausalLM(config).double().eval()


def phi() -> nn.Module:
    from transformers import PhiConfig, PhiForCausalLM

    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16,
        initializer_range=0.5, resid_pdrop=0.0,
    )  # fmt: skip
    return PhiForCausalLM(config).double().eval()


def mistral() -> nn.Module:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=16, initializer_range=0.5,
    )  # fmt: skip
    return MistralForCausalLM(config).double().eval()


def opt() -> nn.Module:
    """Its MLP reads and writes [B·T, D]."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=11, hidden_size=8, ffn_dim=12, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16,
        word_embed_proj_dim=8, init_std=0.5,
    )  # fmt: skip
    return OPTForCausalLM(config).double().eval()


def gptj() -> nn.Module:
    from transformers import GPTJConfig, GPTJForCausalLM

    torch.manual_seed(0)
    config = GPTJConfig(
        vocab_size=11, n_embd=8, n_layer=2, n_head=2, n_positions=16, rotary_dim=2, n_inner=12, initializer_range=0.5
    )
    return GPTJForCausalLM(config).double().eval()


@pytest.mark.parametrize("build", [opt, mistral])
def test_factors_and_spectrum_are_those_of_single_sequences(build):
    """Padding left out of A, sequences kept apart in the spectrum, whatever shape an MLP reads."""
    model, encoded = build(), data(4)
    layers = mlp_layers(model)
    a, s = hand_factors(model, layers, encoded)
    sums = covariance_sums(model, layers, encoded, PAD, empirical)
    for i, group in enumerate(input_groups(layers)):
        torch.testing.assert_close(sums.a[group] / sums.tokens, a[i], rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(sums.s[i] / sums.labels, s[i], rtol=1e-8, atol=1e-12)
    plain = [LayerCurvature(None, None, None, None) for _ in layers]
    squares = square_sums(model, layers, encoded, PAD, empirical, plain).squares
    for i, layer in enumerate(layers):
        expected = torch.zeros(layer.shape, dtype=torch.float64)
        for e in encoded:
            (batch,) = one_batch([e])
            loss = nn.functional.cross_entropy(passes.answer_logits(model, batch), answer_labels(batch), reduction="sum")
            (weight,) = torch.autograd.grad(loss, [layer.module.weight], retain_graph=True)
            expected[:, : weight.shape[1]] += weight.square()
            if layer.has_bias:
                expected[:, -1] += torch.autograd.grad(loss, [layer.module.bias])[0].square()
        torch.testing.assert_close(squares[i], expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("build", "names", "bias"),
    [
        (gpt2, ["c_fc", "c_proj"], True),
        (gpt_neo, ["c_fc", "c_proj"], True),
        (phi, ["fc1", "fc2"], True),
        (mistral, ["gate_proj", "up_proj", "down_proj"], False),
        (opt, ["fc1", "fc2"], True),
        (gptj, ["fc_in", "fc_out"], True),
    ],
)
def test_other_architectures_give_the_gradient_of_weight_and_bias(build, names, bias):
    model, encoded = build(), data(4)
    layers = mlp_layers(model)
    assert [layer.name.rsplit(".", 1)[1] for layer in layers] == names * 2
    assert all(layer.has_bias is bias for layer in layers)
    labels = sum(len(e.input_ids) - max(1, e.prompt_tokens) for e in encoded)
    found = gradient_matrices(model, layers, encoded, PAD, true_labels(labels, "cross_entropy", 0.0))
    total = sum(
        nn.functional.cross_entropy(passes.answer_logits(model, batch), answer_labels(batch), reduction="sum")
        for e in encoded
        for batch in one_batch([e])
    )
    for layer, matrix in zip(layers, found, strict=True):
        assert tuple(matrix.shape) == layer.shape
        (weight,) = torch.autograd.grad(total / labels, [layer.module.weight], retain_graph=True)
        weight = weight.T if type(layer.module).__name__ == "Conv1D" else weight
        torch.testing.assert_close(matrix[:, : weight.shape[1]], weight, rtol=1e-8, atol=1e-12)
        if bias:
            (b,) = torch.autograd.grad(total / labels, [layer.module.bias], retain_graph=True)
            torch.testing.assert_close(matrix[:, -1], b, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("build", [gpt2, phi, mistral, gpt_neo])
def test_a_matrix_written_back_changes_the_function_as_meant(build):
    model = build()
    layer = mlp_layers(model)[0]
    width = layer.shape[1] - layer.has_bias
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, width, dtype=torch.float64, generator=generator)
    matrix = torch.randn(layer.shape, generator=generator)
    layer.set_matrix(matrix)
    augmented = torch.cat([x, torch.ones(3, 1, dtype=torch.float64)], dim=1) if layer.has_bias else x
    torch.testing.assert_close(layer.module(x), augmented @ matrix.T.double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.matrix(), matrix)


def test_blocks_are_chosen_and_missing_ones_refused():
    model = llama()
    assert {layer.block for layer in mlp_layers(model, [1])} == {1}
    with pytest.raises(UsageError, match="layers 0 to 1"):
        mlp_layers(model, [99])


def test_an_architecture_without_mlps_is_refused():
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1, state_size=4)
    with pytest.raises(UsageError, match="mamba"):
        mlp_layers(MambaForCausalLM(config))


def test_experts_are_refused():
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        num_local_experts=2,
    )  # fmt: skip
    with pytest.raises(UsageError, match="experts"):
        mlp_layers(MixtralForCausalLM(config))
