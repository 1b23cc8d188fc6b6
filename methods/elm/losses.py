"""The terms of ELM's loss, position by position, and their mean over each text (arXiv:2410.02760)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.data.rows import Batch
from harness.numerics.likelihood import kl_per_token, sums_by_example


def erased(base: Tensor, expert: Tensor, novice: Tensor, counts: Tensor, eta: float, temperature: float, top_k: int) -> Tensor:
    """What the model should say on forget texts: the base's distribution, moved from the expert's to the novice's.

    log q_t = log p_0 − η_t (log p_expert − log p_novice) + const., η_t evenly from 1 at a text's first position to η at its
    last; all but the likeliest `top_k` tokens are left out. In float64, since η multiplies rounding errors.

    Args:
        base: [N, V] logits on the plain texts, text by text.
        expert: [N, V] those at the same tokens behind an expert's context.
        novice: [N, V] those behind a novice's.
        counts: [B] positions of each text; they sum to N.
        eta: η.
        temperature: what all logits are divided by.
        top_k: how many tokens are kept.

    Returns:
        [N, V] probabilities, float64.
    """
    plain, knowing, ignorant = ((z.double() / temperature).log_softmax(dim=-1) for z in (base, expert, novice))
    strength = torch.cat([torch.linspace(1, eta, n, dtype=torch.float64) for n in counts.tolist()]).to(plain.device)
    scores = plain - strength[:, None] * (knowing - ignorant)
    least = scores.topk(min(top_k, scores.shape[-1]), dim=-1).values[:, -1:]
    return scores.masked_fill(scores < least, float("-inf")).softmax(dim=-1)


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """[N] −Σ_v q_v log p_v.

    Args:
        logits: [N, V].
        target: [N, V] q.
    """
    return -(target.to(logits) * logits.log_softmax(dim=-1)).sum(dim=-1)


def retain_losses(logits: Tensor, before: Tensor, kind: Literal["cross_entropy", "kl"]) -> Tensor:
    """How far the model is from what it was at each position: −log p(argmax p_0), or KL(p_0 ‖ p).

    Args:
        logits: [N, V] now.
        before: [N, V] of the base.
        kind: which.

    Returns:
        [N] nats.
    """
    if kind == "cross_entropy":
        return F.cross_entropy(logits, before.argmax(dim=-1), reduction="none")
    return kl_per_token(before.log_softmax(dim=-1), logits.log_softmax(dim=-1))


def mean_of_each(losses: Tensor, batch: Batch) -> Tensor:
    """The mean over each text's labels.

    Args:
        losses: [N] one for each label, text by text.
        batch: the texts.

    Returns:
        [B].
    """
    return sums_by_example(losses, batch) / batch.counts
