"""Where a sweep's runs are done changes nothing of what comes out; a lost worker costs no run."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.core.errors import UsageError
from harness.running.executors import LOST, in_turn, needs, on_ray, on_workers
from harness.running.sweep import run_trials
from harness.running.trials import TrialSpec
from harness.storage.cache import Cache
from harness.storage.records import RunResult
from harness.storage.store import Store
from harness.storage.validate import problems
from tests.nano_sweep import FITS, NanoTry, quick_context, tries

STRENGTHS = [{"strength": s} for s in (0.1, 0.2, 0.3, 0.4)]


def numbers(results: list[RunResult]) -> list[object]:
    return [[(p.step, p.weights, p.logged, p.measurements) for p in r.points] for r in results]


@pytest.fixture
def quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that begin in milliseconds."""
    quick_context()
    monkeypatch.setattr("harness.running.executors.START_METHOD", "forkserver")


@pytest.fixture
def expected(tmp_path: Path) -> list[object]:
    """What the tries give one after the other."""
    results = run_trials(tries(*STRENGTHS), Store(tmp_path / "expected"), Cache(tmp_path / "expected-cache"), in_turn)
    assert {r.status for r in results} == {"done"}
    return numbers(results)


def test_workers_give_what_one_process_gives(tmp_path: Path, cache: Cache, expected: list[object]):
    seen: list[int] = []
    results = run_trials(tries(*STRENGTHS), Store(tmp_path / "r"), cache, on_workers(2), lambda i, r: seen.append(i))
    assert numbers(results) == expected
    assert sorted(seen) == [0, 1, 2, 3]
    again = run_trials(tries(*STRENGTHS), Store(tmp_path / "r"), cache, lambda *_: pytest.fail("all are done"))
    assert again == results


def test_a_killed_workers_run_is_tried_once_more(tmp_path: Path, cache: Cache, quick_start: None):
    killed = {"strength": 0.2, "once": str(tmp_path / "killed")}
    asked = tries({"strength": 0.1}, killed, {"strength": 0.3, "always": True}, {"strength": 0.4})
    store = Store(tmp_path / "r")
    results = run_trials(asked, store, cache, on_workers(2))
    assert [r.status for r in results] == ["done", "done", "interrupted", "done"]
    assert results[2].error == LOST
    assert len(results[2].points) == 1, "what it had measured is kept"
    alone = run_trials(tries(killed), Store(tmp_path / "alone"), cache, in_turn)
    assert numbers([results[1]]) == numbers(alone)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_breaks_stops_no_other_and_is_kept(tmp_path: Path, cache: Cache, quick_start: None, jobs: int):
    asked = tries({"strength": 0.1}, {"raises": "FloatingPointError"}, {"strength": 0.2})
    store = Store(tmp_path / "r")
    results = run_trials(asked, store, cache, on_workers(jobs) if jobs > 1 else in_turn)
    assert [r.status for r in results] == ["done", "failed", "done"]
    assert results[1].error.startswith("FloatingPointError")
    assert store.find(results[1].spec) is not None


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_nobody_expected_stops_no_other_run(tmp_path: Path, cache: Cache, quick_start: None, jobs: int):
    asked = tries({"strength": 0.1}, {"raises": "RuntimeError"}, {"raises": "OutOfMemoryError"}, {"strength": 0.2})
    store = Store(tmp_path / "r")
    results = run_trials(asked, store, cache, on_workers(jobs) if jobs > 1 else in_turn)
    assert [(r.status, len(r.points)) for r in results] == [("done", 2), ("failed", 1), ("failed", 1), ("done", 2)]
    assert results[1].error.startswith("RuntimeError: \n")
    assert results[2].error.startswith("nudge ran out of memory on cpu. Try ")
    assert all("tests/nano_sweep.py:" in r.error for r in results[1:3]), "the frames are kept"
    assert [store.find(r.spec) for r in results] == results


def fits(results: list[RunResult]) -> int:
    """How many of the runs fitted a curvature instead of finding one."""
    phases = [r.costs["curvature"] for r in results]
    return sum(p.full_seconds <= p.seconds for p in phases)


@pytest.mark.parametrize("jobs", [1, 2])
def test_one_fit_serves_all_dampings_and_step_sizes(tmp_path: Path, cache: Cache, quick_start: None, jobs: int):
    grid = [{"step_size": a, "damping": d} for a in (0.01, 0.02) for d in (0.1, 1.0)]
    asked = tries(*grid, method="kfade")
    results = run_trials(asked, Store(tmp_path / "r"), cache, on_workers(jobs) if jobs > 1 else in_turn)
    assert {r.status for r in results} == {"done"}
    noted = cache.root / FITS
    assert (len(noted.read_text().splitlines()) if jobs > 1 else fits(results)) == 1
    assert [entry.kind for entry in cache.entries()].count("curvature") == 1
    assert len({r.points[0].weights for r in results}) == 4


# ---------------------------------------------------------------- killed at any moment


@contextmanager
def killing(count: int, longest: float, rng: random.Random) -> Iterator[list[int]]:
    """Inside, kill one worker of this process after another, at random moments at most `longest` seconds apart.

    Yields:
        Their process ids; the list grows with them.
    """
    killed: list[int] = []
    stop = threading.Event()

    def work() -> None:
        while len(killed) < count and not stop.wait(rng.uniform(0, longest)):
            if workers := multiprocessing.active_children():
                victim = rng.choice(workers)
                victim.kill()
                killed.append(victim.pid or 0)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


def sweep_under_fire(
    asked: Sequence[TrialSpec], store: Store, cache: Cache, kills: int, seed: int, longest: float = 0.6
) -> tuple[list[RunResult], int]:
    """Sweep again and again while workers are killed, until all runs are done.

    Args:
        asked: the runs.
        store: an empty one; it is sound at the end, with no run lost and none doubled.
        cache: what the workers share.
        kills: at most so many.
        seed: of the moments and of who is killed.
        longest: seconds between two kills, at most.

    Returns:
        The results, and how many kills there were.
    """
    with killing(kills, longest, random.Random(seed)) as killed:
        for _ in range(10 + 10 * kills):
            results = run_trials(asked, store, cache, on_workers(2))
            if all(r.status == "done" for r in results):
                break
    assert [r.status for r in results] == ["done"] * len(asked)
    records = store.runs_folder.glob("*/*/*/*/run.json")
    assert sorted(f.parent.name for f in records) == sorted(r.spec.run_id for r in results), "no run lost, none doubled"
    assert list(problems(store)) == []
    return results, len(killed)


SECONDS = 0.05
MANY = int(os.environ.get("HARNESS_TEST_KILLS", "30"))
"""Kills of the tests below that ask for many; 200 are asked for by hand."""


def nudges(count: int, wait: float = SECONDS) -> list[TrialSpec]:
    return tries(*({"strength": 0.1 + 0.01 * i, "wait": wait} for i in range(count)))


def nudge_under_fire(tmp_path: Path, asked: Sequence[TrialSpec], kills: int) -> None:
    """A sweep of the nano method under fire ends as an undisturbed one; more of them until there were so many kills."""
    killed = seed = 0
    cache = Cache(tmp_path / "cache")
    calm = numbers(run_trials(asked, Store(tmp_path / "calm"), cache, in_turn))
    while killed < kills:
        results, more = sweep_under_fire(asked, Store(tmp_path / f"fire-{seed}"), cache, kills - killed, seed)
        assert numbers(results) == calm
        assert [[p.index for p in r.points] for r in results] == [[0, 1]] * len(asked)
        killed, seed = killed + more, seed + 1


def test_no_run_is_lost_or_doubled_when_workers_are_killed(tmp_path: Path, quick_start: None):
    nudge_under_fire(tmp_path, nudges(16, 4 * SECONDS), kills=6)


@pytest.mark.mini
def test_many_killed_workers(tmp_path: Path, quick_start: None):
    nudge_under_fire(tmp_path, nudges(max(20, MANY // 2)), kills=MANY)


def force_under_fire(tmp_path: Path, asked: Sequence[TrialSpec], kills: int, seed: int) -> None:
    """Finished runs that are done anew under fire, until there were so many kills: they stay in sight, and end as before."""
    cache, store = Cache(tmp_path / "cache"), Store(tmp_path / "fire")
    calm = numbers(run_trials(asked, store, cache, in_turn))
    with killing(kills, 0.6, random.Random(seed)) as killed:
        while len(killed) < kills:
            broken = [error for _, error in on_workers(2)(asked, store, cache, True) if error]
            assert set(broken) <= {LOST}
            found = [store.find(todo.plan({}).spec) for todo in asked]
            assert [result.status for result in found if result] == ["done"] * len(asked)
            assert numbers([result for result in found if result]) == calm
            assert list(problems(store)) == []
    assert not [error for _, error in on_workers(2)(asked, store, cache, True) if error]
    assert {file.suffix for file in (store.runs_folder / ".locks").iterdir()} == {".lock"}, "nothing is left out of sight"


def test_finished_runs_stay_in_sight_when_they_are_forced_and_their_workers_killed(tmp_path: Path, quick_start: None):
    force_under_fire(tmp_path, nudges(8), kills=8, seed=0)


@pytest.mark.mini
def test_many_killed_workers_of_forced_runs(tmp_path: Path, quick_start: None):
    force_under_fire(tmp_path, nudges(max(8, MANY // 5)), kills=MANY, seed=1)


# ---------------------------------------------------------------- Ray


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_extra_is_named():
    with pytest.raises(UsageError, match=r"unlearning-harness\[ray\]"):
        on_ray()


def test_a_task_declares_what_it_needs():
    (todo,) = tries({})
    told = needs(todo, {}, gpus_of_a_node=4)
    assert told == {"num_cpus": 1, "num_gpus": 0, "memory": 2 * 2**30, "max_retries": 1}
    assert needs(*tries({}, device="cuda"), {}, 4)["num_gpus"] == 1
    assert needs(*tries({}, device="cuda:all"), {}, 4)["num_gpus"] == 4


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'unlearning-harness[ray]'")
def test_ray_gives_what_one_process_gives(tmp_path: Path, cache: Cache, expected: list[object]):
    asked = [*tries(*STRENGTHS), *tries({"once": str(tmp_path / "killed")}, {"always": True})]
    assert isinstance(asked[0], NanoTry)
    results = run_trials(asked, Store(tmp_path / "r"), cache, on_ray(jobs=2))
    assert numbers(results[:4]) == expected
    assert [r.status for r in results[4:]] == ["done", "interrupted"]
    assert results[5].error == LOST
