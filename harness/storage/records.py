"""What a record says: what was asked of a run, what was measured at each point, what it cost, on what it was made.

A record holds no path of the machine it was made on. Records load for ever: what came later has a value that leaves everything
as it was, and a run keeps its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter
from pydantic.dataclasses import dataclass

from harness.core.config import JSON, to_json
from harness.core.costs import Phase
from harness.core.measurement import Absent, Measurement
from harness.core.options import Points, Preset, Retain, Variant
from harness.storage.cache import digest

SCHEMA_VERSION = 11
"""1: the first; 2: `RunResult.trial`; 3 to 5: `RunSpec.form`, `.basis`, `.retain`; 6: `Point.rows`, `.texts` and
`Provenance.arithmetic`; 7: `Provenance.plugins`; 8: `RunSpec.budgets`, `.budget_rows`, `.general`, `RunResult.unreached`;
9: `RunSpec.adapter`; 10: `RunSpec.optimizer`; 11: `Provenance.processes`. Older ones are read as they are."""
LATER_SETTINGS: Mapping[str, JSON] = {
    **{"max_steps": None, "max_length": None, "reduction": "sum", "retain_loss": "nll"},
    "importance": "fila",
}
"""Settings that methods got when there were records already, each with the value that leaves everything as it was: with it a
run is named as before."""
LATER_FIELDS: Mapping[str, JSON] = {
    **{"form": "", "basis": {}, "retain": "all", "budgets": [], "budget_rows": "", "general": ""},
    **{"adapter": "", "optimizer": ""},
}
"""The same of a spec's fields."""
BUDGET, DAMAGE = "budget", "damage"
"""What a point of a run with budgets says of where it stands, among what is logged; `damage_retain`, … stand beside it."""
Status = Literal["done", "failed", "interrupted"]
_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True)
FolderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9@_][A-Za-z0-9@._-]{0,99}$")]
"""What becomes a folder's name; a record that others made must not lead out of the store."""


def _stored_as(name: str) -> Any:
    """A mapping, empty unless given, that records know by an older name: no run's name moves, and old records are read."""
    return Field(default_factory=dict, validation_alias=name, serialization_alias=name)


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class RunSpec:
    """All that decides a run's outcome; the digest of its JSON is the run's name."""

    bench: FolderName
    """The benchmark."""
    bench_version: int
    """Its version."""
    model: str
    """The model as asked for, a folder's path cut to its name."""
    sources: Mapping[str, JSON]
    """Identity of every source the run can use: the model before unlearning, the retrained ones."""
    method: FolderName
    """The method."""
    method_version: int
    """Its version."""
    config: Mapping[str, JSON]
    """Every setting of the method, defaults and presets resolved."""
    evaluators: Mapping[str, int]
    """What is measured, with the versions of the definitions."""
    variant: Variant
    """Whose metric definitions."""
    template: Mapping[str, JSON]
    """How questions become text."""
    data: Mapping[str, JSON]
    """Each data set's digest."""
    references: Mapping[str, JSON]
    """References known from logs: name → digest of the log. Retrained models are among the sources."""
    seed: int
    """The unlearning seed."""
    limit: int | None
    """Rows per split, if limited."""
    dtype: str
    """Of the weights."""
    device: str
    """The kind: `cpu`, `cuda`, `mps`."""
    generator: str
    """The back end that wrote the answers."""
    points: Points = "all"
    """Whether every point of the way was measured or the last one only."""
    form: Literal["", Preset] = ""
    """`tuned` or `tuned2` for a tuned form as it is: a run of its own, also where the published form has the same settings."""
    evaluator_inputs: Mapping[str, JSON] = _stored_as("basis")
    """What else its numbers rest on, by evaluator: the judge, digests of the evaluator's own data; empty for most."""
    retain: Retain = "all"
    """Which of the benchmark's texts guarded what was unlearned."""
    budgets: tuple[float, ...] = ()
    """Damages at which points were measured, in nats per token; empty where the method said where."""
    budget_rows: str = ""
    """Digest of the rows held out for them, and of how damage is measured."""
    general: str = ""
    """Digest of the general text that the method read, if it read any."""
    adapter: str = ""
    """The low-rank adapters that were trained in place of the weights, all of their settings; empty where the weights were."""
    optimizer: str = ""
    """How AdamW was kept, all of it; empty for float32 moments and masters and a clipped gradient, and where none trained."""

    @cached_property
    def run_id(self) -> str:
        """Twelve hexadecimal digits."""
        fields = without_later(LATER_FIELDS, to_json(self))
        return digest({**fields, "config": without_later(LATER_SETTINGS, fields["config"])})[:12]

    @property
    def settings(self) -> Mapping[str, JSON]:
        """What tells it from other runs of its method on the same data: every setting, and `trained` where it has such."""
        return {**self.config, **self.trained}

    @property
    def trained(self) -> dict[str, JSON]:
        """How it was trained otherwise than published: its adapter and its optimizer, where it has one."""
        return {name: value for name, value in (("adapter", self.adapter), ("optimizer", self.optimizer)) if value}

    @property
    def questions_file(self) -> Path:
        """Where what it was asked lies in a store's `questions` folder; runs on the same data share it."""
        fields = to_json(self)
        return Path(f"{self.bench}-{digest([fields[name] for name in ('data', 'template', 'variant', 'limit')])[:8]}.jsonl")

    @property
    def folder(self) -> Path:
        """Where the record lies in a store's `runs` folder."""
        slug = re.sub(r"[^A-Za-z0-9@._-]+", "-", self.model).strip("-.") or "model"
        return Path(self.bench, f"{slug}-{digest(self.sources.get('base'))[:8]}", self.method, self.run_id)


def without_later(later: Mapping[str, JSON], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as they were before there were the later ones: those that leave everything as it was are left out."""
    return {name: value for name, value in fields.items() if name not in later or value != later[name]}


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Point:
    """One measured point of the trade-off curve."""

    index: int
    """0 for the first."""
    step: int
    """Steps the method had taken."""
    logged: Mapping[str, float | None]
    """The method's own numbers; None where one was not finite."""
    measurements: Sequence[Measurement | Absent]
    """What was measured."""
    weights: str
    """Fingerprint of the weights that were measured."""
    unlearn_seconds: float
    """What the method had taken so far, with nothing cached."""
    rows: int | None = None
    """How many rows belong to it in per_example.parquet; None in records of schema 5 and before."""
    texts: int | None = None
    """How many texts belong to it in generations.jsonl; likewise."""

    @property
    def budget(self) -> float | None:
        """The budget of damage that it stands at, in nats per token; None of a run without budgets, or at its own damage."""
        return self.logged.get(BUDGET)

    @property
    def damage(self) -> float | None:
        """What was measured on budget rows, in nats per token; None of a run without budgets."""
        return self.logged.get(DAMAGE)


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Provenance:
    """On what, and with what, a run was made."""

    harness_version: str
    """This package's version."""
    code: str | None
    """The git commit of the checkout, if it is one."""
    dirty: bool | None
    """Whether tracked files differed from it (lock files left out)."""
    packages: Mapping[str, str]
    """Versions of what the numbers rest on."""
    python: str
    """Its version."""
    platform: str
    """Operating system and machine type."""
    processor: str
    """The CPU's name and how many cores this process may use."""
    memory_bytes: int
    """Of the machine."""
    gpu: str | None
    """The GPU's name, if it was used."""
    threads: int
    """Threads of the numerics."""
    tokenizer: str
    """Fingerprint of the tokenizer."""
    weights: str
    """Fingerprint of the weights before unlearning."""
    command: str
    """What to type to run it again."""
    processor_model: str = ""
    """The CPU's family, model and stepping; empty in records that were made before this was kept."""
    arithmetic: Mapping[str, str] = field(default_factory=dict)
    """What else decides how it rounds; see `harness.core.arithmetic.kind_of_machine`."""
    plugins: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """The code of plug-ins from outside the checkout: kind and name (`method noise`) → SHA-256 of its files, by name."""
    processes: int = 1
    """How many shared its work, each with hardware like this; numbers differ by rounding alone, so it is no part of a spec."""


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Trial:
    """A run's place in a search for settings, where every method gets the same number of tries."""

    index: int
    """0 for the first try of its method, benchmark and seed."""
    tries: int
    """How many there are."""
    search: Literal["grid", "random", "even"]
    """How they were drawn from the grid; `even`: at places that fill it evenly, the same for every method."""
    metric: str
    """What settings are chosen by; empty if that is left to the reader."""
    split: str
    """On what the metric is measured: which rows, of which benchmark, with which model and seed."""


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class RunResult:
    """A run, finished or not. Failed and interrupted runs are kept too, with the reason."""

    schema_version: int
    """Of this record."""
    spec: RunSpec
    """What was asked."""
    status: Status
    """`interrupted` also while it is running."""
    error: str = ""
    """Why it failed; frames named relative to the package."""
    selection: str = ""
    """On what its settings were chosen."""
    trial: Trial | None = None
    """Its place in a search for settings, if it was part of one."""
    notes: Sequence[str] = ()
    """What a reader must know of this benchmark with this model."""
    references: Mapping[str, Sequence[Measurement | Absent]] = _stored_as("arms")
    """The same measurements of the untouched model and of the retrained one."""
    costs: Mapping[str, Phase] = field(default_factory=dict)
    """Each phase's seconds, peak memory and tokens."""
    provenance: Provenance | None = None
    """On what it was made; None until the model was loaded."""
    unreached: Mapping[str, str] = field(default_factory=dict)
    """Budgets of damage without a point, each with the reason."""
    points: Sequence[Point] = ()
    """In the order they were measured; stored in points.jsonl."""


def read_spec(document: Any) -> RunSpec:
    """A spec out of plain JSON data.

    Raises:
        ValueError: if something is missing, unknown or of the wrong type.
    """
    return TypeAdapter(RunSpec).validate_python(document)


def changes(one: RunSpec, other: RunSpec) -> list[str]:
    """The fields in which two specs differ, by name."""
    first, second = to_json(one), to_json(other)
    return [name for name in first if first[name] != second[name]]
