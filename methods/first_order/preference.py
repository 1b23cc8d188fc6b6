"""The forget terms of preference optimisation: NPO's, which its sharpness-aware form shares, and DPO's, shared by AltPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from harness.core.method import UnlearningContext
from methods.first_order.loop import Data, Loss, Part
from methods.first_order.losses import answer_nll_sums, reference_nll

if TYPE_CHECKING:
    from torch import Tensor

    from harness.data.rows import Encoded


class Winners(Protocol):
    """What a forget question should be answered with, where it has several such answers."""

    def drawn(self, step: int, row: int) -> int:
        """The number of the answer that a row of the forget set has at a step."""

    def __call__(self, step: int, row: int) -> Encoded:
        """The question of that row with that answer, as tokens."""


def npo_term(context: UnlearningContext, data: Data, beta: float, reduction: Literal["sum", "mean"]) -> Loss:
    """NPO's forget term, against the model as it is now.

    Args:
        context: whose model is trained.
        data: a stage's examples.
        beta: β.
        reduction: whether an answer's loss is summed over its tokens, or their mean.
    """
    import torch

    used = sorted({row for rows in data.steps for row in rows})
    before = dict(zip(used, reference_nll(context, [data.forget[row] for row in used], data.pad), strict=True))

    def forget(part: Part) -> Tensor:
        now, labels = answer_nll_sums(context.model, part.batch)
        then = torch.stack([before[row] for row in part.rows])
        if reduction == "mean":
            now, then = now / labels, then / labels
        return npo_loss(now, then, beta).sum() / part.examples

    return forget


def npo_loss(now: Tensor, before: Tensor, beta: float) -> Tensor:
    """−(2/β) log σ(β (S_θ − S_θ0)) for each sequence (arXiv:2404.05868).

    Args:
        now: [B] S_θ in nats, or S_θ/T.
        before: [B] S_θ0, likewise.
        beta: β.
    """
    import torch.nn.functional as F

    return -2 / beta * F.logsigmoid(beta * (now - before))


def dpo_term(context: UnlearningContext, data: Data, winners: Winners, beta: float, scale: float) -> Loss:
    """DPO's forget term, against the model as it is now: the winners are preferred to the true answers.

    Args:
        context: whose model is trained.
        data: a stage's examples.
        winners: the answers that are preferred.
        beta: β.
        scale: c, the factor before the loss.
    """
    from harness.data.rows import collate

    answer_before = reference_nll(context, data.forget, data.pad)
    drawn = {
        (row, winners.drawn(step, row)): winners(step, row) for step, rows in enumerate(data.steps, start=1) for row in rows
    }
    winner_before = dict(zip(drawn, reference_nll(context, list(drawn.values()), data.pad), strict=True))

    def forget(part: Part) -> Tensor:
        preferred = collate([winners(part.step, row) for row in part.rows], part.rows, data.pad).to(context.model.device)
        context.costs.count(preferred.tokens)
        answer, _ = answer_nll_sums(context.model, part.batch)
        winner, _ = answer_nll_sums(context.model, preferred)
        before = answer.new_tensor([float(winner_before[row, winners.drawn(part.step, row)]) for row in part.rows])
        rise = (answer - answer_before[list(part.rows)]) - (winner - before)
        return dpo_loss(rise, beta, scale).sum() / part.examples

    return forget


def dpo_loss(rise: Tensor, beta: float, scale: float) -> Tensor:
    """−c log σ(β ΔΔ) for each sequence.

    Args:
        rise: [B] (S_θ − S_θ0)(true answer) − (S_θ − S_θ0)(winner) in nats.
        beta: β.
        scale: c.
    """
    import torch.nn.functional as F

    return -scale * F.logsigmoid(beta * rise)
