"""Every beginning of a text, continued greedily to the text's length: what extraction metrics count.

A text of T tokens has T − 1 beginnings, so that all of them together are some T²/2 new tokens, and read by themselves as many
old ones. Three things make one batched pass of it:

-  the text is read once, and a beginning's keys and values are the first of the text's;
-  where the likeliest token behind a beginning is the text's own, its continuation is that token and the continuation of the
   next longer beginning, so that nothing is computed for it: of a text that a model knows by heart hardly anything is left;
-  the other beginnings enter one batch in order of their lengths. At position p all those of at most p tokens take a step
   together: no row is padded, and no keys and values are moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache

from harness.data.rows import Encoded, batches
from harness.numerics.decoding import Buffer, empty_layers
from harness.numerics.likelihood import answer_labels, answer_logits, check_length
from harness.numerics.room import with_room

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOTHING = -1
"""In the place of a token where a continuation has ended."""
TOKENS_READ_AT_ONCE = 4096
"""Of whole texts, whose logits are kept for every token."""
TOKENS_HELD = 80_000
"""Of continuations that are written together: their keys and values must fit beside the model."""
SHARE_OF_TEXTS = 4
"""One in so many of these tokens may be the texts' own, whose keys and values all their beginnings are copied from."""


@dataclass(frozen=True)
class Continued:
    """What a model says of one text of T tokens."""

    losses: Tensor
    """[T - 1] negative log-likelihood of each token but the first, in nats, float32, on the CPU."""
    likeliest: np.ndarray
    """[T - 1] the likeliest token in the place of each token but the first."""
    continuations: np.ndarray
    """[T, T] in row i, from column i on, what follows the first i tokens; `NOTHING` elsewhere, and behind an end token."""


@torch.no_grad()
def continued_beginnings(model: PreTrainedModel, texts: Sequence[Sequence[int]], ends: Sequence[int]) -> list[Continued]:
    """What a model says of some texts, and how it goes on behind each of their beginnings.

    Args:
        model: one that `harness.numerics.decoding.can_decode` the longest text, in eval mode.
        texts: tokens, at least two each.
        ends: tokens that end a continuation; the one that does is its last.

    Returns:
        One for each text, in their order.

    Raises:
        UsageError: for a text that is longer than the model's positions.
    """
    check_length(model, max(map(len, texts)))
    done: dict[int, Continued] = {}
    for length in sorted({len(text) for text in texts}):
        numbers = [number for number, text in enumerate(texts) if len(text) == length]
        ids = np.array([texts[number] for number in numbers])
        losses, likeliest = _read(model, ids)
        written = with_room(model, TOKENS_HELD, length, partial(_written, model, ids, likeliest, ends))
        for number, *of_text in zip(numbers, losses, likeliest, written, strict=True):
            done[number] = Continued(*of_text)
    return [done[number] for number in range(len(texts))]


def _read(model: PreTrainedModel, ids: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """([N, T - 1] losses, [N, T - 1] likeliest tokens) of texts of one length: [N, T]."""
    encoded = [Encoded(row, 0) for row in ids.tolist()]
    losses, likeliest = torch.empty(len(ids), ids.shape[1] - 1), np.empty((len(ids), ids.shape[1] - 1), dtype=ids.dtype)
    for batch in batches(encoded, 0, TOKENS_READ_AT_ONCE, model.device):
        logits, rows = answer_logits(model, batch), batch.rows.cpu()
        losses[rows] = F.cross_entropy(logits, answer_labels(batch), reduction="none").cpu().view(len(rows), -1)
        likeliest[rows] = logits.argmax(dim=-1).cpu().view(len(rows), -1).numpy()
    return losses, likeliest


def _written(
    model: PreTrainedModel, ids: np.ndarray, likeliest: np.ndarray, ends: Sequence[int], size: int
) -> list[np.ndarray]:
    """Each text's `continuations`, with keys and values of so many tokens at once."""
    length = ids.shape[1]
    first = np.column_stack([ids[:, :1], likeliest])  # [N, T] the likeliest token in the place of each
    # A beginning is continued by the model where that token is neither the text's own nor the last one.
    unlike = (first != ids) & ~np.isin(first, list(ends))
    unlike[:, [0, -1]] = False
    said: list[dict[int, np.ndarray]] = [{} for _ in ids]
    texts_at_once, at_once = max(1, size // SHARE_OF_TEXTS // length), max(1, size // length)
    for start in range(0, len(ids), texts_at_once):
        lengths, rows = np.nonzero(unlike[start : start + texts_at_once].T)  # in order of length
        if len(rows):
            read = _keys_and_values(model, ids[start : start + texts_at_once])
        for begin in range(0, len(rows), at_once):
            of, long = rows[begin : begin + at_once], lengths[begin : begin + at_once]
            tokens = _grown(model, read, of, long, first[start + of, long], length)
            for row, i, following in zip(of, long, tokens, strict=True):
                said[start + row][int(i)] = following
    return [_assembled(*of_text, ends) for of_text in zip(ids, first, said, strict=True)]


def _keys_and_values(model: PreTrainedModel, ids: np.ndarray) -> list[Buffer]:
    """Those of whole texts, layer by layer."""
    layers = [Buffer() for _ in empty_layers(model)]
    tokens = torch.from_numpy(ids).to(model.device)
    model(input_ids=tokens, past_key_values=Cache(list(layers)), use_cache=True, logits_to_keep=1)
    return layers


def _grown(
    model: PreTrainedModel, read: Sequence[Buffer], rows: np.ndarray, lengths: np.ndarray, first: np.ndarray, length: int
) -> np.ndarray:
    """What follows some beginnings, in the columns from its place on.

    Args:
        model: which writes.
        read: the texts' keys and values.
        rows: [B] whose beginnings.
        lengths: [B] how long they are, in rising order.
        first: [B] the first token that follows.
        length: of the whole texts.

    Returns:
        [B, T].
    """
    owner = torch.from_numpy(rows).to(model.device)
    layers = [Buffer() for _ in read]
    for layer, whole in zip(layers, read, strict=True):
        # Slots behind a beginning hold its text's own until they are written, and none of them is read before.
        layer.hold([whole.keys], [whole.values], owner, room=0)
    said = torch.zeros(len(rows), length, dtype=torch.long, device=model.device)
    said[torch.arange(len(rows)), torch.from_numpy(lengths)] = torch.from_numpy(first).to(model.device)
    entered = np.searchsorted(lengths, np.arange(length), side="right")  # at each position how many rows there are
    for position in range(int(lengths[0]), length - 1):
        count = int(entered[position])
        for layer in layers:
            layer.show(count, position)
        output = model(
            input_ids=said[:count, position : position + 1],
            position_ids=torch.full((count, 1), position, device=model.device),
            past_key_values=Cache(list(layers)),
            use_cache=True,
            logits_to_keep=1,
        )
        said[:count, position + 1] = output.logits[:, -1].float().argmax(dim=-1)
    return said.cpu().numpy()


def _assembled(text: np.ndarray, first: np.ndarray, said: dict[int, np.ndarray], ends: Sequence[int]) -> np.ndarray:
    """[T, T] a text's `continuations`, out of those that were written.

    Args:
        text: [T] its tokens.
        first: [T] the likeliest token in the place of each.
        said: length of a beginning → [T] what follows it.
        ends: tokens that end a continuation.
    """
    length = len(text)
    whole = np.full((length, length), NOTHING, dtype=np.int64)
    for i in range(length - 1, 0, -1):
        whole[i, i] = first[i]
        if first[i] not in ends:
            whole[i, i + 1 :] = said[i][i + 1 :] if i in said else whole[min(i + 1, length - 1), i + 1 :]
    ended = np.isin(whole, list(ends)).cumsum(axis=1)
    whole[np.column_stack([np.zeros(length), ended[:, :-1]]) > 0] = NOTHING
    return whole
