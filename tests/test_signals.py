"""SIGTERM, SIGHUP and kills: what runs is marked, cleaned up, and goes on; nothing of it stays behind."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from harness.records import RunResult
from harness.registry import ROOT
from harness.signals import kept_signals
from harness.store import Store
from harness.validate import problems

PROGRAM = """
import sys
from pathlib import Path
import harness.cli
import tests.nano_sweep as nano
from harness.executors import in_turn, on_workers
from harness.cache import Cache
from harness.run import execute
from harness.scratch import temporary_folder
from harness.store import Store
from harness.sweep import run_tries

HERE = Path({here!r})


def work() -> int:
    asked = nano.tries(*{settings!r})
    store, cache = Store(HERE / "results"), Cache(HERE / "cache")
    if {jobs}:
        run_tries(asked, store, cache, on_workers({jobs}) if {jobs} > 1 else in_turn)
    else:
        with temporary_folder():
            execute(asked[0].plan({{}}), store, cache, force={force})
    return 0


if __name__ == "__main__":
    harness.cli.app = lambda standalone_mode: work()
    harness.cli.main()
"""
"""The command line's entry point around the nano benchmark."""


class Program:
    """Runs of the nano benchmark, in a process that ends as the command line does."""

    def __init__(self, here: Path) -> None:
        self.here = here
        self.temporary = here / "tmp"
        self.temporary.mkdir()

    @property
    def store(self) -> Store:
        return Store(self.here / "results")

    def start(self, *settings: dict[str, object], jobs: int = 0, force: bool = False) -> subprocess.Popen[str]:
        code = PROGRAM.format(here=str(self.here), settings=settings, jobs=jobs, force=force)
        (self.here / "program.py").write_text(code)
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary)}
        return subprocess.Popen(
            [sys.executable, str(self.here / "program.py")],
            env=env,
            cwd=self.here,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def left(self) -> list[Path]:
        """What lies in TMPDIR that is ours."""
        return list(self.temporary.glob("unlearning-harness-*"))

    def result(self) -> RunResult:
        (found,) = self.store.runs()
        return found


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def wait_for(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < until
        time.sleep(0.01)


def points(store: Store, count: int = 1) -> Callable[[], bool]:
    return lambda: len(list(store.runs_folder.glob("*/*/*/*/points.jsonl"))) >= count


ENDINGS = [
    (signal.SIGTERM, 143, "ended by SIGTERM"),
    (signal.SIGHUP, 129, "ended by SIGHUP"),
    (signal.SIGINT, 130, "interrupted from the keyboard"),
]


@pytest.mark.parametrize(("number", "status", "reason"), ENDINGS)
def test_a_signal_marks_the_run_cleans_up_and_gives_the_shells_status(program: Program, number: int, status: int, reason: str):
    process = program.start({"wait": 60.0})
    wait_for(points(program.store), process)
    assert len(program.left()) == 1
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "goes on from here" in err
    assert "Traceback" not in err
    found = program.result()
    assert (found.status, found.error, len(found.points)) == ("interrupted", reason, 1)
    assert program.left() == []


@pytest.mark.parametrize(
    ("number", "status", "whom"),
    [
        (signal.SIGTERM, 143, "the command"),
        (signal.SIGTERM, 143, "all its processes"),
        (signal.SIGHUP, 129, "all its processes"),
        (signal.SIGINT, 130, "all its processes"),
    ],
)
def test_a_signal_ends_a_sweep_and_its_workers(program: Program, number: int, status: int, whom: str):
    process = program.start({"wait": 60.0}, {"wait": 61.0}, jobs=2)
    wait_for(points(program.store, 2), process)
    children = psutil.Process(process.pid).children(recursive=True)
    if whom == "the command":
        process.send_signal(number)
    else:
        os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    found = [(r.status, r.error, len(r.points)) for r in program.store.runs()]
    assert found == [("interrupted", "ended with the sweep it was part of", 1)] * 2
    assert program.left() == []


def test_a_signal_that_is_ignored_stays_so(program: Program):
    code = (
        "import os, signal, time\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\nimport harness.cli\n"
        "harness.cli.app = lambda standalone_mode: os.kill(os.getpid(), signal.SIGHUP) or 7\nharness.cli.main()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=env, cwd=program.here, check=False).returncode == 7


def test_a_terminal_that_is_lost_ends_a_run_as_well(program: Program):
    """What is printed on the way out is an error there, and must not be taken for the run's."""
    import pty

    code = PROGRAM.format(here=str(program.here), settings=({"wait": 60.0},), jobs=0, force=False)
    code = code.replace(
        "    harness.cli.main()", "    import tqdm, os; os.environ['TQDM_DISABLE'] = '0'\n    harness.cli.main()"
    )
    (program.here / "program.py").write_text(code)
    child, terminal = pty.fork()
    if child == 0:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(program.temporary)}
        os.chdir(program.here)
        os.execve(sys.executable, [sys.executable, str(program.here / "program.py")], env)
    until, said = time.monotonic() + 120, b""
    while not points(program.store)():
        assert time.monotonic() < until, said[-2000:]
        if select.select([terminal], [], [], 0.05)[0]:
            said += os.read(terminal, 1000)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    assert (program.result().status, program.result().error) == ("interrupted", "ended by SIGHUP")
    assert program.left() == []


def test_the_next_run_sweeps_what_a_killed_one_left(program: Program):
    process = program.start({"wait": 60.0})
    wait_for(points(program.store), process)
    process.kill()
    process.communicate()
    assert len(program.left()) == 1
    again = program.start({"wait": 0.0, "strength": 2.0})
    assert again.wait(60) == 0
    assert program.left() == []


def test_a_handler_that_c_code_has_set_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("harness.signals.signal.getsignal", lambda number: None)
    with kept_signals():
        pass


# ---------------------------------------------------------------- --force, killed at any moment


def numbers(result: RunResult) -> list[object]:
    return [(p.step, p.weights, p.logged, p.measurements) for p in result.points]


def force_under_fire(program: Program, kills: int, seed: int) -> None:
    """One finished run, done anew again and again; whatever moment it is killed at, a finished record is in sight."""
    first = program.start({"wait": 0.05})
    assert first.wait(120) == 0
    before = numbers(program.result())
    begun = time.monotonic()
    assert program.start({"wait": 0.05}, force=True).wait(120) == 0
    length, rng = time.monotonic() - begun, random.Random(seed)
    seen = 0
    for _ in range(kills):
        process = program.start({"wait": 0.05}, force=True)
        time.sleep(rng.uniform(0.3, 1.05) * length)
        seen += process.poll() is None
        process.kill()
        process.communicate()
        found = program.result()
        assert (found.status, numbers(found)) == ("done", before)
        assert list(problems(program.store)) == []
    assert seen > kills / 2, "most of them were at work"
    assert program.start({"wait": 0.05}, force=True).wait(120) == 0
    assert numbers(program.result()) == before
    assert [f.suffix for f in (program.store.runs_folder / ".locks").iterdir()] == [".lock"]
    assert program.left() == []
    assert json.loads((program.store.runs_folder / program.result().spec.folder / "run.json").read_text())["status"] == "done"


def test_a_forced_run_that_is_killed_leaves_the_earlier_record_in_sight(program: Program):
    force_under_fire(program, kills=4, seed=0)
