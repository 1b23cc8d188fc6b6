"""Low-rank adapters as the command line says them: `lora:r=16,alpha=32,dropout=0.05,target=all`, or a part of it."""

from __future__ import annotations

from typing import cast, get_args

from harness.core.documents import whole_number
from harness.core.errors import UsageError, cut
from harness.core.fields import Given, named_parts
from harness.core.options import LoRA, Target

LARGEST = 65_536
"""The largest r and alpha."""
EXAMPLE = "lora:r=16,alpha=32,dropout=0,target=all"


def adapter_of(given: Given) -> LoRA | None:
    """The adapter of a text such as `lora:r=16`; None where it is empty.

    Raises:
        UsageError: for a text that says none.
    """
    if given.value is None or given.value == "" or isinstance(given.value, LoRA):
        return given.value or None  # type: ignore[return-value]
    values = named_parts(given, "lora", ("r", "alpha", "dropout", "target"), "adapter", EXAMPLE)
    usual = LoRA()
    return LoRA(
        rank=_whole(given, "r", values.get("r", str(usual.rank))),
        alpha=_whole(given, "alpha", values.get("alpha", str(usual.alpha))),
        dropout=_share(given, values.get("dropout", str(usual.dropout))),
        target=_target(given, values.get("target", usual.target)),
    )


def _whole(given: Given, key: str, text: str) -> int:
    number = whole_number(text)
    if number is None or not 1 <= number <= LARGEST:
        raise UsageError(f"{given.text}: {key}={cut(text)} is no whole number from 1 to {LARGEST:,}.")
    return number


def _share(given: Given, text: str) -> float:
    """With six digits, as records write it."""
    try:
        share = float(f"{float(text):g}") + 0.0  # -0 is 0
    except ValueError:
        share = float("nan")
    if not 0 <= share < 1:
        raise UsageError(f"{given.text}: dropout={cut(text)} is no number from 0 to below 1.")
    return share


def _target(given: Given, text: str) -> Target:
    if text not in get_args(Target):
        raise UsageError(f"{given.text}: target={cut(text)} is not known. There are: {', '.join(get_args(Target))}.")
    return cast("Target", text)
