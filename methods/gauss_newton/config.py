"""The settings of K-FADE and its published forms; the origin of each stands under it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import Discriminator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, Tag

from harness.core.config import settings
from methods._settings import LayerNumbers, Points

Estimator = Literal["kfac", "ekfac", "diagonal", "identity"]
"""A form of G."""
StepSize = Annotated[
    Annotated[PositiveFloat, Tag("number")] | Annotated[tuple[PositiveFloat, ...], Field(min_length=1), Tag("list")],
    Discriminator(lambda value: "list" if isinstance(value, list | tuple) else "number"),
]
"""One for all stages, or a list with one for each."""


@settings
class KFADEConfig:
    """Settings of K-FADE; the defaults are the paper's for ToFU (appendix D.2)."""

    estimator: Estimator = "kfac"
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


def missing_back_end(backend: str) -> str | None:
    """What to install for a back end that is not there; None if it is.

    curvlinops is no dependency of the harness, since it pulls in torchvision, which nothing here needs and which breaks
    transformers beside a torch of another build.
    """
    if backend == "curvlinops" and find_spec("curvlinops") is None:
        return "backend=curvlinops is not installed: pip install 'curvlinops-for-pytorch>=3.0.1,<3.1', or take backend=own"
    return None
