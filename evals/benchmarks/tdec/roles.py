"""What the Training Data Extraction Challenge measures, and which metric plays which role."""

from __future__ import annotations

from harness.core.metric import MetricRoles

MEASURED = ("extraction", "perplexity")
KEPT = ("general_perplexity", "pile_perplexity", "reasoning_accuracy", "dialogue_f1", "wikitext_perplexity")
"""What LoKU reports of what was kept: perplexity, and the means over nine classification sets and over four dialogue sets."""
COMPARED = ("extraction_likelihood", "memorization_accuracy", *KEPT)

ROLES = MetricRoles(
    headline=("forgotten", *COMPARED, "unseen_extraction_likelihood", "unseen_memorization_accuracy"),
    trajectory=("forgotten", *COMPARED),
    forgetting=("extraction_likelihood", "memorization_accuracy"),
    kept=KEPT,
    likelihood_evaluators=("perplexity",),
    compared=COMPARED,
    power=COMPARED,
    reached="forgotten",
    level="memorization_accuracy",
)
