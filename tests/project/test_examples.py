"""examples/: the programs run as they stand, and the notebook's outputs say what its cells give now.

They find the project's own records in `./harness-results`, so that nothing is trained; once, from nothing, under `-m mini`.
"""

from __future__ import annotations

import ast
import json
import math
import re
import runpy
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from html import unescape
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from harness.core.registry import ROOT
from tests.project.test_end_to_end import shared  # noqa: F401

EXAMPLES = ROOT / "examples"
PROGRAMS = {
    "first_run": (
        "results",
        ["kfade, run 843cb7851021: done", "forget_quality_d        0.675  0.225      0.108", "  retrained  Selwyn"],
    ),
    "compare_methods": (
        "results",
        ["model_utility: kfade minus npo = +0.0", "not to be told from chance", "retain_kl: kfade minus npo = -0."],
    ),
    "sweep": ("results/tuning", ["target_kl = 0.1   selection_score = 0.14  <- best", "selection_score = 4.8e-09\n"]),
    "read_results": ("results", ["kfade                0.233  0.217         0.810  0.785"]),
}
"""Program → the records that it finds, and what it prints."""
NOTEBOOK = json.loads((EXAMPLES / "first_look.ipynb").read_text(encoding="utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
LARGEST = 300 * 2**10
"""Bytes of the notebook."""


def place_records(source: str, folder: Path) -> None:
    (folder / "harness-results" / "runs").mkdir(parents=True)
    shutil.copy(ROOT / source / "runs" / "tofu10.zip", folder / "harness-results" / "runs")
    shutil.copytree(ROOT / "results" / "questions", folder / "harness-results" / "questions")


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """In an empty folder; whatever would run is refused."""

    def refused(*words: object, **options: object) -> None:
        raise AssertionError("it is not taken from the records")

    import matplotlib as mpl

    monkeypatch.setattr("harness.running.sweep.attempt", refused)
    monkeypatch.setattr("harness.running.executors.attempt", refused)
    monkeypatch.setattr("harness.numerics.placement.pick_device", lambda device: "cpu")
    monkeypatch.chdir(tmp_path)
    with mpl.rc_context({"backend": "agg"}):
        yield


def run(program: str) -> str:
    printed = StringIO()
    with redirect_stdout(printed):
        runpy.run_path(str(EXAMPLES / f"{program}.py"), run_name="__main__")
    return printed.getvalue()


def test_every_example_is_run():
    assert {file.stem for file in EXAMPLES.glob("*.py")} == set(PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_example_says_what_the_records_say(program: str, no_training: None, tmp_path: Path):
    records, said = PROGRAMS[program]
    place_records(records, tmp_path)
    printed = run(program)
    for text in said:
        assert text in printed, printed
    left = {path.name for path in tmp_path.iterdir()} - {"cache"}
    assert left == {"harness-results"} | ({"forgetting-and-utility.png"} if program == "read_results" else set())


@pytest.mark.mini
def test_a_first_run_from_nothing(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    monkeypatch.setenv("HARNESS_CACHE", str(shared))
    monkeypatch.chdir(tmp_path)
    printed = run("first_run")
    assert re.search(r"^kfade, run [0-9a-f]{12}: done in ", printed)
    assert printed.count("  after      ") == 3
    assert (tmp_path / "harness-results" / "runs" / "tofu10").is_dir()


# ---------------------------------------------------------------- the notebook


def outputs_now() -> list[Any]:
    """What each cell's last expression gives, the cells run one after the other as plain Python."""
    space: dict[str, Any] = {}
    given = []
    for cell in CELLS:
        source = "".join(cell["source"])
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) and not source.rstrip().endswith(";") else None
        exec(compile(tree, "first_look.ipynb", "exec"), space)
        given.append(eval(compile(ast.Expression(last.value), "first_look.ipynb", "eval"), space) if last else None)
    return given


def words(page: str) -> list[str]:
    """What a reader sees of a page of HTML."""
    return unescape(re.sub(r"<style.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)).split()


def test_the_notebooks_outputs_are_what_its_cells_give(no_training: None, tmp_path: Path):
    place_records("results", tmp_path)
    compared = 0
    for cell, value in zip(CELLS, outputs_now(), strict=True):
        kept = [output["data"]["text/html"] for output in cell["outputs"] if "text/html" in output.get("data", {})]
        assert len(kept) == (value is not None)
        for page in kept:
            then, now = words("".join(page)), words(value._repr_html_())
            assert len(then) == len(now) > 5
            for before, after in zip(then, now, strict=True):
                assert before == after or math.isclose(float(before), float(after), abs_tol=1.5e-3), (before, after)
                compared += 1
    assert compared > 100


def test_the_notebook_was_run_in_order_and_says_nothing_of_a_machine():
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    assert not [output for cell in CELLS for output in cell["outputs"] if output["output_type"] in ("error", "stream")]
    assert any("image/png" in output.get("data", {}) for cell in CELLS for output in cell["outputs"])
    assert set(NOTEBOOK["metadata"]) == {"kernelspec", "language_info"}
    assert set(NOTEBOOK["metadata"]["language_info"]) == {"name"}
    assert all(not cell["metadata"] for cell in NOTEBOOK["cells"])
    assert (EXAMPLES / "first_look.ipynb").stat().st_size < LARGEST
    said = json.dumps([[o["data"].get(kind, "") for kind in ("text/plain", "text/html")] for c in CELLS for o in c["outputs"]])
    assert not re.search(r"/(?:home|root|tmp|usr|work|Users|opt)\b", said)
