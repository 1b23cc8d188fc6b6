"""MT-Bench: what the model is asked, what the judge is shown, and what the verdicts come to."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evals import _judge, _judge_server, mt_bench
from evals._judge import Prompt, verdicts
from evals.mt_bench import answers, fastchat, judgements
from harness.core.config import to_json
from harness.core.errors import UsageError
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan
from harness.core.measurement import Absent, Measurement
from harness.core.method import UnlearningContext
from harness.core.options import Judge, Options
from harness.core.problem import Problem
from harness.models.recipes import Vocabulary
from harness.models.sources import save_checkpoint
from harness.numerics.generation import HFGenerator
from harness.running.measuring import measure, source_tables
from harness.running.run import execute
from harness.statistics.measurements import measurements
from harness.storage.cache import Cache
from harness.storage.identity import comparable
from tests.conftest import Bench, ContextMaker
from tests.judge_server import Answer, Asked, JudgeServer, judge_server

CATEGORIES = ["writing", "math", "humanities", "reasoning", "roleplay", "coding"]
QUESTIONS = [
    {"question_id": 81 + n, "category": category, "turns": [f"What is {category} ?", f"Why is it {category} ?"]}
    for n, category in enumerate(CATEGORIES)
]
REFERENCES = [
    {
        "question_id": q["question_id"],
        "choices": [{"index": 0, "turns": [f"one of {q['question_id']}", f"two of {q['question_id']}"]}],
    }
    for q in QUESTIONS
    if q["category"] in ("math", "reasoning", "coding")
]
PROMPTS = [
    {"name": "pair-v2", "system_prompt": "Compare.", "prompt_template": "{question} {answer_a} {answer_b}"},
    {"name": "single-v1", "system_prompt": "S1", "prompt_template": "Q: {question}\nA: {answer}"},
    {"name": "single-math-v1", "system_prompt": "M1", "prompt_template": "R: {ref_answer_1}\nQ: {question}\nA: {answer}"},
    {
        "name": "single-v1-multi-turn",
        "system_prompt": "S2",
        "prompt_template": "Q: {question_1}\nA: {answer_1}\nQ: {question_2}\nA: {answer_2}",
    },
    {
        "name": "single-math-v1-multi-turn",
        "system_prompt": "M2",
        "prompt_template": "R: {ref_answer_1} R: {ref_answer_2}\nQ: {question_1}\nA: {answer_1}\nQ: {question_2}\nA: {answer_2}",
    },
]
ANSWERS = ("A first one.", "A second one.")


def write(folder: Path, name: str, rows: Sequence[Any]) -> None:
    path = folder / "mt_bench" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    write(folder, "question.jsonl", QUESTIONS)
    write(folder, "reference_answer/gpt-4.jsonl", REFERENCES)
    write(folder, "judge_prompts.jsonl", PROMPTS)
    return folder


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MAX_TOKENS", 6)
    monkeypatch.setattr(_judge, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(_judge, "TRIES", 2)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-nobodys")


@pytest.fixture
def real() -> Path:
    folder = os.environ.get("HARNESS_DATA")
    if not folder or not (Path(folder) / "mt_bench").is_dir():
        pytest.skip("FastChat's files are needed: HARNESS_DATA names no folder with mt_bench/")
    return Path(folder)


# ---------------------------------------------------------------- FastChat's files


def question(number: int, data: Path) -> fastchat.Question:
    (found,) = (q for q in fastchat.read(data).questions if q.number == number)
    return found


def test_questions_come_with_references_where_the_judge_is_shown_them(data: Path):
    assert [q.number for q in fastchat.read(data).questions] == [81, 82, 83, 84, 85, 86]
    assert question(81, data).reference is None
    assert question(82, data).reference == ("one of 82", "two of 82")


def test_temperatures_are_fastchats():
    expected = {
        "writing": 0.7, "roleplay": 0.7, "extraction": 0, "math": 0, "coding": 0, "reasoning": 0, "stem": 0.1,
        "humanities": 0.1, "arena-hard-200": 0.7, "something new": 0.7,
    }  # fmt: skip
    assert {c: fastchat.Question(1, c, ("a", "b"), None).temperature for c in expected} == expected


def test_a_limit_holds_for_every_category(data: Path):
    write(data, "question.jsonl", [{**q, "question_id": q["question_id"] + more} for more in (0, 6) for q in QUESTIONS])
    write(
        data, "reference_answer/gpt-4.jsonl", [{**r, "question_id": r["question_id"] + m} for m in (0, 6) for r in REFERENCES]
    )
    assert len(fastchat.read(data).questions) == 12
    assert [q.number for q in fastchat.read(data, limit=1).questions] == [81, 82, 83, 84, 85, 86]


@pytest.mark.parametrize("name", ["question.jsonl", "reference_answer/gpt-4.jsonl", "judge_prompts.jsonl"])
def test_a_file_that_is_missing_is_named_with_where_to_get_it(data: Path, name: str):
    (data / "mt_bench" / name).unlink()
    with pytest.raises(UsageError, match=rf"the data folder has no mt_bench/{name} .* fastchat/llm_judge/data"):
        fastchat.read(data)


def test_without_a_data_folder_it_says_what_belongs_there():
    with pytest.raises(UsageError, match=r"give --data-dir DIR \(or HARNESS_DATA\) with DIR/mt_bench/question\.jsonl"):
        fastchat.read(None)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("question.jsonl", [], "question.jsonl is empty"),
        ("question.jsonl", [{**QUESTIONS[0], "turns": ["only one"]}], "question 81 has 1 turns instead of 2"),
        ("question.jsonl", [{**QUESTIONS[0], "turns": ["", "b"]}], "line 1: the field 'turns' must hold non-empty strings"),
        ("question.jsonl", [{"category": "math", "turns": ["a", "b"]}], "line 1: the field 'question_id' is missing"),
        ("question.jsonl", [QUESTIONS[0], QUESTIONS[0]], "has a question_id twice"),
        ("reference_answer/gpt-4.jsonl", REFERENCES[1:], r"has no answer to question 82 \(math\)"),
        ("reference_answer/gpt-4.jsonl", [{"question_id": 82, "choices": []}], r"question 82 has no choices\[0\]\.turns"),
        ("reference_answer/gpt-4.jsonl", [{"question_id": 82, "choices": [{"turns": ["a"]}]}], "of two texts"),
        ("judge_prompts.jsonl", PROMPTS[:-1], "has no prompt called 'single-math-v1-multi-turn'"),
        (
            "judge_prompts.jsonl",
            [*PROMPTS, {"name": "single-v1", "prompt_template": "{question} {reply}"}],
            r"the template of 'single-v1' does not take the fields question, answer \('reply'\)",
        ),
        ("judge_prompts.jsonl", [*PROMPTS, {"name": "single-v1", "prompt_template": "{"}], "does not take the fields"),
    ],
)
def test_a_malformed_file_is_refused_in_one_sentence(data: Path, name: str, rows: Sequence[Any], message: str):
    write(data, name, rows)
    with pytest.raises(UsageError, match=message):
        fastchat.read(data)


def test_a_line_that_is_no_json_is_named(data: Path):
    path = data / "mt_bench" / "question.jsonl"
    path.write_text(path.read_text() + "{oops\n")
    with pytest.raises(UsageError, match=r"mt_bench/question.jsonl, line 7: not valid JSON"):
        fastchat.read(data)


# ---------------------------------------------------------------- what the judge is shown


def test_a_question_without_reference(data: Path):
    files = fastchat.read(data)
    asked = question(81, data)
    assert fastchat.judge_prompt(files, asked, 1, ANSWERS) == Prompt("S1", "Q: What is writing ?\nA: A first one.")
    assert fastchat.judge_prompt(files, asked, 2, ANSWERS) == Prompt(
        "S2", "Q: What is writing ?\nA: A first one.\nQ: Why is it writing ?\nA: A second one."
    )


def test_a_question_of_mathematics_with_its_reference(data: Path):
    files = fastchat.read(data)
    asked = question(82, data)
    assert fastchat.judge_prompt(files, asked, 1, ANSWERS, 3) == Prompt(
        "M1", "R: one of 82\nQ: What is math ?\nA: A first one.", 3
    )
    assert fastchat.judge_prompt(files, asked, 2, ANSWERS) == Prompt(
        "M2",
        "R: one of 82 R: two of 82\nQ: What is math ?\nA: A first one.\nQ: Why is it math ?\nA: A second one.",
    )


def test_braces_in_an_answer_stay_as_they_are(data: Path):
    prompt = fastchat.judge_prompt(fastchat.read(data), question(81, data), 1, ("{question} {0} }{", ""))
    assert prompt.user.endswith("A: {question} {0} }{")


def test_the_real_files_have_eighty_questions_thirty_of_them_with_references(real: Path):
    files = fastchat.read(real)
    assert [q.number for q in files.questions] == list(range(81, 161))
    with_reference = [q for q in files.questions if q.reference]
    assert {q.category for q in with_reference} == {"math", "reasoning", "coding"}
    assert len(with_reference) == 30
    assert {q.category: q.temperature for q in files.questions} == fastchat.TEMPERATURES


def test_the_real_prompts_hold_all_that_the_judge_needs_and_nothing_unfilled(real: Path):
    files = fastchat.read(real)
    for asked in files.questions:
        one, two = (fastchat.judge_prompt(files, asked, turn, ANSWERS) for turn in (1, 2))
        assert asked.turns[0] in one.user
        assert asked.turns[1] not in one.user
        assert ANSWERS[0] in one.user
        assert all(text in two.user for text in (*asked.turns, *ANSWERS))
        # The rating's form is asked for once: in the question itself for the first turn, in the system message for the second.
        assert ("[[rating]]" in one.user, "[[rating]]" in two.system) == (True, True)
        for reference, prompt in zip(asked.reference or (), (one, two), strict=False):
            assert reference in prompt.user
        if asked.reference is None:
            assert "Reference Answer" not in one.user + two.user
        else:
            assert asked.reference[1] not in one.user or asked.reference[1] in asked.reference[0]


# ---------------------------------------------------------------- reading verdicts


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        ("Rating: [[7]]", 7),
        ("Rating: [[7.5]]", 7.5),
        ("Rating: [[10]]", 10),
        ("Rating: [[7.]]", 7),
        ("Not [[3]], I give [[9]].", 9),
        ("[[3]] … [[7]] … [[5]]", 5),
        ("<think>[[3]] or [[4]]</think> Rating: [[7]]", 7),
        ("Perhaps [[3]]</think>Rating: [[7]]", 7),
        ("<think>Perhaps [[3]]", -1),
        ("[5] then [[8]]", 8),
        ("[[8]] then [5]", 8),
        ("Rating: [6]", 6),
        ("[2] or [4]", 4),
        ("Rating: [[07]]", 7),
        ("Rating: [[8/10]]", -1),
        ("Rating: [[ 8 ]]", -1),
        ("Rating: [[-8]]", -1),
        ("Rating: [[rating]]", -1),
        ("Rating: 8", -1),
        ("[[" + "9" * 5000 + "]]", -1),
        ("[[1." + "9" * 5000 + "]]", -1),
        ("[[" + "9" * 1_000_000, -1),
        ("[[" * 500_000, -1),
        ("", -1),
    ],
)
def test_a_verdicts_last_rating_is_read(verdict: str, expected: float):
    assert judgements.rating(verdict) == expected


# ---------------------------------------------------------------- what the model is asked


@pytest.fixture
def plan(nano_problem: Problem, data: Path) -> EvalPlan:
    judge = Judge("openai", "gpt-4", "http://127.0.0.1:9/v1")
    return EvalPlan(nano_problem, [EVALUATORS.get("mt_bench")], data_dir=data, judge=judge)


def asked_by(plan: EvalPlan, server: JudgeServer, **changes: Any) -> EvalPlan:
    assert plan.judge
    return replace(plan, judge=replace(plan.judge, url=server.url, **changes))


def test_every_question_is_answered_twice_and_its_second_turn_follows_the_first(plan: EvalPlan, make_context: ContextMaker):
    tokenizer = make_context().tokenizer
    requests = mt_bench.requests(plan, tokenizer)
    assert len(requests) == 12
    assert [r.turns for r in requests[:2]] == [
        ("What is writing ?",),
        ("What is writing ?", "\n\nWhy is it writing ?"),
    ]
    assert not any(r.chat for r in requests), "this tokenizer has no chat template"
    assert [r.sampling.temperature for r in requests[::2]] == [0.7, 0, 0.1, 0, 0.7, 0]
    assert requests[0].sampling.max_tokens == answers.MAX_TOKENS


def test_a_tokenizer_with_a_chat_template_gets_plain_messages(plan: EvalPlan, make_context: ContextMaker):
    tokenizer = copy.copy(make_context().tokenizer)
    tokenizer.chat_template = "{{ messages }}"
    assert [(r.turns, r.chat) for r in mt_bench.requests(plan, tokenizer)[2:4]] == [
        (("What is math ?",), True),
        (("What is math ?", "Why is it math ?"), True),
    ]


def test_repetitions_draw_anew_and_share_what_is_greedy(plan: EvalPlan, make_context: ContextMaker):
    assert plan.judge
    several = replace(plan, judge=replace(plan.judge, repetitions=3))
    requests = mt_bench.requests(several, make_context().tokenizer)
    assert len(requests) == 36
    drawn = [r for r in requests if r.sampling.temperature > 0]
    assert [r.sampling.seed for r in drawn] == [0] * 6 + [1] * 6 + [2] * 6
    assert len(set(requests)) == 3 * 6 + 6


def test_without_a_judge_nothing_is_asked_and_the_reason_is_told(nano_problem: Problem, make_context: ContextMaker):
    context = make_context()
    assert mt_bench.requests(EvalPlan(nano_problem), context.tokenizer) == []
    found = measurements(EVALUATORS.get("mt_bench"), EvalContext(context, EvalPlan(nano_problem), ()))
    assert [item.metric for item in found] == [metric.name for metric in mt_bench.METRICS]
    assert all(isinstance(item, Absent) and "no judge was given: --judge" in item.reason for item in found)
    assert EVALUATORS.get("mt_bench").evaluator_inputs(EvalPlan(nano_problem)) == {}


# ---------------------------------------------------------------- the numbers

Verdicts = Callable[[int, Asked], Answer]


def by_turn(number: int, asked: Asked) -> Answer:
    """8 for first turns, 4 for second ones."""
    return Answer("[[8]]" if asked.body["messages"][0]["content"].endswith("1") else "[[4]]")


@pytest.fixture
def judged(plan: EvalPlan, make_context: ContextMaker) -> Callable[..., tuple[dict[str, Any], EvalContext]]:
    """Measures a nano model with a judge that answers so; (metric → what was measured, what it saw)."""

    def of(verdicts: Verdicts, context: UnlearningContext | None = None, **changes: Any) -> tuple[dict[str, Any], EvalContext]:
        with judge_server(verdicts) as server:
            found, eval_context = graded(asked_by(plan, server, **changes), context or make_context())
        eval_context.tables["asked"] = server.asked  # type: ignore[assignment]
        return found, eval_context

    return of


def graded(plan: EvalPlan, context: UnlearningContext) -> tuple[dict[str, Any], EvalContext]:
    eval_context = EvalContext(context, plan, ())
    found = measure(eval_context, "a test", HFGenerator(), "weights")
    return {item.metric: item for item in found}, eval_context


def test_the_mean_is_over_questions_and_turns(judged: Any):
    found, context = judged(by_turn)
    assert {name: found[name].value for name in (metric.name for metric in mt_bench.METRICS[:3])} == {
        "mt_bench": 6,
        "mt_bench_turn_1": 8,
        "mt_bench_turn_2": 4,
    }
    assert (found["mt_bench"].n, found["mt_bench_turn_1"].n) == (12, 6)
    assert found["mt_bench"].interval_95 == (6, 6), "every question has the same mean"
    assert found["mt_bench"].resampled == "question"
    assert found["mt_bench"].note == (
        "judged by openai:gpt-4, which answered as gpt-4-0613; the tokenizer has no chat template: the benchmark's own was taken"
    )
    assert isinstance(found["mt_bench_standard_error"], Absent)
    assert len(context.tables["asked"]) == 12


def test_the_judge_sees_the_models_answers_and_the_second_turn_holds_the_first(judged: Any):
    _, context = judged(by_turn)
    requests = mt_bench.requests(context.plan, context.tokenizer)
    first, second = (context.generations[r] for r in requests[:2])
    assert first != second
    shown = {asked.user for asked in context.tables["asked"]}
    assert f"Q: What is writing ?\nA: {first}" in shown
    assert f"Q: What is writing ?\nA: {first}\nQ: Why is it writing ?\nA: {second}" in shown


def test_verdicts_without_a_rating_are_left_out_and_told(judged: Any):
    found, context = judged(lambda number, asked: Answer("No idea.") if "humanities" in asked.user else by_turn(number, asked))
    assert found["mt_bench"].value == 6
    assert found["mt_bench"].n == 10
    assert "2 of 12 verdicts hold no rating and are left out" in found["mt_bench"].note
    assert sorted(context.tables["judgements"]["judge_rating"])[:3] == [-1, -1, 4]


def test_ratings_off_the_scale_count_as_given_and_are_told(judged: Any):
    found, _ = judged(lambda number, asked: Answer("[[85]]"))
    assert found["mt_bench"].value == 85
    assert found["mt_bench"].range is None
    assert "12 ratings lie outside 1 to 10" in found["mt_bench"].note


def test_several_ratings_in_one_verdict_are_told(judged: Any):
    found, _ = judged(lambda number, asked: Answer("[[3]] or rather [[9]]" if "coding" in asked.user else "[[9]], yes, [[9]]"))
    assert found["mt_bench"].value == 9
    assert "2 verdicts hold several different ratings: the last one counts" in found["mt_bench"].note


def test_an_answer_that_gets_no_verdict_is_left_out_told_and_not_kept(judged: Any, caplog: pytest.LogCaptureFixture):
    body = json.dumps({"choices": [{"finish_reason": "length", "message": {"content": None}}]})
    found, context = judged(lambda number, asked: Answer(body=body) if "humanities" in asked.user else by_turn(number, asked))
    assert (found["mt_bench"].value, found["mt_bench"].n) == (6, 10)
    missing = "2 of 12 verdicts are missing: it gave no text (finish reason length)"
    assert context.unfinished == [missing], "so that a reference model's table is not kept"
    assert f"mt_bench: {missing}" in caplog.text
    assert (
        "2 of 12 verdicts hold no rating and are left out, 2 of them because there is no verdict "
        "(it gave no text (finish reason length))" in found["mt_bench"].note
    )


def thinking(monkeypatch: pytest.MonkeyPatch, say: Callable[[str], str]) -> None:
    """Models say something else than they say."""
    generate = HFGenerator.generate

    def changed(self: HFGenerator, model: Any, tokenizer: Any, requests: Any) -> list[str]:
        return [say(text) for text in generate(self, model, tokenizer, requests)]

    monkeypatch.setattr(HFGenerator, "generate", changed)


def test_a_models_thoughts_do_not_go_to_the_judge(judged: Any, monkeypatch: pytest.MonkeyPatch):
    thinking(monkeypatch, lambda text: f"<think>secretly {text}</think>\n{text}")
    found, context = judged(by_turn)
    shown = [asked.user for asked in context.tables["asked"]]
    assert len(shown) == 12
    assert not [user for user in shown if "secretly" in user or "think>" in user]
    request = mt_bench.requests(context.plan, context.tokenizer)[0]
    said = context.generations[request].partition("</think>")[2].strip()
    assert f"Q: What is writing ?\nA: {said}" in shown
    assert "secretly" in context.generations[request], "the record holds what was said"
    assert "thoughts" not in found["mt_bench"].note


def test_thoughts_that_come_to_no_end_are_an_empty_answer_and_told(judged: Any, monkeypatch: pytest.MonkeyPatch):
    thinking(monkeypatch, lambda text: f"<think>secretly {text}")
    found, context = judged(by_turn)
    assert "Q: What is writing ?\nA: " in {asked.user for asked in context.tables["asked"]}
    assert "12 answers are thoughts that came to no end: the judge was shown an empty answer" in found["mt_bench"].note


@pytest.mark.parametrize(("ending", "begun"), [("<|assistant|>", False), ("<|assistant|><think>\n", True)])
def test_a_template_that_begins_the_thoughts_is_seen(make_context: ContextMaker, ending: str, begun: bool):
    tokenizer = copy.deepcopy(make_context().tokenizer)
    assert not answers.thinks_from_the_start(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}" + ending
    assert answers.thinks_from_the_start(tokenizer) is begun


def test_whether_a_template_begins_the_thoughts_is_asked_as_answers_are(make_context: ContextMaker):
    tokenizer = copy.deepcopy(make_context().tokenizer)
    tokenizer.chat_template = "{% if date_string == '10 Apr 2025' %}<think>{% endif %}"
    assert answers.thinks_from_the_start(tokenizer)
    tokenizer.chat_template = "{{ raise_exception('not with me') }}"
    with pytest.raises(UsageError, match="takes no conversation of one turn: not with me"):
        answers.thinks_from_the_start(tokenizer)


def test_a_judge_that_never_rates_leaves_no_number(judged: Any):
    found, context = judged(lambda number, asked: Answer("Lovely."))
    assert all(
        isinstance(item, Absent) and item.reason == "none of the judge's 12 verdicts holds a rating" for item in found.values()
    )
    assert not context.unfinished, "that will not pass"


def test_a_judge_that_fails_leaves_the_reason_and_no_number(judged: Any, caplog: pytest.LogCaptureFixture):
    found, context = judged(lambda number, asked: Answer(status=500))
    reason = "the judge openai:gpt-4 gave no verdict in 2 tries: HTTP 500"
    assert [item.reason for item in found.values()] == [reason] * 4
    assert context.unfinished == [reason]
    assert f"mt_bench is absent for this model: {reason}" in caplog.text, "said at once"
    again = measurements(
        EVALUATORS.get("mt_bench"), EvalContext(None, context.plan, (), {"judgements": context.tables["judgements"]})
    )
    assert again == list(found.values()), "the reason is in the table"


def test_the_standard_error_is_that_of_the_repetitions_means(judged: Any):
    # The prompts of one repetition come in one block, but at the same time: tell them apart by what they are, not when.
    given: dict[str, int] = {}

    def rising(number: int, asked: Asked) -> Answer:
        given[asked.user] = given.get(asked.user, 0) + 1
        return Answer(f"[[{2 * given[asked.user]}]]" if "coding" in asked.user else "[[5]]")

    found, context = judged(rising, repetitions=3)
    table = context.tables["judgements"]
    means = table.groupby("repetition")["judge_rating"].mean()
    assert found["mt_bench"].n == 36
    assert found["mt_bench"].value == pytest.approx(means.mean())
    error = found["mt_bench_standard_error"]
    assert error.value == pytest.approx(means.std(ddof=1) / math.sqrt(3))
    assert error.value > 0, "greedy answers are judged anew in every repetition"
    assert error.n == 3
    assert "3 repetitions" in found["mt_bench"].note


def test_the_same_model_is_judged_once(judged: Any, make_context: ContextMaker):
    context = make_context()
    first, _ = judged(by_turn, context)
    again, eval_context = judged(lambda number, asked: Answer(status=500), context)
    assert again == first
    assert eval_context.tables["asked"] == []


def test_numbers_stand_beside_those_of_the_retrained_models(judged: Any, nano_problem: Problem):
    from harness.core.evaluator import Reference

    _, low = judged(lambda number, asked: Answer("[[2]]"))
    found, context = judged(by_turn)
    references = [Reference(f"retain-{n}", {"judgements": s.tables["judgements"]}) for n, s in enumerate((low, context))]
    (mean, turn_1, *_) = measurements(
        EVALUATORS.get("mt_bench"),
        EvalContext(None, context.plan, references, {"judgements": context.tables["judgements"]}),
    )
    assert isinstance(mean, Measurement)
    assert (mean.reference, mean.across_references, mean.floor) == (2, (2, 6), 4)
    assert (turn_1.reference, turn_1.across_references) == (2, (2, 8))
    assert found["mt_bench"].reference is None


# ---------------------------------------------------------------- whole runs


def one_step(context: UnlearningContext, config: Any) -> Iterator[Any]:
    import torch

    from harness.core.method import Progress

    with torch.no_grad():
        context.model.lm_head.weight.mul_(0.5)
    yield Progress(1, measure_here=True, total=1)


def planned(bench: Bench, data: Path, server: JudgeServer, evaluators: Sequence[str] = ("mt_bench",), **changes: Any) -> Any:
    judge = Judge("openai", "gpt-4", server.url, **changes)
    return bench.plan(one_step, options=Options(data_dir=data, evals=tuple(evaluators), judge=judge))


def test_a_judged_run_is_recorded_with_the_judge_and_without_key_or_address(bench: Bench, data: Path):
    with judge_server(by_turn) as server:
        todo = planned(bench, data, server)
        result = execute(todo, bench.store, bench.cache)
        asked = len(server.asked)
        assert 12 < asked <= 3 * 12, "the model before, the retrained one, and the point"
        assert asked == len({one.user for one in server.asked}), "models that say the same are judged once"
        execute(todo, bench.store, bench.cache, force=True)
        assert len(server.asked) == asked, "a second run asks nothing"
    assert result.spec.evaluator_inputs["mt_bench"]["judge"] == "openai:gpt-4"
    assert "--judge openai:gpt-4" in todo.command
    assert {arm: found[0].value for arm, found in result.references.items()} == {"untouched": 6, "retrained": 6}
    assert result.points[0].measurements[0].reference == 6
    folder = bench.store.runs_folder / todo.spec.folder
    told = "".join(file.read_text() for file in folder.glob("*.json*"))
    assert "gpt-4-0613" in told
    assert "sk-nobodys" not in told
    assert "127.0.0.1" not in told
    rows = bench.store.rows(todo.spec, 0)
    assert set(rows["judge_text"]) == {"[[8]]", "[[4]]"}


def test_a_run_goes_on_when_its_judge_fails_and_is_judged_when_it_is_back(bench: Bench, data: Path):
    with judge_server(lambda number, asked: Answer(status=500)) as server:
        todo = planned(bench, data, server, ["probability", "mt_bench"])
        result = execute(todo, bench.store, bench.cache)
    assert result.status == "done"
    kinds = [type(item).__name__ for item in result.points[0].measurements]
    assert kinds == ["Measurement"] * 4 + ["Absent"] * 4
    assert "HTTP 500" in result.points[0].measurements[-1].reason
    assert "HTTP 500" in result.references["untouched"][-1].reason
    with judge_server(by_turn) as server:
        again = execute(planned(bench, data, server, ["probability", "mt_bench"]), bench.store, bench.cache, force=True)
    assert again.points[0].measurements[4].value == 6
    assert again.references["untouched"][4].value == 6, "what had failed was not kept"


def test_a_refused_key_ends_the_run_in_one_sentence_and_leaves_no_record(bench: Bench, data: Path):
    with judge_server(lambda number, asked: Answer(status=401)) as server:
        todo = planned(bench, data, server)
        with pytest.raises(UsageError, match="refuses the key in OPENAI_API_KEY"):
            execute(todo, bench.store, bench.cache)
    assert bench.store.find(todo.spec) is None


def test_a_run_without_a_key_is_refused_before_anything_is_generated(bench: Bench, data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setattr(HFGenerator, "generate", lambda *_: pytest.fail("answers were generated"))
    todo = bench.plan(one_step, options=Options(data_dir=data, evals=("mt_bench",), judge=Judge("openai", "gpt-4")))
    with pytest.raises(UsageError, match="needs a key"):
        execute(todo, bench.store, bench.cache)


def test_the_judge_names_a_run_only_where_it_decides_numbers(bench: Bench, data: Path):
    judge = Judge("openai", "gpt-4")

    def spec(**options: Any) -> Any:
        return bench.plan(one_step, options=Options(data_dir=data, **options)).spec

    assert spec(judge=judge).run_id == spec().run_id, "none of the evaluators asks a judge"
    assert spec(judge=judge).evaluator_inputs == {}
    plain, judged = spec(evals=("mt_bench",)), spec(evals=("mt_bench",), judge=judge)
    assert plain.evaluator_inputs == {}
    assert len({s.run_id for s in (plain, judged)}) == 2
    assert spec(evals=("mt_bench",), judge=replace(judge, url="http://elsewhere/v1")).run_id == judged.run_id
    assert spec(evals=("mt_bench",), judge=replace(judge, model="gpt-5")).run_id != judged.run_id
    assert spec(evals=("mt_bench",), judge=replace(judge, repetitions=5)).run_id != judged.run_id
    assert comparable(judged) != comparable(plain)
    write(data, "question.jsonl", QUESTIONS[:5])
    assert spec(evals=("mt_bench",), judge=judge).run_id != judged.run_id
    assert "elsewhere" not in json.dumps(to_json(judged))


def test_missing_questions_are_told_when_the_run_is_planned(bench: Bench, tmp_path: Path):
    options = Options(data_dir=tmp_path, evals=("mt_bench",), judge=Judge("openai", "gpt-4"))
    with pytest.raises(UsageError, match=r"has no mt_bench/question.jsonl"):
        bench.plan(one_step, options=options)


def test_tables_of_a_source_are_kept_by_judge(bench: Bench, plan: EvalPlan):
    with judge_server(by_turn) as server:
        for model in ("gpt-4", "gpt-5", "gpt-4"):
            asked = asked_by(replace(plan, of=bench.base), server, model=model)
            tables = source_tables(bench.base.sources["base"], asked, Options(), bench.cache, HFGenerator()).tables
            assert set(tables["judgements"]["judge_model"]) == {f"{model}-0613"}
        assert len(server.asked) == 24


# ---------------------------------------------------------------- a real server

FOLLOWS = {"S1": "[[7]]", "S2": "[[7]]", "M1": "hm", "M2": "hm", "[[7]]": "<eos>", "hm": "<eos>"}


def save_judge(folder: Path) -> None:
    """A Llama whose every token decides the next: 7 after the system messages of plain questions, no rating after others."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = Vocabulary("words", tuple(FOLLOWS)).build()
    tokenizer.chat_template = "{{ messages[1]['content'] }} {{ messages[0]['content'] }}"
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.zero_()
        for i, (word, following) in enumerate(FOLLOWS.items()):
            model.model.embed_tokens.weight[tokenizer(word)["input_ids"], i] = 1
            model.lm_head.weight[tokenizer(following)["input_ids"], i] = 1
    save_checkpoint(model, tokenizer, folder, {})


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Judge, str]]:
    """That judge, and the address at which vLLM serves it: one server for all tests, since a start takes minutes."""
    pytest.importorskip("vllm", reason="vllm is not installed")
    judge = Judge("vllm", str(tmp_path_factory.mktemp("judges") / "judge"))
    save_judge(Path(judge.model))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        with _judge_server.address(judge) as url:
            yield judge, url


@pytest.mark.vllm
def test_a_model_served_by_vllm_judges(local: tuple[Judge, str], cache: Cache, monkeypatch: pytest.MonkeyPatch):
    """For vLLM's CPU build as well as for a GPU."""
    judge, url = local
    _judge.check(judge)
    monkeypatch.setattr(_judge, "address", lambda asked: nullcontext(url))
    found = verdicts(judge, [Prompt("S1", "Who is it?"), Prompt("M1", "Who is it?")], cache)
    assert [(v.text.strip(), v.model) for v in found] == [("[[7]]", "vllm:judge"), ("hm", "vllm:judge")]
    monkeypatch.setattr(_judge, "address", None)
    assert verdicts(judge, [Prompt("S1", "Who is it?")], cache) == found[:1], "from the cache, without a server"


@pytest.mark.vllm
def test_vllms_server_judges_answers_at_its_address(local: tuple[Judge, str], plan: EvalPlan, make_context: ContextMaker):
    """As any OpenAI-compatible server does."""
    judge, url = local
    server = JudgeServer(url, [])
    found, context = graded(asked_by(plan, server, model=judge.name), make_context())
    with pytest.raises(UsageError, match=r"does not know nobody"):
        graded(asked_by(plan, server, model="nobody"), make_context())
    assert {name: (found[name].value, found[name].n) for name in (metric.name for metric in mt_bench.METRICS[:3])} == {
        "mt_bench": (7, 6),
        "mt_bench_turn_1": (7, 3),
        "mt_bench_turn_2": (7, 3),
    }
    assert "answered as vllm:judge; 6 of 12 verdicts hold no rating and are left out" in found["mt_bench"].note
    table = context.tables["judgements"]
    assert set(table["judge_model"]) == {"vllm:judge"}
    assert table["judge_text"].str.strip().groupby(table["category"]).agg(set).to_dict() == {
        category: {"hm" if category in fastchat.WITH_REFERENCE else "[[7]]"} for category in CATEGORIES
    }
