"""The memory estimate over what runs really hold.

    python -m tests.perf.memory [--cases "npo;kfade kfac"] [--sizes 72M] [--json out.json]
    python -m tests.perf.memory --device cuda --sizes 8B --cases "ga, clip=none, 8 bits;ga, clip=none, 8 bits, no masters;npo, lora"

Each case is a process of its own: what it holds when all code is loaded and a tiny model has gone the same way is the zero; the
most that is resident beyond that, at a hundred looks a second, until two steps are taken or all is measured, is the measurement.
The C library gives freed memory back at once (MALLOC_*), so that little but tensors is counted. Linux alone. On a GPU the
measurement is the peak of what torch has allocated there.

Models are random Llamas, in float32 on a CPU and in bfloat16 on a GPU; texts have ToFU's lengths, 32 rows a step.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tests.perf._machine import machine, table, write

if TYPE_CHECKING:
    from harness.core.memory import ModelShape
    from harness.core.method import UnlearningContext

REACH = 0.15
VOCABULARY = 49_152


@dataclass(frozen=True)
class Size:
    """A Llama's shape."""

    hidden: int
    """Width of the residual stream."""
    intermediate: int
    """Width of the MLP."""
    layers: int
    """Decoder layers."""
    heads: int
    """Attention heads."""
    key_heads: int
    """Heads of keys and values."""
    tied: bool
    """Whether the output embedding is the input's."""
    vocabulary: int = VOCABULARY
    """Tokens."""


SIZES = {
    "tiny": Size(64, 128, 2, 2, 1, tied=True, vocabulary=512),
    "72M": Size(512, 1536, 14, 8, 4, tied=True),
    "75M": Size(512, 2048, 6, 8, 8, tied=False),
    "135M": Size(576, 1536, 30, 9, 3, tied=True),
    "8B": Size(4096, 14_336, 32, 32, 8, tied=False, vocabulary=128_256),
}
"""135M is SmolLM2's, 8B Llama 3.1's."""


@dataclass(frozen=True)
class Case:
    """Something that a run does."""

    method: str = ""
    """Which method; evaluation if empty."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What is set of it."""
    optimizer: str = ""
    """How AdamW is kept."""
    adapter: str = ""
    """What is trained in place of the weights."""
    recompute: bool = False
    """Whether activations are recomputed."""


CASES = {
    "grad_diff": Case("grad_diff"),
    "npo": Case("npo"),
    "ga": Case("ga"),
    "grad_diff, recomputed": Case("grad_diff", recompute=True),
    "ga, clip=none": Case("ga", optimizer="adamw:clip=none"),
    "ga, clip=none, 8 bits": Case("ga", optimizer="adamw:bits=8,clip=none"),
    "ga, clip=none, 8 bits, no masters": Case("ga", optimizer="adamw:bits=8,clip=none,masters=none"),
    "npo, lora": Case("npo", adapter="lora:r=16"),
    "kfade kfac": Case("kfade", {"step_size": 0.01, "kl_rows": 32}),
    "kfade ekfac": Case("kfade", {"step_size": 0.01, "kl_rows": 32, "estimator": "ekfac"}),
    "likelihoods": Case(),
    "answers": Case(),
}
USUAL = ("grad_diff", "npo", "ga", "ga, clip=none", "kfade kfac", "kfade ekfac", "likelihoods", "answers")
"""What is measured unless something is named."""


def context(size: Size, folder: Path, case: Case, device: str) -> UnlearningContext:
    """A random Llama and twice 64 texts: 20 to 45 tokens asked, 25 to 75 answered."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from harness.core.adapters import adapter_of
    from harness.core.costs import Costs
    from harness.core.fields import Given
    from harness.core.method import UnlearningContext
    from harness.core.optimizers import optimizer_of
    from harness.core.problem import Problem, Stage
    from harness.core.text import Example, Template
    from harness.models.recipes import Vocabulary
    from harness.numerics.products import in_wide_products
    from harness.storage.cache import Cache

    words = [f"w{i}" for i in range(size.vocabulary - 10)]
    rng = np.random.default_rng(0)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choice(words, int(rng.integers(low, high))))

    def examples() -> list[Example]:
        return [Example(text(20, 45), text(25, 75), " ") for _ in range(64)]

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_heads,
        tie_word_embeddings=size.tied,
    )
    torch.set_default_dtype(torch.float32 if device == "cpu" else torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    in_wide_products(model)
    return UnlearningContext(
        model,
        Vocabulary("words", tuple(words)).build(),
        Problem("perf", 1, "llama", [Stage("forget", examples(), examples())], {}, Template("perf"), {}),
        0,
        Cache(folder),
        Costs(),
        "perf",
        adapter=adapter_of(Given(case.adapter, "adapter")),
        optimizer=optimizer_of(Given(case.optimizer, "optimizer")),
        recompute=case.recompute,
    )


def shape(here: UnlearningContext) -> ModelShape:
    """What the estimate is made from, with the texts' true numbers of tokens."""
    from harness.core.memory import ModelShape
    from harness.data.rows import encode
    from harness.models.memory import meta_model
    from harness.numerics.training import RECOMPUTED_FROM, tokens_at_once

    encoded = encode([*here.stages[0].forget, *here.stages[0].retain], here.tokenizer)
    lengths = sorted(len(e.input_ids) for e in encoded)
    answer = round(sum(e.label_count for e in encoded) / len(encoded))
    model = meta_model(here.model.config)
    large = here.model.device.type == "cuda" and sum(p.numel() for p in model.parameters()) > RECOMPUTED_FROM
    return ModelShape(
        model,
        here.model.dtype.itemsize,
        64,
        answer,
        adapter=here.adapter,
        optimizer=here.optimizer,
        recompute=here.recompute or large,
        row_tokens=lengths[len(lengths) * 19 // 20],
        trained_at_once=tokens_at_once(here.model),
    )


def run(name: str, case: Case, here: UnlearningContext) -> None:
    """Two steps of a method, or the measurement."""
    from harness.core.config import field_names, resolve
    from harness.core.evaluator import GenerationRequest, Sampling
    from harness.core.method import METHODS
    from harness.data.rows import encode, pad_id
    from harness.numerics.generation import HFGenerator
    from harness.numerics.likelihood import answer_nll

    if case.method:
        chosen = METHODS.get(case.method)
        short = {"epochs": 1, "warmup_epochs": 0} if "epochs" in field_names(chosen.config) else {}
        for _ in chosen.steps(here, resolve(chosen.config, {**short, **case.settings}, owner=case.method)):
            pass
        return
    rows = [*here.stages[0].forget, *here.stages[0].retain]
    if name == "likelihoods":
        answer_nll(here.model, encode(rows, here.tokenizer), pad_id(here.tokenizer))
    else:
        asked = [GenerationRequest((row.prompt,), Sampling(100)) for row in rows]
        HFGenerator().generate(here.model, here.tokenizer, asked)


def estimated(case: Case, of: ModelShape, device: str) -> int:
    """Bytes by the estimate; on a CPU with what it puts into the machine's memory besides, for it is one memory."""
    from harness.core.config import resolve
    from harness.core.method import METHODS
    from harness.models.memory import estimate

    if not case.method:
        return estimate(of, []).measuring
    chosen = METHODS.get(case.method)
    needed = estimate(of, chosen.memory(of, resolve(chosen.config, case.settings, owner=case.method)))
    return sum(needed.working.values()) + needed.rough + (needed.cpu if device == "cpu" else 0)


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


@contextmanager
def _peak_of_resident() -> Iterator[list[int]]:
    """Inside, the list's one number is the most bytes that were resident at any of the looks, a hundred a second."""
    peak, ended = [_resident()], threading.Event()

    def look() -> None:
        while not ended.wait(0.01):
            peak[0] = max(peak[0], _resident())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield peak
    finally:
        ended.set()
        looking.join()


def measured(name: str, size: Size, device: str) -> dict[str, int]:
    """Peak of what is held beyond what a tiny model left behind, and the estimate; in this process."""
    import torch

    torch.set_num_threads(1)
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        run(name, case, context(SIZES["tiny"], Path(folder, "tiny"), case, device))
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        zero = torch.cuda.memory_allocated() if device == "cuda" else _resident()
        here = context(size, Path(folder, "real"), case, device)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with _peak_of_resident() as resident:
            run(name, case, here)
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident[0]
        of = shape(here)
        return {"measured": peak - zero, "estimated": estimated(case, of, device), "parameters": of.parameters}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="The memory estimate over what runs hold.")
    parser.add_argument("--json", type=Path, help="where the measurement is written")
    parser.add_argument("--cases", default=";".join(USUAL), help="parted by semicolons")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where")
    parser.add_argument("--sizes", default="72M", help="parted by commas")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cases = [(name, size) for size in options.sizes.split(",") for name in options.cases.split(";")]
    if options.here:
        print(json.dumps(measured(cases[0][0], SIZES[cases[0][1]], options.device)))
        return
    rows, found = [], {}
    at_once = {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "0",
        "MALLOC_TOP_PAD_": "0",
    }
    for name, size in cases:
        command = [
            sys.executable,
            "-m",
            "tests.perf.memory",
            "--here",
            "--cases",
            name,
            "--sizes",
            size,
            "--device",
            options.device,
        ]
        said = subprocess.run(command, env={**os.environ, **at_once}, stdout=subprocess.PIPE, text=True, check=True).stdout
        sizes = json.loads(said.splitlines()[-1])
        found[f"{name}, {size}"] = sizes
        ratio = sizes["estimated"] / sizes["measured"]
        mib = [f"{sizes[key] / 2**20:.0f}" for key in ("estimated", "measured")]
        rows.append([size, name, *mib, f"{ratio:.2f}", "yes" if abs(ratio - 1) <= REACH else "no"])
        print(table(["size", "case", "estimate MiB", "measured MiB", "ratio", "met"], rows[-1:]).splitlines()[-1], flush=True)
    print(table(["size", "case", "estimate MiB", "measured MiB", "ratio", "met"], rows))
    write(options.json, {"machine": machine(), "reach": REACH, "cases": found})


if __name__ == "__main__":
    main()
