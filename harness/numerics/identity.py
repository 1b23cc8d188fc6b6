"""What names a model: all that decides what it computes and what it says, and no path of a machine.

Two kinds of names. The *identity* of a checkpoint is made before anything is loaded, from a folder's files or a hub
repository's commit; it is part of a run's name. A *fingerprint* is made of a model in memory; it names in the cache what was
computed with it. Weights alone decide neither: the same ones under another configuration, or behind another tokenizer, say
other things.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.config import JSON
from harness.core.documents import parse_json, read_json
from harness.core.errors import UsageError
from harness.data.hub import commit, file_of
from harness.storage.cache import digest, file_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SIDECAR = "harness.json"
"""Beside a checkpoint that this harness wrote: what it is, and the template its questions need."""
UNDO = "undo.safetensors"
"""Beside a checkpoint that an update was put onto: the tensors as they were."""
LIBRARIES = ("torch", "transformers", "tokenizers")
"""Packages whose release changes what a model computes, in its last digits at least."""
_WEIGHTS = (".safetensors", ".bin")
_OTHERS = (".json", ".model", ".txt", ".jinja", ".tiktoken", ".spm", ".bpe", ".vocab", ".merges")
"""How the names of configurations, of tokenizers' and templates' files end."""
IDLE = {
    *(SIDECAR, UNDO, "training_args.bin", "optimizer.bin", "scheduler.bin", "trainer_state.json"),
    *("all_results.json", "train_results.json", "eval_results.json"),
}
"""Files of that kind that nothing is loaded from."""
_PROSE = ("readme", "license", "licence", "notice", "use_policy")
_NOT_COMPUTED = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache"}
"""Fields of a configuration that change no number: the type of the weights is told by the weights."""


# ---------------------------------------------------------------- what is not loaded yet


def folder_identity(folder: Path, weights: bool = True, code: bool = False) -> dict[str, JSON]:
    """The digest of every file of a folder that decides what is loaded from it.

    Args:
        folder: a checkpoint, or a tokenizer.
        weights: whether weights are loaded from it too.
        code: whether code in it may run; else none decides anything, and a whole project may lie around a checkpoint.
    """
    endings = (*_OTHERS, *(_WEIGHTS if weights else ()), *((".py",) if code else ()))
    files = {file.relative_to(folder).as_posix(): file for file in _files(folder, code) if file.name.endswith(endings)}
    digests: dict[str, JSON] = {
        name: _digest_of(file, file.stat().st_size, file.stat().st_mtime_ns) for name, file in sorted(files.items())
    }
    return {"kind": "folder", "files": digests}


def _files(folder: Path, code: bool) -> Iterator[Path]:
    """The folder's own files, its further chat templates, and code that its code may import."""
    files = {*folder.iterdir(), *folder.glob("additional_chat_templates/*"), *(folder.rglob("*.py") if code else ())}
    for file in files:
        if file.is_file() and file.name not in IDLE and not file.name.lower().startswith((".", *_PROSE)):
            yield file


@cache
def _digest_of(file: Path, size: int, modified: int) -> str:
    # A run asks several times, and a 7B model's files take half a minute to read.
    return file_digest(file)


def foreign_code(name: str, revision: str | None) -> dict[str, JSON]:
    """The other repositories of the hub whose code a checkpoint has run, each with its commit.

    A configuration names it as `org/repository--module.Class` in its `auto_map`; none of its own files says when it changes.

    Args:
        name: a folder, or a hub id.
        revision: of the hub id.
    """
    return {repository: commit(repository) for repository in sorted(_code_places(name, revision) - {name, ""})}


def code_revision(name: str, revision: str | None) -> str | None:
    """The commit of the other repository whose code a checkpoint has run, as `foreign_code` names it; None without one.

    Args:
        name: a folder, or a hub id.
        revision: of the hub id.

    Raises:
        UsageError: for code in several places of the hub: transformers takes one commit for all of it.
    """
    places = _code_places(name, revision)
    foreign = places - {name, ""}
    if not foreign:
        return None
    if len(foreign) > 1 or (foreign < places and not Path(name).is_dir()):
        where = ", ".join(sorted(place or name for place in places))
        raise UsageError(f"the code of {name} is in several repositories ({where}). Put it and the checkpoint into one folder.")
    return commit(min(foreign))


def _code_places(name: str, revision: str | None) -> set[str]:
    """The repositories that a checkpoint's `auto_map` names; the empty name stands for its own."""
    repositories: set[str] = set()
    for file in ("config.json", "tokenizer_config.json"):
        document = read_json(path, finite=False) if (path := file_of(name, file, revision)) else {}
        named = document.get("auto_map") if isinstance(document, dict) else None
        for classes in (named or {}).values() if isinstance(named, dict) else [named]:
            for each in classes if isinstance(classes, list) else [classes]:
                if isinstance(each, str):
                    repositories.add(each.rpartition("--")[0])
    return repositories


# ---------------------------------------------------------------- what is in memory


def network_fingerprint(weights: str, model: PreTrainedModel) -> str:
    """A digest of all that decides the logits of given tokens: weights, configuration, code, libraries, kind of device.

    Args:
        weights: its `weights_fingerprint`.
        model: the model.
    """
    config: Any = model.config
    decisive = {
        "weights": weights,
        "class": type(model).__name__,
        "code": _own_code(type(model)),
        "config": _text(_computed(parse_json(config.to_json_string(use_diff=False), "the configuration", finite=False))),
        "attention": getattr(config, "_attn_implementation", None),
        "libraries": versions(),
        "device": model.device.type,
    }
    return digest(decisive)[:16]


def answerer_fingerprint(weights: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of all that decides what a model says to a text: the network, the tokenizer with its templates, the ends.

    Args:
        weights: its `weights_fingerprint`.
        model: the model.
        tokenizer: its tokenizer.
    """
    decisive = [network_fingerprint(weights, model), tokenizer_fingerprint(tokenizer), end_tokens(model, tokenizer)]
    return digest(decisive)[:16]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of all that decides how a tokenizer cuts texts, puts them together again and renders conversations."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decisive = {
        "class": type(tokenizer).__name__,
        "code": _own_code(type(tokenizer)),
        "whole": _whole(backend.to_str()) if backend is not None else sorted(tokenizer.get_vocab().items()),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "chat": tokenizer.chat_template,
        "blanks": getattr(tokenizer, "clean_up_tokenization_spaces", None),
        "split": getattr(tokenizer, "split_special_tokens", None),
    }
    return digest(_text(decisive))[:16]


@lru_cache(maxsize=2)
def _whole(backend: str) -> str:
    """The digest of a tokenizer as its library writes it, megabytes of JSON: a run asks for it at every measured point."""
    document = parse_json(backend, "the tokenizer", finite=False)
    # A call that pads or truncates leaves that there; no two calls here differ in it.
    return digest(_text(document | {"padding": None, "truncation": None}))


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the tokenizer's end token first, then those of the checkpoint's generation settings.

    Chat models name the end of a turn there (`<end_of_turn>`, `<|eot_id|>`), where the tokenizer's is the end of a text.
    """
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    further = [named] if isinstance(named, int) else list(named or [])
    known = len(model.get_input_embeddings().weight) if further else 0  # type: ignore[arg-type]
    ends = [int(tokenizer.eos_token_id), *(int(token) for token in further if 0 <= int(token) < known)]
    return list(dict.fromkeys(ends))


def versions(*more: str) -> dict[str, JSON]:
    """The releases of `LIBRARIES`, and of further packages where they are installed."""
    return {name: release for name in (*LIBRARIES, *more) if (release := _version(name))}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _computed(config: Any) -> Any:
    """A configuration without the fields that change no number, parts of it likewise."""
    if isinstance(config, dict):
        return {name: _computed(value) for name, value in config.items() if name not in _NOT_COMPUTED}
    return config


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)  # a configuration may hold infinity


def _own_code(kind: type) -> JSON:
    """The digests of the code that came with a checkpoint, where its model or tokenizer is made of such; else None."""
    if not kind.__module__.startswith("transformers_modules"):
        return None
    file = Path(str(sys.modules[kind.__module__].__file__))
    return {each.name: file_digest(each) for each in sorted(file.parent.glob("*.py"))}
