"""Fine-tuning as an attack: its recipe, and its steps on a model.

That of "Gauss-Newton Unlearning for the LLM Era" (arXiv:2602.10568): all weights, steps of 8 examples, AdamW at a constant
learning rate. What is left open there and chosen here: `finetune_attack.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from harness.core.config import JSON
from harness.core.evaluator import EvalContext
from harness.core.memory import MemoryItem, ModelShape
from harness.core.text import Example

if TYPE_CHECKING:
    from harness.core.problem import Problem

BATCH = 8
LEARNING_RATE = 1e-5
MAX_TOKENS = 512
"""A text that is trained on is cut there."""
SEED = 0
"""Of the order of the data; the untouched model's attack serves runs of every seed."""


def recipe(problem: Problem) -> list[JSON]:
    """All numbers that decide an attack besides its steps."""
    return [BATCH, learning_rate(problem), MAX_TOKENS, SEED]


def memory_items(shape: ModelShape) -> list[MemoryItem]:
    """AdamW's state; in the machine's memory the weights before and after unlearning, and those of the attacked base model."""
    from harness.models.memory_items import adamw

    return [*adamw(shape), MemoryItem("copies of the weights", 3 * shape.parameters * shape.weight_bytes, "cpu")]


def fine_tuning(context: EvalContext, examples: Sequence[Example], steps: int) -> Iterator[int]:
    """Fine-tune the model in place; after each step its number.

    Args:
        context: whose model.
        examples: what is trained on; of very many, as many as there is time for.
        steps: how many.

    Raises:
        Diverged: if a loss is not finite.
    """
    from harness.core.progress import progress_bar
    from harness.data.rows import encode, pad_id
    from harness.numerics.training import AdamW, micro_batches, optimise, pooled_nll, shuffled_batches, tokens_at_once

    encoded = encode(taken(examples, steps), context.tokenizer, MAX_TOKENS)
    context.costs.count(sum(len(e.input_ids) for e in encoded) * steps * BATCH // len(encoded))
    adamw = AdamW(lr=learning_rate(context.problem), steps=steps, schedule="constant_with_warmup")
    recompute = bool(context.loaded and context.loaded.recompute) or None
    drawn = shuffled_batches(len(encoded), BATCH, steps, SEED)
    pad, tokens = pad_id(context.tokenizer), tokens_at_once(context.model)
    batches = (micro_batches(encoded, rows, pad, context.model.device, tokens) for rows in drawn)
    with progress_bar(total=steps, desc="attack", unit="step") as bar:
        for progress in optimise(
            context.model, batches, lambda part: pooled_nll(context.model, *part), adamw, recompute=recompute
        ):
            bar.update()
            yield progress.step


def taken(examples: Sequence[Example], steps: int) -> Sequence[Example]:
    """Those that an attack of so many steps comes to."""
    return examples[: steps * BATCH]


def learning_rate(problem: Problem) -> float:
    """As published; scaled on models that are trained on the spot."""
    from harness.models.small import learning_rate_factor

    return LEARNING_RATE * learning_rate_factor(problem)
