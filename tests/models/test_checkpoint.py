"""Published weights in place of the model: which, and which not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from harness.core.benchmark import BENCHMARKS
from harness.core.config import resolve
from harness.core.errors import UsageError
from harness.core.method import METHODS, UnlearningContext
from harness.core.options import Options
from harness.core.problem import Problem
from harness.models.recipes import Vocabulary
from harness.models.sources import CheckpointSource, save_checkpoint, weights_fingerprint
from harness.running.plan import plan
from methods import checkpoint
from tests.conftest import WORDS, ContextMaker, Nano, NanoBenchmark


def task_with(problem: Problem, **sources: CheckpointSource) -> Problem:
    ours = {name: source for name, source in problem.sources.items() if not name.startswith("checkpoint-")}
    return replace(problem, sources={**ours, **{f"checkpoint-{name}": source for name, source in sources.items()}})


def run(context: UnlearningContext, source: str | None = None) -> None:
    (progress,) = checkpoint.unlearn(context, resolve(checkpoint.CheckpointConfig, {"source": source}, owner="checkpoint"))
    assert progress.measure_here


@pytest.mark.parametrize(("source", "seed"), [(None, 4), ("checkpoint-rmu", 4), ("checkpoint-elm", 5)])
def test_the_named_weights_or_the_first_take_the_models_place(
    source: str | None, seed: int, make_context: ContextMaker, nano_problem: Problem, nano: Nano
):
    context = make_context(problem=task_with(nano_problem, rmu=nano.source(4), elm=nano.source(5)))
    run(context, source)
    assert weights_fingerprint(context.model) == weights_fingerprint(nano.model(seed))


def test_bin_weights_are_read_and_what_could_run_code_is_not(
    make_context: ContextMaker, nano_problem: Problem, nano: Nano, tmp_path: Path
):
    save_checkpoint(nano.model(6), nano.tokenizer, tmp_path, {})
    (tmp_path / "model.safetensors").unlink()
    torch.save(nano.model(6).state_dict(), tmp_path / "pytorch_model.bin")
    context = make_context(problem=task_with(nano_problem, rmu=CheckpointSource(str(tmp_path))))
    run(context)
    assert weights_fingerprint(context.model) == weights_fingerprint(nano.model(6))
    torch.save({**nano.model(6).state_dict(), "more": Path("x")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match="could run code"):
        run(context)


def test_the_models_dtype_stays(make_context: ContextMaker, nano_problem: Problem, nano: Nano):
    context = make_context(problem=task_with(nano_problem, rmu=nano.source(4)))
    context.model.bfloat16()
    run(context)
    assert {p.dtype for p in context.model.parameters()} == {torch.bfloat16}
    assert weights_fingerprint(context.model) == weights_fingerprint(nano.model(4).bfloat16())


def test_a_checkpoint_of_another_kind_is_refused(make_context: ContextMaker, nano_problem: Problem, nano: Nano, tmp_path: Path):
    config = nano.model().config
    size = len(nano.tokenizer)

    def source(name: str, model: torch.nn.Module, words: Vocabulary = WORDS) -> CheckpointSource:
        save_checkpoint(model, words.build(), tmp_path / name, {})
        return CheckpointSource(str(tmp_path / name))

    def llama(**changes: int) -> LlamaForCausalLM:
        return LlamaForCausalLM(type(config)(**{**config.to_dict(), **changes}))

    gpt2 = AutoConfig.for_model("gpt2", vocab_size=size, n_embd=8, n_layer=1, n_head=2)
    swapped = Vocabulary("words", (*WORDS.texts[1::-1], *WORDS.texts[2:]))
    refusals = {
        "gpt2": (source("gpt2", AutoModelForCausalLM.from_config(gpt2)), "its architecture is gpt2, the model's llama"),
        "rows": (source("rows", llama(vocab_size=size + 3)), f"its vocabulary has {size + 3} tokens, the model's {size}"),
        "deep": (source("deep", llama(num_hidden_layers=3)), r"its model\.layers\.2\.\S+ is 16, the model's missing"),
        "wide": (source("wide", llama(intermediate_size=32)), r"\.mlp\.down_proj\.weight is 16×32, the model's 16×24"),
        "words": (source("words", nano.model(), swapped), r"its token 3 is '\S+', the model's '\S+'"),
    }
    for name, (there, says) in refusals.items():
        context = make_context(problem=task_with(nano_problem, **{name: there}))
        with pytest.raises(UsageError, match=rf"^source=checkpoint-{name} cannot take the place of mini: [^\n]*{says}\.$"):
            run(context)
        assert weights_fingerprint(context.model) == weights_fingerprint(nano.model())


def test_a_checkpoint_that_is_not_there_gets_the_nearest_name(make_context: ContextMaker, nano_problem: Problem, nano: Nano):
    context = make_context(problem=task_with(nano_problem, rmu=nano.source(4)))
    with pytest.raises(UsageError, match="Did you mean 'checkpoint-rmu'"):
        run(context, "checkpoint-rnu")
    with pytest.raises(UsageError, match="no published checkpoint called 'base'"):
        run(context, "base")


def test_a_benchmark_without_published_weights_is_refused(
    nano_problem: Problem, make_context: ContextMaker, monkeypatch: pytest.MonkeyPatch, nano: Nano
):
    monkeypatch.setitem(BENCHMARKS._registered, "nano", NanoBenchmark(task_with(nano_problem, rmu=nano.source(4))))
    assert plan("nano", "mini", "checkpoint", {}, Options()).method is METHODS.get("checkpoint")
    bare = task_with(nano_problem)
    monkeypatch.setitem(BENCHMARKS._registered, "nano", NanoBenchmark(bare))
    with pytest.raises(UsageError, match=r"checkpoint cannot run on nano with mini: [^.]*names none for this model"):
        plan("nano", "mini", "checkpoint", {}, Options())
    with pytest.raises(UsageError, match="names none for this model"):
        run(make_context(problem=bare))
