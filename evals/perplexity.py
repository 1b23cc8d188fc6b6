"""How unlikely running text is to a model: perplexity, one number for each set of texts that is neither forgotten nor retained.

    perplexity = exp( Σ_texts Σ_t −log p(x_t | x_<t)  /  number of tokens )        the first token of a text is not scored

What the code of the Training Data Extraction Challenge logs as loss on Pile and Wikitext (joeljang/knowledge-unlearning
`Neo_Model.py`, `validation_general_lm`) is a mean over batches of each batch's mean, of the first batch alone unless its
`limit_val_batches` is changed; here all tokens of all texts count alike. Texts are cut at 512 tokens, as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from harness.core.evaluator import EvalContext, EvalPlan, MetricFamily, evaluator, rows_of
from harness.core.metric import Metric, OfMeans, Rows
from harness.core.problem import Row

if TYPE_CHECKING:
    import pandas as pd

VERSION = 1
LONGEST = 512
"""Tokens at which a text is cut."""
NOT_KEPT = ("memorized", "unseen")
"""Sets of texts that `evals/extraction.py` is about."""
SUFFIX = "_perplexity"


def _perplexity(means: np.ndarray) -> np.ndarray:
    """[2, …] mean nats and mean tokens → […] perplexity."""
    with np.errstate(over="ignore"):
        perplexity: np.ndarray = np.exp(means[0] / means[1])
    return perplexity


def text_sets(plan: EvalPlan) -> Mapping[str, Sequence[Row]]:
    """The problem's sets of texts that are to be kept."""
    sets = {name: rows for name, rows in plan.questions.items() if name not in NOT_KEPT}
    return {name: rows for name, rows in sets.items() if rows and all("text" in row for row in rows)}


def of_set(name: str) -> Metric:
    """Perplexity of a set of texts."""
    return Metric(
        f"{name}{SUFFIX}".lstrip("_"),
        title=f"Perplexity {name}".strip(),
        unit="perplexity",
        better="lower",
        about=f"how unlikely the model finds {name} texts that it has not been trained on".replace("  ", " "),
        statistic=OfMeans(_perplexity),
        part=name,
        cluster="text",
    )


def metrics(plan: EvalPlan) -> list[Metric]:
    """`<set>_perplexity` for each set of texts."""
    return [of_set(name) for name in text_sets(plan)] or [of_set("")]


def named(name: str) -> Metric | None:
    """The metric of a recorded name."""
    known = name.endswith(SUFFIX.lstrip("_")) and not name.startswith("fluency")
    return of_set(name.removesuffix(SUFFIX) if name.endswith(SUFFIX) else "") if known else None


@evaluator("perplexity", version=VERSION, metrics=MetricFamily(metrics, named))
def measure(context: EvalContext, metric: Metric) -> Rows:
    """Nats and tokens of every text of a set."""
    if not metric.part:
        raise LookupError("this benchmark has no running text")
    rows = rows_of(context.table("perplexity", _build), metric.part, "running_nll", "running_tokens")
    values = rows[["running_nll", "running_tokens"]].to_numpy(dtype=float)
    if not np.isfinite(_perplexity(values.mean(axis=0))):
        raise LookupError("a likelihood is not finite")
    return Rows(values, rows["cluster"].to_numpy())


def _build(context: EvalContext) -> pd.DataFrame:
    """One row per text: `running_nll` in nats over `running_tokens`."""
    import pandas as pd

    from harness.core.text import Window
    from harness.data.rows import encode, pad_id
    from harness.numerics.likelihood import answer_nll

    sets = text_sets(context.plan)
    keys = [{"task": name, "row": row["row"], "cluster": row["cluster"]} for name, rows in sets.items() for row in rows]
    texts = [Window("", row["text"]) for rows in sets.values() for row in rows]
    encoded = encode(texts, context.tokenizer, LONGEST)
    context.costs.count(sum(len(each.input_ids) for each in encoded))
    nats, tokens = answer_nll(context.model, encoded, pad_id(context.tokenizer))
    return pd.DataFrame(keys).assign(running_nll=nats, running_tokens=tokens.astype(int))
