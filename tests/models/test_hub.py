"""Which commit of the hub is loaded and recorded, against a hub on this machine whose repositories move."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import UsageError
from harness.core.registry import ROOT
from harness.data import hub
from harness.models.sources import CheckpointSource
from harness.numerics.configurations import weights_of
from harness.numerics.loading import tokenizer_of
from tests.conftest import Nano
from tests.hub_server import Hub, hub_server, name_of

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


# ---------------------------------------------------------------- a hub that does not answer, and what is asked of it


def test_a_branch_that_nobody_knows_is_asked_for_by_its_own_name(local: Path):
    assert hub.pinned("some-one/model", "tuned") == "tuned", "and not main in its place"
    assert CheckpointSource("some-one/model", revision="tuned").commit == "tuned"


def broken_hub(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*args: Any, **settings: Any) -> Any:
        raise error

    monkeypatch.setattr("harness.data.hub.unreachable", lambda: None)
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", fails)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fails)


def http_error(status: int) -> Exception:
    from types import SimpleNamespace

    from huggingface_hub.errors import HfHubHTTPError

    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError(f"status {status}", response=response)


@pytest.mark.parametrize("error", [ConnectionError("reset"), TimeoutError("slow"), http_error(503), http_error(429)])
def test_no_run_is_named_while_the_hub_does_not_say_the_commit(
    local: Path, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    broken_hub(monkeypatch, error)
    with pytest.raises(UsageError, match=r"did not say which commit 'main' of some-one/model is; try again\. \("):
        _ = CheckpointSource("some-one/model").identity
    remember(local, "models--some-one--model", "main", COMMIT)
    assert hub.commit("some-one/model") == COMMIT
    assert "taking" in caplog.text


def test_a_repository_that_is_not_there_is_told_when_it_is_loaded(local: Path, monkeypatch: pytest.MonkeyPatch):
    broken_hub(monkeypatch, http_error(404))
    assert hub.commit("some-one/model") is None


@pytest.fixture
def serving(local: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, asked by this process; what it holds lies in the local cache afterwards."""
    from huggingface_hub import constants

    with hub_server() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", server.url)
        hub.unreachable.cache_clear()
        yield server
    hub.unreachable.cache_clear()


def test_the_hub_is_asked_once_for_a_file_that_a_commit_has_not(serving: Hub, nano: Nano):
    serving.push("some-one/model", nano.folder())
    source = CheckpointSource("some-one/model")
    found = [source.identity for _ in range(3)]
    assert found[0]["revision"] == name_of(nano.folder())
    assert len([path for path in serving.asked if path.endswith("adapter_config.json")]) == 1


def adapter(folder: Path, base: str) -> Path:
    """What an adapter without weights says of itself."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
    return folder


def test_weights_beside_an_adapter_are_taken_on_the_hub_as_in_a_folder(serving: Hub, nano: Nano, tmp_path: Path):
    alone = adapter(tmp_path / "alone", "some-one/base")
    both = shutil.copytree(nano.folder(), adapter(tmp_path / "both", "some-one/base"), dirs_exist_ok=True)
    (alone / "training_args.bin").write_bytes(b"no weights")
    serving.push("some-one/base", nano.folder())
    for name, folder, base in (("some-one/alone", alone, "some-one/base"), ("some-one/both", both, None)):
        serving.push(name, folder)
        assert weights_of(name) == (base or name, None, True)
        assert weights_of(str(folder)) == (base or str(folder), None, True)
        told: Any = CheckpointSource(name).identity
        assert told.get("base", {}).get("id") == base


def test_an_adapters_own_tokenizer_on_the_hub_is_taken_and_else_its_bases(serving: Hub, nano: Nano, tmp_path: Path):
    serving.push("some-one/base", nano.folder())
    own = adapter(tmp_path / "own", "some-one/base")
    nano.tokenizer.save_pretrained(own)
    about = json.loads((own / "tokenizer_config.json").read_text())
    (own / "tokenizer_config.json").write_text(json.dumps({**about, "chat_template": "its own"}))
    serving.push("some-one/own", own)
    serving.push("some-one/without", adapter(tmp_path / "without", "some-one/base"))
    for name, template in (("some-one/own", "its own"), ("some-one/without", None)):
        source = CheckpointSource(name)
        words = tokenizer_of(name, None, None, weights_of(name), False)
        assert source.tokens().chat_template == words.chat_template == template
        assert words.get_vocab() == nano.tokenizer.get_vocab()


def code(folder: Path, mark: str) -> Path:
    """A repository of code that says which one it is."""
    folder.mkdir()
    text = f"from transformers import LlamaConfig\n\n\nclass Own(LlamaConfig):\n    model_type = 'own'\n    mark = '{mark}'\n"
    (folder / "own.py").write_text(text)
    return folder


@pytest.mark.parametrize("on_the_hub", [True, False])
def test_code_of_another_repository_is_loaded_from_the_commit_that_is_named(
    on_the_hub: bool, serving: Hub, nano: Nano, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    model = shutil.copytree(nano.folder(), tmp_path / "model")
    about = json.loads((model / "config.json").read_text())
    auto_map = {"AutoConfig": "some-one/code--own.Own"}
    (model / "config.json").write_text(json.dumps({**about, "model_type": "own", "auto_map": auto_map}))
    serving.push("some-one/model", model)
    first = serving.push("some-one/code", code(tmp_path / "first", "first"))
    source = CheckpointSource("some-one/model" if on_the_hub else str(model), trust_remote_code=True)
    assert source.identity["code"] == {"run": True, "some-one/code": first}
    serving.push("some-one/code", code(tmp_path / "second", "second"))
    assert getattr(source.config(), "mark", "") == "first"


def test_code_in_several_repositories_is_refused(nano: Nano, tmp_path: Path, local: Path):
    model = shutil.copytree(nano.folder(), tmp_path / "model")
    about = json.loads((model / "config.json").read_text())
    auto_map = {"AutoConfig": "some-one/code--own.Own", "AutoModelForCausalLM": "no-one/code--own.Model"}
    (model / "config.json").write_text(json.dumps({**about, "auto_map": auto_map}))
    with pytest.raises(UsageError, match=r"is in several repositories \(no-one/code, some-one/code\)\. Put it"):
        CheckpointSource(str(model), trust_remote_code=True).config()


def test_the_doctor_looks_over_what_the_local_cache_holds_whole_and_fetches_nothing(serving: Hub, nano: Nano, tmp_path: Path):
    from huggingface_hub import snapshot_download

    from harness.running.doctor import _source

    model = shutil.copytree(nano.folder(), tmp_path / "model")
    for source, whole in ((CheckpointSource("some-one/model"), True), (CheckpointSource("some-one/sharded"), False)):
        if not whole:
            index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
            (shutil.copytree(model, tmp_path / "sharded") / "model.safetensors.index.json").write_text(json.dumps(index))
        serving.push(source.name, model if whole else tmp_path / "sharded")
        assert _source("model", source, None).result == f"hub: {source.name}"
        assert not [path for path in serving.asked if path.endswith("model.safetensors")]
        snapshot_download(source.name, revision=source.commit, endpoint=serving.url)
        assert _source("model", source, None).result == f"hub: {source.name}" + (" (llama, float32)" if whole else "")
        serving.asked.clear()
    spoilt = shutil.copytree(nano.folder(), tmp_path / "spoilt")
    about = json.loads((spoilt / "config.json").read_text())
    (spoilt / "config.json").write_text(json.dumps({**about, "num_hidden_layers": 1}))
    serving.push("some-one/spoilt", spoilt)
    snapshot_download("some-one/spoilt", revision=hub.commit("some-one/spoilt"), endpoint=serving.url)
    finding = _source("model", CheckpointSource("some-one/spoilt"), None)
    assert (finding.fine, "has no place for" in finding.result) == (False, True)
