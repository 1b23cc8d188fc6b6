"""Packed runs read as they did from their folders, come back as they were, and survive whatever happens while they are packed."""

from __future__ import annotations

import io
import lzma
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.core.errors import UsageError
from harness.core.registry import ROOT
from harness.reading.compared import read_runs
from harness.reading.leaderboard import build
from harness.storage import packing, packs
from harness.storage.packing import pack, unpack
from harness.storage.packs import ABOUT, RUNS, TEXTS, Pack, PackedRun, write_pack
from harness.storage.store import Store
from harness.storage.validate import problems, set_aside
from tests.cli.test_cli import Harness, harness  # noqa: F401
from tests.storage.test_store import SPEC, point, result, table, texts

OTHER = replace(SPEC, seed=1)
PLACE, OTHERS = SPEC.folder.as_posix(), OTHER.folder.as_posix()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two finished runs, the second of another schema of columns, and without texts."""
    store = Store(tmp_path / "results")
    with store.open(SPEC) as record:
        for index in range(2):
            record.add(point(index), table(index), texts(f"answer {index}: ü"))
        record.write(result(status="done", points=tuple(record.points)))
    with store.open(OTHER) as record:
        record.add(point(0), {"likelihood": table(0)["likelihood"].assign(loss=[1, 2])}, {})
        record.write(result(spec=OTHER, status="done", points=tuple(record.points)))
    return store


def contents(store: Store) -> dict[str, object]:
    """All that a reader can ask of a store."""
    asked: dict[str, object] = {"places": store.places(), "runs": list(store.runs()), "frame": store.frame().to_csv()}
    for spec in (SPEC, OTHER):
        asked[spec.run_id] = (
            store.find(spec),
            store.status(spec),
            store.by_id(spec.run_id[:8])[1],
            store.read(spec.folder.as_posix()),
        )
        for index in range(2):
            rows = store.rows(spec, index)
            asked[f"{spec.run_id} {index}"] = (
                None if rows is None else rows.to_csv(),
                store.texts(spec.folder.as_posix(), index),
            )
    return asked


def files(store: Store) -> dict[str, bytes]:
    every = (path for path in store.runs_folder.rglob("*") if path.is_file() and ".locks" not in path.parts)
    return {path.relative_to(store.runs_folder).as_posix(): path.read_bytes() for path in every}


def test_packed_runs_read_as_they_did_and_come_back_byte_for_byte(store: Store):
    before, folders = contents(store), files(store)
    (packed,) = pack(store)
    assert (packed.runs, packed.left, [*files(store)]) == (2, [], ["tofu10.zip"])
    assert contents(store) == before
    assert list(problems(store)) == []
    unpack(store)
    assert files(store) == folders
    assert contents(store) == before


def test_types_of_columns_stay_and_no_run_gets_a_column_of_another(store: Store):
    before = [store.rows(spec, 0) for spec in (SPEC, OTHER)]
    list(pack(store))
    for spec, rows in zip((SPEC, OTHER), before, strict=True):
        pd.testing.assert_frame_equal(store.rows(spec, 0), rows, check_exact=True)
    assert before[1] is not None
    assert before[1]["loss"].dtype == "int64"
    assert "rouge" not in before[1]


def test_floats_in_lists_are_stored_as_those_outside_are():
    made = pa.table({"task": ["a", "a"], "loss": [1.0, 2.0], "losses": [[1.0, 2.0], [3.0]], "words": [["x"], []]})
    file = pq.ParquetFile(io.BytesIO(packs._parquet(made)))
    columns = [file.metadata.row_group(0).column(i) for i in range(file.metadata.num_columns)]
    apart = {column.path_in_schema for column in columns if "BYTE_STREAM_SPLIT" in column.encodings}
    assert apart == {"loss", "losses.list.element"}
    assert file.read().equals(made)


def test_equal_runs_give_equal_files(store: Store, tmp_path: Path):
    shutil.copytree(store.root, tmp_path / "copy")
    (one,), (other,) = pack(store), pack(Store(tmp_path / "copy"))
    assert one.path.read_bytes() == other.path.read_bytes()


def test_what_is_not_done_or_not_sound_stays_in_its_folder(store: Store):
    unfinished, damaged = replace(SPEC, seed=2), replace(SPEC, seed=3)
    with store.open(unfinished) as record:
        record.write(result(spec=unfinished))
        record.add(point(0), table(0), texts("a"))
    shutil.copytree(store.runs_folder / PLACE, store.runs_folder / damaged.folder)
    (packed,) = pack(store)
    assert packed.runs == 2
    assert [sentence.partition(" ")[2].partition(" (")[0] for sentence in sorted(packed.left)] in (
        ["is not done", "is not sound"],
        ["is not sound", "is not done"],
    )
    assert store.status(unfinished) == "interrupted"
    assert (store.runs_folder / damaged.folder / "run.json").is_file()


def test_a_packed_run_is_found_done_and_opening_it_leaves_no_folder(store: Store):
    list(pack(store))
    with store.open(SPEC) as record:
        assert (record.result.status, len(record.points)) == ("done", 2)
    assert [*files(store)] == ["tofu10.zip"]


def test_a_packed_run_that_is_done_anew_stays_in_sight_until_then_and_is_superseded(store: Store):
    list(pack(store))
    before = contents(store)
    with store.open(SPEC, force=True) as record:
        record.write(result())
        record.add(point(0, "new"), table(0), texts("new"))
        assert contents(store) == before
    assert contents(store) == before, "it was broken off"
    with store.open(SPEC, force=True) as record:
        assert [p.weights for p in record.points] == ["new0"], "it goes on"
        record.write(result(status="done", points=tuple(record.points)))
    assert [p.weights for p in store.read(PLACE).points] == ["new0"]
    assert store.texts(PLACE, 0) == {("Who?",): "new"}
    assert store.texts(PLACE, 1) == {}
    assert list(problems(store)) == []
    list(pack(store))
    assert [p.weights for p in store.read(PLACE).points] == ["new0"]
    assert [*files(store)] == ["tofu10.zip"]


@pytest.mark.parametrize("stage", ["write_pack", "_compare", "_remove", "_stamp", "rmtree"])
def test_killed_at_any_stage_the_store_reads_as_before_and_packing_goes_on(store: Store, stage: str):
    before = contents(store)
    where = "shutil" if stage == "rmtree" else "packing"
    program = (
        "import os, signal, shutil\nfrom pathlib import Path\nfrom harness.storage import packing\nfrom harness.storage.store import Store\n"
        f"kept = {where}.{stage}\n"
        "def killed(*given, **named):\n"
        f"    if {stage!r} in ('write_pack', 'rmtree') and given: kept(*given[:1], *given[1:], **named)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{where}.{stage} = killed\n"
        f"list(packing.pack(Store(Path({str(store.root)!r}))))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert contents(store) == before
    assert list(problems(store)) == []
    list(pack(store))
    assert contents(store) == before
    assert [*files(store)] == ["tofu10.zip"]
    assert {path.suffix for path in (store.runs_folder / ".locks").iterdir()} == {".lock"}


def test_a_run_that_changed_while_it_was_packed_keeps_its_folder(store: Store, monkeypatch: pytest.MonkeyPatch):
    compare = packing._compare

    def meanwhile(*given: object) -> None:
        compare(*given)  # type: ignore[arg-type]
        with store.open(SPEC, force=True) as record:
            record.write(result())
            record.add(point(0, "new"), table(0), texts("new"))
            record.write(result(status="done", points=tuple(record.points)))

    monkeypatch.setattr(packing, "_compare", meanwhile)
    list(pack(store))
    assert [p.weights for p in store.read(PLACE).points] == ["new0"]
    assert not (store.runs_folder / OTHERS).exists()


def test_nothing_is_removed_where_the_file_does_not_give_back_what_was_put_in(store: Store, monkeypatch: pytest.MonkeyPatch):
    before = files(store)
    monkeypatch.setattr(packing, "write_pack", lambda path, runs: write_pack(path, [replace(run, texts=[]) for run in runs]))
    with pytest.raises(RuntimeError, match="does not give back"):
        list(pack(store))
    assert files(store) == before


def test_a_run_being_written_stays_and_two_do_not_pack_at_once(store: Store):
    with store.open(SPEC, force=True):
        (packed,) = pack(store)
        assert (packed.runs, packed.left) == (1, [f"{PLACE} is being written"])
        with pytest.raises(UsageError, match="being written"):
            packing._unpack(store, Pack(packed.path), PLACE)
    with packing._alone(store, "tofu10"), pytest.raises(UsageError, match="another process"):
        list(pack(store))


def test_one_run_gets_a_folder_that_another_store_reads(store: Store, tmp_path: Path):
    before = contents(store)
    list(pack(store))
    (folder,) = unpack(store, OTHER.run_id[:6])
    assert folder == store.runs_folder / OTHERS
    assert contents(store) == before
    shutil.copytree(folder, tmp_path / "elsewhere" / "runs" / OTHERS)
    elsewhere = Store(tmp_path / "elsewhere")
    assert list(elsewhere.runs()) == [store.find(OTHER)]
    assert list(problems(elsewhere)) == []
    with pytest.raises(UsageError, match="no run"):
        unpack(store, "zzz")


def test_a_file_copied_into_another_store_is_read_there(store: Store, tmp_path: Path):
    before = contents(store)
    list(pack(store))
    (tmp_path / "elsewhere" / "runs").mkdir(parents=True)
    shutil.copy(store.runs_folder / "tofu10.zip", tmp_path / "elsewhere" / "runs")
    assert contents(Store(tmp_path / "elsewhere")) == before


def test_a_page_links_to_what_is_there(store: Store):
    before = build(store.root)
    list(pack(store))
    after = build(store.root)
    assert {name for name in before if before[name] != after[name]} == {"index.html"}
    page = before["index.html"].decode()
    for run in read_runs(store.root, print):
        page = page.replace(f"../runs/{run.folder}/", "../runs/tofu10.zip")
        assert (store.runs_folder / run.link).is_file()
    assert page == after["index.html"].decode()


# ---------------------------------------------------------------- damage


def rewritten(change: Callable[[PackedRun], PackedRun]) -> Callable[[Path], None]:
    """A file that somebody has changed by hand, whole in itself."""

    def damage(path: Path) -> None:
        pack = Pack(path)
        write_pack(path, [change(pack.packed(place)) for place in pack.places])

    return damage


def member(name: str, content: bytes | None) -> Callable[[Path], None]:
    """A file of which one member is another, or gone."""

    def damage(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            members = {each: archive.read(each) for each in archive.namelist()}
        members |= {name: content} if content is not None else {}
        with zipfile.ZipFile(path, "w") as archive:
            for each, text in members.items():
                if each != name or content is not None:
                    archive.writestr(each, text)

    return damage


def flipped(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo(RUNS).header_offset + 200
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


WHOLE: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-50]) and None, "BadZipFile"),
    "empty": (lambda path: path.write_bytes(b"") and None, "BadZipFile"),
    "a bit": (flipped, "Bad CRC-32"),
    "no runs": (member(RUNS, None), "KeyError"),
    "no xz": (member(RUNS, b"x"), "LZMAError"),
    "no line": (member(RUNS, lzma.compress(b"[]\n")), "names no run"),
    "another benchmark's": (lambda path: path.rename(path.with_name("wmdp.zip")) and None, "no run of wmdp"),
    "no layout": (member(ABOUT, b"[]"), "names no layout"),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_damaged_file_is_named_by_every_command_and_set_aside(store: Store, harness: Harness, kind: str):  # noqa: F811
    list(pack(store))
    damage, said = WHOLE[kind]
    damage(store.runs_folder / "tofu10.zip")
    (problem,) = problems(store)
    assert said in str(problem)
    assert problem.unreadable
    for command in (("list", "runs"), ("leaderboard",), ("results", "pack"), ("results", "unpack")):
        done = harness(*command, "--results", store.root)
        assert done.code == 2
        assert said in done.err
        assert "--set-aside" in done.err
    target = set_aside(store, problem)
    assert target
    assert target.is_file()
    assert list(problems(store)) == []


INSIDE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a text gone": (
        rewritten(lambda run: replace(run, texts=run.texts and run.texts[:-1])),
        "it lacks what belongs to points [1]",
    ),
    "all texts gone": (rewritten(lambda run: replace(run, texts=None)), "it lacks what belongs to points [0, 1]"),
    "a row gone": (rewritten(lambda run: replace(run, rows=run.rows.slice(1))), "it has 1 of 2 that belong to point 0"),
    "a point gone": (rewritten(lambda run: replace(run, points=run.points[1:])), "is no next point"),
    "another seed": (
        rewritten(lambda run: replace(run, run={**run.run, "spec": {**run.run["spec"], "seed": 9}})),
        "moved, or changed",
    ),
    "a path": (rewritten(lambda run: replace(run, run={**run.run, "error": "in /home/me/x.py"})), "an absolute path"),
    "a field": (
        rewritten(lambda run: replace(run, run={**run.run, "more": 1})),
        "a field is unknown or of a wrong type (more: ",
    ),
    "newer": (rewritten(lambda run: replace(run, run={**run.run, "schema_version": 99})), "written by a newer version"),
    "no record": (rewritten(lambda run: replace(run, run=[])), "JSON of something else"),
    "no texts": (rewritten(lambda run: replace(run, texts=[{"point": 0}])), "text 1: it lacks turns, text"),
}


@pytest.mark.parametrize("kind", INSIDE)
def test_what_was_changed_inside_is_named(store: Store, kind: str):
    list(pack(store))
    damage, said = INSIDE[kind]
    damage(store.runs_folder / "tofu10.zip")
    (first, *_) = [problem for problem in problems(store) if PLACE in str(problem)]
    assert said in str(first)
    assert first.where.startswith("tofu10.zip/")


def test_a_packed_run_that_cannot_be_read_is_passed_over_and_named(store: Store, harness: Harness):  # noqa: F811
    list(pack(store))
    rewritten(lambda run: replace(run, run={**run.run, "more": 1}) if run.place == PLACE else run)(
        store.runs_folder / "tofu10.zip"
    )
    assert [each.spec for each in store.runs()] == [OTHER]
    done = harness("list", "runs", "--results", store.root)
    assert done.code == 0
    assert "harness results unpack" in done.err
    unpack(store)
    (problem,) = problems(store)
    assert problem.unreadable


def test_a_later_layout_is_refused_with_the_way_out(store: Store):
    list(pack(store))
    member(ABOUT, b'{"layout": 2}')(store.runs_folder / "tofu10.zip")
    with pytest.raises(UsageError, match="newer version"):
        store.places()
    (problem,) = problems(store)
    assert "newer version" in str(problem)
    assert not problem.unreadable


def test_the_layout_of_before_is_known():
    assert (packs.LAYOUT, TEXTS) == (1, "texts.jsonl.xz"), "a change needs a reader for what is committed"
