"""Checkpoints as people have them: adapters, multimodal ones, odd tokenizers, misfits; loaded right or refused in one sentence."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from harness.core.errors import UsageError
from harness.core.text import Example
from harness.data.rows import encode, token_ids
from harness.models.sources import CheckpointSource, save_checkpoint, weights_fingerprint
from harness.numerics.loading import examine, load_checkpoint
from harness.storage.cache import Cache
from tests import architectures
from tests.conftest import HarnessCli, Nano

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IDS = torch.tensor([[3, 5, 8, 13, 21]])
OPT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}


@pytest.fixture
def folder(nano: Nano, tmp_path: Path) -> Path:
    """A checkpoint of one's own, to be spoilt."""
    return shutil.copytree(nano.folder(), tmp_path / "checkpoint")


def load(folder: Path, dtype: str = "float32", **others: Any) -> PreTrainedModel:
    return load_checkpoint(str(folder), "cpu", dtype, **others)[0]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def made(nano: Nano, folder: Path, config: Any, tokenizer: Any = None) -> Any:
    """A random model of a configuration, saved with the nano tokenizer."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    save_checkpoint(model, tokenizer or nano.tokenizer, folder, {})
    return model


# ---------------------------------------------------------------- adapters


def put_adapter(folder: Path, base: Path, **settings: Any) -> torch.Tensor:
    """Save a LoRA adapter with random weights of a base into a folder; what base and adapter say together."""
    from peft import LoraConfig, get_peft_model

    plain = transformers.AutoModelForCausalLM.from_pretrained(base, adapter_kwargs={"subfolder": "nowhere"})
    torch.manual_seed(1)
    config = LoraConfig(**{"r": 2, "target_modules": ["up_proj", "q_proj"], "init_lora_weights": False, **settings})
    model = get_peft_model(plain, config)
    model.save_pretrained(folder)
    return logits(model)


def test_an_adapter_beside_the_weights_is_merged_into_them(folder: Path, nano: Nano, caplog: pytest.LogCaptureFixture):
    together = put_adapter(folder, folder)
    with caplog.at_level(logging.WARNING):
        model = load(folder)
    assert torch.allclose(logits(model), together, atol=1e-4)
    assert not torch.allclose(logits(model), logits(nano.model()), atol=1e-2)
    assert "merged into the weights (in float32)" in caplog.text
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in nano.model().named_parameters()]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_merged_model_is_saved_whole(folder: Path, nano: Nano, tmp_path: Path):
    together = put_adapter(folder, folder, use_dora=True)
    save_checkpoint(load(folder), nano.tokenizer, tmp_path / "out", {})
    assert {f.name for f in (tmp_path / "out").iterdir()} >= {"config.json", "model.safetensors"}
    assert not list((tmp_path / "out").glob("adapter*"))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(logits(again), together, atol=1e-4)


@pytest.mark.parametrize("in_data_folder", [False, True])
def test_an_adapter_alone_is_merged_into_the_base_it_names(in_data_folder: bool, nano: Nano, tmp_path: Path, cache: Cache):
    base = shutil.copytree(nano.folder(), tmp_path / "data" / "some-one" / "base")
    alone = tmp_path / "alone"
    together = put_adapter(alone, base)
    if in_data_folder:
        change(alone / "adapter_config.json", base_model_name_or_path="some-one/base")
    source = CheckpointSource(str(alone), data_dir=tmp_path / "data" if in_data_folder else None)
    model, tokenizer = source.load(cache, "cpu", "float32")
    assert torch.allclose(logits(model), together, atol=1e-4)
    assert tokenizer.get_vocab() == nano.tokenizer.get_vocab()
    assert source.config().hidden_size == 16


def test_the_identity_of_an_adapter_names_its_files_and_its_bases(nano: Nano, tmp_path: Path):
    base = shutil.copytree(nano.folder(), tmp_path / "base")
    put_adapter(tmp_path / "alone", base)
    source = CheckpointSource(str(tmp_path / "alone"))
    before = json.dumps(source.identity)
    assert "adapter_model.safetensors" in before
    assert str(tmp_path) not in before
    shutil.copy(nano.folder(3) / "model.safetensors", base / "model.safetensors")
    assert json.dumps(source.identity) != before, "another base is another model"


def test_an_adapter_whose_base_is_not_there_names_it(nano: Nano, tmp_path: Path):
    alone = tmp_path / "alone"
    put_adapter(alone, nano.folder())
    change(alone / "adapter_config.json", base_model_name_or_path="some-one/base")
    with pytest.raises(UsageError, match=r"of some-one/base is not in the hub's local cache.*DIR/some-one/base"):
        load(alone)
    change(alone / "adapter_config.json", base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(UsageError, match=f"an adapter alone, for the model in {tmp_path}/gone, which is not there"):
        load(alone)
    change(alone / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(UsageError, match="does not name its base"):
        load(alone)


@pytest.mark.parametrize("there", ["a", "b"])
def test_an_adapter_of_an_adapter_is_refused(there: str, tmp_path: Path):
    """Also where the two name each other, or one itself."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        about = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / (there if name == "a" else "a"))}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(about))
    with pytest.raises(UsageError, match=rf"is an adapter, and its base {tmp_path}/{there} is or has one, too; merge that one"):
        _ = CheckpointSource(str(tmp_path / "a")).identity


def test_an_adapter_alone_has_its_bases_tokenizer_for_texts_too(nano: Nano, tmp_path: Path):
    put_adapter(tmp_path / "alone", nano.folder())
    assert CheckpointSource(str(tmp_path / "alone")).tokens().get_vocab() == nano.tokenizer.get_vocab()


def test_adapters_that_do_not_fit_are_refused(folder: Path, nano: Nano):
    put_adapter(folder, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    for spoilt in (
        {name: tensor[:, :1].contiguous() for name, tensor in weights.items()},
        dict(list(weights.items())[1:]),
    ):
        save_file(spoilt, folder / "adapter_model.safetensors")
        with pytest.raises(UsageError, match=f"the adapter of {folder} (cannot be put onto its base|lacks some)"):
            load(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UsageError, match=f"the adapter of {folder} cannot be put onto its base"):
        load(folder)


@pytest.mark.parametrize("content", ["null", "[]", "{", '{"peft_type": 3}'])
def test_an_adapter_configuration_that_is_none_is_refused(folder: Path, content: str):
    (folder / "adapter_config.json").write_text(content)
    with pytest.raises(UsageError, match=r"adapter_config\.json"):
        load(folder)


def test_an_adapter_of_prompts_cannot_be_merged(folder: Path):
    from peft import PromptTuningConfig, get_peft_model

    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    get_peft_model(plain, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)).save_pretrained(folder)
    with pytest.raises(UsageError, match="of the kind prompt tuning, which cannot be merged into weights"):
        load(folder)


# ---------------------------------------------------------------- multimodal


def gemma3(vocabulary: int) -> Any:
    text = transformers.Gemma3TextConfig(
        vocab_size=vocabulary, head_dim=8, query_pre_attn_scalar=8, num_key_value_heads=1, **TEXT
    )
    sight = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = transformers.SiglipVisionConfig(image_size=28, patch_size=14, **sight)
    return transformers.Gemma3Config(
        text_config=text.to_dict(), vision_config=vision.to_dict(), mm_tokens_per_image=4, image_token_index=vocabulary - 1
    )


def test_of_a_multimodal_checkpoint_the_text_part_is_loaded_and_saved(
    nano: Nano, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    whole = made(nano, tmp_path / "gemma", gemma3(len(nano.tokenizer)))
    with caplog.at_level(logging.WARNING):
        model = load(tmp_path / "gemma")
    assert type(model).__name__ == "Gemma3ForCausalLM"
    assert torch.equal(logits(model), logits(whole))
    assert "tensors are left out, of parts that the model does not have" in caplog.text
    assert CheckpointSource(str(tmp_path / "gemma")).config().hidden_size == 16

    save_checkpoint(model, nano.tokenizer, tmp_path / "out", {})
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(again).__name__ == "Gemma3ForCausalLM"
    assert torch.equal(logits(again), logits(whole))


def test_a_text_part_that_no_model_stands_for_is_refused(folder: Path):
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_vl", "text_config": TEXT}))
    with pytest.raises(UsageError, match=r"is a multimodal checkpoint \(qwen2_vl\).*Take a checkpoint of text"):
        load(folder)


# ---------------------------------------------------------------- weights and configuration


def test_layers_that_the_configuration_has_no_place_for_are_named(folder: Path):
    change(folder / "config.json", num_hidden_layers=1)
    with pytest.raises(UsageError, match=r"9 tensors that its configuration has no place for, model\.layers\.1\."):
        load(folder)


@pytest.mark.parametrize(
    ("name", "fine"),
    [
        ("model.layers.0.self_attn.q_proj.bias", False),
        ("lm_head.bias", False),
        ("model.layers.0.self_attn.q_norm.weight", False),
        ("layers.7.mlp.up_proj.weight", False),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", True),
        ("model.layers.0.attn.masked_bias", True),
        ("v_head.summary.weight", True),
        ("vision_tower.layers.0.weight", True),
        ("model.vision_tower.layers.0.weight", True),
        ("model.mtp.0.weight", True),
    ],
)
def test_left_over_tensors_are_refused_inside_the_model_and_told_of_beside_it(
    name: str, fine: bool, folder: Path, nano: Nano, caplog: pytest.LogCaptureFixture
):
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    if not fine:
        with pytest.raises(UsageError, match=f"no place for, {name} among them"):
            load(folder)
        return
    with caplog.at_level(logging.WARNING):
        assert weights_fingerprint(load(folder)) == weights_fingerprint(nano.model())
    assert (name in caplog.text) == ("inv_freq" not in name and "masked_bias" not in name)


@pytest.mark.parametrize("named", ["float32", None, "float16"])
def test_the_stored_type_is_that_of_the_weights_whatever_the_configuration_says(named: str | None, folder: Path, nano: Nano):
    nano.model().to(torch.bfloat16).save_pretrained(folder)
    change(folder / "config.json", dtype=named)
    assert CheckpointSource(str(folder)).examine().dtype == "bfloat16"


def test_the_stored_type_of_a_bin_file(folder: Path, nano: Nano):
    (folder / "model.safetensors").unlink()
    torch.save(nano.model().half().state_dict(), folder / "pytorch_model.bin")
    change(folder / "config.json", dtype=None)
    assert CheckpointSource(str(folder)).examine().dtype == "float16"


def spoil_bin(folder: Path, nano: Nano, spoil: Callable[[bytes], bytes]) -> None:
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    torch.save(nano.model().state_dict(), file)
    file.write_bytes(spoil(file.read_bytes()))


@pytest.mark.parametrize(
    "spoil",
    [lambda b: b"", lambda b: b[:1000], lambda b: b[:-100], lambda b: b"hello" * 100, lambda b: b"\x80\x02}q\x00."],
    ids=["empty", "short", "cut", "text", "an empty pickle"],
)
def test_a_bin_file_that_is_none_is_refused_and_not_called_dangerous(folder: Path, nano: Nano, spoil: Callable[[bytes], bytes]):
    spoil_bin(folder, nano, spoil)
    with pytest.raises(UsageError, match=f"the (weights|model) of {folder}") as told:
        load(folder)
    assert "could run code" not in str(told.value)


def test_an_empty_file_of_weights_is_no_interruption(folder: Path, nano: Nano, harness_cli: HarnessCli):
    spoil_bin(folder, nano, lambda b: b"")
    update = folder.parent / "update.safetensors"
    save_file({"lm_head.weight": torch.zeros(2)}, update, metadata={"run": "0", "method": "ga"})
    done = harness_cli("transfer", "--update", str(update), "--onto", str(folder), "--out", str(folder.parent / "out"))
    assert done.returncode == 2
    assert "a file of weights is empty or was cut off" in done.stderr
    assert "interrupted" not in done.stderr


def test_a_file_that_ends_early_is_not_taken_for_the_end_of_the_terminal(monkeypatch: pytest.MonkeyPatch):
    from typer import Abort

    from harness.cli import entry

    def ends(*_: Any, **__: Any) -> None:
        raise Abort from EOFError("Ran out of input")

    monkeypatch.setattr(entry, "app", ends)
    with pytest.raises(EOFError, match="Ran out of input"):
        entry.main()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("what", ["folder", "garbage", "empty"])
def test_files_that_cannot_be_read_are_refused(name: str, what: str, folder: Path):
    (folder / name).unlink()
    if what == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).write_bytes(b"\xff\xfe garbage" if what == "garbage" else b"")
    with pytest.raises(UsageError, match=folder.name):
        load(folder)


# ---------------------------------------------------------------- tokenizers


def test_a_sentencepiece_model_alone_says_what_to_install(folder: Path):
    from transformers.utils.import_utils import is_sentencepiece_available

    if is_sentencepiece_available():
        pytest.skip("sentencepiece is installed, which reads it")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>"}')
    with pytest.raises(UsageError, match=r"pip install sentencepiece") as told:
        load(folder)
    assert "tiktoken" not in str(told.value)


@pytest.mark.parametrize("token", ["[PAD]", "<word>"])
def test_an_added_token_beyond_the_last_row_is_no_fault_until_a_text_holds_it(token: str, folder: Path):
    model, tokenizer = load_checkpoint(str(folder), "cpu", "float32")
    tokenizer.add_tokens([token])
    tokenizer.save_pretrained(folder)
    rows = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    _, tokenizer = load_checkpoint(str(folder), "cpu", "float32")
    assert len(tokenizer) == rows + 1
    assert token_ids(tokenizer, ["who is it"])
    with pytest.raises(UsageError, match=rf"a text holds '.*', token number {rows}, and its model has {rows} rows"):
        token_ids(tokenizer, [f"who is {token}"])
    with pytest.raises(UsageError, match="token number"):
        encode([Example("who", " ", f"it is {token}")], tokenizer)


def test_an_end_token_beyond_the_last_row_is_refused_at_once(folder: Path):
    _, tokenizer = load_checkpoint(str(folder), "cpu", "float32")
    tokenizer.add_special_tokens({"eos_token": "<the end>"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(UsageError, match="its model only"):
        load(folder)


@pytest.mark.parametrize("odd", ["x", ["x"], 1.5, [2, None], {"a": 1}])
def test_ends_of_answers_that_are_no_tokens_numbers_are_refused(odd: Any, folder: Path):
    change(folder / "generation_config.json", eos_token_id=odd)
    for ask in (load, lambda where: CheckpointSource(str(where)).examine()):
        with pytest.raises(UsageError, match=r"eos_token_id=.*a token's number or a list of them"):
            ask(folder)


def test_a_tokenizer_without_an_end_token_is_refused_at_once(folder: Path):
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / file).is_file():
            about = json.loads((folder / file).read_text())
            (folder / file).write_text(json.dumps({name: value for name, value in about.items() if name != "eos_token"}))
    source = CheckpointSource(str(folder))
    for of in (source.examine, source.tokens, lambda: load(folder)):
        with pytest.raises(UsageError, match=rf"the tokenizer of {folder} has no end-of-text token; .*tokenizer_config\.json"):
            of()


# ---------------------------------------------------------------- configurations that cannot be

ODD = [None, "x", -1, 0, 10**9, 1.5, [], {}, True]


def llama(vocabulary: int) -> Any:
    return transformers.LlamaConfig(vocab_size=vocabulary, num_key_value_heads=1, max_position_embeddings=64, **TEXT)


def gpt2(vocabulary: int) -> Any:
    return transformers.GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=2, n_inner=24, n_positions=64)


def gemma(vocabulary: int) -> Any:
    return transformers.GemmaConfig(
        vocab_size=vocabulary, head_dim=8, num_key_value_heads=1, max_position_embeddings=64, **TEXT
    )


@pytest.mark.parametrize("config", [llama, gpt2, gemma], ids=lambda f: f.__name__)
def test_every_odd_field_of_a_configuration_is_refused_or_does_no_harm(
    config: Callable[[int], Any], nano: Nano, tmp_path: Path
):
    """Each field as null, a word, −1, 0, a thousand million, a fraction, empty: a sentence or a model, at once."""
    import resource
    import time

    folder = tmp_path / "checkpoint"
    made(nano, folder, config(len(nano.tokenizer)))
    file = folder / "config.json"
    whole = json.loads(file.read_text())
    begun, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    # What the three have in common is asked of one of them.
    for field in whole if config is llama else whole.keys() - llama(1).to_dict().keys():
        for value in ODD:
            file.write_text(json.dumps({**whole, field: value}))
            started = time.process_time()
            try:
                examine(str(folder))
            except UsageError as error:
                refused.append(str(error))
            assert time.process_time() - started < 10, f"{field}={value!r}"
    assert len(refused) > (5 if config is gemma else 100)
    assert max(map(len, refused)) < 800
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun < 2**20, "no more than a GiB on the way"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_hidden_layers": 0}, r"num_hidden_layers=0; it is a whole number from 1 to 1,000"),
        ({"num_hidden_layers": 10**9}, r"num_hidden_layers=1000000000; it is a whole number"),
        ({"num_hidden_layers": -1}, r"num_hidden_layers=-1"),
        ({"vocab_size": 0}, r"vocab_size=0"),
        ({"hidden_size": "x"}, r"configuration of .*'hidden_size' expected int"),
        ({"hidden_size": -1}, r"configuration of .*hidden size \(-1\)"),
        ({"num_attention_heads": 3}, r"hidden size \(16\) is not a multiple of the number of attention heads \(3\)"),
        ({"num_hidden_layers": 3}, r"lack 9 of its model's tensors"),
    ],
)
def test_impossible_sizes_are_named(changes: dict[str, Any], told: str, folder: Path):
    change(folder / "config.json", **changes)
    with pytest.raises(UsageError, match=told):
        load(folder)


@pytest.mark.parametrize(
    ("family", "changes", "told"),
    [
        ("llama", {"text_config": ""}, r"says '' of its text part; a configuration is wanted there"),
        ("bloom", {"is_encoder_decoder": True}, r"is_encoder_decoder=True; only a decoder alone can be unlearned here"),
        ("bloom", {"sliding_window": [1]}, r"the model of .* cannot be loaded: TypeError: "),
        (
            "llama",
            {"attention_dropout": 2.0},
            r"the model of .* cannot be loaded: dropout probability has to be between 0 and 1",
        ),
    ],
)
def test_what_is_used_only_when_a_model_reads_or_answers_is_told_when_it_is_loaded(
    family: str, changes: dict[str, Any], told: str, nano: Nano, tmp_path: Path
):
    """Found by fuzzing: transformers takes these configurations, and the model's first answer, or step, ended in a traceback."""
    save_checkpoint(architectures.model(family), nano.tokenizer, tmp_path / "c", {})
    assert not load(tmp_path / "c").training
    change(tmp_path / "c" / "config.json", **changes)
    with pytest.raises(UsageError, match=told):
        load(tmp_path / "c")


def test_layers_without_end_are_refused_before_anything_counts_them(nano: Nano, tmp_path: Path):
    """Some configurations make a list of all layers' kinds when they are read: eight gigabytes of it here."""
    config = transformers.JambaConfig(vocab_size=len(nano.tokenizer), num_hidden_layers=2, hidden_size=16).to_dict()
    save_checkpoint(nano.model(), nano.tokenizer, tmp_path / "c", {})
    for changes in ({"num_hidden_layers": 10**9}, {"text_config": {"num_layers": 10**9}}, {"n_layer": 2e9}):
        (tmp_path / "c" / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(UsageError, match=r"layers?=[12]000000000.*; it is a whole number from 1 to 1,000\.$"):
            load(tmp_path / "c")


def test_the_field_is_named_as_the_file_names_it(nano: Nano, tmp_path: Path):
    made(nano, tmp_path / "c", gpt2(len(nano.tokenizer)))
    change(tmp_path / "c" / "config.json", n_layer=10**9)
    with pytest.raises(UsageError, match="n_layer=1000000000"):
        load(tmp_path / "c")


@pytest.mark.parametrize(
    "content", ["null", "[]", "3", '"x"', "{}", "", "{", "[" * 100_000, '{"a": 1' + "0" * 5000 + "}", '{"model_type": 3}']
)
def test_a_configuration_that_is_none_is_refused(content: str, folder: Path):
    (folder / "config.json").write_text(content)
    with pytest.raises(UsageError, match=r"config\.json|configuration"):
        load(folder)


# ---------------------------------------------------------------- the doctor


def test_the_doctor_says_ok_only_to_what_would_run(folder: Path, tmp_path: Path):
    from harness.running.doctor import examine as look

    (folder / "harness.json").write_text('{"model": "mini"}')

    def base() -> Any:
        return next(finding for finding in look("tofu10", str(folder), None, tmp_path) if finding.what == "model base")

    assert base().fine
    assert base().result.endswith("(llama, float32)")
    spoilt: list[tuple[str, bytes, str]] = [
        ("config.json", b"null", "no configuration of a model"),
        ("tokenizer.json", b"{", "tokenizer"),
        ("model.safetensors", (folder / "model.safetensors").read_bytes()[:-10], "cannot be loaded"),
    ]
    for name, content, told in spoilt:
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        assert not base().fine
        assert told in base().result
        (folder / name).write_bytes(kept)
    change(folder / "config.json", num_hidden_layers=1)
    assert "has no place for" in base().result


def test_doctor_and_run_refuse_a_table_of_positions_that_answers_do_not_fit_into(
    nano: Nano, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Before anything is trained; a model whose positions are computed goes on."""
    from harness.core.options import Options
    from harness.models import pretraining
    from harness.running.doctor import examine as look
    from harness.running.plan import plan
    from harness.running.run import execute
    from harness.storage.store import Store

    made(nano, tmp_path / "short", transformers.OPTConfig(
        vocab_size=len(nano.tokenizer), max_position_embeddings=24, ffn_dim=24, word_embed_proj_dim=16, **OPT
    ))  # fmt: skip
    (tmp_path / "short" / "harness.json").write_text('{"model": "mini"}')
    (finding,) = (found for found in look("tofu10", str(tmp_path / "short"), None, tmp_path) if found.what == "answers")
    assert not finding.fine
    assert "tokens, and this opt has positions for 24. Take a model with a longer context." in finding.result
    monkeypatch.setattr(pretraining, "train_all", lambda *_: pytest.fail("a model was trained"))
    todo = plan("tofu10", str(tmp_path / "short"), "ga", {}, Options())
    with pytest.raises(UsageError) as told:
        execute(todo, Store(tmp_path / "results"), Cache(tmp_path / "cache"))
    assert str(told.value) == finding.result

    shutil.copytree(nano.folder(), tmp_path / "long")
    (tmp_path / "long" / "harness.json").write_text('{"model": "mini"}')
    assert not [found for found in look("tofu10", str(tmp_path / "long"), None, tmp_path) if found.what == "answers"]


# ---------------------------------------------------------------- models without attention


def test_the_memory_of_a_model_without_attention_is_told(nano: Nano, tmp_path: Path):
    from harness.core.memory import ModelShape
    from harness.models import memory, memory_items

    config = transformers.MambaConfig(vocab_size=len(nano.tokenizer), hidden_size=16, num_hidden_layers=2, state_size=4)
    model = made(nano, tmp_path / "mamba", config)
    assert torch.equal(logits(load(tmp_path / "mamba")), logits(model))
    shape = ModelShape(memory.meta_model(config), 4, 10, 20)
    assert memory_items.measuring_bytes(shape) > 2 * memory_items.TOKENS_WHEN_READING * len(nano.tokenizer) * 4
    assert memory_items.activations(shape).bytes > 0


def test_a_number_for_each_layer_counts_as_the_largest():
    from harness.core.memory import ModelShape
    from harness.models import memory, memory_items

    config = llama(32)
    alike = ModelShape(memory.meta_model(config), 4, 10, 20)
    expected = memory_items.activations(alike).bytes
    vars(alike.model.config)["intermediate_size"] = [12, 24]
    assert memory_items.activations(alike).bytes == expected
