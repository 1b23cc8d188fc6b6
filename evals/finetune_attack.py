"""Whether fine-tuning brings back what was forgotten, and whether the unlearning can be put onto a fine-tuned model.

The attack of "Gauss-Newton Unlearning for the LLM Era" (arXiv:2602.10568, its fourth question): all weights, 200 steps of 8
examples, AdamW at a constant learning rate of 1e-5, on three kinds of data: benign, related to what was forgotten, and part of
the forget data itself. Left open there and chosen here: betas (0.9, 0.999), no weight decay, gradient norm clipped at 1,
float32 masters, windows of 512 tokens without replacement (small data sets start over), data order of seed 0. On models trained
on the spot the learning rate is multiplied with the factor of all first-order methods.

Judged by the mean score (`_scores.py`: accuracy, or the probability of the true answer) on questions about what was forgotten,
none of which is trained on, at some steps of the way. Steps to recover: the first measured step whose score is not below the
95 % interval of the model before unlearning. The untouched model goes through the same attacks, once: its scores are kept and
stand beside every number, and its weights at the end are kept for the transfer:

    θ = θ_finetuned + (θ_unlearned − θ_base)        θ_finetuned: the base model after the same attack
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evals import _fine_tuning, _scores
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan, MetricFamily, evaluator
from harness.core.metric import Metric, Number, Plain, Rows
from harness.core.text import Example
from harness.statistics.bootstrap import mean_interval

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

VERSION = 1
ATTACKS = ("benign", "related", "forget")
POINTS = (25, 50, 100, 150, 200)
"""Steps after which the model is measured; the last one is the end."""

_STEPS = "_steps_to_recover"


def metrics(plan: EvalPlan) -> list[Metric]:
    """`attack_start`, and for each kind of data `attack_<data>_<step>`, `…_steps_to_recover` and `…_transfer`."""
    unit = _scores.unit(plan)
    declared = [_score("start", unit)]
    for data in list(plan.problem.attacks if plan.questions else ()) or ATTACKS:
        declared += [_score(f"{data}_{step}", unit) for step in POINTS]
        declared += [_recovery(data), _score(f"{data}_transfer", unit)]
    return declared


def named(name: str) -> Metric | None:
    """The metric of a recorded name."""
    if not name.startswith("attack_"):
        return None
    part = name.removeprefix("attack_")
    return _recovery(part.removesuffix(_STEPS)) if part.endswith(_STEPS) else _score(part)


def _score(part: str, unit: str = "probability") -> Metric:
    data, _, step = part.rpartition("_")
    if not data:
        about = "score on what was forgotten, before any attack"
    elif step == "transfer":
        about = f"score after the update is put onto the model that was fine-tuned on {data} data"
    else:
        about = f"score after {step} steps of fine-tuning on {data} data"
    return _scores.metric(f"attack_{part}", f"Attack, {part.replace('_', ' ')}", about, f"attack_{part}", unit=unit)


def _recovery(data: str) -> Metric:
    return Metric(
        f"attack_{data}{_STEPS}",
        title=f"Steps to recover, {data}",
        unit="steps",
        better="higher",
        about=f"steps of fine-tuning on {data} data after which what was forgotten is known again",
        range=(0.0, float(POINTS[-1])),
        statistic=Plain("the first of a few measured steps", compared=False),
        part=data,
    )


@evaluator(
    "finetune_attack",
    version=VERSION,
    metrics=MetricFamily(metrics, named),
    changes_model=True,
    memory=_fine_tuning.memory_items,
)
def measure(context: EvalContext, metric: Metric) -> Rows | Number:
    """Scores at a step of an attack, or the steps until they are back."""
    if metric.name.endswith(_STEPS):
        return _steps_to_recover(context, metric.part)
    note = "the update on top of the base model after the same fine-tuning" if metric.part.endswith("_transfer") else None
    return _rows(context, metric.part, note)


def _rows(context: EvalContext, column: str, note: str | None = None) -> Rows:
    table = context.table("attack", _build)
    if column not in table or "attack_untouched" not in table:
        raise LookupError(f"there is no {column} in the attack's table")
    table = table[table["attack_untouched"].notna()]  # of a record, which keeps all tables as one
    return Rows(table[column].to_numpy(dtype=float), table["cluster"].to_numpy(), note=note)


def _steps_to_recover(context: EvalContext, data: str) -> Number:
    before = _rows(context, "attack_untouched")
    columns = {0: "attack_start", **{step: f"attack_{data}_{step}" for step in POINTS}}
    means = {step: float(_rows(context, column).values.mean()) for step, column in columns.items()}
    bounds = mean_interval(before.values, before.clusters)
    reached = bounds[0] if bounds else float(before.values.mean())
    step = next((step for step, value in means.items() if value >= reached), None)
    if step is None:
        broken = "" if np.isfinite(list(means.values())).all() else "; some scores are not finite"
        raise LookupError(f"not recovered (a score of {reached:.3f}) within {POINTS[-1]} steps{broken}")
    note = f"measured at 0, {', '.join(map(str, POINTS))}; recovered is {reached:.3f}"
    return Number(float(step), len(before.values), note)


# ---------------------------------------------------------------- the attacks


def _build(context: EvalContext) -> pd.DataFrame:
    """One row per question: its score before unlearning, after it, along each attack, and after each transfer."""
    from safetensors.torch import load_file

    from harness.models.updates import added, difference

    problem, model = context.problem, context.model
    if not problem.attacks or not _scores.forgotten(context.plan):
        raise LookupError("this benchmark has no data to attack with, or no questions about what is forgotten")
    start = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}
    base = problem.sources["base"].load(context.cache, "cpu", str(model.dtype).removeprefix("torch."))[0].state_dict()
    if {name: t.shape for name, t in base.items()} != {name: t.shape for name, t in start.items()}:
        raise LookupError("the model before unlearning has tensors of other shapes")
    untouched = all(tensor.equal(start[name]) for name, tensor in base.items())
    table: pd.DataFrame | None = None
    for name, examples in problem.attacks.items():
        curve_of_base, finetuned = _attack_on_base(context, base, examples)
        if untouched:
            curve, after = curve_of_base, curve_of_base[f"step_{POINTS[-1]}"]
        else:
            model.load_state_dict(start)
            curve = _attack(context, examples)
            weights = load_file(finetuned)
            model.load_state_dict({k: added(weights[k], difference(start[k], base[k])) for k in start})
            after = _scores.scores(context, _scores.forgotten(context.plan))["score"]
        if table is None:
            table = curve[_scores.KEYS].assign(attack_untouched=curve_of_base["step_0"], attack_start=curve["step_0"])
        table = table.assign(
            **{f"attack_{name}_{step}": curve[f"step_{step}"] for step in POINTS}, **{f"attack_{name}_transfer": after}
        )
    assert table is not None  # there are attacks
    return table


def _attack_on_base(context: EvalContext, base: Mapping[str, Tensor], examples: Sequence[Example]) -> tuple[pd.DataFrame, Path]:
    """The untouched model's scores along an attack, and the file with its weights at the end; made once and kept."""
    import pandas as pd

    from harness.models.pretraining import weights_digest
    from harness.models.saving import save_tensors
    from harness.numerics.identity import versions
    from harness.storage.cache import digest

    plan, problem = context.plan, context.problem

    def make(folder: Path) -> None:
        context.model.load_state_dict(base)
        _attack(context, examples).to_parquet(folder / "scores.parquet", index=False)
        end = {name: tensor.detach().cpu().clone() for name, tensor in context.model.state_dict().items()}
        save_tensors(end, folder / "end.safetensors")

    key = {
        "version": VERSION,
        "source": weights_digest(problem.sources["base"], context.cache),
        "examples": digest([[e.prompt, e.tag, e.answer, e.ends] for e in _fine_tuning.taken(examples, POINTS[-1])]),
        "questions": digest({name: list(rows) for name, rows in _scores.forgotten(plan).items()}),
        "evaluators": {name: EVALUATORS.get(name).version_for(plan) for name in ("multiple_choice", "probability")},
        "libraries": versions("lm-eval"),
        "template": asdict(problem.template),
        "variant": plan.variant,
        "trained": "all weights",  # once it was those alone that the attacked method had not frozen
        "recipe": [*POINTS, *_fine_tuning.recipe(problem)],
        "dtype": str(context.model.dtype),
        "device": context.model.device.type,
    }
    entry = context.cache.get("attack", key, make)
    return pd.read_parquet(entry.path / "scores.parquet"), entry.path / "end.safetensors"


def _attack(context: EvalContext, examples: Sequence[Example]) -> pd.DataFrame:
    """Fine-tune the model, in place.

    Returns:
        One row per question: `task`, `row`, `cluster`, and its score at each measured step, `step_0` first; NaN once a loss was
        not finite.
    """
    from harness.core.errors import Diverged

    questions = _scores.forgotten(context.plan)
    table = _scores.scores(context, questions).rename(columns={"score": "step_0"})
    table = table.assign(**{f"step_{step}": np.nan for step in POINTS})
    with suppress(Diverged):  # the scores that are missing say so
        for step in _fine_tuning.fine_tuning(context, examples, POINTS[-1]):
            if step in POINTS:
                table[f"step_{step}"] = _scores.scores(context, questions)["score"]
    return table
