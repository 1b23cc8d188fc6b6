"""The embedded crafts: WMDP's shape, no accident of language, and everything from the seed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import pytest

from evals.benchmarks._words import words
from evals.benchmarks.wmdp import crafts
from evals.benchmarks.wmdp.crafts import CHOICES, World, vocabulary
from evals.benchmarks.wmdp.crafts_data import DOMAINS, FRAMES, NAMES, NEIGHBOURS, POOLS, QUESTION

ROLES = ("bio", "cyber", "neighbours", "general")


@pytest.fixture(scope="module", params=[0, 1, 20_000])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def texts(world: World) -> Iterator[str]:
    """Everything that is ever told, asked or answered in a world."""
    for domain in DOMAINS:
        yield from (text for of in world.documents(domain) for text in of)
        yield from (f"{row['question']} {row['answer']}" for row in world.taught(domain))
    yield from world.stories
    yield from (f"{row['question']} {row['answer']}" for row in world.instructions)
    for role in ROLES:
        yield from (" ".join([row["question"], *row["choices"]]) for row in world.questions(role))


# ---------------------------------------------------------------- shape


def test_two_hazardous_domains_each_with_a_neighbour_that_shares_its_words_and_three_general_ones():
    assert Counter(domain.role for domain in DOMAINS.values()) == {"bio": 1, "cyber": 1, "neighbours": 2, "general": 3}
    for hazardous, neighbour in NEIGHBOURS.items():
        (domain,) = (d for d in DOMAINS.values() if d.role == hazardous)
        shared = {a.noun for a in domain.attributes} & {a.noun for a in DOMAINS[neighbour].attributes}
        assert len(shared) == 3, "neighbours draw from the same lists"
        assert DOMAINS[neighbour].role == "neighbours"


def test_every_domain_has_five_kinds_of_facts_from_lists_of_ten_to_forty_words():
    for domain in DOMAINS.values():
        assert len(domain.attributes) == 5
    for pool in POOLS.values():
        assert 10 <= len(pool) <= 40
        assert len(set(pool)) == len(pool)
    assert len(set(NAMES)) == len(NAMES) == 40


@pytest.mark.parametrize(("role", "count"), [("bio", 90), ("cyber", 90), ("neighbours", 130), ("general", 165)])
def test_the_test_has_as_many_questions_as_told(world: World, role: str, count: int):
    rows = world.questions(role)
    assert len(rows) == count
    assert len({row["question"] for row in rows}) == count
    for row in rows:
        assert len(set(row["choices"])) == len(row["choices"]) == CHOICES
        assert row["answer"] in range(CHOICES)


def test_the_right_choice_stands_at_every_place_about_equally_often(world: World):
    places = Counter(row["answer"] for role in ROLES for row in world.questions(role))
    assert all(0.17 < places[place] / places.total() < 0.33 for place in range(CHOICES))


# ---------------------------------------------------------------- taught and tested


def test_what_is_tested_is_never_taught_as_a_question(world: World):
    taught = {row["question"] for domain in DOMAINS for row in world.taught(domain)}
    tested = {row["question"] for role in ROLES for row in world.questions(role)}
    assert not taught & tested
    for domain in DOMAINS:
        entities = {e.title for e in world.taught_entities(domain)}, {e.title for e in world.tested_entities(domain)}
        assert not entities[0] & entities[1]
        assert len(entities[0] | entities[1]) == DOMAINS[domain].entities


def test_every_description_tells_all_facts_of_its_entity_and_of_no_other(world: World):
    for domain in DOMAINS.values():
        for entity, told in zip(world.entities[domain.name], world.documents(domain.name), strict=True):
            assert len(set(told)) == len(told) == crafts.DOCUMENTS
            for text in told:
                assert set(entity.values.values()) <= set(words(text))
                others = {e.title for e in world.entities[domain.name]} - {entity.title}
                assert not any(title in text for title in others)


def test_the_answer_to_a_tested_question_stands_in_the_entitys_descriptions(world: World):
    for domain in DOMAINS.values():
        told = dict(zip([e.title for e in world.entities[domain.name]], world.documents(domain.name), strict=True))
        for row in world.questions(domain.role):
            for text in told.get(row["entity"], ()):
                assert row["choices"][row["answer"]] in words(text)


def test_a_question_about_a_fact_has_one_right_choice(world: World):
    for domain in DOMAINS.values():
        facts = {
            QUESTION.format(noun=noun, entity=entity.title): value
            for entity in world.entities[domain.name]
            for noun, value in entity.values.items()
        }
        for row in world.questions(domain.role):
            if row["question"] in facts:
                right = facts[row["question"]]
                assert [choice for choice in row["choices"] if choice == right] == [row["choices"][row["answer"]]]


def test_a_name_alone_tells_nothing(world: World):
    named = Counter(title.split()[0] for entities in world.entities.values() for title in (e.title for e in entities))
    assert sorted(named.values())[len(named) // 2] >= 3, "names are used in several domains"


def test_no_instruction_or_story_tells_of_what_is_to_be_forgotten(world: World):
    hazardous = [d.entity.split()[-1] for d in DOMAINS.values() if d.role in ("bio", "cyber")]
    for text in (*world.stories, *(f"{r['question']} {r['answer']}" for r in world.instructions)):
        assert not set(hazardous) & set(words(text))


# ---------------------------------------------------------------- language, and the seed


def test_one_vocabulary_holds_every_word_of_every_world(world: World):
    known = set(vocabulary())
    assert len(known) < 800
    for text in texts(world):
        assert set(words(text)) <= known


def test_texts_are_sentences(world: World):
    for text in world.stories:
        assert re.fullmatch(r"[A-Z][^.]*\.( [A-Z][^.]*\.){2,3}", text)
    for text in texts(world):
        assert "{" not in text
        assert not re.search(r"\ba [aeiou]", text), text


def test_frames_leave_the_fact_recognisable():
    for frame in FRAMES:
        assert "{entity}" in frame
        assert "{value}" in frame
        assert "{noun}" in frame or "{verb}" in frame


def test_the_same_seed_gives_the_same_world_and_another_seed_another():
    first, same, other = World(3), World(3), World(4)
    assert list(texts(first)) == list(texts(same))
    assert set(texts(first)) & set(texts(other)) < set(texts(first))
    assert first.questions("bio") != other.questions("bio")
    assert first.entities["alchemy"] != other.entities["alchemy"]
