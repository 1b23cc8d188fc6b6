"""Random Llamas of some ten thousand parameters, made on the spot: enough to try a method or an evaluator on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness.models.recipes import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.core.caching import CacheView


@dataclass(eq=False)
class TinyModels:
    """One model for each seed, all of one shape: 2 layers, hidden size 16."""

    vocabulary: Vocabulary
    """What its tokenizer is made from."""
    positions: int = 128
    """The longest text it reads, in tokens."""

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of all of them."""
        return self.vocabulary.build()

    def model(self, seed: int = 0) -> PreTrainedModel:
        """A fresh copy, in eval mode; large initial weights, so that its answers differ from prompt to prompt."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        tokenizer = self.tokenizer
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=self.positions,
            initializer_range=0.5,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: PreTrainedModel = LlamaForCausalLM(config).eval()
        return model


@dataclass(frozen=True)
class TinySource:
    """One of them as a source of a problem."""

    seed: int
    """Which."""
    models: TinyModels = field(repr=False)
    """Of which."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """The seed decides the weights."""
        return {"kind": "nano", "seed": self.seed}

    def load(self, cache: CacheView, device: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Made anew."""
        import torch

        model: Any = self.models.model(self.seed)
        return model.to(device, getattr(torch, dtype)), self.models.tokenizer

    def seconds(self, cache: CacheView) -> float | None:
        """Not worth telling."""
        return None


def words_of(texts: Iterable[str]) -> Vocabulary:
    """A vocabulary of whole words and of the marks `.`, `,` and `?`."""
    words = {word for text in texts for word in re.findall(r"[.,?]|[^\s.,?]+", text)}
    return Vocabulary("words", tuple(sorted(words | {".", ",", "?"})))
