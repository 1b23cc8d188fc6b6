"""Cross-entropy unlearning (CE-U): learn the model's own distribution with the true token struck out.

L = mean_t H(q_t, p_t),   q_t = softmax(z_t with the label's logit at −∞), without gradient; no retain term

(arXiv:2503.01224; open-unlearning `trainer/unlearn/ceu.py`). An answer's first tokens carry no loss (a footnote of the paper's
training settings: the first); the mean runs over the step's other labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from harness.core.config import settings
from harness.core.method import Progress, UnlearningContext, method
from methods.first_order.loop import Data, Losses, Part, unlearn
from methods.first_order.losses import place_in_answer
from methods.first_order.recipe import Recipe, keeps_no_copy, memory_items

if TYPE_CHECKING:
    from torch import Tensor


@settings
class CEUConfig(Recipe):
    """Settings of CE-U."""

    ignored_tokens: Annotated[int, Field(ge=0, le=1_000)] = 1
    """An answer's first tokens that carry no loss."""


@method(
    "ceu",
    config=CEUConfig,
    source="arXiv:2503.01224",
    memory=memory_items,
    takes_adapter=True,
    takes_shards=keeps_no_copy,
)
def ceu(context: UnlearningContext, config: CEUConfig) -> Iterator[Progress]:
    """Train, measuring after every epoch."""
    from harness.numerics.likelihood import answer_labels, answer_logits

    def losses(data: Data) -> Losses:
        def counted(row: int) -> int:
            return max(0, data.forget[row].label_count - config.ignored_tokens)

        def forget(part: Part) -> Tensor:
            keep = place_in_answer(part.batch) >= config.ignored_tokens
            logits, labels = answer_logits(context.model, part.batch)[keep], answer_labels(part.batch)[keep]
            return ceu_loss(logits, labels).sum() / max(1, sum(counted(row) for row in data.steps[part.step - 1]))

        return Losses(forget)

    yield from unlearn(context, config, losses)


def ceu_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """H(q, p) at each position.

    Args:
        logits: [N, V] z.
        labels: [N] the tokens to strike out.

    Returns:
        [N] nats; the gradient with respect to z is p − q.
    """
    import torch.nn.functional as F

    struck_out = logits.detach().scatter(-1, labels[:, None], float("-inf"))
    return F.cross_entropy(logits, struck_out.softmax(dim=-1), reduction="none")
