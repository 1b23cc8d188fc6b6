"""Plug-ins found by looking at a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.core import registry
from harness.core.benchmark import BENCHMARKS
from harness.core.errors import UsageError
from harness.core.evaluator import EVALUATORS
from harness.core.method import METHODS
from harness.core.registry import ROOT, Registry
from tests.clock import A_HANG

PLUGIN = '''"""{summary}

More about it.
"""
from {package}_api import method


@method("{name}", version=1)
def unlearn(): ...
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty plug-in folder called `plugs`, beside where the harness is taken to lie."""
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    (tmp_path / "plugs").mkdir()
    return tmp_path / "plugs"


def write(folder: Path, file: str, name: str, summary: str = "One line.") -> None:
    (folder / file).write_text(PLUGIN.format(summary=summary, name=name, package="no_such"))


def plugs() -> Registry[object]:
    return Registry("method", "plugs", "method")


def test_a_listing_reads_name_module_and_first_docstring_line_without_importing(folder: Path):
    write(folder, "b.py", "beta", "The second.")
    write(folder, "a.py", "alpha", "The first.")  # both import a module that does not exist
    found = plugs().entries
    assert [(e.name, e.module, e.summary) for e in found.values()] == [
        ("alpha", "plugs.a", "The first."),
        ("beta", "plugs.b", "The second."),
    ]


def test_files_that_begin_with_an_underscore_are_passed_over(folder: Path):
    write(folder, "_helper.py", "helper")
    assert plugs().names() == []


def test_a_folder_with_an_init_file_is_a_plugin_and_its_other_files_are_none(folder: Path):
    for name in ("alpha", "_helpers"):
        (folder / name).mkdir()
        write(folder, f"{name}/__init__.py", name)
        write(folder, f"{name}/rows.py", f"rows_of_{name}")
    assert [(e.name, e.module, e.summary) for e in plugs().entries.values()] == [("alpha", "plugs.alpha", "One line.")]


def test_a_file_without_the_decorator_registers_nothing(folder: Path):
    (folder / "a.py").write_text('"""Text."""\n@other("alpha")\ndef f(): ...\n')
    assert plugs().names() == []


def test_one_class_may_register_several_names(folder: Path):
    (folder / "a.py").write_text('"""Text."""\n@method("one", "two")\nclass Both: ...\n')
    assert plugs().names() == ["one", "two"]


def test_a_name_registered_by_two_files_is_refused_with_both_named(folder: Path):
    write(folder, "a.py", "same")
    write(folder, "b.py", "same")
    with pytest.raises(UsageError, match=r"method 'same' is registered twice: plugs\.a and plugs\.b"):
        plugs().names()


def test_an_unknown_name_is_answered_with_the_nearest_one_and_all(folder: Path):
    write(folder, "a.py", "kfade")
    write(folder, "b.py", "grad_diff")
    with pytest.raises(UsageError) as refused:
        plugs().get("kfad")
    assert str(refused.value) == "no method called 'kfad'. Did you mean 'kfade'? There are: grad_diff, kfade."


def test_a_plugin_that_is_registered_is_given_without_looking_at_files(folder: Path):
    found, thing = plugs(), object()
    found.register("kfade", thing)
    assert found.get("kfade") is thing


@pytest.mark.parametrize("of", [METHODS, BENCHMARKS, EVALUATORS], ids=lambda r: r.kind)
def test_every_plugin_has_a_docstring_and_a_file_of_its_own_folder(of):
    assert of.entries
    for entry in of.entries.values():
        assert entry.summary.endswith((".", ")")), entry.name
        place = ROOT / Path(*entry.module.split("."))
        assert place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def in_a_process(code: str, cwd: Path, path: Path | None = None) -> str:
    """What a fresh interpreter prints, with `path` searched before the harness."""
    lines = f"import sys; sys.path[:0] = {[str(p) for p in (path, ROOT) if p]!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", lines], cwd=cwd, capture_output=True, text=True, timeout=A_HANG)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_listing_and_reading_settings_imports_no_torch_pandas_or_transformers(tmp_path: Path):
    code = """
from harness.core.benchmark import BENCHMARKS
from harness.core.evaluator import EVALUATORS
from harness.core.method import METHODS
assert METHODS.entries and BENCHMARKS.entries and EVALUATORS.entries
from harness.core.config import describe
assert describe(METHODS.get("kfade").config) and describe(METHODS.get("ga").config)
print(sorted({"torch", "pandas", "transformers"} & set(sys.modules)))
"""
    assert in_a_process(code, tmp_path) == "[]\n"


def test_a_package_that_hides_a_plugin_folder_is_named(tmp_path: Path):
    hiding = tmp_path / "site"
    for name in ("evals", "methods"):
        (hiding / name).mkdir(parents=True)
        (hiding / name / "__init__.py").write_text("")
    (hiding / "methods" / "ga.py").write_text("")  # a file of the very name hides it no better
    code = """
from harness.core.errors import UsageError
from harness.core.benchmark import BENCHMARKS
from harness.core.evaluator import EVALUATORS
from harness.core.method import METHODS
for registry, name in ((BENCHMARKS, "tofu10"), (EVALUATORS, "rouge"), (METHODS, "kfade"), (METHODS, "ga")):
    try:
        registry.get(name)
        print("found")
    except UsageError as error:
        print(error)
"""
    lines = in_a_process(code, tmp_path, hiding).splitlines()
    assert len(lines) == 4
    for line, file in zip(
        lines, ("evals/__init__.py", "evals/__init__.py", "methods/__init__.py", "methods/ga.py"), strict=True
    ):
        assert f"is hidden by {hiding.resolve() / file}" in line
        assert f"put {ROOT} first on PYTHONPATH" in line


def test_a_plugin_that_lacks_a_package_says_so_and_not_that_it_is_hidden(tmp_path: Path):
    code = """
import harness.core.registry as r
r.ROOT = r.Path.cwd()
(r.ROOT / "plugs").mkdir()
(r.ROOT / "plugs" / "a.py").write_text('import no_such_package\\n@method("a")\\ndef f(): ...\\n')
sys.path.insert(0, str(r.ROOT))
try:
    r.Registry("method", "plugs", "method").get("a")
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert in_a_process(code, tmp_path) == "no_such_package\n"
