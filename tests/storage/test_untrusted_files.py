"""Files that others made: nothing in them runs, asks at the terminal, or gets further than where it belongs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from harness.core.config import to_json
from harness.core.errors import UsageError, reason, without_secrets
from harness.core.evaluator import GenerationRequest, Sampling
from harness.core.figure import FIGURES, Figure, FigureOptions, Sheet
from harness.core.options import Options
from harness.core.problem import Problem
from harness.models import memory
from harness.models.sources import CheckpointSource, load_checkpoint
from harness.numerics.generation import HFGenerator
from harness.reading.figures import draw
from harness.running.failures import without_paths
from harness.storage.cache import Cache
from harness.storage.records import read_spec
from tests.conftest import Nano
from tests.models.test_models import Touch, change_config
from tests.records import SPEC


@pytest.fixture
def folder(nano: Nano, tmp_path: Path) -> Path:
    return Path(shutil.copytree(nano.folder(), tmp_path / "checkpoint"))


def own_configuration(folder: Path, code: str, marker: Path) -> None:
    (folder / "own.py").write_text(f"{code}class Config: ...\nclass Model: ...\n")
    change_config(folder, auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}, model_type="own")


def own_model_of_a_known_kind(folder: Path, code: str, marker: Path) -> None:
    (folder / "own.py").write_text(f"{code}class Model: ...\n")
    change_config(folder, auto_map={"AutoModelForCausalLM": "own.Model"})


def own_tokenizer(folder: Path, code: str, marker: Path) -> None:
    (folder / "own.py").write_text(f"{code}class Tokenizer: ...\n")
    file = folder / "tokenizer_config.json"
    told = json.loads(file.read_text())
    file.write_text(
        json.dumps({**told, "tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}})
    )


def own_way_of_generating(folder: Path, code: str, marker: Path) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"{code}def generate(model, **_): ...\n")


def pickled_adapter(folder: Path, code: str, marker: Path) -> None:
    import torch

    told = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps({**told, "base_model_name_or_path": str(folder)}))
    torch.save({"weight": Touch(marker)}, folder / "adapter_model.bin")


def pickles_beside_the_weights(folder: Path, code: str, marker: Path) -> None:
    import torch

    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt"):
        torch.save({"weight": Touch(marker)}, folder / name)


def template_that_reaches_for_python(folder: Path, code: str, marker: Path) -> None:
    reach = "{{ cycler.__init__.__globals__.os.system('touch " + str(marker) + "') }}"
    (folder / "chat_template.jinja").write_text(reach + "{% for m in messages %}{{ m.content }}{% endfor %}")


TRAPS = [
    own_configuration,
    own_model_of_a_known_kind,
    own_tokenizer,
    own_way_of_generating,
    pickled_adapter,
    pickles_beside_the_weights,
    template_that_reaches_for_python,
]


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_nothing_in_a_checkpoint_runs_or_asks(
    trap: Callable[[Path, str, Path], None],
    folder: Path,
    tmp_path: Path,
    nano_problem: Problem,
    monkeypatch: pytest.MonkeyPatch,
):
    """Loaded, looked at, generated from: refused in a sentence, or done without what would run."""
    marker = tmp_path / "it ran"
    trap(folder, f"open({str(marker)!r}, 'w').close()\n", marker)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the terminal was asked"))
    source = CheckpointSource(str(folder))
    with suppress(UsageError):
        memory.shape_of(replace(nano_problem, sources={"base": source}), Options())
        source.examine()
        model, tokenizer = load_checkpoint(str(folder), "cpu", "float32")
        chat = bool(tokenizer.chat_template)
        HFGenerator().generate(model, tokenizer, [GenerationRequest(("who",), Sampling(max_tokens=2), chat=chat)])
    assert not marker.exists()


def test_the_word_for_a_checkpoint_is_none_for_the_base_that_its_adapter_names(folder: Path, tmp_path: Path):
    marker = tmp_path / "it ran"
    own_configuration(folder, f"open({str(marker)!r}, 'w').close()\n", marker)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    told = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": str(folder)}
    (adapter / "adapter_config.json").write_text(json.dumps(told))
    with pytest.raises(UsageError, match=r"comes with code of its own.*put the adapter into the base's folder"):
        load_checkpoint(str(adapter), "cpu", "float32", trust_remote_code=True)
    assert not marker.exists()


# ---------------------------------------------------------------- what is left alone


def test_a_cache_in_a_folder_with_other_things_leaves_them_alone(tmp_path: Path):
    """HARNESS_CACHE=~, say."""
    name = "0123456789abcdef" * 2
    others = [
        tmp_path / "thesis" / "chapter",
        tmp_path / "making" / "boat",
        tmp_path / "model" / "notes",
        tmp_path / "elsewhere",
    ]
    for folder in others:
        folder.mkdir(parents=True)
        (folder / "text").write_text("years of work")
    (tmp_path / "model" / name).symlink_to(tmp_path / "elsewhere")
    cache = Cache(tmp_path)
    entry = cache.get("curvature", {"of": "it"}, lambda folder: (folder / "value").write_text("7") and None)
    aside = entry.path.rename(entry.path.with_name(f"{entry.path.name}.corrupt-1"))
    left = tmp_path / "making" / f"model-{name}-left"
    left.mkdir()
    for kind in ("../thesis", "*"):
        with pytest.raises(UsageError, match="no kind of cache entry"):
            cache.clear(kind)
    assert aside.exists()
    assert cache.clear() > 0
    assert not aside.exists()
    assert not left.exists()
    assert [(folder / "text").read_text() for folder in others] == ["years of work"] * 4


# ---------------------------------------------------------------- secrets

SECRETS = {
    "a key": "Incorrect API key provided: my-own-key-7",
    "a key by how it begins": "Bearer sk-proj-0123456789abcdef",
    "a token": "Illegal header value b'Bearer hf_0123456789abcdefghij'",
    "a password": "cannot reach https://me:hunter2@host:8080/x",
}


@pytest.mark.parametrize("what", SECRETS)
def test_a_message_holds_no_secret_wherever_it_is_told(what: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "my-own-key-7")
    text = SECRETS[what]
    for told in (str(UsageError(text)), reason(ValueError(text)), without_paths(text), without_secrets(text)):
        assert not [word for word in ("my-own-key-7", "0123456789", "hunter2", "me:") if word in told], told
        assert text.split()[0] in told


def test_a_message_without_secrets_stays_as_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "x")
    for text in ("write https://HOST/v1, x", "me@host.org", "risk-free-and-more-than-that", "the hf_ of it", "a@b://c"):
        assert without_secrets(text) == text


# ---------------------------------------------------------------- records


@pytest.mark.parametrize("name", ["../../elsewhere", "/etc", "..", "", "a/b", "a\\b", "a\0b", "a\nb", "x" * 200, ".hidden"])
@pytest.mark.parametrize("field", ["bench", "method"])
def test_a_record_does_not_lead_out_of_the_store(field: str, name: str):
    told = to_json(SPEC)
    assert read_spec(told) == SPEC
    with pytest.raises(ValueError, match=field):
        read_spec({**told, field: name})


def test_a_figures_file_lies_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import pandas as pd

    sheet = Sheet(pd.DataFrame({"a": [1]}), pd.DataFrame({"a": ["1"]}), "A table", ())
    monkeypatch.setattr(FIGURES, "get", lambda name: Figure(name, lambda runs, options: {"tofu10-../../x": sheet}))
    (file,) = draw("pareto", pd.DataFrame(), FigureOptions(tmp_path), tmp_path / "out", ["csv"])
    assert file.parent == tmp_path / "out"
    assert file.is_file()
