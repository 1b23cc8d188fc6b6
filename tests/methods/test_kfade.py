"""K-FADE end to end on a nano model: its step, its line search, what it caches and what it never does twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from harness.core.config import resolve
from harness.core.errors import Diverged, UsageError
from harness.core.method import METHODS
from harness.core.problem import Stage
from harness.core.text import Example
from harness.data.rows import Encoded, collate
from harness.models.sources import weights_fingerprint
from harness.numerics.anatomy import LinearMap
from harness.numerics.likelihood import answer_nll
from methods.curvature.layers import Layer, mlp_layers
from methods.curvature.signals import SequenceObjective, true_labels
from methods.gauss_newton import fit
from methods.gauss_newton.config import KFADEConfig, missing_back_end
from methods.gauss_newton.data import StageData
from methods.gauss_newton.step import KL_TOLERANCE, rounding_losses, step_for_kl
from methods.kfade import unlearn


def config(**settings):
    chosen = {"estimator": "ekfac", "damping": 0.1, "damping_scale": "mean_eigenvalue", "kl_rows": 8, **settings}
    if "target_kl" not in chosen:
        chosen.setdefault("step_size", 0.01)
    return resolve(KFADEConfig, chosen, owner="kfade")


def count(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """How often a function of the curvature is called by a fit from now on."""
    calls: list[int] = []
    real = getattr(fit, name)

    def counted(*args, **kwargs):
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(fit, name, counted)
    return calls


def run(context, chosen):
    return list(unlearn(context, chosen))


@pytest.mark.parametrize("estimator", ["kfac", "ekfac", "diagonal", "identity"])
def test_step_has_length_alpha_in_g(nano_context, estimator):
    layers = mlp_layers(nano_context.model)
    before = [layer.matrix() for layer in layers]
    chosen = config(estimator=estimator, step_size=0.02)
    (progress,) = run(nano_context, chosen)
    data = StageData(nano_context, nano_context.stages[0], chosen)
    moves = [layer.matrix() - matrix for layer, matrix in zip(layers, before, strict=True)]
    for layer, matrix in zip(layers, before, strict=True):
        layer.set_matrix(matrix)  # the curvature is that of the weights before the step
    curvatures = fit.fit(data, layers, weights_fingerprint(nano_context.model), estimator).curvatures
    quad = 0.0
    for layer, curvature, move in zip(layers, curvatures, moves, strict=True):
        quad += float((curvature.rotate(move).double().square() * curvature.spectrum(layer.shape, move.device)).sum())
    assert quad**0.5 == pytest.approx(0.02, rel=1e-3)
    assert progress.logged["predicted_kl"] == pytest.approx(0.02**2 / 2, rel=1e-3)


def test_the_step_goes_uphill(nano_context):
    (progress,) = run(nano_context, config(step_size=0.02))
    assert progress.measure_here
    assert progress.logged["forget_loss"] > progress.logged["forget_loss_before"]
    assert progress.logged["gain"] > 0
    assert progress.logged["measured_kl"] > 0


def test_a_further_setting_of_a_sweep_gives_what_it_gives_alone(make_context, clock):
    """What the runs of a sweep share in memory changes no number, and the clock counts it as if it had been computed."""
    alone, first = make_context(), make_context()
    second = replace(make_context(), cache=first.cache)
    run(first, config(step_size=0.02, damping=1.0))
    (expected,), (found,) = run(alone, config(target_kl=0.01)), run(second, config(target_kl=0.01))
    assert found == expected
    assert weights_fingerprint(second.model) == weights_fingerprint(alone.model)
    # What it did not have to compute is counted.
    told = second.costs.phases["curvature"]
    assert told.full_seconds - told.seconds > 0.1 * first.costs.phases["curvature"].seconds


def test_what_a_given_step_size_only_reports_is_off_the_clock(nano_context, monkeypatch, clock):
    real = StageData.mean_loss
    monkeypatch.setattr(StageData, "mean_loss", lambda *args: (clock.sleep(100), real(*args))[1])
    with nano_context.costs.phase("unlearning"):
        run(nano_context, config(step_size=0.02))
    phases = nano_context.costs.phases
    assert phases["monitoring"].seconds > 200
    assert phases["unlearning"].seconds < 100


def test_forget_loss_is_that_of_the_model_left_behind(nano_context):
    from harness.data.rows import encode, pad_id

    (progress,) = run(nano_context, config(step_size=0.02))
    encoded = encode(nano_context.stages[0].forget, nano_context.tokenizer)
    sums, counts = answer_nll(nano_context.model, encoded, pad_id(nano_context.tokenizer))
    assert progress.logged["forget_loss"] == pytest.approx(sums.sum() / counts.sum(), rel=1e-5)


@pytest.mark.parametrize("objective", ["cross_entropy", "margin", "npo", "simnpo"])
def test_target_kl_is_met(nano_context, objective):
    (progress,) = run(nano_context, config(target_kl=0.01, objective=objective))
    assert progress.logged["measured_kl"] == pytest.approx(0.01, rel=KL_TOLERANCE * 1.01)
    assert progress.logged["step_size"] > 0


def test_npos_objective_compares_with_the_model_before_the_stage(nano_context, monkeypatch):
    chosen = config(objective="npo", steps=2, forget_rows=6, step_size=0.05)
    seen = []
    real = SequenceObjective

    def noted(sequences, objective, beta, gamma, before):
        seen.append(before)
        return real(sequences, objective, beta, gamma, before)

    monkeypatch.setattr(fit, "SequenceObjective", noted)
    data = StageData(nano_context, nano_context.stages[0], chosen)
    expected = [answer_nll(nano_context.model, data.forget(step), data.pad)[0] for step in (1, 2)]
    run(nano_context, chosen)
    for found, own in zip(seen, expected, strict=True):
        assert found == pytest.approx(own, rel=1e-5)


def test_several_steps_spend_the_target_evenly(nano_context):
    found = run(nano_context, config(target_kl=0.03, steps=3, refit=False))
    assert [p.logged["measured_kl"] for p in found] == pytest.approx([0.01, 0.02, 0.03], rel=0.025)
    assert [p.step for p in found] == [1, 2, 3]


def test_another_damping_or_step_size_costs_no_fit(make_context, cache, monkeypatch):
    fits, spectra, gradients = (count(monkeypatch, name) for name in ("covariance_sums", "square_sums", "gradient_matrices"))

    def again(**settings):
        run(replace(make_context(), cache=cache), config(**settings))

    for settings in ({}, {"step_size": 0.02}, {"damping": 0.5}, {"target_kl": 0.01}, {"damping_scale": "absolute"}):
        again(**settings)
    assert (len(fits), len(spectra), len(gradients)) == (1, 1, 1)
    again(estimator="kfac")  # EK-FAC's basis is K-FAC's
    assert (len(fits), len(spectra)) == (1, 1)
    again(mc_samples=2)
    assert (len(fits), len(spectra)) == (2, 2)


def test_full_cost_counts_what_the_cache_saved(make_context, cache, clock):
    first, second = (replace(make_context(), cache=cache) for _ in range(2))
    run(first, config())
    run(second, config(step_size=0.02))
    spent, found = first.costs.phases["curvature"], second.costs.phases["curvature"]
    assert spent.full_seconds == spent.seconds
    assert found.full_seconds - found.seconds > 0.5 * spent.seconds


def test_refit_fits_at_the_new_weights(nano_context, monkeypatch):
    fits = count(monkeypatch, "covariance_sums")
    run(nano_context, config(steps=3))
    assert len(fits) == 3


def test_without_refit_one_fit_serves_all_steps(nano_context, monkeypatch):
    fits, gradients = count(monkeypatch, "covariance_sums"), count(monkeypatch, "gradient_matrices")
    run(nano_context, config(steps=3, refit=False))
    assert (len(fits), len(gradients)) == (1, 3)


def test_only_the_chosen_layers_move(nano_context):
    before = {name: p.detach().clone() for name, p in nano_context.model.named_parameters()}
    run(nano_context, config(layers=[1], step_size=0.05))
    moved = {name for name, p in nano_context.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {f"model.layers.1.mlp.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")}


def test_a_layer_that_is_not_there_is_refused(nano_context):
    with pytest.raises(UsageError, match=r"^layers=\[1, 99\]: the model has layers 0 to 1. Set layers=\[0,1\]\.$"):
        run(nano_context, config(layers=[1, 99]))


def test_same_seed_same_weights_and_another_seed_other_labels(make_context):
    prints = []
    for seed in (0, 0, 1):
        context = replace(make_context(), seed=seed)
        run(context, config(step_size=0.05))
        prints.append(weights_fingerprint(context.model))
    assert prints[0] == prints[1] != prints[2]


def test_forget_set_in_the_curvature_changes_the_step(make_context):
    one, other = make_context(), make_context()
    run(one, config())
    run(other, config(curvature_on="retain+forget"))
    assert weights_fingerprint(one.model) != weights_fingerprint(other.model)


def test_forget_rows_are_taken_without_replacement(nano_context):
    data = StageData(nano_context, nano_context.stages[0], config(forget_rows=5, steps=2))
    first, second = data.forget(1), data.forget(2)
    assert len(first) == len(second) == 5
    assert not {tuple(e.input_ids) for e in first} & {tuple(e.input_ids) for e in second}


def test_where_sequences_are_few_batches_shrink_and_stay_disjoint(nano_context, caplog):
    data = StageData(nano_context, nano_context.stages[0], config(forget_rows=5, steps=4))
    batches = [{tuple(e.input_ids) for e in data.forget(step)} for step in (1, 2, 3, 4)]
    assert [len(batch) for batch in batches] == [3, 3, 3, 3]
    assert len(set.union(*batches)) == 12
    assert "forget: 12 sequences make 4 batches of 3, not of 5" in caplog.text
    alone = StageData(nano_context, nano_context.stages[0], config(forget_rows=5, steps=20))
    assert len(alone.forget(1)) == 1


def test_kl_rows_avoid_the_fit_when_the_fit_is_a_sample(nano_context):
    total = len(nano_context.stages[0].retain)
    data = StageData(nano_context, nano_context.stages[0], config(retain_rows=total - 8, kl_rows=8))
    assert len(data.fit) == total - 8
    assert not {tuple(e.input_ids) for e in data.fit} & {tuple(e.input_ids) for e in data.kl}


def test_the_model_is_left_as_it_was_found_but_for_its_weights(nano_context):
    run(nano_context, config())
    assert not nano_context.model.training
    assert all(p.requires_grad and p.grad is None for p in nano_context.model.parameters())


def test_a_curvature_is_named_by_the_release_of_the_library_that_fitted_it(nano_context, monkeypatch):
    asked = []
    monkeypatch.setattr(type(nano_context.cache), "get", lambda cache, kind, key, make: asked.append(key["libraries"]) or 1 / 0)
    for backend in ("own", "curvlinops"):
        with pytest.raises(ZeroDivisionError):
            run(nano_context, config(backend=backend))
    assert asked[0] == {}
    assert "curvlinops-for-pytorch" in asked[1]


def test_a_back_end_that_is_not_installed_is_refused_with_what_to_install(monkeypatch):
    assert missing_back_end("curvlinops") is None
    monkeypatch.setattr("methods.gauss_newton.config.find_spec", lambda name: None)
    assert "pip install 'curvlinops-for-pytorch" in missing_back_end("curvlinops")
    assert missing_back_end("own") is None


def test_curvlinops_as_a_back_end_refuses_ragged_questions(nano_context):
    with pytest.raises(UsageError, match="backend=own"):
        run(nano_context, config(backend="curvlinops"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"step_size": 0.1, "target_kl": 0.1}, "contradict"),
        ({"estimator": "diagonal", "backend": "curvlinops", "step_size": 0.1}, "curvlinops"),
        ({"damping": 0, "step_size": 0.1}, "damping=0"),
        ({}, "give one of step_size and target_kl"),
        ({"damping": -1, "step_size": 0.1}, "damping=-1"),
        ({"layers": [-1], "step_size": 0.1}, "layers"),
        ({"target_kl": 0}, "target_kl=0"),
        ({"margin_clip": 0.05, "step_size": 0.1}, "margin_clip belongs to objective=margin"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, says):
    with pytest.raises(UsageError, match=says):
        resolve(KFADEConfig, settings, owner="kfade")


# ---------------------------------------------------------------- the form of WMDP


@pytest.fixture
def two_stages(nano_problem):
    """Texts without prompts, as corpora are."""
    (stage,) = nano_problem.stages
    forget, retain = ([Example("", f"{e.prompt}{e.tag}{e.answer}") for e in side] for side in (stage.forget, stage.retain))
    stages = [Stage("bio", forget[:6], retain[:12]), Stage("cyber", forget[6:], retain[12:])]
    return replace(nano_problem, stages=stages)


def test_margins_gradient_with_a_clip_is_its_formula():
    """(p − e_y) / max(1 − p_y, clip), p worked out by hand: 1 − p_y of the three rows is .75, .02 and 1/3000."""
    odds = torch.tensor([[1.0, 1.0, 2.0], [98.0, 1.5, 0.5], [2999.0, 0.4, 0.6]], dtype=torch.float64)
    labels = [1, 0, 0]
    p = odds / odds.sum(dim=1, keepdim=True)
    batch = collate([Encoded([0, *labels], 1)], [0], 0)
    for clip in (0.0, 0.05):
        (found,) = true_labels(3, "margin", clip)(odds.log(), batch)
        for row, label in enumerate(labels):
            unit = torch.eye(3, dtype=torch.float64)[label]
            expected = (p[row] - unit) / max(1 - float(p[row, label]), clip) / 3
            torch.testing.assert_close(found[row], expected, rtol=1e-9, atol=1e-14)


def test_wmdps_steps_are_refitted_and_each_stage_has_a_budget(make_context, two_stages, monkeypatch):
    fits, spectra = count(monkeypatch, "covariance_sums"), count(monkeypatch, "square_sums")
    chosen = config(objective="margin", margin_clip=0.05, steps=4, target_kl=0.02, forget_rows=2)
    found = run(make_context(problem=two_stages), chosen)
    assert len(fits) == len(spectra) == 8
    assert [p.logged["measured_kl"] for p in found] == pytest.approx(2 * [0.005, 0.01, 0.015, 0.02], rel=0.025)
    assert {p.logged["forget_rows"] for p in found} == {1.0}
    assert all(p.measure_here for p in found)


def test_every_stage_has_a_step_size_of_its_own(make_context, two_stages):
    chosen = config(objective="margin", steps=2, step_size=[0.01, 0.03])
    found = run(make_context(problem=two_stages), chosen)
    assert [p.logged["step_size"] for p in found] == [0.01, 0.01, 0.03, 0.03]
    with pytest.raises(UsageError, match=r"step_size=\[0.1, 0.2, 0.3\]: give one value, or one for each of the 2 stages"):
        run(make_context(problem=two_stages), config(step_size=[0.1, 0.2, 0.3]))


def test_published_settings_for_wmdp():
    method = METHODS.get("kfade")
    both, bio, cyber = (
        resolve(method.config, method.preset(bench, "zephyr-7b"), owner="kfade") for bench in ("wmdp", "wmdp-bio", "wmdp-cyber")
    )
    assert (both.step_size, bio.step_size, cyber.step_size) == ((2e-3, 5e-3), 2e-3, 5e-3)
    assert (both.estimator, both.objective, both.margin_clip, both.steps, both.refit) == ("ekfac", "margin", 0, 4, True)
    assert (both.forget_rows, both.layers, both.damping, both.damping_scale) == (2500, (3, 4, 5, 6), 1e-14, "absolute")
    assert replace(bio, step_size=5e-3) == cyber == replace(both, step_size=5e-3)


@pytest.mark.parametrize(("size", "says"), [(-1, "kfade: step_size=-1 is not allowed"), ("x", 'step_size="x" is not allowed')])
def test_a_step_size_that_is_none_is_refused_in_one_sentence(size, says):
    with pytest.raises(UsageError) as error:
        resolve(KFADEConfig, {"step_size": size}, owner="kfade")
    assert says in str(error.value)
    assert str(error.value).count("step_size") == 1


# ---------------------------------------------------------------- the line search


@pytest.mark.parametrize("target", [1e-6, 1e-2, 1.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_line_search_finds_a_quadratic(target, scale):
    alpha, kl = step_for_kl(lambda a: scale * a**2, target)
    assert kl == pytest.approx(target, rel=KL_TOLERANCE)
    assert scale * alpha**2 == kl


def test_line_search_copes_with_saturation_and_broken_models():
    def kl_at(alpha: float) -> float:
        return float("nan") if alpha > 3 else min(2.0, alpha**4)

    alpha, kl = step_for_kl(kl_at, 1.5)
    assert kl == pytest.approx(1.5, rel=KL_TOLERANCE)


def test_line_search_gives_up_on_what_cannot_be_reached():
    with pytest.raises(Diverged, match="no step size"):
        step_for_kl(lambda a: min(1.0, a), 2.0)


def test_line_search_stops_in_front_of_a_jump_that_is_low_enough():
    def jump(low: float) -> Callable[[float], float]:
        return lambda a: low * (a / 0.3) ** 2 if a < 0.3 else 0.2

    alpha, kl = step_for_kl(jump(0.093), 0.1)
    assert alpha == pytest.approx(0.3, rel=0.01)
    assert kl == jump(0.093)(alpha) < 0.1
    _, late = step_for_kl(lambda a: 0.0975 if 0 < a < 1e-4 else 0.0875 if a == 0 else 0.2, 0.1, start=0.0875)
    assert late == 0.0975
    with pytest.raises(Diverged, match="no step size"):  # behind it the model is broken
        step_for_kl(lambda a: 0.093 * (a / 0.3) ** 2 if a < 0.3 else float("nan"), 0.1)
    for far in (0.08, 0.0):
        with pytest.raises(Diverged, match="no step size"):
            step_for_kl(jump(far), 0.1)
    with pytest.raises(Diverged, match="no step size"):
        step_for_kl(lambda a: 0.2 if a else 0.095, 0.1, start=0.095)  # no step at all is none


@pytest.mark.parametrize("steps", [2, 8, 16])
def test_a_later_step_is_found_though_most_of_the_kl_was_there_before(steps):
    calls = []

    def kl_at(alpha: float) -> float:
        calls.append(alpha)
        return before + 300 * alpha**2

    target = 0.1
    before = target * (steps - 1) / steps
    _, kl = step_for_kl(kl_at, target, before)
    assert kl == pytest.approx(target, rel=KL_TOLERANCE)
    assert len(calls) <= 8


def test_line_search_halves_a_bracket_that_guesses_do_not_leave():
    def kl_at(alpha: float) -> float:
        return 1e-6 * alpha if alpha < 0.07 else 0.01 + 40 * (alpha - 0.07)  # flat, then steep

    _, kl = step_for_kl(kl_at, 0.02)
    assert kl == pytest.approx(0.02, rel=KL_TOLERANCE)


def test_line_search_needs_few_measurements():
    calls = []

    def kl_at(alpha: float) -> float:
        calls.append(alpha)
        return 120 * alpha**2 + 500 * alpha**3

    step_for_kl(kl_at, 0.1)
    assert len(calls) <= 8


# ---------------------------------------------------------------- weights in 16 bits


def test_what_rounding_takes_of_a_step_is_logged_and_said(make_context, caplog: pytest.LogCaptureFixture):
    context = make_context()
    context.model.to(torch.bfloat16)
    layers = mlp_layers(context.model)
    before = [layer.matrix() for layer in layers]
    (progress,) = run(context, config(step_size=1e-3))
    moved = [layer.matrix() - matrix for layer, matrix in zip(layers, before, strict=True)]
    still = sum(int((step == 0).sum()) for step in moved) / sum(step.numel() for step in moved)
    assert progress.logged["unmoved_share"] == pytest.approx(still, abs=0.01)
    assert still > 0.1
    assert 0 < progress.logged["lost_norm"] < 1
    assert (
        f"rounding to bfloat16 left {100 * progress.logged['unmoved_share']:.0f} % of the weights where they were"
        in caplog.text
    )


def test_a_step_of_known_size_loses_what_rounding_takes():
    """Next to 1, bfloat16 counts in steps of 1/128: a fourth of one is lost, a whole one stays, and 0 is no entry."""
    linear = torch.nn.Linear(3, 1, bias=False).to(torch.bfloat16)
    layer = Layer(LinearMap("a", linear, transposed=False), 0)
    layer.set_matrix(torch.ones(1, 3))
    step, start = torch.tensor([[1 / 512, 1 / 128, 0.0]]), [layer.matrix()]
    layer.set_matrix(start[0] + step)
    found = rounding_losses([layer], start, [step / 2], 2.0)
    assert found["unmoved_share"] == 0.5
    assert found["lost_norm"] == pytest.approx((1 / 512) / (1 / 512**2 + 1 / 128**2) ** 0.5)
    assert rounding_losses([Layer(LinearMap("a", torch.nn.Linear(3, 1), transposed=False), 0)], start, [step], 1.0) == {}
