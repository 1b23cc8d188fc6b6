"""A record that somebody damaged stops no command, and every command says what is wrong in a sentence: never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from harness.core.benchmark import BENCHMARKS
from harness.core.options import Options
from harness.core.registry import ROOT
from harness.storage.records import RunResult
from harness.storage.store import Store
from tests.cli.test_cli import Harness, harness  # noqa: F401
from tests.records import numbers, run, write

QUESTION = {"task": "forget", "row": 0, "cluster": "a", "turns": ["Q: Who?"], "question": "Who?", "answer": "Mira"}
DEEP = "[" * 100_000


def edited(change: Callable[[dict], object]) -> Callable[[Path], object]:
    """Change the first line, or the whole of a JSON file."""

    def damage(file: Path) -> None:
        whole = file.suffix == ".json"
        first, *rest = [file.read_text()] if whole else file.read_text().splitlines()
        told = json.loads(first)
        change(told)
        file.write_text("\n".join([json.dumps(told), *rest]) + "\n")

    return damage


def first_field(value: object) -> Callable[[Path], object]:
    """Put a value into every field in turn would take long: the innermost first one of each part will do."""

    def change(told: dict) -> None:
        for key in told:
            told[key] = value

    return edited(change)


def directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_text(""),
    "null": lambda file: file.write_text("null\n"),
    "a list": lambda file: file.write_text("[]\n"),
    "a word": lambda file: file.write_text('"word"\n'),
    "an empty object": lambda file: file.write_text("{}\n"),
    "garbage": lambda file: file.write_bytes(bytes(range(256)) * 4),
    "zeros": lambda file: file.write_bytes(bytes(1000)),
    "cut off": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "NaN": lambda file: file.write_text(file.read_text(errors="replace").replace(": 0.", ': NaN, "x": 0.', 1)),
    "nested without end": lambda file: file.write_text(f'{{"index": 0, "point": 0, "spec": {DEEP}\n'),
    "digits without end": lambda file: file.write_text(f'{{"index": 0, "point": 0, "schema_version": {"9" * 6000}}}\n'),
    "half a surrogate pair": lambda file: file.write_text('{"index": 0, "point": 0, "text": "\\ud800"}\n'),
    "a null line": lambda file: file.write_bytes(file.read_bytes() + b"null\n"),
    "a directory": directory,
    "gone": lambda file: file.unlink(),
}
IN_JSON: dict[str, Callable[[Path], object]] = {
    "all null": first_field(None),
    "all lists": first_field([]),
    "all words": first_field("nan"),
    "all numbers": first_field(1e308),
    "all true": first_field(True),
    "an unknown field": edited(lambda told: told.update(surprise=1)),
    "1e999": lambda file: file.write_text(file.read_text().replace(": 2.0", ": 1e999").replace(": 1.0", ": 1e999")),
    "nan as a word": lambda file: file.write_text(file.read_text().replace(": 2.0", ': "nan"').replace(": 1.0", ': "nan"')),
}
IN_RUN = {
    **IN_JSON,
    "nan in a setting": lambda file: file.write_text(file.read_text().replace('"damping": 0.1', '"damping": NaN')),
    "an infinite setting": lambda file: file.write_text(file.read_text().replace('"damping": 0.1', '"damping": 1e999')),
    "settings of nothing": edited(lambda told: told["spec"].update(config={}, sources={}, evaluators={}, data={})),
    "sources null": edited(lambda told: told["spec"].update(sources={"base": None})),
    "no arms": edited(lambda told: told.update(arms={"untouched": []}, costs={}, provenance=None, notes=[])),
    "markup": edited(lambda told: told.update(error="[/x] [b]", selection="[/x]", notes=["[/red]"])),
    "another method": edited(lambda told: told["spec"].update(method="../../x", bench="[/x]")),
    "newer": edited(lambda told: told.update(schema_version=99, provenance=[])),
}


def parquet(**columns: list) -> Callable[[Path], object]:
    return lambda file: pd.DataFrame(columns).to_parquet(file)


KEYS = {"task": ["forget"], "row": [0], "cluster": ["a"]}
IN_ROWS = {
    "no columns": parquet(x=[1]),
    "points of words": parquet(point=["a"], **KEYS),
    "no cluster": parquet(point=[0], task=["forget"], row=[0]),
    "rows without numbers": parquet(point=[1], **KEYS),
}
CASES = {
    "run.json": {**DAMAGES, **IN_RUN},
    "points.jsonl": {**DAMAGES, **IN_JSON},
    "per_example.parquet": {**DAMAGES, **IN_ROWS},
    "generations.jsonl": {**DAMAGES, "all lists": first_field([])},
    "questions": {**DAMAGES, "all null": first_field(None)},
}


def store_of(root: Path, *results: RunResult) -> Store:
    """A store of records that have all their files, and the questions beside them."""
    for result, folder in zip(results, write(root, *results), strict=True):
        last = len(result.points) - 1
        pd.DataFrame({**KEYS, "point": [last], "avg_gt_loss": [0.5]}).to_parquet(folder / "per_example.parquet")
        (folder / "generations.jsonl").write_text(f'{{"point": {last}, "turns": ["Q: Who?"], "text": "Nobody"}}\n')
        file = root / "questions" / result.spec.questions_file
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(QUESTION) + "\n")
    return Store(root)


def check(harness: Harness, store: Store, *words: str, codes: tuple[int, ...] = (0,)) -> str:  # noqa: F811
    """Run a command; what it said."""
    told = harness(*words, "--results", store.root)
    assert told.code in codes, (words, told.out, told.err)
    assert "Traceback" not in told.err
    assert all(len(line) < 600 for line in told.err.splitlines()), "each in a sentence"
    return told.out + told.err


@pytest.mark.parametrize("file", CASES)
def test_no_damage_stops_a_command(harness: Harness, tmp_path: Path, file: str):  # noqa: F811
    ways = (numbers(1e-3, 0.5, 0.7), numbers(0.3, 0.3, 0.75))
    # The sources of true runs, so that `power` and `study` take these for runs of their kind.
    true = {name: source.identity for name, source in BENCHMARKS.get("tofu10").problem("mini", Options()).sources.items()}
    hurt = {
        name: run(*ways, spec={"seed": seed, "sources": true, **({"data": {"full": name}} if file == "questions" else {})})
        for seed, name in enumerate(CASES[file], start=1)
    }
    sound = run(numbers(0.1, 0.4, 0.8), spec={"method": "npo", "sources": true})
    store = store_of(tmp_path / "results", sound, *hurt.values())
    for name, result in hurt.items():
        folder = store.root / "questions" if file == "questions" else store.runs_folder / result.spec.folder
        CASES[file][name](folder / (result.spec.questions_file if file == "questions" else file))

    for result in hurt.values():
        check(harness, store, "show", result.spec.run_id, codes=(0, 2))
    for figure in ("pareto", "samples", "tables"):
        drawn = figure == "pareto" and file != "questions"  # each of those runs has a drawing of its own, which reads none
        check(harness, store, "plot", figure, "--format", "csv,svg" if drawn else "csv")
    assert "forget_quality_d" in check(harness, store, "power", "--bench", "tofu10")
    assert " runs, " in check(harness, store, "study", "tofu-table", "--bench", "tofu10", "--dry-run")
    for _ in range(2):
        assert sound.spec.run_id in check(harness, store, "show", sound.spec.run_id)
        assert sound.spec.run_id in check(harness, store, "list", "runs")
        check(harness, store, "leaderboard", codes=(0, 2) if "newer" in hurt and file == "run.json" else (0,))
        named = check(harness, store, "validate", codes=(0, 1))
        check(harness, store, "validate", "--set-aside", codes=(0, 1))
    for name, result in hurt.items():
        place = result.spec.questions_file if file == "questions" else result.spec.run_id
        assert str(place) in named or name in HARMLESS[file] or not (store.runs_folder / result.spec.folder).exists(), name


HARMLESS = {
    "run.json": {"settings of nothing", "no arms", "markup"},
    "points.jsonl": set[str](),
    "per_example.parquet": {"rows without numbers"},
    "generations.jsonl": {"NaN"},
    "questions": {"empty", "gone", "NaN"},
}
"""What is a sound record all the same."""


@pytest.mark.parametrize("name", ["garbage", "a directory"])
@pytest.mark.parametrize("file", ["run.json", "points.jsonl", "per_example.parquet", "generations.jsonl", "questions"])
def test_a_run_beside_damage_ends_in_a_sentence_or_goes_on(tmp_path: Path, bench, file: str, name: str):
    from harness.core.errors import UsageError
    from harness.running.run import execute
    from harness.storage.validate import problems, set_aside
    from tests.running.test_run import breaks_after_first, steps, tofus
    from tests.running.test_run import run as unlearn

    with pytest.raises(KeyboardInterrupt):
        unlearn(bench, breaks_after_first(KeyboardInterrupt()), tofus(bench))
    todo = bench.plan(steps(3), tofus(bench))
    folder = bench.store.runs_folder / todo.spec.folder
    if file == "questions":
        (bench.results / "questions").mkdir()
        (bench.results / "questions" / todo.spec.questions_file).write_text(json.dumps(QUESTION) + "\n")
    DAMAGES[name](bench.results / "questions" / todo.spec.questions_file if file == "questions" else folder / file)
    try:
        result = execute(todo, bench.store, bench.cache)
    except UsageError:
        may_end = name == "a directory" or file == "run.json"
        for problem in problems(bench.store):
            if problem.unreadable:
                set_aside(bench.store, problem)
        if file == "questions":
            (bench.results / "questions" / todo.spec.questions_file).rmdir()
        result = execute(todo, bench.store, bench.cache) if may_end else None
    assert (result.status, len(result.points)) == ("done", 3)
    assert list(problems(bench.store)) == [], "what was gone was measured anew"


PUBLISHED = ROOT / "results" / "published" / "kfade_table1.json"


@pytest.mark.parametrize(
    "damage",
    [
        *DAMAGES.values(),
        *IN_JSON.values(),
        edited(lambda told: told["columns"][0].update(better="up")),
        edited(lambda told: told["columns"][0].update(decimals=None)),
        edited(lambda told: told["columns"][0].pop("title")),
        edited(lambda told: told["tables"][0].update(rows=None)),
        edited(lambda told: told["tables"][0]["rows"][0].update(name=None)),
        edited(lambda told: told["tables"][0]["rows"][0].update(values=[1])),
        edited(lambda told: told["tables"][0]["rows"][0]["values"].update(forget_quality={"value": "x"})),
        edited(lambda told: told["tables"][0]["rows"][0]["values"].update(forget_quality={"value": 1, "interval": [1]})),
        edited(lambda told: told["tables"][0]["rows"][0]["values"].update(forget_quality={"value": 1, "what": [1]})),
    ],
)
def test_no_damage_to_a_published_table_stops_the_leaderboard(
    harness: Harness,  # noqa: F811
    tmp_path: Path,
    damage: Callable[[Path], object],
):
    store = store_of(tmp_path / "results", run(numbers(0.1, 0.4, 0.8)))
    file = store.root / "published" / "table.json"
    file.parent.mkdir()
    shutil.copy(PUBLISHED, file)
    assert harness("leaderboard", "--results", store.root).err == ""
    before = file.read_bytes()
    damage(file)
    told = harness("leaderboard", "--results", store.root)
    assert (told.code, "Traceback" in told.err) == (0, False)
    same = file.is_file() and file.read_bytes() == before
    assert same or not file.exists() or "skipped: published/table.json is no table of published numbers: " in told.err
