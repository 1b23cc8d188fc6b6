"""README and docs/: the commands in them are commands, the links lead somewhere, the numbers are the record's."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import harness
from harness.cli.app import register
from harness.core.benchmark import BENCHMARKS
from harness.core.evaluator import EVALUATORS
from harness.core.figure import FIGURES
from harness.core.method import METHODS
from harness.core.registry import ROOT
from harness.reading.formats import number

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
SHOWN = "843cb7851021"
"""The run whose numbers and answers the README and the tutorial show."""


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def commands(page: Path) -> Iterator[list[str]]:
    """Every `harness …` of a page, in blocks and in lines, without comments and what comes behind an ellipsis."""
    text = text_of(page)
    blocks = re.findall(r"^```(?:shell|bash)?\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").split("\n")]
    lines += re.findall(r"`(harness [^`]+)`", text)
    for line in lines:
        for part in line.partition(" #")[0].split("&&"):
            if part.strip().startswith("harness "):
                yield [word for word in shlex.split(part)[1:] if word != "…"]


ALL = [
    pytest.param(words, id=f"{page.relative_to(ROOT)}: {' '.join(words)}"[:90]) for page in PAGES for words in commands(page)
]


KNOWN = {"--method": METHODS, "-m": METHODS, "--bench": BENCHMARKS, "-b": BENCHMARKS, "--evals": EVALUATORS}
STAND_FOR_OTHERS = {"a", "b", "c", "NAME"}


def test_the_pages_hold_commands():
    assert len(ALL) > 60


@pytest.mark.parametrize("words", ALL)
def test_every_command_is_one(words: list[str]):
    if words[0] == "COMMAND" or any("|" in word for word in words):
        return
    asked = CliRunner().invoke(register(), [*words, "--help"])  # reads all words, then shows what they may be
    assert asked.exit_code == 0, asked.output
    for flag, value in pairwise(words):
        for name in value.split(",") if flag in KNOWN else ():
            plain = name.removeprefix("+") if flag == "--evals" else name
            assert plain in STAND_FOR_OTHERS or plain in KNOWN[flag].names(), f"{name} is no {KNOWN[flag].kind}"
    if words[0] == "plot" and words[1] not in STAND_FOR_OTHERS:
        assert words[1] in FIGURES.names()
    if words[:1] == ["show"] and words[1].islower():
        assert words[1] in (*METHODS.names(), "finetuned")


def test_a_flag_that_is_none_would_be_noticed():
    asked = CliRunner().invoke(register(), ["run", "--method", "kfade", "--banch", "tofu10", "--help"])
    assert asked.exit_code == 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(page: Path):
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL))
    for link in links:
        target, _, _ = link.partition("#")
        if target and not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_in_a_page_uses_public_names(page: Path):
    for block in re.findall(r"^```python\n(.*?)^```", text_of(page), flags=re.DOTALL | re.MULTILINE):
        tree = ast.parse(block)
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "harness"
        }
        assert used <= set(harness.__all__), used


def test_the_readme_is_short_and_its_picture_small():
    assert len(text_of(README).split("\n")) <= 151
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text_of(README))
    assert len(pictures) == 1
    assert (ROOT / pictures[0]).stat().st_size < 100_000


def test_the_readmes_test_command_is_the_gates():
    assert "\npython -m uv run pytest\n" in text_of(README)
    assert "\npython -m uv run pytest\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_installation_begins_with_an_environment_and_the_second_command_needs_no_uv():
    """`pip install` outside an environment fails on Debian, Ubuntu and Homebrew; `uv run` looks at 17,000 files each time."""
    first, second = re.findall(r"```\n(.*?)\n```", text_of(README), flags=re.DOTALL)[:2]
    assert first == "python3 -m venv .venv && . .venv/bin/activate && pip install -e ."
    assert second == "harness run --method kfade --bench tofu10"


@pytest.fixture(scope="module")
def record():
    runs = [run for run in harness.load_runs(ROOT / "results", bench="tofu10", method="kfade") if run.spec.run_id == SHOWN]
    assert len(runs) == 1
    return runs[0]


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "tutorial.md"], ids=lambda page: page.name)
def test_the_numbers_shown_are_the_records(page: Path, record):
    measured = {m.metric: m for m in record.points[-1].measurements}
    rows = re.findall(
        r"^\| (\w+) [↑↓→] \| (\S+)(?: \[(\S+) to (\S+)\])? \| (\S+) \| (\S+) \|", text_of(page), flags=re.MULTILINE
    )
    assert [row[0] for row in rows] == [
        "forget_quality",
        "forget_quality_d",
        "model_utility",
        "retain_kl",
        "forget_probability",
    ]
    references = {name: {m.metric: m.value for m in of} for name, of in record.references.items()}
    for metric, value, low, high, untouched, retrained in rows:
        interval = measured[metric].interval_95
        assert value == number(measured[metric].value)
        assert (low, high) == (tuple(map(number, interval)) if interval else ("", ""))
        assert (untouched, retrained) == tuple(number(references[name][metric]) for name in ("untouched", "retrained"))


def test_the_answers_shown_are_the_records(record):
    rows = re.findall(
        r"^\| ([^|]+\?) \((?:forget|retain)\) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|", text_of(README), flags=re.MULTILINE
    )
    assert len(rows) == 3
    runs = harness.load_runs(ROOT / "results", bench="tofu10")
    answers = {}
    for run in runs:
        if run.spec.run_id == SHOWN or (run.spec.method in ("untouched", "retrained") and run.spec.seed == 0):
            answers.setdefault(run.spec.method, runs.store.texts(run.spec.folder.as_posix(), run.points[-1].index))
    for question, *shown in rows:
        assert shown == [answers[method][(question,)] for method in ("untouched", "kfade", "retrained")]


def test_the_pages_ask_no_other_machine_for_anything():
    built = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert built["theme"]["font"] is False
    assert not {"extra_javascript", "extra_css"} & set(built)


def test_every_page_is_in_the_navigation():
    built = text_of(ROOT / "mkdocs.yml")
    for page in (ROOT / "docs").rglob("*.md"):
        assert str(page.relative_to(ROOT / "docs")) in built


def test_changelog_and_citation_tell_of_the_version_that_there_is():
    newest = re.search(r"^## \[([\d.]+)\] - (\d{4}-\d\d-\d\d)$", text_of(ROOT / "CHANGELOG.md"), flags=re.MULTILINE)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert newest is not None
    assert (newest[1], newest[2]) == (cited["version"], str(cited["date-released"]))
    assert cited["version"] == harness.__version__


def test_changelog_is_in_order():
    found = re.findall(r"^## \[([\d.]+)\]|^### (\w+)$", text_of(ROOT / "CHANGELOG.md"), flags=re.MULTILINE)
    versions = [tuple(map(int, version.split("."))) for version, _ in found if version]
    assert versions == sorted(versions, reverse=True)
    assert {kind for _, kind in found if kind} <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("file", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda file: file.name)
def test_workflows_and_forms_are_yaml(file: Path):
    assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict)
