"""ToFU's rows: the splits of the real data, checked, and what evaluators and methods are given of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.core.errors import UsageError
from harness.core.problem import Row
from harness.core.text import Example, Template
from harness.data.rows import dataset_file, read_rows

DATASET = "locuslab/TOFU"
QUESTIONS_PER_AUTHOR = 20

_PAIR = {"question": str, "answer": str}
_PERTURBED = {**_PAIR, "paraphrased_answer": str, "perturbed_answer": list}
_OPTIONS = {**_PAIR, "perturbed_answer": list}


def split_names(forget: str, retain: str) -> list[str]:
    """The splits of a benchmark that forgets one and keeps another, such as `forget10` and `retain90`."""
    perturbed = [f"{forget}_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed"]
    return ["full", forget, retain, *perturbed]


def real_rows(forget: str, retain: str, data_dir: Path | None) -> dict[str, list[Row]]:
    """The rows of the real splits, each with its author's number.

    Raises:
        UsageError: for a file that is missing or malformed, and for rows with different numbers of wrong answers.
    """
    rows: dict[str, list[Row]] = {}
    for name in split_names(forget, retain):
        fields = _PAIR if not name.endswith("_perturbed") else _OPTIONS if name[:4] in ("real", "worl") else _PERTURBED
        split = read_rows(dataset_file(DATASET, f"{name}.json", data_dir), fields)
        if "perturbed_answer" in fields:  # where it is not needed, anything may stand in it
            _check_wrong_answers(name, split)
        authored = name.startswith((forget, "retain_"))
        rows[name] = [{**row, "author": i // QUESTIONS_PER_AUTHOR if authored else i} for i, row in enumerate(split)]
    return rows


def holdout_rows(name: str, data_dir: Path | None, limit: int) -> list[Row]:
    """The first rows of a split that no model was trained on, as evaluators want them: open-unlearning's `holdout10`, say.

    Raises:
        UsageError: for a file that is missing or malformed.
    """
    rows = read_rows(dataset_file(DATASET, f"{name}.json", data_dir), _PAIR)[:limit]
    return [*numbered([{**row, "author": i // QUESTIONS_PER_AUTHOR} for i, row in enumerate(rows)])]


def in_other_words(sets: Mapping[str, Sequence[Row]]) -> dict[str, list[str]]:
    """Each row's paraphrased question, of those sets whose every row has one."""
    field = "paraphrased_question"
    return {
        name: [row[field] for row in rows]
        for name, rows in sets.items()
        if rows and all(isinstance(row.get(field), str) and row[field] for row in rows)
    }


def _check_wrong_answers(name: str, rows: Sequence[Row]) -> None:
    """Refuse a split whose rows have different numbers of wrong answers: their losses are averaged as one table."""
    counts = [len(row["perturbed_answer"]) for row in rows]
    if odd := next((i for i, count in enumerate(counts) if count != counts[0]), None):
        raise UsageError(
            f"{DATASET}/{name}.json, row {odd + 1}: 'perturbed_answer' holds {counts[odd]} answers, the first {counts[0]}."
        )


def examples(template: Template, rows: Sequence[Row]) -> list[Example]:
    """Rows as texts to train on."""
    return [template.example(row["question"], row["answer"]) for row in rows]


def retold(template: Template, rows: Sequence[Row]) -> dict[str, list[Example]]:
    """The questions of rows with the right answer in other words, and with the first of the wrong ones."""
    return {
        "paraphrased": [template.example(row["question"], row.get("paraphrased_answer") or row["answer"]) for row in rows],
        "wrong": [template.example(row["question"], row["perturbed_answer"][0]) for row in rows],
    }


def authors(rows: Sequence[Row]) -> list[str]:
    """Whom each row of a split is about: the world says it of each row, ToFU's splits have 20 rows of one after another."""
    per_row = len({row["author"] for row in rows}) == len(rows)
    return [str(i // QUESTIONS_PER_AUTHOR) if per_row else str(row["author"]) for i, row in enumerate(rows)]


def numbered(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as evaluators want them: their position, the cluster they are resampled in, and the question with its answers."""
    kept = ("question", "answer", "paraphrased_answer", "perturbed_answer")
    return [{"row": i, "cluster": str(row["author"]), **{k: row[k] for k in kept if k in row}} for i, row in enumerate(rows)]
