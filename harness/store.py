"""Records of runs: what was asked, what was measured, what it cost, on what.

    results/runs/<bench>/<model>/<method>/<run id>/
        run.json              RunResult without its points; written first, rewritten at the end
        points.jsonl          one Point a line, appended and flushed as it is measured
        per_example.parquet   the row-by-row tables of all points, or of the last one (--rows last)
        generations.jsonl     the texts of the same points
    results/questions/<bench>-<digest>.jsonl   what all runs on that data were asked, with the true answers

A record holds no path of the machine it was made on. A run that is killed leaves status "interrupted" and its points;
run again, it goes on. One process writes a record at a time (a file lock). Where a finished run is done anew, the new record
grows out of sight (`.locks/<run id>.new`) and takes the earlier one's place when it is done.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from filelock import FileLock, Timeout
from pydantic import ConfigDict, StringConstraints, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from harness.cache import canonical, digest, disk_errors, flush
from harness.config import JSON
from harness.costs import Phase
from harness.documents import json_lines, parse_json, place, read_json
from harness.errors import UsageError
from harness.interfaces import Absent, GenerationRequest, Measurement, Points, Retain, Row, Variant

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

SCHEMA_VERSION = 5
"""1: the first; 2: `RunResult.trial`; 3 to 5: `RunSpec.form`, `.basis`, `.retain`. Older ones are read as they are."""
PART = ".part"
"""How the name of a file ends that is being written."""
LATER_SETTINGS: Mapping[str, JSON] = {"max_steps": None, "max_length": None, "reduction": "sum"}
"""Settings that methods got when there were records already, each with the value that leaves everything as it was: with it a
run is named as before."""
LATER_FIELDS: Mapping[str, JSON] = {"form": "", "basis": {}, "retain": "all"}
"""The same of a spec's fields."""
Status = Literal["done", "failed", "interrupted"]
_CONFIG = ConfigDict(extra="forbid")
FolderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9@_][A-Za-z0-9@._-]{0,99}$")]
"""What becomes a folder's name; a record that others made must not lead out of the store."""


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
    form: Literal["", "tuned"] = ""
    """`tuned` for a method's tuned form as it is: a run of its own, also where the published form has the same settings."""
    basis: Mapping[str, JSON] = field(default_factory=dict)
    """What else its numbers rest on, by evaluator: the judge, digests of the evaluator's own data; empty for most."""
    retain: Retain = "all"
    """Which of the benchmark's texts guarded what was unlearned."""

    @cached_property
    def run_id(self) -> str:
        """Twelve hexadecimal digits."""
        told = _without(LATER_FIELDS, to_json(self))
        return digest({**told, "config": _without(LATER_SETTINGS, told["config"])})[:12]

    @cached_property
    def comparable(self) -> str:
        """Eight digits that are equal for runs on one benchmark, model, data and definitions, whatever unlearned and how."""
        same = ("bench", "bench_version", "model", "sources", "variant", "template", "data", "references", "limit")
        told = _without(LATER_FIELDS, to_json(self))
        return digest({name: told[name] for name in (*same, "basis", "retain") if name in told})[:8]

    @property
    def questions_file(self) -> Path:
        """Where what it was asked lies in a store's `questions` folder; runs on the same data share it."""
        told = to_json(self)
        return Path(f"{self.bench}-{digest([told[name] for name in ('data', 'template', 'variant', 'limit')])[:8]}.jsonl")

    @property
    def folder(self) -> Path:
        """Where the record lies in a store's `runs` folder."""
        slug = re.sub(r"[^A-Za-z0-9@._-]+", "-", self.model).strip("-.") or "model"
        return Path(self.bench, f"{slug}-{digest(self.sources.get('base'))[:8]}", self.method, self.run_id)


def _without(later: Mapping[str, JSON], told: Mapping[str, Any]) -> dict[str, Any]:
    """What was told, as it was before there were the later parts: those that leave everything as it was are left out."""
    return {name: value for name, value in told.items() if name not in later or value != later[name]}


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


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Trial:
    """A run's place in a search for settings, where every method gets the same number of tries."""

    index: int
    """0 for the first try of its method, benchmark and seed."""
    tries: int
    """How many there are."""
    search: Literal["grid", "random"]
    """How they were drawn from the grid."""
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
    arms: Mapping[str, Sequence[Measurement | Absent]] = field(default_factory=dict)
    """The same measurements of the untouched model and of the retrained one."""
    costs: Mapping[str, Phase] = field(default_factory=dict)
    """Each phase's seconds, peak memory and tokens."""
    provenance: Provenance | None = None
    """On what it was made; None until the model was loaded."""
    points: Sequence[Point] = ()
    """In the order they were measured; stored in points.jsonl."""


def to_json(value: Any) -> Any:
    """A record as plain JSON data."""
    return TypeAdapter(type(value)).dump_python(value, mode="json")


def read_spec(told: Any) -> RunSpec:
    """A spec out of plain JSON data.

    Raises:
        ValueError: if something is missing, unknown or of the wrong type.
    """
    return TypeAdapter(RunSpec).validate_python(told)


def changes(one: RunSpec, other: RunSpec) -> list[str]:
    """The fields in which two specs differ, by name."""
    first, second = to_json(one), to_json(other)
    return [name for name in first if first[name] != second[name]]


class Record:
    """One run's folder, open for writing under its lock; see `Store.open`."""

    def __init__(self, folder: Path, result: RunResult) -> None:
        self.folder = folder
        self.result = result
        self.points: list[Point] = list(result.points)

    def add(self, point: Point, tables: Mapping[str, pd.DataFrame], texts: Mapping[GenerationRequest, str]) -> None:
        """Store a point. Rows and texts go first: a point that is listed has all that belongs to it.

        Raises:
            UsageError: if the disk is full.
        """
        with disk_errors("the results folder", "Free some space or choose another with --results"):
            self._keep_rows(point.index, tables)
            with (self.folder / "generations.jsonl").open("a", encoding="utf-8") as file:
                for request, text in texts.items():
                    line = {"point": point.index, "turns": list(request.turns), "text": text}
                    if request.sampling.temperature > 0:
                        line |= {"seed": request.sampling.seed}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
            with (self.folder / "points.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(to_json(point), ensure_ascii=False, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self.points.append(point)

    def keep_points(self, count: int) -> None:
        """Keep the first points only, and cut off what a killed process had written of one that is not listed.

        Raises:
            UsageError: if the disk is full.
        """
        dropped = self.points[count:]
        del self.points[count:]
        with disk_errors("the results folder", "Free some space or choose another with --results"):
            for name in ("points.jsonl", "generations.jsonl"):
                self._cut_lines(name, range(count))
            if dropped:
                self._cut_rows(range(count))

    def keep_last_rows(self) -> None:
        """Let go of the rows and texts of all points but the last one: they are most of a record's size.

        Raises:
            UsageError: if the disk is full.
        """
        last = range(len(self.points))[-1:]
        with disk_errors("the results folder", "Free some space or choose another with --results"):
            self._cut_rows(last)
            self._cut_lines("generations.jsonl", last)

    @property
    def written(self) -> bool:
        """Whether the run got far enough to have a record."""
        return (self.folder / "run.json").exists()

    def discard(self) -> None:
        """Take back the record of a run that never came to a point."""
        (self.folder / "run.json").unlink(missing_ok=True)

    def write(self, result: RunResult) -> None:
        """Write run.json, whole or not at all."""
        self.result = result
        told = to_json(result)
        del told["points"]
        text = json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        with disk_errors("the results folder", "Free some space or choose another with --results"):
            _replace(self.folder / "run.json", text.encode())

    def _keep_rows(self, index: int, tables: Mapping[str, pd.DataFrame]) -> None:
        import pandas as pd

        merged: pd.DataFrame | None = None
        for table in (table for table in tables.values() if len(table)):
            keys = ["task", "row", "cluster"]
            if merged is not None and set(table) & set(merged) > set(keys):  # two tables fill a column for different tasks
                merged = merged.set_index(keys).combine_first(table.set_index(keys)).reset_index()
            else:
                merged = table if merged is None else merged.merge(table, on=keys, how="outer", sort=False)
        if merged is None:
            return
        merged = merged.assign(point=index)
        path = self.folder / "per_example.parquet"
        if path.exists():
            earlier = pd.read_parquet(path)
            # Rows of this point or later ones are left from a process that was killed before it listed them.
            merged = pd.concat([earlier[earlier["point"] < index], merged], ignore_index=True)
        self._write_rows(merged)

    def _cut_rows(self, points: range) -> None:
        import pandas as pd

        path = self.folder / "per_example.parquet"
        if path.is_file():
            table = pd.read_parquet(path)
            self._write_rows(table[table["point"].isin(points)])

    def _cut_lines(self, name: str, points: range) -> None:
        path = self.folder / name
        if path.is_file():
            lines = lines_of(path)
            kept = [*(line for line in lines if _point_of(line) in points), ""]
            if kept != lines:  # a record that is whole is not touched by being opened
                _replace(path, "\n".join(kept).encode())

    def _write_rows(self, table: pd.DataFrame) -> None:
        with _whole(self.folder / "per_example.parquet") as part:
            table.to_parquet(part, compression="zstd", index=False)


class Store:
    """A results folder.

    Args:
        root: the folder that holds `runs/`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def runs_folder(self) -> Path:
        """Where records lie."""
        return self.root / "runs"

    def find(self, spec: RunSpec) -> RunResult | None:
        """The record of a spec, if there is one."""
        folder = self.runs_folder / spec.folder
        return read_run(folder) if (folder / "run.json").is_file() else None

    def rows(self, spec: RunSpec, point: int) -> pd.DataFrame | None:
        """The row-by-row tables of a run's point, merged; None where none are stored, of that point perhaps."""
        path = self.runs_folder / spec.folder / "per_example.parquet"
        if not path.is_file():
            return None
        import pandas as pd

        table = pd.read_parquet(path)
        found = table[table["point"] == point]
        return found if len(found) else None

    def status(self, spec: RunSpec) -> str | None:
        """How a run stands, from its run.json alone; None where there is none that can be read."""
        return _status(self.runs_folder / spec.folder)

    def runs(self) -> Iterator[RunResult]:
        """Every record, sorted by its folder; one that cannot be read is skipped (`harness list runs` names it)."""
        for file in sorted(self.runs_folder.glob("*/*/*/*/run.json")):
            with suppress(UsageError):
                yield read_run(file.parent)

    def frame(self) -> pd.DataFrame:
        """Everything that was measured: one row per (run, point, metric), and per (run, arm, metric) of the reference arms.

        Returns:
            Columns: what names the run (`run`, `bench`, `model`, `source`, `method`, `method_version`, `seed`, `variant`,
            `retain`, `limit`, `selection`, `status`, `folder`; `config`: its settings as JSON; `comparable`: equal for runs
            whose numbers of one metric version may be compared), the place on the way (`arm`: `method`, `untouched` or
            `retrained`; `index`, `step`, `seconds`, NaN for the arms; `logged`: the method's own numbers as JSON), and every
            field of a `Measurement` (intervals as `low` and `high`, references as `across_low` and `across_high`; `absent`
            holds the reason where there is no number). Sorted by folder, arm, index and metric.
        """
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for result in self.runs():
            spec = result.spec
            run = {
                "run": spec.run_id,
                "bench": spec.bench,
                "model": spec.model,
                "source": digest(spec.sources.get("base"))[:8],
                "method": spec.method,
                "method_version": spec.method_version,
                "seed": spec.seed,
                "variant": spec.variant,
                "retain": spec.retain,
                "limit": spec.limit,
                "selection": result.selection,
                "status": result.status,
                "folder": spec.folder.as_posix(),
                "config": canonical(spec.config),
                "comparable": spec.comparable,
            }
            places: list[tuple[Any, ...]] = [
                ("method", p.index, p.step, p.unlearn_seconds, canonical(p.logged), p.measurements) for p in result.points
            ]
            places += [(arm, None, None, None, None, found) for arm, found in result.arms.items()]
            for arm, index, step, seconds, logged, found in places:
                place = {**run, "arm": arm, "index": index, "step": step, "seconds": seconds, "logged": logged}
                rows += [{**place, **_flat(item)} for item in found]
        table = pd.DataFrame(rows)
        return table.sort_values(["folder", "arm", "index", "metric"], ignore_index=True) if len(table) else table

    def texts(self, folder: str, point: int) -> dict[tuple[str, ...], str]:
        """The answers of one point: the user's turns → the text; empty where none are recorded.

        Args:
            folder: the run's, as in the frame.
            point: the point's index.
        """
        path = self.runs_folder / folder / "generations.jsonl"
        if not path.is_file():
            return {}
        lines = (parse_json(line, place(path)) for line in lines_of(path) if _point_of(line) == point)
        return {tuple(line["turns"]): line["text"] for line in lines}

    def keep_questions(self, spec: RunSpec, rows: Mapping[str, Sequence[tuple[str, Row]]]) -> None:
        """Write down once what the runs on this data are asked, so that a reader can put answers beside the truth.

        Args:
            spec: of one of the runs.
            rows: task → (the question as it is put to the model, the row of the data set).
        """
        path = self.root / "questions" / spec.questions_file
        if path.is_file():
            return
        asked = [
            {"task": task, "row": row["row"], "cluster": row["cluster"], "turns": [prompt]}
            | {key: row[key] for key in ("question", "answer") if key in row}
            for task, of in rows.items()
            for prompt, row in of
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in asked)
        with disk_errors("the results folder", "Free some space or choose another with --results"):
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, text.encode())

    def questions(self, spec: RunSpec) -> list[dict[str, Any]]:
        """What the runs on this data were asked, in order: `task`, `row`, `cluster`, `turns`, `question`, `answer`."""
        path = self.root / "questions" / spec.questions_file
        return [line for _, line in json_lines(path)] if path.is_file() else []

    def by_id(self, run_id: str) -> tuple[Path, RunResult]:
        """The folder and record of the run whose id begins so.

        Raises:
            UsageError: if no run, or more than one, begins so.
        """
        found = sorted(f.parent for f in self.runs_folder.glob(f"*/*/*/{run_id}*/run.json")) if run_id.isalnum() else []
        if len(found) != 1:
            what = "no run" if not found else f"{len(found)} runs"
            raise UsageError(f"{what} in {self.runs_folder} begin with '{run_id}'. See harness list runs.")
        return found[0], read_run(found[0])

    @contextmanager
    def open(self, spec: RunSpec, force: bool = False) -> Iterator[Record]:
        """The record of a spec, locked for this process; what an interrupted run left is in it.

        Args:
            spec: whose.
            force: start afresh, or go on with what was begun afresh and broken off. A finished record stays where it is until
                the new one is done.

        Raises:
            UsageError: if the folder cannot be written, or the disk is full.
        """
        folder = self.runs_folder / spec.folder
        locks = self.runs_folder / ".locks"
        with disk_errors(f"the results folder {self.root}", "Choose another with --results"):
            locks.mkdir(parents=True, exist_ok=True)
            lock = FileLock(locks / f"{spec.run_id}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.warning("another process is doing this very run; waiting for it")
                lock.acquire()
        new, earlier = locks / f"{spec.run_id}.new", locks / f"{spec.run_id}.earlier"
        seen = folder
        try:
            begun = (new / "run.json").exists()
            _settle(folder, new, earlier)  # what a killed process left
            taken_over = begun and not new.exists()
            with disk_errors(f"the results folder {self.root}", "Choose another with --results"):
                if force and (folder / "run.json").exists() and not taken_over:
                    folder = new
                folder.mkdir(parents=True, exist_ok=True)
            empty = RunResult(schema_version=SCHEMA_VERSION, spec=spec, status="interrupted")
            record = Record(folder, read_run(folder) if (folder / "run.json").is_file() else empty)
            for part in folder.glob(f"*{PART}"):
                part.unlink()  # what a killed process was writing
            record.keep_points(len(record.points))
            yield record
        finally:
            _settle(seen, new, earlier)
            lock.release()


def _flat(item: Measurement | Absent) -> dict[str, Any]:
    """A measurement as one row's columns."""
    if isinstance(item, Absent):
        return {"metric": item.metric, "absent": item.reason}
    told = {
        name: getattr(item, name)
        for name in ("metric", "version", "value", "unit", "better", "n", "reference", "floor", "note")
    }
    for name, pair in (("", item.interval_95), ("across_", item.across_references)):
        told[f"{name}low"], told[f"{name}high"] = pair or (None, None)
    return {**told, "interval_method": item.interval_method, "resampled": item.resampled, "absent": None}


def _settle(folder: Path, new: Path, earlier: Path) -> None:
    """Leave one record of a run in sight: the new one once it is done, or where the one in sight is not done either.

    Args:
        folder: where a record is seen.
        new: where one is made while there is one to be seen.
        earlier: where the one that was seen lies for a moment, while they change places.
    """
    if earlier.is_dir() and not (folder / "run.json").exists():
        shutil.rmtree(folder, ignore_errors=True)  # a process was killed at that moment
        earlier.rename(folder)
    shutil.rmtree(earlier, ignore_errors=True)
    for record in (folder, new):
        if not (record / "run.json").exists():
            shutil.rmtree(record, ignore_errors=True)
    if new.exists() and (_status(new) == "done" or _status(folder) != "done"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            folder.rename(earlier)
        new.rename(folder)
    shutil.rmtree(earlier, ignore_errors=True)


def _status(folder: Path) -> str | None:
    """How a run stands, from its run.json alone; None where there is none that can be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(read_json(folder / "run.json")["status"])
    return None


def read_run(folder: Path) -> RunResult:
    """A record from its folder.

    Raises:
        UsageError: if run.json is broken or of a newer schema.
    """
    path = folder / "run.json"
    name = "/".join(path.parts[-5:])
    try:
        told = read_json(path)
        if told["schema_version"] > SCHEMA_VERSION:
            raise UsageError(f"{name}: {_newer(told)}.")
        return TypeAdapter(RunResult).validate_python({**told, "points": _read_points(folder)})
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise UsageError(
            f"the record {name} cannot be read ({type(error).__name__}); harness validate says why and, with --set-aside, "
            "moves it away; or run with --force."
        ) from error


def newer_schema(folder: Path) -> str | None:
    """What is needed to read a record that a newer version wrote; None where it is none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        told = read_json(folder / "run.json")
        return _newer(told) if told["schema_version"] > SCHEMA_VERSION else None
    return None


def _newer(told: Mapping[str, Any]) -> str:
    version = (told.get("provenance") or {}).get("harness_version")
    return (
        f"written by a newer version of unlearning-harness (schema {told['schema_version']}, this one reads up to "
        f"{SCHEMA_VERSION}); to read it, update to {f'version {version} or later' if version else 'a later version'}"
    )


def _read_points(folder: Path) -> list[Any]:
    path = folder / "points.jsonl"
    points: list[Any] = []
    if path.is_file():
        for line in lines_of(path):
            try:
                point = parse_json(line, place(path))
            except ValueError:
                break  # a line that a killed process had not finished
            if point.get("index") != len(points):
                break
            points.append(point)
    return points


def lines_of(path: Path) -> list[str]:
    """The lines of a file and what follows the last one: nothing, or what a killed process had begun.

    It may have been killed in the middle of a character.
    """
    return path.read_bytes().decode(errors="replace").split("\n")


def _point_of(line: str) -> int:
    try:
        told = parse_json(line, "a line")
        return int(told.get("point", told.get("index", -1)))
    except ValueError:
        return -1


def _replace(path: Path, content: bytes) -> None:
    with _whole(path) as part:
        part.write_bytes(content)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` once all of it is on the disk; half a file is not left behind."""
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")  # two runs may write down at once what they are asked
    try:
        yield part
        flush(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    flush(path.parent)
