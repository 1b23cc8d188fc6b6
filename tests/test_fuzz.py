"""Whatever is typed, or lies in a file, ends in one sentence with exit code 2 (1 for what a check found), or in what was asked.

In the gate some seconds; by hand for an hour, with other draws every time, at low priority:

    HARNESS_FUZZ_SECONDS=3600 nice -n 19 pytest -q -s tests/test_fuzz.py

Each kind of input gets its share of the seconds. Nothing is trained: runs are planned and no more.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st

from harness.core.errors import LONGEST_MESSAGE, UsageError
from harness.core.interfaces import METHODS
from tests import records
from tests.test_tofu import data_folder, open_unlearning_log, tables, tofu_log

SECONDS = float(os.environ.get("HARNESS_FUZZ_SECONDS", "24"))
"""For all kinds together."""
LONG = "HARNESS_FUZZ_SECONDS" in os.environ
KINDS = 7
FEWEST = 5
"""Cases of each kind that are tried however slow the machine is."""
LONGEST = 60.0
"""Seconds that one command may take on a busy machine."""
MOST_BYTES = 2 * 2**30
"""What commands that only plan may take in memory, beyond what was there before."""

# ---------------------------------------------------------------- odd values

DEEP = "[" * 3000 + "]" * 3000
NUMBERS = (0, -1, 1, 2, 3, 1e-300, 1e300, 1.5, 10**9, 10**18, 10**30, 10**400, float("nan"), float("inf"))
PLAIN = (None, True, "", "x", "0", "-1", "NaN", "\0", "٣", "a/b", "../x", "[/x]", "x" * 20_000, [], {}, [[]], [None], {"x": 1})
odd: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([*NUMBERS, *PLAIN, *([n] for n in NUMBERS), [1, 1], [0, 0, 0], [10**9] * 100]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=5,
    ),
)
raw = st.sampled_from(
    [
        DEEP,
        "9" * 5000,
        "-" + "9" * 5000,
        r'"\ud800"',
        "NaN",
        "1e999",
        "{",
        "[",
        '"',
        "",
        "null",
        "\0",
        "\ufeff{}",
        "\udcff",
        "\r",
    ]
)
"""What no JSON can be made of."""
words = st.one_of(odd.map(lambda value: json.dumps(value)), raw, st.text(max_size=8)).filter(lambda text: "\0" not in text)
"""Values as they are typed; an argument holds no zero byte."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


@st.composite
def changed(draw: st.DrawFn, document: Any) -> bytes:
    """The document as JSON with something odd at one or two places, or with its text spoilt."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(list(places(document))))
        value = copy.deepcopy(draw(odd))  # what is drawn may be put into itself
        if not path:
            document = value
            continue
        owner = document
        for key in path[:-1]:
            owner = owner[key]
        if draw(st.integers(0, 3)) or not isinstance(owner, dict):
            owner[path[-1]] = value
        else:
            del owner[path[-1]]
    return spoilt(draw, json.dumps(document))


def spoilt(draw: st.DrawFn, text: str) -> bytes:
    """A text, in one case of four cut off, or with something else in it."""
    content = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 3)):
        return content
    at = draw(st.integers(0, len(content)))
    return content[:at] + draw(st.one_of(st.binary(max_size=4), raw.map(lambda x: x.encode("utf-8", "surrogatepass"))))


# ---------------------------------------------------------------- what is held


class Endless(BaseException):
    """A command that takes longer than any planning may."""


def command(*arguments: str) -> None:
    """Run the entry point here, and hold that it obeys."""
    from harness.cli.entry import main

    def late(*_: object) -> None:
        raise Endless(f"longer than {LONGEST:.0f} s")

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=how) for how in ("strict", "backslashreplace"))
    before, code = sys.argv, None
    sys.argv = ["harness", *arguments]
    earlier = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code
    except (Exception, Endless):
        shown = " ".join(word if len(word) < 300 else f"{word[:300]}…" for word in arguments)
        pytest.fail(f"harness {shown}\n{traceback.format_exc()}", pytrace=False)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
        sys.argv = before
    err.flush()
    told = err.buffer.getvalue().decode(errors="replace")  # type: ignore[attr-defined]
    assert code in (0, 1, 2), (arguments, code, told)
    assert "Traceback" not in told, (arguments, told)
    if code == 2:
        assert told.strip(), arguments
        assert max(map(len, told.splitlines())) < 2 * LONGEST_MESSAGE, (arguments, told)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder for everything; nothing is executed, and the interval's resamples are few."""
    import harness.running.run
    import harness.running.sweep
    from evals import _bootstrap

    def planned(todo: Any, *_: Any, **__: Any) -> None:
        raise UsageError(f"planned: {todo.spec.run_id}")

    def all_planned(tries: Any, *_: Any, **__: Any) -> None:
        for todo in tries[:3]:
            todo.plan({})
        raise UsageError(f"planned: {len(tries)} runs")

    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(harness.running.run, "execute", planned)
        patch.setattr(harness.running.sweep, "run_tries", all_planned)
        patch.setattr(_bootstrap, "RESAMPLES", 20)
        patch.setenv("HARNESS_CACHE", str(Path(folder, "cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("COLUMNS", "200")
        patch.setenv("TQDM_DISABLE", "1")
        patch.delenv("HARNESS_DATA", raising=False)
        patch.chdir(folder)
        yield Path(folder)
    taken = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory)
    assert taken < MOST_BYTES, f"planning took {taken / 2**30:.1f} GiB"


def fuzz(property_: Callable[[Any], None], strategy: st.SearchStrategy[Any]) -> None:
    """Draw until the share of the seconds is spent: the same draws every time in the gate, others by hand."""
    until, seed, count = time.monotonic() + SECONDS / KINDS, int(time.time()) if LONG else 0, 0

    failed = False

    def counted(value: Any) -> None:
        nonlocal count, failed
        if failed or count < FEWEST or time.monotonic() < until:  # what failed is tried again, to be made smaller
            count += 1
            failed, before = True, failed
            property_(value)
            failed = before

    while time.monotonic() < until:
        settings = hypothesis.settings(
            max_examples=200 if LONG else 25,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink) if LONG else (Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        hypothesis.seed(seed)(settings(given(strategy)(counted)))()
        seed += 1
    print(f"{count} cases")
    assert count >= FEWEST


by_hand = pytest.mark.skipif(not LONG, reason="drawing figures takes too long for the gate: set HARNESS_FUZZ_SECONDS")

# ---------------------------------------------------------------- kinds of input

FLAGS = ("--seed", "--limit", "--model", "--device", "--dtype", "--generator", "--evals", "--bench", "--method", "--retain")
FLAGS += ("--variant", "--form", "--points", "--judge", "--judge-url", "--judge-repetitions", "--reference", "--spec")
FLAGS += ("--data-dir", "--results")
SWEEP_FLAGS = ("--seeds", "--grid", "--budget", "--by", "--search", "--jobs", "--set", "--judge-url", "--model")
BASE = {"--bench": "tofu01", "--method": "untouched"}


@st.composite
def typed_settings(draw: st.DrawFn) -> list[str]:
    from harness.core.config import field_names

    method = draw(st.sampled_from(METHODS.names()))
    keys = st.sampled_from(field_names(METHODS.get(method).config)) if field_names(METHODS.get(method).config) else st.just("x")
    given = draw(st.dictionaries(st.one_of(keys, keys, keys, st.text(max_size=4)), words, min_size=1, max_size=2))
    bench = draw(st.sampled_from(["tofu01", "wmdp-bio"]))
    pairs = [f"{key}={value}" for key, value in given.items()]
    return ["run", "-m", method, "-b", bench, *(x for pair in pairs if "\0" not in pair for x in ("--set", pair))]


def test_settings(place: Path):
    fuzz(lambda arguments: command(*arguments), typed_settings())


@st.composite
def typed_flags(draw: st.DrawFn) -> list[str]:
    values = st.one_of(
        words, st.sampled_from(["http://[::1", "http://h:99999/v1", "mini@٣", "cuda:٣", "0,0", "٣", "lr=1e-5..x", "a=1,2"])
    )
    if draw(st.booleans()):
        told = {**BASE, **draw(st.dictionaries(st.sampled_from(FLAGS), values, min_size=1, max_size=2))}
        return ["run", *(f"{flag}={value}" for flag, value in told.items())]
    told = {**BASE, **draw(st.dictionaries(st.sampled_from(SWEEP_FLAGS), values, min_size=1, max_size=2))}
    return ["sweep", *(f"{flag}={value}" for flag, value in told.items())]


def test_flags(place: Path):
    fuzz(lambda arguments: command(*arguments), typed_flags())


@st.composite
def sweep_file(draw: st.DrawFn) -> bytes:
    content = {
        "method": "ga",
        "bench": "tofu01",
        "grid": {"lr": [1e-4, 1e-3]},
        "seeds": [0, 1],
        "set": {"epochs": 1},
        "budget": 1,
    }
    keys = st.sampled_from([*content, "model", "by", "limit", "search", "evals", "points", "variant", "data_dir", "reference"])
    content |= draw(st.dictionaries(keys, odd, max_size=2))
    extra = [
        "",
        "a: &a [*a]",
        "b: !!set {x}",
        "seeds: 2026-01-01",
        "? [1]\n: 2",
        "1: 2",
        "x: " + DEEP,
        "set: {lr: " + "9" * 5000 + "}",
    ]
    return spoilt(draw, yaml.safe_dump(content, allow_unicode=True) + draw(st.sampled_from(extra)))


def test_sweeps_in_files(place: Path):
    def read(content: bytes) -> None:
        (place / "sweep.yaml").write_bytes(content)
        command("sweep", "sweep.yaml")

    fuzz(read, sweep_file())


def test_logs(place: Path):
    logs = [tofu_log(tables(rows=5)), open_unlearning_log(tables(rows=5))]
    (place / "reference.json").write_text(json.dumps(logs[0]))

    def read(content: bytes) -> None:
        (place / "log.json").write_bytes(content)
        command("score", "log.json", "--reference", "reference.json", "--json")

    fuzz(read, st.sampled_from(logs).flatmap(changed))


def test_data(place: Path):
    data = data_folder(place / "data")
    folder = data / "locuslab" / "TOFU"
    kept = {file.name: file.read_bytes() for file in folder.iterdir()}

    @st.composite
    def files(draw: st.DrawFn) -> tuple[str, bytes]:
        name = draw(st.sampled_from(sorted(kept)))
        rows = [json.loads(line) for line in kept[name].splitlines()]
        if draw(st.booleans()):
            return name, draw(changed(rows))
        line = draw(changed(rows[1]))
        return name, b"\n".join([json.dumps(rows[0]).encode(), line])

    def read(changed_file: tuple[str, bytes]) -> None:
        name, content = changed_file
        (folder / name).write_bytes(content)
        command("run", "-m", "idk", "-b", "tofu10", "--model", "scratch", "--data-dir", "data")
        (folder / name).write_bytes(kept[name])

    fuzz(read, files())


READERS = (
    ("list", "runs"),
    ("show", "{run}"),
    ("validate",),
    ("leaderboard",),
    ("plot", "pareto"),
    ("plot", "samples"),
    ("run", "--spec", "{spec}"),
)


@by_hand
def test_records(place: Path):
    store = place / "store"
    told = records.run(records.numbers(0.1, 0.3, 0.8), records.numbers(0.2, 0.2, 0.7))
    records.write(store, told, records.run(records.numbers(0.1, 0.3, 0.8), spec={"method": "untouched"}))
    (folder,) = (store / "runs" / told.spec.folder,)
    points = [json.loads(line) for line in (folder / "points.jsonl").read_text().splitlines()]
    told_text = {"point": 0, "turns": ["who?"], "text": "she"}
    asked = {"task": "forget", "row": 0, "cluster": "0", "turns": ["who?"], "question": "who?", "answer": "she"}
    whole = {
        folder / "run.json": json.loads((folder / "run.json").read_text()),
        folder / "points.jsonl": points[0],
        folder / "generations.jsonl": told_text,
        store / "questions" / told.spec.questions_file: asked,
    }
    (store / "questions").mkdir()
    shutil.copytree(store, place / "sound")

    @st.composite
    def damage(draw: st.DrawFn) -> tuple[Path, bytes, tuple[str, ...]]:
        path = draw(st.sampled_from(list(whole)))
        return path, draw(changed(whole[path])), draw(st.sampled_from(READERS))

    def read(damaged: tuple[Path, bytes, tuple[str, ...]]) -> None:
        path, content, reader = damaged
        shutil.rmtree(store)
        shutil.copytree(place / "sound", store)
        path.write_bytes(content)
        arguments = [word.format(run=told.spec.run_id, spec=folder / "run.json") for word in reader]
        command(*arguments, *(() if reader[0] == "run" else ("--results", str(store))))

    fuzz(read, damage())


def test_published_tables(place: Path):
    store = place / "published"
    records.write(store, records.run(records.numbers(0.1, 0.3, 0.8)))
    (store / "published").mkdir()
    table = json.loads((Path(__file__).parents[1] / "results" / "published" / "kfade_table2.json").read_text())

    def read(content: bytes) -> None:
        (store / "published" / "table.json").write_bytes(content)
        command("leaderboard", "--results", str(store))

    fuzz(read, changed(table))
