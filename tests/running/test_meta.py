"""`harness meta`: which models are made, that a record of each is enough, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from harness.core.benchmark import BENCHMARKS, roles_of
from harness.core.config import resolve
from harness.core.errors import UsageError
from harness.core.evaluator import metric_of
from harness.core.pools import DISTURBANCES, DISTURBED_MODEL, POOL_MODEL, PoolModelConfig
from harness.running.meta import FEWEST, MetaRequest, MetaStudy, MetaTrial
from harness.running.sweep import run_trials
from harness.running.trials import EvalPlans, TrialSpec
from harness.statistics.bootstrap import FEWEST_CLUSTERS
from harness.storage.cache import Cache
from harness.storage.records import SCHEMA_VERSION, RunResult
from harness.storage.store import Store
from tests.cli.test_cli import Harness, harness, refused  # noqa: F401
from tests.records import number, run, write

PLANS: EvalPlans = {}


def config(trial: MetaTrial) -> PoolModelConfig:
    return resolve(PoolModelConfig, trial.chosen, owner="a test")


def pools(trials: Sequence[MetaTrial]) -> dict[tuple[str, bool], list[PoolModelConfig]]:
    found: dict[tuple[str, bool], list[PoolModelConfig]] = {}
    for trial in trials:
        if trial.method == POOL_MODEL:
            found.setdefault((trial.model, config(trial).knows), []).append(config(trial))
    return found


def test_both_pools_of_each_world_are_of_the_same_size_and_variety():
    found = pools(MetaStudy().trials())
    assert set(found) == {(model, knows) for model in ("mini", "mini@2") for knows in (True, False)}
    for configs in found.values():
        assert len(configs) >= 20
        assert sum(each.tuned_on == "nothing" for each in configs) == FEWEST
        assert set(Counter(each.cluster for each in configs).values()) == {len(configs) // FEWEST}
    varieties = [
        Counter((c.share_of_lr, c.share_of_epochs, c.tuned_on, c.lr, c.number) for c in each) for each in found.values()
    ]
    assert all(variety == varieties[0] for variety in varieties)
    assert FEWEST >= FEWEST_CLUSTERS, "else there would be no interval"


@pytest.mark.parametrize("models", [5, 7, 60])
def test_no_two_models_are_the_same(models: int):
    trials = MetaStudy(worlds=(0,), models=models).trials()
    assert all(len(each) == models for each in pools(trials).values())
    assert len({str(trial.plan(PLANS).spec.run_id) for trial in trials}) == len(trials)


def test_unlearned_models_differ_and_retrained_ones_stand_beside_them():
    disturbed = [t for t in MetaStudy(worlds=(0,)).trials() if t.method == DISTURBED_MODEL]
    methods = Counter(str(trial.chosen["method"]) for trial in disturbed)
    assert methods.pop("retrained") >= 1
    assert len(methods) >= FEWEST_CLUSTERS
    assert set(methods.values()) <= {1, 2}


def test_every_metric_that_tells_what_is_known_is_measured():
    (trial, *_) = MetaStudy(worlds=(0,)).trials()
    plan = trial.plan(PLANS)
    measured = {metric.name for each in plan.eval_plan.evaluators for metric in each.metrics_of(plan.eval_plan)}
    roles = roles_of("tofu10")
    assert {*roles.knowledge, roles.kept[0]} <= measured
    assert plan.command == "harness meta --bench tofu10 --worlds 0"


@pytest.mark.parametrize("bench", BENCHMARKS.names())
def test_what_a_benchmark_says_of_its_metrics_is_of_metrics_that_there_are(bench: str):
    for name, known in roles_of(bench).knowledge.items():
        match = metric_of(name)
        assert match, name
        assert match[1].better != known, f"{name}: what is better is not where most is known"


def test_what_is_recorded_is_not_done_again(tmp_path: Path):
    """Whoever is killed in between goes on with what is left."""
    trials, store = MetaStudy(worlds=(0,), models=5).trials(), Store(tmp_path)
    for trial in trials[:3]:
        spec = trial.plan(PLANS).spec
        with store.open(spec) as record:
            record.write(RunResult(schema_version=SCHEMA_VERSION, spec=spec, status="done"))
    left: list[TrialSpec] = []

    def executor(tries: Sequence[TrialSpec], *others: object) -> Iterator[tuple[int, str]]:
        left.extend(tries)
        yield from ((index, "not now") for index in range(len(tries)))

    results = run_trials(trials, store, Cache(tmp_path / "cache"), executor)
    assert left == trials[3:]
    assert [result.status for result in results] == ["done"] * 3 + ["failed"] * (len(trials) - 3)


def test_a_benchmark_that_does_not_say_which_metrics_tell_what_is_known_is_refused():
    with pytest.raises(UsageError, match=r"wmdp-bio does not say which of its metrics .* Take one of tofu01, tofu05, tofu10"):
        MetaStudy(bench="wmdp-bio")
    with pytest.raises(UsageError, match=r"no benchmark called 'tofu11'. Did you mean"):
        MetaRequest(bench="tofu11").study()


def test_the_command_lists_what_it_would_do(harness: Harness, tmp_path: Path):  # noqa: F811
    said = harness("meta", "--worlds", "0", "--models", "5", "--dry-run", "--results", str(tmp_path))
    assert said.code == 0
    assert "pool P, mini on tofu10 learnt=full seed 0" in said.out
    assert said.out.splitlines()[1].startswith(f"{len(MetaStudy(worlds=(0,), models=5).trials())} runs, 0 of them done")
    assert not (tmp_path / "meta" / "runs").exists()


def test_the_command_shows_the_table_of_what_is_recorded(harness: Harness, tmp_path: Path):  # noqa: F811
    for trial in MetaStudy(worlds=(0,), models=5).trials():
        spec = trial.plan(PLANS).spec
        ways = 1 if trial.method == POOL_MODEL else len(DISTURBANCES)
        known = 0.9 if trial.method == POOL_MODEL and config(trial).knows else 0.2
        measured = [number("forget_probability", known), number("model_utility", 0.8)]
        write(tmp_path / "meta", replace(run(*[measured] * ways), spec=spec))
    said = harness("meta", "--worlds", "0", "--models", "5", "--results", str(tmp_path), "--quiet")
    assert said.code == 0
    assert "How far to trust each column: tofu10 on mini" in said.out
    assert "1.00 [1.00 to 1.00]" in said.out
    table = (tmp_path / "meta" / "table.csv").read_text().splitlines()
    assert len(table) == 1 + len(roles_of("tofu10").knowledge) + 2, "forget quality and its distance twice"
    assert "| P forget | ↑ | 1.00 \\[1.00 to 1.00\\] |" in (tmp_path / "meta" / "table.md").read_text()


def test_too_few_models_are_refused(harness: Harness):  # noqa: F811
    refused(harness("meta", "--models", "4"), "--models 4")
