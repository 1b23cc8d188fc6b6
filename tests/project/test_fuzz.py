"""Whatever is typed, or lies in a file, ends in one sentence with exit code 2 (1 for what a check found), or in what was asked.

In the gate always the same few cases; by hand for an hour, with other draws every time, at low priority:

    HARNESS_FUZZ_SECONDS=3600 nice -n 19 pytest -q -s tests/project/test_fuzz.py

Each kind of input gets its share of the seconds. Nothing is trained: runs are planned and no more, checkpoints loaded and asked.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from harness.core.errors import UsageError
from harness.core.method import METHODS
from tests import architectures, records
from tests.conftest import Nano
from tests.evals.test_tofu import data_folder, open_unlearning_log, tables, tofu_log
from tests.fuzzing import DEEP, LONG, bounded, changed, command, fuzz, obeying, odd, spoilt, words
from tests.models.test_loading import gemma3, made


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder for everything; nothing is executed, and the interval's resamples are few."""
    import harness.running.run
    import harness.running.sweep
    from harness.statistics import bootstrap

    def planned(todo: Any, *_: Any, **__: Any) -> None:
        raise UsageError(f"planned: {todo.spec.run_id}")

    def all_planned(tries: Any, *_: Any, **__: Any) -> None:
        for todo in tries[:3]:
            todo.plan({})
        raise UsageError(f"planned: {len(tries)} runs")

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(harness.running.run, "execute", planned)
        patch.setattr(harness.running.sweep, "run_trials", all_planned)
        patch.setattr(bootstrap, "RESAMPLES", 20)
        patch.setenv("HARNESS_CACHE", str(Path(folder, "cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("COLUMNS", "200")
        patch.setenv("TQDM_DISABLE", "1")
        patch.delenv("HARNESS_DATA", raising=False)
        patch.chdir(folder)
        with bounded():
            yield Path(folder)


# ---------------------------------------------------------------- kinds of input

FLAGS = ("--seed", "--limit", "--model", "--device", "--dtype", "--generator", "--evals", "--bench", "--method", "--retain")
FLAGS += ("--variant", "--form", "--points", "--judge", "--judge-url", "--judge-repetitions", "--reference", "--spec")
FLAGS += ("--data-dir", "--results")
SWEEP_FLAGS = ("--seeds", "--grid", "--budget", "--by", "--search", "--jobs", "--set", "--judge-url", "--model")
BASE = {"--bench": "tofu01", "--method": "untouched"}


@st.composite
def typed_settings(draw: st.DrawFn) -> list[str]:
    from harness.core.config import field_names

    method = draw(st.sampled_from(METHODS.names()))
    keys = st.sampled_from(field_names(METHODS.get(method).config)) if field_names(METHODS.get(method).config) else st.just("x")
    given = draw(st.dictionaries(st.one_of(keys, keys, keys, st.text(max_size=4)), words, min_size=1, max_size=2))
    bench = draw(st.sampled_from(["tofu01", "wmdp-bio"]))
    pairs = [f"{key}={value}" for key, value in given.items()]
    return ["run", "-m", method, "-b", bench, *(x for pair in pairs if "\0" not in pair for x in ("--set", pair))]


def test_settings(place: Path):
    fuzz(lambda arguments: command(*arguments), typed_settings())


@st.composite
def typed_flags(draw: st.DrawFn) -> list[str]:
    values = st.one_of(
        words, st.sampled_from(["http://[::1", "http://h:99999/v1", "mini@٣", "cuda:٣", "0,0", "٣", "lr=1e-5..x", "a=1,2"])
    )
    if draw(st.booleans()):
        told = {**BASE, **draw(st.dictionaries(st.sampled_from(FLAGS), values, min_size=1, max_size=2))}
        return ["run", *(f"{flag}={value}" for flag, value in told.items())]
    told = {**BASE, **draw(st.dictionaries(st.sampled_from(SWEEP_FLAGS), values, min_size=1, max_size=2))}
    return ["sweep", *(f"{flag}={value}" for flag, value in told.items())]


def test_flags(place: Path):
    fuzz(lambda arguments: command(*arguments), typed_flags())


@st.composite
def sweep_file(draw: st.DrawFn) -> bytes:
    content = {
        "method": "ga",
        "bench": "tofu01",
        "grid": {"lr": [1e-4, 1e-3]},
        "seeds": [0, 1],
        "set": {"epochs": 1},
        "budget": 1,
    }
    keys = st.sampled_from([*content, "model", "by", "limit", "search", "evals", "points", "variant", "data_dir", "reference"])
    content |= draw(st.dictionaries(keys, odd, max_size=2))
    extra = [
        "",
        "a: &a [*a]",
        "b: !!set {x}",
        "seeds: 2026-01-01",
        "? [1]\n: 2",
        "1: 2",
        "x: " + DEEP,
        "set: {lr: " + "9" * 5000 + "}",
    ]
    return spoilt(draw, yaml.safe_dump(content, allow_unicode=True) + draw(st.sampled_from(extra)))


def test_sweeps_in_files(place: Path):
    def read(content: bytes) -> None:
        (place / "sweep.yaml").write_bytes(content)
        command("sweep", "sweep.yaml")

    fuzz(read, sweep_file())


def test_logs(place: Path):
    logs = [tofu_log(tables(rows=5)), open_unlearning_log(tables(rows=5))]
    (place / "reference.json").write_text(json.dumps(logs[0]))

    def read(content: bytes) -> None:
        (place / "log.json").write_bytes(content)
        command("score", "log.json", "--reference", "reference.json", "--json")

    fuzz(read, st.sampled_from(logs).flatmap(changed))


def test_data(place: Path):
    data = data_folder(place / "data")
    folder = data / "locuslab" / "TOFU"
    kept = {file.name: file.read_bytes() for file in folder.iterdir()}

    @st.composite
    def files(draw: st.DrawFn) -> tuple[str, bytes]:
        name = draw(st.sampled_from(sorted(kept)))
        rows = [json.loads(line) for line in kept[name].splitlines()]
        if draw(st.booleans()):
            return name, draw(changed(rows))
        line = draw(changed(rows[1]))
        return name, b"\n".join([json.dumps(rows[0]).encode(), line])

    def read(changed_file: tuple[str, bytes]) -> None:
        name, content = changed_file
        (folder / name).write_bytes(content)
        command("run", "-m", "idk", "-b", "tofu10", "--model", "scratch", "--data-dir", "data")
        (folder / name).write_bytes(kept[name])

    fuzz(read, files())


READERS = (("list", "runs"), ("show", "{run}"), ("validate",), ("leaderboard",), ("run", "--spec", "{spec}"))
FIGURES = (("plot", "pareto"), ("plot", "samples"))
"""Drawing takes too long for the gate."""


def test_records(place: Path):
    store = place / "store"
    told = records.run(records.numbers(0.1, 0.3, 0.8), records.numbers(0.2, 0.2, 0.7))
    records.write(store, told, records.run(records.numbers(0.1, 0.3, 0.8), spec={"method": "untouched"}))
    (folder,) = (store / "runs" / told.spec.folder,)
    points = [json.loads(line) for line in (folder / "points.jsonl").read_text().splitlines()]
    told_text = {"point": 0, "turns": ["who?"], "text": "she"}
    asked = {"task": "forget", "row": 0, "cluster": "0", "turns": ["who?"], "question": "who?", "answer": "she"}
    whole = {
        folder / "run.json": json.loads((folder / "run.json").read_text()),
        folder / "points.jsonl": points[0],
        folder / "generations.jsonl": told_text,
        store / "questions" / told.spec.questions_file: asked,
    }
    (store / "questions").mkdir()
    shutil.copytree(store, place / "sound")

    @st.composite
    def damage(draw: st.DrawFn) -> tuple[Path, bytes, tuple[str, ...]]:
        path = draw(st.sampled_from(list(whole)))
        return path, draw(changed(whole[path])), draw(st.sampled_from(READERS + FIGURES if LONG else READERS))

    def read(damaged: tuple[Path, bytes, tuple[str, ...]]) -> None:
        path, content, reader = damaged
        shutil.rmtree(store)
        shutil.copytree(place / "sound", store)
        path.write_bytes(content)
        arguments = [word.format(run=told.spec.run_id, spec=folder / "run.json") for word in reader]
        command(*arguments, *(() if reader[0] == "run" else ("--results", str(store))))

    fuzz(read, damage())


def test_published_tables(place: Path):
    store = place / "published"
    records.write(store, records.run(records.numbers(0.1, 0.3, 0.8)))
    (store / "published").mkdir()
    table = json.loads((Path(__file__).parents[2] / "results" / "published" / "kfade_table2.json").read_text())

    def read(content: bytes) -> None:
        (store / "published" / "table.json").write_bytes(content)
        command("leaderboard", "--results", str(store))

    fuzz(read, changed(table))


FAMILIES = tuple(architectures.FAMILIES) if LONG else ("llama", "gpt2", "gemma3_text", "mixtral", "opt", "mamba")
OTHER_FIELDS = (
    *("text_config", "quantization_config", "auto_map", "rope_scaling", "rope_parameters", "rope_theta", "layer_types"),
    *("sliding_window", "attn_implementation", "_attn_implementation", "experts_implementation", "torch_dtype", "dtype"),
    *("tie_word_embeddings", "pruned_heads", "is_encoder_decoder", "is_decoder", "add_cross_attention", "use_cache"),
    *("return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward", "num_labels", "id2label"),
    *("tokenizer_class", "eos_token_id", "pad_token_id", "bos_token_id", "max_length", "temperature", "base_model_tp_plan"),
)
"""What transformers reads of any family's configuration, or of a tokenizer's or a generation's, where it is there."""
PLAUSIBLE = st.sampled_from(
    [
        *(None, True, False, 0, 1, 2, 3, 5, 8, 15, 17, 64, 1000, 10**5, 10**6, -1, -2, 0.5, 1.0, 2.0, 1e4, -1.0, 1e-12),
        *("auto", "eager", "sdpa", "flash_attention_2", "flex_attention", "paged", "grouped_mm", "batched_mm", "x/y"),
        *("float16", "bfloat16", "float64", "int8", "float8_e4m3fn", "gelu", "silu", "gelu_new", "relu", "tanh", "softmax"),
        *("full_attention", "sliding_attention", "chunked_attention", "linear_attention", "global", "local", "mamba"),
        *(["sliding_attention", "full_attention"], ["full_attention"], [0, 1], [2], [[["global"], 2]], {"0": [0]}),
        *({"rope_type": kind, "factor": 2.0} for kind in ("default", "linear", "dynamic", "yarn", "longrope", "llama3")),
        *({"quant_method": kind, "bits": 4} for kind in ("gptq", "awq", "bitsandbytes", "fp8", "mxfp4", "x")),
        *({"model_type": kind} for kind in ("llama", "gpt2", "x")),
        *("llama", "gpt2", "mixtral", "bert", "t5", "qwen2_vl", "LlamaTokenizer", "GPT2Tokenizer", "PreTrainedTokenizerFast"),
    ]
)
"""What such a field may well say, if not of this checkpoint."""
LOOKING = ("kfade", "rmu", "elm", "kl_min")
"""Methods whose settings depend on what a checkpoint is; planned on it, its template and family are asked for."""


def test_configurations(place: Path, nano: Nano):
    """A checkpoint that says something odd of itself is refused, or it is read, answers, and is planned with."""
    from harness.models.sources import save_checkpoint

    for family in FAMILIES:
        save_checkpoint(architectures.model(family), nano.tokenizer, place / family, {})
    made(nano, place / "multimodal", gemma3(len(nano.tokenizer)))
    folders = [place / family for family in (*FAMILIES, "multimodal")]
    for folder in folders:
        (folder / "harness.json").write_text('{"model": "mini"}')
    files = [file for folder in folders for file in folder.glob("*.json") if file.name != "tokenizer.json"]
    told = {file: json.loads(file.read_text()) for file in sorted(files)}
    configurations = [file for file in told if file.name == "config.json"]

    @st.composite
    def oddities(draw: st.DrawFn) -> tuple[Path, bytes, str]:
        file = draw(st.sampled_from(configurations if draw(st.integers(0, 3)) else list(told)))
        return file, draw(changed(told[file], OTHER_FIELDS, PLAUSIBLE | odd)), draw(st.sampled_from(["", "", *LOOKING]))

    def read(oddity: tuple[Path, bytes, str]) -> None:
        file, content, method = oddity
        file.write_bytes(content)
        try:
            if method:
                command("run", "-m", method, "-b", "tofu10", "--model", file.parent.name)
            else:
                with obeying(f"{file.parent.name}/{file.name}: {content!r}"):
                    answered(file.parent)
        finally:
            file.write_text(json.dumps(told[file]))

    fuzz(read, oddities())


def answered(folder: Path) -> None:
    """Load a checkpoint, let it read a text and continue one."""
    import torch

    from harness.core.evaluator import GenerationRequest, Sampling
    from harness.core.text import Example
    from harness.data.rows import batches, encode, pad_id
    from harness.numerics.generation import HFGenerator
    from harness.numerics.likelihood import answer_logits
    from harness.numerics.loading import load_checkpoint

    model, tokenizer = load_checkpoint(str(folder), "cpu", "float32")
    encoded = encode([Example("who is", " ", "it is")], tokenizer)
    with torch.no_grad():
        for batch in batches(encoded, pad_id(tokenizer), 100, "cpu"):
            answer_logits(model, batch)
    HFGenerator().generate(model, tokenizer, [GenerationRequest(("who is",), Sampling(2))])
