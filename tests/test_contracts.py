"""What every registered plug-in promises, checked on whatever is registered."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from evals import finetune_attack
from harness.core.config import describe, field_names, resolve, to_json
from harness.core.costs import Costs
from harness.core.errors import UsageError
from harness.core.interfaces import (
    BENCHMARKS,
    EVALUATORS,
    METHODS,
    Absent,
    Evaluator,
    Example,
    Measurement,
    Options,
    Progress,
    Reference,
    Setting,
    Stage,
    Subject,
    Task,
    Window,
)
from harness.core.registry import ROOT
from harness.numerics.generation import HFGenerator, generate_all
from harness.statistics.measurements import measurements
from harness.storage.cache import Cache
from tests.conftest import Nano, SettingMaker

CHEAP: dict[str, Any] = {"epochs": 1, "batch_size": 4, "lr": 1e-3}
"""Settings that make any method quick, where it has them."""
SETTINGS: dict[str, dict[str, Any]] = {
    "kfade": {"estimator": "ekfac", "step_size": 0.01, "damping": 0.1, "damping_scale": "mean_eigenvalue", "steps": 2},
    "kl_min": {"pad_length": 40},
    "elm": {"layers": [0, 1], "rank": 4, "rounds": 12, "new_tokens": [2, 4], "contexts": "texts", "points": 2},
    "rmu": {"layer": 1, "layers": [0, 1], "coefficient": [2.0], "coefficient_scale": "activation_norm", "steps": 4},
}
"""What a method needs besides."""
JUDGED = {"mt_bench"}
"""Evaluators that ask a judge, which these settings have not; `tests/test_mt_bench.py` has one."""
UNCHANGING = {"untouched"}
"""Methods that leave the weights as they are."""


def config_of(name: str) -> Any:
    config = METHODS.get(name).config
    cheap = {key: value for key, value in CHEAP.items() if key in field_names(config)}
    return resolve(config, cheap, SETTINGS.get(name, {}), owner=name)


def unlearn(name: str, setting: Setting) -> list[Progress]:
    return list(METHODS.get(name).unlearn(setting, config_of(name)))


def as_found(setting: Setting, frozen: Sequence[str] = ()) -> None:
    """In eval mode, no gradient, no hook, and only those parameters frozen that were before."""
    model = setting.model
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == list(frozen)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks


def fingerprint(setting: Setting) -> str:
    from harness.models.sources import weights_fingerprint

    return weights_fingerprint(setting.model)


# ---------------------------------------------------------------- methods


@pytest.mark.parametrize("name", METHODS.names())
def test_a_method_is_its_file(name: str):
    method = METHODS.get(name)
    assert method.name == name
    assert METHODS.entries[name].module == f"methods.{name}"
    assert method.version >= 1
    assert method.source
    assert callable(method.unlearn)


@pytest.mark.parametrize("name", METHODS.names())
def test_every_setting_of_a_method_is_explained(name: str):
    for field, _, about in describe(METHODS.get(name).config):
        assert len(about) > 5, field
        assert about.endswith((".", ")")), field


@pytest.mark.parametrize("name", METHODS.names())
def test_every_preset_of_a_method_resolves(name: str):
    method = METHODS.get(name)
    for entry in method.presets:
        for bench in entry.benches:
            for family in entry.families:
                config = to_json(resolve(method.config, method.preset(bench, family, entry.preset), owner=name))
                assert {key: config[key] for key in entry.settings} == dict(entry.settings)
            assert bench in {"*", *BENCHMARKS.names()}


@pytest.mark.parametrize("name", METHODS.names())
def test_a_method_has_settings_that_hold_on_mini(name: str):
    method = METHODS.get(name)
    for bench in BENCHMARKS.names():
        resolve(method.config, method.preset(bench, "mini"), owner=name)


@pytest.mark.parametrize("name", METHODS.names())
def test_the_same_seed_gives_the_same_weights(name: str, make_setting: SettingMaker):
    import torch

    found = []
    for _ in range(2):
        setting = make_setting(seed=3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            unlearn(name, setting)
        found.append(fingerprint(setting))
    assert found[0] == found[1]
    changed = found[0] != fingerprint(make_setting())
    assert changed == (name not in UNCHANGING)


@pytest.mark.parametrize("name", METHODS.names())
def test_what_speaks_without_gradients_speaks_without_dropout(name: str, nano_setting: Setting):
    """A frozen reference is what the model was when it was measured, not that with dropout switched on."""
    import torch

    seen: list[tuple[bool, bool]] = []
    watched = nano_setting.model.base_model
    watched.register_forward_pre_hook(lambda module, _: seen.append((torch.is_grad_enabled(), module.training)))
    unlearn(name, nano_setting)
    assert (False, True) not in seen


@pytest.mark.parametrize("name", METHODS.names())
def test_a_method_leaves_model_and_tokenizer_as_it_found_them(name: str, nano_setting: Setting):
    nano_setting.model.get_input_embeddings().weight.requires_grad_(False)
    words = dict(nano_setting.tokenizer.get_vocab())
    side = nano_setting.tokenizer.padding_side
    shapes = {key: (p.shape, p.dtype) for key, p in nano_setting.model.state_dict().items()}
    unlearn(name, nano_setting)
    as_found(nano_setting, frozen=["model.embed_tokens.weight"])
    assert nano_setting.tokenizer.get_vocab() == words
    assert nano_setting.tokenizer.padding_side == side
    assert {key: (p.shape, p.dtype) for key, p in nano_setting.model.state_dict().items()} == shapes


@pytest.mark.parametrize("name", METHODS.names())
def test_a_method_that_is_stopped_early_leaves_the_model_as_well(name: str, nano_setting: Setting):
    steps = METHODS.get(name).unlearn(nano_setting, config_of(name))
    next(steps)
    steps.close()
    as_found(nano_setting)


def check_progress(progress: Sequence[Progress]) -> None:
    assert any(p.measure_here for p in progress)
    assert progress[-1].measure_here, "what comes after the last point is never measured"
    numbers = [p.step for p in progress]
    assert numbers == sorted(set(numbers)), "steps rise from one progress to the next"
    assert {p.total for p in progress} == {progress[-1].step}, "every progress says how many steps there will be"
    for p in progress:
        assert all(isinstance(value, float) and math.isfinite(value) for value in p.logged.values()), p.logged


@pytest.mark.parametrize("name", METHODS.names())
def test_a_methods_steps_rise_and_the_last_one_is_measured(name: str, nano_setting: Setting):
    check_progress(unlearn(name, nano_setting))


@pytest.mark.parametrize("name", METHODS.names())
def test_a_methods_steps_rise_over_two_stages(name: str, make_setting: SettingMaker, nano_task: Task):
    (stage,) = nano_task.stages
    stages = [Stage(n, stage.forget[k : k + 8], stage.retain[2 * k : 2 * k + 16]) for n, k in (("bio", 0), ("cyber", 4))]
    check_progress(unlearn(name, make_setting(task=replace(nano_task, stages=stages))))


@pytest.mark.parametrize("name", METHODS.names())
def test_a_method_takes_running_text(name: str, make_setting: SettingMaker, nano_task: Task):
    """Windows of a corpus, and whole documents: no prompt before what is scored."""
    (stage,) = nano_task.stages
    forget = [Window("", f"{e.prompt} {e.answer}") for e in stage.forget]
    retain = [Example("", f"{e.prompt} {e.answer}") for e in stage.retain]
    setting = make_setting(task=replace(nano_task, stages=[Stage("text", forget, retain)]))
    before = fingerprint(setting)
    check_progress(unlearn(name, setting))
    assert (fingerprint(setting) == before) == (name in UNCHANGING)


@pytest.mark.parametrize("name", METHODS.names())
def test_a_method_runs_on_bfloat16_weights(name: str, nano_setting: Setting):
    import torch

    nano_setting.model.to(torch.bfloat16)
    before = fingerprint(nano_setting)
    unlearn(name, nano_setting)
    assert {p.dtype for p in nano_setting.model.parameters()} == {torch.bfloat16}
    assert all(torch.isfinite(p).all() for p in nano_setting.model.parameters())
    assert (fingerprint(nano_setting) == before) == (name in UNCHANGING)
    as_found(nano_setting)


@pytest.mark.parametrize("name", METHODS.names())
def test_a_method_refuses_a_setting_it_does_not_have(name: str):
    with pytest.raises(UsageError, match=f"no setting of {name} called 'no_such_setting'"):
        resolve(METHODS.get(name).config, {"no_such_setting": 1}, owner=name)


def test_an_empty_list_of_layers_is_refused(nano_setting: Setting):
    def empty() -> None:
        config = resolve(METHODS.get("kfade").config, {"step_size": 0.1, "layers": []}, owner="kfade")
        list(METHODS.get("kfade").unlearn(nano_setting, config))

    with pytest.raises(UsageError):
        empty()


# ---------------------------------------------------------------- evaluators


def subject_of(setting: Setting, evaluators: Sequence[Evaluator], references: Sequence[Reference] = ()) -> Subject:
    """The setting's model with the texts that these evaluators ask for."""
    task = setting.task
    requests = [request for e in evaluators for request in e.requests(task, setting.tokenizer)]
    subject = Subject(setting, task, references)
    weights = fingerprint(setting)
    subject.generations = generate_all(HFGenerator(), setting.model, setting.tokenizer, requests, setting.cache, weights)
    return subject


@pytest.fixture(autouse=True)
def _few_steps_of_an_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is promised of its numbers does not depend on how far it goes."""
    monkeypatch.setattr(finetune_attack, "POINTS", (1, 3))


@pytest.fixture(scope="module")
def references(nano: Nano, nano_task: Task, tmp_path_factory: pytest.TempPathFactory) -> list[Reference]:
    """Two retrained models by their tables, as all evaluators build them."""
    evaluators = [e for e in map(EVALUATORS.get, EVALUATORS.names()) if not e.changes_model]
    found = []
    for seed in (1, 2):
        cache = Cache(tmp_path_factory.mktemp("references"))
        subject = subject_of(Setting(nano.model(seed), nano.tokenizer, nano_task, 0, cache, Costs(), ""), evaluators)
        for evaluator in evaluators:
            measurements(evaluator, subject)
        found.append(Reference(f"retain-{seed - 1}", subject.tables))
    return found


def check_measurements(found: Sequence[Measurement | Absent]) -> None:
    names = [item.metric for item in found]
    assert names
    assert len(set(names)) == len(names)
    for item in found:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", item.metric)
        if isinstance(item, Absent):
            assert len(item.reason) > 10, item
            continue
        numbers = [item.value, item.reference, item.floor]
        for pair in (item.range, item.across_references, item.interval_95):
            if pair is not None:
                assert pair[0] <= pair[1], item
                numbers += pair
        assert all(math.isfinite(n) for n in numbers if n is not None), item
        assert item.n > 0
        assert item.version >= 1
        assert item.unit
        if item.range:
            assert item.range[0] <= item.value <= item.range[1], item
        if item.interval_95 is None:
            assert item.interval_method is None or item.interval_method.startswith("none: "), "why there is none"
        else:
            assert item.interval_method
            assert item.resampled


@pytest.mark.parametrize("name", EVALUATORS.names())
def test_an_evaluator_is_its_file(name: str, nano_task: Task):
    evaluator = EVALUATORS.get(name)
    assert evaluator.name == name
    assert EVALUATORS.entries[name].module == f"evals.{name}"
    assert evaluator.version_for(nano_task) >= 1


@pytest.mark.parametrize("name", EVALUATORS.names())
def test_an_evaluator_gives_finite_numbers_or_reasons(name: str, nano_setting: Setting, references: list[Reference]):
    evaluator = EVALUATORS.get(name)
    before = fingerprint(nano_setting)
    found = measurements(evaluator, subject_of(nano_setting, [evaluator], references))
    check_measurements(found)
    if name not in JUDGED:
        assert any(isinstance(item, Measurement) for item in found), "all that is needed is there"
    if not evaluator.changes_model:
        assert fingerprint(nano_setting) == before
        as_found(nano_setting)


@pytest.mark.parametrize("name", EVALUATORS.names())
def test_an_evaluator_gives_the_same_numbers_again_from_its_tables(
    name: str, nano_setting: Setting, references: list[Reference]
):
    evaluator = EVALUATORS.get(name)
    subject = subject_of(nano_setting, [evaluator], references)
    found = measurements(evaluator, subject)
    if not evaluator.changes_model:
        assert measurements(evaluator, Subject(None, nano_setting.task, references, dict(subject.tables))) == found


@pytest.mark.parametrize("name", EVALUATORS.names())
@pytest.mark.parametrize("scale", [math.nan, 1e3], ids=["broken", "certain"])
def test_an_evaluator_has_no_bad_number_for_a_model_that_has_collapsed(
    name: str, scale: float, nano_setting: Setting, references: list[Reference]
):
    import torch

    with torch.no_grad():
        nano_setting.model.lm_head.weight.mul_(scale)
    evaluator = EVALUATORS.get(name)
    check_measurements(measurements(evaluator, subject_of(nano_setting, [evaluator], references)))


@pytest.mark.parametrize("name", EVALUATORS.names())
def test_an_evaluator_without_what_it_needs_says_so_for_every_number(name: str, nano_task: Task):
    found = measurements(EVALUATORS.get(name), Subject(None, nano_task, ()))
    check_measurements(found)
    assert all(isinstance(item, Absent) for item in found)


# ---------------------------------------------------------------- benchmarks


@pytest.mark.parametrize("name", BENCHMARKS.names())
def test_a_benchmark_knows_its_name_and_the_model_mini(name: str):
    benchmark = BENCHMARKS.get(name)
    assert benchmark.name == name
    assert benchmark.version >= 1
    assert "mini" in benchmark.models
    assert all(about for about in benchmark.models.values())


@pytest.mark.parametrize("name", BENCHMARKS.names())
@pytest.mark.parametrize("model", ["no-such-model", "minni", "mini@", "mini@-1", "mini@x", ""])
def test_a_benchmark_refuses_a_model_it_does_not_know(name: str, model: str):
    with pytest.raises(UsageError, match=re.escape(f"'{model}'")):
        BENCHMARKS.get(name).task(model, Options())


@pytest.mark.parametrize("name", BENCHMARKS.names())
def test_a_benchmarks_task_is_complete(name: str):
    task = BENCHMARKS.get(name).task("mini", Options(limit=3))
    assert (task.bench, task.model) == (name, "mini")
    assert "base" in task.sources
    assert task.data
    assert task.stages
    for stage in task.stages:
        assert 0 < len(stage.forget) <= 3
        assert 0 < len(stage.retain) <= 3
        assert not {e.prompt + e.answer for e in stage.forget} & {e.prompt + e.answer for e in stage.retain}
    for rows in task.questions.values():
        assert [row["row"] for row in rows] == list(range(len(rows)))
        assert all(isinstance(row["cluster"], str) for row in rows)
    assert task.notes, "an embedded model says that it is one"


@pytest.mark.parametrize("name", BENCHMARKS.names())
def test_a_benchmark_measures_with_registered_evaluators_whose_numbers_have_names_of_their_own(name: str, nano_task: Task):
    evaluators = BENCHMARKS.get(name).evaluators()
    assert evaluators
    for evaluator in evaluators:
        assert EVALUATORS.get(evaluator.name) is evaluator
    # What is named when nothing can be measured is what is named when everything can.
    metrics = [item.metric for e in evaluators for item in measurements(e, Subject(None, nano_task, ()))]
    assert len(set(metrics)) == len(metrics)


@pytest.mark.parametrize("name", BENCHMARKS.names())
def test_a_benchmarks_sources_hold_no_path_of_this_machine(name: str):
    import json

    task = BENCHMARKS.get(name).task("mini", Options(limit=3))
    told = json.dumps({key: source.identity for key, source in task.sources.items()})
    assert str(ROOT) not in told
    assert '"/' not in told
    assert len({json.dumps(source.identity) for source in task.sources.values()}) == len(task.sources)


@pytest.mark.parametrize("registry", [METHODS, EVALUATORS, BENCHMARKS], ids=lambda r: r.kind)
def test_every_file_of_a_plugin_folder_registers_something(registry: Any):
    there = {file.stem for file in registry.folder.glob("[!_]*.py")}
    assert {entry.module.rpartition(".")[2] for entry in registry.entries.values()} == there
