"""`harness` in processes that begin in milliseconds, and that stand still at a moment where one is given.

A process that imports everything takes ten seconds of a core before it does anything; these are forked by one that has.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.clock import A_HANG
from tests.nano_sweep import quick_context


@dataclass(frozen=True)
class Running:
    """A command that was begun; where what it says is written, and the file that it makes when it stands still."""

    process: BaseProcess
    folder: Path

    @property
    def halted(self) -> Path:
        return self.folder / "halted"

    def end(self) -> tuple[int | None, str, str]:
        """Wait for it: its exit status (minus the signal's number where one killed it), and what it wrote on both streams."""
        self.process.join(A_HANG)
        return self.process.exitcode, (self.folder / "out").read_text(), (self.folder / "err").read_text()

    def wait_until_it_stands_still(self) -> None:
        """Come to the moment that it was begun with."""
        until = time.monotonic() + A_HANG
        while not self.halted.exists():
            assert self.process.is_alive(), "it did not come to it: " + self.end()[2][-2000:]
            assert time.monotonic() < until
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def begin(words: tuple[str, ...], folder: Path, environment: Mapping[str, str], moment: str = "") -> Running:
    """Begin a command.

    Args:
        words: what is typed after `harness`.
        folder: an empty one, for what it writes.
        environment: variables that are set for it.
        moment: where it stands still until it is killed or interrupted: `points:2`, when the second point of all has been
            recorded; `making:curvature`, when the first curvature has been made and is not yet in the cache.
    """
    running = Running(quick_context().Process(target=_command, args=(words, folder, dict(environment), moment)), folder)
    running.process.start()
    return running


def hear_signals() -> None:
    """As whoever is begun from a terminal: the tests may have been begun in the background or by nohup, which passes over some."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _command(words: tuple[str, ...], folder: Path, environment: dict[str, str], moment: str) -> None:
    from harness.cli.entry import main

    hear_signals()
    os.environ.update(environment)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", encoding="utf-8"), os.fdopen(2, "w", buffering=1, encoding="utf-8")
    sys.argv = ["harness", *words]

    def stand_still() -> None:
        (folder / "halted").touch()
        time.sleep(A_HANG)

    what, _, which = moment.partition(":")
    if what == "points":
        _after_points(int(which), stand_still)
    elif what == "making":
        _while_making(which, stand_still)
    main()


def _after_points(count: int, halt: Callable[[], None]) -> None:
    from harness.storage.record_writing import Record

    recorded, add = 0, Record.add

    def counted(record: Record, *point: Any) -> None:
        nonlocal recorded
        add(record, *point)
        recorded += 1
        if recorded == count:
            halt()

    Record.add = counted  # type: ignore[method-assign]


def _while_making(kind: str, halt: Callable[[], None]) -> None:
    from harness.storage.cache import Cache, CacheEntry

    get = Cache.get

    def halting(cache: Cache, wanted: str, key: Mapping[str, Any], make: Callable[[Path], Any]) -> CacheEntry:
        def made_first(folder: Path) -> Any:
            facts = make(folder)
            halt()
            return facts

        return get(cache, wanted, key, made_first if wanted == kind else make)

    Cache.get = halting  # type: ignore[method-assign]
