"""The logit lens: what a model would say if it stopped after each of its layers (nostalgebraist 2020, "interpreting GPT").

The residual stream behind layer l goes through the model's own last norm and output embedding; the likeliest word there is what
layer l leads with. Nothing is trained. The last layer's is what the model says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.data.rows import Batch, Encoded, batches
from harness.numerics.anatomy import decoder_layers
from harness.numerics.likelihood import POSITIONS_AT_ONCE, TOKENS_ON_CPU, TOKENS_PER_BATCH, answer_labels, check_length
from harness.numerics.room import with_room

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

_LAST_NORMS = ("norm", "final_layernorm", "ln_f", "final_layer_norm")
"""What families call the norm before their output embedding."""


def last_norm(model: PreTrainedModel) -> nn.Module | None:
    """The norm before a model's output embedding; None where it is not known which that is."""
    norms: list[nn.Module] = [norm for name in _LAST_NORMS if (norm := getattr(model.base_model, name, None)) is not None]
    return norms[0] if len(norms) == 1 else None


@torch.no_grad()
def leading_layers(model: PreTrainedModel, encoded: Sequence[Encoded], pad_id: int) -> list[np.ndarray]:
    """At which layers the token that stands there is the likeliest one.

    Args:
        model: in eval mode.
        encoded: the texts.
        pad_id: see `harness.data.rows.pad_id`.

    Returns:
        For each text [T, L]: of each labelled token and each layer, whether it leads.

    Raises:
        LookupError: for a model whose last norm is not known, or whose last logits are not finite.
    """
    norm, head = last_norm(model), model.get_output_embeddings()
    if norm is None:
        raise LookupError(f"it is not known which norm comes last in a {model.config.model_type}")
    longest = max((len(e.input_ids) for e in encoded), default=1)
    check_length(model, longest)

    def once(tokens: int) -> list[np.ndarray]:
        done: dict[int, np.ndarray] = {}
        for batch in batches(encoded, pad_id, tokens, model.device):
            labels, layers = answer_labels(batch), []
            for stream in _streams(model, batch):
                states = stream.to(labels.device)[:, :-1][batch.scored].split(POSITIONS_AT_ONCE)
                words = torch.cat([head(norm(part)).argmax(dim=-1).to(labels.device) for part in states])
                layers.append((words == labels).cpu().numpy())
            if not all(head(norm(part)).isfinite().all() for part in states):  # of the last layer: no token leads
                raise LookupError("a logit is not finite")
            ends = batch.counts.cumsum(0).tolist()
            own = np.split(np.stack(layers, axis=1), ends[:-1])
            done.update(zip(batch.rows.tolist(), own, strict=True))
        return [done[row] for row in range(len(encoded))]

    tokens = min(TOKENS_PER_BATCH, TOKENS_ON_CPU) if model.device.type == "cpu" else TOKENS_PER_BATCH
    return with_room(model, tokens, longest, once)


def _streams(model: PreTrainedModel, batch: Batch) -> list[Tensor]:
    """[B, T, D] the residual stream behind each decoder layer.

    By hooks of our own: those by which `output_hidden_states` collects them stay on the model.
    """
    streams: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        streams.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.module.register_forward_hook(keep) for layer in decoder_layers(model)]
    try:
        model.base_model(input_ids=batch.input_ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return streams
