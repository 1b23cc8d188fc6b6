"""Jensen-Shannon unlearning (JensUn): forget answers are pulled to a refusal's words, retain answers to the first model.

L = c mean_t JS(p_t, e_r(t)) + λ mean_t JS(p_θ0,t, p_t),   JS in nats, never above ln 2

(arXiv:2509.02820; nmndeep/JensUn-Unlearning `src/trainer/utils.py`, `jensun_multitok_loss`, `jensun_retain_loss`). The forget
mean runs over the labels of the true answers, read teacher-forced; r(t) are the refusal's tokens, one after the other and again
from the first, along each answer, and e their unit vectors. Against a unit vector JS depends on p(r) alone: it is
ln 2 + ½ (p ln p − (1 + p) ln(1 + p)), where the public code clamps probabilities at 1e-9. Means run over the step's labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import NonNegativeFloat, PositiveFloat, StringConstraints

from harness.core.config import settings
from harness.core.errors import UsageError
from harness.core.method import Progress, UnlearningContext, method
from methods.first_order.loop import Data, Losses, Part, unlearn
from methods.first_order.losses import model_before, place_in_answer
from methods.first_order.recipe import PairedRecipe, memory_items_with_copy

if TYPE_CHECKING:
    from torch import Tensor


THEIR_WORDS = " No Idea"
"""The authors' refusal."""


@settings
class JensUnConfig(PairedRecipe):
    """Settings of JensUn; words and weights are its repository's, the recipe is ToFU's (there 10 epochs at 8e-6)."""

    refusal: Annotated[str, StringConstraints(min_length=1, max_length=1_000)] | None = None
    """The words that forget answers are pulled to. By default the authors' " No Idea", or the benchmark's first refusal where
    the model's tokenizer lacks those."""
    forget_weight: PositiveFloat = 1.0
    """c, the weight of the forget term."""
    retain_weight: NonNegativeFloat = 1.0
    """λ, the weight of the retain term; with 0 there is none."""


@method(
    "jensun",
    config=JensUnConfig,
    source="arXiv:2509.02820",
    memory=memory_items_with_copy,
    takes_adapter=True,
)
def jensun(context: UnlearningContext, config: JensUnConfig) -> Iterator[Progress]:
    """Train, measuring after every epoch; a frozen copy of the model before the stage is kept.

    Raises:
        UsageError: for a refusal that the model has no words for.
    """
    import torch

    from harness.numerics.likelihood import answer_logits

    refusal = torch.tensor(refusal_tokens(context, config.refusal), device=context.model.device)

    def forget(part: Part) -> Tensor:
        targets = refusal[place_in_answer(part.batch) % len(refusal)]
        log_probs = answer_logits(context.model, part.batch).log_softmax(dim=-1)
        return config.forget_weight * js_to_token(log_probs, targets).sum() / part.labels

    def losses(data: Data) -> Losses:
        if not config.retain_weight:
            return Losses(forget)
        before = model_before(context)

        def retain(part: Part) -> Tensor:
            context.costs.count(part.batch.tokens)  # they go through the model before, too
            then = before(lambda model: answer_logits(model, part.batch).log_softmax(dim=-1))
            now = answer_logits(context.model, part.batch).log_softmax(dim=-1)
            return config.retain_weight * js(then, now).sum() / part.labels

        return Losses(forget, retain)

    yield from unlearn(context, config, losses)


def refusal_tokens(context: UnlearningContext, refusal: str | None) -> list[int]:
    """The refusal's tokens.

    Raises:
        UsageError: if there are none, or the tokenizer does not know one of its words.
    """
    choices = [refusal] if refusal else [THEIR_WORDS, *context.problem.refusals[:1]]
    for words in choices:
        tokens = list(context.tokenizer(words, add_special_tokens=False).input_ids)
        if tokens and context.tokenizer.unk_token_id not in tokens:
            return tokens
    raise UsageError(f"refusal={choices[-1]!r}: this model's tokenizer lacks words of it. Set refusal to some that it has.")


def js_to_token(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """JS(p, e_r) at each position.

    Args:
        log_probs: [N, V] ln p.
        tokens: [N] r.

    Returns:
        [N] nats, from 0 (p is the unit vector) to ln 2.
    """
    import math

    log_p = log_probs.gather(-1, tokens[:, None]).squeeze(-1)
    p = log_p.exp()
    return math.log(2) + (p * log_p - (1 + p) * p.log1p()) / 2


def js(first: Tensor, second: Tensor) -> Tensor:
    """JS(p, q) at each position.

    Args:
        first: [N, V] ln p.
        second: [N, V] ln q.

    Returns:
        [N] nats, from 0 to ln 2.
    """
    import math

    import torch

    middle = torch.logaddexp(first, second) - math.log(2)
    return ((first.exp() * (first - middle)).sum(dim=-1) + (second.exp() * (second - middle)).sum(dim=-1)) / 2
