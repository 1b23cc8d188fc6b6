"""What is compared at equal damage: methods with their settings, what they are called, and how the settings were chosen.

Imports no torch.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.core.config import written
from harness.core.options import Protocol
from harness.core.ranges import arm_of, arms
from harness.reading.compared import protocol
from harness.reading.rows import REFERENCE_METHODS
from harness.storage.cache import canonical
from harness.storage.records import RunResult


@dataclass(frozen=True)
class Contender:
    """A method with its settings."""

    label: str
    """The name of its form (`harness.core.ranges`), and what of its settings other contenders of that form have otherwise."""
    method: str
    """The method."""
    protocol: Protocol
    """How its settings were chosen."""


def key_of(result: RunResult) -> str:
    """What makes the contender that a run is of: method, settings and how these were chosen."""
    return canonical([result.spec.method, dict(result.spec.settings), protocol(result.selection)])


def contenders_of(results: Iterable[RunResult]) -> dict[str, Contender]:
    """Runs' keys (`key_of`) → contenders, told from the others of their form by as few settings as it takes."""
    forms: dict[str, dict[str, RunResult]] = defaultdict(dict)
    every = arms()
    for result in results:
        forms[arm_of(result.spec.method, result.spec.config, every)].setdefault(key_of(result), result)
    made = {}
    for form, of in forms.items():
        said = {key: {"preset": protocol(r.selection), **r.spec.settings} for key, r in of.items()}
        names = _telling([*said.values()])
        for key, result in of.items():
            parts = [str(said[key][n]) if n == "preset" else f"{n}={written(said[key].get(n))}" for n in names]
            label = f"{form} ({', '.join(parts)})" if parts else form
            made[key] = Contender(label, result.spec.method, protocol(result.selection))
    return made


def selections_of(results: Iterable[RunResult], contenders: Mapping[str, Contender]) -> dict[str, list[str]]:
    """How settings were chosen, without which of several tries it was, and whose."""
    made: dict[str, set[str]] = defaultdict(set)
    for result in results:
        if result.spec.method not in REFERENCE_METHODS:
            how = re.sub(rf" of {re.escape(result.spec.method)}\b| \(number \d+\)$", "", result.selection)
            made[how].add(contenders[key_of(result)].label)
    return {how: sorted(labels) for how, labels in sorted(made.items(), reverse=True)}


def _telling(settings: Sequence[Mapping[str, object]]) -> list[str]:
    """The settings that tell some apart: words first, then how they were chosen, numbers only where it takes them."""
    names = list(dict.fromkeys(name for each in settings for name in each if name != "preset"))
    numeric = [n for n in names if any(type(each.get(n)) in (int, float) for each in settings)]
    chosen: list[str] = []
    for name in [*(n for n in names if n not in numeric), "preset", *numeric]:
        if _kinds(settings, [*chosen, name]) > _kinds(settings, chosen):
            chosen.append(name)
    return chosen


def _kinds(settings: Sequence[Mapping[str, object]], names: Sequence[str]) -> int:
    return len({canonical([each.get(name) for name in names]) for each in settings})
