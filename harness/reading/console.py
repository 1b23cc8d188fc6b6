"""The terminal that results are shown on, and how wide it is."""

from __future__ import annotations

import os

from rich.console import Console

WIDTH = 160
"""Columns where the output is no terminal and COLUMNS names no width."""


def stdout() -> Console:
    """The console for results; wide enough for a table when the output is no terminal, unless COLUMNS says how wide it is."""
    console = _console()
    return console if console.is_terminal or os.environ.get("COLUMNS", "").isdigit() else _console(width=WIDTH)


def stderr() -> Console:
    """The console for what is told on the way."""
    return _console(stderr=True)


def _console(width: int | None = None, stderr: bool = False) -> Console:
    """Text comes from records, paths and models: `[b]` in it is no markup, and `:key:` no picture."""
    return Console(width=width, stderr=stderr, markup=False, emoji=False)
