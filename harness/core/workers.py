"""Worker processes: they end with their parent, leave Ctrl-C to it, and do several pieces of work side by side."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.sharedctypes import SynchronizedArray
from types import ModuleType

from harness.core.progress import progress_bar
from harness.core.signals import SIGNALS, ignore_signals

Progress = Callable[[int, int], None]
"""(steps that are done, of how many) → nothing."""


def prepare_for_workers() -> None:
    """Called before the first worker is begun: what multiprocessing counts its resources with outlives a lost terminal.

    It passes over Ctrl-C and SIGTERM by itself, but SIGHUP would end it before its parent, which then begins another and
    complains of it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def without_the_script() -> Iterator[None]:
    """Processes that are begun inside do not read the script that begins them.

    Python has each one read it again. A script of a few lines, without `if __name__ == "__main__":`, would ask for its run in
    each, and each would wait for the process that waits for it.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def reads_the_script() -> bool:
    """Whether this is a worker that is reading the script which began it, as a sweep's must: methods may stand in it."""
    return bool(getattr(multiprocessing.current_process(), "_inheriting", False))


def follow_parent() -> None:
    """Called first in a worker: Ctrl-C is the parent's to handle, and a parent that is killed takes its workers along."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def leave_with_parent() -> None:
        if parent:
            parent.join()
            os._exit(1)

    # A parent that is killed outright cannot tell its workers; without this they would wait for work for ever.
    threading.Thread(target=leave_with_parent, daemon=True).start()


# ---------------------------------------------------------------- several pieces of work


@dataclass(frozen=True)
class Work:
    """A piece of work for a process of its own."""

    do: Callable[[Progress], object]
    """Does it, and tells of every step; it is pickled, and what it returns is not looked at."""
    steps: int
    """How many steps it takes."""
    after: str = ""
    """What is to be done before, where that is among the pieces."""


def do_all(pieces: Mapping[str, Work], workers: int, label: str, warm_up: Callable[[], object]) -> None:
    """Do all pieces of work, several at a time.

    Args:
        pieces: by name.
        workers: processes; they see the environment that this one has now.
        label: of the progress bar.
        warm_up: what each does first, while some wait for others' work: imports, say.

    Raises:
        Exception: what the first piece that fails raises; the others are ended.
        BrokenProcessPool: if a process is killed.
    """
    prepare_for_workers()
    context = multiprocessing.get_context("spawn")
    steps = context.Array("l", [0] * len(pieces))
    slots = {name: slot for slot, name in enumerate(pieces)}
    waiting, running = dict(pieces), dict[Future[object], str]()
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(steps,))
    try:
        with progress_bar(total=sum(work.steps for work in pieces.values()), desc=label, unit="step", leave=True) as bar:
            with without_the_script():
                running |= {pool.submit(warm_up): "" for _ in range(workers)}
            while waiting or running:
                for name, work in list(waiting.items()):
                    if work.after not in {*waiting, *running.values()} - {""}:
                        running[pool.submit(_do, work, slots[name])] = name
                        del waiting[name]
                done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                bar.update(sum(steps[:]) - bar.n)
                for future in done:
                    del running[future]
                    future.result()
        pool.shutdown()  # what they hold of a GPU is free before anybody asks how much is
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()  # they listen to no signal that can be ignored
            process.join()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


_steps: SynchronizedArray[int] | None = None


def _start(steps: SynchronizedArray[int]) -> None:
    global _steps
    _steps = steps
    follow_parent()
    ignore_signals()  # whoever started it ends it, and sweeps what it had half made


def _do(work: Work, slot: int) -> None:
    def progress(done: int, steps: int) -> None:
        if _steps is not None:
            _steps[slot] = done

    work.do(progress)
