"""What a step of K-FADE on a 7B costs on a GPU, part by part, against the floor that its passes cannot go under.

    python -m tests.perf.gpu [--json out.json] [--sequences 64]         # a GPU of 80 GB; no network
    python -m tests.perf.gpu --device cpu --size tiny                   # a trial of the script itself

The model has Zephyr's shape and random weights in bfloat16; sequences of 512 tokens, all but the first labelled; layers 3 to 6. The floor is
a forward and a backward pass without weight gradients, whose graph begins at the first of those layers: the same hooks with nothing in
them. A pass's batches take a quarter of the memory that is left, up to 16,384 tokens. Every pass is run once to warm up and then timed between floors, in one process; "cast first" is the same pass with its low-precision
inputs cast to float32 and multiplied in full, as it was before products took them as they are. Errors are relative, in the Frobenius norm.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from harness.data.rows import Encoded
from harness.models.sources import weights_fingerprint
from methods.curvature import products
from methods.curvature.factors import Sums, covariance_sums
from methods.curvature.gradients import gradient_matrices
from methods.curvature.layers import Layer, mlp_layers, sizes
from methods.curvature.passes import TOKENS_PER_BATCH, backpropagate, batches_of
from methods.curvature.portions import even_portions, portions, tokens_at_once
from methods.curvature.signals import SampledLabels, true_labels
from methods.curvature.solve import Solver
from methods.curvature.spectrum import eigenbases, eigenvectors, square_sums
from tests.perf._machine import machine, table, write

GIB = 2**30


@dataclass(frozen=True)
class Size:
    """A model, its data and the layers that are targeted."""

    shape: dict[str, int]
    """Of the configuration."""
    length: int
    """Tokens of a sequence."""
    blocks: tuple[int, ...]
    """Decoder layers."""


SIZES = {
    "7B": Size(
        {
            **{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
            **{"num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 512},
        },
        length=512,
        blocks=(3, 4, 5, 6),
    ),
    "tiny": Size(
        {
            **{"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4},
            **{"num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 64},
        },
        length=64,
        blocks=(1, 2),
    ),
}


class Clock:
    """Seconds of what is done on a device, and how much of its memory it takes at most."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.peak = 0.0
        """GiB, of the last thing that was timed."""

    def __call__(self, run: Callable[[], object]) -> float:
        """Seconds of one run."""
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        run()
        if self._cuda:
            torch.cuda.synchronize()
            self.peak = torch.cuda.max_memory_allocated() / GIB
        return time.perf_counter() - started


def rates(device: torch.device, clock: Clock) -> dict[str, float]:
    """TFLOP/s of square matrix products, by type."""
    size = 8192 if device.type == "cuda" else 256
    low = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    full = low.float()
    kinds: dict[str, Callable[[], object]] = {"bfloat16": lambda: low @ low, "float32": lambda: full @ full}
    if device.type == "cuda":
        kinds["bfloat16 into float32"] = lambda: torch.mm(low, low, out_dtype=torch.float32)
        kinds["TF32"] = lambda: _in_tf32(lambda: full @ full)
    found = {}
    for kind, run in kinds.items():
        run()
        found[kind] = 2 * size**3 / min(clock(run) for _ in range(5)) / 1e12
    return found


def _in_tf32(run: Callable[[], Tensor]) -> Tensor:
    with products.no_finer_than(torch.bfloat16):
        return run()


@contextmanager
def cast_first() -> Iterator[None]:
    """Inside, low-precision inputs are cast and multiplied in full float32."""
    low, products.LOW = products.LOW, ()
    try:
        yield
    finally:
        products.LOW = low


@contextmanager
def one_by_one() -> Iterator[None]:
    """Inside, EK-FAC squares each sequence's product by itself."""
    at_once = dict(products.SEQUENCES_AT_ONCE)
    products.SEQUENCES_AT_ONCE.clear()
    try:
        yield
    finally:
        products.SEQUENCES_AT_ONCE.update(at_once)


class Step:
    """The parts of one step, on one model."""

    def __init__(self, model: LlamaForCausalLM, size: Size, sequences: int) -> None:
        drawn = np.random.default_rng(0).integers(1, model.config.vocab_size, (sequences, size.length))
        self.model, self.encoded = model, [Encoded(row, 1) for row in drawn.tolist()]
        self.layers: list[Layer] = mlp_layers(model, size.blocks)
        self.labels = SampledLabels(self.encoded, 1, 0)
        self.forget = true_labels(sum(e.label_count for e in self.encoded), "margin", 0)

    def floor(self) -> None:
        """The pass with nothing in its hooks, in batches as large as memory allows."""
        tokens = tokens_at_once(self.model, self.layers, lambda some: 0, TOKENS_PER_BATCH)
        data = batches_of(self.encoded, 0, self.model, tokens=tokens)
        backpropagate(self.model, self.layers, data, self.labels, lambda _, a: None, lambda _, a, g: None)

    def factors(self) -> Sums:
        """K-FAC's pass."""
        return covariance_sums(self.model, self.layers, self.encoded, 0, self.labels)

    def factors_in_portions(self, least: int) -> int:
        """K-FAC's passes for all layers of the model, in as many portions as memory asks for, or so many; how many it were."""
        layers = mlp_layers(self.model)
        split = portions(self.model, layers, lambda some: sizes(some).factors)
        for numbers in split if len(split) >= least else even_portions(layers, least):
            covariance_sums(self.model, [layers[i] for i in numbers], self.encoded, 0, self.labels)
        return max(least, len(split))

    def gradient(self) -> list[Tensor]:
        """The forget gradient."""
        return gradient_matrices(self.model, self.layers, self.encoded, 0, self.forget)


def errors(one: dict[int, Tensor], other: dict[int, Tensor]) -> float:
    """The largest relative difference."""
    return max(float((one[key] - other[key]).norm() / other[key].norm()) for key in other)


class Timings:
    """The table's rows and all that was measured, each pass beside the floor before and after it."""

    def __init__(self, step: Step, clock: Clock) -> None:
        self.step, self._clock = step, clock
        self.rows: list[list[str]] = []
        self.found: dict[str, object] = {}
        step.floor()
        self.floors = [clock(step.floor)]

    def add(self, name: str, run: Callable[[], object], over_floor: bool = True) -> None:
        """Time something once."""
        seconds, peak = self._clock(run), self._clock.peak
        if over_floor:
            self.floors.append(self._clock(self.step.floor))
            ratio = 2 * seconds / (self.floors[-2] + self.floors[-1])
        self.found[name] = {"seconds": seconds, "peak_gib": peak, **({"over_floor": ratio} if over_floor else {})}
        self.rows.append([name, f"{seconds:.2f}", f"{ratio:.2f}" if over_floor else "", f"{peak:.1f}"])

    def both(self, name: str, run: Callable[[], object]) -> None:
        """Time a pass as it is, and with its inputs cast first."""
        self.add(name, run)
        with cast_first():
            self.add(f"{name}, cast first", run)


def decomposed(timings: Timings) -> None:
    """The eigenvectors of the largest factor."""
    largest = max(max(layer.shape) for layer in timings.step.layers)
    square = torch.cov(torch.randn(largest, 2 * largest, device=timings.step.model.device))
    timings.add(f"eigenvectors of {largest}²", partial(eigenvectors, square, torch.float32), over_floor=False)


def measure_step(timings: Timings) -> None:
    """The parts of one step; while a pass is timed nothing lies on the device but what a run holds there, too."""
    step = timings.step
    model = step.model
    step.factors()  # warms up
    timings.both("K-FAC pass", step.factors)
    timings.both("forget gradient", step.gradient)
    decomposed(timings)
    bases = eigenbases(step.layers, step.factors())

    def spectrum() -> Sums:
        return square_sums(model, step.layers, step.encoded, 0, step.labels, bases)

    spectrum()  # warms up
    timings.both("EK-FAC pass", spectrum)
    with one_by_one():
        timings.add("EK-FAC pass, sequences one by one", spectrum)
    rounded = spectrum().squares
    with cast_first():
        timings.found["error of TF32 in the spectrum"] = errors(rounded, spectrum().squares)
    del rounded
    gradients = step.gradient()
    solver: list[Solver] = []
    timings.add("rotate the gradient", lambda: solver.append(Solver(step.layers, bases, gradients)), over_floor=False)
    timings.add("one direction", lambda: solver[0].direction(0.1, scale="mean_eigenvalue"), over_floor=False)
    timings.add("fingerprint of all weights", lambda: weights_fingerprint(model), over_floor=False)


def measure(size: Size, sequences: int, device: torch.device) -> tuple[list[list[str]], dict[str, object]]:
    """The table's rows, and all that was measured."""
    clock = Clock(device)
    speeds = rates(device, clock)
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**size.shape, dtype=torch.bfloat16)).to(torch.bfloat16).eval()
    step = Step(model, size, sequences)
    timings = Timings(step, clock)
    measure_step(timings)
    count: list[int] = []
    timings.add("K-FAC passes of all layers", lambda: count.append(step.factors_in_portions(least=2)), over_floor=False)
    timings.rows[-1][0] += f", {count[0]} portions"

    tokens = sequences * size.length
    inside = sum(p.numel() for p in model.model.layers.parameters()) + model.lm_head.weight.numel()
    behind = sum(p.numel() for layer in model.model.layers[size.blocks[0] :] for p in layer.parameters())
    flops = 2 * tokens * (inside + behind + model.lm_head.weight.numel())  # forward; backward to the first targeted layer
    floor = float(np.median(timings.floors))
    timings.rows.insert(0, ["floor", f"{floor:.2f}", "1.00", ""])
    speed = {"seconds": floor, "tflops": flops / floor / 1e12}
    return timings.rows, {"rates": speeds, **timings.found, "portions of all layers": count[0], "floor": speed}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=SIZES, default="7B")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    device = torch.device(words.device)
    rows, found = measure(SIZES[words.size], words.sequences, device)
    print(table(["part", "seconds", "over the floor", "peak GiB"], rows))
    speeds = found["rates"]
    assert isinstance(speeds, dict)
    print("TFLOP/s: " + ", ".join(f"{kind} {rate:.1f}" for kind, rate in speeds.items()), end="; ")
    print(f"the floor's own, without attention: {found['floor']['tflops']:.1f}")  # type: ignore[index]
    print(f"error of TF32 in the spectrum: {found['error of TF32 in the spectrum']:.1e}")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    write(words.json, {"machine": machine(), "device": name, "size": words.size, "sequences": words.sequences, **found})


if __name__ == "__main__":
    main()
