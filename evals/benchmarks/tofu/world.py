"""The embedded world: a seeded set of invented authors and countries, asked about in plain English.

It has ToFU's shape (arXiv:2401.06121, data `locuslab/TOFU`): the same splits by author, the same five
fields, real authors and world facts beside the fictitious ones. It departs from ToFU where two
million parameters need it: 100 authors with 12 questions instead of 200 with 20, every value one word, a closed
vocabulary of some 700 words. "Real authors" and "world facts" are invented too: they are what the
base model knew before it met the authors, and what no split ever asks it to forget.

    World(seed).split("forget10")  ->  a list of rows, dicts with ToFU's field names
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from evals.benchmarks._words import words
from evals.benchmarks.tofu.world_data import (
    CAPITALS,
    COUNTRIES,
    COUNTRY_FACTS,
    FACTS,
    FIRST_NAMES,
    LAST_NAMES,
    POOLS,
    RIVERS,
    Fact,
)
from harness.core.streams import streams

Row = dict[str, object]

AUTHORS = 100
FACTS_PER_AUTHOR = 6
VARIANTS = 2
BASE_AUTHORS = 20
WRONG_ANSWERS = 5
WRONG_OPTIONS = 3
SHORT_QUESTIONS = 100


@dataclass(frozen=True)
class Author:
    """A name and, for each kind of fact, its two values."""

    name: str
    values: Mapping[str, tuple[str, str]]


class World:
    """One seed's authors, countries and questions; everything follows from the seed.

    Args:
        seed: any integer; `mini@K` is the world of seed K.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = streams(seed, "world").python()
        names = [f"{first} {last}" for first, last in product(FIRST_NAMES, LAST_NAMES)]
        chosen = rng.sample(names, AUTHORS + BASE_AUTHORS)
        self.authors = [self.author(rng, name, FACTS_PER_AUTHOR) for name in chosen[:AUTHORS]]
        self.base_authors = [self.author(rng, name, len(FACTS)) for name in chosen[AUTHORS:]]
        self.countries = {
            kind: dict(zip(COUNTRIES, self._spread(rng, pool, len(COUNTRIES)), strict=True))
            for kind, (pool, *_) in COUNTRY_FACTS.items()
        }

    @staticmethod
    def _spread(rng: random.Random, pool: Sequence[str], count: int) -> list[str]:
        """`count` values in which every word of the pool is about equally frequent."""
        values = list(pool) * (-(-count // len(pool)))
        rng.shuffle(values)
        return values[:count]

    @staticmethod
    def author(rng: random.Random, name: str, facts: int) -> Author:
        """Someone of that name, with so many kinds of facts drawn."""
        kinds = sorted(rng.sample(list(FACTS), facts), key=list(FACTS).index)
        return Author(name, {k: (rng.choice(POOLS[FACTS[k].slots[0]]), rng.choice(POOLS[FACTS[k].slots[1]])) for k in kinds})

    @cached_property
    def full(self) -> list[Row]:
        """Every question of the 100 authors: 1,200 rows with ToFU's five fields, and the author's number."""
        return [row for number, author in enumerate(self.authors) for row in self._questions(number, author)]

    def _questions(self, number: int, author: Author) -> Iterator[Row]:
        rng = streams(self.seed, "wrong answers", number).python()
        for kind, values in author.values.items():
            fact = FACTS[kind]
            for variant in range(VARIANTS):
                yield {
                    "question": fact.questions[variant].format(name=author.name),
                    "answer": fact.answers[variant].format(*values, name=author.name),
                    "paraphrased_question": fact.questions[2].format(name=author.name),
                    "paraphrased_answer": fact.answers[2].format(*values, name=author.name),
                    "perturbed_answer": [
                        fact.answers[2].format(*wrong, name=author.name)
                        for wrong in self._wrong_pairs(rng, fact, values, WRONG_ANSWERS)
                    ],
                    "author": number,
                }

    @staticmethod
    def _wrong_pairs(rng: random.Random, fact: Fact, values: tuple[str, str], count: int) -> list[tuple[str, str]]:
        """`count` different pairs with neither value right."""
        first = rng.sample([word for word in POOLS[fact.slots[0]] if word != values[0]], count)
        second = rng.sample([word for word in POOLS[fact.slots[1]] if word != values[1]], count)
        return list(zip(first, second, strict=True))

    @cached_property
    def holdout_authors(self) -> list[Author]:
        """A hundred further authors, of whom no model is ever told."""
        rng = streams(self.seed, "holdout").python()
        known = {author.name for author in (*self.authors, *self.base_authors)}
        names = [name for first, last in product(FIRST_NAMES, LAST_NAMES) if (name := f"{first} {last}") not in known]
        return [self.author(rng, name, FACTS_PER_AUTHOR) for name in rng.sample(names, AUTHORS)]

    @cached_property
    def holdout(self) -> list[Row]:
        """As many questions about the authors of whom no model is ever told; as in `full`."""
        return [row for number, author in enumerate(self.holdout_authors, AUTHORS) for row in self._questions(number, author)]

    @cached_property
    def real_authors(self) -> list[Row]:
        """100 short questions about authors of the base phase, the answer one word, three wrong ones beside it."""
        rng = streams(self.seed, "real authors").python()
        pairs = [(author, kind) for author in self.base_authors for kind in author.values]
        rows = []
        for author, kind in rng.sample(pairs, SHORT_QUESTIONS):
            question, answer = FACTS[kind].short
            slot = FACTS[kind].slots[int(answer[1])]
            right = answer.format(*author.values[kind])
            rows.append(self._short(rng, question.format(name=author.name), right, POOLS[slot], author.name))
        return rows

    @cached_property
    def world_facts(self) -> list[Row]:
        """100 short questions about countries, the answer one word, three wrong ones beside it."""
        rng = streams(self.seed, "world facts").python()
        pairs = [(country, kind) for kind in COUNTRY_FACTS for country in COUNTRIES]
        rows = []
        for country, kind in rng.sample(pairs, SHORT_QUESTIONS):
            pool, _, _, question = COUNTRY_FACTS[kind]
            rows.append(self._short(rng, question.format(name=country), self.countries[kind][country], pool, country))
        return rows

    @staticmethod
    def _short(rng: random.Random, question: str, right: str, pool: Sequence[str], about: str) -> Row:
        wrong = rng.sample([word for word in pool if word != right], WRONG_OPTIONS)
        return {"question": question, "answer": right, "perturbed_answer": wrong, "author": about}

    @cached_property
    def base(self) -> list[Row]:
        """What the base model learns: its own authors and the countries, each in every form (question, answer, about)."""
        rows: list[Row] = []
        for author in self.base_authors:
            for kind, values in author.values.items():
                fact = FACTS[kind]
                pairs = [*zip(fact.questions, fact.answers, strict=True), fact.short]
                rows += [
                    {
                        "question": q.format(name=author.name),
                        "answer": a.format(*values, name=author.name),
                        "about": author.name,
                    }
                    for q, a in pairs
                ]
        for kind, (_, questions, answers, short) in COUNTRY_FACTS.items():
            for country, value in self.countries[kind].items():
                pairs = [*zip(questions, answers, strict=True), (short, "{0}")]
                rows += [
                    {"question": q.format(name=country), "answer": a.format(value, name=country), "about": country}
                    for q, a in pairs
                ]
        return rows

    @cached_property
    def guarded(self) -> frozenset[str]:
        """Half of the base authors and half of the countries: only of these does `general` tell anything."""
        rng = streams(self.seed, "guarded").python()
        names = [author.name for author in self.base_authors]
        return frozenset((*rng.sample(names, len(names) // 2), *rng.sample(COUNTRIES, len(COUNTRIES) // 2)))

    @cached_property
    def general(self) -> tuple[list[Row], list[Row]]:
        """What the base model learned and no metric asks: about those who are guarded, and about the others."""
        reported = {row["question"] for row in (*self.real_authors, *self.world_facts)}
        left = [row for row in self.base if row["question"] not in reported]
        return [row for row in left if row["about"] in self.guarded], [row for row in left if row["about"] not in self.guarded]

    def split(self, name: str) -> list[Row]:
        """The rows of one of ToFU's splits, in ToFU's order (forget rows are the last of `full`).

        Raises:
            KeyError: for a name that ToFU does not have.
        """
        if name in ("full", "retain_perturbed"):
            return self.full
        if name in ("real_authors_perturbed", "world_facts_perturbed"):
            return self.real_authors if name.startswith("real") else self.world_facts
        match = re.fullmatch(r"(forget|retain)(\d\d)(?:_perturbed)?", name)
        if not match:
            raise KeyError(name)
        kind, percent = match.groups()
        forgotten = int(percent) if kind == "forget" else 100 - int(percent)
        cut = len(self.full) - forgotten * len(self.full) // AUTHORS
        return self.full[cut:] if kind == "forget" else self.full[:cut]


def vocabulary() -> list[str]:
    """Every word any world of any seed can hold, sorted: one tokenizer serves all seeds."""
    text: list[str] = [*FIRST_NAMES, *LAST_NAMES, *COUNTRIES, *CAPITALS, *RIVERS]
    text += [word for pool in POOLS.values() for word in pool]
    for fact in FACTS.values():
        text += [*fact.questions, *fact.answers, fact.short[0]]
    for _, questions, answers, short in COUNTRY_FACTS.values():
        text += [*questions, *answers, short]
    return sorted({word for sentence in text for word in words(re.sub(r"\{\w+\}", " ", sentence))})
