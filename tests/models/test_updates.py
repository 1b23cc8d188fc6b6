"""Updates of weights: put on, taken back, bit by bit, and refused where they do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.core.errors import UsageError
from harness.models.sources import CheckpointSource, read_sidecar, save_checkpoint, weights_fingerprint
from harness.models.updates import UNDO, added, changed, difference, put_onto, take_back
from harness.numerics.loading import load_checkpoint
from harness.storage.cache import Cache
from tests.conftest import HarnessCli, Nano

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ABOUT = {"run": "0123", "method": "kfade"}


def numbers(seed: int, dtype: torch.dtype) -> torch.Tensor:
    """Of all sizes from 1e-4 to 1, of both signs."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(2, 100_000, generator=generator, dtype=torch.float64)
    return (10 ** (-4 * draws[0]) * (draws[1] - 0.5).sign()).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_update_on_its_own_base_gives_the_unlearned_weights_bit_by_bit(dtype: torch.dtype):
    old, new = numbers(0, dtype), numbers(1, dtype)
    update = difference(new, old)
    assert added(old, update).equal(new)
    assert update.dtype == (torch.float64 if dtype == torch.float32 else torch.float32)


def test_in_float32_alone_it_would_not():
    old, new = numbers(0, torch.float32), numbers(1, torch.float32)
    assert not (old + (new - old)).equal(new)


@pytest.fixture
def update(nano: Nano, tmp_path: Path) -> Path:
    """From the nano model 0 to 1, in some of their tensors."""
    old, new = nano.model(0).state_dict(), nano.model(1).state_dict()
    moved = {name: tensor for name, tensor in changed(new, old).items() if "mlp" in name}
    save_file(moved, tmp_path / "update.safetensors", metadata=ABOUT)
    return tmp_path / "update.safetensors"


def loaded(folder: Path, dtype: str = "float32") -> PreTrainedModel:
    return load_checkpoint(str(folder), "cpu", dtype)[0]


def test_it_is_put_onto_another_checkpoint_and_taken_back(nano: Nano, update: Path, tmp_path: Path, cache: Cache):
    out, back = tmp_path / "out", tmp_path / "back"
    moved = put_onto(update, CheckpointSource(str(nano.folder(2))), out, cache)
    assert moved == 6
    there, given = nano.model(2).state_dict(), load_file(update)
    after = loaded(out).state_dict()
    for name, tensor in there.items():
        assert after[name].equal((tensor.double() + given[name]).float() if name in given else tensor)
    assert take_back(out, back, cache) == 6
    assert weights_fingerprint(loaded(back)) == weights_fingerprint(nano.model(2))
    assert read_sidecar(back) == {}


def test_on_the_base_itself_it_gives_the_unlearned_weights(nano: Nano, update: Path, tmp_path: Path, cache: Cache):
    put_onto(update, nano.source(0), tmp_path / "out", cache)
    after, wanted = loaded(tmp_path / "out").state_dict(), nano.model(1).state_dict()
    assert all(after[name].equal(wanted[name]) for name in load_file(update))


def test_a_bfloat16_checkpoint_stays_one_and_comes_back_exactly(nano: Nano, update: Path, tmp_path: Path, cache: Cache):
    model = nano.model(2).to(torch.bfloat16)
    save_checkpoint(model, nano.tokenizer, tmp_path / "onto", {"model": "mini"})
    put_onto(update, CheckpointSource(str(tmp_path / "onto")), tmp_path / "out", cache)
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert read_sidecar(tmp_path / "out")["model"] == "mini"
    take_back(tmp_path / "out", tmp_path / "back", cache)
    assert weights_fingerprint(loaded(tmp_path / "back", "bfloat16")) == weights_fingerprint(model)


def test_tied_embeddings_are_moved_once(nano: Nano, tmp_path: Path, cache: Cache):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = nano.model().config.to_dict() | {"tie_word_embeddings": True}
    model = LlamaForCausalLM(LlamaConfig(**config))
    save_checkpoint(model, nano.tokenizer, tmp_path / "onto", {})
    names = ("lm_head.weight", "model.embed_tokens.weight")
    save_file({name: torch.ones_like(model.lm_head.weight) for name in names}, tmp_path / "update", metadata=ABOUT)
    put_onto(tmp_path / "update", CheckpointSource(str(tmp_path / "onto")), tmp_path / "out", cache)
    assert loaded(tmp_path / "out").lm_head.weight.equal((model.lm_head.weight.double() + 1).float())


@pytest.mark.parametrize(
    ("tensors", "metadata", "told"),
    [
        ({"model.layers.7.mlp.up_proj.weight": torch.ones(24, 16)}, ABOUT, r"updates model\.layers\.7.* does not have"),
        ({"model.layers.0.mlp.up_proj.weight": torch.ones(25, 16)}, ABOUT, r"as \[25, 16\], in .* it is \[24, 16\]"),
        ({"lm_head.weight": torch.ones(1)}, None, "is no update; harness run --save-update FILE writes one"),
    ],
)
def test_what_does_not_fit_is_refused(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None, told: str, nano: Nano, tmp_path: Path, cache: Cache
):
    save_file(tensors, tmp_path / "update", metadata=metadata)
    with pytest.raises(UsageError, match=told) as refusal:
        put_onto(tmp_path / "update", nano.source(0), tmp_path / "out", cache)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_files_and_folders_that_are_none_are_refused(nano: Nano, update: Path, tmp_path: Path, cache: Cache):
    (tmp_path / "text").write_text("no tensors")
    for file in (tmp_path / "text", tmp_path / "missing"):
        with pytest.raises(UsageError, match="is no safetensors file"):
            put_onto(file, nano.source(0), tmp_path / "out", cache)
    with pytest.raises(UsageError, match="is not empty"):
        put_onto(update, nano.source(0), nano.folder(0), cache)
    with pytest.raises(UsageError, match="holds no checkpoint that harness transfer wrote"):
        take_back(nano.folder(0), tmp_path / "back", cache)


def test_what_was_changed_since_is_not_taken_back(nano: Nano, update: Path, tmp_path: Path, cache: Cache):
    out = tmp_path / "out"
    put_onto(update, nano.source(2), out, cache)
    kept = load_file(out / UNDO)
    name = next(iter(kept))
    save_file({**kept, name: kept[name] + 1}, out / UNDO)
    with pytest.raises(UsageError, match="it was changed"):
        take_back(out, tmp_path / "back", cache)
    weights = load_file(out / "model.safetensors")
    save_file({**weights, name: weights[name] + 1}, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="have changed since"):
        take_back(out, tmp_path / "back", cache)


def test_the_command(harness_cli: HarnessCli, nano: Nano, update: Path, tmp_path: Path):
    out, back = str(tmp_path / "out"), str(tmp_path / "back")
    done = harness_cli("transfer", "--update", str(update), "--onto", str(nano.folder(2)), "--out", out)
    assert done.returncode == 0, done.stderr
    assert "6 tensors moved" in done.stdout
    assert f"--undo {out}" in done.stdout
    done = harness_cli("transfer", "--undo", out, "--out", back)
    assert done.returncode == 0, done.stderr
    assert weights_fingerprint(loaded(Path(back))) == weights_fingerprint(nano.model(2))
    for words in ((), ("--update", str(update), "--out", back), ("--undo", out), ("--undo", out, "--update", str(update))):
        refused = harness_cli("transfer", *words)
        assert refused.returncode == 2
        assert "--onto CHECKPOINT" in refused.stderr


def tied_and_untied(nano: Nano, tmp_path: Path) -> tuple[Path, Path]:
    """The same weights with one embedding and with two that are equal."""
    from transformers import AutoModelForCausalLM

    for name, tied in (("tied", True), ("untied", False)):
        model = nano.model(2)
        model.lm_head.weight.data.copy_(model.get_input_embeddings().weight.data)
        model.config.tie_word_embeddings = tied
        save_checkpoint(model, nano.tokenizer, tmp_path / name, {})
        again = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert (again.lm_head.weight is again.get_input_embeddings().weight) == tied
    return tmp_path / "tied", tmp_path / "untied"


def test_an_update_of_two_embeddings_is_not_put_onto_one(nano: Nano, tmp_path: Path, cache: Cache):
    tied, _ = tied_and_untied(nano, tmp_path)
    old, new = nano.model(0).state_dict(), nano.model(1).state_dict()
    moved = changed(new, old)
    for names in ({"lm_head.weight", "model.embed_tokens.weight"}, {"lm_head.weight"}, {"model.embed_tokens.weight"}):
        save_file({name: moved[name] for name in names}, tmp_path / "update.safetensors", metadata=ABOUT)
        with pytest.raises(UsageError, match=r"are one tensor in .*does not move them alike"):
            put_onto(tmp_path / "update.safetensors", CheckpointSource(str(tied)), tmp_path / "out", cache)
        assert not (tmp_path / "out").exists()


def test_an_update_of_one_embedding_moves_both_of_another_model_alike_and_is_taken_back(
    nano: Nano, tmp_path: Path, cache: Cache
):
    tied, untied = tied_and_untied(nano, tmp_path)
    old = loaded(tied).state_dict()
    step = torch.linspace(-1, 1, old["lm_head.weight"].numel()).view_as(old["lm_head.weight"])
    names = ("lm_head.weight", "model.embed_tokens.weight")
    save_file({name: step.clone() for name in names}, tmp_path / "update.safetensors", metadata=ABOUT)
    for onto in (tied, untied):
        out = tmp_path / f"{onto.name}-out"
        put_onto(tmp_path / "update.safetensors", CheckpointSource(str(onto)), out, cache)
        state = loaded(out).state_dict()
        assert all(torch.equal(state[name], added(old[name], step)) for name in names)
        take_back(out, tmp_path / f"{onto.name}-back", cache)
        assert weights_fingerprint(loaded(tmp_path / f"{onto.name}-back")) == weights_fingerprint(loaded(onto))


def test_a_type_that_the_configuration_does_not_name_is_kept(nano: Nano, update: Path, tmp_path: Path, cache: Cache):
    import json

    save_checkpoint(nano.model(2).to(torch.bfloat16), nano.tokenizer, tmp_path / "onto", {})
    config = json.loads((tmp_path / "onto" / "config.json").read_text())
    (tmp_path / "onto" / "config.json").write_text(json.dumps({**config, "dtype": None}))
    put_onto(update, CheckpointSource(str(tmp_path / "onto")), tmp_path / "out", cache)
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
