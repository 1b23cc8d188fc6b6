"""What a method, a benchmark, an evaluator and a figure are, and what passes between them.

Data flows one way: a `Benchmark` makes a `Task` (everything decided, nothing loaded); loading it gives
a `Setting`, which is all a method sees; after each point the model becomes a `Subject`, which is all an
evaluator sees; an evaluator gives `Measurement`s; a `Figure` sees nothing but the table of what is recorded.
This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar

from pydantic import ConfigDict, FiniteFloat
from pydantic.dataclasses import dataclass as pydantic_dataclass

from harness.core.config import JSON
from harness.core.errors import UsageError
from harness.core.metric import NO_ROLES, Better, Given, Metric, MetricRoles, TwoSample, metrics_by_name
from harness.core.presets import Preset, PresetEntry, preset_settings, presets_of
from harness.core.registry import Registry

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Drawing
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.core.costs import Costs
    from harness.storage.cache import Cache

C = TypeVar("C")
C_contra = TypeVar("C_contra", contravariant=True)
Variant = Literal["original", "open-unlearning"]
Points = Literal["all", "last"]
Retain = Literal["all", "general", "neighbours"]
MOST_SEED = 2**32 - 1
"""The largest seed: all generators take it, and what is computed from it stays under 2^64."""
Row = Mapping[str, Any]
"""One row of a data set, as read from its file."""
ROW_KEYS = ("task", "row", "cluster")
"""Columns of every table of rows: the set of questions, the row's number in it, and what rises and falls together."""


# ---------------------------------------------------------------- text


@dataclass(frozen=True)
class Example:
    """A prompt and the text that should follow it; losses are taken on `tag + answer` and the end token."""

    prompt: str
    """What the model reads, template included."""
    answer: str
    """What it should say."""
    tag: str = ""
    """Template text between the two that is scored too (`Answer: ` of ToFU's phi template, else empty)."""

    ends: ClassVar[bool] = True
    """Whether the end token follows, and is scored."""


@dataclass(frozen=True)
class Window(Example):
    """A piece out of running text, its prompt empty: every token but the first is scored, and no end token follows."""

    ends: ClassVar[bool] = False


@dataclass(frozen=True)
class Template:
    """How a question and an answer become text (ToFU `config/model_config.yaml`)."""

    name: str
    """As recorded; part of the run's hash with the three strings."""
    question_start: str = ""
    """Before the question."""
    question_end: str = ""
    """After the question."""
    answer_tag: str = ""
    """Before the answer."""
    tag_in_prompt: bool = False
    """Whether the tag belongs to the prompt (open-unlearning) or to the scored text (the original); see `scored_tag`."""

    @property
    def scored_tag(self) -> str:
        """What of the tag comes with the answer: all of it or nothing.

        A tag of white space always does: at the end of a prompt it would be a token of its own where it is the first word's
        beginning, and that word would be neither scored nor trained on. open-unlearning leaves it away for that reason
        (`configs/model/Llama-2-7b-chat-hf.yaml`).
        """
        return "" if self.tag_in_prompt and self.answer_tag.strip() else self.answer_tag

    def example(self, question: str, answer: str) -> Example:
        """The question and its answer, rendered."""
        return Example(self.prompt(question), answer, self.scored_tag)

    def prompt(self, question: str) -> str:
        """The question alone, as a model gets it before it answers."""
        tag = "" if self.scored_tag else self.answer_tag
        return f"{self.question_start}{question}{self.question_end}{tag}"


# ---------------------------------------------------------------- what is unlearned


@dataclass(frozen=True)
class Stage:
    """One forget set and the retain set that guards it: ToFU has one; WMDP has bio, then cyber."""

    name: str
    """Such as `forget10`."""
    forget: Sequence[Example]
    """What the model should no longer say."""
    retain: Sequence[Example]
    """What it should go on saying."""


class ModelSource(Protocol):
    """Where a model comes from: the hub, a folder, or a recipe that trains it on the spot."""

    @property
    def identity(self) -> Mapping[str, JSON]:
        """All that decides the weights: id and revision, or recipe, data and seed. Holds no path of a machine."""

    def load(self, cache: Cache, device: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model in eval mode and its tokenizer; makes or fetches it first where need be."""

    def seconds(self, cache: Cache) -> float | None:
        """What making it once cost, where that is known."""


@dataclass(frozen=True)
class Judge:
    """A model that grades answers."""

    kind: Literal["openai", "vllm"]
    """How it is asked: at an OpenAI-compatible address, or served by vLLM on this machine for as long as it is asked."""
    model: str
    """Its name at that address; for vLLM a hub id or a folder."""
    url: str = "https://api.openai.com/v1"
    """The address, up to `/v1`. It may name a machine and is not recorded: the name alone stands for the judge."""
    repetitions: int = 1
    """How often all questions are answered and judged."""

    @property
    def name(self) -> str:
        """As recorded, such as `openai:gpt-4`; a folder's path is cut to its name."""
        folder = Path(self.model)
        cut = folder.is_absolute() or (self.kind == "vllm" and folder.is_dir())
        return f"{self.kind}:{folder.resolve().name if cut else self.model}"


@dataclass(frozen=True)
class Options:
    """What the command line decides besides benchmark, model, method and its settings."""

    seed: int = 0
    """The unlearning seed: data order, sampled labels."""
    limit: int | None = None
    """At most this many rows of every split; None takes what the benchmark's definition takes."""
    device: str = "cpu"
    """`cpu`, `cuda`, `cuda:1`, `cuda:all` (spread over all GPUs), `mps`."""
    dtype: str = "float32"
    """`float32` or `bfloat16`."""
    variant: Variant = "original"
    """Whose metric definitions: ToFU's own, or open-unlearning's."""
    retain: Retain = "all"
    """Which texts guard what is unlearned, where a benchmark has neighbouring and general ones."""
    data_dir: Path | None = None
    """A folder laid out by hub id that is looked at before the hub. Not part of a run's hash."""
    evals: tuple[str, ...] = ()
    """Which evaluators measure; the benchmark's own if none is named."""
    points: Points = "all"
    """Whether every point of the way is measured or the last one only."""
    rows: Points = "all"
    """Whether the rows and texts of every point are kept or of the last one only. Not part of a run's hash."""
    reference: Path | None = None
    """An evaluation log that stands in for the retain model."""
    trust_remote_code: bool = False
    """Whether code that comes with a checkpoint may run."""
    judge: Judge | None = None
    """Who grades answers, for evaluators that need it. Part of a run's hash only where one does."""
    generator: str = "hf"
    """The back end that writes answers: `hf` or `vllm`."""


@dataclass(frozen=True)
class Task:
    """A benchmark with its model chosen: all data read, every source named, nothing loaded."""

    bench: str
    """Such as `tofu10`."""
    bench_version: int
    """Raised when a change of the benchmark changes numbers."""
    model: str
    """As asked for: `mini@1`, `llama2-7b`, `scratch`, a hub id."""
    stages: Sequence[Stage]
    """What is to be unlearned, in order."""
    questions: Mapping[str, Sequence[Row]]
    """What is evaluated, by task name (`forget`, `retain`, …); each row has at least `row` and `cluster`."""
    template: Template
    """How questions and answers become text."""
    sources: Mapping[str, ModelSource]
    """`base` (the model before unlearning), `retain-0`, `retain-1`, … and published checkpoints."""
    evaluators: Sequence[Evaluator]
    """What is measured at every point."""
    recorded: Mapping[str, Mapping[str, pd.DataFrame]] = field(default_factory=dict)
    """References known only from their evaluation logs: name → tables."""
    data: Mapping[str, JSON] = field(default_factory=dict)
    """Each data set with its content hash, for the run's hash and record."""
    variant: Variant = "original"
    """Whose metric definitions."""
    retain: Retain = "all"
    """Which of the benchmark's texts the stages' retain sets hold."""
    generation_budget: int = 200
    """Tokens an answer may take: with its prompt in the original's definition, by itself in open-unlearning's."""
    family: str = ""
    """Whose presets apply: `mini` of `mini@1`, or of a saved mini model; the model's name up to its `@` if empty."""
    refusals: Sequence[str] = ()
    """What a model that refuses may say, for methods that train on refusals."""
    notes: Sequence[str] = ()
    """What a reader must know of this benchmark with this model, shown under every table."""
    attacks: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    """What an unlearned model may be fine-tuned on to bring back what it forgot: `benign`, `related`, `forget` data."""
    options: Options = Options()
    """What the command line decided, for evaluators that bring data of their own or ask a judge; set when a run is planned."""

    @property
    def basis(self) -> dict[str, JSON]:
        """What else the numbers rest on, by evaluator: a judge, data of its own; only of those that rest on something.

        Raises:
            UsageError: for data that is missing or malformed.
        """
        return {e.name: dict(found) for e in self.evaluators if (found := e.basis(self))}

    @property
    def versions(self) -> dict[str, int]:
        """What measures, and which version of its definition."""
        return {e.name: e.version_for(self) for e in self.evaluators}

    @property
    def references(self) -> list[str]:
        """The names of the retrained models that forget quality compares with, the headline one first."""
        return [*self.recorded, *(name for name in self.sources if name.startswith("retain-"))]


@dataclass
class Setting:
    """All a method may see. It edits `model` in place."""

    model: PreTrainedModel
    """The model to unlearn from, in eval mode."""
    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer."""
    task: Task
    """The benchmark, its stages and its sources."""
    seed: int
    """The unlearning seed."""
    cache: Cache
    """Where curvature and other costly things are kept between runs."""
    costs: Costs
    """Where a method says what took how long: `with setting.costs.phase("curvature fit"): …`."""
    identity: str
    """A digest that names these weights without reading them; part of the keys of what depends on them."""

    @property
    def stages(self) -> Sequence[Stage]:
        """What is to be unlearned, in order."""
        return self.task.stages

    @property
    def sources(self) -> Mapping[str, ModelSource]:
        """Other models of the benchmark: `base`, `retain-0`, …."""
        return self.task.sources


# ---------------------------------------------------------------- methods


@dataclass(frozen=True)
class Progress:
    """What a method yields after every step."""

    step: int
    """Steps taken so far."""
    logged: Mapping[str, float] = field(default_factory=dict)
    """Numbers worth keeping: losses, norms, predicted and measured KL. They end in the point's record."""
    measure_here: bool = False
    """Whether a point of the trade-off curve is to be measured now."""
    total: int | None = None
    """How many steps there will be, where that is known: for the progress bar."""


class Unlearn(Protocol[C_contra]):
    """A method: a generator that edits `setting.model` and yields as it goes. The clock runs only inside it."""

    def __call__(self, setting: Setting, config: C_contra) -> Iterator[Progress]:
        """Edit `setting.model`, step by step."""


@dataclass(frozen=True)
class ModelShape:
    """What is known of a run's model and data before its weights are read; what methods estimate their memory from."""

    model: PreTrainedModel
    """The model on the meta device: modules, names and shapes, no numbers."""
    weight_bytes: int
    """Bytes of one weight: 4 in float32, 2 in bfloat16."""
    retain_rows: int
    """Examples of the largest retain set."""
    answer_tokens: int
    """Tokens of an answer with its end token, about: a quarter of the mean number of characters."""

    @property
    def parameters(self) -> int:
        """How many weights there are; tied ones count once."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def vocabulary(self) -> int:
        """Rows of the output embedding."""
        return int(self.model.config.vocab_size)


@dataclass(frozen=True)
class Held:
    """Something a method holds in memory besides the weights."""

    what: str
    """Its name in messages, such as `factors`."""
    bytes: int
    """Its size at most."""
    where: Literal["device", "cpu"] = "device"
    """Beside the model, or in the machine's memory."""
    while_measured: bool = True
    """Whether it is still there while a point is measured."""
    certain: bool = True
    """Whether its size is counted rather than guessed; a run is refused only for what is certain."""


@dataclass(frozen=True)
class Method(Generic[C]):
    """A registered method."""

    name: str
    """Its file's name."""
    version: int
    """Raised when a change of the method changes numbers."""
    config: type[C]
    """Its settings class."""
    source: str
    """The paper that defines it."""
    unlearn: Unlearn[C]
    """The method itself."""
    cannot: Callable[[Task], str | None] = lambda task: None
    """Why it cannot run on a task, or None if it can."""
    clash: Callable[[Task, C], str | None] = lambda task, config: None
    """Why it cannot run on a task with these settings, or None if it can: what is known before any model is made."""
    memory: Callable[[ModelShape, C], Sequence[Held]] = lambda shape, config: ()
    """What it holds besides the weights, before anything is loaded."""
    smaller: Sequence[Mapping[str, JSON]] = ()
    """Settings that need less memory, to be proposed where a run does not fit."""

    @property
    def presets(self) -> list[PresetEntry]:
        """What is published and what was tuned for it; see `harness.core.presets`."""
        return presets_of(self.name, self.config, METHODS.names())

    def preset(self, bench: str, family: str, preset: Preset = "published") -> Mapping[str, JSON]:
        """The settings chosen for a benchmark and a model family (`mini` of `mini@1`), the most specific winning.

        What is tuned stands on what is published.

        Raises:
            UsageError: for tuned settings that the method does not have there; for a faulty file of presets.
        """
        return preset_settings(self.presets, self.name, bench, family, preset)


# ---------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Sampling:
    """How text is drawn from a model."""

    max_tokens: int
    """At most this many new tokens."""
    temperature: float = 0.0
    """0 is greedy."""
    seed: int = 0
    """With the turns said so far it decides what is drawn; without meaning where nothing is."""


@dataclass(frozen=True)
class GenerationRequest:
    """A conversation to be continued."""

    turns: Sequence[str]
    """The user's turns: one for ToFU; a second one is asked after the answer to the first."""
    sampling: Sampling
    """How to draw."""
    by: Literal["subject", "base"] = "subject"
    """Who answers: the model that is measured, or the model before unlearning."""
    chat: bool = False
    """Whether the turns are plain messages for the tokenizer's chat template; else they are rendered, and put one behind the
    other with the answers between them."""


@dataclass(frozen=True)
class Reference:
    """A retrained model, by what was measured of it row by row."""

    name: str
    """`retain-0`, … or the name of a log."""
    tables: Mapping[str, pd.DataFrame]
    """As in `Subject.tables`."""


@dataclass
class Subject:
    """What an evaluator measures: the model as it is now, or the recorded tables of one that is not here."""

    setting: Setting | None
    """None when only tables are known, as when a published log is scored."""
    task: Task
    """The benchmark."""
    references: Sequence[Reference]
    """The retrained models to compare with, the headline one first."""
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Row-by-row results, one row per (task, row); evaluators share them, the store keeps them."""
    generations: Mapping[GenerationRequest, str] = field(default_factory=dict)
    """Answers to all evaluators' requests."""
    saved_path: Callable[[], Path] | None = None
    """Writes the model as a checkpoint, once, and says where (for programs that load from disk)."""
    unfinished: list[str] = field(default_factory=list)
    """Why tables hold less than they should, for reasons that may pass (a judge that did not answer): such tables are not kept
    for other runs."""
    evaluator: str = ""
    """Whose metrics are measured at the moment, for messages."""
    _built_by: dict[str, str] = field(default_factory=dict, repr=False)
    """Table → the module that built it."""

    def table(self, name: str, build: Callable[[Setting], pd.DataFrame]) -> pd.DataFrame:
        """The table of that name, built from the model the first time it is asked for.

        Its columns `task`, `row` and `cluster` (what is resampled together) name a row; the others are to be called as in no
        other table that has the same rows, since the record keeps all tables as one (`harness.running.measuring.check_tables`).

        Raises:
            LookupError: if it is not recorded and there is no model to build it from.
            UsageError: if another module built one of that name, or it lacks one of the columns that name a row.
        """
        module = getattr(build, "__module__", "")
        if (builder := self._built_by.setdefault(name, module)) != module:
            raise UsageError(f"{builder} and {module} both keep a table '{name}': give one of them another name.")
        if name not in self.tables:
            if self.setting is None:
                raise LookupError(f"there is no {name} table in the log")
            built = build(self.setting)
            if missing := [key for key in ROW_KEYS if len(built) and key not in built]:
                raise UsageError(
                    f"what {self.evaluator or module} keeps row by row cannot be recorded: table '{name}' has no column "
                    f"'{missing[0]}'. A row needs task, row and cluster."
                )
            self.tables[name] = built
        return self.tables[name]

    def of(self, reference: Reference) -> Subject:
        """One of the references, seen as a subject of its own: recorded tables without a model."""
        return Subject(setting=None, task=self.task, references=(), tables=dict(reference.tables))


@pydantic_dataclass(frozen=True, kw_only=True, config=ConfigDict(allow_inf_nan=False))
class Measurement:
    """A number with all that is needed to read it."""

    metric: str
    """Its name, such as `forget_quality`."""
    version: int
    """Raised when its definition changes; numbers of different versions are never compared."""
    value: FiniteFloat
    """The number; finite, for JSON has no other: what is not finite is `Absent`."""
    unit: str
    """Such as `p-value`, `probability`, `nats per token`."""
    better: Better | None
    """Which way is good; `closer` means closer to the reference."""
    n: int
    """How many rows it rests on."""
    range: tuple[float, float] | None = None
    """The values it can take."""
    reference: float | None = None
    """The same number for the retrained model."""
    across_references: tuple[float, float] | None = None
    """Smallest and largest value when each reference is used in turn."""
    floor: float | None = None
    """The noise floor: what two retrained models differ by. Differences at or under it are ties."""
    selection: str | None = None
    """On what the settings behind it were chosen."""
    interval_95: tuple[float, float] | None = None
    """A 95 % interval."""
    interval_method: str | None = None
    """How the interval was made, or why there is none."""
    resampled: str | None = None
    """What was resampled, such as `author`."""
    note: str | None = None
    """What a reader could stumble over: a fall-back of the computation, a tie with the floor."""


@dataclass(frozen=True)
class Difference:
    """By how much two methods differ in a metric, on the same rows."""

    metric: str
    """Which."""
    first: str
    """One of the two."""
    second: str
    """The other."""
    value: float
    """The first one's number minus the second one's; the mean over seeds of each."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end."""
    p: float
    """Two-sided p-value of the difference being none."""
    p_corrected: float
    """The same, Holm-corrected for all that is asked together."""
    better: Better
    """Which way is good for the metric."""
    n: int
    """Rows."""
    clusters: int
    """Of rows, resampled as wholes; of all the metric's tasks together."""


@pydantic_dataclass(frozen=True, kw_only=True)
class Absent:
    """A number that could not be computed. Never 0, never null."""

    metric: str
    """Its name."""
    reason: str
    """Why, in one sentence."""


MeasureMetric = Callable[[Subject, Metric], Given]
"""What an evaluator's function is: a subject and one of its metrics → rows, or a number."""


def _no_requests(task: Task, tokenizer: PreTrainedTokenizerBase) -> Sequence[GenerationRequest]:
    return ()


def _nothing(setting: Setting) -> None:
    return None


def _no_basis(task: Task) -> Mapping[str, JSON]:
    return {}


@dataclass(frozen=True)
class Evaluator:
    """A registered evaluator: declares metrics, asks for texts, then gives for each metric rows or a number."""

    name: str
    """Its file's name."""
    version: int | Callable[[Task], int]
    """Raised when its definition changes; a function of the task where it changed for some tasks alone, so that runs on the
    others keep their names."""
    measure: Callable[[Subject, Metric], Given]
    """What a metric is made of: rows, or a number; raises LookupError, with the reason, where it cannot be had. The texts it
    asked for are in `subject.generations`; tables it builds go through `subject.table`. The rest: `harness.statistics`."""
    metrics: Sequence[Metric] | Callable[[Task], Sequence[Metric]]
    """What it measures; a function of the task where that follows from its sets of questions."""
    requests: Callable[[Task, PreTrainedTokenizerBase], Sequence[GenerationRequest]] = _no_requests
    """The texts it needs; equal requests of several evaluators are generated once."""
    changes_model: bool = False
    """Whether it edits the model (a fine-tuning attack): such an evaluator runs last, on a reload."""
    before: Callable[[Setting], None] = _nothing
    """Is shown the model before unlearning, once in a run, so that it need not be loaded again to compare with."""
    basis: Callable[[Task], Mapping[str, JSON]] = _no_basis
    """What its numbers rest on besides the task, as plain JSON for the run's hash: a judge's name, digests of its own data."""
    memory: Callable[[ModelShape], Sequence[Held]] = lambda shape: ()
    """What it holds besides the model that is measured, where that is more than any evaluator takes."""

    named: Callable[[str], Metric | None] | None = None
    """Its metric of a recorded name, or None if that is none of its; needed where `metrics` is a function."""

    def metrics_of(self, task: Task) -> Sequence[Metric]:
        """What it measures on a task."""
        return self.metrics(task) if callable(self.metrics) else self.metrics

    def metric(self, name: str) -> Metric | None:
        """Its metric of that name, without a task; None if it has no such."""
        if self.named:
            return self.named(name)
        return None if callable(self.metrics) else metrics_by_name(self.metrics)(name)

    def compares(self, task: Task) -> bool:
        """Whether it needs a retrained model to compare with."""
        return any(isinstance(metric.statistic, TwoSample) for metric in self.metrics_of(task))

    def version_for(self, task: Task) -> int:
        """Its version on a task."""
        return self.version(task) if callable(self.version) else self.version

    @property
    def asks(self) -> bool:
        """Whether it asks for texts at all."""
        return self.requests is not _no_requests

    @property
    def rests_on_more(self) -> bool:
        """Whether its numbers rest on more than the task wherever they are taken: on a judge, say, who may be left out."""
        return self.basis is not _no_basis


@dataclass(frozen=True)
class Needed:
    """Something of the hub that a benchmark needs with a model; what `harness doctor` looks for."""

    id: str
    """The hub id."""
    kind: Literal["data", "model", "tokenizer"]
    """What it is."""
    files: Sequence[str] = ()
    """The files of a data set."""
    about: str = ""
    """Its format and size, for a reader."""
    gate: str = ""
    """The repository where its licence must be accepted before it can be fetched, if there is such a gate."""
    doubt: str = ""
    """What is not certain about it."""
    any_of: Sequence[str] = ()
    """Forms that a data set's files may have instead (`*`: any part of a name); one is enough, the last is one's own."""
    hub_too: bool = False
    """Whether a data set is asked of the hub where a data folder is given that does not hold it."""


class Benchmark(Protocol):
    """A registered benchmark: its models, its data, what is measured.

    One that takes anything from the hub also has `needed(model: str) -> Sequence[Needed]`, for `harness doctor`. One whose
    metrics play parts (a headline, a ranking, what methods are compared in) has `roles: MetricRoles`.
    """

    name: str
    """Such as `tofu10`."""
    version: int
    """Raised when a change changes numbers."""
    models: Mapping[str, str]
    """Model cards it knows, with one line about each; `mini` is always among them."""

    def task(self, model: str, options: Options) -> Task:
        """Read the data and name the sources; imports no torch.

        Raises:
            UsageError: for an unknown model, or data that is missing or malformed.
        """

    def evaluators(self) -> Sequence[Evaluator]:
        """What is measured."""

    def read_log(self, path: Path) -> Mapping[str, pd.DataFrame]:
        """Tables out of an evaluation log that another program wrote.

        Raises:
            UsageError: if the file is not such a log (file, and what is wrong with it).
        """


def roles_of(bench: str) -> MetricRoles:
    """Which part a benchmark's metrics play; none of one that is not installed, or says nothing."""
    try:
        roles: MetricRoles = getattr(BENCHMARKS.get(bench), "roles", NO_ROLES)
    except UsageError:
        return NO_ROLES
    return roles


def metric_of(name: str) -> tuple[Evaluator, Metric] | None:
    """The evaluator that gives a metric of that name, and the metric as it is declared; None if no evaluator does."""
    evaluators = [EVALUATORS.get(each) for each in EVALUATORS.names()]
    for evaluator in sorted(evaluators, key=lambda each: each.named is not None):  # a whole name before a pattern
        if metric := evaluator.metric(name):
            return evaluator, metric
    return None


def title_of(name: str) -> str:
    """A metric's heading as it is declared; its name where no evaluator here has it."""
    match = metric_of(name)
    return match[1].title if match else name.replace("_", " ")


# ---------------------------------------------------------------- reporting


@dataclass(frozen=True)
class FigureOptions:
    """What a figure is told besides the runs' table."""

    results: Path
    """The results folder, for figures that show texts."""
    by: str = ""
    """The setting whose values are compared, for figures that compare settings."""


@dataclass(frozen=True)
class Sheet:
    """A table in two forms."""

    numbers: pd.DataFrame
    """Every number in full, for CSV."""
    shown: pd.DataFrame
    """The same as a reader wants it, all text, for Markdown and LaTeX."""
    caption: str
    """What it shows, in one sentence."""
    notes: Sequence[str] = ()
    """What is needed to read it: rules, intervals, what was left out."""


Draw = Callable[["pd.DataFrame", FigureOptions], "Mapping[str, Drawing | Sheet]"]
"""The runs' table (`Store.frame`) → drawings and tables by name; the name is the file's, behind the figure's own.

Numbers of different benchmarks, models, variants, retain sets or metric versions never share one.
"""


@dataclass(frozen=True)
class Figure:
    """A registered figure, or a table."""

    name: str
    """Its file's name."""
    draw: Draw
    """The figure itself. Raises `UsageError`, naming the command that makes what is missing, where there is nothing to show."""


# ---------------------------------------------------------------- registration

METHODS: Registry[Method[Any]] = Registry("method", "methods", "method", "harness list methods")
BENCHMARKS: Registry[Benchmark] = Registry("benchmark", "evals.benchmarks", "benchmark", "harness list benches")
EVALUATORS: Registry[Evaluator] = Registry("evaluator", "evals", "evaluator", "harness list evals")
FIGURES: Registry[Figure] = Registry("figure", "plots", "figure", "harness list figures")


def method(
    name: str,
    *,
    config: type[C],
    source: str,
    version: int = 1,
    cannot: Callable[[Task], str | None] = lambda task: None,
    clash: Callable[[Task, C], str | None] = lambda task, config: None,
    memory: Callable[[ModelShape, C], Sequence[Held]] = lambda shape, config: (),
    smaller: Sequence[Mapping[str, JSON]] = (),
) -> Callable[[Unlearn[C]], Unlearn[C]]:
    """Register the decorated generator as a method under its file's name."""

    def register(function: Unlearn[C]) -> Unlearn[C]:
        METHODS.register(name, Method(name, version, config, source, function, cannot, clash, memory, smaller))
        return function

    return register


def evaluator(
    name: str,
    *,
    version: int | Callable[[Task], int],
    metrics: Sequence[Metric] | Callable[[Task], Sequence[Metric]],
    named: Callable[[str], Metric | None] | None = None,
    requests: Callable[[Task, PreTrainedTokenizerBase], Sequence[GenerationRequest]] = _no_requests,
    changes_model: bool = False,
    before: Callable[[Setting], None] = _nothing,
    basis: Callable[[Task], Mapping[str, JSON]] = _no_basis,
    memory: Callable[[ModelShape], Sequence[Held]] = lambda shape: (),
) -> Callable[[MeasureMetric], MeasureMetric]:
    """Register the decorated function as an evaluator under its file's name."""

    def register(measure: MeasureMetric) -> MeasureMetric:
        EVALUATORS.register(
            name, Evaluator(name, version, measure, metrics, requests, changes_model, before, basis, memory, named)
        )
        return measure

    return register


def benchmark(*names: str) -> Callable[[type[Any]], type[Any]]:
    """Register the decorated class under each name; it is made once with each as its argument."""

    def register(cls: type[Any]) -> type[Any]:
        for name in names:
            BENCHMARKS.register(name, cls(name))
        return cls

    return register


def figure(name: str) -> Callable[[Draw], Draw]:
    """Register the decorated function as a figure under its file's name."""

    def register(draw: Draw) -> Draw:
        FIGURES.register(name, Figure(name, draw))
        return draw

    return register
