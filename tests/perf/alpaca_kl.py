"""How far KL on completions is from the forward passes of its two models alone.

    python -m tests.perf.alpaca_kl --json out.json [--size 10M] [--completions 32] [--repetitions 7]

The floor reads the same batches with both models: forward, and logits at the positions of the completions. Against it stands all
that the evaluator does but loading the base model: tokenising, batching, two log-softmaxes, the sum over the vocabulary. One
thread, CPU time, floor runs before and after each measurement.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evals import alpaca_kl
from harness.core.costs import Costs
from harness.core.evaluator import EvalContext, EvalPlan
from harness.core.method import UnlearningContext
from harness.core.problem import Problem
from harness.core.text import Template
from harness.data.rows import batches, pad_id
from harness.models.recipes import Vocabulary
from harness.numerics import likelihood
from harness.storage.cache import Cache
from tests.perf._machine import gemm_rate, machine, table, write
from tests.perf.curvature import SIZES, build
from tests.perf.first_order import seconds

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REACH = 1.15


@dataclass(frozen=True)
class Ready:
    """A source whose model is here already."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def identity(self) -> Mapping[str, Any]:
        """Nothing is kept."""
        return {"kind": "ready"}

    def load(self, cache: Cache, device: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model."""
        return self.model, self.tokenizer

    def seconds(self, cache: Cache) -> float | None:
        """Unknown."""
        return None


def measure(size: str, completions: int, repetitions: int, cache: Cache) -> tuple[list[float], list[float], int]:
    """Ratios to the floor around each repetition, the repetitions' seconds, and how many tokens are read."""
    shape = replace(SIZES[size], length=512)
    words = [f"w{i}" for i in range(shape.vocabulary - 10)]
    tokenizer = Vocabulary("words", tuple(words)).build()
    rng = np.random.default_rng(0)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choice(words, int(rng.integers(low, high))))

    base, model = build(shape), build(shape)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.01)
    problem = Problem(
        "perf", 1, size, (), {}, Template("perf", answer_tag=" "), {"base": Ready(base, tokenizer)}, generation_budget=256
    )
    here = EvalContext(UnlearningContext(model, tokenizer, problem, 0, cache, Costs(), "perf"), EvalPlan(problem), ())
    texts = [(text(10, 60), text(20, 256)) for _ in range(completions)]
    encoded = alpaca_kl._encoded(texts, here.plan, tokenizer)
    ready = list(batches(encoded, pad_id(tokenizer), likelihood.TOKENS_PER_BATCH, "cpu"))

    def floor() -> None:
        with torch.no_grad():
            for batch in ready:
                for each in (base, model):
                    likelihood.answer_logits(each, batch)

    def whole() -> None:
        alpaca_kl._divergences(here, texts)

    floor(), whole()
    before, ratios, took = seconds(floor), [], []
    for _ in range(repetitions):
        took.append(seconds(whole))
        after = seconds(floor)
        ratios.append(2 * took[-1] / (before + after))
        before = after
    return ratios, took, sum(len(e.input_ids) for e in encoded)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="KL on completions as a ratio to the forward passes of its two models.")
    parser.add_argument("--json", type=Path, help="where the measurement is written")
    parser.add_argument("--size", default="10M", choices=sorted(SIZES), help="of the random Llamas")
    parser.add_argument("--completions", type=int, default=32, help="how many")
    parser.add_argument("--repetitions", type=int, default=7, help="of the measurement")
    options = parser.parse_args()

    torch.set_num_threads(1)
    before = gemm_rate(1)
    with tempfile.TemporaryDirectory() as folder:
        ratios, took, tokens = measure(options.size, options.completions, options.repetitions, Cache(Path(folder)))
    median = statistics.median(ratios)
    print(f"one thread, {options.completions} completions, {tokens} tokens, 1024³ product {before:.0f} GFLOP/s before, "
          f"{gemm_rate(1):.0f} after")  # fmt: skip
    row = [options.size, f"{median:.2f}", f"{min(ratios):.2f}–{max(ratios):.2f}", f"{statistics.median(took):.2f}"]
    print(table(["model", "ratio to floor", "min–max", "seconds", "reach", "met"],
                [[*row, f"≤ {REACH}", "yes" if median <= REACH else "no"]]))  # fmt: skip
    write(options.json, {"machine": machine(), "reach": REACH, "size": options.size, "ratios": ratios, "seconds": took})


if __name__ == "__main__":
    main()
