"""The retain curvature and the forget gradient of a step, from the cache where they have been computed before.

The keys hold neither damping nor step size: both can be changed after the fit. Processes of a group share out the rows that
are summed over, and the first one makes the rest of it; the keys do not say how many there were, since sums differ by rounding
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file
from torch import Tensor

from harness.core.config import JSON
from harness.data.rows import Encoded
from harness.models.saving import save_tensors
from harness.numerics import group
from harness.numerics.identity import versions
from methods.curvature.by_curvlinops import curvlinops_curvatures
from methods.curvature.factors import covariance_sums
from methods.curvature.files import load_curvatures, save_curvatures
from methods.curvature.gradients import gradient_matrices
from methods.curvature.layers import Layer, sizes
from methods.curvature.passes import LogitGradient
from methods.curvature.portions import Held, by_portions, home
from methods.curvature.signals import SampledLabels, SequenceObjective, true_labels
from methods.curvature.spectrum import LayerCurvature, eigenbases, square_sums
from methods.gauss_newton.config import Estimator
from methods.gauss_newton.data import StageData, sequences_digest

CURVATURE_VERSION = 2
"""Raised when what is cached of a fit changes."""


class Fitted(NamedTuple):
    """What a fit gives."""

    curvatures: list[LayerCurvature]
    """Of each layer; on the CPU where a device has no room for all and what is solved with them."""
    portions: int
    """How many passes over the data were made here where one is enough with more memory; 1 also for what was cached."""

    @property
    def logged(self) -> dict[str, float]:
        """What is recorded of it: nothing where all layers were fitted at once."""
        return {"layer_portions": float(self.portions)} if self.portions > 1 else {}


def fit(data: StageData, layers: Sequence[Layer], network: str, estimator: Estimator) -> Fitted:
    """The retain curvature of each layer.

    Args:
        data: what it is fitted on, by which settings.
        layers: whose.
        network: the fingerprint of the model as it is now.
        estimator: the form of G.
    """
    made = Fit(data, layers, network, estimator)
    return Fitted(made.curvatures(), made.portions)


class Fit:
    """One fit and its entries in the cache: EK-FAC finds K-FAC's basis there.

    Args:
        data: what it is fitted on, by which settings.
        layers: whose.
        network: the fingerprint of the model as it is now.
        estimator: the form of G.
    """

    def __init__(self, data: StageData, layers: Sequence[Layer], network: str, estimator: Estimator) -> None:
        self._data, self._layers, self._config, self._estimator = data, layers, data.config, estimator
        self._model, self._seed = data.context.model, data.context.seed
        self.portions = 1
        """The most portions that layers took turns in, in a pass that was made here."""
        self._key: dict[str, JSON] = {
            "version": CURVATURE_VERSION,
            "layers": [layer.name for layer in layers],
            "samples": self._config.mc_samples,
            "seed": self._seed,
            "network": network,
            "data": sequences_digest(data.fit),
            "backend": self._config.backend,
            "libraries": versions("curvlinops-for-pytorch") if self._config.backend == "curvlinops" else {},
            "device": self._model.device.type,
        }

    @cached_property
    def _labels(self) -> SampledLabels:
        # Only for a fit, and one draw for both passes.
        return SampledLabels(self._data.fit, self._config.mc_samples, self._seed)

    def curvatures(self) -> list[LayerCurvature]:
        """Each layer's curvature."""
        if self._estimator == "identity":
            return self._identities()
        one_pass = self._estimator == "kfac" or self._config.backend == "curvlinops"
        return self._cached(self._estimator, self._kronecker if one_pass else self._spectrum)

    def _identities(self) -> list[LayerCurvature]:
        return [LayerCurvature(None, None, None, None) for _ in self._layers]

    def _kronecker(self, folder: Path) -> None:
        config, encoded = self._config, self._data.fit
        if config.backend == "curvlinops":
            assert self._estimator in ("kfac", "ekfac")  # checked when the settings were read
            made = curvlinops_curvatures(self._model, self._layers, encoded, self._estimator, config.mc_samples, self._seed)
            save_curvatures(made, self._layers, folder)
            return

        def work(numbers: list[int]) -> None:
            layers, share = [self._layers[i] for i in numbers], group.share_of(len(encoded))
            sums = covariance_sums(self._model, layers, encoded, self._data.pad, self._labels, config.mc_samples, share)
            if share is not None:
                sums.add_up()
            bases = eigenbases(layers, sums)
            if group.is_first():  # the others read them from the cache
                save_curvatures(bases, layers, folder, numbers)

        self._by_portions(lambda some: sizes(some).factors, work)

    def _spectrum(self, folder: Path) -> None:
        kronecker = self._path("kfac", self._kronecker) if self._estimator == "ekfac" else None
        encoded, samples = self._data.fit, self._config.mc_samples

        def work(numbers: list[int]) -> None:
            layers, share = [self._layers[i] for i in numbers], group.share_of(len(encoded))
            bases = load_curvatures(layers, kronecker, numbers=numbers) if kronecker else self._identities()[: len(layers)]
            sums = square_sums(self._model, layers, encoded, self._data.pad, self._labels, bases, samples, share)
            if share is not None:
                sums.add_up()
            if not group.is_first():
                return
            for i, basis in enumerate(bases):
                basis.corrected = sums.squares.pop(i) / sums.labels
            save_curvatures(bases, layers, folder, numbers, kronecker)

        self._by_portions(lambda some: sizes(some).spectrum + (sizes(some).factors if kronecker else 0), work)

    def _by_portions(self, held: Held, work: Callable[[list[int]], None]) -> None:
        self.portions = max(self.portions, by_portions(self._model, self._layers, held, work))

    def _path(self, estimator: Estimator, make: Callable[[Path], None]) -> Path:
        return self._data.context.cached("curvature", {**self._key, "estimator": estimator}, make)

    def _cached(self, estimator: Estimator, make: Callable[[Path], None]) -> list[LayerCurvature]:
        path = self._path(estimator, make)
        return load_curvatures(self._layers, path, home(self._model, self._layers, self._kept))

    def _kept(self, layers: Sequence[Layer]) -> int:
        """Bytes of the curvature and of what a step makes with it: the rotated gradient, the direction, the weights before."""
        size = sizes(layers)
        factors = size.factors if self._estimator in ("kfac", "ekfac") else 0
        return factors + (3 + (self._estimator in ("ekfac", "diagonal"))) * size.spectrum


def forget_gradient(data: StageData, layers: Sequence[Layer], step: int, network: str) -> list[Tensor]:
    """∇L_F as one matrix per layer.

    Args:
        data: whose forget sequences, and the objective.
        layers: whose.
        step: of the stage, from 1.
        network: the fingerprint of the model as it is now.

    Returns:
        For each layer [out, in (+ 1)], beside its weights.
    """
    config = data.config
    forget, before = data.forget(step), data.forget_before(step)
    signal: LogitGradient
    if config.objective == "npo" or config.objective == "simnpo":
        signal = SequenceObjective(len(forget), config.objective, config.beta, config.gamma, before)
    else:
        signal = true_labels(sum(e.label_count for e in forget), config.objective, config.margin_clip)

    key: dict[str, JSON] = {
        "objective": config.objective,
        "margin_clip": config.margin_clip,
        "sequence": [config.beta, config.gamma, before] if config.objective in ("npo", "simnpo") else None,
    }
    return kept_gradient(data, layers, network, forget, signal, key)


def kept_gradient(
    data: StageData,
    layers: Sequence[Layer],
    network: str,
    rows: Sequence[Encoded],
    signal: LogitGradient,
    key: Mapping[str, JSON],
) -> list[Tensor]:
    """A gradient as one matrix per layer, from the cache where it has been computed before.

    Args:
        data: whose model, cache and clock.
        layers: whose.
        network: the fingerprint of the model as it is now.
        rows: the sequences it is summed over.
        signal: the gradient with respect to the logits.
        key: all else that decides it.

    Returns:
        For each layer [out, in (+ 1)], beside its weights; on the CPU where a device has no room for all and for a step.
    """
    model = data.context.model

    def make(folder: Path) -> None:
        made: dict[str, Tensor] = {}

        def work(numbers: list[int]) -> None:
            matrices = gradient_matrices(model, [layers[i] for i in numbers], rows, data.pad, signal)
            made.update({f"{i:04d}": matrix.cpu() for i, matrix in zip(numbers, matrices, strict=True)})

        by_portions(model, layers, lambda some: sizes(some).spectrum, work)
        if group.is_first():
            save_tensors(made, folder / "gradient.safetensors")

    whole: dict[str, JSON] = {
        "version": CURVATURE_VERSION,
        "layers": [layer.name for layer in layers],
        "network": network,
        "data": sequences_digest(rows),
        "device": model.device.type,
        **key,
    }
    matrices = load_file(data.context.cached("gradient", whole, make) / "gradient.safetensors")
    kept = home(model, layers, lambda some: 3 * sizes(some).spectrum)
    return [matrices[name].to(kept or layer.module.weight.device) for name, layer in zip(sorted(matrices), layers, strict=True)]
