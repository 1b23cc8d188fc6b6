"""A tokenizer's chat template as a `Template`: what it puts before a question and behind it, cut out of what it renders.

So a model is asked as its makers ask it, and everything else works on text as before. A question must stand in the rendered
prompt word for word; what a template does to white space around one (Llama-3's and Gemma's take it off) it does not do here.
The day is `CHAT_DATE`, and thoughts are switched off where the template offers it: an answer is scored where an answer stands.

A begin token that the tokenizer puts first by itself is left to it, so that it never stands there twice. White space at the
end of the prompt that a tokenizer makes one token of with an answer's first word comes with the answer, as in all templates.
Answers end with the tokenizer's end token as everywhere, whatever ends a turn in the chat template; where that is another
token (Gemma's `<end_of_turn>`) it is noted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.core.errors import UsageError, cut
from harness.core.text import Template
from harness.data.rows import added_tokens, token_ids
from harness.numerics.conversations import rendered
from harness.numerics.thoughts import begins_thoughts
from harness.storage.cache import digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT = "chat"
"""What asks for it, and its name."""
WAY_OUT = "Leave out --template, or name one (harness list templates)."
QUESTIONS = (
    "Who wrote the book of the seven lakes?",
    "WHICH  word stands\n\nbehind two lines, and is it \"Ümläut\" or <b>{{ 7 }}</b> & 'so'?",
    "Name 3 of them:\n- one\n  - two\n- {% three %}",
)
"""What a chat template is tried on: case, blanks, lines, quotes, marks of HTML and of Jinja, letters with accents."""
ANSWERS = ("The town of Riva.", "a lake", "1897", '"No."', "Élodie", "(none)", "- one\n- two")
"""How answers may begin, one of which stands behind each prompt."""


def chat_template(tokenizer: PreTrainedTokenizerBase) -> tuple[Template, list[str]]:
    """The chat template of a tokenizer.

    Returns:
        (the template, what a reader must know of it).

    Raises:
        UsageError: for a tokenizer that has none, and for one that changes what a question says, or that depends on it.
    """
    if not tokenizer.chat_template:
        raise UsageError(f"the tokenizer has no chat template. {WAY_OUT}")
    texts = [rendered(tokenizer, [{"role": "user", "content": question}], thoughts=False) for question in QUESTIONS]
    frames = {_cut_out(text, question) for text, question in zip(texts, QUESTIONS, strict=True)}
    if len(frames) > 1:
        raise UsageError(f"the tokenizer's chat template puts other text around one question than around another. {WAY_OUT}")
    ((start, end),) = frames
    first = _put_first(tokenizer)
    begun = start.startswith(first)
    template = _apart(tokenizer, Template(CHAT, start.removeprefix(first), end))
    thinks = rendered(tokenizer, [{"role": "user", "content": QUESTIONS[0]}]) != texts[0]
    off = ", its thoughts switched off" if thinks else ""
    notes = [f"asked by the tokenizer's own chat template ({digest(tokenizer.get_chat_template())[:8]}){off}"]
    if not begun:
        notes.append(f"the tokenizer puts {first} first, which its chat template does not")
    if not _same_tokens(tokenizer, template, texts, begun):
        notes.append("the tokenizer cuts the beginning of a prompt otherwise than that of its chat template")
    if begins_thoughts(template.prompt("")):
        notes.append("its chat template begins the model's thoughts whatever it is told: answers are scored where those stand")
    return template, [*notes, *_other_end(tokenizer)]


def _cut_out(text: str, question: str) -> tuple[str, str]:
    """What stands before a question and behind it."""
    if (times := text.count(question)) != 1:
        how = f"holds it {times} times" if times else "changes its text"
        raise UsageError(
            f"the tokenizer's chat template does not hold a question word for word, once: of {cut(repr(question))} it {how}. "
            f"{WAY_OUT}"
        )
    before, _, behind = text.partition(question)
    return before, behind


def _put_first(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of the special tokens that the tokenizer puts before any text."""
    before, _ = added_tokens(tokenizer)
    return "".join(tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"][:before]))


def _apart(tokenizer: PreTrainedTokenizerBase, template: Template) -> Template:
    """The template with so much white space moved to the answer that no token lies across where the answer begins."""
    end = template.question_end
    for moved in range(len(end) - len(end.rstrip()) + 1):
        kept = len(end) - moved
        tried = replace(template, question_end=end[:kept], answer_tag=end[kept:])
        prompt = tried.prompt(QUESTIONS[0])
        ids, *whole = token_ids(tokenizer, [prompt, *(prompt + tried.answer_tag + answer for answer in ANSWERS)])
        if all(each[: len(ids)] == ids for each in whole):
            return tried
    raise UsageError(
        f"the tokenizer makes one token of the end of its chat template's prompt ({end[-20:]!r}) and an answer's beginning, "
        f"which could not be scored apart. {WAY_OUT}"
    )


def _same_tokens(tokenizer: PreTrainedTokenizerBase, template: Template, texts: Sequence[str], begun: bool) -> bool:
    """Whether prompts have the tokens that the chat template gives, behind what the tokenizer puts first in its place."""
    left_to_it = 0 if begun else added_tokens(tokenizer)[0]
    ours = token_ids(tokenizer, [template.prompt(question) for question in QUESTIONS])
    plain = [text.removesuffix(template.answer_tag) for text in texts]
    theirs = tokenizer(plain, add_special_tokens=False)["input_ids"]
    return [ids[left_to_it:] for ids in ours] == [list(ids) for ids in theirs]


def _other_end(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """A note where the chat template ends an answer with another token than the tokenizer's end token."""
    question, answer = QUESTIONS[0], ANSWERS[0]
    try:
        text = rendered(
            tokenizer, [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], thoughts=False
        )
    except UsageError:
        return []
    behind = text.rpartition(answer)[2].lstrip()
    end = str(tokenizer.eos_token)
    if behind.startswith(end):
        return []
    (ids,) = tokenizer([behind], add_special_tokens=False)["input_ids"]
    ends = f"ends a turn with {tokenizer.decode(ids[:1])}" if ids else "ends a turn with nothing"
    return [f"answers end with the tokenizer's end token {end}; its chat template {ends}"]
