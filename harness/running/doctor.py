"""What is here and what is missing: packages, devices, folders, and what a benchmark with a model needs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.benchmark import BENCHMARKS, Needed, eval_plan
from harness.core.documents import read_json
from harness.core.errors import UsageError
from harness.core.evaluator import EvalPlan
from harness.core.options import Options
from harness.core.problem import ModelSource
from harness.data.hub import files_of
from harness.data.rows import cached_snapshot, matching

TESTED = {
    "torch": ("2.11", "2.13"),
    "transformers": ("5.17", "5.23"),
    "lm-eval": ("0.4.13", "0.4.13"),
    "scipy": ("1.14", "1.17"),
    "pandas": ("2.2", "3.1"),
}
"""Package → first and last release this version was tested with."""

if TYPE_CHECKING:
    from harness.models.sources import CheckpointSource


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    """Its name."""
    result: str
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
    from harness.data.hub_errors import torchvision_of_another_build

    if builds := torchvision_of_another_build():
        vision, torch = builds
        return Finding(
            "torchvision", f"{vision} was built for another torch than {torch}; run: pip uninstall torchvision", fine=False
        )
    try:
        return Finding("torchvision", f"{importlib.metadata.version('torchvision')} (not needed)")
    except importlib.metadata.PackageNotFoundError:
        return Finding("torchvision", "not installed (not needed)")


def _device() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("device", f"CPU, cores: {os.cpu_count()}, threads: {torch.get_num_threads()}")
    free, total = torch.cuda.mem_get_info()
    return Finding("device", f"{torch.cuda.get_device_name()}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free")


def _folder(what: str, folder: Path) -> Finding:
    nearest = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(nearest).free / 2**30
    if not os.access(nearest, os.W_OK):
        return Finding(what, f"{folder} cannot be written", fine=False)
    return Finding(what, f"{folder}, {free:.0f} GiB free", fine=free > 1)


def _cache() -> Finding:
    from harness.storage.cache import Cache

    try:
        return _folder("cache", Cache().root)
    except UsageError as error:
        return Finding("cache", str(error), fine=False)


def _benchmark(bench: str, model: str, data_dir: Path | None) -> list[Finding]:
    from harness.storage.cache import Cache

    benchmark = BENCHMARKS.get(bench)
    needed: Sequence[Needed] = benchmark.needed(model) if hasattr(benchmark, "needed") else ()
    findings = [_needed(each, data_dir) for each in needed]
    try:
        options = Options(data_dir=data_dir)
        problem = benchmark.problem(model, options)
    except UsageError as error:
        named = any(not f.fine for f in findings)  # the missing file or checkpoint itself has been named
        return findings if named else [*findings, Finding(f"{bench}, {model}", str(error), fine=False)]
    rows = ", ".join(f"{len(rows_of_set)} {name}" for name, rows_of_set in problem.questions.items())
    findings.append(Finding(f"{bench} data", f"{rows} questions"))
    cache = Cache()
    for name, source in problem.sources.items():
        findings.append(_source(f"model {name}", source, source.seconds(cache)))
    plan = eval_plan(benchmark, problem, options)
    findings += _answers(plan)
    if not plan.references and any(e.compares(plan) for e in plan.evaluators):
        findings.append(Finding("references", "none: forget quality will be absent; give --reference LOG"))
    return findings


def _source(what: str, source: ModelSource, seconds: float | None) -> Finding:
    """A model: made here when it is needed, or a checkpoint, which is looked over as a run does where all of it is here."""
    from harness.models.sources import CheckpointSource

    if not isinstance(source, CheckpointSource):
        return Finding(what, f"trained, took {seconds:.0f} s" if seconds else "is trained on the spot when first needed")
    where = f"hub: {source.name}" if source.folder is None else f"folder: {source.name}"
    try:
        if source.folder is None and not _all_cached(source):
            return Finding(what, where)
        seen = source.examine()
    except UsageError as error:
        return Finding(what, str(error), fine=False)
    return Finding(what, f"{where} ({seen.config.model_type}, {seen.dtype})")


def _answers(plan: EvalPlan) -> list[Finding]:
    """What is wrong with asking the model before unlearning, where it is a checkpoint that is here."""
    from harness.models.sources import CheckpointSource
    from harness.running.measuring import check_base

    try:
        source = plan.problem.sources.get("base")
        if not isinstance(source, CheckpointSource) or (source.folder is None and not _all_cached(source)):
            return []
        check_base(plan)
    except UsageError as error:
        return [Finding("answers", str(error), fine=False)]
    return []


def _all_cached(source: CheckpointSource) -> bool:
    """Whether the hub's local cache holds all weights of a checkpoint, so that looking it over fetches none."""
    from huggingface_hub import try_to_load_from_cache

    from harness.numerics.configurations import has_weights

    try:
        config = try_to_load_from_cache(source.name, "config.json", revision=source.commit)
    except ValueError:  # no name that the hub could have
        return False
    if not isinstance(config, str) or not has_weights(str(folder := Path(config).parent)):
        return False
    if not list(folder.glob("*.safetensors")) and any(f.endswith(".safetensors") for f in files_of(source.name, source.commit)):
        return False  # those would be fetched, whatever .bin files are here
    indices = [read_json(file) for file in folder.glob("*.index.json")]
    maps = [index.get("weight_map") for index in indices if isinstance(index, dict)]
    return all(
        (folder / str(file)).is_file() for weight_map in maps if isinstance(weight_map, dict) for file in weight_map.values()
    )


def _needed(needed: Needed, data_dir: Path | None) -> Finding:
    """Whether something of the hub is here, and if not, what it is and where to put it."""
    from huggingface_hub import get_token

    from harness.data.hub import unreachable
    from harness.data.hub_errors import gated

    what = f"{needed.kind} {needed.id}"
    about = f" ({needed.about})" if needed.about else ""
    doubt = f" Mind that {needed.doubt}." if needed.doubt else ""
    # A data set is read from the data folder alone where one is given; checkpoints may come from either place.
    if _in_data_folder(needed, data_dir):
        return Finding(what, f"in the data folder{about}.{doubt}")
    files = ", ".join(_missing(needed, data_dir)) if needed.kind == "data" else "its files"
    where = f"put {files} into {data_dir or 'DIR'}/{needed.id}/" + ("" if data_dir else " and pass --data-dir DIR")
    if data_dir is None or needed.kind != "data" or needed.hub_too:
        try:
            cached = _in_hub_cache(needed)
        except UsageError as error:
            return Finding(what, str(error), fine=False)
        if cached:
            return Finding(what, f"in the hub's local cache{about}.{doubt}")
        if needed.gate and not get_token():
            local = f" Or {where}." if needed.kind == "data" else ""
            return Finding(what, f"missing{about}: {gated(needed.gate)}{local}{doubt}", fine=False)
        if not (offline := unreachable()):
            return Finding(what, f"not here yet{about}; the hub is asked for it when it is first used.{doubt}")
    else:
        offline = ""
    why = f"{offline}; " if offline else ""
    return Finding(what, f"missing{about}: {why}{where}.{doubt}", fine=False)


def _in_data_folder(needed: Needed, data_dir: Path | None) -> bool:
    from harness.numerics.adapters import ADAPTER_CONFIG
    from harness.numerics.configurations import CONFIG_FILES, TOKENIZER_FILES, has_weights, local_folder

    if needed.kind == "data":
        return data_dir is not None and not _missing(needed, data_dir)
    if needed.any_of and data_dir is not None and matching(data_dir / needed.id, needed.any_of):
        return True
    folder = local_folder(needed.id, data_dir, CONFIG_FILES if needed.kind == "model" else TOKENIZER_FILES)
    return folder is not None and (
        needed.kind == "tokenizer" or has_weights(str(folder)) or (folder / ADAPTER_CONFIG).is_file()
    )


def _missing(needed: Needed, data_dir: Path | None) -> list[str]:
    missing = [file for file in needed.files if data_dir is None or not (data_dir / needed.id / file).is_file()]
    if needed.any_of and (data_dir is None or not matching(data_dir / needed.id, needed.any_of)):
        missing.append(needed.any_of[-1])
    return missing


def _in_hub_cache(needed: Needed) -> bool:
    from huggingface_hub import try_to_load_from_cache

    from harness.numerics.configurations import TOKENIZER_FILES, has_weights

    def cached(file: str) -> Path | None:
        try:
            cached_file = try_to_load_from_cache(needed.id, file, repo_type="dataset" if needed.kind == "data" else "model")
        except ValueError:  # no name that the hub could have
            return None
        return Path(cached_file) if isinstance(cached_file, str) else None

    if needed.kind == "data":
        folder = cached_snapshot(needed.id, needed.any_of) if needed.any_of else None
        return all(cached(file) for file in needed.files) and (not needed.any_of or folder is not None)
    if needed.kind == "tokenizer":
        return any(cached(file) for file in TOKENIZER_FILES)
    config = cached("config.json")
    return config is not None and has_weights(str(config.parent))
