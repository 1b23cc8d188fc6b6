"""A benchmark and methods that take milliseconds, for sweeps in worker processes.

Unpickling a `NanoTry` imports this module, which registers them there: workers know nothing of a test's patches.
"""

from __future__ import annotations

import builtins
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evals.benchmarks.tofu.world_data import REFUSALS
from harness.core.benchmark import BENCHMARKS
from harness.core.config import settings
from harness.core.evaluator import EvalContext, EvalPlan
from harness.core.method import METHODS, Method, Progress, UnlearningContext
from harness.core.options import Options
from harness.core.problem import Problem, Stage
from harness.running.contracts.tiny import TinySource
from harness.running.trials import EvalPlans, TrialSpec
from harness.storage.records import Trial
from tests.conftest import TEMPLATE, WORLD, Nano, NanoBenchmark, examples, giving, numbered

NANO = Nano(Path("unused"))
PRELOADED = [
    *(
        "torch._dynamo",
        "transformers.models.llama.modeling_llama",
        "accelerate",
        "pandas",
        "pyarrow.compute",
        "safetensors.torch",
    ),
    *("evals.probability", "evals.rouge", "methods.ga", "methods.grad_diff", "rouge_score.rouge_scorer", "scipy.stats"),
    *(
        "harness.running.executors",
        "harness.numerics.generation",
        "harness.numerics.likelihood",
        "harness.models.memory",
        "methods.kfade",
        "methods.gauss_newton.fit",
    ),
    *("harness.cli.entry", "harness.cli.runs", "harness.cli.sweeps", "tests.nano_sweep"),
]
"""All that a run imports."""


def quick_context() -> Any:
    """Processes that begin in milliseconds, where importing takes ten seconds: a server that has imported everything forks them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@settings
class NanoConfig:
    """Settings of the method below."""

    strength: float = 1.0
    """How far a step goes."""
    once: str = ""
    """A file: the first process that does not find it makes it and kills itself."""
    always: bool = False
    """Whether its process is always killed."""
    wait: float = 0.0
    """Seconds of doing nothing before the last point."""
    deaf: bool = False
    """Whether its process learns nothing of the first SIGTERM that it is sent."""
    raises: str = ""
    """The name of one of torch's errors, or Python's, that is raised instead of the last point."""


def be_deaf_once() -> None:
    """Pass over the next SIGTERM."""
    hears = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, hears))


def nudge(context: UnlearningContext, config: NanoConfig) -> Iterator[Progress]:
    """Two steps along the sign of the weights."""
    import torch

    for step in (1, 2):
        with torch.no_grad():
            for parameter in context.model.parameters():
                parameter.add_(config.strength * 1e-3 * parameter.sign())
        if step == 2 and config.always:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 2 and config.once and not Path(config.once).exists():
            Path(config.once).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 2 and config.raises:
            raise getattr(torch, config.raises, None) or getattr(builtins, config.raises)
        if step == 1 and config.deaf:
            be_deaf_once()
        time.sleep(config.wait if step == 2 else 0)
        yield Progress(step, measure_here=True, total=2)


def norm(context: EvalContext) -> float | None:
    """The weights' norm; of the references only tables are known."""
    if context.loaded is None:
        return None
    return sum(float(p.detach().double().square().sum()) for p in context.model.parameters())


def nano_problem() -> Problem:
    forget, retain = WORLD.split("forget05"), WORLD.split("retain90")
    return Problem(
        bench="nano",
        bench_version=1,
        model="mini",
        stages=[Stage("forget", forget=examples(forget[::5]), retain=examples(retain[:24]))],
        questions={"forget": numbered(forget[::6])},
        template=TEMPLATE,
        sources={"base": TinySource(0, NANO)},
        data={"rows": "nano"},
        generation_budget=16,
        refusals=REFUSALS,
    )


FITS = "fits.txt"
"""In the cache's folder: a line for every curvature that a worker fitted."""


def count_fits() -> None:
    """Note in the cache when a worker writes down a curvature that it has fitted."""
    from methods.gauss_newton import fit

    real = fit.save_curvatures

    def noted(curvatures: Any, layers: Any, folder: Path, *rest: Any) -> None:
        root = next(parent for parent in folder.parents if (parent / "locks").is_dir())
        with (root / FITS).open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
        real(curvatures, layers, folder, *rest)

    noted.counts = True  # type: ignore[attr-defined]
    if not hasattr(real, "counts"):
        fit.save_curvatures = noted


def register() -> None:
    if multiprocessing.parent_process():
        count_fits()
    METHODS._registered["nudge"] = Method("nudge", NanoConfig, "a test", nudge)
    BENCHMARKS._registered["nano"] = NanoBenchmark(nano_problem(), [giving("norm", norm)])


@dataclass(frozen=True)
class NanoTry(TrialSpec):
    """A try on the nano benchmark."""

    def eval_plan(self, eval_plans: EvalPlans) -> EvalPlan:
        register()
        return super().eval_plan(eval_plans)


def tries(*chosen: dict[str, Any], method: str = "nudge", trial: Trial | None = None, **changes: Any) -> list[TrialSpec]:
    one = NanoTry("nano", "mini", method, Options(**changes), {}, {}, trial=trial)
    return [replace(one, chosen=settings) for settings in chosen]
