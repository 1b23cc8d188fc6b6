"""Where plug-ins are tried: a benchmark's data, cut short, with tiny random models in place of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.core.benchmark import BENCHMARKS, eval_plan
from harness.core.costs import Costs
from harness.core.evaluator import EvalContext, EvalPlan, Evaluator, Reference
from harness.core.method import UnlearningContext
from harness.core.options import Options
from harness.core.problem import Problem
from harness.models.sources import source_digest
from harness.running.contracts.tiny import TinyModels, TinySource, words_of
from harness.storage.cache import Cache

ROWS = 12
"""Of every split: enough for an interval where each row is a cluster of its own."""


@dataclass
class Workshop:
    """Makes what a plug-in is given, each time anew."""

    plan: EvalPlan
    """Data, sources and evaluators."""
    models: TinyModels
    """What the sources load."""
    folder: Path
    """Where caches go; every context has one of its own."""
    _made: int = 0

    @classmethod
    def of(cls, bench: str, folder: Path) -> Workshop:
        """On a benchmark's data.

        Raises:
            UsageError: if there is no such benchmark.
        """
        benchmark, options = BENCHMARKS.get(bench), Options(limit=ROWS)
        problem = benchmark.problem("mini", options)
        models = TinyModels(words_of(_texts(problem)), positions=512)
        sources = {name: TinySource(seed, models) for seed, name in enumerate(problem.sources)}
        problem = replace(problem, sources=sources, generation_budget=16)
        return cls(eval_plan(benchmark, problem, options), models, folder)

    @property
    def problem(self) -> Problem:
        """Data and sources."""
        return self.plan.problem

    def context(self, seed: int = 0, problem: Problem | None = None) -> UnlearningContext:
        """What a method sees: a fresh model and an empty cache."""
        self._made += 1
        problem = problem or self.problem
        cache = Cache(self.folder / f"cache-{self._made}")
        model, tokenizer = problem.sources["base"].load(cache, "cpu", "float32")
        return UnlearningContext(model, tokenizer, problem, seed, cache, Costs(), source_digest(problem.sources["base"]))

    def eval_context(
        self, context: UnlearningContext, evaluators: Sequence[Evaluator], references: Sequence[Reference] = ()
    ) -> EvalContext:
        """What an evaluator sees: the context's model, with the texts that these evaluators ask for."""
        from harness.models.sources import weights_fingerprint
        from harness.numerics.generation import HFGenerator, generate_all

        plan = replace(self.plan, of=context.problem)
        requests = [request for e in evaluators for request in e.requests(plan, context.tokenizer)]
        eval_context = EvalContext(context, plan, references)
        model = context.model
        eval_context.generations = generate_all(
            HFGenerator(), model, context.tokenizer, requests, context.cache, weights_fingerprint(model)
        )
        return eval_context


def _texts(problem: Problem) -> list[str]:
    """All that a problem's models read and say."""
    examples = [e for stage in problem.stages for e in (*stage.forget, *stage.retain)]
    examples += [e for of in problem.attacks.values() for e in of]
    rows = [value for rows in problem.questions.values() for row in rows for value in row.values()]
    lists = [text for value in rows if isinstance(value, list) for text in value]
    prompts = [f"{e.prompt} {e.tag} {e.answer}" for e in examples]
    template = problem.template
    frame = [template.question_start, template.question_end, template.answer_tag]
    return [*prompts, *frame, *problem.refusals, *(text for text in (*rows, *lists) if isinstance(text, str))]
