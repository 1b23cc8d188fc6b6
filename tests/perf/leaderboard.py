"""How long the leaderboard takes over many runs, beside what was to be reached: the command, and its page in a browser.

    python -m tests.perf.leaderboard --json out.json [--runs 1000] [--points 10] [--again 3]

The runs are made up and written to a folder of their own. The command runs in a process of its own, with a torch on its path
that refuses to be imported. The page is opened from disk in a headless Chromium, where there is one.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness.core.registry import ROOT
from tests.browser import CHROMIUM, chromium
from tests.perf._machine import machine, table, write
from tests.perf.commands import Figure, limit
from tests.records import many

PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
SORTABLE = "performance.getEntriesByName('sortable')[0].startTime"
SORT = """new Promise(done => {
  const started = performance.now();
  document.querySelectorAll("thead button")[COLUMN].click();
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - started)));
})"""


def command(root: Path, again: int) -> list[Figure]:
    """Wall-clock and processor seconds of `harness leaderboard`, and of its check."""
    poisoned = root / "poisoned"
    poisoned.mkdir()
    (poisoned / "torch.py").write_text("raise RuntimeError('torch was imported')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(poisoned), str(ROOT)])}
    wall: dict[str, list[float]] = {"": [], "--check": []}
    busy: list[float] = []
    for _ in range(again):
        for option in wall:
            before, started = _children(), time.perf_counter()
            words = [sys.executable, "-m", "harness", "leaderboard", "--results", str(root), *option.split()]
            subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL)
            wall[option].append(time.perf_counter() - started)
            if not option:
                busy.append(_children() - before)
    return [
        limit("harness leaderboard (s)", wall[""], 5),
        limit("the same, processor time (s)", busy, 5),
        limit("harness leaderboard --check (s)", wall["--check"], 5),
    ]


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def page(root: Path, again: int) -> list[Figure]:
    """Seconds from opening the page to its first paint and to sorting, and for one column to be sorted."""
    painted, sortable, wait, sorting = [], [], [], []
    for _ in range(again):
        with chromium() as tab:
            tab.size(1280, 1000)
            tab.open(root / "leaderboard" / "index.html")
            tab.run("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
            paint, ready = (tab.run(PAINTED) or float("nan")) / 1e3, tab.run(SORTABLE) / 1e3
            painted.append(paint)
            sortable.append(ready)
            wait.append(max(0.0, ready - paint))
            sorting += [tab.run(SORT.replace("COLUMN", str(column))) / 1e3 for column in (3, 5)]
            if tab.complaints:
                raise SystemExit(f"the page complained: {tab.complaints}")
    return [
        Figure("opening the page to first paint (s)", painted, "–", True),
        limit("opening the page to sortable (s)", sortable, 1.5),
        limit("first paint to sortable (s)", wait, 1.5),
        Figure("a column sorted and drawn (s)", sorting, "–", True),
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="How long the leaderboard takes over many runs.")
    parser.add_argument("--json", type=Path, help="where the measurement is written")
    parser.add_argument("--runs", type=int, default=1000, help="how many runs")
    parser.add_argument("--points", type=int, default=10, help="points of each")
    parser.add_argument("--again", type=int, default=3, help="how often everything is repeated")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        many(root, options.runs, options.points)
        figures = command(root, options.again)
        size = (root / "leaderboard" / "index.html").stat().st_size
        if CHROMIUM:
            figures += page(root, options.again)
    print(f"{options.runs} runs of {options.points} points; the page has {size / 1e6:.1f} MB")
    rows = [
        [f.what, f"{statistics.median(f.values):.2f}", f.reach, "yes" if f.met else "no", str(len(f.values))] for f in figures
    ]
    print(table(["what", "median", "reach", "met", "n"], rows))
    if not CHROMIUM:
        print("the page was not opened: there is no Chromium.")
    found: dict[str, Any] = {"machine": machine(), "runs": options.runs, "points": options.points, "page_bytes": size}
    write(options.json, {**found, "load": os.getloadavg()[0], "figures": [vars(f) for f in figures]})


if __name__ == "__main__":
    main()
