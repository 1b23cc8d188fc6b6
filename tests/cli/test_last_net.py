"""Wherever the system refuses a file, a command ends in one sentence that names the place: no traceback, exit code 2."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import entry
from harness.core.registry import ROOT
from harness.data.hub_errors import refusal, torchvision_trouble
from harness.storage.cache import disk_trouble


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG])
@pytest.mark.parametrize("name", ["/somewhere/file.csv", None])
def test_a_command_that_cannot_write_ends_in_one_sentence(number, name, tmp_path, monkeypatch, capsys):
    def broken(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number), name)

    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    monkeypatch.setattr(entry, "app", broken)
    monkeypatch.setattr("harness.core.signals.stop_on_signals", lambda: None)
    with pytest.raises(SystemExit) as ended:
        entry.main()
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (2, "")
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert os.strerror(number).lower() in told.err.lower()
    assert (name or str(tmp_path)) in told.err


UNIMPORTABLE = ModuleNotFoundError("Could not import module 'LlamaConfig'. Are this object's requirements defined correctly?")


def installed(monkeypatch: pytest.MonkeyPatch, **releases: str) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: releases.get(name) or version(name))


def test_a_torchvision_of_another_build_is_named_with_the_way_out(monkeypatch, capsys):
    def broken(*args: object, **options: object) -> None:
        raise UNIMPORTABLE

    installed(monkeypatch, torchvision="0.28.0", torch="2.13.0+cpu")
    monkeypatch.setattr(entry, "app", broken)
    monkeypatch.setattr("harness.core.signals.stop_on_signals", lambda: None)
    with pytest.raises(SystemExit) as ended:
        entry.main()
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told.startswith("error: transformers cannot be imported, since torchvision 0.28.0")
    assert told.endswith("pip uninstall torchvision\n")
    assert "pip uninstall torchvision" in str(refusal("model", "tokenizer", UNIMPORTABLE))


def test_where_torchvision_fits_an_import_that_fails_is_something_else(monkeypatch):
    installed(monkeypatch, torchvision="0.28.0+cpu", torch="2.13.0+cpu")
    assert torchvision_trouble(UNIMPORTABLE) is None
    installed(monkeypatch, torchvision="0.28.0", torch="2.13.0+cpu")
    assert torchvision_trouble(ValueError("x")) is None


def test_other_errors_are_no_trouble_of_a_disk():
    assert disk_trouble(OSError(errno.EINVAL, "x")) is None
    assert disk_trouble(ValueError("x")) is None
    assert disk_trouble(OSError("no number")) is None


@pytest.mark.parametrize(
    "message", ["I/O error: No space left on device (os error 28)", "[Errno 28] Error writing bytes to file"]
)
def test_libraries_that_tell_the_number_in_words_are_understood(message: str):
    assert "No space left on device" in (disk_trouble(RuntimeError(message)) or "")


def ended(words: list[str], stdout: int | Path = subprocess.PIPE, before: str = "") -> subprocess.CompletedProcess[str]:
    script = f"import sys\n{before}\nfrom harness.cli import entry\nsys.argv = ['harness', *{words!r}]\nentry.main()"
    with open(stdout, "w") if isinstance(stdout, Path) else open(os.devnull, "w") as file:  # noqa: PTH123
        to = file if isinstance(stdout, Path) else stdout
        return subprocess.run([sys.executable, "-c", script], stdout=to, stderr=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [["list", "methods"], ["list", "methods", "--json"], ["--version"], ["show", "--help"]])
def test_output_that_cannot_be_written_is_told(words: list[str]):
    done = ended(words, Path("/dev/full"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: the output, or a file in ")
    assert "cannot be written: No space left on device." in done.stderr
    assert done.stderr.count("\n") == 1


def test_output_larger_than_files_may_be_is_told_though_no_folder_can_be_written(tmp_path: Path):
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
    done = ended(["list", "methods"], tmp_path / "list", limited)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the output, or a file in ")
    assert "cannot be written: File too large." in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_closed_output_is_told_and_a_closed_error_stream_spoils_nothing():
    done = ended(["list", "methods"], before="sys.stdout = None")
    assert (done.returncode, done.stderr) == (2, "error: the output cannot be written: it is closed. Write it somewhere.\n")
    done = ended(["show", "kfde"], before="sys.stderr = None")
    assert (done.returncode, done.stdout) == (2, ""), "what is wrong is no output"
