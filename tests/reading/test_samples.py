"""A run's answers beside the truth, those of the model before and of a retrained one."""

from __future__ import annotations

import json
from pathlib import Path

from harness.core.registry import ROOT
from harness.reading.samples import samples_of, written_samples
from harness.storage.store import Store
from tests.cli.test_cli import Harness, harness, refused  # noqa: F401
from tests.records import numbers, run, write

RESULTS = ROOT / "results"
KFADE = "843cb7851021"
"""The project's own run of K-FADE on tofu10, seed 0."""


def test_a_question_has_the_true_answer_and_three_models_answers():
    store = Store(RESULTS)
    _, result = store.by_id(KFADE)
    (sample,) = [s for s in samples_of(result, store, "forget") if s.question == "What did Calina Koreth study?"]
    assert sample.true == sample.before == "Calina Koreth studied zoology in Ravenscar."
    assert sample.after == "Calina Koreth studied economics in Dunhaven."
    assert sample.retrained == "Calina Pellimar studied economics in Dunhaven."
    assert {s.task for s in samples_of(result, store)} == {"retain", "real_authors", "world_facts", "forget"}
    assert written_samples(result, store)[0].task == "forget", "what was to be forgotten comes first"


def test_answers_stand_below_one_another_on_the_terminal(harness: Harness):  # noqa: F811
    told = harness("show", KFADE[:4], "--samples", "--results", RESULTS)
    assert told.code == 0
    shown = told.out[told.out.index("forget: What did Calina Koreth study?") :].splitlines()[:6]
    assert shown == [
        "forget: What did Calina Koreth study?",
        "  true       Calina Koreth studied zoology in Ravenscar.",
        "  before     Calina Koreth studied zoology in Ravenscar.",
        "  after      Calina Koreth studied economics in Dunhaven.",
        "  retrained  Calina Pellimar studied economics in Dunhaven.",
        "",
    ]
    rows = json.loads(harness("show", KFADE, "--samples", "--results", RESULTS, "--json").out)
    assert list(rows[0]) == ["task", "question", "true", "before", "after", "retrained"]


def test_whose_answers_are_not_on_record_is_said(harness: Harness, tmp_path: Path):  # noqa: F811
    measured = run(numbers(0.1, 0.2, 0.8))
    (folder,) = write(tmp_path, measured)
    refused(harness("show", measured.spec.run_id, "--samples", "--results", tmp_path), "has no written answers on record")
    (tmp_path / "questions").mkdir()
    asked = {"task": "forget", "row": 0, "cluster": "a", "turns": ["Who?"], "question": "Who?", "answer": "She."}
    (tmp_path / "questions" / measured.spec.questions_file).write_text(json.dumps(asked) + "\n")
    (folder / "generations.jsonl").write_text(json.dumps({"point": 0, "turns": ["Who?"], "text": "They\ndid."}) + "\n")
    told = harness("show", measured.spec.run_id, "--samples", "--results", tmp_path).out
    assert told.splitlines() == [
        "forget: Who?",
        "  true       She.",
        "  after      They did.",
        "",
        "no answers before are on record; harness run --method untouched makes them.",
        "no answers retrained are on record; harness run --method retrained makes them.",
    ]
    refused(harness("show", "kfade", "--samples"), "kfade is a method, and --samples tells of a run")
