"""Names of methods and benchmarks that stand where something else is asked for: which flag they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.core.benchmark import BENCHMARKS
from harness.core.errors import UsageError
from harness.core.method import METHODS
from harness.core.registry import Registry

FLAGS: Sequence[tuple[Registry[Any], str]] = ((METHODS, "--method"), (BENCHMARKS, "--bench"))


def flag_for(word: str) -> str:
    """What to write for methods or a benchmark, such as `--method kfade,npo`; empty for any other word."""
    given = set(word.split(","))
    return next((f"{flag} {word}" for registry, flag in FLAGS if given <= set(registry.entries)), "")


def check_places(methods: Sequence[str], bench: str) -> None:
    """Refuse a benchmark where a method is asked for, and a method where a benchmark is.

    Raises:
        UsageError: naming the flag that it belongs to.
    """
    for registry, names in ((METHODS, methods), (BENCHMARKS, [bench])):
        for name in names:
            if registry is BENCHMARKS and set(name.split(",")) <= set(registry.entries) and "," in name:
                raise UsageError(
                    f"--bench {name} names several, and a run is of one: harness sweep --bench {name} takes several."
                )
            if name not in registry.entries and (flag := flag_for(name)):
                raise UsageError(f"{name} is no {registry.kind}: write {flag}.")
