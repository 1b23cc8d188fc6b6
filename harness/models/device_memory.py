"""What a device has, and how bytes are said."""

from __future__ import annotations

from dataclasses import dataclass

from harness.numerics.placement import ALL_GPUS

GIB = 2**30


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
