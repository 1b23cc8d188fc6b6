"""Which commit of the hub is loaded and recorded, against a hub on this machine whose repositories move."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import hub
from harness.models import CheckpointSource
from harness.registry import ROOT

COMMIT = "0123456789" * 4


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """See `tests.hub_story`."""
    root = tmp_path_factory.mktemp("story")
    words = [sys.executable, "-m", "tests.hub_story", str(root)]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert ended.returncode == 0, ended.stderr[-3000:]
    told: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return told


def test_the_first_run_already_names_the_commit(story: dict[str, Any]):
    base = story["first"]["sources"]["base"]
    assert (base["kind"], base["revision"]) == ("hub", story["commits"]["old"])
    assert base["tokenizer"]["revision"] == story["commits"]["tokenizer"]


@pytest.mark.parametrize("when", ["again", "offline"])
def test_the_same_command_is_the_same_run_with_the_hub_and_without(story: dict[str, Any], when: str):
    assert story[when]["id"] == story["first"]["id"]
    assert story[when]["records"] == 1


def test_what_was_planned_is_loaded_though_the_hub_moves_on(story: dict[str, Any]):
    moved = story["moved while it ran"]
    assert (moved["id"], moved["weights"]) == (story["first"]["id"], story["first"]["weights"])


@pytest.mark.parametrize("when", ["after it moved", "offline after it moved"])
def test_what_moved_is_another_run_with_the_new_weights_and_the_new_reference(story: dict[str, Any], when: str):
    first, after = story["first"], story[when]
    assert after["sources"]["base"]["revision"] == story["commits"]["new"] != story["commits"]["old"]
    assert after["id"] != first["id"]
    assert after["weights"] != first["weights"]
    assert after["sources"]["retain-0"]["revision"] != first["sources"]["retain-0"]["revision"]


def test_without_a_network_the_hub_is_not_asked(story: dict[str, Any]):
    assert story["asked offline"] == 0 < story["asked"]


# ---------------------------------------------------------------- the local cache alone


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local cache of the hub, by hand."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "_commits", {})
    return tmp_path


def remember(local: Path, folder: str, branch: str, commit: str) -> None:
    file = local / folder / "refs" / branch
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(commit)


def test_the_local_cache_knows_what_a_branch_stood_for(local: Path):
    remember(local, "models--some-one--model", "main", COMMIT)
    remember(local, "models--some-one--model", "tuned", COMMIT[::-1])
    remember(local, "datasets--some-one--model", "main", "f" * 40)
    assert CheckpointSource("some-one/model").identity == {"kind": "hub", "id": "some-one/model", "revision": COMMIT}
    assert CheckpointSource("some-one/model", revision="tuned").commit == COMMIT[::-1]
    assert hub.commit("some-one/model", kind="dataset") == "f" * 40


def test_a_commit_is_itself_and_what_nobody_knows_is_none(local: Path):
    assert hub.commit("some-one/model", COMMIT) == COMMIT
    assert hub.commit("some-one/model") is None


def test_one_command_keeps_to_one_commit(local: Path):
    remember(local, "models--some-one--model", "main", COMMIT)
    assert hub.commit("some-one/model") == COMMIT
    remember(local, "models--some-one--model", "main", COMMIT[::-1])
    assert hub.commit("some-one/model") == COMMIT


def test_a_worker_keeps_to_its_parents_commits(local: Path, monkeypatch: pytest.MonkeyPatch):
    remember(local, "models--some-one--model", "main", COMMIT)
    hub.commit("some-one/model")
    handed_over = hub.known_commits()
    remember(local, "models--some-one--model", "main", COMMIT[::-1])
    monkeypatch.setattr(hub, "_commits", {})
    hub.take_commits(handed_over)
    assert hub.commit("some-one/model") == COMMIT


def test_a_folder_has_no_commit(tmp_path: Path):
    assert hub.pinned(str(tmp_path)) is None
    assert CheckpointSource(str(tmp_path)).commit is None
