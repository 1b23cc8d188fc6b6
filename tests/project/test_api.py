"""The Python door: the command line's runs, with results that can be looked at, counted on and compared."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.core.evaluator import EVALUATORS
from harness.core.method import Progress, UnlearningContext
from harness.core.registry import ROOT
from harness.reading.runs import Runs
from harness.storage.identity import comparable
from tests.conftest import Bench

MEASURED = ("rouge", "probability")


def scaled(context: UnlearningContext, config: Any) -> Iterator[Progress]:
    """Shrinks the output matrix by the setting, in two steps."""
    import torch

    for step in (1, 2):
        with torch.no_grad():
            context.model.lm_head.weight.mul_(1 - 0.2 * config.strength)
        yield Progress(step, measure_here=True, total=2)


@pytest.fixture
def invented(bench: Bench) -> Bench:
    """The method `fake` on the benchmark `nano`, registered."""
    bench.plan(scaled, [EVALUATORS.get(name) for name in MEASURED])
    return bench


def test_the_public_names_are_all_there_and_cost_no_torch():
    code = "import sys, harness; [getattr(harness, name) for name in harness.__all__]; print('torch' in sys.modules, 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        harness.runn  # noqa: B018


@pytest.mark.parametrize("kind", [str, Path])
def test_a_run_is_made_once_and_found_again(invented: Bench, kind: type):
    runs = harness.run("fake", bench="nano", results=kind(invented.results), settings={"strength": 0.5})
    assert [(r.spec.method, r.status, r.spec.config) for r in runs] == [("fake", "done", {"strength": 0.5})]
    assert repr(runs) == "<1 run: fake on nano seed 0>"
    again = harness.run(["fake"], bench="nano", results=kind(invented.results), settings={"strength": 0.5})
    assert again[0] == runs[0]
    loaded = harness.load_runs(kind(invented.results))
    assert [r.spec.run_id for r in loaded] == [runs[0].spec.run_id]
    assert len(harness.load_runs(kind(invented.results), method="npo")) == 0


def test_the_table_has_a_row_for_each_point_and_metric(invented: Bench):
    runs = harness.run("fake", bench="nano", results=invented.results)
    harness.run("untouched", bench="nano", results=invented.results)
    table = runs.table()
    assert set(table["run"]) == {runs[0].spec.run_id}, "of these runs alone"
    of_method = table[table["arm"] == "method"]
    assert sorted(set(of_method["index"])) == [0, 1]
    found = of_method[(of_method["metric"] == "forget_rouge") & (of_method["index"] == 1)]["value"].item()
    last = {m.metric: m for m in runs[0].points[-1].measurements}
    assert found == last["forget_rouge"].value


def test_answers_stand_beside_the_truth_and_the_references(invented: Bench):
    runs = harness.run("fake", bench="nano", results=invented.results)
    alone = runs.samples("forget")
    assert list(alone) == ["run", "method", "task", "question", "true", "before", "after", "retrained"]
    asked = invented.base.questions["forget"]
    assert list(alone["question"]) == [row["question"] for row in asked]
    assert list(alone["true"]) == [row["answer"] for row in asked]
    assert alone["after"].notna().all()
    assert alone["before"].isna().all(), "no run of the model before is recorded"
    harness.run(["untouched", "retrained"], bench="nano", results=invented.results)
    beside = runs.samples("forget")
    assert list(beside["after"]) == list(alone["after"])
    assert beside[["before", "retrained"]].notna().all().all()
    assert (beside["before"] != beside["retrained"]).any(), "two models of other weights"
    assert set(runs.samples()["task"]) > {"forget"}


def test_a_sweep_gives_one_result_for_each_trial(invented: Bench):
    runs = harness.sweep("fake", bench="nano", grid={"strength": [0.5, 1.0]}, seeds=[0, 1], results=str(invented.results))
    chosen = [(r.spec.config["strength"], r.spec.seed) for r in runs]
    assert sorted(chosen) == [(0.5, 0), (0.5, 1), (1.0, 0), (1.0, 1)]
    assert len(runs[:2]) == 2
    assert runs[:2].store is runs.store
    assert len(set(runs.table()["run"])) == 4


def test_a_notebook_shows_runs_as_a_table_with_its_text_escaped(invented: Bench):
    runs = harness.run("fake", bench="nano", results=invented.results)
    page = runs._repr_html_()
    assert page.startswith("<table>")
    assert "<td>fake</td>" in page
    assert "forget_rouge" in page
    assert "<p>nothing to compare</p>" in runs.compare()._repr_html_()


def test_what_cannot_be_is_refused_in_the_command_lines_words(invented: Bench, tmp_path: Path):
    with pytest.raises(harness.UsageError, match=r"no method called 'kfad'. Did you mean 'kfade'"):
        harness.run("kfad", bench="tofu10", results=tmp_path)
    with pytest.raises(harness.UsageError, match=r"no argument called 'sed'. Did you mean 'seed'"):
        harness.run("fake", bench="nano", results=tmp_path, sed=1)  # type: ignore[call-arg]
    with pytest.raises(harness.UsageError, match="nowhere"):
        harness.load_runs(tmp_path / "nowhere")
    runs = harness.run("fake", bench="nano", results=invented.results)
    with pytest.raises(harness.UsageError, match="none of these runs is of npo; there are: fake"):
        harness.compare(runs, "npo")


def test_a_run_that_breaks_off_is_raised_and_stays_on_record(invented: Bench):
    def broken(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        yield Progress(1, measure_here=True)
        raise harness.RunFailed("the loss is not finite")

    invented.plan(broken, [EVALUATORS.get("rouge")])
    with pytest.raises(harness.RunFailed, match=r"1 of 1 runs are not done: fake \(failed\): .*the loss is not finite"):
        harness.run("fake", bench="nano", results=invented.results)
    assert harness.load_runs(invented.results)[0].status == "failed"


def test_methods_are_compared_on_the_same_rows():
    """On committed records: what the command line and the page say of the same runs."""
    every = harness.load_runs(ROOT / "results", bench="tofu10", method=["npo", "ga"])
    with pytest.raises(harness.UsageError, match=r"differ in their settings|not all on one benchmark"):
        harness.compare(every)
    first = every[0].spec
    alike = [r for r in every if comparable(r.spec) == comparable(first) and r.spec.seed == first.seed]
    usual = {r.spec.method: r for r in alike}
    found = harness.compare(Runs(list(usual.values()), every.store), "npo")
    assert {(each.first, each.second) for each in found} == {("ga", "npo")}
    assert set(found.table()) >= {"metric", "value", "low", "high", "p", "p_corrected"}
    assert all(each.low <= each.value <= each.high for each in found)
    assert found._repr_html_().startswith("<table")
