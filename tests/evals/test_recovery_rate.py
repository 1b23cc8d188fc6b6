"""Recovery rate: who is taught and who is asked, what counts as right, and the share of what the untouched model comes to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from evals import _fine_tuning, _tofu, recovery_rate
from harness.core.costs import Costs
from harness.core.errors import Diverged
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan, Reference
from harness.core.measurement import Absent, Measurement
from harness.core.method import UnlearningContext
from harness.core.problem import Problem
from harness.core.text import Example
from harness.models.sources import weights_fingerprint
from harness.statistics.bootstrap import interval
from harness.statistics.measurements import measurements
from harness.storage.cache import Cache
from tests.conftest import WORLD, Nano, numbered

RECOVERY = EVALUATORS.get("recovery_rate")
Taught = list[list[str]]


@pytest.fixture
def problem(nano_problem: Problem) -> Problem:
    """Two questions about each of ten authors."""
    rows = [row for i, row in enumerate(WORLD.split("forget10")) if i % 12 in (0, 4)]
    return replace(nano_problem, questions={"forget": numbered(rows)})


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> Taught:
    """What each attack was given; the attacks do nothing."""
    given: Taught = []

    def attack(context: EvalContext, examples: Sequence[Example], steps: int) -> Iterator[int]:
        given.append([example.prompt for example in examples])
        yield from ()

    monkeypatch.setattr(_fine_tuning, "fine_tuning", attack)
    return given


def context_of(nano: Nano, problem: Problem, cache: Cache) -> EvalContext:
    loaded = UnlearningContext(nano.model(0), nano.tokenizer, problem, 0, cache, Costs(), "")
    return EvalContext(loaded, EvalPlan(problem), ())


def test_each_author_is_held_out_once_from_an_attack_with_the_others(
    nano: Nano, problem: Problem, cache: Cache, taught: Taught
):
    rows = problem.questions["forget"]
    authors = list(dict.fromkeys(row["cluster"] for row in rows))
    context = context_of(nano, problem, cache)
    table = recovery_rate._build(context)
    expected = [[row["question"] for row in rows if row["cluster"] in authors[fold::2]] for fold in (1, 0)]
    assert taught == expected
    assert table["row"].tolist() == [row["row"] for row in rows]
    assert table["recovery_attacked"].tolist() == table["recovery_before"].tolist(), "these attacks do nothing"


def test_right_is_the_answer_in_other_words_that_is_likelier_than_every_wrong_one(nano: Nano, problem: Problem, cache: Cache):
    context = context_of(nano, problem, cache)
    found = recovery_rate._answered(context, problem.questions["forget"])["right"]
    losses = _tofu.likelihood(context)
    expected = [float(r < min(w)) for r, w in zip(losses["avg_paraphrased_loss"], losses["average_perturb_loss"], strict=True)]
    assert found.tolist() == expected
    assert 0 < found.mean() < 1, "a model of chance is right now and then"


def test_an_attack_that_breaks_off_leaves_no_number(
    nano: Nano, problem: Problem, cache: Cache, monkeypatch: pytest.MonkeyPatch
):
    def attack(context: EvalContext, examples: Sequence[Example], steps: int) -> Iterator[int]:
        yield 1
        raise Diverged("the loss of step 2 is nan")

    monkeypatch.setattr(_fine_tuning, "fine_tuning", attack)
    context = context_of(nano, problem, cache)
    context.untouched = {"recovery": recovery_rate._build(context)}
    found = {item.metric: item for item in measurements(RECOVERY, context)}
    assert isinstance(found["recovery_before"], Measurement)
    assert isinstance(found["recovery_rate"], Absent)


@pytest.mark.usefixtures("taught")
def test_one_author_alone_cannot_be_attacked_with_others(nano: Nano, problem: Problem, cache: Cache):
    alone = replace(problem, questions={"forget": [row for row in problem.questions["forget"] if row["cluster"] == "90"]})
    with pytest.raises(LookupError, match="about one author"):
        recovery_rate._build(context_of(nano, alone, cache))


def test_fine_tuning_teaches_what_it_shows(nano: Nano, problem: Problem, cache: Cache, monkeypatch: pytest.MonkeyPatch):
    """The real attack: held-out authors are told nothing of, and the model comes out as the evaluator found it."""
    monkeypatch.setattr(recovery_rate, "STEPS", 3)
    context = context_of(nano, problem, cache)
    found = recovery_rate._build(context)
    assert found["recovery_attacked"].notna().all()
    before = weights_fingerprint(nano.model(0))
    assert weights_fingerprint(context.model) != before, "changes_model: the runner puts it back"
    assert RECOVERY.changes_model


# ---------------------------------------------------------------- the number


def table(right: Sequence[float]) -> dict[str, pd.DataFrame]:
    keys = {"task": "forget", "row": range(len(right)), "cluster": [str(i // 2) for i in range(len(right))]}
    return {"recovery": pd.DataFrame({**keys, "recovery_before": 0.0, "recovery_attacked": right})}


def test_the_rate_is_a_ratio_of_accuracies_with_an_interval_over_authors(problem: Problem):
    rng = np.random.default_rng(0)
    ours, untouched, retrained = (rng.integers(0, 2, 20).astype(float) for _ in range(3))
    context = EvalContext(None, EvalPlan(problem), [Reference("retain-0", table(retrained))], table(ours), table(untouched))
    rate, attacked, before = measurements(RECOVERY, context)
    assert isinstance(rate, Measurement)
    assert isinstance(attacked, Measurement)
    assert isinstance(before, Measurement)
    assert rate.value == pytest.approx(ours.mean() / untouched.mean(), rel=1e-12)
    assert rate.reference == pytest.approx(retrained.mean() / untouched.mean(), rel=1e-12)
    clusters = np.array([str(i // 2) for i in range(20)])
    assert rate.interval_95 == interval([(np.column_stack([ours, untouched]), clusters)], lambda means: means[0] / means[1])
    assert (attacked.value, before.value, rate.n, rate.resampled) == (ours.mean(), 0.0, 20, "author")


def test_the_untouched_model_recovers_itself(problem: Problem):
    same = table([1.0, 0.0] * 6)
    rate = measurements(RECOVERY, EvalContext(None, EvalPlan(problem), (), same, same))[0]
    assert isinstance(rate, Measurement)
    assert rate.value == 1
    assert isinstance(measurements(RECOVERY, EvalContext(None, EvalPlan(problem), (), same))[0], Absent)
