"""K-FADE: a few uphill Gauss-Newton steps on the forget objective, in the metric of the retain set's curvature.

"Gauss-Newton Unlearning for the LLM Era", arXiv:2602.10568, sections 2 and 3, appendices C to E:

    r = (G + λI)⁻¹ ∇L_F        θ ← θ + α r / ‖r‖_G        predicted KL on the retain set: α²/2 nats per token

G is the Gauss-Newton matrix of the retain set over the MLP weights, in a Kronecker-factored form
(`methods/curvature/`). L_F is the cross-entropy of the forget set, or minus its margin; either way it is raised.
Departures: the paper's appendix C.3 ends with a minus sign, which its own derivation does not give; `target_kl` chooses α by
the KL that is measured, since α²/2 underestimates it; G is per token, so a summed loss would rescale λ and α.

Its parts lie in `methods/gauss_newton/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from harness.core.method import Progress, UnlearningContext, method
from harness.core.problem import Problem
from methods._settings import absent_layers, of_stage, uneven
from methods.gauss_newton.config import KFADEConfig, missing_back_end
from methods.gauss_newton.memory import memory_items

if TYPE_CHECKING:
    from methods.curvature.layers import Layer
    from methods.gauss_newton.fit import Fitted


def clash(problem: Problem, config: KFADEConfig) -> str | None:
    """Layers that are not there, step sizes that do not fit the stages, a back end that is not installed."""
    uneven_steps = uneven(len(problem.stages), step_size=config.step_size)
    return absent_layers(problem, layers=config.layers) or uneven_steps or missing_back_end(config.backend)


@method(
    "kfade",
    config=KFADEConfig,
    source="arXiv:2602.10568",
    clash=clash,
    memory=memory_items,
    memory_fallbacks=({"layers": [3, 4, 5, 6]}, {"estimator": "kfac"}),
    reach="free",
    lengths=("step_size", "target_kl"),
)
def unlearn(context: UnlearningContext, config: KFADEConfig) -> Iterator[Progress]:
    """Take the steps, stage after stage; every step is a point of the trade-off curve.

    Raises:
        UsageError: for a model whose MLPs are not known, layers that are not there, or a backend that cannot do it.
        Diverged: if there is no usable direction, or no step size meets `target_kl`.
    """
    from methods.curvature.layers import mlp_layers

    layers = mlp_layers(context.model, config.layers)
    taken, stages = 0, len(context.stages)
    for number in range(stages):
        step_size = config.step_size
        if isinstance(step_size, tuple):
            step_size = of_stage(step_size, number, stages, "step_size")
        for logged in _steps(context, number, layers, config, step_size):
            taken += 1
            yield Progress(taken, logged, measure_here=True, total=config.steps * stages)


def _steps(
    context: UnlearningContext, number: int, layers: Sequence[Layer], config: KFADEConfig, step_size: float | None
) -> Iterator[dict[str, float]]:
    """One stage's steps; what is recorded of each."""
    from harness.models.sources import weights_fingerprint
    from harness.numerics.identity import network_fingerprint
    from methods.curvature.solve import Solver, warn_if_thin
    from methods.gauss_newton.data import StageData
    from methods.gauss_newton.fit import fit, forget_gradient
    from methods.gauss_newton.step import Aim, monitoring, take_step

    model, costs = context.model, context.costs
    data = StageData(context, context.stages[number], config)
    network = network_fingerprint(weights_fingerprint(model), model)
    with monitoring(data):
        before = data.answers_now(network)
    fitted: Fitted | None = None
    for step in range(1, config.steps + 1):
        if step > 1:
            network = network_fingerprint(weights_fingerprint(model), model)
        if fitted is None or config.refit:
            fitted = None  # before the next one is fitted: there may be room for one only
            with costs.phase("curvature"):
                costs.count(data.fit_tokens)
                fitted = fit(data, layers, network, config.estimator)
        with costs.phase("forget gradient"):
            costs.count(sum(len(e.input_ids) for e in data.forget(step)))
            gradients = forget_gradient(data, layers, step, network)
        with costs.phase("step"):
            solver = Solver(layers, fitted.curvatures, gradients)
            gradients.clear()  # the solver holds them rotated
            direction = solver.direction(config.damping, config.damping_mode, config.damping_scale)
            aim = Aim.of(data, before, (number, step), step_size)
            logged = take_step(data, solver, direction, before, aim, step, network)
            damping_absolute = direction.damping_absolute
            del solver, direction
        warn_if_thin(layers, fitted.curvatures, data.fit_tokens, damping_absolute)
        yield logged | fitted.logged
