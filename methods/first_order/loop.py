"""The loop of the first-order methods: steps over pairs of forget and retain examples, on every stage.

As in ToFU (locuslab/tofu `forget.py`, `data_module.py`) an epoch runs over the forget set, and every forget example comes with
a retain example. It departs in one point: token-pooled losses are pooled over the whole step, where the original averages the
pooled losses of its micro-batches; hence k micro-batches of b give what one batch of k·b gives.

The rows of a step are shared out over the processes of a group, some of both sides to each; shares of a loss sum up over
processes as over micro-batches, so that a step is the same for any number of them.

What is trainable is trained: the weights, or low-rank adapters in their place (`UnlearningContext.adapter`), new ones for every
stage. A stage's losses are made before its adapters, so that what they keep of the model is the model itself; and the model is
plain whenever the loop yields, the adapters merged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.core.errors import UsageError
from harness.core.method import Progress, UnlearningContext
from harness.core.problem import Stage
from methods.first_order.adapters import drawn_dropout, in_place_of_weights
from methods.first_order.partners import Partners
from methods.first_order.recipe import Recipe, Schedule

if TYPE_CHECKING:
    from torch import Tensor

    from harness.data.rows import Batch, Encoded
    from harness.numerics.training import MakeOptimiser, StepLog


@dataclass(frozen=True)
class Part:
    """Some examples of one step, of one side, that go through the model together."""

    batch: Batch
    """The tokens."""
    rows: Sequence[int]
    """Each example's position in the forget set, or in the retain set."""
    step: int
    """The step's number in its stage, from 1."""
    examples: int
    """Examples of this side in the whole step."""
    labels: int
    """Labels of this side in the whole step."""
    all_labels: int
    """Labels of both sides in the whole step."""


Loss = Callable[[Part], "Tensor"]
"""A part's share of a term of the step's loss; the shares of a step's parts sum to the term."""


@dataclass(frozen=True)
class Data:
    """A stage's examples as tokens."""

    forget: Sequence[Encoded]
    """The forget set."""
    retain: Sequence[Encoded]
    """The retain set."""
    pad: int
    """See `harness.data.rows.pad_id`."""
    stage: Stage
    """The same as text."""
    steps: Sequence[Sequence[int]]
    """The rows of the forget set that each step takes."""
    max_length: int | None = None
    """Tokens that texts are cut to; not at all if None."""


@dataclass(frozen=True)
class Losses:
    """What is minimised: `forget + retain`."""

    forget: Loss
    """The forget term."""
    retain: Loss | None = None
    """The retain term, if there is one."""
    retain_length: int = 1
    """Tokens that the retain term pads its sequences to, if it does: fewer of them then go through the model together."""
    forget_texts: Callable[[int, int], Encoded] | None = None
    """(step, row of the forget set) → the sequence the forget term sees, where it is not the forget example itself."""


def unlearn(
    context: UnlearningContext,
    recipe: Recipe,
    losses: Callable[[Data], Losses],
    optimiser: MakeOptimiser | None = None,
    before_step: Callable[[Sequence[Part], Sequence[Part]], None] | None = None,
) -> Iterator[Progress]:
    """Train on every stage, one after the other, measuring after every epoch over its forget set.

    Args:
        context: whose model is trained in place.
        recipe: the method's settings.
        losses: makes a stage's loss terms from its data, before its first step.
        optimiser: another one than AdamW.
        before_step: is shown the forget and the retain parts of a step before it is taken.

    Raises:
        UsageError: for adapters on an architecture without such maps; for more processes than rows in a step.
        Diverged: at a loss or gradient that is not finite.
    """
    from harness.numerics import training

    adapters = in_place_of_weights(context)
    plans = [Schedule.of(recipe, len(stage.forget)) for stage in context.stages]
    total, taken = sum(plan.steps for plan in plans), 0
    try:
        for stage, plan in zip(context.stages, plans, strict=True):
            data = _data(context, recipe, stage, plan)
            terms = losses(data)
            adamw = training.AdamW(
                lr=recipe.lr,
                steps=plan.steps,
                warmup=plan.warmup,
                weight_decay=recipe.weight_decay,
                kept=context.optimizer,
                seed=context.seed,
            )
            sums = TermSums(terms, context, stage.name)
            steps = _steps(context, recipe, data, terms, before_step)
            if adapters:
                adapters.make()
            recompute = context.recompute or None
            for log in training.optimise(context.model, steps, sums.loss, adamw, optimiser, recompute, shared=True):
                if adapters:
                    adapters.take_off()
                yield Progress(taken + log.step, sums.logged(log), measure_here=log.step in plan.epoch_ends, total=total)
                if adapters and log.step < plan.steps:  # behind the last one they stay merged
                    adapters.put_on()
            taken += plan.steps
    finally:
        if adapters:
            adapters.take_off()


def _data(context: UnlearningContext, recipe: Recipe, stage: Stage, plan: Schedule) -> Data:
    from harness.data.rows import encode, pad_id
    from harness.numerics import group
    from harness.numerics.likelihood import check_length
    from harness.numerics.training import shuffled_batches

    if plan.batch < group.size():  # each is to see both sides of every step
        raise UsageError(
            f"a step of {plan.batch} forget examples cannot be shared by {group.size()} processes. "
            f"Launch {plan.batch} at most, or set a larger batch_size."
        )
    tokenizer, length = context.tokenizer, recipe.max_length
    steps = list(shuffled_batches(len(stage.forget), plan.batch, plan.steps, context.seed))
    forget, retain = encode(stage.forget, tokenizer, length), encode(stage.retain, tokenizer, length)
    check_length(context.model, max(len(e.input_ids) for e in (*forget, *retain)))  # before the first step
    return Data(forget, retain, pad_id(tokenizer), stage, steps, length)


class TermSums:
    """Sums up what the terms of a step came to, for the record."""

    def __init__(self, terms: Losses, context: UnlearningContext, stage: str) -> None:
        self._terms, self._context, self._stage = terms, context, stage
        self._sums: dict[str, float] = {}

    def loss(self, part: tuple[str, Part]) -> Tensor:
        """The part's share of the loss."""
        side, examples = part
        term = self._terms.forget if side == "forget" else self._terms.retain
        assert term is not None  # there are no retain parts without a retain term
        with drawn_dropout(self._context, self._stage, examples.step, side, examples.rows[0]):
            value = term(examples)
        self._sums[side] = self._sums.get(side, 0.0) + float(value.detach())
        return value

    def logged(self, log: StepLog) -> dict[str, float]:
        """The step's numbers."""
        from harness.numerics.group import summed

        sums, self._sums = self._sums, {}
        return {
            **dict(zip((f"{side}_term" for side in sums), summed(*sums.values()), strict=True)),
            "gradient_norm": log.gradient_norm,
            "learning_rate": log.learning_rate,
        }


def _steps(
    context: UnlearningContext,
    recipe: Recipe,
    data: Data,
    terms: Losses,
    before_step: Callable[[Sequence[Part], Sequence[Part]], None] | None,
) -> Iterator[list[tuple[str, Part]]]:
    partner = Partners(len(data.retain), context.seed, getattr(recipe, "frozen_partner", False))
    for step, rows in enumerate(data.steps, start=1):
        texts = [terms.forget_texts(step, row) if terms.forget_texts else data.forget[row] for row in rows]
        partners = [partner(row) for row in rows] if terms.retain else []
        retained = [data.retain[row] for row in partners]
        all_labels = sum(e.label_count for e in (*texts, *retained))
        context.costs.count(sum(len(e.input_ids) for e in (*texts, *retained)))  # of all processes
        forget = _parts(texts, rows, context, data.pad, step, all_labels)
        retain = _parts(retained, partners, context, data.pad, step, all_labels, terms.retain_length)
        if before_step:
            with drawn_dropout(context, data.stage.name, step, "before"):
                before_step(forget, retain)
        yield [*(("forget", part) for part in forget), *(("retain", part) for part in retain)]


def _parts(
    texts: Sequence[Encoded],
    rows: Sequence[int],
    context: UnlearningContext,
    pad: int,
    step: int,
    all_labels: int,
    padded_to: int = 1,
) -> list[Part]:
    """What this process takes of one side of a step."""
    from harness.numerics import group
    from harness.numerics.training import micro_batches, tokens_at_once

    labels, tokens = sum(e.label_count for e in texts), tokens_at_once(context.model)
    at_once = max(1, tokens // padded_to)
    parts, share = [], group.share(range(len(texts)))
    for start in range(0, len(share), at_once):
        chosen = share[start : start + at_once]
        for batch, _ in micro_batches(texts, chosen, pad, context.model.device, tokens):
            parts.append(Part(batch, [rows[i] for i in batch.rows.tolist()], step, len(texts), labels, all_labels))
    return parts
