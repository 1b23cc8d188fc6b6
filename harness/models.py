"""Where models come from, and what names their weights.

Three sources behind one interface (`harness.interfaces.ModelSource`): a checkpoint on the hub or in a folder
(here), and a small model trained on the spot (`harness.pretraining`). All are ordinary checkpoints once they exist.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
CONFIG_FILES = ("config.json",)
"""What makes a folder a checkpoint."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Any of them makes a folder a tokenizer."""
ALL_GPUS = "cuda:all"
"""The device that stands for all GPUs together."""
_PADDING = {"<pad>", "[PAD]"}


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """A published model that a benchmark unlearns from, and what was made of it: retrained models, unlearned ones."""

    about: str
    """One line for a listing."""
    base: str
    """Hub id of the model that knows everything."""
    retain: str = ""
    """Hub id of the retrained models, `{split}` standing for `retain90` and so on; empty where there are none."""
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    """Published unlearned models: name of the source, such as `checkpoint-rmu` → hub id."""
    tokenizer: str
    """Hub id of the tokenizer."""
    template: str
    """Name of the benchmark's template."""
    parameters: int
    """How many weights it has."""
    base_bytes: int
    """What the weights of `base` take on disk."""
    retain_bytes: int = 0
    """What those of one retrained model take."""
    format: Literal["safetensors", ".bin"]
    """How the weights are stored."""
    licence: str
    """Under which licence."""
    gate: str = ""
    """The hub repository where the licence must be accepted before anything can be fetched, if there is such a gate."""
    doubts: Mapping[str, str] = field(default_factory=dict)
    """Retain split → what is not certain about that checkpoint, for every reader of its numbers."""
    notes: Sequence[str] = ()
    """What a reader of its numbers must know."""


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
    data_dir: Path | None = None
    """A folder laid out by hub id that is looked at before the hub."""
    doubt: str = ""
    """What is not certain about it; told when it cannot be loaded."""

    @property
    def folder(self) -> Path | None:
        """The folder it is in: its own, or the one of its hub id in the data folder."""
        return local_folder(self.name, self.data_dir, CONFIG_FILES)

    @property
    def identity(self) -> Mapping[str, JSON]:
        """A hub id with its revision, or the digests of a folder's files; never a path."""
        told = _identity(self._here, self.revision, (*_WEIGHTS, "*.json"))
        where = self._tokenizer_here
        return {**told, "tokenizer": _identity(where, None, ("*.json", "*.model", "*.txt"))} if where else told

    @property
    def _here(self) -> str:
        return str(self.folder or self.name)

    @property
    def _tokenizer_here(self) -> str | None:
        if self.tokenizer is None:
            return None
        return str(local_folder(self.tokenizer, self.data_dir, TOKENIZER_FILES) or self.tokenizer)

    def load(self, cache: Cache, device: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model in eval mode and its tokenizer.

        Raises:
            UsageError: for a checkpoint that is not there, has no tokenizer, asks for remote code, or holds
                weights that could run code when loaded.
        """
        try:
            return load_checkpoint(self._here, device, dtype, self.revision, self._tokenizer_here, self.trust_remote_code)
        except UsageError as error:
            if not self.doubt:
                raise
            raise UsageError(f"{error} Mind that {self.doubt}.") from error

    def tokens(self) -> PreTrainedTokenizerBase:
        """The tokenizer alone.

        Raises:
            UsageError: as `load` does.
        """
        if self._tokenizer_here:
            return load_tokenizer(self._tokenizer_here, None, self.trust_remote_code)
        return load_tokenizer(self._here, self.revision, self.trust_remote_code)

    def seconds(self, cache: Cache) -> float | None:
        """Nobody recorded what training a published checkpoint took."""
        return None


def own_dtype(source: CheckpointSource) -> str:
    """The type a checkpoint's weights are stored in, as its configuration says; float32 if it does not.

    Raises:
        UsageError: for a checkpoint that is not there.
    """
    from transformers import AutoConfig

    here = source.folder or source.name
    offline = None if source.folder else unreachable()
    try:
        config = AutoConfig.from_pretrained(
            here, revision=source.revision, trust_remote_code=source.trust_remote_code, local_files_only=offline is not None
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise _refusal(str(source.name), "configuration", error, offline) from error
    return str(config.dtype or "float32").removeprefix("torch.")


def local_folder(name: str, data_dir: Path | None, files: Sequence[str]) -> Path | None:
    """The folder that a checkpoint's name stands for, or None if it has to come from the hub.

    Args:
        name: a folder's path, or a hub id.
        data_dir: a folder laid out by hub id, or None.
        files: any of them makes the hub id's folder there count.
    """
    if Path(name).is_dir():
        return Path(name)
    if data_dir is None or Path(name).is_absolute():
        return None
    folder = data_dir / name
    return folder if any((folder / file).is_file() for file in files) else None


def _identity(name: str, revision: str | None, patterns: Sequence[str]) -> dict[str, JSON]:
    if not Path(name).is_dir():
        return {"kind": "hub", "id": name, "revision": revision or _local_revision(name)}
    files = sorted(f for pattern in patterns for f in Path(name).glob(pattern) if f.name != SIDECAR)
    return {"kind": "folder", "files": {f.name: _digest_of(f, f.stat().st_size, f.stat().st_mtime_ns) for f in files}}


@cache
def _digest_of(file: Path, size: int, modified: int) -> str:
    # A run asks several times, and a 7B model's files take half a minute to read.
    return file_digest(file)


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
    """A model and its tokenizer from the hub or a folder; see `CheckpointSource.load`.

    On `cuda:all` the decoder layers are spread evenly over all GPUs (accelerate's `device_map="balanced"`), for a model larger
    than one of them. No machine with several GPUs was at hand: that path has never been run.
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a bar for each of many small files says nothing

    if Path(name).is_absolute() and not Path(name).is_dir():
        raise UsageError(f"there is no checkpoint folder {name}.")
    offline = None if all(Path(place).is_dir() for place in (name, tokenizer or name)) else unreachable()
    loaded_tokenizer = load_tokenizer(tokenizer or name, None if tokenizer else revision, trust_remote_code)
    if len(loaded_tokenizer) <= len(loaded_tokenizer.all_special_tokens):
        raise UsageError(f"the checkpoint {name} has no tokenizer files (tokenizer.json or tokenizer.model).")
    try:
        loaded: tuple[PreTrainedModel, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(  # type: ignore[assignment]
            name,
            revision=revision,
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            local_files_only=offline is not None,
            device_map="balanced" if device == ALL_GPUS else None,
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
    # Llama-2's tokenizers come with a padding token its models lack; it is never used, since padding holds the end token.
    beyond = {token for token, number in loaded_tokenizer.get_vocab().items() if number >= vocabulary}
    if beyond - _PADDING - {loaded_tokenizer.pad_token}:
        raise UsageError(f"the tokenizer of {name} has {len(loaded_tokenizer)} tokens, its model only {vocabulary}.")
    if device != ALL_GPUS:
        model.to(device)  # type: ignore[arg-type]
    return model.eval(), loaded_tokenizer


def load_tokenizer(name: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer from the hub or a folder.

    Raises:
        UsageError: for one that is not there, or asks for remote code.
    """
    from transformers import AutoTokenizer

    offline = None if Path(name).is_dir() else unreachable()
    try:
        return AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code, local_files_only=offline is not None
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise _refusal(name, "tokenizer", error, offline) from error


def placement(model: PreTrainedModel) -> str:
    """The device to ask for when another model is to lie where this one does."""
    devices = set((getattr(model, "hf_device_map", None) or {}).values())
    return ALL_GPUS if len(devices) > 1 else str(model.device)


def _refusal(name: str, part: str, error: Exception, offline: str | None = None) -> UsageError:
    from huggingface_hub.errors import GatedRepoError

    text = " ".join(str(error).split())
    local = Path(name).is_dir()
    if offline and not local:
        return UsageError(
            f"the {part} of {name} is not in the hub's local cache, and {offline}. Put it into the data folder "
            f"(--data-dir DIR) as DIR/{name}, or give a folder with the checkpoint."
        )
    if isinstance(error.__cause__, GatedRepoError) or "gated repo" in text.lower():
        return UsageError(gated(name))
    if "trust_remote_code" in text or "custom code" in text:
        return UsageError(f"{name} comes with code of its own, which is not run. Read it, then pass --trust-remote-code.")
    if "weights_only" in text.lower() or "unpickl" in text.lower():
        return UsageError(f"the weights of {name} could run code when loaded; convert them to safetensors first.")
    return UsageError(f"the {part} of {name} cannot be loaded: {text[:300]}")


def gated(name: str) -> str:
    """What to do about a repository behind a licence gate."""
    return f"{name} is behind a licence gate: accept it at huggingface.co/{name} and set HF_TOKEN (or run hf auth login)."


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
    """What `save_checkpoint` wrote beside a checkpoint; empty where there is nothing.

    Raises:
        UsageError: for a file of that name that is none.
    """
    if folder is None or not (folder / SIDECAR).is_file():
        return {}
    try:
        told = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise UsageError(f"{SIDECAR} of {folder.name} was not written by this harness; move it away.")
    return told
