"""What ToFU measures, and which metric plays which role."""

from __future__ import annotations

from harness.core.metric import MetricRoles

MEASURED = ("forget_quality", "model_utility", "probability", "rouge", "truth_ratio", "retain_kl")

ROLES = MetricRoles(
    headline=(
        *("forget_quality", "forget_quality_d", "model_utility", "retain_kl", "forget_probability", "forget_rouge"),
        *("retain_rouge", "real_authors_rouge", "world_facts_rouge", "selection_score"),
    ),
    brief=(
        *("forget_quality", "forget_quality_d", "model_utility", "forget_probability", "forget_rouge"),
        *("retain_probability", "retain_rouge", "retain_kl"),
    ),
    trajectory=(
        *("forget_quality", "forget_quality_d", "model_utility", "forget_probability", "forget_rouge", "retain_rouge"),
    ),
    forgetting=("forget_quality",),
    kept=("model_utility",),
    ranking="forget_quality_d",
    oracle_score=("forget_quality", "model_utility"),
    selection="selection_score",
    compared=("model_utility", "retain_rouge", "forget_rouge", "retain_kl"),
    power=(
        *("forget_quality_d", "model_utility", "retain_rouge", "forget_rouge"),
        *("retain_probability", "forget_probability"),
    ),
)
