"""What a sweep of 24 K-FADE settings takes, how many curvatures it fits, and what a further setting takes beside the first.

    python -m tests.perf.sweep --json out.json [--jobs 2]

The command runs as a user types it, in a results folder made for the measurement, with the mini models trained beforehand and
neither curvature nor gradient cached. `unlearning` is the clock of the records; `monitoring`, the KL and losses that a run
only reports, stands beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from tests.perf._machine import gemm_rate, machine, table, write
from tests.perf.commands import Figure, limit, timed

STEP_SIZES = "0.02,0.03,0.045,0.054,0.065,0.08"
DAMPINGS = "0.03,0.1,0.3,1"
SWEEP = (
    "sweep",
    "--method",
    "kfade",
    "--bench",
    "tofu10",
    "--grid",
    f"step_size={STEP_SIZES}",
    "--grid",
    f"damping={DAMPINGS}",
)


def measure(results: Path, jobs: int) -> list[Figure]:
    """One sweep."""
    timed("run", "--method", "untouched", "--bench", "tofu10", "--results", str(results), "--quiet")
    from harness.storage.cache import Cache

    for kind in ("curvature", "gradient", "generations"):
        shutil.rmtree(Cache().root / kind, ignore_errors=True)
    seconds, out = timed(*SWEEP, "--jobs", str(jobs), "--results", str(results), "--json")
    costs: list[Any] = [result["costs"] for result in json.loads(out)]
    fitted = [c for c in costs if c["curvature"]["full_seconds"] <= c["curvature"]["seconds"]]
    first = fitted[0]["unlearning"]["seconds"]
    further = [c["unlearning"]["seconds"] for c in costs if c not in fitted]
    watched = [c["unlearning"]["seconds"] + c["monitoring"]["seconds"] for c in costs if c not in fitted]
    share = statistics.median(further) / first
    return [
        limit(f"24 K-FADE settings on mini tofu10, {jobs} at a time (s)", [seconds], 180),
        Figure("curvatures fitted", [len(fitted)], "1", len(fitted) == 1),
        Figure("unlearning time of the first setting (s)", [first], "–", True),
        Figure("unlearning time of a further one (s)", further, "–", True),
        Figure("the same with what it only reports (s)", watched, "–", True),
        Figure("a further one's share of the first", [share], "≤ 1/50", share <= 1 / 50),
        Figure("evaluation of one point (s)", [c["evaluation"]["seconds"] for c in costs], "–", True),
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="What a sweep over step sizes and dampings takes.")
    parser.add_argument("--json", type=Path, help="where the measurement is written")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    options = parser.parse_args()
    before = gemm_rate(2)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), options.jobs)
    after = gemm_rate(2)
    print(f"1024³ float32 product on two threads: {before:.0f} GFLOP/s before, {after:.0f} after")
    rows = [
        [f.what, f"{statistics.median(f.values):.3g}", f.reach, "yes" if f.met else "no", str(len(f.values))] for f in figures
    ]
    print(table(["what", "median", "reach", "met", "n"], rows))
    found: dict[str, Any] = {"machine": machine(), "reference_gflops": {"before": before, "after": after}}
    write(options.json, {**found, "figures": [vars(f) for f in figures]})


if __name__ == "__main__":
    main()
