"""A copy of a model's weights: put back, or a place on the straight line to another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.numerics.sharding import part


@dataclass
class Weights:
    """A copy of what is trainable in a model (of all its weights, where nothing is marked so), on the CPU.

    Of sharded weights each process copies, and puts back, its own parts.
    """

    tensors: Mapping[str, Tensor]

    @staticmethod
    def of(model: PreTrainedModel) -> Weights:
        """As they are now."""
        named = dict(model.named_parameters())
        trainable = {name: p for name, p in named.items() if p.requires_grad} or named
        return Weights({name: part(p.detach()).to("cpu", copy=True) for name, p in trainable.items()})

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def then(self, later: Weights) -> Weights:
        """These, and of later ones what they hold: what was not trainable since has not moved."""
        return Weights({**self.tensors, **later.tensors})

    def place(self, model: PreTrainedModel, towards: Weights | None = None, share: float = 0.0) -> None:
        """Give them to the model, or what lies between them and others: (1 − share) θ + share θ', rounded once."""
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                if towards is not None and share:
                    end = towards.tensors.get(name, tensor)
                    tensor = end if share == 1 else torch.lerp(tensor.float(), end.float(), share).to(tensor.dtype)
                part(parameters[name]).copy_(tensor)
