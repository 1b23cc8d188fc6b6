"""Layers that do not fit on a device take turns, and no number changes by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.core.config import resolve
from harness.core.method import METHODS, UnlearningContext
from harness.models.sources import weights_fingerprint
from harness.numerics.configurations import meta_model
from methods.curvature import passes, portions, signals
from methods.curvature.layers import Layer, mlp_layers, sizes
from methods.curvature.portions import bytes_per_token, even_portions, home, tokens_at_once
from methods.gauss_newton import fit
from methods.gauss_newton.config import KFADEConfig
from methods.gauss_newton.data import StageData
from methods.kfade import unlearn
from tests.conftest import ContextMaker
from tests.methods.test_curvature import llama

TOKENS = 4096


def factors(layers: Sequence[Layer]) -> int:
    return sizes(layers).factors


class Device:
    """A device that tells how much room it has, for batches as they are on a CPU."""

    def __init__(self) -> None:
        self.free = 10**15

    def __call__(self, device: torch.device) -> int:
        return self.free

    def leave_room(self, model: torch.nn.Module, layers: Sequence[Layer], count: int) -> None:
        """So that factors are summed in so many portions."""
        if count == 1:
            self.free = 10**15
            return
        largest = [[layers[i] for i in numbers] for numbers in even_portions(layers, count)]
        reserve = max(TOKENS * max(bytes_per_token(model, some) for some in largest), sizes(layers).decomposition)
        self.free = reserve + max(map(factors, largest))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    assert passes.TOKENS_PER_BATCH == TOKENS
    monkeypatch.setattr(portions, "LEAST_TOKENS", TOKENS)
    monkeypatch.setattr(portions, "MOST_TOKENS", TOKENS)
    made = Device()
    monkeypatch.setattr(portions, "free_bytes", made)
    return made


def test_portions_are_whole_blocks_in_order_and_even():
    layers = mlp_layers(llama(layers=5))
    of = [[layers[i].block for i in numbers[::3]] for numbers in even_portions(layers, 2)]
    assert of == [[0, 1, 2], [3, 4]]
    assert [len(numbers) for numbers in even_portions(layers, 5)] == [3] * 5
    assert sorted(i for numbers in even_portions(layers, 3) for i in numbers) == list(range(15))


def test_a_portion_takes_its_share_of_every_device():
    model = llama(layers=5)
    model.model.layers[3:].to("meta")
    layers = mlp_layers(model)
    shares = [{layers[i].block for i in numbers} for numbers in even_portions(layers, 2)]
    assert shares == [{0, 1, 3}, {2, 4}]


def test_as_few_portions_as_there_is_room_for(device: Device):
    model = llama(layers=5)
    layers = mlp_layers(model)
    for count in (1, 2, 3, 5):
        device.leave_room(model, layers, count)
        assert len(portions.portions(model, layers, factors)) == count
        assert home(model, layers, factors) == (None if count == 1 else torch.device("cpu"))
    device.free = 0
    assert len(portions.portions(model, layers, factors)) == 5, "not even one block fits: it is tried"


@pytest.mark.parametrize("spectrum", [False, True])
def test_all_layers_of_a_7b_take_two_portions_on_80_gb(spectrum: bool, monkeypatch: pytest.MonkeyPatch):
    """32 layers, 14,336 wide: 77.5 GiB of factors, 21 of spectra; 65 GiB are left beside 13.5 of bfloat16 weights."""
    from transformers import MistralConfig

    model = meta_model(MistralConfig())
    layers = mlp_layers(model)
    monkeypatch.setattr(portions, "free_bytes", lambda device: 65 * 2**30)
    split = portions.portions(model, layers, lambda some: factors(some) + (sizes(some).spectrum if spectrum else 0))
    assert [len(numbers) for numbers in split] == [48, 48]


def test_where_a_device_does_not_tell_everything_goes_at_once():
    model = llama(layers=5)
    layers = mlp_layers(model)
    assert portions.portions(model, layers, factors) == [list(range(15))]
    assert tokens_at_once(model, layers, factors, 77) == 77


def test_batches_take_a_share_of_what_is_left(monkeypatch: pytest.MonkeyPatch):
    model = llama()
    layers = mlp_layers(model)
    each = bytes_per_token(model, layers)
    for free, tokens in ((4 * 5000 * each, 5000), (10**15, portions.MOST_TOKENS), (0, portions.LEAST_TOKENS)):
        monkeypatch.setattr(portions, "free_bytes", lambda device, free=free: free + factors(layers))
        assert tokens_at_once(model, layers, factors, 77) == tokens


def drawn_labels(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The labels that are drawn from now on, batch by batch."""
    drawn: list[Tensor] = []
    draw = signals.drawn_tokens
    monkeypatch.setattr(signals, "drawn_tokens", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    return drawn


@pytest.mark.parametrize("estimator", ["kfac", "ekfac", "diagonal"])
def test_a_fit_in_portions_is_the_fit_at_once_bit_by_bit(
    estimator: str, device: Device, make_context: ContextMaker, monkeypatch: pytest.MonkeyPatch
):
    drawn, found = drawn_labels(monkeypatch), []
    for count in (1, 2):
        context = make_context()
        layers = mlp_layers(context.model)
        device.leave_room(context.model, layers, count)
        if count == 2 and estimator == "diagonal":
            device.free = 0
        chosen = resolve(KFADEConfig, {"estimator": estimator, "target_kl": 0.1, "mc_samples": 2}, owner="kfade")
        data = StageData(context, context.stages[0], chosen)
        made = fit.fit(data, layers, "network", chosen.estimator)
        assert made.logged == ({} if count == 1 else {"layer_portions": 2.0})
        found.append(made.curvatures)
        found[-1].append([label.tolist() for label in drawn])
        drawn.clear()
        again = fit.fit(data, layers, "network", chosen.estimator)
        assert again.portions == 1, "what is cached takes no pass"
        assert not drawn
    once, twice = found[0].pop(), found[1].pop()
    assert twice == [labels for half in _halves(once, 2 if estimator == "ekfac" else 1) for labels in (*half, *half)]
    for one, other in zip(*found, strict=True):
        for part in ("q_in", "q_out", "mu", "nu", "corrected"):
            mine, theirs = getattr(one, part), getattr(other, part)
            assert (mine is None) == (theirs is None)
            assert mine is None or torch.equal(mine, theirs)


def _halves(batches: list[list[int]], passes: int) -> list[list[list[int]]]:
    """The batches of each of so many passes."""
    each = len(batches) // passes
    return [batches[i * each : (i + 1) * each] for i in range(passes)]


@pytest.mark.parametrize("estimator", ["kfac", "diagonal"])
def test_a_portion_is_cut_in_two_where_memory_runs_out_in_it_after_all(
    estimator: str, make_context: ContextMaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    chosen = resolve(KFADEConfig, {"estimator": estimator, "target_kl": 0.1}, owner="kfade")
    name = "covariance_sums" if estimator == "kfac" else "square_sums"
    sums, made = getattr(fit, name), []

    def small(model: torch.nn.Module, layers: Sequence[Layer], *others: Any) -> Any:
        if len({layer.block for layer in layers}) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return sums(model, layers, *others)

    for count in (1, 2):
        context = make_context()
        layers = mlp_layers(context.model)
        assert len({layer.block for layer in layers}) == 2
        made.append(fit.fit(StageData(context, context.stages[0], chosen), layers, "network", chosen.estimator))
        assert made[-1].portions == count
        monkeypatch.setattr(fit, name, small)
    assert "memory ran out" in caplog.text
    for one, other in zip(made[0].curvatures, made[1].curvatures, strict=True):
        assert torch.equal(one.spectrum((1, 1), torch.device("cpu")), other.spectrum((1, 1), torch.device("cpu")))

    def nothing(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(fit, name, nothing)
    context = make_context()
    with pytest.raises(torch.OutOfMemoryError):
        fit.fit(StageData(context, context.stages[0], chosen), mlp_layers(context.model), "network", chosen.estimator)


def step(context: UnlearningContext) -> dict[str, float]:
    chosen = resolve(KFADEConfig, {"estimator": "ekfac", "target_kl": 0.05, "kl_rows": 8}, owner="kfade")
    (progress,) = unlearn(context, chosen)
    return dict(progress.logged)


def test_a_step_in_portions_is_the_step_at_once_and_says_so(device: Device, make_context: ContextMaker):
    contexts, logged = [make_context(), make_context()], []
    for count, context in enumerate(contexts, start=1):
        device.leave_room(context.model, mlp_layers(context.model), count)
        logged.append(step(context))
    assert logged[1] == logged[0] | {"layer_portions": 2.0}
    assert weights_fingerprint(contexts[1].model) == weights_fingerprint(contexts[0].model)


def test_the_corrector_in_portions_is_the_one_at_once(device: Device, make_context: ContextMaker):
    made = METHODS.get("predictor_corrector")
    chosen = resolve(made.config, {"predictor": "ekfac", "steps": 1, "corrections": 1, "peak_kl": 0.01}, owner=made.name)
    weights, logged = [], []
    for device.free in (10**15, 0):
        context = make_context()
        (progress,) = made.steps(context, chosen)
        weights.append(weights_fingerprint(context.model))
        logged.append(dict(progress.logged))
    assert logged[1] == logged[0] | {"layer_portions": 2.0}
    assert weights[0] == weights[1]


def test_a_gradient_in_portions_is_the_gradient_at_once(device: Device, make_context: ContextMaker):
    found = []
    for free in (10**15, 0):
        context = make_context()
        layers = mlp_layers(context.model)
        device.free = free
        chosen = resolve(KFADEConfig, {"target_kl": 0.1}, owner="kfade")
        data = StageData(context, context.stages[0], chosen)
        found.append(fit.forget_gradient(data, layers, 1, "network"))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_model_that_makes_all_logits_at_once_has_room_for_fewer_tokens():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    def per_token(cap: float | None) -> int:
        shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}
        with torch.device("meta"):
            model = Gemma2ForCausalLM(Gemma2Config(vocab_size=256_000, final_logit_softcapping=cap, **shape))
        return bytes_per_token(model, mlp_layers(model))

    assert per_token(30.0) > 3 * 4 * 256_000 > 10 * per_token(None), "some of a plain head's logits are there at a time"
