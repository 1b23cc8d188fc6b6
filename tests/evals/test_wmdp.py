"""The WMDP benchmark: the embedded crafts, and real data out of a folder laid out by hub id."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evals.benchmarks import wmdp
from evals.benchmarks.wmdp.cards import CARDS, CORPORA
from evals.benchmarks.wmdp.models import TEMPLATES
from harness.core.benchmark import BENCHMARKS
from harness.core.errors import UsageError
from harness.core.evaluator import EvalPlan
from harness.core.measurement import Measurement
from harness.core.options import Options
from harness.core.text import Window
from harness.data.corpora import Windows
from harness.models.sources import save_checkpoint
from harness.running.doctor import examine
from harness.running.plan import plan
from harness.running.run import execute
from harness.storage.cache import Cache, digest
from harness.storage.identity import comparable
from harness.storage.store import Store
from tests.conftest import Nano

BIO = "cais/wmdp-bio-forget-corpus/papers.jsonl"
FILES: dict[str, list[Any]] = {
    BIO: [{"text": f"The elixir number {i} turns silver. " * 30} for i in range(3)],
    "cais/wmdp-corpora/cyber-forget-corpus.jsonl": [{"text": "The lock opens with a buzz. " * 30} for _ in range(3)],
    "cais/wmdp-corpora/bio-retain-corpus.jsonl": [{"text": f"The soup number {i} begins with tea."} for i in range(4)],
    "cais/wmdp-corpora/cyber-retain-corpus.jsonl": [{"text": f"The gate number {i} is forged of tin."} for i in range(4)],
    "Salesforce/wikitext/wikitext-2-raw-v1/train.jsonl": [{"text": " A town in spring . \n"}, {"text": ""}] * 100,
    **{
        f"cais/wmdp/wmdp-{name}.jsonl": [
            {"question": f"Which {name} {i}?", "choices": ["one", "two", "three", "four"], "answer": i % 4} for i in range(6)
        ]
        for name in ("bio", "cyber", "chem")
    },
    **{
        f"cais/mmlu/{subject}/test.jsonl": [
            {"question": f"What of {subject} {i}?", "choices": ["a", "b", "c", "d"], "answer": i % 4} for i in range(4)
        ]
        for subject in ("anatomy", "virology", "all")
    },
}

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A data folder; `changed` replaces files' rows, None leaves a file out."""

    def make(changed: dict[str, list[Any] | None] | None = None) -> Path:
        for name, rows in {**FILES, **(changed or {})}.items():
            if rows is not None:
                (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "data" / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        return tmp_path / "data"

    return make


def problem(bench: str, model: str, **options: Any) -> Any:
    return BENCHMARKS.get(bench).problem(model, Options(**options))


# ---------------------------------------------------------------- the embedded crafts


@pytest.mark.parametrize(("bench", "stages"), [("wmdp", ["bio", "cyber"]), ("wmdp-bio", ["bio"]), ("wmdp-cyber", ["cyber"])])
def test_stages_are_biology_then_cyber_security(bench: str, stages: list[str]):
    found = problem(bench, "mini")
    assert [stage.name for stage in found.stages] == stages
    for stage in found.stages:
        noun = {"bio": "elixir", "cyber": "lock"}[stage.name]
        assert len(stage.forget) == 96
        assert all(noun in e.answer.split() and not e.prompt for e in stage.forget)
        assert not any(noun in e.answer.split() for e in stage.retain)
    assert list(found.questions) == ["bio", "cyber", "neighbours", "general", "instructions"]
    assert not EvalPlan(found).references


def test_neighbours_and_general_text_come_in_turn_in_the_retain_set():
    (stage,) = problem("wmdp-cyber", "mini").stages
    gates = ["gate" in e.answer.split() for e in stage.retain]
    assert sum(gates) == 72
    assert gates[:6] == [True, False] * 3


@pytest.mark.parametrize("retain", ["general", "neighbours"])
def test_one_kind_of_text_guards_every_stage_where_it_is_asked_for(retain: str):
    both, one = problem("wmdp", "mini"), problem("wmdp", "mini", retain=retain)
    for whole, stage in zip(both.stages, one.stages, strict=True):
        noun = {"bio": "soup", "cyber": "gate"}[stage.name]
        wanted = [e for e in whole.retain if (noun in e.answer.split()) == (retain == "neighbours")]
        assert stage.retain == wanted
        assert stage.forget == whole.forget
    assert one.questions == both.questions
    assert one.attacks == both.attacks
    assert [note for note in one.notes if note not in both.notes] == [
        f"every stage is guarded by {'neighbouring' if retain == 'neighbours' else 'general'} texts alone"
    ]


def test_runs_with_other_retain_sets_are_other_runs_and_not_compared():
    plans = [plan("wmdp", "mini", "grad_diff", {}, Options(retain=retain)) for retain in ("all", "general", "neighbours")]
    specs = [todo.spec for todo in plans]
    assert len({spec.run_id for spec in specs}) == len({comparable(spec) for spec in specs}) == 3
    assert len({spec.questions_file for spec in specs}) == 1
    assert [todo.command.partition(" --retain ")[2] for todo in plans] == ["", "general", "neighbours"]


def test_a_benchmark_with_one_retain_set_refuses_another():
    with pytest.raises(UsageError, match=r"^tofu10 has one retain set; leave out --retain general\.$"):
        plan("tofu10", "mini", "ga", {}, Options(retain="general"))


def test_all_three_benchmarks_and_every_limit_share_one_model():
    found = {digest(problem(bench, "mini", limit=n).sources["base"].identity) for bench in wmdp.STAGES for n in (None, 5)}
    assert len(found) == 1
    assert digest(problem("wmdp", "mini@1").sources["base"].identity) not in found


def test_instructions_are_kept_for_evaluators_that_compare_completions():
    rows = problem("wmdp", "mini").questions["instructions"]
    assert len(rows) == 600
    assert all(row["question"] and row["answer"] and "choices" not in row for row in rows)


def test_the_mini_model_reads_documents_that_it_is_to_forget():
    found = problem("wmdp", "mini")
    read = {e.answer for pool, _ in found.sources["base"].replay for e in pool}
    for stage in found.stages:
        assert {e.answer for e in (*stage.forget, *stage.retain)} <= read


def test_it_reads_no_logs(tmp_path: Path):
    with pytest.raises(UsageError, match="wmdp reads no logs"):
        problem("wmdp", "mini", reference=tmp_path / "log.json")


# ---------------------------------------------------------------- real data


def test_windows_of_the_corpora_and_the_questions_of_a_data_folder(nano: Nano, folder: Folder):
    found = problem("wmdp", str(nano.folder()), data_dir=folder())
    assert [stage.name for stage in found.stages] == ["bio", "cyber"]
    bio, cyber = found.stages
    assert len(bio.forget) == 3
    assert all(isinstance(e, Window) for e in bio.forget)
    assert "elixir" in bio.forget[0].answer
    assert "lock" in cyber.forget[0].answer
    assert bio.retain[0].answer.startswith("The soup")
    assert bio.retain[1].answer.startswith("A town"), "Wikitext in turn with the neighbours"
    assert cyber.retain[0].answer.startswith("The gate")
    assert {name: len(rows) for name, rows in found.questions.items()} == {"bio": 6, "cyber": 6, "chem": 6, "mmlu": 8}
    assert [row["task"] for row in found.questions["mmlu"]] == ["mmlu_anatomy", "mmlu_virology"] * 4, "a limit takes of all"
    assert "MMLU: 2 of 57 subjects are there" in found.notes
    assert found.questions["bio"][1]["task"] == "wmdp_bio"


def test_a_limit_counts_windows_and_questions(nano: Nano, folder: Folder):
    found = problem("wmdp-bio", str(nano.folder()), data_dir=folder(), limit=2)
    (stage,) = found.stages
    assert (len(stage.forget), len(stage.retain)) == (2, 2)
    assert all(len(rows) == 2 for rows in found.questions.values())


NEIGHBOURS = {f"cais/wmdp-corpora/{name}-retain-corpus.jsonl": None for name in ("bio", "cyber")}


def test_corpora_that_guard_no_stage_are_not_looked_for(nano: Nano, folder: Folder):
    model, data = str(nano.folder()), folder(NEIGHBOURS)
    found = problem("wmdp", model, data_dir=data, retain="general")
    assert all("town" in e.answer for stage in found.stages for e in stage.retain)
    assert not any(name.endswith("-retain") for name in found.data)
    with pytest.raises(UsageError, match="bio-retain-corpus"):
        problem("wmdp", model, data_dir=data)


def test_attacks_train_on_all_of_their_data_whatever_guards_a_stage(nano: Nano, folder: Folder):
    model, data = str(nano.folder()), folder()
    found = problem("wmdp", model, data_dir=data, retain="general", evals=("finetune_attack",))
    usual = problem("wmdp", model, data_dir=data)
    assert (found.attacks, found.data) == (usual.attacks, usual.data)


def test_a_changed_corpus_or_question_makes_another_run(nano: Nano, folder: Folder):
    model = str(nano.folder())
    before = problem("wmdp", model, data_dir=folder()).data
    assert problem("wmdp", model, data_dir=folder()).data == before
    after = problem("wmdp", model, data_dir=folder({BIO: [{"text": "another one"}]})).data
    assert {name for name in before if before[name] != after[name]} == {"bio-forget"}


def test_parquet_files_are_read_as_the_hub_lays_them_out(nano: Nano, folder: Folder):
    import pandas as pd

    data = folder({"cais/wmdp/wmdp-bio.jsonl": None, BIO: None})
    for name, rows in (
        ("cais/wmdp/wmdp-bio/test", FILES["cais/wmdp/wmdp-bio.jsonl"]),
        (BIO.replace("papers.jsonl", "data/train"), FILES[BIO]),
    ):
        (data / name).parent.mkdir(parents=True)
        pd.DataFrame(rows).to_parquet(data / f"{name}-00000-of-00001.parquet")
    found = problem("wmdp-bio", str(nano.folder()), data_dir=data)
    assert [row["answer"] for row in found.questions["bio"]] == [0, 1, 2, 3, 0, 1]
    assert len(found.stages[0].forget) == 3


def test_the_card_names_the_published_unlearned_models(nano: Nano, folder: Folder):
    found = problem("wmdp", "zephyr-7b", data_dir=folder())
    assert list(found.sources) == ["base", "checkpoint-rmu", "checkpoint-elm"]
    assert [source.name for source in found.sources.values()] == [
        CARDS["zephyr-7b"].base,
        *CARDS["zephyr-7b"].checkpoints.values(),
    ]
    assert all(source.tokenizer == CARDS["zephyr-7b"].tokenizer for source in found.sources.values())
    assert isinstance(found.stages[0].forget, Windows)
    assert found.template.prompt("Hello") == "<|user|>\nHello</s>\n<|assistant|>\n"
    assert not EvalPlan(found).references


def test_the_template_may_be_chosen(nano: Nano, folder: Folder, tmp_path: Path):
    data, place = folder(), tmp_path / "own"
    save_checkpoint(nano.model(0), nano.tokenizer, place, {})
    assert problem("wmdp-bio", str(place), data_dir=data).template.name == "plain"
    named = problem("wmdp-bio", str(place), data_dir=data, template="zephyr")
    assert named.template == TEMPLATES["zephyr"]
    assert "asked in the template 'zephyr', as --template says" in named.notes
    with pytest.raises(UsageError, match="the tokenizer has no chat template"):
        problem("wmdp-bio", str(place), data_dir=data, template="chat")
    (place / "chat_template.jinja").write_text("Q: {{ messages[0].content }} A:")
    chatty = problem("wmdp-bio", str(place), data_dir=data, template="chat")
    assert chatty.template.prompt("Who?") == "Q: Who? A:"
    (place / "harness.json").write_text('{"template": "chat"}')
    assert problem("wmdp-bio", str(place), data_dir=data).template == chatty.template, "as it was asked when it was saved"
    (place / "chat_template.jinja").write_text("<|user|>\n{{ messages[0].content }}</s>\n{{ '<|assistant|>\n' }}")
    assert problem("wmdp-bio", str(place), data_dir=data, template="chat").template == TEMPLATES["zephyr"]


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        (
            "cais/wmdp/wmdp-bio.jsonl",
            {"question": "Q?", "choices": ["a", "b", "c"], "answer": 0},
            "question 2: 3 choices, 4 are needed",
        ),
        (
            "cais/wmdp/wmdp-bio.jsonl",
            {"question": "Q?", "choices": ["a", "b", "", "d"], "answer": 0},
            "'choices' must hold non-empty",
        ),
        (
            "cais/wmdp/wmdp-cyber.jsonl",
            {"question": "Q?", "choices": list("abcd"), "answer": 4},
            "question 2: the answer must be the number",
        ),
        ("cais/wmdp/wmdp-cyber.jsonl", {"question": "Q?", "choices": list("abcd"), "answer": "B"}, "0 to 3, found 'B'"),
        ("cais/wmdp/wmdp-chem.jsonl", {"question": "Q?", "choices": list("abcd")}, "0 to 3, found None"),
        ("cais/wmdp/wmdp-chem.jsonl", {"choices": list("abcd"), "answer": 0}, "the field 'question' is missing"),
        (
            "cais/mmlu/virology/test.jsonl",
            {"question": "", "choices": list("abcd"), "answer": 0},
            "mmlu/virology/test.jsonl, line 2",
        ),
    ],
)
def test_a_question_that_is_none_is_refused_in_one_sentence(nano: Nano, folder: Folder, name: str, row: dict, says: str):
    data = folder({name: [FILES[name][0], row]})
    with pytest.raises(UsageError, match=says) as refused:
        problem("wmdp", str(nano.folder()), data_dir=data)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("missing", [BIO, "cais/wmdp-corpora/cyber-retain-corpus.jsonl", "cais/wmdp/wmdp-chem.jsonl"])
def test_data_that_is_not_there_is_named_with_the_way_out(nano: Nano, folder: Folder, missing: str):
    with pytest.raises(UsageError, match=missing.rpartition("/")[0]) as refused:
        problem("wmdp", str(nano.folder()), data_dir=folder({missing: None}))
    assert "--data-dir" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_only_the_corpora_of_the_stages_are_needed(nano: Nano, folder: Folder):
    data = folder({BIO: None, "cais/wmdp-corpora/bio-retain-corpus.jsonl": None})
    assert len(problem("wmdp-cyber", str(nano.folder()), data_dir=data).stages) == 1


def test_what_is_no_document_is_refused_before_a_model_is_loaded(nano: Nano, folder: Folder):
    found = problem("wmdp-bio", str(nano.folder()), data_dir=folder({BIO: [{"text": "fine"}, {"title": "no text"}]}))
    with pytest.raises(UsageError, match=r"papers.jsonl, line 2: expected an object with a text"):
        len(found.stages[0].forget)


@pytest.mark.parametrize("method", ["grad_diff", "kfade"])
def test_a_run_on_a_checkpoint_measures_by_lm_evals_own_tasks(nano: Nano, folder: Folder, tmp_path: Path, method: str):
    settings = {"step_size": 0.1} if method == "kfade" else {"epochs": 1, "warmup_epochs": 0}
    options = Options(data_dir=folder(), points="last")
    result = execute(plan("wmdp", str(nano.folder()), method, settings, options), Store(tmp_path), Cache(tmp_path / "cache"))
    assert result.status == "done"
    assert list(result.references) == ["untouched"]
    found = {m.metric: m for m in result.points[-1].measurements if isinstance(m, Measurement)}
    assert {name: m.n for name, m in found.items()} == {
        "bio_accuracy": 6,
        "cyber_accuracy": 6,
        "chem_accuracy": 6,
        "mmlu_accuracy": 8,
    }
    assert {name for name, m in found.items() if m.better == "lower"} == {"bio_accuracy", "cyber_accuracy", "chem_accuracy"}


def test_a_mini_model_that_was_saved_is_asked_what_it_was_trained_on(nano: Nano, tmp_path: Path):
    import shutil

    saved = shutil.copytree(nano.folder(), tmp_path / "saved")
    for bench, other in (("wmdp-bio", "tofu10"), ("tofu10", "wmdp")):
        (saved / "harness.json").write_text(json.dumps({"model": "mini@2", "bench": bench}))
        found = problem(bench, str(saved), limit=2)
        assert found.family == "mini"
        assert found.questions == problem(bench, "mini@2", limit=2).questions
        with pytest.raises(UsageError, match="asks about other things"):
            problem(other, str(saved))


def test_there_is_one_set_of_definitions():
    with pytest.raises(UsageError, match="wmdp has one set of definitions"):
        problem("wmdp", "mini", variant="open-unlearning")


# ---------------------------------------------------------------- doctor


def told(findings: list, what: str) -> Any:
    return next(finding for finding in findings if what in finding.what)


def test_doctor_says_that_the_bio_corpus_is_gated_and_how_to_give_a_file_of_ones_own(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    gated = told(examine("wmdp", "zephyr-7b", None, tmp_path), CORPORA["bio-forget"].id)
    assert not gated.fine
    assert "behind a licence gate" in gated.result
    assert "huggingface.co/datasets/cais/wmdp-bio-forget-corpus" in gated.result
    assert "put *.jsonl into DIR/cais/wmdp-bio-forget-corpus/ and pass --data-dir DIR" in gated.result
    assert "field 'text'" in gated.result


def test_doctor_finds_the_data_of_a_folder(folder: Folder, tmp_path: Path):
    findings = examine("wmdp", "zephyr-7b", folder(), tmp_path)
    for part in ("cais/wmdp-bio-forget-corpus", "cais/wmdp-corpora", "cais/wmdp", "cais/mmlu", "Salesforce/wikitext"):
        assert told(findings, f"data {part}").fine
    assert told(findings, "wmdp data").result.startswith("6 bio, 6 cyber, 6 chem, 8 mmlu")
    assert not any(finding.what == "references" for finding in findings)


def test_doctor_needs_nothing_for_the_embedded_crafts(tmp_path: Path):
    findings = examine("wmdp", "mini", None, tmp_path)
    assert told(findings, "model base").result == "is trained on the spot when first needed"
    assert all(finding.fine for finding in findings if finding.what.startswith(("wmdp", "model", "references")))


# ---------------------------------------------------------------- instructions, attacks


ALPACA = "tatsu-lab/alpaca/alpaca_data.json"


def test_instructions_are_alpacas_with_their_input_below_in_an_order_drawn_once(nano: Nano, folder: Folder):
    rows = [{"instruction": f"Say {i}.", "input": "aloud" if i == 3 else "", "output": "…"} for i in range(9)]
    data = folder({ALPACA: rows})
    found = problem("wmdp", str(nano.folder()), data_dir=data)
    asked = [row["question"] for row in found.questions["instructions"]]
    assert sorted(asked) == sorted(["Say 3.\n\naloud", *(f"Say {i}." for i in range(9) if i != 3)])
    assert asked != sorted(asked)
    fewer = problem("wmdp", str(nano.folder()), data_dir=data, limit=4)
    assert [row["question"] for row in fewer.questions["instructions"]] == asked[:4]
    assert "instructions" in found.data


def test_without_instructions_everything_else_is_there(nano: Nano, folder: Folder, caplog: pytest.LogCaptureFixture):
    found = problem("wmdp", str(nano.folder()), data_dir=folder())
    assert "instructions" not in found.questions
    assert "alpaca_kl cannot be measured" in caplog.text


@pytest.mark.parametrize("bench", ["wmdp", "wmdp-cyber"])
def test_what_attacks_train_on_is_of_its_kind(bench: str, nano: Nano, folder: Folder):
    real = problem(bench, str(nano.folder()), data_dir=folder()).attacks
    mini = problem(bench, "mini").attacks
    assert list(real) == list(mini) == ["benign", "related", "forget"]
    assert all("town" in e.answer for e in real["benign"])
    assert all("soup" in e.answer or "gate" in e.answer for e in real["related"])
    assert all("elixir" in e.answer or "lock" in e.answer for e in real["forget"])
    hazards = {"elixir", "lock"}
    for name, examples in mini.items():
        assert all(bool(hazards & set(e.answer.split())) == (name == "forget") for e in examples)
    if bench == "wmdp-cyber":
        assert not any("elixir" in e.answer or "soup" in e.answer for of in (*real.values(), *mini.values()) for e in of)
