"""What a benchmark promises."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from harness.core.benchmark import Benchmark, eval_plan
from harness.core.errors import UsageError
from harness.core.evaluator import EVALUATORS, EvalContext
from harness.core.options import Options
from harness.core.registry import ROOT
from harness.running.contracts.promises import Check, keep
from harness.statistics.measurements import measurements

UNKNOWN_MODELS = ("no-such-model", "minni", "mini@", "mini@-1", "mini@x", "")
LIMIT = Options(limit=3)
WITHOUT_TORCH = """
import sys
from harness.core.benchmark import BENCHMARKS
from harness.core.options import Options
BENCHMARKS.get(sys.argv[1]).problem("mini", Options(limit=3))
sys.exit(3 if "torch" in sys.modules else 0)
"""


def checks(name: str, benchmark: Benchmark) -> Iterator[Check]:
    """All of them.

    Args:
        name: the name that it was asked for by.
        benchmark: whose.
    """
    promises: Mapping[str, Callable[[], None]] = {
        "it knows its name and the model mini": lambda: knows_itself(name, benchmark),
        "a model that it does not know is refused": lambda: unknown_models_are_refused(benchmark),
        "its data is read without torch": lambda: reads_without_torch(name),
        "it has stages, questions and sources": lambda: problem_is_complete(name, benchmark),
        "its sources name no path and no two are alike": lambda: sources_are_told_apart(benchmark),
        "its evaluators are registered, their numbers have names of their own": lambda: evaluators_go_together(benchmark),
    }
    for promise, run in promises.items():
        yield Check(f"benchmark {name}", promise, run)


def knows_itself(name: str, benchmark: Benchmark) -> None:
    """Name, version, and a line about each model."""
    keep(benchmark.name == name, f"it calls itself '{benchmark.name}'")
    keep(benchmark.version >= 1, f"its version is {benchmark.version}: they begin at 1")
    keep("mini" in benchmark.models, "it has no model 'mini', which needs neither network nor GPU")
    keep(all(benchmark.models.values()), "a model of it has no line about it")


def unknown_models_are_refused(benchmark: Benchmark) -> None:
    """In a sentence that names the model."""
    for model in UNKNOWN_MODELS:
        try:
            benchmark.problem(model, Options())
        except UsageError as error:
            keep(f"'{model}'" in str(error), f"it refuses the model '{model}' without naming it ({error})")
        else:
            keep(False, f"it takes a model '{model}': raise harness.core.errors.unknown('model', model, self.models)")


def reads_without_torch(name: str) -> None:
    """In a process of its own, where nothing else has imported it."""
    words = [sys.executable, "-c", WITHOUT_TORCH, name]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    keep(done.returncode != 3, "problem() imports torch: import it where a model is loaded")
    keep(done.returncode == 0, f"problem() breaks off ({(done.stderr.strip().splitlines() or ['no reason'])[-1]})")


def problem_is_complete(name: str, benchmark: Benchmark) -> None:
    """Stages with something to forget and to keep, numbered questions in named clusters, a base, data with digests."""
    problem = benchmark.problem("mini", LIMIT)
    keep((problem.bench, problem.model) == (name, "mini"), f"its problem is of '{problem.bench}' with '{problem.model}'")
    keep("base" in problem.sources, "its problem has no source 'base', the model before unlearning")
    keep(problem.data, "its problem names no data: give data={'rows': harness.data.rows.fingerprint(rows)}")
    keep(problem.stages, "its problem has no stage")
    for stage in problem.stages:
        for what, examples in (("forget", stage.forget), ("retain", stage.retain)):
            keep(examples, f"stage {stage.name} has nothing to {what}")
            keep(len(examples) <= 3, f"stage {stage.name} has {len(examples)} examples to {what} where --limit 3 was asked for")
        both = {e.prompt + e.answer for e in stage.forget} & {e.prompt + e.answer for e in stage.retain}
        keep(not both, f"stage {stage.name} forgets and retains the same example")
    for of, rows in problem.questions.items():
        keep([row.get("row") for row in rows] == list(range(len(rows))), f"the questions '{of}' lack 'row': number them from 0")
        keep(
            all(isinstance(row.get("cluster"), str) for row in rows),
            f"the questions '{of}' lack 'cluster': a text that names what is resampled together, such as an author",
        )
    keep(problem.notes, "its problem has no notes: say that the embedded model is one")


def sources_are_told_apart(benchmark: Benchmark) -> None:
    """What names weights holds no path of this machine, and no two sources are named alike."""
    identities = {name: json.dumps(source.identity) for name, source in benchmark.problem("mini", LIMIT).sources.items()}
    for name, identity in identities.items():
        keep(str(Path.home()) not in identity and '"/' not in identity, f"the identity of {name} holds a path of this machine")
    keep(len(set(identities.values())) == len(identities), "two sources have one identity")


def evaluators_go_together(benchmark: Benchmark) -> None:
    """What is named when nothing can be measured is what is named when everything can."""
    evaluators = benchmark.evaluators()
    keep(evaluators, "it has no evaluators")
    for evaluator in evaluators:
        keep(EVALUATORS.get(evaluator.name) is evaluator, f"its evaluator {evaluator.name} is not the registered one")
    plan = eval_plan(benchmark, benchmark.problem("mini", LIMIT), LIMIT)
    metrics = [item.metric for e in evaluators for item in measurements(e, EvalContext(None, plan, ()))]
    twice = sorted({metric for metric in metrics if metrics.count(metric) > 1})
    keep(not twice, f"two of its evaluators give {', '.join(twice)}")
