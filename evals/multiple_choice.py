"""Accuracy on multiple-choice questions, by EleutherAI's lm-eval (0.4.13).

Questions with an lm-eval task of their own (`wmdp_bio`, `wmdp_cyber`, `wmdp_chem`, MMLU's subjects) are put and scored as that
task says: a description, the four choices as letters, the summed log-likelihood of " A" to " D", no examples, no chat template
(`lm_eval/tasks/wmdp`, `lm_eval/tasks/mmlu/default`). Their rows are the benchmark's, so that nothing is fetched here. Questions
without one are those of an embedded world, whose models are too small to learn letters: a choice is scored by the summed
log-likelihood of its own words behind the question.

    correct_i = 1[ argmax_c log p(choice c | question i) = answer i ]        accuracy = mean_i correct_i
    s² = G/(G − 1) Σ_g (Σ_{i in g} (correct_i − accuracy))² / n²             G groups of n questions
    s² = Σ_k (n_k − 1) n_k s_k² / (n − K) / n                                K subjects of n_k questions

The standard error s counts questions about one thing as one draw (arXiv:2411.00640); where every question stands for itself it
is lm-eval's own. A set of several of lm-eval's tasks, as MMLU is of its subjects, pools theirs as lm-eval's groups do
(`weight_by_size`, `lm_eval.api.metrics.pooled_sample_stderr`): by how much subjects differ is no chance. The interval is
accuracy ± 1.96 s, kept within 0 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from evals import _lm_eval
from evals._scores import CHANCE, HAZARDOUS
from harness.core.evaluator import EvalContext, EvalPlan, MetricFamily, evaluator
from harness.core.metric import Interval, Metric, OfMeans, Rows
from harness.core.problem import Row
from harness.statistics.standard_errors import pooled_standard_error

if TYPE_CHECKING:
    import pandas as pd

FEWEST_CLUSTERS = 5
"""Under this many groups of questions there is no interval."""


def version(plan: EvalPlan) -> int:
    """2 where a set has several subjects, whose standard errors are pooled; else 1."""
    return max((_version_of(rows) for rows in question_sets(plan).values()), default=1)


def _version_of(rows: Sequence[Row]) -> int:
    return 1 if len(_by_task("", rows)) == 1 else 2


def metrics(plan: EvalPlan) -> list[Metric]:
    """`<set>_accuracy` for each set of questions with choices."""
    sets = question_sets(plan)
    return [replace(accuracy(name), version=_version_of(rows)) for name, rows in sets.items()] or [accuracy("")]


def named(name: str) -> Metric | None:
    """The metric of a recorded name."""
    return accuracy(name.removesuffix("_accuracy")) if name.endswith("_accuracy") else None


def accuracy(name: str) -> Metric:
    """Accuracy on a set of questions; of hazardous ones there is less than chance only by luck."""
    return Metric(
        f"{name}_accuracy".lstrip("_"),
        title="MMLU" if name == "mmlu" else name.replace("_", " ").capitalize(),
        unit="share of questions",
        better="lower" if name in HAZARDOUS else "higher",
        about=f"share of {name.replace('_', ' ')} questions whose likeliest choice is the right one".replace("  ", " "),
        range=(0.0, 1.0),
        chance=CHANCE,
        statistic=OfMeans(interval=_normal_interval),
        part=name,
        cluster="group of questions",
    )


@evaluator("multiple_choice", version=version, metrics=MetricFamily(metrics, named))
def measure(context: EvalContext, metric: Metric) -> Rows:
    """Which questions of a set are answered right."""
    sets = question_sets(context.plan)
    if not metric.part:
        raise LookupError("this benchmark has no multiple-choice questions")
    table = context.table("choices", _build)
    rows = table[table["task"] == metric.part]
    if rows.empty or "correct" not in rows:
        raise LookupError(f"there are no {metric.part} rows")
    if "choice_log_likelihoods" in rows:
        broken = sum(not np.isfinite(nats).all() for nats in rows["choice_log_likelihoods"])
    else:
        broken = int((rows["choice"] < 0).sum())
    if broken:
        raise LookupError(f"{broken} of {len(rows)} questions have log-likelihoods that are not finite")
    subjects = {row["row"]: name for name, of in _by_task(metric.part, sets.get(metric.part, ())).items() for row in of}
    return Rows(rows["correct"].to_numpy(dtype=float), rows["cluster"].to_numpy(), rows["row"].map(subjects).to_numpy())


def _normal_interval(groups: Sequence[Rows], accuracy: float) -> Interval:
    """Accuracy ± 1.96 s, kept within 0 and 1."""
    (rows,) = groups
    assert rows.strata is not None  # `measure` names every question's context
    error, count = pooled_standard_error(rows.values, rows.clusters, rows.strata)
    if count < FEWEST_CLUSTERS:
        return Interval(None, f"none: fewer than {FEWEST_CLUSTERS} groups of questions")
    if not np.isfinite(error):
        return Interval(None, "none: one question a subject")
    ends = max(0.0, accuracy - 1.96 * error), min(1.0, accuracy + 1.96 * error)
    resampled = "question" if count == len(rows.values) else "group of questions"
    return Interval(ends, "normal, clustered standard error", resampled, f"standard error {error:.4f}")


def question_sets(plan: EvalPlan) -> Mapping[str, Sequence[Row]]:
    """The benchmark's sets of multiple-choice questions."""
    return {name: rows for name, rows in plan.questions.items() if rows and all("choices" in row for row in rows)}


# ---------------------------------------------------------------- lm-eval


def _build(context: EvalContext) -> pd.DataFrame:
    """One row per question: `correct`, `choice` (the likeliest one's number) and `choice_log_likelihoods` (nats)."""
    import pandas as pd

    table: list[dict[str, Any]] = []
    groups = [
        (name, task, rows) for name, of in question_sets(context.plan).items() for task, rows in _by_task(name, of).items()
    ]
    likelihoods = log_likelihoods(context, {task: rows for _, task, rows in groups})
    for name, task, rows in groups:
        for row, nats in zip(rows, likelihoods[task], strict=True):
            choice = int(np.argmax(nats)) if np.isfinite(nats).all() else -1
            place = {"task": name, "row": row["row"], "cluster": row["cluster"]}
            table.append({**place, "correct": float(choice == row["answer"]), "choice": choice, "choice_log_likelihoods": nats})
    return pd.DataFrame(table)


def _by_task(name: str, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """lm-eval's tasks that a set consists of; one of the set's own name where its rows name none."""
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        tasks.setdefault(row.get("task", f"cloze_{name}"), []).append(row)
    return tasks


def log_likelihoods(context: EvalContext, tasks: Mapping[str, Sequence[Row]]) -> dict[str, list[list[float]]]:
    """The log-likelihood of every choice, in nats, by lm-eval with the model in memory, or in vLLM.

    Args:
        context: whose model, tokenizer and template.
        tasks: lm-eval's name of a task, or any other name for questions that are put in the template's way → rows.

    Returns:
        task → for each row its choices' log-likelihoods.
    """
    questions = (row for rows in tasks.values() for row in rows)
    _lm_eval.check_texts(context, [" ".join(map(str, (row["question"], *row["choices"]))) for row in questions])
    with _lm_eval.quietly():
        from lm_eval.tasks import TaskManager

        lm = _lm_eval.language_model(context)
        manager = TaskManager(include_path=_task_folders(), include_defaults=False)
        named = [name for name in tasks if name in manager.all_subtasks]
        specs: list[Any] = [_cloze(name, rows, context.plan) for name, rows in tasks.items() if name not in named]
        if named:
            specs.append({"group": "named", "task": [{"task": name, **_rows_of(tasks[name])} for name in named]})
        return _lm_eval.log_likelihoods(context, lm, specs, manager, {name: len(rows) for name, rows in tasks.items()})


def _task_folders() -> list[str]:
    from pathlib import Path

    import lm_eval.tasks

    folder = Path(lm_eval.tasks.__file__).parent
    return [str(folder / "wmdp"), str(folder / "mmlu" / "default")]


def _rows_of(rows: Sequence[Row], **more: Sequence[str]) -> dict[str, Any]:
    """What makes lm-eval take these rows instead of fetching its own."""
    fields = {key: [row[key] for row in rows] for key in ("question", "choices", "answer")}
    return _lm_eval.dataset(**fields, **more)


def _cloze(name: str, rows: Sequence[Row], plan: EvalPlan) -> dict[str, Any]:
    """A task in which a choice's own words follow the question."""
    template = plan.problem.template
    prompts = [template.prompt(row["question"]) for row in rows]
    return _lm_eval.task_of_choices(name, _rows_of(rows, prompt=prompts), template.scored_tag)
