"""ELM: the model is to continue texts on a concept as a novice would, not as an expert, and to stay fluent while it does so.

L = erase + retain + fluency, each the mean over a text's positions, through low-rank adapters
erase    CE(q, p_θ(x)),  log q_t = log p_0(·|x_≤t) − η_t [log p_0(·|P⁺ x_≤t) − log p_0(·|P⁻ x_≤t)] + const.
         x a forget text; P⁺ says that an expert wrote it and P⁻ that a novice did; η_t grows evenly from 1 to η over x; logits
         are divided by a temperature, and q keeps its k likeliest tokens
retain   CE(argmax p_0(r), p_θ(r)) on a retain text r, or KL(p_0 ‖ p_θ)
fluency  CE of what follows x: a sentence that changes the subject, and what p_0 says then, sampled from
         log p_0(·|x …) + γ [log p_0(·|P⁻ …) − log p_0(·|P⁺ …)]

(Gandikota et al. 2024, "Erasing Conceptual Knowledge from Language Models", arXiv:2410.02760; rohitgandikota/erasing-llm
`trainscripts/erase.py`, `prepare_consistency_data.py`; the settings are its script's, with the README's command. Its authors
published their checkpoints, which is what others compare with: method `checkpoint`.) p_0 is the model without its adapters.
Departures: contexts, sentences and concepts are this project's own words, that repository having no licence; a continuation is
sampled once for each forget text, before training; a step's texts go through the model together; masters of the adapters are
float32. `contexts=texts` is ours, for models that are too small to take a context at its word: another forget text stands for
P⁺, a retain text for P⁻, and a retain text changes the subject.

Its parts: the settings (`config`), `words`, which texts are due (`texts`), `continuations`, `losses`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from harness.core.memory import MemoryItem, ModelShape
from harness.core.method import Progress, UnlearningContext, method
from harness.core.problem import Problem
from methods._settings import absent_layers
from methods.elm.config import ELMConfig, absent_stages
from methods.first_order.adapters import Adapters, linear_maps
from methods.first_order.adapters import memory_items as adapter_memory_items
from methods.first_order.recipe import evenly


def memory_items(shape: ModelShape, config: ELMConfig) -> list[MemoryItem]:
    """The adapted weights kept aside while a point is measured, adapters with AdamW's state, and the target in float64."""
    from harness.models.memory_items import TOKENS_AT_ONCE, activations

    maps = linear_maps(shape.model, config.target_modules, config.layers)
    positions = config.batch_size * (config.max_characters // 3)
    return [
        *adapter_memory_items(maps, config.rank, shape.weight_bytes, "device"),
        MemoryItem("targets", 6 * 8 * positions * shape.vocabulary, while_measured=False, certain=False),
        activations(replace(shape, trained_at_once=TOKENS_AT_ONCE)),  # its batches are not cut
    ]


def clash(problem: Problem, config: ELMConfig) -> str | None:
    """Stages and layers that are not there."""
    return absent_stages(config, len(problem.stages)) or absent_layers(problem, layers=config.layers)


@method(
    "elm",
    config=ELMConfig,
    source="arXiv:2410.02760",
    clash=clash,
    memory=memory_items,
    memory_fallbacks=({"rank": 64}, {"layers": [4, 5]}),
)
def elm(context: UnlearningContext, config: ELMConfig) -> Iterator[Progress]:
    """Train the adapters, measuring at evenly spaced steps with the adapters merged.

    Raises:
        UsageError: for layers or stages that are not there, contexts without concepts or in words the model does not know.
        Diverged: at a loss or gradient that is not finite.
    """
    from harness.numerics import training
    from methods.elm.terms import Terms
    from methods.elm.texts import Concept, schedule

    model = context.model
    maps = linear_maps(model, config.target_modules, config.layers)
    concepts = [Concept(context, stage, number, config) for number, stage in enumerate(context.stages)]
    entries = schedule(config, len(concepts))
    steps = max(1, len(entries) // config.batch_size)
    adapters = Adapters(model, maps, config.rank, config.alpha, context.seed, config.dropout)
    terms = Terms(context, concepts, entries, config)
    adapters.make()
    recipe = training.AdamW(
        lr=config.lr,
        steps=steps,
        schedule="constant_with_warmup",
        weight_decay=config.weight_decay,
        max_gradient_norm=float("inf"),
    )
    measured = evenly(steps, config.points)
    try:
        for log in training.optimise(model, terms.of_steps(steps), lambda term: term(), recipe, recompute=False):
            adapters.take_off()
            record = {**terms.logged, "gradient_norm": log.gradient_norm, "learning_rate": log.learning_rate}
            yield Progress(log.step, record, measure_here=log.step in measured, total=steps)
            adapters.put_on()
    finally:
        adapters.take_off()
