"""RMU against its formula, written out by hand; that only what is needed is computed; what it leaves behind."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from harness.core.config import resolve
from harness.core.errors import Diverged, UsageError
from harness.core.memory import ModelShape
from harness.core.method import METHODS, Progress, UnlearningContext
from harness.core.problem import Problem, Stage
from harness.data.rows import Encoded, collate, encode, pad_id
from harness.models import memory
from harness.models.sources import weights_fingerprint
from methods import rmu
from tests.conftest import ContextMaker

DOWN = "model.layers.{}.mlp.down_proj.weight"


def config_of(**changes: Any) -> rmu.RMUConfig:
    usual = {"layer": 1, "layers": [0, 1], "steps": 4, "lr": 1e-3, "coefficient": [3.0], "alpha": [20.0], "points": 2}
    return resolve(rmu.RMUConfig, {**usual, **changes}, owner="rmu")


def run(context: UnlearningContext, **changes: Any) -> list[Progress]:
    return list(rmu.rmu(context, config_of(**changes)))


def after_layer_1(model: PreTrainedModel, texts: list[Encoded], pad: int, left: bool = True) -> tuple[Tensor, Tensor]:
    """[B, T, D] the stream after layer 1 of a two-layer model, and [B, T] where there are tokens: all by the full model.

    Padded by hand as the authors' tokenizer pads (on the left, with a mask), or on the right without one.
    """
    length = max(len(text.input_ids) for text in texts)
    missing = [length - len(text.input_ids) for text in texts]
    if left:
        ids = torch.tensor([[pad] * m + text.input_ids for m, text in zip(missing, texts, strict=True)])
        mask = torch.tensor([[0] * m + [1] * (length - m) for m in missing])
    else:
        ids = torch.tensor([text.input_ids + [pad] * m for m, text in zip(missing, texts, strict=True)])
        mask = torch.tensor([[1] * (length - m) + [0] * m for m in missing])
    seen: list[Tensor] = []
    layer = model.get_submodule("transformer.h.1" if model.config.model_type == "gpt2" else "model.layers.1")
    handle = layer.register_forward_hook(lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out))
    model(input_ids=ids, **({"attention_mask": mask} if left else {}))
    handle.remove()
    return seen[0], mask


def states(model: PreTrainedModel, texts: list[Encoded], pad: int, left: bool = True) -> tuple[Tensor, Tensor]:
    """The same without gradients, in float64."""
    with torch.no_grad():
        h, mask = after_layer_1(model, texts, pad, left)
    return h.double(), mask.double()


def ragged(tokenizer: Any, rows: Any) -> list[Encoded]:
    """Texts of lengths that differ a lot."""
    return [replace(e, input_ids=e.input_ids[: 6 + 4 * i]) for i, e in enumerate(encode(rows, tokenizer))]


@pytest.fixture
def two_stages(nano_problem: Problem) -> Problem:
    (stage,) = nano_problem.stages
    stages = [Stage("bio", stage.forget[:6], stage.retain[:12]), Stage("cyber", stage.forget[6:], stage.retain[12:])]
    return replace(nano_problem, stages=stages)


# ---------------------------------------------------------------- the formula


def test_mean_runs_over_sequences_positions_and_coordinates():
    h = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    c = torch.tensor([1.0, 0.0])
    # Squares: 0+4, 4+16, 16+36, 36+64.
    assert float(rmu.squared_distance(h, c, torch.ones(2, 2))) == (4 + 20 + 52 + 100) / 8
    assert float(rmu.squared_distance(h, c, torch.tensor([[1, 1], [1, 0]]))) == pytest.approx((4 + 20 + 52) / 6)
    assert float(rmu.squared_distance(h, h + 1, torch.ones(2, 2))) == 1.0


def test_direction_has_length_1_and_no_negative_coordinate():
    u = rmu.direction(400, np.random.default_rng([3, 1]))
    assert float(u.norm()) == pytest.approx(1)
    assert float(u.min()) >= 0
    drawn = np.random.default_rng([3, 1]).random(400, dtype=np.float32)
    np.testing.assert_allclose(u.numpy(), drawn / np.linalg.norm(drawn), rtol=1e-6)
    # Uniform before it was scaled: mean over root mean square is √3/2.
    assert float(u.mean() * 20) == pytest.approx(math.sqrt(3) / 2, rel=0.05)
    assert not torch.equal(u, rmu.direction(400, np.random.default_rng([3, 0])))


@pytest.mark.parametrize("positions", ["padded", "tokens", "answer"])
def test_terms_of_the_first_step_are_those_of_the_formula(positions: str, nano_context: UnlearningContext):
    tokenizer, (stage,) = nano_context.tokenizer, nano_context.stages
    texts = encode(stage.forget[:4], tokenizer)
    assert len({len(text.input_ids) for text in texts}) > 1, "a ragged batch is what this is about"
    h, mask = states(nano_context.model, texts, pad_id(tokenizer), left=positions == "padded")
    if positions == "padded":
        mask = torch.ones_like(mask)
    if positions == "answer":
        for row, text in enumerate(texts):
            mask[row, : text.prompt_tokens] = 0
    u = np.random.default_rng([nano_context.seed, 0]).random(16, dtype=np.float32).astype(float)
    c = torch.from_numpy(3.0 * u / np.linalg.norm(u))
    expected = float((((h - c) ** 2).sum(-1) * mask).sum() / mask.sum() / 16)
    first = run(nano_context, positions=positions)[0]
    assert first.logged["forget_term"] == pytest.approx(expected, rel=1e-5)
    assert first.logged["retain_term"] == 0


def llama_and_gpt2(nano_context: UnlearningContext, kind: str) -> PreTrainedModel:
    if kind == "llama":
        return nano_context.model
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128, "initializer_range": 0.5}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model("gpt2", vocab_size=len(nano_context.tokenizer), **shape)
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_default_is_the_authors_loss_on_a_ragged_batch(kind: str, nano_context: UnlearningContext):
    """centerforaisafety/wmdp: padding on the left, attention mask, no position ids, `mse_loss` over everything.

    GPT-2's positions are counted from the first column, padding included; RoPE does not mind.
    """
    model, tokenizer = llama_and_gpt2(nano_context, kind), nano_context.tokenizer
    texts, pad = ragged(tokenizer, nano_context.stages[0].forget[:4]), pad_id(tokenizer)
    there, target = rmu.decoder(model), 3.0 * rmu.direction(16, np.random.default_rng([0]))
    weights = list(rmu.trained(there, config_of()).values())
    h, _ = after_layer_1(model, texts, pad)
    theirs = torch.nn.functional.mse_loss(h, target.expand_as(h))
    batch = collate(texts, range(4), pad, "left")
    ours = rmu.squared_distance(rmu.hidden_states(model, there[1].module, batch), target, rmu.counted(batch, "padded"))
    torch.testing.assert_close(ours, theirs)
    gradients = zip(torch.autograd.grad(ours, weights), torch.autograd.grad(theirs, weights), strict=True)
    for found, expected in gradients:
        torch.testing.assert_close(found, expected)
    # What version 1 took: padding on the right is text behind the text.
    h, _ = after_layer_1(model, texts, pad, left=False)
    assert abs(torch.nn.functional.mse_loss(h, target.expand_as(h)) / theirs - 1) > 1e-3


@pytest.mark.parametrize("positions", ["tokens", "answer"])
def test_padding_that_is_left_out_changes_nothing(positions: Any, nano_context: UnlearningContext):
    model, tokenizer = nano_context.model, nano_context.tokenizer
    texts, pad = ragged(tokenizer, nano_context.stages[0].forget[:4]), pad_id(tokenizer)
    texts = [replace(text, prompt_tokens=3) for text in texts]
    layer, target = model.model.layers[1], 3.0 * rmu.direction(16, np.random.default_rng([0]))

    def sums(group: list[Encoded]) -> tuple[float, float]:
        batch = collate(group, range(len(group)), pad)
        weights = rmu.counted(batch, positions)
        count = float(weights.sum())
        with torch.no_grad():
            return float(rmu.squared_distance(rmu.hidden_states(model, layer, batch), target, weights)) * count, count

    alone = [sums([text]) for text in texts]
    together, count = sums(texts)
    assert count == sum(n for _, n in alone)
    assert together == pytest.approx(sum(s for s, _ in alone), rel=1e-5)


def test_retain_term_is_alpha_times_the_distance_from_the_model_before(make_context: ContextMaker):
    """At the second step the weights have moved by what the first one did."""
    whole, cut = make_context(), make_context()
    (first, second) = run(whole, steps=2)[:2]
    before = {name: p.clone() for name, p in cut.model.state_dict().items()}
    run(cut, steps=1)
    (stage,), tokenizer = cut.stages, cut.tokenizer
    texts = encode(stage.retain[4:8], tokenizer)
    now, _ = states(cut.model, texts, pad_id(tokenizer))
    cut.model.load_state_dict(before)
    then, _ = states(cut.model, texts, pad_id(tokenizer))
    assert first.logged["retain_term"] == 0
    assert second.logged["retain_term"] == pytest.approx(20 * float(((now - then) ** 2).mean()), rel=1e-4)


def test_steps_are_those_of_transformers_former_adamw(make_context: ContextMaker):
    """θ ← θ − lr √(1−β₂ᵗ)/(1−β₁ᵗ) m/(√v + ε), gradients by hand from the same batches; no clipping, no decay, constant rate."""
    context, by_hand = make_context(), make_context()
    steps, lr = 3, 1e-3
    run(context, steps=steps, lr=lr)
    model, tokenizer, (stage,) = by_hand.model, by_hand.tokenizer, by_hand.stages
    u = torch.from_numpy(np.random.default_rng([0, 0]).random(16, dtype=np.float32))
    c = 3.0 * u / u.norm()
    trained = [model.get_parameter(DOWN.format(i)) for i in (0, 1)]
    m, v = ([torch.zeros_like(p, dtype=torch.float64) for p in trained] for _ in range(2))
    start = make_context().model

    def after(model: PreTrainedModel, texts: list[Encoded]) -> Tensor:
        return after_layer_1(model, texts, pad_id(tokenizer))[0]

    for t in range(1, steps + 1):
        forget, retain = (encode(side[4 * t - 4 : 4 * t], tokenizer) for side in (stage.forget, stage.retain))
        loss = ((after(model, forget) - c) ** 2).mean()
        loss = loss + 20 * ((after(model, retain) - after(start, retain).detach()) ** 2).mean()
        for i, g in enumerate(torch.autograd.grad(loss, trained)):
            m[i] = 0.9 * m[i] + 0.1 * g.double()
            v[i] = 0.999 * v[i] + 0.001 * g.double() ** 2
            size = lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            with torch.no_grad():
                trained[i] -= (size * m[i] / (v[i].sqrt() + 1e-6)).float()
    for i, p in enumerate(trained):
        torch.testing.assert_close(context.model.get_parameter(DOWN.format(i)).detach(), p.detach(), rtol=0, atol=2e-5)
        assert float((p - start.get_parameter(DOWN.format(i))).detach().abs().max()) > 5e-4


def test_a_coefficient_in_norms_is_a_multiple_of_the_median_norm(nano_context: UnlearningContext):
    tokenizer, (stage,) = nano_context.tokenizer, nano_context.stages
    h, mask = states(nano_context.model, encode(stage.forget, tokenizer), pad_id(tokenizer))
    norms = h.norm(dim=-1)[mask.bool()]
    first = run(nano_context, coefficient=[2.0], coefficient_scale="activation_norm")[0]
    assert first.logged["coefficient"] == pytest.approx(2 * float(norms.float().median()), rel=1e-5)


def test_forget_states_approach_their_target_and_retain_states_stay(nano_context: UnlearningContext):
    found = run(nano_context, steps=30, alpha=[0.1])
    assert found[-1].logged["forget_term"] < 0.95 * found[0].logged["forget_term"]
    held = run(nano_context, steps=30, alpha=[1e6])
    assert held[-1].logged["retain_term"] / 1e6 < 0.1 * found[-1].logged["retain_term"] / 0.1


# ---------------------------------------------------------------- stages, texts, points


def test_stages_take_turns_in_the_order_of_their_texts(
    make_context: ContextMaker, two_stages: Problem, monkeypatch: pytest.MonkeyPatch
):
    context = make_context(problem=two_stages)
    seen: list[tuple[int, ...]] = []
    real = rmu.hidden_states

    def noted(model: Any, layer: Any, batch: Any, weights: Any = None) -> Tensor:
        if weights is None:
            seen.append(tuple(batch.rows.tolist()))
        return real(model, layer, batch, weights)

    monkeypatch.setattr(rmu, "hidden_states", noted)
    found = run(context, steps=6, coefficient=[1.0, 2.0])
    assert [p.logged["coefficient"] for p in found] == [1, 2, 1, 2, 1, 2]
    # Six texts to forget in each stage: the third batch starts anew at the second half.
    assert seen[0::2] == [(0, 1, 2, 3)] * 2 + [(4, 5, 0, 1)] * 2 + [(2, 3, 4, 5)] * 2
    assert seen[1::2] == [(0, 1, 2, 3)] * 2 + [(4, 5, 6, 7)] * 2 + [(8, 9, 10, 11)] * 2


def test_texts_are_cut_for_each_stage(make_context: ContextMaker, two_stages: Problem):
    context = make_context(problem=two_stages)
    config = config_of(max_length=[15, 19], retain_max_length=16)
    layer = context.model.model.layers[1]
    topics = [rmu._Topic(context, stage, i, layer, config) for i, stage in enumerate(context.stages)]
    assert [topic.forget(0).input_ids.shape[1] for topic in topics] == [15, 19]
    assert [topic.retain(0).input_ids.shape[1] for topic in topics] == [16, 16]


@pytest.mark.parametrize("name", ["coefficient", "alpha", "max_length"])
def test_as_many_values_as_there_are_no_stages_are_refused(name: str, make_context: ContextMaker, two_stages: Problem):
    with pytest.raises(UsageError, match=rf"{name}=\[30.*, 40.*, 50.*\]: give one value, or one for each of the 2 stages"):
        run(make_context(problem=two_stages), **{name: [30, 40, 50]})


@pytest.mark.parametrize(
    ("steps", "points", "measured"), [(10, 5, [2, 4, 6, 8, 10]), (7, 2, [4, 7]), (2, 5, [1, 2]), (3, 1, [3])]
)
def test_points_are_evenly_spaced(steps: int, points: int, measured: list[int], nano_context: UnlearningContext):
    found = run(nano_context, steps=steps, points=points)
    assert [p.step for p in found] == list(range(1, steps + 1))
    assert set(measured) >= {p.step for p in found if p.measure_here}
    assert found[-1].measure_here


# ---------------------------------------------------------------- what is computed, and what is left


def test_nothing_behind_the_layer_is_computed(nano_context: UnlearningContext):
    model = nano_context.model
    ran: list[str] = []
    watched = {"0": model.model.layers[0], "1": model.model.layers[1], "norm": model.model.norm, "head": model.lm_head}
    handles = [m.register_forward_pre_hook(lambda *_, n=n: ran.append(n)) for n, m in watched.items()]
    run(nano_context, layer=0, layers=[0], steps=1)
    for handle in handles:
        handle.remove()
    assert ran == ["0"] * 3, "forget, retain, and retain as it was"


def test_only_the_down_projections_of_the_chosen_layers_move(nano_context: UnlearningContext):
    before = {name: p.clone() for name, p in nano_context.model.state_dict().items()}
    run(nano_context, layers=[1])
    moved = [name for name, p in nano_context.model.state_dict().items() if not torch.equal(p, before[name])]
    assert moved == [DOWN.format(1)]


def test_the_seed_decides_and_the_global_random_numbers_do_not(check_seed: Any):
    check_seed(run)


def test_a_run_that_breaks_off_leaves_the_model_as_it_was_found(nano_context: UnlearningContext):
    nano_context.model.get_input_embeddings().weight.requires_grad_(False)
    with pytest.raises(Diverged):
        run(nano_context, coefficient=[1e30])
    assert [n for n, p in nano_context.model.named_parameters() if not p.requires_grad] == ["model.embed_tokens.weight"]
    assert all(p.grad is None for p in nano_context.model.parameters())
    assert not any(m._forward_hooks or m.training for m in nano_context.model.modules())


SMALL_SHAPE = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "gpt2": ({"n_embd": 8, "n_layer": 2, "n_head": 2}, "mlp.c_proj"),
    "gpt_neo": ({"hidden_size": 8, "num_layers": 2, "num_heads": 2, "attention_types": [[["global"], 2]]}, "mlp.c_proj"),
    "phi": ({**SMALL_SHAPE, "intermediate_size": 12}, "mlp.fc2"),
    "mistral": ({**SMALL_SHAPE, "num_key_value_heads": 1, "intermediate_size": 12}, "mlp.down_proj"),
    "gpt_neox": ({**SMALL_SHAPE, "intermediate_size": 12}, "mlp.dense_4h_to_h"),
    "falcon": (SMALL_SHAPE, "mlp.dense_4h_to_h"),
    "gptj": ({"n_embd": 8, "n_layer": 2, "n_head": 2, "rotary_dim": 2}, "mlp.fc_out"),
    "bloom": ({"hidden_size": 8, "n_layer": 2, "n_head": 2}, "mlp.dense_4h_to_h"),
    "opt": ({**SMALL_SHAPE, "ffn_dim": 12, "word_embed_proj_dim": 8}, "fc2"),
    "mpt": ({"d_model": 8, "n_layers": 2, "n_heads": 2, "expansion_ratio": 2}, "ffn.down_proj"),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_other_architectures_have_layers_and_down_projections(kind: str):
    shape, name = SHAPES[kind]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=50, **shape)).eval()
    layers = rmu.decoder(model)
    assert [layer.down.name for layer in layers if layer.down] == [f"{layer.name}.{name}" for layer in layers]
    assert len(layers) == 2
    batch = collate([Encoded([1, 2, 3], 1), Encoded([4, 5], 1)], [0, 1], 0)
    found = rmu.hidden_states(model, layers[0].module, batch)
    expected = model(input_ids=batch.input_ids, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(found, expected)


# ---------------------------------------------------------------- refusals, published settings, memory


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"layer": 7, "layers": [1]}, "layer=7: the model has layers 0 to 1"),
        (
            {"layer": 7, "layers": [1, 5]},
            r"layer=7 and layers=\[1, 5\]: the model has layers 0 to 1. Set layer=1 and layers=\[0,1\]\.$",
        ),
    ],
)
def test_layers_that_are_not_there_are_refused(settings: dict[str, Any], says: str, nano_context: UnlearningContext):
    before = weights_fingerprint(nano_context.model)
    with pytest.raises(UsageError, match=says):
        run(nano_context, **settings)
    assert weights_fingerprint(nano_context.model) == before


def test_layers_that_would_never_move_are_refused():
    with pytest.raises(UsageError, match=r"layers=\[1, 2\]: \[2\] lie behind layer=1"):
        config_of(layers=[1, 2])


def test_an_architecture_without_such_matrices_is_refused():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", hidden_size=8, num_hidden_layers=1, vocab_size=50))
    with pytest.raises(UsageError, match=r"'mamba' has no MLP down-projection.*backbone\.layers\.N\.mixer\.in_proj"):
        rmu.decoder(model)
    shape = {**SMALL_SHAPE, "num_key_value_heads": 2, "intermediate_size": 12, "num_local_experts": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", vocab_size=50, **shape))
    with pytest.raises(UsageError, match="mixtral has a mixture of experts"):
        rmu.decoder(model)


def test_published_settings_are_those_of_the_released_model():
    method = METHODS.get("rmu")
    told = resolve(method.config, method.preset("wmdp", "zephyr-7b"), owner="rmu")
    assert (told.lr, told.steps, told.batch_size, told.layer, told.layers) == (5e-5, 150, 4, 7, (5, 6, 7))
    assert (told.alpha, told.coefficient, told.coefficient_scale) == ((1200, 1200), (6.5, 6.5), "absolute")
    assert (told.max_length, told.retain_max_length, told.positions) == ((512, 768), 512, "padded")
    (bio, cyber) = (resolve(method.config, method.preset(f"wmdp-{n}", "zephyr-7b"), owner="rmu") for n in ("bio", "cyber"))
    assert (bio.max_length, cyber.max_length, bio.alpha, cyber.coefficient) == ((512,), (768,), (1200,), (6.5,))


def test_memory_is_that_of_three_matrices():
    from transformers import MistralConfig

    shape = ModelShape(memory.meta_model(MistralConfig()), 2, retain_rows=1000, answer_tokens=500)
    held = {h.what: h.bytes for h in rmu.memory_items(shape, rmu.RMUConfig())}
    matrices = 3 * 4096 * 14336
    assert held["weights as they were"] == 2 * matrices
    assert held["gradients"] + held["AdamW moments"] + held["float32 masters"] == 16 * matrices
    # A single 24 GiB card does.
    assert sum(held.values()) + 2 * shape.parameters < 24 * memory.GIB
