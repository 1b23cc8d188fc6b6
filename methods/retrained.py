"""The upper reference: the model that never saw the forget set.

Forget quality compares with retrained model 0, so `index=0` scores a p-value of 1 by definition; another one shows what an
independent retraining scores. The cost it reports is the cost of training it.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import NonNegativeInt

from harness.core.config import settings
from harness.core.errors import UsageError
from harness.core.method import Progress, UnlearningContext, method
from harness.core.problem import Problem
from harness.numerics.placement import placement


@settings
class RetrainedConfig:
    """Which retrained model."""

    index: NonNegativeInt | None = None
    """0 is the one forget quality compares with, others differ in the order of their data; by default 1 where there is one."""


def chosen(problem: Problem, config: RetrainedConfig) -> str:
    """The name of the source that is meant."""
    return f"retain-{config.index if config.index is not None else int('retain-1' in problem.sources)}"


def absent(problem: Problem, config: RetrainedConfig) -> str | None:
    """Why a problem has no such retrained model, or None if it has."""
    if (name := chosen(problem, config)) in problem.sources:
        return None
    names = ", ".join(source for source in problem.sources if source.startswith("retain-"))
    return f"index={name.removeprefix('retain-')}: {problem.bench} on {problem.model} has {names or 'no retrained models'}"


@method("retrained", config=RetrainedConfig, source="reference", clash=absent, reach="fixed")
def unlearn(context: UnlearningContext, config: RetrainedConfig) -> Iterator[Progress]:
    """Put the retrained model's weights in place.

    Raises:
        UsageError: if the benchmark has no such retrained model.
    """
    if reason := absent(context.problem, config):
        raise UsageError(f"retrained: {reason}.")
    source = context.sources[chosen(context.problem, config)]
    model, _ = source.load(context.cache, placement(context.model), str(context.model.dtype).removeprefix("torch."))
    context.costs.saved(source.seconds(context.cache) or 0.0)
    context.model.load_state_dict(model.state_dict())
    yield Progress(1, measure_here=True, total=1)
