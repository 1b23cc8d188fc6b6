"""Conversations with a model: what it is given at each turn, as plain text or by the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, tzinfo
from typing import TYPE_CHECKING, Any, Self
from unittest.mock import patch

from harness.core.errors import UsageError
from harness.core.evaluator import GenerationRequest
from harness.core.progress import progress_bar
from harness.data.rows import check_rows, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT_DATE = "10 Apr 2025"
"""What chat templates that name the day are told (open-unlearning's), so that prompts do not change with the calendar."""
WITHOUT_THOUGHTS = {"enable_thinking": False, "thinking": False}
"""What chat templates that offer it read to switch a model's thoughts off (Qwen3's, GLM's; Granite's, DeepSeek's)."""

Answer = Callable[[Sequence[list[int]], Sequence[GenerationRequest]], Iterable[tuple[GenerationRequest, str]]]
"""(prompts' tokens, requests) → each request with its answer, in any order."""


def converse(tokenizer: PreTrainedTokenizerBase, requests: Sequence[GenerationRequest], answer: Answer) -> list[str]:
    """The last answer to each request, turn after turn; what several conversations share is answered once."""
    said: dict[GenerationRequest, str] = {}  # conversation, cut after one of its turns → the answer to that turn
    longest = max((len(request.turns) for request in requests), default=0)
    turns = [[_until(r, k + 1) for r in requests if len(r.turns) > k] for k in range(longest)]
    with progress_bar(total=len(set().union(*turns)), desc="generating", unit="answer") as bar:
        for conversations in turns:
            different = list(dict.fromkeys(conversations))
            for request, text in answer(_prompts(tokenizer, different, said), different):
                said[request] = text
                bar.update()
    return [said[request].strip() if request.turns else "" for request in requests]


def _until(request: GenerationRequest, turns: int) -> GenerationRequest:
    return replace(request, turns=tuple(request.turns[:turns]))


def _prompts(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[GenerationRequest], said: Mapping[GenerationRequest, str]
) -> list[list[int]]:
    """The tokens of each conversation, up to where its last turn is to be answered.

    Args:
        tokenizer: whose chat template renders the requests that want one.
        requests: the conversations.
        said: the answers to all their turns but the last.

    Raises:
        UsageError: for a chat without a chat template.
    """
    texts = {}
    for request in requests:
        answers = [said[_until(request, k + 1)] for k in range(len(request.turns) - 1)]
        texts[request] = conversation(tokenizer, request.turns, answers) if request.chat else _joined(request.turns, answers)
    plain = iter(token_ids(tokenizer, [texts[request] for request in requests if not request.chat]))
    chats = [tokenizer(texts[request], add_special_tokens=False)["input_ids"] for request in requests if request.chat]
    check_rows(tokenizer, chats)
    rendered = iter(chats)
    return [next(rendered) if request.chat else next(plain) for request in requests]


def _joined(turns: Sequence[str], answers: Sequence[str]) -> str:
    return "".join(turn + answer for turn, answer in zip(turns, [*answers, ""], strict=True))


def conversation(tokenizer: PreTrainedTokenizerBase, turns: Sequence[str], answers: Sequence[str]) -> str:
    """A conversation as the tokenizer's chat template renders it, up to where its last turn is to be answered.

    Args:
        tokenizer: whose template.
        turns: what the user says.
        answers: the model's, to all turns but the last.

    Raises:
        UsageError: for a tokenizer without a template, or a template that does not take such a conversation.
    """
    if not tokenizer.chat_template:
        raise UsageError("the tokenizer has no chat template, and a conversation of plain messages needs one.")
    messages = [{"role": "user", "content": turns[0]}]
    for answer, turn in zip(answers, turns[1:], strict=True):
        messages += [{"role": "assistant", "content": answer.strip()}, {"role": "user", "content": turn}]
    return rendered(tokenizer, messages)


def rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], thoughts: bool = True) -> str:
    """Messages as the tokenizer's chat template renders them; behind a user's, up to where the answer begins.

    Args:
        tokenizer: whose template; it has one.
        messages: each with its `role` and its `content`.
        thoughts: whether the model may think before it answers; where not, a template that offers it is asked to prevent it.

    Raises:
        UsageError: for a template that does not take such a conversation.
    """
    how: dict[str, Any] = {"date_string": CHAT_DATE, **({} if thoughts else WITHOUT_THOUGHTS)}
    answered = messages[-1]["role"] == "assistant"
    try:
        # Templates get the clock of that module, and no other from us.
        with patch("transformers.utils.chat_template_utils.datetime", _ChatDay):
            text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=not answered, **how)
    except Exception as error:  # a template is a program of its maker's
        count = sum(message["role"] == "user" for message in messages)
        turns = "one turn" if count == 1 else f"{count} turns"
        why = str(error).partition("\n")[0].rstrip(".!") or type(error).__name__
        raise UsageError(f"the tokenizer's chat template takes no conversation of {turns}: {why}.") from error
    return str(text)


class _ChatDay(datetime):
    """A clock that stands still on `CHAT_DATE`."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        """Midnight of that day."""
        return cls(2025, 4, 10, tzinfo=tz)


def unanswered(tokenizer: PreTrainedTokenizerBase, requests: Sequence[GenerationRequest]) -> list[list[int]]:
    """The tokens of conversations whose earlier turns were answered with nothing: the least that they can have."""
    return _prompts(tokenizer, requests, dict.fromkeys((_until(r, k + 1) for r in requests for k in range(len(r.turns))), ""))
