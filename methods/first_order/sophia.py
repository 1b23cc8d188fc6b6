"""Sophia: momentum over a diagonal curvature, every coordinate's step clipped.

    m ← β₁ m + (1−β₁) g        θ ← (1 − lr·λ) θ        θ ← θ − lr · clip(m / (ρ h), 1)

`Sophia` is what SOUL's authors run (arXiv:2404.18239; OPTML-Group/SOUL `src/optim/sophia.py`): h is a running mean of the
squared gradient, and m is updated twice in a step. `SophiaG` is the textbook's (Liu et al. 2023, arXiv:2305.14342,
algorithms 2 and 3): h is a running mean of Gauss-Newton-Bartlett estimates, refreshed every few steps.
Both decay matrices only; norms and biases, which have one dimension, are left out, as by SOUL's authors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from harness.core.streams import streams
from harness.data.rows import Batch
from harness.numerics.group import add_up, summed
from harness.numerics.likelihood import answer_logits, drawn_tokens

NEVER_ZERO = 1e-15
"""What `Sophia` adds to its denominator."""


class Sophia(torch.optim.Optimizer):
    """As SOUL's authors shipped it.

    h ← β₂ h + (1−β₂) g²;   m ← β₁ m + (1−β₁) g, twice;   θ ← (1 − lr·λ) θ;   θ ← θ − lr sgn(m) min(|m| / (ρ s h + 1e−15), 1)

    Args:
        named: names and parameters.
        lr: learning rate, which a scheduler may change.
        betas: β₁, β₂.
        rho: ρ.
        weight_decay: λ.
        hessian_scale: s, the batch size by which h is multiplied; constant.
    """

    def __init__(
        self,
        named: Sequence[tuple[str, Tensor]],
        lr: float,
        betas: tuple[float, float],
        rho: float,
        weight_decay: float,
        hessian_scale: float,
    ) -> None:
        super().__init__(named, {"lr": lr})
        self._betas, self._weight_decay, self._h_factor = betas, weight_decay, rho * hessian_scale
        for _, parameter in named:
            self.state[parameter] = {"momentum": torch.zeros_like(parameter), "hessian": torch.zeros_like(parameter)}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step along the gradients that are there."""
        beta1, beta2 = self._betas
        for group in self.param_groups:
            for parameter in group["params"]:
                if (gradient := parameter.grad) is None:
                    continue
                momentum, hessian = self.state[parameter]["momentum"], self.state[parameter]["hessian"]
                hessian.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                for _ in range(2):
                    momentum.mul_(beta1).add_(gradient, alpha=1 - beta1)
                if parameter.dim() > 1:
                    parameter.mul_(1 - group["lr"] * self._weight_decay)
                length = (momentum.abs() / (hessian * self._h_factor + NEVER_ZERO)).clamp_(max=1)
                parameter.addcmul_(momentum.sign(), length, value=-group["lr"])


class SophiaG(torch.optim.Optimizer):
    """The textbook's.

    m ← β₁ m + (1−β₁) g;   θ ← (1 − lr·λ) θ;   θ ← θ − lr clip(m / max(ρ h, ε), 1);   h ← β₂ h + (1−β₂) ĥ at a refresh

    Args:
        named: names and parameters.
        lr: learning rate, which a scheduler may change.
        betas: β₁, β₂.
        rho: ρ (γ in the paper).
        weight_decay: λ.
        epsilon: ε.
    """

    def __init__(
        self,
        named: Sequence[tuple[str, Tensor]],
        lr: float,
        betas: tuple[float, float],
        rho: float,
        weight_decay: float,
        epsilon: float,
    ) -> None:
        super().__init__(named, {"lr": lr})
        self._named = dict(named)
        self._betas, self._rho, self._weight_decay, self._epsilon = betas, rho, weight_decay, epsilon
        for _, parameter in named:
            self.state[parameter] = {"momentum": torch.zeros_like(parameter), "hessian": torch.zeros_like(parameter)}

    @torch.no_grad()
    def refresh(self, estimates: Mapping[str, Tensor]) -> None:
        """Take new estimates ĥ of the curvature's diagonal, one for each parameter, by name."""
        beta2 = self._betas[1]
        for name, parameter in self._named.items():
            self.state[parameter]["hessian"].mul_(beta2).add_(estimates[name], alpha=1 - beta2)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step along the gradients that are there."""
        beta1 = self._betas[0]
        for group in self.param_groups:
            for parameter in group["params"]:
                if (gradient := parameter.grad) is None:
                    continue
                momentum, hessian = self.state[parameter]["momentum"], self.state[parameter]["hessian"]
                momentum.mul_(beta1).add_(gradient, alpha=1 - beta1)
                if parameter.dim() > 1:
                    parameter.mul_(1 - group["lr"] * self._weight_decay)
                clipped = (momentum / (hessian * self._rho).clamp_(min=self._epsilon)).clamp_(-1, 1)
                parameter.add_(clipped, alpha=-group["lr"])


def gauss_newton_bartlett(model: PreTrainedModel, draws: Sequence[tuple[Batch, Tensor]]) -> dict[str, Tensor]:
    """An unbiased estimate of the diagonal of the mean cross-entropy's Gauss-Newton matrix.

    B ĝ⊙ĝ,   ĝ = ∇ (1/B) Σ_b −log p(ŷ_b),   ŷ_b ~ p_b    (Bartlett's identity; Liu et al. 2023, algorithm 2)

    Args:
        model: no `grad` of its parameters is touched.
        draws: batches, each with a uniform number in [0, 1) for each of its labels, in a group of processes one's share of
            them; B is the number of labels in all.

    Returns:
        For each parameter that takes a gradient, by name: its estimate, float32.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    (labels,) = summed(sum(len(uniform) for _, uniform in draws))
    sums: list[Tensor] = []
    for batch, uniform in draws:
        logits = answer_logits(model, batch)
        loss = F.cross_entropy(logits, sampled_labels(logits.detach(), uniform), reduction="sum") / labels
        gradients = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
        sums = [s.add_(g) for s, g in zip(sums, gradients, strict=True)] if sums else [g.float() for g in gradients]
    add_up(sums)
    return {name: gradient.square_().mul_(labels) for name, gradient in zip(named, sums, strict=True)}


def sampled_labels(logits: Tensor, uniform: Tensor) -> Tensor:
    """[N] a label drawn from each row's distribution: where the cumulative probability reaches the uniform number.

    Args:
        logits: [N, V].
        uniform: [N] in [0, 1).
    """
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    return drawn_tokens(cumulative, uniform.to(cumulative))


def uniform_numbers(batch: Batch, seed: int, *place: int) -> Tensor:
    """A number in [0, 1) for each label of a batch, the same however a step was cut into batches.

    Args:
        batch: whose `rows` are positions in the step.
        seed: of the run.
        place: tells the batches of one run apart.

    Returns:
        [N] float32, in the order of `answer_labels(batch)`.
    """
    counts = batch.counts.tolist()
    drawn = [
        streams(seed, "sophia labels", *place, row).numpy().random(count, dtype=np.float32)
        for row, count in zip(batch.rows.tolist(), counts, strict=True)
    ]
    return torch.from_numpy(np.concatenate(drawn)).to(batch.labels.device)
