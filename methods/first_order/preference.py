"""The forget term of NPO, which NPO and its sharpness-aware form share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from harness.core.method import UnlearningContext
from methods.first_order.loop import Data, Loss, Part
from methods.first_order.losses import answer_nll_sums, reference_nll

if TYPE_CHECKING:
    from torch import Tensor


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
