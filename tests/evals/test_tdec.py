"""The Training Data Extraction Challenge: the embedded chronicle, and real files out of a data folder."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from evals.benchmarks._words import words
from evals.benchmarks.tdec import chronicle
from evals.benchmarks.tdec.rows import texts
from harness.core.benchmark import BENCHMARKS, eval_plan
from harness.core.errors import UsageError
from harness.core.options import Options
from harness.models.recipes import Vocabulary
from tests.conftest import Nano

NAMES = {"tdec": 32, "tdec-1": 1, "tdec-4": 4, "tdec-8": 8, "tdec-128": 128}


def words_of(of: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in of]


def problem(bench: str, model: str = "mini", **options: Any) -> Any:
    return BENCHMARKS.get(bench).problem(model, Options(**options))


@pytest.mark.parametrize(("bench", "size"), NAMES.items())
def test_the_seed_chooses_one_of_five_draws(bench: str, size: int):
    sets = [{example.answer for example in problem(bench, seed=seed).stages[0].forget} for seed in range(6)]
    assert all(len(of) == size for of in sets)
    assert sets[5] == sets[0]
    shared = [len(a & b) for i, a in enumerate(sets[:5]) for b in sets[:i]]
    assert all(count == 0 for count in shared) if size <= 32 else all(count < size for count in shared)


def test_draws_of_one_size_are_compared_with_each_other():
    """What is recorded of the data is the same for all of them."""
    first, second = (problem("tdec", seed=seed) for seed in (0, 1))
    assert first.data == second.data
    assert first.stages != second.stages


def test_every_text_has_200_tokens_and_is_nowhere_else():
    world, tokenizer = chronicle.World(0), Vocabulary("words", tuple(chronicle.vocabulary())).build()
    every = [*world.memorised, *world.read, *world.unseen, *world.general]
    assert len(set(every)) == len(every)
    ids = tokenizer(every)["input_ids"]
    assert {len(of) for of in ids} == {chronicle.LENGTH}
    assert tokenizer.unk_token_id not in {token for of in ids for token in of}
    assert all(len(words(text)) == chronicle.LENGTH for text in every[:10])


def test_evaluated_texts_are_read_by_no_method():
    found = problem("tdec")
    read = {example.answer for example in (*found.stages[0].retain, *found.general)}
    evaluated = {row["text"] for name in ("unseen", "general") for row in found.questions[name]}
    learned = {example.answer for example in found.sources["base"].examples}
    assert not evaluated & (read | learned)
    assert {row["text"] for row in found.questions["memorized"]} <= learned


def test_another_variant_than_its_own_two_is_refused():
    assert problem("tdec", variant="corrected").bench == "tdec"
    with pytest.raises(UsageError, match="original and corrected"):
        problem("tdec", variant="open-unlearning")
    with pytest.raises(UsageError, match="original and open-unlearning"):
        problem("tofu10", variant="corrected")


def test_what_a_model_knows_from_its_pre_training_is_asked_of_real_models_alone(folder: Folder, nano: Nano):
    """The embedded model's runs keep their names and their time."""
    bench = BENCHMARKS.get("tdec-4")
    own = ["extraction", "perplexity"]
    for model, options, expected in (
        ("mini", Options(), own),
        (str(nano.folder()), Options(data_dir=folder()), [*own, "classification", "dialogue"]),
        (str(nano.folder()), Options(data_dir=folder(), evals=("+fluency",)), [*own, "classification", "dialogue", "fluency"]),
        (str(nano.folder()), Options(data_dir=folder(), evals=("extraction",)), ["extraction"]),
    ):
        plan = eval_plan(bench, bench.problem(model, options), options)
        assert [evaluator.name for evaluator in plan.evaluators] == expected
        assert plan.evaluator_inputs == {}, "there are no such files"


# ---------------------------------------------------------------- real files

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A data folder with two draws of four texts, running text and a corpus."""

    def make(**changed: str | None) -> Path:
        def rows(count: int, size: int) -> str:
            return "doc_id,corpus,text\n" + "".join(f'{i},github,"{"word " * size}{i},\nend"\n' for i in range(count))

        contents = {
            "lm_extraction_4_0.csv": rows(4, 210),
            "lm_extraction_4_1.csv": rows(4, 50),
            "pile.csv": rows(3, 210),
            "wikitext.csv": rows(3, 20),
            **{name.replace("__", "."): text for name, text in changed.items()},
        }
        data = tmp_path / "data"
        (data / "tdec").mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            if text is not None:
                (data / "tdec" / name).write_text(text, encoding="utf-8", newline="")
        corpus = data / "Salesforce/wikitext/wikitext-2-raw-v1/train.jsonl"
        corpus.parent.mkdir(parents=True, exist_ok=True)
        corpus.write_text("".join(f"{json.dumps({'text': ' A town in spring . '})}\n" for _ in range(3000)), encoding="utf-8")
        return data

    return make


def test_real_texts_come_out_of_the_draw_that_the_seed_chooses(folder: Folder, nano: Nano):
    data = folder()
    first, second, third = (problem("tdec-4", str(nano.folder()), data_dir=data, seed=seed) for seed in (0, 1, 2))
    assert first.stages == third.stages
    assert first.stages != second.stages
    assert first.data == second.data
    assert any("draw 1 of 2, by the seed: lm_extraction_4_1.csv" in note for note in second.notes)
    assert [len(first.questions[name]) for name in ("memorized", "unseen", "pile", "wikitext")] == [4, 3, 3, 3]


def test_short_texts_are_counted_and_said(folder: Folder, nano: Nano):
    data = folder()
    notes = {seed: problem("tdec-4", str(nano.folder()), data_dir=data, seed=seed).notes for seed in (0, 1)}
    assert not any("have under 200 tokens" in note for note in notes[0])
    assert any(note.startswith("4 of 4 texts have under 200 tokens: they are padded") for note in notes[1])
    corrected = problem("tdec-4", str(nano.folder()), data_dir=data, seed=1, variant="corrected")
    assert any(note.endswith("have under 200 tokens: each counts at its own length") for note in corrected.notes)


def test_texts_that_are_too_short_for_thresholds_are_said(folder: Folder, nano: Nano):
    found = problem("tdec-4", str(nano.folder()), data_dir=folder(pile__csv='doc_id,corpus,text\n0,github,"a few words"\n'))
    assert any(note.startswith("no text of tdec/pile.csv has 200 tokens: no thresholds") for note in found.notes)
    assert "unseen" not in found.questions


def test_what_is_not_there_is_named(folder: Folder, nano: Nano):
    data = folder(pile__csv=None)
    found = problem("tdec-4", str(nano.folder()), data_dir=data)
    assert any("tdec/pile.csv is not in the data folder" in note for note in found.notes)
    assert any("no thresholds" in note for note in found.notes)
    assert "unseen" not in found.questions
    with pytest.raises(UsageError, match=r"no tdec/lm_extraction_8_0\.csv"):
        problem("tdec-8", str(nano.folder()), data_dir=data)
    with pytest.raises(UsageError, match="--model mini"):
        problem("tdec", str(nano.folder()))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('doc_id,corpus,text\n1,github,"open\n', "quotes are broken"),
        ('doc_id,corpus,text\n1,github,"a "b" c"\n', "quotes are broken"),
        ("doc_id,corpus,text\n1,github,one, two\n", "line 2: 4 fields, the first line names 3"),
        ("doc_id,corpus,text\n1,github\n", "line 2: 2 fields, the first line names 3"),
        ("doc_id,body\n1,x\n", "no CSV file with a column 'text'"),
        ("", "no CSV file with a column 'text'"),
        ("doc_id,corpus,text\n", "holds no text"),
    ],
)
def test_a_broken_file_is_refused_in_a_sentence(tmp_path: Path, content: str, says: str):
    file = tmp_path / "lm_extraction_1_0.csv"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=says):
        texts(file, words_of)


def test_line_breaks_within_a_text_stay_as_they_are(tmp_path: Path):
    file = tmp_path / "lm_extraction_1_0.csv"
    with file.open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows([["doc_id", "corpus", "text"], [7, "github", 'one\r\ntwo\n"three"']])
    assert texts(file, words_of) == [({"text": 'one\r\ntwo\n"three"', "cluster": "7"}, 3)]


def test_a_text_of_one_token_is_refused_with_its_file_and_line(folder: Folder, nano: Nano):
    """Nothing predicts a text's first token; a run would stop later and name no file."""
    for name in ("lm_extraction_4_0", "pile", "wikitext"):
        data = folder(**{f"{name}__csv": 'doc_id,corpus,text\n0,github,"world in\nyear"\n\n1,github,year\n'})
        with pytest.raises(UsageError, match=rf"tdec/{name}\.csv, line 5: 'year' is a text of one token"):
            problem("tdec-4", str(nano.folder()), data_dir=data)
        shutil.rmtree(data)


@pytest.mark.parametrize("size", [1, 4, 8, 32, 128])
def test_published_forget_sets_are_read_whole(size: int, request: pytest.FixtureRequest):
    import os

    file = Path(os.environ.get("HARNESS_DATA") or "none") / "tdec" / f"lm_extraction_{size}_0.csv"
    if not file.is_file():
        pytest.skip(f"HARNESS_DATA holds no tdec/{file.name}")
    assert len(texts(file, words_of)) == size
