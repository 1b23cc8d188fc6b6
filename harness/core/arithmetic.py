"""What decides how this machine rounds, and a way to compute that rounds alike on every x86-64 processor.

One recipe, seed and version of torch give other weights on another kind of processor. Torch takes other kernels (AVX2 or
AVX-512; with them even the random initial weights differ), and MKL takes other matrix products and exponentials by the
processor's maker and instruction sets. oneDNN takes no part in float32 but in wide models and where ToFU's likelihoods and KL
are measured and texts are continued (`harness.numerics.products`). Nothing of this is a fault, but runs that began with such
models are not to be compared as if they had begun with the same.

`portable` has torch take its kernels in plain C++, MKL the path that it keeps for every processor, and one thread. Both are
chosen when the libraries are loaded, hence a process of its own. It takes about a tenth more processor time on the small
models. Measured with torch 2.13: every operation that training them takes gives the same bits on a Zen 3, on an emulated
Haswell (Intel, AVX2) and on an emulated Nehalem (Intel, no AVX). What is left are the C library's exponential, logarithm and
cosine; they did not differ between processors, but may between its versions.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

Arithmetic = Literal["", "portable"]
"""How a model is trained: as the machine does it fastest, or alike everywhere."""
PORTABLE: Mapping[str, str] = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"}
"""The environment of a process that computes alike everywhere."""
_VARIABLES = (
    *("ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA"),
    *("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "NVIDIA_TF32_OVERRIDE"),
)
"""What the libraries' choice can be changed by; the last two round float32 products on a GPU to 10 bits, or forbid it."""
_SETS = ("sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "amx_tile")
_SETS_OF_ARM = ("asimd", "asimdhp", "bf16", "sve", "sve2")


def kind_of_machine() -> dict[str, str]:
    """What tells kinds of machines apart by which numbers differ; equal where the same weights are to be expected.

    Returns:
        `maker` of the processor, its `instructions` as far as numerics use them, `torch`: the kernels it takes, `blas`: its
        linear algebra, and the `variables` that were set.
    """
    import torch

    described = _processor()
    flags = set(described.get("flags", described.get("Features", "")).split())
    blas = [line.strip(" -") for line in torch.__config__.show().splitlines() if "Math Kernel Library" in line]
    return {
        "maker": described.get("vendor_id", described.get("CPU implementer", platform.machine())),
        "instructions": " ".join(name for name in (*_SETS, *_SETS_OF_ARM) if name in flags),
        "torch": torch.backends.cpu.get_cpu_capability(),
        "blas": " ".join(blas[0].replace("Intel(R) oneAPI Math Kernel Library", "MKL").split()[:3]) if blas else "no MKL",
        "variables": " ".join(f"{name}={os.environ[name]}" for name in _VARIABLES if os.environ.get(name)),
    }


def model_of_processor() -> str:
    """The processor's family, model and stepping, which its name (`AMD EPYC`) may leave open; empty where unknown."""
    described = _processor()
    parts = ("cpu family", "model", "stepping")
    return ", ".join(f"{name.removeprefix('cpu ')} {described[name]}" for name in parts if name in described)


def in_words(kind: Mapping[str, str]) -> str:
    """A kind of machine in short: `AuthenticAMD, AVX2 of torch, MKL Version 2024.2`."""
    widest = [name for name in kind.get("instructions", "").split() if name in ("avx", "avx2", "avx512f", "sve", "asimd")]
    parts = (kind.get("maker"), *widest[-1:], f"{kind['torch']} of torch" if kind.get("torch") else "", kind.get("blas"))
    return ", ".join(part for part in (*parts, kind.get("variables")) if part)


def is_portable() -> bool:
    """Whether this process computes alike everywhere: it was begun with `PORTABLE`."""
    return all(os.environ.get(name) == value for name, value in PORTABLE.items())


@contextmanager
def begun_with(variables: Mapping[str, str]) -> Iterator[None]:
    """Processes that are begun inside have these variables; this one is as before afterwards."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _processor() -> dict[str, str]:
    """What Linux tells of the first processor; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
