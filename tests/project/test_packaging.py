"""What is installed: every folder, every plug-in, and everything they import."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from importlib.resources import files

import pytest

import harness
from harness.core.benchmark import BENCHMARKS
from harness.core.evaluator import EVALUATORS
from harness.core.figure import FIGURES
from harness.core.method import METHODS
from harness.core.registry import ROOT
from harness.running.doctor import TESTED
from tests.test_architecture import FILES, imported, tops

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WHEEL = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
NOT_INSTALLED = {"tests", "results"}


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def requirement(text: str) -> str:
    """The bare name in `name[extra]>=1,<2 ; marker`."""
    return normal(re.match(r"[A-Za-z0-9._-]+", text)[0])  # type: ignore[index]


DEPENDENCIES = {requirement(text): text for text in PROJECT["project"]["dependencies"]}
EXTRAS = {requirement(t): t for of in PROJECT["project"]["optional-dependencies"].values() for t in of}
APART = {"vllm"}
"""Pins torch and caps transformers, so that it lives in an environment of its own (docs/how-to/gpu.md) and is no extra of this one."""


def test_the_wheel_holds_exactly_the_packages_of_the_checkout():
    there = {file.parent.name for file in ROOT.glob("*/__init__.py")} - NOT_INSTALLED
    assert set(WHEEL["packages"]) == there
    assert there == {"harness", "methods", "evals", "plots"}


def test_the_source_distribution_holds_every_package():
    held = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {f"/{name}" for name in WHEEL["packages"]} <= set(held)


def test_every_folder_with_code_is_a_package():
    for file in FILES:
        for folder in file.relative_to(ROOT).parents:
            if folder.name:
                assert (ROOT / folder / "__init__.py").is_file(), folder


def test_what_code_reads_beside_itself_is_in_the_wheel():
    """A package's folder is taken whole, unless something is excluded or ignored by git."""
    found = [
        f for name in WHEEL["packages"] for f in (ROOT / name).rglob("*") if f.is_file() and f.suffix not in (".py", ".pyc")
    ]
    assert ROOT / "harness" / "templates" / "leaderboard.html.j2" in found
    assert {file.relative_to(ROOT).as_posix() for file in found} >= {
        f"methods/presets/{name}.toml" for name in ("any", "tofu", "wmdp")
    }
    assert {"only-include", "include", "exclude", "artifacts"}.isdisjoint(WHEEL)
    assert (files("harness") / "templates" / "leaderboard.html.j2").is_file()
    typed = {ROOT / name / "py.typed" for name in WHEEL["packages"]}
    assert set(found) >= typed, "a plug-in's author is checked against our types"
    assert all((files(name) / "py.typed").is_file() for name in WHEEL["packages"])
    ignored = [line for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split("\n") if line]
    for file in found:
        assert not [pattern for pattern in ignored if file.match(pattern.rstrip("/"))], file


@pytest.mark.parametrize("registry", [METHODS, BENCHMARKS, EVALUATORS, FIGURES], ids=lambda r: r.kind)
def test_every_plugin_is_in_the_wheel(registry):
    assert registry.entries
    for entry in registry.entries.values():
        assert entry.module.partition(".")[0] in WHEEL["packages"]
    assert not set(WHEEL.get("exclude", ()))


def test_no_decorated_file_lies_where_nobody_looks():
    folders = {registry.folder for registry in (METHODS, BENCHMARKS, EVALUATORS, FIGURES)}
    found = [
        file
        for file in FILES
        if re.search(r'^@(method|benchmark|evaluator|figure)\(\s*"', file.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(found) >= 8
    for file in found:
        plugin = file.parent if file.name == "__init__.py" else file  # a plug-in may be a folder
        assert plugin.parent in folders, file
        assert not plugin.name.startswith("_"), f"{plugin} is passed over, since its name begins with _"


def test_the_version_is_read_from_the_package():
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "harness/__init__.py"
    assert "version" in PROJECT["project"]["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", harness.__version__)


def test_the_command_leads_to_the_entry_point():
    from harness.cli.entry import main

    assert PROJECT["project"]["scripts"] == {"harness": "harness.cli.entry:main"}
    assert callable(main)


def test_everything_that_is_imported_is_declared():
    ours = {*WHEEL["packages"], "tests"}
    wanted = {top for file in FILES for top in tops(imported(file))} - ours - set(sys.stdlib_module_names)
    distributions = packages_distributions()
    for module in sorted(wanted):
        names = {normal(d) for d in distributions.get(module, [module])}
        assert names & (set(DEPENDENCIES) | set(EXTRAS) | APART), (
            f"'{module}' ({', '.join(names)}) is imported but not declared"
        )


def test_nothing_is_declared_that_is_not_imported():
    wanted = {top for file in FILES for top in tops(imported(file))}
    distributions = packages_distributions()
    used = {normal(d) for module in wanted for d in distributions.get(module, ())}
    # pandas reads and writes parquet through pyarrow, transformers spreads a model through accelerate, without our naming them.
    assert set(DEPENDENCIES) - used <= {"pyarrow", "accelerate"}


@pytest.mark.parametrize("name", sorted(TESTED))
def test_the_doctor_knows_the_bounds_that_are_declared(name: str):
    text = DEPENDENCIES[normal(name)]
    lowest = re.search(r">=([\d.]+)", text)
    assert lowest is not None
    assert lowest[1] == TESTED[name][0]


@pytest.mark.parametrize("name", ["torch", "transformers", "curvlinops-for-pytorch"])
def test_what_numbers_rest_on_has_an_upper_bound(name: str):
    assert re.search(r"<\d", {**EXTRAS, **DEPENDENCIES}[name])


def test_the_plain_installation_pulls_in_no_torchvision():
    """curvlinops does, through backpack: beside a torch of another build `from transformers import …` would fail."""
    assert "curvlinops-for-pytorch" not in DEPENDENCIES
    assert EXTRAS["curvlinops-for-pytorch"] in PROJECT["dependency-groups"]["dev"], "the tests compare with it"


def test_the_readme_and_the_licence_that_the_package_names_are_there():
    assert (ROOT / PROJECT["project"]["readme"]).is_file()
    for name in PROJECT["project"]["license-files"]:
        assert (ROOT / name).read_text(encoding="utf-8").strip()
