"""Small models trained on the spot: their tokenizer, their names, and that processes do not change them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from evals.benchmarks.tofu.world import World
from harness.core.registry import ROOT
from harness.core.text import Example
from harness.models import pretraining
from harness.models.pretraining import TrainedSource, train_all
from harness.models.recipes import Architecture, Recipe, Vocabulary
from harness.storage.cache import Cache, CacheEntry, digest
from tests.conftest import WORDS, WORLD, examples

SHAPE = Architecture(hidden_size=8, layers=1, intermediate_size=12, heads=2, max_positions=64)
RECIPE = Recipe(epochs=2, batch_size=4, lr=1e-2)
EXAMPLES = tuple(examples(WORLD.full[:12]))
EARLIER = tuple(examples(WORLD.world_facts[:6]))

PARENT = TrainedSource("parent", EARLIER, RECIPE, SHAPE, WORDS, seed=1)
CHILD = TrainedSource("child", EXAMPLES, RECIPE, SHAPE, WORDS, seed=2, parent=PARENT, replay=((EARLIER, 3),))
OTHER = replace(CHILD, name="other", seed=3)


def weights(source: TrainedSource, cache: Cache) -> object:
    entry = cache.find("model", source.identity)
    assert entry is not None
    return entry.facts["weights"]


# ---------------------------------------------------------------- tokenizers


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_the_words_tokenizer_gives_every_sentence_back_exactly(seed: int):
    tokenizer = WORDS.build()
    world = World(seed)
    texts = {text for row in (*world.base, *world.full) for text in (row["question"], row["answer"])}
    texts |= {f"{row['question']} {row['answer']}" for row in world.full}
    texts |= {text for row in world.full for text in (row["paraphrased_answer"], *row["perturbed_answer"])}
    texts = random.Random(seed).sample(sorted(texts), 2000)
    ids = tokenizer(texts)["input_ids"]
    assert tokenizer.unk_token_id not in {i for row in ids for i in row}
    assert tokenizer.batch_decode(ids) == texts


def test_the_words_tokenizer_reads_prompt_and_answer_apart_as_it_reads_them_together():
    tokenizer = WORDS.build()
    for example in EXAMPLES:
        apart = tokenizer(example.prompt)["input_ids"] + tokenizer(example.tag + example.answer)["input_ids"]
        assert apart == tokenizer(example.prompt + example.tag + example.answer)["input_ids"]


def test_a_word_nobody_knows_becomes_the_unknown_token():
    tokenizer = WORDS.build()
    assert tokenizer("Who xyzzy?")["input_ids"][1] == tokenizer.unk_token_id


def test_the_byte_tokenizer_gives_any_text_back_exactly():
    tokenizer = Vocabulary("bytes", ("Who wrote it? She did.",) * 3, 300).build()
    for text in ("Who wrote it?", "Ünïcödé 日本, \n\ttwo  spaces ", "🙂"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) <= 300


# ---------------------------------------------------------------- names


CHANGES = {
    "examples": EXAMPLES[:-1],
    "recipe": replace(RECIPE, lr=2e-2),
    "architecture": replace(SHAPE, layers=2),
    "vocabulary": replace(WORDS, texts=WORDS.texts[:-1]),
    "seed": 9,
    "parent": replace(PARENT, seed=9),
    "replay": ((EARLIER, 2),),
}


@pytest.mark.parametrize("name", [f.name for f in fields(TrainedSource) if f.name != "name"])
def test_whatever_decides_the_weights_is_in_the_identity(name: str):
    assert digest(replace(CHILD, **{name: CHANGES[name]}).identity) != digest(CHILD.identity)


@pytest.mark.parametrize("name", [f.name for f in fields(Recipe)])
def test_every_part_of_a_recipe_is_in_the_identity(name: str):
    value = getattr(RECIPE, name)
    other = tuple(v / 2 for v in value) if isinstance(value, tuple) else value * 2
    changed = replace(RECIPE, **{name: {"arithmetic": "portable", "warmup": 9, "device": "cuda:1"}.get(name, other)})
    assert digest(replace(CHILD, recipe=changed).identity) != digest(CHILD.identity)


def test_one_letter_of_the_data_is_in_the_identity():
    first = EXAMPLES[0]
    changed = (Example(first.prompt, first.answer.replace(".", "?"), first.tag), *EXAMPLES[1:])
    assert replace(CHILD, examples=changed).identity != CHILD.identity


def test_the_name_shown_to_people_is_not_in_the_identity():
    assert replace(CHILD, name="something else").identity == CHILD.identity


# ---------------------------------------------------------------- training


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """A cache whose models were trained in this process."""
    cache = Cache(tmp_path_factory.mktemp("here"))
    for source in (PARENT, CHILD, OTHER):
        source.entry(cache)
    return cache


def test_models_of_other_seeds_have_other_weights(here: Cache):
    assert len({str(weights(s, here)) for s in (PARENT, CHILD, OTHER)}) == 3


def test_training_again_gives_the_same_weights(here: Cache, cache: Cache):
    CHILD.entry(cache)
    assert weights(CHILD, cache) == weights(CHILD, here)
    assert weights(PARENT, cache) == weights(PARENT, here)


def test_training_leaves_the_callers_randomness_and_threads_alone(cache: Cache):
    import torch

    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    replace(PARENT, recipe=replace(RECIPE, threads=2)).entry(cache)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_the_progress_told_reaches_the_number_of_steps(cache: Cache):
    told: list[tuple[int, int]] = []
    PARENT.entry(cache, lambda done, steps: told.append((done, steps)))
    assert told == [(done, 4) for done in range(1, 5)]  # 2 epochs of 6 examples in batches of 4


def test_a_child_starts_from_its_parents_weights(here: Cache, cache: Cache):
    from harness.models.sources import weights_fingerprint

    untrained = replace(CHILD, recipe=replace(RECIPE, epochs=0))
    model, _ = untrained._start(here)
    assert weights_fingerprint(model) == weights(PARENT, here)


def test_every_epoch_takes_each_example_once_and_draws_its_replay():
    from harness.data.rows import encode

    items = encode([*EXAMPLES, *EARLIER], WORDS.build())
    batches = [[i for part, _ in step for i in part.rows.tolist()] for step in CHILD._batches(items, tokens=512)]
    assert len(batches) == CHILD._steps() == 8  # 2 epochs of 12 + 3 examples in batches of 4
    for epoch in (batches[:4], batches[4:]):
        rows = [i for batch in epoch for i in batch]
        assert sorted(i for i in rows if i < 12) == list(range(12))
        replayed = [i for i in rows if i >= 12]
        assert len(replayed) == len(set(replayed)) == 3


def test_training_teaches(cache: Cache):
    from harness.data.rows import encode
    from harness.numerics.likelihood import answer_nll

    taught = replace(PARENT, recipe=replace(RECIPE, epochs=30, lr=2e-2))
    model, tokenizer = taught.load(cache, "cpu", "float32")
    sums, counts = answer_nll(model, encode(EARLIER, tokenizer), 0)
    assert (sums / counts).mean() < 3.0  # nats per token; a guess among the 700 words costs 6.5


def test_a_source_that_is_missing_alone_is_trained_in_this_process(here: Cache, monkeypatch: pytest.MonkeyPatch):
    def never(*args: object, **more: object) -> None:
        raise AssertionError("it started processes")

    monkeypatch.setattr(pretraining, "do_all", never)
    third = replace(CHILD, seed=4)
    train_all([third, CHILD], here)
    assert weights(third, here) != weights(CHILD, here)


def test_processes_train_the_same_weights_and_a_second_call_trains_nothing(
    here: Cache, cache: Cache, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pretraining.os, "cpu_count", lambda: 2)
    train_all([OTHER, CHILD], cache)  # their parent is not named, and is needed first
    for source in (PARENT, CHILD, OTHER):
        assert weights(source, cache) == weights(source, here)
    assert (cache.find("model", CHILD.identity).path / "model.safetensors").is_file()

    def never(*args: object) -> None:
        raise AssertionError("it trained again")

    monkeypatch.setattr(TrainedSource, "_train", never)
    monkeypatch.setattr(pretraining, "do_all", never)
    train_all([OTHER, CHILD], cache)
    assert CHILD.seconds(cache) == cache.find("model", CHILD.identity).seconds


SCRIPT = """
import sys
from pathlib import Path

from harness.core.text import Example
from harness.models.pretraining import TrainedSource, train_all
from harness.models.recipes import Architecture, Recipe, Vocabulary
from harness.storage.cache import Cache

print("read as", __name__, flush=True)
words = Vocabulary("words", ("one", "two", "."))
texts, shape = (Example("one", "two."),), Architecture(hidden_size=8, layers=1, intermediate_size=8, heads=2, max_positions=8)
sources = [TrainedSource(f"{k}", texts, Recipe(3, 1, 1e-2), shape, words, seed=k) for k in range(2)]
train_all(sources, Cache(Path(sys.argv[1])))
print("trained", all(Cache(Path(sys.argv[1])).find("model", source.identity) for source in sources))
"""


def test_processes_do_not_read_the_script_that_trains(tmp_path: Path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "cache")]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, check=False)
    assert done.stdout.split("\n") == ["read as __main__", "trained True", ""], done.stderr


def test_what_is_trained_elsewhere_is_trained_again_where_the_cache_is_removed(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    """Removed when it has just been trained, and again when it has just been found."""
    source, trained = replace(PARENT, recipe=RECIPE.portable), []

    def train(sources: list[TrainedSource], into: Cache) -> None:
        if not finding(into, "model", source.identity):
            trained.append(into.get("model", source.identity, lambda folder: None))
            if len(trained) == 1:
                into.clear()

    def find(*asked: Any) -> CacheEntry | None:
        found = finding(*asked)
        if found and len(trained) == 2:
            cache.clear()
        return found

    finding = Cache.find
    monkeypatch.setattr(Cache, "find", find)
    monkeypatch.setattr(pretraining, "train_all", train)
    monkeypatch.setattr(pretraining, "is_portable", lambda: False)
    assert source.entry(cache).path == trained[1].path
    assert len(trained) == 2


def test_a_trained_model_loads_as_an_ordinary_checkpoint(here: Cache):
    from transformers import AutoModelForCausalLM

    from harness.models.sources import weights_fingerprint

    path: Path = here.find("model", CHILD.identity).path
    assert weights_fingerprint(AutoModelForCausalLM.from_pretrained(path)) == weights(CHILD, here)


def test_what_training_took_is_unknown_before_it_was_done(cache: Cache):
    assert PARENT.seconds(cache) is None
