"""The settings of ELM; the origin of each stands under it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from harness.core.config import settings
from harness.core.errors import cut
from methods._settings import BatchSize, LayerNumbers, Points, Rank
from methods.first_order.adapters import Kind

NewTokens = Annotated[int, Field(ge=1, le=10_000)]


@settings
class ELMConfig:
    """Settings of ELM; the defaults are its script's, with the README's command for zephyr-7b."""

    lr: PositiveFloat = 5e-5
    """Learning rate of the adapters, constant."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's, on the adapters."""
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 3000
    """How often `order` is gone through; each of its entries takes a forget text, a retain text and a continuation."""
    order: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1, max_length=100)] | None = None
    """The stages of a round by number, from 0, some of them more than once; each once if not given. 0,0,1 on zephyr-7b."""
    batch_size: BatchSize = 4
    """Entries whose gradients are summed for a step."""
    rank: Rank = 256
    """Rank of the adapters."""
    alpha: PositiveInt = 16
    """Their scale times their rank."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """Share of the adapters' inputs that are dropped."""
    target_modules: Kind = "all"
    """Which linear maps of a decoder layer are adapted."""
    layers: LayerNumbers | None = (4, 5, 6, 7)
    """Decoder layers that are adapted, from 0; none stands for all."""
    eta: PositiveFloat = 1000.0
    """η, how far the target is driven from the expert to the novice at a text's last token."""
    temperature: PositiveFloat = 1.2
    """What logits are divided by for the target."""
    top_k: PositiveInt = 50
    """How many tokens the target keeps."""
    erase_weight: NonNegativeFloat = 1.0
    """Weight of the erase term."""
    retain_weight: NonNegativeFloat = 1.0
    """Weight of the retain term."""
    fluency_weight: NonNegativeFloat = 1.0
    """Weight of the fluency term."""
    retain_loss: Literal["cross_entropy", "kl"] = "cross_entropy"
    """The retain term: the cross-entropy of the likeliest token, as in its code, or the KL divergence, as in its paper."""
    guidance: NonNegativeFloat = 3.0
    """γ, how much a sampled continuation prefers the novice to the expert."""
    new_tokens: tuple[NewTokens, NewTokens] = (100, 300)
    """At least and at most so many tokens are sampled."""
    contexts: Literal["sentences", "texts"] = "sentences"
    """Whether sentences say that an expert or a novice writes, or other texts of the stage stand for them."""
    concepts: tuple[str, ...] = ()
    """What each stage is about, as the sentences put it."""
    min_characters: NonNegativeInt = 50
    """Texts of no more characters are left out."""
    max_characters: PositiveInt = 700
    """Texts are cut to so many characters."""
    points: Points = 5
    """At how many steps, evenly spaced, a point is measured."""

    def __post_init__(self) -> None:
        if self.new_tokens[0] > self.new_tokens[1]:
            raise ValueError(f"new_tokens={list(self.new_tokens)}: the least is more than the most")
        if not (self.erase_weight or self.retain_weight or self.fluency_weight):
            raise ValueError("all three terms have weight 0")


def absent_stages(config: ELMConfig, stages: int) -> str | None:
    """Why `order` cannot be followed with so many stages, or None if it can."""
    if max(config.order or (0,)) >= stages:
        instead = ",".join(map(str, range(stages)))
        return f"order={cut(str(list(config.order or ())))}: there are stages 0 to {stages - 1}. Set order=[{instead}]"
    return None
