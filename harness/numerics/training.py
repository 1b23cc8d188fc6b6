"""One AdamW loop: it trains the mini models, runs the first-order methods and the fine-tuning attack.

A step sees several micro-batches; the caller scales each loss so that they sum to the step's loss, hence the result does not
depend on how a batch was cut. Weights that are not float32 are trained through float32 masters, as the
original's DeepSpeed configuration does: at a learning rate of 1e-5 bfloat16 weights would not move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, get_scheduler
from transformers.modeling_layers import GradientCheckpointingLayer

from harness.core.errors import Diverged
from harness.core.options import Optimizer
from harness.core.streams import streams
from harness.data.rows import Batch, Encoded, by_length, collate
from harness.numerics import sharding
from harness.numerics.by_weight import ByWeight
from harness.numerics.group import add_up_gradients, summed
from harness.numerics.likelihood import answer_labels, answer_logits
from harness.numerics.products import is_wide

B = TypeVar("B")
TOKENS_PER_MICRO_BATCH = 4096
TOKENS_OF_WIDE_ON_CPU = 2048
"""As many of a wide model on a CPU (`harness.numerics.products`): what more of them leave does not stay in its caches."""
RECOMPUTED_FROM = 1_000_000_000
"""Parameters from which training on a GPU recomputes activations in the backward pass instead of keeping them."""


@dataclass(frozen=True)
class StepLog:
    """One optimiser step that was taken."""

    step: int
    """1 for the first."""
    loss: float
    """The step's loss before it."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    """What it used."""


@dataclass(frozen=True)
class AdamW:
    """The optimiser's constants (torch.optim.AdamW) and the schedule."""

    lr: float
    """Peak learning rate."""
    steps: int
    """How many steps in all."""
    warmup: int = 0
    """How many of them warm up."""
    schedule: Literal["linear", "constant_with_warmup", "cosine_with_min_lr"] = "linear"
    """A schedule of transformers; as there, the first step of a warm-up has learning rate 0."""
    min_lr_rate: float | None = None
    """Where a cosine ends, as a share of the peak."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Moment decay rates."""
    eps: float = 1e-8
    """In the denominator."""
    weight_decay: float = 0.0
    """Decoupled; on all parameters, as in the original."""
    max_gradient_norm: float = 1.0
    """The gradient is scaled down to this norm."""
    kept: Optimizer | None = None
    """How it is kept, where not whole and in float32 (`harness.numerics.by_weight`); `clip=none` scales nothing down."""
    seed: int = 0
    """Of stochastic rounding."""


MakeOptimiser = Callable[[Sequence[tuple[str, Tensor]]], torch.optim.Optimizer]
"""Named float32 parameters → their optimiser."""


def optimise(
    model: PreTrainedModel,
    steps: Iterable[Sequence[B]],
    loss: Callable[[B], Tensor],
    adamw: AdamW,
    make_optimiser: MakeOptimiser | None = None,
    recompute: bool | None = None,
    begin: int = 0,
    shared: bool = False,
) -> Iterator[StepLog]:
    """Minimise a loss, yielding after every step.

    Args:
        model: trained in place; in eval mode and without gradient checkpointing at every yield, so that it can be measured,
            and without gradients when the loop ends, however it ends.
        steps: for each step its micro-batches.
        loss: of one micro-batch, scaled so that the micro-batches of a step sum to the step's loss.
        adamw: the optimiser and its schedule.
        make_optimiser: another optimiser under the same schedule.
        recompute: whether activations are recomputed in the backward pass (gradient checkpointing): less memory, the same
            result. By default on a GPU from `RECOMPUTED_FROM` parameters on.
        begin: steps that were taken before, by a process that is gone: the schedule and the numbers of steps go on from there.
        shared: whether a step's micro-batches are this process's share of them (`harness.numerics.group`).

    Raises:
        Diverged: at a loss or gradient that is not finite; after the last step, if the learning rate was 0 at all of them.
    """
    names, parameters = zip(*((name, p) for name, p in model.named_parameters() if p.requires_grad), strict=True)
    stepping = ByWeight if adamw.kept else AllAtOnce
    weights = stepping(names, parameters, adamw, make_optimiser or partial(fused_adamw, adamw), shared)
    scheduler = _schedule(adamw, weights.optimiser, begin)
    if recompute is None:
        recompute = parameters[0].device.type == "cuda" and sum(p.numel() for p in model.parameters()) > RECOMPUTED_FROM
    _training(model, True, recompute)
    highest = 0.0
    try:
        for number, micro_batches in enumerate(steps, start=begin + 1):
            rate = float(scheduler.get_last_lr()[0])
            highest = max(highest, rate)
            total, norm = weights.gradient(loss, sharding.as_many_passes(model, micro_batches))
            if not (math.isfinite(total) and math.isfinite(norm)):
                raise Diverged(f"step {number}: the loss is {total} and its gradient's norm {norm}")
            weights.step()
            scheduler.step()
            _training(model, False, recompute)
            yield StepLog(number, total, norm, rate)
            _training(model, True, recompute)
        if adamw.warmup and not highest:
            raise Diverged(
                "nothing was trained, for a warm-up's first step has learning rate 0 and there was no other; take more steps, "
                "or leave out the warm-up"
            )
    finally:
        _training(model, False, recompute)
        for parameter in parameters:
            parameter.grad = None


def _schedule(adamw: AdamW, optimiser: torch.optim.Optimizer, begin: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rates from the step after `begin` on."""
    more: dict[str, float] = {} if adamw.min_lr_rate is None else {"min_lr_rate": adamw.min_lr_rate}
    if begin:
        more["last_epoch"] = begin - 1
        for group in optimiser.param_groups:
            group["initial_lr"] = group["lr"]
    return get_scheduler(  # type: ignore[no-any-return]
        adamw.schedule,
        optimiser,
        num_warmup_steps=adamw.warmup,
        num_training_steps=adamw.steps,
        scheduler_specific_kwargs=more,
    )


def fused_adamw(constants: AdamW, named: Sequence[tuple[str, Tensor]]) -> torch.optim.Optimizer:
    """The optimiser on some named parameters, its moments with 8 bits where they are kept so."""
    if constants.kept and constants.kept.bits == 8:
        from bitsandbytes.optim.adamw import AdamW8bit

        eight_bit: torch.optim.Optimizer = AdamW8bit(
            [master for _, master in named],
            lr=constants.lr,
            betas=constants.betas,
            eps=constants.eps,
            weight_decay=constants.weight_decay,
        )
        return eight_bit
    return torch.optim.AdamW(
        [master for _, master in named],
        lr=constants.lr,
        betas=constants.betas,
        eps=constants.eps,
        weight_decay=constants.weight_decay,
        fused=True,
    )


class AllAtOnce:
    """Steps some parameters together, through float32 masters of those that are not float32; see `ByWeight`.

    Of sharded ones (`harness.numerics.sharding`) this process steps its parts.
    """

    def __init__(
        self, names: Sequence[str], parameters: Sequence[Tensor], adamw: AdamW, make: MakeOptimiser, shared: bool = False
    ) -> None:
        self._parameters, self._max_norm, self._shared = parameters, adamw.max_gradient_norm, shared
        self._sharded = [sharding.is_part(parameter) for parameter in parameters]
        self._masters = [_master(parameter) for parameter in parameters]
        self.optimiser = make(list(zip(names, self._masters, strict=True)))

    def gradient(self, loss: Callable[[B], Tensor], micro_batches: Iterable[B]) -> tuple[float, float]:
        """A step's loss and its gradient's norm before clipping; the clipped gradient lies on the masters."""
        total = 0.0
        for micro_batch in micro_batches:
            value = loss(micro_batch)
            value.backward()
            total += float(value.detach())
        for master, parameter in zip(self._masters, self._parameters, strict=True):
            if master is not parameter and parameter.grad is not None:
                master.grad, parameter.grad = sharding.part(parameter.grad).float(), None
        if self._shared:
            add_up_gradients([m for m, sharded in zip(self._masters, self._sharded, strict=True) if not sharded])
            (total,) = summed(total)
        if any(self._sharded):
            return total, sharding.clip(self._masters, self._sharded, self._max_norm)
        return total, float(torch.nn.utils.clip_grad_norm_(self._masters, self._max_norm))

    @torch.no_grad()
    def step(self) -> None:
        """Take the step, and copy the masters into the weights that the model computes with."""
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        for master, parameter in zip(self._masters, self._parameters, strict=True):
            if master is not parameter:
                sharding.part(parameter).copy_(master)


def _master(parameter: Tensor) -> Tensor:
    """What is stepped: a float32 parameter itself, a copy of one of another type, and this process's part of a sharded one."""
    if parameter.dtype == torch.float32 and not sharding.is_part(parameter):
        return parameter
    return sharding.part(parameter).detach().float().requires_grad_()  # of a float32 part, that very part


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Inside, a model that trains speaks as it is measured: without dropout and without gradients."""
    trained = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(trained)


@contextmanager
def unfrozen(model: PreTrainedModel) -> Iterator[None]:
    """Inside, all weights take gradients, also where a method has frozen some (RMU all but three matrices)."""
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _training(model: PreTrainedModel, on: bool, recompute: bool) -> None:
    model.train(on)
    if not recompute:
        return
    # Not by the model's own switch, which leaves a hook on its embeddings.
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.gradient_checkpointing = on
            module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # type: ignore[assignment]


def tokens_at_once(model: PreTrainedModel, device: str | None = None) -> int:
    """Padded tokens that go through a model at once when it is trained; a step's result does not depend on it.

    Args:
        model: any.
        device: where it will be trained; where it lies if None.
    """
    fewer = (device or model.device.type) == "cpu" and is_wide(model)
    return min(TOKENS_PER_MICRO_BATCH, TOKENS_OF_WIDE_ON_CPU) if fewer else TOKENS_PER_MICRO_BATCH


def pooled_nll(model: PreTrainedModel, batch: Batch, labels_in_step: int) -> Tensor:
    """A micro-batch's share of the token-pooled mean negative log-likelihood of its step (POOL in ToFU's code).

    Σ_b Σ_t −log p(y_t) / (labels of the whole step)
    """
    return F.cross_entropy(answer_logits(model, batch), answer_labels(batch), reduction="sum") / labels_in_step


def label_count(batches: Iterable[Batch]) -> int:
    """How many labels some batches hold together."""
    return sum(int(batch.counts.sum()) for batch in batches)


def micro_batches(
    encoded: Sequence[Encoded] | Mapping[int, Encoded],
    rows: Sequence[int],
    pad_id: int,
    device: torch.device | str,
    max_tokens: int = TOKENS_PER_MICRO_BATCH,
) -> list[tuple[Batch, int]]:
    """One step's batch cut into parts of similar length, each with the number of labels of the whole step.

    Args:
        encoded: the data set.
        rows: which of it the step takes.
        pad_id: see `harness.data.rows.pad_id`.
        device: where the parts go.
        max_tokens: padded tokens that go through the model at once; the step's result does not depend on it.
    """
    groups = by_length([encoded[i] for i in rows], max_tokens)
    parts = [collate([encoded[rows[i]] for i in group], [rows[i] for i in group], pad_id).to(device) for group in groups]
    labels = label_count(parts)
    return [(part, labels) for part in parts]


def shuffled_batches(examples: int, batch_size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Positions of examples, batch after batch: epochs in random order one behind the other, cut into `steps` batches.

    An epoch whose size is no multiple of the batch runs over into the next one, as in ToFU's trainer.
    """
    generator = streams(seed, "batches").torch()
    stream: list[int] = []
    for _ in range(steps):
        while len(stream) < batch_size:
            stream += torch.randperm(examples, generator=generator).tolist()
        yield stream[:batch_size]
        stream = stream[batch_size:]
