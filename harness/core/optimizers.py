"""How AdamW is kept, as the command line says it: `adamw:bits=8,masters=none,clip=none`, or a part of it."""

from __future__ import annotations

from typing import Any, get_args

from harness.core.errors import UsageError, cut
from harness.core.fields import Given, named_parts
from harness.core.options import Bits, Clip, Masters, Optimizer

EXAMPLE = "adamw:bits=8,masters=none,clip=none"


def optimizer_of(given: Given) -> Optimizer | None:
    """The optimizer of a text such as `adamw:bits=8`; None where it is empty, or says the defaults.

    Raises:
        UsageError: for a text that says none.
    """
    if given.value is None or given.value == "" or isinstance(given.value, Optimizer):
        return given.value or None  # type: ignore[return-value]
    values = named_parts(given, "adamw", ("bits", "masters", "clip"), "optimizer", EXAMPLE)
    said = Optimizer(
        bits=_one_of(given, values, "bits", Bits, 32),
        masters=_one_of(given, values, "masters", Masters, "float32"),
        clip=_one_of(given, values, "clip", Clip, "1"),
    )
    return None if said == Optimizer() else said  # one run has one name


def _one_of(given: Given, values: dict[str, str], key: str, allowed: object, usual: Any) -> Any:
    words = {str(each): each for each in get_args(allowed)}
    text = values.get(key, str(usual))
    if text not in words:
        raise UsageError(f"{given.text}: {key}={cut(text)} is not known. There are: {', '.join(words)}.")
    return words[text]
