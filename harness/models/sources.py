"""Where models come from, and what names their weights.

Three sources behind one interface (`harness.core.problem.ModelSource`): a checkpoint on the hub or in a folder
(here), and a small model trained on the spot (`harness.models.pretraining`). All are ordinary checkpoints once they exist.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.core.caching import CacheView
from harness.core.config import JSON
from harness.core.documents import Malformed, read_json
from harness.core.errors import UsageError
from harness.core.problem import ModelSource
from harness.data.hub import pinned
from harness.models.saving import for_older_readers, same_mode
from harness.numerics import sharding
from harness.numerics.configurations import CONFIG_FILES, TOKENIZER_FILES, local_folder, read_config, weights_of
from harness.numerics.identity import SIDECAR, folder_identity, foreign_code
from harness.numerics.loading import Examined, examine, load_checkpoint, tokenizer_of
from harness.storage.cache import digest

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

LARGE = 2**30
"""Bytes of weights beyond which their fingerprint is made where they lie. Records hold fingerprints: it stays as it is."""


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
    """A branch, tag or commit of the hub; `main` if not given. What is loaded is the commit it stood for at first."""
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
        """A hub id with its commit, or the digests of a folder's files; never a path."""
        identity = _identity(self._place, self.revision, code=self.trust_remote_code)
        if base := self._base:
            identity["base"] = dict(base.identity)
        if where := self._tokenizer_place:
            identity["tokenizer"] = _identity(where, None, weights=False, code=self.trust_remote_code)
        if self.trust_remote_code:
            identity["code"] = {"run": True, **foreign_code(self._place, self.commit)}
        return identity

    @property
    def commit(self) -> str | None:
        """The commit of the hub that is loaded; where nobody knows it the `revision` itself. None for a folder."""
        return pinned(self._place, self.revision)

    @property
    def _base(self) -> CheckpointSource | None:
        """What an adapter alone is merged into when it is loaded."""
        weights = weights_of(self._place, self.commit, self.data_dir)
        return None if weights.name == self._place else CheckpointSource(weights.name, weights.revision)

    @property
    def _place(self) -> str:
        return str(self.folder or self.name)

    @property
    def _tokenizer_place(self) -> str | None:
        if self.tokenizer is None:
            return None
        return str(local_folder(self.tokenizer, self.data_dir, TOKENIZER_FILES) or self.tokenizer)

    def load(self, cache: CacheView, device: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model in eval mode and its tokenizer.

        Raises:
            UsageError: for a checkpoint that is not there, has no tokenizer, asks for remote code, or holds
                weights that could run code when loaded.
        """
        try:
            return load_checkpoint(
                self._place, device, dtype, self.commit, self._tokenizer_place, self.trust_remote_code, self.data_dir
            )
        except UsageError as error:
            if not self.doubt:
                raise
            raise UsageError(f"{error} Mind that {self.doubt}.") from error

    def examine(self) -> Examined:
        """Look it over without reading its weights: configuration, tokenizer, names and shapes of the weights.

        Raises:
            UsageError: as `load` does.
        """
        place = self._tokenizer_place
        return examine(self._place, self.commit, place, self.trust_remote_code, self.data_dir)[0]

    def config(self) -> PretrainedConfig:
        """Its configuration; of a multimodal checkpoint, that of its text part.

        Raises:
            UsageError: as `load` does.
        """
        return read_config(self._place, self.commit, self.trust_remote_code, self.data_dir)

    def tokens(self) -> PreTrainedTokenizerBase:
        """The tokenizer alone.

        Raises:
            UsageError: as `load` does.
        """
        weights = weights_of(self._place, self.commit, self.data_dir)
        return tokenizer_of(self._place, self.commit, self._tokenizer_place, weights, self.trust_remote_code)

    def seconds(self, cache: CacheView) -> float | None:
        """Nobody recorded what training a published checkpoint took."""
        return None


def _identity(name: str, revision: str | None, weights: bool = True, code: bool = False) -> dict[str, JSON]:
    if Path(name).is_dir():
        return folder_identity(Path(name), weights, code)
    return {"kind": "hub", "id": name, "revision": pinned(name, revision)}


def weights_fingerprint(model: nn.Module) -> str:
    """A digest of all parameters: names, shapes, types and every bit of their values.

    SHA-256 on the CPU of up to `LARGE` bytes, some 2 GB a second there; beyond, of sums that are made where the weights lie,
    with `sums-` in front. The size alone decides which, so that weights have one fingerprint wherever they lie.
    """
    import torch

    from harness.numerics.digests import tensor_digest

    large = sum(tensor.nbytes for tensor in model.state_dict().values()) > LARGE
    state = hashlib.sha256()
    for name, tensor in sharding.weights(model):
        state.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if large:
            state.update(tensor_digest(tensor))
        else:
            state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"{'sums-' if large else ''}{state.hexdigest()[:16]}"


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
    model.save_pretrained(folder, state_dict=dict(sharding.state(model)) if sharding.is_sharded(model) else None)
    tokenizer.save_pretrained(folder)
    for_older_readers(folder)
    (folder / SIDECAR).write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    same_mode(folder.glob("*.safetensors"), folder / SIDECAR)


def read_sidecar(folder: Path | None) -> Mapping[str, JSON]:
    """What `save_checkpoint` wrote beside a checkpoint; empty where there is nothing.

    Raises:
        UsageError: for a file of that name that is none.
    """
    if folder is None or not (folder / SIDECAR).is_file():
        return {}
    try:
        sidecar = read_json(folder / SIDECAR)
    except Malformed:
        sidecar = None
    if not isinstance(sidecar, dict):
        raise UsageError(f"{SIDECAR} of {folder.name} was not written by this harness; move it away.")
    return sidecar
