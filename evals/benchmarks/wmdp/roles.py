"""What WMDP measures, and which metric plays which role."""

from __future__ import annotations

from collections.abc import Sequence

from harness.core.metric import MetricRoles

MEASURED = ("multiple_choice", "alpaca_kl")
COMPARED = (*(f"{name}_accuracy" for name in ("bio", "cyber", "chem", "neighbours", "general", "mmlu")), "alpaca_kl")
"""What methods are compared in, row by row, where it was measured."""


def roles(stages: Sequence[str]) -> MetricRoles:
    """The roles where some domains are forgotten: their accuracy is what is to fall."""
    return MetricRoles(
        headline=(*COMPARED, "selection_score"),
        level=f"{stages[0]}_accuracy",
        forgetting=tuple(f"{stage}_accuracy" for stage in stages),
        kept=("general_accuracy", "mmlu_accuracy", "alpaca_kl"),
        selection="selection_score",
        likelihood_evaluators=MEASURED,
        compared=COMPARED,
        power=COMPARED,
    )
