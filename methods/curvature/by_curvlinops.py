"""The same curvatures from curvlinops-for-pytorch, where it can give them (`backend=curvlinops`).

It masks neither padding nor prompts, accumulates in the model's type and knows no Conv1D; such cases are refused. Version 3.0's
names for its operators' states are used here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from harness.core.errors import UsageError
from harness.data.rows import Encoded
from methods.curvature import passes
from methods.curvature.layers import Layer
from methods.curvature.spectrum import LayerCurvature, eigenvectors


def curvlinops_curvatures(
    model: PreTrainedModel,
    layers: Sequence[Layer],
    encoded: Sequence[Encoded],
    estimator: Literal["kfac", "ekfac"],
    samples: int,
    seed: int,
) -> list[LayerCurvature]:
    """Each layer's curvature.

    Args:
        model: in eval mode.
        layers: from `mlp_layers`.
        encoded: the data set.
        estimator: which.
        samples: draws per label.
        seed: of the draws, which are curvlinops' own.

    Raises:
        UsageError: for sequences of different lengths or prompts (it cannot mask them), for Conv1D layers, or a model
            that is not float32 or float64 (it would accumulate in the model's type).
    """
    check(model, layers, encoded)
    from curvlinops import EKFACLinearOperator, KFACLinearOperator

    length, first = len(encoded[0].input_ids), max(1, encoded[0].prompt_tokens)
    ids = torch.tensor([e.input_ids for e in encoded], device=model.device)
    with _gradients_of(model, layers) as parameters:
        operator = (KFACLinearOperator if estimator == "kfac" else EKFACLinearOperator)(
            _Flat(model, first),
            nn.CrossEntropyLoss(reduction="sum"),
            parameters,
            [(part, part[:, first:].flatten()) for part in ids.split(max(1, passes.TOKENS_PER_BATCH // length))],
            check_deterministic=False,
            seed=seed,
            mc_samples=samples,
            num_data=len(encoded),
            num_per_example_loss_terms=length - first,
            separate_weight_and_bias=False,
        )
        operator.compute_kronecker_factors()
        labels = sum(e.label_count for e in encoded)
        curvatures = _kfac(operator.state_dict(), layers, labels)
        if estimator == "ekfac":
            operator.compute_eigenvalue_correction()
            _correct(curvatures, operator.state_dict(), layers, labels)
    return curvatures


def check(model: PreTrainedModel, layers: Sequence[Layer], encoded: Sequence[Encoded]) -> None:
    """Whether curvlinops can do it.

    Raises:
        UsageError: if not, saying why.
    """
    if len({(len(e.input_ids), e.prompt_tokens) for e in encoded}) != 1:
        raise UsageError(
            "backend=curvlinops cannot mask padding or prompts: all sequences must have one length and one prompt length, "
            "and these do not. Use backend=own."
        )
    if any(isinstance(layer.module, Conv1D) for layer in layers):
        raise UsageError("backend=curvlinops knows no Conv1D layers (GPT-2). Use backend=own.")
    if model.dtype not in (torch.float32, torch.float64):
        raise UsageError(f"backend=curvlinops would accumulate in {model.dtype}. Use --dtype float32 or backend=own.")


class _Flat(nn.Module):
    """A model whose output has one row for each label: curvlinops accepts [B, T, V] silently and gets it wrong."""

    def __init__(self, inner: PreTrainedModel, first: int) -> None:
        super().__init__()
        self.inner, self._first = inner, first

    def forward(self, ids: Tensor) -> Tensor:
        """[B, T] tokens → [N, V] logits."""
        logits = self.inner(input_ids=ids, use_cache=False).logits[:, self._first - 1 : -1]
        return logits.flatten(0, 1)  # type: ignore[no-any-return]


@contextmanager
def _gradients_of(model: PreTrainedModel, layers: Sequence[Layer]) -> Iterator[list[Tensor]]:
    """Inside, the layers' weights and biases take gradients and no others."""
    with passes.frozen(model):
        parameters = [p for layer in layers for p in (layer.module.weight, layer.module.bias) if p is not None]
        for parameter in parameters:
            parameter.requires_grad_()
        try:
            yield parameters
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)


def _kfac(state: Mapping[str, Any], layers: Sequence[Layer], labels: int) -> list[LayerCurvature]:
    curvatures = []
    for layer in layers:
        name = f"inner.{layer.name}"
        # Its "sum" reduction leaves S and the spectrum as sums over labels; A is a mean already.
        a, s = state["input_covariances"][name], state["gradient_covariances"][name] / labels
        (mu, q_in), (nu, q_out) = eigenvectors(a, a.dtype), eigenvectors(s, a.dtype)
        curvatures.append(LayerCurvature(q_in, q_out, mu, nu))
    return curvatures


def _correct(curvatures: Sequence[LayerCurvature], state: Mapping[str, Any], layers: Sequence[Layer], labels: int) -> None:
    for curvature, layer in zip(curvatures, layers, strict=True):
        name = f"inner.{layer.name}"
        curvature.q_in = state["input_covariances_eigenvectors"][name]
        curvature.q_out = state["gradient_covariances_eigenvectors"][name]
        corrected = state["corrected_eigenvalues"][name]
        curvature.corrected = (corrected if layer.has_bias else next(iter(corrected.values()))) / labels
