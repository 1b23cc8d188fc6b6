"""Curvatures on disk: for each layer one safetensors file of its basis and one of its spectrum, as far as it has them.

An A that two layers share is written once, and a basis that is in files already is linked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from harness.models.saving import save_tensors
from methods.curvature.layers import Layer, first_of_groups
from methods.curvature.spectrum import LayerCurvature


def save_curvatures(
    curvatures: Sequence[LayerCurvature],
    layers: Sequence[Layer],
    folder: Path,
    numbers: Sequence[int] | None = None,
    bases: Path | None = None,
) -> None:
    """Write `0000.safetensors` with a layer's eigenvectors, `0000.spectrum.safetensors` where there is a spectrum, and on.

    Args:
        curvatures: one per layer.
        layers: from `mlp_layers`; whole blocks.
        folder: where the files go.
        numbers: of the files; 0 and on if None.
        bases: where the same eigenvectors are in files.
    """
    first, numbers = first_of_groups(layers), numbers or range(len(layers))
    for i, (number, curvature) in enumerate(zip(numbers, curvatures, strict=True)):
        basis: dict[str, Tensor | None] = {"q_out": curvature.q_out, "nu": curvature.nu}
        if first[i] == i:
            basis |= {"q_in": curvature.q_in, "mu": curvature.mu}
        name = _basis(number)
        if bases is None or not _linked(bases / name, folder / name):
            save_tensors({k: v for k, v in basis.items() if v is not None}, folder / name)
        if curvature.corrected is not None:
            save_tensors({"corrected": curvature.corrected}, folder / _spectrum(number))


def _linked(file: Path, to: Path) -> bool:
    """Whether a file could be given a second place."""
    to.unlink(missing_ok=True)  # of a portion that was begun anew
    try:
        os.link(file, to)
    except OSError:  # a file system without links, or the file was removed meanwhile
        return False
    return True


def _basis(number: int) -> str:
    return f"{number:04d}.safetensors"


def _spectrum(number: int) -> str:
    return f"{number:04d}.spectrum.safetensors"


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
        tensors: Mapping[str, Tensor] = load_file(folder / _basis(number), device=beside)
        spectrum = folder / _spectrum(number)
        corrected = load_file(spectrum, device=beside)["corrected"] if spectrum.exists() else None
        if first[i] == i:
            q_in, mu = tensors.get("q_in"), tensors.get("mu")
        else:
            q_in, mu = curvatures[first[i]].q_in, curvatures[first[i]].mu
        curvatures.append(LayerCurvature(q_in, tensors.get("q_out"), mu, tensors.get("nu"), corrected))
    return curvatures
