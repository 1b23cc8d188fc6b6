"""Batches of a size that a device has memory for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from harness.core.memory import ran_out
from harness.numerics.sharding import is_sharded

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

T = TypeVar("T")

_FITTED: WeakKeyDictionary[PreTrainedModel, dict[int, int]] = WeakKeyDictionary()
"""Model → tokens asked for → tokens that memory was found for."""


def free_bytes(device: torch.device) -> int | None:
    """What a GPU has left, what torch holds back there for its next tensors included; None of a device that does not tell."""
    import torch

    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def with_room(model: PreTrainedModel, tokens: int, least: int, run: Callable[[int], T]) -> T:
    """What comes of working in batches; begun anew with batches of half the size as often as memory runs out on the way.

    Args:
        model: what works; the next time that as many tokens are asked for it begins with what it had room for.
        tokens: of a batch, at most.
        least: of the longest text, which is a batch of its own at the smallest.
        run: does the work from its beginning in batches of so many tokens, and keeps nothing of an earlier try.

    Raises:
        Exception: as `run`; that memory ran out only where one text at a time is too much, or of sharded weights, since the
            other processes are in the middle of the pass that broke off.
    """
    import torch

    fitted = _FITTED.setdefault(model, {})
    size = fitted.get(tokens, tokens)
    while True:
        try:
            return run(size)
        except Exception as error:
            if size <= least or not ran_out(error) or is_sharded(model):
                raise
        # Only here, behind the error, is what its frames held given back.
        size = fitted[tokens] = max(size // 2, least)
        log.warning("memory ran out: begun anew with %d tokens at once", size)
        if model.device.type == "cuda":
            torch.cuda.empty_cache()


def each_with_room(
    model: PreTrainedModel, count: int, rows: int, run: Callable[[list[int], int], Iterator[tuple[int, T]]]
) -> Iterator[tuple[int, T]]:
    """What comes of each of some items, as it is done; where memory runs out, the rest is begun anew with half as many at once.

    Args:
        model: what works.
        count: how many items there are.
        rows: how many are worked on at once, at most.
        run: works on the items of these numbers, so many at once, and keeps nothing when it breaks off.

    Yields:
        (the item's number, what comes of it).

    Raises:
        Exception: as `run`; that memory ran out only of one item at a time, or of sharded weights (see `with_room`).
    """
    import torch

    left = dict.fromkeys(range(count))
    while left:
        try:
            for number, made in run(list(left), rows):
                del left[number]
                yield number, made
        except Exception as error:
            if (rows := min(rows, len(left)) // 2) == 0 or not ran_out(error) or is_sharded(model):
                raise
        else:
            return
        # Only here, behind the error, is what its frames held given back.
        log.warning("memory ran out: the rest is begun anew with %d at once", rows)
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
