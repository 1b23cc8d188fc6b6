"""A cache as the processes of a group see it: what is not there yet they make together, and the first one keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from harness.core.caching import CacheEntry, CacheView
from harness.core.config import JSON
from harness.core.errors import UsageError
from harness.numerics import group
from harness.storage.temporary import temporary_folder

T = TypeVar("T")


class SharedCache:
    """A cache in which only the first process of a group takes locks and writes.

    While work is shared (`group.together`) the first one looks whether there is an entry, and the others learn from it whether
    it is to be made: a process that waits for a lock would never come to the sums of the one that holds it. What the others
    make goes into a folder that is thrown away. Elsewhere it is the cache itself.

    Args:
        cache: on disk; all processes of a group have the same one.
    """

    def __init__(self, cache: CacheView) -> None:
        self._cache = cache

    @property
    def root(self) -> Path:
        """Where it lies."""
        return self._cache.root

    def sweep(self) -> None:
        """Remove what killed processes left half made."""
        self._cache.sweep()

    def find(self, kind: str, key: Mapping[str, JSON]) -> CacheEntry | None:
        """The sound entry of that key, or None."""
        return self._cache.find(kind, key)

    def get(self, kind: str, key: Mapping[str, JSON], make: Callable[[Path], Mapping[str, JSON] | None]) -> CacheEntry:
        """The entry of that key, made by all processes together if there is none yet; see `CacheView.get`.

        Raises:
            UsageError: if the disk is full, or the processes see different caches.
        """
        if group.size() == 1:
            return self._cache.get(kind, key, make)
        if not group.is_first():
            while group.first_says(0):
                with temporary_folder() as folder:
                    make(folder)
            if entry := self._cache.find(kind, key):
                return entry
            raise UsageError(
                f"the cache {self.root} does not hold what the first process has put into its own ({kind}). "
                "Set HARNESS_CACHE to a folder that all processes see."
            )

        def begin(folder: Path) -> Mapping[str, JSON] | None:
            group.first_says(1)
            return make(folder)

        entry = self._cache.get(kind, key, begin)
        group.first_says(0)
        return entry

    def forget(self, kind: str, key: Mapping[str, JSON]) -> None:
        """Remove the entry of that key, if there is one."""
        self._cache.forget(kind, key)

    def memoize(self, kind: str, key: object, make: Callable[[], T]) -> tuple[T, float]:
        """In-memory memo of this process; `make` sums nothing over processes. See `CacheView.memoize`."""
        return self._cache.memoize(kind, key, make)
