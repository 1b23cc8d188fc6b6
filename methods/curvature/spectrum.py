"""Eigenvectors and eigenvalues of each layer's block: K-FAC's from its factors, EK-FAC's from a second pass over the data.

    A = Q_A diag(μ) Q_Aᵀ,   S = Q_S diag(ν) Q_Sᵀ
    kfac      E_ij = ν_i μ_j                                                     Martens & Grosse 2015, arXiv:1503.05671
    ekfac     E_ij = Σ_seq [(Q_Sᵀ D_seq Q_A)_ij]² / labels,  D_seq = Σ_t g_t a_tᵀ      George et al. 2018, arXiv:1806.03884
    diagonal  the same with Q = I

Squares are taken of a whole sequence's gradient, as Grosse et al. 2023 (arXiv:2308.03296) and curvlinops do, not of a token's.
Departure: factors are decomposed in float64 and eigenvalues clamped at 0, since float32 gives negative ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.core.errors import Diverged
from harness.core.progress import progress_bar
from harness.data.rows import Batch, Encoded
from harness.numerics.group import add_up, share
from harness.numerics.likelihood import answer_rows
from methods.curvature.factors import Sums
from methods.curvature.layers import Layer, input_groups, sizes
from methods.curvature.passes import LogitGradient, backpropagate, whole_pass
from methods.curvature.products import Buffers, add_squares, no_finer_than, summed_in, total_of


@dataclass
class LayerCurvature:
    """One layer's eigenbasis and spectrum; None stands for the identity basis or for the product spectrum.

    >>> half = LayerCurvature(None, None, torch.tensor([1.0, 2.0]), torch.tensor([3.0]))
    >>> half.spectrum((1, 2), torch.device("cpu")).tolist()
    [[3.0, 6.0]]
    >>> flat = LayerCurvature(None, None, None, None)
    >>> flat.spectrum((1, 2), torch.device("cpu")).tolist()
    [[1.0, 1.0]]
    """

    q_in: Tensor | None
    """[in, in] columns are eigenvectors of A."""
    q_out: Tensor | None
    """[out, out] columns are eigenvectors of S."""
    mu: Tensor | None
    """[in] eigenvalues of A."""
    nu: Tensor | None
    """[out] eigenvalues of S."""
    corrected: Tensor | None = None
    """[out, in] the spectrum where it is not ν μᵀ (ekfac, diagonal)."""

    def spectrum(self, shape: tuple[int, int], device: torch.device) -> Tensor:
        """[out, in] the eigenvalues E of this layer's block of G."""
        if self.corrected is not None:
            return self.corrected
        if self.nu is not None and self.mu is not None:
            return torch.outer(self.nu, self.mu)
        return torch.ones(shape, device=device)

    def to(self, device: torch.device) -> LayerCurvature:
        """The same on a device; nothing is copied that lies there."""
        parts = (self.q_in, self.q_out, self.mu, self.nu, self.corrected)
        return LayerCurvature(*(None if part is None else part.to(device) for part in parts))

    def rotate(self, matrix: Tensor) -> Tensor:
        """[out, in] Q_Sᵀ M Q_A."""
        if self.q_in is None or self.q_out is None:
            return matrix
        return self.q_out.T @ matrix @ self.q_in

    def rotate_back(self, matrix: Tensor) -> Tensor:
        """[out, in] Q_S M Q_Aᵀ."""
        if self.q_in is None or self.q_out is None:
            return matrix
        return self.q_out @ matrix @ self.q_in.T


def eigenbases(layers: Sequence[Layer], sums: Sums) -> list[LayerCurvature]:
    """Each layer's eigenvectors and eigenvalues, decomposed in float64 and clamped at 0.

    The sums are taken out of `sums` one after the other: factors and eigenvectors together would take twice the room. Processes
    of a group decompose some of the factors each, and give them to the others.

    Args:
        layers: from `mlp_layers`.
        sums: from `covariance_sums`, of all processes.

    Raises:
        Diverged: if a factor is not finite.
    """
    groups = input_groups(layers)
    dtype = next(iter(sums.s.values())).dtype
    mine, made = set(share(range(len(sums.a) + len(layers)))), list[Tensor]()

    def decomposed(matrix: Tensor) -> tuple[Tensor, Tensor]:
        made.extend(eigenvectors(matrix, dtype, mine=len(made) // 2 in mine))
        return made[-2], made[-1]

    inputs = {group: decomposed(sums.a.pop(group) / sums.tokens) for group in sorted(sums.a)}
    curvatures = []
    for i in progress_bar(range(len(layers)), desc="eigendecomposition", unit="layer"):
        mu, q_in = inputs[groups[i]]
        nu, q_out = decomposed(sums.s.pop(i) / sums.labels)
        curvatures.append(LayerCurvature(q_in, q_out, mu, nu))
    add_up(made)
    return curvatures


def eigenvectors(matrix: Tensor, dtype: torch.dtype, mine: bool = True) -> tuple[Tensor, Tensor]:
    """Eigenvalues, float64 and clamped at 0, and eigenvectors in the columns of a matrix.

    Args:
        matrix: [n, n] symmetric.
        dtype: of the eigenvectors.
        mine: zeros of the same shapes if not, for another process's to be added to.

    Raises:
        Diverged: if the matrix is not finite.

    >>> values, vectors = eigenvectors(torch.diag(torch.tensor([-1e-9, 4.0])), torch.float32)
    >>> values.tolist(), vectors.abs().tolist()
    ([0.0, 4.0], [[1.0, 0.0], [0.0, 1.0]])
    """
    if not bool(torch.isfinite(matrix).all()):
        raise Diverged("a curvature factor is not finite")
    if not mine:
        return matrix.new_zeros(len(matrix), dtype=torch.float64), torch.zeros_like(matrix, dtype=dtype)
    values, vectors = torch.linalg.eigh(matrix.double())
    return values.clamp(min=0), vectors.to(dtype)


def square_sums(
    model: PreTrainedModel,
    layers: Sequence[Layer],
    encoded: Sequence[Encoded],
    pad_id: int,
    gradient: LogitGradient,
    bases: Sequence[LayerCurvature],
    samples: int = 1,
    rows: Sequence[int] | None = None,
) -> Sums:
    """Σ_seq (Q_Sᵀ D_seq Q_A)² over a data set (the second pass of EK-FAC; the only one of the diagonal).

    Inputs and gradients are rotated first, so that one product per sequence remains.

    Args:
        model: in eval mode.
        layers: from `mlp_layers`.
        encoded: the whole data set.
        pad_id: see `harness.data.rows.pad_id`.
        gradient: usually `SampledLabels`, with the draws of the first pass.
        bases: a basis per layer.
        samples: how many backward passes it asks for per batch.
        rows: the part to take (one process's share), all if None.

    Returns:
        Sums with `squares` and `labels` alone.
    """
    first = {group: bases[i] for i, group in reversed(list(enumerate(input_groups(layers))))}

    def once(data: Iterator[Batch]) -> Sums:
        sums = Sums()
        buffers: Buffers = {}

        @no_finer_than(model.dtype)
        def on_input(group: int, a: Tensor) -> Tensor:
            a, q = a.to(summed_in(a.dtype)), first[group].q_in
            return a if q is None else a @ q

        @no_finer_than(model.dtype)
        def on_gradient(layer: int, a: Tensor | None, g: Tensor) -> None:
            assert a is not None
            g, q = g.to(summed_in(g.dtype)), bases[layer].q_out
            g = g if q is None else g @ q
            total = total_of(sums.squares, layer, (g.shape[-1], a.shape[-1]), g)
            add_squares(total, g, a, 1 / samples, buffers)

        def counted() -> Iterator[Batch]:
            for batch in data:
                sums.labels += len(answer_rows(batch))
                yield batch

        backpropagate(model, layers, counted(), gradient, on_input, on_gradient, "curvature spectrum", len(rows or encoded))
        return sums

    return whole_pass(model, layers, encoded, pad_id, once, lambda some: sizes(some).spectrum, rows)
