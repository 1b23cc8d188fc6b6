"""`harness run` and `harness transfer`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.app import RUN, app
from harness.cli.control import RunControl, choose_progress, print_json, report_failures, tell_costs
from harness.cli.flags import Words, command
from harness.core.documents import read_json
from harness.core.errors import UsageError, cut
from harness.core.fields import declared, flag_of, read
from harness.numerics import group
from harness.running.recorded import RECORDED, differs, recorded_request
from harness.running.request import RunRequest, request_file

if TYPE_CHECKING:
    from harness.running.plan import Plan
    from harness.storage.records import RunResult, RunSpec


@command(app, RunRequest, RunControl, panel=RUN)
def run(
    words: Words,
    control: RunControl,
    file: Annotated[Path | None, typer.Argument(help="Flags in a YAML file; those given here win.")] = None,
) -> None:
    """Unlearn, measure, record. A run that is done is shown; one that was interrupted goes on.

    harness run --method kfade --bench tofu10

    harness run --method kfade,npo --bench tofu10 --seed 1

    harness run --method ga --bench tofu05 --set lr=1e-4 --set epochs=2
    """
    choose_progress(control)
    if not (control.quiet or control.json):
        tell_costs()
    recorded = _read_spec(control.spec) if control.spec else None
    if recorded and (clash := [name for name in declared(RunRequest) if name in RECORDED and name in words.typed]):
        flag = flag_of(clash[0], declared(RunRequest)[clash[0]])
        raise UsageError(f"--spec and {flag} contradict each other: a record says all but settings (change them by --set).")
    layers = [words.environment]
    layers += [recorded_request(recorded, str(control.spec))] if recorded else []
    layers += [request_file(RunRequest, file)] if file else []
    request = read(RunRequest, *layers, words.typed)
    if len(request.method) > 1 and (control.save_model or control.save_update):
        raise UsageError("--save-model and --save-update keep one unlearned model; give one method.")
    plans = request.plans(recorded.config if recorded else None)
    if recorded and (changed := differs(recorded, request, plans[0].spec)):
        logging.warning("this is not the recorded run: %s differ here", ", ".join(changed))
    if not group.is_first():
        _follow(plans)
        return
    with group.letting_go():
        if len(plans) > 1:
            _several(plans, control)
        else:
            _one(plans[0], control)


def _follow(plans: Sequence[Plan]) -> None:
    """Share the work of the runs that another process does, shows and records."""
    from harness.running.run import follow
    from harness.storage.cache import Cache

    follow(plans, Cache())


def _one(todo: Plan, control: RunControl) -> None:
    """Do a run, or show it as it is recorded."""
    from harness.core.config import to_json
    from harness.models.export import ExportOptions
    from harness.running.provenance import made_by_other_code
    from harness.running.run import execute
    from harness.storage.cache import Cache
    from harness.storage.store import Store

    store, exports = Store(control.root), ExportOptions(control.save_model, control.save_update)
    match = None if control.force or exports else store.find(todo.spec)
    known = match is not None and match.status == "done"
    result = match if match and known else execute(todo, store, Cache(), exports, control.force)
    if control.json:
        print_json(to_json(result))
        return
    from harness.reading.console import stdout
    from harness.reading.run_report import first_screen

    console = stdout()
    console.print(first_screen(result))
    console.print(f"record: {store.path_of(result.spec.folder.as_posix())}", soft_wrap=True, highlight=False)
    if known:
        machine = f" on {result.provenance.processor}" if result.provenance else ""
        console.print(
            f"shown as recorded{machine}; nothing was run now. --force runs it anew, another --seed is a new run.",
            soft_wrap=True,
            highlight=False,
        )
        if changed := made_by_other_code(result):
            console.print(f"{changed}: run it anew by --force.", soft_wrap=True, highlight=False)


def _several(plans: Sequence[Plan], control: RunControl) -> None:
    """Several methods in turn, and one table of them all at the end."""
    from harness.core.config import to_json
    from harness.reading.comparison_table import comparison, in_short
    from harness.reading.console import stdout
    from harness.reading.differences import differences
    from harness.running.sweep import run_all
    from harness.storage.cache import Cache
    from harness.storage.store import Store

    store = Store(control.root)

    def say(result: RunResult) -> None:
        if not control.silent:
            stdout().print(f"{result.spec.method}: {result.status}, {in_short(result)}", highlight=False)

    results = run_all(plans, store, Cache(), control.force, say)
    if control.json:
        print_json([to_json(result) for result in results])
    else:
        done = {r.spec.method: [(r.spec, r.points[-1].index)] for r in results if r.points and not r.spec.budgets}
        stdout().print(comparison(results, differences(done, store, against=next(iter(done), None))))
    report_failures([todo.method.name for todo in plans], results)


def _read_spec(path: Path) -> RunSpec:
    from pydantic import ValidationError

    from harness.storage.record_files import fault, lacks
    from harness.storage.records import read_spec

    try:
        document = read_json(path, path.name)
        if isinstance(document, dict) and "spec" in document:
            return read_spec(document["spec"])
        why = lacks(["spec"])
    except ValidationError as error:
        why = fault(error)
    except UsageError as error:
        why = str(error).rstrip(".")
    raise UsageError(f"{cut(str(path))} is no run.json of this harness ({why}).")


@app.command(rich_help_panel=RUN)
def transfer(
    update: Annotated[Path | None, typer.Option("--update", help="What run --save-update wrote.")] = None,
    onto: Annotated[str, typer.Option("--onto", help="The checkpoint it is put onto: a folder or a hub id.")] = "",
    undo: Annotated[Path | None, typer.Option("--undo", help="A folder that this command wrote: take its update back.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="A new folder for the checkpoint.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", envvar="HARNESS_DATA", help="A folder laid out by hub id, used before the hub.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a checkpoint.")
    ] = False,
) -> None:
    """Put what unlearning changed onto another checkpoint (one fine-tuned from the same base), or take it back bit by bit."""
    from harness.models.sources import CheckpointSource
    from harness.models.updates import put_onto, take_back
    from harness.storage.cache import Cache

    if out is None or bool(undo) == bool(update) or bool(update) != bool(onto):
        raise UsageError("give --update FILE --onto CHECKPOINT --out DIR, or --undo DIR --out DIR.")
    if undo:
        print(f"{take_back(undo, out, Cache())} tensors put back as they were: {out}")
        return
    assert update is not None  # one of the two is given
    source = CheckpointSource(onto, data_dir=data_dir, trust_remote_code=trust_remote_code)
    moved = put_onto(update, source, out, Cache())
    print(f"{moved} tensors moved: {out}\nto take it back: harness transfer --undo {out} --out DIR")
