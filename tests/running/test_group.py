"""One command that a launcher begins several times: one record, one table, and one sentence where a process ends."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import UsageError
from harness.numerics import group
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

    def run(*words: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
        request = ["run", "--bench", "nano", "--results", str(tmp_path / "results"), *words]
        return launched.launch(processes, "harness", *request, env={"HARNESS_CACHE": str(tmp_path / "cache")})

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
    words = ["--method", "kfade", "--set", "kl_rows=7", "--set", "step_size=0.01", "--budgets", ".01,.02"]
    done = launch(*words)
    assert done.returncode == 0, done.stderr
    assert (done.stdout.count("record: "), said(done)) == (1, [])
    record = records(tmp_path)["kfade"]
    assert (record["status"], record["provenance"]["processes"]) == ("done", 2)
    assert list(problems(Store(tmp_path / "results"))) == []
    again = launch(*words, processes=1)
    assert "shown as recorded" in again.stdout  # how many processes there were is no part of a run's name


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


@pytest.mark.parametrize("wanted", ["cuda:all", "cuda:1", "mps"])
def test_every_process_has_a_device_of_its_own(wanted: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(group, "_group", group._Group(0, 2, 0, store=None))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"each takes a GPU of its own\. Use --device cuda or cpu"):
        group.check_device(wanted)
    group.check_device("cpu")
