"""What a run needs besides the weights, as it is estimated before anything is loaded; and whether memory ran out after all."""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness.core.options import LoRA, Optimizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_RAN_OUT = re.compile(r"out of memory|can(?:no|')t allocate memory|ALLOC_FAILED", re.IGNORECASE)
"""What torch's RuntimeErrors say of CUDA, MPS, the CPU and cuBLAS."""


@dataclass(frozen=True)
class ModelShape:
    """What is known of a run's model and data before its weights are read; what methods estimate their memory from."""

    model: PreTrainedModel
    """The model on the meta device: modules, names and shapes, no numbers."""
    weight_bytes: int
    """Bytes of one weight: 4 in float32, 2 in bfloat16."""
    retain_rows: int
    """Examples of the largest retain set."""
    answer_tokens: int
    """Tokens of an answer with its end token, about: a quarter of the mean number of characters."""
    adapter: LoRA | None = None
    """What is trained in place of the weights."""
    portions: int = 1
    """In how many portions layers take turns on the device, in methods that can have it so (`methods.curvature.portions`)."""
    optimizer: Optimizer | None = None
    """How AdamW is kept by a method that takes one; the usual way if None."""
    recompute: bool = False
    """Whether activations are recomputed in training."""
    held_share: float = 1.0
    """What part of the weights a process holds; less than 1 where they are sharded (`harness.numerics.sharding`)."""
    row_tokens: int = 0
    """Tokens of one of the longer examples with its prompt, about: 19 of 20 have no more. 0 if that is not known."""
    trained_at_once: int = 4096
    """Padded tokens that go through the model at once when it is trained (`harness.numerics.training.tokens_at_once`)."""

    @property
    def parameters(self) -> int:
        """How many weights there are; tied ones count once."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def vocabulary(self) -> int:
        """Rows of the output embedding."""
        return int(self.model.config.vocab_size)

    def tokens_of(self, rows: int | None, most: int) -> tuple[int, int]:
        """Padded tokens, and labels among them, of the largest part that some rows go through the model in.

        Args:
            rows: together; None for as many as there are.
            most: tokens of a part.
        """
        if not self.row_tokens:
            return most, most
        at_once = max(1, most // self.row_tokens)
        at_once = at_once if rows is None else min(rows, at_once)
        tokens = at_once * self.row_tokens
        return tokens, min(tokens, at_once * self.answer_tokens)


@dataclass(frozen=True)
class MemoryItem:
    """Something a method holds in memory besides the weights."""

    what: str
    """Its name in messages, such as `factors`."""
    bytes: int
    """Its size at most."""
    where: Literal["device", "cpu"] = "device"
    """Beside the model, or in the machine's memory."""
    while_measured: bool = True
    """Whether it is still there while a point is measured."""
    certain: bool = True
    """Whether its size is counted rather than guessed; a run is refused only for what is certain."""


def trim_heap() -> None:
    """Give the system back what was freed of the machine's memory and the C library keeps for later, where it does (glibc).

    What a phase holds at most is then its own, and not what an evaluation, or a method before it in the same process, left.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def ran_out(error: Exception) -> bool:
    """Whether it says that a device, or the machine, had no memory left."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and _RAN_OUT.search(str(error)) is not None
