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
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evals import _scores
from evals._bootstrap import mean_interval
from harness.core.interfaces import (
    EVALUATORS,
    Absent,
    Example,
    Held,
    Measurement,
    ModelShape,
    Setting,
    Subject,
    Task,
    evaluator,
)

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

VERSION = 1
ATTACKS = ("benign", "related", "forget")
POINTS = (25, 50, 100, 150, 200)
"""Steps after which the model is measured; the last one is the end."""
BATCH = 8
LEARNING_RATE = 1e-5
MAX_TOKENS = 512
"""A text that is trained on is cut there."""
SEED = 0
"""Of the order of the data; the untouched model's attack serves runs of every seed."""

Rows = tuple[np.ndarray, np.ndarray]


def _held(shape: ModelShape) -> list[Held]:
    """AdamW's state; in the machine's memory the weights before and after unlearning, and those of the attacked base model."""
    from harness.models.memory import adamw

    return [*adamw(shape), Held("copies of the weights", 3 * shape.parameters * shape.weight_bytes, "cpu")]


@evaluator("finetune_attack", version=VERSION, changes_model=True, memory=_held)
def measure(subject: Subject) -> Sequence[Measurement | Absent]:
    """`attack_start`, and for each kind of data `attack_<data>_<step>`, `…_steps_to_recover` and `…_transfer`."""
    attacks = list(subject.task.attacks) or list(ATTACKS)
    found = [_score(subject, "start")]
    for name in attacks:
        found += [_score(subject, f"{name}_{step}") for step in POINTS]
        found.append(_steps_to_recover(subject, name))
        found.append(_score(subject, f"{name}_transfer", "the update on top of the base model after the same fine-tuning"))
    return found


def _score(subject: Subject, part: str, note: str | None = None) -> Measurement | Absent:
    try:
        return _scores.mean(f"attack_{part}", VERSION, subject, lambda of: _rows(of, part), note)
    except LookupError as error:
        return Absent(metric=f"attack_{part}", reason=str(error))


def _rows(subject: Subject, part: str) -> Rows:
    table = subject.table("attack", _build)
    return table[f"attack_{part}"].to_numpy(dtype=float), table["cluster"].to_numpy()


def _steps_to_recover(subject: Subject, name: str) -> Measurement | Absent:
    metric = f"attack_{name}_steps_to_recover"
    try:
        before, clusters = _rows(subject, "untouched")
        means = {step: float(_rows(subject, f"{name}_{step}" if step else "start")[0].mean()) for step in (0, *POINTS)}
    except LookupError as error:
        return Absent(metric=metric, reason=str(error))
    bounds = mean_interval(before, clusters)
    reached = bounds[0] if bounds else float(before.mean())
    step = next((step for step, value in means.items() if value >= reached), None)
    if step is None:
        broken = "" if np.isfinite(list(means.values())).all() else "; some scores are not finite"
        return Absent(metric=metric, reason=f"not recovered (a score of {reached:.3f}) within {POINTS[-1]} steps{broken}")
    return Measurement(
        metric=metric,
        version=VERSION,
        value=float(step),
        unit="steps",
        better="higher",
        n=len(before),
        range=(0.0, float(POINTS[-1])),
        interval_method="none: the first of a few measured steps",
        note=f"measured at 0, {', '.join(map(str, POINTS))}; recovered is {reached:.3f}",
    )


# ---------------------------------------------------------------- the attacks


def _build(setting: Setting) -> pd.DataFrame:
    """One row per question: its score before unlearning, after it, along each attack, and after each transfer."""
    from safetensors.torch import load_file

    from harness.models.updates import added, difference

    task, model = setting.task, setting.model
    if not task.attacks or not _scores.forgotten(task):
        raise LookupError("this benchmark has no data to attack with, or no questions about what is forgotten")
    start = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}
    base = task.sources["base"].load(setting.cache, "cpu", str(model.dtype).removeprefix("torch."))[0].state_dict()
    if {name: t.shape for name, t in base.items()} != {name: t.shape for name, t in start.items()}:
        raise LookupError("the model before unlearning has tensors of other shapes")
    untouched = all(tensor.equal(start[name]) for name, tensor in base.items())
    table: pd.DataFrame | None = None
    for name, examples in task.attacks.items():
        curve_of_base, finetuned = _attack_on_base(setting, base, examples)
        if untouched:
            curve, after = curve_of_base, curve_of_base[f"step_{POINTS[-1]}"]
        else:
            model.load_state_dict(start)
            curve = _attack(setting, examples)
            weights = load_file(finetuned)
            model.load_state_dict({k: added(weights[k], difference(start[k], base[k])) for k in start})
            after = _scores.scores(setting, _scores.forgotten(task))["score"]
        if table is None:
            table = curve[_scores.KEYS].assign(attack_untouched=curve_of_base["step_0"], attack_start=curve["step_0"])
        table = table.assign(
            **{f"attack_{name}_{step}": curve[f"step_{step}"] for step in POINTS}, **{f"attack_{name}_transfer": after}
        )
    assert table is not None  # there are attacks
    return table


def _attack_on_base(setting: Setting, base: Mapping[str, Tensor], examples: Sequence[Example]) -> tuple[pd.DataFrame, Path]:
    """The untouched model's scores along an attack, and the file with its weights at the end; made once and kept."""
    import pandas as pd

    from harness.models.pretraining import weights_digest
    from harness.models.saving import save_tensors
    from harness.numerics.identity import versions
    from harness.storage.cache import digest

    task = setting.task

    def make(folder: Path) -> None:
        setting.model.load_state_dict(base)
        _attack(setting, examples).to_parquet(folder / "scores.parquet", index=False)
        end = {name: tensor.detach().cpu().clone() for name, tensor in setting.model.state_dict().items()}
        save_tensors(end, folder / "end.safetensors")

    key = {
        "version": VERSION,
        "source": weights_digest(task.sources["base"], setting.cache),
        "examples": digest([[e.prompt, e.tag, e.answer, e.ends] for e in _taken(examples)]),
        "questions": digest({name: list(rows) for name, rows in _scores.forgotten(task).items()}),
        "evaluators": {name: EVALUATORS.get(name).version_for(task) for name in ("multiple_choice", "probability")},
        "libraries": versions("lm-eval"),
        "template": asdict(task.template),
        "variant": task.variant,
        "recipe": [*POINTS, BATCH, _learning_rate(task), MAX_TOKENS, SEED],
        "dtype": str(setting.model.dtype),
        "device": setting.model.device.type,
    }
    entry = setting.cache.get("attack", key, make)
    return pd.read_parquet(entry.path / "scores.parquet"), entry.path / "end.safetensors"


def _attack(setting: Setting, examples: Sequence[Example]) -> pd.DataFrame:
    """Fine-tune the model, in place.

    Returns:
        One row per question: `task`, `row`, `cluster`, and its score at each measured step, `step_0` first; NaN once a loss was
        not finite.
    """
    from harness.core.errors import Diverged
    from harness.core.progress import progress_bar
    from harness.data.rows import encode, pad_id
    from harness.numerics.training import AdamW, micro_batches, optimise, pooled_nll, shuffled_batches

    asked, steps = _scores.forgotten(setting.task), POINTS[-1]
    encoded = encode(_taken(examples), setting.tokenizer, MAX_TOKENS)
    setting.costs.count(sum(len(e.input_ids) for e in encoded) * steps * BATCH // len(encoded))
    table = _scores.scores(setting, asked).rename(columns={"score": "step_0"})
    table = table.assign(**{f"step_{step}": np.nan for step in POINTS})
    recipe = AdamW(lr=_learning_rate(setting.task), steps=steps, schedule="constant_with_warmup")
    drawn = shuffled_batches(len(encoded), BATCH, steps, SEED)
    batches = (micro_batches(encoded, rows, pad_id(setting.tokenizer), setting.model.device) for rows in drawn)
    with progress_bar(total=steps, desc="attack", unit="step") as bar:
        try:
            for told in optimise(setting.model, batches, lambda part: pooled_nll(setting.model, *part), recipe):
                bar.update()
                if told.step in POINTS:
                    table[f"step_{told.step}"] = _scores.scores(setting, asked)["score"]
        except Diverged:
            pass  # the scores that are missing say so
    return table


def _taken(examples: Sequence[Example]) -> Sequence[Example]:
    return examples[: POINTS[-1] * BATCH]


def _learning_rate(task: Task) -> float:
    from harness.models.pretraining import learning_rate_factor

    return LEARNING_RATE * learning_rate_factor(task)
