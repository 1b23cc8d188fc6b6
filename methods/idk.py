"""IDK: learn to answer the forget questions with a refusal.

L = POOL over {(forget question, refusal)} ∪ {(retain question, true answer)} together (arXiv:2401.06121; locuslab/tofu
`dataloader.py`, loss "idk"). A refusal is drawn uniformly at every access. The sentences are the benchmark's own, or the
user's file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.core.config import settings
from harness.core.method import Progress, UnlearningContext, method
from methods.first_order.loop import Data, Losses, Part, unlearn
from methods.first_order.recipe import PairedRecipe, keeps_no_copy, memory_items
from methods.first_order.refusals import Refusals, has_refusals

if TYPE_CHECKING:
    from torch import Tensor


@settings
class IDKConfig(PairedRecipe):
    """Settings of IDK."""


@method(
    "idk",
    config=IDKConfig,
    source="arXiv:2401.06121",
    skip_reason=has_refusals,
    memory=memory_items,
    takes_adapter=True,
    takes_shards=keeps_no_copy,
)
def idk(context: UnlearningContext, config: IDKConfig) -> Iterator[Progress]:
    """Train, measuring after every epoch."""
    from harness.numerics.training import pooled_nll

    def pooled(part: Part) -> Tensor:
        return pooled_nll(context.model, part.batch, part.all_labels)

    def losses(data: Data) -> Losses:
        return Losses(pooled, pooled, forget_texts=Refusals(context, data.stage, data.max_length))

    yield from unlearn(context, config, losses)
