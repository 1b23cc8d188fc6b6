"""An unlearned model, and the same after relearning and after rounding: how much a metric moves says how robust it is.

Four points, as `harness.core.pools.DISTURBANCES` has them: as it was unlearned; relearned in one epoch over that part of the
forget set that attacks train on; with weights of 8 and of 4 bits. Each disturbance begins with the unlearned weights.

(open-unlearning's meta-evaluation, arXiv:2506.12618, and UDS's, arXiv:2605.24614, relearn on the whole forget set for one epoch
and round to NF4; here relearning sees a part of it, and rounding is that of `harness.numerics.rounding`.)
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.core.config import resolve
from harness.core.errors import UsageError
from harness.core.method import METHODS, Method, Progress, UnlearningContext
from harness.core.pools import DISTURBANCES, DISTURBED_MODEL, RETRAINED, DisturbedModelConfig, PoolModelConfig
from harness.core.problem import Problem
from harness.models import pool_models


def skip_reason(problem: Problem) -> str | None:
    """Why it cannot run on a problem, or None if it can."""
    if not problem.attacks.get("forget"):
        return f"{problem.bench} has no text to relearn from"
    return pool_models.skip_reason(problem)


def disturbed_model(context: UnlearningContext, config: DisturbedModelConfig) -> Iterator[Progress]:
    """Unlearn, then disturb.

    Raises:
        UsageError: for a method that is not known, or cannot run there.
    """
    from harness.numerics.rounding import GROUPS, quantised, round_weights
    from harness.numerics.training import unfrozen

    model, texts, total = context.model, context.problem.attacks["forget"], len(DISTURBANCES)
    for _ in _unlearned(context, config):
        pass
    start = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    yield Progress(1, measure_here=True, total=total)
    with unfrozen(model):
        for _ in pool_models.fine_tuned(context, texts, config.lr, -(-len(texts) // pool_models.BATCH), context.seed):
            pass
    yield Progress(2, measure_here=True, total=total)
    model.load_state_dict(start)
    weights = quantised(model)
    before = [weight.detach().clone() for weight, _ in weights]
    for step, bits in enumerate(GROUPS, start=3):
        round_weights(weights, before, bits)
        yield Progress(step, measure_here=True, total=total)


def _unlearned(context: UnlearningContext, config: DisturbedModelConfig) -> Iterator[Progress]:
    if config.method == RETRAINED:
        return pool_models.pool_model(context, PoolModelConfig(learnt="retain", number=config.number))
    method, problem = METHODS.get(config.method), context.problem
    if reason := method.skip_reason(problem):
        raise UsageError(f"{config.method} cannot run on {problem.bench} with {problem.model}: {reason}.")
    preset = method.preset(problem.bench, problem.family or problem.model.partition("@")[0], config.preset)
    return method.steps(context, resolve(method.config, preset, owner=config.method))


METHOD = Method(
    name=DISTURBED_MODEL,
    config=DisturbedModelConfig,
    source="arXiv:2605.24614",
    unlearn=disturbed_model,
    skip_reason=skip_reason,
    memory=pool_models.memory_items,
    reach="fixed",
)
"""Run and recorded as methods are; in no list of them."""
