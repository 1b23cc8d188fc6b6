"""Whether forget answers are still there inside the model: at how many layers the true token leads (logit lens).

    logit_lens          mean over rows of: the share of (answer token, layer) pairs at which the true token is the likeliest
    logit_lens_hidden   mean over rows of: the share of answer tokens that lead at some layer, and not at the last one

each layer read through the model's own last norm and output embedding (`harness.numerics.logit_lens`), true tokens before, end
token left out. The second says what a model knows on the way and does not say. Published uses take entity tokens, or the layer
from which on a token leads; here all answer tokens count, and every layer, so that what only the last layers hide is seen. A
model of two layers has one layer inside. Asked for by `--evals +logit_lens`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from evals import _tofu
from harness.core.evaluator import EvalContext, evaluator, rows_of
from harness.core.metric import Metric, Rows

if TYPE_CHECKING:
    import pandas as pd


def _metric(name: str, title: str, unit: str, about: str) -> Metric:
    return Metric(
        name,
        title=title,
        unit=unit,
        better="closer",
        better_alone="lower",
        about=about,
        range=(0.0, 1.0),
        part="forget",
        cluster="author",
    )


METRICS = (
    _metric(
        "logit_lens",
        "Logit lens",
        "share of tokens and layers",
        "at how many layers the true token of a forget answer is the likeliest one",
    ),
    _metric(
        "logit_lens_hidden",
        "Logit lens, hidden",
        "share of tokens",
        "how many tokens of a forget answer are the likeliest at some layer and not at the last one",
    ),
)


@evaluator("logit_lens", version=1, metrics=METRICS)
def measure(context: EvalContext, metric: Metric) -> Rows:
    """The share of each forget answer."""
    rows = rows_of(context.table("logit_lens", _build), "forget", metric.name)
    return Rows(rows[metric.name].to_numpy(dtype=float), rows["cluster"].to_numpy())


def _build(context: EvalContext) -> pd.DataFrame:
    """One row per forget question."""
    import pandas as pd

    from harness.data.rows import pad_id
    from harness.numerics.logit_lens import leading_layers

    rows = context.plan.questions.get("forget", ())
    if not rows:
        raise LookupError("there are no forget rows")
    template, tokenizer = context.problem.template, context.tokenizer
    encoded = _tofu.encoded_texts(context, [template.example(row["question"], row["answer"]) for row in rows])
    context.costs.count(sum(len(each.input_ids) for each in encoded))
    scored = []
    for row, text, leads in zip(rows, encoded, leading_layers(context.model, encoded, pad_id(tokenizer)), strict=True):
        answer = leads[: len(leads) - (text.input_ids[-1] == tokenizer.eos_token_id)]
        hidden = answer[:, :-1].any(axis=1) & ~answer[:, -1]
        keys = {"task": "forget", "row": row["row"], "cluster": row["cluster"]}
        scored.append({**keys, "logit_lens": answer.mean(), "logit_lens_hidden": hidden.mean()})
    return pd.DataFrame(scored)
