"""LoKU: the inverted hinge loss on the forget set, descent on the retain set, through low-rank adapters (arXiv:2408.06621).

IHL    L = mean_tokens max(0, 1 + p_y − max_{v≠y} p_v) + POOL(retain): y gives way to the runner-up v alone, and the gradient
       fades out as v takes over, where gradient ascent raises every other token and never ends.
FILA   the adapters W* + s·B·A start where the forget set matters more than the retain set, the function unchanged:
       w_i = √ Σ_j F_f/(ε + F_r),   SVD_r(diag(w)·W) = U Σ Vᵀ,
       A = (V √(Σ/s))ᵀ,   B = diag(1/(w + ε)) U √(Σ/s),   W* = W − s·B·A,   ε = 1e-5

(csm9493/efficient-llm-unlearning `TOFU/dataloader.py`, `measure_importance.py`, `forget.py`; the rest is ToFU's recipe.)
F is the diagonal Fisher information as its code takes it: over mini-batches B of n_B labels, Σ n_B (∇POOL_B)² / Σ n_B, the
square of the mini-batch's gradient and not of each example's.
Departures: adapters are float32 whatever the model's dtype is; matrices up to EXACT_UP_TO have an exact SVD, where the
original always takes a randomised one; the importances are taken in eval mode. At every point that is measured the adapters
are merged into the weights, and training goes on from W*, A and B as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveFloat

from harness.core.config import settings
from harness.core.errors import Diverged, UsageError
from harness.core.memory import MemoryItem, ModelShape
from harness.core.method import Progress, UnlearningContext, method
from harness.core.problem import Problem
from harness.core.streams import streams
from harness.numerics.anatomy import LinearMap
from methods._settings import BatchSize, LayerNumbers, Rank, absent_layers, architecture
from methods.first_order.adapters import Adapters, Kind, linear_maps
from methods.first_order.loop import Data, Losses, Part, unlearn
from methods.first_order.partners import Partners
from methods.first_order.recipe import PairedRecipe

if TYPE_CHECKING:
    from torch import Tensor

SCALING = 2
"""s = lora_alpha / rank; the original always has lora_alpha = 2·rank."""
EPSILON = 1e-5
"""ε, beside the retain set's Fisher information and beside w."""
EXACT_UP_TO = 1024
"""The smaller side of a matrix up to which its SVD is exact; a 7B model has 224 matrices four times as wide."""


@settings
class LoKUConfig(PairedRecipe):
    """Settings of LoKU; the defaults are its repository's for Llama-2-7B on ToFU."""

    lr: PositiveFloat = 1e-4
    """Peak learning rate, of the adapters."""
    loss: Literal["ihl", "grad_diff"] = "ihl"
    """The forget term: the inverted hinge loss, or minus the cross-entropy (its ablation)."""
    fila: bool = True
    """Whether the adapters start from the Fisher-weighted part of the weights; otherwise as LoRA's do, A random and B = 0."""
    rank: Rank = 16
    """r, the adapters' rank; the paper runs 4, 8, 16 and 32 on ToFU, and 16 is this project's choice among them."""
    target_modules: Kind = "all"
    """Which linear maps of a decoder layer are adapted."""
    layers: LayerNumbers | None = None
    """Decoder layers that are adapted, from 0; all if not given."""
    fisher_batch: BatchSize = 2
    """Examples of each side in a mini-batch of the importances; the repository takes 2 with Llama-2-7B, 4 with phi-1.5."""


def memory_items(shape: ModelShape, config: LoKUConfig) -> list[MemoryItem]:
    """The adapted weights kept aside and adapters with AdamW's state; before there are any, both Fisher sums and a gradient."""
    from harness.models.memory import activations

    maps = linear_maps(shape.model, config.target_modules, config.layers)
    adapted = sum(linear.module.weight.numel() for linear in maps)
    adapters = sum(config.rank * sum(linear.module.weight.shape) for linear in maps)
    kept, trained = adapted * shape.weight_bytes, 4 * 4 * adapters
    fisher = (2 * 4 + shape.weight_bytes) * adapted * config.fila
    return [
        MemoryItem("weights kept aside", kept),
        MemoryItem("adapters", trained),
        MemoryItem("Fisher sums and gradients beyond these", max(0, fisher - kept - trained), while_measured=False),
        activations(shape),
    ]


def clash(problem: Problem, config: LoKUConfig) -> str | None:
    """Layers that are not there, and more ranks than a small model is wide."""
    shape = architecture(problem)
    if config.fila and shape and config.rank > shape.hidden_size:
        most = shape.hidden_size
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
    """Train the adapters, measuring after every epoch with the adapters merged."""
    from harness.numerics.likelihood import answer_labels, answer_logits
    from harness.numerics.training import pooled_nll

    model = context.model
    maps = linear_maps(model, config.target_modules, config.layers)
    if config.fila:
        _check_rank(maps, config.rank)
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
                rows = row_weights(maps, *fisher_information(context, maps, data, config))
            adapters.make(lambda i, seed: fila(maps[i].matrix().float(), rows[i], config.rank, seed))
        else:
            adapters.make()
        return Losses(forget, retain)

    try:
        for progress in unlearn(context, config, losses):
            if progress.measure_here:
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


def _check_rank(maps: Sequence[LinearMap], rank: int) -> None:
    smallest = min(maps, key=lambda linear: min(linear.matrix().shape))
    if rank > (largest := min(smallest.matrix().shape)):
        raise UsageError(
            f"rank={rank}: {smallest.name} has only {largest} singular values for fila to start from. "
            f"Take rank={largest} or less, or fila=false."
        )


# ---------------------------------------------------------------- how adapters start


def fisher_information(
    context: UnlearningContext, maps: Sequence[LinearMap], data: Data, config: LoKUConfig
) -> tuple[list[Tensor], list[Tensor]]:
    """The diagonal Fisher information of each weight on the forget set, and on retain examples paired with it.

    Σ_B n_B (∇POOL_B)² / Σ_B n_B over mini-batches of one pass over the forget set in an order drawn by the seed. Both sides
    stay on the model's device: 8 bytes for each adapted weight. Leaves the weights of `maps` the only ones with gradients
    switched on.

    Returns:
        (forget, retain), for each map [out, in] float32.
    """
    import torch

    from harness.numerics.training import micro_batches, pooled_nll, shuffled_batches

    model = context.model
    model.requires_grad_(False)
    for linear in maps:
        linear.module.weight.requires_grad_(True)
    partner = Partners(len(data.retain), context.seed, config.frozen_partner)
    (order,) = shuffled_batches(len(data.forget), len(data.forget), 1, context.seed)
    sides = []
    try:
        for encoded, rows in ((data.forget, order), (data.retain, [partner(row) for row in order])):
            sums = [torch.zeros_like(linear.matrix(), dtype=torch.float32) for linear in maps]
            counted = 0
            for start in range(0, len(rows), config.fisher_batch):
                parts = micro_batches(encoded, rows[start : start + config.fisher_batch], data.pad, model.device)
                for batch, labels in parts:
                    context.costs.count(batch.tokens)
                    pooled_nll(model, batch, labels).backward()
                for total, linear in zip(sums, maps, strict=True):
                    gradient = linear.module.weight.grad
                    assert gradient is not None  # its loss has just been differentiated
                    gradient = linear.oriented(gradient).float()
                    total.addcmul_(gradient, gradient, value=labels)
                    linear.module.weight.grad = None
                counted += labels
            sides.append([total.div_(counted) for total in sums])
    finally:
        for linear in maps:
            linear.module.weight.grad = None
    return sides[0], sides[1]


def row_weights(maps: Sequence[LinearMap], forget: Sequence[Tensor], retain: Sequence[Tensor]) -> list[Tensor]:
    """How much more each row of a weight matters to the forget set than to the retain set: w_i = √ Σ_j F_f/(ε + F_r).

    Args:
        maps: to name them in errors.
        forget: for each map [out, in] the Fisher information on the forget set.
        retain: the same on the retain set.

    Returns:
        For each map [out].

    Raises:
        Diverged: if one is not finite.
    """
    rows = [(f / (EPSILON + r)).sum(dim=1).sqrt() for f, r in zip(forget, retain, strict=True)]
    for linear, weights in zip(maps, rows, strict=True):
        if not weights.isfinite().all():
            raise Diverged(f"the Fisher information of {linear.name} is not finite")
    return rows


def fila(weight: Tensor, rows: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """Adapters that hold the part of a weight that matters most, its rows weighted.

    Args:
        weight: [out, in] float32.
        rows: [out] w.
        rank: r.
        seed: for the randomised SVD of a large weight.

    Returns:
        (A [r, in], B [out, r]); s·B·A is the best approximation of the weight by rank r in the norm ‖diag(w) · ‖ as ε → 0.
    """
    left, values, right = leading_singular(rows[:, None] * weight, rank, seed)
    root = (values / SCALING).sqrt()
    return (right * root).T, left * root / (rows + EPSILON)[:, None]


def leading_singular(matrix: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular vectors and values: exact for small matrices, else by a seeded randomised method.

    The global random numbers are left as they are.

    Returns:
        (U [m, r], Σ [r], V [n, r]).
    """
    import torch

    if min(matrix.shape) <= EXACT_UP_TO:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left[:, :rank], values[:rank], right[:rank].T
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        streams(seed, "singular vectors").seed_torch()
        return torch.svd_lowrank(matrix, q=rank)
