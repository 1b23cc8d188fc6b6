"""A model out of one GGUF file: its numbers put into float32, once, and kept as an ordinary checkpoint.

transformers reads such a file (with the package gguf) into a model that it will not save again, hence the fresh one. What a
4-bit file has lost it does not get back: the model is near the one it was made from, not it.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.caching import CacheEntry, CacheView
from harness.core.config import JSON
from harness.core.errors import UsageError
from harness.core.progress import progress_bar
from harness.data.hub_errors import quiet, refused
from harness.models.sources import CheckpointSource, save_checkpoint
from harness.numerics.loading import check_fit
from harness.storage.cache import Cache, digest, file_digest

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

CONVERSION_VERSION = 2
"""Raised when this file changes what comes of a GGUF file."""
SPECIAL_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
"""A tokenizer's special tokens, and what a GGUF file calls them."""


def read_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """A GGUF file's tokenizer, which takes 7 to 18 s for SmolLM2.

    Special tokens are those that the file names: transformers 5.17 takes others, and ends SmolLM2's texts with <|im_start|>.
    """
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    fields = GGUFReader(file).fields
    for name, called in SPECIAL_TOKENS.items():
        if field := fields.get(f"tokenizer.ggml.{called}_token_id"):
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(int(field.parts[field.data[0]][0])))
    return tokenizer


@lru_cache(maxsize=1)
def _tokenizer(name: str, file: Path, corrections: tuple[tuple[str, float], ...], of: str) -> PreTrainedTokenizerBase:
    """Once for all the runs that are planned: from the checkpoint in the cache, or from the file where there is none yet.

    Args:
        name: as of `GgufSource`.
        file: likewise.
        corrections: likewise.
        of: digest of the identity: another file in its place is another one.
    """
    if made := GgufSource(name, file, dict(corrections)).made():
        return made.tokens()
    _check_readable(name, file)
    with refused(name, f"GGUF file {file.name}"), quiet():
        return read_tokenizer(file)


@lru_cache(maxsize=1)
def _config(name: str, file: Path, corrections: tuple[tuple[str, float], ...], of: str) -> PretrainedConfig:
    """Likewise the configuration, which takes some seconds to read out of the file."""
    from transformers import AutoConfig

    if made := GgufSource(name, file, dict(corrections)).made():
        return made.config()
    _check_readable(name, file)
    with refused(name, f"GGUF file {file.name}"), quiet():
        return _corrected(AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name), dict(corrections))


def _corrected(config: PretrainedConfig, corrections: Mapping[str, float]) -> PretrainedConfig:
    """A configuration with the fields that the file does not say exactly, and without a word of how its numbers are packed."""
    for key, value in corrections.items():
        setattr(config, key, value)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def _check_readable(name: str, file: Path) -> None:
    """Refuse it where the package that reads such files is missing."""
    from transformers.utils.import_utils import is_gguf_available

    if not is_gguf_available():
        raise UsageError(
            f"the weights of {name} are in a GGUF file here ({file.name}), which the package gguf reads: "
            "pip install gguf (or the extra smollm2 of this harness)."
        )


@dataclass(frozen=True)
class GgufSource:
    """A model in a GGUF file."""

    name: str
    """For messages."""
    file: Path
    """The file."""
    corrections: Mapping[str, float] = field(default_factory=dict)
    """Fields of the configuration that the file does not say exactly."""

    @cached_property
    def identity(self) -> Mapping[str, JSON]:
        """The digest of the file, and how it is read; never a path."""
        return {
            "kind": "gguf",
            "version": CONVERSION_VERSION,
            "file": file_digest(self.file),
            "config": dict(self.corrections),
        }

    def checkpoint(self, cache: CacheView) -> CheckpointSource:
        """The ordinary checkpoint that is made of it; made now if it is not in the cache.

        Raises:
            UsageError: where the package gguf is missing, or the file cannot be read.
        """
        return CheckpointSource(str(self._entry(cache).path))

    def load(self, cache: CacheView, device: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model in eval mode and its tokenizer; see `checkpoint`."""
        return self.checkpoint(cache).load(cache, device, dtype)

    def tokens(self) -> PreTrainedTokenizerBase:
        """The tokenizer alone: from the ordinary checkpoint where that is in the cache, else from the file, which takes longer.

        Raises:
            UsageError: as `checkpoint` does.
        """
        return _tokenizer(self.name, self.file, tuple(self.corrections.items()), digest(self.identity))

    def config(self) -> PretrainedConfig:
        """The configuration alone, likewise.

        Raises:
            UsageError: as `checkpoint` does.
        """
        return copy.deepcopy(_config(self.name, self.file, tuple(self.corrections.items()), digest(self.identity)))

    def made(self) -> CheckpointSource | None:
        """The ordinary checkpoint, if it is in the cache."""
        entry = Cache().find("model", self.identity)
        return CheckpointSource(str(entry.path)) if entry else None

    def seconds(self, cache: CacheView) -> float | None:
        """What training it took is not known."""
        return None

    def _entry(self, cache: CacheView) -> CacheEntry:
        return cache.get("model", self.identity, self._convert)

    def _convert(self, folder: Path) -> Mapping[str, JSON]:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar

        _check_readable(self.name, self.file)
        disable_progress_bar()
        place, name = str(self.file.parent), self.file.name
        # It takes a minute or two, once; transformers draws a bar of its own of the last seconds.
        bar = progress_bar(desc=f"reading {name}", unit="file", leave=True)
        with bar, refused(self.name, f"GGUF file {name}"), quiet(), redirect_stderr(io.StringIO()):
            self._check_whole()
            loaded: tuple[PreTrainedModel, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(  # type: ignore[assignment]
                place, gguf_file=name, dtype=torch.float32, output_loading_info=True
            )
            read, loading = loaded
            check_fit(f"{self.name} in {name}", loading, read)
            tokenizer = read_tokenizer(self.file)
            model = AutoModelForCausalLM.from_config(_corrected(read.config, self.corrections), dtype=torch.float32)
            model.load_state_dict(read.state_dict())
        save_checkpoint(model, tokenizer, folder, {})
        return {"name": self.name}

    def _check_whole(self) -> None:
        """Refuse a file that ends too early, or is another kind of file: what reads it speaks of arrays then."""
        from gguf import GGUFReader

        try:
            GGUFReader(self.file)
        except Exception as error:
            raise UsageError(
                f"the GGUF file {self.file.name} of {self.name} cannot be loaded: of {self.file.stat().st_size:,} bytes, it is "
                f"cut off, damaged or no GGUF file ({error}). Fetch it again."
            ) from error
