"""One run, with invented methods: what is measured, what is kept, and how it goes on after a break."""

from __future__ import annotations

import itertools
import json
import logging
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.core.benchmark import BENCHMARKS
from harness.core.costs import Costs
from harness.core.errors import Diverged, RunFailed, UsageError
from harness.core.evaluator import EvalContext, EvalPlan, Evaluator, GenerationRequest, Sampling
from harness.core.measurement import Absent, Measurement
from harness.core.method import Progress, UnlearningContext
from harness.core.options import Options, Points
from harness.core.problem import Problem
from harness.core.registry import ROOT
from harness.models.export import ExportOptions
from harness.numerics.placement import pick_device
from harness.running import measuring
from harness.running.plan import plan
from harness.running.run import execute
from harness.storage.cache import Cache
from harness.storage.record_writing import Record
from harness.storage.records import Point, RunResult
from harness.storage.validate import problems
from tests.clock import Clock
from tests.conftest import Bench, Nano, giving

# ---------------------------------------------------------------- invented methods and evaluators


def nudge(context: UnlearningContext, strength: float = 1.0) -> None:
    """Move one matrix at random, by torch's global generator."""
    import torch

    weight = context.model.lm_head.weight
    with torch.no_grad():
        weight.add_(strength * torch.randn_like(weight))


def steps(count: int = 3) -> Callable[[UnlearningContext, Any], Iterator[Progress]]:
    """A method that takes `count` random steps, measured after each."""

    def unlearn(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        for step in range(1, count + 1):
            nudge(context, config.strength)
            yield Progress(step, {"strength": config.strength}, measure_here=True, total=count)

    return unlearn


class Calls:
    """A method or an evaluator that counts how often it was begun."""

    def __init__(self, inner: Callable[..., Any]) -> None:
        self.inner = inner
        self.count = 0

    def __call__(self, *args: Any) -> Any:
        self.count += 1
        return self.inner(*args)


def norm_of(eval_context: EvalContext) -> float:
    first = eval_context.problem.questions["forget"][0]
    table = eval_context.table(
        "norm",
        lambda context: pd.DataFrame(
            {
                "task": ["forget"],
                "row": [first["row"]],
                "cluster": [first["cluster"]],
                "norm": [context.model.lm_head.weight.norm().item()],
            }
        ),
    )
    return float(table["norm"].iloc[0])


NORM = giving("norm", norm_of)


def values(points: Sequence[Point]) -> list[float]:
    return [m.value for p in points for m in p.measurements if isinstance(m, Measurement)]


def without_clock(points: Sequence[Point]) -> list[Point]:
    return [replace(p, unlearn_seconds=0.0) for p in points]


def run(bench: Bench, unlearn: Any, evaluators: Sequence[Evaluator] = (NORM,), **more: Any) -> RunResult:
    return execute(bench.plan(unlearn, evaluators, **more), bench.store, bench.cache)


def tofus(bench: Bench) -> list[Evaluator]:
    """Two of ToFU's evaluators: one that asks for texts, one that does not."""
    return [e for e in BENCHMARKS.get("tofu10").evaluators() if e.name in ("forget_quality", "rouge")]


def other_store(bench: Bench) -> Bench:
    """The same bench with an empty results folder."""
    return replace(bench, results=bench.results.with_name("other results"))


# ---------------------------------------------------------------- a whole run


def test_a_run_records_its_points_arms_and_costs(bench: Bench):
    result = run(bench, steps(3))
    assert result.status == "done"
    assert [(p.index, p.step, p.logged) for p in result.points] == [(i, i + 1, {"strength": 1.0}) for i in range(3)]
    assert len(set(values(result.points))) == len({p.weights for p in result.points}) == 3
    assert set(result.references) == {"untouched", "retrained"}
    assert set(result.costs) >= {"models", "references", "unlearning", "evaluation"}
    assert all(phase.seconds > 0 and phase.peak_bytes > 0 for phase in result.costs.values())
    assert result.provenance is not None
    assert result.provenance.weights not in {p.weights for p in result.points}
    assert bench.store.find(result.spec) == replace(result, points=list(result.points))


def test_arms_are_the_model_before_and_the_first_reference(bench: Bench, nano: Nano):
    result = run(bench, steps(1))
    norms = {seed: nano.model(seed).lm_head.weight.norm().item() for seed in (0, 1)}
    assert result.references["untouched"][0].value == pytest.approx(norms[0])
    assert result.references["retrained"][0].value == pytest.approx(norms[1])


def test_a_run_keeps_what_it_was_asked_with_the_true_answers(bench: Bench):
    asked = bench.store.questions(run(bench, steps(1)).spec)
    rows = [(task, row) for task, of in bench.base.questions.items() for row in of]
    assert [(q.task, q.row, q.answer) for q in asked] == [(task, row["row"], row["answer"]) for task, row in rows]
    assert [q.turns for q in asked] == [[bench.base.template.prompt(row["question"])] for _, row in rows]


def test_only_steps_that_ask_for_it_are_measured(bench: Bench):
    def unlearn(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        for step in range(1, 6):
            nudge(context)
            yield Progress(step, measure_here=step in (2, 5))

    assert [(p.index, p.step) for p in run(bench, unlearn).points] == [(0, 2), (1, 5)]


def test_settings_reach_the_method(bench: Bench):
    assert run(bench, steps(1), settings={"strength": 0.5}).points[0].logged == {"strength": 0.5}


def test_a_number_that_is_not_finite_is_logged_as_none(bench: Bench):
    def unlearn(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        yield Progress(1, {"norm": math.nan, "loss": math.inf, "fine": 2.0}, measure_here=True)

    assert run(bench, unlearn).points[0].logged == {"norm": None, "loss": None, "fine": 2.0}


def test_measurements_say_on_what_the_settings_were_chosen(bench: Bench):
    result = run(bench, steps(1), settings={"strength": 0.5})
    assert result.selection == "published form: defaults of fake, then strength by hand"
    assert {m.selection for m in (*result.points[0].measurements, *result.references["untouched"])} == {result.selection}


def test_a_run_that_is_done_is_given_back_without_running(bench: Bench):
    method = Calls(steps(2))
    first = run(bench, method)
    again = run(bench, method)
    assert method.count == 1
    assert again == replace(first, points=list(first.points))


def test_force_runs_anew_and_comes_to_the_same(bench: Bench):
    method = Calls(steps(2))
    first = run(bench, method)
    again = execute(bench.plan(method, [NORM]), bench.store, bench.cache, force=True)
    assert method.count == 2
    assert without_clock(again.points) == without_clock(first.points)
    assert len(bench.store.find(first.spec).points) == 2


def test_the_same_seed_comes_to_the_same_points_and_another_does_not(bench: Bench):
    first = run(bench, steps(2))
    again = run(other_store(bench), steps(2))
    other = run(bench, steps(2), options=Options(seed=1))
    assert without_clock(again.points) == without_clock(first.points)
    assert other.points[0].weights != first.points[0].weights


# ---------------------------------------------------------------- evaluation and the method do not disturb each other


def random_evaluator(draws: int) -> Evaluator:
    def measure(context: EvalContext) -> float:
        import torch

        torch.manual_seed(99)
        torch.randn(draws)
        return norm_of(context)

    return giving("norm", measure)


def test_evaluation_does_not_disturb_the_methods_randomness(bench: Bench):
    calm = run(bench, steps(3))
    wild = run(other_store(bench), steps(3), [random_evaluator(7)])
    assert [p.weights for p in wild.points] == [p.weights for p in calm.points]


def test_whether_references_were_cached_does_not_change_the_run(bench: Bench, tmp_path: Path):
    first = run(bench, steps(2), [random_evaluator(7)])
    cold = replace(other_store(bench), cache=Cache(tmp_path / "another cache"))
    assert [p.weights for p in run(cold, steps(2), [random_evaluator(7)]).points] == [p.weights for p in first.points]


def test_an_evaluator_that_changes_the_model_does_not_change_the_run(bench: Bench):
    def attack(context: EvalContext) -> None:
        assert context.loaded is None or nudge(context.loaded) is None

    calm = run(bench, steps(3))
    attacked = run(other_store(bench), steps(3), [NORM, giving("attack", attack, changes_model=True)])
    assert [p.weights for p in attacked.points] == [p.weights for p in calm.points]


def test_an_attack_trains_all_weights_whatever_the_method_has_frozen_meanwhile(bench: Bench):
    trainable: list[bool] = []

    def frozen_while_measured(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        first, *others = context.model.parameters()
        for other in others:
            other.requires_grad_(False)
        for step in (1, 2):
            with torch.no_grad():
                first.add_(0.1)
            yield Progress(step, measure_here=True)
            frozen.append([p.requires_grad for p in context.model.parameters()])
        context.model.requires_grad_(True)

    def attack(context: EvalContext) -> None:
        if context.loaded:
            trainable.extend(p.requires_grad for p in context.loaded.model.parameters())

    import torch

    frozen: list[list[bool]] = []
    run(bench, frozen_while_measured, [giving("attack", attack, changes_model=True)])
    assert trainable
    assert all(trainable)
    assert all(first and not any(others) for first, *others in frozen)  # and the method goes on as it was


def test_an_evaluator_that_changes_the_model_comes_last(bench: Bench):
    order: list[str] = []

    def named(name: str, changes: bool) -> Evaluator:
        def measure(context: EvalContext) -> None:
            order.append(name)

        return giving(name, measure, changes_model=changes)

    run(bench, steps(1), [named("attack", True), named("calm", False)])
    assert order
    assert order == ["calm", "attack"] * (len(order) // 2)


def test_the_clock_runs_only_inside_the_method(bench: Bench, clock: Clock):
    def unlearn(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        for step in (1, 2):
            clock.sleep(0.5)
            yield Progress(step, measure_here=True)

    def slowly(eval_context: EvalContext) -> float:
        clock.sleep(
            100.0 if eval_context.loaded and eval_context.references else 0
        )  # at points, not while references are measured
        return norm_of(eval_context)

    result = run(bench, unlearn, [giving("norm", slowly)])
    first, second = (p.unlearn_seconds for p in result.points)
    assert 0.5 <= first < second < 100
    assert second >= 1.0
    assert result.costs["evaluation"].seconds >= 200.0


def test_what_a_method_found_in_the_cache_counts_in_its_full_cost(bench: Bench, clock: Clock):
    def unlearn(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        context.costs.saved(100.0)
        yield Progress(1, measure_here=True)

    result = run(bench, unlearn)
    assert result.points[0].unlearn_seconds > 100
    assert result.costs["unlearning"].seconds < 10


# ---------------------------------------------------------------- breaks


def breaks_after_first(error: BaseException) -> Callable[[UnlearningContext, Any], Iterator[Progress]]:
    def unlearn(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        inner = steps(3)(context, config)
        yield next(inner)
        raise error

    return unlearn


def test_an_interrupted_run_goes_on_and_ends_as_an_uninterrupted_one(bench: Bench):
    evaluator = Calls(norm_of)
    with pytest.raises(KeyboardInterrupt):
        run(bench, breaks_after_first(KeyboardInterrupt()), [giving("norm", evaluator)])
    left = bench.store.find(bench.plan(steps(3), [NORM]).spec)
    assert (left.status, len(left.points)) == ("interrupted", 1)

    before = evaluator.count
    result = run(bench, steps(3), [giving("norm", evaluator)])
    assert evaluator.count - before == 2 + 2  # two arms, and only the points that were missing
    whole = run(other_store(bench), steps(3))
    assert result.status == "done"
    assert without_clock(result.points) == without_clock(whole.points)
    assert result.points[0] == left.points[0]
    assert without_clock(bench.store.find(result.spec).points) == without_clock(whole.points)


def test_rows_and_texts_of_a_resumed_run_equal_those_of_an_uninterrupted_one(bench: Bench):
    with pytest.raises(KeyboardInterrupt):
        run(bench, breaks_after_first(KeyboardInterrupt()), tofus(bench))
    result = run(bench, steps(2), tofus(bench))
    whole = run(other_store(bench), steps(2), tofus(bench))
    folders = [b.store.runs_folder / result.spec.folder for b in (bench, other_store(bench))]
    assert result.spec == whole.spec
    assert (folders[0] / "generations.jsonl").read_bytes() == (folders[1] / "generations.jsonl").read_bytes()
    pd.testing.assert_frame_equal(*(pd.read_parquet(f / "per_example.parquet") for f in folders))


def test_a_replay_that_comes_to_other_weights_is_measured_anew(bench: Bench, caplog: pytest.LogCaptureFixture):
    with pytest.raises(KeyboardInterrupt):
        run(bench, breaks_after_first(KeyboardInterrupt()))
    first = bench.store.find(bench.plan(steps(3), [NORM]).spec).points[0]

    def otherwise(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        nudge(context)
        yield from steps(2)(context, config)

    with caplog.at_level(logging.WARNING):
        result = run(bench, otherwise)
    assert "came to other weights than point 0" in caplog.text
    assert result.points[0].weights != first.weights
    assert values(result.points) == values(run(other_store(bench), otherwise).points)
    rows = pd.read_parquet(bench.store.runs_folder / result.spec.folder / "per_example.parquet")
    assert rows["norm"].tolist() == values(result.points)


def test_points_that_a_replay_does_not_come_to_are_dropped(bench: Bench):
    def breaks_after_second(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        yield from steps(2)(context, config)
        raise Diverged("nan")

    with pytest.raises(RunFailed):
        run(bench, breaks_after_second)
    assert len(run(bench, steps(1)).points) == 1


def of_unknown_length(context: UnlearningContext, config: Any) -> Iterator[Progress]:
    nudge(context)
    yield Progress(1, measure_here=True)


@pytest.mark.parametrize(("unlearn", "points"), [(steps(0), "all"), (of_unknown_length, "last")])
def test_a_run_without_a_point_is_none_and_it_is_said_where_points_come_from(bench: Bench, unlearn: Any, points: Points):
    todo = bench.plan(unlearn, [NORM], options=Options(points=points))
    with pytest.raises(UsageError, match=r"method fake ended without a point to measure.*Progress\(step, measure_here=True"):
        execute(todo, bench.store, bench.cache)
    assert bench.store.find(todo.spec) is None


def test_a_loss_that_is_not_finite_fails_the_run_and_keeps_its_points(bench: Bench):
    with pytest.raises(RunFailed, match=r"fake broke off: step 2: the loss is nan\. Points measured so far are kept"):
        run(bench, breaks_after_first(Diverged("step 2: the loss is nan")))
    left = bench.store.find(bench.plan(steps(3), [NORM]).spec)
    assert (left.status, left.error, len(left.points)) == ("failed", "step 2: the loss is nan", 1)
    assert set(left.references) == {"untouched", "retrained"}


def test_an_error_of_a_method_is_recorded_with_frames_relative_to_the_package(bench: Bench):
    with pytest.raises(ZeroDivisionError):
        run(bench, breaks_after_first(ZeroDivisionError("by nothing")))
    left = bench.store.find(bench.plan(steps(3), [NORM]).spec)
    assert left.status == "failed"
    assert left.error.startswith("ZeroDivisionError: by nothing\n")
    assert "harness/running/run.py:" in left.error
    assert str(ROOT) not in left.error


@pytest.mark.parametrize("error", [RuntimeError, UsageError])
def test_an_error_that_names_a_path_leaves_no_path_in_the_record(bench: Bench, tmp_path: Path, error: type[Exception]):
    with pytest.raises(error):
        run(bench, breaks_after_first(error(f"no such file: '{tmp_path}/weights.bin'")))
    assert str(tmp_path) not in bench.store.find(bench.plan(steps(3), [NORM]).spec).error


def test_what_the_user_can_put_right_leaves_no_record_where_there_is_no_point(bench: Bench):
    def unlearn(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        raise UsageError("layers=[9]: the model has layers 0 to 1")
        yield

    todo = bench.plan(unlearn, [NORM])
    with pytest.raises(UsageError, match=r"layers=\[9\]"):
        execute(todo, bench.store, bench.cache)
    assert bench.store.find(todo.spec) is None
    assert not (bench.store.runs_folder / todo.spec.folder).exists()


def test_what_the_user_can_put_right_keeps_the_points_there_are(bench: Bench):
    with pytest.raises(UsageError, match="the disk is full"):
        run(bench, breaks_after_first(UsageError("the disk is full")))
    left = bench.store.find(bench.plan(steps(3), [NORM]).spec)
    assert (left.status, left.error, len(left.points)) == ("failed", "the disk is full", 1)


def test_a_forced_run_that_cannot_begin_leaves_the_earlier_record(bench: Bench):
    first = run(bench, steps(2))

    def unlearn(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        raise UsageError("the GPU is too small")
        yield

    with pytest.raises(UsageError):
        execute(bench.plan(unlearn, [NORM]), bench.store, bench.cache, force=True)
    left = bench.store.find(first.spec)
    assert left is not None
    assert len(left.points) == 2


def test_an_error_before_the_first_measurement_is_recorded_too(bench: Bench):
    def broken(context: EvalContext) -> float:
        raise RuntimeError("a bug")

    todo = bench.plan(steps(1), [giving("norm", broken)])
    with pytest.raises(RuntimeError):
        execute(todo, bench.store, bench.cache)
    left = bench.store.find(todo.spec)
    assert left is not None
    assert (left.status, left.selection, left.points) == ("failed", todo.selection, [])
    assert left.error.startswith("RuntimeError: a bug\n")
    assert "running/test_run.py:" in left.error


def test_a_forced_run_with_an_error_before_the_first_measurement_leaves_the_earlier_record(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    first = run(bench, steps(2))

    def broken(*args: Any, **named: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("harness.models.memory.check", broken)
    with pytest.raises(RuntimeError):
        execute(bench.plan(steps(2), [NORM]), bench.store, bench.cache, force=True)
    assert bench.store.find(first.spec) == replace(first, points=list(first.points))


def breaks_off_before_it_measures(bench: Bench, monkeypatch: pytest.MonkeyPatch, force: bool) -> None:
    def broken(*args: Any, **named: Any) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr("harness.models.memory.check", broken)
        with pytest.raises(RuntimeError):
            execute(bench.plan(steps(2), [NORM]), bench.store, bench.cache, force=force)


@pytest.mark.parametrize("force", [False, True])
def test_a_first_run_that_never_began_is_kept_as_failed(bench: Bench, monkeypatch: pytest.MonkeyPatch, force: bool):
    breaks_off_before_it_measures(bench, monkeypatch, force)
    left = bench.store.find(bench.plan(steps(2), [NORM]).spec)
    assert left is not None
    assert (left.status, left.points) == ("failed", [])
    assert list(problems(bench.store)) == []


def test_a_forced_run_that_never_began_leaves_the_points_of_an_interrupted_one(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    def stopped(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        yield from itertools.islice(steps(2)(context, config), 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(bench, stopped)
    breaks_off_before_it_measures(bench, monkeypatch, force=True)
    left = bench.store.find(bench.plan(steps(2), [NORM]).spec)
    assert left is not None
    assert (left.status, len(left.points)) == ("interrupted", 1)


def test_memory_that_runs_out_is_one_sentence_and_a_record_with_frames(bench: Bench):
    import torch

    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has …")
    with pytest.raises(RunFailed, match=r"^fake ran out of memory on cpu\. Try .*--limit\. Points measured so far are kept\.$"):
        run(bench, breaks_after_first(error))
    left = bench.store.find(bench.plan(steps(3), [NORM]).spec)
    assert (left.status, len(left.points)) == ("failed", 1)
    first, second, *frames = left.error.splitlines()
    assert first.startswith("fake ran out of memory on cpu. Try ")
    assert second.startswith("OutOfMemoryError: CUDA out of memory")
    assert any(frame.startswith("harness/running/run.py:") for frame in frames)


# ---------------------------------------------------------------- rows of the last point only


def rows_and_texts(bench: Bench, result: RunResult) -> tuple[pd.DataFrame, list[str]]:
    where = bench.store.runs_folder / result.spec.folder
    texts = (where / "generations.jsonl").read_text(encoding="utf-8").splitlines()
    return pd.read_parquet(where / "per_example.parquet"), texts


LAST = Options(rows="last")


def check_last_rows(bench: Bench, result: RunResult) -> None:
    """It has all numbers of a run that keeps all rows, and of its rows and texts those of the last point."""
    whole = run(other_store(bench), steps(3), tofus(bench))
    assert result.spec == whole.spec
    assert result.status == "done"
    assert without_clock(result.points) == without_clock(whole.points)
    rows, texts = rows_and_texts(bench, result)
    every, all_texts = rows_and_texts(other_store(bench), whole)
    pd.testing.assert_frame_equal(rows, every[every["point"] == 2].reset_index(drop=True))
    assert texts == [text for text in all_texts if json.loads(text)["point"] == 2]
    assert 3 * len(texts) == len(all_texts) > 0
    assert list(problems(bench.store)) == []


def test_rows_of_the_last_point_alone_change_no_number(bench: Bench):
    result = run(bench, steps(3), tofus(bench), options=LAST)
    check_last_rows(bench, result)
    again = run(bench, steps(3), tofus(bench))
    assert again == replace(result, points=list(result.points)), "done is done, also where all rows are asked for"


def test_an_interrupted_run_keeps_its_rows_until_its_end(bench: Bench):
    with pytest.raises(KeyboardInterrupt):
        run(bench, breaks_after_first(KeyboardInterrupt()), tofus(bench), options=LAST)
    left = bench.store.find(bench.plan(steps(3), tofus(bench)).spec)
    assert left is not None
    assert set(rows_and_texts(bench, left)[0]["point"]) == {0}
    assert list(problems(bench.store)) == []
    check_last_rows(bench, run(bench, steps(3), tofus(bench), options=LAST))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["killed", "disk full"])
def test_a_run_that_breaks_while_rows_are_let_go_of_goes_on(
    bench: Bench, error: BaseException, monkeypatch: pytest.MonkeyPatch
):
    def breaks(record: Record, name: str, points: range) -> None:
        if points == range(2, 3):
            raise error
        cut(record, name, points)

    cut = Record._cut_lines
    evaluators, counted = tofus(bench), Calls(measuring.measurements)
    monkeypatch.setattr(measuring, "measurements", counted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Record, "_cut_lines", breaks)
        with pytest.raises((KeyboardInterrupt, UsageError)):
            run(bench, steps(3), evaluators, options=LAST)
    left = bench.store.find(bench.plan(steps(3), tofus(bench)).spec)
    assert left is not None
    assert (left.status, len(left.points)) == ("failed" if isinstance(error, OSError) else "interrupted", 3)
    assert list(problems(bench.store)) == []
    result = run(bench, steps(3), evaluators, options=LAST)
    assert counted.count == (2 + 2 + 3 + 2) * 2, "no point is measured twice"
    check_last_rows(bench, result)


# ---------------------------------------------------------------- texts


ASKED = (GenerationRequest(("Who was",), Sampling(4)), GenerationRequest(("Where was",), Sampling(4)))


def listening(requests: Sequence[GenerationRequest], heard: list[dict[GenerationRequest, str]]) -> Evaluator:
    """An evaluator that keeps the answers it is given for a model that is here."""

    def measure(context: EvalContext) -> None:
        if context.loaded:
            heard.append(dict(context.generations))

    return giving(f"listening_to_{len(requests)}", measure, requests=lambda plan, tokenizer: requests)


def test_evaluators_are_given_the_answers_they_asked_for(bench: Bench):
    heard: list[dict[GenerationRequest, str]] = []
    result = run(bench, steps(2), [listening(ASKED[:1], heard), listening(ASKED, heard)])
    assert all(set(answers) == set(ASKED) for answers in heard)
    lines = (bench.store.runs_folder / result.spec.folder / "generations.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    assert [(t["point"], t["turns"]) for t in told] == [(p, list(r.turns)) for p in (0, 1) for r in ASKED]
    assert [t["text"] for t in told[2:]] == [heard[-1][r] for r in ASKED]


def test_what_the_base_is_asked_the_base_answers(bench: Bench):
    asked = [replace(r, by="base") for r in ASKED]
    heard: list[dict[GenerationRequest, str]] = []
    run(bench, steps(2), [listening(asked, heard)])
    before, after = heard[-2:]
    assert before == after == heard[0]


# ---------------------------------------------------------------- references


def test_a_task_without_retrained_models_has_no_retrained_arm(bench: Bench):
    problem = replace(bench.base, sources={"base": bench.base.sources["base"]})
    result = run(bench, steps(1), tofus(bench), problem=problem)
    assert set(result.references) == {"untouched"}
    found = {m.metric: m for m in result.points[0].measurements}
    assert isinstance(found["forget_quality"], Absent)
    assert isinstance(found["forget_rouge"], Measurement)


def test_a_recorded_reference_stands_in_for_a_retrained_model(bench: Bench):
    table = pd.DataFrame({"task": ["forget"], "row": [0], "cluster": ["0"], "norm": [12.5]})
    todo = bench.plan(steps(1), [NORM], replace(bench.base, sources={"base": bench.base.sources["base"]}))
    todo = replace(todo, eval_plan=replace(todo.eval_plan, recorded={"a log": {"norm": table}}))
    result = execute(todo, bench.store, bench.cache)
    assert result.references["retrained"][0].value == 12.5


def test_references_are_measured_once_for_all_runs(bench: Bench):
    evaluator = Calls(norm_of)
    run(bench, steps(1), [giving("norm", evaluator)])
    cold = evaluator.count
    run(bench, steps(1), [giving("norm", evaluator)], options=Options(seed=1))
    assert (cold, evaluator.count - cold) == (2 + 2 + 1, 2 + 1)  # two models, two arms, one point; then arms and point


# ---------------------------------------------------------------- records hold no paths


def test_no_absolute_path_is_in_a_record(bench: Bench, tmp_path: Path):
    result = run(bench, steps(1), tofus(bench))
    folder = bench.store.runs_folder / result.spec.folder
    text = "".join((folder / name).read_text() for name in ("run.json", "points.jsonl", "generations.jsonl"))
    assert len(text) > 5000
    for place in (tmp_path, tempfile.gettempdir(), ROOT, Path.home(), Path.cwd(), sys.prefix):
        assert str(place) not in text or str(place) == "/", place
    # Nor any other text that begins like a path from the root of a file system.
    assert not re.findall(r'"(?:/[\w.-]+){2,}|"[A-Za-z]:\\\\', text)
    assert str(tmp_path) not in repr(pd.read_parquet(folder / "per_example.parquet").to_dict())


def test_a_model_given_as_a_folder_is_named_by_the_folders_name(nano: Nano, tmp_path: Path):
    from harness.core.config import to_json
    from harness.models.sources import save_checkpoint

    folder = tmp_path / "my model"
    save_checkpoint(nano.model(), nano.tokenizer, folder, {"model": "mini"})
    todo = plan("tofu10", str(folder), "untouched", {}, Options(limit=2))
    assert todo.spec.model == "my model"
    assert todo.command == "harness run --method untouched --bench tofu10 --model 'my model' --limit 2"
    assert str(tmp_path) not in json.dumps(to_json(todo.spec))
    assert "retain-0" in todo.problem.sources, "a checkpoint of this harness knows what it was made for"


# ---------------------------------------------------------------- what is kept of the model


def final_weights(bench: Bench, nano: Nano, keep: ExportOptions) -> RunResult:
    return execute(bench.plan(steps(2), [NORM]), bench.store, bench.cache, keep)


def test_the_unlearned_model_can_be_kept_as_a_checkpoint(bench: Bench, nano: Nano, tmp_path: Path):
    from harness.models.sources import read_sidecar, weights_fingerprint
    from harness.numerics.loading import load_checkpoint

    result = final_weights(bench, nano, ExportOptions(model=tmp_path / "kept"))
    model, _ = load_checkpoint(str(tmp_path / "kept"), "cpu", "float32")
    assert weights_fingerprint(model) == result.points[-1].weights
    assert read_sidecar(tmp_path / "kept") == {
        "model": "mini",
        "template": "mini",
        "bench": "nano",
        "run": result.spec.run_id,
    }


def test_the_difference_of_the_weights_can_be_kept(bench: Bench, nano: Nano, tmp_path: Path):
    from safetensors.torch import load_file

    from harness.models.updates import added
    from harness.numerics.loading import load_checkpoint

    final_weights(bench, nano, ExportOptions(model=tmp_path / "kept", update=tmp_path / "deep" / "update.safetensors"))
    moved = load_file(tmp_path / "deep" / "update.safetensors")
    assert set(moved) == {"lm_head.weight"}
    model, _ = load_checkpoint(str(tmp_path / "kept"), "cpu", "float32")
    assert added(nano.model().lm_head.weight.detach(), moved["lm_head.weight"]).equal(model.lm_head.weight)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_the_record_of_a_run_that_is_done_stays_byte_for_byte_when_its_model_is_kept(bench: Bench, nano: Nano, tmp_path: Path):
    from harness.models.sources import load_checkpoint, weights_fingerprint

    counted = Calls(norm_of)
    evaluators = [giving("norm", counted), *tofus(bench)]
    first = run(bench, steps(2), evaluators)
    before, count = bytes_of(bench.results), counted.count
    keep = ExportOptions(model=tmp_path / "kept", update=tmp_path / "update.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.models.sources.weights_fingerprint", fingerprints := Calls(weights_fingerprint))
        result = execute(bench.plan(steps(2), evaluators), bench.store, bench.cache, keep)
    assert fingerprints.count == 1, "of the last place"
    assert {"run.json", "points.jsonl", "per_example.parquet", "generations.jsonl"} <= {Path(name).name for name in before}
    assert bytes_of(bench.results) == before
    assert result == replace(first, points=list(first.points))
    assert counted.count == count, "nothing is measured again"
    model, _ = load_checkpoint(str(tmp_path / "kept"), "cpu", "float32")
    assert weights_fingerprint(model) == first.points[-1].weights
    assert (tmp_path / "update.safetensors").is_file()


def test_another_model_than_the_one_that_was_measured_is_not_kept(bench: Bench, tmp_path: Path):
    run(bench, steps(2))
    before = bytes_of(bench.results)
    with pytest.raises(UsageError, match=r"came to other weights now .* its record stays; --force measures it anew"):
        execute(bench.plan(steps(3), [NORM]), bench.store, bench.cache, ExportOptions(model=tmp_path / "kept"))
    assert not (tmp_path / "kept").exists()
    assert bytes_of(bench.results) == before


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("done", [False, True])
def test_a_model_that_cannot_be_kept_leaves_the_run_done(bench: Bench, tmp_path: Path, forced: bool, done: bool):
    if done:
        run(bench, steps(2), [NORM])

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.models.sources.save_checkpoint", full)
        with pytest.raises(
            UsageError, match=r"no space is left on the disk of the folder .*kept\. Choose another with --save-m"
        ):
            execute(bench.plan(steps(2), [NORM]), bench.store, bench.cache, ExportOptions(model=tmp_path / "kept"), forced)
    found = bench.store.find(bench.plan(steps(2), [NORM]).spec)
    assert found is not None
    assert (found.status, found.error, len(found.points)) == ("done", "", 2)
    assert list(problems(bench.store)) == []


def nothing_is_unlearned(context: UnlearningContext, config: Any) -> Iterator[Progress]:
    raise AssertionError("the place was not tried first")
    yield


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (lambda at: ExportOptions(model=at / "file" / "kept"), "Not a directory. Choose another with --save-model"),
        (lambda at: ExportOptions(model=at / "file"), "Not a directory. Choose another with --save-model"),
        (
            lambda at: ExportOptions(update=at / "file" / "deep" / "update"),
            "Not a directory. Choose another with --save-update",
        ),
        (lambda at: ExportOptions(update=at / "folder"), "Is a directory. Choose another with --save-update"),
        (lambda at: ExportOptions(model=at / ("x" * 300)), "File name too long. Choose another with --save-model"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_sentence_before_anything_is_unlearned(
    bench: Bench, tmp_path: Path, keep: Callable[[Path], ExportOptions], said: str
):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=said):
        execute(bench.plan(nothing_is_unlearned), bench.store, bench.cache, keep(tmp_path))
    assert not bench.results.exists(), "nor is there a record of it"


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(30, "Read-only file system")])
def test_a_folder_that_must_not_be_written_is_one_sentence_before_anything_is_unlearned(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
):
    def refuse(folder: Path) -> None:
        raise error

    monkeypatch.setattr("harness.models.export.temporary_file", refuse)
    with pytest.raises(UsageError, match=f"{error.strerror}. Choose another with --save-update"):
        execute(bench.plan(nothing_is_unlearned), bench.store, bench.cache, ExportOptions(update=tmp_path / "update"))


def test_too_little_room_for_the_model_is_said_before_anything_is_unlearned(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 90, 10))  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"has 0\.00 GiB left on its disk, and about 0\.00 GiB are to be written"):
        execute(bench.plan(nothing_is_unlearned), bench.store, bench.cache, ExportOptions(model=tmp_path / "kept"))


def test_two_places_on_one_disk_share_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import shutil

    room = 2**30
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(2 * room, room, room))  # type: ignore[attr-defined]
    model, update = tmp_path / "kept", tmp_path / "update.safetensors"
    for keep in (ExportOptions(model=model), ExportOptions(update=update)):
        keep.check(room)
    ExportOptions(model=model, update=update).check(room // 2)
    with pytest.raises(UsageError, match=r"the file .* has 1\.00 GiB left on its disk, and about 2\.00 GiB are to be written"):
        ExportOptions(model=model, update=update).check(room)


# ---------------------------------------------------------------- plans, devices, costs


def test_a_plan_resolves_defaults_then_preset_then_what_was_given():
    todo = plan("tofu10", "mini@1", "kfade", {"damping": 0.2, "step_size": 0.5}, Options())
    assert (todo.config.damping_scale, todo.config.damping) == ("mean_eigenvalue", 0.2)
    assert (todo.config.step_size, todo.config.target_kl) == (0.5, None)
    assert todo.selection == "published form: preset of kfade for tofu10 on mini, then damping, step_size by hand"
    assert todo.spec.config["damping"] == 0.2


def test_the_command_of_a_plan_gives_the_same_plan():
    import shlex

    from harness.core.config import parse

    options = Options(seed=3, limit=4, device="cuda:1", dtype="bfloat16", variant="open-unlearning", generator="another")
    given = {"step_size": 0.5, "layers": [0, 1], "estimator": "kfac", "refit": False, "damping": 1e-3}
    todo = plan("tofu05", "mini@2", "kfade", given, options)
    words = shlex.split(todo.command)
    assert words[:2] == ["harness", "run"]
    flags = list(zip(words[2::2], words[3::2], strict=True))
    told = dict(flags)
    again = plan(
        told["--bench"],
        told["--model"],
        told["--method"],
        parse(value for flag, value in flags if flag == "--set"),
        replace(
            Options(int(told["--seed"]), int(told["--limit"]), told["--device"], told["--dtype"], told["--variant"]),  # type: ignore[arg-type]
            generator=told["--generator"],
        ),
    )
    assert again.spec == todo.spec


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cpu", ""),
        ("mps", " --device mps"),
        ("cuda:2", " --device cuda --generator hf"),
        ("cuda:all", " --device cuda:all --generator hf"),
    ],
)
def test_a_command_names_the_kind_of_device_that_is_no_cpu(device: str, said: str):
    todo = plan("tofu10", "mini", "ga", {}, Options(device=device))
    assert todo.command == f"harness run --method ga --bench tofu10 --model mini{said}"


@pytest.mark.parametrize("asked", ["tpu", "cuda:x", "cpu:0"])
def test_a_device_nobody_knows_is_refused(asked: str):
    with pytest.raises(UsageError, match=rf"no device called '{asked}'\. There are: auto, cpu"):
        pick_device(asked)


def test_a_gpu_that_is_not_there_is_refused_with_how_many_there_are():
    with pytest.raises(UsageError, match=r"this machine has \d+ cuda devices?, 'cuda:77' is not among them"):
        pick_device("cuda:77")


def test_the_cpu_is_always_there():
    assert pick_device("cpu") == "cpu"


def test_an_outer_phase_covers_its_inner_ones(clock: Clock):
    costs = Costs()
    with costs.phase("outer"):
        costs.count(5)
        with costs.phase("inner"):
            clock.sleep(20)
            costs.saved(10)
        with costs.phase("inner"):
            costs.count(2)
    outer, inner = costs.phases["outer"], costs.phases["inner"]
    assert outer.seconds >= inner.seconds >= 20
    assert outer.full_seconds == pytest.approx(outer.seconds + 10)
    assert inner.full_seconds == pytest.approx(inner.seconds + 10)
    assert (outer.tokens, inner.tokens) == (7, 2)
    assert outer.peak_bytes >= inner.peak_bytes > 0


def test_what_is_measured_aside_is_in_no_open_phase(clock: Clock):
    costs = Costs()
    with costs.phase("outer"):
        clock.sleep(20)
        with costs.aside("apart"):
            costs.count(3)
            costs.saved(10)
            clock.sleep(50)
    outer, apart = costs.phases["outer"], costs.phases["apart"]
    assert apart.seconds >= 50
    assert 20 <= outer.seconds < 50
    assert outer.full_seconds == pytest.approx(outer.seconds)
    assert (outer.tokens, apart.tokens) == (0, 3)


class Memory:
    """Stands in for the process's memory, whose peak counter can be reset."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.peak = 0
        monkeypatch.setattr("harness.core.costs._reset_peak", lambda: setattr(self, "peak", self.now))
        monkeypatch.setattr("harness.core.costs._peak_bytes", lambda: self.peak)

    def use(self, amount: int) -> None:
        self.now = amount
        self.peak = max(self.peak, amount)


def test_a_phases_peak_is_the_most_held_at_once_in_it(monkeypatch: pytest.MonkeyPatch):
    memory, costs = Memory(monkeypatch), Costs()
    memory.use(1000)
    memory.use(10)
    with costs.phase("outer"), costs.phase("inner"):
        memory.use(100)
        memory.use(10)
    with costs.phase("later"):
        memory.use(20)
    assert {name: phase.peak_bytes for name, phase in costs.phases.items()} == {"outer": 100, "inner": 100, "later": 20}


def test_an_outer_phase_keeps_the_peak_it_reached_before_an_inner_one(monkeypatch: pytest.MonkeyPatch):
    memory, costs = Memory(monkeypatch), Costs()
    with costs.phase("outer"):
        memory.use(100)
        memory.use(10)
        with costs.phase("inner"):
            memory.use(20)
    assert costs.phases["inner"].peak_bytes == 20
    assert costs.phases["outer"].peak_bytes == 100


class GPUs:
    """Stands in for torch.cuda: the second of three GPUs is used, and what it is told to do is done when it is waited for."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._told, self.peak = clock, 0.0, 0

    def device_count(self) -> int:
        return 3

    def memory_reserved(self, gpu: int) -> int:
        return 100 * (gpu == 1)

    def tell(self, seconds: float, peak: int) -> None:
        self._told, self.peak = self._told + seconds, max(self.peak, peak)

    def synchronize(self, gpu: int) -> None:
        assert self.memory_reserved(gpu), "this would take memory on a GPU that nobody uses"
        self._clock.sleep(self._told)
        self._told = 0.0

    def reset_peak_memory_stats(self, gpu: int) -> None:
        self.peak = 0

    def max_memory_allocated(self, gpu: int) -> int:
        return self.peak if self.memory_reserved(gpu) else 0


def test_what_a_gpu_was_told_to_do_counts_where_it_was_told(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    gpus, costs = GPUs(clock), Costs()
    monkeypatch.setattr("harness.core.costs._cuda", lambda: gpus)
    gpus.tell(1000, peak=1000)
    with costs.phase("outer"):
        with costs.phase("first"):
            gpus.tell(20, peak=50)
        with costs.phase("second"):
            gpus.tell(0, peak=10)
        gpus.tell(30, peak=10)
        with costs.aside("apart"):
            gpus.tell(500, peak=70)
    seconds = {name: phase.seconds for name, phase in costs.phases.items()}
    assert seconds == pytest.approx({"outer": 50, "first": 20, "second": 0, "apart": 500}, abs=5)
    assert {name: phase.peak_bytes for name, phase in costs.phases.items()} == {
        "outer": 50,
        "first": 50,
        "second": 10,
        "apart": 70,
    }


def test_a_phase_that_breaks_is_still_counted(clock: Clock):
    costs = Costs()
    with pytest.raises(RuntimeError), costs.phase("broken"):
        raise RuntimeError
    costs.saved(10)  # nothing is open any more
    assert costs.phases["broken"].full_seconds < 5


def test_a_plan_names_recorded_references_before_retrained_ones(nano_problem: Problem):
    assert EvalPlan(nano_problem).references == ["retain-0", "retain-1"]
    assert EvalPlan(nano_problem, recorded={"a log": {}}).references == ["a log", "retain-0", "retain-1"]


# ---------------------------------------------------------------- a method that moves nothing


def idle(*norms: float, move: bool = False) -> Callable[[UnlearningContext, Any], Iterator[Progress]]:
    """A method that says it took a step for each gradient."""

    def unlearn(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        for step, norm in enumerate(norms, start=1):
            if move:
                nudge(context)
            yield Progress(step, {"gradient_norm": norm}, measure_here=step == len(norms), total=len(norms))

    return unlearn


def test_a_method_that_moved_nothing_is_said_to_have(bench: Bench):
    still = "after the last step the weights are, bit by bit, those before unlearning: nothing was unlearned"
    without = "the gradient was 0 at every measured step: nothing was learned from the forget set"
    assert list(run(bench, idle(0.0, 0.5)).notes) == [still]
    assert list(run(other_store(bench), idle(0.0, 0.0), settings={"strength": 2.0}).notes) == [still, without]
    assert list(run(other_store(bench), idle(0.0, 0.0, move=True), settings={"strength": 3.0}).notes) == [without]
    assert list(run(other_store(bench), idle(0.0, 0.1, move=True), settings={"strength": 4.0}).notes) == []


def test_the_untouched_model_is_not_said_to_be_idle(bench: Bench):
    def nothing(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        yield Progress(0, measure_here=True, total=0)

    assert list(run(bench, nothing).notes) == []
