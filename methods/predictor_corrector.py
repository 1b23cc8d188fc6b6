"""Gauss-Newton steps with a corrector: up the forget objective to a KL, then back down that KL, in the retain set's curvature.

    predictor   r = (G + λI)⁻¹ ∇L_F              θ ← θ + α r / ‖r‖_G     α: the KL measured on retain rows reaches `peak_kl`
    corrector   q = (G + λI)⁻¹ ∇KL(p_θ0 ‖ p_θ)   θ ← θ − η q             η: line search on the measured KL; `corrections` times

A method of this project, not of a paper. What is raised is equation 1 of "Gauss-Newton Unlearning for the LLM Era"
(arXiv:2602.10568), L_F(θ) − γ E_retain KL(p_θ0 ‖ p_θ). K-FADE takes the first Gauss-Newton iteration on it: at θ0 the KL has
no gradient. From the second on it has one, and K-FADE leaves it out; here it is a step of its own. **It trains on the retain
rows**, as GradDiff, NPO and SimNPO do and K-FADE does not (by `corrector_on` on general text, too, or instead). A KL on rows
that neither the fit nor the corrector saw says more.

With an exact G, a linear L_F and η = 1 a corrector would undo the predictor. On a real model it does not: what the forget
objective needs and what the KL forbids lie apart. Each half has its own kind of G; `identity` is full-batch ascent or descent.

Told a budget of damage, every step meets its share of it, which grows evenly over all steps, as K-FADE's does. The predictor
goes to `overshoot` times that share, measured as damage; correctors follow, and the damage is measured after each, until it is
down at the share or `corrections` have been taken. The one that goes below is shortened; what is still above goes back on the
straight line to where the predictor began. With `overshoot=1` this is K-FADE.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from harness.core.memory import MemoryItem, ModelShape
from harness.core.method import Budget, Progress, UnlearningContext, method
from harness.core.problem import Problem
from methods._settings import absent_layers
from methods.gauss_newton.config import Estimator
from methods.gauss_newton.corrector_config import PredictorCorrectorConfig
from methods.gauss_newton.memory import memory_items as kfade_memory_items

if TYPE_CHECKING:
    from torch import Tensor

    from harness.numerics.likelihood import AnswerDistributions
    from methods.curvature.layers import Layer, Line
    from methods.curvature.solve import Direction
    from methods.curvature.spectrum import LayerCurvature
    from methods.gauss_newton.fit import Fitted


def memory_items(shape: ModelShape, config: PredictorCorrectorConfig) -> list[MemoryItem]:
    """What a step of K-FADE holds; a second curvature where the halves differ, the predictor, the model before the stage."""
    from methods.curvature.layers import mlp_layers, sizes
    from methods.gauss_newton.corrector import KEPT

    kinds = config.estimators
    largest = max(
        (kfade_memory_items(shape, config.half(kind)) for kind in kinds), key=lambda items: sum(item.bytes for item in items)
    )
    second = sum(i.bytes for i in largest if i.what in ("factors", "spectrum")) if len(kinds) > 1 else 0
    row = shape.answer_tokens * shape.vocabulary * 4
    general = config.kl_rows * row if config.corrector_on == "both" else 0
    said_before = min(KEPT, shape.retain_rows * row) if config.corrector_rows is None else 0
    return [
        *largest,
        MemoryItem("second curvature", second),
        MemoryItem("predictor's line", 2 * sizes(mlp_layers(shape.model, config.layers)).spectrum),
        MemoryItem("frozen copy", shape.parameters * shape.weight_bytes),
        MemoryItem("what it said before", said_before),
        MemoryItem("log-probabilities of general text", general, where="cpu"),
    ]


def clash(problem: Problem, config: PredictorCorrectorConfig) -> str | None:
    """Layers that are not there."""
    return absent_layers(problem, layers=config.layers)


@method(
    "predictor_corrector",
    config=PredictorCorrectorConfig,
    source="this project, from equation 1 of arXiv:2602.10568",
    clash=clash,
    memory=memory_items,
    memory_fallbacks=({"layers": [3, 4, 5, 6]}, {"predictor": "identity"}),
    reach="free",
    lengths=("peak_kl",),
    with_budgets=("overshoot",),
    reads_general=lambda config: config.corrector_on != "retain",
)
def predictor_corrector(context: UnlearningContext, config: PredictorCorrectorConfig) -> Iterator[Progress]:
    """Take the steps, stage after stage; every one, with its correctors, is a point of the trade-off curve.

    Raises:
        UsageError: for a model whose MLPs are not known, or layers that are not there.
        Diverged: if there is no usable direction, or no step size meets the peak.
    """
    from methods.curvature.layers import mlp_layers

    layers, passes = mlp_layers(context.model, config.layers), Passes()
    taken, total = 0, config.steps * len(context.stages)
    for number in range(len(context.stages)):
        for logged in _Stage(context, number, layers, config, passes).steps():
            taken += 1
            yield Progress(taken, {**logged, **passes.logged}, measure_here=True, total=total)


@dataclass
class Passes:
    """How often sequences went forward and backward through the model since the beginning; 1 is all that a stage has once."""

    rows: dict[str, float] = field(default_factory=lambda: {"retain": 0.0, "general": 0.0, "forget": 0.0})

    def add(self, kind: str, share: float) -> None:
        """So much of a stage's sequences of that kind."""
        self.rows[kind] += share

    @property
    def logged(self) -> Mapping[str, float]:
        """`retain_passes`, …."""
        return {f"{kind}_passes": times for kind, times in self.rows.items()}


@dataclass
class _Curvatures:
    """G of each half; one and the same where they are of one kind."""

    predictor: list[LayerCurvature]
    corrector: list[LayerCurvature]
    logged: dict[str, float]
    """What is recorded of how they were fitted."""


@dataclass
class _Predicted:
    """A predictor that has been gone to."""

    line: Line
    """From where it began."""
    began: float
    """Nats per token where it began: the damage, where there is a budget of it; else the KL."""
    reached: float
    """The same where it went to."""
    kl: float
    """Nats per token behind it, on the rows of the corrector's kinds."""
    logged: dict[str, float]
    """What is recorded of it."""


class _Stage:
    """The steps on one stage.

    Args:
        context: whose model is edited in place.
        number: the stage's, from 0.
        layers: whose weights move.
        config: the settings.
        passes: counted up.
    """

    def __init__(
        self,
        context: UnlearningContext,
        number: int,
        layers: Sequence[Layer],
        config: PredictorCorrectorConfig,
        passes: Passes,
    ) -> None:
        from methods.first_order.losses import frozen_copy
        from methods.gauss_newton.corrector import Before, CorrectorRows
        from methods.gauss_newton.data import StageData

        self._context, self._layers, self._config, self._passes = context, layers, config, passes
        self._stage = context.stages[number]
        self._data = StageData(context, self._stage, config.half(config.predictor))
        self._rows = CorrectorRows(self._data, self._stage.name, config.corrector_on)
        self._before = Before(frozen_copy(context.model), same_rows=config.corrector_rows is None)
        self._answers: AnswerDistributions = self._data.answers_now(self._network(), self._rows.kl)
        self._length = config.first_length
        self._measured, self._number = 0, number

    def steps(self) -> Iterator[dict[str, float]]:
        """What is recorded of each step, as it is taken."""
        costs = self._context.costs
        for step in range(1, self._config.steps + 1):
            network, self._measured = self._network(), 0
            with costs.phase("curvature"):
                curvatures = self._fit(network)
            with costs.phase("step"):
                predicted = self._predict(curvatures.predictor, step, network)
            with costs.phase("corrector"):
                if (budget := self._context.budget) is not None:
                    logged = self._correct_to(budget, curvatures.corrector, step, predicted)
                else:
                    logged = self._correct(curvatures.corrector, step, predicted.kl)
            with costs.aside("monitoring"):
                logged["forget_loss"] = self._data.mean_loss(step)
            yield predicted.logged | curvatures.logged | logged

    def _network(self) -> str:
        from harness.models.sources import weights_fingerprint
        from harness.numerics.identity import network_fingerprint

        return network_fingerprint(weights_fingerprint(self._context.model), self._context.model)

    def _fit(self, network: str) -> _Curvatures:
        from methods.gauss_newton.fit import fit

        def of(estimator: Estimator) -> Fitted:
            if estimator != "identity":
                self._context.costs.count(self._data.fit_tokens)
            return fit(self._data, self._layers, network, estimator)

        made = {sums for estimator in self._config.estimators for sums in _SUMS[estimator]}
        self._passes.add("retain", len(made) * self._config.mc_samples * len(self._data.fit) / len(self._data.retain))
        first = of(self._config.predictor)
        other = self._config.corrector or self._config.predictor
        second = first if other == self._config.predictor else of(other)
        return _Curvatures(first.curvatures, second.curvatures, first.logged | second.logged)

    def _kl(self) -> float:
        """Nats per token on the rows that the KL is measured on."""
        self._measured += 1
        self._context.costs.count(sum(len(e.input_ids) for e in self._rows.kl))
        return self._answers.kl(self._context.model)

    def _direction(self, curvatures: Sequence[LayerCurvature], gradients: list[Tensor]) -> Direction:
        """(G + λI)⁻¹ of a gradient."""
        from methods.curvature.solve import Solver

        solver = Solver(self._layers, curvatures, gradients)
        gradients.clear()  # the solver holds them rotated
        return solver.direction(self._config.damping, scale=self._config.damping_scale)

    def _predict(self, curvatures: Sequence[LayerCurvature], step: int, network: str) -> _Predicted:
        from methods.curvature.layers import Line
        from methods.curvature.solve import warn_if_thin
        from methods.gauss_newton.fit import forget_gradient
        from methods.gauss_newton.step import step_for_kl

        forget = self._data.forget(step)
        self._context.costs.count(sum(len(e.input_ids) for e in forget))
        self._passes.add("forget", len(forget) / len(self._stage.forget))
        gradients = forget_gradient(self._data, self._layers, step, network)
        direction = self._direction(curvatures, gradients)
        line = Line(self._layers, direction.matrices)

        budget, first = self._context.budget, step == 1
        if budget is None:
            peak, measure = self._config.peak_kl, self._kl
        else:
            peak, measure, first = self._config.overshoot * self._share(budget, step), budget.damage, first and not self._number

        def at(alpha: float) -> float:
            line.go(alpha / direction.g_norm)
            return measure()

        already = 0.0 if first else measure()
        alpha, reached = step_for_kl(at, peak, already)
        line.go(alpha / direction.g_norm)
        warn_if_thin(self._layers, curvatures, self._data.fit_tokens, direction.damping_absolute)
        kl = reached if budget is None else self._kl()
        logged = {
            "step_size": alpha,
            "damping_absolute": direction.damping_absolute,
            "peak_kl": kl,
            "forget_rows": float(len(forget)),
        }
        return _Predicted(line, already, reached, kl, logged)

    def _share(self, budget: Budget, step: int) -> float:
        """Nats per token that the damage is to be behind a step."""
        steps = self._config.steps
        return budget.nats * (self._number * steps + step) / (len(self._context.stages) * steps)

    def _correct(self, curvatures: Sequence[LayerCurvature], step: int, kl: float) -> dict[str, float]:
        """Take all correctors, or as many as lower the KL."""
        taken = 0
        while taken < self._config.corrections:
            _, length, kl = self._corrector(curvatures, (step, taken), kl)
            if not length:
                break
            taken += 1
        return self._logged(kl, taken)

    def _corrector(self, curvatures: Sequence[LayerCurvature], place: tuple[int, int], kl: float) -> tuple[Line, float, float]:
        """Take one corrector.

        Args:
            curvatures: G.
            place: the step, from 1, and the corrector's number behind it, from 0.
            kl: before it.

        Returns:
            (its line, η, the KL behind it); η is 0 where no length lowers the KL.
        """
        from methods.curvature.gradients import gradient_matrices
        from methods.curvature.layers import Line
        from methods.gauss_newton.corrector import kl_gradient, line_search

        drawn = self._rows.drawn(self._config.corrector_rows, *place)
        for kind, some in drawn.items():
            self._passes.add(kind, len(some) / len(self._rows.by_kind[kind]))
        rows = [row for some in drawn.values() for row in some]
        tokens, computed = sum(len(e.input_ids) for e in rows), self._before.computed
        gradients = gradient_matrices(self._context.model, self._layers, rows, self._data.pad, kl_gradient(self._before, rows))
        # They go through the frozen copy, too, where it does not remember them.
        self._context.costs.count(2 * tokens if self._before.computed > computed else tokens)
        line = Line(self._layers, self._direction(curvatures, gradients).matrices)

        def kl_at(length: float) -> float:
            line.go(-length)
            return self._kl()

        length, kl = line_search(kl_at, kl, self._length)
        line.go(-length)
        self._length = length or self._length
        return line, length, kl

    def _correct_to(
        self, budget: Budget, curvatures: Sequence[LayerCurvature], step: int, predicted: _Predicted
    ) -> dict[str, float]:
        """Come to a stand where the damage is this step's share of the budget; see the head of this file."""
        from harness.numerics.meeting import End, meet
        from methods.curvature.layers import Line
        from methods.gauss_newton.step import above

        goal, damage, kl = self._share(budget, step), predicted.reached, predicted.kl
        taken, back = 0, 0.0

        def damage_on(line: Line, length: float) -> float:
            line.go(length)
            return budget.damage()

        while above(damage, goal) and taken < self._config.corrections:
            line, length, kl = self._corrector(curvatures, (step, taken), kl)
            if not length:
                break
            before, damage, taken = damage, budget.damage(), taken + 1
            if above(goal, damage):
                met = meet(partial(damage_on, line), less=End(-length, damage), more=End(0.0, before), goal=goal)
                if met.place is None:
                    line.go(0.0)
                damage, kl = before if met.place is None else goal, self._kl()
        if above(damage, goal):
            line = Line(
                self._layers, [at - layer.matrix() for at, layer in zip(predicted.line.start, self._layers, strict=True)]
            )
            back = meet(partial(damage_on, line), less=End(1.0, predicted.began), more=End(0.0, damage), goal=goal).place or 0.0
            line.go(back)
            kl = self._kl()
        return self._logged(kl, taken) | {"went_back": back}

    def _logged(self, kl: float, taken: int) -> dict[str, float]:
        return {
            "measured_kl": kl,
            "corrections": float(taken),
            "correction_length": self._length,
            "kl_tokens": float(self._answers.labels),
            "kl_measurements": float(self._measured),
        }


_SUMS: Mapping[Estimator, Sequence[str]] = {
    "kfac": ("factors",),
    "ekfac": ("factors", "spectrum"),
    "diagonal": ("squares",),
    "identity": (),
}
"""The passes over the fit's data that a form of G takes; K-FAC's serves EK-FAC."""
