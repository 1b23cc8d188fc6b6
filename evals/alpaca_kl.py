"""How far the model has moved on instructions that have nothing to do with what it forgot (specificity, K-FADE's figure 2).

    KL_t = Σ_v p_base(v | x, y_<t) [log p_base(v | x, y_<t) − log p_unlearned(v | x, y_<t)]      y sampled from the base model

The instructions are Alpaca's (`tatsu-lab/alpaca`) in the benchmark's own template, input and instruction as one user turn; the
base model answers them, sampled at temperature 1, so that the mean is an estimate of the KL of what it says. Arithmetic as in
"Gauss-Newton Unlearning for the LLM Era" (arXiv:2602.10568): a completion is worth its mean over tokens, its end token among
them, and the metric is the mean over completions; whole completions are resampled, for a few of them carry most of it. The
paper does not say how it sampled, how long completions were, or which template it took.

Completions are kept as text and tokenised again, which now and then gives other tokens than were drawn; one that filled its
budget has no end token. Equal instructions are answered once. Both models read the completions side by side and no distribution
is kept (`harness.numerics.likelihood.kl_between`); the base model is loaded for that moment only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from harness.core.evaluator import EvalContext, EvalPlan, GenerationRequest, Sampling, evaluator
from harness.core.memory import MemoryItem, ModelShape
from harness.core.metric import RATIO, Metric, Rows
from harness.core.problem import Row
from harness.core.text import Example

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

    from harness.data.rows import Encoded

VERSION = 1
TASK = "instructions"
METRIC = Metric(
    "alpaca_kl",
    title="KL instructions",
    unit="nats per token",
    better="lower",
    about="how far the model has moved on answers to instructions that have nothing to do with what it forgot",
    part=TASK,
    cluster="completion",
)
POOLED = replace(
    METRIC,
    name="alpaca_kl_pooled",
    title="KL instructions, pooled",
    about="the same with every token counting alike, not every answer",
    statistic=RATIO,
)
MAX_TOKENS = 256
"""New tokens of a completion, unless the benchmark's models cannot take so many."""
ENCODED_AT_ONCE = 2048
"""Completions that are held as tokens."""
LISTED = 5
"""How many of the completions that moved most are named."""


def _requests(plan: EvalPlan, tokenizer: PreTrainedTokenizerBase) -> Sequence[GenerationRequest]:
    return list(_rows_by_request(plan))


def _rows_by_request(plan: EvalPlan) -> Mapping[GenerationRequest, Row]:
    """What the base model is asked, and the first row that asks it."""
    sampling = Sampling(max_tokens=_budget(plan), temperature=1.0)
    rows: dict[GenerationRequest, Row] = {}
    for row in plan.questions.get(TASK, ()):
        rows.setdefault(GenerationRequest((plan.problem.template.prompt(row["question"]),), sampling, by="base"), row)
    return rows


def _budget(plan: EvalPlan) -> int:
    return min(MAX_TOKENS, plan.problem.generation_budget)


def _memory_items(shape: ModelShape) -> list[MemoryItem]:
    """The model before unlearning, and the logits of both."""
    from harness.models.memory_items import measuring_bytes

    weights = shape.parameters * shape.weight_bytes
    return [MemoryItem("model before unlearning", weights), MemoryItem("logits", measuring_bytes(shape), certain=False)]


@evaluator("alpaca_kl", version=VERSION, metrics=(METRIC, POOLED), requests=_requests, memory=_memory_items)
def measure(context: EvalContext, metric: Metric) -> Rows:
    """Every completion's mean over its tokens, or its nats and its tokens."""
    table = context.table("instructions", _build)
    table = table[table["task"] == TASK]
    if table.empty or "kl_sum" not in table:
        raise LookupError(f"there are no {TASK} rows")
    values = table[["kl_sum", "kl_tokens"]].to_numpy(dtype=float)
    clusters, rows = table["cluster"].to_numpy(), table["row"].to_numpy()
    if not np.isfinite(values).all():
        broken = int((~np.isfinite(values)).any(axis=1).sum())
        raise LookupError(f"{broken} of {len(values)} completions have a KL that is not finite")
    if metric.name == POOLED.name:
        return Rows(values, clusters)
    per_token = values[:, 0] / values[:, 1]
    highest = [f"{rows[i]} ({per_token[i]:.3g})" for i in np.argsort(-per_token, kind="stable")[:LISTED]]
    return Rows(per_token, clusters, note=f"highest in rows {', '.join(highest)}")


def _build(context: EvalContext) -> pd.DataFrame:
    """KL(base ‖ now) of every completion: `kl_sum` in nats over its `kl_tokens` tokens."""
    import pandas as pd

    rows = _rows_by_request(context.plan)
    if not rows:
        raise LookupError(
            "this benchmark has no instructions, or they are not here: put tatsu-lab/alpaca/alpaca_data.json into the data "
            "folder"
        )
    texts = [(request.turns[0], context.generations[request]) for request in rows]
    sums, counts = _divergences(context, texts)
    keys = {"row": [row["row"] for row in rows.values()], "cluster": [row["cluster"] for row in rows.values()]}
    return pd.DataFrame({"task": TASK, **keys, "kl_sum": sums, "kl_tokens": counts.astype(int)})


def _divergences(context: EvalContext, texts: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """KL(base ‖ now) of each (prompt, completion), summed over its tokens, and their number; see `kl_between`."""
    from harness.core.progress import progress_bar
    from harness.data.rows import pad_id
    from harness.numerics.likelihood import kl_between
    from harness.numerics.placement import placement

    dtype = str(context.model.dtype).removeprefix("torch.")
    base, _ = context.problem.sources["base"].load(context.cache, placement(context.model), dtype)
    parts = []
    with progress_bar(total=len(texts), desc="instructions", unit="completion") as bar:
        for start in range(0, len(texts), ENCODED_AT_ONCE):
            encoded = _encoded(texts[start : start + ENCODED_AT_ONCE], context.plan, context.tokenizer)
            context.costs.count(2 * sum(len(e.input_ids) for e in encoded))
            parts.append(kl_between(base, context.model, encoded, pad_id(context.tokenizer), bar.update))
    sums, counts = (np.concatenate(each) for each in zip(*parts, strict=True))
    return sums, counts


def _encoded(texts: Sequence[tuple[str, str]], plan: EvalPlan, tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """Prompts and completions as tokens, the end token last where the completion came to its end within its budget."""
    from harness.data.rows import Encoded, encode

    # A tag that is only a blank is what stood between prompt and answer and was stripped off with the completion.
    blank = "" if plan.problem.template.answer_tag.strip() else plan.problem.template.answer_tag
    encoded = encode([Example(prompt, text, blank if text else "") for prompt, text in texts], tokenizer)
    return [Encoded(e.input_ids[: e.prompt_tokens + _budget(plan)], e.prompt_tokens) for e in encoded]
