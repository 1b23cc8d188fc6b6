"""Costly things kept outside the repository, found again by what made them.

An entry is a folder named by the digest of its key; the key lies beside the value. It is written to a
temporary folder, flushed and renamed, under a lock of its own, so a killed process leaves nothing half made
and two processes make it once. Files carry checksums; an entry that fails them is set aside, named, and made anew.
The cache may be removed at any time, its locks too: what is being made then is made again, and of two that made the same
the second takes what the first has put there.

Root: `$HARNESS_CACHE`, else the user's cache folder (platformdirs).
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import TypeVar

import platformdirs
from filelock import FileLock

from harness.core.caching import CacheEntry
from harness.core.config import JSON
from harness.core.documents import parse_json, read_json
from harness.core.errors import UsageError, cut, unknown
from harness.storage import temporary

log = logging.getLogger(__name__)

T = TypeVar("T")

KINDS = (
    "model",
    "training",
    "curvature",
    "gradient",
    "continuations",
    "generations",
    "evaluations",
    "verdicts",
    "attack",
    "thresholds",
)
"""What is kept, as the command line names it; plug-ins from elsewhere may have kinds of their own."""
_RECORD = "entry.json"
_NAME = "[0-9a-f]" * 32
"""What an entry's name looks like, as a pattern."""


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text.

    Raises:
        ValueError: for NaN or infinity, which equal nothing.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: object) -> str:
    """The SHA-256 of a value's canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Cache:
    """A folder of entries.

    Args:
        root: where; by default `$HARNESS_CACHE`, else the user's cache folder.

    Raises:
        UsageError: if the folder cannot be written.
    """

    def __init__(self, root: Path | None = None) -> None:
        chosen = os.environ.get("HARNESS_CACHE")
        self.root = root or (Path(chosen) if chosen else _usual_root())
        self._verified: set[Path] = set()
        self._memo: dict[str, tuple[object, object, float]] = {}
        self._make_folders()
        with disk_errors(f"the cache {self.root}", "Set HARNESS_CACHE to a folder that can be written"):
            if not os.access(self.root, os.W_OK):
                raise PermissionError(errno.EACCES, "not writable")
        self.sweep()

    def find(self, kind: str, key: Mapping[str, JSON]) -> CacheEntry | None:
        """The sound entry of that key, or None."""
        return self._read(self._path(kind, key), kind)

    def get(self, kind: str, key: Mapping[str, JSON], make: Callable[[Path], Mapping[str, JSON] | None]) -> CacheEntry:
        """The entry of that key; `make` writes its files into an empty folder if there is none yet.

        Args:
            kind: the sort of thing, a folder in the cache.
            key: all that decides the value; plain JSON.
            make: fills the folder it is given and may return facts to remember.

        Raises:
            UsageError: if the disk is full.
        """
        path = self._path(kind, key)
        started = time.perf_counter()
        self._make_folders()
        with (
            disk_errors(f"the cache {self.root} ({kind})", "Free some space, or set HARNESS_CACHE elsewhere", within=self.root),
            FileLock(self.root / "locks" / f"{kind}-{path.name}.lock"),
        ):
            waited = time.perf_counter() - started
            if entry := self._read(path, kind):
                return replace(entry, waited=waited)
            self.sweep()
            while True:
                if made := self._make(kind, key, path, make):
                    return made
                log.warning("the cache was removed while a %s was being made; it is made again", kind)

    def _make(
        self, kind: str, key: Mapping[str, JSON], path: Path, make: Callable[[Path], Mapping[str, JSON] | None]
    ) -> CacheEntry | None:
        """A new entry, or the one that another process has put there meanwhile; None if what was made was removed."""
        self._make_folders()
        with temporary.temporary_folder(self._making, f"{kind}-{path.name}-") as making:
            try:
                started = time.perf_counter()
                facts = dict(make(making) or {})
                seconds = time.perf_counter() - started
                files = sorted(f for f in making.rglob("*") if f.is_file())
                record = {
                    "kind": kind,
                    "key": key,
                    "seconds": seconds,
                    "facts": facts,
                    "files": {f.relative_to(making).as_posix(): file_digest(f) for f in files},
                }
                (making / _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
                for file in [*files, making / _RECORD]:
                    flush(file)
                if temporary.lost(making):
                    return None
                while not self._put(making, path):
                    if entry := self._read(path, kind):  # its locks went with the cache, hence two makers
                        return replace(entry, waited=seconds)
            except Exception:
                if temporary.lost(making):
                    return None
                raise
        self._verified.add(path)
        return CacheEntry(path, kind, key, seconds, facts, made_now=True)

    def _put(self, made: Path, path: Path) -> bool:
        """Move what was made to its place; False where there is something already."""
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            made.rename(path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        flush(path.parent)
        return True

    def forget(self, kind: str, key: Mapping[str, JSON]) -> None:
        """Remove the entry of that key, if there is one."""
        path = self._path(kind, key)
        if not path.exists():  # no lock is left behind for what never was
            return
        with (
            disk_errors(f"the cache {self.root}", "Set HARNESS_CACHE to a folder that can be written"),
            FileLock(self.root / "locks" / f"{kind}-{path.name}.lock"),
        ):
            shutil.rmtree(path, ignore_errors=True)

    def memoize(self, kind: str, key: object, make: Callable[[], T]) -> tuple[T, float]:
        """In-memory memo of what `make` gives for a key, which the runs of a sweep share.

        One value of a kind is kept at a time. It must not be changed by who gets it.

        Args:
            kind: the sort of thing.
            key: all that decides the value; anything that can be compared.
            make: makes it.

        Returns:
            (the value, the seconds saved by not making it).
        """
        if kind in self._memo and self._memo[kind][0] == key:
            return self._memo[kind][1:]  # type: ignore[return-value]
        self._memo.pop(kind, None)  # before the next one is made: there may be room for one only
        started = time.perf_counter()
        made = make()
        self._memo[kind] = (key, made, time.perf_counter() - started)
        return made, 0.0

    def let_go(self) -> None:
        """Forget what is memoized; what is on disk stays."""
        self._memo.clear()

    def entries(self) -> Iterator[CacheEntry]:
        """Every readable entry, without checking its files; by kind, then digest."""
        for record in sorted(self.root.glob(f"*/*/{_RECORD}")):
            if ".corrupt-" in record.parent.name:
                continue  # set aside, not an entry
            with suppress(ValueError, KeyError, TypeError, OSError):
                document = read_json(record, finite=False)
                yield CacheEntry(record.parent, document["kind"], document["key"], document["seconds"], document["facts"])

    def sweep(self) -> None:
        """Remove what killed processes had half made."""
        temporary.sweep(self._making, f"*-{_NAME}")

    def clear(self, kind: str | None = None) -> int:
        """Remove all entries, or those of one kind, and what was set aside or left half made; returns the bytes freed.

        An entry that another process is making keeps its lock and is left alone.

        Raises:
            UsageError: for a kind of which there is nothing, and which is none of `KINDS`.
        """
        known = {*KINDS, *(folder.parent.name for folder in self.root.glob(f"*/{_NAME}*"))} - {self._making.name}
        if kind is not None and kind not in known:
            raise unknown("kind of cache entry", kind, known, "harness cache list")
        freed = temporary.sweep(self._making, f"{escape(kind) if kind else '*'}-{_NAME}")
        for folder in sorted(self.root.glob(f"*/{_NAME}*")):  # HARNESS_CACHE may be a folder that holds other things, too
            owner = folder.parent.name
            if not folder.is_dir() or folder.is_symlink() or owner == self._making.name or (kind and owner != kind):
                continue
            lock = FileLock(self.root / "locks" / f"{owner}-{folder.name}.lock", timeout=0)
            with suppress(TimeoutError), lock:
                freed += sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
                shutil.rmtree(folder, ignore_errors=True)
        self._verified.clear()
        return freed

    @property
    def _making(self) -> Path:
        """Where entries lie while they are made."""
        return self.root / "making"

    def _make_folders(self) -> None:
        with disk_errors(f"the cache {self.root}", "Set HARNESS_CACHE to a folder that can be written", whatever=True):
            for folder in (self.root / "locks", self._making):
                folder.mkdir(parents=True, exist_ok=True)

    def _path(self, kind: str, key: Mapping[str, JSON]) -> Path:
        return self.root / kind / digest(key)[:32]

    def _read(self, path: Path, kind: str) -> CacheEntry | None:
        try:
            if not path.exists():
                return None
            record = parse_json((path / _RECORD).read_bytes(), f"{_RECORD} of {kind}", finite=False)
            if path not in self._verified:
                for name, expected in record["files"].items():
                    if file_digest(path / name) != expected:
                        raise ValueError(f"{name} differs from its checksum")
                self._verified.add(path)
            return CacheEntry(path, kind, record["key"], record["seconds"], record["facts"])
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
                raise UsageError(  # what one may not read may be sound: others share the cache
                    f"the cache's {path.relative_to(self.root)} ({kind}) cannot be read: {error.strerror}. Make {self.root} "
                    "readable, or set HARNESS_CACHE to a folder of your own."
                ) from error
            aside = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
            log.warning("a cache entry is corrupt (%s); it is set aside as %s and made anew", error, aside)
            with suppress(FileNotFoundError):
                path.rename(aside)
            return None


def flush(path: Path) -> None:
    """Make sure a file or folder is on the disk before something that relies on it is."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if path.is_file():
            raise
    finally:
        os.close(handle)


def _usual_root() -> Path:
    return Path(platformdirs.user_cache_dir("unlearning-harness"))


_LITTLE = 2**20
"""Bytes on a disk that is as good as full."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SHUT = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)


@contextmanager
def disk_errors(what: str, way_out: str, whatever: bool = False, within: Path | None = None) -> Iterator[None]:
    """Turn a full or unwritable disk into one sentence.

    Args:
        what: could not be written.
        way_out: what to do about it.
        whatever: every error of the system is about the place, since nothing else is opened inside.
        within: the folder or file that `what` is, where others' code runs inside: an error that names a file elsewhere stays.

    Raises:
        UsageError: naming `what` could not be written and the way out.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if within and _is_elsewhere(error, within):
            raise
        number = _os_error(error)
        if number in _FULL:
            raise UsageError(f"no space is left on the disk of {what}. {way_out}; what was finished is kept.") from error
        if number is not None and (number in _SHUT or whatever):
            raise UsageError(f"{what} cannot be written: {os.strerror(number)}. {way_out}.") from error
        raise


_TOO_LARGE = (errno.EFBIG,)
"""What a limit of the shell (ulimit -f) or of the file system says."""


def disk_trouble(error: Exception) -> str | None:
    """What to tell of a file that could not be written or read, where nothing nearer to it has told it; None of other errors.

    The system names a file that cannot be opened. Of one that cannot be written any further it does not: then the places are
    named where this program writes, those alone whose disks are full if there are any.
    """
    number = _os_error(error)
    if number is None or number not in (*_FULL, *_TOO_LARGE, errno.EACCES, errno.EPERM, errno.EROFS):
        return None
    name = error.filename if isinstance(error, OSError) else None
    if isinstance(name, str | bytes | os.PathLike):
        what = cut(os.fsdecode(name))
    else:
        places = [Path.cwd(), Path(os.environ.get("HARNESS_CACHE") or _usual_root())]
        with suppress(UsageError):  # nothing can be written there either
            places.append(temporary.temporary_place())
        full = [place for place in places if place.is_dir() and shutil.disk_usage(place).free < _LITTLE]
        what = "a file in " + " or ".join(dict.fromkeys(cut(str(place)) for place in full or places))
        what = what if full or sys.stdout.isatty() else f"the output, or {what},"
    if number in (*_FULL, *_TOO_LARGE):
        return (
            f"{what} cannot be written: {os.strerror(number)}. Free some space, or write elsewhere; the same command goes on."
        )
    return f"{what} cannot be opened: {os.strerror(number)}. Make it accessible, or take another place."


def _is_elsewhere(error: Exception, place: Path) -> bool:
    """Whether an error names a file that neither lies in a place nor is one of the folders that lead to it."""
    name = error.filename if isinstance(error, OSError) else None
    if not isinstance(name, str | bytes | os.PathLike):
        return False
    file, place = Path(os.path.realpath(os.fsdecode(name))), Path(os.path.realpath(place))
    return not (file.is_relative_to(place) or place.is_relative_to(file))


def _os_error(error: Exception) -> int | None:
    """The operating system's number of an error; safetensors, tokenizers and pyarrow tell it in their message alone."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    match = re.search(r"\(os error (\d+)\)|\[Errno (\d+)\]", str(error))
    return int(match[1] or match[2]) if match else None
