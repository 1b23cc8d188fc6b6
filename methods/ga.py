"""Gradient ascent on the forget set (GA), without any retain term.

L = −(token-pooled mean cross-entropy of the forget batch), minimised with AdamW. ToFU's recipe (locuslab/tofu `forget.py`,
`dataloader.py` loss "grad_ascent", `config/forget.yaml`): 5 epochs, batch 32, learning rate 1e-5, weight decay 0.01, one
epoch of linear warm-up, then linear decay to 0, gradient norm clipped at 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from harness.config import settings
from harness.interfaces import Progress, Setting, method

if TYPE_CHECKING:
    from torch import Tensor

    from harness.data import Batch


@settings
class GAConfig:
    """Settings of GA; the defaults are ToFU's for Llama-2-7B."""

    lr: PositiveFloat = 1e-5
    """Peak learning rate; 1e-5 for Llama-2-7B, 2e-5 for Phi-1.5."""
    epochs: PositiveInt = 5
    """Passes over the forget set."""
    batch_size: PositiveInt = 32
    """Forget examples in a step."""
    warmup_epochs: NonNegativeInt = 1
    """Epochs of linear warm-up."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's."""


@method("ga", config=GAConfig, source="arXiv:2401.06121", presets={("*", "mini"): {"lr": 1e-3}, ("*", "scratch"): {"lr": 1e-3}})
def unlearn(setting: Setting, config: GAConfig) -> Iterator[Progress]:
    """Train, measuring after every epoch."""
    from harness import training
    from harness.data import encode, pad_id

    taken = 0
    for stage in setting.stages:
        forget = encode(stage.forget, setting.tokenizer)
        pad = pad_id(setting.tokenizer)
        batch = min(config.batch_size, len(forget))
        steps = config.epochs * len(forget) // batch
        per_epoch = len(forget) // batch
        epoch_ends = {round(epoch * steps / config.epochs) for epoch in range(1, config.epochs + 1)}
        warmup = config.warmup_epochs * per_epoch
        adamw = training.AdamW(lr=config.lr, steps=steps, warmup=warmup, weight_decay=config.weight_decay)
        batches = (
            training.micro_batches(forget, rows, pad, setting.model.device)
            for rows in training.shuffled_batches(len(forget), batch, steps, setting.seed)
        )

        def loss(part: tuple[Batch, int]) -> Tensor:
            setting.costs.count(part[0].tokens)
            return -training.pooled_nll(setting.model, *part)

        for log in training.optimise(setting.model, batches, loss, adamw):
            logged = {"forget_loss": -log.loss, "gradient_norm": log.gradient_norm, "learning_rate": log.learning_rate}
            yield Progress(taken + log.step, logged, measure_here=log.step in epoch_ends)
        taken += steps
