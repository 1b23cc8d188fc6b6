"""What single parts of a run hold besides the weights: optimisers, activations, evaluation, budgets.

Sizes of optimisers are counted; activations are worked out from what a decoder layer of Llama keeps, and rough for others.
`tests/perf/memory.py` sets them beside what runs hold.
"""

from __future__ import annotations

from dataclasses import replace

from harness.core.memory import MemoryItem, ModelShape
from harness.core.options import Optimizer
from harness.core.problem import Problem
from harness.numerics.meeting import KEPT, LONGEST_WAIT

TOKENS_AT_ONCE = 4096
"""Padded tokens of a curvature pass (`methods.curvature`)."""
LOGITS_AT_ONCE = 2**26
"""Entries of the logits that a curvature pass makes at a time (`methods.curvature.passes`)."""
TOKENS_WHEN_READING = 8192
"""Padded tokens that are read or answered together (`harness.numerics.likelihood`, `harness.numerics.generation`)."""
POSITIONS_WHEN_READING = 256
"""Positions whose logits are there together (`harness.numerics.likelihood`)."""


def adamw(shape: ModelShape) -> list[MemoryItem]:
    """What AdamW on all weights holds: float32 gradients, two moments, and masters of weights that are not float32."""
    float32 = round(4 * shape.parameters * shape.held_share)
    return [
        MemoryItem("gradients", float32, while_measured=False),
        MemoryItem("AdamW moments", 2 * float32),
        MemoryItem("float32 masters", 0 if shape.weight_bytes == 4 else float32),
        training_activations(shape, beside=float32),
    ]


def adamw_by_weight(shape: ModelShape, optimizer: Optimizer, rows: int, parts: int) -> list[MemoryItem]:
    """The same where it is kept otherwise (`harness.numerics.by_weight`); see `training_activations`."""
    from harness.numerics.by_weight import PIECE

    weights, largest = shape.parameters, max(p.numel() for p in shape.model.parameters())
    moments = 8 * weights if optimizer.bits == 32 else round((2 + 2 * 4 / 256) * weights)  # a float32 number for every block
    split = shape.weight_bytes == 2 and optimizer.masters == "float32"
    held = (largest if optimizer.clip == "none" and parts == 1 else weights) * shape.weight_bytes
    return [
        MemoryItem("gradients", held, while_measured=False),
        MemoryItem("AdamW moments", moments),
        MemoryItem("halves of float32 masters", 2 * weights if split else 0),
        MemoryItem(
            "a piece in float32",
            0 if shape.weight_bytes == 4 else 4 * 4 * min(PIECE, largest),
            while_measured=False,
            certain=False,
        ),
        training_activations(shape, rows, parts, beside=held),
    ]


def training_activations(shape: ModelShape, rows: int | None = None, parts: int = 2, beside: int = 0) -> MemoryItem:
    """What a step of training keeps for its backward pass, beyond the gradients that are there only when it is over.

    Args:
        shape: of the model.
        rows: of a step, or as many as go through the model together.
        parts: how many passes a step takes: all but the last one leave their gradients behind for those to come.
        beside: bytes of the gradients that are counted on their own.
    """
    kept = activations(shape, recomputed=shape.recompute, rows=rows)
    before = 0 if parts == 1 else min(beside, shape.parameters * shape.weight_bytes)
    return replace(kept, bytes=max(0, kept.bytes - (beside - before)))


def budget_items(shape: ModelShape, problem: Problem) -> list[MemoryItem]:
    """What meeting budgets of damage holds: copies of the weights, and what the model said of the budget rows before."""
    tokens = sum(len(e.tag + e.answer) // 4 + 1 for rows in problem.held_out.values() for e in rows)
    if not tokens:
        return []
    weights = shape.parameters * shape.weight_bytes
    return [
        MemoryItem("copies of the weights", 5 * weights + min(KEPT, LONGEST_WAIT * weights), where="cpu"),
        MemoryItem("budget rows' log-probabilities", 4 * tokens * shape.vocabulary, where="cpu"),
    ]


def activations(shape: ModelShape, trained: bool = True, recomputed: bool = False, rows: int | None = None) -> MemoryItem:
    """What one forward and backward pass over some rows keeps, and the logits of their labels; rough.

    A decoder layer of Llama keeps, in the weights' type: the inputs of its linear maps, queries, keys and values, the result of
    attention and four tensors of the MLP's width; of each norm its input and what it gives before it is scaled, in float32 as
    far as it computes in that. Where no weight takes a gradient, inputs of linear maps are not kept.

    Args:
        shape: of the model.
        trained: whether weights need gradients.
        recomputed: whether only one layer's are kept, and the inputs of the others.
        rows: that the pass is over; as many as go through the model at once if None, or if there are more.
    """
    from harness.numerics.likelihood import has_plain_head

    hidden, layers, of_keys = _hidden(shape), size_of(shape, "num_hidden_layers", 1), 2 * _key_width(shape)
    inner = size_of(shape, "intermediate_size", 4 * hidden)
    of_norms = 2 * 4 // shape.weight_bytes + (2 if trained else 0)
    width = (of_norms + 4) * hidden + of_keys + 4 * inner if trained else (of_norms + 2) * hidden + of_keys + 3 * inner
    kept = width + layers * hidden if recomputed else width * layers
    tokens, labels = shape.tokens_of(rows, shape.trained_at_once if trained else TOKENS_AT_ONCE)
    plain = has_plain_head(shape.model)
    entries = (labels if plain else tokens) * shape.vocabulary  # others make all logits, and a curvature pass at once
    logits = 3 * 4 * (entries if trained or not plain else min(entries, LOGITS_AT_ONCE))
    return MemoryItem("activations", tokens * kept * shape.weight_bytes + logits, while_measured=False, certain=False)


def measuring_bytes(shape: ModelShape) -> int:
    """What evaluation takes: keys and values of the texts that are read or answered together, a layer's activations; rough.

    Logits are made some positions at a time where that can be. A model without attention keeps states that are small beside
    the rest.
    """
    from harness.numerics.likelihood import has_plain_head

    hidden, layers = _hidden(shape), size_of(shape, "num_hidden_layers", 1)
    inner = size_of(shape, "intermediate_size", 4 * hidden)
    each = layers * 2 * _key_width(shape) + 4 * hidden + 4 * inner
    positions = 3 * POSITIONS_WHEN_READING if has_plain_head(shape.model) else 2 * TOKENS_WHEN_READING
    return TOKENS_WHEN_READING * each * shape.weight_bytes + positions * shape.vocabulary * 4


def _key_width(shape: ModelShape) -> int:
    """Of a token's keys in one layer; 0 without attention."""
    heads = size_of(shape, "num_attention_heads", 0)
    return size_of(shape, "num_key_value_heads", heads) * size_of(shape, "head_dim", _hidden(shape) // max(1, heads))


def _hidden(shape: ModelShape) -> int:
    return size_of(shape, "hidden_size", int(shape.model.get_input_embeddings().weight.shape[1]))  # type: ignore[index]


def size_of(shape: ModelShape, field: str, default: int) -> int:
    """A number of the configuration, the largest where it is one a layer; the default where it says none."""
    value = getattr(shape.model.config, field, None) or default
    return max(map(int, value)) if isinstance(value, list | tuple) else int(value)
