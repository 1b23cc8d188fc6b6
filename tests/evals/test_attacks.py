"""Attacks on what was forgotten: fine-tuning brings it back, quantising rounds, and the model comes out as it went in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from evals import _fine_tuning, _scores, finetune_attack, quantise_attack
from harness.core.costs import Costs
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan
from harness.core.measurement import Absent, Measurement
from harness.core.method import Progress, UnlearningContext
from harness.core.problem import Problem, Stage
from harness.models.small import learning_rate_factor
from harness.models.sources import weights_fingerprint
from harness.numerics import rounding
from harness.statistics.measurements import measurements
from tests.conftest import WORLD, Bench, ContextMaker, Nano, examples, numbered

if TYPE_CHECKING:
    from harness.storage.cache import Cache

FINETUNE, QUANTISE = EVALUATORS.get("finetune_attack"), EVALUATORS.get("quantise_attack")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacks of a few steps."""
    monkeypatch.setattr(finetune_attack, "POINTS", (5, 20))


@pytest.fixture
def problem(nano_problem: Problem) -> Problem:
    """Forget questions of which every other one is trained on by the attack, and benign data about something else."""
    rows = WORLD.split("forget05")
    return replace(
        nano_problem,
        stages=[Stage("forget", examples(rows), nano_problem.stages[0].retain)],
        questions={**nano_problem.questions, "forget": numbered(rows)},
        attacks={"benign": examples(WORLD.world_facts[:16]), "forget": examples(rows[::2])},
    )


def context_of(nano: Nano, problem: Problem, cache: Cache, seed: int = 1) -> EvalContext:
    return EvalContext(
        UnlearningContext(nano.model(seed), nano.tokenizer, problem, 0, cache, Costs(), ""), EvalPlan(problem), ()
    )


def numbers(found: Sequence[Measurement | Absent]) -> dict[str, float]:
    return {item.metric: item.value for item in found if isinstance(item, Measurement)}


# ---------------------------------------------------------------- fine-tuning


def test_fine_tuning_on_forget_data_raises_what_is_known_of_the_other_questions(nano: Nano, problem: Problem, cache: Cache):
    found = numbers(measurements(FINETUNE, context_of(nano, problem, cache)))
    assert found["attack_forget_200"] > 3 * found["attack_start"]
    assert found["attack_forget_200"] > 2 * found["attack_benign_200"]
    assert found["attack_forget_25"] < found["attack_forget_200"]


@pytest.mark.usefixtures("short")
def test_no_question_that_an_attack_trains_on_is_measured(nano: Nano, problem: Problem, cache: Cache):
    context = context_of(nano, problem, cache)
    measurements(FINETUNE, context)
    table = context.tables["attack"]
    assert table["row"].tolist() == list(range(1, len(problem.questions["forget"]), 2))
    asked = {problem.template.prompt(row["question"]) for row in _scores.forgotten(EvalPlan(problem))["forget"]}
    assert not asked & {e.prompt for of in problem.attacks.values() for e in of}


@pytest.mark.usefixtures("short")
def test_it_is_the_same_every_time(nano: Nano, problem: Problem, make_context: ContextMaker):
    found = [measurements(FINETUNE, context_of(nano, problem, make_context().cache)) for _ in range(2)]
    assert found[0] == found[1]


@pytest.mark.usefixtures("short")
def test_the_untouched_models_attack_is_done_once_and_is_its_own(
    nano: Nano, problem: Problem, cache: Cache, monkeypatch: pytest.MonkeyPatch
):
    done: list[int] = []
    attack = finetune_attack._attack
    monkeypatch.setattr(finetune_attack, "_attack", lambda *args: done.append(1) or attack(*args))
    untouched = numbers(measurements(FINETUNE, context_of(nano, problem, cache, seed=0)))
    assert len(done) == 2
    context = context_of(nano, problem, cache)
    measurements(FINETUNE, context)
    assert len(done) == 4, "its own attacks alone"
    assert untouched["attack_start"] == pytest.approx(context.tables["attack"]["attack_untouched"].mean())
    assert untouched["attack_forget_steps_to_recover"] == 0
    assert untouched["attack_forget_transfer"] == untouched["attack_forget_20"], "no update, nothing transferred"
    monkeypatch.setattr(_fine_tuning, "SEED", 1)
    measurements(FINETUNE, context_of(nano, problem, cache, seed=0))
    assert len(done) == 6, "another order of the data is another attack"


@pytest.mark.usefixtures("short")
def test_the_transfer_adds_the_update_to_the_fine_tuned_base(nano: Nano, problem: Problem, cache: Cache):
    eval_context = context_of(nano, problem, cache)
    measurements(FINETUNE, eval_context)
    context = UnlearningContext(nano.model(0), nano.tokenizer, problem, 0, cache, Costs(), "")
    attacked = EvalContext(context, EvalPlan(problem), ())
    finetune_attack._attack(attacked, problem.attacks["forget"])
    old, new = nano.model(0).state_dict(), nano.model(1).state_dict()
    state = {k: (v.double() + (new[k].double() - old[k].double())).float() for k, v in context.model.state_dict().items()}
    context.model.load_state_dict(state)
    expected = _scores.scores(attacked, _scores.forgotten(EvalPlan(problem)))["score"]
    assert eval_context.tables["attack"]["attack_forget_transfer"].tolist() == expected.tolist()


def test_steps_to_recover_is_the_first_measured_step_within_the_untouched_models_interval(problem: Problem):
    import pandas as pd

    rng = np.random.default_rng(0)
    before = 0.6 + 0.1 * rng.random(40)
    columns: dict[str, Any] = {"task": "forget", "row": range(40), "cluster": [str(i) for i in range(40)]}
    columns |= {"attack_untouched": before, "attack_start": before - 0.5, "attack_benign_transfer": before}
    for step, short_of in zip(finetune_attack.POINTS, (0.4, 0.2, 0.005, -0.1, 0.0), strict=True):
        columns |= {f"attack_benign_{step}": before - short_of, f"attack_forget_{step}": before - 0.3}
    context = EvalContext(None, EvalPlan(problem), (), {"attack": pd.DataFrame(columns).assign(attack_forget_transfer=before)})
    found = {item.metric: item for item in measurements(FINETUNE, context)}
    recovered, never = found["attack_benign_steps_to_recover"], found["attack_forget_steps_to_recover"]
    assert isinstance(recovered, Measurement)
    assert recovered.value == 100
    assert isinstance(never, Absent)
    assert "not recovered" in never.reason


def test_the_learning_rate_is_scaled_on_models_trained_on_the_spot_alone(problem: Problem):
    assert _fine_tuning.learning_rate(problem) == pytest.approx(1e-3)
    for model, family, factor in (("mini@3", "", 100), ("scratch", "", 100), ("DIR", "mini", 100), ("zephyr-7b", "", 1)):
        assert learning_rate_factor(replace(problem, model=model, family=family)) == factor


@pytest.mark.usefixtures("short")
def test_a_loss_that_is_not_finite_leaves_reasons(nano: Nano, problem: Problem, cache: Cache, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_fine_tuning, "LEARNING_RATE", 1e30)
    found = {item.metric: item for item in measurements(FINETUNE, context_of(nano, problem, cache))}
    assert isinstance(found["attack_start"], Measurement)
    assert isinstance(found["attack_forget_20"], Absent)


@pytest.mark.usefixtures("short")
def test_a_run_with_attacks_goes_on_with_its_own_weights(bench: Bench, problem: Problem):
    """Points measured with attacks between them are on the same weights as without, bit by bit."""
    from tests.running.test_run import run, steps

    sources = {"base": bench.base.sources["base"]}
    weights = []
    for evaluators in ([EVALUATORS.get("probability")], [FINETUNE, QUANTISE, EVALUATORS.get("probability")]):
        result = run(bench, steps(3), evaluators, problem=replace(problem, sources=sources))
        weights.append([point.weights for point in result.points])
    assert weights[0] == weights[1]
    assert len(set(weights[0])) == 3
    rows = bench.store.rows(result.spec, 2)
    assert rows is not None
    assert {"attack_untouched", "attack_forget_20", "quantised_4"} <= set(rows)
    assert "attack_forget_20" in numbers(result.references["untouched"])


@pytest.mark.usefixtures("short")
def test_other_data_to_attack_with_are_not_taken_for_the_same(bench: Bench, problem: Problem):
    from tests.running.test_run import run, steps

    found = []
    for data, attacked in (("one", problem.attacks["forget"]), ("other", problem.attacks["forget"][:4])):
        asked = replace(
            problem, sources={"base": bench.base.sources["base"]}, data={"rows": data}, attacks={"forget": attacked}
        )
        asked = replace(asked, questions={"forget": problem.questions["forget"][1::2]})
        found.append(numbers(run(bench, steps(1), [FINETUNE], problem=asked).references["untouched"])["attack_forget_20"])
    assert found[0] != found[1]


# ---------------------------------------------------------------- quantising


def test_a_table_from_before_nf4_has_the_other_numbers(nano_problem: Problem):
    import pandas as pd

    old = pd.DataFrame({"task": "forget", "row": range(6), "cluster": list("abcdef"), "quantised_8": 0.5, "quantised_4": 0.25})
    asked = replace(nano_problem, questions={"forget": nano_problem.questions["forget"]})
    found = {item.metric: item for item in measurements(QUANTISE, EvalContext(None, EvalPlan(asked), (), {"quantised": old}))}
    assert numbers(list(found.values())) == {"forget_8_bit": 0.5, "forget_4_bit": 0.25}
    nf4 = found["forget_nf4"]
    assert isinstance(nf4, Absent)
    assert "quantised_nf4" in nf4.reason


def test_a_recorded_name_finds_its_metric():
    names = ["forget_8_bit", "world_facts_4_bit", "forget_nf4", "real_authors_nf4"]
    assert [metric.name for name in names if (metric := quantise_attack.named(name))] == names
    assert [quantise_attack.named(name) for name in ("nf4", "forget_x_bit", "forget", "_bit")] == [None] * 4


def test_linear_layers_but_the_head_are_quantised(nano: Nano, nano_problem: Problem, cache: Cache):
    context = context_of(nano, nano_problem, cache)
    before = nano.model(1).state_dict()
    found = numbers(measurements(QUANTISE, context))
    assert set(found) == {
        f"{name}_{way}" for name in ("retain", "real_authors", "world_facts", "forget") for way in ("8_bit", "4_bit", "nf4")
    }
    after = context.model.state_dict()
    moved = {name for name in before if not after[name].equal(before[name])}
    assert moved == {name for name in before if "_proj" in name}
    assert "quantised_share" in context.tables["quantised"]


def other(kind: str, nano: Nano, **shape: Any) -> PreTrainedModel:
    """A random model of another architecture over the nano world's words."""
    told = {"vocab_size": len(nano.tokenizer), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, **shape}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **told)).eval()


def oriented(weight: Tensor, transposed: bool) -> Tensor:
    """[experts, outputs, inputs] of a weight, 1 for experts where there are none."""
    matrices = weight.detach().reshape(-1, *weight.shape[-2:])
    return matrices.transpose(-1, -2) if transposed else matrices


MIXTURE = {
    "intermediate_size": 12,
    "num_key_value_heads": 2,
    "num_local_experts": 2,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 12,
    "head_dim": 8,
}


@pytest.mark.parametrize(
    ("kind", "shape", "parts"),
    [
        ("gpt2", {}, {"c_attn", "c_proj", "c_fc"}),
        ("mixtral", MIXTURE, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"}),
        ("qwen3_moe", MIXTURE, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"}),
        ("gpt_oss", MIXTURE, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"}),
    ],
)
def test_transposed_layers_and_experts_are_quantised(
    kind: str, shape: dict[str, Any], parts: set[str], nano: Nano, nano_problem: Problem, cache: Cache
):
    model = other(kind, nano, **shape)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    asked = replace(nano_problem, questions={"forget": nano_problem.questions["forget"]})
    context = EvalContext(UnlearningContext(model, nano.tokenizer, asked, 0, cache, Costs(), ""), EvalPlan(asked), ())
    found = measurements(QUANTISE, context)
    assert set(numbers(found)) == {"forget_8_bit", "forget_4_bit", "forget_nf4"}
    after = dict(model.named_parameters())
    moved = {name for name in before if not after[name].equal(before[name])}
    assert moved == {name for name in before if name.removesuffix(".weight").rpartition(".")[2] in parts}
    share = sum(before[name].numel() for name in moved) / sum(p.numel() for p in before.values())
    assert {m.note for m in found if isinstance(m, Measurement)} == {f"{100 * share:.3g} % of the weights are rounded"}
    for name in moved:  # by the output channel, wherever that dimension is
        transposed = kind == "gpt2" or (kind == "gpt_oss" and before[name].dim() == 3)
        stored = oriented(before[name], transposed)
        expected = rounding.rounded_to_nf4(stored.reshape(-1, stored.shape[-1])).view(stored.shape)  # the last of the ways
        torch.testing.assert_close(oriented(after[name], transposed), expected)


def test_eight_bits_change_less_than_four(nano: Nano, nano_problem: Problem, cache: Cache):
    context = context_of(nano, nano_problem, cache)
    measurements(QUANTISE, context)
    table = context.tables["quantised"].query("task == 'retain'")
    plain = _scores.scores(context_of(nano, nano_problem, cache), {"retain": nano_problem.questions["retain"]})["score"]
    eight, four = (float(np.abs(np.log(table[f"quantised_{b}"] / plain.to_numpy())).mean()) for b in (8, 4))
    assert 0 < eight < four / 3


# ---------------------------------------------------------------- what is asked


def test_stages_with_choices_are_judged_by_accuracy_on_their_own_questions(nano_problem: Problem):
    whole = EvalPlan(nano_problem)
    chosen = EvalPlan(
        replace(nano_problem, stages=[Stage("bio", nano_problem.stages[0].forget, nano_problem.stages[0].retain)])
    )
    assert list(_scores.forgotten(chosen)) == list(_scores.everything(chosen)) == ["bio"]
    assert _scores.unit(chosen) == "share of questions"
    assert list(_scores.forgotten(whole)) == ["forget"]
    assert list(_scores.everything(whole)) == ["retain", "real_authors", "world_facts", "forget"]


def test_accuracy_is_multiple_choices_own(nano: Nano, nano_problem: Problem, cache: Cache):
    pytest.importorskip("lm_eval")
    context = context_of(nano, nano_problem, cache)
    measurements(EVALUATORS.get("multiple_choice"), context)
    found = _scores.scores(context, {"bio": nano_problem.questions["bio"]})
    assert found["score"].tolist() == context.tables["choices"].query("task == 'bio'")["correct"].tolist()


@pytest.mark.parametrize("name", ["finetune_attack", "quantise_attack"])
def test_the_runner_puts_the_model_back(name: str, bench: Bench, monkeypatch: pytest.MonkeyPatch):
    from tests.running.test_run import run

    monkeypatch.setattr(finetune_attack, "POINTS", (2,))
    seen: list[str] = []

    def unlearn(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        with torch.no_grad():
            context.model.lm_head.weight.mul_(1.5)
        seen.append(weights_fingerprint(context.model))
        yield Progress(1, measure_here=True, total=1)
        seen.append(weights_fingerprint(context.model))

    run(bench, unlearn, [EVALUATORS.get(name)])
    assert seen[0] == seen[1]
