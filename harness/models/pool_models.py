"""Models of which it is known whether they know a forget set, made on the spot; see `harness.core.pools`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.core.errors import UsageError
from harness.core.memory import MemoryItem, ModelShape
from harness.core.method import Method, Progress, UnlearningContext
from harness.core.pools import POOL_MODEL, PoolModelConfig
from harness.core.problem import Problem
from harness.core.text import Example
from harness.models.memory_items import adamw
from harness.models.pretraining import TrainedSource
from harness.models.small import learning_rate_factor
from harness.numerics.placement import placement
from harness.storage.cache import digest

if TYPE_CHECKING:
    from harness.numerics.training import StepLog

BATCH = 8
"""Examples in a step of fine-tuning."""


def skip_reason(problem: Problem) -> str | None:
    """Why no such models can be trained on a problem, or None if they can."""
    if _own_models(problem) is None:
        return f"metrics are tried on models that are trained on the spot, and {problem.model} is not; take mini or scratch"
    if not problem.retold:
        return f"{problem.bench} has no other answers to what is to be forgotten"
    return None


def _own_models(problem: Problem) -> tuple[TrainedSource, TrainedSource] | None:
    """The model that knows everything, and a retrained one."""
    full, retain = problem.sources.get("base"), problem.sources.get("retain-0")
    return (full, retain) if isinstance(full, TrainedSource) and isinstance(retain, TrainedSource) else None


def pool_source(problem: Problem, config: PoolModelConfig) -> TrainedSource:
    """The model as it is trained from its base.

    Raises:
        UsageError: where the problem's models are not trained on the spot.
    """
    models = _own_models(problem)
    if models is None:
        raise UsageError(f"{skip_reason(problem)}.")
    full, retain = models
    learnt = {
        "full": full.examples,
        "retain": retain.examples,
        **{name: (*retain.examples, *others) for name, others in problem.retold.items()},
    }
    usual = retain.recipe
    epochs = max(1, round(usual.epochs * config.share_of_epochs))
    return replace(
        retain,
        name=f"{problem.model} {config.cluster} of the pools",
        examples=learnt[config.learnt],
        recipe=replace(usual, lr=usual.lr * config.share_of_lr, epochs=epochs),
        seed=int(digest(["pools", config.learnt, config.number])[:8], 16),
    )


def fine_tuned(context: UnlearningContext, examples: Sequence[Example], lr: float, steps: int, seed: int) -> Iterator[StepLog]:
    """Fine-tune the context's model in place, all its weights, by AdamW at a constant rate.

    Args:
        context: whose model.
        examples: on what.
        lr: learning rate, before `learning_rate_factor`.
        steps: of `BATCH` examples.
        seed: of their order.
    """
    from harness.data.rows import encode, pad_id
    from harness.numerics.training import AdamW, micro_batches, optimise, pooled_nll, shuffled_batches, tokens_at_once

    model = context.model
    encoded = encode(examples, context.tokenizer)
    adamw = AdamW(lr=lr * learning_rate_factor(context.problem), steps=steps, schedule="constant_with_warmup")
    drawn = shuffled_batches(len(encoded), BATCH, steps, seed)
    pad, tokens = pad_id(context.tokenizer), tokens_at_once(model)
    batches = (micro_batches(encoded, rows, pad, model.device, tokens) for rows in drawn)
    yield from optimise(model, batches, lambda part: pooled_nll(model, *part), adamw)


def pool_model(context: UnlearningContext, config: PoolModelConfig) -> Iterator[Progress]:
    """Put a model of a pool in the place of the one before unlearning.

    Raises:
        UsageError: as `pool_source`; where there is no text of the kind that it is to be fine-tuned on.
    """
    problem, model = context.problem, context.model
    source = pool_source(problem, config)
    loaded, _ = source.load(context.cache, placement(model), str(model.dtype).removeprefix("torch."))
    context.costs.saved(source.seconds(context.cache) or 0.0)
    model.load_state_dict(loaded.state_dict())
    steps = 0
    if config.tuned_on != "nothing":
        texts = {
            "retain": problem.stages[0].retain,
            "benign": problem.attacks.get("benign", ()),
            "general": problem.general,
        }[config.tuned_on]
        if not texts:
            raise UsageError(f"tuned_on={config.tuned_on}: {problem.bench} with {problem.model} has no such text.")
        for log in fine_tuned(context, texts, config.lr, config.steps, context.seed):
            steps = log.step
    yield Progress(steps + 1, measure_here=True, total=steps + 1)


def memory_items(shape: ModelShape, config: object) -> list[MemoryItem]:
    """What fine-tuning holds."""
    return adamw(shape)


METHOD = Method(
    name=POOL_MODEL,
    config=PoolModelConfig,
    source="arXiv:2506.12618",
    unlearn=pool_model,
    skip_reason=skip_reason,
    memory=memory_items,
    reach="fixed",
)
"""Run and recorded as methods are; in no list of them, for it unlearns nothing."""
