"""How well a language model goes on with a dialogue: word F1 of its greedy reply on four dialogue sets, and their mean.

The sets are Wizard of Wikipedia, Empathetic Dialogues, Blended Skill Talk and Wizard of Internet, as files of
joeljang/knowledge-unlearning (Jang et al. 2023, arXiv:2210.01504; `Datasets.py`, `utils.py`, `models/Neo_Model.py`; LoKU,
arXiv:2408.06621). All turns but the last are put as lines `User 1: …` and `User 2: …` in turn, then comes the tag of who is
next. Turns are tidied as ParlAI does it: lower case, sentences and `I` with a capital, a period at the end. A reply is at most
32 tokens, cut where the next speaker's line begins, and compared with the last turn:

    F1 = 2 |said ∩ true| / (|said| + |true|)        words in lower case, without punctuation and articles, with multiplicity

Quirks of the public code, which are kept as they are; `--variant corrected` puts them right:

-  a dialogue of more than 512 tokens is cut at its end: its last turns and the tag of who is next are lost. Corrected: at its
   beginning;
-  a turn that begins with a blank begins with a small letter, and keeps its line breaks. Corrected: neither.

It departs from that code in taking all dialogues (there `limit_val_batches=1` leaves one batch of each set, unless it is
changed), and in an answer that begins with the next speaker's line, which counts as empty however it is set off.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from evals import _over_sets
from evals._answer_words import token_f1
from evals._challenge import FOLDER, files
from harness.core.config import JSON
from harness.core.documents import parse_json, place, read_text
from harness.core.errors import UsageError
from harness.core.evaluator import EvalContext, EvalPlan, GenerationRequest, Sampling, evaluator
from harness.core.metric import Metric, Rows
from harness.data.rows import fingerprint

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

TABLE = "dialogue"
LONGEST = 512
"""Tokens of a dialogue."""
REPLY = 32
"""New tokens of a reply."""
_TITLES = {
    "wizard_of_wikipedia": "Wizard of Wikipedia",
    "empathetic_dialogues": "Empathetic Dialogues",
    "blended_skill_talk": "Blended Skill Talk",
    "wizard_of_internet": "Wizard of Internet",
}
SETS = tuple(_TITLES)
METRICS = (
    _over_sets.metric(
        "dialogue_f1", "Dialogue", "word F1", "mean word F1 of replies on four dialogue sets, each counting alike"
    ),
    *(
        _over_sets.metric(
            f"{name}_f1", title, "word F1", f"how many words a reply shares with the true one in {title}", part=name
        )
        for name, title in _TITLES.items()
    ),
)


class Dialogues(NamedTuple):
    """A set that is there."""

    turns: Sequence[Sequence[str]]
    """Of each dialogue, two or more."""
    digest: str
    """Of all of them."""


# ---------------------------------------------------------------- files


def read_sets(data_dir: Path | None) -> Mapping[str, Dialogues | str]:
    """Set → its dialogues, or why it is not there.

    Args:
        data_dir: the data folder.

    Raises:
        UsageError: for a file that is there and broken, with the dialogue and what is wrong with it.
    """
    sets: dict[str, Dialogues | str] = {}
    for name in SETS:
        if paths := files(data_dir, f"{name}.json"):
            stat = paths[0].stat()
            sets[name] = _dialogues(paths[0], (stat.st_mtime_ns, stat.st_size))
        else:
            where = f"the data folder has no {FOLDER}/{name}.json" if data_dir else "there is no data folder"
            sets[name] = (
                f"{where}. Put validation_data/{name}.json of joeljang/knowledge-unlearning into DIR/{FOLDER} and give "
                "--data-dir DIR (or HARNESS_DATA)"
            )
    return sets


@cache
def _dialogues(file: Path, stamp: tuple[int, int]) -> Dialogues:
    """What a file holds: `{"text": {"0": [turn, …], …}}`; read again where it has changed since (`stamp`)."""
    where = place(file)
    content = parse_json(read_text(file), where)
    by_number = content.get("text") if isinstance(content, dict) else None
    if not isinstance(by_number, dict) or not by_number:
        raise UsageError(f'{where} holds no dialogues: it must be an object {{"text": {{"0": [turns], …}}}}.')
    for number, turns in by_number.items():
        if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(turn, str) and turn.strip() for turn in turns):
            raise UsageError(
                f"{where}, dialogue {number}: it must be a list of two turns or more, each a text that is not empty."
            )
    dialogues = list(by_number.values())
    return Dialogues(dialogues, fingerprint([{"turns": turns} for turns in dialogues]))


# ---------------------------------------------------------------- texts

_APART = {mark: f" {mark}" for mark in ".,?!"} | {"'": " ' "}
"""A mark → itself as a word of its own."""
_ENDS = ("?", ".", "!")
_CLOSED = tuple("!.?)\"'")


def tidied(turn: str, corrected: bool = False) -> str:
    """A turn as ParlAI writes it: lower case but for the beginnings of sentences and `I`, marks set close, a period at the end.

    >>> tidied("WHAT is this ? i  think it 's fine")
    "What is this? I think it's fine."
    """
    text = turn.lower()
    for mark, apart in _APART.items():
        text = text.replace(mark, apart).replace("  ", " ")
    words = text.split() if corrected else text.split(" ")
    # An empty word stands between two blanks; the first one ends no sentence, whatever it is.
    behind = ("", *_ENDS)
    capital = [at == 0 or word == "i" or (at > 1 and words[at - 1] in behind) for at, word in enumerate(words)]
    text = " ".join(word[:1].upper() + word[1:] if large else word for word, large in zip(words, capital, strict=True))
    text = f" {text} "
    for mark, apart in _APART.items():
        text = text.replace(apart, mark)
    text = text.strip().replace("  ", " ")
    return text if not text or text.endswith(_CLOSED) else f"{text}."


def prompt(turns: Sequence[str], corrected: bool = False) -> str:
    r"""What a reply to some turns is asked by.

    >>> prompt(["hello", "who are you"])
    'User 1: Hello.\nUser 2: Who are you.\nUser 1:'
    """
    lines = [f"User {1 + at % 2}: {tidied(turn, corrected)}" for at, turn in enumerate(turns)]
    return "\n".join([*lines, f"User {1 + len(turns) % 2}:"])


def reply(answer: str) -> str:
    r"""What an answer says before the next speaker's line.

    >>> reply("I am Ann.\nUser 1: Ah."), reply("User 1: Ah.")
    ('I am Ann.', '')
    """
    return re.split(r"(?:^|\n)User ", answer, maxsplit=1)[0]


def _cut(text: str, tokenizer: PreTrainedTokenizerBase, corrected: bool) -> str:
    """A text of at most `LONGEST` tokens."""
    from harness.data.rows import token_ids

    (ids,) = token_ids(tokenizer, [text])
    if len(ids) <= LONGEST:
        return text
    kept = ids[-LONGEST:] if corrected else ids[:LONGEST]
    return str(tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))


# ---------------------------------------------------------------- the evaluator


def _sets(plan: EvalPlan) -> Mapping[str, Dialogues | str]:
    return read_sets(plan.data_dir) if _over_sets.asks(plan) else {}


def _turns(plan: EvalPlan) -> dict[str, Sequence[Sequence[str]]]:
    return {name: of.turns[: plan.limit] for name, of in _sets(plan).items() if isinstance(of, Dialogues)}


def _inputs(plan: EvalPlan) -> Mapping[str, JSON]:
    """The digests of the sets that are there."""
    return {name: of.digest for name, of in _sets(plan).items() if isinstance(of, Dialogues)}


def _requests(plan: EvalPlan, tokenizer: PreTrainedTokenizerBase) -> list[GenerationRequest]:
    """A greedy reply to each dialogue, set by set."""
    corrected = plan.variant == "corrected"
    prompts = [prompt(turns[:-1], corrected) for dialogues in _turns(plan).values() for turns in dialogues]
    return [GenerationRequest((_cut(text, tokenizer, corrected),), Sampling(REPLY)) for text in prompts]


@evaluator("dialogue", version=1, metrics=METRICS, requests=_requests, evaluator_inputs=_inputs)
def measure(context: EvalContext, metric: Metric) -> Rows | list[Rows]:
    """Each reply's F1, of a set or of all sets that are there."""
    _over_sets.check_asked(context)
    table = context.table(TABLE, _build)
    missing = {name: of for name, of in _sets(context.plan).items() if isinstance(of, str)}
    return _over_sets.measured(table, metric, SETS, "reply_f1", missing)


def _build(context: EvalContext) -> pd.DataFrame:
    """One row per dialogue: `reply_f1`."""
    import pandas as pd

    sets, corrected = _turns(context.plan), context.plan.variant == "corrected"
    if not sets:
        raise LookupError(f"none of the {len(SETS)} sets is there; the first one: {next(iter(_sets(context.plan).values()))}")
    answers = iter([context.generations[request] for request in _requests(context.plan, context.tokenizer)])
    return pd.DataFrame(
        [
            {
                "task": name,
                "row": number,
                "cluster": str(number),
                "reply_f1": token_f1(reply(next(answers)), tidied(turns[-1], corrected)),
            }
            for name, dialogues in sets.items()
            for number, turns in enumerate(dialogues)
        ]
    )
