"""One request: flags, a file, a record and Python say the same things in the same words."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from harness.core.errors import UsageError
from harness.core.fields import Given, declared, flag_of, from_document, from_python, helps, read
from harness.running.bench_request import PowerRequest, ScoreRequest
from harness.running.plan import plan
from harness.running.recorded import recorded_request
from harness.running.request import (
    RunFields,
    RunRequest,
    StudyRequest,
    SweepFields,
    SweepRequest,
    request_file,
)

REQUESTS = (RunRequest, SweepRequest, StudyRequest, PowerRequest, ScoreRequest)


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.__name__)
def test_every_field_says_how_it_is_read_and_what_it_means(kind: type):
    names = [field.name for field in fields(kind)]
    assert sorted(declared(kind)) == sorted(names)
    assert all(helps(kind).get(name) for name in names)


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.__name__)
def test_no_two_fields_share_a_flag(kind: type):
    flags = [flag for name, how in declared(kind).items() for flag in (flag_of(name, how), how.short, *how.aliases) if flag]
    assert len(set(flags)) == len(flags)


@pytest.mark.parametrize(("kind", "keywords"), [(RunRequest, RunFields), (SweepRequest, SweepFields)])
def test_python_has_the_same_words(kind: type, keywords: Any):
    assert {*get_type_hints(keywords), "method", "bench"} == {field.name for field in fields(kind)}


def test_flags_a_file_and_python_make_the_same_request(tmp_path: Path):
    (tmp_path / "run.yaml").write_text(
        "method: [kfade, ga]\nbench: tofu10\nseed: 3\nset: {epochs: 2}\nevals: [rouge]\npreset: tuned\nlimit: 5\n"
    )
    typed = {
        "method": "kfade,ga",
        "bench": "tofu10",
        "seed": "3",
        "settings": ["epochs=2"],
        "evals": "rouge",
        "preset": "tuned",
        "limit": "5",
    }
    of_flags = read(RunRequest, {name: Given(value, f"--{name} {value}") for name, value in typed.items()})
    of_file = read(RunRequest, request_file(RunRequest, tmp_path / "run.yaml"))
    of_python = read(
        RunRequest,
        from_python(
            RunRequest,
            {
                "method": ["kfade", "ga"],
                "bench": "tofu10",
                "seed": 3,
                "settings": {"epochs": 2},
                "evals": "rouge",
                "preset": "tuned",
                "limit": 5,
            },
        ),
    )
    assert of_flags == of_file == of_python


def test_what_is_typed_wins_and_settings_are_put_together():
    file = from_document(RunRequest, {"seed": 1, "set": {"lr": 1, "epochs": 2}}, "run.yaml", "run")
    typed = {"seed": Given("2", "--seed 2"), "settings": Given(["lr=3"], "--set")}
    request = read(RunRequest, file, typed)
    assert (request.seed, request.settings) == (2, {"lr": 3, "epochs": 2})


def test_a_files_earlier_words_are_still_read():
    assert read(RunRequest, from_document(RunRequest, {"form": "tuned"}, "run.yaml", "run")).preset == "tuned"


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"methd": "ga"}, "Did you mean 'method'"),
        ([], "run.yaml is no run"),
        ({"form": "tuned", "preset": "tuned"}, "says again what another entry says"),
        ({"seed": -1}, "run.yaml: seed=-1 is no whole number from 0"),
        ({"seed": True}, "run.yaml: seed=True is no whole number"),
        ({"seed": [1]}, "run.yaml: seed=1 is no whole number"),
        ({"dtype": "float16"}, "run.yaml: dtype=float16 is not known.* There are: bfloat16, float32"),
        ({"set": {}}, "'set' is empty"),
        ({"set": "lr=1"}, "'set' is empty"),
        ({"trust_remote_code": True}, "trust_remote_code is not taken from a file"),
        ({"judge_url": "https://host/v1"}, "judge_url is not taken from a file"),
        ({"data_dir": 3}, "run.yaml: data_dir=3 is no path"),
        ({"data_dir": "gone"}, "run.yaml: data_dir=gone: there is no such folder"),
    ],
)
def test_a_file_that_is_no_request_is_refused(document: object, said: str):
    with pytest.raises(UsageError, match=said):
        read(RunRequest, from_document(RunRequest, document, "run.yaml", "run"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"methods": "ga"}, "no argument called 'methods'. Did you mean 'method'"),
        ({"seed": "x"}, "seed='x' is no whole number"),
        ({"settings": "lr=1"}, "settings='lr=1' is no mapping of settings"),
        ({"evals": ["rouge", "rouge"]}, "names an evaluator twice"),
        ({"trust_remote_code": 1}, "is neither true nor false"),
    ],
)
def test_python_gets_the_same_sentences(values: dict[str, Any], said: str):
    with pytest.raises(UsageError, match=said):
        read(RunRequest, from_python(RunRequest, values))


def test_a_recorded_run_is_asked_for_again_word_for_word():
    request = read(RunRequest, from_python(RunRequest, {"method": "ga", "bench": "tofu05", "limit": 2, "device": "cpu"}))
    (todo,) = request.plans()
    again = read(RunRequest, recorded_request(todo.spec, "run.json"), {"device": Given("cpu", "--device cpu")})
    (twin,) = again.plans(todo.spec.config)
    assert twin.spec.run_id == todo.spec.run_id
    assert todo.spec.run_id == plan("tofu05", "mini", "ga", {}, request.options()).spec.run_id
