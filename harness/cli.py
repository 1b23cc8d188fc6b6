"""The commands: parse, resolve, hand over. Nothing is computed here.

Torch is imported only by the commands that need it: listing, showing and finding a run that is done do without.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from harness.documents import read_json, whole_number
from harness.errors import LONGEST_MESSAGE, RunFailed, UsageError, cut, unknown
from harness.registry import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.executors import Executor
    from harness.interfaces import Judge, Options
    from harness.records import RunResult, RunSpec
    from harness.run import Plan
    from harness.store import Store
    from harness.sweep import Try

# Before torch is imported: threads that wait for one another must not spin (seen: seven times slower on shared cores).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

app = typer.Typer(
    help="Unlearning methods for language models behind one interface, measured alike.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cache_app = typer.Typer(help="Trained mini models, curvature and texts kept between runs.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")
results_app = typer.Typer(no_args_is_help=True, help="Results as they are stored.")
app.add_typer(results_app, name="results")


INTERRUPTED = 130
"""What typer gives back of a command that was ended, from the keyboard or by a signal."""
_NO_PLACE = {
    errno.ENAMETOOLONG: "is too long for the name of a file or folder",
    errno.EACCES: "may not be opened (permission denied). Make it and the folders it lies in readable, or name another",
}
"""What is wrong with what any flag that names a file may name, by the system's number of the error."""


class Kind(StrEnum):
    """What `harness list` can list."""

    methods = "methods"
    benches = "benches"
    models = "models"
    evals = "evals"
    studies = "studies"
    figures = "figures"
    runs = "runs"


class FormName(StrEnum):
    """Which of a method's presets."""

    published = "published"
    tuned = "tuned"


class PointsName(StrEnum):
    """What of a run's way is measured."""

    all = "all"
    last = "last"


class SearchName(StrEnum):
    """How the tries of a budget are drawn."""

    grid = "grid"
    random = "random"


class ExecutorName(StrEnum):
    """Where runs are done."""

    local = "local"
    ray = "ray"


class VariantName(StrEnum):
    """Whose metric definitions."""

    original = "original"
    open_unlearning = "open-unlearning"


class RetainName(StrEnum):
    """Which texts guard what is unlearned."""

    all = "all"
    general = "general"
    neighbours = "neighbours"


def _number(*flags: str, help: str, least: int = 1, most: int = 2**32 - 1) -> Any:
    """A flag that takes a whole number: plain digits, and no more of them than can be meant."""

    def read(text: object) -> int:
        number = whole_number(str(text))
        if number is None or not least <= number <= most:
            raise UsageError(f"{flags[0]} {cut(str(text))} is no whole number from {least} to {most:,}.")
        return number

    return typer.Option(*flags, parser=read, metavar="NUMBER", help=help)


Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars, no table.")]
Results = Annotated[Path | None, typer.Option("--results", help="Where records go; the checkout's results/ by default.")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", envvar="HARNESS_DATA", help="A folder laid out by hub id, used before the hub.")
]
Model = Annotated[str, typer.Option("--model", help="A card, mini, mini@SEED, scratch, a hub id or a folder.")]
Limit = Annotated[int | None, _number("--limit", help="At most this many rows per split.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N, cuda:all, mps.")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32 or bfloat16.")]
GeneratorOption = Annotated[str, typer.Option("--generator", help="Who writes answers and scores choices: auto, hf or vllm.")]
Evals = Annotated[str, typer.Option("--evals", help="Only these evaluators, parted by commas; see harness list evals.")]
FormOption = Annotated[FormName, typer.Option("--form", help="The method's settings as published, or tuned.")]
PointsOption = Annotated[PointsName, typer.Option("--points", help="Measure every point of the way, or the last one only.")]
RowsOption = Annotated[PointsName, typer.Option("--rows", help="Keep rows and texts of every point, or of the last one only.")]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with a checkpoint.")]
Variant = Annotated[VariantName, typer.Option("--variant", help="Whose metric definitions.")]
RetainOption = Annotated[RetainName, typer.Option("--retain", help="On WMDP: texts that guard what is unlearned.")]
ExecutorOption = Annotated[
    ExecutorName,
    typer.Option("--executor", help="Here, or on the Ray cluster of RAY_ADDRESS (a shared file system is needed)."),
]
Jobs = Annotated[
    int | None,
    _number("--jobs", "-j", help="So many runs at a time, each in a process of its own.", most=1000),
]
Yes = Annotated[bool, typer.Option("--yes", help="Go ahead with more than 10,000 runs.")]
Reference = Annotated[Path | None, typer.Option("--reference", help="A retrained model's evaluation log to compare with.")]
JudgeOption = Annotated[
    str, typer.Option("--judge", help="Who grades answers: openai:MODEL (key in OPENAI_API_KEY), or vllm:MODEL, served here.")
]
JudgeUrl = Annotated[str, typer.Option("--judge-url", help="The address of an OpenAI-compatible judge, up to /v1.")]
JudgeRepetitions = Annotated[
    str,
    typer.Option("--judge-repetitions", metavar="NUMBER", help="How often all is answered and judged; papers take 5."),
]


def results_root(given: Path | None) -> Path:
    """The results folder: as given, else the checkout's, else ./results."""
    return given or (ROOT / "results" if (ROOT / "pyproject.toml").is_file() else Path("results"))


@app.command()
def run(
    context: typer.Context,
    method: Annotated[
        str, typer.Option("--method", "-m", help="What to unlearn with, or several parted by commas; see harness list methods.")
    ] = "",
    bench: Annotated[str, typer.Option("--bench", "-b", help="The benchmark; see harness list benches.")] = "",
    model: Model = "mini",
    set_: Annotated[list[str] | None, typer.Option("--set", "-s", help="A setting, key=value; lists as [3,4].")] = None,
    form: FormOption = FormName.published,
    seed: Annotated[int, _number("--seed", help="Unlearning seed.", least=0)] = 0,
    limit: Limit = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    generator: GeneratorOption = "auto",
    evals: Evals = "",
    points: PointsOption = PointsName.all,
    rows: RowsOption = PointsName.all,
    data_dir: DataDir = None,
    results: Results = None,
    reference: Reference = None,
    variant: Variant = VariantName.original,
    retain: RetainOption = RetainName.all,
    judge: JudgeOption = "",
    judge_url: JudgeUrl = "",
    judge_repetitions: JudgeRepetitions = "1",
    spec: Annotated[Path | None, typer.Option("--spec", help="Repeat a recorded run: its run.json.")] = None,
    save_model: Annotated[Path | None, typer.Option("--save-model", help="Folder for the unlearned checkpoint.")] = None,
    save_update: Annotated[Path | None, typer.Option("--save-update", help="File for the weight difference.")] = None,
    trust_remote_code: RemoteCode = False,
    force: Annotated[bool, typer.Option("--force", help="Run anew even if it is done.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Unlearn, measure, record. A run that is done is shown; one that was interrupted goes on."""
    if quiet or as_json:
        os.environ["TQDM_DISABLE"] = "1"
    else:
        logging.getLogger("harness.memory").setLevel(logging.INFO)
        logging.getLogger("harness.judging").setLevel(logging.INFO)
    from harness.config import parse
    from harness.judging import judge_of, recorded_judge
    from harness.keeping import Keep
    from harness.records import changes, to_json
    from harness.run import plan
    from harness.store import Store

    settings = parse(set_ or [])
    told = _read_spec(spec) if spec else None
    if told:
        if clash := [name for name in _RECORDED if _typed(context, name)]:
            flag = f"--{clash[0].replace('_', '-')}"
            raise UsageError(f"--spec and {flag} contradict each other: a record says all but settings (change them by --set).")
        bench, method, seed, limit = told.bench, told.method, told.seed, told.limit
        dtype, generator, variant, retain = told.dtype, told.generator, VariantName(told.variant), RetainName(told.retain)
        judged_by, repetitions = recorded_judge(told.basis.values())
        judge, judge_repetitions = judge or judged_by, str(repetitions)
        evals, points = ",".join(told.evaluators), PointsName(told.points)
        form = FormName(told.form or "published")
        model = model if _typed(context, "model") else told.model
    if not method.strip(" ,") or not bench:
        raise UsageError("give --method and --bench (see harness list methods, harness list benches), or --spec.")
    options = _options(
        seed, limit, device, dtype, generator, variant, retain, evals, points, rows, data_dir, reference, trust_remote_code,
        judge_of(judge, judge_url, judge_repetitions),
    )  # fmt: skip
    names = _names(method)
    if len(names) > 1 and (save_model or save_update):
        raise UsageError("--save-model and --save-update keep one unlearned model; give one method.")
    plans = [
        plan(bench, model, name, settings, options, recorded=told.config if told else None, form=form.value) for name in names
    ]
    if told and not settings and (changed := changes(told, plans[0].spec)):
        logging.warning("this is not the recorded run: %s differ here", ", ".join(changed))
    store = Store(results_root(results))
    if len(plans) > 1:
        _compare(plans, store, force, quiet, as_json)
        return
    (todo,) = plans
    from harness.cache import Cache
    from harness.run import execute

    found = None if force or save_model or save_update else store.find(todo.spec)
    known = found is not None and found.status == "done"
    result = found if found and known else execute(todo, store, Cache(), Keep(save_model, save_update), force)
    if as_json:
        print(json.dumps(to_json(result), ensure_ascii=False))
    elif not quiet:
        from harness.report import run_report, stdout

        stdout().print(run_report(result))
        stdout().print(f"record: {store.path_of(result.spec.folder.as_posix())}", soft_wrap=True, highlight=False)
        if known:
            machine = f" on {result.provenance.processor}" if result.provenance else ""
            stdout().print(
                f"shown as recorded{machine}; nothing was run now. --force runs it anew, another --seed is a new run.",
                soft_wrap=True,
                highlight=False,
            )


_RECORDED = (
    *("method", "bench", "seed", "limit", "dtype", "generator", "variant", "retain", "evals", "points", "form"),
    "judge_repetitions",
)
"""Flags whose values a recorded run brings along."""


def _typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _names(told: str, flag: str = "--method", kind: str = "a method") -> list[str]:
    names = [name.strip() for name in told.split(",") if name.strip()]
    if not names:
        raise UsageError(f"{flag} {cut(told)} names no {kind.split()[1]}.")
    if len(set(names)) < len(names):
        raise UsageError(f"{flag} {cut(told)} names {kind} twice.")
    return names


def _options(
    seed: int,
    limit: int | None,
    device: str,
    dtype: str,
    generator: str,
    variant: VariantName,
    retain: RetainName,
    evals: str,
    points: PointsName,
    rows: PointsName,
    data_dir: Path | None,
    reference: Path | None,
    trust_remote_code: bool,
    judge: Judge | None,
) -> Options:
    from harness.generation import pick_generator
    from harness.interfaces import Options
    from harness.run import pick_device

    if dtype not in ("float32", "bfloat16"):
        raise UsageError(f"--dtype {cut(dtype)} is not known: float32 or bfloat16.")
    device = pick_device(device)
    return Options(
        seed=seed,
        limit=limit,
        device=device,
        dtype=dtype,
        variant=variant.value,
        retain=retain.value,
        evals=tuple(_names(evals, "--evals", "an evaluator")) if evals else (),
        points=points.value,
        rows=rows.value,
        data_dir=data_dir,
        reference=reference,
        trust_remote_code=trust_remote_code,
        judge=judge,
        generator=pick_generator(generator, device),
    )


def _compare(plans: Sequence[Plan], store: Store, force: bool, quiet: bool, as_json: bool) -> None:
    """Several methods in turn, and one table of them all at the end."""
    from harness.cache import Cache
    from harness.differences import differences
    from harness.records import to_json
    from harness.report import comparison, in_short, stdout
    from harness.sweep import run_all

    def told(result: RunResult) -> None:
        if not quiet and not as_json:
            stdout().print(f"{result.spec.method}: {result.status}, {in_short(result)}", highlight=False)

    results = run_all(plans, store, Cache(), force, told)
    if as_json:
        print(json.dumps([to_json(result) for result in results], ensure_ascii=False))
    elif not quiet:
        done = {r.spec.method: [(r.spec, r.points[-1].index)] for r in results if r.points}
        stdout().print(comparison(results, differences(done, store, against=next(iter(done), None))))
    _report_failures([todo.method.name for todo in plans], results)


@app.command()
def transfer(
    update: Annotated[Path | None, typer.Option("--update", help="What run --save-update wrote.")] = None,
    onto: Annotated[str, typer.Option("--onto", help="The checkpoint it is put onto: a folder or a hub id.")] = "",
    undo: Annotated[Path | None, typer.Option("--undo", help="A folder that this command wrote: take its update back.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="A new folder for the checkpoint.")] = None,
    data_dir: DataDir = None,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Put what unlearning changed onto another checkpoint (one fine-tuned from the same base), or take it back bit by bit."""
    from harness.cache import Cache
    from harness.models import CheckpointSource
    from harness.updates import put_onto, take_back

    if out is None or bool(undo) == bool(update) or bool(update) != bool(onto):
        raise UsageError("give --update FILE --onto CHECKPOINT --out DIR, or --undo DIR --out DIR.")
    if undo:
        print(f"{take_back(undo, out, Cache())} tensors put back as they were: {out}")
        return
    assert update is not None  # one of the two is given
    source = CheckpointSource(onto, data_dir=data_dir, trust_remote_code=trust_remote_code)
    moved = put_onto(update, source, out, Cache())
    print(f"{moved} tensors moved: {out}\nto take it back: harness transfer --undo {out} --out DIR")


@app.command()
def sweep(
    context: typer.Context,
    file: Annotated[Path | None, typer.Argument(help="Flags in a YAML file; those given here win.")] = None,
    method: Annotated[str, typer.Option("--method", "-m", help="One method, or several parted by commas.")] = "",
    bench: Annotated[str, typer.Option("--bench", "-b", help="One benchmark, or several parted by commas.")] = "",
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            "-g",
            help="An axis: key=value,value (lists: [3];[3,4]); method.key=… for one of several methods; key=low..high with "
            "--search random.",
        ),
    ] = None,
    model: Model = "mini",
    set_: Annotated[list[str] | None, typer.Option("--set", "-s", help="A setting of every try, key=value.")] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="Unlearning seeds, parted by commas.")] = "0",
    budget: Annotated[
        int | None,
        _number("--budget", help="The same number of settings for every method."),
    ] = None,
    search: Annotated[SearchName, typer.Option("--search", help="How the budget's settings are drawn.")] = SearchName.grid,
    by: Annotated[
        str, typer.Option("--by", help="The metric that settings are chosen by, recorded with every try; orders the table.")
    ] = "",
    form: FormOption = FormName.published,
    limit: Limit = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    generator: GeneratorOption = "auto",
    evals: Evals = "",
    points: PointsOption = PointsName.last,
    rows: RowsOption = PointsName.all,
    data_dir: DataDir = None,
    results: Results = None,
    reference: Reference = None,
    variant: Variant = VariantName.original,
    retain: RetainOption = RetainName.all,
    judge: JudgeOption = "",
    judge_url: JudgeUrl = "",
    judge_repetitions: JudgeRepetitions = "1",
    trust_remote_code: RemoteCode = False,
    executor: ExecutorOption = ExecutorName.local,
    jobs: Jobs = None,
    yes: Yes = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a grid of settings; every try is a record, finished ones are skipped, failed ones kept."""
    os.environ["TQDM_DISABLE"] = "1"  # the bars of single runs; tqdm asks when it is imported
    from harness.config import parse
    from harness.judging import judge_of
    from harness.report import sweep_table
    from harness.sweep import Sweep, axes, check_count, read_file

    told: dict[str, Any] = {
        "method": method, "bench": bench, "model": model, "seeds": seeds, "form": form, "budget": budget, "search": search,
        "by": by, "limit": limit, "device": device, "dtype": dtype, "generator": generator, "evals": evals, "points": points,
        "variant": variant, "retain": retain, "data_dir": data_dir, "reference": reference,
        "judge": judge, "judge_repetitions": judge_repetitions,
    }  # fmt: skip
    of_file = read_file(file) if file else {}
    for key, value in of_file.items():
        if key in told and not _typed(context, key):
            told[key] = value
    if not told["method"] or not told["bench"]:
        raise UsageError("give --method and --bench (see harness list methods, harness list benches), or a YAML file.")
    asked = Sweep(
        methods=_names(told["method"]),
        benches=_names(told["bench"], "--bench", "a benchmark"),
        model=told["model"],
        seeds=_seeds(told["seeds"]),
        options=_options(
            0,
            told["limit"],
            told["device"],
            told["dtype"],
            told["generator"],
            _choice(VariantName, told["variant"], "variant"),
            _choice(RetainName, told["retain"], "retain"),
            told["evals"],
            _choice(PointsName, told["points"], "points"),
            rows,
            Path(told["data_dir"]) if told["data_dir"] else None,
            Path(told["reference"]) if told["reference"] else None,
            trust_remote_code,
            judge_of(told["judge"], judge_url, told["judge_repetitions"]),
        ),
        axes={**of_file.get("grid", {}), **axes(grid or [])},
        fixed={**of_file.get("set", {}), **parse(set_ or [])},
        form=_choice(FormName, told["form"], "form").value,
        budget=told["budget"],
        search=_choice(SearchName, told["search"], "search").value,
        by=told["by"],
    )
    if both := asked.contradictions():
        raise UsageError(f"'{both[0]}' is both set and an axis of the grid; give one of --set and --grid.")
    check_count(asked.count(), yes)
    tries = asked.tries()
    found = _run_tries(tries, results, executor, jobs, quiet or as_json)
    if as_json:
        from harness.records import to_json

        print(json.dumps([to_json(result) for result in found], ensure_ascii=False))
    elif not quiet:
        from harness.report import stdout

        stdout().print(sweep_table([todo.chosen for todo in tries], found, asked.by))
    _report_failures(tries, found)


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="Which one; see harness list studies.")],
    bench: Annotated[str, typer.Option("--bench", "-b", help="Other benchmarks than the study's, parted by commas.")] = "",
    model: Model = "mini",
    seeds: Annotated[str, typer.Option("--seeds", help="Other unlearning seeds than the study's, parted by commas.")] = "",
    limit: Limit = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    generator: GeneratorOption = "auto",
    evals: Evals = "",
    rows: RowsOption = PointsName.all,
    data_dir: DataDir = None,
    results: Results = None,
    reference: Reference = None,
    variant: Variant = VariantName.original,
    retain: RetainOption = RetainName.all,
    judge: JudgeOption = "",
    judge_url: JudgeUrl = "",
    judge_repetitions: JudgeRepetitions = "1",
    executor: ExecutorOption = ExecutorName.local,
    jobs: Jobs = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which runs it is and how long they will take.")] = False,
    yes: Yes = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run one of the paper's ablations or tables; finished runs are skipped."""
    os.environ["TQDM_DISABLE"] = "1"  # the bars of single runs; tqdm asks when it is imported
    from harness.judging import judge_of
    from harness.records import to_json
    from harness.report import stdout, sweep_table
    from harness.store import Store
    from harness.studies import forecast, possible, study_of, tries_of
    from harness.sweep import Tasks, check_count

    options = _options(
        0, limit, device, dtype, generator, variant, retain, evals, PointsName.all, rows, data_dir, reference, False,
        judge_of(judge, judge_url, judge_repetitions),
    )  # fmt: skip
    chosen, tasks = study_of(name), Tasks()
    benches = _names(bench, "--bench", "a benchmark") if bench else []
    asked = tries_of(chosen, benches, model, _seeds(seeds) if seeds else [], options)
    check_count(len(asked), yes)
    tries, left_out = possible(asked, tasks)
    expected = forecast([todo.plan(tasks) for todo in tries], Store(results_root(results)), jobs or 1)
    if dry_run and as_json:
        print(json.dumps({"study": name, **vars(expected), "tries": [str(todo) for todo in tries], "left_out": left_out}))
        return
    if not quiet and not as_json:
        for line in (f"{name}: {chosen.about}", f"{expected}.", *left_out, *(map(str, tries) if dry_run else ())):
            print(line, flush=True)
    if dry_run:
        return
    found = _run_tries(tries, results, executor, jobs, quiet or as_json)
    if as_json:
        print(json.dumps([to_json(result) for result in found], ensure_ascii=False))
    elif not quiet:
        stdout().print(sweep_table([todo.chosen for todo in tries], found))
    _report_failures(tries, found)


def _seeds(words: str) -> list[int]:
    from harness.interfaces import MOST_SEED

    seeds = [seed for part in words.split(",") if (seed := whole_number(part.strip())) is not None and seed <= MOST_SEED]
    if len(seeds) < words.count(",") + 1:
        raise UsageError(f"--seeds {cut(words)} is no list of seeds from 0 to {MOST_SEED:,}. Write 0,1,2.")
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds {cut(words)} names a seed twice.")
    return seeds


N = TypeVar("N", bound=StrEnum)


def _choice(kind: type[N], value: str, flag: str) -> N:
    """A word out of a file as one of a flag's."""
    try:
        return kind(value)
    except ValueError:
        raise unknown(f"{flag}", str(value), [str(one) for one in kind]) from None


def _executor(name: ExecutorName, jobs: int | None) -> Executor:
    from harness.executors import in_turn, on_ray, on_workers

    if name is ExecutorName.ray:
        return on_ray(jobs)
    return on_workers(jobs) if jobs and jobs > 1 else in_turn


def _run_tries(
    tries: Sequence[Try], results: Path | None, executor: ExecutorName, jobs: int | None, quiet: bool
) -> list[RunResult]:
    """Do them, and say how far it is: a live table on a terminal, a line for each run elsewhere."""
    if not quiet:
        logging.getLogger("harness.judging").setLevel(logging.INFO)
    from rich.live import Live

    from harness.cache import Cache
    from harness.report import Watch, stderr
    from harness.store import Store
    from harness.sweep import run_tries

    several = len({todo.bench for todo in tries}) > 1
    watch = Watch([f"{todo.method} on {todo.bench}" if several else todo.method for todo in tries])
    console = stderr()
    shown = console.is_terminal and not quiet

    def told(index: int, result: RunResult) -> None:
        watch.add(index, result.status)
        if not quiet:
            line = f"{watch.finished}/{len(tries)} {tries[index].label(several)}: {result.status}"
            live.console.print(line, soft_wrap=True, highlight=False) if shown else print(line, flush=True)

    def watched(left: Sequence[Try], *others: Any) -> Iterator[tuple[int, str]]:
        watch.begin()
        return _executor(executor, jobs)(left, *others)

    with Live(watch, console=console, auto_refresh=shown, transient=True, redirect_stdout=False) as live:
        return run_tries(tries, Store(results_root(results)), Cache(), watched, told)


def _report_failures(runs: Sequence[Try | str], found: Sequence[RunResult]) -> None:
    """Name what is not done, at the end, and leave with exit code 2."""
    failed = [(run, result) for run, result in zip(runs, found, strict=True) if result.status != "done"]
    for run, result in failed:
        reason = result.error.partition("\n")[0] or "no reason is recorded"
        print(f"not done: {run} ({result.status}, run {result.spec.run_id}): {reason}", file=sys.stderr)
    if failed:
        raise typer.Exit(2)


def _read_spec(path: Path) -> RunSpec:
    from pydantic import ValidationError

    from harness.record_files import fault, lacks
    from harness.records import read_spec

    try:
        told = read_json(path, path.name)
        if isinstance(told, dict) and "spec" in told:
            return read_spec(told["spec"])
        why = lacks(["spec"])
    except ValidationError as error:
        why = fault(error)
    except UsageError as error:
        why = str(error).rstrip(".")
    raise UsageError(f"{cut(str(path))} is no run.json of this harness ({why}).")


@app.command("list")
def list_(kind: Annotated[Kind, typer.Argument(help="What to list.")], results: Results = None, as_json: Json = False) -> None:
    """List what there is."""
    rows: list[dict[str, Any]]
    if kind is Kind.runs:
        rows = _run_rows(results_root(results))
    elif kind is Kind.studies:
        from harness.studies import STUDIES

        rows = [{"name": name, "about": study.about} for name, study in STUDIES.items()]
    elif kind is Kind.models:
        from harness.interfaces import BENCHMARKS

        known: dict[str, tuple[str, list[str]]] = {}
        for bench in BENCHMARKS.names():
            for name, about in BENCHMARKS.get(bench).models.items():
                known.setdefault(name, (about, []))[1].append(bench)
        rows = [{"model": name, "benches": ", ".join(benches), "about": about} for name, (about, benches) in known.items()]
    else:
        from harness.interfaces import BENCHMARKS, EVALUATORS, FIGURES, METHODS

        registries = {Kind.methods: METHODS, Kind.benches: BENCHMARKS, Kind.evals: EVALUATORS, Kind.figures: FIGURES}
        registry: Any = registries[kind]
        rows = [{"name": entry.name, "about": entry.summary} for entry in registry.entries.values()]
    _print_rows(rows, as_json)


_LISTED = ("forget_quality", "model_utility", "bio_accuracy", "cyber_accuracy", "general_accuracy", "mmlu_accuracy")
"""What a list of runs says of their last points; a column that would be empty is left out of the table."""
_USUAL = {"retain": "all", "status": "done"}
"""What goes without saying: a column that holds nothing else is left out as well."""


def _run_rows(root: Path) -> list[dict[str, Any]]:
    from harness.comparing import protocol
    from harness.interfaces import Measurement
    from harness.store import Store

    rows = []
    store = Store(root)
    store.check()
    for place in store.places():
        try:
            result = store.read(place)
        except UsageError as error:
            print(f"skipped: {error}", file=sys.stderr)
            continue
        last = result.points[-1].measurements if result.points else ()
        values = {m.metric: m.value for m in last if isinstance(m, Measurement)}
        spec = result.spec
        rows.append(
            {
                "run": spec.run_id,
                "bench": spec.bench,
                "model": spec.model,
                "retain": spec.retain,
                "method": spec.method,
                "form": protocol(result.selection),
                "seed": spec.seed,
                "status": result.status,
                "points": len(result.points),
                **{metric: values.get(metric) for metric in _LISTED},
            }
        )
    return sorted(rows, key=lambda row: [row[name] for name in ("bench", "model", "method", "form", "seed")])


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    from rich.table import Table

    from harness.report import Columns, number, stdout

    if not rows:
        print("none")
        return
    names = [name for name in rows[0] if any(row[name] not in (None, _USUAL.get(name)) for row in rows)]
    headings = [name.removesuffix("_accuracy").replace("_", " ") for name in names]
    table: Columns | Table
    if any(isinstance(value, int | float) for value in rows[0].values()):
        table = Columns(headings, left=range(len(names)))
    else:
        table = Table(*headings, header_style="bold")  # of words, which may be wrapped
    for row in rows:
        told = [row[name] for name in names]
        table.add_row(*[number(v, 3) if isinstance(v, float) else "–" if v is None else str(v) for v in told])
    stdout().print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A run's id (its beginning is enough), or a method's name.")],
    results: Results = None,
    as_json: Json = False,
) -> None:
    """Show a run as it is recorded, or a method's settings."""
    from harness.config import describe
    from harness.interfaces import METHODS
    from harness.records import to_json
    from harness.report import run_report, settings_table, stdout
    from harness.store import Store

    if name in METHODS.names():
        method = METHODS.get(name)
        rows = describe(method.config)
        if as_json:
            print(json.dumps([{"setting": n, "default": d, "about": a} for n, d, a in rows]))
            return
        stdout().print(settings_table(rows, f"{name} ({method.source}), version {method.version}"))
        for form, presets in (("published", method.presets), ("tuned", method.tuned)):
            for (bench, family), preset in presets.items():
                where = f"{'any benchmark' if bench == '*' else bench} on {family}"
                told = ", ".join(f"{k}={v}" for k, v in preset.items())
                stdout().print(f"{form} form for {where}: {told}", highlight=False)
        return
    folder, result = Store(results_root(results)).by_id(name)
    if as_json:
        print(json.dumps(to_json(result), ensure_ascii=False))
        return
    console = stdout()
    console.print(run_report(result))
    about = {}
    if result.spec.method in METHODS.names():  # else it is another installation's, or no longer there
        about = {name: meaning for name, _, meaning in describe(METHODS.get(result.spec.method).config)}
    if result.spec.config:
        rows = [(key, value, about.get(key, "")) for key, value in result.spec.config.items()]
        console.print(settings_table(rows, "settings"))
    if result.provenance:
        from harness.arithmetic import in_words

        console.print(f"again: {result.provenance.command}", soft_wrap=True, highlight=False)
        packages = ", ".join(f"{package} {version}" for package, version in result.provenance.packages.items())
        console.print(f"made with {packages}, on {result.provenance.processor}", soft_wrap=True, highlight=False)
        if kind := in_words(result.provenance.arithmetic):
            console.print(f"rounding of {kind}", soft_wrap=True, highlight=False)
    console.print(f"record: {folder}", soft_wrap=True, highlight=False)


@app.command()
def score(
    log: Annotated[Path, typer.Argument(help="An evaluation log: ToFU's, SimNPO's, NPO's or open-unlearning's.")],
    reference: Reference = None,
    bench: Annotated[str, typer.Option("--bench", "-b", help="The benchmark whose log it is.")] = "tofu10",
    variant: Variant = VariantName.original,
    as_json: Json = False,
) -> None:
    """Compute the metrics of an evaluation log that another program wrote."""
    from dataclasses import asdict

    from harness.interfaces import BENCHMARKS
    from harness.measuring import score_log
    from harness.report import measurement_table, measurements, stdout

    scored = score_log(BENCHMARKS.get(bench), log, reference, variant.value)
    found = next(iter(scored.values()))
    if as_json:
        print(json.dumps({m.metric: asdict(m) for m in found}))
        return
    stdout().print(measurement_table({name: measurements(values) for name, values in scored.items()}, digits=6))
    for item in found:
        if reason := getattr(item, "reason", None) or getattr(item, "note", None):
            stdout().print(f"{item.metric}: {reason}", style="dim", soft_wrap=True)


@app.command()
def leaderboard(
    results: Results = None,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail where the stored leaderboard differs.")] = False,
) -> None:
    """Make the leaderboard's page and tables from the records of runs."""
    from harness.leaderboard import build, difference, write

    root = results_root(results)
    files = build(root, lambda text: print(f"skipped: {text}", file=sys.stderr))
    if not check:
        print(write(root, files))
    elif found := difference(root, files):
        print(f"{found}\nharness leaderboard makes it anew.", file=sys.stderr)
        raise typer.Exit(1)
    else:
        print("the leaderboard is what the records make of it.")


@app.command()
def plot(
    name: Annotated[str, typer.Argument(help="A figure or table; see harness list figures.")],
    results: Results = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where the files go; figures/ of the results by default.")] = None,
    bench: Annotated[str, typer.Option("--bench", "-b", help="Only runs on this benchmark.")] = "",
    model: Annotated[str, typer.Option("--model", help="Only runs with this model.")] = "",
    method: Annotated[str, typer.Option("--method", "-m", help="Only these methods, parted by commas.")] = "",
    by: Annotated[str, typer.Option("--by", help="The setting whose values are compared, for ablation.")] = "",
    study: Annotated[str, typer.Option("--study", help="Only the runs of this study; compares by its setting.")] = "",
    format_: Annotated[str, typer.Option("--format", help="svg, png, csv, md, tex, parted by commas; all by default.")] = "",
    as_json: Json = False,
) -> None:
    """Draw a figure or write a table from what is recorded; an unchanged store gives the same files."""
    from harness.figures import draw, formats, of_study, select
    from harness.interfaces import FIGURES, FigureOptions
    from harness.store import Store

    chosen, root = formats(format_), results_root(results)
    if name not in FIGURES.entries:
        FIGURES.get(name)  # says which there are, before anything is read
    runs = select(Store(root), bench, model, _names(method) if method else [])
    if study:
        from harness.studies import study_of

        runs, by = of_study(runs, study), by or study_of(study).by
    try:
        files = draw(name, runs, FigureOptions(root, by), out or root / "figures", chosen)
    except UsageError as error:
        what, advice, _ = str(error).partition(" Make ")
        if not (study and advice):
            raise
        raise UsageError(
            f"{what} Make the study's runs: harness study {study}{f' --bench {bench}' if bench else ''}"
        ) from error
    print(json.dumps([str(file) for file in files]) if as_json else "\n".join(map(str, files)))


@app.command()
def doctor(
    bench: Annotated[str, typer.Option("--bench", "-b", help="Also look at what this benchmark needs.")] = "",
    model: Annotated[str, typer.Option("--model", help="Also look at what this model needs.")] = "mini",
    data_dir: DataDir = None,
    results: Results = None,
    as_json: Json = False,
) -> None:
    """Say what is here, what is missing, and where to get it."""
    from harness.doctor import examine

    findings = examine(bench, model, data_dir, results_root(results))
    if as_json:
        print(json.dumps([vars(f) for f in findings]))
    else:
        from rich.table import Table
        from rich.text import Text

        from harness.report import stdout

        table = Table(header_style="bold")
        for heading in ("", "what", "found"):
            table.add_column(heading)
        for finding in findings:
            mark = Text("ok", style="green") if finding.fine else Text("!", style="red")
            table.add_row(mark, finding.what, finding.found)
        stdout().print(table)
    if any(not f.fine for f in findings):
        raise typer.Exit(1)


@app.command()
def power(
    bench: Annotated[str, typer.Option("--bench", "-b", help="The benchmark.")],
    model: Model = "mini",
    limit: Limit = None,
    data_dir: DataDir = None,
    results: Results = None,
    variant: Variant = VariantName.original,
    as_json: Json = False,
) -> None:
    """Say the smallest difference that a benchmark can show."""
    from dataclasses import asdict

    from rich.table import Table

    from harness.interfaces import Absent, Options
    from harness.power import smallest_differences
    from harness.report import number, stdout
    from harness.store import Store

    options = Options(limit=limit, data_dir=data_dir, variant=variant.value)
    found = smallest_differences(bench, model, Store(results_root(results)), options)
    if as_json:
        print(json.dumps([asdict(item) for item in found]))
        return
    table = Table(
        title=f"differences under these are mostly not shown by one seed on {bench} with {model}",
        title_justify="left",
        header_style="bold",
    )
    for heading in ("metric", "smallest difference", "rows", "how", "note"):
        table.add_column(heading)
    for item in found:
        if isinstance(item, Absent):
            table.add_row(item.metric, "absent", "", "", f"{item.reason}; run several methods: harness run --method a,b")
        else:
            table.add_row(item.metric, number(item.value), str(item.n), item.interval_method or "", item.note or "")
    stdout().print(table)


@app.command()
def validate(
    results: Results = None,
    aside: Annotated[bool, typer.Option("--set-aside", help="Move records that cannot be read out of the way.")] = False,
    as_json: Json = False,
) -> None:
    """Check every record of a store; exit code 1 and one line for each problem."""
    from harness.store import Store
    from harness.validate import problems, set_aside

    store = Store(results_root(results))
    found = list(problems(store))
    if as_json:
        print(json.dumps([vars(problem) for problem in found], ensure_ascii=False))
    else:
        for problem in found:
            print(problem)
        if not found:
            count = len(store.places())
            print(f"{count} record{'s' * (count != 1)}, no problem")
    for problem in found if aside else ():
        if problem.unreadable:
            target = set_aside(store, problem)
            print(f"set aside: {target}" if target else f"left alone, it is being written: {problem.where}", file=sys.stderr)
    if found:
        raise typer.Exit(1)


@results_app.command("pack")
def results_pack(results: Results = None) -> None:
    """Put the finished runs of each benchmark into one file, a fifth of the size; every command reads them there."""
    from harness.packing import pack
    from harness.store import Store

    for packing in pack(Store(results_root(results))):
        if packing.runs:
            print(f"{packing.path}: {packing.runs} runs, {packing.bytes / 2**20:.2f} MiB", flush=True)
        for sentence in packing.left:
            print(f"left in its folder: {sentence}", file=sys.stderr)


@results_app.command("unpack")
def results_unpack(
    name: Annotated[str, typer.Argument(metavar="[RUN]", help="Only the run whose id begins so, to copy it elsewhere.")] = "",
    results: Results = None,
) -> None:
    """Give packed runs folders of their own again; prints them."""
    from harness.packing import unpack
    from harness.store import Store

    for folder in unpack(Store(results_root(results)), name):
        print(folder)


@cache_app.command("list")
def cache_list(as_json: Json = False) -> None:
    """What is kept, how large it is, and what it cost to make."""
    from harness.cache import Cache

    cache = Cache()
    rows: list[dict[str, Any]] = [
        {
            "kind": entry.kind,
            "entry": entry.path.name[:12],
            "about": str(entry.facts.get("name", "")),
            "MiB": round(entry.bytes / 2**20, 2),
            "seconds": round(entry.seconds, 1),
        }
        for entry in cache.entries()
    ]
    _print_rows(rows, as_json)
    if not as_json:
        print(f"{sum(row['MiB'] for row in rows):.1f} MiB in {cache.root}")


@cache_app.command("clear")
def cache_clear(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="Only this kind: model, curvature, gradient, continuations, generations, evaluations, verdicts, attack."
        ),
    ] = None,
) -> None:
    """Remove what is kept; what another process is making is left alone."""
    from harness.cache import Cache

    print(f"freed {Cache().clear(kind) / 2**20:.1f} MiB")


def _flush() -> None:
    """Write out what was printed, as long as it can be told that this failed.

    Raises:
        UsageError: where stdout cannot be written, such as a file on a full disk.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python tries once more at its end
        raise UsageError(f"the output cannot be written: {error.strerror}. Write it elsewhere.") from error


def main() -> None:
    """The entry point: one clear sentence and exit code 2 for what the user can put right."""
    from harness.signals import exit_status, stop_on_signals

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    stop_on_signals()
    if not sys.stderr.isatty():  # in a log file libraries draw no bars; transformers asks the hub's library
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        code = app(standalone_mode=False) or 0
        _flush()
    except (typer.Abort, KeyboardInterrupt) as error:
        if isinstance(error.__cause__, EOFError):  # typer takes any file that ends early for the end of the terminal's input
            raise error.__cause__ from None
        code = INTERRUPTED
    except (UsageError, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        # Options that typer itself refuses: unknown flags, wrong choices.
        if hasattr(error, "format_message"):
            if message := error.format_message():  # empty where the help was shown for want of a command
                print(f"error: {cut(message, LONGEST_MESSAGE)}", file=sys.stderr)
            sys.exit(2)
        if isinstance(error, OSError) and error.filename and (why := _NO_PLACE.get(error.errno or 0)):
            print(f"error: '{cut(str(error.filename))}' {why}.", file=sys.stderr)
            sys.exit(2)
        from harness.cache import disk_trouble

        if told := disk_trouble(error):
            print(f"error: {told}", file=sys.stderr)
            sys.exit(2)
        raise
    if code == INTERRUPTED:
        code = exit_status()
        print("interrupted; the same command goes on from here.", file=sys.stderr)
    sys.exit(code)
