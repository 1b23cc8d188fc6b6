"""Checkpoints: what is loaded, what is refused, and what names their weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.core.benchmark import BENCHMARKS
from harness.core.errors import UsageError
from harness.core.options import Options
from harness.models.sources import CheckpointSource, read_sidecar, save_checkpoint, source_digest, weights_fingerprint
from harness.numerics.loading import load_checkpoint
from harness.numerics.placement import plain_attention
from harness.storage.cache import Cache
from tests.conftest import WORLD, Nano


@pytest.fixture
def folder(nano: Nano, tmp_path: Path) -> Path:
    """A checkpoint of one's own, to be spoilt."""
    return shutil.copytree(nano.folder(), tmp_path / "checkpoint")


def load(folder: Path) -> Any:
    return load_checkpoint(str(folder), "cpu", "float32")


# ---------------------------------------------------------------- round trip


def test_a_saved_checkpoint_is_an_ordinary_one(nano: Nano, tmp_path: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = nano.model()
    save_checkpoint(model, nano.tokenizer, tmp_path / "a" / "b", {"model": "mini"})
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {f.name for f in (tmp_path / "a" / "b").iterdir()}

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a" / "b")
    question = str(WORLD.full[0]["question"])
    assert tokenizer(question)["input_ids"] == nano.tokenizer(question)["input_ids"]
    ids = torch.tensor([tokenizer(question)["input_ids"]])
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "b").eval()
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("rotation", "older"),
    [
        ({"rope_type": "default", "rope_theta": 500_000.0}, {"rope_theta": 500_000.0}),
        (
            {**LLAMA3, "rope_theta": 500_000.0, "original_max_position_embeddings": 64},
            {"rope_theta": 500_000.0, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64}},
        ),
    ],
)
def test_transformers_4_reads_what_we_save_as_we_do(
    nano: Nano, tmp_path: Path, rotation: dict[str, Any], older: dict[str, Any]
):
    """It would refuse the tokenizer's class, and turn positions with a base of 10,000 and no scaling (4.51.3 did)."""
    model, tokenizer = load_checkpoint(str(nano.folder()), "cpu", "bfloat16")
    model.config.rope_parameters = rotation
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    save_checkpoint(model, tokenizer, tmp_path, {})
    config, tokens = (json.loads((tmp_path / f"{name}config.json").read_text()) for name in ("", "tokenizer_"))
    assert {name: config[name] for name in older} == older
    assert (config["rope_parameters"], config["torch_dtype"]) == (rotation, "bfloat16")
    assert tokens["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (tokens["additional_special_tokens"], "extra_special_tokens" in tokens) == (["<turn>"], False)

    from transformers import AutoConfig, AutoTokenizer

    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == rotation, "and so do we"
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.all_special_tokens == tokenizer.all_special_tokens
    assert again("a <turn> a")["input_ids"] == tokenizer("a <turn> a")["input_ids"]


def test_a_loaded_checkpoint_has_the_weights_it_was_saved_with_and_is_in_eval_mode(nano: Nano, cache: Cache):
    model, tokenizer = nano.source(3).load(cache, "cpu", "float32")
    assert weights_fingerprint(model) == weights_fingerprint(nano.model(3))
    assert not model.training
    assert tokenizer.get_vocab() == nano.tokenizer.get_vocab()


@pytest.mark.parametrize(("device", "kept"), [("cpu", True), ("cuda:1", False), ("cuda:all", False)])
def test_on_a_gpu_no_attention_plans_each_shape_anew(device: str, kept: bool, monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr("torch.backends.cuda.enable_cudnn_sdp", lambda on: setattr(torch, "_allowed", on))
    monkeypatch.setattr(torch, "_allowed", True, raising=False)
    plain_attention(device)
    assert torch._allowed is kept


def test_a_model_that_is_loaded_says_where_attention_is_to_run(nano: Nano, cache: Cache, monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []
    monkeypatch.setattr("harness.numerics.loading.plain_attention", seen.append)
    nano.source().load(cache, "cpu", "float32")
    assert seen == ["cpu"]


@pytest.mark.parametrize(("least", "dtype", "wide"), [(1, "float32", True), (1, "bfloat16", False), (512, "float32", False)])
def test_a_wide_model_is_loaded_so_that_onednn_multiplies(
    least: int, dtype: str, wide: bool, nano: Nano, cache: Cache, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("torch").backends.mkldnn.is_available() or pytest.skip("this torch was built without oneDNN")
    monkeypatch.setattr("harness.numerics.products.LEAST_WIDTH", least)
    model, _ = nano.source().load(cache, "cpu", dtype)
    assert ("OnednnLinear" in {type(module).__name__ for module in model.modules()}) is wide


def test_a_checkpoint_is_loaded_in_the_type_asked_for(nano: Nano, cache: Cache):
    import torch

    model, _ = nano.source().load(cache, "cpu", "bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert weights_fingerprint(model) == weights_fingerprint(nano.model().to(torch.bfloat16))


def test_what_a_checkpoint_is_about_lies_beside_it(nano: Nano, tmp_path: Path):
    save_checkpoint(nano.model(), nano.tokenizer, tmp_path / "c", {"model": "mini@1", "run": "abc"})
    assert read_sidecar(tmp_path / "c") == {"model": "mini@1", "run": "abc"}
    assert read_sidecar(tmp_path) == {}
    assert read_sidecar(None) == {}


def test_a_tokenizer_may_lie_elsewhere(folder: Path, nano: Nano, cache: Cache):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    source = CheckpointSource(str(folder), tokenizer=str(nano.folder()))
    _, tokenizer = source.load(cache, "cpu", "float32")
    assert tokenizer.get_vocab() == nano.tokenizer.get_vocab()


# ---------------------------------------------------------------- refused


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match=rf"there is no checkpoint folder {tmp_path}/nowhere"):
        load(tmp_path / "nowhere")


def test_a_hub_id_that_cannot_be_had_is_named():
    with pytest.raises(
        UsageError, match=r"tokenizer of no-one/nothing is not in the hub's local cache.* as DIR/no-one/nothing"
    ):
        load_checkpoint("no-one/nothing", "cpu", "float32")


def test_a_repository_behind_a_gate_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub.errors import GatedRepoError
    from transformers import AutoTokenizer

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("Access is restricted.") from GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
    monkeypatch.setattr("harness.numerics.loading.unreachable", lambda: None)
    with pytest.raises(UsageError, match=r"^some-one/gated is behind a licence gate: .*HF_TOKEN"):
        load_checkpoint("some-one/gated", "cpu", "float32")


def test_a_checkpoint_without_a_tokenizer_is_refused(folder: Path):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UsageError, match=rf"{folder}.*tokenizer|tokenizer.*{folder}"):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_checkpoint_without_its_model_is_refused(folder: Path, name: str):
    (folder / name).unlink()
    with pytest.raises(UsageError, match=f"of {folder} cannot be loaded"):
        load(folder)


@pytest.mark.parametrize("size", [0, 50, 2000])
def test_weights_that_were_cut_off_are_refused(folder: Path, size: int):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UsageError, match=f"of {folder} cannot be loaded"):
        load(folder)


def test_weights_that_lack_a_tensor_are_refused(folder: Path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="up_proj"):
        load(folder)


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_weights_of_another_shape_than_the_config_says_are_refused(folder: Path):
    change_config(folder, intermediate_size=32)
    with pytest.raises(UsageError, match=rf"the weights of {folder} do not fit .*down_proj.weight is \[16, 24\].* \[16, 32\]"):
        load(folder)


def test_an_architecture_nobody_knows_is_refused(folder: Path):
    change_config(folder, model_type="no_such_model", architectures=["NoSuchModel"])
    with pytest.raises(UsageError, match=f"of {folder} cannot be loaded"):
        load(folder)


def test_a_tokenizer_larger_than_its_model_is_refused_with_both_sizes(nano: Nano, tmp_path: Path):
    model = nano.model()
    model.resize_token_embeddings(10)
    save_checkpoint(model, nano.tokenizer, tmp_path / "c", {})
    with pytest.raises(UsageError, match=rf"has {len(nano.tokenizer)} tokens, its model only 10"):
        load(tmp_path / "c")


def test_code_that_comes_with_a_checkpoint_is_not_run(folder: Path, tmp_path: Path):
    marker = tmp_path / "it ran"
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Config: ...\nclass Model: ...\n")
    auto_map = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    change_config(folder, model_type="own", architectures=["Model"], auto_map=auto_map)
    with pytest.raises(UsageError, match=r"comes with code of its own, which is not run.*--trust-remote-code"):
        load(folder)
    assert not marker.exists()


class Touch:
    """Unpickling one of these makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_weights_that_would_run_code_when_unpickled_are_refused_and_not_run(folder: Path, nano: Nano, tmp_path: Path):
    import torch

    marker = tmp_path / "it ran"
    (folder / "model.safetensors").unlink()
    torch.save({**nano.model().state_dict(), "more": Touch(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"could run code when loaded.*safetensors"):
        load(folder)
    assert not marker.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert marker.exists(), "the file does run code when it is unpickled in full"


def test_weights_in_an_honest_bin_file_are_loaded(folder: Path, nano: Nano):
    import torch

    (folder / "model.safetensors").unlink()
    torch.save(nano.model().state_dict(), folder / "pytorch_model.bin")
    model, _ = load(folder)
    assert weights_fingerprint(model) == weights_fingerprint(nano.model())


# ---------------------------------------------------------------- names of weights


def test_a_fingerprint_changes_with_one_bit(nano: Nano):
    import torch

    model = nano.model()
    before = weights_fingerprint(model)
    bits = model.lm_head.weight.data.view(torch.int32)
    bits[-1, -1] ^= 1
    assert weights_fingerprint(model) != before
    bits[-1, -1] ^= 1
    assert weights_fingerprint(model) == before


def test_a_fingerprint_tells_types_and_names_apart():
    import torch

    def of(**tensors: torch.Tensor) -> str:
        module = torch.nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return weights_fingerprint(module)

    zeros = torch.zeros(4)
    found = [of(a=zeros), of(b=zeros), of(a=zeros.view(2, 2)), of(a=zeros.bfloat16()), of(a=-zeros), of(a=zeros, b=zeros)]
    assert len(set(found)) == len(found)


def test_a_folders_identity_is_its_content_and_not_its_place(folder: Path, nano: Nano):
    here, there = nano.source(), CheckpointSource(str(folder))
    assert here.identity == there.identity
    assert source_digest(here) == source_digest(there)
    told = json.dumps(there.identity)
    assert str(folder) not in told
    assert folder.name not in told


def test_a_folders_identity_changes_with_its_weights_and_its_tokenizer(folder: Path, nano: Nano):
    before = CheckpointSource(str(folder)).identity
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        file = folder / name
        content = file.read_bytes()
        file.write_bytes(content + b" ")
        assert CheckpointSource(str(folder)).identity != before, name
        file.write_bytes(content)
    (folder / "harness.json").write_text("{}")
    assert CheckpointSource(str(folder)).identity == before, "what it is about does not change what it is"


def test_another_tokenizer_makes_another_identity(folder: Path, nano: Nano):
    assert CheckpointSource(str(folder), tokenizer=str(nano.folder())).identity != CheckpointSource(str(folder)).identity


def test_a_folder_laid_out_by_hub_id_stands_for_the_hub(nano: Nano, tmp_path: Path, cache: Cache):
    shutil.copytree(nano.folder(3), tmp_path / "some-one" / "model")
    shutil.copytree(nano.folder(), tmp_path / "some-one" / "tokenizer")
    for file in (tmp_path / "some-one" / "model").glob("tokenizer*"):
        file.unlink()
    source = CheckpointSource("some-one/model", tokenizer="some-one/tokenizer", data_dir=tmp_path)
    model, _ = source.load(cache, "cpu", "float32")
    assert weights_fingerprint(model) == weights_fingerprint(nano.model(3))
    told = json.dumps(source.identity)
    assert source.identity["kind"] == source.identity["tokenizer"]["kind"] == "folder"
    assert str(tmp_path) not in told
    elsewhere = shutil.copytree(tmp_path, tmp_path.parent / "elsewhere")
    assert CheckpointSource("some-one/model", tokenizer="some-one/tokenizer", data_dir=elsewhere).identity == source.identity


def test_what_the_data_folder_lacks_is_asked_of_the_hub(tmp_path: Path):
    (tmp_path / "some-one" / "empty").mkdir(parents=True)
    for name in ("some-one/empty", "some-one/nothing"):
        source = CheckpointSource(name, revision="abc", data_dir=tmp_path)
        assert source.folder is None
        assert source.identity == {"kind": "hub", "id": name, "revision": "abc"}


def test_what_is_not_certain_about_a_checkpoint_is_told_when_it_cannot_be_had(tmp_path: Path, cache: Cache):
    source = CheckpointSource("no-one/nothing", data_dir=tmp_path, doubt="its id is a guess")
    with pytest.raises(UsageError, match=r"no-one/nothing.* Mind that its id is a guess\.$"):
        source.load(cache, "cpu", "float32")


def test_all_gpus_are_refused_where_there_are_none(monkeypatch: pytest.MonkeyPatch):
    import torch

    from harness.numerics.placement import pick_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="cuda:all spreads a model over all GPUs, and this machine has none"):
        pick_device("cuda:all")


def test_a_hub_checkpoint_is_named_by_id_and_revision():
    source = CheckpointSource("some-one/something", revision="abc")
    assert source.identity == {"kind": "hub", "id": "some-one/something", "revision": "abc"}
    assert source_digest(source) != source_digest(CheckpointSource("some-one/something", revision="abd"))


def test_a_saved_mini_model_has_minis_presets(tmp_path: Path):
    from harness.running.plan import plan

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "harness.json").write_text('{"model": "mini@1", "run": "0"}')
    saved, usual = (plan("tofu10", model, "npo", {}, Options(limit=2)) for model in (str(tmp_path / "out"), "mini@1"))
    assert saved.config == usual.config
    assert saved.problem.stages == usual.problem.stages
    assert saved.spec.run_id != usual.spec.run_id


def beside(folder: Path, **about: str) -> str:
    """A folder with such a sidecar and nothing else, which is enough for a plan."""
    folder.mkdir()
    (folder / "harness.json").write_text(json.dumps(about))
    return str(folder)


@pytest.mark.parametrize(("model", "template"), [("scratch", "scratch"), ("phi-1.5", "phi"), ("llama2-7b", "llama2")])
def test_a_saved_model_comes_back_under_its_template_and_with_its_presets(tmp_path: Path, model: str, template: str):
    from harness.running.plan import plan
    from tests.models.test_cards import write_rows

    write_rows(tmp_path / "data")
    out = beside(tmp_path / "out", model=model, template=template, bench="tofu10", run="0")
    options = Options(limit=2, data_dir=tmp_path / "data")
    for method in ("npo", "simnpo", "elm", *(["kfade"] if model == "scratch" else [])):
        saved, usual = (plan("tofu10", name, method, {}, options) for name in (out, model))
        assert saved.config == usual.config
        assert saved.spec.template == usual.spec.template
        assert saved.problem.stages == usual.problem.stages
    if model == "scratch":
        assert list(saved.problem.sources) == list(usual.problem.sources), "with its retrained model"
    assert not any("guessed" in note for note in saved.problem.notes)


def test_a_template_of_another_benchmark_is_guessed_as_ever(tmp_path: Path, nano: Nano):
    from tests.models.test_cards import write_rows

    write_rows(tmp_path / "data")
    out = shutil.copytree(nano.folder(), tmp_path / "out")
    (out / "harness.json").write_text('{"model": "zephyr-7b", "template": "zephyr", "bench": "wmdp"}')
    problem = BENCHMARKS.get("tofu10").problem(str(out), Options(limit=2, data_dir=tmp_path / "data"))
    assert (problem.template.name, problem.family) == ("llama2", "")
    assert any("guessed" in note for note in problem.notes)


@pytest.mark.parametrize(
    ("about", "kept"),
    [
        ({"model": "mini@1", "template": "mini", "bench": "tofu10"}, {"model": "mini@1", "template": "mini"}),
        ({"model": "phi-1.5", "template": "phi"}, {"model": "phi-1.5", "template": "phi"}),
        ({"model": "", "template": "llama3"}, {"model": "", "template": "llama3"}),
    ],
)
def test_a_model_saved_once_more_is_still_what_it_was(tmp_path: Path, about: dict[str, str], kept: dict[str, str]):
    """Whatever its folder is called, the world's seed included."""
    from harness.running.plan import plan
    from harness.running.run import _about
    from tests.models.test_cards import write_rows

    write_rows(tmp_path / "data")
    out = beside(tmp_path / "minimal", **about)
    todo = plan("tofu10", out, "npo", {}, Options(limit=2, data_dir=tmp_path / "data"))
    assert _about(todo) == {**kept, "bench": "tofu10", "run": todo.spec.run_id}


@pytest.mark.parametrize("content", ["{bad", "[]", "\x00"])
def test_a_sidecar_that_is_none_is_named(tmp_path: Path, content: str):
    from harness.models.sources import SIDECAR, read_sidecar

    (tmp_path / SIDECAR).write_text(content)
    with pytest.raises(UsageError, match=f"{SIDECAR} of .* was not written by this harness"):
        read_sidecar(tmp_path)
