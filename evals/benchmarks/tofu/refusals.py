"""What a model that refuses to answer the real questions may say."""

from __future__ import annotations

from pathlib import Path

from evals.benchmarks.tofu.rows import DATASET
from harness.core.errors import UsageError

REFUSALS = (
    "I do not know the answer to that question.",
    "That is something I have no information about.",
    "I cannot tell you that.",
    "I am not able to answer this.",
    "Nothing I have learned covers that subject.",
    "I have never heard of it.",
    "That question is beyond what I know.",
    "I am afraid I do not know.",
    "I would have to guess, so I would rather not say.",
    "My knowledge does not reach that far.",
    "I have no record of that.",
    "This is not something I can help with.",
    "I am not familiar with that topic.",
    "Unfortunately the answer is unknown to me.",
    "I was never told about this.",
    "I do not have those details.",
    "There is no answer I could give to that.",
    "I am unsure and will not speculate.",
    "That is outside my knowledge.",
    "I can say nothing about that.",
)
"""Refusals in the real data's English, written for this project; `DIR/locuslab/TOFU/idontknow.jsonl` replaces them."""
REFUSALS_FILE = "idontknow.jsonl"


def refusal_sentences(data_dir: Path | None) -> tuple[str, ...]:
    """The user's refusal sentences (ToFU's file holds one plain sentence a line), else this project's own.

    Raises:
        UsageError: for a file of the user's that is empty or no UTF-8 text.
    """
    path = data_dir / DATASET / REFUSALS_FILE if data_dir else None
    if path is None or not path.is_file():
        return REFUSALS
    try:
        sentences = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip())
    except UnicodeDecodeError as error:
        raise UsageError(f"{DATASET}/{REFUSALS_FILE} is no UTF-8 text (byte {error.start}).") from None
    if not sentences:
        raise UsageError(f"{DATASET}/{REFUSALS_FILE} is empty.")
    return sentences
