"""What the first-order methods share: their recipe, their data, and the loop over pairs of forget and retain examples.

ToFU's recipe (locuslab/tofu `forget.py`, `data_module.py`, `config/forget.yaml`): an epoch runs over the forget set, every
forget example comes with a retain example drawn uniformly; AdamW, one epoch of linear warm-up, linear decay to 0, gradient
norm clipped at 1, effective batch 32.
It departs in one point: token-pooled losses are pooled over the whole step, where the original averages the pooled losses of
its micro-batches; hence k micro-batches of b give what one batch of k·b gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat

from harness.config import JSON, settings
from harness.interfaces import Held, ModelShape, Progress, Setting, Stage, Task
from harness.pretraining import SMALL_MODEL_FACTOR, SMALL_MODELS
from methods._settings import BatchSize, Epochs, Steps, Tokens

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness.data import Batch, Encoded
    from harness.training import MakeOptimiser, StepLog

WMDP = ("wmdp", "wmdp-bio", "wmdp-cyber")
"""The benchmarks made of WMDP's corpora: both stages, or one of them."""
WMDP_FACTOR = 30.0
"""What `SMALL_MODEL_FACTOR` is on ToFU, for the hundreds of steps that are taken on WMDP; chosen in the same way (see
results/tuning/README.md)."""


@settings
class Recipe:
    """What every first-order method can be told; the defaults are ToFU's for Llama-2-7B."""

    lr: PositiveFloat = 1e-5
    """Peak learning rate."""
    epochs: Epochs = 5
    """Passes over the forget set."""
    batch_size: BatchSize = 32
    """Forget examples in a step (and as many retain examples, where the method takes any)."""
    warmup_epochs: Annotated[int, Field(ge=0, le=10_000)] | None = 1
    """Epochs of linear warm-up; linear decay to 0 follows. None warms up for a tenth of all steps, as SOUL's authors do."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's, on all parameters."""
    max_steps: Steps | None = None
    """Steps on each stage where the published form counts steps, as on WMDP; `epochs` then says at how many of them, evenly
    spaced, a point is measured."""
    max_length: Tokens | None = None
    """Tokens that texts are cut to; not at all if not given (ToFU's are shorter than its 500)."""


@settings
class PairedRecipe(Recipe):
    """The same for a method that takes retain examples too."""

    frozen_partner: bool = False
    """Give a forget example the same retain partner in every epoch, as the repositories of NPO and SimNPO do (by a seed
    that is reset); otherwise a fresh uniform draw, as in ToFU's."""


def small_model_presets(lr: float, **others: JSON) -> dict[tuple[str, str], Mapping[str, JSON]]:
    """Presets for `mini` and `scratch`: the published recipe with its learning rate scaled, by one rule for all methods.

    Args:
        lr: the published learning rate.
        others: further settings of the published form.
    """
    return {("*", family): {"lr": lr * SMALL_MODEL_FACTOR, **others} for family in SMALL_MODELS}


def wmdp_presets(lr: float, **others: JSON) -> dict[tuple[str, str], Mapping[str, JSON]]:
    """Presets for WMDP: the recipe of SimNPO's authors for zephyr-7b, and the same on `mini` with its learning rate scaled.

    500 steps of one text at a time, four of them accumulated, 50 of warm-up, linear decay, no weight decay, texts cut to 512
    tokens, a retain text drawn anew at every access (OPTML-Group/Unlearn-Simple `WMDP/configs/unlearn/wmdp/*.json`,
    `src/dataset/wmdp.py`). Their padding, on which they take losses, is left out.

    Args:
        lr: the published learning rate.
        others: further settings of the published form.
    """
    recipe = {"max_steps": 500, "batch_size": 4, "warmup_epochs": None, "weight_decay": 0.0, "max_length": 512, **others}
    return {
        (bench, family): {**recipe, "lr": round(lr * WMDP_FACTOR, 12) if family == "mini" else lr}
        for bench in WMDP
        for family in ("zephyr-7b", "mini")
    }


def evenly(steps: int, points: int) -> frozenset[int]:
    """Which of so many steps are measured, for so many points evenly spaced, the last step among them."""
    return frozenset(round(point * steps / points) for point in range(1, points + 1))


def held(shape: ModelShape, recipe: Recipe) -> list[Held]:
    """What AdamW on all weights holds; see `harness.memory.adamw`."""
    from harness.memory import adamw

    return adamw(shape)


@dataclass(frozen=True)
class Part:
    """Some examples of one step, of one side, that go through the model together."""

    batch: Batch
    """The tokens."""
    rows: Sequence[int]
    """Each example's position in the forget set, or in the retain set."""
    step: int
    """The step's number in its stage, from 1."""
    examples: int
    """Examples of this side in the whole step."""
    labels: int
    """Labels of this side in the whole step."""
    all_labels: int
    """Labels of both sides in the whole step."""


Loss = Callable[[Part], "Tensor"]
"""A part's share of a term of the step's loss; the shares of a step's parts sum to the term."""


@dataclass(frozen=True)
class Data:
    """A stage's examples as tokens."""

    forget: Sequence[Encoded]
    """The forget set."""
    retain: Sequence[Encoded]
    """The retain set."""
    pad: int
    """See `harness.data.pad_id`."""
    stage: Stage
    """The same as text."""
    steps: Sequence[Sequence[int]]
    """The rows of the forget set that each step takes."""


@dataclass(frozen=True)
class Losses:
    """What is minimised: `forget + retain`."""

    forget: Loss
    """The forget term."""
    retain: Loss | None = None
    """The retain term, if there is one."""
    retain_length: int = 1
    """Tokens that the retain term pads its sequences to, if it does: fewer of them then go through the model together."""
    forget_texts: Callable[[int, int], Encoded] | None = None
    """(step, row of the forget set) → the sequence the forget term sees, where it is not the forget example itself."""


def unlearn(
    setting: Setting,
    recipe: Recipe,
    losses: Callable[[Data], Losses],
    optimiser: MakeOptimiser | None = None,
    before_step: Callable[[Sequence[Part], Sequence[Part]], None] | None = None,
) -> Iterator[Progress]:
    """Train on every stage, one after the other, measuring after every epoch over its forget set.

    Args:
        setting: whose model is trained in place.
        recipe: the method's settings.
        losses: makes a stage's loss terms from its data, before its first step.
        optimiser: another one than AdamW.
        before_step: is shown the forget and the retain parts of a step before it is taken.

    Raises:
        Diverged: at a loss or gradient that is not finite.
    """
    from harness import training

    plans = [Schedule.of(recipe, len(stage.forget)) for stage in setting.stages]
    total, taken = sum(plan.steps for plan in plans), 0
    for stage, plan in zip(setting.stages, plans, strict=True):
        data = _data(setting, recipe, stage, plan)
        terms = losses(data)
        adamw = training.AdamW(lr=recipe.lr, steps=plan.steps, warmup=plan.warmup, weight_decay=recipe.weight_decay)
        told = Told(terms, setting)
        steps = _steps(setting, recipe, data, terms, before_step)
        for log in training.optimise(setting.model, steps, told.loss, adamw, optimiser):
            yield Progress(taken + log.step, told.logged(log), measure_here=log.step in plan.epoch_ends, total=total)
        taken += plan.steps


def _data(setting: Setting, recipe: Recipe, stage: Stage, plan: Schedule) -> Data:
    from harness.data import encode, pad_id
    from harness.likelihood import check_length
    from harness.training import shuffled_batches

    tokenizer, length = setting.tokenizer, recipe.max_length
    steps = list(shuffled_batches(len(stage.forget), plan.batch, plan.steps, setting.seed))
    forget, retain = encode(stage.forget, tokenizer, length), encode(stage.retain, tokenizer, length)
    check_length(setting.model, max(len(e.input_ids) for e in (*forget, *retain)))  # before the first step
    return Data(forget, retain, pad_id(tokenizer), stage, steps)


@dataclass(frozen=True)
class Schedule:
    """How many steps there are, and where epochs end (ToFU `forget.py`: `max_steps = epochs·N // batch`)."""

    batch: int
    """Forget examples in a step: the recipe's, or the whole set if it is smaller."""
    steps: int
    """In all."""
    warmup: int
    """Of them warm-up."""
    epoch_ends: frozenset[int]
    """Steps after which a point is measured."""

    @staticmethod
    def of(recipe: Recipe, examples: int) -> Schedule:
        """The schedule of a recipe on a forget set of that many examples."""
        batch = min(recipe.batch_size, examples)
        steps = recipe.max_steps or recipe.epochs * examples // batch
        warmup = max(1, steps // 10) if recipe.warmup_epochs is None else recipe.warmup_epochs * max(1, examples // batch)
        return Schedule(batch, steps, warmup, evenly(steps, recipe.epochs))


class Told:
    """Sums up what the terms of a step came to, for the record."""

    def __init__(self, terms: Losses, setting: Setting) -> None:
        self._terms, self._setting = terms, setting
        self._sums: dict[str, float] = {}

    def loss(self, part: tuple[str, Part]) -> Tensor:
        """The part's share of the loss."""
        side, what = part
        self._setting.costs.count(what.batch.tokens)
        term = self._terms.forget if side == "forget" else self._terms.retain
        assert term is not None  # there are no retain parts without a retain term
        value = term(what)
        self._sums[side] = self._sums.get(side, 0.0) + float(value.detach())
        return value

    def logged(self, log: StepLog) -> dict[str, float]:
        """The step's numbers."""
        sums, self._sums = self._sums, {}
        return {
            **{f"{side}_term": value for side, value in sums.items()},
            "gradient_norm": log.gradient_norm,
            "learning_rate": log.learning_rate,
        }


def _steps(
    setting: Setting,
    recipe: Recipe,
    data: Data,
    terms: Losses,
    before_step: Callable[[Sequence[Part], Sequence[Part]], None] | None,
) -> Iterator[list[tuple[str, Part]]]:
    partner = Partners(len(data.retain), setting.seed, getattr(recipe, "frozen_partner", False))
    for step, rows in enumerate(data.steps, start=1):
        texts = [terms.forget_texts(step, row) if terms.forget_texts else data.forget[row] for row in rows]
        partners = [partner(row) for row in rows] if terms.retain else []
        retained = [data.retain[row] for row in partners]
        all_labels = _labels(texts) + _labels(retained)
        forget = _parts(texts, rows, setting, data.pad, step, all_labels)
        retain = _parts(retained, partners, setting, data.pad, step, all_labels, terms.retain_length)
        if before_step:
            before_step(forget, retain)
        yield [*(("forget", part) for part in forget), *(("retain", part) for part in retain)]


def _labels(texts: Sequence[Encoded]) -> int:
    return sum(e.label_count for e in texts)


def _parts(
    texts: Sequence[Encoded],
    rows: Sequence[int],
    setting: Setting,
    pad: int,
    step: int,
    all_labels: int,
    padded_to: int = 1,
) -> list[Part]:
    from harness.training import TOKENS_PER_MICRO_BATCH, micro_batches

    labels, at_once = _labels(texts), max(1, TOKENS_PER_MICRO_BATCH // padded_to)
    parts = []
    for start in range(0, len(texts), at_once):
        whole = dict(enumerate(texts[start : start + at_once], start))
        for batch, _ in micro_batches(whole, list(whole), pad, setting.model.device):
            parts.append(Part(batch, [rows[i] for i in batch.rows.tolist()], step, len(texts), labels, all_labels))
    return parts


class Partners:
    """Which retain example goes with a forget example.

    Args:
        count: size of the retain set.
        seed: of the fresh draws.
        frozen: (row + U{0..count−1} drawn after `torch.manual_seed(row)`) mod count, the same at every access, as in
            `data_module.py` of the NPO and SimNPO repositories; else drawn anew at every access.
    """

    def __init__(self, count: int, seed: int, frozen: bool) -> None:
        import torch

        self._count, self._frozen = count, frozen
        self._fresh = torch.Generator().manual_seed(seed + 1)

    def __call__(self, row: int) -> int:
        """The retain partner of a row of the forget set."""
        import torch

        generator = torch.Generator().manual_seed(row) if self._frozen else self._fresh
        return (row + int(torch.randint(0, self._count, (1,), generator=generator))) % self._count


# ---------------------------------------------------------------- what losses are made of


def answer_nll_sums(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Each sequence's negative log-likelihood summed over its labels, with gradient, and the number of its labels.

    Returns:
        ([B] nats, [B] counts), float32. S and T in the methods' formulas.
    """
    import torch.nn.functional as F

    from harness.likelihood import answer_labels, answer_logits, sums_by_example

    losses = F.cross_entropy(answer_logits(model, batch), answer_labels(batch), reduction="none")
    return sums_by_example(losses, batch), batch.counts.float()


def reference_nll(setting: Setting, sequences: Sequence[Encoded], pad: int) -> Tensor:
    """S of the model as it is now for each sequence: what the originals compute with a frozen copy at every step.

    Returns:
        [N] nats, float32, on the model's device.
    """
    import torch

    from harness.likelihood import answer_nll

    setting.costs.count(sum(len(e.input_ids) for e in sequences))
    sums, _ = answer_nll(setting.model, sequences, pad)
    return torch.from_numpy(sums).to(setting.model.device, torch.float32)


class Refusals:
    """Which refusal answers a forget question at a step, as tokens: drawn uniformly by the seed, the step and the row.

    Args:
        setting: whose task says which refusal sentences there are.
        stage: whose forget questions are answered.
    """

    def __init__(self, setting: Setting, stage: Stage) -> None:
        self._setting, self._stage = setting, stage
        self._encoded: dict[tuple[int, int], Encoded] = {}

    def drawn(self, step: int, row: int) -> int:
        """The number of the sentence."""
        import numpy as np

        return int(np.random.default_rng([self._setting.seed, step, row]).integers(len(self._setting.task.refusals)))

    def __call__(self, step: int, row: int) -> Encoded:
        """The forget question of that row, answered with the sentence drawn for it."""
        from harness.data import encode

        sentence = self.drawn(step, row)
        if (row, sentence) not in self._encoded:
            refused = replace(self._stage.forget[row], answer=self._setting.task.refusals[sentence])
            (self._encoded[row, sentence],) = encode([refused], self._setting.tokenizer)
        return self._encoded[row, sentence]


def has_refusals(task: Task) -> str | None:
    """Why a task cannot serve a method that answers with refusals, or None if it can."""
    return None if task.refusals else "it trains on refusal sentences, and this benchmark has none"
