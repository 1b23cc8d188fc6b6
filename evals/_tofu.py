"""ToFU's row-by-row tables and what its metrics make of a row.

Three tables, shared by the evaluators: `likelihood` (losses of the true, the paraphrased and the wrong answers), `answers`
(ROUGE recall of the generated answer) and `divergence` (KL to the model before unlearning). Columns of the first two carry
the names of ToFU's own logs.
Formulas: `evaluate_util.py`, `aggregate_eval_stat.py` and `utils.py` of locuslab/tofu, and, as variant
`open-unlearning`, `src/evals/metrics` of locuslab/open-unlearning. The original's model utility uses the
*geometric* truth ratio of `aggregate_eval_stat.py`: it alone gives the figures the papers print.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.core.evaluator import EvalContext, EvalPlan, GenerationRequest, Sampling, rows_of
from harness.core.metric import Metric, Rows, harmonic_mean
from harness.core.options import Variant
from harness.core.problem import Row
from harness.core.text import Example

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.data.rows import Encoded
    from harness.numerics.likelihood import AnswerDistributions

TASKS = ("retain", "real_authors", "world_facts", "forget")
UTILITY_TASKS = TASKS[:3]
CUT: Mapping[Variant, int] = {"original": 200, "open-unlearning": 512}
"""Tokens at which a scored text is cut (ToFU `config/eval_everything.yaml`; open-unlearning `configs/data/datasets/TOFU_QA_*`,
which leaves the texts of chat templates whole; none of ToFU's is so long)."""
GENERATION_BATCH = 30
"""Rows that share one length budget in the original."""
GUARD = 1e-10
"""open-unlearning's addend in denominators."""


# ---------------------------------------------------------------- the tables


def likelihood(context: EvalContext) -> pd.DataFrame:
    """Per-token losses of every evaluated row: `avg_gt_loss`, `avg_paraphrased_loss`, `average_perturb_loss` (a list)."""
    return context.table("likelihood", _build_likelihood)


def answers(context: EvalContext) -> pd.DataFrame:
    """ROUGE recall of the greedy answer to every evaluated row: `rouge1_recall`, `rougeL_recall`."""
    return context.table("answers", _build_answers)


def divergence(context: EvalContext) -> pd.DataFrame:
    """KL(before unlearning ‖ now) of every evaluated retain row: `kl_sum` over its answer's `kl_tokens` tokens."""
    return context.table("divergence", _build_divergence)


def memoize_before(context: EvalContext) -> None:
    """Keep what the model before unlearning says of the retain rows."""
    _before(context, lambda: context.model)


def _before(context: EvalContext, model: Callable[[], PreTrainedModel]) -> AnswerDistributions:
    from harness.data.rows import pad_id
    from harness.models.pretraining import weights_digest
    from harness.numerics.likelihood import AnswerDistributions
    from harness.storage.cache import digest

    problem = context.problem
    rows = [(row["question"], row["answer"]) for row in problem.questions.get("retain", ())]
    if not rows:
        raise LookupError("there are no retain rows")

    def made() -> AnswerDistributions:
        examples = [problem.template.example(question, answer) for question, answer in rows]
        return AnswerDistributions(model(), encoded_texts(context, examples), pad_id(context.tokenizer))

    key = [
        weights_digest(problem.sources["base"], context.cache),
        str(context.model.dtype),
        context.model.device.type,
        asdict(problem.template),
        context.plan.variant,
        digest(rows),
    ]
    return context.cache.memoize("distributions", key, made)[0]


def encoded_texts(context: EvalContext, examples: Sequence[Example]) -> list[Encoded]:
    """Scored texts as tokens, cut as the variant does: ToFU cuts the end token off too, open-unlearning puts it behind."""
    from harness.data.rows import encode

    variant = context.plan.variant
    return encode(examples, context.tokenizer, CUT.get(variant, CUT["original"]), end_after_cut=variant == "open-unlearning")


def _build_divergence(context: EvalContext) -> pd.DataFrame:
    import pandas as pd

    from harness.numerics.placement import placement

    def base() -> PreTrainedModel:
        dtype = str(context.model.dtype).removeprefix("torch.")
        return context.problem.sources["base"].load(context.cache, placement(context.model), dtype)[0]

    sums, counts = _before(context, base).kl_sums(context.model)
    context.costs.count(int(counts.sum()))
    rows = context.problem.questions["retain"]
    keys = {"task": "retain", "row": [row["row"] for row in rows], "cluster": [row["cluster"] for row in rows]}
    return pd.DataFrame({**keys, "kl_sum": sums, "kl_tokens": counts.astype(int)})


def _build_likelihood(context: EvalContext) -> pd.DataFrame:
    import pandas as pd

    from harness.core.progress import progress_bar
    from harness.data.rows import pad_id
    from harness.numerics.likelihood import answer_nll
    from harness.numerics.products import onednn_products

    problem = context.problem
    questions = [(name, row) for name in TASKS for row in problem.questions.get(name, ())]
    examples = []
    for _, row in questions:
        paraphrase = [row["paraphrased_answer"]] if "paraphrased_answer" in row else []
        examples += [
            problem.template.example(row["question"], a) for a in (row["answer"], *paraphrase, *row["perturbed_answer"])
        ]
    encoded = encoded_texts(context, examples)
    context.costs.count(sum(len(e.input_ids) for e in encoded))
    with progress_bar(total=len(encoded), desc="likelihood", unit="answer") as bar, onednn_products(context.model):
        sums, counts = answer_nll(context.model, encoded, pad_id(context.tokenizer), bar.update)
    means = sums / counts
    rows, at = [], 0
    for name, row in questions:
        wrong = len(row["perturbed_answer"])
        paraphrased = at + 1 if "paraphrased_answer" in row else at
        rows.append(
            {
                "task": name,
                "row": row["row"],
                "cluster": row["cluster"],
                "avg_gt_loss": means[at],
                "num_token_gt": int(counts[at]),
                "avg_paraphrased_loss": means[paraphrased],
                "average_perturb_loss": means[paraphrased + 1 : paraphrased + 1 + wrong].tolist(),
            }
        )
        at = paraphrased + 1 + wrong
    return pd.DataFrame(rows)


def requests(plan: EvalPlan, tokenizer: PreTrainedTokenizerBase) -> list[GenerationRequest]:
    """One greedy answer to every evaluated question, in the order of the tables."""
    return [request for name in TASKS for request in task_requests(plan, name, tokenizer)]


def task_requests(plan: EvalPlan, name: str, tokenizer: PreTrainedTokenizerBase) -> list[GenerationRequest]:
    from harness.data.rows import token_ids

    rows = plan.questions.get(name, ())
    prompts = [plan.problem.template.prompt(row["question"]) for row in rows]
    if plan.variant == "open-unlearning":
        budgets = [plan.problem.generation_budget] * len(rows)
    else:
        # The original's limit counts the prompt and its batch's padding, so the longest prompt of a batch sets the budget.
        lengths = [len(ids) for ids in token_ids(tokenizer, prompts)]
        longest = [max(lengths[k : k + GENERATION_BATCH]) for k in range(0, len(lengths), GENERATION_BATCH)]
        budgets = [max(1, plan.problem.generation_budget - longest[i // GENERATION_BATCH]) for i in range(len(rows))]
    return [GenerationRequest((p,), Sampling(max_tokens=b)) for p, b in zip(prompts, budgets, strict=True)]


def _build_answers(context: EvalContext) -> pd.DataFrame:
    import pandas as pd

    questions: list[tuple[str, Row, GenerationRequest]] = []
    for name in TASKS:
        wanted = task_requests(context.plan, name, context.tokenizer)
        questions += [(name, row, request) for row, request in zip(context.plan.questions.get(name, ()), wanted, strict=True)]
    rows = []
    for name, row, request in questions:
        rouge1, rouge_l = rouge_recall(row["answer"], context.generations[request])
        rows.append(
            {"task": name, "row": row["row"], "cluster": row["cluster"], "rouge1_recall": rouge1, "rougeL_recall": rouge_l}
        )
    return pd.DataFrame(rows)


_scorer: Any = None


def rouge_recall(truth: str, answer: str) -> tuple[float, float]:
    """ROUGE-1 and ROUGE-L recall of an answer, with stemming (rouge_score, as ToFU `evaluate_util.py` calls it)."""
    global _scorer
    if _scorer is None:
        from rouge_score import rouge_scorer

        _scorer = rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    scores = _scorer.score(truth, answer)
    return scores["rouge1"].recall, scores["rougeL"].recall


# ---------------------------------------------------------------- what a row is worth


def wrong_losses(rows: pd.DataFrame) -> np.ndarray:
    """[n, k] per-token losses of the k wrong answers."""
    return np.array(rows["average_perturb_loss"].tolist(), dtype=float)


def probability(context: EvalContext, task: str) -> Rows:
    """How likely the true answer is.

    retain, forget: p^(1/T) = exp(−loss per token). Real authors, world facts: that over the sum of it and the wrong answers'.
    """
    table = likelihood(context)
    rows = rows_of(table, task, "avg_gt_loss")
    with np.errstate(over="ignore", invalid="ignore"):  # absurd losses of a log: what is not finite then is no number
        true = np.exp(-rows["avg_gt_loss"].to_numpy(dtype=float))
        if task in ("real_authors", "world_facts"):
            rows = rows_of(table, task, "avg_gt_loss", "average_perturb_loss")
            guard = GUARD if context.plan.variant == "open-unlearning" else 0.0
            true = true / (true + np.exp(-wrong_losses(rows)).sum(axis=1) + guard)
    return Rows(true, rows["cluster"].to_numpy())


def rouge(context: EvalContext, task: str) -> Rows:
    """ROUGE-L recall of the greedy answer."""
    rows = rows_of(answers(context), task, "rougeL_recall")
    return Rows(rows["rougeL_recall"].to_numpy(dtype=float), rows["cluster"].to_numpy())


def paraphrase_probability(context: EvalContext) -> Rows:
    """How likely each forget answer is in other words, exp(−loss per token)."""
    rows = rows_of(likelihood(context), "forget", "avg_paraphrased_loss")
    with np.errstate(over="ignore", invalid="ignore"):  # likewise
        return Rows(np.exp(-rows["avg_paraphrased_loss"].to_numpy(dtype=float)), rows["cluster"].to_numpy())


def retain_kl(context: EvalContext) -> Rows:
    """KL(before unlearning ‖ now) of the retain rows: [n, 2] nats over the answer's tokens and their number."""
    rows = rows_of(divergence(context), "retain", "kl_sum", "kl_tokens")
    return Rows(rows[["kl_sum", "kl_tokens"]].to_numpy(dtype=float), rows["cluster"].to_numpy())


def log_truth_ratio(context: EvalContext, task: str) -> Rows:
    """Log R = mean_j b_j − a: by how much the paraphrase is likelier per token than the wrong answers (geometric mean).

    The logarithm, since R overflows on models that have collapsed; KS does not change under it.
    """
    if logged := _logged_ratio(context, task):
        with np.errstate(divide="ignore"):
            return Rows(-np.log(logged.values), logged.clusters)
    rows = rows_of(likelihood(context), task, "avg_paraphrased_loss", "average_perturb_loss")
    paraphrased = rows["avg_paraphrased_loss"].to_numpy(dtype=float)
    return Rows(wrong_losses(rows).mean(axis=1) - paraphrased, rows["cluster"].to_numpy())


def inverse_truth_ratio(context: EvalContext, task: str) -> Rows:
    """1/R, as both projects' utility takes it.

    In open-unlearning's definitions P(wrong) / (P(paraphrase) + 1e-10), which is near 0, not near 1, once a model has
    collapsed and finds both impossible (`src/evals/metrics/memorization.py::truth_ratio`).
    """
    if context.plan.variant == "original":
        ratio = log_truth_ratio(context, task)
        with np.errstate(over="ignore"):
            return Rows(np.exp(-ratio.values), ratio.clusters)
    if logged := _logged_ratio(context, task):
        return logged
    rows = rows_of(likelihood(context), task, "avg_paraphrased_loss", "average_perturb_loss")
    with np.errstate(over="ignore", invalid="ignore"):  # likewise
        paraphrased = np.exp(-rows["avg_paraphrased_loss"].to_numpy(dtype=float))
        inverse = np.exp(-wrong_losses(rows).mean(axis=1)) / (paraphrased + GUARD)
    return Rows(inverse, rows["cluster"].to_numpy())


def tested_ratio(context: EvalContext) -> Rows:
    """What forget quality's test compares: log R of the forget rows, in open-unlearning's definitions the guarded 1/R.

    The test sees the order of the values alone, which the logarithm keeps and the guard does not.
    """
    if context.plan.variant == "original":
        return log_truth_ratio(context, "forget")
    return inverse_truth_ratio(context, "forget")


def tested_version(plan: EvalPlan) -> int:
    """Of what rests on `tested_ratio`: 2 in open-unlearning's definitions, since the guard is in it."""
    return 2 if plan.variant == "open-unlearning" else 1


def _logged_ratio(context: EvalContext, task: str) -> Rows | None:
    """open-unlearning's own 1/R of each row, out of a log that does not hold the losses it is made of; else None."""
    rows = rows_of(likelihood(context), task)
    if "inverse_truth_ratio" not in rows or rows["inverse_truth_ratio"].isna().any():
        return None
    if all(name in rows and rows[name].notna().all() for name in ("avg_paraphrased_loss", "average_perturb_loss")):
        return None
    return Rows(rows["inverse_truth_ratio"].to_numpy(dtype=float), rows["cluster"].to_numpy())


def truth_ratio(context: EvalContext, task: str, arithmetic: bool = False) -> Rows:
    """ToFU's truth-ratio score of a row, in [0, 1].

    retain, real authors, world facts: max(0, 1 − 1/R). forget: min(R, 1/R).

    Args:
        context: whose.
        task: which rows.
        arithmetic: take the arithmetic mean of the wrong answers' probabilities, as the ToFU paper writes it and
            `utils.py` computes it; the published tables use the geometric one.
    """
    if arithmetic:
        rows = rows_of(likelihood(context), task, "avg_paraphrased_loss", "average_perturb_loss")
        paraphrased = rows["avg_paraphrased_loss"].to_numpy(dtype=float)
        with np.errstate(over="ignore"):  # a model that has collapsed: its score is 0
            inverse = np.exp(paraphrased[:, None] - wrong_losses(rows)).mean(axis=1)
        clusters = rows["cluster"].to_numpy()
    else:
        ratio = inverse_truth_ratio(context, task)
        inverse, clusters = ratio.values, ratio.clusters
    if task == "forget":
        guard = GUARD if context.plan.variant == "open-unlearning" else 0.0
        with np.errstate(divide="ignore"):
            return Rows(np.minimum(inverse, 1 / (inverse + guard)), clusters)
    return Rows(np.maximum(0.0, 1 - inverse), clusters)


# ---------------------------------------------------------------- metrics

_TITLES = {"retain": "retain", "real_authors": "authors", "world_facts": "world", "forget": "forget"}
_SETS = {
    "retain": "questions about authors to be kept",
    "real_authors": "questions about real authors",
    "world_facts": "questions about the world",
    "forget": "questions about authors to be forgotten",
}


def means(kind: str, title: str, unit: str, about: str) -> list[Metric]:
    """One mean over rows for each of ToFU's four tasks, named `<task>_<kind>`.

    On the forget rows the good value is the retrained model's; elsewhere more is better.
    """
    return [
        Metric(
            name=f"{task}_{kind}",
            title=f"{title} {_TITLES[task]}",
            unit=unit,
            better="closer" if task == "forget" else "higher",
            about=f"{about}, on {_SETS[task]}",
            range=(0.0, 1.0),
            part=task,
            cluster="author",
        )
        for task in TASKS
    ]


def utility_rows(context: EvalContext, arithmetic: bool = False) -> list[Rows]:
    """The nine parts of model utility: for each of three tasks [n, 3] ROUGE, probability and truth ratio.

    Raises:
        LookupError: if a log does not hold one of them, or one is not finite.
    """
    groups = []
    for task in UTILITY_TASKS:
        parts = [rouge(context, task), probability(context, task), truth_ratio(context, task, arithmetic)]
        groups.append(Rows(np.column_stack([part.values for part in parts]), parts[0].clusters))
    if not all(np.isfinite(rows.values).all() for rows in groups):
        raise LookupError("one of its nine parts is not finite")
    return groups


def utility(context: EvalContext, arithmetic: bool = False) -> float:
    """Model utility: the harmonic mean of the nine parts' means."""
    columns = [np.ascontiguousarray(column) for rows in utility_rows(context, arithmetic) for column in rows.values.T]
    return harmonic_mean([float(column.mean()) for column in columns])
