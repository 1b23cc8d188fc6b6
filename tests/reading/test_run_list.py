"""The list of runs: which, in what order, with which settings, within eighty columns."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from harness.core.config import departures, parse, resolve, to_json, written
from harness.core.errors import UsageError
from harness.core.method import METHODS
from harness.core.ranges import arms
from harness.core.registry import ROOT
from harness.reading.run_list import RunTables, given_settings, listed_runs
from harness.storage.records import RunResult
from harness.storage.store import Store
from tests.cli.test_cli import Harness, harness, refused  # noqa: F401
from tests.records import BY_HAND, TUNED, number, numbers, run, write


def usual(method: str, **given: object) -> dict[str, object]:
    """A method's settings on tofu10 with mini, some of them given by hand."""
    chosen = METHODS.get(method)
    return to_json(resolve(chosen.config, chosen.preset("tofu10", "mini", "published"), given, owner=method))


def never(why: str) -> None:
    raise AssertionError(why)


def text(runs, width: int = 80) -> str:
    console = Console(width=width, file=StringIO(), markup=False)
    console.print(RunTables(runs))
    return console.file.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    measured = numbers(2.77e-26, 0.6, 0.8)
    write(tmp_path, run(measured, spec={"config": usual("kfade"), "seed": 1}))
    write(tmp_path, run(measured, spec={"config": usual("kfade")}))
    write(tmp_path, run(measured, spec={"config": usual("kfade", step_size=0.01, layers=[1])}, selection=BY_HAND))
    write(tmp_path, run(measured, spec={"config": usual("npo"), "method": "npo", "form": "tuned"}, selection=TUNED))
    write(tmp_path, run(measured, spec={"config": {"strength": 1}, "method": "yours"}, status="failed", error="it broke"))
    wmdp = [number(f"{name}_accuracy", value) for name, value in (("bio", 0.2222), ("cyber", 0.6778), ("general", 0.9))]
    write(tmp_path, run(wmdp, spec={"bench": "wmdp", "method": "rmu", "config": {}}))
    return Store(tmp_path)


def test_runs_are_sorted_and_say_which_settings_they_were_given(store: Store):
    rows = [run.row() for run in listed_runs(store, never)]
    assert [(r["bench"], r["method"], r["preset"], r["settings"], r["seed"]) for r in rows] == [
        ("tofu10", "kfade", "by hand", {"step_size": 0.01, "layers": [1]}, 0),  # target_kl, an alternative, has given way
        ("tofu10", "kfade", "published", {}, 0),
        ("tofu10", "kfade", "published", {}, 1),
        ("tofu10", "npo", "tuned", rows[3]["settings"], 0),
        ("tofu10", "yours", "published", {}, 0),
        ("wmdp", "rmu", "published", {}, 0),
    ]
    assert rows[0]["forget_quality"] == 2.77e-26
    assert "forget_quality" not in rows[-1]
    json.dumps(rows)


@pytest.mark.parametrize(
    ("picked", "count"),
    [
        ({"bench": "wmdp"}, 1),
        ({"bench": "tofu05"}, 0),
        ({"methods": ["kfade", "npo"]}, 4),
        ({"methods": ["yours"]}, 1),
        ({"preset": "published"}, 4),
        ({"preset": "by hand", "methods": ["kfade"]}, 1),
        ({"preset": "tuned", "bench": "wmdp"}, 0),
    ],
)
def test_runs_are_picked_by_benchmark_method_and_preset(store: Store, picked: dict[str, object], count: int):
    assert len(listed_runs(store, never, **picked)) == count  # type: ignore[arg-type]


def test_a_name_that_nobody_and_no_run_has_is_refused(store: Store):
    with pytest.raises(UsageError, match=r"no method called 'your'. Did you mean 'yours'"):
        listed_runs(store, never, methods=["your"])
    with pytest.raises(UsageError, match=r"no benchmark called 'wmpd'. Did you mean 'wmdp'"):
        listed_runs(store, never, bench="wmpd")


def test_the_list_fits_eighty_columns_and_cuts_no_number(store: Store):
    shown = text(listed_runs(store, never))
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80
    for word in ("tofu10 · model mini", "wmdp · model mini", "step_size=0.01", "2.8e-26", "0.222", "0.678", "0.900", "failed"):
        assert word in shown
    assert "no room for model_utility" in shown
    assert "0.800" in text(listed_runs(store, never), 160)
    assert "no room" not in text(listed_runs(store, never), 160)
    narrow = text(listed_runs(store, never, bench="wmdp"), 60)
    assert "no room for general_accuracy" in narrow
    assert "0.900" not in narrow


def test_the_projects_own_runs_fit_eighty_columns():
    runs = listed_runs(Store(ROOT / "results"), never)
    shown = text(runs)
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80
    assert "no room" not in shown
    assert all(run.result.spec.run_id in shown for run in runs)
    assert not [run.row() for run in runs if run.settings and run.preset != "by hand"], "presets are what they were"


def test_a_setting_is_written_as_it_is_typed():
    for value in ("kfac", None, True, 1e-5, 3, [3, 4], 0.1):
        assert parse([f"key={written(value)}"]) == {"key": value}


def test_a_value_that_was_taken_away_is_a_departure_and_one_that_gave_way_is_none():
    config = METHODS.get("kfade").config
    assert departures(config, {"layers": [3]}, {"layers": None}) == {"layers": None}
    assert departures(config, {"target_kl": 0.1}, {"target_kl": None, "step_size": 0.5}) == {"step_size": 0.5}
    assert departures(config, {"damping": 0.1}, {"damping": 0.1}) == {}


def test_a_run_of_a_method_that_is_not_here_has_no_settings_to_tell(store: Store):
    (theirs,) = listed_runs(store, never, methods=["yours"])
    assert given_settings(theirs.result) == {}


def test_a_run_shows_which_settings_it_was_given(harness: Harness, store: Store):  # noqa: F811
    result: RunResult = listed_runs(store, never, preset="by hand")[0].result
    shown = harness("show", result.spec.run_id, "--results", store.root).out
    lines = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in shown.splitlines() if line.startswith("│")}
    assert (lines["layers"], lines["step_size"], lines["target_kl"], lines["refit"]) == ("[1] *", "0.01 *", "none", "true")
    assert "neither the default nor the preset's" in shown


def test_the_command_picks_runs_and_refuses_to_pick_among_other_things(harness: Harness, store: Store):  # noqa: F811
    told = harness("list", "runs", "--results", store.root, "--method", "kfade,npo", "--preset", "published", "--json")
    assert [row["seed"] for row in json.loads(told.out)] == [0, 1]
    assert harness("list", "runs", "--results", store.root, "--bench", "tofu05").out == "none\n"
    refused(harness("list", "methods", "--bench", "wmdp"), "--bench picks runs; write harness list runs.")
    refused(harness("list", "runs", "--preset", "tund"), "--preset tund is not known. Did you mean 'tuned'?")


def test_what_tries_chose_is_told_apart_from_the_published_preset_it_stands_on():
    store = Store(ROOT / "results" / "equal-damage")
    runs = listed_runs(store, never, "tofu10", ["predictor_corrector"], "tuned")
    worlds = {run.result.spec.model for run in runs}
    for model in worlds:
        settings = {str(run.settings) for run in runs if run.result.spec.model == model and run.result.spec.seed == 0}
        forms = {"identity", "diagonal", "both"}
        assert len(settings) == len([arm for arm in arms() if arm.method == "predictor_corrector"]), "one for each form"
        assert {word for word in forms for each in settings if f"'{word}'" in each} == forms
    assert worlds
