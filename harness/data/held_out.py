"""Budget rows: text that damage is measured on, held out of what every method trains on and of what is reported.

Two kinds, the same for all methods and seeds: a tenth of each stage's retain set, whole clusters (ToFU: authors) of which no
metric asks anything, and general text, half of it about what no method may read where there is such text. They are held out
only where budgets are given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
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
        UsageError: for a stage whose retain set is all asked about by metrics.
    """
    evaluated = {
        problem.template.prompt(row["question"]) for rows in problem.questions.values() for row in rows if "question" in row
    }
    retain = list(dict.fromkeys(e for stage in problem.stages for e in _of_stage(problem, stage, evaluated)))
    general, unseen = _drawn(problem, "general", problem.general), _drawn(problem, "unseen", problem.unseen)
    budget = min(GENERAL_ROWS, len(general) // 2 + len(unseen))
    of_unseen = min(len(unseen), budget // 2)
    cut = budget - of_unseen
    held_out = {"retain": retain, **({"general": [*general[:cut], *unseen[:of_unseen]]} if budget else {})}
    stages = [_without(stage, frozenset(retain)) for stage in problem.stages]  # stages may share texts
    return replace(problem, stages=stages, general=general[cut:], unseen=unseen[of_unseen:], held_out=held_out)


def held_out_digest(problem: Problem) -> str:
    """What names a problem's budget rows and how damage is measured on them; empty where there are none."""
    if not problem.held_out:
        return ""
    rows = {kind: [[e.prompt, e.tag, e.answer] for e in examples] for kind, examples in problem.held_out.items()}
    return digest([VERSION, rows])[:16]


def _of_stage(problem: Problem, stage: Stage, evaluated: set[str]) -> list[Example]:
    """A stage's budget rows."""
    retain = list(stage.retain)
    clusters = _clusters(stage)
    busy = {cluster for cluster, e in zip(clusters, retain, strict=True) if e.prompt and e.prompt in evaluated}
    free = [cluster for cluster in dict.fromkeys(clusters) if cluster not in busy]
    most = MOST_WINDOWS if all(isinstance(e, Window) for e in retain) else MOST_ROWS
    wanted, sizes, taken, count = min(most, max(1, round(SHARE * len(retain)))), Counter(clusters), set(), 0
    for cluster in _drawn(problem, stage.name, free):
        if count >= wanted:
            break
        taken.add(cluster)
        count += sizes[cluster]
    if not taken or count >= len(retain):
        raise UsageError(
            f"{problem.bench} has no retain rows to measure damage on: metrics ask all of its {len(retain)}, or none is left "
            "to train on. Leave out --budgets, or raise --limit."
        )
    return [e for cluster, e in zip(clusters, retain, strict=True) if cluster in taken]


def _without(stage: Stage, held_out: Collection[Example]) -> Stage:
    kept = [i for i, e in enumerate(stage.retain) if e not in held_out]
    clusters = [stage.retain_clusters[i] for i in kept] if stage.retain_clusters else ()
    return replace(stage, retain=[stage.retain[i] for i in kept], retain_clusters=clusters)


def _clusters(stage: Stage) -> Sequence[str]:
    return stage.retain_clusters or [str(i) for i in range(len(stage.retain))]


def _drawn(problem: Problem, what: str, items: Sequence[T]) -> list[T]:
    """The items in an order that the data decides."""
    order = streams(0, "budget rows", what, digest([problem.bench, problem.data])).numpy().permutation(len(items))
    return [items[i] for i in order.tolist()]
