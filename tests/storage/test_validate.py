"""A sound store is called sound; everything that can go wrong with one is named, and stops no other command."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from harness.core.documents import parse_json
from harness.core.registry import ROOT
from harness.reading.compared import read_runs
from harness.storage import record_files
from harness.storage.record_files import read_points
from harness.storage.record_reading import read_run
from harness.storage.records import SCHEMA_VERSION
from harness.storage.store import Store
from harness.storage.validate import problems, set_aside
from tests.cli.test_cli import Harness, harness  # noqa: F401

FIXTURE = ROOT / "tests" / "fixtures" / "schema-1"
"""A run of K-FADE on three rows, as schema 1 wrote it. It stays for ever; never regenerate it."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A copy of the fixture that may be damaged."""
    shutil.copytree(FIXTURE, tmp_path / "store")
    return Store(tmp_path / "store")


def folder(store: Store) -> Path:
    return next(store.runs_folder.glob("*/*/*/*"))


def test_a_record_of_schema_1_still_reads():
    (result,) = Store(FIXTURE).runs()
    assert result.schema_version == 1 < SCHEMA_VERSION
    assert (result.status, result.trial, result.spec.method) == ("done", None, "kfade")
    (point,) = result.points
    assert {"forget_quality", "model_utility"} <= {m.metric for m in point.measurements}
    assert len(Store(FIXTURE).frame()) > 10


def test_runs_of_schema_1_are_compared_with_the_others():
    skipped: list[str] = []
    (run,) = read_runs(FIXTURE, skipped.append)
    assert (run.spec.method, skipped) == ("kfade", [])


def test_a_sound_store_has_no_problem(store: Store):
    assert list(problems(store)) == []
    assert list(problems(Store(FIXTURE))) == []


def test_a_line_of_points_is_parsed_once(store: Store, monkeypatch: pytest.MonkeyPatch):
    parsed = []
    monkeypatch.setattr(record_files, "parse_json", lambda line, *where: parsed.append(line) or parse_json(line, *where))
    assert read_points(folder(store))
    assert len(parsed) == len({*parsed})


def test_the_questions_beside_the_runs_are_no_problem(store: Store):
    spec = read_run(folder(store)).spec
    store.keep_questions(
        spec, {"forget": [("Who was A?", {"row": 0, "cluster": "a", "question": "Who was A?", "answer": "B"})]}
    )
    assert len(store.questions(spec)) == 1
    assert list(problems(store)) == []


def edit(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    return lambda where: (
        (where / name).write_text(change((where / name).read_text(encoding="utf-8")), encoding="utf-8") and None
    )


def other_rows(where: Path) -> None:
    rows = pd.read_parquet(where / "per_example.parquet")
    rows.assign(point=1).to_parquet(where / "per_example.parquet")


def test_what_is_left_out_on_purpose_is_no_problem(store: Store):
    where = folder(store)
    for name in ("per_example.parquet", "generations.jsonl"):
        (where / name).unlink()
    assert list(problems(store)) == []
    (where / "generations.jsonl").touch()
    assert list(problems(store)) == [], "as of evaluators that have neither rows nor texts"


def test_evaluators_that_ask_for_no_texts_need_none(store: Store):
    where = folder(store)
    told = json.loads((where / "run.json").read_text())
    told["spec"]["evaluators"] = {"forget_quality": 1, "probability": 1, "of another time": 1}
    (where / "run.json").write_text(json.dumps(told))
    (where / "generations.jsonl").unlink()
    moved = store.runs_folder / read_run(where).spec.folder
    where.rename(moved)
    assert list(problems(store)) == []


@pytest.mark.parametrize(
    ("damage", "said", "unreadable"),
    [
        (edit("run.json", lambda t: t[:100]), "run.json: line 7: not valid JSON", True),
        (edit("run.json", lambda t: ""), "run.json: line 1: not valid JSON", True),
        (
            edit("run.json", lambda t: '{"what": 1}'),
            "run.json: JSON of something else: it lacks schema_version, spec, status",
            True,
        ),
        (edit("run.json", lambda t: "[]"), "run.json: JSON of something else; the object of a record is wanted", True),
        (
            edit("run.json", lambda t: t.replace('"method_version"', '"version"')),
            "or earlier: it lacks spec.method_version",
            True,
        ),
        (edit("run.json", lambda t: t.replace('"status"', '"state"')), "JSON of something else: it lacks status", True),
        (edit("run.json", lambda t: t.replace('"done"', '"doing"')), "a field is unknown or of a wrong type (status: ", True),
        (lambda where: (where / "run.json").unlink(), "there is no run.json", True),
        (lambda where: (where / "run.json").write_bytes(b"\xff\xfe"), "no UTF-8 text", True),
        (
            edit("run.json", lambda t: t.replace('"schema_version": 1', '"schema_version": 99')),
            f"written by a newer version of unlearning-harness (schema 99, this one reads up to {SCHEMA_VERSION}); to read it, update",
            False,
        ),
        (
            edit("run.json", lambda t: t.replace('"seed": 0,\n  "limit"', '"seed": 5,\n  "limit"')),
            "its spec belongs into",
            False,
        ),
        (
            edit("run.json", lambda t: t.replace('"error": ""', '"error": "in /home/me/x.py"')),
            "an absolute path ('/home/",
            False,
        ),
        (edit("points.jsonl", lambda t: ""), "it is done and has no points", False),
        (edit("points.jsonl", lambda t: t + t), "points.jsonl: line 2 of 2 is no next point", True),
        (edit("points.jsonl", lambda t: t + '{"ind'), "points.jsonl: line 2 of 2 is no next point", True),
        (lambda where: (where / "per_example.parquet").unlink(), "it holds texts and no per_example.parquet", False),
        (
            lambda where: (where / "per_example.parquet").write_text("x"),
            "per_example.parquet: cannot be read (ArrowInvalid)",
            True,
        ),
        (other_rows, "per_example.parquet: it lacks what belongs to points [0]", False),
        (other_rows, "per_example.parquet: it holds points [1], which are not listed", False),
        (lambda where: (where / "generations.jsonl").unlink(), "generations.jsonl: it lacks what belongs to points [0]", False),
        (edit("generations.jsonl", lambda t: ""), "generations.jsonl: it lacks what belongs to points [0]", False),
        (edit("generations.jsonl", lambda t: t[:-5]), "generations.jsonl: a line is no JSON of a text", False),
        (
            edit("generations.jsonl", lambda t: t.replace('"point": 0', '"point": 3')),
            "it lacks what belongs to points [0]",
            False,
        ),
        (lambda where: (where / "notes.txt").write_text("x"), "notes.txt: no file of a record", False),
        (lambda where: (where / "run.json.1.part").write_text("x"), "run.json.1.part: no file of a record", False),
        (lambda where: (where.parent / "x.json").write_text("{}"), "x.json belong to no run", False),
    ],
)
def test_what_is_wrong_is_named(store: Store, damage: Callable[[Path], None], said: str, unreadable: bool):
    damage(folder(store))
    found = [problem for problem in problems(store) if said in str(problem)]
    assert found, [str(problem) for problem in problems(store)]
    assert found[0].unreadable == unreadable
    assert "\n" not in str(found[0])


def test_a_run_that_asked_for_no_texts_for_want_of_a_judge_needs_none(store: Store):
    where = folder(store)
    told = json.loads((where / "run.json").read_text())
    told["spec"]["evaluators"] = {"forget_quality": 1, "mt_bench": 1}
    (where / "run.json").write_text(json.dumps(told))
    (where / "generations.jsonl").write_text("")
    where.rename(moved := store.runs_folder / read_run(where).spec.folder)
    assert list(problems(store)) == []
    told["spec"]["basis"] = {"mt_bench": {"judge": "openai:j"}}
    (moved / "run.json").write_text(json.dumps(told))
    moved.rename(store.runs_folder / read_run(moved).spec.folder)
    assert "generations.jsonl: it lacks what belongs to points [0]" in str(*problems(store))


def test_fewer_rows_or_texts_than_a_point_says_are_named(store: Store):
    where = folder(store)
    point = json.loads((where / "points.jsonl").read_text())
    rows, texts = (
        len(pd.read_parquet(where / "per_example.parquet")),
        len((where / "generations.jsonl").read_text().splitlines()),
    )
    (where / "points.jsonl").write_text(json.dumps({**point, "rows": rows, "texts": texts}) + "\n")
    assert list(problems(store)) == []
    (where / "points.jsonl").write_text(json.dumps({**point, "rows": rows + 2, "texts": texts + 1}) + "\n")
    said = [str(problem).partition(": ")[2] for problem in problems(store)]
    assert said == [f"it has {n} of {n + more} that belong to point 0" for n, more in ((rows, 2), (texts, 1))]


@pytest.mark.parametrize("name", ["per_example.parquet", "generations.jsonl"])
def test_a_file_that_one_may_not_read_is_named_and_ends_nothing(store: Store, name: str, monkeypatch: pytest.MonkeyPatch):
    def refused(path: Path, *args: object, **options: object) -> bytes:
        if Path(path).name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return reading(path)

    reading = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", refused)
    if name == "per_example.parquet":
        monkeypatch.setattr(pd, "read_parquet", refused)
    (problem,) = problems(store)
    assert str(problem).endswith(f"{name}: cannot be read: Permission denied")


def test_a_folder_that_is_not_there_is_not_called_sound(harness: Harness, tmp_path: Path):  # noqa: F811
    (tmp_path / "file").write_text("")
    for words in (("validate",), ("list", "runs")):
        for where in ("nothing", "file"):
            told = harness(*words, "--results", tmp_path / where)
            assert told.code == 2
            assert f"there is no results folder {tmp_path / where}" in told.err
    (tmp_path / "empty").mkdir()
    assert harness("validate", "--results", tmp_path / "empty").out == "0 records, no problem\n"


def test_questions_that_cannot_be_read_are_named(store: Store):
    (store.root / "questions").mkdir()
    (store.root / "questions" / "tofu10-1.jsonl").write_text(
        '{"task": "forget", "row": 0, "cluster": "a", "turns": ["x"]}\nnull\n'
    )
    (problem,) = problems(store)
    assert str(problem).startswith("questions/tofu10-1.jsonl: line 2: a field is unknown or of a wrong type (Input should be")


def test_questions_that_are_being_written_are_no_problem(store: Store):
    """Also those of a run that was killed at that moment."""
    (store.root / "questions").mkdir()
    (store.root / "questions" / "tofu10-1.jsonl.4711.part").write_text('{"task": "for')
    assert list(problems(store)) == []


def test_the_command_tells_each_problem_in_a_line_and_sets_aside_what_cannot_be_read(harness: Harness, store: Store):  # noqa: F811
    told = harness("validate", "--results", store.root)
    assert (told.code, told.out) == (0, "1 record, no problem\n")
    where = folder(store)
    (where / "run.json").write_text("{")
    told = harness("validate", "--results", store.root)
    assert (told.code, told.out.count("\n")) == (1, 1)
    assert where.is_dir(), "nothing is changed unasked"
    assert harness("list", "runs", "--results", store.root).code == 0, "no other command stumbles over it"
    told = harness("validate", "--set-aside", "--results", store.root)
    assert told.code == 1
    aside = store.root / "set-aside" / where.relative_to(store.runs_folder)
    assert f"set aside: {aside}" in told.err
    assert (aside / "run.json").read_text() == "{"
    assert harness("validate", "--results", store.root).code == 0
    assert json.loads(harness("validate", "--results", store.root, "--json").out) == []


def test_points_lost_from_a_record_that_is_done_are_set_aside_with_it(store: Store):
    """A run that is not done goes on and measures them again; one that is done would be shown as it is for ever."""
    (folder,) = [file.parent for file in store.runs_folder.glob("*/*/*/*/run.json")]
    points = folder / "points.jsonl"
    points.write_text(points.read_text().replace("\n", "\nnull\n", 1))
    found = [problem for problem in problems(store) if "points.jsonl" in str(problem)]
    assert [problem.unreadable for problem in found] == [True]
    told = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**told, "status": "interrupted"}))
    assert not any(problem.unreadable for problem in problems(store))


def test_a_second_one_set_aside_does_not_hide_the_first(store: Store):
    for _ in range(2):
        where = folder(store)
        (where / "run.json").write_text("{")
        (problem,) = problems(store)
        assert set_aside(store, problem)
        shutil.copytree(FIXTURE / "runs", store.runs_folder, dirs_exist_ok=True)
    assert len(list((store.root / "set-aside").rglob("run.json"))) == 2


def test_a_record_that_is_being_written_is_left_alone(store: Store):
    spec = read_run(folder(store)).spec
    with store.open(spec):
        (folder(store) / "run.json").write_text("{")
        (problem,) = problems(store)
        assert set_aside(store, problem) is None
    assert folder(store).is_dir()


def test_a_sweep_goes_on_beside_a_record_that_cannot_be_read(tmp_path: Path, cache):
    from harness.running.executors import in_turn
    from harness.running.sweep import run_trials
    from tests.nano_sweep import tries

    asked, store = tries({"strength": 0.1}, {"strength": 0.2}), Store(tmp_path / "r")
    first, _ = run_trials(asked, store, cache, in_turn)
    (store.runs_folder / first.spec.folder / "run.json").write_text("{")
    results = run_trials(asked, store, cache, in_turn)
    assert [r.status for r in results] == ["failed", "done"]
    assert "harness validate" in results[0].error
