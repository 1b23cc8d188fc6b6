"""The corrector: descent on the KL that a step did on the retain set, in the metric of the same curvature.

    q = (G + λI)⁻¹ ∇KL(p_θ0 ‖ p_θ)        θ ← θ − η q        η by a line search on the measured KL

The gradient of the KL with respect to the logits at one label is p_θ − p_θ0; the mean runs over the labels of the rows, of the
retain set, of general text or of both together. A full Newton step (η = 1) overshoots where G underestimates how the KL curves,
as a Kronecker-factored G does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.core.streams import streams
from harness.data.rows import Batch, Encoded, encode
from harness.numerics.damage import LONGEST
from harness.numerics.likelihood import answer_logits, check_length
from methods.curvature.passes import LogitGradient
from methods.gauss_newton.corrector_config import Kinds
from methods.gauss_newton.data import StageData, memoised

KEPT = 2**28
"""Bytes of what a model said before that are kept from corrector to corrector, at most."""
MOST_HALVINGS = 24
"""How often a length is halved before a direction counts as one that lowers the KL no further."""


class CorrectorRows:
    """The sequences that correctors read, by kind, and those of them that the KL is measured on.

    Args:
        data: the stage's.
        stage: its name.
        on: which kinds.

    Raises:
        UsageError: if a text is longer than the model's context.
    """

    def __init__(self, data: StageData, stage: str, on: Kinds) -> None:
        self._seed, self._stage = data.context.seed, stage
        self.by_kind: dict[str, Sequence[Encoded]] = {}
        """`retain`, `general`: all that there are."""
        self.kl: list[Encoded] = []
        """Those that the KL is measured on."""
        if on != "general":
            self.by_kind["retain"] = data.retain
            self.kl += data.kl
        if on != "retain":
            self.by_kind["general"] = general = _general(data)
            self.kl += self._some(general, data.config.kl_rows, "general KL rows")

    def drawn(self, most: int | None, step: int, number: int) -> Mapping[str, Sequence[Encoded]]:
        """What one corrector reads, by kind.

        Args:
            most: so many of each kind, drawn anew for each corrector; all if None.
            step: of the stage, from 1.
            number: of the corrector behind that step, from 0.
        """
        names = {"retain": "corrector rows", "general": "general corrector rows"}
        return {kind: self._some(rows, most, names[kind], self._stage, step, number) for kind, rows in self.by_kind.items()}

    def _some(self, rows: Sequence[Encoded], most: int | None, name: str, *place: str | int) -> Sequence[Encoded]:
        if most is None or most >= len(rows):
            return rows
        drawn = streams(self._seed, name, *place).numpy().permutation(len(rows))[:most]
        return [rows[i] for i in sorted(drawn.tolist())]


def _general(data: StageData) -> list[Encoded]:
    """The problem's general text, cut as damage is measured on it."""
    context = data.context
    texts = tuple(context.problem.general)
    rows = memoised(context, "general", (context.identity, texts), lambda: encode(texts, context.tokenizer, LONGEST))
    check_length(context.model, max(len(e.input_ids) for e in rows))
    return rows


class Before:
    """What the model that the KL is from says at labels: p_θ0.

    Args:
        model: frozen, on the same device.
        same_rows: whether it is asked about the same rows, numbered alike, time and again. A batch is then computed once, as
            long as there is room for what it said.
    """

    def __init__(self, model: PreTrainedModel, same_rows: bool = False) -> None:
        self._model = model
        self._kept: dict[tuple[int, ...], Tensor] = {}
        self._room = KEPT if same_rows else 0
        self.computed = 0
        """Labels that the model was asked about."""

    @torch.no_grad()
    def probabilities(self, batch: Batch) -> Tensor:
        """[N, V] at a batch's labels, as `answer_logits` orders them."""
        rows = tuple(batch.rows.tolist())
        if rows in self._kept:
            return self._kept[rows]
        said = answer_logits(self._model, batch).softmax(dim=-1)
        self.computed += len(said)
        if said.nbytes <= self._room:
            self._kept[rows] = said
            self._room -= said.nbytes
        return said


def kl_gradient(before: Before, encoded: Sequence[Encoded]) -> LogitGradient:
    """The gradient of the mean KL(before ‖ now) per label with respect to the logits: (p_θ − p_θ0) / labels.

    Args:
        before: what the KL is from.
        encoded: the rows that the mean runs over.
    """
    labels = sum(e.label_count for e in encoded)

    def gradient(logits: Tensor, batch: Batch) -> Iterator[Tensor]:
        yield (logits.softmax(dim=-1) - before.probabilities(batch)) / labels

    return gradient


def line_search(kl_at: Callable[[float], float], now: float, length: float) -> tuple[float, float]:
    """A length along a direction that lowers the KL: the last doubling of a guess that does, or its first halving that does.

    Args:
        kl_at: measures the KL at a length.
        now: the KL at length 0.
        length: the first guess; it is doubled while the KL falls, or halved until it does.

    Returns:
        (length, its KL); length 0 and the KL there if no length lowered it.

    >>> line_search(lambda x: (x - 1) ** 2, now=1.0, length=0.375)  # .39 → .0625 → .25
    (0.75, 0.0625)
    >>> line_search(lambda x: (x - 1) ** 2, now=1.0, length=6.0)  # 25 → 4 → .25
    (1.5, 0.25)
    >>> line_search(lambda x: x, now=0.0, length=1.0)
    (0.0, 0.0)
    """
    kl = kl_at(length)
    if kl < now:
        while (further := kl_at(2 * length)) < kl:
            length, kl = 2 * length, further
        return length, kl
    for _ in range(MOST_HALVINGS):
        length /= 2
        if (kl := kl_at(length)) < now:
            return length, kl
    return 0.0, now
