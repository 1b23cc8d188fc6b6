"""What is wrong with a command is said before anything is trained, loaded or measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.core.config import resolve
from harness.core.errors import UsageError
from harness.core.method import METHODS
from harness.core.options import MOST_SEED, Options
from harness.core.problem import Problem
from harness.models.sources import CheckpointSource
from harness.running.plan import Plan, plan
from harness.running.sweep import check_metric
from harness.running.trials import Sweep, check_count
from tests.conftest import Nano


@pytest.mark.parametrize(
    ("method", "bench", "settings", "says"),
    [
        ("kfade", "tofu01", {"layers": [99]}, r"layers=\[99\]: the model has layers 0 to 1. Set layers=\[1\]\.$"),
        ("kfade", "tofu01", {"layers": [0, 0]}, r"layers=\[0, 0\] is not allowed: a layer is named twice"),
        ("kfade", "wmdp", {"step_size": [1e-3, 1e-3, 1e-3], "target_kl": None}, "one for each of the 2 stages"),
        ("rmu", "tofu01", {"layer": 99}, r"layer=99: the model has layers 0 to 1. Set layer=1\.$"),
        ("rmu", "tofu01", {"layer": 2, "layers": [1]}, "layer=2: the model has layers 0 to 1"),
        ("rmu", "wmdp", {"alpha": [1, 2, 3]}, r"alpha=\[1.0, 2.0, 3.0\]: give one value, or one for each of the 2 stages"),
        ("elm", "tofu01", {"order": [5]}, r"order=\[5\]: there are stages 0 to 0. Set order=\[0\]\.$"),
        (
            *("rmu", "tofu01", {"layer": 7, "layers": [5, 6, 7]}),
            r"rmu: layer=7 and layers=\[5, 6, 7\]: the model has layers 0 to 1. Set layer=1 and layers=\[0,1\]\.$",
        ),
        ("rmu", "tofu01", {"layer": 1, "layers": [2]}, r"layers=\[2\]: \[2\] lie behind layer=1 .*; name layers up to 1"),
        ("rmu", "tofu01", {"alpha": [1, 2]}, r"alpha=\[1.0, 2.0\]: give one value\.$"),
        ("elm", "tofu01", {"layers": [2]}, "the model has layers 0 to 1"),
        ("loku", "tofu01", {"layers": [2]}, "the model has layers 0 to 1"),
        ("loku", "tofu01", {"rank": 200}, "rank=200: fila starts from singular values, of which there are 160 at most"),
        (
            "loku",
            "tofu01",
            {"importance": "vila", "fila": False},
            "importance=vila weighs what fila starts from, and fila=false",
        ),
        ("repselect", "tofu01", {"components": 200}, r"components=200: a gradient has 160 at most. Set components=20\.$"),
        ("retrained", "tofu01", {"index": 99}, "index=99: tofu01 on mini has retain-0, retain-1, retain-2"),
    ],
)
def test_what_a_model_or_a_benchmark_lacks_is_refused_when_the_run_is_planned(method, bench, settings, says):
    with pytest.raises(UsageError, match=says):
        plan(bench, "mini", method, settings, Options())


@pytest.mark.parametrize("method", ["kfade", "rmu", "elm", "loku", "repselect"])
def test_layers_that_a_checkpoint_lacks_are_refused_when_the_run_is_planned(
    method: str, nano: Nano, nano_problem: Problem, tmp_path: Path
):
    """From its configuration; one that cannot be read is told when the checkpoint is loaded."""
    settings = {"layers": (99,), **({"layer": 99} if method == "rmu" else {})}
    chosen = METHODS.get(method)
    config = replace(resolve(chosen.config, {"target_kl": 0.1} if method == "kfade" else {}, owner=method), **settings)
    problem = replace(nano_problem, sources={"base": nano.source()})
    assert "the model has layers 0 to 1" in (chosen.clash(problem, config) or "")
    assert chosen.clash(replace(problem, sources={"base": CheckpointSource(str(tmp_path))}), config) is None


HUGE = {"rmu": ("layer", "layers", "steps", "batch_size", "points"), "kfade": ("steps", "mc_samples", "layers")}
HUGE |= {"elm": ("rounds", "rank", "batch_size", "points", "new_tokens"), "loku": ("rank", "epochs", "fisher_batch")}
HUGE |= {"repselect": ("steps", "components", "rank", "batch_size", "max_length", "layers")}
HUGE |= {"ga": ("epochs", "batch_size", "max_steps", "warmup_epochs"), "soul": ("hessian_interval",), "kl_min": ("pad_length",)}


@pytest.mark.parametrize(("method", "key"), [(method, key) for method, keys in HUGE.items() for key in keys])
@pytest.mark.parametrize("number", [10**8, 10**18, 10**400])
def test_a_setting_that_would_never_end_is_refused(method, key, number):
    value = [number, number] if key == "new_tokens" else [number] if key == "layers" else number
    with pytest.raises(UsageError, match=f"{key}=.* is not allowed"):
        resolve(METHODS.get(method).config, {key: value}, owner=method)


def test_of_a_wrong_item_of_a_list_one_thing_is_said():
    with pytest.raises(UsageError) as caught:
        resolve(METHODS.get("kfade").config, {"layers": ["x" * 20_000], "target_kl": 0.1}, owner="kfade")
    assert "at least 1 item" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("seed", [-1, MOST_SEED + 1, 10**400])
def test_a_seed_that_a_generator_would_not_take_is_refused(seed):
    with pytest.raises(UsageError, match="is not between 0 and"):
        plan("tofu01", "mini", "untouched", {}, Options(seed=seed))


@pytest.mark.parametrize("model", ["mini@٣", "mini@", "mini@-1", "mini@1_0", "mini@99999999999999999999", "mini@" + "9" * 5000])
@pytest.mark.parametrize("bench", ["tofu01", "wmdp"])
def test_a_world_is_named_by_plain_digits(bench, model):
    with pytest.raises(UsageError, match="after mini@ comes the world's seed"):
        plan(bench, model, "untouched", {}, Options())


def test_more_runs_than_can_be_listed_are_refused_though_confirmed():
    check_count(1_000_000, yes=True)
    with pytest.raises(UsageError, match="more than one command can hold"):
        check_count(10**30, yes=True)


def plans_by(metric: str, *benches: str) -> list[Plan]:
    sweep = Sweep(["untouched"], benches, "mini", [0], Options(evals=("rouge",)), {}, {}, by=metric)
    return [todo.plan({}) for todo in sweep.trials()]


@pytest.mark.parametrize("benches", [("tofu01",), ("tofu01", "tofu10")])
def test_a_metric_that_no_evaluator_declares_is_refused_before_anything_runs(benches):
    with pytest.raises(UsageError, match=r"no metric of these evaluators called 'forget_rogue'. Did you mean 'forget_rouge'\?"):
        check_metric(plans_by("forget_rogue", *benches))
    with pytest.raises(UsageError, match="no metric of these evaluators called 'forget_quality'"):
        check_metric(plans_by("forget_quality", *benches))
    check_metric(plans_by("forget_rouge", *benches))
    check_metric(plans_by("", *benches))
