"""Points at equal damage: which rows are held out, where every method meets a budget, and what is said where it does not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evals.benchmarks.tofu import MOST_SPARE
from evals.benchmarks.tofu.world import World
from evals.benchmarks.wmdp.crafts import World as Crafts
from harness.core.config import resolve
from harness.core.errors import Diverged, UsageError
from harness.core.method import METHODS, Progress, UnlearningContext
from harness.core.options import Options
from harness.core.problem import Problem
from harness.core.registry import ROOT
from harness.data.held_out import GENERAL_ROWS, held_out_digest, hold_out
from harness.models.export import ExportOptions
from harness.models.sources import CheckpointSource, weights_fingerprint
from harness.numerics import group, meeting
from harness.numerics.damage import DamageMeter, Look
from harness.numerics.meeting import TOLERANCE
from harness.numerics.weights import Weights
from harness.running.budgets import BudgetedRun
from harness.running.plan import plan, read
from harness.running.request import RunRequest
from harness.running.run import execute
from harness.storage.store import Store
from harness.storage.validate import problems
from tests.architectures import SETTINGS
from tests.conftest import Bench, ContextMaker, examples, giving

BUDGETS = (1e-3, 1e-2)
ANYTHING = giving("anything", lambda context: 1.0)


@pytest.fixture
def budgeted(nano_problem: Problem) -> Problem:
    """The nano problem with general text, its budget rows held out."""
    world = World(0)
    about, others = world.general
    return hold_out(replace(nano_problem, general=examples(about[:40]), unseen=examples(others[:20]), guarded=world.guarded))


def walk(context: UnlearningContext, config: Any) -> Iterator[Progress]:
    """Eight equal steps of one matrix along one direction."""
    weight = context.model.lm_head.weight
    towards = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    for step in range(1, 9):
        with torch.no_grad():
            weight.add_(0.02 * towards)
        yield Progress(step, {"length": 0.02 * step}, measure_here=step == 8, total=8)


# ---------------------------------------------------------------- which rows


@pytest.mark.parametrize("bench", ["tofu05", "wmdp"])
def test_budget_rows_are_in_no_retain_set_no_general_text_and_no_question(bench: str):
    plain, held = (read(bench, "mini", Options(budgets=budgets)).problem for budgets in ((), (0.1,)))
    assert not plain.held_out
    left = {e for stage in held.stages for e in stage.retain}
    prompts = {held.template.prompt(row["question"]) for rows in held.questions.values() for row in rows if "question" in row}
    for e in held.held_out["retain"]:
        assert e not in left
        assert not e.prompt or e.prompt not in prompts
    for e in held.held_out["general"]:
        assert e not in held.general
        assert e not in held.unseen
        assert not e.prompt or e.prompt not in prompts
    assert len(held.held_out["general"]) == GENERAL_ROWS
    for before, after in zip(plain.stages, held.stages, strict=True):
        assert [e for e in before.retain if e in set(after.retain)] == list(after.retain), "the others stay, in their order"
        assert before.forget == after.forget
        assert 0.08 <= 1 - len(after.retain) / len(before.retain) <= 0.2 or len(before.retain) - len(after.retain) >= 200


def test_authors_are_held_out_whole_and_none_of_whom_a_metric_asks():
    held = read("tofu10", "mini", Options(budgets=(0.1,))).problem
    (stage,) = held.stages
    asked = {row["cluster"] for row in held.questions["retain"]}
    names = {a.name for a in World(0).authors}
    of_held = {name for name in names if any(name in e.prompt for e in held.held_out["retain"])}
    assert len(of_held) == 9
    assert len(held.held_out["retain"]) == 9 * 12
    assert not any(name in e.prompt for name in of_held for e in stage.retain), "the rest of such an author is not trained on"
    assert {World(0).authors[int(cluster)].name for cluster in asked}.isdisjoint(of_held)
    assert len(stage.retain) == len(stage.retain_clusters) == 90 * 12 - 9 * 12


@pytest.mark.parametrize("limit", [None, 20])
@pytest.mark.parametrize("bench", ["wmdp", "wmdp-cyber"])
def test_what_the_crafts_describe_is_held_out_whole_and_nothing_that_a_metric_asks_about(bench: str, limit: int | None):
    plain, held = (read(bench, "mini", Options(limit=limit, budgets=budgets)).problem for budgets in ((), (0.1,)))
    left = [*(e for stage in held.stages for e in stage.retain), *held.general]
    titles = {entity.title for entities in Crafts(0).entities.values() for entity in entities}
    of_held = {title for title in titles if any(title in e.answer for e in held.held_out["retain"])}
    assert of_held
    for title in of_held:
        assert not any(title in e.answer for e in left), "no other description of it is left to any method"
        assert {e for stage in plain.stages for e in stage.retain if title in e.answer} <= set(held.held_out["retain"])
    assert of_held.isdisjoint(row["cluster"] for rows in plain.questions.values() for row in rows)
    for texts, clusters in [(s.retain, s.retain_clusters) for s in held.stages] + [(held.general, held.general_clusters)]:
        assert all(cluster in e.answer for e, cluster in zip(texts, clusters, strict=True))


def test_half_of_the_general_rows_are_about_those_whom_no_method_may_read_of():
    held = read("tofu10", "mini", Options(budgets=(0.1,))).problem
    about = [any(name in e.prompt for name in held.guarded) for e in held.held_out["general"]]
    assert sum(about) == len(about) / 2
    assert all(any(name in e.prompt for name in held.guarded) for e in held.general)
    clusters = {row["cluster"] for name in ("real_authors", "world_facts") for row in held.questions[name]}
    assert 0.3 < len(clusters & set(held.guarded)) / len(clusters) < 0.7


def test_the_same_rows_for_every_seed_and_method_and_others_in_another_world():
    digests = {
        held_out_digest(read("tofu10", "mini", Options(seed=seed, budgets=b)).problem)
        for seed in (0, 3)
        for b in ((0.1,), (0.2,))
    }
    assert len(digests) == 1
    assert held_out_digest(read("tofu10", "mini@1", Options(budgets=(0.1,))).problem) not in digests
    assert held_out_digest(read("tofu10", "mini", Options()).problem) == ""


def test_the_committed_records_were_measured_on_the_same_rows():
    specs = [result.spec for result in Store(ROOT / "results" / "equal-damage").runs()]
    committed = {(spec.bench, spec.model, spec.budget_rows) for spec in specs}
    assert {model for _, model, _ in committed} == {"mini", "mini@1", "mini@2"}
    for bench, model, rows in committed:
        assert held_out_digest(read(bench, model, Options(budgets=(0.1,))).problem) == rows


def test_a_problem_whose_retain_rows_are_all_asked_about_is_refused(nano_problem: Problem):
    (stage,) = nano_problem.stages
    asked = [
        e
        for e in stage.retain
        if e.prompt in {nano_problem.template.prompt(r["question"]) for r in nano_problem.questions["retain"]}
    ]
    with pytest.raises(UsageError, match=r"no retain rows to measure damage on.*--budgets"):
        hold_out(replace(nano_problem, stages=[replace(stage, retain=asked)]))
    with pytest.raises(UsageError, match="no retain rows"):
        hold_out(replace(nano_problem, stages=[replace(stage, retain=asked)], spare=asked[:1]))
    spare = [*examples([{"question": "Who is spare?", "answer": "Nobody."}]), asked[0]]
    held = hold_out(replace(nano_problem, stages=[replace(stage, retain=asked)], spare=spare))
    assert held.held_out["retain"] == spare[:1], "what metrics ask about is no budget row"
    assert list(held.stages[0].retain) == asked
    assert held.notes[-1] == "damage is measured on retain rows that the limit left out (1)"


def test_under_a_limit_damage_is_measured_on_rows_behind_it():
    limited, whole = (read("tofu10", "mini", Options(budgets=(0.1,), limit=limit)).problem for limit in (5, None))
    rows = limited.held_out["retain"]
    assert len(rows) == MOST_SPARE
    asked = {limited.template.prompt(row["question"]) for rows in limited.questions.values() for row in rows}
    assert not {e.prompt for e in rows} & (asked | {e.prompt for e in limited.stages[0].retain})
    assert held_out_digest(limited) != held_out_digest(whole)
    assert not any("limit" in note for note in whole.notes)


# ---------------------------------------------------------------- what damage is


def test_damage_is_the_larger_mean_kl_of_the_two_kinds(make_context: ContextMaker, budgeted: Problem):
    from harness.data.rows import encode, pad_id
    from harness.numerics.likelihood import kl_between

    context = make_context(problem=budgeted)
    meter = DamageMeter(context.model, context.tokenizer, budgeted.held_out)
    assert meter.damage().nats == pytest.approx(0.0, abs=1e-6)
    before = make_context(problem=budgeted).model
    next(walk(context, None))
    measured, expected = meter.damage(), {}
    for kind, rows in budgeted.held_out.items():
        sums, counts = kl_between(before, context.model, encode(list(rows), context.tokenizer), pad_id(context.tokenizer))
        expected[kind] = sums.sum() / counts.sum()
        assert meter.tokens[kind] == counts.sum()
    assert measured.by_kind == pytest.approx(expected, rel=1e-4)
    assert measured.nats == max(measured.by_kind.values()) > 0


def test_few_rows_say_that_a_budget_is_far_and_all_rows_that_it_is_near(
    make_context: ContextMaker, budgeted: Problem, monkeypatch: pytest.MonkeyPatch
):
    context = make_context(problem=budgeted)
    meter = DamageMeter(context.model, context.tokenizer, budgeted.held_out)
    whole, inner = [], meter.damage
    monkeypatch.setattr(meter, "damage", lambda: whole.append(1) or inner())
    next(walk(context, None))
    true = inner().nats
    few = meter.look(1e3)
    assert not whole, "far under the budget"
    assert few == (pytest.approx(true, rel=0.5), False)
    assert meter.look(true) == (true, True)
    assert len(whole) == 1
    assert meter.look(true / 0.6) == (pytest.approx(true, rel=1e-6), False), "few rows, scaled as they went with all of them"
    assert len(whole) == 1
    assert meter.look(true / 0.8) == (true, True)
    assert len(whole) == 2


@pytest.mark.parametrize("misjudged", [1, 4])
def test_a_budget_that_few_rows_took_for_far_is_met_on_the_way_there(
    misjudged: int, make_context: ContextMaker, budgeted: Problem, monkeypatch: pytest.MonkeyPatch
):
    """Few rows say .3 budgets for so many steps; the first of them has gone past it already."""
    alone = make_context(problem=budgeted)
    meter = DamageMeter(alone.model, alone.tokenizer, budgeted.held_out)
    at = [meter.damage().nats for _ in walk(alone, None)]
    budget, seen, inner = at[0] * 0.8, [], DamageMeter.look
    monkeypatch.setattr(
        DamageMeter,
        "look",
        lambda self, nats: (seen.append(1), Look(0.3 * nats, False))[1] if len(seen) < misjudged else inner(self, nats),
    )
    context = make_context(problem=budgeted)
    run = BudgetedRun(context, (budget, at[5]), "steps", lambda: walk(context, None))
    first, second = run.points()
    assert first.logged["damage"] == pytest.approx(budget, rel=0.02)
    assert (first.step, first.logged["over_several_steps"]) == (misjudged + 1, 1.0)
    assert (second.step, "over_several_steps" in second.logged) == (6, False)
    assert second.logged["damage"] == pytest.approx(at[5], rel=0.02)
    assert not run.unreached


def test_a_model_that_broke_has_done_infinite_damage(make_context: ContextMaker, budgeted: Problem):
    context = make_context(problem=budgeted)
    meter = DamageMeter(context.model, context.tokenizer, budgeted.held_out)
    with torch.no_grad():
        context.model.lm_head.weight.fill_(math.nan)
    assert meter.damage().nats == meter.look(1.0).nats == math.inf


def test_weights_are_put_back_bit_by_bit_and_lie_on_the_line_between(make_context: ContextMaker):
    context, other = make_context(), make_context()
    context.model.model.embed_tokens.weight.requires_grad_(False)
    start = Weights.of(context.model)
    assert "model.embed_tokens.weight" not in start.tensors
    assert "lm_head.weight" in start.tensors
    before = weights_fingerprint(context.model)
    next(walk(context, None))
    after, moved = Weights.of(context.model), weights_fingerprint(context.model)
    start.place(context.model, after, 0.25)
    halfway = context.model.lm_head.weight.detach()
    first, last = (w.tensors["lm_head.weight"] for w in (start, after))
    torch.testing.assert_close(halfway, 0.75 * first + 0.25 * last)
    start.place(context.model, after, 1.0)
    assert weights_fingerprint(context.model) == moved
    start.place(context.model)
    assert weights_fingerprint(context.model) == before == weights_fingerprint(other.model)


# ---------------------------------------------------------------- where points are


def budgeted_run(context: UnlearningContext, method: str, budgets: tuple[float, ...], **settings: Any) -> BudgetedRun:
    chosen = METHODS.get(method)
    config = resolve(chosen.config, {**SETTINGS[method], **settings}, owner=method)
    return BudgetedRun(context, budgets, chosen.reach, lambda: chosen.steps(context, config))


LEARNING = {"lr": 5e-3, "max_steps": None, "epochs": 4, "batch_size": 6}


@pytest.mark.parametrize("method", SETTINGS)
def test_every_method_meets_its_budgets_within_two_percent(method: str, make_context: ContextMaker, budgeted: Problem):
    context = make_context(problem=budgeted)
    fields = METHODS.get(method).config.__dataclass_fields__
    settings = {name: value for name, value in LEARNING.items() if name in fields and name != "max_steps"}
    run = budgeted_run(context, method, BUDGETS, **settings)
    meter = DamageMeter(make_context(problem=budgeted).model, context.tokenizer, budgeted.held_out)
    meter._model = context.model  # the rows as they were before, and the model as it is
    met = []
    for progress in run.points():
        budget = progress.logged["budget"]
        assert meter.damage().nats == pytest.approx(budget, rel=TOLERANCE)
        assert progress.logged["damage"] == pytest.approx(meter.damage().nats, rel=1e-6)
        met.append(budget)
    assert [*met, *run.unreached] == list(BUDGETS)
    assert all("never did so much damage" in why or "broke off" in why or "ends at" in why for why in run.unreached.values())
    assert met, run.unreached


OTHER_LENGTHS: dict[str, dict[str, Any]] = {
    "kfade": {"step_size": 0.5},
    "predictor_corrector": {"peak_kl": 0.05},
    "repselect": {"target_kl": 0.05, "steps": 3, "kl_rows": 3},
    "sham": {"target_kl": 0.05, "steps": 3, "kl_rows": 3},
    "task_vector": {"scales": [0.3, 3.0]},
}
"""Of methods that are told a budget: other settings of how far they go."""


@pytest.mark.parametrize(("method", "other"), OTHER_LENGTHS.items())
def test_what_says_how_far_a_method_goes_changes_nothing_under_a_budget(
    method: str, other: dict[str, Any], make_context: ContextMaker, budgeted: Problem
):
    assert {*other} <= {*METHODS.get(method).lengths}
    ends = []
    for settings in ({}, other):
        context = make_context(problem=budgeted)
        (_,) = budgeted_run(context, method, (1e-3,), **settings).points()
        ends.append(weights_fingerprint(context.model))
    assert ends[0] == ends[1]


@pytest.mark.parametrize(("method", "other"), OTHER_LENGTHS.items())
def test_how_far_to_go_is_refused_beside_budgets_that_say_it(method: str, other: dict[str, Any]):
    asked = RunRequest(method=(method,), bench="tofu10", settings=other)
    assert asked.plans()
    with pytest.raises(UsageError, match=f"{method}: --budgets say how far it goes, and {next(iter(other))}.*change nothing"):
        replace(asked, budgets=(0.01,)).plans()


def test_how_far_to_go_may_be_given_beside_budgets_where_no_preset_says_it():
    method, options = replace(METHODS.get("kfade"), name="without_preset"), Options(budgets=(0.01,))
    with pytest.raises(UsageError, match="give one of step_size and target_kl"):
        plan("tofu10", "mini", method, {}, options)
    assert plan("tofu10", "mini", method, {"target_kl": 0.1}, options).config.target_kl == 0.1


def test_what_is_read_with_budgets_alone_is_refused_without_them():
    asked = RunRequest(method=("predictor_corrector",), bench="tofu10", settings={"overshoot": 3.0})
    with pytest.raises(UsageError, match="predictor_corrector: without --budgets overshoot changes nothing"):
        asked.plans()
    assert replace(asked, budgets=(0.01,)).plans()


def test_the_last_point_alone_is_refused_beside_budgets_that_say_where_points_are():
    asked = RunRequest(method=("npo",), bench="tofu10", points="last")
    assert asked.plans()
    with pytest.raises(UsageError, match=r"--budgets say where points are\. Leave out --points last"):
        replace(asked, budgets=(0.01, 0.1)).plans()


@pytest.mark.parametrize("method", ["grad_diff", "loku", "soul", "sage"])
def test_a_method_goes_on_from_where_it_was(method: str, make_context: ContextMaker, budgeted: Problem):
    """Its steps after a budget are, bit by bit, those it takes when nobody looks: the optimiser and adapters are as they were."""
    settings = {"lr": 5e-3, "epochs": 2, "batch_size": 6, "max_steps": None}
    alone = make_context(problem=budgeted)
    chosen = METHODS.get(method)
    config = resolve(chosen.config, {**SETTINGS[method], **settings}, owner=method)
    seen = [weights_fingerprint(alone.model) for _ in chosen.steps(alone, config)]
    watched = make_context(problem=budgeted)
    run = budgeted_run(watched, method, (1e-5, 1e-4, 1e9), **settings)
    after: list[str] = []
    inner = run.steps

    def steps() -> Iterator[Progress]:
        for progress in inner():
            after.append(weights_fingerprint(watched.model))
            yield progress

    run.steps = steps
    assert len(list(run.points())) == 2
    assert after == seen
    assert weights_fingerprint(watched.model) not in seen, "in the end it stands at its last point"
    assert list(run.unreached) == [1e9]
    assert "never did so much damage" in run.unreached[1e9]


def lengths(context: UnlearningContext, at: Sequence[float]) -> Iterator[Progress]:
    """Steps along one direction, to these lengths."""
    weight = context.model.lm_head.weight
    start = weight.detach().clone()
    towards = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    for step, length in enumerate(at, 1):
        with torch.no_grad():
            weight.copy_(start + length * towards)
        yield Progress(step, total=len(at))


WAYS = {
    "even": [0.001 * step for step in range(1, 61)],
    "a rising rate": [2e-5 * step**2 for step in range(1, 61)],
    "a jump": [*[1e-4] * 40, *[0.05] * 6],
    "up and down": [0.001 * step * (1 if step % 2 else 0.9) for step in range(1, 61)],
    "the last step alone": [*[1e-4] * 38, 0.05],
}


@pytest.mark.parametrize("way", WAYS)
def test_far_from_a_budget_few_steps_are_looked_at_and_points_are_where_they_would_be(
    way: str, make_context: ContextMaker, budgeted: Problem, monkeypatch: pytest.MonkeyPatch
):
    looks, inner = [], DamageMeter.look
    monkeypatch.setattr(DamageMeter, "look", lambda self, nats: (looks.append(nats), inner(self, nats))[1])

    def points() -> list[tuple[int, float]]:
        looks.clear()
        context = make_context(problem=budgeted)
        run = BudgetedRun(context, (1e-4, 2e-3, 1e9), "steps", lambda: lengths(context, WAYS[way]))
        met = list(run.points())
        assert [*(p.logged["budget"] for p in met), *run.unreached] == [1e-4, 2e-3, 1e9]
        assert not any("over_several_steps" in p.logged for p in met)
        return [(p.step, p.logged["share_of_step"]) for p in met]

    sparse, few = points(), len(looks)
    monkeypatch.setattr(meeting, "KEPT", 0)
    each, all_of_them = points(), len(looks)
    assert [step for step, _ in sparse] == [step for step, _ in each]
    assert [share for _, share in sparse] == pytest.approx([share for _, share in each], rel=0.02)
    assert all_of_them >= len(WAYS[way]) * 0.9
    assert few < 0.7 * all_of_them


def test_processes_that_hold_unlike_parts_look_at_the_same_steps(
    make_context: ContextMaker, budgeted: Problem, monkeypatch: pytest.MonkeyPatch
):
    """As many steps are kept as if all processes held alike: what one of them holds does not decide it."""
    held = Weights.of(make_context(problem=budgeted).model).bytes
    looks: list[float] = []
    monkeypatch.setattr(meeting, "KEPT", 4 * held)

    def looked(others: int) -> int:
        looks.clear()
        context = make_context(problem=budgeted)
        run = BudgetedRun(context, (1e9,), "steps", lambda: lengths(context, [0.0] * 40))
        with monkeypatch.context() as patch:
            patch.setattr(DamageMeter, "look", lambda _, nats: (looks.append(nats), Look(0.0, False))[1])
            patch.setattr(group, "summed", lambda own: [own + others])
            patch.setattr(group, "size", lambda: 2)
            assert list(run.points()) == []
        return len(looks)

    assert looked(others=held) == pytest.approx(2 + 40 / 4, abs=1)
    assert looked(others=3 * held) == pytest.approx(1 + 40 / 2, abs=1)


def test_a_model_that_moves_no_further_is_looked_at_once_in_a_while_and_where_it_ends(
    make_context: ContextMaker, budgeted: Problem, monkeypatch: pytest.MonkeyPatch
):
    looks, inner = [], DamageMeter.look
    monkeypatch.setattr(DamageMeter, "look", lambda self, nats: (looks.append(nats), inner(self, nats))[1])
    context = make_context(problem=budgeted)
    run = BudgetedRun(context, (1e9,), "steps", lambda: lengths(context, [0.0] * 100))
    assert list(run.points()) == []
    assert len(looks) == pytest.approx(math.log2(meeting.LONGEST_WAIT) + 100 / meeting.LONGEST_WAIT, abs=2)
    assert run.unreached[1e9] == "it never did so much damage (0 at most)"


def test_a_step_past_several_budgets_gives_a_point_at_each_and_the_long_first_step_is_said(
    make_context: ContextMaker, budgeted: Problem
):
    context = make_context(problem=budgeted)

    def leap() -> Iterator[Progress]:
        for _ in walk(context, None):
            pass
        yield Progress(1, measure_here=True, total=1)

    run = BudgetedRun(context, (1e-4, 1e-3, 1e-2), "steps", leap)
    points = list(run.points())
    assert [p.logged["damage"] for p in points] == pytest.approx([1e-4, 1e-3, 1e-2], rel=TOLERANCE)
    shares = [p.logged["share_of_step"] for p in points]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] < 1
    assert shares[0] / shares[1] == pytest.approx(0.1**0.5, rel=0.05), "the KL grows as the square of the way"
    (note,) = run.notes
    assert "the first step alone does a damage of" in note
    assert "0.0001, 0.001, 0.01" in note


def test_a_budget_under_what_rounding_lets_through_is_absent_with_the_nearest_damage(
    make_context: ContextMaker, budgeted: Problem
):
    context = make_context(problem=budgeted)
    run = BudgetedRun(context, (1e-13, 1e-3), "steps", lambda: walk(context, None))
    assert [p.logged["budget"] for p in run.points()] == [1e-3]
    assert "no place between two steps does so much damage; the nearest does" in run.unreached[1e-13]


def test_the_run_ends_at_its_largest_budget(make_context: ContextMaker, budgeted: Problem):
    context = make_context(problem=budgeted)
    taken: list[int] = []

    def steps() -> Iterator[Progress]:
        for progress in walk(context, None):
            taken.append(progress.step)
            yield progress

    run = BudgetedRun(context, (1e-3,), "steps", steps)
    (point,) = run.points()
    assert taken[-1] == point.step < 8


@pytest.mark.parametrize(("short", "met"), [(0.015, True), (0.03, False)])
def test_a_way_that_ends_within_two_percent_of_a_budget_meets_it(
    short: float, met: bool, make_context: ContextMaker, budgeted: Problem
):
    context = make_context(problem=budgeted)
    meter = DamageMeter(context.model, context.tokenizer, budgeted.held_out)
    end = [meter.damage().nats for _ in walk(context, None)][-1]
    context = make_context(problem=budgeted)
    run = BudgetedRun(context, (end / 10, end / (1 - short), 1e9), "steps", lambda: walk(context, None))
    damages = {p.logged["budget"]: p.logged["damage"] for p in run.points()}
    assert damages[end / 10] == pytest.approx(end / 10, rel=TOLERANCE)
    assert damages.get(end / (1 - short)) == (pytest.approx(end, rel=1e-6) if met else None)
    assert list(run.unreached) == [1e9] if met else [end / (1 - short), 1e9]


def test_what_breaks_off_keeps_its_points_and_says_why_the_others_are_absent(make_context: ContextMaker, budgeted: Problem):
    context = make_context(problem=budgeted)

    def steps() -> Iterator[Progress]:
        yield next(walk(context, None))
        raise Diverged("the loss is not finite")

    run = BudgetedRun(context, (1e-4, 1e9), "steps", steps)
    assert [p.logged["budget"] for p in run.points()] == [1e-4]
    assert run.unreached == {1e9: "it broke off: the loss is not finite"}


def test_a_model_that_breaks_in_a_step_is_met_before_it_breaks(make_context: ContextMaker, budgeted: Problem):
    context = make_context(problem=budgeted)

    def steps() -> Iterator[Progress]:
        with torch.no_grad():
            context.model.lm_head.weight.mul_(1e30)
        yield Progress(1, total=1)

    run = BudgetedRun(context, (1e-3,), "steps", steps)
    assert [p.logged["damage"] for p in run.points()] == pytest.approx(
        [1e-3], rel=TOLERANCE
    ) or "no place between" in run.unreached[1e-3]


@pytest.mark.parametrize("broken_at", [1, 2])
def test_a_model_whose_weights_are_no_numbers_has_broken_off_and_no_place_is_spoken_of(
    broken_at: int, make_context: ContextMaker, budgeted: Problem
):
    context = make_context(problem=budgeted)

    def steps() -> Iterator[Progress]:
        for step in range(1, broken_at + 1):
            with torch.no_grad():
                context.model.lm_head.weight.mul_(math.nan if step == broken_at else 1)
            yield Progress(step, total=broken_at)

    run = BudgetedRun(context, BUDGETS, "steps", steps)
    assert not list(run.points())
    broke = f"it broke off: the model's predictions are not finite from step {broken_at} on"
    assert run.unreached == dict.fromkeys(BUDGETS, broke)
    assert not run.notes


def test_what_chooses_its_length_or_is_what_it_is_says_that_it_broke(make_context: ContextMaker, budgeted: Problem):
    def steps() -> Iterator[Progress]:
        with torch.no_grad():
            context.model.lm_head.weight.fill_(math.nan)
        yield Progress(1, measure_here=True, total=1)

    context = make_context(problem=budgeted)
    free = BudgetedRun(context, BUDGETS, "free", steps)
    assert not list(free.points())
    assert free.unreached == dict.fromkeys(BUDGETS, "it broke off: the model's predictions are not finite")
    context = make_context(problem=budgeted)
    fixed = BudgetedRun(context, BUDGETS, "fixed", steps)
    assert [p.logged["damage"] for p in fixed.points()] == [math.inf]
    assert fixed.notes == ["it has no damage: the model's predictions are not finite"]


def test_without_general_text_retain_rows_count_alone_and_it_is_said(make_context: ContextMaker, nano_problem: Problem):
    context = make_context(problem=hold_out(nano_problem))
    run = BudgetedRun(context, (1e-3,), "steps", lambda: walk(context, None))
    (point,) = run.points()
    assert point.logged["damage"] == point.logged["damage_retain"]
    assert "damage_general" not in point.logged
    assert run.notes[0] == "damage is measured on retain rows alone: the benchmark has no general text for this model"


def test_a_model_that_is_what_it_is_stands_at_its_own_damage(make_context: ContextMaker, budgeted: Problem):
    context = make_context(problem=budgeted)
    chosen = METHODS.get("retrained")
    config = resolve(chosen.config, {}, owner="retrained")
    (point,) = BudgetedRun(context, BUDGETS, chosen.reach, lambda: chosen.steps(context, config)).points()
    assert point.logged["damage"] > 0
    assert "budget" not in point.logged


# ---------------------------------------------------------------- whole runs


@pytest.fixture
def open_problem(nano_problem: Problem, bench: Bench) -> Problem:
    """With general text, nothing held out yet."""
    about, others = World(0).general
    return replace(nano_problem, general=examples(about[:40]), unseen=examples(others[:20]), sources=bench.base.sources)


def test_a_run_records_damage_budget_and_what_was_not_met(bench: Bench, open_problem: Problem):
    todo = bench.plan(walk, [ANYTHING], open_problem, Options(budgets=(1e-3, 1e9)))
    result = execute(todo, bench.store, bench.cache)
    assert result.status == "done"
    assert [p.logged["budget"] for p in result.points] == [1e-3]
    assert result.points[0].logged["damage"] == pytest.approx(1e-3, rel=TOLERANCE)
    assert list(result.unreached) == ["1e+09"]
    assert result.spec.budgets == (1e-3, 1e9)
    assert result.spec.budget_rows == held_out_digest(todo.problem) != ""
    assert "--budgets 0.001,1e+09" in todo.command
    (record,) = bench.store.places("*/*/*/*")
    assert bench.store.document(record)["unreached"] == dict(result.unreached)


def test_the_same_command_twice_gives_the_same_point(bench: Bench, open_problem: Problem):
    found = []
    for results in ("one", "other"):
        todo = bench.plan(walk, [ANYTHING], open_problem, Options(budgets=BUDGETS))
        result = execute(todo, Store(bench.results / results), bench.cache)
        found.append([(p.weights, p.logged["damage"]) for p in result.points])
    assert found[0] == found[1]
    assert len(found[0]) == 2


@pytest.mark.parametrize("broken_at", range(1, 14))
def test_a_run_that_is_stopped_in_a_bisection_goes_on_to_the_same_points(
    bench: Bench, open_problem: Problem, monkeypatch: pytest.MonkeyPatch, broken_at: int
):
    todo = bench.plan(walk, [ANYTHING], open_problem, Options(budgets=BUDGETS))
    whole = execute(todo, Store(bench.results / "whole"), bench.cache)
    measured, inner = 0, DamageMeter.damage

    def damage(meter: DamageMeter) -> Any:
        nonlocal measured
        measured += 1
        if measured == broken_at:
            raise KeyboardInterrupt
        return inner(meter)

    with monkeypatch.context() as patch:
        patch.setattr(DamageMeter, "damage", damage)
        try:
            execute(todo, bench.store, bench.cache)
        except KeyboardInterrupt:
            assert bench.store.status(todo.spec) in (None, "interrupted")
    again = execute(todo, bench.store, bench.cache)
    assert again.status == "done"
    assert [(p.weights, p.logged) for p in again.points] == [(p.weights, p.logged) for p in whole.points]


def test_a_run_that_meets_no_budget_is_a_result_and_sound(bench: Bench, open_problem: Problem):
    todo = bench.plan(walk, [ANYTHING], open_problem, Options(budgets=(1e9,)))
    result = execute(todo, bench.store, bench.cache)
    assert result.status == "done"
    assert not result.points
    assert "never did so much damage" in result.unreached["1e+09"]
    assert list(problems(bench.store)) == []
    assert execute(todo, bench.store, bench.cache).unreached == result.unreached, "it is not done anew"


def test_no_model_is_kept_of_a_run_that_met_no_budget(bench: Bench, open_problem: Problem, tmp_path: Path):
    todo = bench.plan(walk, [ANYTHING], open_problem, Options(budgets=(1e9,)))
    for _ in ("anew", "done"):
        with pytest.raises(UsageError, match=r"no budget was met, so there is no model to keep"):
            execute(todo, bench.store, bench.cache, ExportOptions(model=tmp_path / "kept"))
        assert bench.store.status(todo.spec) == "done"
    assert not (tmp_path / "kept").exists()


def test_budgets_change_a_runs_name_and_none_leaves_it(bench: Bench, open_problem: Problem):
    specs = [bench.plan(walk, [ANYTHING], open_problem, Options(budgets=b)).spec for b in ((), (0.1,), (0.1, 0.2))]
    assert len({spec.run_id for spec in specs}) == 3
    assert (specs[0].budgets, specs[0].budget_rows) == ((), "")
    assert specs[1].budget_rows == specs[2].budget_rows


@pytest.mark.parametrize("done_already", [False, True])
def test_the_model_that_is_kept_is_the_one_at_the_largest_budget_that_was_met(
    bench: Bench, open_problem: Problem, tmp_path: Path, done_already: bool
):
    """Not the one behind the last step, nor behind the step that the budget lies in."""
    todo = bench.plan(walk, [ANYTHING], open_problem, Options(budgets=(1e-3, 1e9)))
    if done_already:
        execute(todo, bench.store, bench.cache)
    result = execute(todo, bench.store, bench.cache, ExportOptions(model=tmp_path / "kept"))
    kept, _ = CheckpointSource(str(tmp_path / "kept")).load(bench.cache, "cpu", "float32")
    assert weights_fingerprint(kept) == result.points[-1].weights


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("0,.1", "not positive"),
        ("-.1", "not positive"),
        ("nan", "not positive"),
        ("inf", "not positive"),
        (".1,.03", "does not increase. Write 0.03,0.1"),
        (".1,.1", "does not increase. Write 0.1"),
        (".1,.1000000001", "does not increase. Write 0.1"),
        (",", "no list of numbers"),
        ("much", "no list of numbers"),
        (".1,", "no list of numbers"),
        (True, "no list of numbers"),
        ([0.1, True], "no list of numbers"),
        ([[0.1]], "no list of numbers"),
        ({"0.1": 1}, "no list of numbers"),
        (-0.1, "not positive"),
    ],
)
def test_budgets_that_cannot_be_are_refused(given: Any, said: str):
    from harness.core.fields import Given, read

    with pytest.raises(UsageError, match=said.replace(".", r"\.")):
        read(RunRequest, {"budgets": Given(given, f"--budgets {given}", "flag")})


def test_budgets_from_a_file_or_from_python_may_be_a_list():
    from harness.core.fields import Given, read

    request = read(RunRequest, {"budgets": Given([0.01, 0.1], "budgets=[0.01, 0.1]", "python")})
    assert request.budgets == request.options().budgets == (0.01, 0.1)
    exact = read(RunRequest, {"budgets": Given([0.0123456789, 1], "budgets", "python")})
    assert exact.budgets == (0.0123457, 1.0), "as the recorded command and reasons write them"
    assert read(RunRequest, {"budgets": Given(0.1, "budgets=0.1", "file")}).budgets == (0.1,)
    assert json.dumps(request.budgets) == "[0.01, 0.1]"
