"""What an unlearned model knows once its weights are stored with 8 or 4 bits: small changes of weights may be rounded away.

    w ≈ s · round(w / s),   s = max |w| / (2^(bits − 1) − 1)

Rounding to the nearest, symmetric, without calibration data: with 8 bits one s for each output channel, with 4 bits one for
each group of 64 neighbouring inputs of an output channel (the last group may be shorter). All linear layers but the output
head, as bitsandbytes does; embeddings, norms and biases stay. Weights are put back as floating-point numbers in the model's own
type: storage is attacked, not arithmetic. That quantising can bring back what was forgotten: arXiv:2410.16454.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evals import _scores
from harness.interfaces import Absent, Better, Measurement, Setting, Subject, evaluator

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
    def rows(of: Subject) -> tuple[np.ndarray, np.ndarray]:
        table = of.table("quantised", _build)
        table = table[table["task"] == name]
        return table[f"quantised_{bits}"].to_numpy(dtype=float), table["cluster"].to_numpy()

    metric = f"{name}_{bits}_bit"
    try:
        return _scores.mean(metric, VERSION, subject, rows, wanted=wanted)
    except LookupError as error:
        return Absent(metric=metric, reason=str(error))


def _build(setting: Setting) -> pd.DataFrame:
    """One row per question: its score at each width, `quantised_8` and `quantised_4`."""
    before = {name: weight.detach().clone() for name, weight in _quantised(setting.model).items()}
    if not before:
        raise LookupError("the model has no linear layers that could be quantised")
    asked = _scores.everything(setting.task)
    table: pd.DataFrame | None = None
    for bits, group in GROUPS.items():
        for name, weight in _quantised(setting.model).items():
            weight.data.copy_(rounded(before[name], bits, group))
        found = _scores.scores(setting, asked).rename(columns={"score": f"quantised_{bits}"})
        table = found if table is None else table.merge(found, on=_scores.KEYS)
    assert table is not None  # there are widths
    return table


def _quantised(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights that are rounded: those of linear layers other than the output head."""
    from torch import nn

    head = model.get_output_embeddings()
    return {name: m.weight for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}


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
