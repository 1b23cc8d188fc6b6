"""Whether one can tell that the forget rows were once trained on: membership inference against rows that no model has seen.

Four attacks score each answer (LOSS, zlib, Min-K %, Min-K%++; formulas in `_token_scores.py`), and for each

    AUC = P(forget row scores as likelier a member than holdout row) + ½ P(both score alike)

Near 1 the forget rows are told apart, at ½ they are not, and under ½ they are less likely than text that was never seen, which
gives them away as well. Hence the normalised form: how close the area is to the retrained model's,

    s = clip(1 − |AUC − AUC_retrained| / AUC_retrained, 0, 1)        (open-unlearning's, arXiv:2506.12618)

With several retrained models the first one counts; the others' own s stands beside it. The holdout is the benchmark's: on the
embedded world a hundred further authors, on ToFU's questions open-unlearning's split `holdout01`, `holdout05` or `holdout10`.
One that holds a text which a method or a model here is known to train on is refused. Intervals resample authors of both sides
(`harness.statistics.ranks`). Asked for by `--evals +membership`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from evals import _token_scores
from harness.core.config import JSON
from harness.core.errors import UsageError, cut
from harness.core.evaluator import EvalContext, EvalPlan, evaluator
from harness.core.metric import Metric, Number, Plain, Rows
from harness.core.problem import Problem, Row
from harness.core.text import Example
from harness.data.rows import fingerprint
from harness.models.pretraining import TrainedSource
from harness.statistics.ranks import AUC

_TITLES = {"loss": "LOSS", "zlib": "zlib", "min_k": "Min-K", "min_k_plus_plus": "Min-K++"}
_NORMALISED = "_normalised"


def _area(attack: str) -> Metric:
    title = f"MIA {_TITLES[attack]}"
    return Metric(
        f"membership_{attack}",
        title=title,
        unit="AUC",
        better="closer",
        better_alone="lower",
        about=f"how well the attack {_TITLES[attack]} tells forget rows from rows that no model has seen; ½ is chance",
        range=(0.0, 1.0),
        chance=0.5,
        statistic=AUC,
        part="forget",
        cluster="author",
    )


def _normalised(area: Metric) -> Metric:
    return replace(
        area,
        name=area.name + _NORMALISED,
        title=f"{area.title}, normalised",
        unit="share of the retrained model's AUC",
        better="higher",
        better_alone=None,
        about=f"how close the area under {area.title} is to the retrained model's",
        chance=None,
        statistic=Plain("it compares two areas"),
    )


AREAS = tuple(_area(attack) for attack in _token_scores.ATTACKS)
METRICS = (*AREAS, *map(_normalised, AREAS))


def _inputs(plan: EvalPlan) -> Mapping[str, JSON]:
    """The holdout rows' digest.

    Raises:
        UsageError: if they are missing, or were trained on.
    """
    holdout = plan.of.holdout if plan.of else None  # of a log's rows alone nothing else is known
    if holdout is None:
        return {}
    rows = holdout()
    _check_unseen(plan.problem, rows)
    return {"holdout": fingerprint(rows)}


def _check_unseen(problem: Problem, rows: Sequence[Row]) -> None:
    template = problem.template
    texts = {_text(template.example(row["question"], row["answer"])): row for row in rows}
    for whose, examples in _trained_on(problem):
        if seen := next((texts[text] for text in map(_text, examples) if text in texts), None):
            raise UsageError(
                f"holdout row {seen['row']} of {problem.bench} ('{cut(seen['question'])}') is among the texts of {whose}: "
                "members are told from rows that no model has seen. Take other holdout rows, or leave out membership."
            )


def _text(example: Example) -> str:
    return " ".join((example.prompt + example.tag + example.answer).split())


def _trained_on(problem: Problem) -> Iterator[tuple[str, Sequence[Example]]]:
    """All texts that are known to be trained on, and by whom."""
    for stage in problem.stages:
        yield f"the stage {stage.name}", (*stage.forget, *stage.retain)
    for first in problem.sources.values():
        source: object = first
        while isinstance(source, TrainedSource):
            yield source.name, (*source.examples, *(example for pool, _ in source.replay for example in pool))
            source = source.parent


@evaluator("membership", version=1, metrics=METRICS, evaluator_inputs=_inputs)
def measure(context: EvalContext, metric: Metric) -> Sequence[Rows] | Number:
    """Both samples' placements, or how close their area is to the retrained model's."""
    if context.loaded and context.problem.holdout is None:
        raise LookupError("this benchmark has no holdout rows to tell members from")
    if metric.name.endswith(_NORMALISED):
        return _token_scores.closeness(context, metric.name.removesuffix(_NORMALISED))
    return _token_scores.membership(context, metric.name)
