"""Which texts are due, and the contexts that are drawn for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from transformers import PreTrainedTokenizerBase

from harness.core.errors import UsageError
from harness.core.method import UnlearningContext
from harness.core.problem import Stage
from harness.core.streams import streams
from harness.data.rows import Encoded, token_ids
from methods.elm.config import ELMConfig, absent_stages
from methods.elm.words import EXPERT, NOVICE, TURNS

UNKNOWN_SHARE = 0.25
"""From this share of unknown words on a context says nothing."""


@dataclass(frozen=True)
class Entry:
    """A forget text and a retain text that are due."""

    stage: int
    """Of which stage, from 0."""
    turn: int
    """How many entries that stage has had before."""


def schedule(config: ELMConfig, stages: int) -> list[Entry]:
    """All entries in order.

    Raises:
        UsageError: if `order` names a stage that is not there.
    """
    order = config.order or tuple(range(stages))
    if reason := absent_stages(config, stages):
        raise UsageError(f"{reason}.")
    turns = [0] * stages
    entries = []
    for _ in range(config.rounds):
        for number in order:
            entries.append(Entry(number, turns[number]))
            turns[number] += 1
    return entries


Purpose = Literal["erase", "turn", "length", "sample"]


class Concept:
    """A stage's texts, and the contexts that are drawn for them by the seed and the turn."""

    def __init__(self, context: UnlearningContext, stage: Stage, number: int, config: ELMConfig) -> None:
        self._context, self._number, self._config = context, number, config
        self.forget, self._retain = (
            [text[: config.max_characters] for e in side if len(text := e.prompt + e.tag + e.answer) > config.min_characters]
            for side in (stage.forget, stage.retain)
        )
        if not (self.forget and self._retain):
            raise UsageError(f"{stage.name}: no text is longer than min_characters={config.min_characters}; set less.")
        self._concept = ""
        if config.contexts == "sentences":
            if len(config.concepts) != len(context.stages):
                raise UsageError(
                    f"concepts={list(config.concepts)}: say what each of the {len(context.stages)} stages is about, such as "
                    'concepts=["cyber attacks"], or set contexts=texts.'
                )
            self._concept = config.concepts[number]
            check_words(context.tokenizer, [self._in_words(sentence) for sentence in (*EXPERT, *NOVICE)] + [*TURNS])

    def row(self, entry: Entry) -> int:
        """Which forget text is due."""
        return entry.turn % len(self.forget)

    def erased(self, entry: Entry) -> tuple[Encoded, Encoded, Encoded]:
        """The forget text, plain, behind an expert's context and behind a novice's; a label follows each of its tokens."""
        text = self.forget[self.row(entry)]
        expert, novice, _ = self._drawn("erase", entry.turn)
        plain, knowing, ignorant = (self._tokens(joined) for joined in (text, expert + text, novice + text))
        last = len(plain)
        return self._labelled(plain, last), self._labelled(knowing, last), self._labelled(ignorant, last)

    def retained(self, entry: Entry) -> Encoded:
        """The retain text, likewise."""
        ids = self._tokens(self._retain[entry.turn % len(self._retain)])
        return self._labelled(ids, len(ids))

    def turned(self, row: int) -> tuple[list[int], list[int], list[int], int]:
        """Tokens of a forget text and a change of subject, of an expert's context, of a novice's, and how many to sample."""
        expert, novice, turn = self._drawn("turn", row)
        rng = self.rng("length", row)
        low, high = self._config.new_tokens
        text = self._tokens(self.forget[row] + turn)
        return text, self._tokens(expert.strip()), self._tokens(novice.strip()), int(rng.integers(low, high + 1))

    def followed(self, row: int, continuation: Sequence[int]) -> Encoded:
        """A forget text, the change of subject and a continuation, with labels on what follows the text's next token."""
        text, _, _, _ = self.turned(row)
        # As in the original, the first token behind the text is not learnt.
        return Encoded([*text, *continuation], len(self._tokens(self.forget[row])) + 1)

    def _tokens(self, text: str) -> list[int]:
        (ids,) = token_ids(self._context.tokenizer, [text])
        return ids

    def _labelled(self, ids: Sequence[int], last: int) -> Encoded:
        # The end token is only there to be predicted: a loss is taken on what follows each of the last tokens.
        return Encoded([*ids, int(self._context.tokenizer.eos_token_id)], len(ids) - last + 1)

    def rng(self, purpose: Purpose, turn: int) -> np.random.Generator:
        """Random numbers for one purpose and turn, whatever else is drawn."""
        place = self._number, turn, get_args(Purpose).index(purpose)
        return streams(self._context.seed, "elm texts", *place).numpy()

    def _drawn(self, purpose: Purpose, turn: int) -> tuple[str, str, str]:
        """An expert's context, a novice's, and a change of subject, with what joins them to a text."""
        rng = self.rng(purpose, turn)

        def one(of: Sequence[str]) -> str:
            return of[int(rng.integers(len(of)))]

        if self._config.contexts == "texts":
            return f"{one(self.forget)} ", f"{one(self._retain)} ", f" {one(self._retain)}"
        return f"{self._in_words(one(EXPERT))}\n", f"{self._in_words(one(NOVICE))}\n", f". {one(TURNS)}"

    def _in_words(self, sentence: str) -> str:
        return sentence.format(concept=self._concept)


def check_words(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> None:
    """Refuse a tokenizer to which the sentences say nothing.

    Raises:
        UsageError: if too many of their tokens are unknown to it.
    """
    ids = [token for sentence in token_ids(tokenizer, sentences) for token in sentence]
    unknown = sum(token == tokenizer.unk_token_id for token in ids)
    if unknown > UNKNOWN_SHARE * len(ids):
        raise UsageError(
            f"the tokenizer does not know {unknown} of the {len(ids)} words of elm's contexts, so they would say nothing. "
            "Set contexts=texts."
        )
