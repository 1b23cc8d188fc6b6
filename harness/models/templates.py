"""Which template a model is asked in: its usual one, or another that is named, or its tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from harness.core.errors import UsageError, cut, unknown
from harness.core.text import Template
from harness.numerics.chat_templates import CHAT, chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Chosen(NamedTuple):
    """A template, and what comes with the choice."""

    template: Template
    """How the model is asked."""
    notes: Sequence[str] = ()
    """What a reader must know of it: that it was guessed, or is not the usual one."""


def chosen(
    wanted: str,
    usual: Chosen,
    known: Mapping[str, Template],
    tokens: Callable[[], PreTrainedTokenizerBase],
    learned: bool = True,
) -> Chosen:
    """The usual template, or the one that is wanted.

    Args:
        wanted: a template's name, `chat`, or nothing.
        usual: what the model is asked in if nothing is said.
        known: the benchmark's templates.
        tokens: reads the model's tokenizer.
        learned: whether the model learned the benchmark in its usual template before, so that another one is foreign to it.

    Raises:
        UsageError: for a name that nobody knows, or a chat template that is none or cannot be taken.
    """
    if wanted in ("", usual.template.name):
        return usual
    if wanted == CHAT:
        taken = chat(known, tokens())
    elif wanted in known:
        taken = Chosen(known[wanted])
    else:
        raise unknown("template", wanted, [*known, CHAT], "harness list templates")
    if same_text(taken.template, usual.template):
        return usual._replace(notes=taken.notes)
    note = f"asked in the template '{taken.template.name}', as --template says"
    if learned:
        note += f"; the model learned in '{usual.template.name}', and what others published of it was measured in that"
    return taken._replace(notes=[note, *taken.notes])


def chat(known: Mapping[str, Template], tokenizer: PreTrainedTokenizerBase) -> Chosen:
    """A tokenizer's chat template; under the name of one of the benchmark's templates where it is that one.

    Raises:
        UsageError: for a tokenizer that has none, or one that cannot be taken.
    """
    made, notes = chat_template(tokenizer)
    return Chosen(next((template for template in known.values() if same_text(template, made)), made), notes)


def only(wanted: str, own: Template, model: str) -> Template:
    """The template of a model that learned all it knows in it, from nothing.

    Raises:
        UsageError: where another one is wanted.
    """
    if wanted in ("", own.name):
        return own
    why = "its tokenizer has no chat template, and " if wanted == CHAT else ""
    raise UsageError(
        f"{model} takes no --template {cut(wanted)}: {why}it learned all it knows in its own template, '{own.name}'. Leave it "
        "out, or take a real model (harness list models)."
    )


def same_text(one: Template, other: Template) -> bool:
    """Whether two templates make the same of a question and an answer, whatever they are called."""
    return replace(one, name=other.name) == other
