"""One pass over data: forward and backward through a frozen model, with what passes the layers shown to two callbacks.

No weight gradient is formed and the graph begins at the output of the first targeted layer, so that a pass costs a forward, a
backward without weight gradients, and whatever the callbacks do. Padding and prompts are masked by the loss positions; a
gradient at padding is exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.core.progress import progress_bar
from harness.data.rows import Batch, Encoded, batches, by_length, collate
from harness.numerics.likelihood import answer_logits, has_plain_head, hidden_states, logits_of
from harness.numerics.room import with_room
from methods.curvature.layers import Layer, first_of_groups, input_groups
from methods.curvature.portions import Held, tokens_at_once

TOKENS_PER_BATCH = 4096
"""Padded tokens of one batch at most, where a device does not tell what it has room for; the result does not depend on it."""

LOGITS_AT_ONCE = 2**26
"""Entries of the logits that are there at a time, 256 MiB in float32, or those of one sequence where it has more."""

T = TypeVar("T")

OnInput = Callable[[int, Tensor], Tensor | None]
"""(group, [B, T, in (+ 1)] inputs) → what `OnGradient` is to see of them; called once per batch and group."""
OnGradient = Callable[[int, Tensor | None, Tensor], None]
"""(layer, what `OnInput` returned, [B, T, out] gradients); called at every backward pass."""
LogitGradient = Callable[[Tensor, Batch], Iterable[Tensor]]
"""([N, V] logits, the batch) → gradients with respect to the logits, one backward pass for each. Of a large vocabulary it is
shown some of a batch's sequences at a time."""


def backpropagate(
    model: PreTrainedModel,
    layers: Sequence[Layer],
    data: Iterable[Batch],
    logit_gradient: LogitGradient,
    on_input: OnInput,
    on_gradient: OnGradient,
    label: str = "",
    total: int | None = None,
) -> None:
    """Forward and backward over batches, showing each targeted layer's inputs and output gradients to two callbacks.

    Args:
        model: in eval mode, without gradient checkpointing; left as it was before, also after an exception.
        layers: from `mlp_layers`.
        data: the batches.
        logit_gradient: what is fed into the backward pass.
        on_input: see `OnInput`. Padding is still in it.
        on_gradient: see `OnGradient`. Gradients at padding are exactly 0.
        label: of the progress bar.
        total: how many sequences there are, for the bar.

    Raises:
        ValueError: for a model in training mode, or with gradient checkpointing.
    """
    bar = progress_bar(total=total, desc=label, unit="sequence")
    with bar, frozen(model), torch.enable_grad(), _hooks(layers, on_input, on_gradient) as next_batch:
        for batch in data:
            next_batch(len(batch.rows))
            output, signals = _signals(model, batch, logit_gradient)
            while signals:
                output.backward(signals.pop(0), retain_graph=bool(signals))
            del output  # of up to gigabytes, before the next batch's is made
            bar.update(len(batch.rows))


def _signals(model: PreTrainedModel, batch: Batch, logit_gradient: LogitGradient) -> tuple[Tensor, list[Tensor]]:
    """What the backward passes begin at, with the gradients that are fed into it there: logits, or last hidden states.

    Of a large vocabulary the logits are made some sequences at a time, and only their gradients with respect to the hidden
    states are kept.
    """
    examples = _sequences_at_once(batch, model.config.vocab_size)
    if len(examples) == 1 or not has_plain_head(model):
        logits = answer_logits(model, batch)
        return logits, list(logit_gradient(logits.detach(), batch))
    hidden = hidden_states(model, batch)
    signals: list[list[Tensor]] = []
    parts = [batch.part(some) for some in examples]
    for states, part in zip(hidden.detach().split([int(part.counts.sum()) for part in parts]), parts, strict=True):
        logits = logits_of(model, states.requires_grad_())
        signals.append(
            [
                torch.autograd.grad(logits, states, signal, retain_graph=True)[0]
                for signal in logit_gradient(logits.detach(), part)
            ]
        )
    return hidden, [torch.cat(same) for same in zip(*signals, strict=True)]


def _sequences_at_once(batch: Batch, vocabulary: int) -> list[slice]:
    """The sequences of a batch in runs of at most `LOGITS_AT_ONCE` logits, or of one sequence."""
    ends, taken = [0], 0
    for i, labels in enumerate(batch.counts.tolist()):
        if taken and (taken + labels) * vocabulary > LOGITS_AT_ONCE:
            ends.append(i)
            taken = 0
        taken += labels
    return [slice(start, end) for start, end in pairwise([*ends, len(batch.rows)])]


def whole_pass(
    model: PreTrainedModel,
    layers: Sequence[Layer],
    encoded: Sequence[Encoded],
    pad_id: int,
    once: Callable[[Iterator[Batch]], T],
    held: Held,
    rows: Sequence[int] | None = None,
) -> T:
    """What comes of going over a data set; begun anew with smaller batches where memory runs out on the way.

    Args:
        model: whose device.
        layers: that the pass is made for.
        encoded: the whole data set.
        pad_id: see `harness.data.rows.pad_id`.
        once: goes over all batches, and keeps nothing of an earlier try.
        held: what it will hold of the layers on their devices, beside what is there already.
        rows: the part to take; all if None.
    """
    longest = max((len(e.input_ids) for e in encoded), default=1)
    tokens = tokens_at_once(model, layers, held, TOKENS_PER_BATCH)
    return with_room(model, tokens, longest, lambda tokens: once(batches_of(encoded, pad_id, model, rows, tokens)))


def batches_of(
    encoded: Sequence[Encoded],
    pad_id: int,
    model: PreTrainedModel,
    rows: Sequence[int] | None = None,
    tokens: int | None = None,
) -> Iterator[Batch]:
    """A data set in batches of similar length on the model's device.

    Args:
        encoded: the whole data set.
        pad_id: see `harness.data.rows.pad_id`.
        model: whose device.
        rows: the part to take; all if None. A batch's `rows` are positions in the whole data set either way.
        tokens: of a batch, at most; `TOKENS_PER_BATCH` if None.
    """
    most = TOKENS_PER_BATCH if tokens is None else tokens
    if rows is None:
        yield from batches(encoded, pad_id, most, model.device)
        return
    for group in by_length([encoded[i] for i in rows], most):
        chosen = [rows[i] for i in group]
        yield collate([encoded[i] for i in chosen], chosen, pad_id).to(model.device)


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Inside, no parameter takes a gradient.

    Raises:
        ValueError: for a model in training mode, or with gradient checkpointing.
    """
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise ValueError("gradient checkpointing runs every layer twice and would double A; switch it off first")
    if model.training:
        raise ValueError("the model is in training mode; dropout would enter the curvature")
    wanted = [p for p in model.parameters() if p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_()


@contextmanager
def _hooks(layers: Sequence[Layer], on_input: OnInput, on_gradient: OnGradient) -> Iterator[Callable[[int], None]]:
    """Inside, the callbacks are shown what passes through the layers; what is yielded is given each batch's sequences first."""
    groups, first = input_groups(layers), first_of_groups(layers)
    seen: dict[int, tuple[Tensor, Tensor | None]] = {}
    sequences = 1

    def next_batch(count: int) -> None:
        nonlocal sequences
        sequences = count
        seen.clear()  # the batch before leaves with its inputs before the next one goes through

    def by_sequence(tensor: Tensor) -> Tensor:
        return tensor.reshape(sequences, -1, tensor.shape[-1])  # OPT's MLP reads and writes [B·T, D]

    def forward(index: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            group, inputs = groups[index], args[0]
            if group not in seen or seen[group][0] is not inputs:
                if first[index] != index:
                    raise RuntimeError(f"{layers[index].name} was expected to read the same input as the layer before it")
                a = by_sequence(inputs.detach())
                if layers[index].has_bias:
                    a = torch.cat([a, a.new_ones(*a.shape[:-1], 1)], dim=-1)
                seen[group] = (inputs, on_input(group, a))
            # Nothing before the first targeted layer needs a gradient, so the graph begins here.
            output = output if output.requires_grad else output.requires_grad_()
            kept = seen[group][1]
            output.register_hook(lambda g: on_gradient(index, kept, by_sequence(g.detach())))
            return output

        return hook

    handles = [layer.module.register_forward_hook(forward(i)) for i, layer in enumerate(layers)]
    try:
        yield next_batch
    finally:
        for handle in handles:
            handle.remove()
