"""Refusals as answers to forget questions, for the methods that train on them (IDK, DPO)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from harness.core.method import UnlearningContext
from harness.core.problem import Problem, Stage
from harness.core.streams import streams

if TYPE_CHECKING:
    from harness.data.rows import Encoded


class Refusals:
    """Which refusal answers a forget question at a step, as tokens: drawn uniformly by the seed, the step and the row.

    Args:
        context: whose problem says which refusal sentences there are.
        stage: whose forget questions are answered.
        max_length: tokens that a question with its answer is cut to; not at all if None.
    """

    def __init__(self, context: UnlearningContext, stage: Stage, max_length: int | None = None) -> None:
        self._context, self._stage, self._max_length = context, stage, max_length
        self._encoded: dict[tuple[int, int], Encoded] = {}

    def drawn(self, step: int, row: int) -> int:
        """The number of the sentence."""
        rng = streams(self._context.seed, "refusals", step, row).numpy()
        return int(rng.integers(len(self._context.problem.refusals)))

    def __call__(self, step: int, row: int) -> Encoded:
        """The forget question of that row, answered with the sentence drawn for it."""
        from harness.data.rows import encode

        sentence = self.drawn(step, row)
        if (row, sentence) not in self._encoded:
            refused = replace(self._stage.forget[row], answer=self._context.problem.refusals[sentence])
            (self._encoded[row, sentence],) = encode([refused], self._context.tokenizer, self._max_length)
        return self._encoded[row, sentence]


def has_refusals(problem: Problem) -> str | None:
    """Why a problem cannot serve a method that answers with refusals, or None if it can."""
    return None if problem.refusals else "it trains on refusal sentences, and this benchmark has none"
