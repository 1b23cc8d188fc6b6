"""Second-order unlearning (SOUL): gradient difference, minimised with Sophia instead of AdamW.

L = −POOL(forget) + γ POOL(retain), γ = 2   (arXiv:2404.18239; OPTML-Group/SOUL `configs/TOFU/SO_GradDiff.json`)

Two optimisers, written out in `methods/first_order/sophia.py`: `sophia` is the one SOUL's authors run, down to its double
update of the momentum and its curvature, which is a running mean of the unlearning loss's squared gradient; `sophia_g` is the
textbook's, whose curvature is estimated with labels sampled from the model.
It departs from the authors' code in three points: prompts follow the benchmark's template instead of their own; bfloat16
weights are trained through float32 masters (theirs are updated in place, where steps of 5e-6 are mostly rounded away); and
losses are pooled over the whole step (see `methods/first_order/`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from harness.core.config import settings
from harness.core.method import Progress, UnlearningContext, method
from methods._settings import BatchSize, Steps
from methods.first_order.loop import Data, Losses, Part, unlearn
from methods.first_order.recipe import PairedRecipe, memory_items

if TYPE_CHECKING:
    from torch import Tensor

    from methods.first_order.sophia import Sophia, SophiaG

DecayRate = Annotated[float, Field(ge=0, lt=1)]


@settings
class SOULConfig(PairedRecipe):
    """Settings of SOUL; the defaults are its repository's for ToFU's forget10 and Llama-2-7B."""

    lr: PositiveFloat = 5e-6
    """Peak learning rate: the most a weight can move in a step, decay aside."""
    batch_size: BatchSize = 4
    """Forget examples in a step, and as many retain examples."""
    warmup_epochs: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Epochs of linear warm-up; linear decay to 0 follows. None warms up for a tenth of all steps, as SOUL's authors do."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled; on matrices only, not on norms and biases."""
    retain_weight: NonNegativeFloat = 2.0
    """γ, the weight of the retain term."""
    optimiser: Literal["sophia", "sophia_g"] = "sophia"
    """Sophia as SOUL's authors shipped it, or the textbook's Sophia-G (arXiv:2305.14342)."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.95)
    """β₁, β₂: the share that momentum and curvature keep at an update (SOUL's; arXiv:2305.14342 takes 0.96 and 0.99)."""
    rho: PositiveFloat = 0.04
    """ρ, what the curvature is multiplied with in the step's denominator; smaller clips more coordinates. SOUL's for ToFU."""
    hessian_scale: PositiveFloat = 5120.0
    """What multiplies the curvature besides, with `sophia`: a batch size that SOUL's authors leave at its default."""
    hessian_interval: Steps = 10
    """Steps from one estimate of the curvature to the next, with `sophia_g` (k of arXiv:2305.14342)."""
    epsilon: PositiveFloat = 1e-12
    """The denominator's least value, with `sophia_g` (ε of arXiv:2305.14342)."""


@method(
    "soul",
    config=SOULConfig,
    source="arXiv:2404.18239",
    memory=memory_items,
    takes_adapter=True,
    own_optimizer=True,
)
def soul(context: UnlearningContext, config: SOULConfig) -> Iterator[Progress]:
    """Train, measuring after every epoch."""
    from harness.numerics.group import summed
    from harness.numerics.training import pooled_nll
    from methods.first_order import sophia

    textbook: SophiaG | None = None
    refreshes = 0

    def forget(part: Part) -> Tensor:
        return -pooled_nll(context.model, part.batch, part.labels)

    def retain(part: Part) -> Tensor:
        return config.retain_weight * pooled_nll(context.model, part.batch, part.labels)

    def losses(data: Data) -> Losses:
        return Losses(forget, retain)

    def make(named: Sequence[tuple[str, Tensor]]) -> Sophia | SophiaG:
        nonlocal textbook
        if config.optimiser == "sophia":
            return sophia.Sophia(named, config.lr, config.betas, config.rho, config.weight_decay, config.hessian_scale)
        textbook = sophia.SophiaG(named, config.lr, config.betas, config.rho, config.weight_decay, config.epsilon)
        return textbook

    def refresh(*sides: Sequence[Part]) -> None:
        nonlocal refreshes
        if textbook is None or (sides[0][0].step - 1) % config.hessian_interval:
            return
        draws = []
        for side, parts in enumerate(sides):
            for part in parts:
                draws.append((part.batch, sophia.uniform_numbers(part.batch, context.seed, refreshes, side)))
        (tokens,) = summed(sum(batch.tokens for batch, _ in draws))
        context.costs.count(int(tokens))
        textbook.refresh(sophia.gauss_newton_bartlett(context.model, draws))
        refreshes += 1

    yield from unlearn(context, config, losses, optimiser=make, before_step=refresh)
