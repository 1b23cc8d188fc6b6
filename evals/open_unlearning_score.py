"""open-unlearning's score of an unlearned model: memorisation, privacy and utility, and the harmonic mean of the three.

    Mem  = HM(1 − ES, 1 − EM, 1 − P(paraphrase), 1 − TR)      TR = p / (p + q), mean over rows
    Priv = HM(s_LOSS, s_zlib, s_Min-K, s_Min-K++)             s = clip(1 − |AUC − AUC_retrained| / AUC_retrained, 0, 1)
    Util = HM(U / U_untouched, F / F_untouched)
    Agg  = HM(Mem, Priv, Util)

(arXiv:2506.12618; `truth_ratio` with `prob_mean` in `src/evals/metrics/memorization.py`.) ES and EM: extraction strength and
exact memorisation, p: probability per token of the paraphrased answer, q: the geometric mean of the wrong ones', all on the
forget rows; U: model utility. A retrained model does not score 1, but .58 in the paper: its EM and P are not 0. Its own value
therefore stands beside every number, and to score above it is no better.

Departs in F. There it is what a classifier of gibberish, a model of the hub, thinks of the answers to forget questions. Here it
is 1 / `fluency_perplexity`, what the model before unlearning thinks of the answers to retain questions, per token: it asks for
no other model, works on the embedded world, and does not see a model that falls apart on forget questions alone.
A ratio to the untouched model is not cut at 1. Asked for by `--evals +open_unlearning_score`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from evals import _tofu, _token_scores
from harness.core.config import JSON
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan, GenerationRequest, evaluator, rows_of
from harness.core.metric import HARMONIC, Metric, Number, OfMeans, Plain, Rows, harmonic_mean
from harness.statistics.measurements import groups_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SEVERAL = Plain("it is made of several numbers that rest on different rows")
MEMORISATION = Metric(
    "open_unlearning_memorisation",
    title="Mem (open-unlearning)",
    unit="harmonic mean",
    better="higher",
    about="how little of the forget answers can be had from the model, by four metrics; a retrained model is far from 1",
    range=(0.0, 1.0),
    statistic=HARMONIC,
    part="forget",
    cluster="author",
    short="Mem",
)
PRIVACY = replace(
    MEMORISATION,
    name="open_unlearning_privacy",
    title="Priv (open-unlearning)",
    about="how close four membership attacks come to what they make of a retrained model, which has 1",
    statistic=_SEVERAL,
    short="Priv",
)
UTILITY = replace(
    PRIVACY,
    name="open_unlearning_utility",
    title="Util (open-unlearning)",
    about="model utility and fluency, each as a share of the untouched model's",
    range=None,
    short="Util",
)
AGGREGATE = replace(
    UTILITY,
    name="open_unlearning_aggregate",
    title="Agg (open-unlearning)",
    about="harmonic mean of Mem, Priv and Util; a retrained model is below 1, and to score above it is no better",
    contains=(MEMORISATION.name, PRIVACY.name, UTILITY.name),
    short="Agg",
)


def _requests(plan: EvalPlan, tokenizer: PreTrainedTokenizerBase) -> list[GenerationRequest]:
    """What utility and fluency ask for."""
    return [*_tofu.requests(plan, tokenizer), *EVALUATORS.get("fluency").requests(plan, tokenizer)]


def _inputs(plan: EvalPlan) -> dict[str, JSON]:
    """What membership rests on."""
    return dict(EVALUATORS.get("membership").evaluator_inputs(plan))


@evaluator(
    "open_unlearning_score",
    version=1,
    metrics=(MEMORISATION, PRIVACY, UTILITY, AGGREGATE),
    requests=_requests,
    evaluator_inputs=_inputs,
)
def measure(context: EvalContext, metric: Metric) -> Rows | Number:
    """Mem's four parts by row, or one of the other numbers."""
    if metric is MEMORISATION:
        return _memorisation(context)
    if metric is PRIVACY:
        return _privacy(context)
    if metric is UTILITY:
        return _utility(context)
    rows = _memorisation(context)
    if not np.isfinite(rows.values).all():
        raise LookupError("a likelihood is not finite")
    parts = [MEMORISATION.statistic.value([rows]), _privacy(context).value, _utility(context).value]  # type: ignore[union-attr]
    return Number(harmonic_mean(parts), len(rows.values))


def _memorisation(context: EvalContext) -> Rows:
    """[n, 4] what is left of 1 after extraction strength, exact memorisation, probability and truth ratio."""
    paraphrase = _tofu.paraphrase_probability(context)
    parts = [_token_scores.forget_rows(context, name).values for name in ("extraction_strength", "exact_memorisation")]
    if len({len(part) for part in (*parts, paraphrase.values)}) > 1:  # of a log whose parts are about different rows
        raise LookupError(f"memorisation is known of {len(parts[0])} forget answers, paraphrases of {len(paraphrase.values)}")
    known = np.column_stack([*parts, paraphrase.values, _known_truth_ratio(context).values])
    return Rows(1 - known, paraphrase.clusters)


def _known_truth_ratio(context: EvalContext) -> Rows:
    """P(paraphrase) / (P(paraphrase) + P(wrong)) of each forget row, with open-unlearning's guard: how much of it is known."""
    rows = rows_of(_tofu.likelihood(context), "forget", "avg_paraphrased_loss", "average_perturb_loss")
    with np.errstate(over="ignore", invalid="ignore"):
        paraphrased = np.exp(-rows["avg_paraphrased_loss"].to_numpy(dtype=float))
        wrong = np.exp(-_tofu.wrong_losses(rows).mean(axis=1))
        return Rows(paraphrased / (paraphrased + wrong + _tofu.GUARD), rows["cluster"].to_numpy())


def _privacy(context: EvalContext) -> Number:
    parts = [_token_scores.closeness(context, f"membership_{attack}") for attack in _token_scores.ATTACKS]
    return Number(harmonic_mean([part.value for part in parts]), parts[0].n)


def _utility(context: EvalContext) -> Number:
    parts = [_model_utility(context), _fluency(context)]  # first of all: the untouched model's own tables are built by it, too
    if not context.untouched:
        raise LookupError("it is a share of the untouched model's, and that model's numbers are not known here")
    untouched = replace(context, loaded=None, tables=dict(context.untouched))
    before = [_model_utility(untouched), _fluency(untouched)]
    if not all(np.isfinite(part.value) for part in (*parts, *before)) or not all(part.value for part in before):
        raise LookupError("utility or fluency is not finite, or 0 before unlearning")
    shares = [part.value / of.value for part, of in zip(parts, before, strict=True)]
    return Number(harmonic_mean(shares), sum(part.n for part in parts))


def _model_utility(context: EvalContext) -> Number:
    return Number(_tofu.utility(context), sum(len(rows.values) for rows in _tofu.utility_rows(context)))


def _fluency(context: EvalContext) -> Number:
    """1 / perplexity of the answers that evaluator `fluency` judges."""
    fluency = EVALUATORS.get("fluency")
    perplexity = fluency.metric("fluency_perplexity")
    assert perplexity, "fluency measures perplexity"
    assert isinstance(perplexity.statistic, OfMeans)
    groups: Sequence[Rows] = groups_of(fluency.measure(context, perplexity))
    return Number(1 / perplexity.statistic.value(groups), sum(len(rows.values) for rows in groups))
