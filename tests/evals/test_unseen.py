"""Probabilities apart for those who are guarded and those who are not, by hand-made rows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from harness.core.benchmark import BENCHMARKS, eval_plan
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan
from harness.core.measurement import Absent, Measurement
from harness.core.options import Options
from harness.core.problem import Problem
from harness.statistics.measurements import measurements

# Cluster → probabilities of the true answer and of two wrong ones, per token.
AUTHORS = {
    "Ada": [(0.6, 0.2, 0.2), (0.5, 0.25, 0.25)],
    "Bo": [(0.3, 0.4, 0.3)],
    "Cy": [(0.2, 0.2, 0.1)],
    "Di": [(0.1, 0.1, 0.3)],
}
FACTS = {"Here": [(0.8, 0.1, 0.1)], "Elsewhere": [(0.4, 0.3, 0.3), (0.3, 0.3, 0.9)]}


def rows(task: str, told: dict[str, list[tuple[float, ...]]]) -> list[dict[str, object]]:
    pairs = [(cluster, odds) for cluster, rows in told.items() for odds in rows]
    return [
        {
            "task": task,
            "row": i,
            "cluster": cluster,
            "avg_gt_loss": -np.log(true),
            "average_perturb_loss": (-np.log(wrong)).tolist(),
        }
        for i, (cluster, (true, *wrong)) in enumerate(pairs)
    ]


def measured(problem: Problem, guarded: Collection[str]) -> dict[str, Measurement | Absent]:
    table = pd.DataFrame([*rows("real_authors", AUTHORS), *rows("world_facts", FACTS)])
    plan = EvalPlan(replace(problem, guarded=guarded))
    found = measurements(EVALUATORS.get("unseen"), EvalContext(None, plan, (), {"likelihood": table}))
    return {m.metric: m for m in found}


def test_each_side_is_the_mean_over_its_own_rows(nano_problem: Problem):
    found = measured(nano_problem, {"Ada", "Cy", "Elsewhere", "nobody asks of"})
    expected = {
        "real_authors_guarded": (0.6 + 0.5 + 0.4) / 3,
        "real_authors_unseen": (0.3 + 0.2) / 2,
        "world_facts_guarded": (0.4 + 0.2) / 2,
        "world_facts_unseen": 0.8,
    }
    assert {name: m.value for name, m in found.items() if isinstance(m, Measurement)} == pytest.approx(expected)
    assert {name: (m.n, m.better) for name, m in found.items() if isinstance(m, Measurement)} == {
        "real_authors_guarded": (3, "higher"),
        "real_authors_unseen": (2, "higher"),
        "world_facts_guarded": (2, "higher"),
        "world_facts_unseen": (1, "higher"),
    }


def test_without_anybody_guarded_there_is_none(nano_problem: Problem):
    found = measured(nano_problem, frozenset())
    assert len(found) == 4
    assert all(isinstance(m, Absent) and "no general text" in m.reason for m in found.values())


def test_a_side_without_rows_says_so(nano_problem: Problem):
    found = measured(nano_problem, {"Here", "Elsewhere"})
    alone = found["real_authors_guarded"]
    assert isinstance(alone, Absent)
    assert "none of the real_authors rows is guarded" in alone.reason
    assert isinstance(found["real_authors_unseen"], Measurement)


def test_on_mini_about_half_of_those_asked_about_are_guarded():
    benchmark, options = BENCHMARKS.get("tofu10"), Options(evals=("+unseen",))
    plan = eval_plan(benchmark, benchmark.problem("mini", options), options)
    assert [e.name for e in plan.evaluators][-1] == "unseen"
    assert "unseen" not in [e.name for e in benchmark.evaluators()]
    for task in ("real_authors", "world_facts"):
        clusters = {row["cluster"] for row in plan.questions[task]}
        assert 0.25 < len(clusters & set(plan.problem.guarded)) / len(clusters) < 0.75
