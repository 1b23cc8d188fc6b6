"""The nine classification sets: where they are had from, and how a row becomes a text with choices.

| set | file | text | choices |
|---|---|---|---|
| lambada | `tdec/lambada.csv` | all words of the text but the last | the last one |
| pubmed_qa | `tdec/pubmed_qa.csv` | `Context: `, abstract, `Question: `, question, `Answer:`, a line each | yes, maybe, no |
| piqa | `baber/piqa` | goal | both solutions |
| hellaswag | `Rowan/hellaswag` | context | four endings |
| arc_easy, arc_challenge | `allenai/ai2_arc` | question | four choices |
| copa | `aps/super_glue` | premise | both alternatives |
| winogrande | `allenai/winogrande`, `winogrande_s` | sentence up to its `_` | each option with the rest of the sentence |
| math_qa | `regisss/math_qa` | problem | five options, taken out of one string |

The first two are joeljang/knowledge-unlearning's files; of the others it is the validation split, from the data folder or the
hub, by the ids under which lm-eval has them. Rows that have not the set's number of choices are left out and counted, as the
public code leaves out ARC's (`Datasets.py`); a row without one of its fields, or whose answer is none of its choices, is
refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from evals._challenge import FOLDER, csv_rows, files
from harness.core.documents import place
from harness.core.errors import UsageError, cut
from harness.core.problem import Row
from harness.data.rows import dataset_files_or_reason, fingerprint, matching, read_rows


class Question(NamedTuple):
    """A text and what may follow it."""

    context: str
    """What the model is given."""
    choices: tuple[str, ...]
    """What it may go on with, each with the blank before it."""
    answer: int
    """The right one's number."""


Read = Callable[[Row], Question | None]
"""A row → what is asked; None for a row that has not the set's number of choices.

Raises ValueError, with what is wrong, for a row that is broken."""


@dataclass(frozen=True)
class Source:
    """Where a set is had from, and what its rows hold."""

    read: Read
    """Makes a question of a row."""
    fields: Mapping[str, type]
    """Those that each row must have; only texts and lists of texts can be named here."""
    file: str = ""
    """Of the Challenge's files."""
    dataset: str = ""
    """A hub id, for the others."""
    patterns: tuple[str, ...] = ()
    """Forms of its file's name there."""


class Questions(NamedTuple):
    """A set that is there."""

    rows: Sequence[Question]
    """In the file's order."""
    left_out: int
    """Rows of the file that have another number of choices."""
    digest: str
    """Of the questions, each with its answer."""


# ---------------------------------------------------------------- rows


def _chosen(row: Row, field: str, known: Iterable[str]) -> int:
    """The number of a row's answer among those that are known."""
    if field not in row:
        raise ValueError(f"the field '{field}' is missing")
    value, names = row[field], list(known)
    if isinstance(value, bool) or str(value) not in names:
        raise ValueError(f"the field '{field}' must be one of {', '.join(names)}, found {cut(repr(value))}")
    return names.index(str(value))


def _labelled(context: str, *choices: str) -> Read:
    """Rows with a field for the text, one for each choice, and the right one's number, from 0."""

    def read(row: Row) -> Question:
        label = _chosen(row, "label", map(str, range(len(choices))))
        return Question(row[context], tuple(f" {row[choice]}" for choice in choices), label)

    return read


def _lambada(row: Row) -> Question | None:
    context, _, word = row["text"].rpartition(" ")
    return Question(context, (f" {word}",), 0) if context.strip() and word else None


def _pubmed_qa(row: Row) -> Question:
    known = ("yes", "maybe", "no")
    context = f"Context: {row['abstract']}\nQuestion: {row['question']}\nAnswer:"
    return Question(context, tuple(f" {word}" for word in known), _chosen(row, "final_decision", known))


def _hellaswag(row: Row) -> Question | None:
    if len(row["endings"]) != 4:
        return None
    return Question(row["ctx"], tuple(f" {end}" for end in row["endings"]), _chosen(row, "label", "0123"))


def _arc(row: Row) -> Question | None:
    texts, letters = (row["choices"].get(key) for key in ("text", "label"))
    if not all(isinstance(of, list) and all(isinstance(each, str) for each in of) for of in (texts, letters)):
        raise ValueError("the field 'choices' must hold the lists 'text' and 'label'")
    if len(texts) != 4 or len(letters) != 4:
        return None
    return Question(row["question"], tuple(f" {text}" for text in texts), _chosen(row, "answerKey", letters))


def _winogrande(row: Row) -> Question | None:
    before, *rest = row["sentence"].split(" _")
    if len(rest) != 1 or not before.strip():
        return None
    choices = tuple(f" {row[option]}{rest[0]}" for option in ("option1", "option2"))
    return Question(before, choices, _chosen(row, "answer", "12"))


_OPTIONS = re.compile(r"[a-d] \) (?P<inner>.*?), |e \) (?P<last>.*)")
"""As published: an option goes up to the first comma with a blank behind it, also where that is its own."""
_WHOLE_OPTIONS = re.compile(r"[a-e] \) (.*?)(?: , (?=[b-e] \) )|$)")


def _math_qa(row: Row, corrected: bool) -> Question | None:
    if corrected:
        choices = [f" {text}" for text in _WHOLE_OPTIONS.findall(row["options"])]
    else:
        choices = [(match["inner"] or match["last"] or "").rstrip(" ,") for match in _OPTIONS.finditer(row["options"])]
    answer = _chosen(row, "correct", "abcde")
    return Question(row["Problem"], tuple(choices), answer) if len(choices) == 5 and all(choices) else None


# ---------------------------------------------------------------- files


def _arc_source(part: str) -> Source:
    return Source(
        _arc,
        {"question": str, "choices": dict, "answerKey": str},
        dataset="allenai/ai2_arc",
        patterns=(f"{part}/validation*.parquet", f"{part}/validation.jsonl"),
    )


def sources(corrected: bool) -> dict[str, Source]:
    """Set → where it is had from.

    Args:
        corrected: whether MathQA's options are put as the other sets' choices are: whole, and behind a blank.
    """
    split, own = "data/validation*.parquet", "validation.jsonl"
    return {
        "lambada": Source(_lambada, {"text": str}, file="lambada.csv"),
        "piqa": Source(
            _labelled("goal", "sol1", "sol2"),
            {"goal": str, "sol1": str, "sol2": str},
            dataset="baber/piqa",
            patterns=("piqa_validation.parquet", own),
        ),
        "hellaswag": Source(_hellaswag, {"ctx": str, "endings": list}, dataset="Rowan/hellaswag", patterns=(split, own)),
        "arc_easy": _arc_source("ARC-Easy"),
        "arc_challenge": _arc_source("ARC-Challenge"),
        "copa": Source(
            _labelled("premise", "choice1", "choice2"),
            {"premise": str, "choice1": str, "choice2": str},
            dataset="aps/super_glue",
            patterns=("copa/validation*.parquet", "copa/validation.jsonl"),
        ),
        "winogrande": Source(
            _winogrande,
            {"sentence": str, "option1": str, "option2": str},
            dataset="allenai/winogrande",
            patterns=("winogrande_s/validation*.parquet", "winogrande_s/validation.jsonl"),
        ),
        "math_qa": Source(
            lambda row: _math_qa(row, corrected),
            {"Problem": str, "options": str, "correct": str},
            dataset="regisss/math_qa",
            patterns=(split, own),
        ),
        "pubmed_qa": Source(_pubmed_qa, {"question": str, "abstract": str, "final_decision": str}, file="pubmed_qa.csv"),
    }


SETS = tuple(sources(corrected=False))
"""In the order in which the public code is given them (`configs/example.json`)."""


def read_sets(data_dir: Path | None, corrected: bool) -> Mapping[str, Questions | str]:
    """Set → its questions, or why it is not there.

    Args:
        data_dir: the data folder.
        corrected: see `sources`.

    Raises:
        UsageError: for a file that is there and broken, with the row and what is wrong with it.
    """
    sets: dict[str, Questions | str] = {}
    for name, source in sources(corrected).items():
        paths = _files(source, data_dir)
        if isinstance(paths, list):
            stamps = tuple((stat.st_mtime_ns, stat.st_size) for stat in (path.stat() for path in paths))
            sets[name] = _questions(name, corrected, tuple(paths), stamps)
        else:
            sets[name] = paths
    return sets


def _files(source: Source, data_dir: Path | None) -> list[Path] | str:
    """A set's files, or why there are none."""
    if source.dataset:
        own = matching(data_dir / source.dataset, source.patterns) if data_dir else []
        return own or _on_hub(source.dataset, source.patterns, data_dir)
    if paths := files(data_dir, source.file):
        return paths[:1]
    where = f"the data folder has no {FOLDER}/{source.file}" if data_dir else "there is no data folder"
    return (
        f"{where}. Put validation_data/{source.file} of joeljang/knowledge-unlearning into DIR/{FOLDER} and give "
        "--data-dir DIR (or HARNESS_DATA)"
    )


@cache
def _on_hub(dataset: str, patterns: tuple[str, ...], data_dir: Path | None) -> list[Path] | str:
    """The hub is asked once: this is looked up for every metric of every point."""
    return dataset_files_or_reason(dataset, patterns, data_dir)


@cache
def _questions(name: str, corrected: bool, paths: tuple[Path, ...], stamps: tuple[tuple[int, int], ...]) -> Questions | str:
    """What files hold; read again where one has changed since (`stamps`)."""
    source = sources(corrected)[name]
    rows: list[Question] = []
    left_out = 0
    for where, row in _rows(source, paths):
        try:
            question = source.read(row)
        except ValueError as error:
            raise UsageError(f"{where}: {error}.") from None
        if question is None:
            left_out += 1
        else:
            rows.append(question)
    if not rows:
        return f"none of its {left_out} rows has the set's number of choices"
    return Questions(rows, left_out, fingerprint([question._asdict() for question in rows]))


def _rows(source: Source, paths: Sequence[Path]) -> Iterator[tuple[str, Row]]:
    """The rows of a set's files, each with where it stands."""
    for path in paths:
        if source.file:
            yield from ((row.where, row.fields) for row in csv_rows(path, tuple(source.fields)))
        else:
            rows = read_rows(path, source.fields)
            yield from ((f"{place(path)}, row {number}", row) for number, row in enumerate(rows, start=1))
