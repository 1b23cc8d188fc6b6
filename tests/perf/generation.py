"""How quickly the two back ends write answers on a CPU, and whether they write the same ones.

    python -m tests.perf.generation --json out.json [--prompts 32] [--tokens 64] [--repetitions 5] [--threads 2]

The same prompts of 8 to 48 words are answered greedily by `HFGenerator` and `VLLMGenerator` in turn, in one run, in float32. The
model is a random Llama whose answers all have the full length: special tokens have the logit 0, and some other's is larger. vLLM
is started once and then asked again and again; its start stands apart. Seconds are wall-clock time, the ratio is taken within a
repetition. By itself vLLM leaves one core of a CPU free and binds its threads to the others; here both back ends get the same
number of threads, bound to nothing. An answer that differs is a tie where the two tokens at the first difference are as likely
(1e-4 in log-probability); no other difference is expected.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from transformers import LlamaForCausalLM

from harness.core.evaluator import GenerationRequest, Sampling
from harness.models.recipes import Vocabulary
from harness.numerics import generation
from harness.numerics.generation import Generator, HFGenerator, VLLMGenerator
from tests.evals.test_vllm import TIE, gap_at_first_difference
from tests.perf._llama import random_llama
from tests.perf._machine import gemm_rate, machine, table, write

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORDS = [f"w{i}" for i in range(4000)]


def build(tokenizer: PreTrainedTokenizerBase, positions: int) -> LlamaForCausalLM:
    """Eleven million random parameters, heads of 64; large initial weights, so that the answers differ from prompt to prompt."""
    shape = {"hidden_size": 320, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 5}
    model = random_llama(tokenizer, spread=0.1, max_position_embeddings=positions, **shape)
    model.lm_head.weight[tokenizer.all_special_ids] = 0
    return model


def measure(prompts: int, tokens: int, repetitions: int) -> dict[str, Any]:
    """Seconds of every repetition by back end, seconds of vLLM's start, gaps of the answers that differ."""
    tokenizer = Vocabulary("words", tuple(WORDS)).build()
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, int(rng.integers(8, 49)))) for _ in range(prompts)]
    requests = [GenerationRequest((text,), Sampling(tokens)) for text in texts]
    model = build(tokenizer, 48 + tokens)

    def timed(generator: Generator) -> tuple[float, list[str]]:
        started = time.perf_counter()
        answers = generator.generate(model, tokenizer, requests)
        return time.perf_counter() - started, answers

    seconds: dict[str, list[float]] = {"hf": [], "vllm": []}
    said: dict[str, list[str]] = {}
    started = time.perf_counter()
    with generation.served(model, "cpu", 48 + tokens) as running:
        start = time.perf_counter() - started
        with mock.patch.object(generation, "served", return_value=nullcontext(running)):
            for repetition in range(repetitions + 1):  # the first one warms up
                for generator in (HFGenerator(), VLLMGenerator("cpu")):
                    took, answers = timed(generator)
                    if repetition:
                        seconds[generator.name].append(took)
                    assert said.setdefault(generator.name, answers) == answers, "the same in every repetition"
    assert {len(tokenizer(text)["input_ids"]) for answers in said.values() for text in answers} == {tokens}
    gaps = [
        gap_at_first_difference(model, tokenizer, prompt, one, other)
        for prompt, one, other in zip(texts, said["hf"], said["vllm"], strict=True)
        if one != other
    ]
    return {"seconds": seconds, "start": start, "gaps": gaps, "different_answers": len(set(said["hf"]))}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Tokens per second of Hugging Face and vLLM on a CPU.")
    parser.add_argument("--json", type=Path, help="where the measurement is written")
    parser.add_argument("--prompts", type=int, default=32, help="how many")
    parser.add_argument("--tokens", type=int, default=64, help="of every answer")
    parser.add_argument("--repetitions", type=int, default=5, help="of both back ends")
    parser.add_argument("--threads", type=int, default=2, help="of each back end")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # vLLM's process reads them
    before = gemm_rate(options.threads)
    found = measure(options.prompts, options.tokens, options.repetitions)
    after = gemm_rate(options.threads)

    written = options.prompts * options.tokens
    rates = {name: [written / s for s in took] for name, took in found["seconds"].items()}
    ratios = [vllm / hf for hf, vllm in zip(rates["hf"], rates["vllm"], strict=True)]
    rows: list[Sequence[str]] = [_row(name, each, "{:.0f}") for name, each in rates.items()]
    print(f"{options.threads} threads, {options.prompts} prompts, {options.tokens} tokens each, {options.repetitions} repetitions, "
          f"1024³ product {before:.0f} GFLOP/s before, {after:.0f} after")  # fmt: skip
    print(table(["tokens per second", "median", "min–max"], [*rows, _row("vllm / hf", ratios, "{:.2f}")]))
    gaps = found["gaps"]
    print(f"vLLM's start: {found['start']:.1f} s")
    print(f"answers: {options.prompts - len(gaps)} of {options.prompts} identical, {sum(g <= TIE for g in gaps)} ties, "
          f"{sum(g > TIE for g in gaps)} otherwise different; gaps: {', '.join(f'{g:.1e}' for g in gaps) or 'none'}")  # fmt: skip
    asked = {name: getattr(options, name) for name in ("threads", "prompts", "tokens")}
    write(options.json, {"machine": machine(), **asked, **found, "tokens_per_second": rates, "ratios": ratios})


def _row(name: str, values: Sequence[float], form: str) -> list[str]:
    return [name, form.format(statistics.median(values)), f"{form.format(min(values))}–{form.format(max(values))}"]


if __name__ == "__main__":
    main()
