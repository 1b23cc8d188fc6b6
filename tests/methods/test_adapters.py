"""Low-rank adapters in place of the weights: exact where that can be worked out, on no weight but the named ones, and refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.core.adapters import adapter_of
from harness.core.config import resolve
from harness.core.errors import UsageError
from harness.core.fields import Given, from_python, read
from harness.core.method import METHODS, Progress, UnlearningContext
from harness.core.options import LoRA, Options
from harness.core.problem import Problem
from harness.data.held_out import hold_out
from harness.data.rows import collate, encode
from harness.models.sources import weights_fingerprint
from harness.numerics import training
from harness.numerics.meeting import TOLERANCE
from harness.running.budgets import BudgetedRun
from harness.running.plan import Plan, plan
from harness.running.recorded import recorded_request
from harness.running.request import RunRequest, SweepRequest, request_file
from harness.running.run import execute
from harness.storage.store import Store
from methods.first_order.adapters import Adapters, adapted_maps, linear_maps
from tests.architectures import SETTINGS
from tests.conftest import Bench, ContextMaker, examples, giving

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness.data.rows import Batch

TAKING = [name for name, method in METHODS.all().items() if method.takes_adapter]
SMALL = LoRA(rank=4, alpha=8, dropout=0.0)


def some_batch(context: UnlearningContext) -> Batch:
    encoded = encode(context.stages[0].forget[:4], context.tokenizer)
    return collate(encoded, range(4), 0)


def logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    import torch

    with torch.no_grad():
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def steps(name: str, context: UnlearningContext, **settings: Any) -> Iterator[Progress]:
    method = METHODS.get(name)
    config = resolve(method.config, {"epochs": 2, "batch_size": 4, **SETTINGS[name]}, settings, owner=name)
    return method.steps(context, config)


# ---------------------------------------------------------------- exact


@pytest.mark.parametrize("scaling", [0.5, 3.0])
def test_the_first_step_of_sgd_is_the_full_gradient_seen_through_a(scaling: float, nano_context: UnlearningContext):
    """With B = 0 the first step moves B alone: B = −η s G Aᵀ, and the merged weight by s B A = −η s² G Aᵀ A."""
    import torch

    model, batch = nano_context.model, some_batch(nano_context)
    maps = linear_maps(model)[:1]
    (linear,) = maps
    rank, before = min(linear.matrix().shape), linear.matrix().clone()
    gradients: list[Tensor] = []

    def loss(part: Batch) -> Tensor:
        return training.pooled_nll(model, part, int(part.counts.sum()))

    gradients = list(torch.autograd.grad(loss(batch), [linear.module.weight]))
    adapters = Adapters(model, maps, rank, round(scaling * rank), seed=0)
    adapters.make()
    ((down, _),) = adapters.factors()
    seen_through = down.detach().T @ down.detach()
    assert torch.linalg.matrix_rank(seen_through) == rank
    recipe = training.AdamW(lr=0.1, steps=1, schedule="constant_with_warmup", max_gradient_norm=math.inf)
    list(training.optimise(model, [[batch]], loss, recipe, lambda named: torch.optim.SGD([p for _, p in named], lr=0.1)))
    adapters.take_off()
    change = linear.matrix() - before
    expected = -0.1 * scaling**2 * gradients[0] @ seen_through
    torch.testing.assert_close(change, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()) + 1e-8)


def test_orthonormal_adapters_of_full_rank_take_the_step_of_full_training(nano_context: UnlearningContext):
    """Where s² AᵀA is the identity nothing is lost: the merged weight is the one that SGD on the weight itself gives."""
    import torch

    model, batch = nano_context.model, some_batch(nano_context)
    maps = linear_maps(model)[:1]
    (linear,) = maps
    rank = linear.matrix().shape[1]

    def loss(part: Batch) -> Tensor:
        return training.pooled_nll(model, part, int(part.counts.sum()))

    (gradient,) = torch.autograd.grad(loss(batch), [linear.module.weight])
    trained = linear.matrix() - 0.1 * gradient
    adapters = Adapters(model, maps, rank, 2 * rank, seed=0)
    adapters.make()
    ((down, _),) = adapters.factors()
    with torch.no_grad():
        down.copy_(torch.linalg.qr(down)[0] / 2)
    recipe = training.AdamW(lr=0.1, steps=1, schedule="constant_with_warmup", max_gradient_norm=math.inf)
    list(training.optimise(model, [[batch]], loss, recipe, lambda named: torch.optim.SGD([p for _, p in named], lr=0.1)))
    adapters.take_off()
    torch.testing.assert_close(linear.matrix(), trained, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("aside", [None, "cpu"])
def test_the_merged_model_speaks_as_the_adapted_one_and_comes_back_to_the_bit(
    aside: str | None, nano_context: UnlearningContext
):
    import torch

    model, batch = nano_context.model, some_batch(nano_context)
    plain = logits(model, batch)
    before = weights(model)
    adapters = Adapters(model, linear_maps(model), 4, 8, seed=0, aside=aside)
    adapters.make()
    assert torch.equal(logits(model, batch), plain), "with B = 0 nothing changes"
    for _ in range(2):
        with torch.no_grad():
            for down, up in adapters.factors():
                up.add_(0.1 * torch.randn(up.shape))
                down.add_(0.1 * torch.randn(down.shape))
        with_adapters = logits(model, batch)
        adapters.take_off()
        torch.testing.assert_close(logits(model, batch), with_adapters, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(with_adapters, plain, atol=1e-2)
        adapters.put_on()
        assert torch.equal(logits(model, batch), with_adapters)
    adapters.discard()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


# ---------------------------------------------------------------- every method that takes them


@pytest.mark.parametrize("name", TAKING)
def test_nothing_is_trained_but_the_adapters(name: str, nano_context: UnlearningContext, monkeypatch: pytest.MonkeyPatch):
    """The optimiser sees A and B alone, and there is a state for nothing else."""
    seen: list[list[str]] = []
    optimise = training.optimise

    def spy(model: PreTrainedModel, *rest: Any, **more: Any) -> Any:
        seen.append([name for name, p in model.named_parameters() if p.requires_grad])
        return optimise(model, *rest, **more)

    monkeypatch.setattr(training, "optimise", spy)
    before = weights(nano_context.model)
    adapter = replace(SMALL, target="attention")
    for _ in steps(name, replace(nano_context, adapter=adapter)):
        assert list(before) == [name for name, _ in nano_context.model.named_parameters()], "plain at every yield"
        assert not nano_context.model.training
    assert seen
    assert all("lora_" in each for names in seen for each in names)
    named = {f"{linear.name}.weight" for linear in adapted_maps(nano_context.model, adapter)}
    moved = {name for name, p in nano_context.model.named_parameters() if not p.equal(before[name])}
    assert moved == named


@pytest.mark.parametrize("name", ["grad_diff", "npo_sam", "soul", "sage"])
def test_the_seed_alone_decides_dropout_too(name: str, check_seed: Callable[[Callable[[UnlearningContext], object]], None]):
    check_seed(lambda context: list(steps(name, replace(context, adapter=LoRA(rank=4, dropout=0.5)))))


def test_the_change_of_a_map_has_the_adapters_rank(nano_context: UnlearningContext):
    import torch

    before = weights(nano_context.model)
    list(steps("grad_diff", replace(nano_context, adapter=replace(SMALL, rank=2))))
    for linear in adapted_maps(nano_context.model, SMALL):
        change = linear.matrix() - before[f"{linear.name}.weight"]
        values = torch.linalg.svdvals(change.double())
        assert float(values[2]) < 1e-4 * float(values[0])


def test_what_npo_compares_with_is_the_model_before(nano_context: UnlearningContext, monkeypatch: pytest.MonkeyPatch):
    """At the first step, S_θ = S_θ0: the loss is (2/β) ln 2, with adapters as without."""
    found = {}
    for adapter in (None, SMALL):
        progress = next(steps("npo", replace(nano_context, adapter=adapter), beta=0.1, retain_weight=0))
        found[adapter] = progress.logged["forget_term"]
    assert found[SMALL] == pytest.approx(20 * math.log(2), rel=1e-5)
    assert found[None] == pytest.approx(20 * math.log(2), rel=1e-5)


def test_every_stage_gets_adapters_of_its_own(make_context: ContextMaker, nano_problem: Problem):
    import torch

    (stage,) = nano_problem.stages
    halves = [replace(stage, name=f"part {i}", forget=stage.forget[i::2]) for i in range(2)]
    problem = replace(nano_problem, stages=halves)
    context = make_context(problem=problem)
    before = weights(context.model)
    list(steps("grad_diff", replace(context, adapter=replace(SMALL, rank=2)), lr=1e-2))
    ranks = []
    for linear in adapted_maps(context.model, SMALL):
        values = torch.linalg.svdvals((linear.matrix() - before[f"{linear.name}.weight"]).double())
        ranks.append(int((values > 1e-4 * values[0]).sum()))
    assert set(ranks) == {4}, "two changes of rank 2"


def test_sages_damped_update_is_left_at_the_end(nano_context: UnlearningContext):
    """The loop puts no adapters on behind its last step: they would bring the undamped update back."""
    last = ""
    for progress in steps("sage", replace(nano_context, adapter=SMALL)):
        assert 0 < progress.logged["update_kept"] <= 1
        last = weights_fingerprint(nano_context.model)
    assert weights_fingerprint(nano_context.model) == last


def test_a_run_that_is_closed_early_keeps_what_was_measured(nano_context: UnlearningContext):
    unlearning = steps("grad_diff", replace(nano_context, adapter=SMALL))
    next(unlearning)
    next(unlearning)
    measured = weights_fingerprint(nano_context.model)
    unlearning.close()  # type: ignore[attr-defined]
    assert weights_fingerprint(nano_context.model) == measured
    assert all(p.requires_grad for p in nano_context.model.parameters())


def test_budgets_are_met(make_context: ContextMaker, nano_problem: Problem):
    from evals.benchmarks.tofu.world import World

    world = World(0)
    about, others = world.general
    problem = hold_out(replace(nano_problem, general=examples(about[:40]), unseen=examples(others[:20])))
    context = replace(make_context(problem=problem), adapter=replace(SMALL, dropout=0.1))
    budgets = (1e-3, 1e-2)
    run = BudgetedRun(context, budgets, "steps", lambda: steps("grad_diff", context, epochs=20, lr=1e-2))
    points = list(run.points())
    assert not run.unreached
    for point, budget in zip(points, budgets, strict=True):
        assert point.logged["damage"] == pytest.approx(budget, rel=TOLERANCE)
    assert TOLERANCE <= 0.02


# ---------------------------------------------------------------- a whole run


def test_a_run_with_adapters_has_a_name_of_its_own_and_one_without_keeps_its(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    def unlearn(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        yield Progress(1, measure_here=True, total=1)

    anything: Sequence[Any] = [giving("anything", lambda context: 1.0)]
    without = bench.plan(unlearn, anything)
    monkeypatch.setitem(METHODS._registered, "fake", replace(METHODS.get("fake"), takes_adapter=True))
    plans = [plan("nano", "mini", "fake", {}, Options(adapter=adapter)) for adapter in (None, SMALL, LoRA())]
    # A preset is of a method that trains all weights: with adapters, tables do not take it for the published form.
    forms = [each.selection for each in plans]
    assert forms == ["published form: defaults of fake", *["published form: defaults of fake, then adapter by hand"] * 2]
    assert plans[0].spec.run_id == without.spec.run_id
    assert "adapter" not in plans[0].spec.settings
    assert len({each.spec.run_id for each in plans}) == 3
    assert plans[1].spec.settings["adapter"] == "lora:r=4,alpha=8,dropout=0,target=all"
    assert plans[1].command.endswith("--adapter lora:r=4,alpha=8,dropout=0,target=all")


def test_a_method_that_trains_otherwise_is_refused_before_anything_is_loaded(bench: Bench):
    for name in ("kfade", "loku", "elm", "rmu", "repselect", "task_vector", "sham", "untouched", "predictor_corrector"):
        assert not METHODS.get(name).takes_adapter
    with pytest.raises(
        UsageError, match=r"^fake trains no adapters in place of the weights\. Leave out --adapter, or take one of .*npo"
    ):
        bench.plan(lambda context, config: iter(()), options=Options(adapter=LoRA()))


def test_an_architecture_without_such_maps_is_refused():
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=50))
    with pytest.raises(UsageError, match=r"^target=all: the architecture 'mamba' has no linear maps .* Leave out --adapter\.$"):
        adapted_maps(model, SMALL)


def test_an_interrupted_run_goes_on_to_the_same_weights_and_its_record_asks_for_it_again(bench: Bench):
    seen: list[str] = []

    def interrupted(context: Any) -> float:
        seen.append("")
        if len(seen) == 6:  # the references and the first point are measured by then
            raise KeyboardInterrupt
        return 1.0

    def decided(value: Any) -> Plan:
        bench.plan(lambda context, config: iter(()), [giving("anything", value)])
        settings = {"epochs": 3, "batch_size": 4, "lr": 1e-2}
        return plan("nano", "mini", "grad_diff", settings, Options(adapter=LoRA(rank=4, dropout=0.5)))

    with pytest.raises(KeyboardInterrupt):
        execute(decided(interrupted), bench.store, bench.cache)
    first = bench.store.find(decided(interrupted).spec)
    assert (first.status, len(first.points)) == ("interrupted", 1)
    again = execute(decided(lambda context: 1.0), bench.store, bench.cache)
    whole = execute(decided(lambda context: 1.0), Store(bench.results / "other"), bench.cache)
    assert [p.weights for p in again.points] == [p.weights for p in whole.points]
    assert again.points[0].weights == first.points[0].weights
    assert len({p.weights for p in whole.points}) == 3
    asked = read(RunRequest, recorded_request(again.spec, "a record"))
    assert asked.adapter == LoRA(rank=4, dropout=0.5)
    assert asked.options(0).adapter == asked.adapter


def test_a_file_and_python_say_it_too(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("method: npo\nbench: tofu10\nadapter: lora:r=16,target=mlp\n")
    for kind in (RunRequest, SweepRequest):
        for layer in (
            request_file(kind, tmp_path / "run.yaml"),
            from_python(kind, {"adapter": "lora:r=16,target=mlp"}),
            {"adapter": Given("lora:r=16,target=mlp", "--adapter …")},
        ):
            assert read(kind, layer).adapter == LoRA(rank=16, target="mlp")


# ---------------------------------------------------------------- other architectures, other types


@pytest.mark.parametrize("kind", ["gpt2", "bfloat16"])
def test_other_weights_are_adapted_as_well(kind: str, nano_context: UnlearningContext):
    """GPT-2 keeps its maps as [in, out]; bfloat16 weights are trained by float32 adapters."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=len(nano_context.tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64)
    model = GPT2LMHeadModel(shape).eval() if kind == "gpt2" else nano_context.model.bfloat16()
    before = weights(model)
    (*_, last) = steps("npo", replace(nano_context, model=model, adapter=SMALL), lr=1e-1, retain_loss="kl")
    assert last.step == last.total
    named = {f"{linear.name}.weight" for linear in adapted_maps(model, SMALL)}
    assert {name for name, p in model.named_parameters() if not p.equal(before[name])} == named
    assert {p.dtype for p in model.parameters()} == {p.dtype for p in before.values()}


def test_adapters_of_bfloat16_weights_are_float32_and_only_their_merge_is_rounded(nano_context: UnlearningContext):
    import torch

    model = nano_context.model.bfloat16()
    maps = adapted_maps(model, SMALL)
    adapters = Adapters(model, maps, SMALL.rank, SMALL.alpha, seed=0)
    adapters.make()
    assert {factor.dtype for pair in adapters.factors() for factor in pair} == {torch.float32}
    merged = []
    with torch.no_grad():
        for linear, (down, up) in zip(maps, adapters.factors(), strict=True):
            up.normal_(generator=torch.Generator().manual_seed(0))
            exact = linear.matrix().double() + SMALL.alpha / SMALL.rank * (up.double() @ down.double())
            merged.append((exact, linear))
    adapters.take_off()
    for exact, linear in merged:
        assert linear.matrix().dtype == torch.bfloat16
        assert torch.allclose(linear.matrix().double(), exact, rtol=2**-8, atol=1e-6), "half a unit in the last place"


# ---------------------------------------------------------------- as it is written


@pytest.mark.parametrize(
    ("text", "adapter"),
    [
        ("lora", LoRA(8, 32, 0.05, "all")),
        ("lora:r=16", LoRA(16, 32, 0.05, "all")),
        ("lora:alpha=16, r=4,target=mlp,dropout=-0", LoRA(4, 16, 0.0, "mlp")),
        ("", None),
    ],
)
def test_the_words_of_an_adapter(text: str, adapter: LoRA | None):
    assert adapter_of(Given(text, f"--adapter {text}")) == adapter
    assert adapter_of(Given(str(adapter or ""), "again", "file")) == adapter


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dora:r=4", "is no adapter. Write lora:r=16"),
        ("lora:r=0", "r=0 is no whole number from 1 to 65,536."),
        ("lora:r=1e3", "r=1e3 is no whole number"),
        ("lora:alpha=x", "alpha=x is no whole number"),
        ("lora:dropout=1", "dropout=1 is no number from 0 to below 1."),
        ("lora:dropout=nan", "dropout=nan is no number"),
        ("lora:target=head", "target=head is not known. There are: all, attention, mlp."),
        ("lora:rank=4", "'rank=4' is no setting of an adapter. Write lora:r=16"),
        ("lora:r", "'r' is no setting of an adapter."),
        ("lora:r=4,r=5", "says r twice."),
        ("lora:r=4,", "'' is no setting of an adapter."),
    ],
)
def test_other_words_are_refused_in_a_sentence(text: str, said: str):
    with pytest.raises(UsageError) as error:
        adapter_of(Given(text, f"--adapter {text}"))
    assert str(error.value).startswith(f"--adapter {text}")
    assert said in str(error.value)


# ---------------------------------------------------------------- the model before


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("kl_min", {}),
        ("jensun", {}),
        ("undial", {"retain_weight": 1.0, "retain_loss": "kl"}),
        ("npo", {"retain_loss": "kl"}),
    ],
)
def test_with_adapters_off_the_model_before_is_the_one_that_a_frozen_copy_is(
    name: str, settings: dict[str, Any], make_context: ContextMaker, monkeypatch: pytest.MonkeyPatch
):
    """Every term and every weight to the bit, over two stages, with no copy made."""
    from methods.first_order import losses

    def by_a_copy(context: UnlearningContext) -> losses.Before:
        copied = losses.frozen_copy(context.model)

        def ask(question: Any) -> Any:
            import torch

            with torch.no_grad():
                return question(copied)

        return ask

    (stage,) = make_context().stages
    halves = [replace(stage, name=f"part {i}", forget=stage.forget[i::2]) for i in range(2)]
    outcomes = []
    for copied in (False, True):
        context = make_context(problem=replace(make_context().problem, stages=halves))
        with monkeypatch.context() as patch:
            for module in ("kl_min", "jensun", "undial"):
                if copied and name == module:
                    patch.setattr(f"methods.{module}.model_before", by_a_copy)
            if copied:
                patch.setattr(losses, "model_before", by_a_copy)
            else:
                patch.setattr(losses, "frozen_copy", None)
            logged = [p.logged for p in steps(name, replace(context, adapter=SMALL), lr=1e-2, **settings)]
        outcomes.append((logged, weights_fingerprint(context.model)))
    assert outcomes[0] == outcomes[1]
