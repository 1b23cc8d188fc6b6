"""Plug-ins from anywhere: found by name without being imported, refused where they clash, named where they are broken."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from harness.core.errors import UsageError
from harness.core.method import METHODS
from harness.core.plugins import VARIABLE, add_plugins
from harness.core.registry import ROOT

METHOD = '''"""A method of somebody else's."""

from collections.abc import Iterator

from harness.core.config import settings
from harness.core.method import Progress, Setting, method


@settings
class Config:
    steps: int = 1
    """How many."""


@method("{name}", config=Config, source="nobody")
def unlearn(setting: Setting, config: Config) -> Iterator[Progress]:
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
    assert "broken.py cannot be read and is left out" in caplog.text


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
