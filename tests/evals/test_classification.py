"""The nine classification sets: rows laid out like the hub's files, and scores beside a computation by hand on a tiny GPT-Neo."""

from __future__ import annotations

import csv
import json
import math
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evals.classification.sets import SETS, Question, Questions, read_sets
from harness.core.costs import Costs
from harness.core.errors import UsageError
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan
from harness.core.measurement import Absent, Measurement
from harness.core.method import UnlearningContext
from harness.core.problem import Problem
from harness.statistics.measurements import measurements
from harness.storage.cache import Cache
from tests.conftest import ContextMaker
from tests.perf.extraction import taught

EVALUATOR = EVALUATORS.get("classification")
HUB: dict[str, tuple[str, dict[str, Any], Question]] = {
    "piqa": (
        "baber/piqa/validation.jsonl",
        {"goal": "To open a jar,", "sol1": "twist its lid.", "sol2": "sing to it.", "label": 0},
        Question("To open a jar,", (" twist its lid.", " sing to it."), 0),
    ),
    "hellaswag": (
        "Rowan/hellaswag/validation.jsonl",
        {
            "ind": 24,
            "activity_label": "Rowing",
            "ctx_a": "A man sits in a boat.",
            "ctx_b": "he",
            "ctx": "A man sits in a boat. he",
            "endings": ["rows.", "flies.", "melts.", "barks."],
            "source_id": "activitynet~v_1",
            "split": "val",
            "split_type": "indomain",
            "label": "2",
        },
        Question("A man sits in a boat. he", (" rows.", " flies.", " melts.", " barks."), 2),
    ),
    "arc_easy": (
        "allenai/ai2_arc/ARC-Easy/validation.jsonl",
        {
            "id": "Mercury_1",
            "question": "What is ice made of?",
            "choices": {"text": ["sand", "water", "air", "wood"], "label": ["A", "B", "C", "D"]},
            "answerKey": "B",
        },
        Question("What is ice made of?", (" sand", " water", " air", " wood"), 1),
    ),
    "arc_challenge": (
        "allenai/ai2_arc/ARC-Challenge/validation.jsonl",
        {
            "id": "NYSEDREGENTS_1",
            "question": "Which is a mammal?",
            "choices": {"text": ["carp", "hen", "asp", "whale"], "label": ["1", "2", "3", "4"]},
            "answerKey": "4",
        },
        Question("Which is a mammal?", (" carp", " hen", " asp", " whale"), 3),
    ),
    "copa": (
        "aps/super_glue/copa/validation.jsonl",
        {
            "premise": "The man turned on the tap.",
            "choice1": "Water came.",
            "choice2": "It grew dark.",
            "question": "effect",
            "idx": 0,
            "label": 0,
        },
        Question("The man turned on the tap.", (" Water came.", " It grew dark."), 0),
    ),
    "winogrande": (
        "allenai/winogrande/winogrande_s/validation.jsonl",
        {"sentence": "Ann thanked Eve since _ had helped.", "option1": "Ann", "option2": "Eve", "answer": "2"},
        Question("Ann thanked Eve since", (" Ann had helped.", " Eve had helped."), 1),
    ),
    "math_qa": (
        "regisss/math_qa/validation.jsonl",
        {
            "Problem": "a train runs 60 km in 2 hours , how fast is it ?",
            "Rationale": "60 / 2",
            "options": "a ) 10 km / h , b ) 30 km / h , c ) 1 , 200 , d ) 50 , e ) none of these",
            "correct": "b",
            "annotated_formula": "divide(60, 2)",
            "linear_formula": "divide(n0,n1)|",
            "category": "physics",
        },
        Question("a train runs 60 km in 2 hours , how fast is it ?", ("10 km / h", "30 km / h", "1", "50", "none of these"), 1),
    ),
}
"""Set → its file in a data folder, a row as the hub has it, and what is asked by it."""
LAMBADA = ["the cat sat on the mat and looked at the dog", "it was late , so she\nwent to  bed"]
PUBMED = {"abstract": "Tea was\ngiven.", "question": "Does tea help?", "final_decision": "maybe"}


def written(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    path = folder / HUB[name][0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def written_csv(folder: Path, name: str, rows: Sequence[Mapping[str, str]]) -> None:
    path = folder / "tdec" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with all nine sets, seven rows each but for LAMBADA."""
    folder = tmp_path / "data"
    for name, (_, row, _) in HUB.items():
        written(folder, name, [row] * 7)
    written_csv(folder, "lambada", [{"id": "0", "token_length": "9", "text": text, "task": "lambada"} for text in LAMBADA])
    written_csv(folder, "pubmed_qa", [{"pubid": "1", **PUBMED, "long_answer": "Perhaps."}] * 7)
    return folder


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize("name", HUB)
def test_a_row_of_the_hub_is_asked_as_the_specification_has_it(name: str, tmp_path: Path):
    _, row, question = HUB[name]
    written(tmp_path, name, [row])
    found = read_sets(tmp_path, corrected=False)[name]
    assert isinstance(found, Questions)
    assert found.rows == [question]


def test_parquet_files_are_read_alike(tmp_path: Path):
    import pandas as pd

    _, row, question = HUB["arc_easy"]
    folder = tmp_path / "allenai/ai2_arc/ARC-Easy"
    folder.mkdir(parents=True)
    for part in range(2):
        pd.DataFrame([row]).to_parquet(folder / f"validation-0000{part}-of-00002.parquet")
    found = read_sets(tmp_path, corrected=False)["arc_easy"]
    assert isinstance(found, Questions)
    assert found.rows == [question, question]


def test_the_challenges_own_files_are_asked_as_the_specification_has_it(data: Path):
    sets = read_sets(data, corrected=False)
    lambada, pubmed = sets["lambada"], sets["pubmed_qa"]
    assert isinstance(lambada, Questions)
    assert isinstance(pubmed, Questions)
    assert lambada.rows == [
        Question("the cat sat on the mat and looked at the", (" dog",), 0),
        Question("it was late , so she\nwent to ", (" bed",), 0),
    ]
    context = "Context: Tea was\ngiven.\nQuestion: Does tea help?\nAnswer:"
    assert pubmed.rows[0] == Question(context, (" yes", " maybe", " no"), 1)


def test_mathqa_corrected_has_whole_options_behind_a_blank(data: Path):
    found = read_sets(data, corrected=True)["math_qa"]
    assert isinstance(found, Questions)
    assert found.rows[0].choices == (" 10 km / h", " 30 km / h", " 1 , 200", " 50", " none of these")


def test_rows_with_another_number_of_choices_are_left_out_and_counted(tmp_path: Path):
    _, row, question = HUB["arc_easy"]
    three = {"text": row["choices"]["text"][:3], "label": ["A", "B", "C"]}
    written(tmp_path, "arc_easy", [row, {**row, "choices": three}])
    found = read_sets(tmp_path, corrected=False)["arc_easy"]
    assert isinstance(found, Questions)
    assert (found.rows, found.left_out) == ([question], 1)
    written(tmp_path, "arc_easy", [{**row, "choices": three}])
    assert read_sets(tmp_path, corrected=False)["arc_easy"] == "none of its 1 rows has the set's number of choices"


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("piqa", {"goal": None}, r"baber/piqa/validation\.jsonl, line 2: the field 'goal'"),
        ("piqa", {"label": 2}, r"baber/piqa/validation\.jsonl, row 2: the field 'label' must be one of 0, 1, found 2"),
        ("piqa", {"label": True}, "'label' must be one of 0, 1, found True"),
        ("hellaswag", {"label": "12"}, "'label' must be one of 0, 1, 2, 3, found '12'"),
        ("arc_easy", {"answerKey": "E"}, "'answerKey' must be one of A, B, C, D"),
        ("arc_challenge", {"choices": {"text": "no list"}}, "'choices' must hold the lists 'text' and 'label'"),
        ("copa", {"choice2": 7}, "'choice2' must be a non-empty str"),
        ("winogrande", {"answer": ""}, "'answer' must be one of 1, 2"),
        ("math_qa", {"correct": "f"}, "'correct' must be one of a, b, c, d, e"),
    ],
)
def test_a_broken_row_is_refused_in_a_sentence(name: str, change: dict[str, Any], says: str, tmp_path: Path):
    row = HUB[name][1]
    written(tmp_path, name, [row, {**row, **change}])
    with pytest.raises(UsageError, match=says):
        read_sets(tmp_path, corrected=False)


def test_a_row_without_its_field_is_refused(data: Path):
    _, row, _ = HUB["copa"]
    written(data, "copa", [row, {key: value for key, value in row.items() if key != "label"}])
    with pytest.raises(UsageError, match=r"super_glue/copa/validation\.jsonl, row 2: the field 'label' is missing"):
        read_sets(data, corrected=False)
    written(data, "copa", [row])
    written_csv(data, "pubmed_qa", [PUBMED, {**PUBMED, "abstract": " "}])
    with pytest.raises(UsageError, match=r"tdec/pubmed_qa\.csv, line 4: the field 'abstract' is empty"):
        read_sets(data, corrected=False)
    written_csv(data, "pubmed_qa", [{"question": "Why?", "abstract": "So."}])
    with pytest.raises(UsageError, match="no CSV file with a column 'final_decision'"):
        read_sets(data, corrected=False)


# ---------------------------------------------------------------- scores


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-Neo that has learnt a few of the texts, with a tokenizer of GPT-2's kind."""
    folder = tmp_path_factory.mktemp("neo") / "gpt-neo"
    rows = [row for _, row, _ in HUB.values()]
    taught(folder, [*LAMBADA, *(" ".join(map(str, row.values())) for row in rows), *map(str, PUBMED.values())], steps=25)
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
        return EvalContext(loaded, EvalPlan(problem, data_dir=data_dir, **options), ())

    return make


def numbers(context: EvalContext) -> dict[str, Measurement | Absent]:
    return {item.metric: item for item in measurements(EVALUATOR, context)}


def by_hand(context: EvalContext, question: Question, cut: int = 512) -> list[float]:
    """Σ_t log p(token t of a choice | text, tokens before), text and choice cut into tokens apart, in float64."""
    import torch

    nats = []
    for choice in question.choices:
        before = context.tokenizer(question.context)["input_ids"][:cut]
        behind = context.tokenizer(choice)["input_ids"]
        before = before[len(before) + len(behind) - cut if len(before) + len(behind) > cut else 0 :]
        with torch.no_grad():
            log_p = context.model.double()(torch.tensor([before + behind])).logits[0].log_softmax(dim=-1)
        nats.append(sum(float(log_p[len(before) + t - 1, token]) for t, token in enumerate(behind)))
    context.model.float()
    return nats


def test_choices_are_scored_as_by_hand(context_of: ContextOf, data: Path, monkeypatch: pytest.MonkeyPatch):
    from evals import _lm_eval

    scored: dict[str, list[list[float]]] = {}
    plain = _lm_eval.log_likelihoods
    monkeypatch.setattr(_lm_eval, "log_likelihoods", lambda *a: scored.update(plain(*a)) or scored)
    context = context_of(data)
    found = numbers(context)
    assert set(scored) == {*SETS} - {"lambada"}
    for name, nats in scored.items():
        questions = read_sets(data, corrected=False)[name]
        assert isinstance(questions, Questions)
        expected = by_hand(context, questions.rows[0])
        np.testing.assert_allclose(nats, [expected] * 7, atol=1e-4)
        accuracy = found[f"{name}_accuracy"]
        assert isinstance(accuracy, Measurement)
        assert accuracy.value == float(np.argmax(expected) == questions.rows[0].answer)
        assert accuracy.n == 7


def test_the_last_word_is_right_where_all_its_tokens_are_the_likeliest(context_of: ContextOf, data: Path):
    import torch

    context = context_of(data)
    found = numbers(context)["lambada_accuracy"]
    expected = []
    for text in LAMBADA:
        before, _, word = text.rpartition(" ")
        ids = [context.tokenizer(part)["input_ids"] for part in (before, f" {word}")]
        with torch.no_grad():
            likeliest = context.model(torch.tensor([ids[0] + ids[1]])).logits[0].argmax(dim=-1).tolist()
        expected.append(likeliest[len(ids[0]) - 1 : -1] == ids[1])
    assert isinstance(found, Measurement)
    assert found.value == np.mean(expected)


def test_a_last_word_may_differ_in_case_and_punctuation(monkeypatch: pytest.MonkeyPatch):
    from evals.classification import lambada

    spelled = {1: " Dog", 2: " dog,", 3: " cat"}
    tokenizer: Any = SimpleNamespace(decode=lambda ids, **_: "".join(spelled[i] for i in ids))
    monkeypatch.setattr(lambada, "_likeliest", lambda *_: [[2], [3], [1]])
    assert lambada.last_words(None, tokenizer, [([9], [1])] * 3) == [1.0, 0.0, 1.0]  # type: ignore[arg-type]


def test_a_long_text_is_cut_at_its_end_or_corrected_at_its_beginning(context_of: ContextOf, tmp_path: Path):
    """The choices of a text whose question is cut off are scored behind what is left of it."""
    from evals.classification import _tokens

    lm: Any = SimpleNamespace(tok_encode=lambda text, **_: list(range(len(text))))
    before, behind = _tokens(lm, False, "x" * 600, "abcd")
    assert (before, behind) == (list(range(4, 512)), [0, 1, 2, 3])

    class Model:
        def _encode_pair(self, text: str, choice: str) -> tuple[list[int], list[int]]:
            return list(range(len(text))), list(range(len(choice)))

    before, behind = _tokens(Model(), True, "x" * 600, "abcd")
    assert (before, behind) == (list(range(92, 600)), [0, 1, 2, 3])


def test_the_mean_counts_each_set_alike(context_of: ContextOf, data: Path):
    found = numbers(context_of(data))
    accuracies = [found[f"{name}_accuracy"] for name in SETS]
    mean = found["reasoning_accuracy"]
    assert isinstance(mean, Measurement)
    assert mean.value == pytest.approx(np.mean([item.value for item in accuracies if isinstance(item, Measurement)]))
    assert "sets" not in str(mean.note)
    assert 0 < mean.value < 1


def test_the_interval_of_a_mean_follows_from_the_sets_own():
    from evals._over_sets import OVER_SETS, _interval
    from harness.core.metric import Rows

    random = np.random.default_rng(0)
    groups = [Rows(random.integers(0, 2, n).astype(float), np.arange(n)) for n in (40, 200)]
    value = OVER_SETS.value(groups)
    assert value == pytest.approx(np.mean([rows.values.mean() for rows in groups]))
    errors = [rows.values.std(ddof=1) / math.sqrt(len(rows.values)) for rows in groups]
    ends = _interval(groups, value).ends
    assert ends is not None
    assert ends[1] - value == pytest.approx(1.96 * math.hypot(*errors) / 2)
    assert _interval([replace(groups[0], values=groups[0].values[:4])], 0.5).ends is None


# ---------------------------------------------------------------- what is not there


def test_rows_that_are_left_out_are_said(context_of: ContextOf, tmp_path: Path):
    row = HUB["arc_easy"][1]
    written(tmp_path / "data", "arc_easy", [row, {**row, "choices": {"text": ["sand", "ice"], "label": ["A", "B"]}}])
    accuracy = numbers(context_of(tmp_path / "data"))["arc_easy_accuracy"]
    assert isinstance(accuracy, Measurement)
    assert accuracy.n == 1
    assert "1 further rows have another number of choices and are left out" in str(accuracy.note)


def test_the_hub_is_asked_once_for_a_set(context_of: ContextOf, data: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever the number of metrics; and a file that is put into the data folder later is taken."""
    from evals.classification import sets

    wanted: list[str] = []
    monkeypatch.setattr(sets, "dataset_files_or_reason", lambda dataset, *_: wanted.append(dataset) or f"no {dataset}")
    (data / HUB["copa"][0]).unlink()
    sets._on_hub.cache_clear()
    found = numbers(context_of(data, limit=1))["copa_accuracy"]
    assert found == Absent(metric="copa_accuracy", reason="no aps/super_glue")
    assert wanted == ["aps/super_glue"]
    written(data, "copa", [HUB["copa"][1]])
    assert isinstance(read_sets(data, corrected=False)["copa"], Questions)
    sets._on_hub.cache_clear()


def test_a_missing_set_is_absent_with_its_name_and_the_mean_says_of_how_many(
    context_of: ContextOf, data: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("piqa", "math_qa"):
        (data / HUB[name][0]).unlink()
    (data / "tdec/lambada.csv").unlink()
    found = numbers(context_of(data))
    reasons = {name: item.reason for name, item in found.items() if isinstance(item, Absent)}
    assert set(reasons) == {"piqa_accuracy", "math_qa_accuracy", "lambada_accuracy"}
    assert "baber/piqa/piqa_validation.parquet is not in the data folder" in reasons["piqa_accuracy"]
    assert "the data folder has no tdec/lambada.csv" in reasons["lambada_accuracy"]
    assert not any("--model mini" in reason for reason in reasons.values())
    mean = found["reasoning_accuracy"]
    assert isinstance(mean, Measurement)
    assert str(mean.note).startswith("of 6 of 9 sets: hellaswag, arc_easy, arc_challenge, copa, winogrande, pubmed_qa; ")


def test_without_any_set_everything_is_absent(context_of: ContextOf):
    found = numbers(context_of(None))
    assert all(isinstance(item, Absent) and "there is no data folder" in item.reason for item in [found["reasoning_accuracy"]])
    assert all(isinstance(item, Absent) for item in found.values())


def test_a_model_that_is_trained_on_the_spot_is_asked_nothing(make_context: ContextMaker, data: Path):
    context = EvalContext(make_context(), EvalPlan(make_context().problem, data_dir=data), ())
    assert {item.reason for item in measurements(EVALUATOR, context) if isinstance(item, Absent)} == {
        "mini is trained on the spot and knows nothing that these sets ask"
    }
    assert EVALUATOR.evaluator_inputs(context.plan) == {}


def test_a_collapsed_model_gets_no_bad_number(context_of: ContextOf, data: Path):
    import torch

    context = context_of(data)
    with torch.no_grad():
        context.model.get_output_embeddings().weight.mul_(math.nan)
    reasons = {name: item.reason for name, item in numbers(context).items() if isinstance(item, Absent)}
    assert reasons["copa_accuracy"] == "7 of 7 copa rows have likelihoods that are not finite"
    assert "lambada rows" in reasons["lambada_accuracy"]
    assert "not finite" in reasons["reasoning_accuracy"]


def test_what_numbers_rest_on_names_the_sets_that_are_there(context_of: ContextOf, data: Path):
    plan = context_of(data).plan
    before = dict(EVALUATOR.evaluator_inputs(plan))
    assert tuple(before) == SETS
    written(data, "copa", [{**HUB["copa"][1], "label": 1}])
    after = dict(EVALUATOR.evaluator_inputs(plan))
    assert [name for name in SETS if before[name] != after[name]] == ["copa"]
    (data / HUB["copa"][0]).unlink()
    assert set(EVALUATOR.evaluator_inputs(plan)) == {*SETS} - {"copa"}


def test_recorded_tables_give_the_same_numbers(context_of: ContextOf, data: Path):
    context = context_of(data, limit=3)
    found = numbers(context)
    assert numbers(EvalContext(None, context.plan, (), dict(context.tables))) == found
    alone = numbers(EvalContext(None, EvalPlan(), (), dict(context.tables)))
    assert {name: item.value for name, item in alone.items() if isinstance(item, Measurement)} == {
        name: item.value for name, item in found.items() if isinstance(item, Measurement)
    }
    copa = found["copa_accuracy"]
    assert isinstance(copa, Measurement)
    assert copa.n == 3
