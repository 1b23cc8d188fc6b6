"""Damage: how far a model has moved where it should not have: KL(before ‖ now) on budget rows, in nats per token.

The larger one of the mean over the retain rows held out and the mean over general text (where there is any) counts. Exact over
the vocabulary, in float32; a model that broke has done infinite damage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.core.text import Example
from harness.data.rows import Encoded, encode, pad_id
from harness.numerics.likelihood import AnswerDistributions, check_length

LONGEST = 512
"""Tokens at which a row is cut."""
FEW = 16
"""Rows of each kind for a first look."""
OF_FREE = 8
"""What the model said before is kept on the GPU where it takes at most this part of its free memory."""
FAR, FAR_BY_SCALE = 0.3, 0.7
"""Shares of a budget under which the few rows are enough to say that the damage is not there yet: taken as they are, and once
it is known how they go with all of them."""


@dataclass(frozen=True)
class Damage:
    """What was measured, by kind of rows."""

    by_kind: Mapping[str, float]
    """`retain` and `general`: nats per token."""

    @property
    def nats(self) -> float:
        """The larger one."""
        return max(self.by_kind.values())


class Look(NamedTuple):
    """What was seen of a damage."""

    nats: float
    """Nats per token."""
    on_all: bool
    """Whether on all budget rows; else by a few of them."""


class DamageMeter:
    """Measures what a model has done since the meter was made.

    Args:
        model: before unlearning.
        tokenizer: its tokenizer.
        held_out: the budget rows, by kind.

    Raises:
        UsageError: if a row is longer than the model's context.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, held_out: Mapping[str, Sequence[Example]]
    ) -> None:
        self._model, pad = model, pad_id(tokenizer)
        encoded = {kind: encode(list(rows), tokenizer, LONGEST) for kind, rows in held_out.items()}
        check_length(model, max(len(e.input_ids) for rows in encoded.values() for e in rows))
        where = _room(model, sum(e.label_count for rows in encoded.values() for e in rows))
        self._all = {kind: AnswerDistributions(model, rows, pad, where) for kind, rows in encoded.items()}
        self._few = {kind: AnswerDistributions(model, _spread(rows, FEW), pad, where) for kind, rows in encoded.items()}
        self.tokens = {kind: distributions.labels for kind, distributions in self._all.items()}
        """How many tokens of each kind are read."""
        self._scale, self._far = 1.0, FAR

    def damage(self) -> Damage:
        """On all budget rows."""
        return _measured(self._all, self._model)

    def far(self, budget: float) -> float:
        """Up to what damage, in nats per token, a few rows are enough to say that a budget is not met yet."""
        return self._far * budget

    def look(self, budget: float) -> Look:
        """The damage, about, where a few rows say that it is far under a budget; else on all of them."""
        few = _measured(self._few, self._model).nats
        if few * self._scale < self.far(budget):
            return Look(few * self._scale, False)
        nats = self.damage().nats
        if few > 0 and math.isfinite(nats):
            self._scale, self._far = nats / few, FAR_BY_SCALE
        return Look(nats, True)


def _room(model: PreTrainedModel, labels: int) -> torch.device | str:
    """Beside the model on its GPU, where that takes a small part of what is free; else the CPU."""
    if model.device.type != "cuda":
        return "cpu"
    free, _ = torch.cuda.mem_get_info(model.device)
    return model.device if 4 * labels * int(model.config.vocab_size) < free / OF_FREE else "cpu"


def _measured(distributions: Mapping[str, AnswerDistributions], model: PreTrainedModel) -> Damage:
    values = {kind: of_kind.kl(model) for kind, of_kind in distributions.items()}
    return Damage({kind: max(0.0, value) if math.isfinite(value) else math.inf for kind, value in values.items()})  # rounding


def _spread(items: Sequence[Encoded], most: int) -> list[Encoded]:
    """At most so many of them, evenly spread."""
    return list(items) if len(items) <= most else [items[i * len(items) // most] for i in range(most)]
