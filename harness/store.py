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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from filelock import FileLock, Timeout
from pydantic import ConfigDict, StringConstraints, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from harness.cache import canonical, digest, disk_errors, flush
from harness.config import JSON
from harness.costs import Phase
from harness.documents import Malformed, Unreadable, place, read_json
from harness.errors import UsageError
from harness.interfaces import Absent, GenerationRequest, Measurement, Points, Retain, Row, Variant
from harness.record_files import (
    POINTS,
    ROWS,
    RUN,
    TEXTS,
    Question,
    check_kinds,
    fault,
    lines_of,
    point_of,
    read_points,
    read_questions,
    read_rows,
    read_texts,
)

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

SCHEMA_VERSION = 6
"""1: the first; 2: `RunResult.trial`; 3 to 5: `RunSpec.form`, `.basis`, `.retain`; 6: `Point.rows`, `.texts` and
`Provenance.arithmetic`. Older ones are read as they are."""
PART = ".part"
"""How the name of a file ends that is being written."""
LATER_SETTINGS: Mapping[str, JSON] = {"max_steps": None, "max_length": None, "reduction": "sum"}
"""Settings that methods got when there were records already, each with the value that leaves everything as it was: with it a
run is named as before."""
LATER_FIELDS: Mapping[str, JSON] = {"form": "", "basis": {}, "retain": "all"}
"""The same of a spec's fields."""
Status = Literal["done", "failed", "interrupted"]
_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)
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
    rows: int | None = None
    """How many rows belong to it in per_example.parquet; None in records of schema 5 and before."""
    texts: int | None = None
    """How many texts belong to it in generations.jsonl; likewise."""


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
    """What else decides how it rounds; see `harness.arithmetic.kind_of_machine`."""


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


_RESULT = TypeAdapter(RunResult)


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
            point = replace(point, rows=self._keep_rows(point.index, tables), texts=len(texts))
            if texts:
                self._keep_texts(point.index, texts)
            with (self.folder / POINTS).open("a", encoding="utf-8") as file:
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
            for name in (POINTS, TEXTS):
                self._cut_lines(name, range(count))
            if dropped:
                self._cut_rows(range(count))

    def keep_whole_points(self, last_rows: bool = False) -> None:
        """Keep the points up to the first whose rows or texts are not there as they were written: it is measured anew.

        Args:
            last_rows: ask for the last point's rows and texts alone.

        Raises:
            UsageError: if the disk is full, or a file cannot be read.
        """
        rows, texts = self._rows_of_points(), Counter(point_of(line) for line in lines_of(self.folder / TEXTS))
        for point in self.points[-1:] if last_rows else self.points:
            lacking = rows is None or point.rows not in (None, rows[point.index])
            if lacking or point.texts not in (None, texts[point.index]):
                log.warning(
                    "rows or texts of point %d of run %s are gone or damaged; from there on it is measured anew",
                    *(point.index, self.result.spec.run_id),
                )
                self.keep_points(point.index)
                return

    def keep_last_rows(self) -> None:
        """Let go of the rows and texts of all points but the last one: they are most of a record's size.

        Raises:
            UsageError: if the disk is full.
        """
        last = range(len(self.points))[-1:]
        with disk_errors("the results folder", "Free some space or choose another with --results"):
            self._cut_rows(last)
            self._cut_lines(TEXTS, last)

    @property
    def written(self) -> bool:
        """Whether the run got far enough to have a record."""
        return (self.folder / RUN).exists()

    def discard(self) -> None:
        """Take back the record of a run that never came to a point."""
        (self.folder / RUN).unlink(missing_ok=True)

    def write(self, result: RunResult) -> None:
        """Write run.json, whole or not at all."""
        self.result = result
        told = to_json(result)
        del told["points"]
        text = json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        with disk_errors("the results folder", "Free some space or choose another with --results"):
            _replace(self.folder / RUN, text.encode())

    def _keep_texts(self, index: int, texts: Mapping[GenerationRequest, str]) -> None:
        with (self.folder / TEXTS).open("a", encoding="utf-8") as file:
            for request, text in texts.items():
                line = {"point": index, "turns": list(request.turns), "text": text}
                if request.sampling.temperature > 0:
                    line |= {"seed": request.sampling.seed}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _rows_of_points(self) -> Counter[int] | None:
        """How many rows each point has; None where the file is damaged, and then it is put out of the way."""
        path = self.folder / ROWS
        if not path.is_file():
            return Counter()
        try:
            return Counter(read_rows(path)["point"].tolist())
        except Malformed as error:
            log.warning("%s", error)
            path.unlink()
            return None

    def _keep_rows(self, index: int, tables: Mapping[str, pd.DataFrame]) -> int:
        import pandas as pd

        merged: pd.DataFrame | None = None
        for table in (table for table in tables.values() if len(table)):
            keys = ["task", "row", "cluster"]
            if merged is not None and set(table) & set(merged) > set(keys):  # two tables fill a column for different tasks
                merged = merged.set_index(keys).combine_first(table.set_index(keys)).reset_index()
            else:
                merged = table if merged is None else merged.merge(table, on=keys, how="outer", sort=False)
        if merged is None:
            return 0
        merged = merged.assign(point=index)
        count, path = len(merged), self.folder / ROWS
        if path.exists():
            earlier = read_rows(path)
            # Rows of this point or later ones are left from a process that was killed before it listed them.
            merged = pd.concat([earlier[earlier["point"] < index], merged], ignore_index=True)
        self._write_rows(merged)
        return count

    def _cut_rows(self, points: range) -> None:
        path = self.folder / ROWS
        if path.is_file():
            table = read_rows(path)
            self._write_rows(table[table["point"].isin(points)])

    def _cut_lines(self, name: str, points: range) -> None:
        path = self.folder / name
        if path.is_file():
            lines = lines_of(path)
            kept = [*(line for line in lines if point_of(line) in points), ""]
            if kept != lines:  # a record that is whole is not touched by being opened
                _replace(path, "\n".join(kept).encode())

    def _write_rows(self, table: pd.DataFrame) -> None:
        with _whole(self.folder / ROWS) as part:
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

    def check(self) -> None:
        """Look whether there is such a folder: an empty answer about a folder that was mistyped would be a wrong one.

        Raises:
            UsageError: if there is none.
        """
        if not self.root.is_dir():
            raise UsageError(f"there is no results folder {self.root}. Name another with --results; harness run makes one.")

    def find(self, spec: RunSpec) -> RunResult | None:
        """The record of a spec, if there is one.

        Raises:
            UsageError: if it cannot be read.
        """
        folder = self.runs_folder / spec.folder
        return read_run(folder) if (folder / RUN).exists() else None

    def rows(self, spec: RunSpec, point: int) -> pd.DataFrame | None:
        """The row-by-row tables of a run's point, merged; None where none are stored or can be read, of that point perhaps."""
        path = self.runs_folder / spec.folder / ROWS
        if not path.exists():
            return None
        try:
            table = read_rows(path)
        except UsageError as error:
            log.warning("%s The run counts without its rows; harness validate --set-aside moves it away.", error)
            return None
        found = table[table["point"] == point]
        return found if len(found) else None

    def status(self, spec: RunSpec) -> str | None:
        """How a run stands, from its run.json alone; None where there is none that can be read."""
        return _status(self.runs_folder / spec.folder)

    def began_otherwise(self, spec: RunSpec, weights: str) -> Provenance | None:
        """What a run on the same model was made on that began with other weights; one record of each method is looked at.

        Args:
            spec: of a run.
            weights: the fingerprint of the weights that it began with.
        """
        for method in sorted((self.runs_folder / spec.folder).parent.parent.glob("*")):
            for file in sorted(method.glob("*/run.json"))[:1]:
                with suppress(UsageError):
                    found = read_run(file.parent)
                    alike = (found.spec.dtype, found.spec.device) == (spec.dtype, spec.device)
                    if alike and found.provenance and found.provenance.weights != weights:
                        return found.provenance
        return None

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
        for file in sorted(self.runs_folder.glob("*/*/*/*/run.json")):
            try:
                result = read_run(file.parent)
            except UsageError:
                continue
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
                "folder": file.parent.relative_to(self.runs_folder).as_posix(),
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
        try:
            found = list(read_texts(self.runs_folder / folder / TEXTS))
        except UsageError as error:
            log.warning("%s The run counts without its texts.", error)
            return {}
        return {tuple(each.turns): each.text for each in found if each.point == point}

    def keep_questions(self, spec: RunSpec, rows: Mapping[str, Sequence[tuple[str, Row]]]) -> None:
        """Write down once what the runs on this data are asked, so that a reader can put answers beside the truth.

        Args:
            spec: of one of the runs.
            rows: task → (the question as it is put to the model, the row of the data set).
        """
        path = self.root / "questions" / spec.questions_file
        if path.is_file() and self.questions(spec):
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

    def questions(self, spec: RunSpec) -> list[Question]:
        """What the runs on this data were asked, in order; nothing where that was not recorded or cannot be read any more."""
        path = self.root / "questions" / spec.questions_file
        if not path.exists():
            return []
        try:
            return read_questions(path)
        except UsageError as error:
            log.warning("%s The next run on this data writes it anew.", error)
            return []

    def by_id(self, run_id: str) -> tuple[Path, RunResult]:
        """The folder and record of the run whose id begins so.

        Raises:
            UsageError: if no run, or more than one, begins so.
        """
        found = sorted(f.parent for f in self.runs_folder.glob(f"*/*/*/{run_id}*/run.json")) if run_id.isalnum() else []
        if len(found) != 1:
            what = "no run" if not found else f"{len(found)} runs"
            verb = "begins" if not found else "begin"
            raise UsageError(f"{what} in {self.runs_folder} {verb} with '{run_id}'. See harness list runs.")
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
        with disk_errors(f"the results folder {self.root}", "Choose another with --results", whatever=True):
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
            begun = (new / RUN).exists()
            _settle(folder, new, earlier)  # what a killed process left
            taken_over = begun and not new.exists()
            with disk_errors(f"the results folder {self.root}", "Choose another with --results"):
                if force and (folder / RUN).exists() and not taken_over:
                    folder = new
                folder.mkdir(parents=True, exist_ok=True)
            empty = RunResult(schema_version=SCHEMA_VERSION, spec=spec, status="interrupted")
            record = Record(folder, read_run(folder) if (folder / RUN).exists() else empty)
            if record.result.status != "done":
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
    if earlier.is_dir() and not (folder / RUN).exists():
        shutil.rmtree(folder, ignore_errors=True)  # a process was killed at that moment
        earlier.rename(folder)
    shutil.rmtree(earlier, ignore_errors=True)
    for record in (folder, new):
        if not (record / RUN).exists():
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
        return str(read_json(folder / RUN)["status"])
    return None


def read_run(folder: Path) -> RunResult:
    """A record from its folder.

    Raises:
        UsageError: if it is damaged or of a newer schema, with the way out.
    """
    try:
        return parse_run(folder)
    except (Malformed, Unreadable) as error:
        raise UsageError(
            f"the record {'/'.join(folder.parts[-4:])}/run.json cannot be read ({str(error).rstrip('.')}); harness validate "
            "--set-aside moves it away; or run with --force."
        ) from error


def parse_run(folder: Path) -> RunResult:
    """A record from its folder.

    Raises:
        Malformed: naming the file and what is wrong with it.
        Unreadable: likewise.
        UsageError: if it is of a newer schema.
    """
    check_kinds(folder)
    told = read_json(folder / RUN)
    if not isinstance(told, dict) or type(told.get("schema_version")) is not int:
        raise Malformed(f"{place(folder / RUN)}: JSON of something else.")
    if told["schema_version"] > SCHEMA_VERSION:
        raise UsageError(f"{'/'.join(folder.parts[-4:])}/{RUN}: {_newer(told)}.")
    try:
        found: RunResult = _RESULT.validate_python({**told, "points": read_points(folder)})
        canonical([point.logged for point in found.points])  # "nan" is a word, and taken for a number
        return found
    except ValidationError as error:
        raise Malformed(f"{place(folder / RUN)}: no record of schema {SCHEMA_VERSION} or earlier: {fault(error)}.") from None
    except ValueError as error:
        raise error if isinstance(error, Malformed) else Malformed(f"{place(folder / RUN)}: {error}.") from None


def newer_schema(folder: Path) -> str | None:
    """What is needed to read a record that a newer version wrote; None where it is none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        told = read_json(folder / RUN)
        return _newer(told) if told["schema_version"] > SCHEMA_VERSION else None
    return None


def _newer(told: Mapping[str, Any]) -> str:
    made = told.get("provenance")
    version = made.get("harness_version") if isinstance(made, dict) else None
    return (
        f"written by a newer version of unlearning-harness (schema {told['schema_version']}, this one reads up to "
        f"{SCHEMA_VERSION}); to read it, update to {f'version {version} or later' if version else 'a later version'}"
    )


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
