"""The settings of the predictor with its corrector."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from harness.core.config import settings
from methods._settings import LayerNumbers, Points
from methods.gauss_newton.config import Estimator, KFADEConfig

Kinds = Literal["retain", "general", "both"]
"""Which rows a corrector reads."""


@settings
class PredictorCorrectorConfig:
    """Settings of the predictor and the corrector."""

    predictor: Estimator = "kfac"
    """The form of G in the predictor."""
    corrector: Estimator | None = None
    """The form of G in the corrector; the predictor's if not given."""
    objective: Literal["cross_entropy", "margin", "npo", "simnpo"] = "cross_entropy"
    """What is raised, as K-FADE has it."""
    margin_clip: float = Field(0.0, ge=0, lt=1)
    """The margin's gradient divides by max(1 − p, this)."""
    beta: PositiveFloat = 0.1
    """β of the objectives npo and simnpo."""
    gamma: float = 0.0
    """γ of the objective simnpo."""
    steps: Points = 3
    """How many times predictor and correctors follow one another on each stage; a point is measured after each."""
    peak_kl: PositiveFloat = 0.1
    """Nats per token that each predictor goes to, on rows of the kinds that correctors read."""
    overshoot: Annotated[float, Field(ge=1)] = 2.0
    """Under a budget of damage, in place of `peak_kl`: to how many times its step's share each predictor goes."""
    corrections: Annotated[int, Field(ge=0, le=1_000)] = 4
    """How many correctors follow a predictor, under a budget of damage at most; 0 is K-FADE at a KL that does not rise."""
    corrector_on: Kinds = "retain"
    """Whether correctors read the stage's retain set, general text of the benchmark, or both under one mean over all labels."""
    corrector_rows: PositiveInt | None = None
    """How many sequences of each kind a corrector reads, drawn anew for each; all if not given."""
    first_length: PositiveFloat = 1e-3
    """η that the first line search begins with; each later one begins with the last that was found."""
    damping: NonNegativeFloat = 0.1
    """λ in G + λI."""
    damping_scale: Literal["absolute", "mean_eigenvalue"] = "mean_eigenvalue"
    """Whether λ is in the units of G (squared gradients per token) or in units of G's mean eigenvalue."""
    layers: LayerNumbers | None = None
    """Decoder layers whose MLPs are changed, from 0; all if not given."""
    mc_samples: Annotated[int, Field(ge=1, le=1000)] = 1
    """Labels drawn from the model per token, in the fit."""
    retain_rows: PositiveInt | None = None
    """How many retain sequences the fit takes, drawn by the seed; all if not given."""
    forget_rows: PositiveInt | None = None
    """How many forget sequences a predictor takes, without replacement over a stage's steps; all if not given."""
    kl_rows: PositiveInt = 200
    """How many sequences of each kind the KL is measured on; retain sequences outside the fit's where it does not take all."""

    def __post_init__(self) -> None:
        if self.damping == 0 and self.estimators != {"identity"}:
            raise ValueError("damping=0 divides by eigenvalues that are 0; give a small positive one")
        if self.margin_clip and self.objective != "margin":
            raise ValueError("margin_clip belongs to objective=margin")

    def half(self, estimator: Estimator) -> KFADEConfig:
        """The same for one half, as the fit and the data of K-FADE take it."""
        return KFADEConfig(
            estimator=estimator,
            target_kl=self.peak_kl,
            damping=self.damping,
            **{name: getattr(self, name) for name in _SHARED},
        )

    @property
    def estimators(self) -> frozenset[Estimator]:
        """The forms of G that are fitted."""
        return frozenset({self.predictor, self.corrector or self.predictor})


_SHARED = (
    *("objective", "margin_clip", "beta", "gamma", "steps", "damping_scale"),
    *("layers", "mc_samples", "retain_rows", "forget_rows", "kl_rows"),
)
"""Settings that K-FADE has under the same name."""
