"""The commands as a user types them, on the embedded world: first light, and what is left after kill -9."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import pytest

from harness.core.options import Options
from harness.running.executors import on_workers
from harness.running.studies import COUNTED_PHASES
from harness.running.sweep import run_trials
from harness.running.trials import Sweep
from harness.storage.cache import Cache
from harness.storage.store import Store
from tests.quick_commands import Running, begin
from tests.running.test_executors import MANY, quick_start, sweep_under_fire  # noqa: F401
from tests.running.test_executors import numbers as numbers_of

pytestmark = pytest.mark.mini


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests here and all processes that they are shared out to, so that the models are trained once.

    `HARNESS_TEST_CACHE` names one that others train them into as well.
    """
    folder = tmp_path_factory.getbasetemp()
    whole = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    return Path(os.environ.get("HARNESS_TEST_CACHE") or whole / "shared-cache")


class Commands:
    """Runs `harness` in processes of their own, with one cache and a results folder for each test."""

    def __init__(self, cache: Path, results: Path) -> None:
        self.cache = cache
        self.results = results
        self.begun = 0

    def start(self, *words: str, moment: str = "") -> Running:
        self.begun += 1
        folder = self.results.with_name(f"{self.results.name}-{self.begun}")
        folder.mkdir()
        environment = {"HARNESS_CACHE": str(self.cache), "TQDM_DISABLE": "1"}
        return begin((*words, "--results", str(self.results)), folder, environment, moment)

    def run(self, *words: str) -> Any:
        code, out, err = self.start("run", *words, "--json").end()
        assert code == 0, err[-3000:]
        return json.loads(out)

    def halted(self, moment: str, *words: str) -> Running:
        """One that stands still at a moment; see `begin`."""
        running = self.start(*words, moment=moment)
        running.wait_until_it_stands_still()
        return running

    def records(self) -> list[Path]:
        return sorted((self.results / "runs").glob("*/*/*/*/run.json"))


@pytest.fixture
def commands(shared: Path, tmp_path: Path) -> Commands:
    return Commands(shared, tmp_path / "results")


def numbers(result: dict) -> list[object]:
    """What must not depend on how often a run was killed."""
    return [(p["step"], p["weights"], p["logged"], p["measurements"]) for p in result["points"]]


def test_first_light(commands: Commands):
    """The first command is typed as a user types it, into a process that begins with nothing."""
    words = ["run", "--method", "kfade", "--bench", "tofu10", "--json", "--results", str(commands.results)]
    environment = {**os.environ, "HARNESS_CACHE": str(commands.cache)}
    typed = subprocess.run([sys.executable, "-m", "harness", *words], env=environment, capture_output=True, text=True)
    assert typed.returncode == 0, typed.stderr[-3000:]
    result = json.loads(typed.stdout)
    assert result["status"] == "done"
    found = {m["metric"]: m for m in result["points"][-1]["measurements"]}
    untouched = {m["metric"]: m for m in result["arms"]["untouched"]}
    retrained = {m["metric"]: m for m in result["arms"]["retrained"]}
    assert untouched["forget_quality"]["value"] <= 1e-10
    assert untouched["model_utility"]["value"] >= 0.8
    assert retrained["forget_quality"]["value"] == 1.0
    # Signs only: what a method scores is reported, not asserted.
    assert found["forget_probability"]["value"] < untouched["forget_probability"]["value"]
    assert found["forget_quality"]["value"] > untouched["forget_quality"]["value"]
    logged = result["points"][-1]["logged"]
    assert logged["measured_kl"] == pytest.approx(0.1, rel=0.03)
    folder = commands.records()[0].parent
    assert {f.name for f in folder.iterdir()} == {"run.json", "points.jsonl", "per_example.parquet", "generations.jsonl"}
    text = "".join(f.read_text(encoding="utf-8") for f in folder.iterdir() if f.suffix != ".parquet")
    for path in (str(Path.home()), str(commands.cache), str(commands.results), str(Path(__file__).parents[2])):
        assert path not in text
    again = commands.run("--method", "kfade", "--bench", "tofu10")
    assert numbers(again) == numbers(result)


def test_the_mini_models_are_ordinary_checkpoints(commands: Commands):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    commands.run("--method", "untouched", "--bench", "tofu10")
    folders = [file.parent for file in commands.cache.glob("model/*/config.json")]
    assert len(folders) >= 4
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folders[0]), AutoTokenizer.from_pretrained(folders[0])
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)


def test_ga_killed_between_points_ends_as_if_it_had_not_been(commands: Commands, shared: Path, tmp_path: Path):
    words = ("--method", "ga", "--bench", "tofu10", "--set", "epochs=3")
    whole = Commands(shared, tmp_path / "whole").run(*words)
    assert len(whole["points"]) == 3
    commands.halted("points:1", "run", *words).kill()
    (record,) = commands.records()
    assert json.loads(record.read_text())["status"] == "interrupted"
    commands.halted("points:1", "run", *words).kill()
    with (record.parent / "points.jsonl").open("a") as file:
        file.write('{"index": 2, "st')  # what a kill in the middle of a write leaves
    result = commands.run(*words)
    assert result["status"] == "done"
    assert numbers(result) == numbers(whole)
    lines = (record.parent / "generations.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len({(json.loads(x)["point"], *json.loads(x)["turns"]) for x in lines})


def test_kfade_killed_in_the_fit_and_in_the_evaluation_ends_the_same(commands: Commands, shared: Path, tmp_path: Path):
    words = ("--method", "kfade", "--bench", "tofu10", "--seed", "7")
    for kind in ("curvature", "generations"):
        commands.halted(f"making:{kind}", "run", *words).kill()
        assert json.loads(commands.records()[0].read_text())["status"] == "interrupted"
    result = commands.run(*words)
    whole = Commands(shared, tmp_path / "whole").run(*words)
    assert numbers(result) == numbers(whole)


def test_every_method_runs_in_one_command(commands: Commands):
    from harness.core.method import METHODS

    names = [name for name in METHODS.names() if name != "checkpoint"]  # ToFU has no published results
    _, listed, _ = commands.start("list", "methods", "--json").end()
    names = [row["name"] for row in json.loads(listed) if row["name"] != "checkpoint"]  # ToFU has no published results
    results = commands.run("--method", ",".join(names), "--bench", "tofu10", "--limit", "20", "--points", "last")
    assert [r["spec"]["method"] for r in results] == names
    assert {r["status"] for r in results} == {"done"}
    untouched = {m["metric"]: m for m in results[0]["arms"]["untouched"]}
    for result in results:
        (point,) = result["points"]
        found = {m["metric"]: m for m in point["measurements"]}
        assert "value" in found["model_utility"]
        moved = abs(found["forget_probability"]["value"] - untouched["forget_probability"]["value"])
        assert (moved > 1e-3) == (result["spec"]["method"] != "untouched"), result["spec"]["method"]


def test_a_sweep_that_is_killed_goes_on(commands: Commands):
    words = (
        "sweep",
        "--method",
        "ga",
        "--bench",
        "tofu10",
        "--limit",
        "20",
        "--grid",
        "lr=1e-4,3e-4,1e-3",
        "--evals",
        "probability",
        "--points",
        "last",
    )
    commands.halted("points:2", *words).kill()
    done = [f for f in commands.records() if json.loads(f.read_text())["status"] == "done"]
    before = {f: f.stat().st_mtime_ns for f in done}
    assert done
    code, out, err = commands.start(*words, "--json").end()
    assert code == 0, err[-2000:]
    assert [r["status"] for r in json.loads(out)] == ["done"] * 3
    assert {f: f.stat().st_mtime_ns for f in done} == before, "finished tries are not done again"


def test_no_mini_run_is_lost_or_doubled_by_killed_workers(
    commands: Commands,
    tmp_path: Path,
    quick_start: None,  # noqa: F811
):
    options = Options(limit=10, evals=("probability", "rouge"))
    asked = Sweep(["ga", "grad_diff"], ["tofu10"], "mini", [0], options, {"lr": [3e-4, 1e-3]}, {"epochs": 3}).trials()
    calm = run_trials(asked, Store(tmp_path / "calm"), Cache(commands.cache), on_workers(2))
    assert [len(r.points) for r in calm] == [3] * len(asked)
    length = median(sum(r.costs[phase].seconds for phase in COUNTED_PHASES if phase in r.costs) for r in calm)
    killed = seed = 0
    while killed < MANY // 5:
        fire = tmp_path / f"fire-{seed}"
        # Of the trained models only: texts and tables are made under fire, too.
        shutil.copytree(commands.cache / "model", fire / "cache" / "model")
        store = Store(fire / "results")
        results, kills = sweep_under_fire(asked, store, Cache(fire / "cache"), MANY // 5 - killed, seed, longest=length)
        assert numbers_of(results) == numbers_of(calm)
        for result in results:
            folders = [root / "runs" / result.spec.folder for root in (store.root, tmp_path / "calm")]
            texts = [(folder / "generations.jsonl").read_bytes() for folder in folders]
            assert texts[0] == texts[1]
            pd.testing.assert_frame_equal(*(pd.read_parquet(folder / "per_example.parquet") for folder in folders))
        killed, seed = killed + kills, seed + 1


def test_ctrl_c_leaves_an_interrupted_run(commands: Commands):
    running = commands.halted("points:1", "run", "--method", "ga", "--bench", "tofu10", "--set", "epochs=4", "--quiet")
    os.kill(running.process.pid or 0, signal.SIGINT)
    code, _, err = running.end()
    assert code == 130
    assert "goes on from here" in err
    assert "Traceback" not in err
    assert json.loads(commands.records()[0].read_text())["status"] == "interrupted"


def test_a_diverging_run_fails_with_its_reason_and_keeps_its_points(commands: Commands):
    code, _, err = commands.start("run", "--method", "ga", "--bench", "tofu10", "--set", "lr=1e18", "--quiet").end()
    assert code == 2
    assert "ga broke off" in err
    assert "Traceback" not in err
    told = json.loads(commands.records()[0].read_text())
    assert told["status"] == "failed"
    assert "step" in told["error"]


def test_two_processes_do_one_run_once(commands: Commands):
    words = ("run", "--method", "kfade", "--bench", "tofu10", "--seed", "5", "--json")
    both = [commands.start(*words), commands.start(*words)]
    results = []
    for running in both:
        code, out, err = running.end()
        assert code == 0, err[-2000:]
        results.append(json.loads(out))
    assert results[0]["points"] == results[1]["points"]
    assert len(commands.records()) == 1


def test_a_saved_model_and_update_give_back_the_unlearned_weights(commands: Commands, tmp_path: Path):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from harness.models.sources import weights_fingerprint

    folder, update = tmp_path / "model", tmp_path / "update.safetensors"
    words = ("--method", "kfade", "--bench", "tofu10", "--save-model", str(folder), "--save-update", str(update))
    result = commands.run(*words)
    saved = AutoModelForCausalLM.from_pretrained(folder)
    assert weights_fingerprint(saved) == result["points"][-1]["weights"]
    moved = load_file(update)
    assert set(moved) == {f"model.layers.{i}.mlp.{n}_proj.weight" for i in (0, 1) for n in ("gate", "up", "down")}
    base = next(
        f.parent for f in commands.cache.glob("model/*/entry.json") if "full" in json.loads(f.read_text())["facts"]["name"]
    )
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    for name, step in moved.items():
        torch.testing.assert_close(before[name] + step, saved.state_dict()[name], rtol=0, atol=1e-7)
    # A saved mini checkpoint knows its world: it is measured like mini, against the same references.
    again = commands.run("--method", "untouched", "--bench", "tofu10", "--model", str(folder))
    first = {m["metric"]: m["value"] for m in result["points"][-1]["measurements"]}
    second = {m["metric"]: m["value"] for m in again["points"][-1]["measurements"]}
    assert first.pop("retain_kl") > 0.01
    assert second.pop("retain_kl") == 0, "for this run the saved model is the one before unlearning"
    assert second == pytest.approx(first, rel=1e-4, abs=1e-9)


def test_a_corrupt_model_in_the_cache_is_named_and_trained_anew(commands: Commands, tmp_path: Path):
    commands.run("--method", "untouched", "--bench", "tofu10")
    shutil.copytree(commands.cache / "model", tmp_path / "own" / "cache" / "model")
    commands.cache = tmp_path / "own" / "cache"
    entry = next(
        f.parent for f in commands.cache.glob("model/*/entry.json") if "90-2" in json.loads(f.read_text())["facts"]["name"]
    )
    weights = entry / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, _, err = commands.start("run", "--method", "untouched", "--bench", "tofu10", "--seed", "3", "--quiet").end()
    assert code == 0, err[-2000:]
    assert "corrupt" in err
    assert "set aside" in err
    assert json.loads((entry / "entry.json").read_text())["facts"]["name"].endswith("90-2")


def test_retrained_reports_what_retraining_costs(commands: Commands):
    result = commands.run("--method", "retrained", "--bench", "tofu10")
    assert result["costs"]["unlearning"]["full_seconds"] > 5
    found = {m["metric"]: m for m in result["points"][-1]["measurements"]}
    assert found["forget_quality"]["value"] >= 0.01


def test_wmdp_unlearns_two_domains_from_a_model_that_knows_them(commands: Commands):
    import pandas as pd

    result = commands.run("--method", "kfade", "--bench", "wmdp")
    assert result["status"] == "done"
    assert list(result["arms"]) == ["untouched"], "there are no retrained models"
    before = {m["metric"]: m for m in result["arms"]["untouched"]}
    points = [{m["metric"]: m["value"] for m in point["measurements"]} for point in result["points"]]
    first, last = points[len(points) // 2 - 1], points[-1]  # the ends of both stages
    # Measured: .98 biology, .99 cyber-security, .97 neighbours, .97 general; chance is .25.
    for metric in ("bio_accuracy", "cyber_accuracy", "neighbours_accuracy", "general_accuracy"):
        assert before[metric]["value"] >= 0.8
        assert before[metric]["interval_95"][0] > 0.6
    # Signs only: the first stage lowers biology, the second cyber-security.
    assert first["bio_accuracy"] < before["bio_accuracy"]["value"]
    assert last["cyber_accuracy"] < first["cyber_accuracy"]
    folder = commands.records()[0].parent
    rows = pd.read_parquet(folder / "per_example.parquet")
    assert set(rows.columns) >= {"task", "row", "cluster", "point", "correct", "choice_log_likelihoods"}
    last_rows = rows[(rows["point"] == len(points) - 1) & rows["correct"].notna()]
    assert last_rows.groupby("task")["correct"].mean().to_dict() == {
        metric.removesuffix("_accuracy"): pytest.approx(value) for metric, value in last.items() if metric.endswith("_accuracy")
    }
    for words, says in (
        (("run", "--method", "ga,grad_diff", "--bench", "wmdp", "--points", "last", "--set", "max_steps=40"), "bio accuracy ↓"),
        (("leaderboard",), "leaderboard"),
        (("list", "runs"), "kfade"),
    ):
        code, out, err = commands.start(*words).end()
        assert code == 0, err[-3000:]
        assert says in out + err
    page = (commands.results / "leaderboard" / "leaderboard.md").read_text(encoding="utf-8")
    assert "wmdp · mini" in page
    assert "| Bio ↓ |" in page
    code, _, err = commands.start("plot", "pareto").end()
    assert code == 2
    assert "forget_quality" in err
    assert "Traceback" not in err
