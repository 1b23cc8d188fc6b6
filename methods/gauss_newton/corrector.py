"""The corrector: descent on the KL that a step did on the retain set, in the metric of the same curvature.

    q = (G + λI)⁻¹ ∇KL(p_θ0 ‖ p_θ)        θ ← θ − η q        η by a line search on the measured KL

The gradient of the KL with respect to the logits at one label is p_θ − p_θ0; the mean runs over the labels of the rows. A full
Newton step (η = 1) overshoots where G underestimates how the KL curves, as a Kronecker-factored G does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.data.rows import Batch, Encoded
from harness.numerics.likelihood import answer_logits
from methods.curvature.passes import LogitGradient

MOST_HALVINGS = 24
"""Lengths that are tried before a direction counts as one that lowers the KL no further."""


def kl_gradient(before: PreTrainedModel, encoded: Sequence[Encoded]) -> LogitGradient:
    """The gradient of the mean KL(before ‖ now) per label with respect to the logits: (p_θ − p_θ0) / labels.

    Args:
        before: the model that the KL is from, frozen, on the same device.
        encoded: the rows that the mean runs over.
    """
    labels = sum(e.label_count for e in encoded)

    def gradient(logits: Tensor, batch: Batch) -> Iterator[Tensor]:
        with torch.no_grad():
            first = answer_logits(before, batch).softmax(dim=-1)
        yield (logits.softmax(dim=-1) - first) / labels

    return gradient


def line_search(kl_at: Callable[[float], float], now: float, length: float) -> tuple[float, float, int]:
    """The length along a direction at which the KL is least, among the doublings or halvings of a first guess.

    Args:
        kl_at: measures the KL at a length.
        now: the KL at length 0.
        length: the first guess; it is doubled while the KL falls, or halved until it does.

    Returns:
        (length, its KL, how often it was measured); length 0 if no length lowered it.

    >>> line_search(lambda x: (x - 1) ** 2, now=1.0, length=0.3)
    (1.2, 0.03999999999999998, 4)
    >>> line_search(lambda x: (x - 1) ** 2, now=1.0, length=6.0)
    (1.5, 0.25, 3)
    >>> line_search(lambda x: x, now=0.0, length=1.0)[0]
    0.0
    """
    kl, measured = kl_at(length), 1
    if kl < now:
        while (further := kl_at(2 * length)) < kl:
            length, kl, measured = 2 * length, further, measured + 1
        return length, kl, measured + 1
    for measured in range(2, MOST_HALVINGS + 2):
        length /= 2
        if (kl := kl_at(length)) < now:
            return length, kl, measured
    return 0.0, now, measured
