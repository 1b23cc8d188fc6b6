"""Where models come from, and what names their weights.

Three sources behind one interface (`harness.interfaces.ModelSource`): a checkpoint on the hub or in a folder
(here), and a small model trained on the spot (`harness.pretraining`). All are ordinary checkpoints once they exist.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cache import Cache, digest, file_digest
from harness.config import JSON
from harness.errors import UsageError
from harness.hub import unreachable
from harness.interfaces import ModelSource

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SIDECAR = "harness.json"
"""Beside a checkpoint that this harness wrote: what it is, and the template its questions need."""

_WEIGHTS = ("*.safetensors", "*.bin")


def source_digest(source: ModelSource) -> str:
    """A digest that names a source's weights without loading them."""
    return digest(source.identity)[:16]


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint on the hub or in a folder."""

    name: str
    """A hub id, or a folder's path."""
    revision: str | None = None
    """A hub revision."""
    tokenizer: str | None = None
    """Where the tokenizer is, if not beside the weights."""
    trust_remote_code: bool = False
    """Whether code that comes with the checkpoint may run."""

    @property
    def folder(self) -> Path | None:
        """The folder, if it is one."""
        path = Path(self.name)
        return path if path.is_dir() else None

    @property
    def identity(self) -> Mapping[str, JSON]:
        """A hub id with its revision, or the digests of a folder's files; never a path."""
        told = _identity(self.name, self.revision, (*_WEIGHTS, "*.json"))
        return {**told, "tokenizer": _identity(self.tokenizer, None, ("*.json", "*.model"))} if self.tokenizer else told

    def load(self, cache: Cache, device: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model in eval mode and its tokenizer.

        Raises:
            UsageError: for a checkpoint that is not there, has no tokenizer, asks for remote code, or holds
                weights that could run code when loaded.
        """
        return load_checkpoint(self.name, device, dtype, self.revision, self.tokenizer, self.trust_remote_code)

    def seconds(self, cache: Cache) -> float | None:
        """Nobody recorded what training a published checkpoint took."""
        return None


def _identity(name: str, revision: str | None, patterns: Sequence[str]) -> dict[str, JSON]:
    if not Path(name).is_dir():
        return {"kind": "hub", "id": name, "revision": revision or _local_revision(name)}
    files = sorted(f for pattern in patterns for f in Path(name).glob(pattern) if f.name != SIDECAR)
    return {"kind": "folder", "files": {f.name: file_digest(f) for f in files}}


def _local_revision(hub_id: str) -> str | None:
    """The commit that the hub's local cache holds as `main`, if any."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "config.json")
    return Path(found).parent.name if isinstance(found, str) else None


def load_checkpoint(
    name: str,
    device: str,
    dtype: str,
    revision: str | None = None,
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer from the hub or a folder; see `CheckpointSource.load`."""
    import pickle

    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a bar for each of many small files says nothing

    if Path(name).is_absolute() and not Path(name).is_dir():
        raise UsageError(f"there is no checkpoint folder {name}.")
    offline = None if Path(name).is_dir() else unreachable()
    try:
        loaded_tokenizer = AutoTokenizer.from_pretrained(
            tokenizer or name,
            revision=None if tokenizer else revision,
            trust_remote_code=trust_remote_code,
            local_files_only=offline is not None,
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise _refusal(name, "tokenizer", error, offline) from error
    if len(loaded_tokenizer) <= len(loaded_tokenizer.all_special_tokens):
        raise UsageError(f"the checkpoint {name} has no tokenizer files (tokenizer.json or tokenizer.model).")
    try:
        loaded: tuple[PreTrainedModel, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(  # type: ignore[assignment]
            name,
            revision=revision,
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            local_files_only=offline is not None,
            output_loading_info=True,
        )
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"the weights of {name} hold more than tensors and could run code when loaded; this harness does not "
            "unpickle them. Convert them to safetensors on a machine you can spare."
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise _refusal(name, "model", error, offline) from error
    model, told = loaded
    if missing := sorted(told["missing_keys"]):
        raise UsageError(
            f"the weights of {name} lack {len(missing)} of its model's tensors, {missing[0]} among them; they would be random."
        )
    vocabulary = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    if len(loaded_tokenizer) > vocabulary:
        raise UsageError(f"the tokenizer of {name} has {len(loaded_tokenizer)} tokens, its model only {vocabulary}.")
    model.to(device)  # type: ignore[arg-type]
    return model.eval(), loaded_tokenizer


def _refusal(name: str, part: str, error: Exception, offline: str | None = None) -> UsageError:
    text = " ".join(str(error).split())
    if offline:
        return UsageError(
            f"the {part} of {name} is not in the hub's local cache, and {offline}. Give a folder with the checkpoint."
        )
    if "gated repo" in text.lower():
        return UsageError(
            f"{name} is behind a licence gate: accept it at huggingface.co/{name} and set HF_TOKEN (or run hf auth login)."
        )
    if "trust_remote_code" in text or "custom code" in text:
        return UsageError(f"{name} comes with code of its own, which is not run. Read it, then pass --trust-remote-code.")
    if "weights_only" in text.lower() or "unpickl" in text.lower():
        return UsageError(f"the weights of {name} could run code when loaded; convert them to safetensors first.")
    return UsageError(f"the {part} of {name} cannot be loaded: {text[:300]}")


def weights_fingerprint(model: nn.Module) -> str:
    """A digest of all parameters: names, shapes, types and every bit of their values.

    Reads each once; on a 7B model in float32 some 20 s.
    """
    import torch

    state = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()[:16]


def save_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, about: Mapping[str, JSON]
) -> None:
    """Write an ordinary checkpoint (config.json, model.safetensors, tokenizer.json) and `harness.json` beside it.

    Args:
        model: whose weights.
        tokenizer: its tokenizer.
        folder: made if it is not there.
        about: what a later run must know, such as the template's name.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / SIDECAR).write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_sidecar(folder: Path | None) -> Mapping[str, JSON]:
    """What `save_checkpoint` wrote beside a checkpoint; empty where there is nothing."""
    if folder is None or not (folder / SIDECAR).is_file():
        return {}
    return json.loads((folder / SIDECAR).read_text(encoding="utf-8"))  # type: ignore[no-any-return]
