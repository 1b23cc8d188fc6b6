"""Temporary folders: gone at the end, and swept when their process was killed."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import time
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from harness.core.errors import UsageError
from harness.storage.temporary import lost, sweep, temporary_file, temporary_folder
from tests.clock import A_HANG

SPAWN = multiprocessing.get_context("spawn")


def test_a_folder_is_empty_at_first_and_gone_at_the_end(tmp_path: Path):
    with temporary_folder(tmp_path) as folder:
        assert list(folder.iterdir()) == []
        (folder / "file").write_text("x")
        assert not lost(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_gone_after_an_error(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), temporary_folder(tmp_path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_by_default_it_lies_where_the_system_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary_folder() as folder:
        assert tmp_path in folder.parents
        assert next(tmp_path.iterdir()).name.startswith("unlearning-harness-")


def test_a_sweep_leaves_alone_what_is_in_use_and_what_others_made(tmp_path: Path):
    (tmp_path / "tmpabc").mkdir()
    with temporary_folder(tmp_path) as folder:
        (folder / "file").write_text("x")
        assert sweep(tmp_path) == 0
        assert (folder / "file").is_file()
    assert [f.name for f in tmp_path.iterdir()] == ["tmpabc"]


def test_a_sweep_follows_no_links(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    (tmp_path / "unlearning-harness-x").symlink_to(tmp_path / "mine")
    sweep(tmp_path)
    assert (tmp_path / "mine" / "file").is_file()


def _hang(place: Path, begun: object) -> None:
    with temporary_folder(place) as folder:
        (folder / "weights").write_bytes(b"x" * 1000)
        begun.set()  # type: ignore[attr-defined]
        time.sleep(A_HANG)


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_has_is_not(tmp_path: Path):
    signs = [SPAWN.Event(), SPAWN.Event()]
    dead, alive = processes = [SPAWN.Process(target=_hang, args=(tmp_path, sign)) for sign in signs]
    for process, sign in zip(processes, signs, strict=True):
        process.start()
        assert sign.wait(A_HANG)
    dead.kill()
    dead.join()
    assert len(list(tmp_path.iterdir())) == 2
    assert sweep(tmp_path) == 1000
    assert len(list(tmp_path.iterdir())) == 1
    alive.kill()
    alive.join()
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ENOLCK])
def test_a_lock_that_the_system_refuses_is_an_error_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    tried = []

    def refused(lock: FileLock, timeout: float) -> None:
        tried.append(lock)
        assert len(tried) <= 200, "it tries for ever"
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("harness.storage.temporary.FileLock.acquire", refused)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))), temporary_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_locked_is_said_and_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tried = []

    def busy(lock: FileLock, timeout: float) -> None:
        tried.append(lock)
        assert len(tried) <= 200, "it tries for ever"
        raise Timeout(lock.lock_file)

    monkeypatch.setattr("harness.storage.temporary.FileLock.acquire", busy)
    with pytest.raises(UsageError, match=r"no lock can be taken in .*TMPDIR"), temporary_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_passes_over_what_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(lock: FileLock, timeout: float) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / "unlearning-harness-x").mkdir()
    monkeypatch.setattr("harness.storage.temporary.FileLock.acquire", refused)
    assert sweep(tmp_path) == 0
    assert (tmp_path / "unlearning-harness-x").is_dir()


def _make_many(place: Path, count: int) -> None:
    for _ in range(count):
        with temporary_folder(place) as folder:
            (folder / "file").write_text("x")
            assert not lost(folder)


def test_a_sweep_at_any_moment_takes_nothing_from_the_living(tmp_path: Path):
    process = SPAWN.Process(target=_make_many, args=(tmp_path, 200))
    process.start()
    while process.is_alive():
        sweep(tmp_path)
    process.join()
    assert process.exitcode == 0


def test_a_folder_that_somebody_removes_is_lost(tmp_path: Path):
    import shutil

    with temporary_folder(tmp_path) as folder:
        shutil.rmtree(folder.parent)
        assert lost(folder)
        folder.mkdir(parents=True)
        assert lost(folder), "also where it was made again by whoever writes into it"


def test_a_file_without_a_name_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary_file() as file:
        os.write(file.fileno(), b"said \xff\n")
        file.seek(0)
        assert file.read() == "said \ufffd\n"
        assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []
