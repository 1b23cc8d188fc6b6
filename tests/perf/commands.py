"""How long the commands take as a user types them, and what the embedded world gives, beside what was to be reached.

    python -m tests.perf.commands --json out.json [--worlds 0,1,2] [--again 5]

Every command runs in a process of its own with an empty cache and results folder made for the measurement. Wall-clock times
drift with the machine: the rate of a matrix product, before and after, stands above the table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from tests.perf._machine import gemm_rate, machine, table, write

MAIN_JOB = ("run", "--method", "kfade", "--bench", "tofu10")


@dataclass(frozen=True)
class Figure:
    """Something that was measured."""

    what: str
    """As printed."""
    values: list[float]
    """Every measurement; the median is printed."""
    reach: str
    """What was to be reached."""
    met: bool
    """Whether it was."""


def timed(*words: str) -> tuple[float, str]:
    """Seconds of wall-clock time and standard output of one `harness` command."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "harness", *words], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"harness {' '.join(words)} failed:\n{done.stderr[-2000:]}")
    return seconds, done.stdout


def commands(results: Path, again: int) -> list[Figure]:
    """The main job from nothing, with the mini models cached, and already done; a listing."""
    job = (*MAIN_JOB, "--results", str(results))
    first, _ = timed(*job, "--json")
    new, evaluation = [], []
    for seed in range(1, again + 1):
        seconds, out = timed(*job, "--seed", str(seed), "--json")
        new.append(seconds)
        evaluation.append(json.loads(out)["costs"]["evaluation"]["seconds"])
    done = [timed(*job)[0] for _ in range(again)]
    listing = [timed("list", "methods")[0] for _ in range(again)]
    return [
        limit("kfade on tofu10, nothing cached (s)", [first], 180),
        limit("the same, mini models cached, another seed (s)", new, 25),
        limit("the same, already done (s)", done, 2),
        limit("harness list methods (s)", listing, 0.7),
        limit("ToFU evaluation of one point, generation included (s)", evaluation, 4),
    ]


def limit(what: str, values: list[float], at_most: float) -> Figure:
    """A figure that is to stay at or under a limit."""
    return Figure(what, values, f"≤ {at_most:g}", statistics.median(values) <= at_most)


def further_weights(again: int) -> list[Figure]:
    """The weights for one further damping, with curvature and forget gradient cached and loaded."""
    from harness.core.config import resolve
    from harness.core.costs import Costs
    from harness.core.method import METHODS, UnlearningContext
    from harness.core.options import Options
    from harness.models.sources import source_digest, weights_fingerprint
    from harness.running.plan import plan
    from harness.storage.cache import Cache
    from methods.curvature.layers import mlp_layers
    from methods.curvature.solve import Solver
    from methods.gauss_newton.data import StageData
    from methods.gauss_newton.fit import fit, forget_gradient

    todo = plan("tofu10", "mini", "kfade", {}, Options())
    cache = Cache()
    base = todo.problem.sources["base"]
    model, tokenizer = base.load(cache, "cpu", "float32")
    context = UnlearningContext(model, tokenizer, todo.problem, 0, cache, Costs(), source_digest(base))
    config = resolve(METHODS.get("kfade").config, todo.spec.config, owner="kfade")
    layers = mlp_layers(model)
    data = StageData(context, todo.problem.stages[0], config)
    weights = weights_fingerprint(model)
    gradients = forget_gradient(data, layers, 1, weights)
    solver = Solver(layers, fit(data, layers, weights, config.estimator).curvatures, gradients)
    start = [layer.matrix() for layer in layers]
    seconds = []
    for k in range(max(again, 5) * 4):
        started = time.perf_counter()
        direction = solver.direction(solver.mean_eigenvalue * 0.1 * 1.1**k)
        for layer, matrix, towards in zip(layers, start, direction.matrices, strict=True):
            layer.set_matrix(matrix + 0.05 / direction.g_norm * towards)
        seconds.append(time.perf_counter() - started)
    return [limit("weights for one further damping, mini (s)", seconds, 0.02)]


def worlds(seeds: list[int]) -> list[Figure]:
    """What the untouched model and the retrained ones score, over world seeds."""
    from evals import _tofu
    from harness.core.evaluator import EvalContext
    from harness.core.options import Options
    from harness.models.pretraining import train_all
    from harness.numerics.generation import HFGenerator
    from harness.running.measuring import source_tables
    from harness.running.plan import plan
    from harness.statistics.two_sample import ks
    from harness.storage.cache import Cache

    untouched: list[float] = []
    utility: list[float] = []
    between: list[float] = []
    for seed in seeds:
        todo, cache = plan("tofu10", f"mini@{seed}", "untouched", {}, Options()), Cache()
        train_all(list(todo.problem.sources.values()), cache)
        subjects = {
            name: EvalContext(
                None, todo.eval_plan, (), source_tables(source, todo.eval_plan, todo.options, cache, HFGenerator()).tables
            )
            for name, source in todo.problem.sources.items()
        }
        ratios = {name: _tofu.log_truth_ratio(context, "forget").values for name, context in subjects.items()}
        untouched.append(ks(ratios["base"], ratios["retain-0"])[0])
        utility.append(_tofu.utility(subjects["base"]))
        between += [ks(ratios[a], ratios[b])[0] for a, b in combinations(todo.eval_plan.references, 2)]
    median = statistics.median(between)
    over = f"over worlds {', '.join(map(str, seeds))}"
    return [
        Figure(f"forget quality of the untouched model, largest {over}", [max(untouched)], "≤ 1e-10", max(untouched) <= 1e-10),
        Figure(f"model utility of the untouched model, smallest {over}", [min(utility)], "≥ 0.8", min(utility) >= 0.8),
        Figure(f"forget quality between retrained models, median {over}", between, "≥ 0.05", median >= 0.05),
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="How long the commands take, and what the embedded world gives.")
    parser.add_argument("--json", type=Path, help="where the measurement is written")
    parser.add_argument("--worlds", default="0,1,2", help="world seeds")
    parser.add_argument("--again", type=int, default=3, help="how often the quick commands are repeated")
    options = parser.parse_args()

    parts: list[Callable[[Path], list[Figure]]] = [
        lambda results: commands(results, options.again),
        lambda _: further_weights(options.again),
        lambda _: worlds([int(seed) for seed in options.worlds.split(",")]),
    ]
    before = gemm_rate(2)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HARNESS_CACHE"] = str(Path(folder, "cache"))
        for part in parts:
            figures += part(Path(folder, "results"))
    after = gemm_rate(2)
    print(f"1024³ float32 product on two threads: {before:.0f} GFLOP/s before, {after:.0f} after")
    rows = [
        [f.what, _told(statistics.median(f.values)), f.reach, "yes" if f.met else "no", str(len(f.values))] for f in figures
    ]
    print(table(["what", "median", "reach", "met", "n"], rows))
    found: dict[str, Any] = {"machine": machine(), "reference_gflops": {"before": before, "after": after}}
    write(options.json, {**found, "figures": [vars(f) for f in figures]})


def _told(value: float) -> str:
    return f"{value:.1e}" if value < 1e-3 else f"{value:.3g}"


if __name__ == "__main__":
    main()
