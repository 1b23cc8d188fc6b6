"""The paper's ablations as data: every one can be planned, and says how long it takes by what is recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.core.config import resolve
from harness.core.costs import Phase
from harness.core.errors import UsageError
from harness.core.method import METHODS
from harness.core.options import Options
from harness.running.studies import STUDIES, Forecast, forecast, possible, study_of, trials_of
from harness.running.trials import EvalPlans
from harness.storage.records import SCHEMA_VERSION, RunResult
from harness.storage.store import Store
from tests.cli.test_cli import Harness, harness, refused  # noqa: F401

TASKS: EvalPlans = {}


def test_the_papers_ablations_are_there():
    assert list(STUDIES) == sorted(STUDIES)
    assert {"hessian", "forget-in-hessian", "samples", "damping", "step-size", "steps", "objective", "layers"} < set(STUDIES)
    assert {"tofu-table", "tofu-pareto"} < set(STUDIES)
    with pytest.raises(UsageError, match=r"no study called 'hesian'[.] Did you mean 'hessian'"):
        study_of("hesian")


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_can_be_planned_and_no_run_is_in_it_twice(name: str):
    tries, left_out = possible(trials_of(STUDIES[name], (), "mini", (), Options(limit=2)), TASKS)
    plans = [todo.plan(TASKS) for todo in tries]
    assert {line.partition(" on ")[0] for line in left_out} <= {"checkpoint is left out"}, "ToFU has no published results"
    assert len({p.spec.run_id for p in plans}) == len(plans) > 1


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_a_form_for_real_models_and_its_settings_are_known(name: str):
    tries = trials_of(STUDIES[name], (), "phi-1.5", (), Options())
    assert tries
    for todo in tries:
        unset = {"step_size": 1.0} if todo.method == "kfade" else {}  # real models have no preset
        resolve(METHODS.get(todo.method).config, unset, todo.fixed, todo.chosen, owner=todo.method)


def test_the_table_holds_every_method_with_three_seeds():
    tries = trials_of(STUDIES["tofu-table"], (), "mini", (), Options())
    assert {t.method for t in tries} == set(METHODS.names())
    assert {(t.bench, t.options.seed) for t in tries} == {(b, s) for b in ("tofu05", "tofu10") for s in (0, 1, 2)}
    assert len(trials_of(STUDIES["tofu-table"], ["tofu01"], "mini", [7], Options())) == len(METHODS.names())


def test_a_forecast_goes_by_what_was_recorded_of_the_same_method(tmp_path: Path):
    tries = trials_of(STUDIES["step-size"], (), "mini", (), Options(limit=2))
    plans, store = [todo.plan(TASKS) for todo in tries], Store(tmp_path)
    assert (
        str(forecast(plans, store)) == "6 runs, 0 of them done; how long the other 6 take is unknown: no such run is recorded"
    )
    for todo, seconds in zip(plans[:3], (30.0, 60.0, 600.0), strict=True):
        costs = {"models": Phase(seconds=10.0), "unlearning": Phase(seconds=seconds), "curvature": Phase(seconds=1e6)}
        with store.open(todo.spec) as record:
            record.write(RunResult(schema_version=SCHEMA_VERSION, spec=todo.spec, status="done", costs=costs))
    found = forecast(plans, store)
    assert found == Forecast(6, 3, 3 * 70.0, [])
    assert str(found) == "6 runs, 3 of them done; the other 3 take about 4 min by what is recorded"
    assert forecast(plans, store, jobs=2).seconds == 105.0
    other = [replace(todo, method="ga", chosen={}).plan(TASKS) for todo in tries[:1]]
    assert "not counting those of ga that are like none recorded" in str(forecast([*plans, *other], store))


def test_a_dry_run_lists_the_runs_and_does_none(harness: Harness, tmp_path: Path):  # noqa: F811
    words = ("study", "damping", "--device", "cpu", "--limit", 2, "--results", tmp_path / "r", "--dry-run")
    told = harness(*words)
    assert told.code == 0
    assert "10 runs, 0 of them done; how long" in told.out
    assert "kfade on tofu10 estimator=ekfac damping=10.0 target_kl=0.1 seed 0" in told.out
    assert not (tmp_path / "r").exists()


def test_studies_are_listed_and_a_name_typed_wrong_is_answered(harness: Harness):  # noqa: F811
    assert all(name in harness("list", "studies").out for name in STUDIES)
    refused(harness("study", "hesian"), "Did you mean 'hessian'")
