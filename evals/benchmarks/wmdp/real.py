"""The benchmark's data out of the real corpora and questions, from the hub or a data folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from evals.benchmarks.wmdp.cards import CORPORA, INSTRUCTIONS, MMLU, MMLU_SUBJECTS, NOT_SUBJECTS, QUESTIONS, DataCard
from evals.benchmarks.wmdp.data import WmdpData, in_turn, numbered, retain_kinds
from harness.core.config import JSON
from harness.core.errors import UsageError
from harness.core.options import Options
from harness.core.problem import Row, Stage
from harness.core.streams import streams
from harness.data.corpora import Corpus, Windows
from harness.data.rows import dataset_files, fingerprint, read_rows
from harness.models.sources import CheckpointSource
from harness.storage.cache import digest, file_digest

log = logging.getLogger(__name__)

WINDOW = 512
"""Tokens of a window of the real corpora."""
FORGET_WINDOWS = 10_000
"""K-FADE takes four steps of 2,500 windows on each stage."""
RETAIN_WINDOWS = 4_000
"""Of each corpus that guards a stage, as K-FADE takes them."""
MOST_INSTRUCTIONS = 30_000
"""Of Alpaca's, drawn with a fixed seed; so many the paper took."""
ATTACK_WINDOWS = 1_600
"""Windows that a fine-tuning attack has: 200 steps of 8."""
CHOICES = 4


def real_data(base: CheckpointSource, stages: Sequence[str], options: Options) -> WmdpData:
    """Texts and questions as they were published.

    Args:
        base: the model whose tokenizer cuts the corpora.
        stages: the domains to forget: `bio`, `cyber`.
        options: with the data folder, the limit, and the kinds of texts that guard a stage.

    Raises:
        UsageError: for a file that is missing or malformed.
    """
    files = {name: _corpus_files(name, options.data_dir) for name in _corpora(stages, options)}

    def windows(most: int, *names: str) -> Windows:
        parts = tuple(Corpus(files[n], most, CORPORA[n].of_document, CORPORA[n].lines) for n in names)
        return Windows(parts, base, WINDOW, options.limit)

    guarded = []
    for name in stages:
        corpora = {"neighbours": f"{name}-retain", "general": "wikitext"}
        retain = windows(RETAIN_WINDOWS, *(corpora[kind] for kind in retain_kinds(options.retain)))
        guarded.append(Stage(name, forget=windows(FORGET_WINDOWS, f"{name}-forget"), retain=retain))
    trained_on = {
        "benign": ["wikitext"],
        "related": [f"{name}-retain" for name in stages],
        "forget": [f"{name}-forget" for name in stages],
    }
    attacks = {name: windows(ATTACK_WINDOWS, *parts) for name, parts in trained_on.items() if {*parts} <= files.keys()}
    questions, notes = _all_questions(options.data_dir)
    digests: dict[str, JSON] = {name: fingerprint(rows) for name, rows in questions.items()}
    digests |= {name: digest([file_digest(file) for file in parts])[:16] for name, parts in files.items()}
    return WmdpData(
        guarded,
        {name: numbered(rows[: options.limit]) for name, rows in questions.items()},
        digests,
        attacks,
        generation_budget=256,
        notes=notes,
    )


def _corpora(stages: Sequence[str], options: Options) -> list[str]:
    """What is read: what the stages hold, and where attacks are measured what these train on, whatever guards a stage."""
    kinds = retain_kinds("all" if "finetune_attack" in options.evals else options.retain)
    sides = ("forget", "retain") if "neighbours" in kinds else ("forget",)
    return [*(f"{stage}-{side}" for stage in stages for side in sides), *["wikitext"] * ("general" in kinds)]


def _corpus_files(name: str, data_dir: Path | None) -> tuple[Path, ...]:
    card = CORPORA[name]
    return tuple(dataset_files(card.id, card.files, data_dir))


def _all_questions(data_dir: Path | None) -> tuple[dict[str, list[Row]], list[str]]:
    """WMDP's sets, MMLU's subjects in turn and, where they are to be had, Alpaca's instructions; and what is missing."""
    questions = {name: list(_questions(card, data_dir, f"wmdp_{name}")) for name, card in QUESTIONS.items()}
    subjects = [list(rows) for _, rows in groupby(_questions(MMLU, data_dir, "mmlu"), key=lambda row: row["task"])]
    questions["mmlu"] = in_turn(*subjects)  # the first so many are of all subjects
    if instructions := _instructions(data_dir):
        questions["instructions"] = instructions
    few = len(subjects) != MMLU_SUBJECTS
    return questions, [f"MMLU: {len(subjects)} of {MMLU_SUBJECTS} subjects are there"] if few else []


def _instructions(data_dir: Path | None) -> list[Row]:
    """Alpaca's instructions, each with its input below it, in an order drawn once and for all; none where they are not there.

    Raises:
        UsageError: for a file that holds something else.
    """
    try:
        files = dataset_files(INSTRUCTIONS.id, INSTRUCTIONS.files, data_dir)
    except UsageError as error:
        log.warning("alpaca_kl cannot be measured: %s", error)
        return []
    rows = [row for file in files for row in read_rows(file, {"instruction": str})]
    streams(0, "instructions of a file").python().shuffle(rows)
    prompts = [f"{row['instruction']}\n\n{row['input']}" if row.get("input") else row["instruction"] for row in rows]
    return [{"question": prompt} for prompt in prompts[:MOST_INSTRUCTIONS]]


def _questions(card: DataCard, data_dir: Path | None, task: str) -> Iterator[Row]:
    """The questions of a set, each with lm-eval's name of its task: `wmdp_bio`, or `mmlu_anatomy` of MMLU's subjects.

    Raises:
        UsageError: for a question without four choices or with an answer that is none of them, naming file and line.
    """
    for file in dataset_files(card.id, card.files, data_dir):
        if card is MMLU and file.parent.name in NOT_SUBJECTS:
            continue
        named = f"{task}_{file.parent.name}" if card is MMLU else task
        for number, row in enumerate(read_rows(file, {"question": str, "choices": list}), 1):
            where = f"{'/'.join(file.parts[-3:])}, question {number}"
            choices, answer = row["choices"], row.get("answer")
            assert isinstance(choices, list)  # checked by read_rows
            if len(choices) != CHOICES:
                raise UsageError(f"{where}: {len(choices)} choices, {CHOICES} are needed.")
            if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < CHOICES:
                raise UsageError(f"{where}: the answer must be the number of a choice, 0 to {CHOICES - 1}, found {answer!r}.")
            yield {"question": row["question"], "choices": choices, "answer": answer, "task": named}
