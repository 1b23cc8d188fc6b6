"""What transformers, torch and the hub say of a checkpoint that cannot be read, in one sentence each."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.core.errors import UsageError
from harness.core.memory import ran_out


@contextmanager
def refused(name: str, part: str, offline: str | None = None) -> Iterator[None]:
    """Whatever transformers raises of a user's files, in one sentence; what ran out of memory is told elsewhere."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UsageError) or ran_out(error):
            raise
        raise refusal(name, part, error, offline) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own reports, which are told here in one sentence or refused."""
    from transformers.utils import logging as of_transformers

    before = of_transformers.get_verbosity()
    of_transformers.set_verbosity_error()
    try:
        yield
    finally:
        of_transformers.set_verbosity(before)


def refusal(name: str, part: str, error: Exception, offline: str | None = None) -> UsageError:
    """What to say of a part of a checkpoint (configuration, tokenizer, model) that could not be read."""
    from huggingface_hub.errors import GatedRepoError

    if trouble := torchvision_trouble(error):
        return UsageError(trouble)
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
        return UsageError(
            f"{name} comes with code of its own, which is not run. Read it, then pass --trust-remote-code (no word for "
            "the base of an adapter: put the adapter into the base's folder)."
        )
    if part == "tokenizer" and (needed := _packages_for(name, text)):
        return UsageError(
            f"the tokenizer of {name} cannot be read yet: pip install {needed}, or put a tokenizer.json beside its model file."
        )
    if isinstance(error, EOFError) or "failed finding central directory" in text or "not a ZIP archive" in text:
        return UsageError(f"the {part} of {name} cannot be loaded: a file of weights is empty or was cut off.")
    if "Weights only load failed" in text or "unpickl" in text.lower():
        if "Unsupported" in text or "GLOBAL" in text or "global" in text:
            return UsageError(
                f"the weights of {name} hold more than tensors and could run code when loaded; this harness does not "
                "unpickle them. Convert them to safetensors on a machine you can spare."
            )
        return UsageError(f"the {part} of {name} cannot be loaded: its weights were not written by torch, or are damaged.")
    strict = type(error).__name__.startswith("StrictDataclass")  # a field of config.json, whatever it was read for
    if strict:
        part, text = "configuration", text.partition("Error: ")[2] or text
    kind = "" if text and (strict or isinstance(error, OSError | ValueError | RuntimeError)) else f"{type(error).__name__}: "
    return UsageError(f"the {part} of {name} cannot be loaded: {kind}{text[:300]}")


def torchvision_of_another_build() -> tuple[str, str] | None:
    """The releases of torchvision and torch where one is a CPU build and the other is none; None where they fit."""
    try:
        vision, torch = (importlib.metadata.version(name) for name in ("torchvision", "torch"))
    except importlib.metadata.PackageNotFoundError:
        return None
    return (vision, torch) if ("+cpu" in vision) != ("+cpu" in torch) else None


def torchvision_trouble(error: BaseException) -> str | None:
    """What to do where transformers could not be imported for a torchvision that was built for another torch; else None."""
    if "Could not import module" in str(error) and (builds := torchvision_of_another_build()):
        vision, torch = builds
        return (
            f"transformers cannot be imported, since torchvision {vision} was built for another torch than {torch}. "
            "Nothing here needs it: pip uninstall torchvision"
        )
    return None


def _packages_for(name: str, text: str) -> str | None:
    """The packages that are missing to read a tokenizer: its only file is a SentencePiece model, or tiktoken's."""
    from transformers.utils.import_utils import is_protobuf_available, is_sentencepiece_available

    if "sentencepiece" not in text.lower() and "tiktoken" not in text.lower() and "protobuf" not in text.lower():
        return None
    file = Path(name) / "tokenizer.model"
    if file.is_file() and re.match(rb"[A-Za-z0-9+/=]+ \d+\r?\n", file.read_bytes()[:200]):
        return "tiktoken"
    installed = {"sentencepiece": is_sentencepiece_available(), "protobuf": is_protobuf_available()}
    missing = [package for package, known in installed.items() if not known]
    return " ".join(missing) or None


def gated(name: str) -> str:
    """What to do about a repository behind a licence gate."""
    return f"{name} is behind a licence gate: accept it at huggingface.co/{name} and set HF_TOKEN (or run hf auth login)."
