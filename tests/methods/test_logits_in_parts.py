"""Logits of a large vocabulary are made some sequences at a time, and no gradient changes by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.data.rows import collate
from harness.numerics.likelihood import answer_nll
from methods.curvature import passes
from methods.curvature.factors import covariance_sums
from methods.curvature.gradients import gradient_matrices
from methods.curvature.layers import mlp_layers
from methods.curvature.passes import LogitGradient
from methods.curvature.signals import SampledLabels, SequenceObjective, true_labels
from methods.curvature.spectrum import eigenbases, square_sums
from methods.gauss_newton.corrector import Before, kl_gradient
from tests.methods.test_curvature import PAD, data, float64_logits, llama

ROWS = data(12)
LABELS = [e.label_count for e in ROWS]
WORDS = 11


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, where real use has float32 logits."""
    float64_logits(monkeypatch)
    monkeypatch.setattr(passes, "logits_of", lambda model, hidden: model.lm_head(hidden))


class Widths:
    """How many positions the output embedding was applied to, each time."""

    def __init__(self, model: Any) -> None:
        self.rows: list[int] = []
        model.lm_head.register_forward_hook(lambda module, args, output: self.rows.append(output.shape[:-1].numel()))


def sampled(model: Any) -> list[Tensor]:
    """Everything that two draws per label lead to."""
    layers, labels = mlp_layers(model), SampledLabels(ROWS, 2, 0)
    sums = covariance_sums(model, layers, ROWS, PAD, labels, 2)
    found = [*sums.a.values(), *sums.s.values()]
    squares = square_sums(model, layers, ROWS, PAD, labels, eigenbases(layers, sums), 2)
    return [*found, *squares.squares.values()]


def gradient(signal: Callable[[Any], LogitGradient]) -> Callable[[Any], list[Tensor]]:
    return lambda model: gradient_matrices(model, mlp_layers(model), ROWS, PAD, signal(model))


def npo(model: Any) -> LogitGradient:
    return SequenceObjective(len(ROWS), "npo", 0.1, 0.0, answer_nll(llama(1), ROWS, PAD)[0].tolist())


@pytest.mark.parametrize(
    ("found", "within"),
    [
        (sampled, 1e-9),
        (gradient(lambda model: true_labels(sum(LABELS), "margin", 0.0)), 1e-9),
        (gradient(npo), 1e-9),
        (gradient(lambda model: SequenceObjective(len(ROWS), "simnpo", 2.5, 0.5, None)), 1e-9),
        (gradient(lambda model: kl_gradient(Before(llama(1)), ROWS)), 1e-5),  # what the model before says is float32
    ],
)
@pytest.mark.parametrize("at_once", [2 * max(LABELS) * WORDS, 1])
def test_gradients_are_those_of_all_logits_at_once(
    found: Callable[[Any], list[Tensor]], within: float, at_once: int, monkeypatch: pytest.MonkeyPatch
):
    model = llama()
    whole = found(model)
    widths = Widths(model)
    monkeypatch.setattr(passes, "LOGITS_AT_ONCE", at_once)
    for mine, expected in zip(found(model), whole, strict=True):
        torch.testing.assert_close(mine, expected, rtol=within, atol=1e-9 * within)
    assert max(widths.rows) <= max(at_once // WORDS, max(LABELS)), "never more than a part, or one sequence"
    assert len(widths.rows) > 1


def test_parts_are_of_whole_sequences_and_as_large_as_they_may_be(monkeypatch: pytest.MonkeyPatch):
    batch = collate(ROWS[:5], list(range(5)), PAD)
    assert passes._sequences_at_once(batch, WORDS) == [slice(0, 5)]
    labels = LABELS[:5]
    monkeypatch.setattr(passes, "LOGITS_AT_ONCE", WORDS * (labels[0] + labels[1]))
    slices = passes._sequences_at_once(batch, WORDS)
    assert slices[0] == slice(0, 2)
    assert [i for part in slices for i in range(part.start, part.stop)] == [0, 1, 2, 3, 4]
