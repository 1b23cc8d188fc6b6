"""The model's answers: how each question is put to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evals.mt_bench.fastchat import Question
from harness.core.evaluator import EvalPlan, GenerationRequest, Sampling
from harness.numerics.thoughts import begins_thoughts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TOKENS = 1024
"""Of an answer."""


def request(
    plan: EvalPlan, tokenizer: PreTrainedTokenizerBase, question: Question, turn: int, repetition: int
) -> GenerationRequest:
    """A question's first turn, or both with the answer between them, as the tokenizer's template has it.

    Args:
        plan: with the template of a tokenizer that has none.
        tokenizer: of the model.
        question: which.
        turn: 1 or 2.
        repetition: which; the seed of what is drawn, where anything is.
    """
    sampling = Sampling(MAX_TOKENS, question.temperature, repetition if question.temperature else 0)
    if tokenizer.chat_template:
        return GenerationRequest(question.turns[:turn], sampling, chat=True)
    first, second = map(plan.problem.template.prompt, question.turns)
    return GenerationRequest((first, f"\n\n{second}")[:turn], sampling)


def thinks_from_the_start(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template puts a model into its thoughts, so that its answers begin inside them."""
    from harness.numerics.conversations import conversation

    return bool(tokenizer.chat_template) and begins_thoughts(conversation(tokenizer, ["?"], []))
