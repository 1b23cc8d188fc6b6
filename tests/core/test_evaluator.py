"""What is known where there is no problem: nothing but recorded rows."""

from __future__ import annotations

import pytest

from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan, rows_of
from harness.core.measurement import Absent
from harness.statistics.measurements import measurements


def test_a_plan_without_a_problem_has_no_questions_and_says_why_there_is_no_problem():
    plan = EvalPlan(variant="open-unlearning")
    assert plan.questions == {}
    with pytest.raises(LookupError, match="only recorded rows are known"):
        _ = plan.problem


@pytest.mark.parametrize("name", ["model", "tokenizer", "cache", "costs"])
def test_without_a_model_an_evaluator_is_told_so(name: str):
    with pytest.raises(LookupError, match="only its recorded tables"):
        getattr(EvalContext(None, EvalPlan(), ()), name)


@pytest.mark.parametrize("name", EVALUATORS.names())
def test_of_nothing_every_evaluator_gives_reasons(name: str):
    """As of a log that holds none of its rows: no problem, no model, no table."""
    evaluator = EVALUATORS.get(name)
    found = measurements(evaluator, EvalContext(None, EvalPlan(), ()))
    assert found
    assert all(isinstance(item, Absent) and item.reason for item in found)
    assert evaluator.version_for(EvalPlan()) >= 1
    assert not evaluator.evaluator_inputs(EvalPlan())


def test_rows_that_were_measured_and_hold_no_number_are_not_said_to_be_missing():
    import numpy as np
    import pandas as pd

    table = pd.DataFrame({"task": ["forget"], "row": [0], "cluster": ["a"], "loss": [np.nan]})
    with pytest.raises(LookupError, match="there is no finite loss for forget"):
        rows_of(table, "forget", "loss")
    with pytest.raises(LookupError, match="there is no rouge for forget"):
        rows_of(table, "forget", "rouge")
