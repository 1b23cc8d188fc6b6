"""One command that a launcher begins several times: one record, one table, and one sentence where a process ends."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import UsageError
from harness.core.measurement import Measurement
from harness.models.sources import CheckpointSource, weights_fingerprint
from harness.numerics import group, sharding
from harness.storage.cache import Cache
from harness.storage.store import Store
from harness.storage.validate import problems
from tests import launched

Launch = Callable[..., "subprocess.CompletedProcess[str]"]
LOST = "error: another of the 2 processes that share this run has ended. What was measured is kept; the same command goes on"
STOPPED = "interrupted; the same command goes on from here."
pytestmark = pytest.mark.mini


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Runs `harness run` on the nano benchmark in two processes."""

    def run(*words: str, processes: int = 2, env: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
        request = ["run", "--bench", "nano", "--results", str(tmp_path / "results"), *words]
        return launched.launch(processes, "harness", *request, env={"HARNESS_CACHE": str(tmp_path / "cache"), **env})

    return run


def records(folder: Path) -> Mapping[str, dict[str, Any]]:
    """Method → its run.json."""
    return {
        path.parent.parent.name: json.loads(path.read_text()) for path in (folder / "results").glob("runs/*/*/*/*/run.json")
    }


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What processes said, without the launcher's words."""
    return [line for line in done.stderr.splitlines() if line.startswith(("error:", "interrupted", "WARNING:"))]


def test_two_processes_make_one_record_and_print_one_table(launch: Launch, tmp_path: Path):
    words = ["--method", "kfade", "--set", "kl_rows=7", "--budgets", ".01,.02"]
    done = launch(*words)
    assert done.returncode == 0, done.stderr
    assert (done.stdout.count("record: "), said(done)) == (1, [])
    record = records(tmp_path)["kfade"]
    assert (record["status"], record["provenance"]["processes"]) == ("done", 2)
    assert list(problems(Store(tmp_path / "results"))) == []
    again = launch(*words, processes=1)
    assert "shown as recorded" in again.stdout  # how many processes there were is no part of a run's name


def test_two_processes_that_shard_the_weights_make_the_record_of_one(launch: Launch, tmp_path: Path):
    words = ["--method", "grad_diff", "--evals", "probability,rouge", "--set", "batch_size=5", "--budgets", ".001,.002"]
    alone = launch(*words, "--results", str(tmp_path / "alone"), processes=1)
    kept = tmp_path / "model"
    done = launch(*words, "--save-model", str(kept), env=launched.FSDP)
    assert (alone.returncode, done.returncode) == (0, 0), done.stderr
    assert (done.stdout.count("record: "), said(done)) == (1, [])
    record = records(tmp_path)["grad_diff"]
    assert "the weights of decoder layers were sharded over 2 processes (FSDP2)" in record["notes"]
    one, two = ([p for run in Store(tmp_path / folder).runs() for p in run.points] for folder in ("alone", "results"))
    assert [point.logged["budget"] for point in two] == [0.001, 0.002]
    for expected, point in zip(one, two, strict=True):
        assert point.logged["damage"] == pytest.approx(point.logged["budget"], rel=0.02)
        assert {m.metric: m.value for m in point.measurements if isinstance(m, Measurement)} == pytest.approx(
            {m.metric: m.value for m in expected.measurements if isinstance(m, Measurement)}, rel=0.02
        )
    saved, _ = CheckpointSource(str(kept)).load(Cache(tmp_path / "none"), "cpu", "float32")
    assert weights_fingerprint(saved) == two[-1].weights  # whole weights have the fingerprint of their parts


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--method", "nudge"], "nudge needs whole weights on every process. Launch without --use_fsdp, or take one of "),
        (["--method", "ga", "--adapter", "lora:r=2"], "sharded weights are trained themselves, by AdamW in float32."),
        (["--method", "ga", "--evals", "quantise_attack"], "quantise_attack needs whole weights on one process."),
        (["--method", "npo", "--set", "retain_loss=kl"], "npo keeps a copy of the model with these settings."),
    ],
)
def test_what_needs_whole_weights_is_refused(launch: Launch, words: list[str], sentence: str):
    (said_once,) = said(launch(*words, env=launched.FSDP))
    assert said_once.startswith(f"error: {sentence}")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"FSDP_VERSION": "1"}, r"FSDP1 was asked for\. Launch with --fsdp_version 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "Launch without --fsdp_offload_params"),
    ],
)
def test_fsdp_is_wanted_as_it_is_done(changed: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch):
    for name, value in {**launched.FSDP, **changed}.items():
        monkeypatch.setenv(name, value)
    assert not sharding.wanted()  # a process by itself
    monkeypatch.setattr(group, "_group", group._Group(0, 2, 0, store=None))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=sentence):
        sharding.wanted()


def test_a_run_that_diverges_on_all_processes_is_followed_by_the_next(launch: Launch, tmp_path: Path):
    done = launch("--method", "diverging,nudge")
    assert {name: record["status"] for name, record in records(tmp_path).items()} == {"diverging": "failed", "nudge": "done"}
    assert done.stderr.count("not done: diverging") == 1
    assert done.returncode != 0


@pytest.mark.parametrize("who", ["other", "first"])
def test_a_process_that_is_killed_ends_all_in_one_sentence(launch: Launch, tmp_path: Path, who: str):
    done = launch("--method", "ending", "--set", f"who={who}")
    (sentence,) = said(done)
    assert sentence.startswith((LOST, STOPPED))  # the launcher's signal may come before the news
    assert done.returncode != 0
    record = records(tmp_path)["ending"]
    assert record["status"] == "interrupted"
    points = next((tmp_path / "results").glob("runs/*/*/*/*/points.jsonl"))
    assert len(points.read_text().splitlines()) == 1


def test_what_one_process_refuses_is_said_once(launch: Launch):
    done = launch("--method", "ending", "--set", "refused=true")
    assert said(done) == ["error: this cannot be done."]


def test_memory_that_runs_out_is_said_once(launch: Launch):
    done = launch("--method", "nudge", "--set", "raises=OutOfMemoryError")
    (sentence,) = said(done)
    assert "Points measured so far are kept." in sentence
    assert "OutOfMemoryError" not in done.stderr


def test_other_commands_are_not_shared(tmp_path: Path):
    done = launched.launch(2, "harness", "list", "methods", env={"HARNESS_CACHE": str(tmp_path)})
    assert done.stdout == ""
    (sentence,) = said(done)
    assert sentence == (
        "error: 2 processes were launched, and they share the work of harness run alone. Begin list without a launcher."
    )


@pytest.mark.parametrize(
    ("words", "lost"), [("[../gloo/pair.cc:547] Connection closed by peer [127.0.0.1]:3", True), ("no such thing", False)]
)
def test_a_pass_that_another_process_does_not_come_to_says_that_it_has_ended(
    words: str, lost: bool, monkeypatch: pytest.MonkeyPatch
):
    error = RuntimeError(words)
    group.check_lost(error)  # a process by itself has nobody to lose
    monkeypatch.setattr(group, "_group", group._Group(0, 2, 0, store=None))  # type: ignore[arg-type]
    with pytest.raises(group.ProcessLost, match="another of the 2 processes") if lost else nullcontext():
        group.check_lost(error)


@pytest.mark.parametrize("wanted", ["cuda:all", "cuda:1", "mps"])
def test_every_process_has_a_device_of_its_own(wanted: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(group, "_group", group._Group(0, 2, 0, store=None))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"each takes a GPU of its own\. Use --device cuda or cpu"):
        group.check_device(wanted)
    group.check_device("cpu")
