"""What an unlearned model knows once its weights are stored with 8 or 4 bits: small changes of weights may be rounded away.

    w ≈ s · round(w / s),   s = max |w| / (2^(bits − 1) − 1)

Rounding to the nearest, symmetric, without calibration data: with 8 bits one s for each output channel, with 4 bits one for
each group of 64 neighbouring inputs of an output channel (the last group may be shorter). All linear layers but the output
head, as bitsandbytes does, GPT-2's transposed ones among them, and the experts of a mixture, each by itself; embeddings, norms,
biases and routers stay. Every number says what share of the weights that is. Weights are put back as floating-point numbers in
the model's own type: storage is attacked, not arithmetic. That quantising can bring back what was forgotten: arXiv:2410.16454.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evals import _scores
from harness.core.interfaces import Absent, Better, Measurement, Setting, Subject, evaluator
from harness.numerics import anatomy

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor
    from transformers import PreTrainedModel

VERSION = 1
GROUPS: dict[int, int | None] = {8: None, 4: 64}
"""Bits → inputs that share a scale; None: all of an output channel."""


@evaluator("quantise_attack", version=VERSION, changes_model=True)
def measure(subject: Subject) -> Sequence[Measurement | Absent]:
    """`<set>_<bits>_bit`, the mean score after quantisation of each set of questions, not the forgotten ones alone."""
    sets, forgotten = list(_scores.everything(subject.task)), _scores.forgotten(subject.task)
    if not sets:
        reason = "this benchmark has no questions that can be scored"
        return [Absent(metric=f"forget_{bits}_bit", reason=reason) for bits in GROUPS]
    return [_score(subject, name, bits, "lower" if name in forgotten else "higher") for name in sets for bits in GROUPS]


def _score(subject: Subject, name: str, bits: int, wanted: Better) -> Measurement | Absent:
    def table() -> pd.DataFrame:
        return subject.table("quantised", _build)

    def rows(of: Subject) -> tuple[np.ndarray, np.ndarray]:
        found = of.table("quantised", _build)
        found = found[found["task"] == name]
        return found[f"quantised_{bits}"].to_numpy(dtype=float), found["cluster"].to_numpy()

    metric = f"{name}_{bits}_bit"
    try:
        return _scores.mean(metric, VERSION, subject, rows, _share(table()), wanted)
    except LookupError as error:
        return Absent(metric=metric, reason=str(error))


def _share(table: pd.DataFrame) -> str | None:
    """What share of the weights is rounded, as a note; None for a table of a time when that was not kept."""
    if "quantised_share" not in table:
        return None
    return f"{100 * table['quantised_share'].iloc[0]:.3g} % of the weights are rounded"


def _build(setting: Setting) -> pd.DataFrame:
    """One row per question: its score at each width, `quantised_8` and `quantised_4`, and the share of weights rounded."""
    attacked = quantised(setting.model)
    if not attacked:
        raise LookupError("the model has no linear layers that could be quantised")
    before = [weight.detach().clone() for weight, _ in attacked]
    asked = _scores.everything(setting.task)
    table: pd.DataFrame | None = None
    for bits, group in GROUPS.items():
        for (weight, transposed), was in zip(attacked, before, strict=True):
            matrices = was.transpose(-1, -2) if transposed else was  # [outputs, inputs], or [experts, outputs, inputs]
            found = rounded(matrices.reshape(-1, matrices.shape[-1]), bits, group).view(matrices.shape)
            weight.data.copy_(found.transpose(-1, -2) if transposed else found)
        scores = _scores.scores(setting, asked).rename(columns={"score": f"quantised_{bits}"})
        table = scores if table is None else table.merge(scores, on=_scores.KEYS)
    assert table is not None  # there are widths
    of_all = sum(parameter.numel() for parameter in setting.model.parameters())
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
