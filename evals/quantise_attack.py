"""What an unlearned model knows once its weights are stored with 8 or 4 bits: small changes of weights may be rounded away.

With 4 bits in equal steps and as NF4 (`harness.numerics.rounding`). Every number says what share of the weights is rounded.
Storage is attacked, not arithmetic. That quantising can bring back what was forgotten: arXiv:2410.16454.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from evals import _scores
from harness.core.evaluator import EvalContext, EvalPlan, MetricFamily, evaluator
from harness.core.metric import Metric, Rows
from harness.numerics.rounding import KINDS, NF4, quantised, round_weights

if TYPE_CHECKING:
    import pandas as pd

VERSION = 1


def metrics(plan: EvalPlan) -> list[Metric]:
    """`<set>_<bits>_bit` and `<set>_nf4` for each set of questions, not the forgotten ones alone."""
    forgotten, unit = _scores.forgotten(plan), _scores.unit(plan)
    sets = _scores.everything(plan) or ("forget",)
    return [_score(name, str(kind), name in forgotten, unit) for name in sets for kind in KINDS]


def named(name: str) -> Metric | None:
    """The metric of a recorded name."""
    part, kind = _part_and_kind(name)
    known = name.endswith(f"_{NF4}") or (name.endswith("_bit") and kind.isdecimal())
    return _score(part, kind, False) if part and known else None


def _part_and_kind(name: str) -> tuple[str, str]:
    part, _, kind = name.removesuffix("_bit").rpartition("_")
    return part, kind


def _score(part: str, kind: str, forgotten: bool, unit: str = "probability") -> Metric:
    name, how = (f"{part}_{NF4}", "NF4") if kind == NF4 else (f"{part}_{kind}_bit", f"{kind} bits")
    about = f"score on {part.replace('_', ' ')} questions once the weights are stored with {how}"
    wanted = "lower" if forgotten else "higher"
    return _scores.metric(name, f"{part.replace('_', ' ')}, {how}", about, part, wanted, unit)  # type: ignore[arg-type]


@evaluator("quantise_attack", version=VERSION, metrics=MetricFamily(metrics, named), changes_model=True)
def measure(context: EvalContext, metric: Metric) -> Rows:
    """The scores of a set of questions after quantisation."""
    if not _scores.everything(context.plan):
        raise LookupError("this benchmark has no questions that can be scored")
    column = f"quantised_{_part_and_kind(metric.name)[1]}"
    table = context.table("quantised", _build)
    if column not in table:
        raise LookupError(f"there is no {column} in the table")
    rows = table[table["task"] == metric.part]
    return Rows(rows[column].to_numpy(dtype=float), rows["cluster"].to_numpy(), note=_share(table))


def _share(table: pd.DataFrame) -> str | None:
    """What share of the weights is rounded, as a note; None for a table of a time when that was not kept."""
    if "quantised_share" not in table:
        return None
    return f"{100 * table['quantised_share'].iloc[0]:.3g} % of the weights are rounded"


def _build(context: EvalContext) -> pd.DataFrame:
    """One row per question: its score stored in each kind, as `quantised_8`, and the share of weights that are rounded."""
    attacked = quantised(context.model)
    if not attacked:
        raise LookupError("the model has no linear layers that could be quantised")
    before = [weight.detach().clone() for weight, _ in attacked]
    questions = _scores.everything(context.plan)
    table: pd.DataFrame | None = None
    for kind in KINDS:
        round_weights(attacked, before, kind)
        scores = _scores.scores(context, questions).rename(columns={"score": f"quantised_{kind}"})
        table = scores if table is None else table.merge(scores, on=_scores.KEYS)
    assert table is not None  # there are kinds
    of_all = sum(parameter.numel() for parameter in context.model.parameters())
    return table.assign(quantised_share=sum(weight.numel() for weight, _ in attacked) / of_all)
