"""Gauss-Newton steps with a corrector: up the forget objective to a KL, then back down that KL, in the retain set's curvature.

    predictor   r = (G + λI)⁻¹ ∇L_F              θ ← θ + α r / ‖r‖_G     α: the KL measured on retain rows reaches `peak_kl`
    corrector   q = (G + λI)⁻¹ ∇KL(p_θ0 ‖ p_θ)   θ ← θ − η q             η: line search on the measured KL; `corrections` times

A method of this project, not of a paper. What is raised is equation 1 of "Gauss-Newton Unlearning for the LLM Era"
(arXiv:2602.10568), L_F(θ) − γ E_retain KL(p_θ0 ‖ p_θ). K-FADE takes the first Gauss-Newton iteration on it: at θ0 the KL has
no gradient. From the second on it has one, and K-FADE leaves it out; here it is a step of its own. **It trains on the retain
rows**, as GradDiff, NPO and SimNPO do and K-FADE does not: a KL on rows that neither the fit nor the corrector saw says more.

With an exact G, a linear L_F and η = 1 a corrector would undo the predictor. On a real model it does not: what the forget
objective needs and what the KL forbids lie apart. Each half has its own kind of G; `identity` is full-batch ascent or descent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from harness.core.config import settings
from harness.core.memory import MemoryItem, ModelShape
from harness.core.method import Progress, UnlearningContext, method
from harness.core.problem import Problem, Stage
from methods._settings import LayerNumbers, Points, absent_layers
from methods.gauss_newton.config import KFADEConfig
from methods.gauss_newton.memory import memory_items as kfade_memory_items

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness.data.rows import Encoded
    from harness.numerics.likelihood import AnswerDistributions
    from methods.curvature.layers import Layer
    from methods.curvature.solve import Direction
    from methods.curvature.spectrum import LayerCurvature

Estimator = Literal["kfac", "ekfac", "diagonal", "identity"]


@settings
class PredictorCorrectorConfig:
    """Settings of the predictor and the corrector."""

    predictor: Estimator = "kfac"
    """The form of G in the predictor."""
    corrector: Estimator | None = None
    """The form of G in the corrector; the predictor's if not given."""
    objective: Literal["cross_entropy", "margin", "npo", "simnpo"] = "cross_entropy"
    """What is raised, as K-FADE has it."""
    margin_clip: float = Field(0.0, ge=0, lt=1)
    """The margin's gradient divides by max(1 − p, this)."""
    beta: PositiveFloat = 0.1
    """β of the objectives npo and simnpo."""
    gamma: float = 0.0
    """γ of the objective simnpo."""
    steps: Points = 3
    """How many times predictor and correctors follow one another on each stage; a point is measured after each."""
    peak_kl: PositiveFloat = 0.1
    """Nats per token on retain rows that each predictor goes to."""
    corrections: Annotated[int, Field(ge=0, le=1_000)] = 4
    """How many correctors follow a predictor; 0 is K-FADE at a KL that does not rise."""
    corrector_rows: PositiveInt | None = None
    """How many retain sequences a corrector reads, drawn anew for each; all if not given."""
    first_length: PositiveFloat = 1e-3
    """η that the first line search begins with; each later one begins with the last that was found."""
    damping: NonNegativeFloat = 0.1
    """λ in G + λI."""
    damping_scale: Literal["absolute", "mean_eigenvalue"] = "mean_eigenvalue"
    """Whether λ is in the units of G (squared gradients per token) or in units of G's mean eigenvalue."""
    layers: LayerNumbers | None = None
    """Decoder layers whose MLPs are changed, from 0; all if not given."""
    mc_samples: Annotated[int, Field(ge=1, le=1000)] = 1
    """Labels drawn from the model per token, in the fit."""
    retain_rows: PositiveInt | None = None
    """How many retain sequences the fit takes, drawn by the seed; all if not given."""
    forget_rows: PositiveInt | None = None
    """How many forget sequences a predictor takes, without replacement over a stage's steps; all if not given."""
    kl_rows: PositiveInt = 200
    """How many retain sequences the KL is measured on; outside the fit's where the fit does not take all."""

    def __post_init__(self) -> None:
        if self.damping == 0 and {self.predictor, self.corrector or self.predictor} != {"identity"}:
            raise ValueError("damping=0 divides by eigenvalues that are 0; give a small positive one")
        if self.margin_clip and self.objective != "margin":
            raise ValueError("margin_clip belongs to objective=margin")

    def half(self, estimator: Estimator) -> KFADEConfig:
        """The same for one half, as the fit and the data of K-FADE take it."""
        return KFADEConfig(
            estimator=estimator,
            target_kl=self.peak_kl,
            damping=self.damping,
            **{name: getattr(self, name) for name in _SHARED},
        )


_SHARED = (
    *("objective", "margin_clip", "beta", "gamma", "steps", "damping_scale"),
    *("layers", "mc_samples", "retain_rows", "forget_rows", "kl_rows"),
)
"""Settings that K-FADE has under the same name."""


def memory_items(shape: ModelShape, config: PredictorCorrectorConfig) -> list[MemoryItem]:
    """What a step of K-FADE holds, a second curvature where the halves differ, and the frozen model that the KL is from."""
    kinds = {config.predictor, config.corrector or config.predictor}
    largest = max(
        (kfade_memory_items(shape, config.half(kind)) for kind in kinds), key=lambda items: sum(item.bytes for item in items)
    )
    second = sum(i.bytes for i in largest if i.what in ("factors", "spectrum")) if len(kinds) > 1 else 0
    return [*largest, MemoryItem("second curvature", second), MemoryItem("frozen copy", shape.parameters * shape.weight_bytes)]


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
)
def predictor_corrector(context: UnlearningContext, config: PredictorCorrectorConfig) -> Iterator[Progress]:
    """Take the steps, stage after stage; every one, with its correctors, is a point of the trade-off curve.

    Raises:
        UsageError: for a model whose MLPs are not known, or layers that are not there.
        Diverged: if there is no usable direction, or no step size meets `peak_kl`.
    """
    from methods.curvature.layers import mlp_layers

    layers = mlp_layers(context.model, config.layers)
    taken, total = 0, config.steps * len(context.stages)
    for stage in context.stages:
        for logged in _Stage(context, stage, layers, config).steps():
            taken += 1
            yield Progress(taken, logged, measure_here=True, total=total)


@dataclass
class _Curvatures:
    """G of each half; one and the same where they are of one kind."""

    predictor: list[LayerCurvature]
    corrector: list[LayerCurvature]


class _Stage:
    """The steps on one stage.

    Args:
        context: whose model is edited in place.
        stage: the texts.
        layers: whose weights move.
        config: the settings.
    """

    def __init__(
        self, context: UnlearningContext, stage: Stage, layers: Sequence[Layer], config: PredictorCorrectorConfig
    ) -> None:
        from methods.first_order.losses import frozen_copy
        from methods.gauss_newton.data import StageData

        self._context, self._layers, self._config, self._stage = context, layers, config, stage
        self._data = StageData(context, stage, config.half(config.predictor))
        self._before: PreTrainedModel = frozen_copy(context.model)
        self._answers: AnswerDistributions = self._data.answers_now(self._network())
        self._length = config.first_length
        self._measured = 0

    def steps(self) -> Iterator[dict[str, float]]:
        """What is recorded of each step, as it is taken."""
        costs = self._context.costs
        for step in range(1, self._config.steps + 1):
            network, self._measured = self._network(), 0
            with costs.phase("curvature"):
                curvatures = self._fit(network)
            with costs.phase("step"):
                logged = self._predict(curvatures.predictor, step, network)
            with costs.phase("corrector"):
                logged |= self._correct(curvatures.corrector, step, logged["peak_kl"])
            with costs.aside("monitoring"):
                logged["forget_loss"] = self._data.mean_loss(step)
            yield logged

    def _network(self) -> str:
        from harness.models.sources import weights_fingerprint
        from harness.numerics.identity import network_fingerprint

        return network_fingerprint(weights_fingerprint(self._context.model), self._context.model)

    def _fit(self, network: str) -> _Curvatures:
        from methods.gauss_newton.fit import fit

        def of(estimator: Estimator) -> list[LayerCurvature]:
            self._data.config = self._config.half(estimator)
            if estimator != "identity":
                self._context.costs.count(self._data.fit_tokens)
            return fit(self._data, self._layers, network)

        first = of(self._config.predictor)
        other = self._config.corrector or self._config.predictor
        return _Curvatures(first, first if other == self._config.predictor else of(other))

    def _kl(self) -> float:
        """Nats per token on the retain rows that the KL is measured on."""
        self._measured += 1
        self._context.costs.count(sum(len(e.input_ids) for e in self._data.kl))
        return self._answers.kl(self._context.model)

    def _direction(self, curvatures: Sequence[LayerCurvature], gradients: list[Tensor]) -> Direction:
        """(G + λI)⁻¹ of a gradient."""
        from methods.curvature.solve import Solver

        solver = Solver(self._layers, curvatures, gradients)
        gradients.clear()  # the solver holds them rotated
        return solver.direction(self._config.damping, scale=self._config.damping_scale)

    def _predict(self, curvatures: Sequence[LayerCurvature], step: int, network: str) -> dict[str, float]:
        from methods.curvature.layers import Line
        from methods.curvature.solve import warn_if_thin
        from methods.gauss_newton.fit import forget_gradient
        from methods.gauss_newton.step import step_for_kl

        self._context.costs.count(sum(len(e.input_ids) for e in self._data.forget(step)))
        gradients = forget_gradient(self._data, self._layers, step, network)
        direction = self._direction(curvatures, gradients)
        line = Line(self._layers, direction.matrices)

        def kl_at(alpha: float) -> float:
            line.go(alpha / direction.g_norm)
            return self._kl()

        already = self._kl() if step > 1 else 0.0
        alpha, peak = step_for_kl(kl_at, self._config.peak_kl, already)
        line.go(alpha / direction.g_norm)
        warn_if_thin(self._layers, curvatures, self._data.fit_tokens, direction.damping_absolute)
        return {
            "step_size": alpha,
            "damping_absolute": direction.damping_absolute,
            "peak_kl": peak,
            "forget_rows": float(len(self._data.forget(step))),
        }

    def _correct(self, curvatures: Sequence[LayerCurvature], step: int, kl: float) -> dict[str, float]:
        from methods.curvature.gradients import gradient_matrices
        from methods.curvature.layers import Line
        from methods.gauss_newton.corrector import kl_gradient, line_search

        model, taken = self._context.model, 0
        for number in range(self._config.corrections):
            rows = self._rows(step, number)
            self._context.costs.count(2 * sum(len(e.input_ids) for e in rows))  # through the frozen copy, too
            gradients = gradient_matrices(model, self._layers, rows, self._data.pad, kl_gradient(self._before, rows))
            line = Line(self._layers, self._direction(curvatures, gradients).matrices)

            def kl_at(length: float) -> float:
                line.go(-length)  # noqa: B023 - used before the next round
                return self._kl()

            length, kl, _ = line_search(kl_at, kl, self._length)
            line.go(-length)
            if not length:
                break
            self._length, taken = length, taken + 1
        return {
            "measured_kl": kl,
            "corrections": float(taken),
            "correction_length": self._length,
            "kl_tokens": float(self._answers.labels),
            "kl_measurements": float(self._measured),
        }

    def _rows(self, step: int, number: int) -> Sequence[Encoded]:
        """The retain sequences that a corrector reads."""
        from harness.core.streams import streams

        retain, wanted = self._data.retain, self._config.corrector_rows
        if wanted is None or wanted >= len(retain):
            return retain
        drawn = streams(self._context.seed, "corrector rows", self._stage.name, step, number).numpy().permutation(len(retain))
        return [retain[i] for i in sorted(drawn[:wanted].tolist())]
