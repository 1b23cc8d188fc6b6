"""What comes of measuring: a number with all that is needed to read it, the reason why there is none, or a difference."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ConfigDict, FiniteFloat
from pydantic.dataclasses import dataclass as pydantic_dataclass

from harness.core.metric import Better


@pydantic_dataclass(frozen=True, kw_only=True, config=ConfigDict(allow_inf_nan=False))
class Measurement:
    """A number with all that is needed to read it."""

    metric: str
    """Its name, such as `forget_quality`."""
    version: int
    """Raised when its definition changes; numbers of different versions are never compared."""
    value: FiniteFloat
    """The number; finite, for JSON has no other: what is not finite is `Absent`."""
    unit: str
    """Such as `p-value`, `probability`, `nats per token`."""
    better: Better | None
    """Which way is good; `closer` means closer to the reference."""
    n: int
    """How many rows it rests on."""
    range: tuple[float, float] | None = None
    """The values it can take."""
    reference: float | None = None
    """The same number for the retrained model."""
    across_references: tuple[float, float] | None = None
    """Smallest and largest value when each reference is used in turn."""
    floor: float | None = None
    """The noise floor: what two retrained models differ by. Differences at or under it are ties."""
    selection: str | None = None
    """On what the settings behind it were chosen."""
    interval_95: tuple[float, float] | None = None
    """A 95 % interval."""
    interval_method: str | None = None
    """How the interval was made, or why there is none."""
    resampled: str | None = None
    """What was resampled, such as `author`."""
    note: str | None = None
    """What a reader could stumble over: a fall-back of the computation, a tie with the floor."""


@dataclass(frozen=True)
class Difference:
    """By how much two methods differ in a metric, on the same rows."""

    metric: str
    """Which."""
    first: str
    """One of the two."""
    second: str
    """The other."""
    value: float
    """The first one's number minus the second one's; the mean over seeds of each."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end."""
    p: float
    """Two-sided p-value of the difference being none."""
    p_corrected: float
    """The same, Holm-corrected for all that is asked together."""
    better: Better
    """Which way is good for the metric."""
    n: int
    """Rows."""
    clusters: int
    """Of rows, resampled as wholes; of all the metric's tasks together."""


@pydantic_dataclass(frozen=True, kw_only=True)
class Absent:
    """A number that could not be computed. Never 0, never null."""

    metric: str
    """Its name."""
    reason: str
    """Why, in one sentence."""
