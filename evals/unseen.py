"""How likely true answers are about those whom a method may guard, apart from those of whom it sees nothing.

A method that reads a problem's general text keeps what that text is about, and that is only some of whom real authors and world
facts ask (`Problem.guarded`). What it keeps of the others is how far guarding reaches beyond the guarded rows. The probability
is that of `evals/probability.py`, row by row, out of the same table. Asked for by `--evals +unseen`.
"""

from __future__ import annotations

import numpy as np

from evals import _tofu
from harness.core.evaluator import EvalContext, evaluator
from harness.core.metric import Metric, Rows

TASKS = ("real_authors", "world_facts")
_ABOUT = {"guarded": "of whom general text tells something else", "unseen": "of whom no method reads anything"}

METRICS = [
    Metric(
        name=f"{metric.part}_{side}",
        title=f"{metric.title} {side}",
        unit=metric.unit,
        better=metric.better,
        about=f"{metric.about} {about}",
        range=metric.range,
        part=f"{metric.part} {side}",
        cluster="author" if metric.part == "real_authors" else "subject",
    )
    for metric in _tofu.means("probability", "P", "probability per token", "how likely the true answer is, per token")
    if metric.part in TASKS
    for side, about in _ABOUT.items()
]


@evaluator("unseen", version=1, metrics=METRICS)
def measure(context: EvalContext, metric: Metric) -> Rows:
    """`<task>_guarded` and `<task>_unseen` for real authors and world facts."""
    task, side = metric.part.split()
    guarded = context.problem.guarded
    if not guarded:
        raise LookupError("the benchmark has no general text about some of those who are asked about with this model")
    rows = _tofu.probability(context, task)
    chosen = np.isin(rows.clusters, list(guarded)) == (side == "guarded")
    if not chosen.any():
        raise LookupError(f"none of the {task} rows is {side}")
    return Rows(rows.values[chosen], rows.clusters[chosen])
