"""What is kept of an unlearned model besides its record: a checkpoint, or the difference of its weights from before."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.config import JSON
from harness.core.errors import UsageError
from harness.storage.cache import disk_errors
from harness.storage.temporary import temporary_file

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ExportOptions:
    """Where it goes; nowhere where nothing is given."""

    model: Path | None = None
    """A folder for the checkpoint."""
    update: Path | None = None
    """A safetensors file for the difference of the weights."""

    def __bool__(self) -> bool:
        return bool(self.model or self.update)

    def check(self, needed: int = 0) -> None:
        """Try each place, so that hours of unlearning are not spent on a model that cannot be written.

        Args:
            needed: about how many bytes will be written to each, where that is known.

        Raises:
            UsageError: for a place that cannot be written, or has no room.
        """
        on_disk: Counter[int] = Counter()
        for what, flag, path in self._places():
            with disk_errors(what, f"Choose another with {flag}", whatever=True):
                folder = _nearest(path if flag == "--save-model" else path.parent)
                if flag == "--save-update" and path.exists():
                    _check_file(path)
                with temporary_file(folder):
                    pass
                disk, free = folder.stat().st_dev, shutil.disk_usage(folder).free
            on_disk[disk] += needed  # both places may lie on one
            if free < on_disk[disk]:
                raise UsageError(
                    f"{what} has {free / 2**30:.2f} GiB left on its disk, and about {on_disk[disk] / 2**30:.2f} GiB are to be "
                    f"written. Free some space, or choose another with {flag}."
                )

    def check_met(self, points: int) -> None:
        """Refuse to keep a model that met none of its budgets: it stands wherever its way ended.

        Args:
            points: how many were measured.

        Raises:
            UsageError: if there are none and something is to be kept.
        """
        if self and not points:
            raise UsageError(
                "no budget was met, so there is no model to keep; the record says why. Give --budgets that the method meets, "
                "or leave out --save-model and --save-update."
            )

    def write(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        about: Mapping[str, JSON],
        before: Mapping[str, Tensor],
        metadata: Mapping[str, str],
    ) -> None:
        """Write what is asked for.

        Args:
            model: the unlearned model.
            tokenizer: its tokenizer.
            about: for the checkpoint's sidecar.
            before: the weights before unlearning; not looked at without an update.
            metadata: for the update's head.

        Raises:
            UsageError: for a place that cannot be written, or a full disk.
        """
        from harness.models.saving import save_tensors
        from harness.models.sources import save_checkpoint
        from harness.models.updates import changed
        from harness.numerics.sharding import state

        if self.model:
            with disk_errors(f"the folder {self.model}", "Choose another with --save-model", within=self.model):
                save_checkpoint(model, tokenizer, self.model, about)
        if self.update:
            moved = changed(state(model), before)
            with disk_errors(f"the file {self.update}", "Choose another with --save-update", within=self.update.parent):
                self.update.parent.mkdir(parents=True, exist_ok=True)
                save_tensors(moved, self.update, metadata)

    def _places(self) -> Iterator[tuple[str, str, Path]]:
        if self.model:
            yield f"the folder {self.model}", "--save-model", self.model
        if self.update:
            yield f"the file {self.update}", "--save-update", self.update


def _nearest(path: Path) -> Path:
    """As much of a folder's path as is there."""
    nearest = next(part for part in (path.absolute(), *path.absolute().parents) if part.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    return nearest


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
