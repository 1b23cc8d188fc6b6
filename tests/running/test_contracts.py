"""What every registered plug-in promises, checked on whatever is registered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from evals import finetune_attack
from harness.core.benchmark import BENCHMARKS
from harness.core.config import field_names, resolve, to_json
from harness.core.errors import UsageError
from harness.core.evaluator import EVALUATORS, EvalPlan, Reference
from harness.core.figure import FIGURES
from harness.core.method import METHODS, Progress, UnlearningContext
from harness.core.problem import Problem, Stage
from harness.core.text import Example, Window
from harness.running.contracts import benchmarks, evaluators, figures, methods
from harness.running.contracts.files import recorded
from harness.running.contracts.tiny import TinySource
from harness.running.contracts.workshop import Workshop
from harness.storage.store import Store
from tests.conftest import ContextMaker, Nano

CHEAP: dict[str, Any] = {"epochs": 1, "batch_size": 4, "lr": 1e-3}
"""Settings that make any method quick, where it has them."""
SETTINGS: dict[str, dict[str, Any]] = {
    "kfade": {"estimator": "ekfac", "step_size": 0.01, "damping": 0.1, "damping_scale": "mean_eigenvalue", "steps": 2},
    "altpo": {"instruction": "", "alternatives": 2, "max_tokens": 6},
    "kl_min": {"pad_length": 40},
    "repselect": {"components": 4},
    "elm": {"layers": [0, 1], "rank": 4, "rounds": 12, "new_tokens": [2, 4], "contexts": "texts", "points": 2},
    "rmu": {"layer": 1, "layers": [0, 1], "coefficient": [2.0], "coefficient_scale": "activation_norm", "steps": 4},
}
"""What a method needs besides."""
UNCHANGING = {"untouched"}
"""Methods that leave the weights as they are."""


def config_of(name: str) -> Any:
    config = METHODS.get(name).config
    cheap = {key: value for key, value in CHEAP.items() if key in field_names(config)}
    return resolve(config, cheap, SETTINGS.get(name, {}), owner=name)


def unlearn(name: str, context: UnlearningContext) -> list[Progress]:
    return list(METHODS.get(name).unlearn(context, config_of(name)))


def fingerprint(context: UnlearningContext) -> str:
    from harness.models.sources import weights_fingerprint

    return weights_fingerprint(context.model)


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
def test_a_method_keeps_what_plugins_promise(name: str, make_context: ContextMaker):
    for check in methods.checks(METHODS.get(name), config_of(name), make_context):
        check.run()


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
def test_a_method_changes_the_weights(name: str, nano_context: UnlearningContext):
    before = fingerprint(nano_context)
    unlearn(name, nano_context)
    assert (fingerprint(nano_context) == before) == (name in UNCHANGING)


@pytest.mark.parametrize("name", METHODS.names())
def test_what_speaks_without_gradients_speaks_without_dropout(name: str, nano_context: UnlearningContext):
    """A frozen reference is what the model was when it was measured, not that with dropout switched on."""
    import torch

    seen: list[tuple[bool, bool]] = []
    watched = nano_context.model.base_model
    watched.register_forward_pre_hook(lambda module, _: seen.append((torch.is_grad_enabled(), module.training)))
    unlearn(name, nano_context)
    assert (False, True) not in seen


@pytest.mark.parametrize("name", METHODS.names())
def test_a_methods_steps_rise_over_two_stages(name: str, make_context: ContextMaker, nano_problem: Problem):
    (stage,) = nano_problem.stages
    stages = [Stage(n, stage.forget[k : k + 8], stage.retain[2 * k : 2 * k + 16]) for n, k in (("bio", 0), ("cyber", 4))]
    methods.steps_rise(unlearn(name, make_context(problem=replace(nano_problem, stages=stages))))


@pytest.mark.parametrize("name", METHODS.names())
def test_a_method_takes_running_text(name: str, make_context: ContextMaker, nano_problem: Problem):
    """Windows of a corpus, and whole documents: no prompt before what is scored."""
    (stage,) = nano_problem.stages
    forget = [Window("", f"{e.prompt} {e.answer}") for e in stage.forget]
    retain = [Example("", f"{e.prompt} {e.answer}") for e in stage.retain]
    context = make_context(problem=replace(nano_problem, stages=[Stage("text", forget, retain)]))
    if METHODS.get(name).skip_reason(context.problem):
        pytest.skip("a run on running text is refused while it is planned")
    before = fingerprint(context)
    methods.steps_rise(unlearn(name, context))
    assert (fingerprint(context) == before) == (name in UNCHANGING)


@pytest.mark.parametrize("name", METHODS.names())
def test_a_method_runs_on_bfloat16_weights(name: str, nano_context: UnlearningContext):
    import torch

    nano_context.model.to(torch.bfloat16)
    before = fingerprint(nano_context)
    unlearn(name, nano_context)
    assert {p.dtype for p in nano_context.model.parameters()} == {torch.bfloat16}
    assert all(torch.isfinite(p).all() for p in nano_context.model.parameters())
    assert (fingerprint(nano_context) == before) == (name in UNCHANGING)
    methods.as_found(nano_context)


def test_an_empty_list_of_layers_is_refused(nano_context: UnlearningContext):
    def empty() -> None:
        config = resolve(METHODS.get("kfade").config, {"step_size": 0.1, "layers": []}, owner="kfade")
        list(METHODS.get("kfade").unlearn(nano_context, config))

    with pytest.raises(UsageError):
        empty()


# ---------------------------------------------------------------- evaluators


@pytest.fixture(autouse=True)
def _few_steps_of_an_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is promised of its numbers does not depend on how far it goes."""
    monkeypatch.setattr(finetune_attack, "POINTS", (1, 3))


@pytest.fixture(scope="module")
def shop(nano: Nano, nano_problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    sources = {name: TinySource(seed, nano) for seed, name in enumerate(nano_problem.sources)}

    def texts(name: str, rows: int) -> list[Any]:
        return [{**row, "text": f"{row['question']} {row['answer']}"} for row in nano_problem.questions[name][:rows]]

    questions = {"memorized": texts("forget", 20), "unseen": texts("retain", 3), "running": texts("world_facts", 5)}
    problem = replace(nano_problem, sources=sources, questions={**nano_problem.questions, **questions})
    plan = EvalPlan(problem, BENCHMARKS.get("tofu10").evaluators())
    return Workshop(plan, nano, tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def references(shop: Workshop) -> list[Reference]:
    return evaluators.references_of(shop, [EVALUATORS.get(name) for name in EVALUATORS.names()])


@pytest.mark.parametrize("name", EVALUATORS.names())
def test_an_evaluator_is_its_file(name: str, nano_problem: Problem):
    evaluator = EVALUATORS.get(name)
    assert evaluator.name == name
    assert EVALUATORS.entries[name].module == f"evals.{name}"
    assert evaluator.version_for(EvalPlan(nano_problem)) >= 1


@pytest.mark.parametrize("name", EVALUATORS.names())
def test_an_evaluator_keeps_what_plugins_promise(name: str, shop: Workshop, references: list[Reference]):
    for check in evaluators.checks(EVALUATORS.get(name), shop, lambda: references):
        check.run()


# ---------------------------------------------------------------- benchmarks and figures


@pytest.mark.parametrize("name", BENCHMARKS.names())
def test_a_benchmark_keeps_what_plugins_promise(name: str):
    for check in benchmarks.checks(name, BENCHMARKS.get(name)):
        check.run()


@pytest.fixture(scope="module")
def recorded_runs(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("recorded")
    return recorded(Workshop.of("tofu10", folder), "tofu10", folder / "results")


@pytest.mark.parametrize("name", FIGURES.names())
def test_a_figure_keeps_what_plugins_promise(name: str, recorded_runs: Store):
    for check in figures.checks(FIGURES.get(name), recorded_runs.frame(), recorded_runs.root):
        check.run()


@pytest.mark.parametrize("registry", [METHODS, EVALUATORS, BENCHMARKS], ids=lambda r: r.kind)
def test_every_file_of_a_plugin_folder_registers_something(registry: Any):
    names = {file.stem for file in registry.folder.glob("[!_]*.py")}
    assert names <= {entry.module.rpartition(".")[2] for entry in registry.entries.values()}
