"""`harness sweep`, `harness study` and `harness meta`: many runs, each a record of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.app import RUN, app
from harness.cli.control import SweepControl, no_bars, print_json, report_failures, tell_costs
from harness.cli.flags import Words, command
from harness.core.errors import UsageError, unknown
from harness.core.fields import read
from harness.running.meta import MetaRequest
from harness.running.request import StudyRequest, SweepRequest, request_file

if TYPE_CHECKING:
    from harness.core.figure import Sheet
    from harness.running.trials import EvalPlans, TrialSpec
    from harness.storage.records import RunResult


@command(app, SweepRequest, SweepControl, panel=RUN)
def sweep(
    words: Words,
    control: SweepControl,
    file: Annotated[Path | None, typer.Argument(help="Flags in a YAML file; those given here win.")] = None,
) -> None:
    """Run a grid of settings; every trial is a record, finished ones are skipped, failed ones kept.

    harness sweep -m ga,npo -b tofu10 --grid lr=1e-4,1e-3 --seeds 0,1,2

    harness sweep sweep.yaml --jobs 2 --dry-run
    """
    no_bars()
    from harness.running.trials import check_count

    layers = [words.environment, request_file(SweepRequest, file) if file else {}, words.typed]
    wanted = read(SweepRequest, *layers).sweep()
    check_count(wanted.count(), control.yes)
    tries = wanted.trials()
    if control.dry_run:
        _forecast(tries, control, "sweep", {}, {})
    else:
        _run(tries, control, wanted.by)


@command(app, StudyRequest, SweepControl, panel=RUN)
def study(
    words: Words,
    control: SweepControl,
    name: Annotated[str, typer.Argument(help="Which one; see harness list studies.")],
) -> None:
    """Run one of the paper's ablations or tables; finished runs are skipped.

    harness study hessian --dry-run

    harness study hessian --bench tofu05 --jobs 2

    harness study equal-damage --bench tofu10 --method npo,simnpo --phase tries
    """
    no_bars()
    from harness.running.studies import ABOUT, possible
    from harness.running.trials import check_count

    if name not in ABOUT:
        raise unknown("study", name, ABOUT, "harness list studies")
    request = read(StudyRequest, words.environment, words.typed)
    done: list[tuple[TrialSpec, RunResult]] = []
    eval_plans: EvalPlans = {}
    phases = _phases(name, request, control)
    # A dry run is one list; else a phase is listed when the one before is done.
    for every in [[todo for of in phases for todo in of()]] if control.dry_run else (of() for of in phases):
        check_count(len(every), control.yes)
        tries, left_out = possible(every, eval_plans)
        about = {"study": name, "about": ABOUT[name], "left_out": left_out}
        if control.dry_run or not control.silent:
            _forecast(tries, control, name, about, eval_plans)
        if not control.dry_run:
            done += zip(tries, _run_tries(tries, control), strict=True)
    if not control.dry_run:
        _show([todo for todo, _ in done], [result for _, result in done], control)


@command(app, MetaRequest, SweepControl, panel=RUN)
def meta(words: Words, control: SweepControl) -> None:
    """Score the scores: how faithful and how robust each metric is, on models made for it; finished ones are skipped.

    harness meta --jobs 2

    harness meta --worlds 0 --models 10 --dry-run
    """
    no_bars()
    from harness.reading.meta_table import FOLDER, meta_sheets, write
    from harness.running.trials import check_count

    tries = read(MetaRequest, words.environment, words.typed).study().trials()
    check_count(len(tries), control.yes)
    about = {"about": "which metrics tell whether a forget set is known, and stay put when a model is disturbed"}
    of_models = replace(control, results=control.root / FOLDER)
    if control.dry_run or not control.silent:
        _forecast(tries, of_models, "meta", about, {})
    if control.dry_run:
        return
    results = _run_tries(tries, of_models)
    sheets = meta_sheets(control.root)
    files = write(control.root, sheets)
    if control.json:
        print_json([row for sheet in sheets for row in sheet.numbers.to_dict("records")])
    else:
        _print_sheets(sheets)
        print("\n".join(map(str, files)))
    report_failures(tries, results)


def _print_sheets(sheets: Sequence[Sheet]) -> None:
    from rich.table import Table
    from rich.text import Text

    from harness.reading.console import stdout
    from harness.reading.meta_table import brief

    for sheet in sheets:
        table, shown = Table(title=sheet.caption, header_style="bold"), brief(sheet)
        for head in shown.columns:
            table.add_column(str(head), no_wrap=head.startswith(("faithful", "robust")))
        for cells in shown.itertuples(index=False, name=None):
            table.add_row(*(Text(str(cell)) for cell in cells))
        stdout().print(table)
        for note in sheet.notes:
            stdout().print(note)


def _phases(name: str, request: StudyRequest, control: SweepControl) -> list[Callable[[], list[TrialSpec]]]:
    """What makes the runs of each part of a study that is to be done; a later one reads what an earlier one recorded."""
    from harness.running.equal_damage import EqualDamageStudy
    from harness.running.studies import EQUAL_DAMAGE, study_of, trials_of
    from harness.storage.store import Store

    if name == EQUAL_DAMAGE:
        request.check_own_choices(name)
        if request.seeds and request.phase == "tries":
            raise UsageError("tries have one seed of their own, and --seeds are of what is reported. Leave out --seeds.")
        study = EqualDamageStudy(Store(control.root), request.options(), request.bench, request.method, request.seeds)
        return study.phases(request.phase, undecided=control.dry_run)
    if request.phase != "both":
        raise UsageError(f"the study {name} has no phases: its settings are its question. Leave out --phase.")
    chosen, options = study_of(name), request.options()
    every = trials_of(chosen, request.bench, request.model, request.seeds, options, request.method)
    return [lambda: every]


def _forecast(
    tries: Sequence[TrialSpec], control: SweepControl, name: str, about: dict[str, Any], eval_plans: EvalPlans
) -> None:
    """Say how many runs are left and how long they will take; each of them too where that is all that was asked."""
    from harness.running.studies import forecast
    from harness.storage.store import Store

    expected = forecast([todo.plan(eval_plans) for todo in tries], Store(control.root), control.jobs or 1)
    left_out = about.get("left_out", [])
    if control.json:
        print_json({**about, **vars(expected), "tries": [str(todo) for todo in tries]})
        return
    lines = [f"{name}: {about['about']}"] if about else []
    for line in (*lines, f"{expected}.", *left_out, *(map(str, tries) if control.dry_run else ())):
        print(line, flush=True)


def _run(tries: Sequence[TrialSpec], control: SweepControl, by: str = "") -> None:
    """Do them and show the table."""
    _show(tries, _run_tries(tries, control), control, by)


def _show(tries: Sequence[TrialSpec], results: Sequence[RunResult], control: SweepControl, by: str = "") -> None:
    """The table, or JSON, and what is not done."""
    if control.json:
        from harness.core.config import to_json

        print_json([to_json(result) for result in results])
    elif tries:  # a control has none
        from harness.reading.console import stdout
        from harness.reading.sweep_table import sweep_table

        stdout().print(sweep_table([todo.chosen for todo in tries], results, by))
    report_failures(tries, results)


def _run_tries(tries: Sequence[TrialSpec], control: SweepControl) -> list[RunResult]:
    """Do them, and say how far it is: a live table on a terminal, a line for each run elsewhere."""
    if not control.silent:
        tell_costs()
    from rich.live import Live

    from harness.reading.console import stderr
    from harness.reading.watch import Watch
    from harness.running.executors import executor_of
    from harness.running.sweep import run_trials
    from harness.storage.cache import Cache
    from harness.storage.store import Store

    several = len({todo.bench for todo in tries}) > 1
    watch = Watch([f"{todo.method} on {todo.bench}" if several else todo.method for todo in tries])
    console = stderr()
    shown = (console.is_terminal or control.progress == "bar") and control.progress != "plain" and not control.silent

    def say(index: int, result: RunResult) -> None:
        watch.add(index, result.status)
        if not control.silent:
            line = f"{watch.finished}/{len(tries)} {tries[index].label(several)}: {result.status}"
            live.console.print(line, soft_wrap=True, highlight=False) if shown else print(line, flush=True)

    def watched(left: Sequence[TrialSpec], *others: Any) -> Iterator[tuple[int, str]]:
        watch.begin()
        return executor_of(control.executor, control.jobs)(left, *others)

    with Live(watch, console=console, auto_refresh=shown, transient=True, redirect_stdout=False) as live:
        return run_trials(tries, Store(control.root), Cache(), watched, say)
