"""No number moves: what is measured follows from the rows that are committed, to the last digit."""

from __future__ import annotations

import pytest

from harness.core.evaluator import EVALUATORS, EvalContext
from harness.core.measurement import Measurement
from harness.core.metric import OfMeans
from harness.core.options import Options
from harness.core.registry import ROOT
from harness.running.plan import read
from harness.statistics.measurements import measurements
from harness.storage.frames import AllInOne
from harness.storage.store import Store

STORE = Store(ROOT / "results")
SAME = ("metric", "version", "value", "unit", "n", "range", "interval_95", "interval_method", "resampled", "note")


@pytest.mark.parametrize(("bench", "method"), [("tofu10", "npo"), ("tofu01", "kfade"), ("wmdp", "rmu")])
def test_a_committed_runs_rows_give_its_committed_numbers(bench: str, method: str):
    place = STORE.places(f"{bench}/*/{method}/*")[0]
    result = STORE.read(place)
    point = result.points[-1]
    rows = STORE.rows(result.spec, point.index)
    assert rows is not None
    plan = read(bench, "mini", Options())
    context = EvalContext(None, plan, (), AllInOne(rows))
    recorded = {m.metric: m for m in point.measurements if isinstance(m, Measurement)}
    compared = 0
    for evaluator in map(EVALUATORS.get, result.spec.evaluators):
        statistics = {metric.name: metric.statistic for metric in evaluator.metrics_of(plan)}
        for found in measurements(evaluator, context):
            if isinstance(statistics[found.metric], OfMeans):
                assert isinstance(found, Measurement), found
                before = recorded[found.metric]
                assert {name: getattr(found, name) for name in SAME} == {name: getattr(before, name) for name in SAME}
                compared += 1
    assert compared >= 6
