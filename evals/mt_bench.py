"""MT-Bench: how well a model answers 80 questions of two turns each, as a judge grades it from 1 to 10.

Follows lm-sys/FastChat `llm_judge` (`gen_model_answer.py`, `gen_judgment.py` in mode single, `common.py`, `show_result.py`;
arXiv:2306.05685): temperatures by category, 1,024 tokens an answer, reference answers in the prompts for math, reasoning and
coding, the `[[rating]]` of a verdict, ratings pooled over questions and turns, verdicts without one left out. One
repetition answers and judges everything once; repetitions differ in what is drawn (categories with a temperature) and in the
judge's own noise.

It departs from FastChat in five things. A model's thoughts are taken off its answers before the judge sees them, and a
judge's off its verdicts (`harness/numerics/thoughts.py`). Of several ratings in a verdict the last one counts, where FastChat
takes the first: a judge that reasons weighs some before it comes to its own. A conversation is rendered by the tokenizer's
own template instead of FastChat's copies of them (zephyr's begins there with an empty system message); a tokenizer that has
none gets the benchmark's template, and an empty line between the answer and the second turn. Answers are drawn from the whole
distribution, whatever top-k or top-p the checkpoint suggests. Each answer has random numbers of its own, seeded by the
repetition.

Questions, reference answers and judge prompts are FastChat's files, read from the user's copy: `DIR/mt_bench/question.jsonl`,
`reference_answer/gpt-4.jsonl`, `judge_prompts.jsonl`. (No data set of the hub holds all three in this form.)
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals import _judge
from evals._judge_server import Unavailable
from harness.core.config import JSON
from harness.core.errors import UsageError
from harness.core.evaluator import GenerationRequest, Sampling, Subject, evaluator
from harness.core.method import Setting
from harness.core.metric import Metric, Number, Plain, Rows
from harness.core.problem import Row, Task
from harness.data.rows import fingerprint, read_rows
from harness.numerics.thoughts import begins_thoughts, without_thoughts

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

VERSION = 2
"""2: thoughts are not judged, and the last rating of a verdict counts."""
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
MAX_TOKENS = 1024
"""Of an answer."""
TURNS = (1, 2)
NO_RATING = -1.0
"""What a verdict without a rating counts as (FastChat); it is left out of every mean."""
SCALE = (1.0, 10.0)
TABLE = "judgements"
MEAN = Metric(
    "mt_bench",
    title="MT-Bench",
    unit="rating",
    better="higher",
    about="how well 80 questions of two turns are answered, as a judge rates it",
    range=SCALE,
    cluster="question",
)
STANDARD_ERROR = Metric(
    "mt_bench_standard_error",
    title="MT-Bench, s.e.",
    unit="rating",
    better=None,
    about="by how much the mean rating would move if all were answered and judged again",
    statistic=Plain("it says how certain mt_bench is", compared=False),
)
METRICS = (
    MEAN,
    *(
        replace(
            MEAN,
            name=f"mt_bench_turn_{turn}",
            title=f"MT-Bench, turn {turn}",
            about=f"the mean rating of answers to turn {turn}",
            part=str(turn),
        )
        for turn in TURNS
    ),
    STANDARD_ERROR,
)

_FOLDER = "mt_bench"
_PROMPTS = {  # (turn, with reference) → its name in judge_prompts.jsonl
    (1, False): "single-v1",
    (2, False): "single-v1-multi-turn",
    (1, True): "single-math-v1",
    (2, True): "single-math-v1-multi-turn",
}


# ---------------------------------------------------------------- FastChat's files


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
            f"mt_bench reads FastChat's files: give --data-dir DIR (or HARNESS_DATA) with DIR/{_FOLDER}/question.jsonl, "
            "reference_answer/gpt-4.jsonl and judge_prompts.jsonl, from fastchat/llm_judge/data of lm-sys/FastChat."
        )
    asked = read_rows(_file(data_dir, "question.jsonl"), {"question_id": int, "category": str, "turns": list})
    answered = read_rows(_file(data_dir, "reference_answer/gpt-4.jsonl"), {"question_id": int})
    prompts = read_rows(_file(data_dir, "judge_prompts.jsonl"), {"name": str, "prompt_template": str})
    references = {row["question_id"]: _reference(row) for row in answered}
    questions: list[Question] = []
    seen: Counter[str] = Counter()
    for row in asked:
        question = _question(row, references)
        seen[question.category] += 1
        if limit is None or seen[question.category] <= limit:
            questions.append(question)
    if len({q.number for q in questions}) < len(questions):
        raise UsageError(f"{_FOLDER}/question.jsonl has a question_id twice.")
    named: dict[str, Row] = {str(row["name"]): row for row in prompts}
    for (turn, with_reference), name in _PROMPTS.items():
        if name not in named:
            raise UsageError(f"{_FOLDER}/judge_prompts.jsonl has no prompt called '{name}'.")
        example = Question(0, "", ("", ""), ("", "") if with_reference else None)
        judge_prompt(Files((), named, {}), example, turn, ("", ""))
    digests = {
        "questions": fingerprint(asked),
        "references": fingerprint(answered),
        "prompts": fingerprint([named[name] for name in _PROMPTS.values()]),
    }
    return Files(questions, named, digests)


def _file(data_dir: Path, name: str) -> Path:
    path = data_dir / _FOLDER / name
    if not path.is_file():
        raise UsageError(
            f"the data folder has no {_FOLDER}/{name} (looked in {data_dir}). Put the file of that name from "
            "fastchat/llm_judge/data of lm-sys/FastChat there."
        )
    return path


def _question(row: Mapping[str, Any], references: Mapping[Any, tuple[str, ...]]) -> Question:
    number, category, turns = row["question_id"], row["category"], row["turns"]
    if len(turns) != len(TURNS):
        raise UsageError(f"{_FOLDER}/question.jsonl: question {number} has {len(turns)} turns instead of {len(TURNS)}.")
    if category in WITH_REFERENCE and number not in references:
        raise UsageError(f"{_FOLDER}/reference_answer/gpt-4.jsonl has no answer to question {number} ({category}).")
    return Question(number, category, tuple(turns), references[number] if category in WITH_REFERENCE else None)


def _reference(row: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        turns = tuple(row["choices"][0]["turns"])
    except (TypeError, LookupError):
        turns = ()
    if len(turns) != len(TURNS) or not all(isinstance(turn, str) for turn in turns):
        raise UsageError(
            f"{_FOLDER}/reference_answer/gpt-4.jsonl: question {row['question_id']} has no choices[0].turns of two texts."
        )
    return turns


# ---------------------------------------------------------------- asking the model


def requests(task: Task, tokenizer: PreTrainedTokenizerBase) -> list[GenerationRequest]:
    """For every repetition and question the first answer, then the second; none where there is no judge."""
    judge = task.options.judge
    if judge is None:
        return []
    questions = read(task.options.data_dir, task.options.limit).questions
    return [_request(task, tokenizer, q, turn, n) for n in range(judge.repetitions) for q in questions for turn in TURNS]


def _request(
    task: Task, tokenizer: PreTrainedTokenizerBase, question: Question, turn: int, repetition: int
) -> GenerationRequest:
    sampling = Sampling(MAX_TOKENS, question.temperature, repetition if question.temperature else 0)
    if tokenizer.chat_template:
        return GenerationRequest(question.turns[:turn], sampling, chat=True)
    first, second = map(task.template.prompt, question.turns)
    return GenerationRequest((first, f"\n\n{second}")[:turn], sampling)


# ---------------------------------------------------------------- asking the judge


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
    told: dict[str, str] = {}
    if turn == 1:
        told |= {"question": question.turns[0], "answer": answers[0]}
    else:
        told |= {f"question_{k}": text for k, text in zip(TURNS, question.turns, strict=True)}
        told |= {f"answer_{k}": text for k, text in zip(TURNS, answers, strict=True)}
    if question.reference is not None:
        told |= {f"ref_answer_{k}": question.reference[k - 1] for k in TURNS[:turn]}
    prompt = files.prompts[name]
    try:
        user = str(prompt["prompt_template"]).format(**told)
    except (LookupError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{_FOLDER}/judge_prompts.jsonl: the template of '{name}' does not take the fields {', '.join(told)} ({error})."
        ) from None
    return _judge.Prompt(str(prompt.get("system_prompt") or ""), user, repetition)


_RATING = r"(\d{1,9}(?:\.\d{0,9})?)"
"""No more digits than any scale has: FastChat's own pattern takes for ever on a million of them."""


def ratings_of(verdict: str) -> list[float]:
    """Every `[[number]]` of what a verdict says after its thoughts; where there is none, every `[number]`."""
    said = without_thoughts(verdict)
    found = re.findall(rf"\[\[{_RATING}\]\]", said) or re.findall(rf"\[{_RATING}\]", said)
    return [float(number) for number in found]


def rating(verdict: str) -> float:
    """The last of a verdict's ratings, else −1 (FastChat's `common.py` takes the first)."""
    return (ratings_of(verdict) or [NO_RATING])[-1]


def _thinks_from_the_start(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template puts a model into its thoughts, so that its answers begin inside them."""
    from harness.numerics.conversations import conversation

    return bool(tokenizer.chat_template) and begins_thoughts(conversation(tokenizer, ["?"], []))


def _judged(subject: Subject, setting: Setting) -> pd.DataFrame:
    """One row for each repetition, question and turn.

    `judge_rating` (−1 if the verdict holds none, NaN if there are no verdicts), `judge_text`, `judge_model`; `judge_absent`
    says why there is no verdict on this answer, `judge_failure`, on every row, why the judge was given up; `only_thoughts`: no
    answer came after the thoughts.
    """
    import pandas as pd

    task, judge = subject.task, subject.task.options.judge
    assert judge is not None  # `measure` asks for no table without one
    files = read(task.options.data_dir, task.options.limit)
    rows: list[dict[str, Any]] = []
    prompts: list[_judge.Prompt] = []
    begun = _thinks_from_the_start(setting.tokenizer)
    for repetition in range(judge.repetitions):
        for question in files.questions:
            asked = [_request(task, setting.tokenizer, question, turn, repetition) for turn in TURNS]
            said = [subject.generations[request] for request in asked]
            answers = [without_thoughts(text, begun) for text in said]
            for turn in TURNS:
                prompts.append(judge_prompt(files, question, turn, answers, repetition))
                only_thoughts = bool(said[turn - 1].strip()) and not answers[turn - 1]
                about = {"task": _FOLDER, "row": len(rows), "cluster": str(question.number), "category": question.category}
                told = {"turn": turn, "repetition": repetition, "chat": asked[0].chat, "only_thoughts": only_thoughts}
                rows.append(about | told)
    try:
        verdicts, failure = _judge.verdicts(judge, prompts, setting.cache), ""
    except Unavailable as error:
        verdicts, failure = [], str(error)
        subject.unfinished.append(failure)
        _judge.log.warning("mt_bench is absent for this model: %s", failure)  # hours of unlearning may follow
    if absent := [verdict.absent for verdict in verdicts if verdict.absent]:
        subject.unfinished.append(f"{len(absent)} of {len(verdicts)} verdicts are missing: {absent[0]}")
        _judge.log.warning("mt_bench: %s", subject.unfinished[-1])
    given = pd.DataFrame(
        {
            "judge_rating": [rating(v.text) for v in verdicts] or [math.nan] * len(rows),
            "judge_text": [v.text for v in verdicts] or [""] * len(rows),
            "judge_model": [v.model for v in verdicts] or [""] * len(rows),
            "judge_absent": [v.absent for v in verdicts] or [""] * len(rows),
            "judge_failure": failure,
        }
    )
    return pd.concat([pd.DataFrame(rows), given], axis=1)


# ---------------------------------------------------------------- the numbers


def _basis(task: Task) -> dict[str, JSON]:
    judge = task.options.judge
    if judge is None:
        return {}
    digests = read(task.options.data_dir, task.options.limit).digests
    return {**_judge.identity(judge), "repetitions": judge.repetitions, **digests}


def _check(setting: Setting) -> None:
    if judge := setting.task.options.judge:
        _judge.check(judge)


@evaluator("mt_bench", version=VERSION, metrics=METRICS, requests=requests, before=_check, basis=_basis)
def measure(subject: Subject, metric: Metric) -> Rows | Number:
    """`mt_bench`, the mean rating; `mt_bench_turn_1`, `mt_bench_turn_2`; `mt_bench_standard_error` over repetitions."""
    judge = subject.task.options.judge
    if judge is None:
        raise LookupError("no judge was given: --judge openai:MODEL or vllm:MODEL, and FastChat's files by --data-dir")
    table = subject.table(TABLE, lambda setting: _judged(subject, setting))
    _rated(table)
    if metric is STANDARD_ERROR:
        return _standard_error(table)
    if metric.part:
        table = table[table["turn"] == int(metric.part)]
    rated = _rated(table)
    note = None if metric.part else _note(table, judge.name)
    return Rows(rated["judge_rating"].to_numpy(dtype=float), rated["cluster"].to_numpy(), note=note)


def _rated(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with a rating.

    Raises:
        LookupError: if the judge gave up, or none of its verdicts holds one; why.
    """
    if failure := next(iter(table["judge_failure"]), ""):
        raise LookupError(failure)
    rated = table[table["judge_rating"] != NO_RATING]
    if rated.empty:
        raise LookupError(f"none of the judge's {len(table)} verdicts holds a rating")
    return rated


def _standard_error(table: pd.DataFrame) -> Number:
    """By how much the mean of all repetitions would move if they were done again: s / √n of the repetitions' means."""
    means = _rated(table).groupby("repetition")["judge_rating"].mean().to_numpy(dtype=float)
    if len(means) < 2:
        raise LookupError("it takes two repetitions or more: --judge-repetitions")
    return Number(float(means.std(ddof=1) / math.sqrt(len(means))), len(means))


def _note(table: pd.DataFrame, judge: str) -> str:
    """Who judged, and what a reader could stumble over."""
    ratings = table["judge_rating"].to_numpy(dtype=float)
    without = int((ratings == NO_RATING).sum())
    outside = int(((ratings != NO_RATING) & ((ratings < SCALE[0]) | (ratings > SCALE[1]))).sum())
    told = [f"judged by {judge}, which answered as {', '.join(sorted(set(table['judge_model'])))}"]
    if (repetitions := table["repetition"].nunique()) > 1:
        told.append(f"{repetitions} repetitions")
    if without:
        missing = table.loc[table["judge_absent"] != "", "judge_absent"]
        why = f", {len(missing)} of them because there is no verdict ({missing.iloc[0]})" if len(missing) else ""
        told.append(f"{without} of {len(ratings)} verdicts hold no rating and are left out{why}")
    if several := sum(len(set(ratings_of(text))) > 1 for text in table["judge_text"]):
        told.append(f"{several} verdicts hold several different ratings: the last one counts")
    if unanswered := int(table["only_thoughts"].sum()):
        told.append(f"{unanswered} answers are thoughts that came to no end: the judge was shown an empty answer")
    if outside:
        told.append(f"{outside} ratings lie outside 1 to 10 and count as given")
    if not table["chat"].all():
        told.append("the tokenizer has no chat template: the benchmark's own was taken")
    return "; ".join(told)
