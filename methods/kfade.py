"""K-FADE: a few uphill Gauss-Newton steps on the forget objective, in the metric of the retain set's curvature.

"Gauss-Newton Unlearning for the LLM Era", arXiv:2602.10568, sections 2 and 3, appendices C to E:

    r = (G + λI)⁻¹ ∇L_F        θ ← θ + α r / ‖r‖_G        predicted KL on the retain set: α²/2 nats per token

G is the Gauss-Newton matrix of the retain set over the MLP weights, in a Kronecker-factored form
(`methods/_curvature.py`). L_F is the cross-entropy of the forget set, or minus its margin; either way it is raised.
Departures: the paper's appendix C.3 ends with a minus sign, which its own derivation does not give; `target_kl` chooses α by
the KL that is measured, since α²/2 underestimates it; G is per token, so a summed loss would rescale λ and α.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache as memoise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import Discriminator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, Tag

from harness.cache import digest
from harness.config import JSON, settings
from harness.errors import Diverged
from harness.interfaces import Held, ModelShape, Progress, Setting, Stage, Task, method
from methods._first_order import WMDP
from methods._settings import LayerNumbers, Points, absent_layers, of_stage, uneven

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness.data import Encoded
    from harness.likelihood import AnswerDistributions
    from methods._curvature import Layer, LayerCurvature, SampledLabels, Solver

log = logging.getLogger(__name__)

T = TypeVar("T")
StepSize = Annotated[
    Annotated[PositiveFloat, Tag("number")] | Annotated[tuple[PositiveFloat, ...], Field(min_length=1), Tag("list")],
    Discriminator(lambda value: "list" if isinstance(value, list | tuple) else "number"),
]
"""One for all stages, or a list with one for each."""

CURVATURE_VERSION = 1
"""Raised when what is cached of a fit changes."""
KL_TOLERANCE = 0.02
"""`target_kl` is met within this share of it."""
KL_TRIES = 24
MOST_ROUNDED = 0.1
"""The share of a step that rounding may take without a word."""


@settings
class KFADEConfig:
    """Settings of K-FADE; the defaults are the paper's for ToFU (appendix D.2)."""

    estimator: Literal["kfac", "ekfac", "diagonal", "identity"] = "kfac"
    """The form of G: kfac on ToFU, ekfac on WMDP in the paper; diagonal and identity are its ablations."""
    objective: Literal["cross_entropy", "margin", "npo", "simnpo"] = "cross_entropy"
    """What is raised: the cross-entropy (ToFU), or minus the margin log(p/(1−p)) (WMDP); minus the losses of NPO or SimNPO,
    which are bounded, are an experiment of ours."""
    margin_clip: float = Field(0.0, ge=0, lt=1)
    """The margin's gradient divides by max(1 − p, this); 0 is the paper's form."""
    beta: PositiveFloat = 0.1
    """β of the objectives npo and simnpo (0.1 is NPO's; SimNPO takes 2.5 to 4.5)."""
    gamma: float = 0.0
    """γ of the objective simnpo."""
    steps: Points = 1
    """How many steps on each stage; 1 on ToFU, 4 on WMDP."""
    refit: bool = True
    """Whether the curvature is fitted anew before every step after the first."""
    damping: NonNegativeFloat = 1e-8
    """λ in G + λI; the paper takes 1e-8 with K-FAC on ToFU, 1e-10 with EK-FAC, 1e-14 on WMDP."""
    damping_scale: Literal["absolute", "mean_eigenvalue"] = "absolute"
    """Whether λ is in the units of G (squared gradients per token) or in units of G's mean eigenvalue."""
    damping_mode: Literal["exact", "per_factor", "heuristic"] = "exact"
    """λ on G's eigenvalues, on each Kronecker factor, or split between the factors (the last two with kfac only)."""
    step_size: StepSize | None = None
    """α, the step's length in the metric of G (square root of nats), or a list with one for each stage; the paper sweeps 2.5e-3
    to 1.1e-2 on ToFU and takes 2e-3 and 5e-3 for the two stages of WMDP."""
    target_kl: PositiveFloat | None = None
    """Nats per token: choose α so that the KL measured on retain rows is this after a stage's last step, spread evenly over its
    steps."""
    norm: Literal["undamped", "damped"] = "undamped"
    """The metric of the step's length: G, or G + λI."""
    layers: LayerNumbers | None = None
    """Decoder layers whose MLPs are changed, from 0; all if not given."""
    mc_samples: Annotated[int, Field(ge=1, le=1000)] = 1
    """Labels drawn from the model per token."""
    curvature_on: Literal["retain", "retain+forget"] = "retain"
    """The data G is fitted on; with the forget set it is the paper's ablation."""
    retain_rows: PositiveInt | None = None
    """How many retain sequences the fit takes, drawn by the seed; all if not given."""
    forget_rows: PositiveInt | None = None
    """How many forget sequences a step takes, without replacement over a stage's steps; fewer where there are not enough for
    all of them. All, at every step, if not given."""
    kl_rows: PositiveInt = 200
    """How many retain sequences the KL is measured on; outside the fit's where the fit does not take all."""
    backend: Literal["own", "curvlinops"] = "own"
    """Who fits: this project's streaming engine, or curvlinops (sequences of one length only)."""

    _alternatives = (("step_size", "target_kl"),)

    def __post_init__(self) -> None:
        if (self.step_size is None) == (self.target_kl is None):
            raise ValueError("give one of step_size and target_kl, such as target_kl=0.1")
        if self.backend == "curvlinops" and self.estimator not in ("kfac", "ekfac"):
            raise ValueError("backend=curvlinops fits kfac and ekfac only")
        if self.damping == 0 and self.estimator != "identity":
            raise ValueError("damping=0 divides by eigenvalues that are 0; give a small positive one")
        if self.margin_clip and self.objective != "margin":
            raise ValueError("margin_clip belongs to objective=margin")


WMDP_FORM: Mapping[str, JSON] = {
    "estimator": "ekfac",
    "objective": "margin",
    "steps": 4,
    "damping": 1e-14,
    "layers": [3, 4, 5, 6],
    "forget_rows": 2500,
}
"""Appendix D.1: the same for both stages but for the length of a step. What a stage's curvature is fitted on is the retain set
that the benchmark gives it."""
WMDP_SMALL: Mapping[str, JSON] = {
    "estimator": "ekfac",
    "objective": "margin",
    "margin_clip": 0.05,
    "steps": 4,
    "damping": 0.1,
    "damping_scale": "mean_eigenvalue",
    "target_kl": 0.3,
    "forget_rows": 24,
}
"""The same form on a model trained on the spot: all its layers, a budget of KL, and a clip, without which memorised full stops
outweigh the facts."""


def held(shape: ModelShape, config: KFADEConfig) -> list[Held]:
    """What a step holds: the curvature, and beside it what the fit needs or what the solve needs, whichever is larger."""
    from harness.memory import activations
    from methods import _curvature

    size = _curvature.sizes(_curvature.mlp_layers(shape.model, config.layers))
    kronecker = config.estimator in ("kfac", "ekfac")
    rows = min(config.kl_rows, shape.retain_rows)
    # The solve: the rotated gradient, the direction, and the weights as they were. A pass over data comes before it and holds a
    # gradient and its activations.
    solve = max(3 * size.spectrum, size.decomposition if kronecker else 0)
    passes = activations(shape, trained=False)
    return [
        Held("factors", size.factors if kronecker else 0),
        Held("spectrum", size.spectrum, while_measured=config.estimator in ("ekfac", "diagonal")),
        Held("gradient and step", solve, while_measured=False),
        Held("KL log-probabilities", rows * shape.answer_tokens * shape.vocabulary * 4, where="cpu"),
        replace(passes, bytes=max(0, size.spectrum + passes.bytes - solve)),
    ]


def clash(task: Task, config: KFADEConfig) -> str | None:
    """Layers that are not there, and as many step sizes as there are no stages."""
    return absent_layers(task, layers=config.layers) or uneven(len(task.stages), step_size=config.step_size)


@method(
    "kfade",
    config=KFADEConfig,
    source="arXiv:2602.10568",
    clash=clash,
    memory=held,
    smaller=({"layers": [3, 4, 5, 6]}, {"estimator": "kfac"}),
    presets={
        **{
            ("*", family): {"damping": 0.1, "damping_scale": "mean_eigenvalue", "target_kl": 0.1}
            for family in ("mini", "scratch")
        },
        ("wmdp", "zephyr-7b"): {**WMDP_FORM, "step_size": [2e-3, 5e-3]},
        ("wmdp-bio", "zephyr-7b"): {**WMDP_FORM, "step_size": 2e-3},
        ("wmdp-cyber", "zephyr-7b"): {**WMDP_FORM, "step_size": 5e-3},
        **{(bench, "mini"): WMDP_SMALL for bench in WMDP},
    },
    tuned={
        ("tofu05", "mini"): {"estimator": "kfac", "target_kl": 0.05},
        ("tofu10", "mini"): {"estimator": "ekfac", "target_kl": 0.14},
        ("wmdp", "mini"): {"target_kl": 0.3},
    },
)
def unlearn(setting: Setting, config: KFADEConfig) -> Iterator[Progress]:
    """Take the steps, stage after stage; every step is a point of the trade-off curve."""
    from harness.identity import network_fingerprint
    from harness.models import weights_fingerprint
    from methods import _curvature

    def named() -> str:
        return network_fingerprint(weights_fingerprint(model), model)

    model = setting.model
    layers = _curvature.mlp_layers(model, config.layers)
    total = config.steps * len(setting.stages)
    taken = 0
    for number, stage in enumerate(setting.stages):
        given = config.step_size
        if isinstance(given, tuple):
            given = of_stage(given, number, len(setting.stages), "step_size")
        data = _StageData(setting, stage, config)
        network = named()
        with _monitoring(setting, config):
            before = data.answers_now(setting, network)
        curvatures: list[LayerCurvature] | None = None
        for step in range(1, config.steps + 1):
            network = network if step == 1 else named()
            if curvatures is None or config.refit:
                curvatures = None  # before the next one is fitted: there may be room for one only
                with setting.costs.phase("curvature"):
                    setting.costs.count(data.fit_tokens)
                    curvatures = _fit(setting, layers, data, config, network)
            with setting.costs.phase("forget gradient"):
                setting.costs.count(sum(len(e.input_ids) for e in data.forget(step)))
                gradients = _forget_gradient(setting, layers, data, step, config, network)
            with setting.costs.phase("step"):
                solver = _curvature.Solver(layers, curvatures, gradients)
                gradients.clear()  # the solver holds them rotated
                logged = _step(setting, layers, solver, data, before, config, given, step, network)
                del solver
            _curvature.warn_if_thin(layers, curvatures, data.fit_tokens, logged["damping"])
            taken += 1
            yield Progress(taken, logged, measure_here=True, total=total)


def _monitoring(setting: Setting, config: KFADEConfig) -> AbstractContextManager[None]:
    """Where the KL is measured: off the clock where the step size is given and nothing depends on it."""
    return setting.costs.aside("monitoring") if config.step_size is not None else nullcontext()


def _held(setting: Setting, what: str, key: object, make: Callable[[], T]) -> T:
    """What the runs of a sweep share in memory; the clock counts it in full."""
    value, seconds = setting.cache.held(what, key, make)
    setting.costs.saved(seconds)
    return value


class _StageData:
    """A stage's sequences, tokenised, and which of them serve for what."""

    def __init__(self, setting: Setting, stage: Stage, config: KFADEConfig) -> None:
        import numpy as np

        from harness.data import encode, pad_id
        from harness.likelihood import check_length

        self.pad = pad_id(setting.tokenizer)
        self._model = setting.model
        retain = _held(
            setting, "retain", (setting.identity, tuple(stage.retain)), lambda: encode(stage.retain, setting.tokenizer)
        )
        forget = _held(
            setting, "forget", (setting.identity, tuple(stage.forget)), lambda: encode(stage.forget, setting.tokenizer)
        )
        check_length(setting.model, max(len(e.input_ids) for e in (*forget, *retain)))  # before the first step
        rng = np.random.default_rng([setting.seed, 1])
        order = rng.permutation(len(retain)).tolist()
        fitted = len(retain) if config.retain_rows is None else min(config.retain_rows, len(retain))
        self.fit = [retain[i] for i in sorted(order[:fitted])]
        if config.curvature_on == "retain+forget":
            self.fit = [*self.fit, *forget]
        # The KL is measured on rows the fit has not seen, as far as there are any.
        self.kl = [retain[i] for i in sorted(order[::-1][: config.kl_rows])]
        self._forget = [forget[i] for i in rng.permutation(len(forget)).tolist()] if config.forget_rows else forget
        self._per_step = len(forget)
        if config.forget_rows:
            # At least one: with fewer sequences than steps they are taken again.
            self._per_step = min(config.forget_rows, max(1, len(forget) // config.steps))
            if self._per_step < config.forget_rows:
                log.warning(
                    "%s: %d sequences make %d batches of %d, not of %d",
                    *(stage.name, len(forget), config.steps, self._per_step, config.forget_rows),
                )
        self._before = self._nll(setting.model) if config.objective == "npo" else None

    @property
    def fit_tokens(self) -> int:
        """Tokens of the curvature's data."""
        return sum(len(e.input_ids) for e in self.fit)

    def forget(self, step: int) -> Sequence[Encoded]:
        """The forget sequences of a step: the next ones not used yet, from the start again when they run out."""
        return [self._forget[i] for i in self._rows(step)]

    def forget_before(self, step: int) -> list[float] | None:
        """For the objective npo: the summed negative log-likelihood that each of them had before the stage, in nats."""
        return None if self._before is None else [self._before[i] for i in self._rows(step)]

    def _rows(self, step: int) -> list[int]:
        start = (step - 1) * self._per_step
        return [i % len(self._forget) for i in range(start, start + self._per_step)]

    def _nll(self, model: PreTrainedModel) -> list[float]:
        from harness.likelihood import answer_nll

        return answer_nll(model, self._forget, self.pad)[0].tolist()  # type: ignore[no-any-return]

    def answers_now(self, setting: Setting, network: str) -> AnswerDistributions:
        """What the model, which has that fingerprint, says on the KL's rows before it is changed."""
        from harness.likelihood import AnswerDistributions

        key = (network, str(self._model.device), self.kl)
        return _held(setting, "answers", key, lambda: AnswerDistributions(self._model, self.kl, self.pad))


def _fit(
    setting: Setting, layers: Sequence[Layer], data: _StageData, config: KFADEConfig, network: str
) -> list[LayerCurvature]:
    """The retain curvature, from the cache where this network, data and labels have been fitted before.

    The key holds neither damping nor step size: both can be changed after the fit. EK-FAC finds K-FAC's basis there.
    """
    from harness.identity import versions
    from methods import _curvature as c

    if config.estimator == "identity":
        return [c.LayerCurvature(None, None, None, None) for _ in layers]
    model, device = setting.model, setting.model.device
    key: dict[str, JSON] = {
        "version": CURVATURE_VERSION,
        "layers": [layer.name for layer in layers],
        "samples": config.mc_samples,
        "seed": setting.seed,
        "network": network,
        "data": _digest(data.fit),
        "backend": config.backend,
        "libraries": versions("curvlinops-for-pytorch") if config.backend == "curvlinops" else {},
        "device": device.type,
    }

    @memoise  # only for a fit, and one draw for both passes
    def labels() -> SampledLabels:
        return c.SampledLabels(data.fit, config.mc_samples, setting.seed)

    def kronecker(folder: Path) -> None:
        if config.backend == "curvlinops":
            assert config.estimator in ("kfac", "ekfac")  # checked when the settings were read
            found = c.curvlinops_curvatures(model, layers, data.fit, config.estimator, config.mc_samples, setting.seed)
        else:
            found = c.eigenbases(layers, c.covariance_sums(model, layers, data.fit, data.pad, labels(), config.mc_samples))
        c.save_curvatures(found, layers, folder)

    def spectrum(folder: Path) -> None:
        if config.estimator == "ekfac":
            bases = cached("kfac", kronecker)
        else:
            bases = [c.LayerCurvature(None, None, None, None) for _ in layers]
        sums = c.square_sums(model, layers, data.fit, data.pad, labels(), bases, config.mc_samples)
        for i, basis in enumerate(bases):
            basis.corrected = sums.squares[i] / sums.labels
        c.save_curvatures(bases, layers, folder)

    def cached(estimator: str, make: Callable[[Path], None]) -> list[LayerCurvature]:
        entry = setting.cache.get("curvature", {**key, "estimator": estimator}, make)
        if not entry.made_now:
            setting.costs.saved(entry.seconds - entry.waited)
        return c.load_curvatures(layers, entry.path)

    one_pass = config.estimator == "kfac" or config.backend == "curvlinops"
    return cached(config.estimator, kronecker if one_pass else spectrum)


def _forget_gradient(
    setting: Setting, layers: Sequence[Layer], data: _StageData, step: int, config: KFADEConfig, network: str
) -> list[Tensor]:
    """∇L_F as one matrix per layer, from the cache where it has been computed for this network before."""
    from safetensors.torch import load_file

    from harness.data import pad_id
    from harness.saving import save_tensors
    from methods import _curvature as c

    forget, before = data.forget(step), data.forget_before(step)
    labels = sum(len(e.input_ids) - max(1, e.prompt_tokens) for e in forget)
    signal: c.LogitGradient
    if config.objective == "npo" or config.objective == "simnpo":
        signal = c.SequenceObjective(len(forget), config.objective, config.beta, config.gamma, before)
    else:
        signal = c.true_labels(labels, config.objective, config.margin_clip)

    def make(folder: Path) -> None:
        found = c.gradient_matrices(setting.model, layers, forget, pad_id(setting.tokenizer), signal)
        save_tensors({f"{i:04d}": matrix for i, matrix in enumerate(found)}, folder / "gradient.safetensors")

    key: dict[str, JSON] = {
        "version": CURVATURE_VERSION,
        "layers": [layer.name for layer in layers],
        "network": network,
        "data": _digest(forget),
        "objective": config.objective,
        "margin_clip": config.margin_clip,
        "sequence": [config.beta, config.gamma, before] if config.objective in ("npo", "simnpo") else None,
        "device": setting.model.device.type,
    }
    entry = setting.cache.get("gradient", key, make)
    if not entry.made_now:
        setting.costs.saved(entry.seconds - entry.waited)
    found = load_file(entry.path / "gradient.safetensors")
    return [found[name].to(layer.module.weight.device) for name, layer in zip(sorted(found), layers, strict=True)]


def _step(
    setting: Setting,
    layers: Sequence[Layer],
    solver: Solver,
    data: _StageData,
    before: AnswerDistributions,
    config: KFADEConfig,
    step_size: float | None,
    step: int,
    network: str,
) -> dict[str, float]:
    """Take one step, of the size given for its stage if one is, and say what it did."""
    model = setting.model
    damping = config.damping * (solver.mean_eigenvalue if config.damping_scale == "mean_eigenvalue" else 1.0)
    direction = solver.direction(damping, config.damping_mode)
    norm = direction.g_norm if config.norm == "undamped" else direction.damped_norm
    start = [layer.matrix() for layer in layers]
    with setting.costs.aside("monitoring"):
        forget_before = _held(setting, "loss", (network, data.forget(step)), lambda: _mean_loss(setting, data, step))

    def move(alpha: float) -> None:
        for layer, matrix, towards in zip(layers, start, direction.matrices, strict=True):
            layer.set_matrix(matrix + (alpha / norm) * towards)

    def kl_at(alpha: float) -> float:
        move(alpha)
        return before.kl(model)

    if step_size is not None:
        alpha = step_size
        move(alpha)
        with _monitoring(setting, config):
            measured = before.kl(model)
    else:
        assert config.target_kl is not None  # checked when the settings were read
        already = before.kl(model) if step > 1 else 0.0
        alpha, measured = step_for_kl(kl_at, config.target_kl * step / config.steps, already)
        move(alpha)
    with setting.costs.aside("monitoring"):
        forget_after = _mean_loss(setting, data, step)
        rounded = _rounded(layers, start, direction.matrices, alpha / norm)
    return {
        "step_size": alpha,
        "damping": damping,
        "mean_eigenvalue": solver.mean_eigenvalue,
        "gain": alpha / norm * direction.gain,
        "predicted_kl": 0.5 * (alpha / norm * direction.g_norm) ** 2,
        "measured_kl": measured,
        "kl_tokens": float(before.labels),
        "forget_rows": float(len(data.forget(step))),
        "forget_loss_before": forget_before,
        "forget_loss": forget_after,
        **rounded,
    }


def _rounded(layers: Sequence[Layer], start: Sequence[Tensor], matrices: Sequence[Tensor], scale: float) -> dict[str, float]:
    """What of a step was lost in rounding to the weights' type, for weights that are not float32.

    Returns:
        `unmoved_share`, of the entries whose step is not 0 those that stayed as they were, and `lost_norm`, how long what was
        lost is beside the step.
    """
    import torch

    if all(layer.module.weight.dtype in (torch.float32, torch.float64) for layer in layers):
        return {}
    entries = unmoved = 0
    lost = length = 0.0
    for layer, before, towards in zip(layers, start, matrices, strict=True):
        wanted, moved = scale * towards, layer.matrix() - before
        entries += int((wanted != 0).sum())
        unmoved += int(((wanted != 0) & (moved == 0)).sum())
        lost += float((wanted - moved).double().square().sum())
        length += float(wanted.double().square().sum())
    found = {"unmoved_share": unmoved / max(1, entries), "lost_norm": (lost / length) ** 0.5 if length else 0.0}
    if max(found.values()) > MOST_ROUNDED:
        log.warning(
            "rounding to %s left %.0f %% of the weights where they were and took %.0f %% of the step's length: --dtype float32 "
            "keeps it whole",
            str(layers[0].module.weight.dtype).removeprefix("torch."),
            100 * found["unmoved_share"],
            100 * found["lost_norm"],
        )
    return found


def step_for_kl(kl_at: Callable[[float], float], target: float, start: float = 0.0) -> tuple[float, float]:
    """The step size whose measured KL is `target`, within `KL_TOLERANCE`.

    What a step adds to the KL grows about as α², so each guess scales the last one by √(wanted / added); a bracket keeps
    guesses in check that went too far, and is halved where they do not get there.

    Args:
        kl_at: measures the KL of a step size.
        target: nats per token.
        start: the KL before the step.

    Returns:
        (step size, its measured KL).

    Raises:
        Diverged: if no step size is found in `KL_TRIES` tries.
    """
    wanted = max(target - start, KL_TOLERANCE * target)
    low, high, alpha = 0.0, float("inf"), 0.1 * (2 * wanted) ** 0.5
    for tried in range(1, KL_TRIES + 1):
        kl = kl_at(alpha)
        if abs(kl - target) <= KL_TOLERANCE * target:
            return alpha, kl
        if kl < target:
            low = alpha
        else:  # also NaN: the model broke, so the step was too long
            high = alpha
        if tried >= KL_TRIES // 2 and high < float("inf"):
            alpha = (low + high) / 2
            continue
        guess = alpha * (wanted / (kl - start)) ** 0.5 if kl > start else 2 * alpha
        # At most fourfold: far from the base the KL saturates, and near it rounding makes it 0.
        guess = min(max(guess, alpha / 4), alpha * 4) if guess == guess else alpha / 4
        alpha = guess if low < guess < high else (low + high) / 2 if high < float("inf") else 2 * alpha
    raise Diverged(f"no step size was found whose measured KL is {target:g} (last measured KL {kl:g})")


def _mean_loss(setting: Setting, data: _StageData, step: int) -> float:
    """Mean cross-entropy per token of the step's forget sequences."""
    from harness.likelihood import answer_nll

    sums, counts = answer_nll(setting.model, data.forget(step), data.pad)
    return float(sums.sum() / counts.sum())


def _digest(encoded: Sequence[Encoded]) -> str:
    return digest([[e.input_ids, e.prompt_tokens] for e in encoded])[:16]
