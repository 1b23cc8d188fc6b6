"""What numbers must share to be compared: declared once, read by records, tables, listings and figures.

A new dimension of identity is a field of `RunSpec` and a line here; besides these the versions of the metrics must be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from harness.core.config import to_json
from harness.storage.cache import digest
from harness.storage.records import LATER_FIELDS, RunSpec, without_later


class Part(NamedTuple):
    """One thing that runs share when they may be compared."""

    title: str
    """What a reader calls it."""
    fields: Sequence[str]
    """The fields of a spec that it is made of."""
    shown: Callable[[RunSpec], object]
    """The same, short enough for a heading."""


def _retrained(spec: RunSpec) -> str:
    return digest([{name: source for name, source in spec.sources.items() if name.startswith("retain-")}, spec.references])[:8]


NO_ROWS = "none"
"""What stands for the budget rows of a run without budgets."""
IDENTITY: Sequence[Part] = (
    Part("benchmark", ("bench",), lambda spec: spec.bench),
    Part("model", ("model",), lambda spec: spec.model),
    Part("variant", ("variant",), lambda spec: spec.variant),
    Part("retain set", ("retain",), lambda spec: spec.retain),
    Part("benchmark version", ("bench_version",), lambda spec: spec.bench_version),
    Part("weights", ("sources",), lambda spec: digest(spec.sources.get("base"))[:8]),
    Part("rows per split", ("limit",), lambda spec: spec.limit or "all"),
    Part("data", ("data",), lambda spec: digest(spec.data)[:8]),
    Part("retrained models", ("sources", "references"), _retrained),
    Part("template", ("template",), lambda spec: digest(spec.template)[:8]),
    Part("budget rows", ("budget_rows",), lambda spec: spec.budget_rows[:8] or NO_ROWS),
)
"""In the order in which tables are sorted."""
FIELDS = tuple(dict.fromkeys(field for part in IDENTITY for field in part.fields))
"""The fields of a spec that they are made of."""
NAME = ("benchmark", "model", "variant", "retain set")
"""What of it stands in a table's heading."""


def comparable(spec: RunSpec) -> str:
    """Eight digits that are equal for runs on one benchmark, model, data and definitions, whatever unlearned and how."""
    fields = without_later(LATER_FIELDS, to_json(spec))
    return digest({name: fields[name] for name in (*FIELDS, "basis") if name in fields})[:8]
