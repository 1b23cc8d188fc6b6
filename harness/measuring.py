"""Measuring a model: its evaluators' numbers, the texts they ask for, and the tables of models as their sources give them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cache import Cache, digest
from harness.costs import Costs
from harness.interfaces import (
    Absent,
    Benchmark,
    GenerationRequest,
    Measurement,
    ModelSource,
    Options,
    Reference,
    Setting,
    Subject,
    Task,
    Template,
    Variant,
)

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.generation import Generator


def measure(
    task: Task, subject: Subject, selection: str, generator: Generator | None = None, weights: str = ""
) -> list[Measurement | Absent]:
    """All evaluators' numbers; the texts they ask for are generated together, once.

    Args:
        task: whose evaluators.
        subject: what is measured.
        selection: on what the settings behind it were chosen.
        generator: who writes the texts, where there is a model.
        weights: the fingerprint of the model's weights, which names its texts in the cache.
    """
    if subject.setting is not None and generator is not None:
        subject.generations = _answers(task, subject.setting, generator, weights)
    found: list[Measurement | Absent] = []
    for evaluator in sorted(task.evaluators, key=lambda e: e.changes_model):
        with _put_back(subject.setting) if evaluator.changes_model else nullcontext():
            for item in evaluator.measure(subject):
                found.append(replace(item, selection=selection) if isinstance(item, Measurement) else item)
    return found


def _answers(task: Task, setting: Setting, generator: Generator, weights: str) -> dict[GenerationRequest, str]:
    """The answers to all evaluators' requests, by the model that is measured and by the one before unlearning."""
    from harness.generation import generate_all
    from harness.models import source_digest

    requests = [request for e in task.evaluators for request in e.requests(task, setting.tokenizer)]
    ours = [request for request in requests if request.by == "subject"]
    answers = dict(generate_all(generator, setting.model, setting.tokenizer, ours, setting.cache, weights))
    if theirs := [request for request in requests if request.by == "base"]:
        base = task.sources["base"]
        asked = _BaseGenerator(generator, base, setting.cache, generator.name)
        named = f"source {source_digest(base)}"
        answers |= generate_all(asked, setting.model, setting.tokenizer, theirs, setting.cache, named)
    return answers


@dataclass
class _BaseGenerator:
    """Lets the model before unlearning answer; it is loaded only if its answers are not cached."""

    inner: Generator
    base: ModelSource
    cache: Cache
    name: str

    def generate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: Sequence[GenerationRequest]
    ) -> list[str]:
        from harness.loading import placement

        # vLLM loads the model itself, so that a second one on the GPU would only take its room.
        device = "cpu" if self.name == "vllm" else placement(model)
        loaded, _ = self.base.load(self.cache, device, str(model.dtype).removeprefix("torch."))
        return self.inner.generate(loaded, tokenizer, requests)


@contextmanager
def _put_back(setting: Setting | None) -> Iterator[None]:
    """Undo what is done to the model inside, bit by bit: the next evaluator, and the method, go on with it."""
    if setting is None:
        yield
        return
    before = {name: tensor.detach().to("cpu", copy=True) for name, tensor in setting.model.state_dict().items()}
    try:
        yield
    finally:
        setting.model.load_state_dict(before)
        setting.model.eval()


class _Unfinished(Exception):
    """Tables that hold less than they should and are not to be kept."""

    def __init__(self, tables: dict[str, pd.DataFrame]) -> None:
        self.tables = tables


def source_tables(
    source: ModelSource,
    task: Task,
    options: Options,
    cache: Cache,
    generator: Generator,
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase, str] | None = None,
) -> dict[str, pd.DataFrame]:
    """The row-by-row tables of a model as its source gives it, measured once and cached.

    Args:
        source: the model.
        task: its questions and evaluators.
        options: device and dtype.
        cache: where tables and texts are kept.
        generator: who writes the answers.
        loaded: model, tokenizer and the fingerprint of its weights, where they are at hand.

    Returns:
        As in `Subject.tables`.
    """
    import pandas as pd

    from harness.models import source_digest, weights_fingerprint

    def make(folder: Path) -> None:
        model, tokenizer, weights = loaded or (*source.load(cache, options.device, options.dtype), "")
        setting = Setting(model, tokenizer, task, options.seed, cache, Costs(), source_digest(source))
        subject = Subject(setting, task, references=())
        measure(task, subject, "", generator, weights or weights_fingerprint(model))
        if subject.unfinished:
            raise _Unfinished(subject.tables)
        for name, table in subject.tables.items():
            table.to_parquet(folder / f"{name}.parquet", index=False)

    key = {
        "source": source.identity,
        "bench": [task.bench, task.bench_version],
        "questions": digest({name: list(rows) for name, rows in task.questions.items()}),
        "template": asdict(task.template),
        "variant": task.variant,
        "budget": task.generation_budget,
        "evaluators": task.versions,
        "generator": generator.name,
        "dtype": options.dtype,
        "device": options.device.partition(":")[0],
    } | ({"basis": basis} if (basis := task.basis) else {})
    if any(e.changes_model for e in task.evaluators):  # what they change it with lies in the data, not in the questions
        key["data"] = task.data
    try:
        entry = cache.get("evaluations", key, make)
    except _Unfinished as unfinished:
        return unfinished.tables
    return {file.stem: pd.read_parquet(file) for file in sorted(entry.path.glob("*.parquet"))}


def score_log(
    benchmark: Benchmark, log_file: Path, reference: Path | None, variant: Variant
) -> dict[str, list[Measurement | Absent]]:
    """The metrics of a log that another program wrote, and of its reference, by this project's definitions.

    Args:
        benchmark: whose log it is.
        log_file: the log.
        reference: a retrained model's log on the same rows, for forget quality.
        variant: whose definitions.

    Returns:
        name of the log → its measurements, the scored one first.

    Raises:
        UsageError: for a file that is no such log, or a reference with other rows.
    """
    task = Task(
        bench=benchmark.name,
        bench_version=benchmark.version,
        model=log_file.stem,
        stages=(),
        questions={},
        template=Template("log"),
        sources={},
        evaluators=benchmark.evaluators(),
        variant=variant,
    )
    references = [Reference(reference.stem, benchmark.read_log(reference))] if reference else []
    subjects = {log_file.stem: Subject(None, task, references, dict(benchmark.read_log(log_file)))}
    for other in references:
        subjects[f"{other.name} (reference)"] = Subject(None, task, references, dict(other.tables))
    return {name: measure(task, subject, "as logged") for name, subject in subjects.items()}
