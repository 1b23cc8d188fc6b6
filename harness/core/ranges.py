"""What settings are tried over, and which forms of a method are compared: out of `presets/ranges.toml`.

    [ranges.npo]                             # a method: the constants that are tried, besides its learning rate
    beta = [0.03, 1.0, "log"]                # from the lowest to the highest, evenly on a logarithmic or a linear scale; whole
    retain_weight = [1, 6, "linear"]         # numbers where both ends are; or a list of values:
    epochs = [5, 10, 20]

    [variants."kfade identity"]              # a form of a method that is compared under a name of its own
    method = "kfade"
    settings = { estimator = "identity" }

A method with a learning rate is tried over two decades of it around its preset; that holds for all and stands in no file.
Tries are drawn alike for every method: the k-th one lies at the same place of a sequence that fills a square evenly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.core.config import JSON, check, describe, field_names
from harness.core.documents import place, read_toml
from harness.core.errors import UsageError, unknown
from harness.core.method import METHODS
from harness.core.presets import ranges_files

LEARNING_RATE = "lr"
"""How methods call it."""
DRAWN_DIGITS = 3
"""Significant digits of a number drawn from a range: as many as one would type."""
_SCALES = ("log", "linear")
_KINDS = ("ranges", "variants")
_BASES = (2, 3, 5, 7)
"""One for each setting that is tried."""


@dataclass(frozen=True)
class Range:
    """Numbers from a lowest to a highest; whole ones if both ends are."""

    low: float
    """The lowest."""
    high: float
    """The highest."""
    scale: Literal["log", "linear"]
    """On which they lie evenly."""

    def at(self, share: float) -> JSON:
        """The number so far along, from 0 up to 1."""
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        low, high = (self.low - 0.5, self.high + 0.5) if whole else (self.low, self.high)
        value = low * (high / low) ** share if self.scale == "log" else low + (high - low) * share
        return min(int(self.high), max(int(self.low), math.floor(value + 0.5))) if whole else _typed(value)


@dataclass(frozen=True)
class OneOf:
    """Some values."""

    values: Sequence[JSON]
    """In the order in which they are gone along."""

    def at(self, share: float) -> JSON:
        """The value so far along, from 0 up to 1."""
        return self.values[int(share * len(self.values))]


TWO_DECADES = Range(0.1, 10.0, "log")
"""What a preset's learning rate is multiplied with."""


@dataclass(frozen=True)
class Arm:
    """A method, or a form of one, that is compared with others under its own name."""

    name: str
    """As it is called: the method's name for the method as it is."""
    method: str
    """The method."""
    settings: Mapping[str, JSON] = field(default_factory=dict)
    """What makes this form of it."""
    ranges: Mapping[str, Range | OneOf] = field(default_factory=dict)
    """What its other constants are tried over."""

    @property
    def tried(self) -> bool:
        """Whether there is anything to choose."""
        return bool(self.ranges) or self._has_learning_rate

    @property
    def _has_learning_rate(self) -> bool:
        return LEARNING_RATE in field_names(METHODS.get(self.method).config) and LEARNING_RATE not in self.settings

    def tries(self, bench: str, family: str, number: int) -> list[dict[str, JSON]]:
        """Settings to be tried on a benchmark with a model family, always the same ones; the first is in the middle of all."""
        method = METHODS.get(self.method)
        usual = {**{name: value for name, value, _ in describe(method.config)}, **method.preset(bench, family)}
        names = [*([LEARNING_RATE] if self._has_learning_rate else []), *self.ranges]
        tries = []
        for shares in _evenly(len(names), number):
            of_try: dict[str, JSON] = {}
            for name, share in zip(names, shares, strict=True):
                own = self.ranges.get(name)
                of_try[name] = own.at(share) if own else _typed(usual[name] * TWO_DECADES.at(share))
            tries.append(of_try)
        return tries


def arms() -> list[Arm]:
    """Every registered method, each followed by the forms of it that have names of their own.

    Raises:
        UsageError: for a file that cannot be read, or an entry in it that is wrong; names both.
    """
    ranges: dict[str, dict[str, Range | OneOf]] = {}
    variants: dict[str, tuple[str, dict[str, JSON]]] = {}
    for file in ranges_files():
        document = read_toml(file)
        for kind in document:
            if kind not in _KINDS:
                raise UsageError(f"{place(file)}: {unknown('kind of entry', kind, _KINDS)}")
        for method, table in document.get("ranges", {}).items():
            ranges[method] = _ranges(f"{place(file)}, ranges.{method}", method, table)
        for name, table in document.get("variants", {}).items():
            where = f"{place(file)}, variants.{name}"
            if name in METHODS.names():
                raise UsageError(f"{where} has the name of a method; give the form another.")
            variants[name] = _variant(where, table)
    listed = []
    for method in METHODS.names():
        own = ranges.get(method, {})
        listed.append(Arm(method, method, {}, own))
        for name, (of, settings) in variants.items():
            if of == method:
                listed.append(Arm(name, method, settings, {key: value for key, value in own.items() if key not in settings}))
    return listed


def arm_of(method: str, config: Mapping[str, JSON], every: Sequence[Arm]) -> str:
    """The name of the form that a run's settings make: the one that says most of them."""
    fitting = [arm for arm in every if arm.method == method and all(config.get(k) == v for k, v in arm.settings.items())]
    return max(fitting, key=lambda arm: len(arm.settings)).name if fitting else method


# ---------------------------------------------------------------- reading


def _ranges(where: str, method: str, table: Any) -> dict[str, Range | OneOf]:
    config = METHODS.get(method).config if method in METHODS.names() else None
    if config is None:
        raise UsageError(f"{where}: {unknown('method', method, METHODS.names(), 'harness list methods')}")
    if not isinstance(table, dict):
        raise UsageError(f"{where} is no table of settings.")
    ranges: dict[str, Range | OneOf] = {}
    for setting, written in table.items():
        ranges[setting] = of_setting = _range(f"{where}: {setting}", written)
        ends = (of_setting.low, of_setting.high) if isinstance(of_setting, Range) else of_setting.values
        for value in ends:
            _check(where, method, {setting: value})
    return ranges


def _range(where: str, written: Any) -> Range | OneOf:
    if not isinstance(written, list) or len(written) < 2:
        raise UsageError(f'{where} is no range: write [lowest, highest, "log"], the same with "linear", or several values.')
    if written[-1] not in _SCALES:
        return OneOf(tuple(written))
    numbers = [end for end in written[:-1] if isinstance(end, int | float) and not isinstance(end, bool)]
    if len(written) != 3 or len(numbers) != 2 or not numbers[0] < numbers[1] or (written[2] == "log" and numbers[0] <= 0):
        raise UsageError(f"{where} is no range from a lowest to a highest number, above 0 on a logarithmic scale.")
    return Range(numbers[0], numbers[1], written[2])


def _variant(where: str, table: Any) -> tuple[str, dict[str, JSON]]:
    if not isinstance(table, dict) or set(table) != {"method", "settings"} or not isinstance(table["settings"], dict):
        raise UsageError(f"{where} is no form of a method: give it method and settings, and nothing else.")
    if table["method"] not in METHODS.names():
        raise UsageError(f"{where}: {unknown('method', str(table['method']), METHODS.names(), 'harness list methods')}")
    _check(where, table["method"], table["settings"])
    return table["method"], table["settings"]


def _check(where: str, method: str, settings: Mapping[str, JSON]) -> None:
    try:
        check(METHODS.get(method).config, settings, owner=method)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


# ---------------------------------------------------------------- drawing


def _evenly(dimensions: int, number: int) -> Iterator[list[float]]:
    """Points in a cube that fill it evenly however many are taken: Halton's, moved so that the first is in the middle."""
    for index in range(1, number + 1):
        yield [math.fmod(_mirrored(index, base) + 0.5 - 1 / base, 1.0) for base in _BASES[:dimensions]]


def _mirrored(index: int, base: int) -> float:
    """A number's digits behind the point, in reverse: 6, in base 2 110, becomes 0.011."""
    value, place = 0.0, 1.0
    while index:
        place /= base
        index, digit = divmod(index, base)
        value += digit * place
    return value


def _typed(value: float) -> float:
    """With as many digits as one would type."""
    return float(f"{value:.{DRAWN_DIGITS}g}")
