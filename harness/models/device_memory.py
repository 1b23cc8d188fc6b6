"""What a device has, how many models are fine-tuned there at the same time, and how bytes are said."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.errors import UsageError
from harness.core.memory import ModelShape
from harness.numerics.placement import ALL_GPUS

if TYPE_CHECKING:
    from harness.models.gguf import GgufSource
    from harness.models.sources import CheckpointSource

GIB = 2**30
SIDE_BY_SIDE = 400_000_000
"""Parameters up to which models are fine-tuned on one GPU at the same time: small ones leave it waiting for the next kernel.
On an H100 three of SmolLM2-135M took 208 s so, more than 400 one after the other; of larger ones nobody measured it."""
OF_A_PROCESS = GIB
"""Bytes of a GPU that are left to each process for what it takes before it does anything: a guess."""


def gib(size: float) -> str:
    """A number of bytes in GiB, to be read."""
    return f"{size / GIB:.0f}" if size >= 9.95 * GIB else f"{size / GIB:.1f}"


@dataclass(frozen=True)
class Room:
    """What a device has."""

    device: str
    """Its name."""
    total: int
    """Bytes."""
    free: int
    """Of them free."""

    def __str__(self) -> str:
        taken = self.total - self.free > self.total / 10 and self.device.startswith("cuda")
        return f"{self.device} has {gib(self.total)} GiB" + (f" ({gib(self.free)} of them free)" if taken else "")


def room_on(device: str) -> Room:
    """What a device has; what torch holds back there for its next tensors, from an earlier run perhaps, counts as free.

    Of the CPU, and of mps which shares its memory, all counts as free: what others hold can be swapped out.
    """
    kind, _, number = device.partition(":")
    if kind == "cuda":
        import torch

        which = (
            range(torch.cuda.device_count()) if device == ALL_GPUS else [int(number) if number else torch.cuda.current_device()]
        )
        pairs = [torch.cuda.mem_get_info(i) for i in which]
        held_back = sum(torch.cuda.memory_reserved(i) - torch.cuda.memory_allocated(i) for i in which)
        name = device if number else f"{kind}:{which[0]}"
        return Room(name, sum(total for _, total in pairs), sum(free for free, _ in pairs) + held_back)
    import psutil

    memory = psutil.virtual_memory().total
    return Room("the CPU" if kind == "cpu" else kind, memory, memory)


def trainings_at_once(bases: Sequence[CheckpointSource | GgufSource], device: str, cache: Path) -> int:
    """How many models are fine-tuned at the same time: as many small ones as one GPU, the cores and the disk have room for.

    Args:
        bases: what each of them starts from.
        device: where they are trained; 1 for any that is not one GPU.
        cache: where epochs are kept.
    """
    if len(bases) < 2 or not re.fullmatch(r"cuda(:\d+)?", device):
        return 1
    import torch

    from harness.models.kept_epochs import AT_MOST, OF_A_WEIGHT
    from harness.models.memory_items import adamw
    from harness.numerics.configurations import meta_model

    try:
        shapes = [ModelShape(meta_model(base.config()), 4, retain_rows=0, answer_tokens=0) for base in bases]
    except UsageError:  # with code of its own, or what is told when it is loaded
        return 1
    largest = max(shape.parameters for shape in shapes)
    if largest > SIDE_BY_SIDE:
        return 1
    each = max(4 * shape.parameters + sum(item.bytes for item in adamw(shape)) for shape in shapes) + OF_A_PROCESS
    torch.cuda.empty_cache()  # what this process keeps for later is no room for others
    free, _ = torch.cuda.mem_get_info(torch.device(device))
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    disk = shutil.disk_usage(place).free // (AT_MOST * OF_A_WEIGHT * largest)
    return max(1, min(len(bases), os.cpu_count() or 1, free // each, disk))
