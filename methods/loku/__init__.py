"""LoKU: the inverted hinge loss on the forget set, descent on the retain set, through low-rank adapters (arXiv:2408.06621).

IHL    L = mean_tokens max(0, 1 + p_y − max_{v≠y} p_v) + POOL(retain): y gives way to the runner-up v alone, and the gradient
       fades out as v takes over, where gradient ascent raises every other token and never ends.
FILA   the adapters W* + s·B·A start where the forget set matters more than the retain set, the function unchanged:
       w_i = √ Σ_j F_f/(ε + F_r),   SVD_r(diag(w)·W) = U Σ Vᵀ,
       A = (V √(Σ/s))ᵀ,   B = diag(1/(w + ε)) U √(Σ/s),   W* = W − s·B·A,   ε = 1e-5

(csm9493/efficient-llm-unlearning `TOFU/dataloader.py`, `measure_importance.py`, `forget.py`; the rest is ToFU's recipe.)
F is the diagonal Fisher information as its code takes it: over mini-batches B of n_B labels, Σ n_B (∇POOL_B)² / Σ n_B, the
square of the mini-batch's gradient and not of each example's.
VILA   `importance=vila`: F(B)·F(A) stands for F, that of random adapters A, B ~ N(0, σ²) on the weights, σ = .05, and each
       factor's F is a variance, E[g²] − E[g]² (arXiv:2508.21300; kyj93790/VILA `TOFU/vila.py`, `forget.py`)

Departures: adapters are float32 whatever the model's dtype is; matrices up to EXACT_UP_TO have an exact SVD, where the
original always takes a randomised one; the importances are taken in eval mode. At every point that is measured the adapters
are merged into the weights, and training goes on from W*, A and B as they were. VILA's are measured in one pass over the
forget set, as FILA's are, where its code takes ten; the code divides them by the number of labels a second time, which its
formula does not, and as ε stays what it is F_r then counts for nothing; rank and s are LoKU's.

Its parts: the settings (`config`), where adapters start (`importance`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.core.errors import UsageError
from harness.core.memory import MemoryItem, ModelShape
from harness.core.method import Progress, UnlearningContext, method
from harness.core.problem import Problem
from methods._settings import absent_layers, narrowest
from methods.first_order.adapters import Adapters, linear_maps
from methods.first_order.adapters import memory_items as adapter_memory_items
from methods.first_order.loop import Data, Losses, Part, unlearn
from methods.first_order.singular import fewest_components
from methods.loku.config import LoKUConfig
from methods.loku.importance import SCALING, fila, fisher_information, row_weights, subspace_information

if TYPE_CHECKING:
    from torch import Tensor


def memory_items(shape: ModelShape, config: LoKUConfig) -> list[MemoryItem]:
    """The adapted weights kept aside and adapters with AdamW's state; before there are any, both Fisher sums and a gradient."""
    from harness.models.memory_items import activations

    maps = linear_maps(shape.model, config.target_modules, config.layers)
    adapted = sum(linear.module.weight.numel() for linear in maps)
    adapters = adapter_memory_items(maps, config.rank, shape.weight_bytes, "device")
    fisher = (2 * 4 + shape.weight_bytes) * adapted * (config.fila and config.importance == "fila")
    return [
        *adapters,
        MemoryItem(
            "Fisher sums and gradients beyond these",
            max(0, fisher - sum(item.bytes for item in adapters)),
            while_measured=False,
        ),
        activations(shape),
    ]


def clash(problem: Problem, config: LoKUConfig) -> str | None:
    """Layers that are not there, more ranks than a small model is wide, and importances that nothing starts from."""
    if config.importance == "vila" and not config.fila:
        return "importance=vila weighs what fila starts from, and fila=false. Set fila=true, or leave importance out"
    if config.fila and (most := narrowest(problem)) and config.rank > most:
        return f"rank={config.rank}: fila starts from singular values, of which there are {most} at most. Set rank={most}"
    return absent_layers(problem, layers=config.layers)


@method(
    "loku",
    config=LoKUConfig,
    source="arXiv:2408.06621",
    clash=clash,
    memory=memory_items,
    memory_fallbacks=({"fila": False}, {"target_modules": "attention"}, {"layers": [3, 4, 5, 6]}),
)
def loku(context: UnlearningContext, config: LoKUConfig) -> Iterator[Progress]:
    """Train the adapters, measuring after every epoch with the adapters merged.

    Raises:
        UsageError: for a model whose linear maps are not known, layers that are not there, a rank that fila cannot have.
        Diverged: at a loss, gradient or Fisher information that is not finite.
    """
    from harness.numerics.likelihood import answer_labels, answer_logits
    from harness.numerics.training import pooled_nll

    model = context.model
    maps = linear_maps(model, config.target_modules, config.layers)
    if config.fila:
        name, most = fewest_components(maps)
        if config.rank > most:
            plain = ", or fila=false" if config.importance == "fila" else ""
            raise UsageError(
                f"rank={config.rank}: {name} has only {most} singular values for fila to start from. "
                f"Take rank={most} or less{plain}."
            )
    adapters = Adapters(model, maps, config.rank, SCALING * config.rank, context.seed)

    def forget(part: Part) -> Tensor:
        if config.loss == "grad_diff":
            return -pooled_nll(model, part.batch, part.labels)
        return inverted_hinge(answer_logits(model, part.batch), answer_labels(part.batch)).sum() / part.labels

    def retain(part: Part) -> Tensor:
        return pooled_nll(model, part.batch, part.labels)

    def losses(data: Data) -> Losses:
        adapters.take_off()  # those of the stage before
        if config.fila:
            with context.costs.phase("Fisher information"):
                if config.importance == "vila":
                    rows = row_weights(maps, *subspace_information(context, adapters, data, config))
                else:
                    rows = row_weights(maps, *fisher_information(context, maps, data, config))
            adapters.make(lambda i, seed: fila(maps[i].matrix().float(), rows[i], config.rank, seed))
        else:
            adapters.make()
        return Losses(forget, retain)

    try:
        for progress in unlearn(context, config, losses):
            adapters.take_off()
            yield progress
            adapters.put_on()
    finally:
        adapters.take_off()


def inverted_hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """max(0, 1 + p_y − max_{v≠y} p_v) at each position (Cha et al., arXiv:2408.06621).

    Its gradient with respect to the logits is p_y(e_y − p) − p_k(e_k − p), k the runner-up.

    Args:
        logits: [N, V], already predicting `labels`.
        labels: [N] token ids.

    Returns:
        [N] between 0 and 2.
    """
    probabilities = logits.softmax(dim=-1)
    index = labels.unsqueeze(-1)
    others = probabilities.scatter(-1, index, -1.0)
    right, runner_up = probabilities.gather(-1, index).squeeze(-1), others.max(dim=-1).values
    return (1 + (right - runner_up)).clamp(min=0)
