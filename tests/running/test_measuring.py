"""What a record could not hold is refused in one sentence, before anything is unlearned."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from evals import finetune_attack
from harness.core.costs import Costs
from harness.core.errors import UsageError
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan, Evaluator, GenerationRequest, Sampling
from harness.core.measurement import Absent, Measurement
from harness.core.method import Progress, UnlearningContext
from harness.core.options import Options
from harness.models.pretraining import TrainedSource
from harness.models.sources import save_checkpoint, weights_fingerprint
from harness.numerics.generation import HFGenerator
from harness.running.contracts.tiny import TinySource
from harness.running.measuring import check_tables, source_tables
from harness.running.plan import plan
from harness.running.run import execute
from harness.storage.cache import Cache
from tests.conftest import Bench, giving
from tests.models.test_pretraining import PARENT

ROW = {"task": ["forget"], "row": [0], "cluster": ["0"]}


def keeping(name: str, columns: Mapping[str, Sequence[Any]], table: str = "") -> Evaluator:
    """An evaluator that keeps a table of its own name."""
    return giving(name, lambda context: float(len(context.table(table or name, lambda _: pd.DataFrame(columns)))))


def refused(bench: Bench, *evaluators: Evaluator) -> str:
    """What is said of a run with these evaluators, whose method must not begin."""

    def never(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        raise AssertionError("it was unlearned before the tables were looked at")
        yield

    todo = bench.plan(never, evaluators)
    with pytest.raises(UsageError) as caught:
        execute(todo, bench.store, bench.cache)
    assert not list(bench.store.runs())
    return str(caught.value)


def test_two_tables_with_one_columns_name_for_the_same_rows_are_refused_before_unlearning(bench: Bench):
    said = refused(bench, keeping("first", {**ROW, "length": [1]}), keeping("second", {**ROW, "length": [2], "more": [3]}))
    assert said == (
        "what second keeps row by row cannot be recorded: tables 'second' and 'first' both have a column 'length' for the same "
        "rows of forget. Give one of them another name."
    )


def test_two_evaluators_with_clashing_columns_are_refused_for_different_rows_too(bench: Bench):
    """A record keeps all tables as one: who reads its column back finds the other's rows in it as well."""

    def of_module(module: str, name: str, columns: Mapping[str, Sequence[Any]]) -> Evaluator:
        def build(context: UnlearningContext) -> pd.DataFrame:
            return pd.DataFrame(columns)

        build.__module__ = module
        return giving(name, lambda context: float(len(context.table(name, build))))

    one, other = {**ROW, "length": [1]}, {**ROW, "task": ["retain"], "length": [2]}
    said = refused(bench, of_module("theirs.first", "first", one), of_module("others.second", "second", other))
    assert said == (
        "what second keeps row by row cannot be recorded: tables 'second' and 'first' both have a column 'length', and one "
        "evaluator would read the other's. Give one of them another name."
    )

    def still(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        yield Progress(1, {}, measure_here=True, total=1)

    same_package = [of_module("theirs.first", "first", one), of_module("theirs.second", "second", other)]
    result = execute(bench.plan(still, same_package), bench.store, bench.cache)
    rows = bench.store.rows(result.spec, 0)
    assert rows is not None
    assert rows.sort_values("task")[["task", "length"]].to_numpy().tolist() == [["forget", 1], ["retain", 2]], "no row is lost"


def test_a_column_of_tofus_own_tables_is_refused_too(bench: Bench):
    mine = keeping("mine", {**ROW, "task": ["retain"], "avg_gt_loss": [0.0]})
    said = refused(bench, EVALUATORS.get("probability"), mine)
    assert "tables 'mine' and 'likelihood' both have a column 'avg_gt_loss' for the same rows of retain" in said


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (
            {"task": ["forget"], "row": [0], "length": [1]},
            "table 'mine' has no column 'cluster'. A row needs task, row and cluster.",
        ),
        ({"row": [0], "cluster": ["0"], "length": [1]}, "has no column 'task'"),
        ({**ROW, "point": [1]}, "has a column 'point', which is the record's own"),
        ({**ROW, "cluster": [0]}, "row must be a whole number, task and cluster texts"),
        ({**ROW, "row": ["0"]}, "row must be a whole number, task and cluster texts"),
        ({"task": ["forget"] * 2, "row": [0, 0], "cluster": ["0", "1"]}, "more than one line for the same task and row"),
    ],
)
def test_a_table_that_a_record_cannot_hold_is_refused_before_unlearning(bench: Bench, columns: dict[str, list[Any]], says: str):
    said = refused(bench, keeping("mine", columns))
    assert said.startswith("what mine keeps row by row cannot be recorded: ")
    assert says in said


def test_a_row_in_two_clusters_is_refused_before_unlearning(bench: Bench):
    one, other = {**ROW, "length": [1]}, {**ROW, "cluster": ["7"], "width": [1]}
    assert "put a row into different clusters" in refused(bench, keeping("one", one), keeping("other", other))


def test_two_evaluators_that_name_a_number_alike_are_refused_before_unlearning(bench: Bench):
    one = keeping("one", {**ROW, "length": [1]})
    with pytest.raises(UsageError) as caught:
        bench.plan(lambda context, config: iter(()), [one, replace(one, name="other")])
    assert str(caught.value) == (
        "the evaluators one and other both give a number 'one'. Leave one of them out of --evals, or give one number another name."
    )


def test_an_evaluator_that_is_named_twice_measures_once():
    planned = plan("tofu10", "mini", "untouched", {}, Options(limit=3, evals=("rouge", "rouge")))
    assert [evaluator.name for evaluator in planned.eval_plan.evaluators] == ["rouge"]


def test_two_modules_that_name_a_table_alike_are_refused_before_unlearning(bench: Bench):
    said = refused(bench, EVALUATORS.get("probability"), keeping("mine", {**ROW, "length": [1]}, table="likelihood"))
    assert said == "evals._tofu and tests.running.test_measuring both keep a table 'likelihood': give one of them another name."


def test_tables_may_fill_a_column_for_different_rows():
    told = {**ROW, "kl_sum": [1.0]}
    check_tables({"a": pd.DataFrame(told), "b": pd.DataFrame({**told, "task": ["retain"]}), "none": pd.DataFrame([])})


def test_an_evaluator_without_rows_leaves_the_run_whole(bench: Bench):
    """Such as ROUGE where a benchmark has no question of ToFU's kinds: no row, no column."""

    def still(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        yield Progress(1, {}, measure_here=True, total=1)

    problem = replace(bench.base, questions={"bio": bench.base.questions["bio"]})
    todo = bench.plan(still, [EVALUATORS.get("rouge"), EVALUATORS.get("multiple_choice")], problem)
    [point] = execute(todo, bench.store, bench.cache).points
    found = {m.metric: m for m in point.measurements}
    assert isinstance(found["retain_rouge"], Absent)
    assert found["retain_rouge"].reason == "there are no retain rows"
    assert isinstance(found["bio_accuracy"], Measurement)


# ---------------------------------------------------------------- one checkpoint under two names


@pytest.mark.parametrize("cached", [False, True])
def test_a_retrained_model_is_called_the_same_by_its_weights_not_by_its_answers(
    bench: Bench, caplog: pytest.LogCaptureFixture, cached: bool
):
    def still(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        yield Progress(1, {}, measure_here=True, total=1)

    alike = keeping("alike", {**ROW, "length": [1]})  # every model has the same rows
    nano = bench.base.sources["base"].models  # type: ignore[attr-defined]

    class Renamed(TinySource):
        @property
        def identity(self) -> Mapping[str, Any]:
            return {"kind": "nano", "seed": "0 under another name"}

    sources = {**bench.base.sources, "retain-1": Renamed(0, nano)}
    todo = bench.plan(still, [alike], problem=replace(bench.base, sources=sources))
    if cached:
        execute(todo, bench.store, bench.cache)
        caplog.clear()
    with caplog.at_level(logging.WARNING):
        execute(todo, bench.store, bench.cache, force=True)
    assert [r.getMessage() for r in caplog.records if "checkpoint" in r.getMessage()] == [
        "retain-1 has the very weights of the model before unlearning: is it the same checkpoint?"
    ]


# ---------------------------------------------------------------- one recipe, other weights


def trained_elsewhere(source: TrainedSource, cache: Cache) -> None:
    """Put into the cache what another kind of machine makes of a recipe."""
    model, tokenizer = source.load(cache, "cpu", "float32")
    next(model.parameters()).data += 1

    def make(folder: Path) -> dict[str, Any]:
        save_checkpoint(model, tokenizer, folder, {})
        return {"weights": weights_fingerprint(model)}

    cache.forget("model", source.identity)
    cache.get("model", source.identity, make)


def test_what_was_computed_with_a_trained_model_is_not_taken_for_another_machines(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    generator = HFGenerator()
    request = GenerationRequest(("Who?",), Sampling(max_tokens=4), by="base")
    asking = giving("asking", lambda context: None, requests=lambda plan, tokenizer: [request])
    monkeypatch.setattr(finetune_attack, "POINTS", (2,))
    questions = {"bio": bench.base.questions["bio"]}
    attacks = {"forget": bench.base.stages[0].forget[:4]}
    attacked = replace(bench.base, stages=bench.base.stages[:1], attacks=attacks, sources={"base": PARENT})
    plan = EvalPlan(replace(attacked, questions=questions), [EVALUATORS.get("multiple_choice"), asking])

    def counted() -> list[int]:
        found = source_tables(PARENT, plan, Options(), bench.cache, generator)
        assert found.weights == weights_fingerprint(PARENT.load(bench.cache, "cpu", "float32")[0])
        context = UnlearningContext(*PARENT.load(bench.cache, "cpu", "float32"), attacked, 0, bench.cache, Costs(), "")
        eval_context = EvalContext(context, EvalPlan(attacked), ())
        finetune_attack._attack_on_base(eval_context, context.model.state_dict(), attacked.attacks["forget"])
        return [len([*bench.cache.root.glob(f"{kind}/*/entry.json")]) for kind in ("evaluations", "generations", "attack")]

    assert counted() == counted() == [1, 1, 1]
    trained_elsewhere(PARENT, bench.cache)
    assert counted() == [2, 2, 2]
