"""What a model's view of each answer token comes to, row by row: memorisation and membership scores out of one pass.

The true answers of the forget rows, and those of the holdout rows where membership is asked for, go through the model once
(`harness.numerics.token_likelihoods`); each row keeps a number for every score. With ℓ_t the log-probability of the answer's
token t of T, its end token left out, and ŷ_t the likeliest token there:

    extraction_strength          1 − min{k : ŷ_t = y_t for all t > k} / T      (arXiv:2012.07805; arXiv:2506.12618)
    exact_memorisation           |{t : ŷ_t = y_t}| / T                          (arXiv:2205.10770)
    membership_loss              −mean_t ℓ_t, end token included                (Yeom et al. 2018, arXiv:1709.01604)
    membership_zlib              that over the bytes of the answer compressed by zlib   (arXiv:2012.07805)
    membership_min_k             −mean of the lowest k % of ℓ_t                 (arXiv:2310.16789)
    membership_min_k_plus_plus   −mean of the lowest k % of (ℓ_t − μ_t) / σ_t   (arXiv:2404.02936)

μ_t and σ_t are mean and standard deviation of the log-probabilities under the model's own distribution; σ_t² is at least 1e-6.
Membership scores are signed as the loss is: the higher, the less likely a member. k is 20, as in the papers. In
open-unlearning's definitions (`src/evals/metrics/{memorization,utils}.py`, `mia/`, `configs/eval/tofu_metrics`) k is 40, and an
answer whose last token is missed has an extraction strength of 1/T, since its count of k ends one short of T; here it has 0.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from evals import _tofu
from harness.core.evaluator import EvalContext, rows_of
from harness.core.metric import Number, Rows
from harness.core.options import Variant
from harness.core.problem import Row
from harness.statistics.ranks import placements

if TYPE_CHECKING:
    import pandas as pd

    from harness.numerics.token_likelihoods import TokenLikelihoods

LOWEST_SHARE: Mapping[Variant, float] = {"original": 0.2, "open-unlearning": 0.4, "corrected": 0.2}
"""Of an answer's tokens, those that Min-K % looks at."""
LEAST_VARIANCE = 1e-6
"""Of log-probabilities: a model that is certain of its word would be divided by 0."""
ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")


def forget_rows(context: EvalContext, column: str) -> Rows:
    """A score of every forget row."""
    return _rows(context, "forget", column)


def holdout_rows(context: EvalContext, column: str) -> Rows:
    """A score of every holdout row."""
    return _rows(context, "holdout", column)


def _rows(context: EvalContext, task: str, column: str) -> Rows:
    table = context.table(f"{task}_tokens", _build_forget if task == "forget" else _build_holdout)
    rows = rows_of(table, task, column)
    return Rows(rows[column].to_numpy(dtype=float), rows["cluster"].to_numpy())


def membership(context: EvalContext, name: str) -> list[Rows]:
    """Placements of the forget rows and of the holdout rows by a membership score; the mean of either is the AUC.

    Raises:
        LookupError: where a score is not finite, or there are no such rows.
    """
    forget, holdout = forget_rows(context, name), holdout_rows(context, name)
    for rows in (forget, holdout):
        if broken := int((~np.isfinite(rows.values)).sum()):
            raise LookupError(f"{broken} of {len(rows.values)} answers have likelihoods that are not finite")
    of_forget, of_holdout = placements(forget.values, holdout.values)
    return [replace(forget, values=of_forget), replace(holdout, values=of_holdout)]


def closeness(context: EvalContext, name: str) -> Number:
    """How close the area under a membership score is to the first retrained model's, clip(1 − |a − r| / r, 0, 1).

    Raises:
        LookupError: as `membership`, or where there is no retrained model.
    """
    rows, _ = membership(context, name)  # first of all: a retrained model's own tables are built by it, too
    if not context.references:
        raise LookupError("it compares with a retrained model, and there is none")
    retrained, _ = membership(context.of(context.references[0]), name)
    area, target = float(rows.values.mean()), float(retrained.values.mean())
    if target == 0:
        raise LookupError("the retrained model's own area is 0")
    return Number(min(1.0, max(0.0, 1 - abs(area - target) / target)), len(rows.values))


def _build_forget(context: EvalContext) -> pd.DataFrame:
    return _build(context, "forget", context.plan.questions.get("forget", ()))


def _build_holdout(context: EvalContext) -> pd.DataFrame:
    holdout = context.problem.holdout
    return _build(context, "holdout", holdout() if holdout else ())


def _build(context: EvalContext, task: str, rows: Sequence[Row]) -> pd.DataFrame:
    """One row per question: all scores of its true answer."""
    import pandas as pd

    from harness.core.progress import progress_bar
    from harness.data.rows import pad_id
    from harness.numerics.token_likelihoods import token_likelihoods

    if not rows:
        raise LookupError(f"there are no {task} rows")
    template, tokenizer, variant = context.problem.template, context.tokenizer, context.plan.variant
    encoded = _tofu.encoded_texts(context, [template.example(row["question"], row["answer"]) for row in rows])
    context.costs.count(sum(len(each.input_ids) for each in encoded))
    with progress_bar(total=len(encoded), desc=f"{task} tokens", unit="answer") as bar:
        values = token_likelihoods(context.model, encoded, pad_id(tokenizer), bar.update)
    scored = []
    for row, text, tokens in zip(rows, encoded, values, strict=True):
        ended = text.input_ids[-1] == tokenizer.eos_token_id
        answer = str(tokenizer.decode(text.input_ids[-text.label_count :], skip_special_tokens=True))
        keys = {"task": task, "row": row["row"], "cluster": row["cluster"]}
        scored.append({**keys, **scores(tokens, ended, answer, variant)})
    return pd.DataFrame(scored)


def scores(tokens: TokenLikelihoods, ended: bool, answer: str, variant: Variant = "original") -> dict[str, float]:
    """All scores of one answer; NaN where a likelihood is not finite, or the answer is nothing but its end token.

    Args:
        tokens: what the model thinks of its tokens.
        ended: whether the last of them is the end token.
        answer: its text.
        variant: whose definitions.
    """
    loss = -float(tokens.log_probs.mean())
    said = tokens.first(len(tokens.log_probs) - ended)
    if not len(said.log_probs) or not np.isfinite(tokens.log_probs).all():
        extracted, memorised, lowest, normalised = [float("nan")] * 4
    else:
        share = LOWEST_SHARE[variant]
        extracted = extraction_strength(said.predicted, variant)
        memorised = float(said.predicted.mean())
        lowest = lowest_mean(said.log_probs, share)
        deviations = np.sqrt(np.maximum(said.deviations**2, LEAST_VARIANCE))
        normalised = lowest_mean((said.log_probs - said.means) / deviations, share)
    return {
        "extraction_strength": extracted,
        "exact_memorisation": memorised,
        "membership_loss": loss,
        "membership_zlib": loss / len(zlib.compress(answer.encode())),
        "membership_min_k": -lowest,
        "membership_min_k_plus_plus": -normalised,
    }


def extraction_strength(predicted: np.ndarray, variant: Variant = "original") -> float:
    """The share of an answer that greedy decoding gives exactly from what stands before it.

    Args:
        predicted: [T] whether greedy decoding says the token that stands there.
        variant: whose definitions.

    >>> extraction_strength(np.array([False, True, False, True]))
    0.25
    """
    missed = np.flatnonzero(~predicted)
    needed = int(missed[-1]) + 1 if len(missed) else 0
    if variant == "open-unlearning":
        needed = min(needed, len(predicted) - 1)
    return 1 - needed / len(predicted)


def lowest_mean(values: np.ndarray, share: float) -> float:
    """The mean of a share of the values, the lowest ones, at least one of them.

    >>> lowest_mean(np.array([-1.0, -5.0, -2.0, -3.0]), 0.5)
    -4.0
    """
    return float(np.sort(values)[: max(1, int(len(values) * share))].mean())
