"""What a plug-in shares with all else that its process does, and leaves as it found it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from harness.running.contracts.promises import keep


@dataclass(frozen=True)
class _Shared:
    """Something of the whole process."""

    what: str
    """Its name in messages."""
    now: Callable[[], Any]
    """What it is at the moment; compared by ==."""
    put_back: Callable[[Any], None]
    """Make it that again."""
    way_out: str
    """What a plug-in does instead."""


def _shared() -> list[_Shared]:
    import numpy as np
    import torch

    restore = "put it back in 'finally', and before each yield"
    own = "take numbers from a generator of its own, such as torch.Generator().manual_seed(seed)"

    def numpy_state() -> tuple[Any, ...]:
        return tuple(part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state(legacy=True))

    return [
        _Shared("torch's default type", torch.get_default_dtype, torch.set_default_dtype, restore),
        _Shared("torch's default device", torch.get_default_device, lambda _: torch.set_default_device(None), restore),
        _Shared(
            "whether gradients are taken",
            torch.is_grad_enabled,
            torch._C._set_grad_enabled,
            "close torch.no_grad() before each yield, since what follows would run under it",
        ),
        _Shared("torch's number of threads", torch.get_num_threads, torch.set_num_threads, restore),
        _Shared(
            "torch's choice of deterministic algorithms",
            torch.are_deterministic_algorithms_enabled,
            torch.use_deterministic_algorithms,
            restore,
        ),
        _Shared("the seed of torch's own random numbers", torch.initial_seed, lambda _: None, own),
        _Shared("the state of Python's random numbers", random.getstate, random.setstate, own),
        _Shared("the state of numpy's random numbers", numpy_state, np.random.set_state, own),
    ]


@contextmanager
def process_put_back() -> Iterator[None]:
    """What happens inside changes nothing of the process for what follows."""
    import torch

    before = [(each, each.now()) for each in _shared()]
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            for each, then in before:
                if each.now() != then:
                    each.put_back(then)


@dataclass(frozen=True)
class ProcessBefore:
    """How the process was, to be compared with."""

    state: Mapping[str, Any]
    """By its name in messages."""

    @classmethod
    def now(cls) -> ProcessBefore:
        """As it is at the moment."""
        return cls({each.what: each.now() for each in _shared()})

    def keep(self, when: str = "") -> None:
        """Compare.

        Args:
            when: how the message ends, such as ` while a point is measured`.

        Raises:
            Broken: naming what is otherwise, and the way out.
        """
        for each in _shared():
            keep(each.now() == self.state[each.what], f"it changes {each.what}{when}: {each.way_out}")
