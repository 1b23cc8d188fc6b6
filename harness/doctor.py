"""What is here and what is missing: packages, devices, folders, and what a benchmark with a model needs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError
from harness.interfaces import BENCHMARKS, Options

TESTED = {
    "torch": ("2.11", "2.13"),
    "transformers": ("5.17", "5.23"),
    "curvlinops-for-pytorch": ("3.0.1", "3.0"),
    "scipy": ("1.14", "1.17"),
    "pandas": ("2.2", "3.1"),
}
"""Package → first and last release this version was tested with."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    """Its name."""
    found: str
    """What was found, and the way out if it is not fine."""
    fine: bool = True
    """Whether a run can go ahead."""


def examine(bench: str, model: str, data_dir: Path | None, results: Path) -> list[Finding]:
    """Look at everything a run needs.

    Args:
        bench: a benchmark's name, or empty.
        model: a model of it.
        data_dir: the data folder, if one is given.
        results: the results folder.

    Raises:
        UsageError: for an unknown benchmark.
    """
    findings = [Finding("Python", platform.python_version()), *_packages(), _torchvision(), _device()]
    findings += [_folder("results", results), _cache()]
    if bench:
        findings += _benchmark(bench, model, data_dir)
    return findings


def _packages() -> list[Finding]:
    findings = []
    for name, (first, last) in TESTED.items():
        try:
            have = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(name, f"not installed; pip install '{name}>={first}'", fine=False))
            continue
        inside = _release(first) <= _release(have) and _release(have)[: len(_release(last))] <= _release(last)
        findings.append(Finding(name, have if inside else f"{have}; tested with {first} to {last}"))
    return findings


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("+")[0].split(".") if part.isdecimal())


def _torchvision() -> Finding:
    """A torchvision built for another torch breaks `from transformers import LlamaForCausalLM`."""
    try:
        vision, torch = (importlib.metadata.version(name) for name in ("torchvision", "torch"))
    except importlib.metadata.PackageNotFoundError:
        return Finding("torchvision", "not installed (not needed)")
    if ("+cpu" in vision) != ("+cpu" in torch):
        return Finding(
            "torchvision", f"{vision} was built for another torch than {torch}; run: pip uninstall torchvision", fine=False
        )
    return Finding("torchvision", f"{vision} (not needed)")


def _device() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("device", f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    free, total = torch.cuda.mem_get_info()
    return Finding("device", f"{torch.cuda.get_device_name()}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free")


def _folder(what: str, folder: Path) -> Finding:
    there = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(there).free / 2**30
    if not os.access(there, os.W_OK):
        return Finding(what, f"{folder} cannot be written", fine=False)
    return Finding(what, f"{folder}, {free:.0f} GiB free", fine=free > 1)


def _cache() -> Finding:
    from harness.cache import Cache

    try:
        return _folder("cache", Cache().root)
    except UsageError as error:
        return Finding("cache", str(error), fine=False)


def _benchmark(bench: str, model: str, data_dir: Path | None) -> list[Finding]:
    from harness.cache import Cache

    benchmark = BENCHMARKS.get(bench)
    try:
        task = benchmark.task(model, Options(data_dir=data_dir))
    except UsageError as error:
        return [Finding(f"{bench}, {model}", str(error), fine=False)]
    rows = ", ".join(f"{len(found)} {name}" for name, found in task.questions.items())
    findings = [Finding(f"{bench} data", f"{rows} questions")]
    cache = Cache()
    for name, source in task.sources.items():
        seconds = source.seconds(cache)
        if source.identity.get("kind") == "trained":
            found = f"trained, took {seconds:.0f} s" if seconds else "is trained on the spot when first needed"
        else:
            found = f"{source.identity.get('kind')}: {source.identity.get('id', model)}"
        findings.append(Finding(f"model {name}", found))
    if not task.references:
        findings.append(Finding("references", "none: forget quality will be absent; give --reference LOG"))
    return findings
