"""What the metrics beyond ToFU's own cost at one point of a run on `mini`, on top of ToFU's, on one CPU thread.

    python -m tests.perf.metrics [--json out.json] [--repetitions 3]

The embedded world's model of tofu10 before unlearning, trained first where it is not in the cache. Measured are ToFU's own
evaluators, then the same with all of `SUITE` beside them, answers included and nothing out of the cache; the difference is the suite's. Seconds
are CPU time of the process. Each evaluator of the suite is also measured by itself, after ToFU's own tables.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness.core.benchmark import BENCHMARKS, eval_plan
from harness.core.costs import Costs
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan, Reference
from harness.core.method import UnlearningContext
from harness.core.options import Options
from harness.numerics.generation import HFGenerator
from harness.running.measuring import measure
from harness.statistics.measurements import measurements
from harness.storage.cache import Cache
from tests.perf._machine import machine, table, write

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SUITE = ("extraction_strength", "exact_memorisation", "membership", "paraphrased", "open_unlearning_score", "logit_lens")
REACH = 2.0
"""Seconds of the whole suite on top of ToFU's own evaluators."""


class Point:
    """The model at one point, measured anew each time."""

    def __init__(self) -> None:
        self.cache = Cache()
        self.problem = BENCHMARKS.get("tofu10").problem("mini", Options())
        loaded = self.problem.sources["base"].load(self.cache, "cpu", "float32")
        self.model: PreTrainedModel = loaded[0]
        self.tokenizer: PreTrainedTokenizerBase = loaded[1]
        first = self.context(SUITE)  # warms up, and gives what stands beside each number
        self.beside = dict(first.tables)

    def context(self, added: Sequence[str]) -> EvalContext:
        """ToFU's own evaluators and some others, measured."""
        plan = eval_plan(BENCHMARKS.get("tofu10"), self.problem, Options(evals=tuple(f"+{name}" for name in added)))
        return self._measured(plan)

    def _measured(self, plan: EvalPlan) -> EvalContext:
        beside = getattr(self, "beside", {})
        references = [Reference("retain-0", beside)] if beside else []
        method = UnlearningContext(self.model, self.tokenizer, self.problem, 0, self.cache, Costs(), "perf")
        context = EvalContext(method, plan, references, untouched=beside)
        measure(context, "", HFGenerator(), f"perf {time.perf_counter_ns()}")  # a name of its own: no answer is cached
        return context

    def seconds(self, added: Sequence[str]) -> float:
        """CPU seconds of a measurement."""
        started = time.process_time()
        self.context(added)
        return time.process_time() - started

    def alone(self, name: str, context: EvalContext) -> float:
        """CPU seconds of one evaluator where ToFU's own tables and all answers are there."""
        known = dict(context.tables)
        own = {table: rows for table, rows in known.items() if table in ("likelihood", "answers", "divergence")}
        again = EvalContext(context.loaded, context.plan, context.references, own, context.untouched, context.generations)
        started = time.process_time()
        measurements(EVALUATORS.get(name), again)
        return time.process_time() - started


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="What the metrics beyond ToFU's own cost at one point on mini.")
    parser.add_argument("--json", type=Path, help="where the measurement is written")
    parser.add_argument("--repetitions", type=int, default=3, help="of each measurement")
    options = parser.parse_args()
    torch.set_num_threads(1)
    point = Point()
    own, added = [], []
    for _ in range(options.repetitions):
        own.append(point.seconds(()))
        added.append(point.seconds(SUITE) - own[-1])
    context = point.context(SUITE)
    parts = {name: statistics.median(point.alone(name, context) for _ in range(options.repetitions)) for name in SUITE}
    suite = statistics.median(added)
    print("one thread, one point of tofu10 on mini, CPU seconds, medians")
    rows = [
        ["ToFU's own evaluators", f"{statistics.median(own):.2f}", "", ""],
        ["the suite on top of them", f"{suite:.2f}", f"≤ {REACH}", "yes" if suite <= REACH else "no"],
        *([f"  {name}, without answers", f"{seconds:.2f}", "", ""] for name, seconds in parts.items()),
    ]
    print(table(["what", "seconds", "reach", "met"], rows))
    write(options.json, {"machine": machine(), "own": own, "suite": added, "parts": parts})


if __name__ == "__main__":
    main()
