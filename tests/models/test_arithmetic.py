"""Kinds of machines: what tells them apart, who is told of it, and a recipe that gives the same weights on all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from evals.benchmarks.tofu.models import mini_sources
from evals.benchmarks.wmdp.models import mini_source
from harness.core.arithmetic import begun_with, in_words, is_portable, kind_of_machine, model_of_processor
from harness.core.benchmark import BENCHMARKS
from harness.core.errors import UsageError
from harness.core.options import Options
from harness.core.registry import ROOT
from harness.models.origins import made_elsewhere
from harness.models.recipes import Recipe
from harness.models.small import SMALL_MODEL_FACTOR, learning_rate_factor, small_name, small_world
from harness.storage.cache import Cache, digest
from harness.storage.store import Store
from tests.models.test_pretraining import CHILD, PARENT, RECIPE
from tests.storage.test_store import PROVENANCE, SPEC, result

# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mini", (0, "")), ("mini@2", (2, "")), ("mini@portable", (0, "portable")), ("mini@2-portable", (2, "portable"))],
)
def test_a_small_models_name_says_its_world_and_its_arithmetic(name: str, expected: tuple[int, str]):
    assert small_world(name) == expected
    assert small_name(*small_world(name)) == name


def test_world_0_goes_without_saying():
    assert small_name(*small_world("mini@0")) == "mini"
    assert small_name(*small_world("mini@0-portable")) == "mini@portable"


@pytest.mark.parametrize(
    "name", ["mini@", "mini@x", "mini@-1", "mini@1-", "mini@portable-1", "mini@1portable", "mini@٣", "mini@4294967296"]
)
@pytest.mark.parametrize("bench", ["tofu10", "wmdp"])
def test_another_name_is_refused_with_what_is_allowed(name: str, bench: str):
    with pytest.raises(UsageError, match=r"is no model: after mini@ .* mini@1-portable"):
        BENCHMARKS.get(bench).problem(name, Options())


@pytest.mark.parametrize("bench", ["tofu10", "wmdp"])
def test_the_portable_models_are_others_under_the_same_presets(bench: str):
    usual, portable = (BENCHMARKS.get(bench).problem(name, Options()) for name in ("mini", "mini@portable"))
    assert (usual.model, portable.model) == ("mini", "mini@portable")
    assert learning_rate_factor(portable) == SMALL_MODEL_FACTOR
    assert usual.sources.keys() == portable.sources.keys()
    for name, source in usual.sources.items():
        assert digest(source.identity) != digest(portable.sources[name].identity), name


@pytest.mark.parametrize(
    ("source", "expected"), [(mini_sources(0, "retain90")["base"], "5962596d"), (mini_source(0), "821a2f4a")]
)
def test_the_usual_models_are_named_as_in_the_committed_records(source: object, expected: str):
    assert digest(source.identity)[:8] == expected  # type: ignore[attr-defined]


def test_a_usual_recipe_is_named_as_before_there_was_a_choice():
    assert "arithmetic" not in Recipe(epochs=1, batch_size=1, lr=1.0).identity
    assert Recipe(epochs=1, batch_size=1, lr=1.0, threads=2).portable.identity["threads"] == 1


# ---------------------------------------------------------------- weights

TRAIN = """
import sys
from dataclasses import replace
from pathlib import Path
from harness.storage.cache import Cache
from tests.models.test_pretraining import PARENT

def main():
    for name, each in (("usual", PARENT), ("portable", replace(PARENT, recipe=PARENT.recipe.portable))):
        entry = each.entry(Cache(Path(sys.argv[1])))
        print(name, entry.facts["weights"], entry.facts["arithmetic"]["torch"])

if __name__ == "__main__":
    main()
"""


def trained_with(place: Path, **variables: str) -> dict[str, list[str]]:
    """Weights and kernels of a usual and of a portable model, trained by a process that was begun with those variables."""
    place.mkdir()
    (place / "train.py").write_text(TRAIN)
    env = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    ran = subprocess.run(
        [sys.executable, place / "train.py", place / "cache"], env=env, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return {line.split()[0]: line.split()[1:] for line in ran.stdout.splitlines()}


def test_portable_weights_do_not_depend_on_what_the_libraries_choose(tmp_path: Path):
    as_it_is = trained_with(tmp_path / "a", OMP_NUM_THREADS="2")
    plain = trained_with(tmp_path / "b", ATEN_CPU_CAPABILITY="default", ONEDNN_MAX_CPU_ISA="SSE41", OMP_NUM_THREADS="1")
    assert as_it_is["portable"] == plain["portable"]
    assert plain["portable"][1] == "DEFAULT"
    if as_it_is["usual"][1] != "DEFAULT":
        assert as_it_is["usual"] != plain["usual"], "which is what the portable recipe is there for"


def test_a_process_that_computes_in_another_way_does_not_train_a_portable_model(tmp_path: Path):
    source = replace(PARENT, recipe=RECIPE.portable)
    with pytest.raises(RuntimeError, match="a process of its own"):
        source._train(Cache(tmp_path), tmp_path, lambda done, steps: None)


def test_variables_hold_for_what_is_begun_inside_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MKL_CBWR", "AUTO")
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    with begun_with({"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}):
        assert is_portable()
    assert os.environ["MKL_CBWR"] == "AUTO"
    assert "ATEN_CPU_CAPABILITY" not in os.environ


# ---------------------------------------------------------------- who is told


def test_a_kind_says_what_decides_the_rounding(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    found = kind_of_machine()
    assert set(found) == {"maker", "instructions", "torch", "blas", "variables"}
    assert found["torch"] in in_words(found)
    assert "MKL_CBWR=COMPATIBLE" in in_words(found)
    monkeypatch.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1")
    assert "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1" in in_words(kind_of_machine())
    assert "/" not in "".join([*found.values(), model_of_processor()])


@pytest.mark.parametrize("kind", [{}, {"maker": "AuthenticAMD"}])
def test_words_for_what_little_is_recorded(kind: dict[str, str]):
    assert in_words(kind) == ", ".join(kind.values())


def test_models_of_another_kind_are_named(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    other = {**kind_of_machine(), "maker": "GenuineIntel", "torch": "AVX512"}
    with monkeypatch.context() as patch:
        patch.setattr("harness.models.pretraining.kind_of_machine", lambda: other)
        PARENT.entry(cache)
    (told,) = made_elsewhere({"base": PARENT, "retain-0": CHILD}, cache)
    assert told.startswith("base was trained on another kind of processor (GenuineIntel, ")
    assert "AVX512 of torch" in told
    CHILD.entry(cache)  # by this machine
    assert len(made_elsewhere({"base": PARENT, "retain-0": CHILD}, cache)) == 1
    assert made_elsewhere({"retain-0": CHILD}, cache) == []


def test_models_that_other_releases_made_are_named(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    source = replace(PARENT, recipe=RECIPE.portable)
    with monkeypatch.context() as patch:
        patch.setattr("harness.models.pretraining.versions", lambda: {"torch": "1.0", "left": "2.0"})
        patch.setattr("harness.models.pretraining.is_portable", lambda: True)
        PARENT.entry(cache)
        source.entry(cache)
    monkeypatch.setattr("harness.models.origins.versions", lambda: {"torch": "1.1", "new": "1", "left": "2.0"})
    (told,) = made_elsewhere({"base": PARENT, "retain-0": source}, cache)
    assert told.startswith(
        "base, retain-0 were trained with torch 1.0; trained with what is installed now they may have other "
    )
    (told,) = made_elsewhere({"base": PARENT}, cache)
    assert told.startswith("base was trained with torch 1.0; trained with what is installed now it may have other weights (")


def test_a_store_knows_a_run_that_began_with_other_weights(tmp_path: Path):
    store, other = Store(tmp_path), replace(SPEC, method="ga")
    with store.open(other) as record:
        record.write(result(spec=other, provenance=replace(PROVENANCE, weights="theirs")))
    assert store.began_otherwise(SPEC, "theirs") is None
    found = store.began_otherwise(SPEC, "ours")
    assert found is not None
    assert found.weights == "theirs"
    assert store.began_otherwise(replace(SPEC, dtype="bfloat16"), "ours") is None, "of another type they are others anyway"
