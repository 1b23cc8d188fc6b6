"""The entry point: one clear sentence and exit code 2 for what the user can put right."""

from __future__ import annotations

import errno
import logging
import os
import sys

import typer
from typer.main import get_command

from harness.cli.app import app, register
from harness.cli.mistyped import in_a_sentence
from harness.core.errors import LONGEST_MESSAGE, RunFailed, UsageError, cut
from harness.core.plugins import add_plugins
from harness.numerics import group, sharding

INTERRUPTED = 130
"""What typer gives back of a command that was ended, from the keyboard or by a signal."""
_NO_PLACE = {
    errno.ENAMETOOLONG: "is too long for the name of a file or folder",
    errno.EACCES: "may not be opened (permission denied). Make it and the folders it lies in readable, or name another",
}
"""What is wrong with what any flag that names a file may name, by the system's number of the error."""


def _flush() -> None:
    """Write out what was printed, as long as it can be told that this failed.

    Raises:
        UsageError: where stdout cannot be written, such as a file on a full disk.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python tries once more at its end
        raise UsageError(f"the output cannot be written: {error.strerror}. Write it elsewhere.") from error


def _open_streams() -> bool:
    """Give what is printed somewhere to go where the program was begun without streams; whether it had an output."""
    had_output = sys.stdout is not None
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  (open as long as the program runs)
    if sys.stderr is None:  # else `file=sys.stderr` means stdout
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    return had_output


def _with_plugins(words: list[str]) -> list[str]:
    """The words without `--plugins DIR`, which may stand anywhere, since what a command knows depends on it."""
    kept, folders = [], []
    rest = iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag != "--plugins":
            kept.append(word)
        elif folder := value if equals else next(rest, ""):
            folders.append(folder)
        else:
            raise UsageError("--plugins names no folder.")
    add_plugins(*folders)
    return kept


def _join_the_others(command: str) -> None:
    """Become one of the processes that were launched together, if they were.

    Raises:
        UsageError: for a command that they do not share.
    """
    group.join()
    if not group.is_first():
        logging.disable(logging.WARNING)  # the first one says it
    if group.processes() > 1 and command != "run":
        raise UsageError(
            f"{group.processes()} processes were launched, and they share the work of harness run alone. "
            f"Begin {command or 'this'} without a launcher."
        )


def _say(error: str) -> None:
    """Why it ends; of several processes one says it."""
    if group.speaks():
        print(f"error: {error}", file=sys.stderr)


def main() -> None:
    """Run the command that was typed and leave with its exit status."""
    from harness.core.signals import exit_status, stop_on_signals

    had_output = _open_streams()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    stop_on_signals()
    if not sys.stderr.isatty():  # in a log file libraries draw no bars; transformers asks the hub's library
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        words = _with_plugins(sys.argv[1:])
        completing = "_HARNESS_COMPLETE" in os.environ
        command = next((word for word in words if not word.startswith("-")), "")
        _join_the_others(command)
        register("" if completing else command)
        code = app(words, standalone_mode=False) or 0
        _flush()
        if not had_output:
            raise UsageError("the output cannot be written: it is closed. Write it somewhere.")
    except (typer.Abort, KeyboardInterrupt) as error:
        if isinstance(error.__cause__, EOFError):  # typer takes any file that ends early for the end of the terminal's input
            raise error.__cause__ from None
        code = INTERRUPTED
    except (UsageError, RunFailed) as error:
        _say(str(error))
        sys.exit(2)
    except Exception as error:
        # Options that typer itself refuses: unknown flags, wrong choices.
        if hasattr(error, "format_message"):
            if message := in_a_sentence(error, lambda: get_command(register())):
                _say(cut(message, LONGEST_MESSAGE))
            sys.exit(2)
        if isinstance(error, OSError) and error.filename and (why := _NO_PLACE.get(error.errno or 0)):
            _say(f"'{cut(str(error.filename))}' {why}.")
            sys.exit(2)
        from harness.data.hub_errors import torchvision_trouble
        from harness.storage.cache import disk_trouble

        if trouble := disk_trouble(error) or torchvision_trouble(error):
            _say(trouble)
            sys.exit(2)
        raise
    if code == INTERRUPTED:
        code = exit_status()
        if group.is_first():
            print("interrupted; the same command goes on from here.", file=sys.stderr)
        sys.exit(code)
    sharding.end(code)
