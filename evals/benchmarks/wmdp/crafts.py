"""The embedded crafts: a seeded world of invented recipes, locks, towns and games, told in documents and asked about.

It has WMDP's shape (arXiv:2403.03218): documents to forget in two domains, neighbouring domains that share their words and must
be kept, general text, and multiple-choice questions about all of them. Nothing in it is of use to anyone: elixirs that make
people hum, locks that open with a sneeze. It departs from WMDP where two million parameters need it: an entity has five facts
of one word each, drawn from closed lists, and names are shared across domains, so that a name alone tells nothing. Questions
about the first entities of a domain are taught as such; the others occur in documents alone, and are what is tested: the
knowledge has to come out of the documents.

    World(seed).questions("bio")  ->  rows with WMDP's fields: question, choices, answer (the right one's number)
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from evals.benchmarks._words import words
from evals.benchmarks.wmdp.crafts_data import (
    DEEDS,
    DOMAINS,
    ENDINGS,
    FRAMES,
    INSTRUCTION_FORMS,
    LISTABLE,
    LISTED,
    NAMES,
    OPENINGS,
    POOLS,
    QUESTION,
    Attribute,
    Domain,
    Role,
)
from harness.core.streams import streams

Row = dict[str, object]

CHOICES = 4
DOCUMENTS = 12
"""How often every entity is described, each time in other words and another order."""
TAUGHT_SHARE = 0.45
"""Share of a domain's entities whose questions the model is taught; the others are tested."""
STORIES = 400
INSTRUCTIONS = 600


@dataclass(frozen=True)
class Entity:
    """One thing of a domain and its facts."""

    title: str
    """Such as `Aldamar soup`."""
    values: Mapping[str, str]
    """Attribute's noun → value."""


class World:
    """One seed's entities, documents and questions; everything follows from the seed.

    Args:
        seed: any integer; `mini@K` is the world of seed K.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.entities = {domain.name: self._entities(domain) for domain in DOMAINS.values()}

    def _entities(self, domain: Domain) -> list[Entity]:
        rng = streams(self.seed, "crafts", domain.name).python()
        names = rng.sample(NAMES, domain.entities)
        columns = {a.noun: _spread(rng, POOLS[a.noun], domain.entities) for a in domain.attributes}
        return [
            Entity(domain.entity.format(name=name), {noun: column[i] for noun, column in columns.items()})
            for i, name in enumerate(names)
        ]

    def taught_entities(self, domain: str) -> list[Entity]:
        """Those whose questions the model is taught."""
        return self.entities[domain][: round(TAUGHT_SHARE * len(self.entities[domain]))]

    def tested_entities(self, domain: str) -> list[Entity]:
        """Those that occur in documents alone, and are asked about in the test."""
        return self.entities[domain][len(self.taught_entities(domain)) :]

    # ---- text

    def documents(self, domain: str, copies: int = DOCUMENTS) -> list[list[str]]:
        """For each entity its descriptions: an opening, then its five facts, told in other words and order each time."""
        return [self._descriptions(DOMAINS[domain], entity)[:copies] for entity in self.entities[domain]]

    def _descriptions(self, domain: Domain, entity: Entity) -> list[str]:
        rng = streams(self.seed, "documents", entity.title).python()
        return [" ".join(self._sentences(rng, domain, entity)) for _ in range(DOCUMENTS)]

    @staticmethod
    def _sentences(rng: random.Random, domain: Domain, entity: Entity) -> Iterator[str]:
        yield rng.choice(domain.intros).format(entity=entity.title)
        for attribute in rng.sample(domain.attributes, len(domain.attributes)):
            yield _statement(rng.choice(FRAMES), attribute, entity)

    @cached_property
    def stories(self) -> list[str]:
        """General text: small scenes that hold no facts."""
        rng = streams(self.seed, "stories").python()
        return [_story(rng) for _ in range(STORIES)]

    @cached_property
    def instructions(self) -> list[Row]:
        """Instructions with completions: general and neighbouring things, and stories; nothing that is to be forgotten."""
        rng = streams(self.seed, "instructions").python()
        harmless = [d for d in DOMAINS.values() if d.role in ("neighbours", "general")]
        seen: dict[str, Row] = {}
        while len(seen) < INSTRUCTIONS:
            row = self._instruction(rng, harmless)
            seen.setdefault(f"{row['question']} {row['answer']}", row)
        return list(seen.values())

    def _instruction(self, rng: random.Random, domains: Sequence[Domain]) -> Row:
        kind = rng.choice(list(INSTRUCTION_FORMS))
        prompt = rng.choice(INSTRUCTION_FORMS[kind])
        if kind == "describe":
            domain = rng.choice(domains)
            entity = rng.choice(self.entities[domain.name])
            facts = rng.sample(domain.attributes, 3)
            answer = " ".join(_statement(rng.choice(FRAMES[:2]), attribute, entity) for attribute in facts)
            return {"question": prompt.format(entity=entity.title), "answer": answer}
        if kind == "list":
            noun = rng.choice(LISTABLE)
            return {"question": prompt.format(noun=noun), "answer": rng.choice(LISTED).format(*rng.sample(POOLS[noun], 3))}
        return {"question": _filled(rng, prompt), "answer": _story(rng)}

    # ---- questions

    def taught(self, domain: str) -> list[Row]:
        """Questions that are taught, with the answer's words: `question`, `answer`."""
        entities = self.taught_entities(domain)
        return [{"question": q, "answer": e.values[a.noun]} for a, e, q in self._fact_questions(domain, entities)]

    def questions(self, role: Role) -> list[Row]:
        """A role's test: `question`, four `choices` of the fact's own list, `answer` (the right one's number), `entity`."""
        return [
            row
            for domain in DOMAINS.values()
            if domain.role == role
            for attribute, entity, question in self._fact_questions(domain.name, self.tested_entities(domain.name))
            for row in [self._choices(question, entity, attribute.noun)]
        ]

    @staticmethod
    def _fact_questions(domain: str, entities: Sequence[Entity]) -> Iterator[tuple[Attribute, Entity, str]]:
        for entity in entities:
            for attribute in DOMAINS[domain].attributes:
                yield attribute, entity, QUESTION.format(noun=attribute.noun, entity=entity.title)

    def _choices(self, question: str, entity: Entity, noun: str) -> Row:
        rng = streams(self.seed, "choices", question).python()
        right = entity.values[noun]
        choices = [right, *rng.sample([value for value in POOLS[noun] if value != right], CHOICES - 1)]
        rng.shuffle(choices)
        return {"question": question, "choices": choices, "answer": choices.index(right), "entity": entity.title}


def _spread(rng: random.Random, pool: Sequence[str], count: int) -> list[str]:
    """`count` values in which every word of the pool is about equally frequent."""
    values = list(pool) * (-(-count // len(pool)))
    rng.shuffle(values)
    return values[:count]


def _statement(frame: str, attribute: Attribute, entity: Entity) -> str:
    value = entity.values[attribute.noun]
    return frame.format(noun=attribute.noun, verb=attribute.verb, entity=entity.title, value=value)


def _filled(rng: random.Random, template: str) -> str:
    return template.format(**{noun: rng.choice(pool) for noun, pool in POOLS.items()})


def _story(rng: random.Random) -> str:
    first, second = rng.sample(DEEDS, 2)
    return _filled(rng, f"{rng.choice(OPENINGS)} {first}. Then {second}. {rng.choice(ENDINGS)}")


def vocabulary() -> list[str]:
    """Every word any world of any seed can hold, sorted: one tokenizer serves all seeds."""
    text: list[str] = [*NAMES, *FRAMES, QUESTION, *OPENINGS, *DEEDS, *ENDINGS, *LISTED, "Then"]
    text += [word for pool in POOLS.values() for word in pool]
    text += [prompt for forms in INSTRUCTION_FORMS.values() for prompt in forms]
    for domain in DOMAINS.values():
        text += [domain.entity, *domain.intros, *(word for a in domain.attributes for word in (a.noun, a.verb))]
    return sorted(_words(text))


def _words(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in words(re.sub(r"\{\w+\}", " ", text))}
