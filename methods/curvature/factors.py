"""K-FAC's factors: the first pass over the data.

    A = Σ a aᵀ / tokens,   S = Σ g gᵀ / labels      (Martens & Grosse 2015, arXiv:1503.05671, section 3)

Departures: A is over every real position, the prompt's among them, S over the labels alone; gate and up share one A.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from transformers import PreTrainedModel

from harness.data.rows import Batch, Encoded
from harness.numerics import group
from harness.numerics.likelihood import answer_rows
from methods.curvature.layers import Layer, sizes
from methods.curvature.passes import LogitGradient, backpropagate, whole_pass
from methods.curvature.products import add_square, mirrored, total_of


@dataclass
class Sums:
    """Running sums of one pass; sums of parts of the data add up to the sums of the whole.

    >>> sums = Sums(s={0: Tensor([1])}, labels=2)
    >>> sums += Sums(s={0: Tensor([1])}, labels=3)
    >>> sums.s[0].item(), sums.labels
    (2.0, 5)
    """

    a: dict[int, Tensor] = field(default_factory=dict)
    """group → [in (+ 1), in (+ 1)] Σ a aᵀ."""
    s: dict[int, Tensor] = field(default_factory=dict)
    """layer → [out, out] Σ g gᵀ / samples."""
    squares: dict[int, Tensor] = field(default_factory=dict)
    """layer → [out, in (+ 1)] Σ_seq D² / samples."""
    tokens: int = 0
    """Real positions."""
    labels: int = 0
    """Positions on which a loss is taken."""

    def __iadd__(self, other: Sums) -> Sums:
        for mine, theirs in ((self.a, other.a), (self.s, other.s), (self.squares, other.squares)):
            for key, value in theirs.items():
                mine[key] = mine[key] + value if key in mine else value
        self.tokens += other.tokens
        self.labels += other.labels
        return self

    def add_up(self) -> None:
        """Sum over the processes that each have a share of the data."""
        group.add_up([sums[key] for sums in (self.a, self.s, self.squares) for key in sorted(sums)])
        self.tokens, self.labels = (int(count) for count in group.summed(self.tokens, self.labels))


def covariance_sums(
    model: PreTrainedModel,
    layers: Sequence[Layer],
    encoded: Sequence[Encoded],
    pad_id: int,
    gradient: LogitGradient,
    samples: int = 1,
    rows: Sequence[int] | None = None,
) -> Sums:
    """Σ a aᵀ and Σ g gᵀ over a data set (the first pass).

    Args:
        model: in eval mode.
        layers: from `mlp_layers`.
        encoded: the whole data set.
        pad_id: see `harness.data.rows.pad_id`.
        gradient: usually `SampledLabels`.
        samples: how many backward passes it asks for per batch.
        rows: the part to take (one process's share), all if None.

    Returns:
        Sums in float32 (float64 where the model is), with no `squares`.
    """
    onednn = any(layer.by_onednn for layer in layers)

    def once(data: Iterator[Batch]) -> Sums:
        sums = Sums()
        mask: Tensor | None = None

        def on_input(group: int, a: Tensor) -> None:
            flat = a.flatten(0, 1)
            if mask is not None:
                flat = flat[mask.to(flat.device)]
            add_square(total_of(sums.a, group, (flat.shape[1], flat.shape[1]), flat), flat, onednn=onednn)

        def on_gradient(layer: int, _: Tensor | None, g: Tensor) -> None:
            flat = g.flatten(0, 1)
            add_square(total_of(sums.s, layer, (flat.shape[1], flat.shape[1]), flat), flat, 1 / samples, onednn)

        def counted() -> Iterator[Batch]:
            nonlocal mask
            for batch in data:
                real = batch.attention_mask.flatten().bool()
                mask = None if bool(real.all()) else real
                sums.tokens += batch.tokens
                sums.labels += len(answer_rows(batch))
                yield batch

        backpropagate(model, layers, counted(), gradient, on_input, on_gradient, "curvature factors", len(rows or encoded))
        for total in (*sums.a.values(), *sums.s.values()):
            mirrored(total)
        return sums

    return whole_pass(model, layers, encoded, pad_id, once, lambda some: sizes(some).factors, rows)
