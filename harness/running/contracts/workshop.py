"""Where plug-ins are tried: a benchmark's data, cut short, with tiny random models in place of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.core.benchmark import BENCHMARKS
from harness.core.costs import Costs
from harness.core.evaluator import Evaluator, Reference, Subject
from harness.core.method import Setting
from harness.core.options import Options
from harness.core.problem import Task
from harness.models.sources import source_digest
from harness.running.contracts.tiny import TinyModels, TinySource, words_of
from harness.storage.cache import Cache

ROWS = 12
"""Of every split: enough for an interval where each row is a cluster of its own."""


@dataclass
class Workshop:
    """Makes what a plug-in is given, each time anew."""

    task: Task
    """Data and sources."""
    models: TinyModels
    """What the sources load."""
    folder: Path
    """Where caches go; every setting has one of its own."""
    _made: int = 0

    @classmethod
    def of(cls, bench: str, folder: Path) -> Workshop:
        """On a benchmark's data.

        Raises:
            UsageError: if there is no such benchmark.
        """
        task = BENCHMARKS.get(bench).task("mini", Options(limit=ROWS))
        models = TinyModels(words_of(_texts(task)), positions=512)
        sources = {name: TinySource(seed, models) for seed, name in enumerate(task.sources)}
        return cls(replace(task, sources=sources, generation_budget=16), models, folder)

    def setting(self, seed: int = 0, task: Task | None = None) -> Setting:
        """What a method sees: a fresh model and an empty cache."""
        self._made += 1
        task = task or self.task
        cache = Cache(self.folder / f"cache-{self._made}")
        model, tokenizer = task.sources["base"].load(cache, "cpu", "float32")
        return Setting(model, tokenizer, task, seed, cache, Costs(), source_digest(task.sources["base"]))

    def subject(self, setting: Setting, evaluators: Sequence[Evaluator], references: Sequence[Reference] = ()) -> Subject:
        """What an evaluator sees: the setting's model, with the texts that these evaluators ask for."""
        from harness.models.sources import weights_fingerprint
        from harness.numerics.generation import HFGenerator, generate_all

        requests = [request for e in evaluators for request in e.requests(setting.task, setting.tokenizer)]
        subject = Subject(setting, setting.task, references)
        model = setting.model
        subject.generations = generate_all(
            HFGenerator(), model, setting.tokenizer, requests, setting.cache, weights_fingerprint(model)
        )
        return subject


def _texts(task: Task) -> list[str]:
    """All that a problem's models read and say."""
    examples = [e for stage in task.stages for e in (*stage.forget, *stage.retain)]
    examples += [e for of in task.attacks.values() for e in of]
    rows = [value for rows in task.questions.values() for row in rows for value in row.values()]
    lists = [text for value in rows if isinstance(value, list) for text in value]
    prompts = [f"{e.prompt} {e.tag} {e.answer}" for e in examples]
    template = task.template
    frame = [template.question_start, template.question_end, template.answer_tag]
    return [*prompts, *frame, *task.refusals, *(text for text in (*rows, *lists) if isinstance(text, str))]
