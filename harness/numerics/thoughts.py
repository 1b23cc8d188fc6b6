"""A model's thoughts, taken off what it says: a judge grades answers, and a verdict is what a judge comes to in the end.

Reasoning models think aloud before they answer, between marks that their makers chose. Thoughts stand at the beginning, or come
to an end whose beginning stood in the prompt (DeepSeek's and QwQ's chat templates begin them). Marks in the middle of an
answer are part of it: it may be about them. Marks that a tokenizer counts among its special tokens (Mistral's [THINK], Cohere's
<|START_THINKING|>) are kept in generated texts, unlike other special tokens; of gpt-oss's the words remain.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Marks(NamedTuple):
    """What stands around thoughts."""

    begin: str
    """Before them."""
    end: str
    """Behind them."""
    only_both: bool = False
    """Whether one of them alone may be part of an answer: they are words."""


MARKS = (
    *(Marks(f"<{name}>", f"</{name}>") for name in ("think", "thinking", "thought", "reasoning")),
    Marks("[THINK]", "[/THINK]"),
    Marks("◁think▷", "◁/think▷"),  # Kimi
    Marks("<seed:think>", "</seed:think>"),
    Marks("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThinker
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),
    Marks("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),  # gpt-oss
    Marks("analysis", "assistantfinal", only_both=True),  # the same without its special tokens
    Marks("Here is my thought process:", "Here is my response:", only_both=True),  # Granite 3.2
)
"""Of models in use."""
MARKED = frozenset(mark for marks in MARKS for mark in marks[:2] if not marks.only_both)
_BLANKS = re.compile(r"\s*")


def without_thoughts(text: str, begun: bool = False) -> str:
    """What is said after the thoughts, without white space at its ends; nothing where they come to no end.

    Args:
        text: what a model said.
        begun: whether the prompt ended in the mark that begins thoughts, so that the text begins inside them.
    """
    text = text.strip()
    if begun and not any(marks.end in text for marks in MARKS if not marks.only_both):
        return ""
    at = 0
    while marks := next((m for m in MARKS if text.startswith(m.begin, at)), None):
        if (end := text.find(marks.end, at)) < 0:
            if marks.only_both:
                break
            return ""
        at = _BLANKS.match(text, end + len(marks.end)).end()  # type: ignore[union-attr]  # it fits everywhere
    text = text[at:]
    for marks in MARKS:
        before, mark, after = text.partition(marks.end)
        if mark and not marks.only_both and marks.begin not in before:
            text = after.strip()
    return text


def begins_thoughts(prompt: str) -> bool:
    """Whether a prompt ends in a mark that begins thoughts."""
    return prompt.rstrip().endswith(tuple(marks.begin for marks in MARKS if not marks.only_both))
