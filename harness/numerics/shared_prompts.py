"""Texts with one beginning: it is read once, and its keys and values serve all of them.

The answers of a ToFU question, true, paraphrased and wrong, share their prompt, and most wrong ones their first words with the
paraphrase: a third of the tokens. The numbers are those of whole texts, within the order of sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from harness.data.rows import NO_LABEL, Encoded
from harness.numerics.decoding import Batch, Buffer, inputs, left_padded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAST_LABELS = 6
"""So many labels in common make a beginning of their own, for which the prompt is read again; by trial, in tokens read."""


class Beginning(NamedTuple):
    """What several texts begin with."""

    tokens: list[int]
    """A prompt, and the labels that all of them have behind it; each text goes on."""
    prompt_tokens: int
    """How many of them carry no label."""
    texts: list[int]
    """Which texts."""


class Continued(NamedTuple):
    """What a model makes of some texts at the positions that predict their labels, N in all."""

    hidden: Tensor
    """[N, D] its last hidden states."""
    labels: Tensor
    """[N] the labels."""
    rows: Tensor
    """[M] a text for each label that it has: a label which several share is there for each of them."""
    positions: Tensor
    """[M] where in the N that label is."""


def shared_beginnings(encoded: Sequence[Encoded]) -> list[Beginning]:
    """Of the texts that share a prompt with another, token by token, what they begin with, shortest first."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, text in enumerate(encoded):
        if text.prompt_tokens:
            groups.setdefault(tuple(text.input_ids[: text.prompt_tokens]), []).append(number)
    beginnings = [each for group in groups.values() if len(group) > 1 for each in _beginnings(encoded, group)]
    return sorted(beginnings, key=lambda each: len(each.tokens))


def _beginnings(encoded: Sequence[Encoded], group: Sequence[int]) -> Iterator[Beginning]:
    """What the texts behind one prompt begin with: the prompt, or more where that is less to read."""
    prompt = encoded[group[0]].prompt_tokens
    order = sorted(group, key=lambda number: encoded[number].input_ids)
    runs = [[order[0]]]
    for number in order[1:]:
        if _common(encoded, [runs[-1][0], number]) - prompt >= LEAST_LABELS:
            runs[-1].append(number)
        else:
            runs.append([number])
    bare: list[int] = []
    for run in runs:
        tokens = encoded[run[0]].input_ids[: _common(encoded, run)]
        if (len(run) - 1) * (len(tokens) - prompt) > (prompt if len(runs) > 1 else 0):
            yield Beginning(tokens, prompt, run)
        else:
            bare += run
    if bare:
        yield Beginning(encoded[group[0]].input_ids[:prompt], prompt, sorted(bare))


def _common(encoded: Sequence[Encoded], texts: Sequence[int]) -> int:
    """How many tokens some texts in order begin with, the last token of each aside."""
    first, last = encoded[texts[0]].input_ids, encoded[texts[-1]].input_ids
    most = min(len(encoded[number].input_ids) for number in texts) - 1
    return next((i for i in range(most) if first[i] != last[i]), most)


def continued(
    model: PreTrainedModel, encoded: Sequence[Encoded], beginnings: Sequence[Beginning], pad_id: int, max_tokens: int
) -> Iterator[Continued]:
    """The hidden states of texts that share beginnings.

    Args:
        model: one that `can_decode`, in eval mode; its window holds the longest beginning with the longest answer.
        encoded: all texts.
        beginnings: of some of them (`shared_beginnings`).
        pad_id: see `harness.data.rows.pad_id`.
        max_tokens: padded tokens of one forward pass; behind beginnings both count, since their keys and values do.
    """
    for block in _blocks([len(beginning.tokens) for beginning in beginnings], max_tokens):
        read = [beginnings[k] for k in block]
        batch, hidden = _read(model, read, pad_id)
        if (labelled := _labelled(hidden, read)) is not None:
            yield labelled
        # From a beginning's last token on, which predicts the first label behind it.
        rests = [
            (row, number, encoded[number].input_ids[len(beginning.tokens) - 1 :])
            for row, beginning in enumerate(read)
            for number in beginning.texts
        ]
        rests.sort(key=lambda rest: len(rest[2]))
        for part in _blocks([batch.slots + len(tokens) - 1 for *_, tokens in rests], max_tokens):
            rows, numbers, tokens = zip(*(rests[i] for i in part), strict=True)
            yield _behind(model, batch, rows, tokens, numbers, pad_id)


def _blocks(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Positions of rising lengths, in blocks of at most `max_tokens` padded tokens."""
    blocks: list[list[int]] = []
    for i, length in enumerate(lengths):
        if blocks and (len(blocks[-1]) + 1) * length <= max_tokens:
            blocks[-1].append(i)
        else:
            blocks.append([i])
    return blocks


def _read(model: PreTrainedModel, beginnings: Sequence[Beginning], pad_id: int) -> tuple[Batch, Tensor]:
    """Some beginnings, read up to their last tokens, and [B, T, D] the last hidden states, right-aligned."""
    batch, ids = left_padded(model, [beginning.tokens for beginning in beginnings], range(len(beginnings)), pad_id)
    return batch, model.base_model(**inputs(batch, ids)).last_hidden_state


def _labelled(hidden: Tensor, beginnings: Sequence[Beginning]) -> Continued | None:
    """The labels that beginnings hold, if any does."""
    counts = [len(beginning.tokens) - beginning.prompt_tokens for beginning in beginnings]
    if not any(counts):
        return None
    slot = torch.arange(hidden.shape[1], device=hidden.device)
    scored = slot >= hidden.shape[1] - torch.tensor(counts, device=hidden.device)[:, None]
    labels = [token for beginning in beginnings for token in beginning.tokens[beginning.prompt_tokens :]]
    rows: list[int] = []
    positions: list[int] = []
    first = 0
    for beginning, count in zip(beginnings, counts, strict=True):
        for number in beginning.texts:
            rows += [number] * count
            positions += range(first, first + count)
        first += count
    return Continued(hidden[scored], torch.tensor(labels, device=hidden.device), torch.tensor(rows), torch.tensor(positions))


def _behind(
    model: PreTrainedModel, batch: Batch, rows: Sequence[int], texts: Sequence[list[int]], numbers: Sequence[int], pad_id: int
) -> Continued:
    """The hidden states of some texts, right-padded behind the keys and values of their beginnings.

    Args:
        model: see `continued`.
        batch: the beginnings, read up to their last tokens.
        rows: which of them each text is behind.
        texts: the last token of each one's beginning, and what follows.
        numbers: theirs.
        pad_id: fills up shorter ones.
    """
    device = batch.lengths.device
    counts = [len(tokens) - 1 for tokens in texts]
    longest = max(counts)
    ids = torch.tensor([[*tokens[:-1], *[pad_id] * (longest - n)] for tokens, n in zip(texts, counts, strict=True)])
    labels = torch.tensor([[*tokens[1:], *[NO_LABEL] * (longest - n)] for tokens, n in zip(texts, counts, strict=True)])
    index = torch.tensor(rows, device=device)
    lengths = batch.lengths[index]
    first = batch.slots - int(lengths.max())
    layers = [Buffer() for _ in batch.layers]
    for own, shared in zip(layers, batch.layers, strict=True):
        own.hold([shared.keys[:, :, first:]], [shared.values[:, :, first:]], index, longest)
    behind = Batch(list(numbers), batch.tokens[index], lengths + longest, layers)
    hidden = model.base_model(**inputs(behind, ids.to(device))).last_hidden_state
    scored = labels != NO_LABEL
    owner = torch.tensor(numbers).repeat_interleave(torch.tensor(counts))
    return Continued(hidden[scored.to(device)], labels[scored].to(device), owner, torch.arange(len(owner)))
