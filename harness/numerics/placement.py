"""Where a model lies: the devices that can be asked for, and where another model lies already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.documents import whole_number
from harness.core.errors import UsageError, cut
from harness.numerics import group

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALL_GPUS = "cuda:all"
"""The device that stands for all GPUs together."""


def pick_device(wanted: str) -> str:
    """`auto` as the best device that is here; any other name checked.

    Torch is only asked where a GPU driver can be seen, so that a CPU run that is already done needs no torch.

    Raises:
        UsageError: for a device that is not there, or one that each process of a group cannot have.
    """
    group.check_device(wanted)
    if wanted == "cpu" or (wanted == "auto" and not (Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists())):
        return "cpu"
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = wanted.partition(":")
    if wanted == ALL_GPUS:
        if torch.cuda.is_available():
            return wanted
        raise UsageError("--device cuda:all spreads a model over all GPUs, and this machine has none that torch can use.")
    devices = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if kind not in devices or (number and whole_number(number) is None):
        raise UsageError(f"no device called '{cut(wanted)}'. There are: auto, cpu, cuda, cuda:N, cuda:all, mps.")
    if (whole_number(number) or 0) >= devices[kind]:
        have = f"{devices[kind]} {kind} device{'s' * (devices[kind] != 1)}"
        raise UsageError(f"this machine has {have}, '{cut(wanted)}' is not among them. Use --device cpu or auto.")
    return wanted


def plain_attention(device: str) -> None:
    """Keep cuDNN's attention out of torch's choice on a GPU, for the whole process.

    Torch prefers it on Hopper (from 2.11 on), and it builds a plan for every shape of a batch that it has not seen: with texts
    of many lengths most of a step's time goes there (github.com/modelscope/FunASR issue 3704; here, fine-tuning 135 M
    parameters took .15 s a step on an H100, of which its products are .003 by count). The other kernels need no plan, and
    give the same within rounding.
    """
    if device.startswith("cuda"):
        import torch

        torch.backends.cuda.enable_cudnn_sdp(False)


def placement(model: PreTrainedModel) -> str:
    """The device to ask for when another model is to lie where this one does."""
    devices = set((getattr(model, "hf_device_map", None) or {}).values())
    return ALL_GPUS if len(devices) > 1 else str(model.device)
