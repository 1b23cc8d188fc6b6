"""LAMBADA: whether a text's last word is what the model would say itself.

Each token of the word must be the likeliest behind the true ones before it; or the likeliest tokens must spell the same word,
in another case or with other punctuation. lm-eval says whether all tokens are the likeliest and not which ones are, hence a
pass of our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from evals._answer_words import words

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def last_words(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[list[int], list[int]]]
) -> list[float]:
    """1 where a last word is said, 0 where it is not, NaN where the model gives nothing finite.

    Args:
        model: in eval mode.
        tokenizer: its own.
        texts: tokens of each text without its last word, and of that word.
    """

    def spelled(tokens: list[int]) -> list[str]:
        return words(str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)))

    pairs = zip((word for _, word in texts), _likeliest(model, tokenizer, texts), strict=True)
    return [
        np.nan if min(likeliest) < 0 else float(likeliest == word or spelled(likeliest) == spelled(word))
        for word, likeliest in pairs
    ]


def _likeliest(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[list[int], list[int]]]
) -> list[list[int]]:
    """For each token of the last words the likeliest one there; -1 where a logit is not finite."""
    import torch

    from harness.core.progress import progress_bar
    from harness.data.rows import Encoded, batches, pad_id
    from harness.numerics.likelihood import TOKENS_ON_CPU, TOKENS_PER_BATCH, answer_logits, check_length
    from harness.numerics.room import with_room

    encoded = [Encoded([*context, *word], len(context)) for context, word in texts]
    longest = max(len(each.input_ids) for each in encoded)
    check_length(model, longest)

    @torch.no_grad()
    def once(tokens: int) -> list[list[int]]:
        done: dict[int, list[int]] = {}
        with progress_bar(total=len(encoded), desc="last words", unit="text") as bar:
            for batch in batches(encoded, pad_id(tokenizer), tokens, model.device):
                logits = answer_logits(model, batch)
                likeliest = logits.argmax(dim=-1).where(logits.isfinite().all(dim=-1), -1)
                parts = likeliest.split(batch.counts.tolist())
                done |= {row: part.tolist() for row, part in zip(batch.rows.tolist(), parts, strict=True)}
                bar.update(len(parts))
        return [done[number] for number in range(len(encoded))]

    most = min(TOKENS_PER_BATCH, TOKENS_ON_CPU) if model.device.type == "cpu" else TOKENS_PER_BATCH
    return with_room(model, most, longest, once)
