"""Curvatures on disk: one safetensors file a layer, an A that two layers share written once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from harness.models.saving import save_tensors
from methods.curvature.layers import Layer, first_of_groups
from methods.curvature.spectrum import LayerCurvature


def save_curvatures(
    curvatures: Sequence[LayerCurvature], layers: Sequence[Layer], folder: Path, numbers: Sequence[int] | None = None
) -> None:
    """Write one file for each layer, `0000.safetensors` and on.

    Args:
        curvatures: one per layer.
        layers: from `mlp_layers`; whole blocks.
        folder: where the files go.
        numbers: of the files; 0 and on if None.
    """
    first, numbers = first_of_groups(layers), numbers or range(len(layers))
    for i, (number, curvature) in enumerate(zip(numbers, curvatures, strict=True)):
        tensors: dict[str, Tensor | None] = {"q_out": curvature.q_out, "nu": curvature.nu, "corrected": curvature.corrected}
        if first[i] == i:
            tensors |= {"q_in": curvature.q_in, "mu": curvature.mu}
        save_tensors({k: v for k, v in tensors.items() if v is not None}, folder / f"{number:04d}.safetensors")


def load_curvatures(
    layers: Sequence[Layer], folder: Path, device: torch.device | None = None, numbers: Sequence[int] | None = None
) -> list[LayerCurvature]:
    """What `save_curvatures` wrote.

    Args:
        layers: the same.
        folder: where the files are.
        device: where the tensors go; each layer's beside its weights if None.
        numbers: of the files; 0 and on if None.
    """
    first, numbers = first_of_groups(layers), numbers or range(len(layers))
    curvatures: list[LayerCurvature] = []
    for i, (number, layer) in enumerate(zip(numbers, layers, strict=True)):
        beside = str(device or layer.module.weight.device)
        tensors: Mapping[str, Tensor] = load_file(folder / f"{number:04d}.safetensors", device=beside)
        if first[i] == i:
            q_in, mu = tensors.get("q_in"), tensors.get("mu")
        else:
            q_in, mu = curvatures[first[i]].q_in, curvatures[first[i]].mu
        curvatures.append(LayerCurvature(q_in, tensors.get("q_out"), mu, tensors.get("nu"), tensors.get("corrected")))
    return curvatures
