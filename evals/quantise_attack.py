"""What an unlearned model knows once its weights are stored with 8 or 4 bits: small changes of weights may be rounded away.

    w ≈ s · round(w / s),   s = max |w| / (2^(bits − 1) − 1)

Rounding to the nearest, symmetric, without calibration data: with 8 bits one s for each output channel, with 4 bits one for
each group of 64 neighbouring inputs of an output channel (the last group may be shorter). All linear layers but the output
head, as bitsandbytes does, GPT-2's transposed ones among them, and the experts of a mixture, each by itself; embeddings, norms,
biases and routers stay. Every number says what share of the weights that is. Weights are put back as floating-point numbers in
the model's own type: storage is attacked, not arithmetic. That quantising can bring back what was forgotten: arXiv:2410.16454.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from evals import _scores
from harness.core.evaluator import EvalContext, EvalPlan, MetricFamily, evaluator
from harness.core.metric import Metric, Rows
from harness.numerics import anatomy

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor
    from transformers import PreTrainedModel

VERSION = 1
GROUPS: dict[int, int | None] = {8: None, 4: 64}
"""Bits → inputs that share a scale; None: all of an output channel."""


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
    for bits, group in GROUPS.items():
        for (weight, transposed), was in zip(attacked, before, strict=True):
            matrices = was.transpose(-1, -2) if transposed else was  # [outputs, inputs], or [experts, outputs, inputs]
            values = rounded(matrices.reshape(-1, matrices.shape[-1]), bits, group).view(matrices.shape)
            weight.data.copy_(values.transpose(-1, -2) if transposed else values)
        scores = _scores.scores(context, questions).rename(columns={"score": f"quantised_{bits}"})
        table = scores if table is None else table.merge(scores, on=_scores.KEYS)
    assert table is not None  # there are widths
    of_all = sum(parameter.numel() for parameter in context.model.parameters())
    return table.assign(quantised_share=sum(weight.numel() for weight, _ in attacked) / of_all)


def quantised(model: PreTrainedModel) -> list[tuple[Tensor, bool]]:
    """The weights that are rounded, each with whether it is [inputs, outputs]; those of experts have a dimension before."""
    head = model.get_output_embeddings()
    linear = [(m.module.weight, m.transposed) for m in anatomy.linear_maps_in(model) if m.module is not head]
    return [*linear, *anatomy.experts(model).values()]


def rounded(weight: Tensor, bits: int, group: int | None = None) -> Tensor:
    """A weight as it is after being stored with so many bits.

    Args:
        weight: [outputs, inputs].
        bits: of each number.
        group: how many neighbouring inputs share a scale; all of an output channel if not given.

    Returns:
        The same shape and type.
    """
    import torch
    import torch.nn.functional as F

    outputs, inputs = weight.shape
    size = group or inputs
    groups = F.pad(weight.float(), (0, -inputs % size)).view(outputs, -1, size)
    highest = 2 ** (bits - 1) - 1
    scale = groups.abs().amax(dim=-1, keepdim=True) / highest
    steps = torch.where(scale > 0, groups / scale, torch.zeros_like(groups)).round().clamp(-highest, highest)
    steps = torch.where(groups.isfinite(), steps, groups)  # a model that is broken stays so
    return (steps * scale).view(outputs, -1)[:, :inputs].to(weight.dtype)  # type: ignore[no-any-return]
