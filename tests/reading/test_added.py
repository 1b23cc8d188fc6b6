"""A plug-in's metric stands beside a benchmark's headline wherever only that is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from harness.core.plugins import VARIABLE, add_plugins
from harness.reading.added import added
from harness.reading.cells import headline
from harness.reading.compared import read_runs
from harness.reading.comparing import sections
from harness.reading.comparison_table import comparison, in_short
from harness.reading.run_report import first_screen
from harness.reading.sweep_table import sweep_table
from harness.storage.records import RunResult
from tests.core.test_plugins import EVALUATOR
from tests.records import number, numbers, run, write


def printed(what: RenderableType) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunResult:
    monkeypatch.setenv(VARIABLE, "")
    (tmp_path / "theirs.py").write_text(EVALUATOR.format(name="their_number"))
    add_plugins(tmp_path / "theirs.py")
    others = {"retain_rouge": 0.1, "forget_rouge": 0.2, "retain_kl": 0.3, "fluency_repetition": 0.4}
    return run([*numbers(0.1, 0.2, 0.8, **others), number("their_number", 42.0)])


def test_it_is_shown_of_a_run_of_several_and_of_a_sweep(result: RunResult):
    assert "their_number" in printed(first_screen(result))
    assert "answer" in printed(comparison([result]))
    assert "their number 42" in in_short(result)
    assert "42.000" in printed(sweep_table([{}], [result]))
    for shown in (first_screen(result), comparison([result]), sweep_table([{}], [result])):
        assert "repetition" not in printed(shown), "what else was measured beside the headline is there on request"


def test_it_is_shown_on_the_page(result: RunResult, tmp_path: Path):
    write(tmp_path / "results", result)
    (section,) = sections(read_runs(tmp_path / "results", pytest.fail))
    assert "their_number" in headline(section)
    assert "fluency_repetition" not in headline(section)


def test_nothing_is_added_where_no_plugin_measured(result: RunResult, monkeypatch: pytest.MonkeyPatch):
    names = ["forget_quality", "their_number", "fluency_repetition"]
    assert added("tofu10", names) == ["their_number"]
    assert added("no such benchmark", names) == []
    monkeypatch.setenv(VARIABLE, "")
    assert added("tofu10", names) == []
