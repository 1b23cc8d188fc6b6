"""Alternate preference optimisation (AltPO): prefer the model's own other answers to the true answer of a forget question.

L = −(2/β) mean_b log σ(β [(S_θ − S_θ0)(true answer) − (S_θ − S_θ0)(alternative)]_b) + λ R(retain)

with S the summed negative log-likelihood, R as `retain_loss` says and S_θ0 of the model before a stage's first step, which
writes the alternatives, too (arXiv:2409.13474; molereddy/Alternate-Preference-Optimization `generate.py`, `dataloader.py`; the
same in open-unlearning, `community/methods/AltPO`). It is shown question, true answer and an instruction to write another one,
and several are drawn for each question at temperature 1. A pass over the forget set takes one for each question; with five
alternatives five passes are one epoch of the originals, whose rows are pairs of a question and an alternative.

It departs in four points. The instruction is in words of this project. An alternative that is empty, or the true answer again,
is drawn anew (`redraws`); the originals train on it, too. What is still so after that is left out; a question without any
alternative has no forget term. Pairs come in passes over the questions, in the originals in any order. Models that follow no
instruction (`mini`, `scratch`) answer the question alone, with `instruction=""`: at temperature 1 they keep to an answer's form
and change what it says.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveFloat, StringConstraints

from harness.core.config import JSON, settings
from harness.core.documents import read_json
from harness.core.errors import UsageError
from harness.core.evaluator import GenerationRequest, Sampling
from harness.core.method import METHODS, Progress, UnlearningContext, method
from harness.core.problem import Problem, Stage
from harness.core.streams import streams
from harness.core.text import Example, Template
from harness.data.corpora import Windows
from methods._settings import Epochs
from methods.first_order.loop import Data, Losses, unlearn
from methods.first_order.losses import retain_term
from methods.first_order.preference import dpo_term
from methods.first_order.recipe import RetainedRecipe, retained_memory_items

if TYPE_CHECKING:
    from harness.data.rows import Encoded

INSTRUCTION = "Now write a different answer to this question. It must sound as likely, and each fact in it must be another one."
LEAD_IN = "Different answer:"
"""What the model's answer to the instruction begins with."""
NEXT_QUESTION = re.compile(r"\bQ(?:uestion)?:")
"""Where a model goes on to ask itself; an alternative ends before it, as in `generate.yaml`."""


@settings
class AltPOConfig(RetainedRecipe):
    """Settings of AltPO; the defaults are its repository's for Llama-2-7B, batches of 32 (there 35) as in open-unlearning."""

    lr: PositiveFloat = 5e-5
    """Peak learning rate."""
    epochs: Epochs = 10
    """Passes over the forget set: two epochs of five alternatives each."""
    warmup_epochs: Annotated[int, Field(ge=0, le=10_000)] | None = 5
    """Passes of linear warm-up, one of the repository's epochs; linear decay to 0 follows. None: a tenth of all steps."""
    beta: PositiveFloat = 0.1
    """β: how sharply the preference is drawn."""
    alternatives: Annotated[int, Field(ge=1, le=1_000)] = 5
    """How many other answers are drawn of each forget question."""
    instruction: Annotated[str, StringConstraints(max_length=10_000, strip_whitespace=True)] = INSTRUCTION
    """What the model is told, below the question and its true answer; if empty, it answers the question alone."""
    temperature: PositiveFloat = 1.0
    """At which alternatives are drawn."""
    max_tokens: Annotated[int, Field(ge=1, le=10_000)] = 200
    """Tokens of an alternative at most."""
    redraws: Annotated[int, Field(ge=0, le=1_000)] = 10
    """How often an alternative that is empty or the true answer is drawn again."""


def running_text(problem: Problem) -> str | None:
    """Why a problem whose forget texts answer no question cannot be had; None where they do."""
    if all(not isinstance(s.forget, Windows) and all(e.prompt for e in s.forget) for s in problem.stages):
        return None
    return "it draws other answers to forget questions, and this benchmark's forget texts answer none"


@method(
    "altpo",
    config=AltPOConfig,
    source="arXiv:2409.13474",
    skip_reason=running_text,
    memory=retained_memory_items,
    takes_adapter=True,
)
def altpo(context: UnlearningContext, config: AltPOConfig) -> Iterator[Progress]:
    """Draw alternatives and train, measuring after every epoch.

    Raises:
        UsageError: for an instruction that the model has no words for; where it gives nothing but true answers.
    """
    without = 0

    def losses(data: Data) -> Losses:
        nonlocal without
        with context.costs.phase("alternatives"):
            texts = alternatives(context, data.stage, config)
        without += sum(not row for row in texts)
        winners = Alternatives(context, data, texts)
        return Losses(dpo_term(context, data, winners, config.beta, 2 / config.beta), retain_term(context, config))

    for progress in unlearn(context, config, losses):
        yield replace(progress, logged={**progress.logged, "questions_without_alternative": without})


class Alternatives:
    """Which alternative a forget question has at a step: all of them in turn, in an order drawn by seed and row.

    Args:
        context: who trains.
        data: the stage.
        texts: of each row of the forget set; one without any has its true answer, and the preference no gradient.
    """

    def __init__(self, context: UnlearningContext, data: Data, texts: Sequence[Sequence[str]]) -> None:
        from harness.data.rows import encode

        examples = [[replace(e, answer=t) for t in row] for e, row in zip(data.stage.forget, texts, strict=True)]
        self._encoded = [
            encode(row, context.tokenizer, data.max_length) or [true] for row, true in zip(examples, data.forget, strict=True)
        ]
        orders = [
            streams(context.seed, "alternatives in turn", row).numpy().permutation(len(each)).tolist()
            for row, each in enumerate(self._encoded)
        ]
        passes, self._drawn = Counter[int](), dict[tuple[int, int], int]()
        for step, rows in enumerate(data.steps, start=1):
            for row in rows:
                self._drawn[step, row] = orders[row][passes[row] % len(orders[row])]
                passes[row] += 1

    def drawn(self, step: int, row: int) -> int:
        """The number of the alternative."""
        return self._drawn[step, row]

    def __call__(self, step: int, row: int) -> Encoded:
        """The forget question of that row with that alternative."""
        return self._encoded[row][self.drawn(step, row)]


def alternatives(context: UnlearningContext, stage: Stage, config: AltPOConfig) -> list[list[str]]:
    """Each forget question's alternatives, from the cache where they have been drawn.

    Args:
        context: whose model, as it is now, writes them.
        stage: whose questions.
        config: how many, and how they are drawn.

    Raises:
        UsageError: for an instruction that the model has no words for; where it gives nothing but true answers.
    """
    from harness.models.sources import weights_fingerprint
    from harness.numerics.identity import answerer_fingerprint
    from harness.storage.cache import digest

    prompts = [prompt(context, example, config.instruction) for example in stage.forget]
    answers = [example.answer for example in stage.forget]

    def make(folder: Path) -> None:
        (folder / "texts.json").write_text(json.dumps(_draw(context, prompts, stage.forget, config)), encoding="utf-8")

    key: dict[str, JSON] = {
        "method": "altpo",
        "version": METHODS.get("altpo").version,
        "answerer": answerer_fingerprint(weights_fingerprint(context.model), context.model, context.tokenizer),
        "asked": digest([prompts, answers]),
        "sampling": [config.alternatives, config.temperature, config.max_tokens, config.redraws],
        "seed": context.seed,
        "device": context.model.device.type,
    }
    texts: list[list[str]] = read_json(context.cached("continuations", key, make) / "texts.json")
    if not any(texts):
        raise UsageError(
            f"temperature={config.temperature:g}, redraws={config.redraws}: the model says nothing but the true answers of all "
            f"{len(texts)} forget questions. Set one of the two higher."
        )
    return texts


def _draw(
    context: UnlearningContext, prompts: Sequence[str], examples: Sequence[Example], config: AltPOConfig
) -> list[list[str]]:
    from harness.data.rows import token_ids
    from harness.numerics.generation import HFGenerator

    kept: dict[tuple[int, int], str] = {}
    every = [(row, number) for row in range(len(prompts)) for number in range(config.alternatives)]
    for attempt in range(1 + config.redraws):
        due = [place for place in every if place not in kept]
        seeds = [streams(context.seed, "alternatives", row, number, attempt).python().getrandbits(32) for row, number in due]
        requests = [
            GenerationRequest((prompts[row],), Sampling(config.max_tokens, config.temperature, seed))
            for (row, _), seed in zip(due, seeds, strict=True)
        ]
        for (row, number), said in zip(due, HFGenerator().generate(context.model, context.tokenizer, requests), strict=True):
            context.costs.count(len(token_ids(context.tokenizer, [prompts[row] + said])[0]))
            text = cleaned(said, examples[row])
            if text and text.split() != examples[row].answer.split():
                kept[row, number] = text
    return [[kept[row, n] for n in range(config.alternatives) if (row, n) in kept] for row in range(len(prompts))]


def cleaned(said: str, example: Example) -> str:
    """What a model said, up to where it asks itself a next question, without the template's tag before it."""
    return NEXT_QUESTION.split(said)[0].strip().removeprefix(example.tag.strip()).strip()


def prompt(context: UnlearningContext, example: Example, instruction: str) -> str:
    """What a model reads before it writes an alternative.

    Args:
        context: whose template and words.
        example: a forget question with its true answer.
        instruction: as in the settings.

    Raises:
        UsageError: for an instruction with words that the model's tokenizer lacks.
    """
    if not instruction:
        return example.prompt
    unknown = context.tokenizer.unk_token_id
    if unknown is not None and unknown in context.tokenizer(instruction, add_special_tokens=False)["input_ids"]:
        raise UsageError(
            "instruction: this model's tokenizer lacks words of it. Set it to words that it has, or leave it empty (--set "
            "instruction=) to draw from the question alone."
        )
    template = context.problem.template
    shown = template.prompt(f"Question: {question(example, template)}\nAnswer: {example.answer}\n{instruction}")
    return f"{shown}{'' if shown[-1:].isspace() else ' '}{LEAD_IN}"


def question(example: Example, template: Template) -> str:
    """The question of an example, as it was before the template was put around it."""
    mark = "\0"
    before, _, after = template.prompt(mark).partition(mark)
    return example.prompt.removeprefix(before).removesuffix(after)
