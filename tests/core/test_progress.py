"""A bar on a terminal; in a log file plain lines, and seldom."""

from __future__ import annotations

import subprocess
import sys

import pytest

from harness.core.registry import ROOT

SCRIPT = """
import sys, time
from harness.core import progress
progress.EVERY = 0.2
begun = time.monotonic()
for _ in progress.progress_bar(range(30), desc="unlearning", unit="step"):
    time.sleep(0.03)
print(time.monotonic() - begun)
"""
NESTED = """
import time
from harness.core import progress
progress.EVERY = 0.1
for _ in progress.progress_bar(range(2), desc="unlearning", unit="step"):
    for _ in progress.progress_bar(range(10), desc="generating", unit="answer"):
        time.sleep(0.03)
"""


@pytest.mark.parametrize("quiet", [False, True])
def test_a_log_file_holds_plain_lines_and_few_of_them(quiet: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    if quiet:
        monkeypatch.setenv("TQDM_DISABLE", "1")
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, cwd=ROOT, check=True)
    assert b"\r" not in done.stderr
    lines = done.stderr.decode().splitlines()
    assert all(line.startswith("unlearning: ") and " of 30 (step)" in line for line in lines)
    assert not lines if quiet else 1 <= len(lines) <= float(done.stdout) / 0.1, "one each 0.2 s"


def test_progress_within_progress_leaves_no_traces_of_a_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    done = subprocess.run([sys.executable, "-c", NESTED], capture_output=True, cwd=ROOT, check=True, text=True)
    lines = done.stderr.splitlines()
    assert any(line.startswith("generating: ") for line in lines)
    assert all(line.startswith(("generating: ", "unlearning: ")) for line in lines), lines


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch):
    from harness.core.progress import style

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert style() == {"delay": 2.0, "leave": False}
