"""How a question and an answer become text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Example:
    """A prompt and the text that should follow it; losses are taken on `tag + answer` and the end token."""

    prompt: str
    """What the model reads, template included."""
    answer: str
    """What it should say."""
    tag: str = ""
    """Template text between the two that is scored too (`Answer: ` of ToFU's phi template, else empty)."""

    ends: ClassVar[bool] = True
    """Whether the end token follows, and is scored."""


@dataclass(frozen=True)
class Window(Example):
    """A piece out of running text, its prompt empty: every token but the first is scored, and no end token follows."""

    ends: ClassVar[bool] = False


@dataclass(frozen=True)
class Template:
    """How a question and an answer become text (ToFU `config/model_config.yaml`)."""

    name: str
    """As recorded; part of the run's hash with the three strings."""
    question_start: str = ""
    """Before the question."""
    question_end: str = ""
    """After the question."""
    answer_tag: str = ""
    """Before the answer."""
    tag_in_prompt: bool = False
    """Whether the tag belongs to the prompt (open-unlearning) or to the scored text (the original); see `scored_tag`."""

    @property
    def scored_tag(self) -> str:
        """What of the tag comes with the answer: all of it or nothing.

        A tag of white space always does: at the end of a prompt it would be a token of its own where it is the first word's
        beginning, and that word would be neither scored nor trained on. open-unlearning leaves it away for that reason
        (`configs/model/Llama-2-7b-chat-hf.yaml`).
        """
        return "" if self.tag_in_prompt and self.answer_tag.strip() else self.answer_tag

    def example(self, question: str, answer: str) -> Example:
        """The question and its answer, rendered."""
        return Example(self.prompt(question), answer, self.scored_tag)

    def prompt(self, question: str) -> str:
        """The question alone, as a model gets it before it answers."""
        tag = "" if self.scored_tag else self.answer_tag
        return f"{self.question_start}{question}{self.question_end}{tag}"
