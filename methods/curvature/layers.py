"""The linear maps that the curvature is about, and what it takes of memory.

Weight and bias are one matrix [out, in (+ 1)]: a layer with a bias reads one more input, which is always 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from harness.core.errors import UsageError
from harness.numerics import anatomy
from harness.numerics.anatomy import LinearMap
from harness.numerics.group import give_from_first
from harness.numerics.products import OnednnLinear
from methods._settings import ANY_ARCHITECTURE


@dataclass(frozen=True)
class Layer:
    """One targeted linear map; weight and bias are treated as one matrix [out, in (+ 1)].

    >>> layer = Layer(LinearMap("mlp.down_proj", nn.Linear(3, 2), transposed=False), block=0)
    >>> layer.shape
    (2, 4)
    >>> layer.set_matrix(torch.arange(8.0).reshape(2, 4))
    >>> layer.module.bias.tolist()
    [3.0, 7.0]
    """

    linear: LinearMap
    """The map."""
    block: int
    """The decoder layer it belongs to, from 0."""

    @property
    def name(self) -> str:
        """As in `model.named_modules()`."""
        return self.linear.name

    @property
    def module(self) -> nn.Linear | Conv1D:
        """The module itself."""
        return self.linear.module

    @property
    def by_onednn(self) -> bool:
        """Whether it multiplies by oneDNN on a CPU, as those of wide models do (`harness.numerics.products`)."""
        return isinstance(self.module, OnednnLinear)

    @property
    def has_bias(self) -> bool:
        """Whether a 1 is appended to the inputs."""
        return self.module.bias is not None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), the bias counted as one more input."""
        out, inputs = self.linear.matrix().shape
        return out, inputs + self.has_bias

    def matrix(self) -> Tensor:
        """[out, in (+ 1)] a float32 copy of weight and bias."""
        weight = self.linear.matrix()
        if self.has_bias:
            weight = torch.cat([weight, self.module.bias.detach()[:, None]], dim=1)
        return weight.float().clone()

    @torch.no_grad()
    def set_matrix(self, value: Tensor) -> None:
        """Write weight and bias, cast once to their type.

        Args:
            value: [out, in (+ 1)].
        """
        if self.has_bias:
            value, bias = value[:, :-1], value[:, -1]
            self.module.bias.copy_(bias)
        self.linear.matrix().copy_(value)


class Line:
    """The way of some layers along a direction, from where they are when it is made.

    Args:
        layers: whose weights move.
        direction: [out, in (+ 1)] for each layer; in a group of processes that of the first one, put into all.

    >>> layer = Layer(LinearMap("down_proj", nn.Linear(1, 1, bias=False), transposed=False), block=0)
    >>> layer.set_matrix(torch.tensor([[3.0]]))
    >>> line = Line([layer], [torch.tensor([[2.0]])])
    >>> line.go(5.0), line.go(-1.0), layer.matrix().item()
    (None, None, 1.0)
    """

    def __init__(self, layers: Sequence[Layer], direction: Sequence[Tensor]) -> None:
        self.start = [layer.matrix().to(towards.device) for layer, towards in zip(layers, direction, strict=True)]
        """[out, in (+ 1)] where each layer was, beside the direction."""
        give_from_first(direction)
        self._layers, self._direction = layers, direction

    def go(self, length: float) -> None:
        """To the start plus so much of the direction."""
        for layer, matrix, towards in zip(self._layers, self.start, self._direction, strict=True):
            device = layer.module.weight.device
            layer.set_matrix(matrix.to(device) + length * towards.to(device))


def mlp_layers(model: PreTrainedModel, blocks: Sequence[int] | None = None) -> list[Layer]:
    """The linear maps of the MLPs (gate, up, down; fc1, fc2; c_fc, c_proj), in the order of the forward pass.

    Args:
        model: a decoder.
        blocks: the decoder layers to take, from 0; all if None.

    Raises:
        UsageError: if there are none, if they are experts, or if a block is not there.
    """
    if anatomy.has_experts(model):
        raise UsageError(
            f"{model.config.model_type} has a mixture of experts; its curvature is not built here. {ANY_ARCHITECTURE}."
        )
    decoder = anatomy.decoder_layers(model)
    if not any(layer.mlp for layer in decoder):
        raise UsageError(
            f"the architecture '{model.config.model_type}' has no MLP layers that are known here, which the curvature targets; "
            f"its linear maps are {anatomy.described(model)}. {ANY_ARCHITECTURE}."
        )
    return [Layer(linear, layer.number) for layer in anatomy.chosen(decoder, blocks) for linear in layer.mlp]


def input_groups(layers: Sequence[Layer]) -> list[int]:
    """For each layer the number of the group it shares its input with, hence its A: gate and up of one MLP."""
    groups: list[int] = []
    for i, layer in enumerate(layers):
        before = layers[i - 1] if i else layer
        shared = i > 0 and before.block == layer.block and before.has_bias == layer.has_bias
        same = shared and anatomy.read_the_same(before.linear, layer.linear)
        groups.append(groups[-1] if same else (groups[-1] + 1 if groups else 0))
    return groups


def first_of_groups(layers: Sequence[Layer]) -> list[int]:
    """For each layer the position of the first one that reads the same input; its own if there is none before it."""
    groups = input_groups(layers)
    return [groups.index(group) for group in groups]


@dataclass(frozen=True)
class Sizes:
    """What the curvature of some layers takes, in bytes; modules on the meta device will do."""

    factors: int
    """Both factors of every layer, or the eigenvectors that replace them."""
    spectrum: int
    """One float32 matrix of each layer's shape: an EK-FAC spectrum, a gradient, a direction."""
    decomposition: int
    """The largest factor, its eigenvectors and the solver's workspace in float64."""


def sizes(layers: Sequence[Layer]) -> Sizes:
    """What the curvature of these layers takes: 4 (in² + out²) bytes of factors for each, an A that is shared counted once.

    >>> sizes([Layer(LinearMap("down_proj", nn.Linear(3, 2, bias=False), transposed=False), 0)])
    Sizes(factors=52, spectrum=24, decomposition=288)
    """
    first = first_of_groups(layers)
    inputs = [layer.shape[1] for i, layer in enumerate(layers) if first[i] == i]
    outputs = [layer.shape[0] for layer in layers]
    return Sizes(
        factors=4 * sum(n * n for n in (*inputs, *outputs)),
        spectrum=4 * sum(layer.shape[0] * layer.shape[1] for layer in layers),
        decomposition=4 * 8 * max((*inputs, *outputs)) ** 2,
    )
