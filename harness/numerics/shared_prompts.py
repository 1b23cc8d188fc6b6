"""Texts behind prompts that several of them share: each prompt is read once, and its keys and values serve all of its texts.

The answers of a ToFU question, true, paraphrased and wrong, are such texts. What is saved is the prompt's share in the tokens
(a fourth in ToFU); the numbers are those of whole texts, within the order of sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from transformers import Cache

from harness.data.rows import NO_LABEL, Encoded
from harness.numerics.decoding import Batch, Buffer, read

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Continued(NamedTuple):
    """What a model makes of some texts at the positions that predict their labels, N in all."""

    hidden: Tensor
    """[N, D] its last hidden states."""
    labels: Tensor
    """[N] the labels."""
    rows: Tensor
    """[N] which text each belongs to."""


def shared_prompts(encoded: Sequence[Encoded]) -> list[list[int]]:
    """Groups of at least two texts that begin with the same prompt, token by token, shortest prompts first."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, text in enumerate(encoded):
        if text.prompt_tokens:
            groups.setdefault(tuple(text.input_ids[: text.prompt_tokens]), []).append(number)
    return [groups[prompt] for prompt in sorted(groups, key=len) if len(groups[prompt]) > 1]


def continued(
    model: PreTrainedModel, encoded: Sequence[Encoded], groups: Sequence[Sequence[int]], pad_id: int, max_tokens: int
) -> Iterator[Continued]:
    """The hidden states of texts that share prompts.

    Args:
        model: one that `can_decode`, in eval mode; its window holds the longest prompt with the longest answer.
        encoded: all texts.
        groups: which of them share a prompt (`shared_prompts`).
        pad_id: see `harness.data.rows.pad_id`.
        max_tokens: padded tokens of one forward pass; of texts behind prompts, both count, since their keys and values do.
    """
    for block in _blocks([encoded[group[0]].prompt_tokens for group in groups], max_tokens):
        prompts = [encoded[groups[k][0]].input_ids[: encoded[groups[k][0]].prompt_tokens] for k in block]
        batch = read(model, prompts, range(len(prompts)), pad_id)
        texts = sorted(
            ((row, number) for row, k in enumerate(block) for number in groups[k]), key=lambda t: encoded[t[1]].label_count
        )
        for part in _blocks([batch.slots + encoded[number].label_count for _, number in texts], max_tokens):
            rows, numbers = zip(*(texts[i] for i in part), strict=True)
            yield _behind(model, batch, rows, [encoded[number] for number in numbers], numbers, pad_id)


def _blocks(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Positions of rising lengths, in blocks of at most `max_tokens` padded tokens."""
    blocks: list[list[int]] = []
    for i, length in enumerate(lengths):
        if blocks and (len(blocks[-1]) + 1) * length <= max_tokens:
            blocks[-1].append(i)
        else:
            blocks.append([i])
    return blocks


def _behind(
    model: PreTrainedModel, prompts: Batch, rows: Sequence[int], texts: Sequence[Encoded], numbers: Sequence[int], pad_id: int
) -> Continued:
    """The hidden states of some texts, right-padded behind the keys and values of their prompts.

    Args:
        model: see `continued`.
        prompts: read up to their last tokens, which the texts begin with here: they predict the first labels.
        rows: which prompt each text is behind.
        texts: the texts.
        numbers: theirs.
        pad_id: fills up shorter ones.
    """
    device = prompts.lengths.device
    counts = [text.label_count for text in texts]
    longest = max(counts)
    ids = torch.tensor(
        [[*t.input_ids[t.prompt_tokens - 1 : -1], *[pad_id] * (longest - n)] for t, n in zip(texts, counts, strict=True)]
    )
    labels = torch.tensor(
        [[*t.input_ids[t.prompt_tokens :], *[NO_LABEL] * (longest - n)] for t, n in zip(texts, counts, strict=True)]
    )
    index = torch.tensor(rows, device=device)
    lengths = prompts.lengths[index][:, None]
    first = prompts.slots - int(lengths.max())
    layers = [Buffer() for _ in prompts.layers]
    for own, shared in zip(layers, prompts.layers, strict=True):
        own.hold([shared.keys[index, :, first:]], [shared.values[index, :, first:]], longest)
    slots = prompts.slots - first + longest
    output = model.base_model(
        input_ids=ids.to(device),
        attention_mask=(torch.arange(slots, device=device) >= prompts.slots - first - lengths).long(),
        position_ids=lengths + torch.arange(longest, device=device),
        past_key_values=Cache(list(layers)),
        use_cache=True,
    )
    scored = labels != NO_LABEL
    owner = torch.tensor(numbers).repeat_interleave(torch.tensor(counts))
    return Continued(output.last_hidden_state[scored.to(device)], labels[scored].to(device), owner)
