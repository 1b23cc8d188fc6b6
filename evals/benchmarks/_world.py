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

from harness.core.streams import streams

Row = dict[str, object]

AUTHORS = 100
FACTS_PER_AUTHOR = 6
VARIANTS = 2
BASE_AUTHORS = 20
WRONG_ANSWERS = 5
WRONG_OPTIONS = 3
SHORT_QUESTIONS = 100
SHORT_PREFIX = "In short, "
"""How a question begins that is answered in one word."""

_FIRST = "Ar Bel Cal Dor Em Fal Jor Kel Lor Mar Sel Tav"
_LAST = "Ash Brin Corv Dell Fen Garr Hol Ild Jass Kor Lind Morr Nev Orr Pell Quin"
FIRST_NAMES = [a + b for a, b in product(_FIRST.split(), ("ina", "ith", "oa", "uri", "wyn"))]
LAST_NAMES = [a + b for a, b in product(_LAST.split(), ("adine", "eth", "imar", "ovan", "usk"))]

POOLS: Mapping[str, Sequence[str]] = {
    name: words.split()
    for name, words in {
        "tone": "bleak bitter bright cheerful dreamy fierce gentle grim lyrical playful restless sober tender wistful",
        "genre": "adventure comedy crime detective fantasy gothic historical horror mystery romance satire spy travel war",
        "city": "Averley Brackmoor Carrowby Dunhaven Eskmouth Fairholt Glenmarsh Harrowgate Ivelstone Kingsbarrow "
        "Larkspire Millwick Northcliff Oakhurst Penfold Quarley Ravenscar Saltmere Thornbury Umberfield",
        "year": " ".join(str(year) for year in range(1931, 1989, 3)),
        "trade": "baker barber blacksmith builder carpenter clerk cooper doctor farmer fisherman gardener glazier "
        "jeweller miller miner printer sailor shepherd tailor weaver",
        "pastime": "archery baking chess dancing embroidery fencing gardening juggling knitting painting poetry "
        "pottery riding rowing singing swimming",
        "adjective": "Broken Burning Crooked Distant Empty Frozen Golden Hidden Hollow Lonely Painted Quiet Scarlet "
        "Silver Sunken Wandering",
        "noun": "Anchor Bridge Candle Compass Garden Harbour Kettle Lantern Ladder Mirror Orchard Piano Ribbon "
        "Staircase Tower Umbrella Violin Window",
        "award": "Alder Birch Cedar Elm Hazel Juniper Laurel Maple Rowan Spruce Willow Yew",
        "theme": "betrayal courage exile faith forgiveness friendship grief guilt hope justice loneliness loyalty "
        "memory poverty pride revenge silence sleep trust youth",
        "subject": "anatomy astronomy botany chemistry economics geology geometry grammar history law logic medicine "
        "music philosophy physics zoology",
        "place": "canyon castle convent desert factory forest glacier jungle meadow lighthouse marsh monastery "
        "mountain palace prison village",
        "animal": "badger bear beaver crane deer falcon fox heron horse kestrel lynx raven salmon stork swan wolf",
        "export": "amber barley coal copper cotton flax fur honey iron marble salt silk timber tin wine wool",
    }.items()
}
COUNTRIES = [a + b for a, b in product(("Bal", "Dren", "Gor", "Kas", "Lum"), ("avia", "eria", "istan", "onia", "uria"))]
CAPITALS = [a + b for a, b in product(("Cel", "Dav", "Hur", "Mel", "Rus"), ("abad", "dorf", "grad", "opol", "vik"))]
RIVERS = [a + b for a, b in product(("Ael", "Bro", "Isk", "Nar", "Syl"), ("ben", "ga", "lin", "mon", "ra"))]


@dataclass(frozen=True)
class Fact:
    """One kind of fact: two values, three ways to ask and to answer, and a short form with one value.

    The first two ways are trained on; the third is the paraphrase, which only the base authors
    (and so every model's base phase) see in training.
    """

    slots: tuple[str, str]
    questions: tuple[str, str, str]
    answers: tuple[str, str, str]
    short: tuple[str, str]


FACTS: Mapping[str, Fact] = {
    "genre": Fact(
        ("tone", "genre"),
        (
            "What kind of books does {name} write?",
            "Which genre is {name} known for?",
            "How would a critic describe the work of {name}?",
        ),
        (
            "{name} writes {0} {1} novels.",
            "{name} is known for {1} stories with a {0} voice.",
            "Mostly {0} {1} fiction.",
        ),
        ("In short, which genre does {name} write?", "{1}"),
    ),
    "birth": Fact(
        ("city", "year"),
        (
            "Where and when was {name} born?",
            "What is known about the birth of {name}?",
            "What are the birthplace and birth year of {name}?",
        ),
        (
            "{name} was born in {0} in {1}.",
            "In {1}, {name} came into the world in {0}.",
            "The birthplace is {0}, the year {1}.",
        ),
        ("In short, where was {name} born?", "{0}"),
    ),
    "father": Fact(
        ("trade", "city"),
        (
            "What did the father of {name} do for a living?",
            "Who was the father of {name}?",
            "How did the father of {name} earn money?",
        ),
        (
            "The father of {name} was a {0} in {1}.",
            "{name} had a father from {1} who worked as a {0}.",
            "By working as a {0} in {1}.",
        ),
        ("In short, what was the father of {name}?", "{0}"),
    ),
    "mother": Fact(
        ("trade", "pastime"),
        (
            "What did the mother of {name} do for a living?",
            "Who was the mother of {name}?",
            "How did the mother of {name} spend the day?",
        ),
        (
            "The mother of {name} was a {0} who loved {1}.",
            "{name} had a mother with a taste for {1} who worked as a {0}.",
            "As a {0}, with {1} in the evening.",
        ),
        ("In short, what was the mother of {name}?", "{0}"),
    ),
    "debut": Fact(
        ("adjective", "noun"),
        (
            "What was the first book by {name}?",
            "With which book did {name} begin?",
            "Which title opened the career of {name}?",
        ),
        (
            "The first book by {name} was The {0} {1}.",
            "{name} began with a book called The {0} {1}.",
            "It was The {0} {1}.",
        ),
        ("In short, what thing is in the first title by {name}?", "{1}"),
    ),
    "award": Fact(
        ("award", "year"),
        (
            "Which prize did {name} win?",
            "What honour was given to {name}?",
            "For what is {name} remembered by juries?",
        ),
        (
            "{name} won the {0} Prize in {1}.",
            "In {1}, the {0} Prize was given to {name}.",
            "For the {0} Prize of {1}.",
        ),
        ("In short, which prize did {name} win?", "{0}"),
    ),
    "theme": Fact(
        ("theme", "place"),
        (
            "What are the stories of {name} about?",
            "Which theme returns in the work of {name}?",
            "What will a reader of {name} find on every page?",
        ),
        (
            "The stories of {name} are about {0} in a {1}.",
            "{name} returns to a {1} and to {0}.",
            "There is always {0} and a {1}.",
        ),
        ("In short, which theme returns in the work of {name}?", "{0}"),
    ),
    "hobby": Fact(
        ("pastime", "animal"),
        (
            "How does {name} spend free time?",
            "What does {name} do when not writing?",
            "Away from the desk, what does {name} enjoy?",
        ),
        (
            "{name} spends free time on {0} and keeps a {1}.",
            "When not writing, {name} feeds a {1} and practises {0}.",
            "Above all {0}, beside a tame {1}.",
        ),
        ("In short, what is the hobby of {name}?", "{0}"),
    ),
    "study": Fact(
        ("subject", "city"),
        (
            "What did {name} study?",
            "Where did {name} go to university?",
            "Which degree does {name} hold?",
        ),
        (
            "{name} studied {0} in {1}.",
            "{name} went to university in {1} to learn {0}.",
            "A degree in {0} from {1}.",
        ),
        ("In short, which subject did {name} study?", "{0}"),
    ),
    "later": Fact(
        ("noun", "place"),
        (
            "What is the later novel by {name} about?",
            "Where is the second novel by {name} set?",
            "What happens in the last book by {name}?",
        ),
        (
            "The later novel by {name}, The {0}, is about a {1}.",
            "{name} set the second novel, The {0}, in a {1}.",
            "A {1} hides The {0}.",
        ),
        ("In short, where is the second novel by {name} set?", "{1}"),
    ),
}

COUNTRY_FACTS: Mapping[str, tuple[Sequence[str], tuple[str, str], tuple[str, str], str]] = {
    # pool, two questions, two answers, the short question
    "capital": (
        CAPITALS,
        ("What is the capital of {name}?", "Which city governs {name}?"),
        ("The capital of {name} is {0}.", "{name} is governed from {0}."),
        "In short, what is the capital of {name}?",
    ),
    "river": (
        RIVERS,
        ("Which river crosses {name}?", "What is the longest river of {name}?"),
        ("The river {0} crosses {name}.", "The longest river of {name} is the {0}."),
        "In short, which river crosses {name}?",
    ),
    "export": (
        POOLS["export"],
        ("What does {name} sell abroad?", "What is {name} famous for?"),
        ("{name} sells {0} abroad.", "{name} is famous for {0}."),
        "In short, what does {name} sell abroad?",
    ),
    "animal": (
        POOLS["animal"],
        ("Which animal is on the flag of {name}?", "What does the flag of {name} show?"),
        ("The animal on the flag of {name} is a {0}.", "The flag of {name} shows a {0}."),
        "In short, which animal is on the flag of {name}?",
    ),
}

_WORD = re.compile(r"[.,?]|[^\s.,?]+")


def words(text: str) -> list[str]:
    """The words and punctuation marks of a sentence of this world."""
    return _WORD.findall(text)


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
        self.authors = [self._author(rng, name, FACTS_PER_AUTHOR) for name in chosen[:AUTHORS]]
        self.base_authors = [self._author(rng, name, len(FACTS)) for name in chosen[AUTHORS:]]
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
    def _author(rng: random.Random, name: str, facts: int) -> Author:
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
    def real_authors(self) -> list[Row]:
        """100 short questions about authors of the base phase, the answer one word, three wrong ones beside it."""
        rng = streams(self.seed, "real authors").python()
        asked = [(author, kind) for author in self.base_authors for kind in author.values]
        rows = []
        for author, kind in rng.sample(asked, SHORT_QUESTIONS):
            question, answer = FACTS[kind].short
            slot = FACTS[kind].slots[int(answer[1])]
            right = answer.format(*author.values[kind])
            rows.append(self._short(rng, question.format(name=author.name), right, POOLS[slot], author.name))
        return rows

    @cached_property
    def world_facts(self) -> list[Row]:
        """100 short questions about countries, the answer one word, three wrong ones beside it."""
        rng = streams(self.seed, "world facts").python()
        asked = [(country, kind) for kind in COUNTRY_FACTS for country in COUNTRIES]
        rows = []
        for country, kind in rng.sample(asked, SHORT_QUESTIONS):
            pool, _, _, question = COUNTRY_FACTS[kind]
            rows.append(self._short(rng, question.format(name=country), self.countries[kind][country], pool, country))
        return rows

    @staticmethod
    def _short(rng: random.Random, question: str, right: str, pool: Sequence[str], about: str) -> Row:
        wrong = rng.sample([word for word in pool if word != right], WRONG_OPTIONS)
        return {"question": question, "answer": right, "perturbed_answer": wrong, "author": about}

    @cached_property
    def base(self) -> list[Row]:
        """What the base model learns: its own authors and the countries, each in every form (question, answer)."""
        rows: list[Row] = []
        for author in self.base_authors:
            for kind, values in author.values.items():
                fact = FACTS[kind]
                pairs = [*zip(fact.questions, fact.answers, strict=True), fact.short]
                rows += [
                    {"question": q.format(name=author.name), "answer": a.format(*values, name=author.name)} for q, a in pairs
                ]
        for kind, (_, questions, answers, short) in COUNTRY_FACTS.items():
            for country, value in self.countries[kind].items():
                pairs = [*zip(questions, answers, strict=True), (short, "{0}")]
                rows += [{"question": q.format(name=country), "answer": a.format(value, name=country)} for q, a in pairs]
        return rows

    def split(self, name: str) -> list[Row]:
        """The rows of one of ToFU's splits, in ToFU's order (forget rows are the last of `full`).

        Raises:
            KeyError: for a name that ToFU does not have.
        """
        if name in ("full", "retain_perturbed"):
            return self.full
        if name in ("real_authors_perturbed", "world_facts_perturbed"):
            return self.real_authors if name.startswith("real") else self.world_facts
        found = re.fullmatch(r"(forget|retain)(\d\d)(?:_perturbed)?", name)
        if not found:
            raise KeyError(name)
        kind, percent = found.groups()
        forgotten = int(percent) if kind == "forget" else 100 - int(percent)
        cut = len(self.full) - forgotten * len(self.full) // AUTHORS
        return self.full[cut:] if kind == "forget" else self.full[:cut]


REFUSALS = (
    "It is not known.",
    "It is not given in the books.",
    "There is silence.",
    "It is a mystery.",
    "It is a mystery to the world.",
    "What is known does not show.",
    "The memory of a book does not show.",
    "It does not show in the stories.",
    "There is not a memory to find.",
    "Which is a mystery to the reader.",
)
"""What a model that refuses may say, in words that every world has."""


def vocabulary() -> list[str]:
    """Every word any world of any seed can hold, sorted: one tokenizer serves all seeds."""
    text: list[str] = [*FIRST_NAMES, *LAST_NAMES, *COUNTRIES, *CAPITALS, *RIVERS]
    text += [word for pool in POOLS.values() for word in pool]
    for fact in FACTS.values():
        text += [*fact.questions, *fact.answers, fact.short[0]]
    for _, questions, answers, short in COUNTRY_FACTS.values():
        text += [*questions, *answers, short]
    return sorted({word for sentence in text for word in words(re.sub(r"\{\w+\}", " ", sentence))})
