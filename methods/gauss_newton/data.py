"""A stage's sequences, tokenised, and which of them serve for what."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from transformers import PreTrainedModel

from harness.core.method import UnlearningContext
from harness.core.problem import Stage
from harness.core.streams import streams
from harness.data.rows import Encoded, encode, pad_id
from harness.numerics.likelihood import AnswerDistributions, answer_nll, check_length
from harness.storage.cache import digest
from methods.gauss_newton.config import KFADEConfig

log = logging.getLogger(__name__)

T = TypeVar("T")


def memoised(context: UnlearningContext, what: str, key: object, make: Callable[[], T]) -> T:
    """In-memory memo, shared by the runs of a sweep; the time saved is added to `full_seconds`, so that the clock counts all.

    Args:
        context: whose cache and clock.
        what: the sort of thing.
        key: all that decides the value.
        make: makes it.
    """
    value, seconds = context.cache.memoize(what, key, make)
    context.costs.saved(seconds)
    return value


def sequences_digest(encoded: Sequence[Encoded]) -> str:
    """A digest of sequences, for the cache's keys."""
    return digest([[e.input_ids, e.prompt_tokens] for e in encoded])[:16]


class StageData:
    """What a stage gives to the fit, to the forget gradient and to the measuring of the KL.

    Args:
        context: whose tokenizer, model and seed.
        stage: the texts.
        config: how many of them serve for what.

    Raises:
        UsageError: if a text is longer than the model's context.
    """

    def __init__(self, context: UnlearningContext, stage: Stage, config: KFADEConfig) -> None:
        self.context, self.config = context, config
        self.pad = pad_id(context.tokenizer)
        tokenizer, identity = context.tokenizer, context.identity
        retain = memoised(context, "retain", (identity, tuple(stage.retain)), lambda: encode(stage.retain, tokenizer))
        forget = memoised(context, "forget", (identity, tuple(stage.forget)), lambda: encode(stage.forget, tokenizer))
        check_length(context.model, max(len(e.input_ids) for e in (*forget, *retain)))  # before the first step
        rng = streams(context.seed, "kfade rows").numpy()
        order = rng.permutation(len(retain)).tolist()
        fitted = len(retain) if config.retain_rows is None else min(config.retain_rows, len(retain))
        self.retain = retain
        self.fit = [retain[i] for i in sorted(order[:fitted])]
        if config.curvature_on == "retain+forget":
            self.fit = [*self.fit, *forget]
        # The KL is measured on rows the fit has not seen, as far as there are any.
        self.kl = [retain[i] for i in sorted(order[::-1][: config.kl_rows])]
        self._forget = [forget[i] for i in rng.permutation(len(forget)).tolist()] if config.forget_rows else forget
        self._per_step = len(forget)
        if config.forget_rows:
            # At least one: with fewer sequences than steps they are taken again.
            self._per_step = min(config.forget_rows, max(1, len(forget) // config.steps))
            if self._per_step < config.forget_rows:
                log.warning(
                    "%s: %d sequences make %d batches of %d, not of %d",
                    *(stage.name, len(forget), config.steps, self._per_step, config.forget_rows),
                )
        self._before = self._nll(context.model) if config.objective == "npo" else None

    @property
    def fit_tokens(self) -> int:
        """Tokens of the curvature's data."""
        return sum(len(e.input_ids) for e in self.fit)

    def forget(self, step: int) -> Sequence[Encoded]:
        """The forget sequences of a step: the next ones not used yet, from the start again when they run out."""
        return [self._forget[i] for i in self._rows(step)]

    def forget_before(self, step: int) -> list[float] | None:
        """For the objective npo: the summed negative log-likelihood that each of them had before the stage, in nats."""
        return None if self._before is None else [self._before[i] for i in self._rows(step)]

    def mean_loss(self, step: int) -> float:
        """Mean cross-entropy per token of the step's forget sequences, as the model is now, in nats."""
        sums, counts = answer_nll(self.context.model, self.forget(step), self.pad)
        return float(sums.sum() / counts.sum())

    def answers_now(self, network: str, rows: Sequence[Encoded] | None = None) -> AnswerDistributions:
        """What the model, which has that fingerprint, says on the KL's rows, or on those given, before it is changed."""
        model, rows = self.context.model, self.kl if rows is None else rows
        key = (network, str(model.device), rows)
        return memoised(self.context, "answers", key, lambda: AnswerDistributions(model, rows, self.pad))

    def _rows(self, step: int) -> list[int]:
        start = (step - 1) * self._per_step
        return [i % len(self._forget) for i in range(start, start + self._per_step)]

    def _nll(self, model: PreTrainedModel) -> list[float]:
        return answer_nll(model, self._forget, self.pad)[0].tolist()  # type: ignore[no-any-return]
