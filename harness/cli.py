"""The commands: parse, resolve, hand over. Nothing is computed here.

Torch is imported only by the commands that need it: listing, showing and finding a run that is done do without.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.errors import RunFailed, UsageError
from harness.registry import ROOT

if TYPE_CHECKING:
    from harness.store import RunSpec

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


INTERRUPTED = 130
"""The exit code of a command that was ended from the keyboard."""


class Kind(StrEnum):
    """What `harness list` can list."""

    methods = "methods"
    benches = "benches"
    models = "models"
    evals = "evals"
    runs = "runs"


class VariantName(StrEnum):
    """Whose metric definitions."""

    original = "original"
    open_unlearning = "open-unlearning"


Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars, no table.")]
Results = Annotated[Path | None, typer.Option("--results", help="Where records go; the checkout's results/ by default.")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", envvar="HARNESS_DATA", help="A folder laid out by hub id, used before the hub.")
]
Variant = Annotated[VariantName, typer.Option("--variant", help="Whose metric definitions.")]
Reference = Annotated[Path | None, typer.Option("--reference", help="A retrained model's evaluation log to compare with.")]


def results_root(given: Path | None) -> Path:
    """The results folder: as given, else the checkout's, else ./results."""
    return given or (ROOT / "results" if (ROOT / "pyproject.toml").is_file() else Path("results"))


@app.command()
def run(
    method: Annotated[str, typer.Option("--method", "-m", help="What to unlearn with; see harness list methods.")] = "",
    bench: Annotated[str, typer.Option("--bench", "-b", help="The benchmark; see harness list benches.")] = "",
    model: Annotated[str, typer.Option("--model", help="mini, mini@SEED, scratch, a card, a hub id or a folder.")] = "mini",
    set_: Annotated[list[str] | None, typer.Option("--set", "-s", help="A setting, key=value; lists as [3,4].")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Unlearning seed.")] = 0,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most this many rows per split.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N, cuda:all, mps.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or bfloat16.")] = "float32",
    generator: Annotated[str, typer.Option("--generator", help="Who writes answers: auto or hf.")] = "auto",
    data_dir: DataDir = None,
    results: Results = None,
    reference: Reference = None,
    variant: Variant = VariantName.original,
    spec: Annotated[Path | None, typer.Option("--spec", help="Repeat a recorded run: its run.json.")] = None,
    save_model: Annotated[Path | None, typer.Option("--save-model", help="Folder for the unlearned checkpoint.")] = None,
    save_update: Annotated[Path | None, typer.Option("--save-update", help="File for the weight difference.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a checkpoint.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Run anew even if it is done.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Unlearn, measure, record. A run that is done is shown; one that was interrupted goes on."""
    if quiet or as_json:
        os.environ["TQDM_DISABLE"] = "1"
    else:
        logging.getLogger("harness.memory").setLevel(logging.INFO)
    from harness.config import parse
    from harness.interfaces import Options
    from harness.run import Keep, execute, pick_device, plan
    from harness.store import Store, changes, to_json

    settings = parse(set_ or [])
    told = _read_spec(spec) if spec else None
    if told:
        bench, method, seed, limit = told.bench, told.method, told.seed, told.limit
        dtype, generator, variant = told.dtype, told.generator, VariantName(told.variant)
        model = told.model if model == "mini" else model
    if not method or not bench:
        raise UsageError("give --method and --bench (see harness list methods, harness list benches), or --spec.")
    if dtype not in ("float32", "bfloat16"):
        raise UsageError(f"--dtype {dtype} is not known: float32 or bfloat16.")
    if generator not in ("auto", "hf"):
        raise UsageError(f"no generator called '{generator}'. There are: auto, hf.")
    options = Options(
        seed=seed,
        limit=limit,
        device=pick_device(device),
        dtype=dtype,
        variant=variant.value,
        data_dir=data_dir,
        reference=reference,
        trust_remote_code=trust_remote_code,
    )
    todo = plan(bench, model, method, settings, options, recorded=told.config if told else None)
    if told and not settings and (changed := changes(told, todo.spec)):
        logging.warning("this is not the recorded run: %s differ here", ", ".join(changed))
    store = Store(results_root(results))
    from harness.cache import Cache

    found = None if force or save_model or save_update else store.find(todo.spec)
    result = found if found and found.status == "done" else execute(todo, store, Cache(), Keep(save_model, save_update), force)
    if as_json:
        print(json.dumps(to_json(result), ensure_ascii=False))
    elif not quiet:
        from harness.report import run_report, stdout

        stdout().print(run_report(result))
        stdout().print(f"record: {store.runs_folder / result.spec.folder}", soft_wrap=True, highlight=False)


def _read_spec(path: Path) -> RunSpec:
    from harness.store import read_spec

    try:
        return read_spec(json.loads(path.read_text(encoding="utf-8"))["spec"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no run.json of this harness ({type(error).__name__}).") from error


@app.command("list")
def list_(kind: Annotated[Kind, typer.Argument(help="What to list.")], results: Results = None, as_json: Json = False) -> None:
    """List what there is."""
    rows: list[dict[str, Any]]
    if kind is Kind.runs:
        rows = _run_rows(results_root(results))
    elif kind is Kind.models:
        from harness.interfaces import BENCHMARKS

        known: dict[str, tuple[str, list[str]]] = {}
        for bench in BENCHMARKS.names():
            for name, about in BENCHMARKS.get(bench).models.items():
                known.setdefault(name, (about, []))[1].append(bench)
        rows = [{"model": name, "benches": ", ".join(benches), "about": about} for name, (about, benches) in known.items()]
    else:
        from harness.interfaces import BENCHMARKS, EVALUATORS, METHODS

        registry: Any = {Kind.methods: METHODS, Kind.benches: BENCHMARKS, Kind.evals: EVALUATORS}[kind]
        rows = [{"name": entry.name, "about": entry.summary} for entry in registry.entries.values()]
    _print_rows(rows, as_json)


def _run_rows(root: Path) -> list[dict[str, Any]]:
    from harness.interfaces import Measurement
    from harness.store import Store, read_run

    rows = []
    for file in sorted(Store(root).runs_folder.glob("*/*/*/*/run.json")):
        try:
            result = read_run(file.parent)
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
                "method": spec.method,
                "seed": spec.seed,
                "status": result.status,
                "points": len(result.points),
                "forget_quality": values.get("forget_quality"),
                "model_utility": values.get("model_utility"),
            }
        )
    return rows


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    from rich.table import Table

    from harness.report import number, stdout

    if not rows:
        print("none")
        return
    table = Table(header_style="bold")
    for heading in rows[0]:
        table.add_column(heading)
    for row in rows:
        table.add_row(*[number(v) if isinstance(v, float) else "–" if v is None else str(v) for v in row.values()])
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
    from harness.report import run_report, settings_table, stdout
    from harness.store import Store, to_json

    if name in METHODS.names():
        method = METHODS.get(name)
        rows = describe(method.config)
        if as_json:
            print(json.dumps([{"setting": n, "default": d, "about": a} for n, d, a in rows]))
            return
        stdout().print(settings_table(rows, f"{name} ({method.source}), version {method.version}"))
        for (bench, family), preset in method.presets.items():
            where = f"{'any benchmark' if bench == '*' else bench} on {family}"
            stdout().print(f"preset for {where}: " + ", ".join(f"{k}={v}" for k, v in preset.items()), highlight=False)
        return
    folder, result = Store(results_root(results)).by_id(name)
    if as_json:
        print(json.dumps(to_json(result), ensure_ascii=False))
        return
    console = stdout()
    console.print(run_report(result))
    rows = [(key, value, "") for key, value in result.spec.config.items()]
    if rows:
        console.print(settings_table(rows, "settings"))
    if result.provenance:
        console.print(f"again: {result.provenance.command}", soft_wrap=True, highlight=False)
        console.print(
            f"made with {result.provenance.packages}, on {result.provenance.processor}", soft_wrap=True, highlight=False
        )
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
    from harness.report import measurement_table, measurements, stdout
    from harness.run import score_log

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

        from harness.report import stdout

        table = Table(header_style="bold")
        for heading in ("", "what", "found"):
            table.add_column(heading)
        for finding in findings:
            table.add_row("[green]ok[/]" if finding.fine else "[red]![/]", finding.what, finding.found)
        stdout().print(table)
    if any(not f.fine for f in findings):
        raise typer.Exit(1)


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
        str | None, typer.Argument(help="Only this kind: model, curvature, gradient, generations, evaluations.")
    ] = None,
) -> None:
    """Remove what is kept; what another process is making is left alone."""
    from harness.cache import Cache

    print(f"freed {Cache().clear(kind) / 2**20:.1f} MiB")


def main() -> None:
    """The entry point: one clear sentence and exit code 2 for what the user can put right."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        code = app(standalone_mode=False) or 0
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except (UsageError, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        # Options that typer itself refuses: unknown flags, wrong choices.
        if hasattr(error, "format_message"):
            if message := error.format_message():  # empty where the help was shown for want of a command
                print(f"error: {message}", file=sys.stderr)
            sys.exit(2)
        raise
    if code == INTERRUPTED:
        print("interrupted; the same command goes on from here.", file=sys.stderr)
    sys.exit(code)
