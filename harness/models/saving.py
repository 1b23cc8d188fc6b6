"""Tensors and checkpoints into files. Who may read them is the umask's business, as with every other file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.documents import read_json

if TYPE_CHECKING:
    from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file; a file that is there already keeps its mode.

    Args:
        tensors: by name; copied to the CPU.
        path: the file.
        metadata: text kept in its head.

    Raises:
        OSError: if it cannot be written.
        SafetensorError: likewise, from within safetensors; `harness.storage.cache.disk_errors` knows both.
    """
    from safetensors.torch import save_file

    new = not path.exists()
    path.touch()  # safetensors puts a file of its own there, which only its owner may read
    mode = path.stat().st_mode
    try:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path, dict(metadata or {}) or None)
    except BaseException:
        if new:
            path.unlink(missing_ok=True)
        raise
    path.chmod(mode)


def same_mode(files: Iterable[Path], like: Path) -> None:
    """Give files that safetensors wrote the mode of one that was written beside them."""
    mode = like.stat().st_mode
    for file in files:
        file.chmod(mode)


def for_older_readers(folder: Path) -> None:
    """Say what transformers 4 reads under other names too: it would refuse the tokenizer, and take other rotations silently.

    open-unlearning and lm-eval's users pin a release of transformers 4, which knows no class `TokenizersBackend`, no list of
    `extra_special_tokens` and no `rope_parameters`: positions then turn with a base of 10,000 whatever the model was trained
    with. transformers 5 reads both names alike.

    Args:
        folder: a checkpoint that transformers 5 has just written.
    """
    config, tokens = folder / "config.json", folder / "tokenizer_config.json"
    if config.is_file():
        document = read_json(config, finite=False)
        _write(config, document | _older_rotation(document.get("rope_parameters")) | _older_type(document))
    if tokens.is_file():
        document = read_json(tokens, finite=False)
        if document.get("tokenizer_class") == "TokenizersBackend":
            document["tokenizer_class"] = "PreTrainedTokenizerFast"
        if isinstance(document.get("extra_special_tokens"), list):
            document["additional_special_tokens"] = document.pop("extra_special_tokens")
        _write(tokens, document)


def _older_rotation(settings: Any) -> dict[str, Any]:
    """`rope_parameters` under the names of transformers 4; nothing where layers of several kinds turn differently."""
    if not isinstance(settings, dict) or "rope_theta" not in settings:
        return {}
    apart = ("rope_theta", "partial_rotary_factor")
    scaling = {name: value for name, value in settings.items() if name not in apart}
    plain = scaling.get("rope_type", "default") == "default"
    return {name: settings[name] for name in apart if name in settings} | ({} if plain else {"rope_scaling": scaling})


def _older_type(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"torch_dtype": settings["dtype"]} if "dtype" in settings else {}


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
