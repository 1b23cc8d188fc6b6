"""What a run will hold in memory: counted without weights, told, and refused with a way out."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from harness.core.benchmark import BENCHMARKS
from harness.core.config import resolve
from harness.core.errors import UsageError
from harness.core.evaluator import EVALUATORS, EvalPlan
from harness.core.memory import ModelShape
from harness.core.memory import ran_out as memory_ran_out
from harness.core.method import METHODS
from harness.core.options import LoRA, Optimizer, Options
from harness.core.problem import Problem
from harness.core.registry import ROOT
from harness.models import memory, memory_items
from harness.models.memory import GIB, Estimate, Room
from harness.models.sources import CheckpointSource
from tests.conftest import Bench, Nano

KFADE = {"step_size": 0.01}


@cache
def shape(name: str, weight_bytes: int = 2) -> ModelShape:
    """The papers' models, from their configurations' defaults."""
    from transformers import LlamaConfig, MistralConfig, PhiConfig

    config = {"llama2-7b": LlamaConfig, "mistral-7b": MistralConfig, "phi-1.5": PhiConfig}[name]()
    return ModelShape(memory.meta_model(config), weight_bytes, retain_rows=3600, answer_tokens=60)


def held(method: str, shape: ModelShape, **settings: Any) -> dict[str, float]:
    """GiB by name."""
    chosen = METHODS.get(method)
    config = resolve(chosen.config, settings, owner=method)
    return {h.what: h.bytes / GIB for h in chosen.memory(shape, config)}


# ---------------------------------------------------------------- counted


def test_fewer_tokens_at_once_keep_fewer_activations_but_where_batches_are_not_cut():
    whole = shape("mistral-7b", 4)
    fewer = replace(whole, trained_at_once=2048)
    for method in ("ga", "npo"):
        assert held(method, fewer)["activations"] <= held(method, whole)["activations"] / 2
    for method in ("rmu", "elm"):
        assert held(method, fewer) == held(method, whole)


@pytest.mark.parametrize(
    ("name", "parameters"), [("llama2-7b", 6_738_415_616), ("mistral-7b", 7_241_732_096), ("phi-1.5", 1_418_270_720)]
)
def test_parameters_are_counted_without_weights(name: str, parameters: int):
    found = shape(name)
    assert found.parameters == parameters
    assert {p.device.type for p in found.model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("name", "layers", "factors", "spectrum"),
    [
        ("llama2-7b", None, 47.3, 16.1),
        ("mistral-7b", None, 77.5, 21.0),
        ("mistral-7b", [3, 4, 5, 6], 9.7, 2.6),
        ("phi-1.5", None, 12.8, 3.0),
    ],
)
def test_the_curvature_takes_what_was_worked_out_by_hand(name: str, layers: Any, factors: float, spectrum: float):
    found = held("kfade", shape(name), layers=layers, estimator="ekfac", **KFADE)
    assert found["factors"] == pytest.approx(factors, abs=0.06)
    assert found["spectrum"] == pytest.approx(spectrum, abs=0.06)


def test_adapters_in_place_of_the_weights_take_what_was_worked_out_by_hand():
    """r Σ(in + out) = 39,976,960 at r = 16, in float32 with gradient and two moments; their 32 layers of weights on the CPU."""
    adapted = replace(shape("llama2-7b"), adapter=LoRA(rank=16), recompute=True)
    found = held("npo", adapted)
    assert found["adapters"] == pytest.approx(16 * 39_976_960 / GIB)
    assert not {"gradients", "AdamW moments", "float32 masters"} & set(found)
    config = resolve(METHODS.get("npo").config, {}, owner="npo")
    needed = memory.estimate(adapted, METHODS.get("npo").memory(adapted, config))
    assert needed.cpu == 2 * 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert sum(needed.working.values()) + needed.rough < 17 * GIB
    assert held("kl_min", adapted)["frozen copy"] == 0
    assert held("npo_sam", adapted)["perturbation"] == pytest.approx(8 * 39_976_960 / GIB)
    assert held("npo", shape("llama2-7b"))["gradients"] == pytest.approx(25.1, abs=0.06)


def test_an_8b_model_fits_the_cards_that_it_is_said_to():
    """Llama-3.1-8B on ToFU's rows: 8.03e9 weights of 2 bytes; 2 for the moments, 2 for the halves of masters; decimal GB."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_key_value_heads=8
    )
    of = ModelShape(memory.meta_model(config), 2, 3600, 45, recompute=True, row_tokens=110)
    assert of.parameters == 8_030_261_248

    def needed(method: str, **changes: Any) -> float:
        chosen, changed = METHODS.get(method), replace(of, **changes)
        return memory.estimate(changed, chosen.memory(changed, chosen.config())).total / 1e9

    released = Optimizer(bits=8, clip="none")
    assert 48 < needed("ga", optimizer=released) <= 56
    assert 32 < needed("ga", optimizer=replace(released, masters="none")) <= 40
    assert 16 < needed("npo", adapter=LoRA(rank=16)) <= 24
    assert needed("ga") > 140
    held = needed("grad_diff", optimizer=released) - needed("ga", optimizer=released)
    assert 14 < held < 17, "two passes: the first one's gradients wait for the second's"


@pytest.mark.parametrize("bits", [32, 8])
def test_the_estimate_counts_what_adamw_keeps_by_weight(bits: Any, nano: Nano):
    """In bfloat16, after a step: bytes of the moments and of the halves of masters."""
    import torch

    from harness.data.rows import Encoded, collate
    from harness.numerics.by_weight import ByWeight
    from harness.numerics.training import AdamW, fused_adamw, pooled_nll

    if bits == 8:
        pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    kept = Optimizer(bits=bits, clip="none")
    model = nano.model(0).bfloat16()
    counted = held("ga", ModelShape(model, 2, 10, 20, optimizer=kept))
    adamw = AdamW(lr=1e-3, steps=1, kept=kept)
    names, weights = zip(*model.named_parameters(), strict=True)
    by_weight = ByWeight(names, weights, adamw, lambda named: fused_adamw(adamw, named))
    by_weight.gradient(lambda batch: pooled_nll(model, batch, 1), [collate([Encoded([1, 2, 3], 2)], [0], 0)])
    rest = sum(piece.rest.nbytes for pieces in by_weight._pieces.values() for piece in pieces if piece.rest is not None)
    assert rest == counted["halves of float32 masters"] * GIB
    states = [(k, v) for state in by_weight.optimiser.state.values() for k, v in state.items() if isinstance(v, torch.Tensor)]
    moments = sum(v.nbytes for k, v in states if k not in ("step", "qmap1", "qmap2"))
    small = sum(p.numel() for p in weights if p.numel() < 4096)  # whose moments keep 32 bits
    assert moments == pytest.approx(counted["AdamW moments"] * GIB + (bits == 8) * 6 * small, rel=0.01)


def test_the_estimate_counts_the_adapters_that_a_run_makes(nano: Nano):
    from methods.first_order.adapters import Adapters, adapted_maps

    model, lora = nano.model(0), LoRA(rank=4, target="mlp")
    adapted = ModelShape(model, 4, 10, 20, lora)
    counted = held("grad_diff", adapted)["adapters"] * GIB
    adapters = Adapters(model, adapted_maps(model, lora), lora.rank, lora.alpha, seed=0)
    adapters.make()
    assert counted == 4 * 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_sizes_are_those_of_a_real_fit(nano: Nano):
    """On a model of ten thousand weights: the bytes of the tensors that a fit makes."""
    from harness.data.rows import Encoded
    from methods.curvature.factors import covariance_sums
    from methods.curvature.layers import mlp_layers, sizes
    from methods.curvature.signals import SampledLabels
    from methods.curvature.spectrum import eigenbases, square_sums

    model = nano.model()
    layers = mlp_layers(model)
    data = [Encoded([1, 2, 3, 4, 5], 2), Encoded([3, 4, 5], 1)]
    labels = SampledLabels(data, 1, 0)
    sums = covariance_sums(model, layers, data, 0, labels)
    told = sizes(mlp_layers(memory.meta_model(model.config)))
    assert sum(t.nbytes for t in (*sums.a.values(), *sums.s.values())) == told.factors
    squares = square_sums(model, layers, data, 0, labels, eigenbases(layers, sums)).squares
    assert sum(t.nbytes for t in squares.values()) == told.spectrum


def test_kl_log_probabilities_are_rows_times_tokens_times_vocabulary_on_the_cpu():
    method = METHODS.get("kfade")
    config = resolve(method.config, {**KFADE, "kl_rows": 100}, owner="kfade")
    (kl,) = [h for h in method.memory(shape("llama2-7b"), config) if h.where == "cpu" and h.bytes]
    assert kl.bytes == 100 * 60 * 32_000 * 4


@pytest.mark.parametrize(("weight_bytes", "per_parameter"), [(4, 12), (2, 16)])
def test_adamw_holds_gradients_two_moments_and_masters(weight_bytes: int, per_parameter: int):
    found = shape("phi-1.5", weight_bytes)
    chosen = METHODS.get("grad_diff")
    certain = sum(h.bytes for h in chosen.memory(found, chosen.config()) if h.certain)
    assert certain == per_parameter * found.parameters
    copied = METHODS.get("kl_min")
    more = sum(h.bytes for h in copied.memory(found, copied.config()) if h.certain)
    assert more - certain == weight_bytes * found.parameters


def test_sharded_layers_are_counted_as_the_part_that_a_process_holds(monkeypatch: pytest.MonkeyPatch):
    from harness.numerics import group, sharding

    monkeypatch.setattr(group, "_group", group._Group(0, 4, 0, store=None))  # type: ignore[arg-type]
    whole, chosen = shape("phi-1.5", 2), METHODS.get("grad_diff")
    embeddings = sum(p.numel() for name, p in whole.model.named_parameters() if ".layers." not in name)
    held = embeddings + (whole.parameters - embeddings) / 4
    found = replace(whole, held_share=sharding.held_share(whole.model))
    parts = memory.estimate(found, chosen.memory(found, chosen.config())).certain
    assert {name: size / held for name, size in parts.items()} == pytest.approx(
        {"weights": 2, "gradients": 4, "AdamW moments": 8, "float32 masters": 4}
    )


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_says_what_it_holds(name: str):
    method = METHODS.get(name)
    needed = KFADE if name == "kfade" else {}
    config = resolve(method.config, needed, owner=name)
    for each in method.memory(shape("phi-1.5"), config):
        assert each.bytes >= 0
    for settings in method.memory_fallbacks:
        resolve(method.config, needed, settings, owner=name)


def test_one_gpu_holds_what_it_should():
    """phi-1.5 in float32 on 80 GB, four layers of a 7B model on 80 GB, all of Llama-2-7B on an H200."""

    def needs(name: str, weight_bytes: int, **settings: Any) -> Estimate:
        method, of = METHODS.get("kfade"), shape(name, weight_bytes)
        return memory.estimate(of, method.memory(of, resolve(method.config, {**KFADE, **settings}, owner="kfade")))

    assert needs("phi-1.5", 4).total < 79 * GIB
    assert needs("mistral-7b", 2, layers=[3, 4, 5, 6], estimator="ekfac").total < 79 * GIB
    assert 79 * GIB < needs("llama2-7b", 2).total < 131 * GIB


@pytest.mark.skipif(sys.platform != "linux", reason="needs the C library of Linux")
@pytest.mark.parametrize("case", ["ga, clip=none", "likelihoods"])
def test_the_benchmark_of_the_estimate_runs(case: str):
    from tests.perf.memory import SIZES, measured

    found = measured(case, SIZES["tiny"], "cpu")
    assert found["parameters"] == 512 * 64 + 2 * (64 * (2 * 64 + 2 * 32) + 3 * 64 * 128 + 2 * 64) + 64
    assert found["estimated"] > 4 * found["parameters"]


# ---------------------------------------------------------------- refused


@pytest.fixture
def llama(nano_problem: Problem, tmp_path: Path) -> Problem:
    """The nano problem on a checkpoint of Llama-2-7B's shape, whose weights are not there."""
    from transformers import LlamaConfig

    LlamaConfig().save_pretrained(tmp_path / "llama2-7b")
    sources = {"base": CheckpointSource(str(tmp_path / "llama2-7b"))}
    return replace(nano_problem, model="llama2-7b", sources=sources)


@pytest.mark.parametrize(("device", "least", "tokens"), [("cpu", 512, 2048), ("cpu", 5000, 4096), ("cuda", 512, 4096)])
def test_a_runs_shape_says_how_many_tokens_are_trained_on_at_once(
    device: str, least: int, tokens: int, llama: Problem, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("harness.numerics.products.LEAST_WIDTH", least)
    found = memory.shape_of(llama, Options(device=device))
    assert found is not None
    assert found.trained_at_once == tokens


@pytest.fixture
def on_llama(llama: Problem, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Checks a run of Llama-2-7B on a GPU of so many GiB."""

    def check(
        method: str, gib: int, dtype: str = "bfloat16", all_gpus: int = 0, evals: Sequence[str] = (), **settings: Any
    ) -> None:
        rooms = {"cuda": Room("cuda:0", gib * GIB, gib * GIB), "cuda:all": Room("cuda:all", all_gpus * GIB, all_gpus * GIB)}
        monkeypatch.setattr(memory, "room_on", rooms.__getitem__)
        chosen = METHODS.get(method)
        config = resolve(chosen.config, settings, owner=method)
        plan = EvalPlan(llama, [EVALUATORS.get(name) for name in evals])
        memory.check(plan, chosen, config, Options(device="cuda", dtype=dtype))

    return check


def test_what_cannot_fit_is_refused_with_what_would(on_llama: Any):
    with pytest.raises(UsageError) as error:
        on_llama("kfade", 16, estimator="ekfac", all_gpus=80, **KFADE)
    assert re.fullmatch(
        r"cuda:0 has 16 GiB, kfade on llama2-7b needs 12\d GiB \(weights 13, factors 47, spectrum 16, gradient and step 48\) "
        r"beside its activations\. Set --device cuda:all\.",
        str(error.value),
    )
    on_llama("kfade", 80, estimator="ekfac", layers=[3, 4, 5, 6], **KFADE)


@pytest.mark.parametrize(("name", "gib", "portions"), [("llama2-7b", 131, 1), ("llama2-7b", 79, 2), ("mistral-7b", 79, 2)])
@pytest.mark.parametrize("estimator", ["kfac", "ekfac"])
def test_layers_take_turns_where_they_do_not_fit(name: str, gib: int, portions: int, estimator: str, nano_problem: Problem):
    """All 32 layers of a 7B, 14,336 wide: in two portions on 80 GB."""
    chosen, of = METHODS.get("kfade"), shape(name)
    config = resolve(chosen.config, {**KFADE, "estimator": estimator}, owner="kfade")
    needed = memory.fitting(of, EvalPlan(nano_problem, []), chosen, config, gib * GIB)
    assert needed.portions == portions
    assert needed.total <= gib * GIB
    assert ("in 2 portions" in str(needed)) == (portions == 2)
    whole = held("kfade", of, estimator=estimator, **KFADE)
    assert needed.working["factors"] / GIB == pytest.approx(whole["factors"] / portions)


def test_methods_without_portions_are_estimated_at_once(nano_problem: Problem):
    chosen = METHODS.get("grad_diff")
    assert memory.fitting(shape("llama2-7b"), EvalPlan(nano_problem, []), chosen, chosen.config(), GIB).portions == 1


def test_only_what_fits_is_proposed(on_llama: Any):
    on_llama("kfade", 60, "float32", **KFADE)
    with pytest.raises(UsageError, match=r"No setting known here makes it fit; take a larger GPU or a smaller model\.$"):
        on_llama("kfade", 16, "float32", **KFADE)
    with pytest.raises(UsageError, match="No setting known here"):
        on_llama("grad_diff", 16)
    with pytest.raises(UsageError, match=r"Set --adapter lora:r=8\.$"):
        on_llama("grad_diff", 40)
    with pytest.raises(UsageError, match=r"Set --optimizer adamw:bits=8 or --adapter lora:r=8\.$"):
        on_llama("grad_diff", 80)
    with pytest.raises(UsageError, match=r"Set --optimizer adamw:bits=8,clip=none or --adapter lora:r=8\.$"):
        on_llama("ga", 46)
    with pytest.raises(UsageError, match=r"Set --device cuda:all or --optimizer adamw:bits=8 or --adapter lora:r=8\.$"):
        on_llama("grad_diff", 80, all_gpus=320)
    on_llama("grad_diff", 140)


def test_what_an_evaluator_holds_is_counted_where_it_is_asked_for():
    of = shape("phi-1.5")
    chosen = METHODS.get("grad_diff")

    def needed(*evals: str, method: bool = False) -> float:
        held = chosen.memory(of, chosen.config()) if method else []
        found = memory.estimate(of, held, [EVALUATORS.get(name) for name in evals])
        assert sum(found.certain.values()) <= found.total
        return sum(found.certain.values()) / of.parameters

    assert needed("multiple_choice") == 2
    assert needed("alpaca_kl") == 4, "a second model"
    assert needed("finetune_attack") == 2 + 16, "gradients, two moments and masters"
    assert needed("alpaca_kl", "finetune_attack") == 2 + 16, "one after the other"
    assert needed("finetune_attack", method=True) == 2 + 12 + 16, "the method's own moments and masters are still there"


def test_an_attack_that_cannot_fit_is_refused_with_the_evaluators_that_can(on_llama: Any):
    with pytest.raises(UsageError, match=r"float32 masters 25\) beside its activations\. Set --evals multiple_choice\.$"):
        on_llama("untouched", 80, evals=("multiple_choice", "finetune_attack"))
    on_llama("untouched", 80, evals=("multiple_choice",))


def test_what_others_hold_on_a_gpu_is_told():
    assert str(Room("cuda:0", 80 * GIB, 79 * GIB)) == "cuda:0 has 80 GiB"
    assert str(Room("cuda:0", 80 * GIB, 12 * GIB)) == "cuda:0 has 80 GiB (12 of them free)"
    assert memory.room_on("cpu").free > 0


def test_what_may_not_fit_is_told_and_tried(on_llama: Any, caplog: pytest.LogCaptureFixture):
    on_llama("untouched", 16)
    assert "this may not fit" in caplog.text


def test_a_run_on_a_checkpoint_tells_what_it_needs_and_a_trained_model_does_not(
    bench: Bench, nano: Nano, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", logger="harness.models.memory")
    chosen, tofu = METHODS.get("untouched"), BENCHMARKS.get("tofu10").evaluators()
    memory.check(EvalPlan(bench.base, tofu), chosen, chosen.config(), Options())
    assert not caplog.text
    memory.check(EvalPlan(replace(bench.base, sources={"base": nano.source()}), tofu), chosen, chosen.config(), Options())
    assert re.search(r"untouched on mini needs about [\d.]+ GiB \(weights [\d.]+.*\), the CPU has \d+", caplog.text)


def test_layers_that_are_not_there_are_refused_before_anything_is_loaded(nano: Nano, bench: Bench):
    chosen = METHODS.get("kfade")
    config = resolve(chosen.config, {**KFADE, "layers": [7]}, owner="kfade")
    with pytest.raises(UsageError, match=r"layers=\[7\]"):
        memory.check(EvalPlan(replace(bench.base, sources={"base": nano.source()})), chosen, config, Options())


# ---------------------------------------------------------------- recomputed activations


def test_recomputed_activations_change_no_weight_and_are_off_whenever_somebody_looks(nano: Nano):
    import torch

    from harness.data.rows import Encoded, collate
    from harness.numerics.training import AdamW, optimise, pooled_nll

    batch = collate([Encoded([1, 2, 3, 4, 5], 2), Encoded([3, 4, 5], 1)], [0, 1], 0)

    def trained(recompute: bool) -> tuple[dict[str, Any], int]:
        model, calls = nano.model(), 0

        def count(*_: Any) -> None:
            nonlocal calls
            calls += 1

        handle = model.model.layers[0].mlp.register_forward_pre_hook(count)
        steps = [[batch]] * 3
        for _ in optimise(
            model,
            steps,
            lambda b: pooled_nll(model, b, 5),
            AdamW(lr=1e-2, steps=3, schedule="constant_with_warmup"),
            recompute=recompute,
        ):
            assert not model.training
            assert not any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
        handle.remove()
        assert not any(getattr(m, "gradient_checkpointing", False) or m._forward_hooks for m in model.modules())
        return model.state_dict(), calls

    (plain, once), (checkpointed, twice) = trained(False), trained(True)
    assert (once, twice) == (3, 6)
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


# ---------------------------------------------------------------- what is held at once, and what is free


def test_lokus_fisher_sums_are_gone_when_its_adapters_come():
    """The larger of two moments: the importances (two float32 sums and a gradient), or adapters with the weights kept aside."""
    of = shape("llama2-7b", 2)
    method = METHODS.get("loku")

    def certain(**settings: Any) -> int:
        config = resolve(method.config, settings, owner="loku")
        return sum(memory.estimate(of, method.memory(of, config)).certain.values()) - of.parameters * of.weight_bytes

    adapted = of.parameters - 2 * 32_000 * 4096 - (2 * 32 + 1) * 4096
    assert certain() == (4 + 4 + 2) * adapted
    assert certain(fila=False) < 3 * adapted


def test_kl_min_holds_log_probabilities_of_what_goes_through_at_once():
    found = held("kl_min", shape("llama2-7b"))
    assert found["log-probabilities"] == 4 * memory_items.TOKENS_AT_ONCE * 32_000 * 4 / GIB
    assert held("kl_min", shape("llama2-7b"), batch_size=4)["log-probabilities"] == 4 * 4 * 500 * 32_000 * 4 / GIB


def test_what_torch_keeps_from_an_earlier_run_counts_as_free(monkeypatch: pytest.MonkeyPatch):
    """Several runs in one process: memory that torch holds back for its next tensors is not taken."""
    import torch

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 66 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1 * GIB)
    assert memory.room_on("cuda:0") == Room("cuda:0", 80 * GIB, 75 * GIB)
    # Of several processes each has a GPU of its own for `cuda`.
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (device * GIB, 80 * GIB))
    assert memory.room_on("cuda") == Room("cuda:3", 80 * GIB, 68 * GIB)


# ---------------------------------------------------------------- it did not fit


def test_a_real_allocation_that_fails_is_memory_that_ran_out():
    import torch

    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**55)
    assert memory_ran_out(failed.value)


@pytest.mark.parametrize(
    ("error", "ran_out"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
    ids=str,
)
def test_memory_that_ran_out_is_told_from_other_errors(error: Exception, ran_out: bool):
    assert memory_ran_out(error) == ran_out


def test_memory_that_runs_out_while_a_model_is_loaded_is_not_the_checkpoints_fault():
    from harness.data.hub_errors import refused

    with pytest.raises(RuntimeError, match="ALLOC_FAILED"), refused("owner/name", "model"):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)")
    with pytest.raises(UsageError, match="the model of owner/name cannot be loaded"), refused("owner/name", "model"):
        raise RuntimeError("shapes do not match")


@pytest.mark.parametrize(
    ("options", "settings", "said"),
    [
        (
            Options(device="cuda:1"),
            {},
            "kfade ran out of memory on cuda:1. Try --set layers=[3,4,5,6], --set estimator=kfac, --dtype bfloat16, "
            "--device cuda:all, --device cpu, or fewer rows with --limit.",
        ),
        (
            Options(device="cuda:all", dtype="bfloat16"),
            {"estimator": "kfac", "layers": [3, 4, 5, 6]},
            "kfade ran out of memory on cuda:all. Try --device cpu, or fewer rows with --limit.",
        ),
        (
            Options(dtype="bfloat16"),
            {"estimator": "kfac", "layers": [3, 4, 5, 6]},
            "kfade ran out of memory on cpu. Try fewer rows with --limit.",
        ),
    ],
    ids=["one GPU", "all GPUs", "CPU"],
)
def test_who_ran_out_of_memory_is_told_what_to_try(options: Options, settings: dict[str, Any], said: str, llama: Problem):
    method = METHODS.get("kfade")
    config = resolve(method.config, KFADE, {"estimator": "ekfac"}, settings, owner="kfade")
    assert memory.advice(llama, method, config, options) == said


def advised(problem: Problem, method: str, **settings: Any) -> str:
    """What is said to be tried on a CPU, in bfloat16."""
    chosen = METHODS.get(method)
    said = memory.advice(problem, chosen, resolve(chosen.config, settings, owner=method), Options(dtype="bfloat16"))
    return said.removeprefix(f"{method} ran out of memory on cpu. Try ").removesuffix("fewer rows with --limit.")


@pytest.mark.parametrize(
    ("method", "settings", "ways"),
    [
        ("loku", {}, "--set fila=false, --set target_modules=attention, --set layers=[3,4,5,6], or "),
        ("loku", {"importance": "vila"}, "--set target_modules=attention, --set layers=[3,4,5,6], or "),
        ("loku", {"layers": [3]}, "--set fila=false, --set target_modules=attention, or "),
        ("elm", {}, "--set rank=64, --set layers=[4,5], or "),
        ("elm", {"rank": 16}, "--set layers=[4,5], or "),
        ("kfade", {**KFADE, "estimator": "identity"}, "--set layers=[3,4,5,6], or "),
        ("predictor_corrector", {}, "--set layers=[3,4,5,6], --set predictor=identity, or "),
        ("repselect", {"layers": [3, 4, 5, 6]}, ""),
        ("rmu", {}, "--set max_length=[256] --set retain_max_length=256, or "),
    ],
    ids=str,
)
def test_what_is_advised_is_accepted_and_takes_no_more(method: str, settings: dict[str, Any], ways: str, llama: Problem):
    assert advised(llama, method, **settings) == ways


def test_no_layers_are_advised_that_a_model_lacks(nano_problem: Problem):
    """It has two."""
    assert advised(nano_problem, "loku", rank=4) == "--set fila=false, --set target_modules=attention, or "
    assert advised(nano_problem, "repselect") == ""


def test_correctors_of_the_same_rows_hold_what_the_model_said_of_them_before():
    name, of = "what it said before", shape("llama2-7b")
    assert held("predictor_corrector", of)[name] == 0.25
    assert held("predictor_corrector", of, corrector_rows=200)[name] == 0
    small = replace(of, retain_rows=1)
    assert held("predictor_corrector", small)[name] == pytest.approx(60 * 32_000 * 4 / GIB)


def test_budgets_hold_copies_of_the_weights_and_log_probabilities_on_the_cpu(
    nano_problem: Problem, monkeypatch: pytest.MonkeyPatch
):
    from harness.core.text import Example

    of = shape("llama2-7b")
    assert memory_items.budget_items(of, nano_problem) == []
    problem = replace(nano_problem, held_out={"retain": [Example("q", "x" * 39)] * 100})
    copies, said = memory_items.budget_items(of, problem)
    assert copies.bytes == 5 * 2 * of.parameters + 2**28
    monkeypatch.setattr(memory_items, "KEPT", 2**50)
    assert memory_items.budget_items(of, problem)[0].bytes == (5 + 16) * 2 * of.parameters
    assert said.bytes == 4 * 10 * 100 * 32_000
    assert copies.where == said.where == "cpu"


HOARDED = """
import numpy as np, psutil
from harness.core.memory import trim_heap

def held():
    return psutil.Process().memory_info().rss

first = np.ones(2**19)
del first  # from here on blocks of up to 4 MiB come from the heap
blocks = [np.ones(2**17) for _ in range(200)]
last = np.ones(2**17)
del blocks  # below the last one: the heap stays as large as it is
before = held()
trim_heap()
print(before - held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are not asked")
def test_what_was_freed_is_given_back_to_the_system():
    done = subprocess.run([sys.executable, "-c", HOARDED], capture_output=True, cwd=ROOT, check=True, text=True)
    assert int(done.stdout) > 150 * 2**20
