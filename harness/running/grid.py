"""What a sweep tries: axes of settings, spans that numbers are drawn from, and the draws."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from harness.core.config import JSON, parse
from harness.core.errors import UsageError, cut, unknown
from harness.core.ranges import DRAWN_DIGITS

Search = Literal["grid", "random"]


@dataclass(frozen=True)
class Span:
    """Numbers from a lowest to a highest, drawn evenly on a logarithmic scale; whole ones if both ends are."""

    low: float
    """The lowest, above 0."""
    high: float
    """The highest."""

    def draw(self, rng: random.Random) -> float:
        """One of them."""
        value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return round(value)
        return float(f"{value:.{DRAWN_DIGITS}g}")


Axes = Mapping[str, "Sequence[JSON] | Span"]


def axes(grids: Sequence[str]) -> dict[str, list[JSON] | Span]:
    """`["lr=1e-4,1e-3", "layers=[3,4];[5]"]` as name → values, parted by commas, or by semicolons where there are any.

    `lr=1e-5..1e-3` is a span that random tries are drawn from; `ga.lr=…` an axis of one of several methods.

    Raises:
        UsageError: for an axis without values, or one given twice.
    """
    axes_by_name: dict[str, list[JSON] | Span] = {}
    for text in grids:
        key, equals, values = text.partition("=")
        parts = [part.strip() for part in values.split(";" if ";" in values else ",")]
        if not equals or not key.strip() or not all(parts):
            raise UsageError(f"'{cut(text)}' is no axis of a grid. Write it as key=value,value, for example lr=1e-4,1e-3.")
        if key.strip() in axes_by_name:
            raise UsageError(f"the axis '{cut(key.strip())}' is given twice.")
        values_of_axis = [parse([f"_={part}"])["_"] for part in parts] if ".." not in parts[0] else span(text, parts[0])
        axes_by_name[key.strip()] = values_of_axis
    return axes_by_name


def span(axis: str, text: str) -> Span:
    """`1e-5..1e-3` as a span.

    Raises:
        UsageError: if it is none.
    """
    low, high = (parse([f"_={end}"])["_"] for end in text.split("..", 1))
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
    if not numbers or not 0 < low < high:
        raise UsageError(f"'{cut(axis)}' is no span. Write it as key=low..high with 0 < low < high, for example lr=1e-5..1e-3.")
    return Span(low, high)


def listed_axes(values: Mapping[object, JSON], where: str) -> dict[str, list[JSON] | Span]:
    """Axes out of a mapping: name → list of values, or a span as text.

    Args:
        values: as a file or Python says them.
        where: whence they are, for messages.

    Raises:
        UsageError: for an axis without a list of values.
    """
    return {str(key): _axis(where, str(key), of_axis) for key, of_axis in values.items()}


def _axis(where: str, key: str, values: JSON) -> list[JSON] | Span:
    if isinstance(values, str) and ".." in values:
        return span(f"{key}={values}", values)
    if not isinstance(values, list | tuple) or not values:
        raise UsageError(f"{where}: the axis '{cut(key)}' has no list of values. Write it as {key}: [value, value].")
    # YAML takes 1e-4 for a word, the command line and JSON for a number.
    return [parse([f"_={value}"])["_"] if isinstance(value, str) else value for value in values]


def axes_of(method: str, methods: Sequence[str], every: Axes) -> Axes:
    """A method's axes: those without a method's name before them, and those with its own.

    Raises:
        UsageError: if an axis names a method that is not among the methods.
    """
    own: dict[str, Sequence[JSON] | Span] = {}
    for key, values in every.items():
        owner, dot, name = key.partition(".")
        if dot and owner not in methods:
            raise unknown("method of this sweep", owner, methods)
        if not dot or owner == method:
            own[name if dot else key] = values
    return own


def grid(of: Mapping[str, Sequence[JSON]]) -> Iterator[dict[str, JSON]]:
    """Every combination of the axes' values; one empty combination for no axis."""
    for values in product(*of.values()):
        yield dict(zip(of, values, strict=True))


def size(of: Axes) -> int:
    """How many combinations a grid without spans has."""
    return math.prod(len(values) for values in of.values() if not isinstance(values, Span))


def draws(of: Axes, budget: int | None, search: Search, owner: str) -> list[dict[str, JSON]]:
    """The settings to be tried: the whole grid, or as many of it as the budget allows, always the same ones.

    Args:
        of: the axes.
        budget: how many tries; all if not given.
        search: `grid` spreads them evenly over the grid, `random` draws without repetition.
        owner: whose settings these are, for messages and for the draw.

    Raises:
        UsageError: if there are not so many different ones, or a span is to be walked through.
    """
    spans = [key for key, values in of.items() if isinstance(values, Span)]
    if spans and (search != "random" or budget is None):
        raise UsageError(f"the span of '{spans[0]}' has no end of values; give --search random and --budget N.")
    whole = {key: values for key, values in of.items() if not isinstance(values, Span)}
    count = size(whole)
    if budget is None:
        return list(grid(whole))
    if not of or (not spans and count < budget):
        raise UsageError(
            f"the grid of {owner} has {count} settings and the budget is {budget}: every method gets the same number of "
            "different tries. Add values with --grid, or lower --budget."
        )
    if search == "grid":
        return [_combination(whole, i * count // budget) for i in range(budget)]
    rng = random.Random(f"{owner} {budget}")
    if not spans:
        return [_combination(whole, i) for i in rng.sample(range(count), budget)]
    different: list[dict[str, JSON]] = []
    for _ in range(100 * budget):
        drawn = {key: v.draw(rng) if isinstance(v, Span) else rng.choice(v) for key, v in of.items()}
        if drawn not in different:
            different.append(drawn)
        if len(different) == budget:
            return different
    raise UsageError(f"the spans of {owner} hold fewer than {budget} different settings; widen them, or lower --budget.")


def _combination(of: Mapping[str, Sequence[JSON]], number: int) -> dict[str, JSON]:
    """One combination of the grid, the last axis running fastest, as in `grid`."""
    chosen: dict[str, JSON] = {}
    for key in reversed(list(of)):
        number, place = divmod(number, len(of[key]))
        chosen[key] = of[key][place]
    return {key: chosen[key] for key in of}
