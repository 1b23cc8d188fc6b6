"""LoKU: the inverted hinge loss, where adapters start, and a model that is plain whenever somebody looks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from harness.core.config import resolve
from harness.core.errors import Diverged, UsageError
from harness.core.method import Progress, UnlearningContext
from harness.core.problem import Problem, Stage
from harness.data.rows import collate, encode, pad_id
from harness.numerics.anatomy import LinearMap
from methods import loku
from methods.first_order.adapters import Adapters, linear_maps
from methods.first_order.loop import Data
from methods.first_order.partners import Partners
from methods.loku import importance
from methods.loku.config import LoKUConfig
from tests.conftest import ContextMaker

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def config_of(**changes: Any) -> LoKUConfig:
    return resolve(LoKUConfig, {"epochs": 2, "batch_size": 4, "lr": 1e-2, "rank": 4, **changes}, owner="loku")


def data_of(context: UnlearningContext) -> Data:
    (stage,) = context.stages
    tokenizer = context.tokenizer
    return Data(encode(stage.forget, tokenizer), encode(stage.retain, tokenizer), pad_id(tokenizer), stage, [])


def some_logits(model: PreTrainedModel) -> Tensor:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.arange(1, 41).reshape(2, 20)).logits


def adapted(context: UnlearningContext, config: LoKUConfig) -> Adapters:
    """The model with its adapters as they start."""
    maps = linear_maps(context.model, config.target_modules, config.layers)
    adapters = Adapters(context.model, maps, config.rank, 2 * config.rank, context.seed)
    if config.fila:
        if config.importance == "vila":
            rows = importance.row_weights(maps, *importance.subspace_information(context, adapters, data_of(context), config))
        else:
            rows = importance.row_weights(maps, *importance.fisher_information(context, maps, data_of(context), config))
        adapters.make(lambda i, seed: importance.fila(maps[i].matrix().float(), rows[i], config.rank, seed))
    else:
        adapters.make()
    return adapters


def look(model: nn.Module) -> Any:
    """Everything about a model but the values of its weights and its mode."""
    parameters = [(name, p.shape, p.dtype, p.requires_grad, id(p), p.grad) for name, p in model.named_parameters()]
    return parameters, [(name, id(m), sorted(vars(m))) for name, m in model.named_modules()], list(model.state_dict())


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(bool((one[name] == other[name]).all()) for name in one)


# ---------------------------------------------------------------- the loss


def test_inverted_hinge_is_one_plus_the_lead_over_the_runner_up():
    import torch

    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6], [0.2, 0.5, 0.3]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 2])
    expected = torch.tensor([1 + 0.5 - 0.3, 1 + 0.1 - 0.6, 1 + 0.3 - 0.5], dtype=torch.float64)
    torch.testing.assert_close(loku.inverted_hinge(p.log(), labels), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("vocabulary", [2, 7, 1000])
def test_inverted_hinge_of_a_uniform_distribution_is_exactly_one(vocabulary: int):
    import torch

    assert loku.inverted_hinge(torch.full((3, vocabulary), 0.7), torch.tensor([0, 1, vocabulary - 1])).tolist() == [1.0] * 3


def test_inverted_hinge_lies_between_0_and_2_and_reaches_both():
    import torch

    logits = torch.randn(200, 11, generator=torch.Generator().manual_seed(0)) * 20
    labels = torch.arange(200) % 11
    found = loku.inverted_hinge(logits, labels)
    assert found.min() >= 0
    assert found.max() <= 2
    sure = torch.tensor([[200.0, 0.0, 0.0], [200.0, 0.0, 0.0]])
    assert loku.inverted_hinge(sure, torch.tensor([0, 1])).tolist() == [2.0, 0.0]


def test_gradient_of_inverted_hinge_is_its_formula():
    """p_y(e_y − p) − p_k(e_k − p), k the runner-up."""
    import torch

    logits = torch.randn(20, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    labels = torch.arange(20) % 9
    loku.inverted_hinge(logits, labels).sum().backward()
    for z, y, gradient in zip(logits.detach(), labels.tolist(), logits.grad, strict=True):
        p, unit = z.softmax(0), torch.eye(9, dtype=torch.float64)
        k = max((v for v in range(9) if v != y), key=lambda v: p[v])
        torch.testing.assert_close(gradient, p[y] * (unit[y] - p) - p[k] * (unit[k] - p), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("loss", ["ihl", "grad_diff"])
def test_logged_terms_of_the_first_step_are_pooled_over_its_labels(loss: str, nano_context: UnlearningContext):
    """Before anything is learned, with plain LoRA's start, the terms are those of the model as it was."""
    import torch
    import torch.nn.functional as F

    forget = data_of(nano_context).forget
    batch = collate(forget, range(len(forget)), 0)
    with torch.no_grad():
        logits = nano_context.model(input_ids=batch.input_ids).logits[:, :-1][batch.labels[:, 1:] != -100]
    labels = batch.labels[:, 1:][batch.labels[:, 1:] != -100]
    expected = loku.inverted_hinge(logits, labels).mean() if loss == "ihl" else -F.cross_entropy(logits, labels)
    first = next(iter(loku.loku(nano_context, config_of(loss=loss, fila=False, batch_size=12))))
    assert first.logged["forget_term"] == pytest.approx(float(expected), rel=1e-5)
    assert first.logged["retain_term"] > 0


# ---------------------------------------------------------------- what is adapted


def tiny(kind: str) -> PreTrainedModel:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shapes: dict[str, dict[str, Any]] = {
        "gpt2": {"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 64},
        "gpt_neo": {
            "hidden_size": 8,
            "num_layers": 2,
            "num_heads": 2,
            "attention_types": [[["global"], 2]],
            "vocab_size": 50,
            "max_position_embeddings": 64,
        },
        "phi": {
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 12,
            "vocab_size": 50,
            "max_position_embeddings": 64,
        },
        "mamba": {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 50},
        "mixtral": {
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 12,
            "vocab_size": 50,
        },
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shapes[kind])).eval()


NAMES = {
    "phi": (["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense"], ["mlp.fc1", "mlp.fc2"]),
    "gpt2": (["attn.c_attn", "attn.c_proj"], ["mlp.c_fc", "mlp.c_proj"]),
    "gpt_neo": (
        ["attn.attention.k_proj", "attn.attention.v_proj", "attn.attention.q_proj", "attn.attention.out_proj"],
        ["mlp.c_fc", "mlp.c_proj"],
    ),
}


@pytest.mark.parametrize("kind", NAMES)
def test_all_linear_maps_of_attention_and_mlp_are_found(kind: str):
    model = tiny(kind)
    attention, mlp = NAMES[kind]
    for target, wanted in (("attention", attention), ("mlp", mlp), ("all", attention + mlp)):
        names = [m.name for m in linear_maps(model, target, (1,))]
        assert sorted(name.partition(".1.")[2] for name in names) == sorted(wanted)
        assert len(linear_maps(model, target)) == 2 * len(wanted)


def test_all_linear_maps_of_a_llama_are_found(nano_context: UnlearningContext):
    names = {m.name.rpartition(".")[2] for m in linear_maps(nano_context.model)}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_layers_that_are_not_there_are_refused(nano_context: UnlearningContext):
    before = look(nano_context.model)
    with pytest.raises(UsageError, match=r"layers=\[1, 7\]: the model has layers 0 to 1. Set layers=\[0,1\]\.$"):
        next(iter(loku.loku(nano_context, config_of(layers=[1, 7]))))
    assert look(nano_context.model) == before


def test_an_architecture_without_such_maps_is_refused_with_what_it_has():
    with pytest.raises(
        UsageError, match=r"'mamba' has no linear maps.*as attention or mlp.*backbone\.layers\.N\.mixer\.in_proj"
    ):
        linear_maps(tiny("mamba"))


def test_a_mixture_of_experts_is_refused():
    with pytest.raises(UsageError, match="mixture of experts"):
        linear_maps(tiny("mixtral"))


def test_a_rank_that_fila_cannot_have_is_refused(nano_context: UnlearningContext):
    with pytest.raises(
        UsageError, match=r"rank=17: .*_proj has only 16 singular values .* Take rank=16 or less, or fila=false\.$"
    ):
        next(iter(loku.loku(nano_context, config_of(rank=17))))
    with pytest.raises(UsageError, match=r"Take rank=16 or less\.$"):  # it refuses fila=false
        next(iter(loku.loku(nano_context, config_of(rank=17, importance="vila"))))
    next(iter(loku.loku(nano_context, config_of(rank=17, fila=False))))


@pytest.mark.parametrize(
    ("changes", "moved"), [({"target_modules": "attention"}, "self_attn"), ({"target_modules": "mlp", "layers": [1]}, "1.mlp")]
)
def test_only_what_is_adapted_moves(changes: dict[str, Any], moved: str, nano_context: UnlearningContext):
    before = bits(nano_context.model)
    list(loku.loku(nano_context, config_of(**changes)))
    after = bits(nano_context.model)
    for name, old in before.items():
        assert bool((old != after[name]).any()) == (moved in name), name


# ---------------------------------------------------------------- where adapters start


@pytest.mark.parametrize("frozen", [False, True])
def test_fisher_information_is_the_weighted_square_of_mini_batch_gradients(frozen: bool, nano_context: UnlearningContext):
    import torch

    from harness.numerics.training import shuffled_batches

    config = config_of(fisher_batch=5, frozen_partner=frozen)
    model, data = nano_context.model, data_of(nano_context)
    maps = linear_maps(model)
    forget, retain = importance.fisher_information(nano_context, maps, data, config)
    assert all(p.grad is None for p in model.parameters())

    model.requires_grad_(True)
    (order,) = shuffled_batches(12, 12, 1, nano_context.seed)
    assert sorted(order) == list(range(12))
    partner = Partners(24, nano_context.seed, frozen)
    for encoded, rows, found in ((data.forget, order, forget), (data.retain, [partner(row) for row in order], retain)):
        sums = [torch.zeros_like(f) for f in found]
        counted = 0
        for start in (0, 5, 10):  # the last mini-batch is a smaller one
            chosen = [encoded[i] for i in rows[start : start + 5]]
            batch = collate(chosen, range(len(chosen)), 0)
            model.zero_grad()
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss.backward()
            labels = sum(len(e.input_ids) - e.prompt_tokens for e in chosen)
            counted += labels
            for total, linear in zip(sums, maps, strict=True):
                total += labels * linear.module.weight.grad**2
        for total, f in zip(sums, found, strict=True):
            torch.testing.assert_close(f, total / counted, rtol=1e-3, atol=1e-7 * float(f.max()))


def test_vilas_information_is_the_variance_of_what_reaches_random_adapters(nano_context: UnlearningContext):
    """By the chain rule, without adapters: with G = ∇_{W + sBA}, ∇_B = s G Aᵀ and ∇_A = s Bᵀ G."""
    import torch

    from harness.core.streams import streams
    from harness.numerics.training import shuffled_batches

    config = config_of(fisher_batch=5, importance="vila")
    model, data = nano_context.model, data_of(nano_context)
    maps, before, found_look = linear_maps(model), bits(model), look(model)
    adapters = Adapters(model, maps, config.rank, 2 * config.rank, nano_context.seed)
    sides = [list(side) for side in importance.subspace_information(nano_context, adapters, data, config)]
    assert same_bits(bits(model), before), "the adapters are thrown away unmerged"
    assert look(model) == found_look

    generator = streams(nano_context.seed, "importance of adapters", data.stage.name).torch()
    drawn = []
    for linear in maps:
        out, inputs = linear.matrix().shape
        down, up = (0.05 * torch.randn(shape, generator=generator) for shape in ((4, inputs), (out, 4)))
        drawn.append((down, up))
        with torch.no_grad():
            linear.module.weight += 2 * up @ down
    (order,) = shuffled_batches(12, 12, 1, nano_context.seed)
    partner = Partners(24, nano_context.seed, False)
    for encoded, rows, found in zip((data.forget, data.retain), (order, [partner(row) for row in order]), sides, strict=True):
        seen: list[tuple[int, list[Tensor]]] = []
        for start in (0, 5, 10):
            batch = collate(chosen := [encoded[i] for i in rows[start : start + 5]], range(len(chosen)), 0)
            model.zero_grad()
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss.backward()
            labels = sum(len(e.input_ids) - e.prompt_tokens for e in chosen)
            seen.append((labels, [linear.module.weight.grad.clone() for linear in maps]))
        counted = sum(labels for labels, _ in seen)
        for i, (down, up) in enumerate(drawn):
            fisher = []
            for of in (lambda g, down=down: 2 * g @ down.T, lambda g, up=up: 2 * up.T @ g):
                squares = sum(n * of(g[i]).double() ** 2 for n, g in seen) / counted
                mean = sum(n * of(g[i]).double() for n, g in seen) / counted
                fisher.append(squares - mean**2)
            expected = (fisher[0] @ fisher[1]).float()
            torch.testing.assert_close(found[i], expected, rtol=2e-3, atol=1e-5 * float(expected.max()))


def test_vilas_rows_weigh_by_products_of_the_factors_information():
    """w_i = √ Σ_j [F_f(B)F_f(A)]_ij / ([F_r(B)F_r(A)]_ij + 1e-5), rank 1, by hand."""
    import torch

    up, down = torch.tensor([[2.0], [1.0]]), torch.tensor([[3.0, 1e-5]])
    retain_up, retain_down = torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0, 0.0]])
    expected = [math.sqrt(6 / (2 + 1e-5) + 2e-5 / 1e-5), math.sqrt(3 / 1e-5 + 1e-5 / 1e-5)]
    linear = LinearMap("a", torch.nn.Linear(2, 2), False)
    (found,) = importance.row_weights([linear], iter([up @ down]), iter([retain_up @ retain_down]))
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_the_importance_changes_where_adapters_start_and_nothing_else(make_context: ContextMaker):
    starts = []
    for kind in ("fila", "vila"):
        context = make_context()
        before = some_logits(context.model)
        adapters = adapted(context, config_of(importance=kind))
        assert float((some_logits(context.model) - before).abs().max()) < 1e-4
        starts.append(adapters.factors())
    assert all((one[0] != other[0]).any() for one, other in zip(*starts, strict=True))


def test_importances_that_nothing_starts_from_are_refused(nano_problem: Problem):
    says = loku.clash(nano_problem, config_of(importance="vila", fila=False))
    assert says == "importance=vila weighs what fila starts from, and fila=false. Set fila=true, or leave importance out"
    assert loku.clash(nano_problem, config_of(importance="vila")) is None


def test_a_row_weighs_by_what_the_forget_set_has_more_of():
    import torch

    forget = torch.tensor([[4e-5, 0.0], [1.0, 3.0]], dtype=torch.float64)
    retain = torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    expected = torch.tensor([2.0, math.sqrt(4 / (1 + 1e-5))], dtype=torch.float64)
    linear = LinearMap("a", torch.nn.Linear(2, 2), False)
    torch.testing.assert_close(importance.row_weights([linear], [forget], [retain])[0], expected, rtol=1e-12, atol=0)
    with pytest.raises(Diverged, match="Fisher information of a is not finite"):
        importance.row_weights([linear], [forget * math.nan], [retain])


@pytest.mark.parametrize(("epsilon", "rtol"), [(0.0, 1e-10), (importance.EPSILON, 1e-4)])
@pytest.mark.parametrize("shape", [(9, 14), (14, 9)])
def test_fila_is_the_best_approximation_in_the_rows_weighted_norm(
    shape: tuple[int, int], epsilon: float, rtol: float, monkeypatch: pytest.MonkeyPatch
):
    """‖diag(w)(W − s·B·A)‖ is the tail of the singular values of diag(w)·W: no matrix of rank r comes closer."""
    import torch

    monkeypatch.setattr(importance, "EPSILON", epsilon)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    rows = 1 + torch.rand(shape[0], generator=generator, dtype=torch.float64)
    down, up = importance.fila(weight, rows, rank=4, seed=0)
    assert down.shape == (4, shape[1])
    assert up.shape == (shape[0], 4)
    held = loku.SCALING * up @ down
    assert torch.linalg.matrix_rank(held) == 4
    values = torch.linalg.svdvals(rows[:, None] * weight)
    assert float((rows[:, None] * (weight - held)).norm()) == pytest.approx(float(values[4:].norm()), rel=rtol)


@pytest.mark.parametrize("rank", [4, 16])
@pytest.mark.parametrize("fila", [True, False])
def test_adapters_leave_the_function_as_it_was_at_the_start(fila: bool, rank: int, nano_context: UnlearningContext):
    model = nano_context.model
    before, weights = some_logits(model), bits(model)
    adapters = adapted(nano_context, config_of(fila=fila, rank=rank))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 7
    assert all("lora_A" in name or "lora_B" in name for name in trained)
    zero = [bool((p == 0).all()) for name, p in trained.items() if "lora_B" in name]
    assert zero == [not fila] * 14
    assert all((p != 0).any() for name, p in trained.items() if "lora_A" in name)
    assert float((some_logits(model) - before).abs().max()) < 1e-4
    adapters.take_off()
    assert float((some_logits(model) - before).abs().max()) < 1e-4
    assert fila or same_bits(bits(model), weights)


@pytest.mark.parametrize("kind", NAMES)
def test_adapters_fit_other_architectures(kind: str):
    """GPT-2 keeps its weights transposed."""
    import torch

    model = tiny(kind)
    before, found = some_logits(model), look(model)
    maps = linear_maps(model)
    adapters = Adapters(model, maps, 3, alpha=6, seed=0)
    adapters.make(
        lambda i, seed: importance.fila(maps[i].matrix().float(), torch.linspace(1, 2, len(maps[i].matrix())), 3, seed)
    )
    torch.testing.assert_close(some_logits(model), before, rtol=0, atol=1e-4)
    shift(model)
    shifted = some_logits(model)
    assert float((shifted - before).abs().max()) > 1e-2
    adapters.take_off()
    torch.testing.assert_close(some_logits(model), shifted, rtol=0, atol=1e-4)
    assert look(model) == found


# ---------------------------------------------------------------- on and off


def shift(model: nn.Module) -> None:
    """Move what is trained, as a step would."""
    import torch

    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("fila", [True, False])
def test_a_merged_model_says_what_the_adapted_one_says(fila: bool, nano_context: UnlearningContext):
    import torch

    model = nano_context.model
    before = some_logits(model)
    adapters = adapted(nano_context, config_of(fila=fila))
    shift(model)
    shifted = some_logits(model)
    assert float((shifted - before).abs().max()) > 0.1
    adapters.take_off()
    torch.testing.assert_close(some_logits(model), shifted, rtol=0, atol=1e-3 * float(shifted.abs().max()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_putting_adapters_on_again_brings_back_every_bit(dtype: str, nano_context: UnlearningContext):
    import torch

    model = nano_context.model.to(getattr(torch, dtype))
    model.get_input_embeddings().weight.requires_grad_(False)
    plain = look(model)
    adapters = adapted(nano_context, config_of())
    shift(model)
    on, adapted_look, said = bits(model), look(model), some_logits(model)
    for _ in range(3):
        adapters.take_off()
        assert look(model) == plain
        adapters.take_off()  # nothing, since they are off
        adapters.put_on()
        assert look(model) == adapted_look
        adapters.put_on()
    assert same_bits(bits(model), on)
    assert (some_logits(model) == said).all()


def test_the_model_is_plain_whenever_it_is_measured_and_training_goes_on_as_if_it_never_was(
    make_context: ContextMaker, monkeypatch: pytest.MonkeyPatch
):
    config = config_of(epochs=3)
    measured = make_context()
    plain, points = look(measured.model), []
    for progress in loku.loku(measured, config):
        if progress.measure_here:
            assert look(measured.model) == plain
            points.append(bits(measured.model))
    assert look(measured.model) == plain
    assert len(points) == 3
    assert not same_bits(points[0], points[2])
    assert same_bits(points[2], bits(measured.model))

    def never_measured(*arguments: Any) -> Iterator[Progress]:
        for progress in original(*arguments):
            yield replace(progress, measure_here=False)

    original = loku.unlearn
    monkeypatch.setattr(loku, "unlearn", never_measured)
    alone = make_context()
    list(loku.loku(alone, config))
    assert same_bits(bits(alone.model), points[2])


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_run_that_is_closed_leaves_a_plain_model(steps: int, nano_context: UnlearningContext):
    model = nano_context.model
    model.get_input_embeddings().weight.requires_grad_(False)
    plain, before = look(model), bits(model)
    run = loku.loku(nano_context, config_of())
    for _ in range(steps):
        next(run)
    run.close()
    assert look(model) == plain
    assert not any(module.training for module in model.modules())
    assert steps == 1 or not same_bits(bits(model), before)  # a warm-up's first step has learning rate 0


@pytest.mark.parametrize(
    ("where", "importances"),
    [
        *((where, "fila") for where in ("inverted_hinge", "fila", "fisher_information", "row_weights")),
        *((where, "vila") for where in ("fila", "subspace_information", "row_weights")),
    ],
)
def test_a_run_that_breaks_off_leaves_a_plain_model(
    where: str, importances: str, nano_context: UnlearningContext, monkeypatch: pytest.MonkeyPatch
):
    original, calls = getattr(loku, where), 0

    def breaks(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if where in ("fisher_information", "subspace_information", "row_weights") or calls == 4:
            raise Diverged("a test")
        return original(*arguments)

    monkeypatch.setattr(loku, where, breaks)
    plain, before = look(nano_context.model), some_logits(nano_context.model)
    with pytest.raises(Diverged, match="a test"):
        list(loku.loku(nano_context, config_of(importance=importances)))
    assert look(nano_context.model) == plain
    assert not any(module.training for module in nano_context.model.modules())
    if where != "inverted_hinge":
        assert float((some_logits(nano_context.model) - before).abs().max()) < 1e-4


@pytest.mark.parametrize("importances", ["fila", "vila"])
def test_two_stages_are_two_runs_one_behind_the_other(importances: str, make_context: ContextMaker, nano_problem: Problem):
    (stage,) = nano_problem.stages
    first = Stage("first", stage.forget[:6], stage.retain[:12])
    second = Stage("second", stage.forget[6:], stage.retain[12:])
    together = make_context(problem=replace(nano_problem, stages=[first, second]))
    list(loku.loku(together, config_of(importance=importances)))

    apart = make_context(problem=replace(nano_problem, stages=[first]))
    list(loku.loku(apart, config_of(importance=importances)))
    assert not same_bits(bits(apart.model), bits(together.model))
    apart.problem = replace(nano_problem, stages=[second])
    list(loku.loku(apart, config_of(importance=importances)))
    assert same_bits(bits(apart.model), bits(together.model))


@pytest.mark.parametrize("changes", [{}, {"fila": False}, {"importance": "vila"}], ids=str)
def test_the_seed_decides_and_the_global_random_numbers_do_not(changes: dict[str, Any], check_seed: Any):
    check_seed(lambda context: list(loku.loku(context, config_of(**changes))))


def test_the_inverted_hinge_makes_forget_answers_less_likely(nano_context: UnlearningContext):
    terms = [p.logged["forget_term"] for p in loku.loku(nano_context, config_of(epochs=10, batch_size=12))]
    assert terms[-1] < terms[0]
