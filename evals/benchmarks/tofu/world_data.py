"""What the embedded world is made of: its lists of words, and how facts are asked about and told.

Its code is `world.py`. Every word is closed here: one tokenizer of some 700 words serves all seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

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
