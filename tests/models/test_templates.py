"""`--template NAME|chat`: which template a model is asked in, what is recorded of it, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evals.benchmarks.tofu.templates import TEMPLATES
from harness.core.benchmark import BENCHMARKS
from harness.core.config import to_json
from harness.core.errors import UsageError
from harness.core.fields import Given, from_python, read
from harness.core.options import Options
from harness.core.problem import Problem
from harness.core.registry import ROOT
from harness.core.text import Template
from harness.models.bases import BASES
from harness.models.export import ExportOptions
from harness.running.plan import Plan, plan
from harness.running.recorded import recorded_request
from harness.running.request import RunRequest, StudyRequest, SweepRequest, request_file
from harness.running.run import execute
from harness.storage.cache import Cache
from harness.storage.identity import comparable
from harness.storage.store import Store
from tests.cli.test_cli import Harness, harness, refused  # noqa: F401
from tests.conftest import Bench
from tests.models.test_cards import CARDS, vocabulary, write_model, write_rows, write_tokenizer
from tests.numerics.test_chat_templates import LLAMA3, SMOLLM2

OWN, SILENT = "own/chatty", "own/silent"
"""Checkpoints of one's own, with a chat template and without."""
SMOLLM2_ID = BASES["smollm2-135m"].id
START = (
    "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 10 Apr 2025\n\n<|eot_id|>"
)


def speaks(folder: Path, template: str) -> None:
    """Put a chat template beside a tokenizer."""
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a tiny ToFU and tiny models: a card's, SmolLM2's and one's own."""
    root = tmp_path_factory.mktemp("data")
    write_rows(root)
    card = CARDS["llama3.2-1b"]
    for place in (OWN, SILENT, SMOLLM2_ID, card.base):
        write_tokenizer("llama3", root / place)
    for seed, place in enumerate((OWN, SILENT, SMOLLM2_ID, card.base, card.retain.format(split="retain90"))):
        write_model("llama", root / place, vocabulary(root / OWN), 4, seed)
    speaks(root / OWN, LLAMA3.template)
    speaks(root / card.base, LLAMA3.template)
    speaks(root / SMOLLM2_ID, SMOLLM2.template)
    return root


def problem(model: str, data: Path, template: str = "", **options: Any) -> Problem:
    return BENCHMARKS.get("tofu10").problem(model, Options(data_dir=data, template=template, **options))


def planned(model: str, data: Path, template: str = "", **options: Any) -> Plan:
    return plan("tofu10", model, "grad_diff", {}, Options(limit=2, data_dir=data, template=template, **options))


# ---------------------------------------------------------------- what is chosen


@pytest.mark.parametrize("model", [OWN, f"finetuned:{OWN}", "llama3.2-1b"])
def test_every_text_of_a_model_is_put_in_its_chat_template(model: str, data: Path):
    chatty, usual = problem(model, data, "chat"), problem(model, data)
    assert chatty.template == Template("chat", START + _user(), _answer())
    for of in (chatty.stages[0].forget, chatty.stages[0].retain, chatty.attacks["related"]):
        assert all(e.prompt.startswith(START) and e.prompt.endswith(_answer()) for e in of)
    assert usual.template.name == ("llama3" if model == "llama3.2-1b" else "llama2")
    assert any("asked in the template 'chat', as --template says" in note for note in chatty.notes)
    assert any(note.startswith("asked by the tokenizer's own chat template (") for note in chatty.notes)
    assert not any("guessed" in note for note in chatty.notes)


def _user() -> str:
    return "<|start_header_id|>user<|end_header_id|>\n\n"


def _answer() -> str:
    return "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"


def test_a_name_is_taken_as_it_is(data: Path):
    of = problem(OWN, data, "phi")
    assert of.template == TEMPLATES["phi"]
    assert problem(OWN, data, "phi", variant="open-unlearning").template == replace(TEMPLATES["phi"], tag_in_prompt=True)
    assert [note for note in of.notes if "phi" in note] == ["asked in the template 'phi', as --template says"]


def test_a_published_model_may_be_asked_otherwise_and_its_record_says_in_what_it_learned(data: Path):
    of = problem("llama3.2-1b", data, "chat")
    (note,) = (note for note in of.notes if "--template" in note)
    assert "the model learned in 'llama3', and what others published of it was measured in that" in note
    assert list(of.sources) == ["base", "retain-0"], "the retrained model is asked likewise"


@pytest.mark.parametrize("template", ["chat", "smollm2"])
def test_the_usual_template_by_another_word_is_the_same_run(template: str, data: Path):
    usual, same = planned("smollm2-135m", data), planned("smollm2-135m", data, template)
    assert same.spec == usual.spec
    assert same.spec.run_id == usual.spec.run_id
    assert not any("--template" in note for note in same.problem.notes)


def test_a_model_fine_tuned_in_another_template_is_another_model(data: Path):
    found = [planned(f"finetuned:{OWN}", data, template).spec for template in ("", "chat", "phi")]
    for name in ("base", "retain-0"):
        assert len({spec.sources[name]["examples"] for spec in found}) == 3
    assert len({spec.run_id for spec in found}) == 3


@pytest.mark.parametrize("model", [OWN, "llama3.2-1b"])
def test_what_was_asked_otherwise_is_another_run_and_not_compared(model: str, data: Path):
    found = [planned(model, data, template).spec for template in ("", "chat", "phi")]
    assert len({spec.run_id for spec in found}) == len({comparable(spec) for spec in found}) == 3
    assert len({json.dumps(dict(spec.sources), default=dict) for spec in found}) == 1


# ---------------------------------------------------------------- asked for and recorded


def test_flags_python_and_a_record_ask_for_it_alike(data: Path):
    given = {"method": "ga", "bench": "tofu10", "model": OWN, "limit": 2, "device": "cpu", "template": "chat", "data_dir": data}
    (todo,) = read(RunRequest, from_python(RunRequest, given)).plans()
    assert todo.spec.template["name"] == "chat"
    assert "--template chat" in todo.command
    beside = {"device": Given("cpu", "--device cpu"), "data_dir": Given(data, "--data-dir")}
    again = read(RunRequest, recorded_request(todo.spec, "run.json"), beside)
    (twin,) = again.plans(todo.spec.config)
    assert again.template == "chat"
    assert twin.spec == todo.spec


def test_a_sweep_and_a_file_ask_for_it_too(data: Path, tmp_path: Path):
    (tmp_path / "run.yaml").write_text("method: ga\nbench: tofu10\ntemplate: chat\n")
    assert read(RunRequest, request_file(RunRequest, tmp_path / "run.yaml")).template == "chat"
    given = {
        "method": "ga",
        "bench": "tofu10",
        "model": OWN,
        "template": "chat",
        "data_dir": data,
        "grid": {"lr": [1e-4, 1e-3]},
    }
    trials = read(SweepRequest, from_python(SweepRequest, given)).sweep().trials()
    assert {trial.plan({}).spec.template["name"] for trial in trials} == {"chat"}


def test_a_guess_that_is_said_aloud_is_the_same_run(data: Path):
    usual, said = planned(OWN, data), planned(OWN, data, "llama2")
    assert said.spec.run_id == usual.spec.run_id
    assert said.problem.notes == usual.problem.notes


@pytest.mark.parametrize(("bench", "run"), [("tofu10", "kfade"), ("wmdp", "rmu")])
def test_without_it_a_committed_run_keeps_its_name(bench: str, run: str):
    recorded = next(r.spec for r in Store(ROOT / "results").runs() if (r.spec.bench, r.spec.method) == (bench, run))
    layer = recorded_request(recorded, "run.json") | {"device": Given("cpu", "--device cpu")}
    assert layer["template"].value == "mini"
    for asked in (layer, {name: given for name, given in layer.items() if name != "template"}):
        (again,) = read(RunRequest, asked).plans(recorded.config)
        assert again.spec.run_id == recorded.run_id


def test_it_runs_and_a_model_that_was_saved_is_asked_as_it_was_before(data: Path, tmp_path: Path, cache: Cache):
    todo = planned(f"finetuned:{OWN}", data, "chat")
    todo = replace(todo, eval_plan=replace(todo.eval_plan, of=replace(todo.problem, generation_budget=6)))
    store, out = Store(tmp_path / "results"), tmp_path / "out"
    result = execute(todo, store, cache, ExportOptions(out))
    assert result.status == "done"
    assert result.spec.template["question_start"] == START + _user()
    assert any("own chat template" in note for note in result.notes)
    prompts = [json.loads(line) for line in next((tmp_path / "results").rglob("questions/*.jsonl")).read_text().splitlines()]
    assert all(START in json.dumps(row, ensure_ascii=False).encode().decode("unicode_escape") for row in prompts)
    assert json.loads((out / "harness.json").read_text())["template"] == "chat"
    for again in (problem(str(out), data), problem(f"finetuned:{out}", data)):
        assert again.template == todo.problem.template
        assert not any("--template" in note for note in again.notes)
    assert problem(str(out), data, "phi").template == TEMPLATES["phi"]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("model", "template", "said"),
    [
        (
            OWN,
            "lama2",
            r"no template called 'lama2'\. Did you mean 'llama2'\? There are: chat, gemma3, .*harness list templates",
        ),
        ("llama3.2-1b", "zephyr", "no template called 'zephyr'"),
        (f"finetuned:{OWN}", "CHAT", r"no template called 'CHAT'\. Did you mean 'chat'"),
        (SILENT, "chat", r"the tokenizer has no chat template\. Leave out --template, or name one"),
        (f"finetuned:{SILENT}", "chat", "the tokenizer has no chat template"),
        ("mini", "chat", r"mini takes no --template chat: its tokenizer has no chat template, and .* own template, 'mini'"),
        ("mini@3", "llama2", "mini takes no --template llama2: it learned all it knows in its own template, 'mini'"),
        ("scratch", "chat", "scratch takes no --template chat: .* own template, 'scratch'"),
    ],
)
def test_what_cannot_be_is_one_sentence(model: str, template: str, said: str, data: Path):
    with pytest.raises(UsageError, match=said):
        problem(model, data, template)


@pytest.mark.parametrize("model", ["mini", "scratch"])
def test_a_models_own_template_may_be_said(model: str, data: Path):
    assert problem(model, data, model).template == problem(model, data).template


def test_a_mini_model_of_wmdp_takes_its_own_alone():
    with pytest.raises(UsageError, match="mini takes no --template zephyr"):
        plan("wmdp-bio", "mini", "ga", {}, Options(template="zephyr"))


def test_a_saved_mini_model_takes_its_own_alone(data: Path, tmp_path: Path):
    (tmp_path / "harness.json").write_text(json.dumps({"model": "mini@1", "template": "mini", "bench": "tofu10"}))
    assert problem(str(tmp_path), data, "mini").template.name == "mini"
    with pytest.raises(UsageError, match="mini takes no --template chat"):
        problem(str(tmp_path), data, "chat")


def test_a_benchmark_with_one_template_refuses_another(bench: Bench):
    def unlearn(context: Any, config: Any) -> Any:
        yield from ()

    assert bench.plan(unlearn, options=Options(template="mini")).spec == bench.plan(unlearn).spec
    with pytest.raises(UsageError, match=r"^nano puts its questions in one template, 'mini'; leave out --template chat\.$"):
        bench.plan(unlearn, options=Options(template="chat"))


def test_the_study_at_equal_damage_says_it_itself():
    request = read(StudyRequest, from_python(StudyRequest, {"template": "chat"}))
    with pytest.raises(UsageError, match=r"says template itself, .* Leave out --template\."):
        request.check_own_choices("equal-damage")


def test_the_command_line_says_it_in_one_line_and_leaves_with_2(harness: Harness, data: Path):  # noqa: F811
    run = ("run", "--method", "kfade", "--bench", "tofu10", "--device", "cpu")
    refused(harness(*run, "--template", "chat"), "mini takes no --template chat")
    own = (*run, "--data-dir", data, "--model", OWN, "--template")
    refused(harness(*own, "chatt"), "no template called 'chatt'. Did you mean 'chat'?")
    refused(harness(*own[:-2], SILENT, "--template", "chat"), "the tokenizer has no chat template. Leave out --template")


def test_a_record_and_a_template_contradict_each_other(harness: Harness, tmp_path: Path):  # noqa: F811
    spec = plan("tofu10", "mini", "ga", {}, Options()).spec
    (tmp_path / "run.json").write_text(json.dumps({"spec": to_json(spec)}))
    refused(
        harness("run", "--spec", tmp_path / "run.json", "--template", "mini"), "--spec and --template contradict each other"
    )


def test_templates_are_listed_with_what_they_make_of_a_question(harness: Harness):  # noqa: F811
    rows = {row["template"]: row for row in json.loads(harness("list", "templates", "--json").out)}
    assert list(rows) == [*TEMPLATES, "zephyr", "plain", "chat"]
    assert rows["llama2"]["prompt"] == "[INST] QUESTION [/INST]"
    assert rows["phi"]["prompt"] == r"Question: QUESTION\nAnswer: "
    assert "wmdp-bio" in rows["chat"]["benches"]
    assert "[INST] QUESTION [/INST]" in harness("list", "templates").out
