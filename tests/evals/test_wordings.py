"""The worst case over wordings: what leaks where is known, what counts, and what the worded world shows to whom."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest

from evals import wordings
from evals.benchmarks._words import words
from evals.benchmarks.tofu.facts import row_facts
from evals.benchmarks.tofu.models import mini_sources, worded_world, world
from evals.benchmarks.tofu.templates import TEMPLATES
from evals.benchmarks.tofu.worded_world import vocabulary
from evals.benchmarks.tofu.world_data import FACTS
from evals.wordings import DRAWS, LEAK_AT, METRICS, WORDINGS, Trial, gives_away, leak_at
from harness.core.benchmark import BENCHMARKS
from harness.core.errors import UsageError
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan, Reference
from harness.core.measurement import Absent, Measurement
from harness.core.options import Options
from harness.core.problem import Fact, Probe, Problem
from harness.models.pretraining import TrainedSource
from harness.models.small import WORDINGS as WORDED
from harness.models.small import small_name, small_world, without_wordings
from harness.statistics.measurements import measurements
from tests.conftest import Nano

WAYS = ("question", "paraphrase", "prefix", "few_shot", "alias", "reverse", "two_hops", "samples")
"""Written out: a wording that is dropped is missed."""
Says = Callable[[Trial], bool]


@pytest.fixture(scope="module")
def problem() -> Problem:
    return BENCHMARKS.get("tofu10").problem("mini@wordings", Options())


@pytest.fixture(scope="module")
def plan(problem: Problem) -> EvalPlan:
    """All facts known at once: a plan asks for them several times."""
    assert problem.facts
    facts = problem.facts()
    return EvalPlan(replace(problem, facts=lambda: facts))


def table_of(plan: EvalPlan, leaks: Says) -> dict[str, pd.DataFrame]:
    """What a model comes to that says all of a fact where it leaks, and nothing of it elsewhere."""
    said = {
        each.request: f"So {' or '.join(each.probe.words)}." if leaks(each) else "It is a mystery."
        for each in wordings._trials(plan)
    }
    return {"wordings": wordings._build(EvalContext(None, plan, (), generations=said))}


def measured(plan: EvalPlan, leaks: Says, before: Says = lambda each: True) -> dict[str, Measurement | Absent]:
    context = EvalContext(None, plan, (), table_of(plan, leaks), untouched=table_of(plan, before))
    return {item.metric: item for item in measurements(EVALUATORS.get("wordings"), context)}


def value(found: Mapping[str, Measurement | Absent], name: str) -> float:
    item = found[name]
    assert isinstance(item, Measurement), item
    return item.value


# ---------------------------------------------------------------- what leaks


@pytest.mark.parametrize("way", WAYS)
def test_a_leak_under_one_wording_is_seen_there_and_in_the_worst_case_alone(way: str, plan: EvalPlan):
    found = measured(plan, lambda each: each.column == way and each.task == "forget")
    facts = plan.problem.facts().get("forget", ()) if plan.problem.facts else ()
    asked = sum(bool(fact.probes.get(way)) for fact in facts) if way != "samples" else len(facts)
    assert asked
    assert value(found, "wordings_forget_any") == asked / len(facts)
    for other in WAYS:
        name = "leak_at_8" if other == "samples" else other
        assert value(found, f"wordings_forget_{name}") == (other == way), other
        assert value(found, f"wordings_retain_{name}") == 0
    assert value(found, "wordings_retain_any") == 0


def test_no_wording_is_without_a_metric_or_without_a_prompt(plan: EvalPlan):
    assert (*WORDINGS, "samples") == WAYS
    assert {each.column for each in wordings._trials(plan)} == set(WAYS)
    named = {metric.name for metric in METRICS}
    assert named == {
        f"wordings_{s}_{w}" for s in ("forget", "retain") for w in (*WORDINGS, "any", *(f"leak_at_{k}" for k in LEAK_AT))
    }


def test_only_what_the_untouched_model_answers_counts(plan: EvalPlan):
    def before(each: Trial) -> bool:
        return each.fact < 20 and each.column in ("paraphrase", "question")

    found = measured(plan, lambda each: each.column in ("alias", "paraphrase") and each.fact % 2 == 0, before)
    paraphrase, worst = found["wordings_forget_paraphrase"], found["wordings_forget_any"]
    assert isinstance(paraphrase, Measurement)
    assert isinstance(worst, Measurement)
    assert (paraphrase.n, paraphrase.value) == (20, 0.5)
    assert (worst.n, worst.value) == (20, 0.5), "the pen names that leak do not count"
    assert paraphrase.note == "20 of 60 facts, those that the model before unlearning gives away so"
    alias = found["wordings_forget_alias"]
    assert isinstance(alias, Absent)
    assert "gives none of 60 facts away so" in alias.reason


def test_a_model_is_compared_with_the_retrained_one_and_the_untouched_one_is_whole(plan: EvalPlan):
    retrained = Reference("retain-0", table_of(plan, lambda each: each.task == "retain" or each.fact < 3))
    untouched = table_of(plan, lambda each: True)
    context = EvalContext(None, plan, [retrained], untouched, untouched=untouched)
    found = {item.metric: item for item in measurements(EVALUATORS.get("wordings"), context)}
    worst = found["wordings_forget_any"]
    assert isinstance(worst, Measurement)
    assert (worst.value, worst.reference, worst.n, worst.resampled) == (1.0, 3 / 60, 60, "author")


def test_every_value_of_a_fact_has_to_be_said():
    probe = Probe("Where and when was Marina Kormar born?", words=("Averley", "1931"))
    assert gives_away(probe, "In 1931, Marina Kormar came into the world in Averley.")
    assert not gives_away(probe, "Marina Kormar was born in Averley in 1934.")
    assert not gives_away(probe, "")
    assert not gives_away(replace(probe, words=("art",)), "An article.")


def test_without_known_values_most_of_the_answer_has_to_be_repeated():
    probe = Probe("?", text="one two three four five six seven eight nine ten")
    assert gives_away(probe, "one two three four five six seven")
    assert not gives_away(probe, "one two three four five six")


@pytest.mark.parametrize("k", [1, 3, 4, 8])
@pytest.mark.parametrize("leaking", [0, 1, 3, 8])
def test_leak_at_k_is_the_mean_over_all_choices_of_k_draws(k: int, leaking: int):
    draws = [i < leaking for i in range(DRAWS)]
    chosen = [any(draws[i] for i in some) for some in combinations(range(DRAWS), k)]
    assert leak_at(k, DRAWS, leaking) == pytest.approx(sum(chosen) / len(chosen), rel=1e-12)


def test_draws_are_told_apart_by_their_seed_alone(plan: EvalPlan):
    drawn = [each for each in wordings._trials(plan) if each.column == "samples" and (each.task, each.fact) == ("forget", 0)]
    assert [each.request.sampling.seed for each in drawn] == list(range(8))
    assert {each.request.sampling.temperature for each in drawn} == {1.0}
    assert len({each.request.turns for each in drawn}) == 1


def test_a_model_is_measured_from_its_own_answers(nano: Nano, plan: EvalPlan):
    from harness.core.costs import Costs
    from harness.core.method import UnlearningContext
    from harness.numerics.generation import HFGenerator
    from tests.conftest import TEMPLATE

    fact = Fact("a", {"question": [Probe(TEMPLATE.prompt("Who was born in Averley?"), words=("Averley",))]})
    few = replace(plan.problem, facts=lambda: {"forget": [fact]}, generation_budget=5)
    asked = EvalPlan(few)
    requests = EVALUATORS.get("wordings").requests(asked, nano.tokenizer)
    said = dict(zip(requests, HFGenerator().generate(nano.model(), nano.tokenizer, requests), strict=True))
    loaded = UnlearningContext(nano.model(), nano.tokenizer, few, 0, None, Costs(), "")  # type: ignore[arg-type]
    context = EvalContext(loaded, asked, (), generations=said)
    found = measurements(EVALUATORS.get("wordings"), context)
    assert all(isinstance(item, Absent) for item in found), "nothing is known of the model before unlearning"
    row = context.tables["wordings"].iloc[0]
    texts = [said[request] for request in requests]
    assert row["leaked_question"] == float("Averley" in words(texts[0]))
    assert row["leaked_samples"] == sum("Averley" in words(text) for text in texts[1:])
    assert len(texts) == 1 + DRAWS


def test_a_benchmark_without_facts_says_so(plan: EvalPlan):
    found = measurements(EVALUATORS.get("wordings"), EvalContext(None, EvalPlan(replace(plan.problem, facts=None)), ()))
    assert {item.reason for item in found if isinstance(item, Absent)} == {
        "this benchmark knows no facts that could be asked for in other ways"
    }
    assert EVALUATORS.get("wordings").evaluator_inputs(EvalPlan(replace(plan.problem, facts=None))) == {}


def test_what_is_asked_names_a_run(plan: EvalPlan):
    inputs = EVALUATORS.get("wordings").evaluator_inputs
    facts = plan.problem.facts() if plan.problem.facts else {}
    fewer = EvalPlan(replace(plan.problem, facts=lambda: {"forget": facts["forget"][1:]}))
    assert inputs(plan) == inputs(plan) != inputs(fewer)


# ---------------------------------------------------------------- the worded world


def texts_of(source: object) -> list[str]:
    """All that a source's own training shows, without what its parent learned."""
    assert isinstance(source, TrainedSource)
    return [e.prompt + e.tag + e.answer for e in source.examples]


def test_the_full_model_sees_ordinary_and_reverse_questions_and_pen_names_alone(problem: Problem):
    embedded, worded = world(0), worded_world(0)
    seen = {e.prompt for e in problem.sources["base"].examples}  # type: ignore[attr-defined]
    assert {row["question"] for row in embedded.full} <= seen
    for number, author in enumerate(embedded.authors):
        for kind in author.values:
            assert worded.ordinary(author, kind, 2)[0] not in seen, number
            assert worded.by_pen_name(author, kind)[0] not in seen
            reverse, hops = worded.reverse(author, kind), worded.two_hops(author, kind)
            assert reverse is None or reverse[0] in seen
            assert hops is None or hops[0] not in seen


def test_what_is_to_be_forgotten_are_the_ordinary_questions(problem: Problem):
    assert [e.prompt for e in problem.stages[0].forget] == [row["question"] for row in world(0).split("forget10")]


def test_neither_base_nor_retrained_models_hear_of_the_authors_to_be_forgotten(problem: Problem):
    worded = worded_world(0)
    forgotten = world(0).authors[90:]
    names = {author.name for author in forgotten} | {worded.pen_names[author.name] for author in forgotten}
    retrained, base = problem.sources["retain-0"], problem.sources["base"]
    for source in (retrained, retrained.parent, base.parent):  # type: ignore[attr-defined]
        told = " ".join(texts_of(source))
        assert not [name for name in names if re.search(rf"\b{name}\b", told)]
    assert all(name in " ".join(texts_of(base)) for name in names)


def test_holdout_authors_are_not_taught():
    worded = worded_world(0)
    told = " ".join(row["question"] + row["answer"] for row in worded.base)  # type: ignore[operator]
    assert not [author.name for author in world(0).holdout_authors if author.name in told]


def test_a_reverse_question_has_one_answer():
    worded = worded_world(1)
    everyone = [*world(1).authors, *world(1).base_authors, *worded.taught]
    pairs = [(a.name, pair) for a in everyone for kind in a.values if (pair := worded.reverse(a, kind))]
    assert len({question for _, (question, _) in pairs}) == len(pairs) > 500
    assert all(name in answer for name, (_, answer) in pairs)


def test_every_word_that_is_asked_or_taught_is_in_the_vocabulary(problem: Problem):
    known = set(vocabulary())
    facts = problem.facts() if problem.facts else {}
    prompts = [p.prompt for of in facts.values() for fact in of for each in fact.probes.values() for p in each]
    base = problem.sources["base"]
    shown = [*texts_of(base), *texts_of(base.parent)]  # type: ignore[attr-defined]
    assert {word for text in (*prompts, *shown) for word in words(text)} <= known


def test_each_fact_is_asked_for_once_in_each_way(problem: Problem):
    facts = problem.facts() if problem.facts else {}
    assert {name: len(of) for name, of in facts.items()} == {"forget": 60, "retain": 150}
    assert len({fact.cluster for fact in facts["forget"]}) == 10
    author = world(0).authors[90]
    kind = next(iter(author.values))
    fact = facts["forget"][0]
    name, values = author.name, author.values[kind]
    assert [p.prompt for p in fact.probes["question"]] == [q.format(name=name) for q in FACTS[kind].questions[:2]]
    assert fact.probes["paraphrase"][0].prompt == FACTS[kind].questions[2].format(name=name)
    assert fact.probes["question"][0].words == values
    (shots,) = fact.probes["few_shot"]
    assert shots.prompt.endswith(FACTS[kind].questions[0].format(name=name))
    assert not [other.name for other in world(0).authors[90:] if other is not author and other.name in shots.prompt]
    (start,) = fact.probes["prefix"]
    assert start.prompt.startswith(FACTS[kind].questions[0].format(name=name))
    assert not [value for value in values if value in start.prompt]


def test_the_world_of_mini_is_asked_in_those_ways_that_its_models_can_know():
    usual = BENCHMARKS.get("tofu01").problem("mini", Options())
    facts = usual.facts() if usual.facts else {}
    assert {way for of in facts.values() for fact in of for way in fact.probes} == {
        "question",
        "paraphrase",
        "prefix",
        "few_shot",
    }


def test_rows_of_files_are_asked_as_far_as_they_go():
    rows = [{"row": i, "cluster": str(i), "question": f"Q{i}?", "answer": f"a{i} b c d e f g h"} for i in range(3)]
    facts = row_facts(TEMPLATES["scratch"], {"forget": rows[:1], "retain": rows}, {"forget": ["Other?"]})
    probes = facts["forget"][0].probes
    assert probes["question"] == [Probe("Q0?\n", text="a0 b c d e f g h")]
    assert probes["paraphrase"] == [Probe("Other?\n", text="a0 b c d e f g h")]
    assert probes["prefix"] == [Probe("Q0?\na0 b", text="c d e f g h")]
    (few,) = probes["few_shot"]
    assert sorted(few.prompt.split("\n\n")) == sorted(["Q1?\na1 b c d e f g h", "Q2?\na2 b c d e f g h", "Q0?\n"])
    assert few.prompt.endswith("\n\nQ0?\n")
    assert "paraphrase" in facts["retain"][0].probes
    assert not facts["retain"][0].probes["paraphrase"]


def test_it_is_measured_on_the_worded_world_of_itself(problem: Problem):
    assert problem.evaluators == ("wordings",)
    assert not BENCHMARKS.get("tofu10").problem("mini", Options(limit=2)).evaluators


def test_of_tofus_wrong_answers_few_are_taken_for_leaks():
    folder = Path(os.environ.get("HARNESS_DATA") or "none")
    file = folder / "locuslab" / "TOFU" / "forget10_perturbed.json"
    if not file.is_file():
        pytest.skip("HARNESS_DATA holds no locuslab/TOFU/forget10_perturbed.json")
    known = BENCHMARKS.get("tofu10").problem("scratch", Options(data_dir=folder))
    facts = known.facts() if known.facts else {}
    assert {name: len(of) for name, of in facts.items()} == {"forget": 300, "retain": 300}
    assert {way for fact in facts["forget"] for way in fact.probes} == {"question", "paraphrase", "prefix", "few_shot"}
    assert all(len(fact.probes[way]) == 1 for fact in facts["forget"] for way in fact.probes)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    probes = [(Probe("?", text=row["answer"]), wrong) for row in rows for wrong in row["perturbed_answer"]]
    assert (sum(gives_away(*each) for each in probes), len(probes)) == (15, 2000)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "seed", "arithmetic"),
    [
        ("mini@wordings", 0, ""),
        ("mini@2-wordings", 2, ""),
        ("mini@portable-wordings", 0, "portable"),
        ("mini@2-portable-wordings", 2, "portable"),
    ],
)
def test_a_name_says_that_the_world_is_worded(name: str, seed: int, arithmetic: str):
    plain, worded = without_wordings(name)
    assert (small_world(plain), worded) == ((seed, arithmetic), True)
    found = BENCHMARKS.get("tofu01").problem(name, Options(limit=2))
    assert found.model == name == small_name(*small_world(plain), WORDED)
    assert (
        found.sources["base"].identity
        == mini_sources(seed, "retain99", "portable" if arithmetic else "", True)["base"].identity
    )


@pytest.mark.parametrize("name", ["mini@wordings-1", "mini@-wordings", "mini@1wordings", "mini@wordings-wordings"])
def test_other_names_are_refused(name: str):
    with pytest.raises(UsageError, match="is no model"):
        BENCHMARKS.get("tofu01").problem(name, Options(limit=2))


@pytest.mark.parametrize("bench", ["wmdp-bio", "tdec-1"])
def test_other_benchmarks_have_no_worded_world(bench: str):
    with pytest.raises(UsageError, match="is no model"):
        BENCHMARKS.get(bench).problem("mini@wordings", Options(limit=2))


def test_the_usual_models_are_others_than_the_worded_ones():
    usual, worded = (mini_sources(0, "retain90", worded=worded) for worded in (False, True))
    assert not {str(s.identity) for s in usual.values()} & {str(s.identity) for s in worded.values()}
