"""Where the runs of a sweep are done: in this process, in worker processes of this machine, or as tasks on a Ray cluster.

All of them write into one store and one cache, whose file locks see to it that a run is done by one process at a time and a
curvature fitted once. A worker that is lost (killed, out of memory) is replaced and its run tried once more; the run goes on
from the points it had recorded.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from harness.core.errors import UsageError, reason
from harness.core.plugins import plugin_environment
from harness.core.signals import Stopped, kept_signals, stop_on_signals
from harness.core.workers import follow_parent, prepare_for_workers
from harness.data.hub import Commits, known_commits, take_commits
from harness.running.run import attempt
from harness.running.trials import EvalPlans, TrialSpec
from harness.storage.cache import Cache
from harness.storage.store import Store

log = logging.getLogger(__name__)

START_METHOD = "spawn"
"""How a worker begins: from nothing, so that it shares no thread and no GPU context with its parent."""
SECONDS_TO_STOP = 20
"""How long a worker that is to end may take to mark its run and clean up."""
SECONDS_OF_ASKING = 5
"""How long it is asked again every second: well within the time in which a worker that has begun to end passes over it."""
LOST = "its worker was lost twice (killed, or out of memory); the same command goes on from the points it had recorded"
SMALL_RUN_BYTES = 2 * 2**30
"""What a run on a model trained on the spot takes of the machine's memory, torch included: 1.1 to 1.5 GiB were measured."""

Outcome = tuple[int, str]
"""A try's position, and why it is not done (empty if it is)."""
Executor = Callable[[Sequence[TrialSpec], Store, Cache, bool], Iterator[Outcome]]
"""Does tries in any order and tells each as it ends; the flag does them anew even if they are done."""


def _attempt(todo: TrialSpec, store: Store, cache: Cache, force: bool, eval_plans: EvalPlans) -> str:
    """Plan and do one try; see `harness.running.run.attempt`."""
    try:
        planned = todo.plan(eval_plans)
    except Exception as error:
        return reason(error)
    return attempt(planned, store, cache, force)


def in_turn(tries: Sequence[TrialSpec], store: Store, cache: Cache, force: bool) -> Iterator[Outcome]:
    """One after the other, in this process."""
    eval_plans: EvalPlans = {}
    for index, todo in enumerate(tries):
        yield index, _attempt(todo, store, cache, force, eval_plans)


# ---------------------------------------------------------------- worker processes


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    doing: int | None = None


def on_workers(jobs: int) -> Executor:
    """That many processes on this machine; they share its cores unless OMP_NUM_THREADS says otherwise."""
    context: Any = multiprocessing.get_context(START_METHOD)
    threads = max(1, (os.cpu_count() or 1) // jobs)

    def start(store: Store, cache: Cache, force: bool) -> _Worker:
        prepare_for_workers()
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, store.root, cache.root, force, threads, known_commits()))
        process.start()
        theirs.close()  # so that the end of the worker is the end of the pipe
        return _Worker(process, ours)

    def run(tries: Sequence[TrialSpec], store: Store, cache: Cache, force: bool) -> Iterator[Outcome]:
        waiting = deque(range(len(tries)))
        lost: Counter[int] = Counter()
        workers: list[_Worker] = []
        try:
            while waiting or any(worker.doing is not None for worker in workers):
                while waiting and (_idle(workers) or len(workers) < jobs):
                    if (idle := _idle(workers)) is None:
                        workers.append(idle := start(store, cache, force))
                    if _send(idle, tries[waiting[0]]):
                        idle.doing = waiting.popleft()
                    else:
                        workers.remove(idle)  # it was lost while it had nothing to do
                for pipe in wait([worker.pipe for worker in workers if worker.doing is not None], timeout=1):
                    worker = next(worker for worker in workers if worker.pipe is pipe)
                    index = worker.doing
                    assert index is not None  # only those at work are waited for
                    try:
                        error = worker.pipe.recv()
                    except (EOFError, OSError):
                        workers.remove(worker)
                        lost[index] += 1
                        if lost[index] < 2:
                            log.warning("a worker was lost; its run is tried once more")
                            waiting.appendleft(index)
                            continue
                        error = LOST
                    else:
                        worker.doing = None
                    yield index, error
        finally:
            _end(workers)

    return run


def _end(workers: Sequence[_Worker]) -> None:
    """Let workers mark their runs and clean up; what is still there after `SECONDS_TO_STOP` is killed.

    Those at work are asked more than once. Where two signals come at once (a lost terminal's, then ours) the system may hand
    both to another thread of theirs, and a main thread that sleeps learns nothing of it until the next one.
    """
    for worker in workers:
        if worker.doing is None:
            _send(worker, None)
    alive = list(workers)
    for second in range(SECONDS_TO_STOP):
        for worker in alive:
            if worker.doing is not None and second < SECONDS_OF_ASKING:
                worker.process.terminate()
        until = time.monotonic() + 1
        for worker in alive:
            worker.process.join(max(0.0, until - time.monotonic()))
        alive = [worker for worker in alive if worker.process.is_alive()]
    for worker in alive:
        worker.process.kill()
        worker.process.join()


def executor_of(name: str, jobs: int | None = None) -> Executor:
    """Where runs are done: `ray`, or here (`local`), so many at a time."""
    if name == "ray":
        return on_ray(jobs)
    return on_workers(jobs) if jobs and jobs > 1 else in_turn


def _idle(workers: Sequence[_Worker]) -> _Worker | None:
    return next((worker for worker in workers if worker.doing is None), None)


def _send(worker: _Worker, what: object) -> bool:
    try:
        worker.pipe.send(what)
    except OSError:
        return False
    return True


def _serve(pipe: Connection, results: Path, cache_root: Path, force: bool, threads: int, commits: Commits) -> None:
    """A worker's life: take a try, do it, say how it went, until there is none."""
    follow_parent()
    take_commits(commits)
    stop_on_signals("ended with the sweep it was part of")
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # before torch is imported
    store, cache, eval_plans = Store(results), Cache(cache_root), EvalPlans()
    try:
        while (todo := pipe.recv()) is not None:
            pipe.send(_attempt(todo, store, cache, force, eval_plans))
    except Stopped as stop:
        sys.exit(128 + stop.number)  # its run is marked; a traceback would say nothing


# ---------------------------------------------------------------- Ray


def on_ray(jobs: int | None = None) -> Executor:
    """Tasks on the Ray cluster of RAY_ADDRESS, or on one that is started here.

    Every node must see the results folder, the cache and the folders of plug-ins under the same paths. A task asks for a core
    (or a GPU, where the device is one) and for the memory that its run is estimated to take.

    Args:
        jobs: at most so many at a time; as many as the cluster has room for if not given.

    Raises:
        UsageError: if Ray is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise UsageError("--executor ray needs Ray, which is not installed: pip install 'unlearning-harness[ray]'.") from None

    def run(tries: Sequence[TrialSpec], store: Store, cache: Cache, force: bool) -> Iterator[Outcome]:
        ours = not ray.is_initialized()
        if ours:
            with kept_signals():
                ray.init(log_to_driver=False, logging_level=logging.ERROR)
        try:
            gpus = max((int(node["Resources"].get("GPU", 0)) for node in ray.nodes()), default=0)
            work = ray.remote(_attempt_on_worker)
            eval_plans: EvalPlans = {}
            waiting = deque(enumerate(tries))
            running: dict[Any, int] = {}
            while waiting or running:
                while waiting and len(running) < (jobs or len(tries)):
                    index, todo = waiting.popleft()
                    task = work.options(**needs(todo, eval_plans, gpus))
                    folders = str(store.root.resolve()), str(cache.root.resolve())
                    running[task.remote(todo, *folders, force, known_commits())] = index
                for done in ray.wait(list(running), num_returns=1)[0]:
                    index = running.pop(done)
                    try:
                        error = str(ray.get(done))
                    except ray.exceptions.RayError as lost:
                        log.debug("a task was lost", exc_info=lost)
                        error = LOST
                    yield index, error
        finally:
            if ours:
                ray.shutdown()

    return run


def needs(todo: TrialSpec, eval_plans: EvalPlans, gpus_of_a_node: int) -> dict[str, Any]:
    """What a task declares to Ray: cores, GPUs, memory, where plug-ins lie, and that a lost one is tried once more."""
    from harness.models.memory import machine_bytes

    planned = todo.plan(eval_plans)
    device = todo.options.device
    return {
        "num_cpus": 1,
        "num_gpus": 0 if not device.startswith("cuda") else max(1, gpus_of_a_node) if device == "cuda:all" else 1,
        "memory": SMALL_RUN_BYTES + machine_bytes(planned.eval_plan, planned.method, planned.config, planned.options),
        "max_retries": 1,
    } | ({"runtime_env": {"env_vars": plugins}} if (plugins := plugin_environment()) else {})


def _attempt_on_worker(todo: TrialSpec, results: str, cache: str, force: bool, commits: Commits) -> str:
    take_commits(commits)
    return _attempt(todo, Store(Path(results)), Cache(Path(cache)), force, {})
