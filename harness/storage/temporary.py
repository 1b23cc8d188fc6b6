"""Temporary folders, which a killed process does not leave behind for ever.

A folder is held by a lock on a file in it, and the system lets go of the lock when its process ends, however that ends. What
nobody holds therefore belongs to nobody alive: the next run sweeps it. Nothing else in this project makes temporary files.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from harness.core.errors import UsageError

PREFIX = "unlearning-harness-"
"""How a folder's name begins in the system's temporary folder, which others use, too."""
_HELD = ".held"
"""The file in a folder that its process has locked."""
_TRIES = 100
"""How often a sweep may come between the making of a folder and its holding, before it is the locks that fail."""


def temporary_place() -> Path:
    """The system's temporary folder: TMPDIR, if it is set.

    Raises:
        UsageError: if none can be written, as on a full disk.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        message = "no folder for temporary files can be written. Free some space, or set TMPDIR to a folder that can."
        raise UsageError(message) from error


@contextmanager
def temporary_folder(place: Path | None = None, prefix: str = PREFIX) -> Iterator[Path]:
    """An empty folder, removed at the end with all that is in it.

    Args:
        place: where it is made; the system's temporary folder if not given.
        prefix: how the name of the folder around it begins.

    Raises:
        UsageError: if no lock can be taken there.
    """
    place = place or temporary_place()
    around, lock = _held_folder(place, prefix)
    try:
        folder = around / "files"
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(around, ignore_errors=True)
        lock.release()


def lost(folder: Path) -> bool:
    """Whether somebody has removed a temporary folder that is still in use, or begun to."""
    return not (folder.is_dir() and (folder.parent / _HELD).exists())


@contextmanager
def temporary_file(place: Path | None = None) -> Iterator[IO[str]]:
    """A file without a name, to be written and read by this process and those it starts; it ends with them.

    Args:
        place: the folder it is in; the system's temporary folder if not given.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace", dir=place) as file:
        yield file


def sweep(place: Path | None = None, prefix: str = PREFIX) -> int:
    """Remove the temporary folders of processes that are no more.

    Args:
        place: where they lie; the system's temporary folder if not given.
        prefix: how their names begin, as a pattern.

    Returns:
        The bytes that this freed.
    """
    freed = 0
    for around in sorted((place or temporary_place()).glob(f"{prefix}*")):
        with suppress(OSError):  # what cannot be locked may be in use
            if _ours(around) and (lock := _hold(around)):
                freed += _size(around)
                shutil.rmtree(around, ignore_errors=True)
                lock.release()
    return freed


def _held_folder(place: Path, prefix: str) -> tuple[Path, FileLock]:
    """A new folder and its lock."""
    for _ in range(_TRIES):
        around = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        try:
            lock = _hold(around)
        except OSError:
            shutil.rmtree(around, ignore_errors=True)
            raise
        if lock and (around / _HELD).exists():
            return around, lock
        shutil.rmtree(around, ignore_errors=True)  # a sweep came between the making and the holding
        if lock:
            lock.release()
    raise UsageError(
        f"no lock can be taken in {place}. Choose a folder whose disk has file locks: with HARNESS_CACHE if it is the cache's, "
        "else with TMPDIR."
    )


def _hold(around: Path) -> FileLock | None:
    """The lock of a folder; None where another process has it, or the folder is gone.

    Raises:
        OSError: if the system refuses it for another reason.
    """
    lock = FileLock(around / _HELD)
    try:
        lock.acquire(timeout=0)
    except (Timeout, FileNotFoundError):
        return None
    return lock


def _ours(path: Path) -> bool:
    """Whether it is a folder, and this user's: nothing of anybody else's is touched, nor what a link leads to."""
    with suppress(OSError):
        return path.is_dir() and not path.is_symlink() and (not hasattr(os, "getuid") or path.lstat().st_uid == os.getuid())
    return False


def _size(folder: Path) -> int:
    """Bytes of what is in a folder, as far as it is there: its process may be removing it itself."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                size += Path(place, name).lstat().st_size
    return size
