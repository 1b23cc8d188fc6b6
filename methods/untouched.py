"""The lower reference: nothing is done to the model."""

from __future__ import annotations

from collections.abc import Iterator

from harness.core.config import settings
from harness.core.method import Progress, UnlearningContext, method


@settings
class UntouchedConfig:
    """No settings."""


@method("untouched", config=UntouchedConfig, source="reference", reach="fixed")
def unlearn(context: UnlearningContext, config: UntouchedConfig) -> Iterator[Progress]:
    """Measure the model as it is."""
    yield Progress(0, measure_here=True, total=0)
