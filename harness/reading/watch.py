"""How far a sweep is, on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.table import Table


class Watch:
    """How far a sweep is: a row for each kind of run, and how long the rest will take at the pace so far.

    Args:
        kinds: of each run, such as its method.
        clock: seconds that only rise.
    """

    def __init__(self, kinds: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._kinds, self._clock = kinds, clock
        self._status: dict[int, str] = {}
        self._began: tuple[float, int] | None = None

    @property
    def finished(self) -> int:
        """Runs that are over, one way or another."""
        return len(self._status)

    def begin(self) -> None:
        """What was on record already has been told; from here on runs take time."""
        self._began = self._clock(), self.finished

    def add(self, index: int, status: str) -> None:
        """A run is over."""
        self._status[index] = status

    def left(self) -> float | None:
        """Seconds; None where no run is over yet since the beginning."""
        if self._began is None or self.finished == self._began[1]:
            return None
        started, before = self._began
        return (self._clock() - started) / (self.finished - before) * (len(self._kinds) - self.finished)

    def __rich__(self) -> Table:
        table = Table(header_style="bold")
        for heading in ("", "runs", "done", "failed", "left"):
            table.add_column(heading, justify="right" if heading else "left")
        for kind in dict.fromkeys(self._kinds):
            of_kind = [self._status.get(i, "") for i, each in enumerate(self._kinds) if each == kind]
            done, over = of_kind.count("done"), sum(map(bool, of_kind))
            table.add_row(kind, *map(str, (len(of_kind), done, over - done, len(of_kind) - over)))
        left = self.left()
        minutes, seconds = divmod(round(left or 0), 60)
        table.caption = f"{self.finished} of {len(self._kinds)}" + (f", about {minutes} min {seconds} s left" if left else "")
        return table
