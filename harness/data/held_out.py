"""Budget rows: text that damage is measured on, held out of what every method trains on and of what is reported.

Two kinds, the same for all methods and seeds: a tenth of each stage's retain set, whole clusters (ToFU: authors; the embedded
crafts: things that are described) of which no metric asks anything, and general text, half of it about what no method may read
where there is such text. They are held out only where budgets are given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import replace
from typing import TypeVar

from harness.core.errors import UsageError
from harness.core.problem import Problem, Stage
from harness.core.streams import streams
from harness.core.text import Example, Window
from harness.storage.cache import digest

T = TypeVar("T")
VERSION = 1
"""Raised when other rows are held out, or damage is measured otherwise."""
SHARE = 0.1
"""Of a retain set."""
MOST_ROWS = 200
"""Of a stage, at most."""
MOST_WINDOWS = 40
"""The same of running text, whose windows are long."""
GENERAL_ROWS = 100


def hold_out(problem: Problem) -> Problem:
    """A problem with its budget rows taken out of its retain sets and its general text.

    Raises:
        UsageError: for a stage whose retain set is all asked about by metrics, and no spare text.
    """
    evaluated = {
        problem.template.prompt(row["question"]) for rows in problem.questions.values() for row in rows if "question" in row
    }
    problem = replace(problem, spare=[e for e in problem.spare if e.prompt not in evaluated])
    taken = {cluster for stage in problem.stages for cluster in _of_stage(problem, stage, evaluated)}
    pairs = [pair for stage in problem.stages for pair in zip(_clusters(stage), stage.retain, strict=True)]
    spare = [] if taken else problem.spare
    retain = [*dict.fromkeys(e for cluster, e in pairs if cluster in taken), *spare]
    about = problem.general_clusters
    order = _drawn(problem, "general", [i for i in range(len(problem.general)) if not about or about[i] not in taken])
    general, unseen = [problem.general[i] for i in order], _drawn(problem, "unseen", problem.unseen)
    budget = min(GENERAL_ROWS, len(general) // 2 + len(unseen))
    of_unseen = min(len(unseen), budget // 2)
    cut = budget - of_unseen
    notes = [f"damage is measured on retain rows that the limit left out ({len(spare)})"] if spare else []
    held_out = {"retain": retain, **({"general": [*general[:cut], *unseen[:of_unseen]]} if budget else {})}
    stages = [_without(stage, taken, frozenset(retain)) for stage in problem.stages]  # stages may share clusters and texts
    return replace(
        problem,
        stages=stages,
        general=general[cut:],
        general_clusters=[about[i] for i in order[cut:]] if about else (),
        unseen=unseen[of_unseen:],
        held_out=held_out,
        notes=[*problem.notes, *notes],
    )


def held_out_digest(problem: Problem) -> str:
    """What names a problem's budget rows and how damage is measured on them; empty where there are none."""
    if not problem.held_out:
        return ""
    rows = {kind: [[e.prompt, e.tag, e.answer] for e in examples] for kind, examples in problem.held_out.items()}
    return digest([VERSION, rows])[:16]


def _of_stage(problem: Problem, stage: Stage, evaluated: set[str]) -> set[Hashable]:
    """The clusters that a stage gives as budget rows; none where there is spare text for them."""
    retain, clusters = list(stage.retain), _clusters(stage)
    busy = {cluster for cluster, e in zip(clusters, retain, strict=True) if e.prompt and e.prompt in evaluated}
    free = [cluster for cluster in dict.fromkeys(clusters) if cluster not in busy and cluster not in stage.evaluated_clusters]
    most = MOST_WINDOWS if all(isinstance(e, Window) for e in retain) else MOST_ROWS
    wanted, sizes, count = min(most, max(1, round(SHARE * len(retain)))), Counter(clusters), 0
    taken: set[Hashable] = set()
    for cluster in _drawn(problem, stage.name, free):
        if count >= wanted:
            break
        taken.add(cluster)
        count += sizes[cluster]
    if not taken or count >= len(retain):
        if problem.spare:
            return set()
        raise UsageError(
            f"{problem.bench} has no retain rows to measure damage on: metrics ask all of its {len(retain)}, or none is left "
            "to train on. Leave out --limit, or --budgets."
        )
    return taken


def _without(stage: Stage, taken: Collection[Hashable], held_out: Collection[Example]) -> Stage:
    pairs = enumerate(zip(_clusters(stage), stage.retain, strict=True))
    kept = [i for i, (cluster, e) in pairs if cluster not in taken and e not in held_out]
    clusters = [stage.retain_clusters[i] for i in kept] if stage.retain_clusters else ()
    return replace(stage, retain=[stage.retain[i] for i in kept], retain_clusters=clusters)


def _clusters(stage: Stage) -> Sequence[Hashable]:
    """What each retain text is about; each text by itself where that is not known."""
    return stage.retain_clusters or stage.retain


def _drawn(problem: Problem, what: str, items: Sequence[T]) -> list[T]:
    """The items in an order that the data decides."""
    order = streams(0, "budget rows", what, digest([problem.bench, problem.data])).numpy().permutation(len(items))
    return [items[i] for i in order.tolist()]
