"""What ToFU measures, and which metric plays which role."""

from __future__ import annotations

from harness.core.metric import MetricRoles

MEASURED = ("forget_quality", "model_utility", "probability", "rouge", "truth_ratio", "retain_kl")
_ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")

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
    likelihood_evaluators=("forget_quality", "probability", "truth_ratio", "retain_kl", "unseen"),
    compared=("model_utility", "retain_rouge", "forget_rouge", "retain_kl"),
    power=(
        *("forget_quality_d", "model_utility", "retain_rouge", "forget_rouge"),
        *("retain_probability", "forget_probability"),
    ),
    at_budgets=(
        *("forget_quality", "forget_quality_d", "forget_probability", "model_utility", "retain_probability"),
        *("real_authors_probability", "real_authors_guarded", "real_authors_unseen", "world_facts_probability", "retain_kl"),
        *("forget_rouge", "retain_rouge", "attack_benign_200", "attack_forget_200"),
    ),
    level="forget_probability",
    knowledge={
        "forget_quality": "lower",
        "forget_quality_d": "higher",
        "forget_probability": "higher",
        "forget_rouge": "higher",
        "forget_truth_ratio": "lower",  # min(R, 1/R): far from 1 where the right answer stands out
        "extraction_strength": "higher",
        "exact_memorisation": "higher",
        "paraphrased_answer_probability": "higher",
        "paraphrased_answer_rouge": "higher",
        "paraphrased_question_probability": "higher",
        "paraphrased_question_rouge": "higher",
        **{f"membership_{attack}": "higher" for attack in _ATTACKS},
        **{f"membership_{attack}_normalised": "lower" for attack in _ATTACKS},
        "open_unlearning_memorisation": "lower",
        "open_unlearning_privacy": "lower",
        "open_unlearning_aggregate": "lower",
        "logit_lens": "higher",
        "logit_lens_hidden": "higher",
    },
    kept_likelihoods=(
        *("retain_probability", "real_authors_probability", "world_facts_probability"),
        *("retain_truth_ratio", "real_authors_truth_ratio", "world_facts_truth_ratio"),
    ),
)
