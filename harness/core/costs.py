"""What each phase of a run took: seconds, peak memory, tokens.

A phase that found its result in the cache took little, but the method did not become cheaper: `full_seconds`
adds what the cached result took when it was made.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass


@dataclass(config=ConfigDict(allow_inf_nan=False))
class Phase:
    """One phase, summed over all the times it was entered."""

    seconds: float = 0.0
    """Wall-clock time spent in this run."""
    full_seconds: float = 0.0
    """The same with nothing cached."""
    peak_bytes: int = 0
    """Most memory held at once: the process's resident memory, or what it has allocated on GPUs, each at its most."""
    tokens: int = 0
    """Tokens that went through the model (forward, or forward and backward)."""


class Costs:
    """The phases of one run, by name; phases may be nested and an outer one covers its inner ones."""

    def __init__(self) -> None:
        self.phases: dict[str, Phase] = {}
        self._open: list[Phase] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure what happens inside."""
        phase = self.phases.setdefault(name, Phase())
        self._note_peak()  # what the outer phases had reached, before the counter starts again
        self._open.append(phase)
        _reset_peak()
        started = _now()
        try:
            yield
        finally:
            seconds = _now() - started
            phase.seconds += seconds
            phase.full_seconds += seconds
            self._note_peak()
            self._open.pop()

    @contextmanager
    def aside(self, name: str) -> Iterator[None]:
        """Measure what happens inside as a phase of its own that the open phases do not contain.

        For what a method only says about itself and decides nothing by: another method is not slower for saying less.
        """
        outer, self._open = self._open, []
        for phase in outer:
            phase.peak_bytes = max(phase.peak_bytes, _peak_bytes())
        started = _now()
        try:
            with self.phase(name):
                yield
        finally:
            seconds = _now() - started
            self._open = outer
            _reset_peak()
            for phase in outer:
                phase.seconds -= seconds
                phase.full_seconds -= seconds

    def _note_peak(self) -> None:
        if self._open:
            peak = _peak_bytes()
            for opened in self._open:
                opened.peak_bytes = max(opened.peak_bytes, peak)

    def count(self, tokens: int) -> None:
        """Say that this many tokens went through the model in the phases that are open now."""
        for phase in self._open:
            phase.tokens += tokens

    def saved(self, seconds: float) -> None:
        """Say that the cache saved this much in the phases that are open now."""
        for phase in self._open:
            phase.full_seconds += seconds


def _cuda() -> Any:
    """Torch's CUDA, where this process uses a GPU; else None."""
    torch = sys.modules.get("torch")  # a report that never needed torch must not import it for its clock
    return torch.cuda if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None


def _used(cuda: Any) -> list[int]:
    """The GPUs that this process holds memory on; waiting for another one would take memory there."""
    return [gpu for gpu in range(cuda.device_count()) if cuda.memory_reserved(gpu)]


def _now() -> float:
    """Seconds on a clock; what GPUs were told to do before is done then, so that it counts where it was asked for."""
    if cuda := _cuda():
        for gpu in _used(cuda):
            cuda.synchronize(gpu)
    return time.perf_counter()


def _reset_peak() -> None:
    if cuda := _cuda():
        for gpu in _used(cuda):
            cuda.reset_peak_memory_stats(gpu)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    if cuda := _cuda():
        return sum(int(cuda.max_memory_allocated(gpu)) for gpu in _used(cuda))
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import psutil

    return int(psutil.Process().memory_info().rss)
