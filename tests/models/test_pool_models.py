"""Models that metrics are tried on: what they have learnt, what is measured of them, and that a seed decides them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.core.errors import UsageError
from harness.core.method import Method, UnlearningContext
from harness.core.pools import DISTURBANCES, DisturbedModelConfig, PoolModelConfig
from harness.core.problem import Problem
from harness.models import disturbed_models, pool_models
from harness.models.pool_models import pool_source
from harness.models.pretraining import TrainedSource
from harness.models.recipes import Architecture, Recipe
from harness.models.sources import weights_fingerprint
from harness.running.contracts.methods import checks
from tests.conftest import WORDS, ContextMaker

SHAPE = Architecture(hidden_size=8, layers=1, intermediate_size=12, heads=2, max_positions=128)
RECIPE = Recipe(epochs=4, batch_size=4, lr=1e-2)


@pytest.fixture
def problem(nano_problem: Problem) -> Problem:
    """The nano problem with models that are trained on the spot."""
    (stage,) = nano_problem.stages
    retain = TrainedSource("retain", tuple(stage.retain), RECIPE, SHAPE, WORDS, seed=1)
    full = replace(retain, name="full", examples=(*stage.retain, *stage.forget), seed=0)
    retold = {
        name: [replace(e, answer=f"{word}.") for e in stage.forget] for name, word in (("paraphrased", "yes"), ("wrong", "no"))
    }
    sources = {"base": full, "retain-0": retain}
    return replace(nano_problem, sources=sources, retold=retold, general=list(stage.retain[:4]))


@pytest.fixture
def make(problem: Problem, make_context: ContextMaker) -> Callable[..., UnlearningContext]:
    def made(seed: int = 0, problem: Problem = problem) -> UnlearningContext:
        context = make_context(seed=seed, problem=problem)
        context.model, _ = problem.sources["base"].load(context.cache, "cpu", "float32")
        return context

    return made


def test_each_has_learnt_what_its_pool_says(problem: Problem):
    (stage,) = problem.stages
    full, retain = tuple(problem.sources["base"].examples), tuple(problem.sources["retain-0"].examples)  # type: ignore[attr-defined]
    learnt = {
        name: pool_source(problem, PoolModelConfig(learnt=name)).examples for name in ("full", "retain", "paraphrased", "wrong")
    }  # type: ignore[arg-type]
    assert learnt == {
        "full": full,
        "retain": retain,
        "paraphrased": (*retain, *problem.retold["paraphrased"]),
        "wrong": (*retain, *problem.retold["wrong"]),
    }
    answers = {e.answer for e in stage.forget}
    for name, examples in learnt.items():
        assert (name == "full") == bool(answers & {e.answer for e in examples})
        assert PoolModelConfig(learnt=name).knows == (name in ("full", "paraphrased"))  # type: ignore[arg-type]


def test_none_of_them_is_a_model_that_metrics_compare_with(problem: Problem):
    sources = [pool_source(problem, PoolModelConfig(learnt="retain", number=number)) for number in range(3)]
    identities = [str(source.identity) for source in (*sources, *problem.sources.values())]  # type: ignore[attr-defined]
    assert len(set(identities)) == len(identities)


def test_learning_rate_and_epochs_are_shares_of_the_benchmark_s_own(problem: Problem):
    recipe = pool_source(problem, PoolModelConfig(share_of_lr=0.5, share_of_epochs=0.5)).recipe
    assert (recipe.lr, recipe.epochs) == (RECIPE.lr / 2, 2)
    assert pool_source(problem, PoolModelConfig(share_of_epochs=0.01)).recipe.epochs == 1


def test_a_model_of_a_pool_stands_where_the_one_before_unlearning_did(make: Callable[..., UnlearningContext]):
    context, config = make(), PoolModelConfig(learnt="wrong")
    list(pool_models.METHOD.steps(context, config))
    trained, _ = pool_source(context.problem, config).load(context.cache, "cpu", "float32")
    assert weights_fingerprint(context.model) == weights_fingerprint(trained)


def test_light_fine_tuning_moves_it_and_a_seed_decides_how(make: Callable[..., UnlearningContext]):
    found = []
    for seed, tuned_on in ((0, "nothing"), (0, "retain"), (1, "retain"), (0, "benign"), (0, "general")):
        context = make(seed=seed)
        (progress,) = pool_models.METHOD.steps(context, PoolModelConfig(tuned_on=tuned_on, steps=2))  # type: ignore[arg-type]
        assert progress.measure_here
        found.append(weights_fingerprint(context.model))
    assert len(set(found)) == len(found)


def test_every_disturbance_begins_with_the_unlearned_weights(make: Callable[..., UnlearningContext]):
    from harness.numerics.rounding import GROUPS, quantised, rounded

    context, seen = make(), []
    for progress in disturbed_models.METHOD.steps(context, DisturbedModelConfig(method="grad_diff", lr=1e-5)):
        assert progress.measure_here
        seen.append({name: tensor.clone() for name, tensor in context.model.state_dict().items()})
    assert len(seen) == len(DISTURBANCES)
    unlearned, relearned, *stored = seen
    assert any(not tensor.equal(unlearned[name]) for name, tensor in relearned.items())
    context.model.load_state_dict(unlearned)
    names = {id(parameter): name for name, parameter in context.model.named_parameters()}
    changed = {names[id(weight)] for weight, _ in quantised(context.model)}
    for (bits, group), state in zip(GROUPS.items(), stored, strict=True):
        for name, tensor in state.items():
            expected = rounded(unlearned[name], bits, group) if name in changed else unlearned[name]
            torch.testing.assert_close(tensor, expected, rtol=0, atol=0)


def test_retrained_stands_for_a_model_that_metrics_do_not_compare_with(make: Callable[..., UnlearningContext]):
    context = make()
    next(iter(disturbed_models.METHOD.steps(context, DisturbedModelConfig(number=1))))
    trained, _ = pool_source(context.problem, PoolModelConfig(learnt="retain", number=1)).load(context.cache, "cpu", "float32")
    assert weights_fingerprint(context.model) == weights_fingerprint(trained)


@pytest.mark.parametrize(
    ("method", "config"),
    [
        (pool_models.METHOD, PoolModelConfig(tuned_on="retain", steps=2)),
        (disturbed_models.METHOD, DisturbedModelConfig(method="grad_diff")),
    ],
)
def test_they_keep_what_methods_promise(method: Method[Any], config: Any, make: Callable[..., UnlearningContext]):
    for check in checks(method, config, make):
        check.run()


def test_what_cannot_be_made_is_refused(problem: Problem, nano_problem: Problem, make: Callable[..., UnlearningContext]):
    assert "trained on the spot" in str(pool_models.skip_reason(nano_problem))
    with pytest.raises(UsageError, match="take mini or scratch"):
        pool_source(nano_problem, PoolModelConfig())
    assert "no other answers" in str(pool_models.skip_reason(replace(problem, retold={})))
    assert "no text to relearn from" in str(disturbed_models.skip_reason(replace(problem, attacks={})))
    with pytest.raises(UsageError, match="no such text"):
        list(pool_models.METHOD.steps(make(problem=replace(problem, general=[])), PoolModelConfig(tuned_on="general")))
