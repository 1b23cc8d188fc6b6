"""The embedded world: ToFU's shape, no accident of language, and everything from the seed."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from evals.benchmarks._words import words
from evals.benchmarks.tofu.world import World, vocabulary
from evals.benchmarks.tofu.world_data import FACTS, POOLS, SHORT_PREFIX
from harness.core.benchmark import BENCHMARKS
from harness.core.options import Options

SEEDS = [0, 1, 20_000]
SPLITS = ("forget01", "forget05", "forget10", "retain90", "retain95", "retain99")


@pytest.fixture(scope="module", params=SEEDS)
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def texts(world: World) -> set[str]:
    """Everything that is ever asked or answered in a world."""
    found = set()
    for row in (*world.base, *world.full, *world.real_authors, *world.world_facts):
        for value in row.values():
            found |= {value} if isinstance(value, str) else set(value) if isinstance(value, list) else set()
    return found


# ---------------------------------------------------------------- ToFU's shape


def test_there_are_1200_rows_of_100_authors_with_tofus_fields(world: World):
    assert len(world.full) == 1200
    assert Counter(row["author"] for row in world.full) == dict.fromkeys(range(100), 12)
    fields = {"question", "answer", "paraphrased_question", "paraphrased_answer", "perturbed_answer", "author"}
    assert all(set(row) == fields for row in world.full)
    assert all(len(row["perturbed_answer"]) == 5 for row in world.full)


@pytest.mark.parametrize(("percent", "rows"), [(1, 12), (5, 60), (10, 120)])
def test_forget_and_retain_rows_are_whole_authors_and_together_everything(world: World, percent: int, rows: int):
    forget, retain = world.split(f"forget{percent:02d}"), world.split(f"retain{100 - percent}")
    assert len(forget) == rows
    assert len(retain) == 1200 - rows
    assert [*retain, *forget] == world.full
    assert {row["author"] for row in forget} == set(range(100 - percent, 100))
    assert {row["author"] for row in retain} == set(range(100 - percent))


def test_perturbed_splits_are_the_same_rows(world: World):
    for name in ("forget01", "forget05", "forget10"):
        assert world.split(f"{name}_perturbed") == world.split(name)
    assert world.split("retain_perturbed") == world.split("full") == world.full
    assert world.split("real_authors_perturbed") == world.real_authors
    assert world.split("world_facts_perturbed") == world.world_facts


def test_smaller_forget_sets_lie_inside_larger_ones(world: World):
    assert world.split("forget05")[-12:] == world.split("forget01")
    assert world.split("forget10")[-60:] == world.split("forget05")


@pytest.mark.parametrize("name", ["forget1", "nothing", "retain"])
def test_a_split_that_tofu_does_not_have_is_refused(name: str):
    with pytest.raises(KeyError):
        World(0).split(name)


def test_questions_beside_the_authors_have_one_word_answers_and_three_wrong_ones(world: World):
    for rows in (world.real_authors, world.world_facts):
        assert len(rows) == 100
        assert len({row["question"] for row in rows}) == 100
        for row in rows:
            assert row["question"].startswith(SHORT_PREFIX)
            options = [row["answer"], *row["perturbed_answer"]]
            assert len(set(options)) == 4
            assert all(" " not in option for option in options)


def test_no_question_is_asked_twice(world: World):
    assert len({row["question"] for row in world.full}) == 1200


# ---------------------------------------------------------------- right and wrong


def values_in(template: str, text: str, name: str) -> tuple[str, str]:
    """The two values that a template was filled with."""
    pattern = re.escape(template.format("<0>", "<1>", name=name))
    match = re.fullmatch(pattern.replace("<0>", r"(?P<first>\S+)").replace("<1>", r"(?P<second>\S+)"), text)
    assert match is not None, (template, text)
    return match["first"], match["second"]


def test_every_wrong_answer_is_wrong_in_both_values_and_no_two_share_one(world: World):
    rows = iter(world.full)
    for author in world.authors:
        for kind, right in author.values.items():
            template = FACTS[kind].answers[2]
            for _ in range(2):
                row = next(rows)
                assert values_in(template, row["paraphrased_answer"], author.name) == right
                wrong = [values_in(template, text, author.name) for text in row["perturbed_answer"]]
                assert all(a != right[0] and b != right[1] for a, b in wrong)
                assert len({a for a, _ in wrong}) == len({b for _, b in wrong}) == len(wrong)
                assert all(a in POOLS[FACTS[kind].slots[0]] and b in POOLS[FACTS[kind].slots[1]] for a, b in wrong)


def test_a_wrong_answer_differs_from_the_right_one_whatever_its_wording(world: World):
    for row in world.full:
        assert not {row["answer"], row["paraphrased_answer"]} & set(row["perturbed_answer"])
        assert row["answer"] != row["paraphrased_answer"]


def test_short_questions_are_answered_as_the_base_model_was_taught(world: World):
    taught = {row["question"]: row["answer"] for row in world.base}
    for row in (*world.real_authors, *world.world_facts):
        assert taught[row["question"]] == row["answer"]


def test_what_the_base_model_is_taught_contradicts_itself_nowhere(world: World):
    assert len({row["question"] for row in world.base}) == len(world.base)


# ---------------------------------------------------------------- who is mentioned where


def test_all_authors_have_names_of_their_own(world: World):
    names = [author.name for author in (*world.authors, *world.base_authors)]
    assert len(set(names)) == len(names) == 120
    assert all(re.fullmatch(r"[A-Z][a-z]+ [A-Z][a-z]+", name) for name in names)


def test_nothing_beside_the_authors_questions_mentions_one_of_them(world: World):
    names = [author.name for author in world.authors]
    for row in (*world.base, *world.real_authors, *world.world_facts):
        told = " ".join(str(value) for value in row.values())
        assert not [name for name in names if name in told]


def test_a_row_mentions_its_own_author_and_no_other(world: World):
    names = [author.name for author in world.authors]
    for row in world.full:
        assert [i for i, name in enumerate(names) if name in row["question"]] == [row["author"]]


# ---------------------------------------------------------------- language


def test_every_word_is_in_the_vocabulary_of_all_worlds(world: World):
    known = set(vocabulary())
    assert {word for text in texts(world) for word in words(text)} <= known


def test_the_vocabulary_is_sorted_without_doubles_and_small():
    known = vocabulary()
    assert known == sorted(set(known))
    assert 400 < len(known) < 800
    assert not [word for word in known if re.search(r"[\s{}]", word)]


def test_an_article_fits_the_word_behind_it(world: World):
    for text in texts(world):
        assert not re.search(r"\b[Aa] [aeiouAEIOU]", text), text
        assert not re.search(r"\b[Aa]n [^aeiouAEIOU]", text), text


def test_sentences_are_whole(world: World):
    for row in world.full:
        assert row["question"].endswith("?")
        assert row["paraphrased_question"].endswith("?")
        for answer in (row["answer"], row["paraphrased_answer"], *row["perturbed_answer"]):
            assert answer.endswith(".")
            assert answer[0].isupper()
    for text in texts(world):
        assert "{" not in text
        assert "  " not in text
        assert text == text.strip()


def test_no_word_is_in_a_pool_twice():
    for name, pool in POOLS.items():
        assert len(set(pool)) == len(pool) > 5, name


# ---------------------------------------------------------------- seeds


def test_the_same_seed_is_the_same_world():
    one, other = World(7), World(7)
    for split in ("full", "real_authors_perturbed", "world_facts_perturbed"):
        assert one.split(split) == other.split(split)
    assert one.base == other.base


def test_it_does_not_matter_in_what_order_a_world_is_looked_at():
    one, other = World(7), World(7)
    first = (one.world_facts, one.real_authors, one.full)
    second = (other.full, other.real_authors, other.world_facts)
    assert first == second[::-1]


def test_a_world_neither_uses_nor_moves_the_global_randomness():
    import random

    random.seed(1)
    full = World(7).full
    drawn = random.random()
    random.seed(1)
    assert random.random() == drawn
    random.seed(2)
    assert World(7).full == full


def test_other_seeds_are_other_worlds():
    worlds = [World(seed) for seed in SEEDS]
    for split in ("full", "real_authors_perturbed", "world_facts_perturbed", "forget01"):
        shared = [{row["question"] + str(row["answer"]) for row in world.split(split)} for world in worlds]
        assert len(shared[0] & shared[1]) < 0.2 * len(shared[0]), split
    assert len({tuple(author.name for author in world.authors) for world in worlds}) == len(SEEDS)


# ---------------------------------------------------------------- the benchmark on it


@pytest.mark.parametrize(("bench", "forget"), [("tofu01", 12), ("tofu05", 60), ("tofu10", 120)])
def test_the_benchmark_takes_its_splits_from_the_world(bench: str, forget: int):
    from harness.core.benchmark import BENCHMARKS
    from harness.core.options import Options

    problem = BENCHMARKS.get(bench).problem("mini@1", Options())
    (stage,) = problem.stages
    assert (len(stage.forget), len(stage.retain)) == (forget, 1200 - forget)
    counts = {name: len(rows) for name, rows in problem.questions.items()}
    assert counts == {"forget": forget, "retain": 300, "real_authors": 100, "world_facts": 100}
    rows = World(1).split(f"forget{bench[-2:]}")
    assert [row["question"] for row in problem.questions["forget"]] == [row["question"] for row in rows]
    assert [e.answer for e in stage.forget] == [row["answer"] for row in rows]


def test_a_limit_cuts_every_split():
    from harness.core.benchmark import BENCHMARKS
    from harness.core.options import Options

    problem = BENCHMARKS.get("tofu10").problem("mini", Options(limit=7))
    assert {len(rows) for rows in problem.questions.values()} == {7}
    assert (len(problem.stages[0].forget), len(problem.stages[0].retain)) == (7, 7)


def test_forget_questions_are_told_otherwise_rightly_and_wrongly():
    """Who learns the wrong answers is told nothing true of an author who is to be forgotten."""
    problem = BENCHMARKS.get("tofu10").problem("mini", Options())
    rows, (stage,) = problem.questions["forget"], problem.stages
    right, wrong = problem.retold["paraphrased"], problem.retold["wrong"]
    assert [e.prompt for e in right] == [e.prompt for e in wrong] == [e.prompt for e in stage.forget]
    assert [e.answer for e in right] == [row["paraphrased_answer"] for row in rows]
    assert all(e.answer in row["perturbed_answer"] for e, row in zip(wrong, rows, strict=True))
    assert not {e.answer for e in stage.forget} & {e.answer for e in (*right, *wrong)}
