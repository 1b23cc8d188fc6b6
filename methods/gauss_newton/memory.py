"""What a step holds besides the weights, before anything is loaded."""

from __future__ import annotations

from dataclasses import replace

from harness.core.memory import MemoryItem, ModelShape
from methods.gauss_newton.config import KFADEConfig


def memory_items(shape: ModelShape, config: KFADEConfig) -> list[MemoryItem]:
    """What a step holds: the curvature, and beside it what the fit needs or what the solve needs, whichever is larger."""
    from harness.models.memory import activations
    from methods.curvature.layers import mlp_layers, sizes

    size = sizes(mlp_layers(shape.model, config.layers))
    kronecker = config.estimator in ("kfac", "ekfac")
    rows = min(config.kl_rows, shape.retain_rows)
    # The solve: the rotated gradient, the direction, and the weights as they were. A pass over data comes before it and holds a
    # gradient and its activations.
    solve = max(3 * size.spectrum, size.decomposition if kronecker else 0)
    passes = activations(shape, trained=False)
    return [
        MemoryItem("factors", size.factors if kronecker else 0),
        MemoryItem("spectrum", size.spectrum, while_measured=config.estimator in ("ekfac", "diagonal")),
        MemoryItem("gradient and step", solve, while_measured=False),
        MemoryItem("KL log-probabilities", rows * shape.answer_tokens * shape.vocabulary * 4, where="cpu"),
        replace(passes, bytes=max(0, size.spectrum + passes.bytes - solve)),
    ]
