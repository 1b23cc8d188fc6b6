"""A loss's gradient with respect to each targeted layer, as one matrix: Σ_t g_t a_tᵀ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor
from transformers import PreTrainedModel

from harness.data.rows import Batch, Encoded
from harness.numerics import group
from methods.curvature.layers import Layer, sizes
from methods.curvature.passes import LogitGradient, backpropagate, whole_pass
from methods.curvature.products import add_product, total_of


def gradient_matrices(
    model: PreTrainedModel, layers: Sequence[Layer], encoded: Sequence[Encoded], pad_id: int, gradient: LogitGradient
) -> list[Tensor]:
    """Each layer's gradient of the loss whose logit gradient is given, summed over a data set and the processes that share it.

    Args:
        model: in eval mode.
        layers: from `mlp_layers`.
        encoded: the data set.
        pad_id: see `harness.data.rows.pad_id`.
        gradient: of the loss with respect to the logits.

    Returns:
        For each layer [out, in (+ 1)], float32 (float64 where the model is).
    """
    share = group.share_of(len(encoded))

    def once(data: Iterator[Batch]) -> list[Tensor]:
        totals: dict[int, Tensor] = {}

        def on_gradient(layer: int, a: Tensor | None, g: Tensor) -> None:
            assert a is not None
            a, g = a.flatten(0, 1), g.flatten(0, 1)
            add_product(total_of(totals, layer, (g.shape[1], a.shape[1]), g), g, a, onednn=layers[layer].by_onednn)

        backpropagate(model, layers, data, gradient, lambda _, a: a, on_gradient, "forget gradient", len(share or encoded))
        return [totals[i] for i in range(len(layers))]

    sums = whole_pass(model, layers, encoded, pad_id, once, lambda some: sizes(some).spectrum, share)
    if share is not None:
        group.add_up(sums)
    return sums
