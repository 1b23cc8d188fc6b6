"""The predictor and the corrector: exact on a linear forget objective with a quadratic KL, and as promised on a nano model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.core.config import resolve
from harness.core.errors import UsageError
from harness.core.method import METHODS, Progress, UnlearningContext
from harness.core.problem import Problem, Stage
from harness.data.rows import collate, encode, pad_id
from harness.models.sources import weights_fingerprint
from harness.numerics.anatomy import LinearMap
from harness.numerics.likelihood import AnswerDistributions
from harness.numerics.meeting import TOLERANCE
from harness.running.budgets import BudgetedRun
from methods.curvature.gradients import gradient_matrices
from methods.curvature.layers import Layer, Line, mlp_layers
from methods.curvature.solve import Solver
from methods.curvature.spectrum import LayerCurvature
from methods.first_order.losses import frozen_copy
from methods.gauss_newton import corrector, fit
from methods.gauss_newton.corrector import Before, CorrectorRows, kl_gradient, line_search
from methods.gauss_newton.corrector_config import PredictorCorrectorConfig
from methods.gauss_newton.data import StageData
from methods.gauss_newton.step import KL_TOLERANCE
from tests.conftest import WORLD, ContextMaker, examples

GAMMA = 0.7


class Quadratic:
    """L_F(θ) = ⟨g, θ⟩ and KL(θ) = ½ dᵀGd, d = θ − θ0, with a Kronecker-factored G on two layers; λ = 0."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        shapes = [(3, 4), (4, 2)]
        self.layers = [
            Layer(LinearMap(str(i), nn.Linear(n, m, bias=False).double(), transposed=False), block=0)
            for i, (m, n) in enumerate(shapes)
        ]
        self.curvatures = [
            LayerCurvature(self._basis(n), self._basis(m), torch.rand(n) + 0.1, torch.rand(m) + 0.1) for m, n in shapes
        ]
        self.g = [torch.randn(shape) for shape in shapes]
        self.first = [layer.matrix() for layer in self.layers]

    @staticmethod
    def _basis(n: int) -> Tensor:
        return torch.linalg.qr(torch.randn(n, n)).Q

    def times_g(self, d: Sequence[Tensor]) -> list[Tensor]:
        return [
            c.rotate_back(c.rotate(x) * c.spectrum((x.shape[0], x.shape[1]), x.device))
            for c, x in zip(self.curvatures, d, strict=True)
        ]

    @property
    def moved(self) -> list[Tensor]:
        return [layer.matrix() - start for layer, start in zip(self.layers, self.first, strict=True)]

    def kl(self) -> float:
        return 0.5 * sum(float((x * y).sum()) for x, y in zip(self.moved, self.times_g(self.moved), strict=True))

    def solve(self, gradient: Sequence[Tensor]) -> tuple[list[Tensor], float]:
        direction = Solver(self.layers, self.curvatures, gradient).direction(damping=0.0)
        return direction.matrices, direction.g_norm

    def predict(self) -> list[Tensor]:
        """A predictor of length α = ‖r‖_G / γ; r."""
        r, norm = self.solve(self.g)
        Line(self.layers, r).go(norm / GAMMA / norm)
        return r

    def corrector(self) -> list[Tensor]:
        return self.solve(self.times_g(self.moved))[0]


def same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_predictor_of_the_right_length_lands_on_the_optimum_of_equation_1():
    """Where the gradient g − γ G d is 0."""
    on = Quadratic()
    r = on.predict()
    same(on.moved, [x / GAMMA for x in r])
    same([GAMMA * x for x in on.times_g(on.moved)], on.g)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_joint_step_lands_there_from_anywhere(seed: int):
    """r/γ − q with both gradients at the same θ."""
    on = Quadratic()
    torch.manual_seed(seed)
    Line(on.layers, [torch.randn(x.shape) for x in on.first]).go(1.0)
    (r, _), q = on.solve(on.g), on.corrector()
    Line(on.layers, [x / GAMMA - y for x, y in zip(r, q, strict=True)]).go(1.0)
    same(on.moved, [x / GAMMA for x in r])


@pytest.mark.parametrize("eta", [0.25, 0.5, 1.0])
def test_a_corrector_scales_the_way_and_squares_that_for_the_kl(eta: float):
    on = Quadratic()
    on.predict()
    before, kl = on.moved, on.kl()
    Line(on.layers, on.corrector()).go(-eta)
    same(on.moved, [(1 - eta) * x for x in before])
    assert on.kl() == pytest.approx((1 - eta) ** 2 * kl, rel=1e-3, abs=1e-6)


def test_with_an_exact_g_the_line_search_undoes_the_predictor():
    on = Quadratic()
    on.predict()
    line, kl = Line(on.layers, on.corrector()), on.kl()

    def kl_at(length: float) -> float:
        line.go(-length)
        return on.kl()

    length, least = line_search(kl_at, kl, 2.0**-10)
    assert length == pytest.approx(1.0)
    assert least == pytest.approx(0, abs=1e-6)


def test_identity_is_plain_ascent_and_descent():
    on = Quadratic()
    on.curvatures = [LayerCurvature(None, None, None, None) for _ in on.layers]
    r, norm = on.solve(on.g)
    same(r, on.g)
    assert norm == pytest.approx(sum(float(x.square().sum()) for x in on.g) ** 0.5)


# ---------------------------------------------------------------- the gradient of the KL


def test_the_gradient_of_the_kl_is_autograds(nano_context: UnlearningContext):
    model, (stage,) = nano_context.model.double(), nano_context.stages
    rows, pad = encode(stage.retain[:6], nano_context.tokenizer), pad_id(nano_context.tokenizer)
    before = frozen_copy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(int(p.numel())), dtype=p.dtype))
    layers = mlp_layers(model)
    found = gradient_matrices(model, layers, rows, pad, kl_gradient(Before(before), rows))
    batch = collate(rows, range(len(rows)), pad)

    def log_probs(of: Any) -> Tensor:
        return of(input_ids=batch.input_ids).logits[:, :-1][batch.scored].log_softmax(-1)

    p0, p = log_probs(before).detach(), log_probs(model)
    kl = (p0.exp() * (p0 - p)).sum(-1).mean()
    for matrix, expected in zip(found, torch.autograd.grad(kl, [layer.module.weight for layer in layers]), strict=True):
        torch.testing.assert_close(matrix.double(), expected, rtol=1e-3, atol=1e-6 * float(expected.abs().max()))
    assert float(kl.detach()) == pytest.approx(AnswerDistributions(before, rows, pad).kl(model), rel=1e-4)


@pytest.mark.parametrize(("room", "computed"), [(2**28, 1), (0, 2)])
def test_what_was_said_before_is_computed_once_as_long_as_there_is_room(
    room: int, computed: int, nano_context: UnlearningContext, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(corrector, "KEPT", room)
    (stage,) = nano_context.stages
    rows, pad = encode(stage.retain[:6], nano_context.tokenizer), pad_id(nano_context.tokenizer)
    before, batch = Before(frozen_copy(nano_context.model), same_rows=True), collate(rows, range(len(rows)), pad)
    first, second = before.probabilities(batch), before.probabilities(batch)
    assert torch.equal(first, second)
    assert before.computed == computed * sum(e.label_count for e in rows)
    other = before.probabilities(collate(rows[:3], range(3, 6), pad))
    torch.testing.assert_close(other, first[: len(other)])


# ---------------------------------------------------------------- on a nano model

FEW = {"steps": 2, "corrections": 2, "peak_kl": 0.02, "kl_rows": 12}


def small(**settings: Any) -> PredictorCorrectorConfig:
    return resolve(PredictorCorrectorConfig, FEW, settings, owner="predictor_corrector")


def run(context: UnlearningContext, **settings: Any) -> list[Progress]:
    return list(METHODS.get("predictor_corrector").unlearn(context, small(**settings)))


@pytest.mark.parametrize("predictor", ["kfac", "ekfac", "diagonal", "identity"])
@pytest.mark.parametrize("corrector", [None, "identity", "kfac"])
def test_it_goes_up_to_the_peak_and_comes_down(predictor: str, corrector: str | None, nano_context: UnlearningContext):
    loss = run_loss(nano_context)
    progress = run(nano_context, predictor=predictor, corrector=corrector)
    assert [p.measure_here for p in progress] == [True, True]
    for p in progress:
        assert p.logged["peak_kl"] == pytest.approx(0.02, rel=KL_TOLERANCE * 1.01)
        assert p.logged["measured_kl"] < 0.95 * p.logged["peak_kl"]
        assert p.logged["corrections"] == 2
    assert progress[-1].logged["forget_loss"] > loss + 1e-3


def run_loss(context: UnlearningContext) -> float:
    (stage,) = context.stages
    from harness.numerics.likelihood import answer_nll

    sums, counts = answer_nll(context.model, encode(stage.forget, context.tokenizer), pad_id(context.tokenizer))
    return float(sums.sum() / counts.sum())


def test_without_correctors_it_is_kfade_at_that_kl(make_context: ContextMaker):
    one, other = make_context(), make_context()
    run(one, steps=1, corrections=0)
    kfade = METHODS.get("kfade")
    same_settings = {"target_kl": 0.02, "kl_rows": 12, "damping": 0.1, "damping_scale": "mean_eigenvalue"}
    list(kfade.unlearn(other, resolve(kfade.config, same_settings, owner="kfade")))
    for found, expected in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_the_same_seed_gives_the_same_weights_and_a_part_of_the_rows_is_drawn_by_it(make_context: ContextMaker):
    found = []
    for seed in (0, 0, 1):
        context = make_context(seed=seed)
        run(context, corrector_rows=8)
        found.append(weights_fingerprint(context.model))
    assert found[0] == found[1] != found[2]


def test_all_that_is_recorded_is_of_this_step(nano_context: UnlearningContext):
    logged = [p.logged for p in run(nano_context)]
    assert all(0 < step["kl_measurements"] < 60 for step in logged)
    assert logged[0]["kl_tokens"] == logged[1]["kl_tokens"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"damping": 0}, "damping=0 divides by eigenvalues that are 0"),
        ({"damping": 0, "predictor": "identity", "corrector": "kfac"}, "damping=0 divides"),
        ({"margin_clip": 0.1}, "margin_clip belongs to objective=margin"),
        ({"peak_kl": 0}, "peak_kl"),
        ({"predictor": "newton"}, "predictor"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        resolve(METHODS.get("predictor_corrector").config, settings, owner="predictor_corrector")


def test_identity_needs_no_damping(nano_context: UnlearningContext):
    run(nano_context, predictor="identity", damping=0)


# ---------------------------------------------------------------- general text


def general_text(problem: Problem) -> Problem:
    """The nano problem with general text, none of it about whom a metric asks."""
    return replace(problem, general=examples(WORLD.general[0][:9]))


def test_over_both_kinds_it_is_one_mean_over_all_labels(make_context: ContextMaker, nano_problem: Problem):
    """(n_r ∇KL_r + n_g ∇KL_g) / (n_r + n_g), n the labels of retain rows and of general text."""
    context = make_context(problem=general_text(nano_problem))
    model, (stage,) = context.model, context.stages
    before = frozen_copy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(int(p.numel()))))
    layers, data = mlp_layers(model), StageData(context, stage, small().half("kfac"))
    drawn = CorrectorRows(data, stage.name, "both").drawn(None, 1, 0)
    assert {kind: len(rows) for kind, rows in drawn.items()} == {"retain": 24, "general": 9}
    counts = {kind: sum(e.label_count for e in rows) for kind, rows in drawn.items()}
    alone = {
        kind: gradient_matrices(model, layers, rows, data.pad, kl_gradient(Before(before), rows))
        for kind, rows in drawn.items()
    }
    rows = [*drawn["retain"], *drawn["general"]]
    found = gradient_matrices(model, layers, rows, data.pad, kl_gradient(Before(before), rows))
    for together, retain, general in zip(found, alone["retain"], alone["general"], strict=True):
        expected = (counts["retain"] * retain + counts["general"] * general) / sum(counts.values())
        torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-7)
        assert not torch.allclose(together, retain, rtol=1e-2)


@pytest.mark.parametrize(("on", "kinds"), [("retain", {"retain"}), ("general", {"general"}), ("both", {"retain", "general"})])
def test_each_kind_is_drawn_and_measured_by_itself(on: Any, kinds: set[str], make_context: ContextMaker, nano_problem: Problem):
    context = make_context(problem=general_text(nano_problem))
    (stage,) = context.stages
    rows = CorrectorRows(StageData(context, stage, small(kl_rows=4).half("kfac")), stage.name, on)
    texts = {
        "retain": {tuple(e.input_ids) for e in encode(stage.retain, context.tokenizer)},
        "general": {tuple(e.input_ids) for e in encode(context.problem.general, context.tokenizer)},
    }
    drawn, again = (rows.drawn(3, 1, number) for number in (0, 1))
    assert set(drawn) == kinds
    for kind, some in drawn.items():
        assert len(some) == 3
        assert {tuple(e.input_ids) for e in some} <= texts[kind]
        assert some != again[kind]
    measured = [kind for e in rows.kl for kind in kinds if tuple(e.input_ids) in texts[kind]]
    assert {kind: measured.count(kind) for kind in kinds} == dict.fromkeys(kinds, 4)
    assert len(rows.kl) == 4 * len(kinds)


def test_with_general_text_that_text_moves_less(make_context: ContextMaker, nano_problem: Problem):
    moved = {}
    for on in ("retain", "both", "general"):
        context = make_context(problem=general_text(nano_problem))
        rows = encode(context.problem.general, context.tokenizer)
        answers = AnswerDistributions(context.model, rows, pad_id(context.tokenizer))
        progress = run(context, steps=1, corrections=4, corrector_on=on, predictor="identity")
        moved[on] = answers.kl(context.model) / progress[-1].logged["peak_kl"]
        read = {"retain": on != "general", "general": on != "retain"}
        assert {kind: progress[-1].logged[f"{kind}_passes"] for kind in read} == {k: 4.0 * on_it for k, on_it in read.items()}
    assert moved["both"] < moved["retain"]
    assert moved["general"] < moved["retain"]


def test_only_with_these_settings_it_reads_general_text():
    reads = METHODS.get("predictor_corrector").reads_general
    assert [reads(small(corrector_on=on)) for on in ("retain", "general", "both")] == [False, True, True]


@pytest.mark.parametrize("on", ["general", "both"])
def test_without_general_text_it_is_refused(on: Any, nano_problem: Problem):
    method = METHODS.get("predictor_corrector")
    says = "nano with mini has no general text to read; put tatsu-lab/alpaca/alpaca_data.json into the data folder"
    assert method.refusal(nano_problem, small(corrector_on=on)) == says
    assert method.refusal(nano_problem, small()) is None
    assert method.refusal(general_text(nano_problem), small(corrector_on=on)) is None


# ---------------------------------------------------------------- a budget of damage


class KLBudget:
    """A budget as a method sees it: the KL on rows of its own."""

    def __init__(self, context: UnlearningContext, nats: float) -> None:
        self.nats, self._model = nats, context.model
        rows = encode(examples(WORLD.split("retain90")[24:36]), context.tokenizer)
        self._answers = AnswerDistributions(context.model, rows, pad_id(context.tokenizer))

    def damage(self) -> float:
        return self._answers.kl(self._model)


def at_budget(context: UnlearningContext, nats: float, **settings: Any) -> tuple[Progress, dict[float, str], int]:
    """The point at a budget, why there is none, and how often damage was measured."""
    problem = context.problem
    spare = {"retain": examples(WORLD.split("retain90")[24:36]), "general": examples(WORLD.general[0][9:18])}
    context.problem = replace(problem, held_out=spare)
    method, measured = METHODS.get("predictor_corrector"), 0
    config = small(**settings)
    budgets = BudgetedRun(context, (nats,), method.reach, lambda: method.steps(context, config))
    damage = budgets._meter.damage

    def counted() -> Any:
        nonlocal measured
        measured += 1
        return damage()

    budgets._meter.damage = counted  # type: ignore[method-assign]
    points = list(budgets.points())
    return points[0], dict(budgets.unreached), measured


@pytest.mark.parametrize("nats", [0.003, 0.03])
@pytest.mark.parametrize(("on", "predictor"), [("retain", "kfac"), ("both", "identity")])
def test_it_meets_a_budget(nats: float, on: str, predictor: str, make_context: ContextMaker, nano_problem: Problem):
    context = make_context(problem=general_text(nano_problem))
    loss = run_loss(context)
    point, unreached, measured = at_budget(context, nats, corrector_on=on, predictor=predictor)
    assert not unreached
    assert point.logged["damage"] == pytest.approx(nats, rel=TOLERANCE)
    assert point.logged["forget_loss"] > loss
    assert point.logged["forget_passes"] == 2
    assert measured < 40


def test_each_step_meets_its_share(make_context: ContextMaker, nano_problem: Problem):
    """Half of the budget behind the first of two stages; a quarter more with every step."""
    (stage,) = nano_problem.stages
    stages = [Stage("bio", stage.forget[:6], stage.retain[:12]), Stage("cyber", stage.forget[6:], stage.retain[12:])]
    context = make_context(problem=replace(general_text(nano_problem), stages=stages))
    context.budget = budget = KLBudget(context, 0.02)
    method, damages = METHODS.get("predictor_corrector"), []
    for _ in method.unlearn(context, small(predictor="identity")):
        damages.append(budget.damage())
    assert damages == pytest.approx([0.005, 0.01, 0.015, 0.02], rel=TOLERANCE)


def test_where_correctors_do_not_come_down_it_goes_back(make_context: ContextMaker, nano_problem: Problem):
    """From three times the share, with none allowed: half of the way, about, that the root of it makes."""
    point, unreached, _ = at_budget(make_context(problem=nano_problem), 0.02, corrections=0, overshoot=3, steps=1)
    assert not unreached
    assert (point.logged["corrections"], point.logged["damage"]) == (0, pytest.approx(0.02, rel=TOLERANCE))
    assert point.logged["went_back"] == pytest.approx(1 - 3**-0.5, abs=0.1)


def test_what_went_back_with_no_corrector_is_kfade(make_context: ContextMaker, nano_problem: Problem):
    """One straight line, whether it is gone along or gone back along."""
    start = torch.nn.utils.parameters_to_vector(make_context().model.parameters()).double()
    moved = []
    for overshoot in (1.0, 2.0):
        context = make_context()
        at_budget(context, 0.02, corrections=0, overshoot=overshoot, steps=1)
        moved.append(torch.nn.utils.parameters_to_vector(context.model.parameters()).double() - start)
    assert float(moved[0].norm()) > 0
    assert float((moved[0] - moved[1]).norm() / moved[0].norm()) < 1.1 * TOLERANCE, "each length is met within the tolerance"


def test_a_replay_takes_fits_and_forget_gradients_from_the_cache(
    nano_context: UnlearningContext, monkeypatch: pytest.MonkeyPatch
):
    """Those of correctors are computed anew: there are many, each as large as the MLPs."""
    made: list[int] = []
    original = fit.gradient_matrices
    monkeypatch.setattr(fit, "gradient_matrices", lambda *args: made.append(1) or original(*args))
    start = {name: tensor.clone() for name, tensor in nano_context.model.state_dict().items()}
    first = [p.logged for p in run(nano_context)]
    assert len(made) == 2  # of the forget set, in both of two steps
    nano_context.model.load_state_dict(start)
    assert [p.logged for p in run(nano_context)] == first
    assert len(made) == 2


@pytest.mark.parametrize(
    ("predictor", "corrector", "passes"),
    [("kfac", None, 1), ("ekfac", None, 2), ("ekfac", "kfac", 2), ("diagonal", "kfac", 2), ("identity", None, 0)],
)
def test_passes_over_data_are_counted(predictor: str, corrector: str | None, passes: int, nano_context: UnlearningContext):
    """Two of them for a step's correctors; a half of the rows is half a pass."""
    first, second = (p.logged for p in run(nano_context, predictor=predictor, corrector=corrector, corrector_rows=12))
    assert first["retain_passes"] == passes + 1
    assert second["retain_passes"] == 2 * (passes + 1)
    assert (second["general_passes"], second["forget_passes"]) == (0, 2)
