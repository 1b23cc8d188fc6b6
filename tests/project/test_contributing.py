"""The worked examples of CONTRIBUTING.md, run exactly as they are printed, out of a folder of their own."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.core.registry import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"`(my/[\w/]+\.(?:py|toml))`:\n\n```(?:python|toml)\n(.*?)```", TEXT, flags=re.DOTALL))
MOST_LINES = {"my/noise.py": 60, "my/max_entropy.py": 60, "my/answer_words.py": 30}
Harness = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def printed(tmp_path: Path) -> Harness:
    """Runs `harness …` in a folder that holds the examples, outside the checkout."""
    for name, code in EXAMPLES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HARNESS_CACHE": str(tmp_path / "cache")}

    def run(words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", *shlex.split(words)]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    return run


def test_the_examples_are_short():
    assert set(EXAMPLES) == {*MOST_LINES, "my/presets/max_entropy.toml", "my/colours.py"}
    assert {
        name: len(EXAMPLES[name].splitlines()) for name, most in MOST_LINES.items() if EXAMPLES[name].count("\n") > most
    } == {}


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name.endswith(".py")])
def test_the_examples_keep_their_promises(printed: Harness, name: str):
    done = printed(f"harness test-plugin {name}")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert done.stdout.endswith(" checks, all kept\n")


def test_the_printed_commands_find_the_examples(printed: Harness):
    listed = json.loads(printed("harness list methods --json --plugins my").stdout)
    assert {"noise", "max_entropy"} <= {row["name"] for row in listed}
    assert "Standard deviation of the noise" in printed("harness show noise --plugins my").stdout
    assert "published for any benchmark on mini, scratch: lr=0.001" in printed("harness show max_entropy --plugins my").stdout
    commands = [line.split("  #")[0].strip() for line in TEXT.splitlines() if line.startswith("harness ")]
    assert [words.split()[1] for words in commands] == ["test-plugin", "run", "run", "leaderboard"]
    for words in commands[1:3]:  # planned with all that they name, then refused for a setting that there is not
        assert "no setting of noise called 'loudness'" in printed(f"{words} --set loudness=1").stderr


@pytest.mark.mini
def test_the_examples_run_and_are_shown_wherever_a_number_is(printed: Harness, tmp_path: Path):
    done = printed("harness run --plugins my --method noise,max_entropy --bench colours --evals +answer_words --json")
    assert done.returncode == 0, done.stderr[-2000:]
    noise, other = json.loads(done.stdout)
    assert [(run["status"], len(run["points"])) for run in (noise, other)] == [("done", 2), ("done", 5)]
    assert other["spec"]["config"]["lr"] == 1e-3, "its preset's"
    assert list(noise["spec"]["evaluators"]) == ["forget_quality", "probability", "rouge", "answer_words"]
    found: dict[str, Any] = {m["metric"]: m for m in noise["points"][-1]["measurements"]}["answer_words"]
    assert found["n"] == 5, "the five questions to forget, whatever else was answered"
    kept = pd.read_parquet(next((tmp_path / "harness-results").rglob("noise/*/per_example.parquet")))
    words = kept.loc[(kept["point"] == 1) & (kept["task"] == "forget"), "answer_words"]
    assert found["value"] == words.mean()
    assert found["interval_95"]
    assert (found["reference"], found["floor"]) == (3.0, 0.0), "It is red: whoever learnt the form answers in three words"
    assert sorted(noise["provenance"]["plugins"]) == ["benchmark colours", "evaluator answer_words", "method noise"]

    again = printed("harness run --plugins my --method noise --bench colours --evals +answer_words")
    assert "answer_words →" in again.stdout
    page = printed("harness leaderboard --plugins my")
    assert page.returncode == 0, page.stderr
    folder = tmp_path / "harness-results" / "leaderboard"
    rows = list(csv.DictReader((folder / "leaderboard.csv").read_text(encoding="utf-8").splitlines()))
    shown = {row["method"]: row for row in rows if row["metric"] == "answer_words"}
    assert set(shown) == {"untouched", "retrained", "noise", "max_entropy"}
    assert (shown["noise"]["low"], shown["noise"]["floor"]) == (str(found["interval_95"][0]), "0.0")
    assert "<dd>Words: how long the answers to the forget questions are</dd>" in (folder / "index.html").read_text("utf-8")

    limited = printed("harness run --plugins my --method noise --bench colours --limit 2 --json")
    (forget,) = [m for m in json.loads(limited.stdout)["points"][-1]["measurements"] if m["metric"] == "forget_probability"]
    assert forget["n"] == 2, "--limit cuts every split"
