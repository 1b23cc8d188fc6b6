"""What a model thinks of each token of given answers: one teacher-forced pass that serves all token-level metrics.

At every labelled position t, with p the distribution over the vocabulary V and y_t the token that stands there:

    log_probs[t] = log p(y_t)          predicted[t] = [y_t = argmax_v p(v)]
    means[t]     = Σ_v p(v) log p(v)   (minus the entropy)
    deviations[t] = √( Σ_v p(v) (log p(v) − means[t])² )

The last two are what Min-K%++ (arXiv:2404.02936, equation 3) normalises by. Everything is computed in float32 out of logits at
labelled positions only, some positions at a time; nothing is kept but four numbers a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.data.rows import Encoded, batches
from harness.numerics.likelihood import (
    POSITIONS_AT_ONCE,
    TOKENS_ON_CPU,
    TOKENS_PER_BATCH,
    answer_labels,
    check_length,
    logits_by_part,
)
from harness.numerics.room import with_room

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TokenLikelihoods(NamedTuple):
    """One text's labelled tokens, T of them, in order."""

    log_probs: np.ndarray
    """[T] log-probability of the token that stands there, nats, float64."""
    predicted: np.ndarray
    """[T] whether greedy decoding would have said it."""
    means: np.ndarray
    """[T] mean log-probability over the vocabulary, under the model's own distribution; float64."""
    deviations: np.ndarray
    """[T] its standard deviation; float64."""

    def first(self, count: int) -> TokenLikelihoods:
        """The first so many tokens."""
        return TokenLikelihoods(*(values[:count] for values in self))


@torch.no_grad()
def token_likelihoods(
    model: PreTrainedModel, encoded: Sequence[Encoded], pad_id: int, progress: Callable[[int], object] | None = None
) -> list[TokenLikelihoods]:
    """What a model thinks of each labelled token of some texts.

    Args:
        model: in eval mode.
        encoded: the texts.
        pad_id: see `harness.data.rows.pad_id`.
        progress: told after each batch how many texts were done since it was told last.

    Raises:
        UsageError: for a text that does not fit the model's window.
    """
    longest = max((len(e.input_ids) for e in encoded), default=0)
    check_length(model, longest)
    reported = 0

    def once(tokens: int) -> list[TokenLikelihoods]:
        nonlocal reported
        done: dict[int, TokenLikelihoods] = {}
        for batch in batches(encoded, pad_id, tokens, model.device):
            labels, logits = answer_labels(batch), logits_by_part(model, batch)
            parts = [slice(start, start + POSITIONS_AT_ONCE) for start in range(0, len(labels), POSITIONS_AT_ONCE)]
            # Copied once: a GPU would wait at each part.
            values = torch.cat([_of_logits(logits(part), labels[part]) for part in parts], dim=1).cpu().double().numpy()
            ends = batch.counts.cumsum(0).tolist()
            for row, own in zip(batch.rows.tolist(), np.split(values, ends[:-1], axis=1), strict=True):
                log_probs, predicted, means, deviations = own
                done[row] = TokenLikelihoods(log_probs, predicted.astype(bool), means, deviations)
            if progress and len(done) > reported:
                progress(len(done) - reported)
                reported = len(done)
        return [done[row] for row in range(len(encoded))]

    tokens = min(TOKENS_PER_BATCH, TOKENS_ON_CPU) if model.device.type == "cpu" else TOKENS_PER_BATCH
    return with_room(model, tokens, max(longest, 1), once)


def _of_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """[4, N] the four numbers of each position.

    Args:
        logits: [N, V].
        labels: [N].
    """
    log_p = logits.log_softmax(dim=-1)
    truth = log_p.gather(-1, labels[:, None])[:, 0]
    p = log_p.exp()
    log_p = torch.where(p == 0, 0.0, log_p)  # an impossible word adds nothing: 0 · log 0 = 0
    means = (p * log_p).sum(dim=-1)
    deviations = (p * (log_p - means[:, None]).square()).sum(dim=-1).sqrt()
    predicted = logits.argmax(dim=-1) == labels
    return torch.stack([truth, predicted.to(truth.dtype), means, deviations])
