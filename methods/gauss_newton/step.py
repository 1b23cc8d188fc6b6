"""One step of K-FADE: solve, choose the length, move, and say what it did.

    r = (G + λI)⁻¹ ∇L_F        θ ← θ + α r / ‖r‖_G        predicted KL on the retain set: α²/2 nats per token

(arXiv:2602.10568, sections 2 and 3.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from harness.core.errors import Diverged
from harness.numerics.likelihood import AnswerDistributions
from methods.curvature.layers import Layer, Line
from methods.curvature.solve import Direction, Solver
from methods.gauss_newton.data import StageData, memoised

log = logging.getLogger(__name__)

KL_TOLERANCE = 0.02
"""`target_kl` is met within this share of it."""
KL_TRIES = 24
"""Step sizes that are tried for it."""
MOST_ROUNDED = 0.1
"""The share of a step that rounding may take without a word."""


def take_step(
    data: StageData,
    solver: Solver,
    direction: Direction,
    before: AnswerDistributions,
    step_size: float | None,
    step: int,
    network: str,
) -> dict[str, float]:
    """Take one step, of the size given for its stage if one is, and say what it did.

    Args:
        data: the stage's sequences and settings.
        solver: of this step's curvature and gradient.
        direction: its damped Newton direction.
        before: what the model said on the KL's rows before the stage.
        step_size: α, or None where `target_kl` chooses it.
        step: of the stage, from 1.
        network: the fingerprint of the model as it is now.

    Returns:
        What is recorded of the step, by name.

    Raises:
        Diverged: if no step size meets `target_kl`.
    """
    context, layers = data.context, solver.layers
    norm = direction.g_norm if data.config.norm == "undamped" else direction.damped_norm
    line = Line(layers, direction.matrices)
    with context.costs.aside("monitoring"):
        forget_before = memoised(context, "loss", (network, data.forget(step)), lambda: data.mean_loss(step))

    alpha, measured = _length(data, before, lambda alpha: line.go(alpha / norm), step_size, step)
    with context.costs.aside("monitoring"):
        forget_after = data.mean_loss(step)
        rounded = rounding_losses(layers, line.start, direction.matrices, alpha / norm)
    return {
        "step_size": alpha,
        "damping_absolute": direction.damping_absolute,
        "mean_eigenvalue": solver.mean_eigenvalue,
        "gain": alpha / norm * direction.gain,
        "predicted_kl": 0.5 * (alpha / norm * direction.g_norm) ** 2,
        "measured_kl": measured,
        "kl_tokens": float(before.labels),
        "forget_rows": float(len(data.forget(step))),
        "forget_loss_before": forget_before,
        "forget_loss": forget_after,
        **rounded,
    }


def _length(
    data: StageData, before: AnswerDistributions, move: Callable[[float], None], step_size: float | None, step: int
) -> tuple[float, float]:
    """α and the KL that was measured at it, after having moved there."""
    model, config = data.context.model, data.config

    def kl_at(alpha: float) -> float:
        move(alpha)
        return before.kl(model)

    if step_size is not None:
        move(step_size)
        with monitoring(data):
            return step_size, before.kl(model)
    assert config.target_kl is not None  # checked when the settings were read
    already = before.kl(model) if step > 1 else 0.0
    alpha, measured = step_for_kl(kl_at, config.target_kl * step / config.steps, already)
    move(alpha)
    return alpha, measured


def monitoring(data: StageData) -> AbstractContextManager[None]:
    """Where the KL is measured: off the clock where the step size is given and nothing depends on it."""
    return data.context.costs.aside("monitoring") if data.config.step_size is not None else nullcontext()


def rounding_losses(
    layers: Sequence[Layer], start: Sequence[Tensor], matrices: Sequence[Tensor], scale: float
) -> dict[str, float]:
    """What of a step was lost in rounding to the weights' type, for weights that are not float32.

    Args:
        layers: after the step.
        start: [out, in (+ 1)] each layer as it was before.
        matrices: [out, in (+ 1)] each layer's direction.
        scale: what the direction was multiplied by.

    Returns:
        `unmoved_share`, of the entries whose step is not 0 those that stayed as they were, and `lost_norm`, how long what was
        lost is beside the step.
    """
    if all(layer.module.weight.dtype in (torch.float32, torch.float64) for layer in layers):
        return {}
    entries = unmoved = 0
    lost = length = 0.0
    for layer, before, towards in zip(layers, start, matrices, strict=True):
        wanted, moved = scale * towards, layer.matrix() - before
        entries += int((wanted != 0).sum())
        unmoved += int(((wanted != 0) & (moved == 0)).sum())
        lost += float((wanted - moved).double().square().sum())
        length += float(wanted.double().square().sum())
    losses = {"unmoved_share": unmoved / max(1, entries), "lost_norm": (lost / length) ** 0.5 if length else 0.0}
    if max(losses.values()) > MOST_ROUNDED:
        log.warning(
            "rounding to %s left %.0f %% of the weights where they were and took %.0f %% of the step's length: --dtype float32 "
            "keeps it whole",
            str(layers[0].module.weight.dtype).removeprefix("torch."),
            100 * losses["unmoved_share"],
            100 * losses["lost_norm"],
        )
    return losses


def step_for_kl(kl_at: Callable[[float], float], target: float, start: float = 0.0) -> tuple[float, float]:
    """The step size whose measured KL is `target`, within `KL_TOLERANCE`.

    What a step adds to the KL grows about as α², so each guess scales the last one by √(wanted / added); a bracket keeps
    guesses in check that went too far, and is halved where they do not get there.

    Args:
        kl_at: measures the KL of a step size.
        target: nats per token.
        start: the KL before the step.

    Returns:
        (step size, its measured KL).

    Raises:
        Diverged: if no step size is found in `KL_TRIES` tries.
    """
    wanted = max(target - start, KL_TOLERANCE * target)
    low, high, alpha = 0.0, float("inf"), 0.1 * (2 * wanted) ** 0.5
    for tried in range(1, KL_TRIES + 1):
        kl = kl_at(alpha)
        if abs(kl - target) <= KL_TOLERANCE * target:
            return alpha, kl
        if kl < target:
            low = alpha
        else:  # also NaN: the model broke, so the step was too long
            high = alpha
        if tried >= KL_TRIES // 2 and high < float("inf"):
            alpha = (low + high) / 2
            continue
        guess = alpha * (wanted / (kl - start)) ** 0.5 if kl > start else 2 * alpha
        # At most fourfold: far from the base the KL saturates, and near it rounding makes it 0.
        guess = min(max(guess, alpha / 4), alpha * 4) if guess == guess else alpha / 4
        alpha = guess if low < guess < high else (low + high) / 2 if high < float("inf") else 2 * alpha
    raise Diverged(f"no step size was found whose measured KL is {target:g} (last measured KL {kl:g})")
