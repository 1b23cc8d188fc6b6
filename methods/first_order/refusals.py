"""Refusals as answers to forget questions, for the methods that train on them (IDK, DPO)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from harness.core.method import Setting
from harness.core.problem import Problem, Stage
from harness.core.streams import streams

if TYPE_CHECKING:
    from harness.data.rows import Encoded


class Refusals:
    """Which refusal answers a forget question at a step, as tokens: drawn uniformly by the seed, the step and the row.

    Args:
        setting: whose problem says which refusal sentences there are.
        stage: whose forget questions are answered.
    """

    def __init__(self, setting: Setting, stage: Stage) -> None:
        self._setting, self._stage = setting, stage
        self._encoded: dict[tuple[int, int], Encoded] = {}

    def drawn(self, step: int, row: int) -> int:
        """The number of the sentence."""
        rng = streams(self._setting.seed, "refusals", step, row).numpy()
        return int(rng.integers(len(self._setting.problem.refusals)))

    def __call__(self, step: int, row: int) -> Encoded:
        """The forget question of that row, answered with the sentence drawn for it."""
        from harness.data.rows import encode

        sentence = self.drawn(step, row)
        if (row, sentence) not in self._encoded:
            refused = replace(self._stage.forget[row], answer=self._setting.problem.refusals[sentence])
            (self._encoded[row, sentence],) = encode([refused], self._setting.tokenizer)
        return self._encoded[row, sentence]


def has_refusals(problem: Problem) -> str | None:
    """Why a problem cannot serve a method that answers with refusals, or None if it can."""
    return None if problem.refusals else "it trains on refusal sentences, and this benchmark has none"
