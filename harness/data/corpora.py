"""Running text: documents out of files, cut into windows of tokens.

A document is a row with a field `text`, of a JSON-lines or a parquet file. Its windows follow one another and are cut between
words, so that each is, tokenised anew, at most so many tokens long: a few fewer, where the last word would not fit. What is
left at a document's end is a window too if it is long enough to tell anything. Nothing is read before it is asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, overload

from harness.core.documents import json_lines, place
from harness.core.errors import UsageError
from harness.core.text import Example, Window
from harness.data.rows import added_tokens, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


log = logging.getLogger(__name__)

SHORTEST = 32
"""Tokens of a document's last piece under which it is left out, unless it is the whole document."""
LONGEST_DOCUMENT = 20_000_000
"""Characters in one row from which it is taken for a file that does not hold a document a line."""
CHARACTERS_AT_ONCE = 64
"""Characters that are tokenised together, for each token of a window."""


@dataclass(frozen=True)
class Corpus:
    """Documents of one kind, and how many windows are taken of them."""

    files: tuple[Path, ...]
    """Where they are."""
    windows: int
    """How many windows are taken at most, the first documents first."""
    of_document: int | None = None
    """How many of one document at most; all if not given."""
    lines: bool = False
    """Whether rows are the lines of one running text, empty ones among them, rather than documents (Wikitext)."""

    def documents(self) -> Iterator[str]:
        """The texts, one after another.

        Raises:
            UsageError: naming the file and the line of a row that is no document.
        """
        rows = (text for file in self.files for text in _texts(file, blank=self.lines))
        if not self.lines:
            yield from rows
            return
        while joined := "".join(line if line.endswith("\n") else f"{line}\n" for line in islice(rows, 2000)):
            if joined.strip():
                yield joined

    def cut(self, tokenizer: PreTrainedTokenizerBase, size: int) -> Iterator[str]:
        """The windows' texts.

        Args:
            tokenizer: a fast one: it has to say where in the text a token lies.
            size: tokens of a window, special tokens included.

        Raises:
            UsageError: for a tokenizer that cannot, or files without any document.
        """
        pieces = (w for text in self.documents() for w in islice(windows(text, tokenizer, size), self.of_document))
        first = next(pieces, None)
        if first is None:
            raise UsageError(f"{place(self.files[0])} holds no text.")
        yield first
        yield from islice(pieces, self.windows - 1)


def _texts(file: Path, blank: bool) -> Iterator[str]:
    """The field `text` of every row; without those that are empty, unless they belong to the text."""
    warned = False
    for number, row in _rows(file):
        where = f"{place(file)}, line {number}"
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise UsageError(f"{where}: expected an object with a text in its field 'text'.")
        if len(text) > LONGEST_DOCUMENT:
            raise UsageError(
                f"{where}: {len(text) / 1e6:.0f} million characters in one row; put each document on its own line."
            )
        if blank or text.strip():
            yield text
        elif not warned:
            log.warning("%s: the field 'text' is empty; such rows are left out", where)
            warned = True


def _rows(file: Path) -> Iterator[tuple[int, object]]:
    """Number and content of each row; parquet rows count as lines."""
    if file.suffix == ".parquet":
        from pyarrow import ArrowException, parquet

        try:
            batches = parquet.ParquetFile(file).iter_batches(columns=["text"])
            yield from enumerate(({"text": text} for batch in batches for text in batch.column("text").to_pylist()), 1)
        except (ArrowException, KeyError) as error:
            raise UsageError(f"{place(file)} is no parquet file with a column 'text' ({type(error).__name__}).") from None
        return
    yield from json_lines(file)


def windows(text: str, tokenizer: PreTrainedTokenizerBase, size: int) -> Iterator[str]:
    """A text cut between words into pieces of at most `size` tokens, special tokens included.

    A word longer than that is cut through. Only so much of the text is tokenised as is asked for. A piece of a single token is
    left out: no token before it predicts it.

    Raises:
        UsageError: for a tokenizer that does not say where its tokens lie.
    """
    for piece in _pieces(text, tokenizer, size):
        if len(piece.split()) > 1 or len(token_ids(tokenizer, [piece])[0]) > 1:
            yield piece


def _pieces(text: str, tokenizer: PreTrainedTokenizerBase, size: int) -> Iterator[str]:
    if not tokenizer.is_fast:
        raise UsageError(f"the tokenizer {type(tokenizer).__name__} does not say where its tokens lie; a fast one is needed.")
    room = size - added_tokens(tokenizer)[0]
    at, whole = 0, True
    while at < len(text):
        piece = text[at : at + CHARACTERS_AT_ONCE * size]
        offsets = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        starts = [start for start, _ in offsets]
        begin, first = 0, 0
        while len(starts) - first > room:
            cut = next((i for i in range(first + room, first, -1) if _between_words(piece, starts[i])), first + room)
            yield piece[begin : starts[cut]].strip()
            begin, first, whole = starts[cut], cut, False
        if at + len(piece) == len(text):
            if whole or len(starts) - first >= SHORTEST:
                yield piece[begin:].strip()
            return
        if first == 0:  # fewer tokens than a window in so many characters: one endless run of blanks, say
            yield piece.strip()
            begin, whole = len(piece), False
        at += begin


def _between_words(text: str, at: int) -> bool:
    return text[at].isspace() or text[at - 1].isspace()


class Tokenizing(Protocol):
    """What has a tokenizer, such as a checkpoint."""

    def tokens(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded without the weights."""


@dataclass(frozen=True)
class Windows(Sequence[Example]):
    """Windows of one corpus, or of several in turn, cut when they are first looked at."""

    corpora: tuple[Corpus, ...]
    """Whose."""
    source: Tokenizing
    """Whose tokenizer counts."""
    size: int
    """Tokens of a window."""
    limit: int | None = None
    """At most this many windows in all."""

    @cached_property
    def _cut(self) -> tuple[Window, ...]:
        tokenizer = self.source.tokens()
        parts = [list(islice(corpus.cut(tokenizer, self.size), self.limit)) for corpus in self.corpora]
        longest = max(map(len, parts))
        in_turn = [part[i] for i in range(longest) for part in parts if i < len(part)]
        return tuple(Window("", text) for text in in_turn[: self.limit])

    def __len__(self) -> int:
        return len(self._cut)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        return self._cut[index]
