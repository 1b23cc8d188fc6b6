"""Tensors into files. Who may read them is the umask's business, as with every other file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

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
        SafetensorError: likewise, from within safetensors; `harness.cache.disk_errors` knows both.
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
