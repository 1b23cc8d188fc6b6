"""Plug-ins from anywhere: found by name without being imported, refused where they clash, named where they are broken."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from harness.core import plugins
from harness.core.benchmark import BENCHMARKS
from harness.core.errors import UsageError
from harness.core.evaluator import EVALUATORS, title_of
from harness.core.measurement import Measurement
from harness.core.method import METHODS, Progress
from harness.core.options import Options
from harness.core.plugins import GROUP, VARIABLE, add_plugins
from harness.core.registry import ROOT
from harness.reading.run_report import run_report
from harness.running.executors import in_turn, needs, on_ray, on_workers
from harness.running.provenance import made_by_other_code, plugin_digests
from harness.running.run import execute
from harness.running.sweep import run_all, run_trials
from harness.storage.cache import Cache
from harness.storage.store import Store
from tests.conftest import Bench, HarnessCli
from tests.nano_sweep import tries
from tests.reading.test_run_report import text
from tests.records import PROVENANCE, SPEC, number, numbers, run

METHOD = '''"""A method of somebody else's."""

from collections.abc import Iterator

from harness.core.config import settings
from harness.core.method import Progress, UnlearningContext, method


@settings
class Config:
    steps: int = 1
    """How many."""


@method("{name}", config=Config, source="nobody")
def unlearn(context: UnlearningContext, config: Config) -> Iterator[Progress]:
    """Do nothing, so many times."""
    for step in range(config.steps):
        yield Progress(step + 1, measure_here=True, total=config.steps)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, "")
    (tmp_path / "plugins").mkdir()
    return tmp_path / "plugins"


def test_a_method_of_a_folder_is_found_by_name(folder: Path):
    (folder / "theirs.py").write_text(METHOD.format(name="theirs"))
    assert "theirs" not in METHODS.names()
    add_plugins(folder)
    assert "theirs" in METHODS.names()
    assert METHODS.entries["theirs"].summary == "A method of somebody else's."
    assert METHODS.get("theirs").config().steps == 1


@pytest.mark.parametrize("named", ["", "several", "several/__init__.py"])
def test_a_plugin_may_be_a_folder_whose_files_import_one_another(folder: Path, named: str):
    name = f"in_parts_{len(named)}"
    (folder / "several").mkdir()
    (folder / "several" / "__init__.py").write_text(METHOD.format(name=name).replace("class Config:", "class Config(Base):"))
    (folder / "several" / "base.py").write_text("class Base:\n    kept = 3\n")
    init = folder / "several" / "__init__.py"
    init.write_text(init.read_text().replace("\n\n\n@settings", "\nfrom .base import Base\n\n\n@settings"))
    add_plugins(folder / named)
    assert METHODS.get(name).config.kept == 3
    assert METHODS.entries[name].file.path == init.resolve()
    assert set(METHODS.digests(name)) == {"__init__.py", "base.py"}, "all its files are its code"


def test_an_installed_package_registers_by_itself_by_its_files_and_by_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "installed_for_a_test"
    (package / "parts").mkdir(parents=True)
    for place, name in {"__init__.py": "of_itself", "file.py": "of_its_file", "parts/__init__.py": "of_its_folder"}.items():
        (package / place).write_text(METHOD.format(name=name))
    (package / "parts" / "helper.py").write_text(METHOD.format(name="of_nothing"))
    about = tmp_path / "installed_for_a_test-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: installed-for-a-test\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[{GROUP}]\nmine = {package.name}\n")
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.syspath_prepend(tmp_path)
    plugins._installed.cache_clear()
    try:
        names = {name: entry.module for name, entry in METHODS.entries.items() if entry.file}
        assert names == {
            "of_itself": package.name,
            "of_its_file": f"{package.name}.file",
            "of_its_folder": f"{package.name}.parts",
        }
        assert [METHODS.get(name).config().steps for name in names] == [1, 1, 1]
        assert set(METHODS.digests("of_itself")) == {"__init__.py", "file.py", "parts/__init__.py", "parts/helper.py"}
    finally:
        plugins._installed.cache_clear()


def test_a_folder_that_is_named_twice_over_registers_once(folder: Path):
    (folder / "once").mkdir()
    (folder / "once" / "__init__.py").write_text(METHOD.format(name="once"))
    add_plugins(folder, folder / "once", folder / "once" / "__init__.py")
    assert "once" in METHODS.names()


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, "")
    with pytest.raises(UsageError, match="there is no such file or folder"):
        add_plugins(tmp_path / "nowhere")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"HARNESS_PLUGINS names .*nowhere, and there is no such file or folder"):
        METHODS.names()


def test_a_taken_name_is_refused(folder: Path):
    (folder / "mine.py").write_text(METHOD.format(name="kfade"))
    add_plugins(folder)
    with pytest.raises(UsageError, match=r"method 'kfade' is registered twice: methods\.kfade and .*mine\.py"):
        METHODS.names()


def test_a_broken_plugin_is_named_and_the_others_work(folder: Path, caplog: pytest.LogCaptureFixture):
    (folder / "broken.py").write_text("def :\n")
    (folder / "theirs.py").write_text(METHOD.format(name="theirs_too"))
    add_plugins(folder)
    with caplog.at_level(logging.WARNING):
        assert "theirs_too" in METHODS.names()
    assert "broken.py cannot be read (SyntaxError: invalid syntax (broken.py, line 1)); it is left out" in caplog.text


def test_a_plugin_that_breaks_off_when_imported_is_one_sentence(folder: Path):
    (folder / "late.py").write_text(METHOD.format(name="late") + "\n1 / 0\n")
    add_plugins(folder)
    with pytest.raises(UsageError, match=r"the plug-in .*late\.py cannot be imported \(ZeroDivisionError"):
        METHODS.get("late")


def test_the_command_line_takes_plugins_anywhere(folder: Path):
    (folder / "theirs.py").write_text(METHOD.format(name="of_the_line"))
    words = [sys.executable, "-m", "harness", "list", "methods", "--json", "--plugins", str(folder)]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert '"of_the_line"' in found.stdout


def test_a_name_that_two_files_take_says_the_way_out(folder: Path):
    for name in ("one", "two"):
        (folder / f"{name}.py").write_text(METHOD.format(name="of_both"))
    add_plugins(folder)
    with pytest.raises(
        UsageError, match=r"'of_both' is registered twice: .*one\.py and .*two\.py\. Give one of them another name"
    ):
        METHODS.names()


def test_a_folder_and_a_file_of_it_may_both_be_named(folder: Path):
    (folder / "named_twice.py").write_text(METHOD.format(name="named_twice"))
    add_plugins(folder, folder / "named_twice.py")
    assert METHODS.get("named_twice").name == "named_twice"


def test_all_of_a_kind_are_had_though_one_is_broken(folder: Path, caplog: pytest.LogCaptureFixture):
    (folder / "whole.py").write_text(METHOD.format(name="whole"))
    (folder / "late_again.py").write_text(METHOD.format(name="late_again") + "\n1 / 0\n")
    add_plugins(folder)
    with caplog.at_level(logging.WARNING):
        there = METHODS.all()
        METHODS.all()
    assert {"whole", "kfade"} <= set(there)
    assert "late_again" not in there
    (said,) = [record.message for record in caplog.records]
    assert "late_again.py cannot be imported (ZeroDivisionError: division by zero); it is left out" in said
    assert "leave it out of --plugins" in said


EVALUATOR = '''"""A number."""

from harness.core.evaluator import evaluator
from harness.core.metric import Metric, Number, Plain

METRICS = [Metric("{name}", "Answer", "x", None, "a number", statistic=Plain("it is made up"))]


@evaluator("{name}", version=1, metrics=METRICS)
def measure(context, metric):
    """The number."""
    return Number(42.0, 1)
'''


def test_an_evaluator_that_is_broken_keeps_nobody_from_reading_records(folder: Path):
    (folder / "broken_number.py").write_text(EVALUATOR.format(name="broken_number") + "\n1 / 0\n")
    (folder / "sound_number.py").write_text(EVALUATOR.format(name="sound_number"))
    add_plugins(folder)
    assert title_of("forget_quality") == "Forget quality"
    assert title_of("sound_number") == "Answer"
    assert title_of("broken_number") == "broken number"


def test_a_record_names_the_code_of_its_plugins(folder: Path):
    file, helper = folder / "recorded_one.py", folder / "_helper.py"
    file.write_text(METHOD.format(name="recorded_one"))
    helper.write_text("x = 1\n")
    (folder / "another.py").write_text(EVALUATOR.format(name="another_number"))
    add_plugins(folder)
    digests = {each.name: sha256(each.read_bytes()).hexdigest() for each in (file, helper)}
    spec = replace(SPEC, method="recorded_one", evaluators={"forget_quality": 1})
    assert plugin_digests(spec) == {"method recorded_one": digests}
    assert plugin_digests(SPEC) == {}
    assert list(plugin_digests(replace(SPEC, evaluators={"another_number": 1}))) == ["evaluator another_number"]


def test_a_record_by_code_that_has_changed_since_says_so(folder: Path):
    (folder / "changing.py").write_text(METHOD.format(name="changing"))
    add_plugins(folder)
    spec = replace(SPEC, method="changing")
    result = run(numbers(0.1, 0.2, 0.8), spec={"method": "changing"})
    same = replace(result, provenance=replace(PROVENANCE, plugins=plugin_digests(spec)))
    other = replace(result, provenance=replace(PROVENANCE, plugins={"method changing": {"changing.py": "0" * 64}}))
    assert made_by_other_code(same) == ""
    for changed in (other, replace(result, provenance=PROVENANCE)):
        assert f"the code of method changing has changed since run {spec.run_id}" in made_by_other_code(changed)
    assert made_by_other_code(run(numbers(0.1, 0.2, 0.8))) == "", "a built-in method's code is named by the commit"


EDIT = '''"""Every weight by a factor, in one step."""

from harness.core.config import settings
from harness.core.method import Progress, method


@settings
class Config:
    """Settings."""

    strength: float = 0.1
    """By how much."""


@method("{name}", config=Config, source="nobody")
def unlearn(context, config):
    """Shrink."""
    import torch

    with torch.no_grad():
        context.model.lm_head.weight.mul_(1 - config.strength)
    yield Progress(1, measure_here=True, total=1)
'''


@pytest.mark.parametrize("jobs", [1, 2])
def test_workers_find_plugins_and_record_their_code(folder: Path, cache: Cache, jobs: int):
    (folder / "elsewhere.py").write_text(EDIT.format(name="elsewhere"))
    add_plugins(folder)
    asked = tries({"strength": 0.1}, {"strength": 0.2}, method="elsewhere")
    store = Store(folder.parent / "r")
    results = run_trials(asked, store, cache, on_workers(jobs) if jobs > 1 else in_turn)
    assert [r.status for r in results] == ["done", "done"]
    digest = sha256((folder / "elsewhere.py").read_bytes()).hexdigest()
    assert [r.provenance.plugins for r in results if r.provenance] == [{"method elsewhere": {"elsewhere.py": digest}}] * 2
    assert [r.spec.method_version for r in results] == [1, 1]


def test_a_task_of_ray_is_told_where_plugins_lie(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (todo,) = tries({})
    assert "runtime_env" not in needs(todo, {}, 0)
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv(VARIABLE, "plugins")
    assert needs(todo, {}, 0)["runtime_env"] == {"env_vars": {VARIABLE: str(folder)}}, "whole, since a node works elsewhere"


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'unlearning-harness[ray]'")
def test_ray_finds_plugins(folder: Path, cache: Cache):
    import ray

    ray.init(log_to_driver=False, logging_level=logging.ERROR)  # before there are plug-ins, as on a cluster that stands
    try:
        (folder / "on_ray.py").write_text(EDIT.format(name="on_ray"))
        add_plugins(folder)
        (result,) = run_trials(tries({}, method="on_ray"), Store(folder.parent / "r"), cache, on_ray(jobs=1))
    finally:
        ray.shutdown()
    assert (result.status, result.error) == ("done", "")
    assert result.provenance
    assert list(result.provenance.plugins) == ["method on_ray"]


def test_a_plugin_that_changed_is_run_anew_where_it_was_interrupted_and_told_of_where_it_was_done(
    folder: Path, cache: Cache, caplog: pytest.LogCaptureFixture
):
    (folder / "edited.py").write_text(EDIT.format(name="edited"))
    add_plugins(folder)
    store = Store(folder.parent / "r")
    (todo,) = [each.plan({}) for each in tries({}, method="edited")]
    done = execute(todo, store, cache)
    assert done.provenance
    before = replace(done.provenance, plugins={"method edited": {"edited.py": "0" * 64}})
    with store.open(done.spec) as record:
        record.write(replace(done, provenance=before))
    with caplog.at_level(logging.WARNING):
        (shown,) = run_all([todo], store, cache)
    assert shown.provenance == before
    assert "the code of method edited has changed since" in caplog.text
    assert "--force runs it anew" in caplog.text
    with store.open(done.spec) as record:
        record.write(replace(done, status="interrupted", provenance=before))
    with caplog.at_level(logging.WARNING):
        again = execute(todo, store, cache)
    assert "its points are measured anew" in caplog.text
    assert (again.status, len(again.points)) == ("done", 1)
    assert again.provenance
    assert again.provenance.plugins == done.provenance.plugins


def test_tables_of_the_references_are_kept_by_the_code_of_a_plugin(bench: Bench, folder: Path):
    """An author who changes an evaluator and not its version gets the retrained models' numbers by the new code, too."""
    numbers = []
    for factor in (1, 2):
        file = folder / str(factor) / "counted.py"
        file.parent.mkdir()
        file.write_text(COUNTED.format(factor=factor))
        EVALUATORS._registered.pop("counted", None)
        os.environ[VARIABLE] = str(file.parent)
        todo = bench.plan(lambda *_: iter([Progress(1, measure_here=True, total=1)]), [EVALUATORS.get("counted")])
        result = execute(todo, Store(folder / f"r{factor}"), bench.cache)
        numbers.append([arm[0].value for arm in result.references.values() if isinstance(arm[0], Measurement)])
    assert numbers[1] == [2 * number for number in numbers[0]]


COUNTED = '''"""How many questions there are, times a factor."""

import numpy as np
import pandas as pd

from harness.core.evaluator import evaluator
from harness.core.metric import Metric, Rows


def build(context):
    """One row per question."""
    rows = context.problem.questions["forget"]
    told = {{"task": "forget", "row": [r["row"] for r in rows], "cluster": [r["cluster"] for r in rows]}}
    return pd.DataFrame({{**told, "counted": {factor} * len(rows)}})


@evaluator("counted", version=1, metrics=[Metric("counted", "Counted", "questions", None, "how many there are")])
def measure(context, metric):
    """The number in every row."""
    table = context.table("counted", build)
    return Rows(table["counted"].to_numpy(dtype=float), table["cluster"].to_numpy())
'''


def test_an_evaluator_comes_to_the_benchmarks_own_or_stands_alone(bench: Bench, folder: Path):
    (folder / "beside.py").write_text(EVALUATOR.format(name="beside"))
    add_plugins(folder)
    own = [each.name for each in BENCHMARKS.get("tofu10").evaluators()]

    def measured(*names: str) -> list[str]:
        return list(bench.plan(lambda *_: iter(()), options=Options(evals=names)).spec.evaluators)

    assert measured("+beside") == [*own, "beside"]
    assert measured("beside") == ["beside"]
    assert measured(f"+{own[0]}") == own


def test_a_listing_leaves_out_what_breaks_off_and_names_it(folder: Path, harness_cli: HarnessCli):
    (folder / "broken_list.py").write_text(METHOD.format(name="broken_list") + "\n1 / 0\n")
    listed = harness_cli("list", "methods", "--plugins", str(folder))
    assert listed.returncode == 0
    assert "broken_list " not in listed.stdout
    assert "kfade" in listed.stdout
    assert "broken_list.py cannot be imported (ZeroDivisionError: division by zero); it is left out" in listed.stderr


def test_a_metric_of_a_plugin_stands_in_the_table_of_every_point(folder: Path):
    (folder / "at_each_point.py").write_text(EVALUATOR.format(name="at_each_point"))
    add_plugins(folder)
    made = run([*numbers(0.004, 0.2, 0.8), number("at_each_point", 0.5)])
    (point,) = made.points
    of_every_point = text(run_report(replace(made, points=[point, replace(point, index=1, step=point.step + 1)])), 200)
    (head,) = [line for line in of_every_point.splitlines() if "step" in line and "forget_quality" in line]
    assert "at_each_point" in head
