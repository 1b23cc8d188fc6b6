"""How far a step of RMU and of ELM is from its forward and backward passes alone.

    python -m tests.perf.steering --json out.json [--methods rmu,elm] [--repetitions 5] [--model random|mini]

The floor runs the same model over the same batches. RMU: forward up to the steered layer for the forget batch, for the retain
batch and for the retain batch with the old weights, backward through the trained layers. ELM: one forward pass of the plain model
over forget texts in their three contexts and one over retain texts, then forward and backward of the adapted model over forget
texts, retain texts and continuations. It tokenises nothing, computes no loss and no target and takes no optimiser step.
Sampling ELM's continuations and measuring a norm for RMU are left out. One thread, CPU time, floor runs before and after each measurement.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.core.benchmark import BENCHMARKS
from harness.core.config import resolve
from harness.core.costs import Costs
from harness.core.method import METHODS, UnlearningContext
from harness.core.options import Options
from harness.data.rows import Batch, collate, pad_id
from harness.numerics.likelihood import answer_labels, answer_logits
from harness.storage.cache import Cache
from methods import rmu
from methods.elm.config import ELMConfig
from methods.elm.continuations import continuations
from methods.elm.texts import Concept, schedule
from methods.first_order.adapters import Adapters, linear_maps, without_adapters
from tests.perf._machine import gemm_rate, machine, table, write
from tests.perf.first_order import context as random_context
from tests.perf.first_order import seconds

REACH = 1.15
STEPS = 12
SETTINGS: dict[str, dict[str, Any]] = {
    "rmu": {"layer": 1, "layers": [0, 1], "coefficient_scale": "absolute", "coefficient": [40.0], "steps": STEPS},
    "elm": {"layers": [0, 1], "rank": 16, "rounds": 4 * STEPS, "contexts": "texts", "new_tokens": [8, 16]},
}


def here(model: str, cache: Cache) -> UnlearningContext:
    """A random Llama of 10 M parameters on random texts, or the embedded ToFU model on its own."""
    if model == "random":
        return random_context(cache)
    problem = BENCHMARKS.get("tofu10").problem("mini", Options())
    loaded, tokenizer = problem.sources["base"].load(Cache(), "cpu", "float32")
    return UnlearningContext(loaded, tokenizer, problem, 0, cache, Costs(), "perf")


def rmu_floor(context: UnlearningContext, config: rmu.RMUConfig) -> Callable[[], None]:
    """The passes of `STEPS` steps of RMU."""
    there = rmu.decoder(context.model)
    layer, weights = there.layers[config.layer], there.trained(config)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    topic = rmu._Topic(context, context.stages[0], 0, layer, config)
    batches = [(topic.forget(k), topic.retain(k)) for k in range(STEPS)]

    def passes() -> None:
        with rmu._training_only(context.model, weights):
            for forget, retain in batches:
                _both(rmu.hidden_states(context.model, layer, forget))
                with torch.no_grad():
                    rmu.hidden_states(context.model, layer, retain, before)
                _both(rmu.hidden_states(context.model, layer, retain))
        for weight in weights.values():
            weight.grad = None

    return passes


def elm_floor(context: UnlearningContext, config: ELMConfig) -> Callable[[], None]:
    """The passes of `STEPS` steps of ELM."""
    concept = Concept(context, context.stages[0], 0, config)
    entries = schedule(config, 1)
    followed = continuations(context, [concept], entries, config)
    pad = pad_id(context.tokenizer)
    steps: list[tuple[Batch, ...]] = []
    for start in range(0, len(entries), config.batch_size):
        step = entries[start : start + config.batch_size]
        drawn = list(zip(*(concept.erased(entry) for entry in step), strict=True))
        texts = [[t for side in drawn for t in side], drawn[0], [concept.retained(entry) for entry in step]]
        texts.append([followed[0, concept.row(entry)] for entry in step])
        steps.append(tuple(collate(group, range(len(group)), pad) for group in texts))

    def passes() -> None:
        maps = linear_maps(context.model, config.target_modules, config.layers)
        adapters = Adapters(context.model, maps, config.rank, config.alpha, 0, config.dropout)
        adapters.make()
        context.model.train()
        for contexts, forget, retain, continued in steps:
            with without_adapters(context.model):
                answer_logits(context.model, contexts)
                answer_logits(context.model, retain)
            for batch in (forget, retain, continued):
                _both(answer_logits(context.model, batch))
                answer_labels(batch)
        context.model.eval()
        adapters.take_off()

    return passes


def _both(output: Tensor) -> None:
    output.backward(torch.ones_like(output) / output.numel())


def measure(name: str, model: str, repetitions: int, cache: Cache) -> tuple[list[float], list[float]]:
    """Ratios of `STEPS` steps to the floor around them, and their seconds."""
    context = here(model, cache)
    config = resolve(METHODS.get(name).config, SETTINGS[name], {"lr": 1e-6, "points": 1}, owner=name)
    floor = {"rmu": rmu_floor, "elm": elm_floor}[name](context, config)

    def steps() -> None:
        for _ in METHODS.get(name).unlearn(context, config):
            pass

    floor(), steps(), steps()  # the second one finds ELM's continuations in the cache only if the weights are the same
    ratios, took = [], []
    weights = {key: value.clone() for key, value in context.model.state_dict().items()}
    for _ in range(repetitions):
        context.model.load_state_dict(weights)
        steps()  # samples, if it must
        context.model.load_state_dict(weights)
        before = seconds(floor)
        took.append(seconds(steps))
        ratios.append(2 * took[-1] / (before + seconds(floor)))
    return ratios, took


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Steps of RMU and ELM as a ratio to their passes alone.")
    parser.add_argument("--json", type=Path, help="where the measurement is written")
    parser.add_argument("--methods", default="rmu,elm", help="parted by commas")
    parser.add_argument("--model", default="random", choices=("random", "mini"))
    parser.add_argument("--repetitions", type=int, default=5, help="of every method")
    options = parser.parse_args()

    torch.set_num_threads(1)
    before = gemm_rate(1)
    rows: list[Sequence[str]] = []
    found: dict[str, Any] = {}
    for name in options.methods.split(","):
        with tempfile.TemporaryDirectory() as folder:
            ratios, took = measure(name, options.model, options.repetitions, Cache(Path(folder)))
        found[name] = {"ratios": ratios, "seconds_per_step": [t / STEPS for t in took]}
        median = statistics.median(ratios)
        spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
        each = f"{1000 * statistics.median(took) / STEPS:.1f}"
        rows.append([name, f"{median:.2f}", spread, each, f"≤ {REACH}", "yes" if median <= REACH else "no"])
    print(f"one thread, {options.repetitions} repetitions, 1024³ product {before:.0f} GFLOP/s before, {gemm_rate(1):.0f} after")
    print(table(["method", "ratio to floor", "min–max", "ms a step", "reach", "met"], rows))
    write(options.json, {"machine": machine(), "reach": REACH, "model": options.model, "methods": found})


if __name__ == "__main__":
    main()
