"""Checkpoints read from the hub or a folder: the configuration, the tokenizer, the weights, and what is refused of them.

What a checkpoint is called, and what names its weights, is told in `harness.models`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError
from harness.hub import pinned, unreachable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONFIG_FILES = ("config.json",)
"""What makes a folder a checkpoint."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Any of them makes a folder a tokenizer."""
ALL_GPUS = "cuda:all"
"""The device that stands for all GPUs together."""
_PADDING = {"<pad>", "[PAD]"}


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
            revision=pinned(name, revision),
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
        raise refusal(name, "model", error, offline) from error
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
            name,
            revision=pinned(name, revision),
            trust_remote_code=trust_remote_code,
            local_files_only=offline is not None,
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise refusal(name, "tokenizer", error, offline) from error


def placement(model: PreTrainedModel) -> str:
    """The device to ask for when another model is to lie where this one does."""
    devices = set((getattr(model, "hf_device_map", None) or {}).values())
    return ALL_GPUS if len(devices) > 1 else str(model.device)


def refusal(name: str, part: str, error: Exception, offline: str | None = None) -> UsageError:
    """What to say of a part of a checkpoint (configuration, tokenizer, model) that could not be read."""
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
