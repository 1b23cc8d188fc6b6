"""What is kept between runs, as methods, evaluators and sources of models see it; `harness.storage.cache` keeps it on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from harness.core.config import JSON

T = TypeVar("T")


@dataclass(frozen=True)
class CacheEntry:
    """A value found or just made."""

    path: Path
    """The folder with its files."""
    kind: str
    """Such as `model` or `curvature`."""
    key: Mapping[str, JSON]
    """What made it."""
    seconds: float
    """What making it took."""
    facts: Mapping[str, JSON]
    """What its maker wanted remembered."""
    made_now: bool = False
    """Whether this call made it."""
    waited: float = 0.0
    """Seconds that this call waited for another process that was making it."""

    @property
    def bytes(self) -> int:
        """Its size on disk."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


class CacheView(Protocol):
    """A cache as it is used where a model is at hand."""

    @property
    def root(self) -> Path:
        """Where it lies, for other processes that are to share it."""

    def sweep(self) -> None:
        """Remove what killed processes left half made."""

    def find(self, kind: str, key: Mapping[str, JSON]) -> CacheEntry | None:
        """The sound entry of that key, or None."""

    def get(self, kind: str, key: Mapping[str, JSON], make: Callable[[Path], Mapping[str, JSON] | None]) -> CacheEntry:
        """The entry of that key; `make` writes its files into an empty folder if there is none yet.

        Args:
            kind: the sort of thing, a folder in the cache.
            key: all that decides the value; plain JSON.
            make: fills the folder it is given and may return facts to remember.

        Raises:
            UsageError: if the disk is full.
        """

    def forget(self, kind: str, key: Mapping[str, JSON]) -> None:
        """Remove the entry of that key, if there is one."""

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
