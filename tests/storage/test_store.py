"""Records: what names a run, and what is left of one that was cut off."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.core.config import to_json
from harness.core.costs import Phase
from harness.core.errors import UsageError
from harness.core.evaluator import GenerationRequest, Sampling
from harness.core.measurement import Absent, Measurement
from harness.core.options import Options
from harness.running.plan import plan
from harness.storage.cache import digest
from harness.storage.identity import comparable
from harness.storage.record_reading import read_run
from harness.storage.record_writing import Record
from harness.storage.records import LATER_FIELDS, LATER_SETTINGS, SCHEMA_VERSION, Point, RunResult, RunSpec
from harness.storage.store import Store
from harness.storage.validate import problems
from tests.clock import A_HANG
from tests.records import PROVENANCE

SPEC = RunSpec(
    bench="tofu10",
    bench_version=1,
    model="mini",
    sources={"base": {"kind": "trained", "seed": 3}, "retain-0": {"kind": "trained", "seed": 4}},
    method="kfade",
    method_version=1,
    config={"damping": 0.1, "layers": [0, 1], "step_size": None},
    evaluators={"rouge": 1},
    variant="original",
    template={"name": "mini"},
    data={"full": "abc"},
    references={},
    seed=0,
    limit=None,
    dtype="float32",
    device="cpu",
    generator="hf",
)

CHANGES: dict[str, Any] = {
    "bench": "tofu05",
    "bench_version": 2,
    "model": "mini@1",
    "sources": {"base": {"kind": "trained", "seed": 5}},
    "method": "ga",
    "method_version": 2,
    "config": {"damping": 0.2, "layers": [0, 1], "step_size": None},
    "evaluators": {"rouge": 2},
    "variant": "open-unlearning",
    "template": {"name": "phi"},
    "data": {"full": "abd"},
    "references": {"retain": "abc"},
    "seed": 1,
    "limit": 10,
    "dtype": "bfloat16",
    "device": "cuda",
    "generator": "vllm",
    "points": "last",
    "form": "tuned",
    "evaluator_inputs": {"mt_bench": {"judge": "openai:gpt-4"}},
    "retain": "general",
    "budgets": (0.01, 0.1),
    "budget_rows": "abc",
    "general": "abc",
    "adapter": "lora:r=8,alpha=32,dropout=0.05,target=all",
    "optimizer": "adamw:bits=8,masters=float32,clip=none",
}

NUMBER = Measurement(
    metric="forget_quality", version=1, value=0.5, unit="p-value", better="higher", n=3, range=(0, 1), interval_95=(0.25, 0.75)
)
ABSENT = Absent(metric="model_utility", reason="there are no retain rows")


def point(index: int, weights: str = "w") -> Point:
    return Point(
        index=index,
        step=index + 1,
        logged={"loss": 0.1 + 0.2, "norm": None},
        measurements=[NUMBER, ABSENT],
        weights=f"{weights}{index}",
        unlearn_seconds=1.5,
        rows=2,
        texts=1,
    )


def table(index: int) -> dict[str, pd.DataFrame]:
    keys = {"task": ["forget", "forget"], "row": [0, 1], "cluster": ["a", "b"]}
    return {
        "likelihood": pd.DataFrame({**keys, "loss": [index + 0.5, index + 0.25]}),
        "answers": pd.DataFrame({**keys, "rouge": [0.0, 1.0]}),
    }


def texts(text: str) -> dict[GenerationRequest, str]:
    return {GenerationRequest(("Who?",), Sampling(5)): text}


def result(**changes: Any) -> RunResult:
    return replace(RunResult(schema_version=SCHEMA_VERSION, spec=SPEC, status="interrupted"), **changes)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def folder(store: Store) -> Path:
    return store.runs_folder / SPEC.folder


def keep(store: Store, count: int = 2, **changes: Any) -> Path:
    """A record with that many points; its folder."""
    with store.open(SPEC) as record:
        record.write(result(**changes))
        for index in range(count):
            record.add(point(index), table(index), texts(f"answer {index}"))
    return folder(store)


# ---------------------------------------------------------------- what names a run


@pytest.mark.parametrize("name", [f.name for f in fields(RunSpec)])
def test_every_field_of_a_spec_changes_the_runs_name(name: str):
    changed = replace(SPEC, **{name: CHANGES[name]})
    assert changed.run_id != SPEC.run_id
    assert len(changed.run_id) == 12


def test_equal_specs_have_one_name_whatever_the_order_of_their_parts():
    again = replace(SPEC, config=dict(reversed(SPEC.config.items())), sources=dict(reversed(SPEC.sources.items())))
    assert again.run_id == SPEC.run_id


def test_a_spec_read_back_from_json_has_the_same_name():
    assert RunSpec(**json.loads(json.dumps(to_json(SPEC)))).run_id == SPEC.run_id


def run_id(
    bench: str = "tofu10", model: str = "mini", method: str = "kfade", settings: dict[str, Any] | None = None, **options: Any
):
    return plan(bench, model, method, settings or {}, Options(**options)).spec.run_id


@pytest.fixture(scope="module")
def usual() -> str:
    """The name of the run that all others here differ from in one thing."""
    return run_id()


@pytest.mark.parametrize(
    "change",
    [
        {"bench": "tofu05"},
        {"model": "mini@1"},
        {"method": "ga"},
        {"settings": {"damping": 0.2}},
        {"seed": 1},
        {"limit": 10},
        {"dtype": "bfloat16"},
        {"device": "cuda"},
        {"variant": "open-unlearning"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_the_outcome_changes_the_runs_name(change: dict[str, Any], usual: str):
    assert run_id(**change) != usual


@pytest.mark.parametrize(
    "change",
    [
        {"data_dir": Path("/somewhere/else")},
        {"settings": {"damping": 0.1}},  # what the preset says already
        {"model": "mini@0"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_does_not_decide_the_outcome_leaves_the_runs_name(change: dict[str, Any], usual: str):
    assert run_id(**change) == usual


@pytest.mark.parametrize("name", LATER_SETTINGS)
def test_a_later_setting_that_changes_nothing_leaves_the_runs_name(name: str):
    """Runs that were recorded before there was such a setting are found again."""
    assert replace(SPEC, config={**SPEC.config, name: LATER_SETTINGS[name]}).run_id == SPEC.run_id
    assert replace(SPEC, config={**SPEC.config, name: 7}).run_id != SPEC.run_id


def test_a_run_with_nothing_new_in_later_fields_is_named_as_before_there_were_any():
    told = to_json(SPEC)
    assert {name: told.pop(name) for name in LATER_FIELDS} == LATER_FIELDS
    assert digest(told)[:12] == SPEC.run_id


@pytest.mark.parametrize("name", ["evaluator_inputs", "retain", "budget_rows"])
def test_what_else_numbers_rest_on_sets_runs_apart(name: str):
    assert comparable(replace(SPEC, **{name: CHANGES[name]})) != comparable(SPEC)


def test_which_gpu_it_is_leaves_the_runs_name():
    assert run_id(device="cuda:1") == run_id(device="cuda")


def test_a_spec_knows_no_folder_and_no_verbosity():
    decided_by = {f.name for f in fields(RunSpec)}
    assert not decided_by & {"results", "data_dir", "output", "save_model", "quiet", "jobs", "force"}
    assert decided_by == set(CHANGES)


def reference_log(file: Path, loss: float = 1.0) -> Path:
    """An evaluation log in ToFU's format with as many forget rows as the embedded world has: 120."""
    rows = {str(i): loss for i in range(120)}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"eval_log_forget.json": {"avg_gt_loss": rows}}))
    return file


def test_a_reference_counts_by_its_content_and_not_by_its_place(tmp_path: Path, usual: str):
    here = reference_log(tmp_path / "here" / "retain.json")
    there = reference_log(tmp_path / "there" / "retain.json")
    other = reference_log(tmp_path / "other" / "retain.json", loss=2.0)
    names = [run_id(reference=log) for log in (here, there, other)]
    assert names[0] == names[1]
    assert len({usual, *names}) == 3


def test_a_record_lies_under_bench_model_and_method_with_safe_names():
    spec = replace(SPEC, model="meta-llama/Llama 2: 7b")
    assert spec.folder.parts[0] == "tofu10"
    assert spec.folder.parts[1].rpartition("-")[0] == "meta-llama-Llama-2-7b"
    assert spec.folder.parts[2:] == ("kfade", spec.run_id)


@pytest.mark.parametrize("model", ["..", "/", "", "../../etc"])
def test_no_models_name_leads_out_of_the_results_folder(model: str):
    parts = replace(SPEC, model=model).folder.parts
    assert len(parts) == 4
    assert ".." not in parts
    assert parts[1].rpartition("-")[0].strip(".")


def test_models_of_one_name_but_other_weights_have_folders_of_their_own():
    assert replace(SPEC, sources={"base": {"seed": 9}}).folder.parts[1] != SPEC.folder.parts[1]


# ---------------------------------------------------------------- round trip


def test_a_record_comes_back_as_it_was_written(store: Store):
    told = result(
        status="done",
        error="",
        selection="defaults",
        notes=["one"],
        references={"untouched": [NUMBER, ABSENT]},
        costs={"unlearning": Phase(1.0, 2.0, 3, 4)},
        provenance=PROVENANCE,
    )
    with store.open(SPEC) as record:
        record.write(told)
        record.add(point(0), table(0), texts("one"))
        record.add(point(1), table(1), texts("two"))
    found = store.find(SPEC)
    assert found == replace(told, points=[point(0), point(1)])
    assert found.points[0].logged["loss"] == 0.1 + 0.2


def test_rows_and_texts_are_kept_by_point(store: Store):
    where = keep(store)
    rows = pd.read_parquet(where / "per_example.parquet")
    assert rows[rows["point"] == 1]["loss"].tolist() == [1.5, 1.25]
    assert rows[rows["point"] == 0]["rouge"].tolist() == [0.0, 1.0]
    lines = [json.loads(line) for line in (where / "generations.jsonl").read_text().splitlines()]
    assert [(line["point"], line["text"]) for line in lines] == [(0, "answer 0"), (1, "answer 1")]


def test_a_record_that_is_not_there_is_none(store: Store):
    assert store.find(SPEC) is None
    assert list(store.runs()) == []


def test_runs_are_found_by_the_beginning_of_their_name(store: Store):
    keep(store)
    where, found = store.by_id(SPEC.run_id[:5])
    assert where == folder(store)
    assert found.spec == SPEC


@pytest.mark.parametrize("name", ["", "*", "../x", "0123456789abcdef"])
def test_a_name_that_fits_no_run_is_refused(store: Store, name: str):
    keep(store)
    with pytest.raises(UsageError, match="no run in"):
        store.by_id(name)


def test_a_beginning_that_fits_two_runs_is_refused(store: Store):
    found: dict[str, RunSpec] = {}
    for seed in range(40):
        spec = replace(SPEC, seed=seed)
        with store.open(spec) as record:
            record.write(result(spec=spec))
        if spec.run_id[0] in found:
            break
        found[spec.run_id[0]] = spec
    with pytest.raises(UsageError, match=r"2 runs in .* begin with"):
        store.by_id(spec.run_id[0])


def test_every_record_is_listed_sorted_and_a_broken_one_passed_over(store: Store):
    specs = [replace(SPEC, seed=seed) for seed in range(3)]
    for spec in specs:
        with store.open(spec) as record:
            record.write(result(spec=spec))
    (store.runs_folder / specs[0].folder / "run.json").write_text("{")
    assert [r.spec.run_id for r in store.runs()] == sorted(s.run_id for s in specs[1:])


def test_no_number_that_is_not_finite_reaches_a_record(store: Store):
    with store.open(SPEC) as record:
        record.write(result())
        with pytest.raises(ValueError, match="finite"):
            record.add(replace(point(0), unlearn_seconds=float("nan")), {}, {})


# ---------------------------------------------------------------- a killed process


def test_a_line_that_a_killed_process_had_not_finished_is_dropped(store: Store):
    where = keep(store, 3)
    file = where / "points.jsonl"
    file.write_text(file.read_text()[:-20])
    assert [p.index for p in read_run(where).points] == [0, 1]
    with store.open(SPEC) as record:
        assert [p.index for p in record.points] == [0, 1]
        record.add(point(2, "new"), {}, {})
    assert [p.weights for p in read_run(where).points] == ["w0", "w1", "new2"]


def test_points_after_a_gap_are_dropped(store: Store):
    where = keep(store, 3)
    lines = (where / "points.jsonl").read_text().splitlines()
    (where / "points.jsonl").write_text(f"{lines[0]}\n{lines[2]}\n")
    assert [p.index for p in read_run(where).points] == [0]


def test_texts_of_a_point_that_is_not_listed_are_cut_off(store: Store):
    where = keep(store)
    with (where / "generations.jsonl").open("a") as file:
        file.write('{"point": 2, "turns": [], "text": "left over"}\n{"point": 2, "tur')
    with store.open(SPEC):
        pass
    lines = (where / "generations.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["answer 0", "answer 1"]


def test_rows_of_a_point_that_is_not_listed_are_replaced_when_it_is_measured(store: Store):
    where = keep(store, 3)
    lines = (where / "points.jsonl").read_text().splitlines()
    (where / "points.jsonl").write_text(f"{lines[0]}\n")
    with store.open(SPEC) as record:
        record.add(point(1), table(7), {})
    rows = pd.read_parquet(where / "per_example.parquet")
    assert sorted(set(rows["point"])) == [0, 1]
    assert rows[rows["point"] == 1]["loss"].tolist() == [7.5, 7.25]


@pytest.mark.parametrize("mark", ["\n", "\r", "\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_whatever_a_model_says_survives_opening_the_record_again(store: Store, mark: str):
    with store.open(SPEC) as record:
        record.write(result())
        record.add(point(0), {}, texts(f"before{mark}after"))
    with store.open(SPEC):
        pass
    lines = (folder(store) / "generations.jsonl").read_bytes().decode().split("\n")
    assert [json.loads(line)["text"] for line in lines if line] == [f"before{mark}after"]


def rows_cut(where: Path) -> None:
    table = pd.read_parquet(where / "per_example.parquet")
    table[table.index != 2].to_parquet(where / "per_example.parquet")


def texts_cut(where: Path) -> None:
    lines = (where / "generations.jsonl").read_text().splitlines(keepends=True)
    (where / "generations.jsonl").write_text("".join([lines[0], *lines[2:]]))


GONE = {
    "rows": (lambda where: (where / "per_example.parquet").unlink(), 0),
    "rows, damaged": (lambda where: (where / "per_example.parquet").write_bytes(b"PAR1 nothing PAR1"), 0),
    "one row": (rows_cut, 1),
    "texts": (lambda where: (where / "generations.jsonl").unlink(), 0),
    "one text": (texts_cut, 1),
}


@pytest.mark.parametrize("name", GONE)
def test_a_point_whose_rows_or_texts_are_gone_is_measured_anew(store: Store, name: str):
    damage, whole = GONE[name]
    damage(keep(store, 3))
    with store.open(SPEC) as record:
        record.keep_whole_points()
        assert len(record.points) == whole
        for index in range(whole, 3):
            record.add(point(index), table(index), texts(f"answer {index}"))
        record.write(result(status="done"))
    assert list(problems(store)) == []
    assert store.find(SPEC).points == [point(0), point(1), point(2)]


def test_of_the_last_points_rows_alone_the_others_need_not_be_there(store: Store):
    keep(store, 3)
    with store.open(SPEC) as record:
        record.keep_rows("last")
    with store.open(SPEC) as record:
        record.keep_whole_points("last")
        assert len(record.points) == 3
        record.keep_whole_points()
        assert len(record.points) == 0


def test_a_record_of_before_that_does_not_say_how_much_belongs_to_a_point_goes_on(store: Store):
    where = keep(store, 2)
    lines = [json.loads(line) for line in (where / "points.jsonl").read_text().splitlines()]
    for told in lines:
        del told["rows"], told["texts"]
    (where / "points.jsonl").write_text("".join(json.dumps(told) + "\n" for told in lines))
    with store.open(SPEC) as record:
        record.keep_whole_points()
        assert len(record.points) == 2
    (where / "per_example.parquet").write_bytes(b"")
    with store.open(SPEC) as record:
        record.keep_whole_points()
        assert len(record.points) == 0, "what cannot be read is all gone"


def test_a_finished_record_is_not_touched_by_being_opened_whatever_lies_in_it(store: Store):
    where = keep(store, 2)
    with store.open(SPEC) as record:
        record.write(result(status="done"))
    (where / "run.json.1.part").write_text("x")
    (where / "generations.jsonl").open("a").write('{"point": 7}\n')
    before = {file.name: file.read_bytes() for file in where.iterdir()}
    with store.open(SPEC):
        pass
    assert {file.name: file.read_bytes() for file in where.iterdir()} == before


def test_keeping_fewer_points_forgets_the_others_everywhere(store: Store):
    where = keep(store, 3)
    with store.open(SPEC) as record:
        record.keep_points(1)
        assert [p.index for p in record.points] == [0]
    assert [p.index for p in read_run(where).points] == [0]
    assert kept_of(where) == ([0, 0], [0])


@pytest.mark.parametrize("name", ["points.jsonl", "generations.jsonl"])
def test_a_line_cut_off_in_the_middle_of_a_character_is_dropped(store: Store, name: str):
    where = keep(store)
    with (where / name).open("ab") as file:
        file.write('{"point": 2, "text": "é'.encode()[:-1])
    assert [p.index for p in read_run(where).points] == [0, 1]
    assert store.texts(SPEC.folder.as_posix(), 1) == {("Who?",): "answer 1"}
    assert [p.where.rpartition("/")[2] for p in problems(store)] == [name]
    with store.open(SPEC) as record:
        record.add(point(2), table(2), texts("é"))
        record.write(result(status="done"))
    assert list(problems(store)) == []
    assert store.texts(SPEC.folder.as_posix(), 2) == {("Who?",): "é"}


def test_what_a_killed_process_was_writing_is_cleared_away(store: Store):
    where = keep(store)
    for name in ("run.json", "per_example.parquet", "generations.jsonl"):
        (where / f"{name}.123.part").write_text("half")
    assert list(problems(store)) == [], "nor is it a problem before"
    with store.open(SPEC):
        pass
    assert sorted(f.name for f in where.iterdir()) == ["generations.jsonl", "per_example.parquet", "points.jsonl", "run.json"]


def test_a_record_that_is_whole_is_not_touched_by_being_opened(store: Store):
    where = keep(store, status="done")
    before = {f.name: f.stat().st_ino for f in where.iterdir()}
    with store.open(SPEC):
        pass
    assert {f.name: f.stat().st_ino for f in where.iterdir()} == before


def test_starting_afresh_forgets_the_points_of_before(store: Store):
    where = keep(store)
    with store.open(SPEC, force=True) as record:
        assert record.points == []
        record.write(result(status="done"))
        record.add(point(0, "new"), table(5), texts("new"))
    found = read_run(where)
    assert [p.weights for p in found.points] == ["new0"]
    assert set(pd.read_parquet(where / "per_example.parquet")["point"]) == {0}
    assert len((where / "generations.jsonl").read_text().splitlines()) == 1


def told_of(where: Path) -> tuple[str, list[str]]:
    found = read_run(where)
    return found.status, [p.weights for p in found.points]


OLD, NEW = ("done", ["w0", "w1"]), ("done", ["new0"])


def test_a_finished_record_stays_in_sight_until_the_new_one_is_done(store: Store):
    where = keep(store, status="done")
    with store.open(SPEC, force=True) as record:
        assert told_of(where) == OLD
        record.write(result())
        record.add(point(0, "new"), table(5), texts("new"))
        assert told_of(where) == OLD
        assert [r.status for r in store.runs()] == ["done"], "there is one record of the run"
        assert list(problems(store)) == []
        record.write(result(status="done"))
    assert told_of(where) == NEW
    assert [f.name for f in (store.runs_folder / ".locks").iterdir()] == [f"{SPEC.run_id}.lock"]


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_what_was_begun_afresh_and_broken_off_goes_on_out_of_sight(store: Store, status: str):
    where = keep(store, status="done")
    with store.open(SPEC, force=True) as record:
        record.write(result(status=status))
        record.add(point(0, "new"), table(5), texts("new"))
    assert told_of(where) == OLD
    with store.open(SPEC) as record:
        assert record.result.status == "done", "who does not ask for it anew has the earlier one"
        assert len(record.points) == 2
    with store.open(SPEC, force=True) as record:
        assert [p.weights for p in record.points] == ["new0"]
        record.write(result(status="done"))
    assert told_of(where) == NEW


def test_what_was_begun_afresh_without_a_record_is_forgotten(store: Store):
    where = keep(store, status="done")
    with store.open(SPEC, force=True) as record:
        record.write(result())
        record.discard()
    assert told_of(where) == OLD
    assert len(list((store.runs_folder / ".locks").iterdir())) == 1


@pytest.mark.parametrize("content", [None, "{"])
def test_a_record_that_is_not_done_gives_way_to_what_was_begun_afresh(store: Store, content: str | None):
    where = keep(store, status="interrupted")
    if content:
        (where / "run.json").write_text(content)
    with store.open(SPEC, force=True) as record:
        record.write(result())
        record.add(point(0, "new"), table(5), texts("new"))
    with store.open(SPEC) as record:
        assert [p.weights for p in record.points] == ["new0"]


def keep_new(store: Store, status: str) -> Path:
    """A finished record, and beside it what a process that was killed at `--force` has left; the record's folder."""
    where = keep(store, status="done")
    with store.open(SPEC, force=True) as record:
        record.write(result())
        record.add(point(0, "new"), table(5), texts("new"))
    new = store.runs_folder / ".locks" / f"{SPEC.run_id}.new"
    told = json.loads((new / "run.json").read_text())
    (new / "run.json").write_text(json.dumps({**told, "status": status}))
    return where


@pytest.mark.parametrize("force", [False, True])
def test_killed_just_before_they_change_places(store: Store, force: bool):
    where = keep_new(store, "done")
    with store.open(SPEC, force=force) as record:
        assert record.result.status == "done"
        assert [p.weights for p in record.points] == ["new0"], "it is what was asked for when it was killed"
    assert told_of(where) == NEW


@pytest.mark.parametrize(("status", "expected"), [("done", NEW), ("interrupted", OLD)])
def test_killed_while_they_change_places(store: Store, status: str, expected: object):
    where = keep_new(store, status)
    where.rename(store.runs_folder / ".locks" / f"{SPEC.run_id}.earlier")
    with store.open(SPEC):
        pass
    assert told_of(where) == expected


def test_killed_after_they_have_changed_places(store: Store):
    where = keep_new(store, "done")
    locks = store.runs_folder / ".locks"
    where.rename(locks / f"{SPEC.run_id}.earlier")
    (locks / f"{SPEC.run_id}.new").rename(where)
    with store.open(SPEC):
        pass
    assert told_of(where) == NEW
    assert len(list(locks.iterdir())) == 1


# ---------------------------------------------------------------- rows of the last point only


def kept_of(where: Path) -> tuple[list[int], list[int]]:
    """Of which point each row and each text of a record is."""
    lines = (where / "generations.jsonl").read_text(encoding="utf-8").splitlines()
    return pd.read_parquet(where / "per_example.parquet")["point"].tolist(), [json.loads(line)["point"] for line in lines]


def let_go(store: Store) -> None:
    with store.open(SPEC) as record:
        record.keep_rows("last")


def test_of_the_last_point_alone_rows_and_texts_are_kept_and_of_all_points_the_numbers(store: Store):
    where = keep(store, 3, status="done")
    let_go(store)
    assert kept_of(where) == ([2, 2], [2])
    assert read_run(where).points == [point(0), point(1), point(2)]
    rows = store.rows(SPEC, 2)
    assert rows is not None
    assert rows["loss"].tolist() == [2.5, 2.25]
    assert store.rows(SPEC, 1) is None
    assert list(problems(store)) == []
    let_go(store)
    assert kept_of(where) == ([2, 2], [2]), "twice is once"


def test_a_record_without_points_rows_or_texts_has_none_to_let_go_of(store: Store):
    with store.open(SPEC) as record:
        record.write(result())
        record.keep_rows("last")
        record.add(point(0), {}, {})
        record.keep_rows("last")
    assert sorted(file.name for file in folder(store).iterdir()) == ["points.jsonl", "run.json"]
    assert list(problems(store)) == []


def test_killed_between_rows_and_texts_the_record_is_sound_and_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch):
    where = keep(store, 3)

    def killed(record: Record, name: str, points: range) -> None:
        raise KeyboardInterrupt

    with store.open(SPEC) as record:
        monkeypatch.setattr(Record, "_cut_lines", killed)
        with pytest.raises(KeyboardInterrupt):
            record.keep_rows("last")
        monkeypatch.undo()
    assert kept_of(where) == ([2, 2], [0, 1, 2])
    assert list(problems(store)) == []
    let_go(store)
    assert kept_of(where) == ([2, 2], [2])
    assert read_run(where).points == [point(0), point(1), point(2)]


@pytest.mark.parametrize("flushes", [0, 2], ids=["rows", "texts"])
def test_a_disk_that_fills_while_rows_are_let_go_of_loses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch, flushes: int):
    where, left = keep(store, 3), iter(range(flushes))

    def full(path: Path) -> None:
        if next(left, None) is None:
            raise OSError(28, "No space left on device")

    with store.open(SPEC) as record:
        monkeypatch.setattr("harness.storage.record_writing.flush", full)
        with pytest.raises(UsageError, match="no space is left on the disk of the results folder"):
            record.keep_rows("last")
        monkeypatch.undo()
    assert len(list(where.iterdir())) == 4, "half a file takes no space"
    assert kept_of(where) == ([2, 2] if flushes else [0, 0, 1, 1, 2, 2], [0, 1, 2])
    assert read_run(where).points == [point(0), point(1), point(2)]
    let_go(store)
    assert kept_of(where) == ([2, 2], [2])


def test_a_replay_that_differs_after_rows_were_let_go_of_begins_them_anew(store: Store):
    where = keep(store, 3)
    let_go(store)
    with store.open(SPEC) as record:
        record.keep_points(0)
        for index in (0, 1):
            record.add(point(index, "new"), table(index + 5), texts("new"))
        record.write(result(status="done"))
    assert kept_of(where) == ([0, 0, 1, 1], [0, 1])
    assert list(problems(store)) == []


# ---------------------------------------------------------------- refused records


def test_a_record_of_a_newer_schema_is_refused_by_name(store: Store):
    where = keep(store)
    told = json.loads((where / "run.json").read_text())
    told["schema_version"] = SCHEMA_VERSION + 1
    told["something_new"] = 1
    (where / "run.json").write_text(json.dumps(told))
    with pytest.raises(UsageError) as refused:
        store.find(SPEC)
    message = str(refused.value)
    assert f"kfade/{SPEC.run_id}/run.json" in message
    assert f"schema {SCHEMA_VERSION + 1}" in message


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema_version": 1}', '{"schema_version": "x"}', "\x00"])
def test_a_broken_record_is_refused_by_name_with_the_way_out(store: Store, content: str):
    where = keep(store)
    (where / "run.json").write_text(content)
    with pytest.raises(UsageError, match=rf"{SPEC.run_id}/run\.json cannot be read .*--force"):
        store.find(SPEC)


def test_a_record_with_a_field_nobody_knows_is_refused(store: Store):
    where = keep(store)
    told = json.loads((where / "run.json").read_text())
    told["surprise"] = 1
    (where / "run.json").write_text(json.dumps(told))
    with pytest.raises(UsageError, match="cannot be read"):
        store.find(SPEC)


# ---------------------------------------------------------------- opening


def test_a_run_that_never_wrote_anything_leaves_no_folder(store: Store):
    with store.open(SPEC):
        pass
    assert not folder(store).exists()


def test_a_record_taken_back_leaves_no_folder(store: Store):
    with store.open(SPEC) as record:
        record.write(result())
        assert record.written
        record.discard()
        assert not record.written
    assert not folder(store).exists()
    assert store.find(SPEC) is None


def test_a_folder_that_cannot_be_written_is_one_sentence_with_the_way_out(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UsageError, match=r"the results folder .* cannot be written: .*--results"),
        Store(tmp_path / "file" / "results").open(SPEC),
    ):
        pass


def test_a_disk_that_is_full_is_one_sentence_and_keeps_the_earlier_points(store: Store, monkeypatch: pytest.MonkeyPatch):
    where = keep(store, 1)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with store.open(SPEC) as record:
        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(UsageError, match="no space is left on the disk of the results folder"):
            record.add(point(1), table(1), {})
        monkeypatch.undo()
    assert read_run(where).points[0] == point(0)


class Waiting(logging.Handler):
    """Notices when somebody begins to wait for a record."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if "waiting for it" in record.getMessage():
            self.begun.set()


@pytest.fixture
def waiting() -> Any:
    handler = Waiting()
    logging.getLogger("harness.storage.store").addHandler(handler)
    yield handler.begun
    logging.getLogger("harness.storage.store").removeHandler(handler)


def open_in_a_thread(store: Store, seen: list[Any]) -> threading.Thread:
    def open_it() -> None:
        try:
            with store.open(SPEC) as record:
                seen.append([p.index for p in record.points])
                record.write(result())
        except Exception as error:
            seen.append(error)

    thread = threading.Thread(target=open_it)
    thread.start()
    return thread


def test_two_openers_of_one_record_wait_for_each_other(store: Store, waiting: threading.Event):
    seen: list[Any] = []
    with store.open(SPEC) as record:
        thread = open_in_a_thread(store, seen)
        assert waiting.wait(timeout=A_HANG)
        record.write(result())
        record.add(point(0), {}, {})
        assert seen == []
    thread.join(timeout=A_HANG)
    assert seen == [[0]]  # the second one finds what the first one left


def test_who_waited_for_a_run_that_left_no_record_can_write_its_own(store: Store, waiting: threading.Event):
    seen: list[Any] = []
    with store.open(SPEC):
        thread = open_in_a_thread(store, seen)
        assert waiting.wait(timeout=A_HANG)
    thread.join(timeout=A_HANG)
    assert seen == [[]]
    assert store.find(SPEC) is not None


def test_records_of_different_runs_can_be_open_at_once(store: Store):
    with store.open(SPEC) as one, store.open(replace(SPEC, seed=1)) as other:
        one.write(result())
        other.write(result(spec=replace(SPEC, seed=1)))
    assert len(list(store.runs())) == 2


# ---------------------------------------------------------------- all runs as one table


def test_the_frame_has_a_row_for_every_number_and_every_reason(store: Store):
    from harness.core.measurement import Absent, Measurement

    number = Measurement(
        metric="utility",
        version=1,
        value=0.5,
        unit="x",
        better="higher",
        n=3,
        interval_95=(0.4, 0.6),
        across_references=(0.1, 0.9),
    )
    missing = Absent(metric="quality", reason="there is no reference")
    with store.open(SPEC) as record:
        record.write(result(status="done", references={"untouched": [number]}))
        for index in (0, 1):
            record.add(replace(point(index), measurements=[number, missing]), {}, {})
    found = store.frame()
    assert found[["arm", "metric"]].value_counts().to_dict() == {
        ("method", "utility"): 2,
        ("method", "quality"): 2,
        ("untouched", "utility"): 1,
    }
    row = found[(found["arm"] == "method") & (found["metric"] == "utility")].iloc[1]
    assert (row["index"], row["value"], row["low"], row["high"], row["across_low"]) == (1, 0.5, 0.4, 0.6, 0.1)
    assert set(found[found["metric"] == "quality"]["absent"]) == {"there is no reference"}
    assert store.frame().equals(found)


def test_an_empty_store_has_an_empty_frame(store: Store):
    assert len(store.frame()) == 0


def test_rows_that_the_system_does_not_give_now_are_not_thrown_away(store: Store, monkeypatch: pytest.MonkeyPatch):
    where = keep(store, 2)

    def refused(*args: object, **options: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(where / "per_example.parquet"))

    with store.open(SPEC) as record:
        with monkeypatch.context() as patch:
            patch.setattr(pd, "read_parquet", refused)
            with pytest.raises(UsageError, match=r"per_example\.parquet cannot be read: Input/output error"):
                record.keep_whole_points()
        record.keep_whole_points()
        assert len(record.points) == 2
