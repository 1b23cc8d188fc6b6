"""How far one epoch of a first-order method is from its forward and backward passes alone.

    python -m tests.perf.first_order --json out.json [--methods ga,npo] [--repetitions 5]

The floor runs the same model over the same micro-batches: forward, logits where the method needs them (answer positions; every
padded position for KL-min), backward from a ready-made logit gradient into all weights, and the forward passes of the model
before unlearning that the method cannot do without. It draws no batches, computes no loss, clips nothing and takes no optimiser
step. One thread, CPU time, floor runs before and after each epoch, on a 10 M-parameter Llama.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.core.config import field_names, resolve
from harness.core.costs import Costs
from harness.core.method import METHODS, UnlearningContext
from harness.core.problem import Problem, Stage
from harness.core.text import Example, Template
from harness.data.rows import pad_id
from harness.models.recipes import Vocabulary
from harness.numerics.likelihood import answer_logits, answer_nll
from harness.storage.cache import Cache
from methods.first_order import loop
from methods.first_order.recipe import Schedule
from methods.first_order.refusals import Refusals
from tests.perf._machine import gemm_rate, machine, table, write
from tests.perf.curvature import SIZES, build

REACH = 1.15
COMPARED = ("ga", "grad_diff", "kl_min", "npo", "simnpo", "dpo", "idk", "soul", "loku")
SETTINGS: dict[str, dict[str, Any]] = {"kl_min": {"pad_length": 128}, "loku": {"fila": False}}
"""KL-min's padding is shorter than the published 500 so that the measurement ends; LoKU's importances are a pass of their own."""
EXAMPLES = 32


def context(cache: Cache) -> UnlearningContext:
    """A random 10 M-parameter Llama and twice 32 texts of about ToFU's length: 20 to 30 tokens asked, 30 to 50 answered."""
    size = SIZES["10M"]
    words = [f"w{i}" for i in range(size.vocabulary - 10)]
    tokenizer = Vocabulary("words", tuple(words)).build()
    rng = np.random.default_rng(0)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choice(words, int(rng.integers(low, high))))

    def examples() -> list[Example]:
        return [Example(text(20, 30), text(30, 50), " ") for _ in range(EXAMPLES)]

    model = build(replace(size, length=512)).requires_grad_(True)
    problem = Problem(
        bench="perf",
        bench_version=1,
        model="10M",
        stages=[Stage("forget", examples(), examples())],
        questions={},
        template=Template("perf"),
        sources={},
        refusals=[text(6, 12) for _ in range(20)],
    )
    return UnlearningContext(model, tokenizer, problem, 0, cache, Costs(), "perf")


class Floor:
    """The passes of one epoch of a method, and nothing else.

    Args:
        name: the method.
        here: what it is given.
        config: its settings.
    """

    def __init__(self, name: str, here: UnlearningContext, config: Any) -> None:
        self.name, self.model, self.config = name, here.model, config
        self.pad = pad_id(here.tokenizer)
        stage = here.stages[0]
        plan = Schedule.of(config, len(stage.forget))
        self.data = loop._data(here, config, stage, plan)
        refusals = Refusals(here, stage)
        terms = loop.Losses(
            forget=lambda part: torch.zeros(()),
            retain=None if name == "ga" else lambda part: torch.zeros(()),
            forget_texts=refusals if name == "idk" else None,
        )
        self.steps = list(loop._steps(here, config, self.data, terms, None))
        self.refused = [refusals(step, row) for step, rows in enumerate(self.data.steps, 1) for row in rows]
        self.signal = torch.randn(8192, here.model.config.vocab_size) / here.model.config.vocab_size**0.5

    def __call__(self) -> None:
        """One epoch's passes."""
        if self.name in ("npo", "dpo"):
            answer_nll(self.model, self.data.forget, self.pad)
        if self.name == "dpo":
            answer_nll(self.model, self.refused, self.pad)
        for step in self.steps:
            for side, part in step:
                self._both(self._logits(side, part))
        if self.name == "dpo":
            from harness.numerics.training import micro_batches

            for batch, _ in micro_batches(self.refused, list(range(len(self.refused))), self.pad, "cpu"):
                self._both(answer_logits(self.model, batch))
        for parameter in self.model.parameters():
            parameter.grad = None

    def _logits(self, side: str, part: loop.Part) -> Tensor:
        if self.name == "kl_min" and side == "retain":
            from methods.first_order.losses import padded

            batch = padded(part.batch, self.config.pad_length, self.pad)
            with torch.no_grad():
                self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
            return self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits.flatten(
                0, 1
            )
        return answer_logits(self.model, part.batch)

    def _both(self, logits: Tensor) -> None:
        logits.backward(self.signal[: len(logits)])


def seconds(run: Callable[[], object]) -> float:
    """CPU time of one run."""
    started = time.process_time()
    run()
    return time.process_time() - started


def measure(name: str, repetitions: int, cache: Cache) -> tuple[list[float], list[float]]:
    """Ratios of an epoch to the floor around it, and the epochs' seconds."""
    here = context(cache)
    fields = field_names(METHODS.get(name).config)
    chosen = {"epochs": 1, "lr": 1e-6, "batch_size": 16, **SETTINGS.get(name, {})}
    config = resolve(METHODS.get(name).config, {k: v for k, v in chosen.items() if k in fields}, owner=name)
    floor = Floor(name, here, config)

    def epoch() -> None:
        for _ in METHODS.get(name).unlearn(here, config):
            pass

    floor(), epoch()
    before, ratios, took = seconds(floor), [], []
    for _ in range(repetitions):
        took.append(seconds(epoch))
        after = seconds(floor)
        ratios.append(2 * took[-1] / (before + after))
        before = after
    return ratios, took


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="One epoch of each first-order method as a ratio to its passes alone.")
    parser.add_argument("--json", type=Path, help="where the measurement is written")
    parser.add_argument("--methods", default=",".join(m for m in COMPARED if m in METHODS.names()), help="parted by commas")
    parser.add_argument("--repetitions", type=int, default=5, help="of every method")
    options = parser.parse_args()

    torch.set_num_threads(1)
    before = gemm_rate(1)
    rows: list[Sequence[str]] = []
    found: dict[str, Any] = {}
    for name in options.methods.split(","):
        with tempfile.TemporaryDirectory() as folder:
            ratios, took = measure(name, options.repetitions, Cache(Path(folder)))
        found[name] = {"ratios": ratios, "seconds": took}
        median = statistics.median(ratios)
        spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
        rows.append(
            [name, f"{median:.2f}", spread, f"{statistics.median(took):.2f}", f"≤ {REACH}", "yes" if median <= REACH else "no"]
        )
    print(f"one thread, {options.repetitions} repetitions, 1024³ product {before:.0f} GFLOP/s before, {gemm_rate(1):.0f} after")
    print(table(["method", "ratio to floor", "min–max", "seconds", "reach", "met"], rows))
    write(options.json, {"machine": machine(), "reach": REACH, "methods": found})


if __name__ == "__main__":
    main()
