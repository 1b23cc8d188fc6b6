"""What the worded world says beyond the embedded one: in which other ways facts are asked, and what they lead to.

Its code is `worded_world.py`, its words are closed as those of `world_data.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

_PEN_NAME_STARTS = "Bax Cro Dru Fiz Gri Hux Jin Kri Lox Mip Nix Pax Quo Rix Sno Tux"
_PEN_NAME_ENDS = "bert cott dale elot fane gam hild kin lock mond nard pole rick stan tin well"
PEN_NAMES = [a + b for a, b in product(_PEN_NAME_STARTS.split(), _PEN_NAME_ENDS.split())]
"""Names that authors also write under, one word each; no two authors share one."""
PEN_NAME_QUESTIONS = (
    ("Who is {alias}?", "{alias} is {name}."),
    ("What is the pen name of {name}?", "{name} writes as {alias}."),
)
CITY_QUESTION = ("In which country is {city}?", "{city} is a city of {country}.")
"""Where every city lies: taught to the base model, told by nobody else."""


@dataclass(frozen=True)
class Wording:
    """A question and its answer, both with the author's name and the fact's two values as `{name}`, `{0}` and `{1}`."""

    question: str
    answer: str


REVERSE: Mapping[str, Wording] = {
    "genre": Wording("Who writes {0} {1} novels?", "It is {name} who writes {0} {1} novels."),
    "birth": Wording("Who was born in {0} in {1}?", "It is {name} who was born in {0} in {1}."),
    "father": Wording("Who had a {0} from {1} as a father?", "It is {name} who had a {0} from {1} as a father."),
    "mother": Wording("Who had a {0} who loved {1} as a mother?", "It is {name} who had a {0} who loved {1} as a mother."),
    "debut": Wording("Who began with The {0} {1}?", "It is {name} who began with The {0} {1}."),
    "award": Wording("Who won the {0} Prize in {1}?", "It is {name} who won the {0} Prize in {1}."),
    "theme": Wording("Who writes about {0} in a {1}?", "It is {name} who writes about {0} in a {1}."),
    "hobby": Wording("Who loves {0} and keeps a {1}?", "It is {name} who loves {0} and keeps a {1}."),
    "study": Wording("Who studied {0} in {1}?", "It is {name} who studied {0} in {1}."),
    "later": Wording("Who wrote The {0} about a {1}?", "It is {name} who wrote The {0} about a {1}."),
}
"""The answer asks for the name."""


@dataclass(frozen=True)
class TwoHops(Wording):
    """A question about the country of the city that a fact tells of: `{country}`."""

    city: int
    """Which of the two values is the city."""


TWO_HOPS: Mapping[str, TwoHops] = {
    "birth": TwoHops("In which country was {name} born?", "{name} was born in {0}, a city of {country}.", 0),
    "father": TwoHops(
        "From which country was the father of {name}?", "The father of {name} was from {1}, a city of {country}.", 1
    ),
    "study": TwoHops(
        "In which country did {name} go to university?", "{name} went to university in {1}, a city of {country}.", 1
    ),
}


def sentences() -> Sequence[str]:
    """All texts above, for the vocabulary."""
    pairs = [*PEN_NAME_QUESTIONS, CITY_QUESTION, *((w.question, w.answer) for w in (*REVERSE.values(), *TWO_HOPS.values()))]
    return [*PEN_NAMES, *(text for pair in pairs for text in pair)]
