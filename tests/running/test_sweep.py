"""Several runs in turn: what a grid is, that finished runs are skipped, and that one that breaks off stops nothing."""

from __future__ import annotations

import io
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.core.benchmark import BENCHMARKS
from harness.core.errors import Diverged, UsageError
from harness.core.fields import read
from harness.core.measurement import Measurement
from harness.core.method import Progress, UnlearningContext
from harness.core.options import Options
from harness.reading.comparison_table import comparison
from harness.reading.sweep_table import sweep_table
from harness.running.executors import in_turn
from harness.running.grid import Span, axes, axes_of, draws, grid
from harness.running.request import SweepRequest, request_file
from harness.running.sweep import last_value, run_all, run_trials
from harness.running.trials import Sweep, check_count
from harness.storage.cache import Cache
from harness.storage.records import Trial
from harness.storage.store import Store
from tests import records
from tests.conftest import Bench, giving
from tests.nano_sweep import tries
from tests.running.test_run import NORM, Calls, nudge, steps, tofus


def test_an_axis_is_a_setting_and_its_values():
    assert axes(["lr=1e-4,1e-3", "estimator=kfac,ekfac"]) == {"lr": [1e-4, 1e-3], "estimator": ["kfac", "ekfac"]}


def test_lists_are_parted_by_semicolons():
    assert axes(["layers=[3,4];[5]"]) == {"layers": [[3, 4], [5]]}


@pytest.mark.parametrize("text", ["lr", "lr=", "lr=1,,2", "lr=1;"])
def test_an_axis_without_values_is_refused(text: str):
    with pytest.raises(UsageError, match="is no axis of a grid"):
        axes([text])


def test_an_axis_given_twice_is_refused():
    with pytest.raises(UsageError, match="the axis 'lr' is given twice"):
        axes(["lr=1", "lr=2"])


def test_a_grid_is_every_combination_once():
    found = list(grid({"a": [1, 2], "b": ["x", "y", "z"]}))
    assert len(found) == 6
    assert {(f["a"], f["b"]) for f in found} == {(a, b) for a in (1, 2) for b in "xyz"}
    assert list(grid({})) == [{}]


# ---------------------------------------------------------------- the same number of tries for every method


def test_a_span_is_drawn_from_evenly_on_a_logarithmic_scale():
    (drawn,) = axes(["lr=1e-5..1e-1"]).values()
    assert drawn == Span(1e-5, 1e-1)
    found = [s["lr"] for s in draws({"lr": drawn}, 400, "random", "ga")]
    assert len(set(found)) == 400
    for low in (1e-5, 1e-4, 1e-3, 1e-2):
        assert 60 < sum(low <= x < 10 * low for x in found) < 140
    assert all(isinstance(s["n"], int) for s in draws({"n": Span(1, 9)}, 5, "random", "ga"))


@pytest.mark.parametrize("text", ["lr=1..", "lr=a..b", "lr=2..1", "lr=0..1", "lr=1..1"])
def test_what_is_no_span_is_refused(text: str):
    with pytest.raises(UsageError, match="is no span"):
        axes([text])


def test_a_budget_is_spread_over_the_grid_or_drawn_from_it():
    of = {"a": [1, 2, 3], "b": ["x", "y"]}
    whole = list(grid(of))
    assert draws(of, None, "grid", "m") == draws(of, 6, "grid", "m") == whole
    assert draws(of, 3, "grid", "m") == [whole[0], whole[2], whole[4]]
    drawn = draws(of, 4, "random", "m")
    assert len(drawn) == 4
    assert all(s in whole and drawn.count(s) == 1 for s in drawn)
    assert drawn == draws(of, 4, "random", "m"), "the same ones every time"
    assert len(draws({"a": [1, 2], "lr": Span(1, 9.5)}, 7, "random", "m")) == 7


@pytest.mark.parametrize(
    ("of", "budget", "search", "said"),
    [
        ({"a": [1, 2]}, 3, "grid", "the grid of m has 2 settings and the budget is 3"),
        ({"a": [1, 2]}, 3, "random", "the grid of m has 2 settings"),
        ({}, 1, "grid", "Add values with --grid"),
        ({"a": Span(1, 2)}, 9, "random", "fewer than 9 different settings"),
        ({"a": Span(1.0, 2)}, None, "random", "give --search random and --budget N"),
        ({"a": Span(1.0, 2)}, 3, "grid", "give --search random and --budget N"),
    ],
)
def test_a_budget_that_cannot_be_spent_is_refused(of: Any, budget: int | None, search: Any, said: str):
    with pytest.raises(UsageError, match=said):
        draws(of, budget, search, "m")


def test_an_axis_may_belong_to_one_method():
    found = axes(["epochs=1,2", "ga.lr=1,2", "kfade.damping=1"])
    assert axes_of("ga", ["ga", "kfade"], found) == {"epochs": [1, 2], "lr": [1, 2]}
    assert axes_of("kfade", ["ga", "kfade"], found) == {"epochs": [1, 2], "damping": [1]}
    with pytest.raises(UsageError, match="no method of this sweep called 'kfade'"):
        axes_of("ga", ["ga"], found)


SWEEP = Sweep(
    ["ga", "kfade"], ["tofu01", "tofu10"], "mini@1", [0, 3], Options(), axes(["ga.lr=1,2,3", "kfade.damping=1,2"]), {}
)


def test_every_method_gets_the_same_number_of_tries_and_each_says_which_it_is():
    assert SWEEP.count() == len(SWEEP.trials()) == (3 + 2) * 4
    asked = replace(SWEEP, budget=2, by="selection_score", search="random")
    found = asked.trials()
    assert asked.count() == len(found) == 2 * 2 * 2 * 2
    trial = found[-1].trial
    split = "all evaluated rows of tofu10 on mini@1, seed 3"
    assert trial == Trial(index=1, tries=2, search="random", metric="selection_score", split=split)
    limited = replace(asked, options=Options(limit=20)).trials()[-1].trial
    assert limited == replace(trial, split="first 20 rows per split of tofu10 on mini@1, seed 3")
    assert SWEEP.trials()[0].trial is None, "nothing is chosen"


def test_a_try_is_recorded_and_names_no_other_run(tmp_path: Path, cache: Cache):
    trial = Trial(index=0, tries=1, search="grid", metric="norm", split="rows")
    store = Store(tmp_path / "r")
    (plain,) = run_trials(tries({"strength": 0.1}), store, cache, in_turn)
    assert plain.trial is None
    written = (store.runs_folder / plain.spec.folder / "run.json").read_bytes()
    (later,) = run_trials(tries({"strength": 0.1}, trial=trial), store, cache, in_turn)
    assert later.spec.run_id == plain.spec.run_id
    assert later.trial == trial
    assert (store.runs_folder / plain.spec.folder / "run.json").read_bytes() == written, "a finished record is never rewritten"
    (fresh,) = run_trials(tries({"strength": 0.2}, trial=trial), store, cache, in_turn)
    assert fresh.trial == trial


def test_ten_thousand_runs_are_enough():
    check_count(10_000, yes=False)
    check_count(10_001, yes=True)
    with pytest.raises(UsageError, match="that is 10001 runs; if you mean it, add --yes"):
        check_count(10_001, yes=False)


# ---------------------------------------------------------------- a sweep in a file


def test_a_file_says_what_flags_say(tmp_path: Path):
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "method: [kfade, ga]\nbench: wmdp\nretain: general\nseeds: [0, 1]\nlimit: 20\nset: {epochs: 2}\n"
        "grid:\n  kfade.layers: [[0], [0, 1]]\n  ga.lr: 1e-4..1e-2\n  damping: [1e-4, 0.1]\n"
    )
    asked = read(SweepRequest, request_file(SweepRequest, file))
    assert (asked.method, asked.bench, asked.seeds, asked.limit) == (("kfade", "ga"), ("wmdp",), (0, 1), 20)
    assert asked.retain == "general"
    assert asked.settings == {"epochs": 2}
    assert asked.grid == {"kfade.layers": [[0], [0, 1]], "ga.lr": Span(1e-4, 1e-2), "damping": [1e-4, 0.1]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method: [", "cannot be read as YAML"),
        ("- a", "is no sweep"),
        ("", "is no sweep"),
        ("methd: ga", "Did you mean 'method'"),
        ("grid: {}", "'grid' is empty"),
        ("grid: {lr: []}", "the axis 'lr' has no list of values"),
        ("grid: {lr: 1}", "the axis 'lr' has no list of values"),
        ("set: []", "'set' is empty"),
        ("limit: few", "limit=few is no whole number"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(tmp_path: Path, text: str, said: str):
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(UsageError, match=said):
        read(SweepRequest, request_file(SweepRequest, tmp_path / "sweep.yaml"))


# ---------------------------------------------------------------- doing them


def test_finished_runs_are_not_done_again(bench: Bench):
    method = Calls(steps(2))
    plans = [bench.plan(method, [NORM], settings={"strength": s}) for s in (0.1, 0.2)]
    first = run_all(plans, bench.store, bench.cache)
    again = run_all(plans, bench.store, bench.cache)
    assert method.count == 2
    assert [list(r.points) for r in first] == [list(r.points) for r in again]
    run_all(plans[:1], bench.store, bench.cache, force=True)
    assert method.count == 3


def breaks(context: UnlearningContext, config: Any) -> Iterator[Progress]:
    nudge(context, config.strength)
    yield Progress(1, measure_here=True, total=2)
    if config.strength > 0.15:
        raise Diverged("the loss is nan")
    nudge(context, config.strength)
    yield Progress(2, measure_here=True, total=2)


def test_a_run_that_breaks_off_is_kept_and_the_others_go_on(bench: Bench):
    seen: list[str] = []
    plans = [bench.plan(breaks, [NORM], settings={"strength": s}) for s in (0.1, 0.2, 0.05)]
    results = run_all(plans, bench.store, bench.cache, report=lambda r: seen.append(r.status))
    assert [r.status for r in results] == seen == ["done", "failed", "done"]
    assert [len(r.points) for r in results] == [2, 1, 2]
    assert results[1].error == "the loss is nan"


def test_the_last_value_is_the_last_points(bench: Bench):
    (result,) = run_all([bench.plan(steps(2), [NORM])], bench.store, bench.cache)
    (measured,) = result.points[-1].measurements
    assert isinstance(measured, Measurement)
    assert last_value(result, "norm") == measured.value
    assert last_value(result, "nothing") is None


def test_only_the_last_point_is_measured_where_that_is_asked(bench: Bench):
    every = run_all([bench.plan(steps(3), [NORM])], bench.store, bench.cache)[0]
    last = run_all([bench.plan(steps(3), [NORM], options=Options(points="last"))], bench.store, bench.cache)[0]
    assert [p.step for p in last.points] == [3]
    assert last.points[0].weights == every.points[-1].weights
    assert last.spec.run_id != every.spec.run_id


def test_evaluators_can_be_chosen_by_name(bench: Bench):
    todo = bench.plan(steps(1), tofus(bench), options=Options(evals=("probability",)))
    (result,) = run_all([todo], bench.store, bench.cache)
    assert {m.metric for m in result.points[0].measurements} == {
        f"{task}_probability" for task in ("retain", "real_authors", "world_facts", "forget")
    }
    with pytest.raises(UsageError, match="Did you mean 'rouge'"):
        bench.plan(steps(1), options=Options(evals=("roug",)))


def text(renderable: Any) -> str:
    from rich.console import Console

    console = Console(width=400, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_comparison_names_every_method_both_arms_and_the_oracle(bench: Bench):
    evaluators = BENCHMARKS.get("tofu10").evaluators()
    plans = [bench.plan(breaks, evaluators, settings={"strength": s}) for s in (0.1, 0.2)]
    results = run_all(plans, bench.store, bench.cache)
    shown = text(comparison([replace(r, spec=replace(r.spec, method=name)) for r, name in zip(results, "ab", strict=True)]))
    for word in ("untouched", "retrained", "forget quality ↑", "best on the way*", "(an oracle)", "b failed: the loss is nan"):
        assert word in shown


def test_the_comparison_shows_runs_without_points(bench: Bench):
    def never(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        raise Diverged("the first loss is nan")
        yield

    results = run_all([bench.plan(never, [NORM])], bench.store, bench.cache)
    assert "failed" in text(comparison(results))


def test_the_sweeps_table_puts_the_best_first(bench: Bench):
    score = {0.1: 0.2, 0.3: 0.9, 0.2: 0.5}

    def measure(context: Any) -> float:
        return score[current["strength"]]

    current: dict[str, float] = {}
    results = []
    for strength in score:
        current["strength"] = strength
        todo = bench.plan(
            steps(1),
            [giving("score", measure, metric={"name": "selection_score", "better": "higher"})],
            settings={"strength": strength},
        )
        results += run_all([todo], bench.store, bench.cache)
    lines = text(sweep_table([{"strength": s} for s in score], results, by="selection_score")).splitlines()
    rows = [line for line in lines if "fake" in line]
    assert ["0.3" in rows[0], "0.2" in rows[1], "0.1" in rows[2]] == [True] * 3


def scored(bench: Bench, metric: str, better: str | None, reference: float | None = None) -> Any:
    """Three tries with the values 0.2, 0.9 and 0.5 of a metric, and one that broke off at 0.95."""
    score = {0.1: 0.2, 0.3: 0.9, 0.12: 0.5, 0.19: 0.95}
    results = []
    for strength, value in score.items():
        evaluator = giving("score", lambda _, v=value: v, metric={"name": metric, "better": better})  # type: ignore[misc]
        method = breaks if strength == 0.19 else steps(1)
        (result,) = run_all([bench.plan(method, [evaluator], settings={"strength": strength})], bench.store, bench.cache)
        points = [replace(p, measurements=[replace(m, reference=reference) for m in p.measurements]) for p in result.points]
        results.append(replace(result, points=points))
    return [{"strength": s} for s in score], results


@pytest.mark.parametrize(
    ("better", "reference", "order"),
    [("higher", None, [0.3, 0.12, 0.1]), ("lower", None, [0.1, 0.12, 0.3]), ("closer", 0.45, [0.12, 0.1, 0.3])],
    ids=["higher", "lower", "closer"],
)
def test_the_best_is_what_the_metric_calls_better_and_what_broke_off_comes_last(
    bench: Bench, better: str, reference: float | None, order: list[float]
):
    settings, results = scored(bench, "mine", better, reference)
    title, _, headings, *lines = text(sweep_table(settings, results, by="mine")).splitlines()
    assert title.strip() == "benchmark nano · model mini · seed 0"
    assert "mine" in headings, "what orders the table is in it"
    rows = [line for line in lines if "fake" in line]
    assert [any(f" {s} " in row for s in [expected]) for row, expected in zip(rows, [*order, 0.19], strict=True)] == [True] * 4
    assert "failed" in rows[-1]


def test_a_metric_that_no_try_measured_orders_nothing_and_says_so(bench: Bench):
    settings, results = scored(bench, "mine", "higher")
    shown = text(sweep_table(settings, results, by="mien"))
    assert "no try measured 'mien'; in the order of the tries. Measured were: mine" in shown


def swept(metrics: Sequence[str], *tries: dict[str, Any]) -> Any:
    """Settings and results of made-up tries that measured these; method, seed and the like in capitals."""
    results = []
    for todo in tries:
        spec = {key.lower(): value for key, value in todo.items() if key.isupper() and key != "STATUS"}
        found = [records.number(metric, 1.23e-27 if metric == "forget_quality" else 0.123) for metric in metrics]
        results.append(records.run(found, spec=spec, status=todo.get("STATUS", "done")))
    return [{key: value for key, value in todo.items() if not key.isupper()} for todo in tries], results


TUNING = ("selection_score", "forget_quality", "forget_quality_d", "forget_probability", "retain_probability")
EVERYTHING = (*TUNING, "model_utility", "forget_rouge", "retain_rouge")


@pytest.mark.parametrize(("metrics", "width"), [(TUNING, 80), (EVERYTHING, 100)], ids=["tuning", "everything"])
def test_a_usual_sweep_is_one_table_with_every_metric_once(metrics: Sequence[str], width: int):
    from rich.console import Console

    console = Console(width=width, file=io.StringIO())
    tries = [{"METHOD": "grad_diff", "lr": lr} for lr in (1.05e-4, 3e-4)]
    console.print(sweep_table(*swept(metrics, *tries), by="selection_score"))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert [shown.count(word) for word in ("selection", "quality", "KS D", "run", "status", "seed")] == [1, 1, 1, 1, 0, 1]
    assert shown.count("P retain") + shown.count("ROUGE retain") == 0, "utility and selection score contain them"
    assert "P retain" in text(sweep_table(*swept(metrics, *tries), by="retain_probability")), "unless they are asked for"


def test_another_retain_set_than_the_usual_one_is_said_in_the_title():
    for retain, told in (("all", ""), ("general", "retain general · ")):
        title, *_ = text(sweep_table(*swept(TUNING, {"RETAIN": retain, "lr": 1}, {"RETAIN": retain, "lr": 2}))).splitlines()
        assert title.strip() == f"benchmark tofu10 · model mini · {told}seed 0"


def test_every_setting_of_a_sweep_stands_under_its_own_name():
    tries = [{"METHOD": "ga", "lr": 0.5, "epochs": 7}, {"METHOD": "kfade", "target_kl": 0.25}]
    lines = text(sweep_table(*swept(TUNING, *tries))).splitlines()
    rows = [
        [cell.strip() for cell in line.strip("┃│").replace("┃", "│").split("│")] for line in lines if "┃" in line or "│" in line
    ]
    told = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert [(t["method"], t["lr"], t["epochs"], t["target_kl"]) for t in told] == [
        ("ga", "0.5", "7", ""),
        ("kfade", "", "", "0.25"),
    ]


def test_a_sweeps_table_shows_what_differs_and_says_the_rest_once():
    same = text(sweep_table(*swept(TUNING, {"lr": 1}, {"lr": 2})))
    assert same.startswith("benchmark tofu10 · model mini · seed 0")
    differing = [{"BENCH": "tofu10", "SEED": 3}, {"BENCH": "tofu05", "SEED": 4, "STATUS": "failed"}]
    title, _, headings, *rows = text(sweep_table(*swept(TUNING, *differing))).splitlines()
    assert title.strip() == "model mini"
    assert all(word in headings for word in ("benchmark", "seed", "status"))
    assert all(word in rows[2] for word in ("tofu05", "4", "failed"))
    assert "run" in text(sweep_table([], [])), "a sweep of nothing is an empty table"


@pytest.mark.parametrize("width", [40, 80, 100, 160])
def test_no_number_is_cut_or_wrapped_on_a_narrow_terminal(width: int):
    from rich.console import Console

    from harness.reading.columns import Columns

    table = Columns(("run", "forget quality ↑", "P forget →", *(f"metric {i}" for i in range(9))), "a title")
    cells = ["c8d4e5f6a7b8", "0.979\n(2.5e-03 to 1.9e-02)", "6.6e-09", *(f"0.{i}23" for i in range(9))]
    table.add_row(*cells)
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(line in shown for cell in cells for line in cell.splitlines())
    assert max(map(len, shown.splitlines())) <= width
    assert shown.count("a title") == 1
    assert "…" not in shown


def test_an_error_nobody_expected_stops_no_other_run_and_holds_no_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    import torch

    seen: list[weakref.ref[Any]] = []
    emptied: list[float] = []
    error = {0.2: RuntimeError("a bug"), 0.3: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")}

    def empty_cache() -> None:
        emptied.append(sum(each() is None for each in seen) / len(seen))
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)

    def unlearn(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        mine = context.model.lm_head.weight
        held, _ = context.cache.memoize("large", config.strength, lambda: torch.zeros(1))
        seen.extend(map(weakref.ref, (mine, held)))
        yield from steps(1)(context, config)
        if config.strength in error:
            monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
            raise error.pop(config.strength)

    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    plans = [bench.plan(unlearn, [NORM], settings={"strength": s}) for s in (0.2, 0.3, 0.1)]
    results = run_all(plans, bench.store, bench.cache)
    assert [(r.status, len(r.points)) for r in results] == [("failed", 1), ("failed", 1), ("done", 1)]
    assert emptied == [1.0, 1.0], "when the GPU's memory is given back, nothing holds any of it"
    first, second = (bench.store.find(todo.spec) for todo in plans[:2])
    assert [first, second] == results[:2]
    assert results[0].error.startswith("RuntimeError: a bug\n")
    assert results[1].error.startswith("fake ran out of memory on cpu. Try --dtype bfloat16, or fewer rows with --limit.\n")
    assert all("running/test_sweep.py:" in r.error for r in results[:2]), "the frames are kept"


def test_a_run_that_is_refused_when_it_starts_stops_no_other(bench: Bench):
    """As when a model does not fit beside one method's curvature, or a rank is larger than a matrix."""

    def unlearn(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        if config.strength > 0.15:
            raise UsageError("the GPU is too small")
        nudge(context, config.strength)
        yield Progress(1, measure_here=True, total=1)

    plans = [bench.plan(unlearn, [NORM], settings={"strength": s}) for s in (0.1, 0.2, 0.05)]
    results = run_all(plans, bench.store, bench.cache)
    assert [(r.status, r.error) for r in results] == [("done", ""), ("failed", "the GPU is too small"), ("done", "")]
    assert bench.store.find(plans[1].spec) is None, "what can be put right leaves no record"


def test_a_sweep_on_a_terminal_says_how_far_it_is_and_how_long_it_takes():
    from rich.console import Console

    from harness.reading.watch import Watch

    now = [100.0]
    watch = Watch(["ga", "ga", "npo", "npo", "npo"], clock=lambda: now[0])

    def shown() -> list[str]:
        console = Console(width=80)
        with console.capture() as captured:
            console.print(watch)
        return captured.get().splitlines()

    watch.add(0, "done")  # found on record
    watch.begin()
    assert watch.left() is None
    now[0] = 190.0
    watch.add(2, "failed")
    assert watch.left() == 90.0 * 3, "one run in 90 s, three to go; what was on record took no time"
    lines = [line.replace("│", " ").split() for line in shown()]
    assert ["ga", "2", "1", "0", "1"] in lines
    assert ["npo", "3", "0", "1", "2"] in lines
    assert "2 of 5, about 4 min 30 s left" in " ".join(shown()[-1].split())
