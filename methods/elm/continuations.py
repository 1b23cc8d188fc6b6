"""Continuations of forget texts, sampled once before training: what the fluency term learns to say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.core.config import JSON
from harness.core.documents import read_json
from harness.core.errors import UsageError
from harness.core.method import METHODS, UnlearningContext
from harness.data.rows import Encoded
from harness.models.sources import weights_fingerprint
from harness.numerics.identity import answerer_fingerprint, end_tokens
from harness.numerics.likelihood import drawn_tokens
from harness.storage.cache import digest
from methods.elm.config import ELMConfig
from methods.elm.texts import Concept, Entry

GENERATED_AT_ONCE = 16
"""Continuations that are sampled together, each in three contexts."""


def continuations(
    context: UnlearningContext, concepts: Sequence[Concept], entries: Sequence[Entry], config: ELMConfig
) -> dict[tuple[int, int], Encoded]:
    """(stage, row) → the forget text, a change of subject and a sampled continuation; from the cache where it has been sampled.

    Args:
        context: whose model continues.
        concepts: one for each stage.
        entries: what is due; each forget text is continued once.
        config: the guidance.

    Raises:
        UsageError: for a model that cannot go on from what it has read.
    """
    rows = sorted({(entry.stage, concepts[entry.stage].row(entry)) for entry in entries})
    prompts = [concepts[stage].turned(row) for stage, row in rows]

    def make(folder: Path) -> None:
        sampled: list[list[int]] = []
        for start in range(0, len(prompts), GENERATED_AT_ONCE):
            group = prompts[start : start + GENERATED_AT_ONCE]
            texts, experts, novices, budgets = zip(*group, strict=True)
            numbers = [
                concepts[s].rng("sample", row).random(max(budgets), dtype=np.float32) for s, row in rows[start:][: len(group)]
            ]
            uniform = np.stack(numbers, axis=1)
            sampled += guided(context.model, context.tokenizer, texts, experts, novices, budgets, config.guidance, uniform)
            context.costs.count(sum(len(t) + len(e) + len(n) for t, e, n, _ in group) + 3 * sum(map(len, sampled[start:])))
        (folder / "tokens.json").write_text(json.dumps(sampled), encoding="utf-8")

    key: dict[str, JSON] = {
        "version": METHODS.get("elm").version,
        "answerer": answerer_fingerprint(weights_fingerprint(context.model), context.model, context.tokenizer),
        "asked": digest(prompts),
        "guidance": config.guidance,
        "seed": context.seed,
        "device": context.model.device.type,
    }
    tokens = read_json(context.cached("continuations", key, make) / "tokens.json")
    return {(stage, row): concepts[stage].followed(row, ids) for (stage, row), ids in zip(rows, tokens, strict=True)}


def guided(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[list[int]],
    experts: Sequence[list[int]],
    novices: Sequence[list[int]],
    budgets: Sequence[int],
    guidance: float,
    uniform: np.ndarray,
) -> list[list[int]]:
    """Continuations y sampled from log p(·|text, y) + γ [log p(·|novice, y) − log p(·|expert, y)], token by token.

    Args:
        model: in eval mode.
        tokenizer: whose end token ends a continuation (and is not part of it), as do ends of the model's generation settings.
        texts: [B] what is continued, as tokens.
        experts: [B] the contexts that are avoided.
        novices: [B] the contexts that are preferred.
        budgets: [B] at most so many tokens each.
        guidance: γ.
        uniform: [tokens, B] in [0, 1): decide what is drawn.

    Raises:
        UsageError: for a model that cannot go on from what it has read.
    """
    ends = end_tokens(model, tokenizer)
    reader = _Reader(model, [*texts, *novices, *experts], ends[0])
    sampled: list[list[int]] = [[] for _ in texts]
    ended = [False] * len(texts)
    for numbers in torch.from_numpy(uniform).to(model.device)[: max(budgets)]:
        plain, novice, expert = reader.logits().log_softmax(dim=-1).chunk(3)
        drawn = drawn_tokens((plain + guidance * (novice - expert)).softmax(dim=-1).cumsum(dim=-1), numbers)
        for i, token in enumerate(drawn.tolist()):
            ended[i] = ended[i] or token in ends or len(sampled[i]) == budgets[i]
            if not ended[i]:
                sampled[i].append(token)
        if all(ended):
            break
        reader.append(drawn[:, None].repeat(3, 1))
    return sampled


class _Reader:
    """A model that reads some texts side by side and goes on from a cache of keys and values.

    Args:
        model: in eval mode.
        texts: [N] tokens; padded on the left.
        pad: what padding holds.
    """

    def __init__(self, model: PreTrainedModel, texts: Sequence[list[int]], pad: int) -> None:
        self._model, self._past = model, None
        longest = max(map(len, texts))
        self._ids = torch.tensor([[pad] * (longest - len(row)) + row for row in texts], device=model.device)
        self._mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in texts], device=model.device)
        self._positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0)

    @torch.no_grad()
    def logits(self) -> Tensor:
        """[N, V] float32, of what follows all that was read.

        Raises:
            UsageError: for a model that keeps no such cache.
        """
        out = self._model(
            input_ids=self._ids,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=self._past,
            use_cache=True,
            logits_to_keep=1,
        )
        self._past = getattr(out, "past_key_values", None)
        if self._past is None:
            raise UsageError(
                "elm continues texts token by token from a cache of keys and values, which "
                f"{self._model.config.model_type} does not keep. Set fluency_weight=0."
            )
        return out.logits[:, -1].float()  # type: ignore[no-any-return]

    def append(self, tokens: Tensor) -> None:
        """Each text's next token.

        Args:
            tokens: [N, 1].
        """
        self._ids, self._positions = tokens, self._positions[:, -1:] + 1
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
