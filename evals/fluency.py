"""Whether a model still writes text: how likely to the model before, how varied, how repetitive its answers are.

For models too small to chat, in place of MT-Bench; it grades no content and is no substitute for it. The answers are greedy.

    perplexity = exp(Σ_rows Σ_t −log p_before(y_t | prompt, y_<t)  /  number of the answers' tokens)
    distinct-n = mean over rows of (different n-grams of the answer / its n-grams)     (Li et al. 2016, arXiv:1510.03055)
    repetition = mean over rows of (1 − distinct-4)                                    (Welleck et al. 2019, arXiv:1908.04319)

Here each answer counts by itself (Li et al. pool all answers, whose number then matters), n-grams are of words as white space
parts them, and an answer too short for an n-gram is left out. End tokens are not scored, since an answer that was cut at its
budget has none. The answers are those to the problem's instructions where it has such (`questions["instructions"]`), else to
its retain questions. A low perplexity alone proves little: "the the the" is likely too, once begun. Hence the other three.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from evals import _tofu
from harness.core.evaluator import EvalContext, EvalPlan, GenerationRequest, evaluator
from harness.core.metric import Better, Metric, OfMeans, Rows
from harness.core.text import Example

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VERSION = 1
TABLE = "fluency"


def _perplexity(means: np.ndarray) -> np.ndarray:
    """[2, …] mean nats and mean tokens → […] perplexity."""
    with np.errstate(over="ignore"):
        perplexity: np.ndarray = np.exp(means[0] / means[1])
    return perplexity


def _share(name: str, title: str, unit: str, about: str, better: Better = "higher") -> Metric:
    return Metric(name, title, unit, better, about, range=(0.0, 1.0), part=name.removeprefix("fluency_"), cluster="row")


METRICS = (
    Metric(
        "fluency_perplexity",
        title="Perplexity",
        unit="perplexity",
        better="lower",
        about="how unlikely the model before unlearning finds the answers",
        statistic=OfMeans(_perplexity),
        part="perplexity",
        cluster="row",
    ),
    _share("fluency_distinct_1", "Distinct words", "share of words", "how varied an answer's words are"),
    _share("fluency_distinct_2", "Distinct 2-grams", "share of 2-grams", "how varied an answer's pairs of words are"),
    _share("fluency_repetition", "Repetition", "share of 4-grams", "how much of an answer says itself again", "lower"),
)
_COLUMNS = {
    "perplexity": (["fluency_nll", "fluency_tokens"], "every answer is empty"),
    "distinct_1": (["distinct_1"], "every answer is empty"),
    "distinct_2": (["distinct_2"], "no answer has two words"),
    "repetition": (["repeated_4"], "no answer has four words"),
}
"""A metric's part → its columns of the table, rows where the first is NaN left out; and why there is none if all are."""


def _question_set(plan: EvalPlan) -> str:
    """Which of the problem's questions are answered."""
    return "instructions" if plan.questions.get("instructions") else "retain"


def requests(plan: EvalPlan, tokenizer: PreTrainedTokenizerBase) -> list[GenerationRequest]:
    """One greedy answer to each question, the same that ROUGE asks for."""
    return _tofu.task_requests(plan, _question_set(plan), tokenizer)


def distinct(text: str, n: int) -> float:
    """Different n-grams of words over all of them, in (0, 1]; NaN for a text of fewer than n words."""
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def _build(context: EvalContext) -> pd.DataFrame:
    """One row per question: `fluency_nll` in nats over `fluency_tokens`, `distinct_1`, `distinct_2`, `repeated_4`."""
    import pandas as pd

    name = _question_set(context.plan)
    rows = context.plan.questions.get(name, ())
    if not rows:
        raise LookupError("there are no retain questions and no instructions")
    generation_requests = requests(context.plan, context.tokenizer)
    texts = [context.generations[request] for request in generation_requests]
    nats, tokens = _unlikelihood(context, [request.turns[0] for request in generation_requests], texts)
    return pd.DataFrame(
        {
            "task": name,
            "row": [row["row"] for row in rows],
            "cluster": [row["cluster"] for row in rows],
            "fluency_nll": nats,
            "fluency_tokens": tokens,
            "distinct_1": [distinct(text, 1) for text in texts],
            "distinct_2": [distinct(text, 2) for text in texts],
            "repeated_4": [1 - distinct(text, 4) for text in texts],
        }
    )


def _unlikelihood(context: EvalContext, prompts: Sequence[str], texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """What the model before unlearning thinks of the texts.

    Returns:
        ([n] nats, [n] tokens), both NaN for an empty text.
    """
    from harness.data.rows import Encoded, encode, pad_id
    from harness.numerics.likelihood import answer_nll

    written = [i for i, text in enumerate(texts) if text]
    nats, tokens = np.full((2, len(texts)), np.nan)
    if written:
        examples = [Example(prompts[i], texts[i], "" if prompts[i][-1:].isspace() else " ") for i in written]
        encoded = [Encoded(e.input_ids[:-1], e.prompt_tokens) for e in encode(examples, context.tokenizer)]
        context.costs.count(sum(len(e.input_ids) for e in encoded))
        nats[written], tokens[written] = answer_nll(_before(context), encoded, pad_id(context.tokenizer))
    return nats, tokens


def _before(context: EvalContext) -> PreTrainedModel:
    """The model before unlearning, loaded beside the one that is measured."""
    from harness.numerics.placement import placement

    dtype = str(context.model.dtype).removeprefix("torch.")
    return context.problem.sources["base"].load(context.cache, placement(context.model), dtype)[0]


@evaluator("fluency", version=VERSION, metrics=METRICS, requests=requests)
def measure(context: EvalContext, metric: Metric) -> Rows:
    """What is counted of every answer that is long enough."""
    columns, missing = _COLUMNS[metric.part]
    table = context.table(TABLE, _build)
    values: np.ndarray = table[columns].to_numpy(dtype=float)
    values = values[~np.isnan(values[:, 0])]
    if not len(values):
        raise LookupError(missing)
    if not np.isfinite(_perplexity(values.mean(axis=0)) if metric.part == "perplexity" else values).all():
        raise LookupError("the model before unlearning finds an answer impossible")
    left_out = len(table) - len(values)
    note = f"{left_out} of {len(table)} answers are too short and left out" if left_out else None
    return Rows(values, np.arange(len(values)), note=note)
