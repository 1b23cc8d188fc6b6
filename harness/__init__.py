"""A small kernel that knows what a method, a benchmark, an evaluator and a figure are, and runs them.

import harness

harness.run("kfade", bench="tofu10")
harness.load_runs("results").table()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.api import RunFailed, UsageError, compare, load_runs, run, sweep

__version__ = "0.2.0"
__all__ = ["RunFailed", "UsageError", "__version__", "compare", "load_runs", "run", "sweep"]


def __getattr__(name: str) -> Any:
    """The public names, handed on when they are first asked for: importing the package costs nothing."""
    if name in __all__:
        from harness import api

        return getattr(api, name)
    raise AttributeError(f"module 'harness' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
