"""Models that are fine-tuned on the spot from a checkpoint: what names them, what they keep, and that a kill costs nothing."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.core.errors import UsageError
from harness.core.registry import ROOT
from harness.models import device_memory, kept_epochs, pretraining
from harness.models.gguf import GgufSource
from harness.models.origins import badly_learned, configured_by
from harness.models.pretraining import TrainedSource, train_all, weights_digest
from harness.models.recipes import Recipe
from harness.models.sources import CheckpointSource
from harness.storage.cache import Cache, digest
from tests.conftest import WORLD, Nano, examples

RECIPE = Recipe(epochs=4, batch_size=4, lr=1e-2, min_lr_rate=0.05, betas=(0.9, 0.999), threads=1, warmup=20, device="cpu")
KEPT = f"training/*/{kept_epochs._FILE}"


def finetuned(folder: Path, **changes: Any) -> TrainedSource:
    pool = tuple(examples(WORLD.world_facts[:6]))
    learnt = tuple(examples(WORLD.full[:9]))
    source = TrainedSource("tiny full", learnt, RECIPE, None, None, 0, CheckpointSource(str(folder)), ((pool, 3),))
    return replace(source, **changes)


@pytest.fixture
def with_dropout(nano: Nano, tmp_path: Path) -> Path:
    """A checkpoint that draws random numbers while it trains."""
    from harness.models.sources import save_checkpoint

    model = nano.model(0)
    model.config.attention_dropout = 0.2
    save_checkpoint(model, nano.tokenizer, tmp_path / "with-dropout", {})
    return tmp_path / "with-dropout"


def weights(source: TrainedSource, cache: Cache) -> object:
    entry = cache.find("model", source.identity)
    assert entry is not None
    return entry.facts["weights"]


# ---------------------------------------------------------------- what names it


def test_its_record_says_what_it_started_from_and_no_path(nano: Nano):
    identity = finetuned(nano.folder()).identity
    assert identity["parent"] == CheckpointSource(str(nano.folder())).identity
    assert str(nano.root) not in str(identity)
    assert identity["recipe"] == {
        **{"epochs": 4, "batch_size": 4, "lr": 1e-2, "min_lr_rate": 0.05, "betas": [0.9, 0.999]},
        **{"threads": 1, "tokens_at_once": 512, "warmup": 20, "device": "cpu"},
    }


def test_another_checkpoint_is_another_model_and_another_gpu_is_not(nano: Nano):
    source = finetuned(nano.folder(0))
    assert digest(finetuned(nano.folder(1)).identity) != digest(source.identity)
    on_gpu = [replace(source, recipe=replace(RECIPE, device=device)) for device in ("cuda", "cuda:1")]
    assert on_gpu[0].identity == on_gpu[1].identity != source.identity


# ---------------------------------------------------------------- training


def test_it_learns_from_the_checkpoints_weights_with_its_tokenizer(nano: Nano, cache: Cache):
    from harness.models.sources import weights_fingerprint

    untrained = finetuned(nano.folder(), recipe=replace(RECIPE, epochs=1, lr=1e-12))
    model, tokenizer = untrained.load(cache, "cpu", "float32")
    before = nano.model(0).state_dict()
    assert all(tensor.sub(before[name]).abs().max() < 1e-8 for name, tensor in model.state_dict().items())
    assert tokenizer.get_vocab() == nano.tokenizer.get_vocab()
    source = finetuned(nano.folder())
    trained, _ = source.load(cache, "cpu", "float32")
    assert weights_fingerprint(trained) == weights(source, cache)
    entries = [cache.find("model", each.identity) for each in (untrained, source)]
    first, second = (entry.facts["loss"] for entry in entries if entry)
    assert second < first
    assert source.seconds(cache) is not None
    assert weights_digest(source, cache) == digest([source.identity, weights(source, cache)])[:16]


def test_the_same_recipe_gives_the_same_weights_and_another_seed_others(nano: Nano, tmp_path: Path):
    caches = [Cache(tmp_path / name) for name in ("one", "two")]
    source = finetuned(nano.folder())
    other = replace(source, seed=1)
    train_all([source, other], caches[0])
    train_all([source], caches[1])
    assert weights(source, caches[0]) == weights(source, caches[1]) != weights(other, caches[0])


def test_a_model_that_learned_little_is_told_of_with_what_it_knows(nano: Nano, cache: Cache):
    source = finetuned(nano.folder(), recipe=replace(RECIPE, epochs=1))
    train_all([source], cache)
    entry = cache.find("model", source.identity)
    assert entry is not None
    (told,) = badly_learned({"base": source, "retain-0": CheckpointSource(str(nano.folder()))}, cache)
    assert told.startswith("base did not learn well")
    assert f"{entry.facts['probability']:.2f}" in told


def test_a_disk_without_room_is_told_of_before_anything_is_trained(nano: Nano, cache: Cache, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(cache.root)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with pytest.raises(UsageError, match=r"fine-tuning tiny full keeps up to .* GiB more in the cache .*HARNESS_CACHE"):
        train_all([finetuned(nano.folder())], cache)
    assert not list(cache.entries())


@pytest.mark.parametrize("fits", [True, False])
def test_one_that_goes_on_needs_room_for_one_more_epoch_alone(
    nano: Nano, cache: Cache, monkeypatch: pytest.MonkeyPatch, fits: bool
):
    source, model = finetuned(nano.folder()), nano.model(0)
    monkeypatch.setattr(kept_epochs, "KEPT_EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        source.entry(cache, _ended_at(8))
    epoch = 12 * sum(p.numel() for p in model.parameters())
    usage = shutil.disk_usage(cache.root)._replace(free=epoch if fits else epoch - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with nullcontext() if fits else pytest.raises(UsageError, match="GiB more in the cache"):
        source.entry(cache)


def _ended_at(step: int) -> Any:
    def ended(done: int, steps: int) -> None:
        if done == step:
            raise KeyboardInterrupt

    return ended


def test_a_device_without_memory_is_told_of_as_such(nano: Nano, cache: Cache, monkeypatch: pytest.MonkeyPatch):
    import torch

    from harness.numerics import training

    def full(*words: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(training, "pooled_nll", full)
    with pytest.raises(UsageError, match=r"fine-tuning tiny full ran out of memory on cpu.*a smaller model"):
        train_all([finetuned(nano.folder())], cache)


def test_a_learning_rate_that_is_too_high_is_told_of_as_such_and_not_as_the_methods_fault(nano: Nano, cache: Cache):
    with pytest.raises(
        UsageError, match=r"training tiny full broke off: step \d+: the loss is .*lower learning rate than 1e\+30\."
    ):
        train_all([finetuned(nano.folder(), recipe=replace(RECIPE, lr=1e30))], cache)
    assert not list(cache.entries())


# ---------------------------------------------------------------- side by side on a GPU


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Says how many GiB a GPU has free; the machine has eight cores."""
    import torch

    monkeypatch.setattr(device_memory.os, "cpu_count", lambda: 8)

    def has(gib: float) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(gib * 2**30), 80 * 2**30))

    has(80)
    return has


def at_once(cache: Cache, *sources: TrainedSource) -> int:
    return pretraining._at_once(sources, cache)


def on(device: str, nano: Nano, **changes: Any) -> TrainedSource:
    return finetuned(nano.folder(), recipe=replace(RECIPE, device=device), **changes)


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (("cuda", "cuda", "cuda"), 3),
        (("cuda:1", "cuda:1"), 2),
        (("cuda",), 1),
        (("cuda:0", "cuda:1"), 1),
        (("cuda:all", "cuda:all"), 1),
        (("mps", "mps"), 1),
        (("cpu", "cpu"), 1),
        ((), 1),
    ],
)
def test_small_models_are_trained_at_the_same_time_on_one_gpu(
    nano: Nano, cache: Cache, gpu: Callable[[float], None], devices: tuple[str, ...], expected: int
):
    assert at_once(cache, *(on(device, nano) for device in devices)) == expected


def test_as_many_are_trained_at_once_as_there_is_room_for(
    nano: Nano, cache: Cache, gpu: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
):
    three = [on("cuda", nano, seed=seed) for seed in range(3)]
    gpu(2.9)  # a process takes one GiB, and a tiny model some MiB more
    assert at_once(cache, *three) == 2
    gpu(0.5)
    assert at_once(cache, *three) == 1
    gpu(80)
    monkeypatch.setattr(device_memory.os, "cpu_count", lambda: 2)
    assert at_once(cache, *three) == 2
    epochs = 24 * sum(p.numel() for p in nano.model(0).parameters())
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2 * epochs - 1))
    assert at_once(cache, *three) == 1, "each keeps epochs of its own"


def test_large_models_those_of_unknown_code_and_those_behind_others_are_trained_in_turn(
    nano: Nano, cache: Cache, gpu: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
):
    from harness.numerics import configurations

    first, second = on("cuda", nano), on("cuda", nano, seed=1)
    assert at_once(cache, first, replace(second, parent=first)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(device_memory, "SIDE_BY_SIDE", 1)
        assert at_once(cache, first, second) == 1

    def own_code(*words: object) -> None:
        raise UsageError("this configuration comes with code of its own")

    monkeypatch.setattr(configurations, "meta_model", own_code)
    assert at_once(cache, first, second) == 1


@pytest.mark.mini
def test_side_by_side_they_get_the_same_weights_and_one_that_diverges_is_named(
    nano: Nano, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = [finetuned(nano.folder(), seed=seed) for seed in (0, 1)]
    one_by_one, together = Cache(tmp_path / "one by one"), Cache(tmp_path / "together")
    train_all(made, one_by_one)
    monkeypatch.setattr(pretraining, "_at_once", lambda sources, cache: len(sources))
    monkeypatch.setattr(pretraining, "_train_here", _nothing_here)
    train_all(made, together)
    for source in made:
        assert weights(source, together) == weights(source, one_by_one)
    wild = finetuned(nano.folder(), name="wild", recipe=replace(RECIPE, lr=1e30))
    with pytest.raises(UsageError, match=r"training wild broke off: .*lower learning rate than 1e\+30\."):
        train_all([wild, finetuned(nano.folder(), seed=2)], together)
    assert not list((together.root / "making").iterdir())


def _nothing_here(sources: Iterable[TrainedSource], cache: Cache) -> None:
    assert not list(sources), "trained in this process"


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), OSError("no /dev/shm")])
def test_where_it_fails_side_by_side_they_are_trained_one_after_the_other(
    nano: Nano, cache: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
):
    def failing(*words: object) -> None:
        raise error

    monkeypatch.setattr(pretraining, "_at_once", lambda sources, cache: 2)
    monkeypatch.setattr(pretraining, "do_all", failing)
    made = [finetuned(nano.folder(), seed=seed) for seed in (0, 1)]
    train_all(made, cache)
    assert all(cache.find("model", source.identity) for source in made)
    (told,) = caplog.messages
    assert told == f"training side by side broke off ({type(error).__name__}: {error}): they are trained one after the other"


def test_a_worker_keeps_to_the_commits_that_were_looked_up(nano: Nano, cache: Cache, monkeypatch: pytest.MonkeyPatch):
    from harness.data import hub

    monkeypatch.setattr(hub, "_commits", {})
    known = {("owner/name", "main", "model"): "a" * 40}
    pretraining._train_in_worker(finetuned(nano.folder()), cache.root, known, lambda done, steps: None)  # type: ignore[arg-type]
    assert hub.known_commits() == known


# ---------------------------------------------------------------- killed, and gone on with

KILLED = """
import os, signal, sys
from pathlib import Path
import tests.models.test_finetuning as t
from harness.models import kept_epochs
kept_epochs.KEPT_EVERY = 0.0
step = int(sys.argv[3])
t.finetuned(Path(sys.argv[1])).entry(t.Cache(Path(sys.argv[2])), lambda done, steps: done == step and os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.parametrize(("step", "done"), [(2, 0), (8, 2)])
def test_one_that_was_killed_goes_on_after_its_last_epoch_to_the_same_weights(
    with_dropout: Path, tmp_path: Path, step: int, done: int, monkeypatch: pytest.MonkeyPatch
):
    whole, killed = Cache(tmp_path / "whole"), Cache(tmp_path / "killed")
    source = finetuned(with_dropout)
    train_all([source], whole)
    words = [sys.executable, "-c", KILLED, str(with_dropout), str(killed.root), str(step)]
    child = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, check=False)
    assert child.returncode == -signal.SIGKILL
    assert len([*killed.root.glob(KEPT)]) == min(done, 1), "the latest alone is kept"
    steps: list[int] = []
    source.entry(killed, lambda step, of: steps.append(step))
    assert steps == list(range(3 * done + 1, 13)), "4 epochs of 9 examples and 3 others in batches of 4"
    assert weights(source, killed) == weights(source, whole)
    assert not [*killed.root.glob(KEPT)], "what was kept goes when the model is done"
    if done:
        seconds = killed.find("model", source.identity).facts["earlier_seconds"]  # type: ignore[union-attr]
        assert seconds > 0
        assert source.seconds(killed) > seconds  # type: ignore[operator]


def test_epochs_are_kept_no_more_often_than_is_worth_it(nano: Nano, cache: Cache, monkeypatch: pytest.MonkeyPatch):
    kept: list[int] = []
    monkeypatch.setattr(Cache, "get", _noting(kept, Cache.get))
    train_all([finetuned(nano.folder())], cache)
    assert kept == []
    monkeypatch.setattr(kept_epochs, "KEPT_EVERY", 0.0)
    train_all([finetuned(nano.folder(), seed=5)], cache)
    assert kept == [1, 2, 3], "the last one is the model"


def _noting(kept: list[int], get: Any) -> Any:
    def noted(cache: Cache, kind: str, key: Any, make: Any) -> Any:
        if kind == "training":
            kept.append(key["epoch"])
        return get(cache, kind, key, make)

    return noted


def test_what_is_kept_goes_unread_for_another_process_may_just_be_removing_it(
    nano: Nano, cache: Cache, caplog: pytest.LogCaptureFixture
):
    source = finetuned(nano.folder())
    kept = source._kept(cache)
    for epoch in (1, 3):
        cache.get("training", kept._key(epoch), lambda folder: (folder / kept_epochs._FILE).write_bytes(b"x") and {})
    for file in cache.root.glob(KEPT):
        file.unlink()
    source._kept(Cache(cache.root)).forget()  # another process, which has checked nothing yet
    assert not [*(cache.root / "training").iterdir()], "neither an entry nor one that is set aside as corrupt"
    assert not caplog.messages
    assert len([*(cache.root / "locks").glob("training-*")]) == 2, "an epoch that was never kept has no lock"


@pytest.mark.parametrize(("what", "goes_on_at"), [("training", 1), ("model", 10)])
def test_a_disk_that_fills_up_meanwhile_is_told_of_and_leaves_nothing_half_made(
    nano: Nano, cache: Cache, monkeypatch: pytest.MonkeyPatch, what: str, goes_on_at: int
):
    from harness.models import saving, sources

    def full(*words: Any) -> None:
        place = next(word for word in words if isinstance(word, Path))
        (place / "half" if place.is_dir() else place).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    source, steps = finetuned(nano.folder()), list[int]()
    monkeypatch.setattr(kept_epochs, "KEPT_EVERY", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(*((saving, "save_tensors") if what == "training" else (sources, "save_checkpoint")), full)
        with pytest.raises(UsageError, match=rf"no space is left on the disk of the cache .* \({what}\)\. Free some space"):
            train_all([source], cache)
    assert not [*(cache.root / "making").iterdir()]
    assert cache.find("model", source.identity) is None
    source.entry(cache, lambda step, of: steps.append(step))
    assert steps[0] == goes_on_at


def test_what_is_kept_and_damaged_is_not_gone_on_from(nano: Nano, tmp_path: Path):
    cache = Cache(tmp_path / "damaged")
    words = [sys.executable, "-c", KILLED, str(nano.folder()), str(cache.root), "8"]
    subprocess.run(words, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, check=False)
    (file,) = cache.root.glob(KEPT)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    whole, source = Cache(tmp_path / "whole"), finetuned(nano.folder())
    train_all([source], whole)
    train_all([source], cache)
    assert weights(source, cache) == weights(source, whole)


def test_a_fine_tuned_model_has_the_configuration_of_what_it_starts_from(tmp_path: Path):
    gguf = GgufSource("tiny", tmp_path / "tiny.gguf")
    for parent in (CheckpointSource(str(tmp_path)), gguf):
        assert configured_by(finetuned(tmp_path, parent=parent)) is parent
        assert configured_by(parent) is parent
    assert configured_by(finetuned(tmp_path, parent=finetuned(tmp_path))) is None
