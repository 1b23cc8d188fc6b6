"""SIGTERM, SIGHUP and kills: what runs is marked, cleaned up, and goes on; nothing of it stays behind."""

from __future__ import annotations

import io
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

from harness.core import signals
from harness.core.registry import ROOT
from harness.core.signals import kept_signals
from harness.running import executors
from harness.running.sweep import run_trials
from harness.storage.cache import Cache
from harness.storage.records import RunResult
from harness.storage.store import Store
from harness.storage.validate import problems
from tests import nano_sweep
from tests.clock import A_HANG
from tests.nano_sweep import quick_context
from tests.quick_commands import hear_signals


def command(here: Path, settings: Sequence[dict[str, Any]], jobs: int, force: bool) -> NoReturn:
    """The command line's entry point around the nano benchmark."""
    import harness.cli.entry
    from harness.running.run import execute
    from harness.storage.temporary import temporary_folder

    def work(*words: object, **how: object) -> int:
        asked, store, cache = nano_sweep.tries(*settings), Store(here / "results"), Cache(here / "cache")
        if jobs:
            run_trials(asked, store, cache, executors.on_workers(jobs))
        else:
            with temporary_folder():
                execute(asked[0].plan({}), store, cache, force=force)
        return 0

    executors.SECONDS_TO_STOP = int(A_HANG)
    harness.cli.entry.app = work  # type: ignore[assignment]
    harness.cli.entry.main()
    sys.exit()


def quick_command(here: Path, settings: Sequence[dict[str, Any]], jobs: int, force: bool) -> None:
    """The same in a process that was forked: as one that was begun for it, it has its own standard error and temporary files."""
    hear_signals()
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]  # the one that forked it will do
    executors.START_METHOD = "forkserver"
    tempfile.tempdir = str(here / "tmp")
    file = os.open(here / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    command(here, settings, jobs, force)


class Program:
    """Runs of the nano benchmark, in processes that end as the command line does."""

    def __init__(self, here: Path) -> None:
        self.here = here
        self.temporary = here / "tmp"
        self.temporary.mkdir()

    @property
    def store(self) -> Store:
        return Store(self.here / "results")

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary)}

    def file(self, *settings: dict[str, Any], jobs: int = 0, before: str = "") -> Path:
        """The command as a file of its own."""
        told = f"command(Path({str(self.here)!r}), {settings!r}, {jobs}, False)"
        lines = ["from pathlib import Path", "from tests.running.test_signals import command", "if __name__ == '__main__':"]
        file = self.here / "program.py"
        file.write_text("\n".join([*lines, f"    {before or 'pass'}", f"    {told}\n"]))
        return file

    def sweep(self, *settings: dict[str, Any]) -> subprocess.Popen[str]:
        """On two workers, begun as a user does."""
        words = [sys.executable, self.file(*settings, jobs=2)]
        return subprocess.Popen(
            words,
            env=self.env,
            cwd=self.here,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=hear_signals,
        )

    def quick(self, *settings: dict[str, Any], jobs: int = 0, force: bool = False) -> BaseProcess:
        """A run, or a sweep on workers, whose processes begin quickly."""
        process = quick_context().Process(target=quick_command, args=(self.here, settings, jobs, force))
        process.start()
        return process

    def said(self) -> str:
        """What the last command that began quickly wrote on standard error."""
        return (self.here / "stderr").read_text()

    def left(self) -> list[Path]:
        """What lies in TMPDIR that is ours."""
        return list(self.temporary.glob("unlearning-harness-*"))

    def result(self) -> RunResult:
        (found,) = self.store.runs()
        return found


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def wait_for(reached: Callable[[], bool], goes_on: Callable[[], bool]) -> None:
    until = time.monotonic() + A_HANG
    while not reached():
        assert goes_on(), "it ended before its time"
        assert time.monotonic() < until
        time.sleep(0.01)


def ended(process: BaseProcess) -> int | None:
    """The exit status of a process that ends soon; minus the signal's number where one killed it."""
    process.join(A_HANG)
    return process.exitcode


def points(store: Store, count: int = 1) -> Callable[[], bool]:
    """Whether so many runs have a whole point."""
    return lambda: sum(b"\n" in file.read_bytes() for file in store.runs_folder.glob("*/*/*/*/points.jsonl")) >= count


def family(process: BaseProcess) -> list[psutil.Process]:
    """A sweep that began quickly, and its two workers; those of earlier tests are gone by then."""
    everyone = psutil.Process(psutil.Process(process.pid).ppid()).children
    wait_for(lambda: len(everyone()) == 3, process.is_alive)
    return everyone()


ENDINGS = [
    (signal.SIGTERM, 143, "ended by SIGTERM"),
    (signal.SIGHUP, 129, "ended by SIGHUP"),
    (signal.SIGINT, 130, "interrupted from the keyboard"),
]


@pytest.mark.parametrize(("number", "status", "reason"), ENDINGS)
def test_a_signal_marks_the_run_cleans_up_and_gives_the_shells_status(program: Program, number: int, status: int, reason: str):
    process = program.quick({"wait": A_HANG})
    wait_for(points(program.store), process.is_alive)
    assert len(program.left()) == 1
    os.kill(process.pid or 0, number)
    assert ended(process) == status
    assert "goes on from here" in program.said()
    assert "Traceback" not in program.said()
    found = program.result()
    assert (found.status, found.error, len(found.points)) == ("interrupted", reason, 1)
    assert program.left() == []


def ended_together(store: Store) -> bool:
    """Whether both runs of a sweep were marked after their first points."""
    found = [(r.status, r.error, len(r.points)) for r in store.runs()]
    assert found == [("interrupted", "ended with the sweep it was part of", 1)] * 2
    return True


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
    process = program.quick({"wait": A_HANG}, {"wait": A_HANG + 1}, jobs=2)
    wait_for(points(program.store, 2), process.is_alive)
    all_of_them = family(process)
    for each in all_of_them:
        if each.pid == process.pid or whom == "all its processes":
            os.kill(each.pid, number)
    assert ended(process) == status
    assert "Traceback" not in program.said()
    _, alive = psutil.wait_procs(all_of_them, timeout=A_HANG)
    assert not alive
    assert ended_together(program.store)
    assert program.left() == []


def test_a_killed_sweep_takes_its_workers_along(program: Program):
    process = program.quick({"wait": A_HANG}, {"wait": A_HANG + 1}, jobs=2)
    wait_for(points(program.store, 2), process.is_alive)
    all_of_them = family(process)
    process.kill()
    assert ended(process) == -signal.SIGKILL
    _, alive = psutil.wait_procs(all_of_them, timeout=A_HANG)
    assert not alive
    assert [(r.status, len(r.points)) for r in program.store.runs()] == [("interrupted", 1)] * 2


def test_a_lost_terminal_ends_a_sweep_with_all_that_it_began(program: Program):
    """Workers as a user has them, and what multiprocessing begins beside them."""
    process = program.sweep({"wait": A_HANG}, {"wait": A_HANG + 1})
    wait_for(points(program.store, 2), lambda: process.poll() is None)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGHUP)
    _, err = process.communicate(timeout=A_HANG)
    assert process.returncode == 129
    assert "interrupted; the same command goes on from here.\n" in err
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(children, timeout=A_HANG)
    assert not alive
    assert ended_together(program.store)
    assert program.left() == []


def test_a_worker_that_learns_of_no_first_signal_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The system may hand a signal to a thread of it that can do nothing about it."""
    quick_context()
    monkeypatch.setattr(executors, "START_METHOD", "forkserver")
    monkeypatch.setattr(executors, "SECONDS_TO_STOP", int(A_HANG))
    store = Store(tmp_path / "results")
    asked = nano_sweep.tries({"wait": A_HANG, "deaf": True}, {"wait": 0.0})
    sweep = executors.on_workers(2)(asked, store, Cache(tmp_path / "cache"), False)
    assert next(sweep) == (1, "")
    wait_for(points(store, 2), lambda: True)
    begun = time.monotonic()
    sweep.close()  # type: ignore[attr-defined]
    assert time.monotonic() - begun < executors.SECONDS_TO_STOP, "nothing had to be killed"
    found = {(r.status, r.error, len(r.points)) for r in store.runs()}
    assert found == {("done", "", 2), ("interrupted", "ended with the sweep it was part of", 1)}


def test_a_signal_that_is_ignored_stays_so(program: Program):
    code = (
        "import os, signal, time\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\nimport harness.cli.entry\n"
        "harness.cli.entry.app = lambda words, standalone_mode: os.kill(os.getpid(), signal.SIGHUP) or 7\nharness.cli.entry.main()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=env, cwd=program.here, check=False).returncode == 7


def test_a_terminal_that_is_lost_ends_a_run_as_well(program: Program):
    """What is printed on the way out is an error there, and must not be taken for the run's."""
    import pty

    file = program.file({"wait": A_HANG}, before="import tqdm, os; os.environ['TQDM_DISABLE'] = '0'")
    child, terminal = pty.fork()
    if child == 0:
        hear_signals()
        os.chdir(program.here)
        os.execve(sys.executable, [sys.executable, str(file)], program.env)
    until, said = time.monotonic() + A_HANG, b""
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
    process = program.quick({"wait": A_HANG})
    wait_for(points(program.store), process.is_alive)
    process.kill()
    assert ended(process) == -signal.SIGKILL
    assert len(program.left()) == 1
    assert ended(program.quick({"wait": 0.0, "strength": 2.0})) == 0
    assert program.left() == []


def test_a_handler_that_c_code_has_set_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("harness.core.signals.signal.getsignal", lambda number: None)
    with kept_signals():
        pass


# ---------------------------------------------------------------- --force, killed at any moment


def numbers(result: RunResult) -> list[object]:
    return [(p.step, p.weights, p.logged, p.measurements) for p in result.points]


def force_under_fire(program: Program, kills: int, seed: int) -> None:
    """One finished run, done anew again and again; whatever moment it is killed at, a finished record is in sight."""
    assert ended(program.quick({"wait": 0.05})) == 0
    before = numbers(program.result())
    begun = time.monotonic()
    assert ended(program.quick({"wait": 0.05}, force=True)) == 0
    length, rng = time.monotonic() - begun, random.Random(seed)
    killed_at_work = 0
    while killed_at_work < kills:
        process = program.quick({"wait": 0.05}, force=True)
        process.join(rng.uniform(0.1, 1.05) * length)
        killed_at_work += process.is_alive()
        process.kill()
        ended(process)
        found = program.result()
        assert (found.status, numbers(found)) == ("done", before)
        assert list(problems(program.store)) == []
    assert ended(program.quick({"wait": 0.05}, force=True)) == 0
    assert numbers(program.result()) == before
    assert [f.suffix for f in (program.store.runs_folder / ".locks").iterdir()] == [".lock"]
    assert program.left() == []
    assert json.loads((program.store.runs_folder / program.result().spec.folder / "run.json").read_text())["status"] == "done"


def test_a_forced_run_that_is_killed_leaves_the_earlier_record_in_sight(program: Program):
    force_under_fire(program, kills=4, seed=0)


def test_a_signal_in_the_middle_of_a_write_ends_a_command_all_the_same(monkeypatch: pytest.MonkeyPatch):
    class Busy(io.StringIO):
        def flush(self) -> None:
            raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    monkeypatch.setattr(signals, "_received", [])
    monkeypatch.setattr(sys, "stderr", Busy())
    with kept_signals():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signals.stop_on_signals()
        with pytest.raises(signals.Stopped, match="ended by SIGHUP"):
            signal.raise_signal(signal.SIGHUP)
