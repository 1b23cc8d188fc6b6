"""One step of K-FADE: solve, choose the length, move, and say what it did.

    r = (G + λI)⁻¹ ∇L_F        θ ← θ + α r / ‖r‖_G        predicted KL on the retain set: α²/2 nats per token

(arXiv:2602.10568, sections 2 and 3.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

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
KL_JUMP = 0.1
"""What share of it may be lacking where no step size comes nearer: weights of low precision move in jumps."""
MOST_ROUNDED = 0.1
"""The share of a step that rounding may take without a word."""


@dataclass(frozen=True)
class Aim:
    """How long a step is to be: of a given size, or so long that what is measured after it is so many nats per token."""

    step_size: float | None
    """α, where it is given."""
    nats: float
    """What is to be measured after the step, where α is not given."""
    measure: Callable[[], float]
    """The KL on the stage's own rows, or the damage that a budget is about."""
    first: bool
    """Whether nothing has moved before."""

    @staticmethod
    def of(data: StageData, before: AnswerDistributions, place: tuple[int, int], step_size: float | None) -> Aim:
        """Of a step: its share of the budget, if there is one; else the step size, or its share of `target_kl`.

        Args:
            data: the stage's.
            before: what the model said on the KL's rows before the stage.
            place: the stage, from 0, and the step in it, from 1.
            step_size: α of the stage, or None where `target_kl` chooses it.
        """
        context, config, (stage, step) = data.context, data.config, place
        if (budget := context.budget) is not None:
            share = (stage * config.steps + step) / (len(context.stages) * config.steps)
            return Aim(None, budget.nats * share, budget.damage, first=place == (0, 1))
        target = (config.target_kl or 0.0) * step / config.steps
        return Aim(step_size, target, lambda: before.kl(context.model), first=step == 1)


def take_step(
    data: StageData,
    solver: Solver,
    direction: Direction,
    before: AnswerDistributions,
    aim: Aim,
    step: int,
    network: str,
) -> dict[str, float]:
    """Take one step, as long as it is to be, and say what it did.

    Args:
        data: the stage's sequences and settings.
        solver: of this step's curvature and gradient.
        direction: its damped Newton direction.
        before: what the model said on the KL's rows before the stage.
        aim: how long the step is to be.
        step: of the stage, from 1.
        network: the fingerprint of the model as it is now.

    Returns:
        What is recorded of the step, by name.

    Raises:
        Diverged: if no step size meets the aim.
    """
    context, layers = data.context, solver.layers
    norm = direction.g_norm if data.config.norm == "undamped" else direction.damped_norm
    line = Line(layers, direction.matrices)
    with context.costs.aside("monitoring"):
        forget_before = memoised(context, "loss", (network, data.forget(step)), lambda: data.mean_loss(step))

    alpha, measured = _length(data, before, lambda alpha: line.go(alpha / norm), aim)
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


def _length(data: StageData, before: AnswerDistributions, move: Callable[[float], None], aim: Aim) -> tuple[float, float]:
    """α and the KL that was measured at it on the stage's own rows, after having moved there."""

    def at(alpha: float) -> float:
        move(alpha)
        return aim.measure()

    alpha, measured = aim.step_size, None
    if alpha is None:
        alpha, measured = step_for_kl(at, aim.nats, 0.0 if aim.first else aim.measure())
    move(alpha)
    if measured is not None and not data.context.budget:
        return alpha, measured
    with monitoring(data):
        return alpha, before.kl(data.context.model)


def monitoring(data: StageData) -> AbstractContextManager[None]:
    """Where the KL is measured: off the clock where nothing depends on it."""
    decides = data.config.step_size is None and data.context.budget is None
    return nullcontext() if decides else data.context.costs.aside("monitoring")


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
        device = layer.module.weight.device
        wanted, moved = scale * towards.to(device), layer.matrix() - before.to(device)
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


def above(one: float, other: float) -> bool:
    """Whether a damage is above another one by more than `KL_TOLERANCE`, which says how near a given one is met.

    >>> above(1.03, 1.0), above(1.01, 1.0), above(0.97, 1.0)
    (True, False, False)
    """
    return one - other > KL_TOLERANCE * min(one, other)


def step_for_kl(kl_at: Callable[[float], float], target: float, start: float = 0.0) -> tuple[float, float]:
    """The step size whose measured KL is `target`, within `KL_TOLERANCE`, or short of it by `KL_JUMP` in front of a jump.

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
    below, over = (0.0, start), float("nan")
    low, high, alpha = 0.0, float("inf"), 0.1 * (2 * wanted) ** 0.5
    for tried in range(1, KL_TRIES + 1):
        kl = kl_at(alpha)
        if abs(kl - target) <= KL_TOLERANCE * target:
            return alpha, kl
        if kl < target:
            low, below = alpha, (alpha, kl)
        else:  # also NaN: the model broke, so the step was too long
            high, over = alpha, kl
        if tried >= KL_TRIES // 2 and high < float("inf"):
            alpha = (low + high) / 2
            continue
        guess = alpha * (wanted / (kl - start)) ** 0.5 if kl > start else 2 * alpha
        # At most fourfold: far from the base the KL saturates, and near it rounding makes it 0.
        guess = min(max(guess, alpha / 4), alpha * 4) if guess == guess else alpha / 4
        alpha = guess if low < guess < high else (low + high) / 2 if high < float("inf") else 2 * alpha
    if over > target and target - below[1] <= KL_JUMP * target and below[1] - start >= wanted / 2:
        log.warning("the KL jumps from %.3g to %.3g, past %.3g: the step stops in front of the jump", below[1], over, target)
        return below
    raise Diverged(f"no step size was found whose measured KL is {target:g} (last measured KL {kl:g})")
