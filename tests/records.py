"""Records of runs written straight to disk, for tests of what reads them: no model, no torch, the numbers made up."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.core.config import to_json
from harness.core.costs import Phase
from harness.core.measurement import Absent, Measurement
from harness.storage.records import SCHEMA_VERSION, Point, Provenance, RunResult, RunSpec

SPEC = RunSpec(
    bench="tofu10",
    bench_version=1,
    model="mini",
    sources={"base": {"kind": "trained", "seed": 3}, "retain-0": {"kind": "trained", "seed": 4}},
    method="kfade",
    method_version=1,
    config={"damping": 0.1, "layers": [0, 1], "step_size": None},
    evaluators={"forget_quality": 1, "model_utility": 1, "probability": 1, "rouge": 1, "truth_ratio": 1},
    variant="original",
    template={"name": "mini"},
    data={"full": "abc"},
    references={},
    seed=0,
    limit=None,
    dtype="float32",
    device="cpu",
    generator="hf",
)

PROVENANCE = Provenance(
    harness_version="0.1.0",
    code=None,
    dirty=None,
    packages={"torch": "2.13.0"},
    python="3.12.0",
    platform="Linux x86_64",
    processor="a CPU, 2 cores",
    memory_bytes=1,
    gpu=None,
    threads=1,
    tokenizer="abc",
    weights="abc",
    command="harness run --method kfade --bench tofu10",
)

PUBLISHED = "published form: preset of kfade for tofu10 on mini"
TUNED = "tuned form: preset of kfade for tofu10 on mini"
BY_HAND = "published form: preset of kfade for tofu10 on mini, then damping by hand"

TASKS = ("retain", "real_authors", "world_facts", "forget")
FLOOR = 0.15


def number(metric: str, value: float, **told: Any) -> Measurement:
    """A measurement with what its metric usually has."""
    better = "lower" if metric == "forget_quality_d" else "closer" if metric.startswith("forget_") else "higher"
    common: dict[str, Any] = {"version": 1, "unit": "score", "better": better, "n": 120, "range": (0.0, 1.0)}
    if metric == "forget_quality":
        common |= {"better": "higher", "unit": "p-value", "across_references": (value / 2, value)}
    elif metric == "forget_quality_d":
        common |= {"unit": "KS distance", "floor": FLOOR, "across_references": (value, value + 0.05)}
    else:
        common |= {"interval_95": (value - 0.01, value + 0.01), "resampled": "author", "reference": 0.5}
    return Measurement(metric=metric, value=value, **{**common, **told})


def numbers(quality: float, distance: float, utility: float, **others: float) -> list[Measurement | Absent]:
    """The headline metrics of ToFU, and others by name."""
    told = {"forget_quality": quality, "forget_quality_d": distance, "model_utility": utility, **others}
    return [number(metric, value) for metric, value in told.items()]


def points(ways: Sequence[Sequence[Measurement | Absent]]) -> list[Point]:
    """Points of the way, one for each list of measurements."""
    return [
        Point(index=i, step=i + 1, logged={}, measurements=found, weights=f"w{i}", unlearn_seconds=i + 1.0)
        for i, found in enumerate(ways)
    ]


REFERENCES = {"untouched": numbers(1e-20, 0.6, 0.9), "retrained": numbers(1.0, 0.0, 0.88)}


def run(*ways: Sequence[Measurement | Absent], spec: Mapping[str, Any] | None = None, **changes: Any) -> RunResult:
    """A finished run whose points measured these; `spec` holds what of it differs from `SPEC`."""
    told: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "status": "done",
        "selection": PUBLISHED,
        "references": REFERENCES,
        "costs": {"unlearning": Phase(2.0, 2.5, 2**30, 10)},
        "provenance": PROVENANCE,
        "points": points(ways),
    }
    return RunResult(spec=replace(SPEC, **(spec or {})), **{**told, **changes})


BUDGETS = (0.003, 0.01, 0.03, 0.1)
REFERENCES_AT_BUDGETS = {
    "untouched": [*numbers(1e-20, 0.6, 0.9), number("forget_probability", 0.95)],
    "retrained": [*numbers(1.0, 0.0, 0.88), number("forget_probability", 0.2)],
}


def at_budgets(
    met: Mapping[float | None, Sequence[Measurement | Absent]],
    unmet: Mapping[str, str] | None = None,
    spec: Mapping[str, Any] | None = None,
    **changes: Any,
) -> RunResult:
    """A finished run with budgets: what it measured at each that it met (None: at its own damage), why not at others."""
    measured = [
        Point(
            index=i,
            step=i // 2,  # two points may lie between the same two steps
            logged={"damage": budget * 1.01, "budget": budget} if budget else {"damage": 0.2},
            measurements=of,
            weights=f"w{i}",
            unlearn_seconds=i + 1.0,
        )
        for i, (budget, of) in enumerate(met.items())
    ]
    chosen = {"budgets": BUDGETS, "budget_rows": "rows-of-budgets", **(spec or {})}
    usual: dict[str, Any] = {"unreached": unmet or {}, "points": measured, "references": REFERENCES_AT_BUDGETS}
    return run(spec=chosen, **{**usual, **changes})


def write(root: Path, *results: RunResult) -> list[Path]:
    """Store them below `root/runs`; returns their folders."""
    folders = []
    for result in results:
        folder = root / "runs" / result.spec.folder
        folder.mkdir(parents=True, exist_ok=True)
        told = to_json(result)
        lines = [json.dumps(point, ensure_ascii=False) + "\n" for point in told.pop("points")]
        (folder / "points.jsonl").write_text("".join(lines), encoding="utf-8")
        (folder / "run.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        folders.append(folder)
    return folders


METHODS = ("dpo", "ga", "grad_diff", "idk", "kfade", "kl_min", "loku", "npo", "simnpo", "soul")


def many(root: Path, count: int = 1000, length: int = 10, seeds: int = 1) -> None:
    """Write a store as large as a long sweep: that many runs, so many points each, all of ToFU's sixteen metrics in each."""
    draw = random.Random(0)

    def measured() -> list[Measurement | Absent]:
        rest = {f"{task}_{what}": draw.random() for what in ("probability", "rouge", "truth_ratio") for task in TASKS}
        rest["model_utility_arithmetic"] = draw.random()
        return numbers(10 ** -(20 * draw.random()), draw.random() * 0.7, draw.random(), **rest)

    references = {"untouched": measured(), "retrained": measured()}
    for i in range(count):
        setting, seed = divmod(i, seeds)
        method = METHODS[setting % len(METHODS)]
        chosen = {"method": method, "seed": seed, "config": {"lr": 1e-5 * (setting + 1), "epochs": 5, "batch_size": 16}}
        told = (PUBLISHED, TUNED, BY_HAND)[setting // len(METHODS) % 3].replace("kfade", method)
        write(root, run(*[measured() for _ in range(length)], spec=chosen, references=references, selection=told))
