"""What goes into the backward pass: the gradient of a loss with respect to the logits, written out for each loss.

With p the model's distribution at a label's position and e_y the unit vector of a token y, the cross-entropy's gradient is
p − e_y; what follows are means and weights of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from harness.core.streams import streams
from harness.data.rows import Batch, Encoded
from harness.numerics.likelihood import answer_labels, drawn_tokens, sums_by_example
from methods.curvature.passes import LogitGradient


class SampledLabels:
    """Gradients of the cross-entropy at labels drawn from the model: p − e_ŷ, un-averaged.

    E[(p − e_ŷ)(p − e_ŷ)ᵀ] = diag(p) − p pᵀ for ŷ ~ p: the Fisher information, which the true labels do not give
    (Kunstner et al. 2019, arXiv:1905.12558). Labels come from uniform numbers seeded by (seed, row of the data set), so they
    depend neither on batch size nor on order. The numbers are made on the CPU, 4 bytes a label, so that every kind of device
    draws alike; the model's distribution, its sums and the search in them stay on the model's device.

    Args:
        encoded: the data set.
        samples: draws per label.
        seed: of the draws.

    >>> from harness.data.rows import collate
    >>> examples = [Encoded([5, 1, 2], prompt_tokens=1)]
    >>> certain = torch.tensor([[0.0, 999, 0], [0, 0, 999]])  # tokens 1 and 2, without doubt
    >>> (gradient,) = SampledLabels(examples, 1, 0)(certain, collate(examples, [0], 0))
    >>> gradient.tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """

    def __init__(self, encoded: Sequence[Encoded], samples: int, seed: int) -> None:
        self.samples = samples
        self._uniform = [
            streams(seed, "curvature labels", row).numpy().random((samples, e.label_count), dtype=np.float32)
            for row, e in enumerate(encoded)
        ]

    def __call__(self, logits: Tensor, batch: Batch) -> Iterator[Tensor]:
        """See `LogitGradient`."""
        p = logits.softmax(dim=-1)
        cumulative = p.cumsum(dim=-1)
        uniform = np.concatenate([self._uniform[row] for row in batch.rows.tolist()], axis=1)  # [samples, N]
        for u in torch.from_numpy(uniform).to(p.device):
            labels = drawn_tokens(cumulative, u)[:, None]
            yield p.scatter_add(1, labels, p.new_full(labels.shape, -1.0))


def true_labels(labels_in_all: int, objective: Literal["cross_entropy", "margin"], margin_clip: float) -> LogitGradient:
    """The gradient of the forget objective that is to rise, averaged over all labels of the forget set.

    cross_entropy: p − e_y.   margin: −margin = −log(p_y / (1 − p_y)), hence (p − e_y) / (1 − p_y): bounded, and not
    vanishing on memorised tokens (arXiv:2602.10568, section 3). With a clip, the divisor is at least `margin_clip`.

    Args:
        labels_in_all: number of labels the mean is over.
        objective: which.
        margin_clip: 0 for the paper's form.

    >>> from harness.data.rows import collate
    >>> batch = collate([Encoded([5, 1], prompt_tokens=1)], [0], 0)
    >>> logits = torch.tensor([[0.25, 0.5, 0.25]]).log()
    >>> [g.round(decimals=2).tolist() for g in true_labels(1, "cross_entropy", 0)(logits, batch)]
    [[[0.25, -0.5, 0.25]]]
    >>> [g.round(decimals=2).tolist() for g in true_labels(1, "margin", 0)(logits, batch)]
    [[[0.5, -1.0, 0.5]]]
    """

    def gradient(logits: Tensor, batch: Batch) -> Iterator[Tensor]:
        labels = answer_labels(batch)[:, None]
        p = logits.softmax(dim=-1)
        error = p.scatter_add(1, labels, p.new_full(labels.shape, -1.0))
        if objective == "margin":
            # 1 − p_y as the sum of the others: a difference of floats would be 0 on memorised tokens.
            rest = p.scatter(1, labels, 0.0).sum(dim=1, keepdim=True)
            error = error.scatter(1, labels, -rest) / rest.clamp(min=max(margin_clip, torch.finfo(p.dtype).tiny))
        yield error / labels_in_all

    return gradient


class SequenceObjective:
    """Gradients of minus the NPO or the SimNPO loss, which weigh every sequence by how far it is already forgotten.

    npo:     (2/β) mean_b log σ(β [S − S_θ0]_b)     each label: w_b (p − e_y) / B,  w_b = 2 σ(−β [S − S_θ0]_b)
    simnpo:  (2/β) mean_b log σ(β (S/T − γ)_b)      w_b = 2 σ(−β (S/T − γ)_b) / T_b

    with S a sequence's summed negative log-likelihood and T its labels (arXiv:2404.05868, arXiv:2410.07163).

    Args:
        sequences: B, how many the mean is over.
        objective: which.
        beta: β.
        gamma: γ of simnpo.
        before: S_θ0 of every sequence of the data set, in nats, for npo.

    Raises:
        ValueError: for npo without losses before unlearning, and for simnpo with them.

    At S = S_θ0 the weight of npo is 1:

    >>> from harness.data.rows import collate
    >>> batch = collate([Encoded([5, 1], prompt_tokens=1)], [0], 0)
    >>> logits = torch.tensor([[0.5, 0.5]]).log()
    >>> (gradient,) = SequenceObjective(1, "npo", 0.1, 0.0, before=[float(np.log(2))])(logits, batch)
    >>> gradient.tolist()
    [[0.5, -0.5]]
    """

    def __init__(
        self, sequences: int, objective: Literal["npo", "simnpo"], beta: float, gamma: float, before: Sequence[float] | None
    ) -> None:
        if (before is None) == (objective == "npo"):
            raise ValueError("npo needs the losses before unlearning, simnpo takes none")
        self._sequences, self._beta, self._gamma, self._before = sequences, beta, gamma, before

    def __call__(self, logits: Tensor, batch: Batch) -> Iterator[Tensor]:
        """See `LogitGradient`."""
        labels, counts = answer_labels(batch)[:, None], batch.counts
        log_p = logits.log_softmax(dim=-1)
        sums = sums_by_example(-log_p.gather(1, labels)[:, 0], batch)
        if self._before is not None:
            rise = sums - sums.new_tensor([self._before[row] for row in batch.rows.tolist()])
            weights = 2 * (-self._beta * rise).sigmoid()
        else:
            weights = 2 * (-self._beta * (sums / counts - self._gamma)).sigmoid() / counts
        error = log_p.exp().scatter_add(1, labels, log_p.new_full(labels.shape, -1.0))
        yield error * weights.repeat_interleave(counts)[:, None] / self._sequences
