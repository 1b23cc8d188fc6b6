"""Running text cut into windows: nothing lost, nothing longer than it may be, and one sentence for what is no corpus."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from harness.core.errors import UsageError
from harness.core.text import Example, Window
from harness.data.corpora import SHORTEST, Corpus, Windows, windows
from harness.data.rows import encode
from harness.models.recipes import Vocabulary
from tests.conftest import Nano

SIZE = 64
WORDS = [
    "kettle",
    "lantern",
    "marble",
    "orchard",
    "umbrella",
    "violin",
    "window",
    "harbour",
    "compass",
    "candle",
    "the",
    "of",
    "and",
    "a",
]


@pytest.fixture(scope="module")
def tokenizer():
    return Vocabulary("bytes", (" ".join(WORDS),), 300).build()


def prose(count: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(count))


def written(folder: Path, *rows: object, name: str = "corpus.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def corpus(file: Path, count: int = 100, of_document: int | None = None, lines: bool = False) -> Corpus:
    return Corpus((file,), count, of_document, lines)


# ---------------------------------------------------------------- windows


def test_windows_hold_every_word_in_order_and_never_more_tokens_than_they_may(tokenizer):
    text = prose(5000)
    found = list(windows(text, tokenizer, SIZE))
    lengths = [len(tokenizer(w)["input_ids"]) for w in found]
    assert max(lengths) <= SIZE
    assert min(lengths[:-1]) > SIZE - 12, "what is missing is one word at most"
    assert text.split()[: len(" ".join(found).split())] == " ".join(found).split()
    assert len(text.split()) - len(" ".join(found).split()) < SHORTEST


def test_room_is_left_for_the_tokens_that_the_tokenizer_adds(tokenizer):
    from tokenizers import processors

    from harness.data.rows import token_ids

    begins = Vocabulary("bytes", (" ".join(WORDS),), 300).build()
    begins.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<unk> $A", special_tokens=[("<unk>", begins.unk_token_id)]
    )
    ids = token_ids(begins, list(windows(prose(1000), begins, SIZE)))
    assert all(i[0] == begins.unk_token_id for i in ids)
    assert max(map(len, ids)) <= SIZE


def test_no_room_is_left_for_the_tokens_that_are_left_out(tokenizer):
    """Those that the tokenizer puts last are neither read nor scored."""
    from tokenizers import processors

    ends = Vocabulary("bytes", (" ".join(WORDS),), 300).build()
    ends.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <unk> <eos>", special_tokens=[("<unk>", ends.unk_token_id), ("<eos>", ends.eos_token_id)]
    )
    assert list(windows(prose(1000), ends, SIZE)) == list(windows(prose(1000), tokenizer, SIZE))


def test_a_text_without_blanks_is_cut_through(tokenizer):
    found = list(windows("x" * 1000, tokenizer, SIZE))
    assert set(map(len, found[:-1])) == {SIZE}
    assert sum(map(len, found)) > 1000 - SHORTEST


def test_a_short_text_is_one_window_and_a_short_end_is_left_out(tokenizer):
    assert list(windows("the kettle", tokenizer, SIZE)) == ["the kettle"]
    assert list(windows("", tokenizer, SIZE)) == []
    assert len(list(windows("x" * (SIZE + SHORTEST - 1), tokenizer, SIZE))) == 1
    assert len(list(windows("x" * (SIZE + SHORTEST), tokenizer, SIZE))) == 2


def test_a_text_of_one_token_is_left_out_unless_the_tokenizer_begins_it():
    from tokenizers import processors

    words = Vocabulary("words", ("a", "b")).build()
    assert list(windows("a", words, SIZE)) == []
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<unk> $A", special_tokens=[("<unk>", words.unk_token_id)]
    )
    assert list(windows("a", words, SIZE)) == ["a"]


def test_blanks_without_end_come_to_an_end(tokenizer):
    words = Vocabulary("words", ("a", "b")).build()
    assert list(windows("a b" + " " * 50_000 + "b", words, SIZE)) == ["a b"]
    assert len(list(windows("a b " * 100, words, SIZE))) == 200 // SIZE


def test_only_what_is_asked_for_is_tokenised(tokenizer, monkeypatch):
    asked = []
    plain = type(tokenizer).__call__
    monkeypatch.setattr(type(tokenizer), "__call__", lambda self, text, **k: asked.append(len(text)) or plain(self, text, **k))
    next(windows(prose(200_000), tokenizer, SIZE))
    assert sum(asked) < 10_000


# ---------------------------------------------------------------- corpora


def test_a_corpus_takes_the_first_documents_and_so_many_windows_of_each(tokenizer, tmp_path):
    file = written(tmp_path, *({"text": prose(400, seed)} for seed in range(5)))
    every = list(corpus(file).cut(tokenizer, SIZE))
    two = list(corpus(file, of_document=2).cut(tokenizer, SIZE))
    assert len(two) == 10
    assert two[:2] == every[:2]
    assert set(two) < set(every)
    assert list(corpus(file, 3).cut(tokenizer, SIZE)) == every[:3]


def test_lines_are_one_running_text(tokenizer, tmp_path):
    file = written(tmp_path, *({"text": f" {prose(7, seed)} \n" if seed % 2 else ""} for seed in range(200)))
    found = list(corpus(file, lines=True).cut(tokenizer, SIZE))
    assert len(found) > 10
    assert all(len(tokenizer(w)["input_ids"]) > SIZE - 15 for w in found[:-1]), "across lines"


def test_a_parquet_file_is_read_as_a_json_lines_file_is(tokenizer, tmp_path):
    import pandas as pd

    rows = [{"text": prose(100, seed), "title": "x"} for seed in range(3)]
    pd.DataFrame(rows).to_parquet(tmp_path / "corpus.parquet")
    file = written(tmp_path, *rows)
    cut = [list(corpus(f).cut(tokenizer, SIZE)) for f in (file, tmp_path / "corpus.parquet")]
    assert cut[0] == cut[1]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"title": "x"}, "corpus.jsonl, line 2: expected an object with a text"),
        ({"text": 3}, "line 2: expected an object with a text"),
        (["text"], "line 2: expected an object with a text"),
        ("{'text': 1}", "line 2: not valid JSON"),
        ({"text": "x" * 20_000_001}, "line 2: 20 million characters in one row; put each document on its own line"),
    ],
)
def test_what_is_no_document_is_refused_with_its_line(tokenizer, tmp_path, row, says):
    file = written(tmp_path, {"text": "a fine one"}, row)
    with pytest.raises(UsageError, match=says):
        list(corpus(file).cut(tokenizer, SIZE))


def test_empty_documents_are_left_out_and_said_once(tokenizer, tmp_path, caplog):
    file = written(tmp_path, {"text": "a fine one"}, {"text": ""}, {"text": "  \n"}, {"text": "another"})
    assert list(corpus(file).cut(tokenizer, SIZE)) == ["a fine one", "another"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path.parent.name}/{tmp_path.name}/corpus.jsonl, line 2: the field 'text' is empty; such rows are left out"
    ]


def test_empty_and_foreign_files_are_refused(tokenizer, tmp_path):
    with pytest.raises(UsageError, match=r"empty.jsonl holds no text"):
        list(corpus(written(tmp_path, name="empty.jsonl")).cut(tokenizer, SIZE))
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(UsageError, match=r"x.parquet is no parquet file"):
        list(corpus(tmp_path / "x.parquet").cut(tokenizer, SIZE))
    (tmp_path / "latin.jsonl").write_bytes('{"text": "é"}'.encode("latin-1"))
    with pytest.raises(UsageError, match=r"latin.jsonl is no UTF-8 text"):
        list(corpus(tmp_path / "latin.jsonl").cut(tokenizer, SIZE))


def test_windows_of_several_corpora_come_in_turn_and_are_limited(nano: Nano, tmp_path):
    first = written(tmp_path, *({"text": f"first {i}"} for i in range(5)), name="first.jsonl")
    second = written(tmp_path, *({"text": f"second {i}"} for i in range(2)), name="second.jsonl")
    both = (corpus(first), corpus(second))
    told = [e.answer for e in Windows(both, nano.source(), SIZE)]
    assert told == ["first 0", "second 0", "first 1", "second 1", "first 2", "first 3", "first 4"]
    assert [e.answer for e in Windows(both, nano.source(), SIZE, limit=3)] == told[:3]


def test_nothing_is_read_before_it_is_asked_for(nano: Nano, tmp_path):
    later = Windows((corpus(tmp_path / "not-there.jsonl"),), nano.source(), SIZE)
    with pytest.raises(UsageError, match="cannot be read"):
        len(later)


# ---------------------------------------------------------------- a window as an example


def test_every_token_of_a_window_but_the_first_is_a_label_and_no_end_token_follows(nano: Nano):
    from harness.data.rows import NO_LABEL, collate

    (window,), (whole,) = (
        encode([Window("", "The first book")], nano.tokenizer),
        encode([Example("", "The first book")], nano.tokenizer),
    )
    assert whole.input_ids == [*window.input_ids, nano.tokenizer.eos_token_id]
    batch = collate([window], [0], 0)
    assert (batch.labels[:, 1:] != NO_LABEL).all()
    assert batch.labels.shape[1] == 3
