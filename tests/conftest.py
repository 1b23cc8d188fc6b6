"""A world small enough for every test: random Llamas of some ten thousand parameters, a few rows, folders of its own.

Torch is imported by the fixtures that need it, so that a test of settings or records does not wait for it.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

# Before anything imports torch, huggingface_hub or tqdm: no network, no threads that spin on shared cores, no bars; the hub of the
# tests may take its time.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.update(HF_HUB_ETAG_TIMEOUT="600", HF_HUB_DOWNLOAD_TIMEOUT="600")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TQDM_DISABLE", "1")

from evals.benchmarks import tofu
from evals.benchmarks.tofu.models import mini_sources
from evals.benchmarks.tofu.world import World, vocabulary
from evals.benchmarks.tofu.world_data import REFUSALS
from harness.core.benchmark import BENCHMARKS
from harness.core.config import settings
from harness.core.costs import Costs
from harness.core.evaluator import EvalContext, Evaluator
from harness.core.method import METHODS, Method, Progress, UnlearningContext
from harness.core.metric import Metric, Number, Plain
from harness.core.options import Options
from harness.core.problem import Problem, Stage
from harness.core.registry import ROOT
from harness.core.text import Example, Template
from harness.models.recipes import Vocabulary
from harness.models.sources import CheckpointSource, save_checkpoint, source_digest, weights_fingerprint
from harness.running.contracts.tiny import TinyModels, TinySource
from harness.running.plan import Plan, plan
from harness.storage.cache import Cache
from harness.storage.store import Store
from tests.clock import A_HANG, Clock

WORDS = Vocabulary("words", tuple(vocabulary()))
TEMPLATE = Template("mini", answer_tag=" ")
WORLD = World(0)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Asked for no file, share all tests out over two processes with a thread each, where pytest-xdist is installed."""
    everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    its_own = hasattr(config, "workerinput")  # one of the two: it shares out nothing
    if everything and not its_own and getattr(config.option, "numprocesses", 0) is None and not config.option.usepdb:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        config.option.numprocesses, config.option.dist = 2, "worksteal"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the user's cache."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session", autouse=True)
def _sources_named_once() -> Iterator[None]:
    """The digest of all that the embedded models learn takes a while, and is the same in every test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tofu, "mini_sources", functools.cache(mini_sources))
        yield


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """By which costs are measured."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


# ---------------------------------------------------------------- nano models


class Nano(TinyModels):
    """Random Llamas over the embedded world's words; they can be had as folders, too."""

    def __init__(self, root: Path) -> None:
        super().__init__(WORDS)
        self.root = root

    def folder(self, seed: int = 0) -> Path:
        """The same as an ordinary checkpoint on disk."""
        folder = self.root / f"nano-{seed}"
        if not folder.exists():
            save_checkpoint(self.model(seed), self.tokenizer, folder, {})
        return folder

    def source(self, seed: int = 0) -> CheckpointSource:
        return CheckpointSource(str(self.folder(seed)))


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Nano:
    return Nano(tmp_path_factory.mktemp("nano"))


# ---------------------------------------------------------------- a nano problem


def examples(rows: Sequence[Mapping[str, Any]]) -> list[Example]:
    return [TEMPLATE.example(row["question"], row["answer"]) for row in rows]


def numbered(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    kept = ("question", "answer", "paraphrased_answer", "perturbed_answer")
    return [{"row": i, "cluster": str(row["author"]), **{k: row[k] for k in kept if k in row}} for i, row in enumerate(rows)]


def with_choices(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Short questions as multiple choice, the right answer at each place in turn."""
    asked = []
    for i, row in enumerate(rows):
        choices = list(row["perturbed_answer"])
        choices.insert(i % 4, row["answer"])
        asked.append(
            {"row": i, "cluster": str(row["author"]), "question": row["question"], "choices": choices, "answer": i % 4}
        )
    return asked


@pytest.fixture(scope="session")
def nano_problem(nano: Nano) -> Problem:
    """12 rows to forget, 24 to retain, 10 questions a set from five authors each."""
    forget, retain = WORLD.split("forget05"), WORLD.split("retain90")
    return Problem(
        bench="nano",
        bench_version=1,
        model="mini",
        stages=[Stage("forget", forget=examples(forget[::5]), retain=examples(retain[:24]))],
        questions={
            "retain": numbered(retain[:60:6]),
            "real_authors": numbered(WORLD.real_authors[:10]),
            "world_facts": numbered(WORLD.world_facts[:10]),
            "forget": numbered(forget[::6]),
            "instructions": numbered(retain[1:60:6]),
            "bio": with_choices(WORLD.world_facts[10:30]),
        },
        template=TEMPLATE,
        sources={
            "base": nano.source(0),
            "retain-0": nano.source(1),
            "retain-1": nano.source(2),
            "checkpoint-nano": nano.source(3),
        },
        data={"rows": "nano"},
        generation_budget=16,
        refusals=REFUSALS,
        guarded=WORLD.guarded,
        holdout=lambda: numbered(WORLD.holdout[:240:6]),
        paraphrased_questions={"forget": [row["paraphrased_question"] for row in forget[::6]]},
        attacks={
            "benign": examples(WORLD.world_facts[:12]),
            "related": examples(retain[:24]),
            "forget": examples(forget[1::6]),
        },
    )


ContextMaker = Callable[..., UnlearningContext]


@pytest.fixture
def make_context(nano: Nano, nano_problem: Problem, tmp_path: Path) -> ContextMaker:
    """Makes settings that share nothing: a fresh model, a cache of its own."""
    made = 0

    def make(seed: int = 0, problem: Problem = nano_problem) -> UnlearningContext:
        nonlocal made
        made += 1
        own = Cache(tmp_path / f"cache-{made}")
        return UnlearningContext(
            nano.model(0), nano.tokenizer, problem, seed, own, Costs(), source_digest(problem.sources["base"])
        )

    return make


@pytest.fixture
def check_seed(make_context: ContextMaker) -> Callable[[Callable[[UnlearningContext], object]], None]:
    """Checks that the seed alone decides what a run makes of a model: the global random numbers neither count nor move."""

    def check(run: Callable[[UnlearningContext], object]) -> None:
        import torch

        weights = []
        for seed, world in ((3, 0), (3, 1), (4, 0)):
            context = make_context(seed=seed)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(world)
                state = torch.random.get_rng_state()
                run(context)
                assert torch.equal(torch.random.get_rng_state(), state)
            weights.append(weights_fingerprint(context.model))
        assert weights[0] == weights[1] != weights[2]

    return check


@pytest.fixture
def nano_context(make_context: ContextMaker) -> UnlearningContext:
    return make_context()


# ---------------------------------------------------------------- a nano benchmark, for whole runs


def giving(name: str, value: Callable[[EvalContext], float | None], **more: Any) -> Evaluator:
    """An evaluator whose one number, of its own name, is what a function makes of what it sees; absent where that is None."""

    def measure(context: EvalContext, metric: Metric) -> Number:
        number = value(context)
        if number is None:
            raise LookupError("there is no such number")
        return Number(number, 1)

    plain = Plain("it is made for a test", compared=False)
    metric = Metric(name, title=name, unit="x", better=None, about="made for a test", statistic=plain)
    return Evaluator(name, 1, measure, (replace(metric, **more.pop("metric", {})),), **more)


class NanoBenchmark:
    """The nano problem behind the interface of a benchmark."""

    name = "nano"
    version = 1
    models: Mapping[str, str] = {"mini": "random weights"}
    roles = tofu.Tofu.roles

    def __init__(self, problem: Problem, evaluators: Sequence[Evaluator] | None = None) -> None:
        self._problem, self._evaluators = problem, evaluators

    def problem(self, model: str, options: Options) -> Problem:
        return replace(self._problem, model=model)

    def evaluators(self) -> Sequence[Evaluator]:
        return BENCHMARKS.get("tofu10").evaluators() if self._evaluators is None else self._evaluators


@settings
class FakeConfig:
    """Settings of the methods that tests invent."""

    strength: float = 1.0
    """How far a step goes."""


Unlearning = Callable[[UnlearningContext, Any], Iterator[Progress]]


@dataclass
class Bench:
    """Runs invented methods and evaluators on the nano problem."""

    base: Problem
    monkeypatch: pytest.MonkeyPatch
    results: Path
    cache: Cache

    @property
    def store(self) -> Store:
        return Store(self.results)

    def plan(
        self,
        unlearn: Unlearning,
        evaluators: Sequence[Evaluator] | None = None,
        problem: Problem | None = None,
        options: Options = Options(),  # noqa: B008 (frozen)
        settings: Mapping[str, Any] | None = None,
    ) -> Plan:
        """The plan of a run of that method, which goes by the name `fake`."""
        self.monkeypatch.setitem(METHODS._registered, "fake", Method("fake", FakeConfig, "a test", unlearn))
        self.monkeypatch.setitem(BENCHMARKS._registered, "nano", NanoBenchmark(problem or self.base, evaluators))
        return plan("nano", "mini", "fake", settings or {}, options)


@pytest.fixture
def bench(nano: Nano, nano_problem: Problem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Cache) -> Bench:
    sources = {"base": TinySource(0, nano), "retain-0": TinySource(1, nano)}
    return Bench(replace(nano_problem, sources=sources), monkeypatch, tmp_path / "results", cache)


# ---------------------------------------------------------------- the command line in a process of its own

HarnessCli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def harness_cli(tmp_path: Path) -> HarnessCli:
    """Runs `python -m harness …` in an empty folder.

    `without_torch=True` puts a torch on the path that refuses to be imported.
    """
    here = tmp_path / "somewhere"
    poisoned = tmp_path / "poisoned"

    def run(*words: str, env: Mapping[str, str] | None = None, without_torch: bool = False) -> subprocess.CompletedProcess[str]:
        here.mkdir(exist_ok=True)
        path = [str(ROOT)]
        if without_torch:
            poisoned.mkdir(exist_ok=True)
            (poisoned / "torch.py").write_text("raise RuntimeError('torch was imported')\n")
            path.insert(0, str(poisoned))
        return subprocess.run(
            [sys.executable, "-m", "harness", *words],
            cwd=here,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "COLUMNS": "160", **(env or {})},
            capture_output=True,
            text=True,
            timeout=A_HANG,
        )

    return run
