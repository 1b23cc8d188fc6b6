"""What a record says of a run that did not end well, and what is given back of its memory."""

from __future__ import annotations

import gc
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from harness.core.errors import Diverged, RunFailed, UsageError, without_secrets
from harness.core.memory import ran_out
from harness.core.registry import ROOT
from harness.numerics.group import ProcessLost, check_lost
from harness.running.plan import Plan
from harness.storage.cache import Cache
from harness.storage.record_writing import Record
from harness.storage.records import Status
from harness.storage.store import Store


@contextmanager
def outcome(todo: Plan, record: Record, store: Store) -> Iterator[None]:
    """Write down how a run ended when it did not end well."""
    from harness.models import memory

    def ended(status: Status, error: str) -> None:
        if record.result.status == "done":
            return  # what went wrong came after it, such as a place where its model cannot be kept
        # A forced run that never began leaves the earlier record.
        if record.written or (status == "failed" and store.status(todo.spec) is None):
            record.write(replace(record.result, status=status, error=error))

    try:
        with _telling_losses():
            yield
    except KeyboardInterrupt as stop:  # or a signal that ends a command, with its reason
        ended("interrupted", str(stop) or "interrupted from the keyboard")
        raise
    except ProcessLost as lost:
        ended("interrupted", str(lost))
        raise
    except UsageError as error:
        if record.points:
            ended("failed", without_paths(str(error)))
        elif record.result.status != "done":
            record.discard()
        raise
    except Diverged as error:
        ended("failed", without_paths(str(error)))
        raise RunFailed(f"{todo.method.name} broke off: {error}. Points measured so far are kept.") from error
    except Exception as error:
        if ran_out(error):
            advice = memory.advice(todo.problem, todo.method, todo.config, todo.options)
            ended("failed", f"{advice}\n{frames(error)}")
            raise RunFailed(f"{advice} Points measured so far are kept.") from error
        ended("failed", frames(error))
        raise


@contextmanager
def _telling_losses() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not ran_out(error):
            check_lost(error)
        raise


def frames(error: Exception) -> str:
    """The error and where it happened, files named relative to the package."""
    places = [
        f"{_relative(Path(f.filename)).as_posix()}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)
    ]
    return "\n".join([without_paths(f"{type(error).__name__}: {error}"), *places])


def _relative(file: Path) -> Path:
    """A file of the harness with its room; of any other the folder that it lies in."""
    return file.relative_to(ROOT) if file.is_relative_to(ROOT / "harness") else Path(*file.parts[-2:])


def without_paths(text: str) -> str:
    """A message whose absolute paths are cut to their last part: records hold no path of the machine, and no secret."""
    return re.sub(r"(?<![\w./:~-])(?:/|[A-Za-z]:\\)(?:[^\s/\\'\"]+[/\\])+", "…/", without_secrets(text))


def give_back_memory(cache: Cache) -> None:
    """What a run that broke off had taken, so that the next one has it."""
    cache.let_go()
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
