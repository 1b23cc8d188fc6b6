"""Whether a model still writes text: how likely to the model before, how varied, how repetitive its answers are.

For models too small to chat, in place of MT-Bench; it grades no content and is no substitute for it. The answers are greedy.

    perplexity = exp(Σ_rows Σ_t −log p_before(y_t | prompt, y_<t)  /  number of the answers' tokens)
    distinct-n = mean over rows of (different n-grams of the answer / its n-grams)     (Li et al. 2016, arXiv:1510.03055)
    repetition = mean over rows of (1 − distinct-4)                                    (Welleck et al. 2019, arXiv:1908.04319)

Here each answer counts by itself (Li et al. pool all answers, whose number then matters), n-grams are of words as white space
parts them, and an answer too short for an n-gram is left out. End tokens are not scored, since an answer that was cut at its
budget has none. The answers are those to the task's instructions where it has such (`questions["instructions"]`), else to its
retain questions. A low perplexity alone proves little: "the the the" is likely too, once begun. Hence the other three.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evals import _tofu
from evals._bootstrap import METHOD, interval
from harness.core.interfaces import Absent, Better, Example, GenerationRequest, Measurement, Setting, Subject, Task, evaluator

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VERSION = 1
TABLE = "fluency"


@dataclass(frozen=True)
class _Number:
    """One of the four."""

    metric: str
    unit: str
    better: Better
    columns: tuple[str, ...]
    """Of the table; rows where the first is NaN are left out."""
    of_means: Callable[..., np.ndarray]
    """Means of the columns → the number."""
    range: tuple[float, float] | None
    missing: str
    """Why there is none when all rows are left out."""


def _same(mean: np.ndarray) -> np.ndarray:
    return mean


def _perplexity(nats: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        perplexity: np.ndarray = np.exp(nats / tokens)
    return perplexity


_SHARE = (0.0, 1.0)
NUMBERS = (
    _Number(
        "fluency_perplexity",
        "perplexity",
        "lower",
        ("fluency_nll", "fluency_tokens"),
        _perplexity,
        None,
        "every answer is empty",
    ),
    _Number("fluency_distinct_1", "share of words", "higher", ("distinct_1",), _same, _SHARE, "every answer is empty"),
    _Number("fluency_distinct_2", "share of 2-grams", "higher", ("distinct_2",), _same, _SHARE, "no answer has two words"),
    _Number("fluency_repetition", "share of 4-grams", "lower", ("repeated_4",), _same, _SHARE, "no answer has four words"),
)


def _asked(task: Task) -> str:
    """Which of the task's questions are answered."""
    return "instructions" if task.questions.get("instructions") else "retain"


def requests(task: Task, tokenizer: PreTrainedTokenizerBase) -> list[GenerationRequest]:
    """One greedy answer to each question, the same that ROUGE asks for."""
    return _tofu.task_requests(task, _asked(task), tokenizer)


def distinct(text: str, n: int) -> float:
    """Different n-grams of words over all of them, in (0, 1]; NaN for a text of fewer than n words."""
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def _build(subject: Subject, setting: Setting) -> pd.DataFrame:
    """One row per question: `fluency_nll` in nats over `fluency_tokens`, `distinct_1`, `distinct_2`, `repeated_4`."""
    import pandas as pd

    task = subject.task
    name = _asked(task)
    rows = task.questions.get(name, ())
    if not rows:
        raise LookupError("there are no retain questions and no instructions")
    asked = requests(task, setting.tokenizer)
    texts = [subject.generations[request] for request in asked]
    nats, tokens = _unlikelihood(setting, [request.turns[0] for request in asked], texts)
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


def _unlikelihood(setting: Setting, prompts: Sequence[str], texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
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
        encoded = [Encoded(e.input_ids[:-1], e.prompt_tokens) for e in encode(examples, setting.tokenizer)]
        setting.costs.count(sum(len(e.input_ids) for e in encoded))
        nats[written], tokens[written] = answer_nll(_before(setting), encoded, pad_id(setting.tokenizer))
    return nats, tokens


def _before(setting: Setting) -> PreTrainedModel:
    """The model before unlearning, loaded beside the one that is measured."""
    from harness.numerics.loading import placement

    dtype = str(setting.model.dtype).removeprefix("torch.")
    return setting.task.sources["base"].load(setting.cache, placement(setting.model), dtype)[0]


@evaluator("fluency", version=VERSION, requests=requests)
def measure(subject: Subject) -> Sequence[Measurement | Absent]:
    """`fluency_perplexity`, `fluency_distinct_1`, `fluency_distinct_2`, `fluency_repetition`."""
    try:
        table = subject.table(TABLE, lambda setting: _build(subject, setting))
    except LookupError as error:
        return [Absent(metric=number.metric, reason=str(error)) for number in NUMBERS]
    return [_measurement(subject, table, number) for number in NUMBERS]


def _rows(table: pd.DataFrame, number: _Number) -> np.ndarray:
    """[n, k] the number's columns; LookupError if no row has them."""
    values: np.ndarray = table[list(number.columns)].to_numpy(dtype=float)
    values = values[~np.isnan(values[:, 0])]
    if not len(values):
        raise LookupError(number.missing)
    return values


def _measurement(subject: Subject, table: pd.DataFrame, number: _Number) -> Measurement | Absent:
    def value(other: Subject) -> float:
        return float(number.of_means(*_rows(other.tables[TABLE], number).mean(axis=0)))

    try:
        values = _rows(table, number)
    except LookupError as error:
        return Absent(metric=number.metric, reason=str(error))
    found = float(number.of_means(*values.mean(axis=0)))
    if not np.isfinite(found):
        return Absent(metric=number.metric, reason="the model before unlearning finds an answer impossible")
    references = _tofu.reference_values(subject, value)
    bounds = interval([(values, np.arange(len(values)))], number.of_means)
    left_out = len(table) - len(values)
    return Measurement(
        metric=number.metric,
        version=VERSION,
        value=found,
        unit=number.unit,
        better=number.better,
        n=len(values),
        range=number.range,
        reference=references[0] if references else None,
        across_references=(min(references), max(references)) if references else None,
        floor=_tofu.spread(references),
        interval_95=bounds,
        interval_method=METHOD if bounds else "none: fewer than five answers",
        resampled="row" if bounds else None,
        note=f"{left_out} of {len(table)} answers are too short and left out" if left_out else None,
    )
