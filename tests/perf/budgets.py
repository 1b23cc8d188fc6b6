"""What meeting budgets of damage costs on top of a run, and what a run over all budgets takes.

python -m tests.perf.budgets [--methods grad_diff,npo,kfade] [--budgets .003,.01,.03,.1] [--out FILE]

Each method runs on tofu10, mini, with the benchmark's own evaluators, from a cache that holds the models and the references.
Printed are the seconds of its phases, and the damage's share of all the others: "on top of a mini run".
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.perf._machine import gemm_rate, machine, table, write

ON_TOP = ("unlearning", "evaluation")


def measured(method: str, budgets: tuple[float, ...]) -> dict[str, float]:
    """One run's seconds, by phase, and as the clock on the wall has it."""
    from harness.core.options import Options
    from harness.running.plan import plan
    from harness.running.run import execute
    from harness.storage.cache import Cache
    from harness.storage.store import Store

    with tempfile.TemporaryDirectory() as folder:
        todo = plan("tofu10", "mini", method, {}, Options(budgets=budgets))
        started = time.perf_counter()
        result = execute(todo, Store(Path(folder)), Cache())
        seconds = {name: phase.seconds for name, phase in result.costs.items()}
    return {**seconds, "all": time.perf_counter() - started, "points": float(len(result.points))}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="grad_diff,npo,kfade")
    parser.add_argument("--budgets", default=".003,.01,.03,.1")
    parser.add_argument("--out", type=Path)
    words = parser.parse_args()
    budgets = tuple(map(float, words.budgets.split(",")))
    measured("untouched", ())  # models and references are made here, if they are not there
    runs = {method: measured(method, budgets) for method in words.methods.split(",")}
    rows = []
    for method, seconds in runs.items():
        others = sum(seconds.get(name, 0.0) for name in ON_TOP)
        # A method that chooses its own length measures the damage on its own clock, inside `unlearning`.
        share = f"{seconds['damage'] / others:.0%}"
        cells = [seconds.get(name, 0.0) for name in ("unlearning", "evaluation", "damage", "all")]
        rows.append([method, f"{seconds['points']:.0f}", *(f"{cell:.1f}" for cell in cells), share])
    print(table(["method", "points", "unlearning s", "evaluation s", "damage s", "whole run s", "damage on top"], rows))
    write(words.out, {"machine": machine(), "gflops": gemm_rate(1), "budgets": budgets, "runs": runs})


if __name__ == "__main__":
    main()
