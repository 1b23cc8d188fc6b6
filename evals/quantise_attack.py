"""What an unlearned model knows once its weights are stored with 8 or 4 bits: small changes of weights may be rounded away.

How weights are rounded: `harness.numerics.rounding`. Every number says what share of the weights that is. Storage is attacked,
not arithmetic. That quantising can bring back what was forgotten: arXiv:2410.16454.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from evals import _scores
from harness.core.evaluator import EvalContext, EvalPlan, MetricFamily, evaluator
from harness.core.metric import Metric, Rows
from harness.numerics.rounding import GROUPS, quantised, round_weights

if TYPE_CHECKING:
    import pandas as pd

VERSION = 1


def metrics(plan: EvalPlan) -> list[Metric]:
    """`<set>_<bits>_bit` for each set of questions, not the forgotten ones alone."""
    forgotten, unit = _scores.forgotten(plan), _scores.unit(plan)
    return [_score(name, bits, name in forgotten, unit) for name in _scores.everything(plan) or ("forget",) for bits in GROUPS]


def named(name: str) -> Metric | None:
    """The metric of a recorded name."""
    part, _, bits = name.removesuffix("_bit").rpartition("_")
    return _score(part, int(bits), False) if name.endswith("_bit") and part and bits.isdecimal() else None


def _score(part: str, bits: int, forgotten: bool, unit: str = "probability") -> Metric:
    about = f"score on {part.replace('_', ' ')} questions once the weights are stored with {bits} bits"
    wanted = "lower" if forgotten else "higher"
    return _scores.metric(f"{part}_{bits}_bit", f"{part.replace('_', ' ')}, {bits} bits", about, part, wanted, unit)  # type: ignore[arg-type]


@evaluator("quantise_attack", version=VERSION, metrics=MetricFamily(metrics, named), changes_model=True)
def measure(context: EvalContext, metric: Metric) -> Rows:
    """The scores of a set of questions after quantisation."""
    if not _scores.everything(context.plan):
        raise LookupError("this benchmark has no questions that can be scored")
    bits = metric.name.removesuffix("_bit").rpartition("_")[2]
    table = context.table("quantised", _build)
    if f"quantised_{bits}" not in table:
        raise LookupError(f"there is no quantised_{bits} in the table")
    rows = table[table["task"] == metric.part]
    return Rows(rows[f"quantised_{bits}"].to_numpy(dtype=float), rows["cluster"].to_numpy(), note=_share(table))


def _share(table: pd.DataFrame) -> str | None:
    """What share of the weights is rounded, as a note; None for a table of a time when that was not kept."""
    if "quantised_share" not in table:
        return None
    return f"{100 * table['quantised_share'].iloc[0]:.3g} % of the weights are rounded"


def _build(context: EvalContext) -> pd.DataFrame:
    """One row per question: its score at each width, `quantised_8` and `quantised_4`, and the share of weights rounded."""
    attacked = quantised(context.model)
    if not attacked:
        raise LookupError("the model has no linear layers that could be quantised")
    before = [weight.detach().clone() for weight, _ in attacked]
    questions = _scores.everything(context.plan)
    table: pd.DataFrame | None = None
    for bits in GROUPS:
        round_weights(attacked, before, bits)
        scores = _scores.scores(context, questions).rename(columns={"score": f"quantised_{bits}"})
        table = scores if table is None else table.merge(scores, on=_scores.KEYS)
    assert table is not None  # there are widths
    of_all = sum(parameter.numel() for parameter in context.model.parameters())
    return table.assign(quantised_share=sum(weight.numel() for weight, _ in attacked) / of_all)
