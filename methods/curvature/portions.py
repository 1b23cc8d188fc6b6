"""How many layers' curvature a device has memory for at once, and how many tokens beside it.

Only a GPU tells how much of its memory is free. Where what is held of all layers does not fit, they take turns in portions of
whole blocks, with a pass over the data for each: every portion sees the same batches, labels and weights, so that no number
depends on it but by the order of sums, where batches come out smaller. What is kept between passes then lies on the CPU and
goes to the device layer by layer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from harness.core.memory import ModelShape, ran_out
from harness.models.memory_items import TOKENS_AT_ONCE, activations
from harness.numerics import group
from harness.numerics.room import free_bytes
from methods.curvature.layers import Layer, input_groups, sizes

log = logging.getLogger(__name__)

LEAST_TOKENS = 1024
"""Of a batch on a GPU: another pass over the data costs less than smaller ones, which leave a GPU waiting."""
MOST_TOKENS = 16_384
"""Of a batch on a GPU; larger ones have nothing more to give."""
SHARE = 0.25
"""Of the memory that is left, for what a batch takes: how much that is, is known roughly, and others may need some."""

Held = Callable[[Sequence[Layer]], int]
"""Some layers → bytes that are held of them."""


def portions(model: PreTrainedModel, layers: Sequence[Layer], held: Held) -> list[list[int]]:
    """Positions of the layers that a pass is made for, pass by pass: as few as there is room for, on every process of a group.

    Args:
        model: what passes go through.
        layers: from `mlp_layers`.
        held: what a pass holds of them on their devices.
    """
    most = len({layer.block for layer in layers})
    free = {device: free_bytes(device) for device in _devices(layers)}

    def fits(chosen: Sequence[Layer]) -> bool:
        reserve = max(LEAST_TOKENS * bytes_per_token(model, chosen), sizes(chosen).decomposition)
        rooms = ((room, [layer for layer in chosen if _device(layer) == device]) for device, room in free.items())
        return all(room is None or held(beside) + reserve <= room for room, beside in rooms if beside)

    splits = (even_portions(layers, count) for count in range(1, most))
    fitting = (split for split in splits if all(fits([layers[i] for i in portion]) for portion in split))
    split = next(fitting, None) or even_portions(layers, most)
    return split if group.size() == 1 else even_portions(layers, group.most(len(split)))


def by_portions(model: PreTrainedModel, layers: Sequence[Layer], held: Held, work: Callable[[list[int]], None]) -> int:
    """Do something for the layers portion by portion, and cut one in two where memory runs out in it after all.

    Args:
        model: what passes go through.
        layers: from `mlp_layers`.
        held: see `portions`.
        work: done for the positions of a portion's layers, and from its beginning for its halves.

    Returns:
        In how many portions it was done.

    Raises:
        Exception: as `work`; that memory ran out only of a portion of one block, or on a process of a group.
    """
    waiting, count = portions(model, layers, held), 0
    while waiting:
        numbers, *waiting = waiting
        halves = even_portions([layers[i] for i in numbers], 2)
        try:
            work(numbers)
        except Exception as error:
            if not ran_out(error) or len(halves) == 1 or group.size() > 1:
                raise
        else:
            count += 1
            continue
        # Only here, behind the error, is what its frames held given back.
        log.warning("memory ran out: the layers take turns in more portions, with passes over the data for each")
        waiting = [*([numbers[i] for i in half] for half in halves), *waiting]
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
    return count


def even_portions(layers: Sequence[Layer], count: int) -> list[list[int]]:
    """Positions of the layers in so many portions of whole blocks, on each device as even as they come."""
    turns: list[list[int]] = [[] for _ in range(count)]
    for device in _devices(layers):
        beside = [i for i, layer in enumerate(layers) if _device(layer) == device]
        blocks = sorted({layers[i].block for i in beside})
        for i in beside:
            turns[blocks.index(layers[i].block) * count // len(blocks)].append(i)
    return [sorted(turn) for turn in turns if turn]


def home(model: PreTrainedModel, layers: Sequence[Layer], held: Held) -> torch.device | None:
    """Where to keep something of all layers between passes: beside each one's weights (None) where it fits, else on the CPU.

    Args:
        model: what passes go through.
        layers: whose.
        held: what is kept of them, and what is made of it.
    """
    return None if len(portions(model, layers, held)) == 1 else torch.device("cpu")


def tokens_at_once(model: PreTrainedModel, layers: Sequence[Layer], held: Held, otherwise: int) -> int:
    """Padded tokens of a pass's batches: as many as a `SHARE` of the memory that is left has room for.

    Args:
        model: what the pass goes through.
        layers: that it is made for.
        held: what it will hold of them on their devices.
        otherwise: how many where a device does not tell.
    """
    left = []
    for device in _devices(layers):
        if (free := free_bytes(device)) is None:
            return otherwise
        left.append(free - held([layer for layer in layers if _device(layer) == device]))
    return min(max(int(SHARE * min(left) / bytes_per_token(model, layers)), LEAST_TOKENS), MOST_TOKENS)


def bytes_per_token(model: PreTrainedModel, layers: Sequence[Layer]) -> int:
    """What a pass keeps of one token: activations and logits, and in float32 the inputs of the layers it is made for; rough."""
    shape = ModelShape(model, model.dtype.itemsize, retain_rows=0, answer_tokens=0)
    widths = dict(zip(input_groups(layers), (layer.shape[1] for layer in layers), strict=True))
    return activations(shape, trained=False).bytes // TOKENS_AT_ONCE + 4 * sum(widths.values())


def _device(layer: Layer) -> torch.device:
    return layer.module.weight.device


def _devices(layers: Sequence[Layer]) -> list[torch.device]:
    return list(dict.fromkeys(map(_device, layers)))
