"""What the Training Data Extraction Challenge measures, and which metric plays which role."""

from __future__ import annotations

from harness.core.metric import MetricRoles

MEASURED = ("extraction", "perplexity")
COMPARED = ("extraction_likelihood", "memorization_accuracy", "general_perplexity", "pile_perplexity", "wikitext_perplexity")

ROLES = MetricRoles(
    headline=("forgotten", *COMPARED, "unseen_extraction_likelihood", "unseen_memorization_accuracy"),
    trajectory=("forgotten", *COMPARED),
    forgetting=("extraction_likelihood", "memorization_accuracy"),
    kept=("general_perplexity", "pile_perplexity", "wikitext_perplexity"),
    likelihood_evaluators=("perplexity",),
    compared=COMPARED,
    power=COMPARED,
    reached="forgotten",
    level="memorization_accuracy",
)
