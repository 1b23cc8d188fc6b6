"""The four dialogue sets: prompts, tidied turns and word F1 on made dialogues, and replies of a tiny GPT-Neo beside `generate`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals._answer_words import token_f1, words
from evals.dialogue import REPLY, SETS, Dialogues, prompt, read_sets, reply, tidied
from harness.core.costs import Costs
from harness.core.errors import UsageError
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan
from harness.core.measurement import Absent, Measurement
from harness.core.method import UnlearningContext
from harness.core.problem import Problem
from harness.numerics.generation import HFGenerator, generate_all
from harness.statistics.measurements import measurements
from harness.storage.cache import Cache
from tests.conftest import ContextMaker
from tests.perf.extraction import taught

EVALUATOR = EVALUATORS.get("dialogue")
DIALOGUES = [
    ["I like tea .", "me too , do you take milk ?", "no ! just tea"],
    ["my dog ran off yesterday", "oh no, where did it go?", "i don 't know", "Did you look in the park"],
    ["hello", "Hello there."],
    ["who sings this song ?", "ann does i think", "i'm not sure", "she is great", "yes she is"],
    ["do you cook", "i do, and i love soup"],
]


def written(folder: Path, name: str, dialogues: Sequence[Any]) -> Path:
    path = folder / "tdec" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"text": {str(number): turns for number, turns in enumerate(dialogues)}}), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with all four sets."""
    for number, name in enumerate(SETS):
        written(tmp_path / "data", name, DIALOGUES[number:] + DIALOGUES[:number])
    return tmp_path / "data"


# ---------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ("", ""),
        ("hello", "Hello."),
        ("HELLO there . how are YOU ? fine", "Hello there. How are you? Fine."),
        ("i know i 'm late", "I know I'm late."),
        ("he said 'no'", "He said'no'"),
        ("so what (nothing)", "So what (nothing)"),
        ("wait , what! now", "Wait, what! Now."),
        ("3.5 cups", "3.5 cups."),
    ],
)
def test_turns_are_tidied_as_parlai_does_it(turn: str, expected: str):
    assert tidied(turn) == expected


def test_a_turn_that_begins_with_a_blank_begins_with_a_small_letter_unless_corrected():
    assert tidied(" so it is\nfine") == "so it is\nfine."
    assert tidied(" so it is\nfine", corrected=True) == "So it is fine."


def test_a_prompt_names_who_is_next():
    assert prompt(["hello", "hi , who is it ?"]) == "User 1: Hello.\nUser 2: Hi, who is it?\nUser 1:"
    assert prompt(["hello"]) == "User 1: Hello.\nUser 2:"


def test_a_reply_ends_where_the_next_speaker_begins():
    assert reply("Tea.\nUser 2: No.\nUser 1: So.") == "Tea."
    assert reply("User 2: No.") == ""
    assert reply("The User 2") == "The User 2"


def test_words_are_compared_without_case_punctuation_and_articles():
    assert words("A theatre, an apple; the cat's!") == ["theatre", "apple", "cats"]
    assert token_f1("The tea", "tea!") == 1
    assert token_f1("", "tea") == token_f1("tea", "") == token_f1("the", "the") == 0


def test_f1_is_by_hand():
    said, true = ["red", "red", "house", "now"], ["red", "house", "house", "is", "red"]
    shared = (Counter(said) & Counter(true)).total()
    precision, recall = shared / len(said), shared / len(true)
    assert token_f1(" ".join(said), " ".join(true)) == pytest.approx(2 * precision * recall / (precision + recall))


# ---------------------------------------------------------------- files


def test_files_are_read_as_they_are_published(data: Path):
    sets = read_sets(data)
    assert all(isinstance(of, Dialogues) for of in sets.values())
    assert sets["wizard_of_wikipedia"].turns == DIALOGUES  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "holds no dialogues"),
        ('{"text": {}}', "holds no dialogues"),
        ('{"turns": {"0": ["a", "b"]}}', "holds no dialogues"),
        ('{"text": {"0": ["a", "b"], "7": ["alone"]}}', "dialogue 7: it must be a list of two turns or more"),
        ('{"text": {"0": "a, b"}}', "dialogue 0: it must be a list"),
        ('{"text": {"0": ["a", ""]}}', "each a text that is not empty"),
        ('{"text": {"0": ["a", null]}}', "each a text that is not empty"),
        ('{"text": ', r"blended_skill_talk\.json.*JSON"),
    ],
)
def test_a_broken_file_is_refused_in_a_sentence(content: str, says: str, tmp_path: Path):
    written(tmp_path, "blended_skill_talk", []).write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=says):
        read_sets(tmp_path)


# ---------------------------------------------------------------- replies


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-Neo that has begun to learn the dialogues, with a tokenizer of GPT-2's kind."""
    folder = tmp_path_factory.mktemp("neo") / "gpt-neo"
    taught(folder, [f"{prompt(turns[:-1])} {tidied(turns[-1])}\nUser 1:" for turns in DIALOGUES], steps=20)
    return folder


ContextOf = Callable[..., EvalContext]


@pytest.fixture
def context_of(checkpoint: Path, nano_problem: Problem, tmp_path: Path) -> ContextOf:
    from transformers import AutoModelForCausalLM, GPT2Tokenizer

    def make(data_dir: Path | None, **options: Any) -> EvalContext:
        problem = replace(nano_problem, model="gpt-neo-tiny", questions={})
        model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
        tokenizer = GPT2Tokenizer.from_pretrained(checkpoint)
        loaded = UnlearningContext(model, tokenizer, problem, 0, Cache(tmp_path / "own"), Costs(), "")
        plan = EvalPlan(problem, data_dir=data_dir, **options)
        requests = EVALUATOR.requests(plan, tokenizer)
        answers = generate_all(HFGenerator(), model, tokenizer, requests, loaded.cache, "tiny")
        return EvalContext(loaded, plan, (), generations=answers)

    return make


def numbers(context: EvalContext) -> dict[str, Measurement | Absent]:
    return {item.metric: item for item in measurements(EVALUATOR, context)}


def by_hand(context: EvalContext, turns: Sequence[str]) -> float:
    """One dialogue as the specification has it, with `generate`."""
    import torch

    ids = context.tokenizer(prompt(turns[:-1]), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = context.model.generate(ids, max_new_tokens=REPLY, do_sample=False, pad_token_id=context.tokenizer.eos_token_id)  # type: ignore[operator]
    said = context.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).split("\nUser ")[0]
    return token_f1(said, tidied(turns[-1]))


def test_replies_are_scored_as_by_hand(context_of: ContextOf, data: Path):
    context = context_of(data)
    found = numbers(context)
    expected = [by_hand(context, turns) for turns in DIALOGUES]
    table = context.tables["dialogue"]
    assert table.loc[table["task"] == SETS[0], "reply_f1"].tolist() == pytest.approx(expected)
    assert 0 < np.mean(expected) < 1, "some words are known"
    values = [item.value for item in found.values() if isinstance(item, Measurement)]
    assert values == pytest.approx([np.mean(expected)] * 5)
    assert "sets" not in str(found["dialogue_f1"].note)  # type: ignore[union-attr]


def test_a_missing_set_is_absent_with_its_name_and_the_mean_says_of_how_many(context_of: ContextOf, data: Path):
    (data / "tdec/empathetic_dialogues.json").unlink()
    found = numbers(context_of(data, limit=2))
    absent = found["empathetic_dialogues_f1"]
    assert isinstance(absent, Absent)
    assert "the data folder has no tdec/empathetic_dialogues.json" in absent.reason
    mean = found["dialogue_f1"]
    assert isinstance(mean, Measurement)
    assert mean.n == 6
    assert str(mean.note).startswith("of 3 of 4 sets: wizard_of_wikipedia, blended_skill_talk, wizard_of_internet")


def test_a_long_dialogue_loses_its_end_or_corrected_its_beginning(context_of: ContextOf, data: Path):
    turns = [["first words", *["some tea and milk then"] * 200, "last words", "so"]]
    written(data, SETS[0], turns)
    for corrected, (begins, ends) in {False: (True, False), True: (False, True)}.items():
        plan = replace(context_of(None).plan, data_dir=data, variant="corrected" if corrected else "original")
        request = EVALUATOR.requests(plan, context_of(None).tokenizer)[0]
        (text,) = request.turns
        assert ("First words" in text, text.endswith("Last words.\nUser 1:")) == (begins, ends)
        assert len(context_of(None).tokenizer(text)["input_ids"]) == 512


def test_a_model_that_is_trained_on_the_spot_is_asked_nothing(make_context: ContextMaker, data: Path):
    context = EvalContext(make_context(), EvalPlan(make_context().problem, data_dir=data), ())
    assert {item.reason for item in measurements(EVALUATOR, context) if isinstance(item, Absent)} == {
        "mini is trained on the spot and knows nothing that these sets ask"
    }
    assert EVALUATOR.requests(context.plan, context.tokenizer) == []
    assert EVALUATOR.evaluator_inputs(context.plan) == {}


def test_recorded_tables_give_the_same_numbers(context_of: ContextOf, data: Path):
    context = context_of(data)
    found = numbers(context)
    assert numbers(EvalContext(None, context.plan, (), dict(context.tables))) == found


def test_published_dialogues_are_read(request: pytest.FixtureRequest):
    import os

    folder = Path(os.environ.get("HARNESS_DATA") or "none")
    if not (folder / "tdec/wizard_of_internet.json").is_file():
        pytest.skip("HARNESS_DATA holds no tdec/wizard_of_internet.json")
    assert all(isinstance(of, Dialogues) and len(of.turns) >= 60 for of in read_sets(folder).values())
