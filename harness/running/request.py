"""What was asked: one typed request for a run, a sweep and a study, made alike from flags, a file, a record and Python.

    harness run -m kfade -b tofu10          harness run run.yaml          harness.run("kfade", bench="tofu10")

A request says what is to be run and nothing of where it goes or how it is shown. Flags are generated from its fields
(`harness/cli/flags.py`); the entries of a file are their names. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, cast, get_args

from harness.core.adapters import adapter_of
from harness.core.config import JSON, parse
from harness.core.documents import read_yaml
from harness.core.errors import UsageError, cut
from harness.core.fields import Field, Given, budgets, folder, from_document, names, number, path, seeds, switch, text, word
from harness.core.judging import MOST_REPETITIONS, judge_of
from harness.core.optimizers import optimizer_of
from harness.core.options import MOST_SEED, LoRA, Optimizer, Options, Points, Preset, Retain, Rows, Variant
from harness.running.misplaced import check_places, flag_for

if TYPE_CHECKING:
    from harness.running.plan import Plan
    from harness.running.trials import Sweep

WHAT, SETTINGS, MEASURING, MACHINE = "What is run", "Settings", "Measuring", "Machine"
"""Headings of `--help`."""
NEEDED = "give --method and --bench (see harness list methods, harness list benches)"


def settings(given: Given) -> dict[str, JSON]:
    """`key=value` texts, or a mapping."""
    _check_mapping(given, "set")
    if isinstance(given.value, Mapping):
        return {str(key): value for key, value in given.value.items()}
    return parse(cast("Sequence[str]", given.value or ()))


def grid(given: Given) -> Mapping[str, Any]:
    """Axes out of `key=value,value` texts, or a mapping of lists."""
    from harness.running.grid import axes, listed_axes

    _check_mapping(given, "grid")
    if isinstance(given.value, Mapping):
        return listed_axes(given.value, given.text.partition(":")[0] if given.origin == "file" else "grid")
    return axes(cast("Sequence[str]", given.value or ()))


def seed(given: Given) -> int | None:
    """A seed."""
    if "," in str(given.value):
        raise UsageError(f"{given.text}: a run has one seed; harness sweep --seeds {cut(str(given.value))} makes one for each.")
    return number(0, MOST_SEED)(given)


def _check_mapping(given: Given, entry: str) -> None:
    if given.origin == "file" and not (isinstance(given.value, Mapping) and given.value):
        file = given.text.partition(":")[0]
        raise UsageError(f"{file}: '{entry}' is empty; write settings and their values under it.")
    if isinstance(given.value, str):
        raise UsageError(f"{given.text} is no mapping of settings to values.")


# ---------------------------------------------------------------- what all requests share

ModelName = Annotated[str, Field(text, WHAT, metavar="NAME", completes="models")]
BenchName = Annotated[str, Field(text, WHAT, short="-b", metavar="NAME", completes="benches")]
WhoseMetrics = Annotated[
    Variant,
    Field(
        word("original", "open-unlearning", "corrected"),
        MEASURING,
        metavar="WORD",
        completes="original|open-unlearning|corrected",
    ),
]
RowLimit = Annotated[int | None, Field(number(), MEASURING, metavar="NUMBER")]
ReferenceLog = Annotated[Path | None, Field(path, MEASURING, metavar="FILE")]
DataFolder = Annotated[Path | None, Field(folder, MACHINE, metavar="DIR", variable="HARNESS_DATA")]
WhichPoints = Annotated[Points, Field(word("all", "last"), MEASURING, metavar="WORD", completes="all|last")]
Methods = Annotated[tuple[str, ...], Field(names("a method", NEEDED), WHAT, short="-m", metavar="NAMES", completes="methods")]
WhichPreset = Annotated[
    Preset, Field(word(*get_args(Preset)), SETTINGS, aliases=("--form",), metavar="WORD", completes="|".join(get_args(Preset)))
]
Settings = Annotated[
    Mapping[str, JSON], Field(settings, SETTINGS, flag="--set", short="-s", metavar="KEY=VALUE", repeated=True)
]
Seeds = Annotated[tuple[int, ...], Field(seeds, WHAT, metavar="NUMBERS")]
RemoteCode = Annotated[bool, Field(switch, MACHINE, switch=True, typed_only="it runs code that comes with a checkpoint")]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a run, a sweep and a study are asked alike."""

    model: ModelName = "mini"
    """A card, mini, mini@SEED, scratch, a hub id or a folder."""
    variant: WhoseMetrics = "original"
    """Whose metric definitions: original or open-unlearning."""
    template: Annotated[str, Field(text, WHAT, metavar="NAME", completes="templates")] = ""
    """How real models are asked: chat, the tokenizer's own chat template, or a name (harness list templates)."""
    retain: Annotated[
        Retain, Field(word("all", "general", "neighbours"), WHAT, metavar="WORD", completes="all|general|neighbours")
    ] = "all"
    """On WMDP: texts that guard what is unlearned: all, general or neighbours."""
    limit: RowLimit = None
    """At most this many rows per split."""
    evals: Annotated[tuple[str, ...], Field(names("an evaluator"), MEASURING, completes="evals")] = ()
    """Only these evaluators, parted by commas; +name comes to the benchmark's own. See harness list evals."""
    budgets: Annotated[tuple[float, ...], Field(budgets, MEASURING, metavar="NUMBERS")] = ()
    """Measure where the damage on held-out rows is so many nats per token, such as .01,.1."""
    adapter: Annotated[LoRA | None, Field(adapter_of, SETTINGS)] = None
    """Train low-rank adapters in place of the weights, such as lora:r=16 or lora:r=8,alpha=32,dropout=0,target=mlp."""
    optimizer: Annotated[Optimizer | None, Field(optimizer_of, SETTINGS)] = None
    """How AdamW is kept: adamw:bits=8 (its moments; default 32), masters=none (bfloat16, rounded stochastically), clip=none
    (gradients freed layer by layer)."""
    recompute: Annotated[bool, Field(switch, MACHINE, switch=True)] = False
    """Recompute activations in training (less memory, the same result); of itself from 1e9 parameters on a GPU."""
    rows: Annotated[Rows, Field(word("all", "last", "none"), MEASURING, metavar="WORD", completes="all|last|none")] = "all"
    """Keep rows and texts of every point (all), of the last one only (last), or of none."""
    reference: ReferenceLog = None
    """A retrained model's evaluation log to compare with."""
    judge: Annotated[str, Field(text, MEASURING)] = ""
    """Who grades answers: openai:MODEL (key in OPENAI_API_KEY), or vllm:MODEL, served here."""
    judge_url: Annotated[str, Field(text, MEASURING, typed_only="it says where the models' answers and your key are sent")] = ""
    """The address of an OpenAI-compatible judge, up to /v1."""
    judge_repetitions: Annotated[int, Field(number(1, MOST_REPETITIONS), MEASURING, metavar="NUMBER")] = 1
    """How often all is answered and judged; papers take 5."""
    device: Annotated[str, Field(text, MACHINE, completes="auto|cpu|cuda|cuda:all|mps")] = "auto"
    """auto, cpu, cuda, cuda:N, cuda:all, mps."""
    dtype: Annotated[str, Field(word("float32", "bfloat16"), MACHINE, metavar="WORD", completes="float32|bfloat16")] = "float32"
    """float32 or bfloat16."""
    generator: Annotated[str, Field(text, MACHINE, completes="auto|hf|vllm")] = "auto"
    """Who writes answers and scores choices: auto, hf or vllm."""
    data_dir: DataFolder = None
    """A folder laid out by hub id, used before the hub."""

    def options(self, seed: int = 0, points: Points = "all", trust_remote_code: bool = False) -> Options:
        """What of it a benchmark and the runner need.

        Raises:
            UsageError: for a device, a generator or a judge that cannot be.
        """
        from harness.numerics.generation import pick_generator
        from harness.numerics.placement import pick_device

        device = pick_device(self.device)
        return Options(
            seed=seed,
            limit=self.limit,
            device=device,
            dtype=self.dtype,
            variant=self.variant,
            template=self.template,
            retain=self.retain,
            evals=self.evals,
            points="all" if self.budgets else points,  # where they are is said by the budgets
            rows=self.rows,
            budgets=self.budgets,
            adapter=self.adapter,
            optimizer=self.optimizer,
            recompute=self.recompute,
            data_dir=self.data_dir,
            reference=self.reference,
            trust_remote_code=trust_remote_code,
            judge=judge_of(self.judge, self.judge_url, self.judge_repetitions),
            generator=pick_generator(self.generator, device),
        )


class RequestFields(TypedDict, total=False):
    """The keywords of `Request` for Python."""

    model: str
    template: str
    variant: Variant
    retain: Retain
    limit: int | None
    evals: str | Sequence[str]
    budgets: Sequence[float]
    adapter: str
    optimizer: str
    recompute: bool
    rows: Rows
    reference: str | Path | None
    judge: str
    judge_url: str
    judge_repetitions: int
    device: str
    dtype: str
    generator: str
    data_dir: str | Path | None
    settings: Mapping[str, JSON]
    preset: Preset
    points: Points
    trust_remote_code: bool


class RunFields(RequestFields, total=False):
    """The keywords of `harness.run(…)` besides method and benchmark."""

    seed: int


class SweepFields(RequestFields, total=False):
    """The keywords of `harness.sweep(…)` besides methods and benchmarks."""

    seeds: Sequence[int]
    grid: Mapping[str, Sequence[JSON] | str]
    budget: int | None
    search: Literal["grid", "random"]
    by: str


# ---------------------------------------------------------------- a run


@dataclass(frozen=True, kw_only=True)
class RunRequest(Request):
    """One run, or one for each of several methods."""

    method: Methods = ()
    """What to unlearn with, or several parted by commas; see harness list methods."""
    bench: BenchName = ""
    """The benchmark; see harness list benches."""
    seed: Annotated[int, Field(seed, WHAT, metavar="NUMBER")] = 0
    """Unlearning seed."""
    settings: Settings = field(default_factory=dict)
    """A setting, key=value; lists as [3,4]. See harness show METHOD."""
    preset: WhichPreset = "published"
    """The method's settings as published, tuned, or tuned anew (tuned2)."""
    points: WhichPoints = "all"
    """Measure every point of the trajectory (all), or the last one only (last)."""
    trust_remote_code: RemoteCode = False
    """Run code that comes with a checkpoint."""

    def plans(self, recorded: Mapping[str, JSON] | None = None) -> list[Plan]:
        """Every run, decided.

        Args:
            recorded: all settings of a run that is to be repeated.

        Raises:
            UsageError: for anything that is not known, not allowed or not there.
        """
        from harness.running.plan import plan

        if not self.method or not self.bench:
            meant = f"; {self.model} is no model, write {flag}" if (flag := flag_for(self.model)) else ""
            raise UsageError(f"{NEEDED}, or --spec{meant}.")
        check_places(self.method, self.bench)
        if self.budgets and self.points == "last":
            raise UsageError("--budgets say where points are. Leave out --points last, or give one budget.")
        options = self.options(self.seed, self.points, self.trust_remote_code)
        return [
            plan(self.bench, self.model, method, self.settings, options, recorded=recorded, preset=self.preset)
            for method in self.method
        ]


# ---------------------------------------------------------------- a sweep


@dataclass(frozen=True, kw_only=True)
class SweepRequest(Request):
    """A grid of settings."""

    method: Methods = ()
    """One method, or several parted by commas."""
    bench: Annotated[
        tuple[str, ...], Field(names("a benchmark", NEEDED), WHAT, short="-b", metavar="NAMES", completes="benches")
    ] = ()
    """One benchmark, or several parted by commas."""
    seeds: Seeds = (0,)
    """Unlearning seeds, parted by commas."""
    grid: Annotated[Mapping[str, Any], Field(grid, SETTINGS, short="-g", metavar="KEY=VALUES", repeated=True)] = field(
        default_factory=dict
    )
    """An axis: key=value,value (lists: [3];[3,4]); method.key=… for one of several methods; key=low..high with --search
    random."""
    settings: Settings = field(default_factory=dict)
    """A setting of every trial, key=value."""
    budget: Annotated[int | None, Field(number(), SETTINGS, metavar="NUMBER")] = None
    """The same number of settings for every method."""
    search: Annotated[
        Literal["grid", "random"], Field(word("grid", "random"), SETTINGS, metavar="WORD", completes="grid|random")
    ] = "grid"
    """How the budget's settings are drawn: grid or random."""
    by: Annotated[str, Field(text, SETTINGS, metavar="METRIC")] = ""
    """The metric that settings are chosen by, recorded with every trial; orders the table."""
    preset: WhichPreset = "published"
    """The methods' settings as published, tuned, or tuned anew (tuned2)."""
    points: WhichPoints = "last"
    """Measure every point of the trajectory (all), or the last one only (last)."""
    trust_remote_code: RemoteCode = False
    """Run code that comes with a checkpoint."""

    def sweep(self) -> Sweep:
        """What is tried.

        Raises:
            UsageError: for settings that are both fixed and varied, or what `Request.options` refuses.
        """
        from harness.running.trials import Sweep

        if not self.method or not self.bench:
            raise UsageError(f"{NEEDED}, or a YAML file.")
        sweep = Sweep(
            methods=self.method,
            benches=self.bench,
            model=self.model,
            seeds=self.seeds or (0,),
            options=self.options(0, self.points, self.trust_remote_code),
            axes=self.grid,
            fixed=self.settings,
            preset=self.preset,
            budget=self.budget,
            search=self.search,
            by=self.by,
        )
        if both := sweep.contradictions():
            raise UsageError(f"'{both[0]}' is both set and an axis of the grid; give one of --set and --grid.")
        return sweep


# ---------------------------------------------------------------- a study


@dataclass(frozen=True, kw_only=True)
class StudyRequest(Request):
    """One of the studies, on its own benchmarks and seeds or on others."""

    bench: Annotated[tuple[str, ...], Field(names("a benchmark"), WHAT, short="-b", metavar="NAMES", completes="benches")] = ()
    """Other benchmarks than the study's, parted by commas."""
    seeds: Seeds = ()
    """Other unlearning seeds than the study's, parted by commas."""
    method: Annotated[
        tuple[str, ...],
        Field(names("a method"), WHAT, short="-m", aliases=("--methods",), metavar="NAMES", completes="methods"),
    ] = ()
    """Only these of the study's methods, parted by commas."""
    phase: Annotated[
        Literal["both", "tries", "reported"],
        Field(word("both", "tries", "reported"), WHAT, metavar="WORD", completes="both|tries|reported"),
    ] = "both"
    """Of a study that chooses settings first: the tries, what is reported, or both."""

    def check_own_choices(self, study: str) -> None:
        """Refuse what a study that says its models, evaluators and budgets itself is given.

        Raises:
            UsageError: naming it.
        """
        for name in ("model", "template", "evals", "budgets", "rows", "adapter", "optimizer"):
            if getattr(self, name) != getattr(StudyRequest(), name):
                raise UsageError(f"the study {study} says {name} itself, the same for every method. Leave out --{name}.")


def request_file(kind: type[Request], file: Path) -> dict[str, Given]:
    """A layer out of a YAML file.

    Raises:
        UsageError: if it cannot be read, is no mapping, or has an entry that is unknown or must be typed.
    """
    what = {RunRequest: "run", SweepRequest: "sweep"}.get(kind, "study")
    if not file.exists() and file.suffix not in (".yaml", ".yml"):
        several = " (several parted by commas)" if flag_for(str(file)).startswith("--method") else ""
        advice = f"write {flag}{several}" if (flag := flag_for(str(file))) else "a setting is one word, --set key=value"
        raise UsageError(f"there is no file {cut(str(file))}; {advice}.")
    return from_document(kind, read_yaml(file, file.name), file.name, what)
