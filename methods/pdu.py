"""Primal-dual unlearning (PDU): flatten the logits of forget answers, while the retain loss is held under a bound.

L = c mean_t (max_v z_t − mean_v z_t)² + λ_k (POOL(retain) − ε),   after warm-up λ_{k+1} = max(0, λ_k + η (POOL(retain) − ε))

(arXiv:2506.05314; open-unlearning `trainer/unlearn/pdu.py`, `community/methods/PDU/run.sh`, whose values for ToFU are the
defaults, but for the batch, 128 there). The mean runs over the positions that predict the labels. The public code takes the
positions *of* the labels instead (`positions=shifted`): it leaves out the one that predicts an answer's first token and takes
in the one of its last. It also moves λ at every micro-batch, in each process by that process's own loss; here λ moves once a
step, by the loss of the whole step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from harness.core.config import settings
from harness.core.method import Progress, UnlearningContext, method
from methods._settings import Epochs
from methods.first_order.loop import Data, Losses, Part, unlearn
from methods.first_order.losses import all_logits
from methods.first_order.recipe import PairedRecipe, keeps_no_copy, memory_items

if TYPE_CHECKING:
    from torch import Tensor


@settings
class PDUConfig(PairedRecipe):
    """Settings of PDU; the constants are its authors' for ToFU, batches of 32 as elsewhere here."""

    epochs: Epochs = 10
    """Passes over the forget set."""
    forget_weight: PositiveFloat = 1.0
    """c, the weight of the forget term."""
    retain_weight: NonNegativeFloat = 100.0
    """λ_0, the weight that the retain term starts with."""
    retain_bound: NonNegativeFloat = 0.3
    """ε, what the retain loss is held under, in nats per token."""
    dual_step: PositiveFloat = 5.0
    """η, how fast the retain term's weight rises where the loss is above the bound, and falls where it is below."""
    dual_warmup_epochs: Annotated[int, Field(ge=0, le=10_000)] = 5
    """Epochs in which the weight stays as it is."""
    positions: Literal["answer", "shifted"] = "answer"
    """Over what the forget term averages: the positions that predict the answer's tokens, or the answer's own, as published."""


@method(
    "pdu",
    config=PDUConfig,
    source="arXiv:2506.05314",
    memory=memory_items,
    takes_adapter=True,
    takes_shards=keeps_no_copy,
)
def pdu(context: UnlearningContext, config: PDUConfig) -> Iterator[Progress]:
    """Train, measuring after every epoch."""
    from harness.data.rows import NO_LABEL
    from harness.numerics.likelihood import answer_logits
    from harness.numerics.training import pooled_nll

    dual = Dual(config)

    def forget(part: Part) -> Tensor:
        if config.positions == "answer":
            logits = answer_logits(context.model, part.batch)
        else:
            logits = all_logits(context.model, part.batch)[part.batch.labels != NO_LABEL]
        return config.forget_weight * flatness(logits).sum() / part.labels

    def retain(part: Part) -> Tensor:
        share = pooled_nll(context.model, part.batch, part.labels)
        dual.seen += float(share.detach())
        return dual.weight * share

    def losses(data: Data) -> Losses:
        dual.start(len(data.forget))
        return Losses(forget, retain)

    def update(_: Sequence[Part], retained: Sequence[Part]) -> None:
        dual.update(retained[0].step)

    yield from unlearn(context, config, losses, before_step=update)


class Dual:
    """λ, the retain term's weight, and its ascent.

    Args:
        config: the bound and the steps.
    """

    def __init__(self, config: PDUConfig) -> None:
        self._config = config
        self.weight = config.retain_weight
        """λ."""
        self.seen = 0.0
        """The retain loss of the step that is under way, as far as its parts are there."""
        self._warmup = 0

    def start(self, forget_examples: int) -> None:
        """A stage begins: λ as at first."""
        steps = max(1, forget_examples // min(self._config.batch_size, forget_examples))
        self.weight, self.seen, self._warmup = self._config.retain_weight, 0.0, steps * self._config.dual_warmup_epochs

    def update(self, step: int) -> None:
        """Before a step: λ from the retain loss of the one before it."""
        from harness.numerics.group import summed

        (seen,) = summed(self.seen)
        if step - 1 > self._warmup:
            self.weight = max(0.0, self.weight + self._config.dual_step * (seen - self._config.retain_bound))
        self.seen = 0.0


def flatness(logits: Tensor) -> Tensor:
    """(max_v z − mean_v z)² at each position.

    Args:
        logits: [N, V] z.

    Returns:
        [N].
    """
    return (logits.amax(dim=-1) - logits.mean(dim=-1)) ** 2
