"""Texts continued token by token: rows that have ended leave the batch, and waiting prompts take their places.

What `transformers`' own `generate` does with keys and values of full attention, but for three things. A row leaves when its
answer has ended or its own budget is used up, where `generate` computes the whole batch until its last row ends; waiting
prompts enter a running batch; and keys and values lie in buffers with room behind them, where `generate` copies all of them at
every token.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Choose = Callable[[Tensor, Sequence[int]], Tensor]
"""([B, V] logits in float32, the B prompts they continue) → [B] the next tokens."""

ROOM = 32
"""Slots by which buffers grow."""
LEAVE_TOGETHER = 8
"""One in so many rows has to have ended before the others move together: moving copies all keys and values."""


def can_decode(model: PreTrainedModel, tokens: int) -> bool:
    """Whether `decode` is certain to be right for a model.

    It is where all that a token leaves behind are its keys and values, in slots that can be moved about since the model is
    given each token's position: no encoder, no recurrent state, no inputs of its own, no window shorter than the text.

    Args:
        model: any.
        tokens: of the longest prompt with its answer.
    """
    inputs = inspect.signature(model.forward).parameters
    return (
        not model.config.is_encoder_decoder
        and {"attention_mask", "position_ids", "past_key_values", "logits_to_keep"} <= inputs.keys()
        and getattr(type(model), "prepare_inputs_for_generation", None) is GenerationMixin.prepare_inputs_for_generation
        and len({parameter.device for parameter in model.parameters()}) == 1
        and all(
            type(layer) is DynamicLayer or (type(layer) is DynamicSlidingWindowLayer and layer.sliding_window > tokens)
            for layer in empty_layers(model)
        )
    )


def empty_layers(model: PreTrainedModel) -> list[Any]:
    """A layer of an empty cache for each layer that leaves keys and values behind."""
    return DynamicCache(config=model.config.get_text_config(decoder=True)).layers


class Buffer(DynamicLayer):
    """The keys and values of one layer, in a buffer with room for further tokens.

    `keys` and `values` are [B, heads, slots, width], views of the buffer's beginning; all rows end in the same slot.
    """

    keys: Tensor
    values: Tensor
    buffers: tuple[Tensor, Tensor]

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """Append those of further tokens, and return all."""
        if not self.is_initialized:
            self.hold([key_states], [value_states])
            return self.keys, self.values
        before = self.keys.shape[2]
        after = before + key_states.shape[2]
        if after > self.buffers[0].shape[2]:
            self.hold([self.keys], [self.values])
        rows = len(key_states)
        self.buffers[0][:rows, :, before:after] = key_states
        self.buffers[1][:rows, :, before:after] = value_states
        self.show(rows, after)
        return self.keys, self.values

    def show(self, rows: int, slots: int) -> None:
        """Make the first rows and slots of the buffer all that is there."""
        self.keys, self.values = self.buffers[0][:rows, :, :slots], self.buffers[1][:rows, :, :slots]

    def hold(self, keys: Sequence[Tensor], values: Sequence[Tensor], kept: Tensor | None = None, room: int = ROOM) -> None:
        """Replace all by the rows of some tensors, with zeros before the shorter ones: masked, but still multiplied by 0.

        The room behind them holds whatever lies in memory, since nothing looks there before something is put there.

        Args:
            keys: one or more [B, heads, slots, width].
            values: likewise.
            kept: which rows of the first of them; all if none are named.
            room: for so many further tokens.
        """
        self.is_initialized, self.dtype, self.device = True, keys[0].dtype, keys[0].device
        slots = max(part.shape[2] for part in keys)
        self.buffers = _buffer(keys, kept, slots, room), _buffer(values, kept, slots, room)
        self.show(len(self.buffers[0]), slots)


def _buffer(parts: Sequence[Tensor], kept: Tensor | None, slots: int, room: int) -> Tensor:
    sizes = [len(parts[0] if kept is None else kept), *map(len, parts[1:])]
    buffer = parts[0].new_empty(sum(sizes), parts[0].shape[1], slots + room, parts[0].shape[3])
    for part, rows in zip(parts, buffer.split(sizes), strict=True):
        padding = slots - part.shape[2]
        rows[:, :, :padding] = 0
        if part is parts[0] and kept is not None:
            torch.index_select(part, 0, kept, out=rows[:, :, padding:slots])
        else:
            rows[:, :, padding:slots] = part
    return buffer


@dataclass
class Batch:
    """Rows in the middle of their answers."""

    numbers: list[int]
    """[B] which prompts they continue."""
    tokens: Tensor
    """[B] the last token of each, which the model has yet to read."""
    lengths: Tensor
    """[B] tokens of each that it has read."""
    layers: list[Buffer]
    """Their keys and values, right-aligned."""

    @property
    def slots(self) -> int:
        """Tokens of each row that were read, with its padding."""
        return self.layers[0].get_seq_length()

    def move(self, rows: Sequence[int], entering: Batch | None) -> None:
        """Keep some of its rows, at least one, put another batch's behind them, and drop padding that none of them needs."""
        index = torch.tensor(rows, device=self.tokens.device)
        parts = [(self.tokens[index], self.lengths[index])]
        first = self.slots - int(parts[0][1].max())
        for number, layer in enumerate(self.layers):
            keys, values = [layer.keys[:, :, first:]], [layer.values[:, :, first:]]
            if entering:
                keys.append(entering.layers[number].keys)
                values.append(entering.layers[number].values)
            layer.hold(keys, values, index)
        self.numbers = [self.numbers[row] for row in rows]
        if entering:
            parts.append((entering.tokens, entering.lengths))
            self.numbers += entering.numbers
        self.tokens, self.lengths = (torch.cat(each) for each in zip(*parts, strict=True))


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    budgets: Sequence[int],
    ends: Sequence[int],
    choose: Choose,
    at_once: int,
) -> Iterator[tuple[int, list[int]]]:
    """Each prompt's continuation, up to its end token or to its budget.

    Args:
        model: one that `can_decode`, in eval mode.
        prompts: tokens, at least one each.
        budgets: most tokens of each continuation, at least 1.
        ends: tokens that end a continuation; the one that does is its last.
        choose: picks the next tokens.
        at_once: rows of a batch.

    Yields:
        (which prompt, its continuation), in the order in which they end.
    """
    waiting = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i), reverse=True)
    said: dict[int, list[int]] = {}
    batch: Batch | None = None
    while waiting or said:
        alive = [row for row, number in enumerate(batch.numbers) if number in said] if batch else []
        if batch is None or _should_move(batch, alive):
            entering = [waiting.pop() for _ in range(min(len(waiting), at_once - len(alive)))]
            said.update((number, []) for number in entering)
            new = read(model, prompts, entering, ends[0]) if entering else None
            if batch and alive:
                batch.move(alive, new)
            else:
                batch = new
        assert batch
        for number, token in zip(batch.numbers, _step(model, batch, choose), strict=True):
            if number in said:
                said[number].append(token)
                if token in ends or len(said[number]) == budgets[number]:
                    yield number, said.pop(number)


def _should_move(batch: Batch, alive: Sequence[int]) -> bool:
    """Whether enough rows have ended; the longest one at once, so that no padding is read which no row needs."""
    ended = len(batch.numbers) - len(alive)
    if ended == 0:
        return False
    return ended * LEAVE_TOGETHER >= len(batch.numbers) or int(batch.lengths[alive].max()) < batch.slots


def read(model: PreTrainedModel, prompts: Sequence[Sequence[int]], numbers: Sequence[int], padding: int) -> Batch:
    """Some prompts, left-padded, read up to their last tokens."""
    batch, ids = left_padded(model, [prompts[number] for number in numbers], numbers, padding)
    _forward(model, batch, ids)
    return batch


def left_padded(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], numbers: Sequence[int], padding: int
) -> tuple[Batch, Tensor]:
    """A batch of prompts by these numbers, and [B, T] their tokens, but for the last ones, which it has yet to read."""
    longest = max(2, *map(len, prompts))
    ids = torch.tensor([[padding] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    lengths = torch.tensor([len(prompt) - 1 for prompt in prompts], device=model.device)
    return Batch(list(numbers), ids[:, -1], lengths, [Buffer() for _ in empty_layers(model)]), ids[:, :-1]


def _step(model: PreTrainedModel, batch: Batch, choose: Choose) -> list[int]:
    """Takes a batch one token further, and returns that token of each row."""
    batch.lengths = batch.lengths + 1
    batch.tokens = choose(_forward(model, batch, batch.tokens[:, None]).float(), batch.numbers)
    return batch.tokens.tolist()


def _forward(model: PreTrainedModel, batch: Batch, ids: Tensor) -> Tensor:
    """[B, V] the logits behind the last of further tokens; see `inputs`."""
    return model(**inputs(batch, ids), logits_to_keep=1).logits[:, -1]  # type: ignore[no-any-return]


def inputs(batch: Batch, ids: Tensor) -> dict[str, Any]:
    """What a model is given to read further tokens, whose keys and values the batch gets.

    Args:
        batch: its lengths are those after these tokens.
        ids: [B, T], behind its last slots.
    """
    slots = batch.slots + ids.shape[1]
    padding = (slots - batch.lengths)[:, None]
    slot = torch.arange(slots, device=ids.device)
    return {
        "input_ids": ids,
        "attention_mask": (slot >= padding).long(),
        "position_ids": (slot[-ids.shape[1] :] - padding).clamp_(min=0),
        "past_key_values": Cache(list(batch.layers)),
        "use_cache": True,
    }
