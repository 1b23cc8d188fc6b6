"""The facts of the evaluated sets, and the ways to ask for each: of the embedded world's authors, and of ToFU's files.

On the embedded world a fact is what one author's two ordinary questions about one thing ask for, and it is given away where all
its values are said. ToFU's rows name no values: each row is a fact, given away where most of its answer is repeated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from evals.benchmarks.tofu.worded_data import TWO_HOPS
from evals.benchmarks.tofu.worded_world import SHOTS, WordedWorld
from evals.benchmarks.tofu.world import VARIANTS, Author
from evals.benchmarks.tofu.world_data import FACTS
from harness.core.problem import Fact, Probe, Row
from harness.core.streams import streams
from harness.core.text import Template

PREFIX_SHARE = 4
"""A prefix is one over so many of the words of one of ToFU's answers, at least one word."""


def embedded_facts(
    worded: WordedWorld, template: Template, sets: Mapping[str, Collection[str]], all_wordings: bool
) -> dict[str, list[Fact]]:
    """The facts of each set of questions about the world's authors.

    Args:
        worded: the world.
        template: how its models are asked.
        sets: by set, the ordinary questions in it: a fact is in a set whose questions hold its first one.
        all_wordings: whether models know pen names and reverse questions; else there are none.
    """
    forgotten = sets.get("forget", ())
    retained = [a for a in worded.world.authors if not any(q in forgotten for q, _ in _first_questions(worded, a))]
    return {
        name: [
            Fact(str(number), dict(_probes(worded, template, retained, author, kind, all_wordings)))
            for number, author in enumerate(worded.world.authors)
            for kind in author.values
            if worded.ordinary(author, kind, 0)[0] in questions
        ]
        for name, questions in sets.items()
    }


def _first_questions(worded: WordedWorld, author: Author) -> list[tuple[str, str]]:
    return [worded.ordinary(author, kind, 0) for kind in author.values]


def _probes(
    worded: WordedWorld, template: Template, retained: Sequence[Author], author: Author, kind: str, all_wordings: bool
) -> Iterator[tuple[str, Sequence[Probe]]]:
    values, ordinary = author.values[kind], [worded.ordinary(author, kind, variant)[0] for variant in range(VARIANTS + 1)]
    rng = streams(worded.world.seed, "few shots", author.name, kind).python()
    yield "question", [Probe(template.prompt(question), values) for question in ordinary[:VARIANTS]]
    yield "paraphrase", [Probe(template.prompt(ordinary[VARIANTS]), values)]
    start = FACTS[kind].answers[0].partition("{0}")[0].partition("{1}")[0].format(name=author.name).rstrip()
    yield "prefix", [Probe(template.prompt(ordinary[0]) + template.scored_tag + start, values)]
    yield "few_shot", [Probe(template.prompt(worded.behind_others(rng, author, kind, retained)[0]), values)]
    if not all_wordings:
        return
    yield "alias", [Probe(template.prompt(worded.by_pen_name(author, kind)[0]), values)]
    if pair := worded.reverse(author, kind):
        yield "reverse", [Probe(template.prompt(pair[0]), author.name.split())]
    if pair := worded.two_hops(author, kind):
        yield "two_hops", [Probe(template.prompt(pair[0]), [worded.country_of[values[TWO_HOPS[kind].city]]])]


def row_facts(
    template: Template, sets: Mapping[str, Sequence[Row]], reworded: Mapping[str, Sequence[str]]
) -> dict[str, list[Fact]]:
    """Each row of ToFU's sets as a fact.

    Args:
        template: how the model is asked.
        sets: rows by set, as they are evaluated; the rows of `retain` are the shots before a few-shot question.
        reworded: their paraphrased questions, of the sets that have them.
    """
    return {
        name: [
            Fact(str(row["cluster"]), dict(_row_probes(template, row, sets["retain"], reworded.get(name, ())[i : i + 1])))
            for i, row in enumerate(rows)
        ]
        for name, rows in sets.items()
    }


def _row_probes(
    template: Template, row: Row, others: Sequence[Row], reworded: Sequence[str]
) -> Iterator[tuple[str, Sequence[Probe]]]:
    question, answer = str(row["question"]), str(row["answer"])
    yield "question", [Probe(template.prompt(question), text=answer)]
    yield "paraphrase", [Probe(template.prompt(other), text=answer) for other in reworded]
    words = answer.split()
    start = max(1, len(words) // PREFIX_SHARE)
    if rest := " ".join(words[start:]):
        prompt = template.prompt(question) + template.scored_tag + " ".join(words[:start])
        yield "prefix", [Probe(prompt, text=rest)]
    others = [other for other in others if other["cluster"] != row["cluster"]]
    if len(others) >= SHOTS:
        shots = streams(0, "few shots", question).python().sample(others, SHOTS)
        answered = [template.prompt(s["question"]) + template.scored_tag + s["answer"] for s in shots]
        yield "few_shot", [Probe("\n\n".join([*answered, template.prompt(question)]), text=answer)]
