"""FastChat's files: the questions, the reference answers, and what the judge is shown.

They are read from the user's copy: `DIR/mt_bench/question.jsonl`, `reference_answer/gpt-4.jsonl`, `judge_prompts.jsonl`. (No
data set of the hub holds all three in this form.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals import _judge
from harness.core.config import JSON
from harness.core.errors import UsageError
from harness.core.problem import Row
from harness.data.rows import fingerprint, read_rows

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
OTHER_TEMPERATURE = 0.7
WITH_REFERENCE = ("math", "reasoning", "coding", "arena-hard-200")
"""Categories whose judge is shown a reference answer."""
TURNS = (1, 2)
FOLDER = "mt_bench"
"""Of the data folder; also what the rows' task is called."""
_PROMPTS = {  # (turn, with reference) → its name in judge_prompts.jsonl
    (1, False): "single-v1",
    (2, False): "single-v1-multi-turn",
    (1, True): "single-math-v1",
    (2, True): "single-math-v1-multi-turn",
}


@dataclass(frozen=True)
class Question:
    """Two turns and, for some categories, what a good answer says."""

    number: int
    """FastChat's `question_id`."""
    category: str
    """Such as `writing`."""
    turns: tuple[str, ...]
    """What the user says, two of them."""
    reference: tuple[str, ...] | None
    """The reference answers to both, where the judge is shown them."""

    @property
    def temperature(self) -> float:
        """At which it is answered."""
        return TEMPERATURES.get(self.category, OTHER_TEMPERATURE)


@dataclass(frozen=True)
class Files:
    """What is asked, and how the judge is asked."""

    questions: Sequence[Question]
    """In the file's order."""
    prompts: Mapping[str, Row]
    """FastChat's name of a judge's prompt → its `system_prompt` and `prompt_template`."""
    digests: Mapping[str, JSON]
    """Of what was read."""


def read(data_dir: Path | None, limit: int | None = None) -> Files:
    """FastChat's files.

    Args:
        data_dir: the folder that holds `mt_bench/`.
        limit: at most this many questions of every category.

    Raises:
        UsageError: for a file that is missing or malformed: which, and what is wrong with it.
    """
    if data_dir is None:
        raise UsageError(
            f"mt_bench reads FastChat's files: give --data-dir DIR (or HARNESS_DATA) with DIR/{FOLDER}/question.jsonl, "
            "reference_answer/gpt-4.jsonl and judge_prompts.jsonl, from fastchat/llm_judge/data of lm-sys/FastChat."
        )
    listed = read_rows(_file(data_dir, "question.jsonl"), {"question_id": int, "category": str, "turns": list})
    answered = read_rows(_file(data_dir, "reference_answer/gpt-4.jsonl"), {"question_id": int})
    prompts = read_rows(_file(data_dir, "judge_prompts.jsonl"), {"name": str, "prompt_template": str})
    references = {row["question_id"]: _reference(row) for row in answered}
    questions: list[Question] = []
    seen: Counter[str] = Counter()
    for row in listed:
        question = _question(row, references)
        seen[question.category] += 1
        if limit is None or seen[question.category] <= limit:
            questions.append(question)
    if len({q.number for q in questions}) < len(questions):
        raise UsageError(f"{FOLDER}/question.jsonl has a question_id twice.")
    named: dict[str, Row] = {str(row["name"]): row for row in prompts}
    for (turn, with_reference), name in _PROMPTS.items():
        if name not in named:
            raise UsageError(f"{FOLDER}/judge_prompts.jsonl has no prompt called '{name}'.")
        example = Question(0, "", ("", ""), ("", "") if with_reference else None)
        judge_prompt(Files((), named, {}), example, turn, ("", ""))
    digests = {
        "questions": fingerprint(listed),
        "references": fingerprint(answered),
        "prompts": fingerprint([named[name] for name in _PROMPTS.values()]),
    }
    return Files(questions, named, digests)


def _file(data_dir: Path, name: str) -> Path:
    path = data_dir / FOLDER / name
    if not path.is_file():
        raise UsageError(
            f"the data folder has no {FOLDER}/{name} (looked in {data_dir}). Put the file of that name from "
            "fastchat/llm_judge/data of lm-sys/FastChat there."
        )
    return path


def _question(row: Mapping[str, Any], references: Mapping[Any, tuple[str, ...]]) -> Question:
    number, category, turns = row["question_id"], row["category"], row["turns"]
    if len(turns) != len(TURNS):
        raise UsageError(f"{FOLDER}/question.jsonl: question {number} has {len(turns)} turns instead of {len(TURNS)}.")
    if category in WITH_REFERENCE and number not in references:
        raise UsageError(f"{FOLDER}/reference_answer/gpt-4.jsonl has no answer to question {number} ({category}).")
    return Question(number, category, tuple(turns), references[number] if category in WITH_REFERENCE else None)


def _reference(row: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        turns = tuple(row["choices"][0]["turns"])
    except (TypeError, LookupError):
        turns = ()
    if len(turns) != len(TURNS) or not all(isinstance(turn, str) for turn in turns):
        raise UsageError(
            f"{FOLDER}/reference_answer/gpt-4.jsonl: question {row['question_id']} has no choices[0].turns of two texts."
        )
    return turns


def judge_prompt(files: Files, question: Question, turn: int, answers: Sequence[str], repetition: int = 0) -> _judge.Prompt:
    """What the judge is asked about one of a question's answers.

    Args:
        files: with the prompts' templates.
        question: which.
        turn: 1 or 2; the second one's prompt shows the whole conversation.
        answers: to both turns.
        repetition: which.

    Raises:
        UsageError: for a template with other fields than FastChat's.
    """
    name = _PROMPTS[turn, question.reference is not None]
    fields: dict[str, str] = {}
    if turn == 1:
        fields |= {"question": question.turns[0], "answer": answers[0]}
    else:
        fields |= {f"question_{k}": text for k, text in zip(TURNS, question.turns, strict=True)}
        fields |= {f"answer_{k}": text for k, text in zip(TURNS, answers, strict=True)}
    if question.reference is not None:
        fields |= {f"ref_answer_{k}": question.reference[k - 1] for k in TURNS[:turn]}
    prompt = files.prompts[name]
    try:
        user = str(prompt["prompt_template"]).format(**fields)
    except (LookupError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{FOLDER}/judge_prompts.jsonl: the template of '{name}' does not take the fields {', '.join(fields)} ({error})."
        ) from None
    return _judge.Prompt(str(prompt.get("system_prompt") or ""), user, repetition)
