"""Thoughts are taken off, answers stay whole."""

from __future__ import annotations

import time

import pytest

from harness.numerics.thoughts import MARKS, begins_thoughts, without_thoughts


@pytest.mark.parametrize("marks", MARKS, ids=lambda marks: marks.begin)
def test_thoughts_at_the_beginning_are_taken_off(marks):
    assert without_thoughts(f"\n{marks.begin}\nMaybe 3.\n{marks.end}\n\nIt is 7.\n") == "It is 7."


@pytest.mark.parametrize("marks", [m for m in MARKS if not m.only_both], ids=lambda marks: marks.begin)
def test_thoughts_without_an_end_leave_nothing(marks):
    assert without_thoughts(f"{marks.begin}Maybe 3. It is 7.") == ""


@pytest.mark.parametrize("marks", [m for m in MARKS if not m.only_both], ids=lambda marks: marks.begin)
def test_thoughts_that_began_in_the_prompt_are_taken_off(marks):
    assert begins_thoughts(f"<|assistant|>{marks.begin}\n")
    assert without_thoughts(f"Maybe 3.{marks.end}It is 7.") == "It is 7."
    assert without_thoughts(f"Maybe 3.{marks.end}It is 7.", begun=True) == "It is 7."
    assert without_thoughts("Maybe 3. It is 7.", begun=True) == ""


def test_thoughts_may_come_again():
    assert without_thoughts("<think>3?</think><think>7?</think> It is 7.") == "It is 7."


@pytest.mark.parametrize(
    "answer",
    [
        "It is 7.",
        "",
        "Write <think> before your thoughts.",
        "Models write <think> and </think> around their thoughts.",
        "An analysis of it.",
        "analysis of variance compares means",
        "Here is my thought process: I add them. It is 7.",
        "Here is my response: 7.",
        "x < 3 and <b>bold</b>",
    ],
)
def test_an_answer_stays_as_it_is(answer: str):
    assert without_thoughts(answer) == answer


def test_gpt_oss_without_its_special_tokens():
    assert without_thoughts("analysisWe need a number.assistantfinalIt is 7.") == "It is 7."


@pytest.mark.parametrize("prompt", ["", "Who is it?", "<think> is a mark", "Thinking:"])
def test_other_prompts_begin_no_thoughts(prompt: str):
    assert not begins_thoughts(prompt)


def test_a_long_text_of_marks_takes_no_time():
    started = time.process_time()
    assert without_thoughts("<think></think>" * 70_000 + "7") == "7"
    assert without_thoughts("<think>" * 100_000) == ""
    assert time.process_time() - started < 20
