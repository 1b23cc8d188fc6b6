"""The worked examples of CONTRIBUTING.md, run exactly as they are printed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.mini
def test_the_printed_methods_evaluator_and_benchmark_work(tmp_path):
    for package in ("harness", "methods", "evals"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    examples = re.findall(r"`((?:methods|evals)/[\w/]+\.(?:py|toml))`:\n\n```(?:python|toml)\n(.*?)```", text, flags=re.DOTALL)
    assert [name for name, _ in examples] == [
        "methods/noise.py",
        "methods/max_entropy.py",
        "methods/presets/max_entropy.toml",
        "evals/answer_words.py",
        "evals/benchmarks/colours.py",
    ]
    for name, code in examples:
        (tmp_path / name).write_text(code, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "HARNESS_CACHE": str(tmp_path / "cache")}
    words = ["run", "--method", "noise,max_entropy", "--bench", "colours", "--results", str(tmp_path / "results"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "harness", *words], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result, other = json.loads(done.stdout)
    assert (result["status"], len(result["points"])) == ("done", 2)
    assert (other["status"], len(other["points"])) == ("done", 5)
    assert other["spec"]["config"]["lr"] == 1e-3, "its preset's"
    found = {m["metric"]: m for m in result["points"][-1]["measurements"]}
    assert found["answer_words"]["n"] == 2, "the two questions to forget, whatever else was answered"
    kept = pd.read_parquet(next((tmp_path / "results").rglob("noise/*/per_example.parquet")))
    words = kept.loc[(kept["point"] == 1) & (kept["task"] == "forget"), "answer_words"]
    assert found["answer_words"]["value"] == words.mean()
    arms = [{m["metric"]: m for m in arm}["answer_words"]["value"] for arm in result["arms"].values()]
    assert arms == [3.0, 3.0], "It is red: the untouched and the retrained model answer in three words"
    assert 0 <= found["forget_quality"]["value"] <= 1
    listed = subprocess.run(
        [sys.executable, "-m", "harness", "list", "methods", "--json"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"noise", "max_entropy"} <= {row["name"] for row in json.loads(listed.stdout)}
