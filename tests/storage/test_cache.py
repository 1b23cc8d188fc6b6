"""Costly things made once, whole or not at all, and never mistaken for one another."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from harness.core.errors import UsageError
from harness.storage.cache import Cache, canonical, digest, disk_errors, file_digest
from tests.clock import A_HANG

KEY = {"weights": "abc", "samples": 2}
SPAWN = multiprocessing.get_context("spawn")


def hello(folder: Path) -> dict[str, int]:
    (folder / "sub").mkdir()
    (folder / "sub" / "hello.txt").write_text("hello")
    return {"answer": 42}


def never(folder: Path) -> None:
    raise AssertionError("it was made a second time")


def everything(root: Path) -> list[str]:
    """Every file below a folder, lock files left out."""
    return sorted(f.relative_to(root).as_posix() for f in root.rglob("*") if f.is_file() and f.suffix != ".lock")


# ---------------------------------------------------------------- keys


def test_equal_values_give_equal_text_whatever_the_order_of_their_keys():
    assert canonical({"b": 1, "a": [True, None, "ü"]}) == '{"a":[true,null,"ü"],"b":1}'
    assert digest({"b": {"d": 1, "c": 2}, "a": 0}) == digest({"a": 0, "b": {"c": 2, "d": 1}})


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_key_that_equals_nothing_is_refused(cache: Cache, number: float):
    with pytest.raises(ValueError, match="JSON"):
        cache.get("kind", {"damping": number}, hello)
    assert everything(cache.root) == []


def test_the_order_of_a_keys_parts_does_not_matter(cache: Cache):
    made = cache.get("kind", KEY, hello)
    assert cache.get("kind", dict(reversed(KEY.items())), never).path == made.path


@pytest.mark.parametrize("other", [{"weights": "abd", "samples": 2}, {"weights": "abc", "samples": 3}, {"weights": "abc"}])
def test_another_key_is_another_entry(cache: Cache, other: dict):
    made = cache.get("kind", KEY, hello)
    found = cache.get("kind", other, hello)
    assert found.made_now
    assert found.path != made.path


def test_the_same_key_of_another_kind_is_another_entry(cache: Cache):
    cache.get("kind", KEY, hello)
    assert cache.find("other", KEY) is None


# ---------------------------------------------------------------- making and finding


def test_an_entry_comes_back_with_its_files_key_facts_and_seconds(cache: Cache):
    def slowly(folder: Path) -> dict[str, int]:
        time.sleep(0.02)
        return hello(folder)

    made = cache.get("kind", KEY, slowly)
    found = Cache(cache.root).get("kind", KEY, never)
    assert made.made_now
    assert not found.made_now
    assert (found.path / "sub" / "hello.txt").read_text() == "hello"
    assert (found.kind, found.key, found.facts) == ("kind", KEY, {"answer": 42})
    assert found.seconds == made.seconds >= 0.02


def test_an_entry_knows_its_size(cache: Cache):
    made = cache.get("kind", KEY, hello)
    assert made.bytes == 5 + (made.path / "entry.json").stat().st_size


def test_find_gives_nothing_before_and_the_entry_after(cache: Cache):
    assert cache.find("kind", KEY) is None
    cache.get("kind", KEY, hello)
    found = cache.find("kind", KEY)
    assert found is not None
    assert found.facts == {"answer": 42}


def test_what_could_not_be_made_leaves_nothing(cache: Cache):
    def broken(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        cache.get("kind", KEY, broken)
    assert everything(cache.root) == []
    assert cache.get("kind", KEY, hello).made_now


def test_an_entry_may_be_made_out_of_another(cache: Cache):
    def outer(folder: Path) -> None:
        inner = cache.get("inner", KEY, hello)
        (folder / "copy.txt").write_text((inner.path / "sub" / "hello.txt").read_text())

    assert (cache.get("outer", KEY, outer).path / "copy.txt").read_text() == "hello"


# ---------------------------------------------------------------- several processes


def _make_in_a_process(root: Path, start: object, told: object) -> None:
    def make(folder: Path) -> dict[str, int]:
        with (root.parent / "makes").open("a") as file:
            file.write("x")
        time.sleep(0.3)
        return {"maker": os.getpid()}

    cache = Cache(root)
    start.wait()  # type: ignore[attr-defined]
    told.put(cache.get("kind", KEY, make).facts["maker"])  # type: ignore[attr-defined]


def test_two_processes_that_want_the_same_make_it_once(tmp_path: Path):
    start, told = SPAWN.Barrier(2), SPAWN.Queue()
    processes = [SPAWN.Process(target=_make_in_a_process, args=(tmp_path / "cache", start, told)) for _ in range(2)]
    for process in processes:
        process.start()
    makers = {told.get(timeout=A_HANG) for _ in processes}
    for process in processes:
        process.join(timeout=A_HANG)
    assert (tmp_path / "makes").read_text() == "x"
    assert len(makers) == 1


def _hang_in_the_middle(root: Path, begun: object) -> None:
    def make(folder: Path) -> None:
        (folder / "half.bin").write_bytes(b"half")
        begun.set()  # type: ignore[attr-defined]
        time.sleep(A_HANG)

    Cache(root).get("kind", KEY, make)


def test_a_process_killed_while_making_leaves_nothing_half_made(cache: Cache):
    begun = SPAWN.Event()
    process = SPAWN.Process(target=_hang_in_the_middle, args=(cache.root, begun))
    process.start()
    assert begun.wait(timeout=A_HANG)
    os.kill(process.pid, signal.SIGKILL)
    process.join(timeout=A_HANG)
    assert everything(cache.root), "the killed process left its part behind"
    assert cache.find("kind", KEY) is None
    assert list(cache.entries()) == []

    made = cache.get("kind", KEY, hello)
    assert made.made_now
    assert sorted(f.name for f in made.path.rglob("*") if f.is_file()) == ["entry.json", "hello.txt"]
    assert list((cache.root / "making").iterdir()) == []


def _make_when_told(root: Path, number: int, begun: object, go_on: object, told: object) -> None:
    def make(folder: Path) -> dict[str, int]:
        begun.set()  # type: ignore[attr-defined]
        go_on.wait(A_HANG)  # type: ignore[attr-defined]
        (folder / "a.txt").write_text(f"a {number}")
        (folder / "b.txt").write_text(f"b {number}")
        return {"maker": number}

    entry = Cache(root).get("kind", KEY, make)
    told.put((number, entry.facts["maker"], entry.made_now, (entry.path / "a.txt").read_text()))  # type: ignore[attr-defined]


def _makers(root: Path, count: int) -> tuple[list, list, list, object]:
    """Processes that make one thing: they, their signs that they have begun, what lets them go on, what they tell."""
    begun, go_on = [SPAWN.Event() for _ in range(count)], [SPAWN.Event() for _ in range(count)]
    told = SPAWN.Queue()
    processes = [SPAWN.Process(target=_make_when_told, args=(root, i, begun[i], go_on[i], told)) for i in range(count)]
    return processes, begun, go_on, told


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("removed", ["locks", "."])
def test_of_two_that_make_the_same_the_second_takes_what_the_first_has_put_there(
    tmp_path: Path, order: tuple[int, int], removed: str
):
    """They know nothing of one another where the locks were removed, alone or with the whole cache."""
    root = tmp_path / "cache"
    processes, begun, go_on, told = _makers(root, 2)
    processes[0].start()
    assert begun[0].wait(A_HANG)
    shutil.rmtree(root / removed)
    processes[1].start()
    assert begun[1].wait(A_HANG)
    found = []
    for number in order:
        go_on[number].set()
        found.append(told.get(timeout=A_HANG))
    for process in processes:
        process.join(A_HANG)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(number for number, *_ in found) == [0, 1]
    assert len({(maker, text) for _, maker, _, text in found}) == 1, "both have the same one"
    assert [made for *_, made, _ in found].count(True) == 1
    assert list((root / "making").iterdir()) == []


def test_what_is_removed_while_it_is_made_is_made_again(tmp_path: Path):
    root = tmp_path / "cache"
    processes, begun, go_on, told = _makers(root, 1)
    processes[0].start()
    assert begun[0].wait(A_HANG)
    shutil.rmtree(root)
    go_on[0].set()
    assert told.get(timeout=A_HANG) == (0, 0, True, "a 0")
    processes[0].join(A_HANG)
    assert processes[0].exitcode == 0
    assert Cache(root).get("kind", KEY, never).facts == {"maker": 0}


def test_an_error_that_has_nothing_to_do_with_a_removed_cache_is_raised(cache: Cache):
    with pytest.raises(RuntimeError, match="broken"):
        cache.get("kind", KEY, lambda folder: (_ for _ in ()).throw(RuntimeError("broken")))


def test_the_next_process_sweeps_what_a_killed_one_had_half_made(tmp_path: Path):
    root = tmp_path / "cache"
    processes, begun, *signs = _makers(root, 1)  # which live as long as there is a name for them
    processes[0].start()
    assert begun[0].wait(A_HANG)
    Cache(root)
    assert len(list((root / "making").iterdir())) == 1, "it is alive"
    processes[0].kill()
    processes[0].join(A_HANG)
    Cache(root)
    assert list((root / "making").iterdir()) == []
    del signs


# ---------------------------------------------------------------- damage


def damage(cache: Cache) -> Path:
    """Make an entry, change one letter of a file of it, and give its path."""
    path = cache.get("kind", KEY, hello).path
    (path / "sub" / "hello.txt").write_text("hallo")
    return path


def test_an_entry_that_fails_its_checksum_is_set_aside_named_and_made_anew(cache: Cache, caplog: pytest.LogCaptureFixture):
    path = damage(cache)
    with caplog.at_level(logging.WARNING):
        made = Cache(cache.root).get("kind", KEY, hello)
    assert made.made_now
    assert (made.path / "sub" / "hello.txt").read_text() == "hello"
    (aside,) = path.parent.glob(f"{path.name}.corrupt-*")
    assert (aside / "sub" / "hello.txt").read_text() == "hallo"
    assert "sub/hello.txt differs from its checksum" in caplog.text
    assert str(aside) in caplog.text


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}"])
def test_an_entry_without_a_sound_record_is_made_anew(cache: Cache, content: str | None):
    record = cache.get("kind", KEY, hello).path / "entry.json"
    if content is None:
        record.unlink()
    else:
        record.write_text(content)
    assert Cache(cache.root).get("kind", KEY, hello).made_now


def test_an_entry_with_a_missing_file_is_made_anew(cache: Cache):
    (cache.get("kind", KEY, hello).path / "sub" / "hello.txt").unlink()
    assert Cache(cache.root).get("kind", KEY, hello).made_now


def test_what_is_set_aside_is_not_listed_as_an_entry(cache: Cache):
    damage(cache)
    Cache(cache.root).get("kind", KEY, hello)
    assert len(list(cache.entries())) == 1


def test_a_checksum_is_the_sha256_of_the_bytes(tmp_path: Path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_digest(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# ---------------------------------------------------------------- the disk


def test_a_root_that_cannot_be_made_is_one_sentence_with_the_way_out(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"the cache .*file/cache cannot be written: .*\. Set HARNESS_CACHE to"):
        Cache(tmp_path / "file" / "cache")


@pytest.mark.parametrize("refused", ["entry.json", "hello.txt"])
def test_an_entry_that_one_may_not_read_is_no_corrupt_one(cache: Cache, monkeypatch: pytest.MonkeyPatch, refused: str):
    made = cache.get("kind", KEY, hello)
    (before,) = cache.root.glob("kind/*")

    def opened(path: Path, *args: object, **options: object) -> object:
        if path.name == refused:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return reading(path, *args, **options)  # type: ignore[arg-type]

    reading = Path.open
    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened(path, "rb").read())  # type: ignore[attr-defined]
    for ask in (Cache(cache.root).find, lambda *key: Cache(cache.root).get(*key, never)):
        with pytest.raises(UsageError, match=r"\(kind\) cannot be read: Permission denied\. .* set HARNESS_CACHE"):
            ask("kind", KEY)
    monkeypatch.undo()
    assert [*cache.root.glob("kind/*")] == [before], "others share the cache: it stays where it is"
    assert cache.get("kind", KEY, never).path == made.path


def test_a_folder_of_others_that_one_may_not_enter_is_told_of(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    def refused(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refused)  # as it does where a folder on the way is closed
    with pytest.raises(UsageError, match=r"\(kind\) cannot be read: Permission denied\. .* set HARNESS_CACHE"):
        cache.find("kind", KEY)


def test_a_lock_that_one_may_not_take_is_one_sentence(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    def refused(self: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("harness.storage.cache.FileLock.__enter__", refused)
    with pytest.raises(UsageError, match="Permission denied"):
        cache.get("kind", KEY, hello)


def test_a_cache_where_no_folder_can_be_made_is_one_sentence():
    with pytest.raises(UsageError, match=r"the cache /proc/nope cannot be written: .* Set HARNESS_CACHE"):
        Cache(Path("/proc/nope"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(cache: Cache, number: int):
    def full(folder: Path) -> None:
        (folder / "part").write_bytes(b"part")
        raise OSError(number, os.strerror(number))

    with pytest.raises(UsageError, match=r"no space is left on the disk of .*\. Free some space"):
        cache.get("kind", KEY, full)
    assert everything(cache.root) == []


def test_a_disk_that_fills_up_while_flushing_leaves_nothing(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("harness.storage.cache.os.fsync", full)
    with pytest.raises(UsageError, match="no space is left"):
        cache.get("kind", KEY, hello)
    assert everything(cache.root) == []


def test_other_errors_of_the_system_are_not_taken_for_the_disks(cache: Cache):
    def gone(folder: Path) -> None:
        raise FileNotFoundError(errno.ENOENT, "no such file", "weights.bin")

    with pytest.raises(FileNotFoundError, match=r"weights\.bin"):
        cache.get("kind", KEY, gone)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.ENOSPC])
def test_an_error_of_a_file_elsewhere_is_not_the_caches(cache: Cache, tmp_path: Path, number: int):
    """Whoever makes an entry reads other files, too."""

    def reads(folder: Path) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path / "my model" / "config.json"))

    with pytest.raises(OSError, match=r"my model/config\.json") as told:
        cache.get("kind", KEY, reads)
    assert not isinstance(told.value, UsageError)


def test_an_error_of_a_file_in_the_cache_is_the_caches_also_by_a_link(cache: Cache, tmp_path: Path):
    def writes(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder / "weights"))

    (tmp_path / "link").symlink_to(cache.root)
    with pytest.raises(UsageError, match=r"link \(kind\) cannot be written: Permission denied"):
        Cache(tmp_path / "link").get("kind", KEY, writes)


def test_an_error_of_a_folder_that_leads_to_a_place_is_the_places(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UsageError, match="the folder X cannot be written: Not a directory"),
        disk_errors("the folder X", "Choose another", within=tmp_path / "file" / "deep" / "x"),
    ):
        (tmp_path / "file" / "deep" / "x").mkdir(parents=True)


# ---------------------------------------------------------------- listing and clearing


def test_the_root_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "elsewhere"))
    assert Cache().root == tmp_path / "elsewhere"


def fill(cache: Cache) -> None:
    for kind, number in (("model", 1), ("model", 2), ("curvature", 1)):
        cache.get(kind, {"number": number}, hello)


def test_every_entry_is_listed_by_kind(cache: Cache):
    fill(cache)
    assert sorted((e.kind, e.key["number"]) for e in cache.entries()) == [("curvature", 1), ("model", 1), ("model", 2)]
    assert [e.kind for e in cache.entries()] == ["curvature", "model", "model"]


def test_clearing_one_kind_leaves_the_others_and_tells_the_bytes(cache: Cache):
    fill(cache)
    size = sum(e.bytes for e in cache.entries() if e.kind == "model")
    assert cache.clear("model") == size > 0
    assert [e.kind for e in cache.entries()] == ["curvature"]
    assert cache.find("model", {"number": 1}) is None
    assert cache.get("model", {"number": 1}, hello).made_now


def test_clearing_all_takes_away_what_was_set_aside_and_half_made_too(cache: Cache):
    fill(cache)
    damage(cache)
    Cache(cache.root).get("kind", KEY, hello)
    (cache.root / "making" / f"model-{'0123' * 8}").mkdir(parents=True)
    (cache.root / "making" / f"model-{'0123' * 8}" / "half.bin").write_bytes(b"half")
    assert cache.clear() > 0
    assert everything(cache.root) == []


def test_clearing_leaves_alone_what_is_being_made(cache: Cache):
    def make(folder: Path) -> None:
        (folder / "part").write_text("part")
        assert Cache(cache.root).clear() == 0
        assert (folder / "part").is_file()

    assert (cache.get("kind", KEY, make).path / "part").is_file()


def test_what_is_held_in_memory_is_made_once_for_a_key(cache: Cache):
    made: list[int] = []

    def make() -> list[int]:
        made.append(1)
        return list(made)

    first, saved = cache.memoize("kind", ("a", [1]), make)
    assert saved == 0.0
    again, saved = cache.memoize("kind", ("a", [1]), make)
    assert again is first
    assert saved > 0
    assert cache.memoize("kind", ("b", [1]), make)[0] == [1, 1]
    assert cache.memoize("kind", ("a", [1]), make)[0] == [1, 1, 1], "one value of a kind is held"


def test_the_record_beside_a_value_tells_what_made_it(cache: Cache):
    told = json.loads((cache.get("kind", KEY, hello).path / "entry.json").read_text())
    assert told["key"] == KEY
    assert set(told["files"]) == {"sub/hello.txt"}
