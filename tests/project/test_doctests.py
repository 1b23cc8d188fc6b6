"""The examples in the docstrings of the numerics are run."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

from harness.core.registry import ROOT

FILES = [
    file
    for folder in ("harness", "methods", "evals", "plots")
    for file in sorted((ROOT / folder).rglob("*.py"))
    if "    >>> " in file.read_text(encoding="utf-8")
]


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def test_the_numerics_have_examples():
    assert {"methods.curvature.solve", "methods.curvature.signals", "methods.curvature.spectrum"} <= set(map(module_of, FILES))


@pytest.mark.parametrize("module", [module_of(file) for file in FILES])
def test_examples_in_docstrings_hold(module: str):
    result = doctest.testmod(import_module(module))
    assert result.attempted
    assert not result.failed
