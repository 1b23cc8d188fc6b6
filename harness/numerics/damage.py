"""Damage: how far a model has moved where it should not have: KL(before ‖ now) on budget rows, in nats per token.

The larger one of the mean over the retain rows held out and the mean over general text (where there is any) counts. Exact over
the vocabulary, in float32; a model that broke has done infinite damage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.core.text import Example
from harness.data.rows import Encoded, encode, pad_id
from harness.numerics.likelihood import AnswerDistributions, check_length

LONGEST = 512
"""Tokens at which a row is cut."""
FEW = 16
"""Rows of each kind for a first look."""


@dataclass(frozen=True)
class Damage:
    """What was measured, by kind of rows."""

    by_kind: Mapping[str, float]
    """`retain` and `general`: nats per token."""

    @property
    def nats(self) -> float:
        """The larger one."""
        return max(self.by_kind.values())


class DamageMeter:
    """Measures what a model has done since the meter was made.

    Args:
        model: before unlearning.
        tokenizer: its tokenizer.
        held_out: the budget rows, by kind.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, held_out: Mapping[str, Sequence[Example]]
    ) -> None:
        self._model, pad = model, pad_id(tokenizer)
        encoded = {kind: encode(list(rows), tokenizer, LONGEST) for kind, rows in held_out.items()}
        check_length(model, max(len(e.input_ids) for rows in encoded.values() for e in rows))
        self._all = {kind: AnswerDistributions(model, rows, pad) for kind, rows in encoded.items()}
        self._few = {kind: AnswerDistributions(model, _spread(rows, FEW), pad) for kind, rows in encoded.items()}
        self.tokens = {kind: distributions.labels for kind, distributions in self._all.items()}
        """How many tokens of each kind are read."""

    def damage(self) -> Damage:
        """On all budget rows."""
        return _measured(self._all, self._model)

    def first_look(self) -> float:
        """In nats per token, on a few of them."""
        return _measured(self._few, self._model).nats


def _measured(distributions: Mapping[str, AnswerDistributions], model: PreTrainedModel) -> Damage:
    values = {kind: of_kind.kl(model) for kind, of_kind in distributions.items()}
    return Damage({kind: max(0.0, value) if math.isfinite(value) else math.inf for kind, value in values.items()})  # rounding


def _spread(items: Sequence[Encoded], most: int) -> list[Encoded]:
    """At most so many of them, evenly spread."""
    return list(items) if len(items) <= most else [items[i * len(items) // most] for i in range(most)]
