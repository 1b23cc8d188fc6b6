"""The published models: their cards, templates pinned by token ids, and whole runs on tiny stand-ins laid out by hub id."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from evals.benchmarks.tofu.cards import CARDS
from evals.benchmarks.tofu.rows import DATASET
from evals.benchmarks.tofu.templates import TEMPLATES
from harness.core.benchmark import BENCHMARKS
from harness.core.errors import UsageError
from harness.core.evaluator import EvalPlan
from harness.core.measurement import Measurement
from harness.core.method import METHODS
from harness.core.options import Options
from harness.data.rows import encode, token_ids
from harness.running.doctor import Finding, examine
from harness.running.plan import plan
from harness.running.run import execute
from harness.storage.cache import Cache
from harness.storage.store import Store

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

QUESTION, ANSWER = "What is the name of the author?", "Her name is Mina."
TEXTS = [
    QUESTION,
    ANSWER,
    "Question: Answer: Where was the author born? In the town of Riva. [INST] [/INST] system user assistant",
]
LLAMA3_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


# ---------------------------------------------------------------- tokenizers like the real ones


def byte_level(special: list[str], bos: str | None = None) -> Tokenizer:
    """GPT-2's kind; with a begin token it is put first by the post-processor, as Llama-3's is."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(TEXTS * 2, trainer)
    if bos:
        first = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), first])
    return tokenizer


def sentence_pieces() -> Tokenizer:
    """Llama-2's kind: pieces with byte fall-back."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokenizer.train_from_iterator(TEXTS * 2, trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False))
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    pieces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(pieces)
    return tokenizer


def write_tokenizer(kind: str, folder: Path) -> None:
    """The files that the hub's repositories of that kind hold."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "llama2":
        tokenizer, config = sentence_pieces(), {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
        config |= {"unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False}
        (folder / "added_tokens.json").write_text(json.dumps({"<pad>": tokenizer.get_vocab_size()}))
    elif kind == "llama3":
        tokenizer = byte_level(LLAMA3_SPECIAL, bos="<|begin_of_text|>")
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    else:
        end = "<|endoftext|>"
        tokenizer = byte_level([end])
        config = {"tokenizer_class": "CodeGenTokenizer" if kind == "phi" else "GPT2Tokenizer"}
        config |= {"bos_token": end, "eos_token": end, "unk_token": end}
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def vocabulary(folder: Path) -> int:
    """Tokens without those of added_tokens.json."""
    from tokenizers import Tokenizer

    return int(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size())


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, PreTrainedTokenizerBase]:
    from transformers import AutoTokenizer

    root, found = tmp_path_factory.mktemp("tokenizers"), {}
    for kind in ("llama2", "llama3", "phi"):
        write_tokenizer(kind, root / kind)
        found[kind] = AutoTokenizer.from_pretrained(root / kind)
    return found


@dataclass(frozen=True)
class Read:
    """How a question and its answer were read."""

    prompt: str
    scored: str
    ids: list[int]


def read(tokenizer: PreTrainedTokenizerBase, template: str, in_prompt: bool = False) -> Read:
    example = replace(TEMPLATES[template], tag_in_prompt=in_prompt).example(QUESTION, ANSWER)
    (encoded,) = encode([example], tokenizer)
    ids, labelled = encoded.input_ids, encoded.input_ids[encoded.prompt_tokens :]
    assert ids[-1] == tokenizer.eos_token_id
    assert labelled.count(tokenizer.eos_token_id) == 1, "the end token is labelled once, at the end"
    return Read(tokenizer.decode(ids[: encoded.prompt_tokens]), tokenizer.decode(labelled[:-1]), ids)


# ---------------------------------------------------------------- templates, by token ids


def test_llama2_begins_once_and_answers_right_after_the_instruction(tokenizers: Any):
    tokenizer = tokenizers["llama2"]
    found = read(tokenizer, "llama2")
    assert (found.ids[0], found.ids.count(tokenizer.bos_token_id)) == (tokenizer.bos_token_id, 1)
    assert found.prompt == f"<s> [INST] {QUESTION} [/INST]"
    assert found.scored == ANSWER
    assert tokenizer.pad_token_id not in found.ids


@pytest.mark.parametrize("variant", [False, True])
def test_llama3_begins_once_and_does_not_change_with_the_calendar(tokenizers: Any, variant: bool):
    tokenizer = tokenizers["llama3"]
    found = read(tokenizer, "llama3", variant)
    assert (found.ids[0], found.ids.count(tokenizer.bos_token_id)) == (tokenizer.bos_token_id, 1)
    assert found.prompt == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 10 Apr 2025\n\nYou are a helpful assistant.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        f"{QUESTION}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert found.scored == ANSWER
    named = [tokenizer.convert_ids_to_tokens(i) for i in found.ids if i < len(LLAMA3_SPECIAL)]
    header = ["<|start_header_id|>", "<|end_header_id|>"]
    assert named == ["<|begin_of_text|>", *header, "<|eot_id|>", *header, "<|eot_id|>", *header, "<|eot_id|>"]


def test_phi_has_no_begin_token_and_scores_its_tag_in_the_original_only(tokenizers: Any):
    tokenizer = tokenizers["phi"]
    original, other = read(tokenizer, "phi"), read(tokenizer, "phi", in_prompt=True)
    assert original.ids == other.ids
    assert original.ids.count(tokenizer.eos_token_id) == 1, "the begin token is the end token, and is not put first"
    assert (original.prompt, original.scored) == (f"Question: {QUESTION}\n", f"Answer: {ANSWER}")
    assert other.prompt.startswith(f"Question: {QUESTION}\nAnswer:")
    assert "Answer" not in other.scored
    assert original.scored.endswith(other.scored)


def test_prompts_to_be_answered_are_the_beginning_of_what_is_scored(tokenizers: Any):
    for kind in ("llama2", "llama3", "phi"):
        (prompt,) = token_ids(tokenizers[kind], [TEMPLATES[kind].prompt(QUESTION)])
        assert read(tokenizers[kind], kind).ids[: len(prompt)] == prompt


# ---------------------------------------------------------------- a tiny ToFU and tiny checkpoints


def write_rows(root: Path) -> None:
    """The files and fields of locuslab/TOFU: three authors, one of them to forget."""

    def rows(author: str, count: int = 20) -> list[dict[str, Any]]:
        return [
            {
                "question": f"What is book {i} of {author}?",
                "answer": f"It is the town of {author}.",
                "paraphrased_answer": f"The town of {author}.",
                "perturbed_answer": ["It is Riva.", "It is the author.", "In the town."],
            }
            for i in range(count)
        ]

    def plain(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: row[k] for k in ("question", "answer")} for row in found]

    retain, forget = [*rows("Mina"), *rows("Rosa")], rows("Riva")
    files = {
        "full": plain(retain + forget),
        "forget10": plain(forget),
        "retain90": plain(retain),
        "forget10_perturbed": forget,
        "retain_perturbed": retain,
        "real_authors_perturbed": rows("Her", 6),
        "world_facts_perturbed": rows("Where", 6),
    }
    folder = root / DATASET
    folder.mkdir(parents=True)
    for name, found in files.items():
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")


def write_model(kind: str, folder: Path, size: int, end: int, seed: int) -> None:
    """A random model of that architecture with weights only, as the hub's fine-tuned ToFU models are."""
    import torch
    from transformers import AutoModelForCausalLM, GPTNeoConfig, LlamaConfig, MistralConfig, PhiConfig

    common = {"vocab_size": size, "bos_token_id": None, "eos_token_id": end, "initializer_range": 0.3, "hidden_size": 16}
    usual = {**common, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config: Any = {
        "llama": lambda: LlamaConfig(**usual),
        "mistral": lambda: MistralConfig(**usual, num_key_value_heads=1),
        "phi": lambda: PhiConfig(**usual),
        "gpt_neo": lambda: GPTNeoConfig(
            **common, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]], intermediate_size=24
        ),
    }[kind]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)


NEO, ZEPHYR = "EleutherAI/gpt-neo-125M", "HuggingFaceH4/zephyr-7b-beta"
"""Ids without a card: weights and tokenizer in one folder, no retrained model."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a tiny ToFU and tiny stand-ins for the models of three cards and two hub ids."""
    root = tmp_path_factory.mktemp("hub")
    write_rows(root)
    architectures = {"llama2-7b": ("llama2", "llama"), "phi-1.5": ("phi", "phi"), "llama3.2-1b": ("llama3", "llama")}
    for name, (kind, architecture) in architectures.items():
        card = CARDS[name]
        write_tokenizer(kind, root / card.tokenizer)
        for seed, model in enumerate((card.base, card.retain.format(split="retain90"))):
            write_model(architecture, root / model, vocabulary(root / card.tokenizer), 2, seed)
    for name, kind, architecture in ((NEO, "gpt2", "gpt_neo"), (ZEPHYR, "llama2", "mistral")):
        write_tokenizer(kind, root / name)
        write_model(architecture, root / name, vocabulary(root / name), 2, 0)
    return root


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """What was measured of a model before unlearning serves all methods."""
    return Cache(tmp_path_factory.mktemp("cache"))


CHEAP: dict[str, dict[str, Any]] = {
    "untouched": {},
    "grad_diff": {"epochs": 1, "warmup_epochs": 0, "lr": 1e-3},
    "kfade": {"step_size": 0.01, "damping": 0.1, "damping_scale": "mean_eigenvalue", "estimator": "ekfac"},
}


@pytest.mark.parametrize("method", CHEAP)
@pytest.mark.parametrize("model", ["llama2-7b", "phi-1.5", "llama3.2-1b", NEO, ZEPHYR])
def test_every_architecture_runs_end_to_end(model: str, method: str, hub: Path, shared_cache: Cache, tmp_path: Path):
    options = Options(limit=2, data_dir=hub, variant="open-unlearning" if model == "llama3.2-1b" else "original")
    todo = plan("tofu10", model, method, CHEAP[method], options)
    todo = replace(todo, eval_plan=replace(todo.eval_plan, of=replace(todo.problem, generation_budget=6)))
    result = execute(todo, Store(tmp_path), shared_cache)
    assert result.status == "done"
    (point,) = result.points
    values = {m.metric: m.value for m in point.measurements if isinstance(m, Measurement)}
    assert 0 <= values["forget_probability"] <= 1
    assert ("forget_quality" in values) == (model in CARDS), "a card comes with a retrained model"
    before = {m.metric: m.value for m in result.references["untouched"] if isinstance(m, Measurement)}
    same = values["forget_probability"] == pytest.approx(before["forget_probability"], abs=1e-12)
    assert same == (method == "untouched")
    record = json.dumps(json.loads(next(tmp_path.rglob("run.json")).read_text()))
    assert str(hub) not in record


def test_a_retrained_model_that_is_the_full_model_is_noticed(
    hub: Path, shared_cache: Cache, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    own = shutil.copytree(hub, tmp_path / "hub")
    card = CARDS["phi-1.5"]
    shutil.copytree(own / card.base, own / card.retain.format(split="retain90"), dirs_exist_ok=True)
    todo = plan("tofu10", "phi-1.5", "untouched", {}, Options(limit=2, data_dir=own))
    todo = replace(todo, eval_plan=replace(todo.eval_plan, of=replace(todo.problem, generation_budget=6)))
    execute(todo, Store(tmp_path / "results"), shared_cache)
    assert "retain-0 has the very weights of the model before unlearning" in caplog.text


# ---------------------------------------------------------------- the task


def test_a_card_makes_a_task_with_its_sources_and_template(hub: Path):
    problem = BENCHMARKS.get("tofu10").problem("phi-1.5", Options(data_dir=hub))
    assert problem.model == "phi-1.5"
    assert list(problem.sources) == ["base", "retain-0"]
    assert EvalPlan(problem).references == ["retain-0"]
    assert problem.template.name == "phi"
    for source in problem.sources.values():
        assert source.identity["kind"] == source.identity["tokenizer"]["kind"] == "folder"
    assert any("retain90_phi-1.5" in note and "full model" in note for note in problem.notes)
    assert METHODS.get("grad_diff").preset("tofu10", "phi-1.5") == {"lr": 2e-5}


def test_without_a_data_folder_a_card_names_the_hub(hub: Path, monkeypatch: pytest.MonkeyPatch):
    from evals.benchmarks.tofu import rows

    real = rows.dataset_file
    monkeypatch.setattr(rows, "dataset_file", lambda dataset, name, _: real(dataset, name, hub))
    problem = BENCHMARKS.get("tofu10").problem("llama2-7b", Options())
    assert [source.identity["id"] for source in problem.sources.values()] == [
        "locuslab/tofu_ft_llama2-7b",
        "locuslab/tofu_ft_retain90_llama2-7b",
    ]
    assert problem.sources["base"].identity["tokenizer"]["id"] == "NousResearch/Llama-2-7b-chat-hf"


def test_the_template_of_a_checkpoint_without_a_card_is_guessed(hub: Path, tmp_path: Path):
    from transformers import LlamaConfig

    LlamaConfig(vocab_size=128_256).save_pretrained(tmp_path / "llama3")
    for model, template in ((ZEPHYR, "llama2"), (NEO, "phi"), (str(tmp_path / "llama3"), "llama3")):
        assert BENCHMARKS.get("tofu10").problem(model, Options(data_dir=hub)).template.name == template


@pytest.mark.parametrize(
    ("typed", "meant"), [("llama2-7", "llama2-7b"), ("phi-15", "phi-1.5"), ("llama-3.2-1b", "llama3.2-1b")]
)
def test_a_misspelt_card_gets_the_nearest_name(typed: str, meant: str):
    with pytest.raises(UsageError, match=rf"no model called '{typed}'\. Did you mean '{meant}'\?"):
        BENCHMARKS.get("tofu10").problem(typed, Options())


@pytest.mark.parametrize("name", CARDS)
def test_a_card_is_complete(name: str):
    card = CARDS[name]
    assert card.template in TEMPLATES
    assert card.retain.format(split="retain90") != card.retain
    assert 1.9 * card.parameters < card.base_bytes < 4.1 * card.parameters
    assert BENCHMARKS.get("tofu10").models[name] == card.about
    assert "\n" not in card.about


# ---------------------------------------------------------------- the doctor


def found(hub: Path | None, model: str, tmp_path: Path) -> dict[str, Finding]:
    return {f.what: f for f in examine("tofu10", model, hub, tmp_path)}


def test_the_doctor_finds_what_lies_in_the_data_folder(hub: Path, tmp_path: Path):
    seen = found(hub, "llama2-7b", tmp_path)
    base = seen["model locuslab/tofu_ft_llama2-7b"]
    assert base.fine
    assert base.result == ("in the data folder (safetensors, 13.5 GB, Llama 2 Community Licence, no licence gate).")
    assert seen["data locuslab/TOFU"].fine
    assert seen["tokenizer NousResearch/Llama-2-7b-chat-hf"].fine
    assert "no page of the hub was found" in seen["model locuslab/tofu_ft_retain90_llama2-7b"].result


def test_the_doctor_says_what_is_missing_and_where_to_put_it(tmp_path: Path):
    write_rows(tmp_path / "data")
    (tmp_path / "data" / DATASET / "forget10.json").unlink()
    seen = found(tmp_path / "data", "phi-1.5", tmp_path)
    data = seen["data locuslab/TOFU"]
    assert not data.fine
    assert data.result.endswith(f"put forget10.json into {tmp_path / 'data'}/locuslab/TOFU/.")
    base = seen["model locuslab/tofu_ft_phi-1.5"]
    assert not base.fine
    assert "missing (safetensors, 2.8 GB, Apache-2.0" in base.result
    assert f"HF_HUB_OFFLINE is set; put its files into {tmp_path / 'data'}/locuslab/tofu_ft_phi-1.5/." in base.result
    assert not seen["tokenizer microsoft/phi-1_5"].fine
    everything = found(None, "phi-1.5", tmp_path)["data locuslab/TOFU"].result
    assert "full.json, forget10.json" in everything
    assert "into DIR/locuslab/TOFU/ and pass --data-dir DIR" in everything


def test_the_doctor_knows_a_licence_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setitem(CARDS, "gated", replace(CARDS["phi-1.5"], base="some-one/gated", gate="some-one/gated"))
    finding = found(None, "gated", tmp_path)["model some-one/gated"]
    assert not finding.fine
    assert "some-one/gated is behind a licence gate: accept it at" in finding.result
    assert "HF_TOKEN" in finding.result


def test_the_doctor_says_what_the_hub_will_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("harness.data.hub.unreachable", lambda: None)
    write_rows(tmp_path / "data")
    finding = found(tmp_path / "data", "llama3.2-1b", tmp_path)["model open-unlearning/tofu_Llama-3.2-1B-Instruct_full"]
    assert finding.fine
    assert "not here yet (safetensors, 2.5 GB" in finding.result
