"""Presets: what the files say is what runs take, each entry has its source, and a slip in a file is one sentence that names it."""

from __future__ import annotations

import inspect
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

from harness.core import presets
from harness.core.benchmark import BENCHMARKS
from harness.core.config import resolve
from harness.core.errors import UsageError
from harness.core.method import METHODS, method
from harness.core.plugins import VARIABLE, add_plugins
from harness.core.presets import PresetEntry, preset_files
from harness.core.registry import ROOT
from harness.storage.store import Store
from tests.core.test_plugins import METHOD

CHOSEN = json.loads((Path(__file__).parents[1] / "fixtures" / "presets.json").read_text(encoding="utf-8"))
"""Method → settings → where they were chosen ("tofu10 mini tuned"), as of the code before there were files of presets; a
benchmark or family that it does not name had none, and takes those of `other`."""
ENTRIES = [(name, entry) for name in METHODS.names() for entry in METHODS.get(name).presets]


def chosen(name: str) -> dict[str, list[str]]:
    """What `CHOSEN` holds of a method, from what its presets are today."""
    found: dict[str, list[str]] = defaultdict(list)
    for bench in [*CHOSEN["benches"], "other"]:
        for family in [*CHOSEN["families"], "other"]:
            for preset in ("published", "tuned"):
                try:
                    settings = METHODS.get(name).preset(bench, family, preset)
                except UsageError:
                    continue
                if settings:
                    found[json.dumps(settings, sort_keys=True)].append(f"{bench} {family} {preset}")
    return dict(found)


@pytest.mark.parametrize("name", CHOSEN["methods"])
def test_the_settings_are_those_that_the_decorators_held(name: str):
    assert chosen(name) == CHOSEN["methods"][name]


def test_the_decorator_takes_no_presets():
    assert {"presets", "tuned"}.isdisjoint(inspect.signature(method).parameters)
    assert len(inspect.signature(method).parameters) <= 8


def test_every_file_is_read_and_names_methods_and_benchmarks_that_there_are():
    assert {file.name for file in preset_files()} >= {"any.toml", "tofu.toml", "wmdp.toml"}
    named = [entry for file in preset_files() for entry in presets._read(file, 0)]
    assert {name for entry in named for name in entry.methods} <= set(METHODS.names())
    assert {bench for entry in named for bench in entry.benches} <= {"*", *BENCHMARKS.names()}
    assert len({entry.where for entry in named}) == len(named) > 50


@pytest.mark.parametrize(("name", "entry"), ENTRIES, ids=lambda v: v if isinstance(v, str) else v.where)
def test_every_entry_is_what_is_taken_where_it_holds(name: str, entry: PresetEntry):
    for bench in entry.benches:
        for family in entry.families:
            settings = METHODS.get(name).preset(bench, family, entry.preset)
            assert {key: settings[key] for key in entry.settings} == dict(entry.settings)


# ---------------------------------------------------------------- where they are from


def test_what_is_published_says_by_whom():
    for name, entry in ENTRIES:
        if entry.preset == "published":
            assert re.search(r"arXiv:\d{4}\.\d{5}|\w+/[\w-]+ |nobody published|own words", entry.source), (name, entry.where)


@pytest.mark.parametrize(
    ("bench", "preset"), [("tofu05", "tuned"), ("tofu10", "tuned"), ("wmdp", "tuned"), ("tofu10", "tuned2")]
)
def test_what_is_tuned_is_the_best_of_the_tries_on_record(bench: str, preset: str):
    store = Store(ROOT / "results" / "tuning")
    runs, records = store.frame(), [store.read(place) for place in store.places()]
    scores = runs[(runs["bench"] == bench) & (runs["metric"] == "selection_score")]
    last = scores[scores["step"] == scores.groupby("run")["step"].transform("max")]
    later = {record.spec.run_id for record in records if record.trial and record.trial.search == "random"}
    last = last if preset == "tuned2" else last[~last["run"].isin(later)]
    tuned = {name: entry for name, entry in ENTRIES if entry.preset == preset and bench in entry.benches}
    assert set(tuned) == set(last["method"])
    for name, tries in last.groupby("method"):
        assert tuned[name].source == f"best of {len(tries)} tries, results/tuning/runs/{bench}"
        best = json.loads(tries.sort_values("value")["config"].iloc[-1])
        if (bench, name) == ("wmdp", "kfade"):
            best["forget_rows"] = min(best["forget_rows"], 96 // best["steps"])  # mini has 96 texts a stage
        of_today = METHODS.get(name)
        of_files = resolve(of_today.config, of_today.preset(bench, "mini", preset), owner=name)
        assert of_files == resolve(of_today.config, best, owner=name), "settings that came later have their defaults"


# ---------------------------------------------------------------- a slip in a file

RIGHT = {
    "methods": '["ga"]',
    "benches": '["tofu10"]',
    "families": '["mine"]',
    "settings": "{ lr = 1e-3 }",
    "source": '"a paper"',
}


def entry(kind: str = "published", **others: str) -> str:
    keys = {key: value for key, value in {**RIGHT, **others}.items() if value}
    return "\n".join([f"[[{kind}]]", *(f"{key} = {value}" for key, value in keys.items())]) + "\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plug-in folder's presets."""
    monkeypatch.setenv(VARIABLE, "")
    (tmp_path / "theirs" / "presets").mkdir(parents=True)
    add_plugins(tmp_path / "theirs")
    return tmp_path / "theirs" / "presets"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (entry(methods='["gaa"]'), "published entry 1: no method called 'gaa'. Did you mean 'ga'?"),
        (entry(settings="{ lrr = 1e-3 }"), "published entry 1: no setting of ga called 'lrr'. Did you mean 'lr'?"),
        (entry() + entry(settings='{ lr = "fast" }'), 'published entry 2: ga: lr="fast" is not allowed'),
        (entry(settings="{ epochs = 0 }"), "published entry 1: ga: epochs=0 is not allowed"),
        (entry(settings="{ lr = nan }"), "published entry 1: ga: lr=NaN is not allowed"),
        (entry(settings="{ lr = 2026-11-26 }"), 'published entry 1: ga: lr="2026-11-26" is not allowed'),
        (entry(settings="3"), "published entry 1: settings=3 is not allowed"),
        (entry(methods='"ga"'), 'published entry 1: methods="ga" is not allowed'),
        (entry(benches="[]"), "published entry 1: benches=[] is not allowed"),
        (entry(source='""'), 'published entry 1: source="" is not allowed'),
        (entry(source="", families=""), "published entry 1 lacks families, source."),
        (entry(bench='"tofu10"'), "published entry 1: no key called 'bench'. Did you mean 'benches'?"),
        (entry("publish"), "no kind of preset called 'publish'. Did you mean 'published'?"),
        (entry("tuned", benches='["*"]'), "tuned entry 1: settings are tuned on some benchmark"),
        (entry("tuned2", benches='["*"]'), "tuned2 entry 1: settings are tuned on some benchmark"),
        ('published = "all"\n', "published is no list of tables; begin each entry with [[published]]"),
        (entry() + entry(settings="{ epochs = 3, lr = 1e-2 }"), "published entry 2 gives lr of ga again, for models that "),
        ("[[published]\n", "cannot be read as TOML ("),
        ("x = " + "[" * 100_000, "cannot be read as TOML ("),
    ],
    ids=lambda text: text if "entry" in text else "",
)
def test_a_slip_is_one_sentence_that_names_file_and_entry(folder: Path, text: str, said: str):
    (folder / "mine.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        METHODS.get("ga").preset("tofu10", "mine")
    assert str(caught.value).startswith("theirs/presets/mine.toml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_slip_of_another_methods_settings_stops_nobody(folder: Path):
    (folder / "mine.toml").write_text(entry(methods='["npo"]', settings="{ lrr = 1e-3 }"))
    assert METHODS.get("ga").preset("tofu10", "mine") == {}


# ---------------------------------------------------------------- of plug-ins


def test_a_plugin_folder_brings_presets_for_methods_that_there_are(folder: Path):
    (folder / "colours.toml").write_text(
        entry(benches='["*"]', settings="{ lr = 1e-2, epochs = 3 }")
        + entry(benches='["colours"]', settings='{ epochs = 7, warmup_epochs = "none" }')
        + entry("tuned", benches='["colours"]', settings="{ lr = 2e-2 }")
    )
    ga = METHODS.get("ga")
    assert ga.preset("tofu10", "mine") == {"lr": 1e-2, "epochs": 3}
    assert ga.preset("colours", "mine") == {"lr": 1e-2, "epochs": 7, "warmup_epochs": None}
    assert ga.preset("colours", "mine", "tuned") == {"lr": 2e-2, "epochs": 7, "warmup_epochs": None}
    with pytest.raises(UsageError, match=r"ga has no tuned preset for tofu10 on mine \(it has one for: .*colours on mine\)"):
        ga.preset("tofu10", "mine", "tuned")
    with pytest.raises(UsageError, match=r"ga has no tuned2 preset for colours on mine"):
        ga.preset("colours", "mine", "tuned2")
    assert ga.preset("tofu10", "mini"), "the project's own stay"


def test_a_plugin_method_has_presets_beside_its_file(folder: Path):
    file = folder.parent / "with_presets.py"
    file.write_text(METHOD.format(name="with_presets"))
    (folder / "with_presets.toml").write_text(entry(methods='["with_presets"]', settings="{ steps = 4 }"))
    assert METHODS.get("with_presets").preset("tofu10", "mine") == {"steps": 4}


def test_presets_of_a_plugin_that_is_broken_stop_nobody(folder: Path):
    (folder.parent / "broken.py").write_text("def :\n")
    (folder / "broken.toml").write_text(entry(methods='["broken"]'))
    assert METHODS.get("ga").preset("tofu10", "mini")


def test_presets_for_another_file_of_the_folder_stop_nobody_who_asks_for_one_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("asked_alone", "its_neighbour"):
        (folder.parent / f"{name}.py").write_text(METHOD.format(name=name))
    (folder / "both.toml").write_text(
        entry(methods='["its_neighbour"]', settings="{ steps = 4 }")
        + entry(methods='["asked_alone"]', settings="{ steps = 5 }")
    )
    monkeypatch.setenv(VARIABLE, str(folder.parent / "asked_alone.py"))
    assert METHODS.get("asked_alone").preset("tofu10", "mine") == {"steps": 5}


def test_a_file_that_is_written_anew_is_read_anew(folder: Path):
    import os

    file = folder / "mine.toml"
    file.write_text(entry())
    assert METHODS.get("ga").preset("tofu10", "mine") == {"lr": 1e-3}
    file.write_text(entry(settings="{ lr = 2e-3 }"))
    os.utime(file, ns=(1, 1))
    assert METHODS.get("ga").preset("tofu10", "mine") == {"lr": 2e-3}
