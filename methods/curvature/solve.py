"""Solving with the curvature, for one gradient and any damping.

    r = (G + λI)⁻¹ g = Q_S [(Q_Sᵀ g Q_A) / (E + λ)] Q_Aᵀ          ‖r‖²_G = Σ (Q_Sᵀ r Q_A)² E

(George et al. 2018, arXiv:1806.03884; damping per factor and by π: Martens & Grosse 2015, arXiv:1503.05671, section 6.3.)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from harness.core.errors import Diverged, UsageError
from methods.curvature.layers import Layer
from methods.curvature.spectrum import LayerCurvature

log = logging.getLogger(__name__)

DampingMode = Literal["exact", "per_factor", "heuristic"]
DampingScale = Literal["absolute", "mean_eigenvalue"]


@dataclass(frozen=True)
class Direction:
    """r = (G + λI)⁻¹ g, and what is known of it."""

    matrices: list[Tensor]
    """[out, in (+ 1)] for each layer."""
    g_norm: float
    """‖r‖_G = sqrt(rᵀ G r), in the undamped metric (sqrt(nats))."""
    damped_norm: float
    """sqrt(rᵀ (G + λI) r) = sqrt(gᵀ r) with exact damping."""
    gain: float
    """gᵀ r: the first-order rise of the forget objective per unit of r."""
    damping_absolute: float
    """λ in the units of G."""


class Solver:
    """Solves with one gradient for any damping: the gradient is rotated once, a further λ costs a division and a rotation back.

    Args:
        layers: from `mlp_layers`.
        curvatures: one per layer, anywhere; a layer's goes beside its weights for as long as it is used.
        gradients: one [out, in (+ 1)] matrix per layer. Where it lies, what comes of it will lie.

    >>> from torch import nn
    >>> from harness.numerics.anatomy import LinearMap
    >>> layer = Layer(LinearMap("down_proj", nn.Linear(2, 1, bias=False), transposed=False), block=0)
    >>> diagonal = LayerCurvature(None, None, None, None, corrected=torch.tensor([[1.0, 3.0]]))
    >>> solver = Solver([layer], [diagonal], [torch.tensor([[2.0, 4.0]])])
    >>> solver.mean_eigenvalue
    2.0
    >>> direction = solver.direction(damping=1.0)
    >>> direction.matrices[0].tolist()
    [[1.0, 1.0]]
    >>> direction.g_norm, direction.gain
    (2.0, 6.0)
    """

    def __init__(self, layers: Sequence[Layer], curvatures: Sequence[LayerCurvature], gradients: Sequence[Tensor]) -> None:
        self.layers, self.curvatures = layers, curvatures
        self._rotated: list[Tensor] = []
        total = 0.0
        for curvature, layer, g in zip(curvatures, layers, gradients, strict=True):
            device = layer.module.weight.device
            beside = curvature.to(device)
            self._rotated.append(beside.rotate(g.to(device)).to(g.device))
            total += float(beside.spectrum(layer.shape, device).to(g.dtype).double().sum())
        self.mean_eigenvalue = total / sum(g.numel() for g in gradients)
        """One mean over all layers: the unit of `damping_scale=mean_eigenvalue`."""

    def direction(self, damping: float, mode: DampingMode = "exact", scale: DampingScale = "absolute") -> Direction:
        """The damped Newton direction.

        Args:
            damping: λ.
            mode: `exact` adds λ to G's eigenvalues; `per_factor` adds it to each factor's; `heuristic` adds √λ π and √λ / π
                (Martens & Grosse 2015, section 6.3).
            scale: λ's units: those of G (squared gradients per token), or its mean eigenvalue.

        Raises:
            UsageError: if the mode needs Kronecker factors and there are none.
            Diverged: if the direction is not finite or does not raise the objective.
        """
        damping_absolute = damping * (self.mean_eigenvalue if scale == "mean_eigenvalue" else 1.0)
        matrices, quad, damped, gain = [], 0.0, 0.0, 0.0
        for curvature, layer, rotated in zip(self.curvatures, self.layers, self._rotated, strict=True):
            device = layer.module.weight.device
            beside, g = curvature.to(device), rotated.to(device)
            e = beside.spectrum(layer.shape, device).to(g.dtype)
            r = g / damped_spectrum(beside, e, damping_absolute, mode)
            squared = r.double().square()
            quad += float((squared * e).sum())
            damped += float((squared * (e + damping_absolute)).sum())
            gain += float((r.double() * g).sum())
            matrices.append(beside.rotate_back(r).to(rotated.device))
        if not (math.isfinite(quad) and math.isfinite(gain) and quad > 0 and gain > 0):
            raise Diverged(f"no usable direction at damping {damping_absolute:g}: rᵀGr = {quad:g}, gᵀr = {gain:g}")
        return Direction(matrices, quad**0.5, damped**0.5, gain, damping_absolute)


def damped_spectrum(curvature: LayerCurvature, spectrum: Tensor, damping: float, mode: DampingMode) -> Tensor:
    """[out, in] what the rotated gradient is divided by.

    exact       E + λ
    per_factor  (ν + λ)(μ + λ)ᵀ
    heuristic   (ν + √λ / π)(μ + √λ π)ᵀ,   π² = mean μ / mean ν       (Martens & Grosse 2015, section 6.3)

    Args:
        curvature: of one layer.
        spectrum: [out, in] its E.
        damping: λ.
        mode: which.

    Raises:
        UsageError: if the mode needs Kronecker factors and there are none.

    >>> factors = LayerCurvature(None, None, mu=torch.tensor([4.0, 4.0]), nu=torch.tensor([1.0]))
    >>> e = factors.spectrum((1, 2), torch.device("cpu"))
    >>> [damped_spectrum(factors, e, 1.0, mode).tolist() for mode in ("exact", "per_factor", "heuristic")]
    [[[5.0, 5.0]], [[10.0, 10.0]], [[9.0, 9.0]]]
    """
    if mode == "exact":
        return spectrum + damping
    if curvature.corrected is not None or curvature.mu is None or curvature.nu is None:
        raise UsageError(f"damping_mode={mode} adds λ to Kronecker factors, which only estimator=kfac has. Use exact.")
    mu, nu = curvature.mu, curvature.nu
    if mode == "per_factor":
        return torch.outer(nu + damping, mu + damping).to(spectrum.dtype)
    pi = (mu.mean() / nu.mean().clamp(min=torch.finfo(torch.float64).tiny)).sqrt()
    return torch.outer(nu + damping**0.5 / pi, mu + damping**0.5 * pi).to(spectrum.dtype)


def warn_if_thin(layers: Sequence[Layer], curvatures: Sequence[LayerCurvature], tokens: int, damping: float) -> None:
    """Say so when there are too few tokens for the factors, or λ is lost in the rounding of the largest eigenvalues.

    Args:
        layers: from `mlp_layers`.
        curvatures: one per layer.
        tokens: that the curvature was fitted on.
        damping: λ, in the units of G.
    """
    largest = max(max(layer.shape) for layer in layers)
    if tokens < largest:
        log.warning("the curvature rests on %d tokens, fewer than its largest factor's %d rows", tokens, largest)
    top = max((float(c.mu.max() * c.nu.max()) for c in curvatures if c.mu is not None and c.nu is not None), default=0.0)
    if 0 < damping < 1e-7 * top and tokens < 4 * largest:
        log.warning(
            "damping %.1e is under 1e-7 of the largest eigenvalue %.1e: float32 factors cannot resolve it", damping, top
        )
