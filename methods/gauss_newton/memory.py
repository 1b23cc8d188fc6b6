"""What a step holds besides the weights, before anything is loaded."""

from __future__ import annotations

from dataclasses import replace

from harness.core.memory import MemoryItem, ModelShape
from methods.gauss_newton.config import KFADEConfig


def memory_items(shape: ModelShape, config: KFADEConfig) -> list[MemoryItem]:
    """What a step holds: the curvature, and beside it what the fit needs or what the solve needs, whichever is larger.

    In portions, it is the curvature of the largest one while it is fitted; all else waits on the CPU and comes layer by layer.
    """
    from harness.models.memory_items import TOKENS_AT_ONCE, activations
    from methods.curvature.layers import mlp_layers, sizes
    from methods.curvature.portions import LEAST_TOKENS, even_portions

    layers = mlp_layers(shape.model, config.layers)
    whole, at_once = sizes(layers), shape.portions == 1
    most = [sizes([layers[i] for i in numbers]) for numbers in even_portions(layers, shape.portions)]
    factors, spectrum = max(size.factors for size in most), max(size.spectrum for size in most)
    kronecker, second = config.estimator in ("kfac", "ekfac"), config.estimator in ("ekfac", "diagonal")
    rows = min(config.kl_rows, shape.retain_rows)
    # The solve: the rotated gradient, the direction, and the weights as they were. A pass over data comes before it and holds a
    # gradient and its activations.
    solve = max(3 * spectrum if at_once else 0, whole.decomposition if kronecker else 0)
    passes = activations(shape, trained=False, rows=shape.retain_rows or None)
    kept = passes.bytes if at_once else passes.bytes * LEAST_TOKENS // TOKENS_AT_ONCE
    return [
        MemoryItem("factors", factors if kronecker else 0, while_measured=at_once),
        MemoryItem("spectrum", spectrum, while_measured=second and at_once),
        MemoryItem("gradient and step", solve, while_measured=False),
        MemoryItem("KL log-probabilities", rows * shape.answer_tokens * shape.vocabulary * 4, where="cpu"),
        MemoryItem("gradient and step, waiting", 0 if at_once else 3 * whole.spectrum, where="cpu"),
        replace(passes, bytes=max(0, spectrum + kept - solve)),
    ]
