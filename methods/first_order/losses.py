"""What the losses of first-order methods are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.core.method import Setting

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness.data.rows import Batch, Encoded


def answer_nll_sums(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Each sequence's negative log-likelihood summed over its labels, with gradient, and the number of its labels.

    Returns:
        ([B] nats, [B] counts), float32. S and T in the methods' formulas.
    """
    import torch.nn.functional as F

    from harness.numerics.likelihood import answer_labels, answer_logits, sums_by_example

    losses = F.cross_entropy(answer_logits(model, batch), answer_labels(batch), reduction="none")
    return sums_by_example(losses, batch), batch.counts.float()


def reference_nll(setting: Setting, sequences: Sequence[Encoded], pad: int) -> Tensor:
    """S of the model as it is now for each sequence: what the originals compute with a frozen copy at every step.

    Returns:
        [N] nats, float32, on the model's device.
    """
    import torch

    from harness.numerics.likelihood import answer_nll

    setting.costs.count(sum(len(e.input_ids) for e in sequences))
    sums, _ = answer_nll(setting.model, sequences, pad)
    return torch.from_numpy(sums).to(setting.model.device, torch.float32)
