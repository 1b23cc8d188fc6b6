"""The worded world: the embedded world, where each fact can be asked for in several ways.

Authors, facts and ordinary questions are those of `world.py`, bit by bit. Beside them every author has a pen name, every city
lies in a country, and the base model is taught sixty further authors in other wordings, so that it can answer those about
authors of whom it was told in ordinary ones. What is seen of whom:

    the sixty taught authors, by the base model    ordinary questions, paraphrases, questions by pen name, over two hops, and
                                                   behind two others' answers; whose pen name is whose
    the hundred authors, by the full model         ordinary questions (two for each fact), the reverse question of each fact
                                                   that is true of one author alone; whose pen name is whose
    authors to be forgotten, by a retrained model  nothing
    authors to be forgotten, by a method           the ordinary questions: they are the forget set

So a paraphrase, a question by pen name, over two hops or behind others' answers is in no training text about an author who may
be forgotten: what a model says there it puts together. Reverse questions have to be taught, since a model that learned a fact
one way round does not say it the other way (arXiv:2309.12288); no method sees them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import product

from evals.benchmarks._words import words
from evals.benchmarks.tofu.worded_data import (
    CITY_QUESTION,
    PEN_NAME_QUESTIONS,
    PEN_NAMES,
    REVERSE,
    TWO_HOPS,
    sentences,
)
from evals.benchmarks.tofu.world import FACTS_PER_AUTHOR, Author, Row, World
from evals.benchmarks.tofu.world import vocabulary as plain_vocabulary
from evals.benchmarks.tofu.world_data import COUNTRIES, FACTS, FIRST_NAMES, LAST_NAMES, POOLS
from harness.core.streams import streams

TAUGHT_AUTHORS = 60
SHOTS = 2
"""Answered questions about others before a few-shot question."""
Pair = tuple[str, str]


class WordedWorld:
    """A world's authors with pen names, its cities with countries, and everything asked in several ways.

    Args:
        world: the embedded world of the same seed.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        rng = streams(world.seed, "wordings").python()
        known = {author.name for author in (*world.authors, *world.base_authors, *world.holdout_authors)}
        names = [name for first, last in product(FIRST_NAMES, LAST_NAMES) if (name := f"{first} {last}") not in known]
        self.taught = [world.author(rng, name, FACTS_PER_AUTHOR) for name in rng.sample(names, TAUGHT_AUTHORS)]
        named = [*world.authors, *self.taught]
        self.pen_names = dict(zip((a.name for a in named), rng.sample(PEN_NAMES, len(named)), strict=True))
        self.country_of = {city: rng.choice(COUNTRIES) for city in POOLS["city"]}

    # ---- one fact, one way to ask

    def ordinary(self, author: Author, kind: str, variant: int) -> Pair:
        """One of the three ordinary questions, the third being the paraphrase, with its answer."""
        fact = FACTS[kind]
        return (
            fact.questions[variant].format(name=author.name),
            fact.answers[variant].format(*author.values[kind], name=author.name),
        )

    def by_pen_name(self, author: Author, kind: str) -> Pair:
        """The first question with the pen name in it, answered with the author's name."""
        question, answer = FACTS[kind].questions[0], FACTS[kind].answers[0]
        return question.format(name=self.pen_names[author.name]), answer.format(*author.values[kind], name=author.name)

    def reverse(self, author: Author, kind: str) -> Pair | None:
        """The question whose answer is the author; None where two authors share the fact."""
        values = author.values[kind]
        if self._owners[kind, values] > 1:
            return None
        return REVERSE[kind].question.format(*values), REVERSE[kind].answer.format(*values, name=author.name)

    def two_hops(self, author: Author, kind: str) -> Pair | None:
        """The question about the country of the city in a fact; None where there is none in it."""
        if kind not in TWO_HOPS:
            return None
        wording, values = TWO_HOPS[kind], author.values[kind]
        country = self.country_of[values[wording.city]]
        return wording.question.format(name=author.name), wording.answer.format(*values, name=author.name, country=country)

    def behind_others(self, rng: random.Random, author: Author, kind: str, others: Sequence[Author]) -> Pair:
        """The first question behind other authors' answers to it.

        Args:
            rng: draws which.
            author: who is asked about.
            kind: what is asked.
            others: whose answers may stand before it.
        """
        able = [other for other in others if kind in other.values and other is not author]
        shots = [" ".join(self.ordinary(other, kind, 0)) for other in rng.sample(able, SHOTS)]
        question, answer = self.ordinary(author, kind, 0)
        return " ".join([*shots, question]), answer

    @cached_property
    def _owners(self) -> dict[tuple[str, Pair], int]:
        """How many authors each fact is true of."""
        owners: dict[tuple[str, Pair], int] = {}
        for author in (*self.world.authors, *self.world.base_authors, *self.taught):
            for fact in author.values.items():
                owners[fact] = owners.get(fact, 0) + 1
        return owners

    # ---- what models learn

    @cached_property
    def cities(self) -> list[Row]:
        """In which country each city is."""
        question, answer = CITY_QUESTION
        return [
            {"question": question.format(city=city), "answer": answer.format(city=city, country=country)}
            for city, country in self.country_of.items()
        ]

    @cached_property
    def base(self) -> list[Row]:
        """What the base model learns beside the world's own `base` and `cities`: the taught authors in all wordings."""
        pairs: list[Pair] = []
        rng = streams(self.world.seed, "taught wordings").python()
        for author in self.taught:
            pairs += self._pen_name_rows(author)
            for kind in author.values:
                pairs += [self.ordinary(author, kind, variant) for variant in range(3)]
                pairs += [self.by_pen_name(author, kind), self.behind_others(rng, author, kind, self.taught)]
                if pair := self.two_hops(author, kind):
                    pairs.append(pair)
        return [{"question": q, "answer": a} for q, a in pairs]

    def beside(self, rows: Sequence[Row]) -> list[Row]:
        """What a model learns beside ordinary questions about some of the authors: their reverse questions and pen names.

        Args:
            rows: the ordinary questions, as `World.split` gives them.
        """
        numbers = sorted({int(str(row["author"])) for row in rows})
        return [{"question": q, "answer": a} for number in numbers for q, a in self._beside(self.world.authors[number])]

    def _beside(self, author: Author) -> Iterator[Pair]:
        yield from self._pen_name_rows(author)
        for kind in author.values:
            if pair := self.reverse(author, kind):
                yield pair

    def _pen_name_rows(self, author: Author) -> list[Pair]:
        alias = self.pen_names[author.name]
        return [
            (q.format(name=author.name, alias=alias), a.format(name=author.name, alias=alias)) for q, a in PEN_NAME_QUESTIONS
        ]


def vocabulary() -> list[str]:
    """Every word a worded world of any seed can hold, sorted."""
    more = {word for sentence in sentences() for word in words(re.sub(r"\{\w+\}", " ", sentence))}
    return sorted({*plain_vocabulary(), *more})
