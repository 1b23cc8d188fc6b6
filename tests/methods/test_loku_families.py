"""LoKU on the families that its authors take, GPT-Neo, Phi and Llama, with adapters of rank 4 to 32: tiny checkpoints made here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.core.benchmark import BENCHMARKS
from harness.core.config import resolve
from harness.core.costs import Costs
from harness.core.method import UnlearningContext
from harness.core.options import Options
from harness.core.problem import Problem
from harness.data.rows import encode, pad_id
from harness.models.sources import save_checkpoint
from harness.storage.cache import Cache
from methods import loku
from methods.first_order.adapters import Adapters, linear_maps
from methods.first_order.loop import Data
from methods.loku import importance
from methods.loku.config import LoKUConfig
from tests.conftest import WORDS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

USUAL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {**USUAL, "num_key_value_heads": 2},
    "phi": USUAL,
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
}
ADAPTED = {
    "llama": [
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    ],
    "phi": [*(f"self_attn.{name}_proj" for name in "qkv"), "self_attn.dense", "mlp.fc1", "mlp.fc2"],
    "gpt_neo": [*(f"attn.attention.{name}_proj" for name in ("q", "k", "v", "out")), "mlp.c_fc", "mlp.c_proj"],
}
"""Linear maps of a decoder layer: LoKU's "all" of Llama and of Phi, and QKVO with FFN of GPT-Neo."""
RANKS = (4, 8, 16, 32)


@pytest.fixture(scope="module")
def models() -> Callable[[str], PreTrainedModel]:
    """Makes a random model of a family over the embedded world's words, the same one every time."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    def make(family: str) -> PreTrainedModel:
        end = WORDS.build().eos_token_id
        shape = {"vocab_size": len(WORDS.build()), "max_position_embeddings": 256, "bos_token_id": end, "eos_token_id": end}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape, **SHAPES[family])).eval()

    return make


@pytest.fixture
def contexts(
    models: Callable[[str], PreTrainedModel], nano_problem: Problem, tmp_path: Path
) -> Callable[[str, str], UnlearningContext]:
    """Makes the context of a family on ToFU's questions, or on texts out of files that TDEC reads."""

    def tdec(family: str) -> Problem:
        words = [word for word in WORDS.texts if word.isalpha()]
        data = tmp_path / "data"
        (data / "tdec").mkdir(parents=True, exist_ok=True)
        rows = [" ".join(words[(7 * i + j) % len(words)] for j in range(30)) for i in range(4)]
        lines = [f"{i},github,{row}" for i, row in enumerate(rows)]
        (data / "tdec/lm_extraction_4_0.csv").write_text("\n".join(["doc_id,corpus,text", *lines, ""]), encoding="utf-8")
        corpus = data / "Salesforce/wikitext/wikitext-2-raw-v1/train.jsonl"
        corpus.parent.mkdir(parents=True, exist_ok=True)
        corpus.write_text(f'{{"text": " {" ".join(words[:90])} "}}\n' * 200, encoding="utf-8")
        folder = tmp_path / family
        save_checkpoint(models(family), WORDS.build(), folder, {})
        return BENCHMARKS.get("tdec-4").problem(str(folder), Options(data_dir=data, limit=4))

    def make(family: str, bench: str) -> UnlearningContext:
        problem = tdec(family) if bench == "tdec" else nano_problem
        return UnlearningContext(models(family), WORDS.build(), problem, 0, Cache(tmp_path / "cache"), Costs(), family)

    return make


def config_of(**changes: Any) -> LoKUConfig:
    usual = {"epochs": 2, "batch_size": 4, "lr": 1e-2, "warmup_epochs": 0, "max_length": 40}
    return resolve(LoKUConfig, {**usual, **changes}, owner="loku")


def data_of(context: UnlearningContext) -> Data:
    (stage,) = context.stages
    tokenizer = context.tokenizer
    return Data(encode(stage.forget, tokenizer), encode(stage.retain, tokenizer), pad_id(tokenizer), stage, [])


def placed(name: str) -> tuple[int, str]:
    """Number of the layer and what it calls the map, out of a module's name."""
    parts = name.split(".")
    number = next(i for i, part in enumerate(parts) if part.isdigit())
    return int(parts[number]), ".".join(parts[number + 1 :])


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("family", SHAPES)
def test_adapters_of_that_rank_sit_on_every_map_of_every_layer(family: str, rank: int, contexts: Any):
    model = contexts(family, "tofu").model
    adapters = Adapters(model, linear_maps(model), rank, importance.SCALING * rank, seed=0)
    adapters.make()
    shapes: dict[tuple[int, str], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            module, _, factor = name.partition(".lora_")
            shapes.setdefault(placed(module), {})[factor[0]] = tuple(parameter.shape)
    assert sorted(shapes) == sorted((layer, name) for layer in (0, 1) for name in ADAPTED[family])
    adapters.take_off()
    for linear in linear_maps(model):
        out, inputs = linear.matrix().shape
        assert shapes[placed(linear.name)] == {"A": (rank, inputs), "B": (out, rank)}


@pytest.mark.parametrize("family", SHAPES)
def test_importances_and_starts_of_every_layer_are_the_formulas(family: str, contexts: Any):
    """F, w, A, B of every map by hand in float64, from gradients that one backward pass of transformers' own loss gives."""
    import torch

    from harness.data.rows import collate
    from harness.numerics.training import shuffled_batches
    from methods.first_order.partners import Partners

    context, config = contexts(family, "tofu"), config_of(rank=4, fisher_batch=12)
    context.model.double()
    maps, data = linear_maps(context.model), data_of(context)
    sides = importance.fisher_information(context, maps, data, config)
    rows = importance.row_weights(maps, *sides)

    (order,) = shuffled_batches(12, 12, 1, context.seed)  # one mini-batch has all of them, so that F is the gradient's square
    partner = Partners(24, context.seed, False)
    by_hand: list[dict[str, Tensor]] = []
    for encoded, chosen in ((data.forget, order), (data.retain, [partner(row) for row in order])):
        batch = collate([encoded[row] for row in chosen], range(12), data.pad)
        context.model.requires_grad_(True).zero_grad()
        context.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss.backward()
        by_hand.append({linear.name: linear.module.weight.grad.double() ** 2 for linear in maps})
    for linear, f, r, w in zip(maps, *sides, rows, strict=True):
        forget, retain = (side[linear.name] for side in by_hand)
        torch.testing.assert_close(f.double(), forget, rtol=1e-4, atol=1e-6 * float(forget.max()))
        torch.testing.assert_close(r.double(), retain, rtol=1e-4, atol=1e-6 * float(retain.max()))
        weights = (forget / (1e-5 + retain)).sum(dim=1).sqrt()
        torch.testing.assert_close(w.double(), weights, rtol=1e-3, atol=1e-6)
        down, up = importance.fila(linear.matrix().float(), w, 4, seed=0)
        left, values, right = torch.linalg.svd(weights[:, None] * linear.matrix().double(), full_matrices=False)
        best = (left[:, :4] * values[:4]) @ right[:4] / (weights + 1e-5)[:, None]
        torch.testing.assert_close((2 * up @ down).double(), best, rtol=1e-2, atol=1e-3 * float(best.abs().max()))


def taught(context: UnlearningContext) -> UnlearningContext:
    """The same once its model knows what is to be forgotten: a random one has nothing to forget."""
    import torch

    from harness.data.rows import collate

    data, model = data_of(context), context.model
    batch = collate(data.forget, range(len(data.forget)), data.pad)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(25):
        optimiser.zero_grad()
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss.backward()
        optimiser.step()
    optimiser.zero_grad()
    return context


def nats(context: UnlearningContext) -> float:
    """Per token of what is to be forgotten."""
    from harness.numerics.likelihood import answer_nll

    data = data_of(context)
    summed, tokens = answer_nll(context.model, data.forget, data.pad)
    return float(summed.sum() / tokens.sum())


@pytest.mark.parametrize("changes", [{}, {"importance": "vila"}, {"fila": False, "loss": "grad_diff"}], ids=str)
@pytest.mark.parametrize("bench", ["tdec", "tofu"])
@pytest.mark.parametrize("family", SHAPES)
def test_every_rank_forgets_on_both_benchmarks(family: str, bench: str, changes: dict[str, Any], contexts: Any):
    """What was known is less likely, and what stays behind has the plain model's weights."""
    import torch

    for rank in (4, 32) if changes else RANKS:
        context = taught(contexts(family, bench))
        names, before = [*context.model.state_dict()], nats(context)
        terms = [p.logged["forget_term"] for p in loku.loku(context, config_of(rank=rank, epochs=4, **changes))]
        assert terms[-1] < terms[0], rank
        assert nats(context) > before, rank
        assert [*context.model.state_dict()] == names
        assert all(bool(torch.isfinite(weight).all()) for weight in context.model.parameters())
