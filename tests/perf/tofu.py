"""What ToFU costs with a model of SmolLM2-135M's shape: a step of fine-tuning, tofu10's likelihoods, its answers.

    python -m tests.perf.tofu --data-dir DIR [--json out.json]                                       # no network, no weights
    python -m tests.perf.tofu --data-dir DIR --device cpu --every 60 --steps 3
    python -m tests.perf.tofu --data-dir DIR --device cpu --size tiny --every 60 --steps 4           # a trial of the script itself

Weights are random, the questions real, the vocabulary is bytes of theirs, filled up to the model's size. After a run that warms up
everything is timed as the harness computes it; on a GPU then twice with cuDNN's attention, torch's own choice on Hopper, which plans
for each shape of a batch: all are new to it the first time, and known the second. On a CPU the step is timed once more with torch's
own products. The floor of a step are its products, logits at labels alone, at the rate of a bfloat16 product of 8192², on a CPU of
oneDNN's float32 product of 2048². Seconds are of the clock, the device waited for.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.core.benchmark import BENCHMARKS
from harness.core.options import Options
from harness.data.rows import Batch, Encoded, encode, pad_id
from harness.models.recipes import Vocabulary
from harness.numerics import products, training
from harness.numerics.products import OnednnLinear, in_wide_products
from harness.storage.cache import Cache
from tests.perf._llama import random_llama
from tests.perf._machine import machine, table, write
from tests.perf.evaluation import Evaluation

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

    from harness.core.problem import Problem

SHAPES = {
    "135M": {
        **{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9},
        **{"num_key_value_heads": 3, "vocabulary": 49_152},
    },
    "tiny": {
        **{"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3},
        **{"num_key_value_heads": 3, "vocabulary": 3_000},
    },
}
BATCH = 32


def build(problem: Problem, size: str, device: torch.device) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """The random model and its tokenizer."""
    shape = dict(SHAPES[size])
    count = shape.pop("vocabulary")
    text = tuple(f"{row['question']}\n{row['answer']}" for rows in problem.questions.values() for row in rows)
    tokenizer = Vocabulary("bytes", text, min(count, 4_096)).build()
    tokenizer.add_tokens([f"<filler {i}>" for i in range(count - len(tokenizer))])
    model = random_llama(tokenizer, spread=0.05, max_position_embeddings=1024, tie_word_embeddings=True, **shape)
    model.to(device)  # type: ignore[arg-type]
    in_wide_products(model)
    return model, tokenizer  # type: ignore[return-value]


@contextmanager
def own_products(model: LlamaForCausalLM) -> Iterator[None]:
    """Inside, a wide model on a CPU is trained with torch's own products, in batches as large as a narrow one's."""
    layers = [module for module in model.modules() if type(module) is OnednnLinear]
    for layer in layers:
        layer.__class__ = nn.Linear
    least, products.LEAST_WIDTH = products.LEAST_WIDTH, sys.maxsize
    try:
        yield
    finally:
        products.LEAST_WIDTH = least
        for layer in layers:
            layer.__class__ = OnednnLinear


class Costs:
    """Everything that is timed, on one model."""

    def __init__(self, problem: Problem, size: str, device: torch.device, every: int, steps: int, cache: Cache) -> None:
        self.device, self.steps = device, steps
        self.model, tokenizer = build(problem, size, device)
        self.evaluation = Evaluation(problem, self.model, tokenizer, cache, every)
        self.encoded: Sequence[Encoded] = encode(problem.stages[0].retain, tokenizer)
        self.pad, self.tokens, self.labels = pad_id(tokenizer), 0, 0

    def clock(self) -> float:
        """Seconds, when the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def step(self) -> float:
        """Seconds of a step of fine-tuning, on average."""
        adamw = training.AdamW(lr=1e-6, steps=self.steps)
        order = training.shuffled_batches(len(self.encoded), BATCH, self.steps, seed=0)
        at_once = training.tokens_at_once(self.model)
        batches = [training.micro_batches(self.encoded, rows, self.pad, self.device, at_once) for rows in order]
        self.tokens = sum(batch.tokens for step in batches for batch, _ in step)
        self.labels = sum(int(batch.counts.sum()) for step in batches for batch, _ in step)

        def loss(part: tuple[Batch, int]) -> Tensor:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
                return training.pooled_nll(self.model, *part)

        self.model.requires_grad_(True)
        started = self.clock()
        for _ in training.optimise(self.model, batches, loss, adamw):
            pass
        seconds = self.clock() - started
        self.model.requires_grad_(False)
        return seconds / self.steps

    def all(self) -> dict[str, float]:
        """Seconds by part."""
        return {"a step of fine-tuning": self.step(), **self.evaluation.seconds(self.clock)}

    def floor(self) -> float:
        """Seconds of a step's products at the device's rate, after `step`."""
        on_cpu = self.device.type == "cpu"
        size, dtype = (2048, torch.float32) if on_cpu else (8192, torch.bfloat16)
        square = torch.randn(size, size, device=self.device, dtype=dtype)
        tries = []
        for _ in range(6):  # the first one warms up
            started = self.clock()
            _ = products.onednn(square, square) if on_cpu else square @ square
            tries.append(self.clock() - started)
        rate, head = 2 * size**3 / min(tries[1:]), self.model.lm_head.weight.numel()
        body = sum(p.numel() for p in self.model.parameters()) - head
        return 6 * (body * self.tokens + head * self.labels) / self.steps / rate


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="a folder with locuslab/TOFU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=SHAPES, default="135M")
    parser.add_argument("--every", type=int, default=1, help="take one in so many questions")
    parser.add_argument("--steps", type=int, default=60, help="of fine-tuning")
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    device = torch.device(words.device)
    problem = BENCHMARKS.get("tofu10").problem("scratch", Options(data_dir=words.data_dir))
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        costs = Costs(problem, words.size, device, words.every, words.steps, Cache(Path(folder)))
        torch.backends.cuda.enable_cudnn_sdp(False)
        costs.all()  # warms up
        found["seconds"] = costs.all()
        if device.type == "cuda":
            torch.backends.cuda.enable_cudnn_sdp(True)
            found |= {"cuDNN, new shapes": costs.all(), "cuDNN, known shapes": costs.all()}
        floor = costs.floor()
        if device.type == "cpu":
            with own_products(costs.model):
                found["torch's own products"] = {"a step of fine-tuning": costs.step()}
    parts = next(iter(found.values()))
    rows = [[part, *(f"{each[part]:.3f}" if part in each else "" for each in found.values())] for part in parts]
    print(table(["part", *found], rows))
    questions = sum(map(len, costs.evaluation.problem.questions.values()))
    print(f"{questions} questions; floor of a step: {floor:.4f}")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    write(words.json, {"machine": machine(), "device": name, "size": words.size, "floor of a step": floor, "seconds": found})


if __name__ == "__main__":
    main()
