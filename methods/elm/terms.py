"""The three terms of ELM's loss on a step's texts, each through the model with its adapters on and off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.core.method import UnlearningContext
from harness.core.streams import streams
from harness.data.rows import Batch, Encoded, collate, pad_id
from harness.numerics.likelihood import answer_labels, answer_logits
from methods.elm.config import ELMConfig
from methods.elm.continuations import continuations
from methods.elm.losses import erased, mean_of_each, retain_losses, soft_cross_entropy
from methods.elm.texts import Concept, Entry
from methods.first_order.adapters import without_adapters


class Terms:
    """What is minimised, term by term.

    Args:
        context: whose model is trained; its adapters are not yet on, since continuations are sampled from the model as it was.
        concepts: one for each stage.
        entries: what is due, step after step.
        config: weights and targets.
    """

    def __init__(
        self,
        context: UnlearningContext,
        concepts: Sequence[Concept],
        entries: Sequence[Entry],
        config: ELMConfig,
    ) -> None:
        self._context, self._model, self._pad = context, context.model, pad_id(context.tokenizer)
        self._concepts, self._entries, self._config = concepts, entries, config
        with context.costs.phase("continuations"):
            self._followed = continuations(context, concepts, entries, config) if config.fluency_weight else {}
        self._terms = {
            "forget": (self.erase, config.erase_weight),
            "retain": (self.retain, config.retain_weight),
            "fluency": (self.fluency, config.fluency_weight),
        }
        self.logged: dict[str, float] = {}
        """What each term came to in the last step, by name."""

    def of_steps(self, steps: int) -> Iterator[list[Callable[[], Tensor]]]:
        """For each of so many steps its terms that have a weight."""
        for number in range(steps):
            yield [partial(self._weighted, name, number, steps) for name, (_, weight) in self._terms.items() if weight]

    def _weighted(self, name: str, number: int, steps: int) -> Tensor:
        term, weight = self._terms[name]
        size = self._config.batch_size
        with torch.random.fork_rng(range(torch.cuda.device_count())):  # of dropout
            index = list(self._terms).index(name)
            streams(self._context.seed, "elm dropout", number, steps, index, len(self._terms)).seed_torch()
            loss = weight * term(self._entries[number * size : (number + 1) * size])
        self.logged[f"{name}_term"] = float(loss.detach())
        return loss

    def erase(self, step: Sequence[Entry]) -> Tensor:
        """The erase term, summed over a step's texts."""
        config = self._config
        drawn = [self._concepts[entry.stage].erased(entry) for entry in step]
        with without_adapters(self._model):
            # The plain texts, the same behind the expert's contexts, the same behind the novice's.
            _, of_base = self._logits([text for texts in zip(*drawn, strict=True) for text in texts])
            base, expert, novice = of_base.chunk(3)
        batch, now = self._logits([plain for plain, _, _ in drawn])
        target = erased(base, expert, novice, batch.counts, config.eta, config.temperature, config.top_k)
        return mean_of_each(soft_cross_entropy(now, target), batch).sum()

    def retain(self, step: Sequence[Entry]) -> Tensor:
        """The retain term, likewise."""
        texts = [self._concepts[entry.stage].retained(entry) for entry in step]
        with without_adapters(self._model):
            _, before = self._logits(texts)
        batch, now = self._logits(texts)
        return mean_of_each(retain_losses(now, before, self._config.retain_loss), batch).sum()

    def fluency(self, step: Sequence[Entry]) -> Tensor:
        """The fluency term, likewise."""
        batch, now = self._logits([self._followed[entry.stage, self._concepts[entry.stage].row(entry)] for entry in step])
        return mean_of_each(F.cross_entropy(now, answer_labels(batch), reduction="none"), batch).sum()

    def _logits(self, texts: Sequence[Encoded]) -> tuple[Batch, Tensor]:
        batch = collate(texts, range(len(texts)), self._pad).to(self._model.device)
        self._context.costs.count(batch.tokens)
        return batch, answer_logits(self._model, batch)
