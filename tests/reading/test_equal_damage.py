"""Runs with budgets: sorted into comparisons by what they share, ranked under three rules, kept out of what is about others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from harness.core.errors import UsageError
from harness.core.measurement import Absent
from harness.reading.comparison_table import comparison, in_short
from harness.reading.equal_damage import EqualDamage, comparisons
from harness.reading.equal_damage_tables import budgets_sheet, equal_damage_sheets, rules_sheet
from harness.reading.leaderboard import build
from harness.reading.run_list import RunTables, listed_runs
from harness.reading.run_report import first_screen, run_report
from harness.reading.runs import Runs
from harness.reading.selection_rules import agreements, rankings
from harness.reading.sweep_table import sweep_table
from harness.reading.told_apart import shared_grid, told_apart
from harness.storage.frames import frame_of
from harness.storage.records import RunResult, Trial
from harness.storage.store import Store
from harness.storage.validate import problems
from tests.records import BUDGETS, FLOOR, SPEC, TUNED, at_budgets, number, numbers, run, write

NEVER = "it never did so much damage (0.02 at most)"


def text(shown: object, width: int = 140) -> str:
    console = Console(width=width, file=StringIO(), markup=False)
    console.print(shown)
    return console.file.getvalue()  # type: ignore[attr-defined]


def measured(distance: float, known: float, quality: float = 0.1, utility: float = 0.8):
    return [*numbers(quality, distance, utility), number("forget_probability", known)]


def falling(
    ways: Mapping[float, tuple[float, float]],
    method: str = "npo",
    config: dict | None = None,
    seed: int = 0,
    model: str = "mini",
) -> RunResult:
    """A run whose distance and knowledge at each budget are these."""
    unmet = {f"{budget:g}": NEVER for budget in BUDGETS if budget not in ways}
    spec = {"method": method, "config": config or {}, "seed": seed, "model": model, "budget_rows": f"rows of {model}"}
    return at_budgets({budget: measured(*of) for budget, of in ways.items()}, unmet, spec=spec)


def line(start: float, slope: float) -> dict[float, tuple[float, float]]:
    return {budget: (start - slope * i / 10, 0.9 - slope * i) for i, budget in enumerate(BUDGETS)}


def only(*results: RunResult) -> EqualDamage:
    (one,) = comparisons(results)
    return one


# ---------------------------------------------------------------- out of records


def test_models_of_another_kind_are_no_further_worlds():
    names = ["mini", "mini@2", "mini@wordings", "mini@2-wordings", "smollm2-135m", "finetuned:a/b@epochs=3,lr=1e-05"]
    found = comparisons([falling({0.01: (0.3, 0.5)}, model=name) for name in names])
    kinds = ["finetuned:a/b@epochs=3,lr=1e-05", "mini", "mini@wordings", "smollm2-135m"]
    assert sorted(str(one.identity["model"]) for one in found) == kinds
    assert {tuple(one.worlds) for one in found if one.identity["model"] == "mini"} == {("mini", "mini@2")}


def test_what_stands_for_a_contender_is_the_median_over_worlds_and_seeds():
    ways = [(0.3, 0.5), (0.4, 0.6), (0.8, 0.9), (0.2, 0.1)]
    worlds = [("mini", 0), ("mini", 1), ("mini@2", 0), ("mini@2", 1)]
    one = only(*(falling({0.01: way}, seed=seed, model=model) for way, (model, seed) in zip(ways, worlds, strict=True)))
    (contender,) = one.contenders
    middle = one.middle(contender, 0.01, "forget_quality_d")
    assert middle is not None
    assert (middle.value, middle.low, middle.high, middle.n) == (pytest.approx(0.35), 0.2, 0.8, 4)
    assert one.worlds == ["mini", "mini@2"]
    assert one.damage(contender, 0.01) == pytest.approx(0.0101)


def test_contenders_are_told_apart_by_words_and_numbers_only_where_it_takes_them():
    configs = [{"estimator": "kfac", "lr": 1.0}, {"estimator": "diagonal", "lr": 2.0}]
    one = only(*(falling(line(0.6, 0.1), config=config) for config in configs), falling(line(0.6, 0.1), method="ga"))
    assert [each.label for each in one.contenders] == ["ga", "npo (estimator=diagonal)", "npo (estimator=kfac)"]
    one = only(*(falling(line(0.6, 0.1), config={"lr": rate}) for rate in (0.5, 1.5)))
    assert [each.label for each in one.contenders] == ["npo (lr=0.5)", "npo (lr=1.5)"]
    tuned = replace(falling(line(0.6, 0.1), config={"lr": 2.5}), selection=TUNED)
    one = only(falling(line(0.6, 0.1), config={"lr": 0.5}), tuned)
    assert [each.label for each in one.contenders] == ["npo (published)", "npo (tuned)"]


def test_a_run_with_adapters_is_another_contender_than_one_without():
    plain = falling(line(0.6, 0.1), config={"lr": 0.5})
    adapted = replace(plain, spec=replace(plain.spec, adapter="lora:r=8,alpha=32,dropout=0.05,target=all"))
    labels = [each.label for each in only(plain, adapted).contenders]
    assert labels == ["npo (adapter=lora:r=8,alpha=32,dropout=0.05,target=all)", "npo (adapter=none)"]


def test_a_form_that_has_a_name_is_called_by_it():
    configs = [{"estimator": "kfac", "steps": 1}, {"estimator": "identity", "steps": 1}, {"estimator": "identity", "steps": 2}]
    one = only(*(falling(line(0.6, 0.1), method="kfade", config=config) for config in configs))
    assert [each.label for each in one.contenders] == ["kfade", "kfade identity (steps=1)", "kfade identity (steps=2)"]
    assert {each.method for each in one.contenders} == {"kfade"}


def test_runs_of_one_contender_complete_one_another():
    likelihoods = falling(line(0.6, 0.1))
    answers = at_budgets(
        {0.01: [number("forget_quality_d", 0.99), number("forget_rouge", 0.3)]},
        spec={**vars_of(likelihoods), "budgets": (0.01,), "evaluators": {"rouge": 1}},
    )
    one = only(answers, likelihoods)
    (spot,) = one.of(one.contenders[0], 0.01)
    assert (spot.number("forget_quality_d"), spot.number("forget_rouge")) == (pytest.approx(0.59), 0.3)
    assert spot.places["forget_rouge"][0].run_id == answers.spec.run_id != spot.places["forget_quality_d"][0].run_id


def vars_of(result: RunResult) -> dict[str, object]:
    return {name: getattr(result.spec, name) for name in ("method", "config", "seed", "model", "budget_rows")}


def test_tries_for_settings_unfinished_runs_and_runs_without_budgets_are_in_no_comparison():
    trial = Trial(index=0, tries=2, search="grid", metric="m", split="rows")
    good = falling(line(0.6, 0.1))
    tried = replace(falling(line(0.1, 0.1), config={"lr": 3.0}), trial=trial)
    failed = replace(falling(line(0.1, 0.1), seed=7), status="failed", error="broke")
    one = only(good, tried, failed, run(numbers(0.1, 0.3, 0.8)))
    assert {(spot.contender.label, spot.seed) for spot in one.spots} == {("npo", 0)}
    assert one.notes == ["Not shown, since not done: npo (mini, seed 7) failed"]
    assert comparisons([run(numbers(0.1, 0.3, 0.8))]) == []


def test_who_is_nowhere_because_no_damage_is_a_number_is_named():
    broken = at_budgets({None: measured(0.1, 0.2)}, spec={"method": "retrained", "budget_rows": "rows of mini"})
    broken = replace(broken, points=[replace(point, logged={}) for point in broken.points])
    one = only(falling(line(0.6, 0.1)), broken)
    assert one.fixed == []
    assert one.notes == ["Not shown, since it has no point with a damage: retrained (mini, seed 0)."]


def test_other_benchmarks_definitions_and_versions_are_other_comparisons():
    good = falling(line(0.6, 0.1))
    assert len(comparisons([good, replace(good, spec=replace(good.spec, variant="open-unlearning", seed=3))])) == 2
    older = replace(good, spec=replace(good.spec, seed=1))
    newer = replace(good, spec=replace(good.spec, evaluators={**good.spec.evaluators, "probability": 2}))
    one = only(older, newer)
    assert {spot.seed for spot in one.spots} == {0}
    assert "newer version" in one.notes[0]


def test_who_was_tried_in_fewer_worlds_is_named():
    runs = [falling(line(0.6, 0.1), model=model) for model in ("mini", "mini@2")]
    assert only(*runs, *(replace(r, spec=replace(r.spec, method="ga")) for r in runs)).uneven == []
    one = only(*runs, falling({}, "ga"))  # what met no budget was tried there
    assert one.uneven == ["Run in fewer worlds × seeds than others (2), their medians over fewer: ga (1)."]
    assert one.uneven[0] in budgets_sheet(one).notes


def test_how_settings_were_chosen_stands_under_the_table():
    tries = "tuned form: best of 12 tries on tofu10 with mini@1"
    runs = [falling(line(0.6, 0.1), method, model=model) for method in ("a", "b") for model in ("mini", "mini@2")]
    runs = [replace(r, selection=f"{tries} (number {3 if r.spec.method == 'a' else 12})") for r in runs]
    sham = replace(falling(line(0.6, 0.1), "sham"), selection="published form: defaults of sham")
    own = at_budgets({None: measured(0.1, 0.2)}, spec={"method": "retrained"})
    one = only(*runs, sham, own)
    assert one.chosen == [f"Settings, {tries}: a, b.", "Settings, published form: defaults: sham."]
    assert set(one.chosen) < set(budgets_sheet(one).notes)


def test_reasons_that_differ_in_a_number_are_one_with_the_span_of_it():
    whys = ["ends at a damage of 0.0097", "ends at a damage of 1e-05", "broke off in step 3", "ends at a damage of 0.02"]
    runs = [at_budgets({}, {f"{budget:g}": why for budget in BUDGETS}, spec={"seed": i}) for i, why in enumerate(whys)]
    one = only(*runs)
    assert one.reasons(one.contenders[0], 0.01) == [
        "ends at a damage of 1e-05 to 0.02 (3 of 4)",
        "broke off in step 3 (1 of 4)",
    ]


# ---------------------------------------------------------------- three rules


def ranks(one: EqualDamage) -> dict[str, dict[str, int | None]]:
    labels = [each.label for each in one.contenders]
    return {r.name: dict(zip(labels, (place.rank for place in r.places), strict=True)) for r in rankings(one)}


def test_at_equal_damage_what_is_under_the_noise_floor_ties():
    distances = {"a": FLOOR, "b": FLOOR / 2, "c": FLOOR + 0.1, "d": FLOOR + 0.2}
    one = only(*(falling({0.01: (distance, 0.5)}, method=method) for method, distance in distances.items()))
    assert ranks(one)["A"] == {"a": 1, "b": 1, "c": 3, "d": 4}


def test_what_is_below_chance_ties_where_accuracies_fall():
    values = {"a": 0.2, "b": 0.24, "c": 0.3}
    runs = [
        at_budgets(
            {0.01: [number("bio_accuracy", value, better="lower", floor=None)]}, spec={"bench": "wmdp-bio", "method": name}
        )
        for name, value in values.items()
    ]
    assert ranks(only(*runs))["A"] == {"a": 1, "b": 1, "c": 3}


def test_damage_at_equal_forgetting_is_interpolated_in_its_logarithm():
    """From .6 to .1 between .01 and .1 a probability of .2 lies at four fifths: 10^-1.2."""
    crossing = {0.003: (0.5, 0.8), 0.01: (0.5, 0.6), 0.1: (0.5, 0.1)}
    one = only(falling(crossing, "a"), falling({0.003: (0.5, 0.2)}, "b"), falling({0.1: (0.5, 0.3)}, "c"))
    (rule,) = (each for each in rankings(one) if each.name == "B")
    places = dict(zip("abc", rule.places, strict=True))
    assert places["a"].value == pytest.approx(10**-1.2)
    assert (places["b"].value, places["b"].rank, places["a"].rank) == (0.003, 1, 2)
    assert "at most" in places["b"].remark
    assert places["c"].value == math.inf
    assert (places["c"].rank, places["c"].remark) == (3, "0 of 1 get there")


def test_who_is_there_at_the_first_budget_of_its_own_is_there_at_most_then():
    others = falling({0.003: (0.5, 0.8), 0.01: (0.5, 0.6), 0.1: (0.5, 0.1)}, "a")
    later = [falling({0.1: (0.5, known)}, "b", seed=seed) for seed, known in enumerate((0.1, 0.2))]
    (rule,) = (each for each in rankings(only(others, *later)) if each.name == "B")
    assert [place.remark for place in rule.places] == ["", "at most: there at the first budget"]
    assert rule.places[1].value == 0.1


def test_who_never_gets_there_is_shown_as_last_also_where_nobody_does():
    never, there = falling({0.1: (0.5, 0.3)}, "a"), falling({0.003: (0.5, 0.1)}, "b")
    assert [*rules_sheet(only(never)).shown["rank B"]] == ["last"]
    assert sorted(rules_sheet(only(never, there)).shown["rank B"]) == ["1", "last"]


def test_a_note_on_models_at_their_own_damage_stands_where_one_is_shown():
    run_at_budgets = falling({0.01: (0.4, 0.5)})
    retrained = at_budgets({None: measured(0.1, 0.2)}, spec={"method": "retrained"})
    assert not any(note.startswith("own:") for note in budgets_sheet(only(run_at_budgets)).notes)
    assert any(note.startswith("own:") for note in budgets_sheet(only(run_at_budgets, retrained)).notes)


def test_a_number_over_those_alone_that_met_a_budget_says_so():
    met = [falling({0.003: (0.5, 0.6), 0.01: (0.4, 0.1)}, seed=seed) for seed in (0, 1)]
    one = only(*met, falling({0.003: (0.5, 0.6)}, seed=2), falling({}, seed=3))
    remarks = {rule.name: rule.places[0].remark for rule in rankings(one)}
    assert remarks["A"] == "2 of 4 met it"
    assert remarks["B"] == "2 of 3 get there; 3 of 4 met any budget"
    assert remarks["C"] == "3 of 4 met any budget"


def test_the_oracle_takes_the_best_product_on_the_way_and_likelihoods_where_there_are_no_answers():
    def way(method: str, *products: tuple[float, float], whole: bool) -> RunResult:
        kept = ("model_utility",) if whole else ("retain_probability", "world_facts_probability")
        points = {
            budget: [number("forget_quality", quality), *(number(metric, utility) for metric in kept)]
            for budget, (quality, utility) in zip(BUDGETS, products, strict=False)
        }
        return at_budgets(points, spec={"method": method, "budgets": BUDGETS[: len(products)]})

    one = only(way("a", (0.1, 0.9), (0.5, 0.8), (0.9, 0.1), whole=True), way("b", (0.4, 0.9), whole=True))
    (rule,) = rankings(one)
    assert [place.value for place in rule.places] == [pytest.approx(0.4), pytest.approx(0.36)]
    assert "likelihood" not in rule.about
    (rule,) = rankings(only(way("a", (0.1, 0.9), (0.5, 0.8), whole=False)))
    assert rule.places[0].value == pytest.approx(0.4)
    assert "no answers were written" in rule.about


def test_kendalls_tau_is_over_those_that_both_rules_rank():
    slopes = {"a": 0.25, "b": 0.28, "c": 0.31, "d": 0.34}
    one = only(*(falling(line(0.6, slope), method) for method, slope in slopes.items()), falling({0.003: (0.5, 0.8)}, "e"))
    ranked = rankings(one)
    assert next(r for r in ranked if r.name == "A").places[-1].rank is None
    (agreement,) = (each for each in agreements(ranked) if (each.first, each.second) == ("A", "B"))
    assert (agreement.tau, agreement.n) == (pytest.approx(1.0), 4)
    sheet = rules_sheet(one)
    assert sheet is not None
    assert any(note.startswith("Kendall's τ-b between A and B: +1.00 over 4 of 5 methods") for note in sheet.notes)
    assert "Ranks go by medians over n = 1 worlds × seeds: they do not say who is told apart from whom." in sheet.notes
    row = sheet.shown[sheet.shown["method"] == "e"].iloc[0].tolist()
    assert row[1:3] == [f"absent: {NEVER}", "–"]


# ---------------------------------------------------------------- tables


def test_the_table_has_every_number_and_every_reason():
    one = only(falling({0.01: (0.4, 0.5)}), at_budgets({None: measured(0.1, 0.2)}, spec={"method": "retrained"}))
    numbers_of, shown = budgets_sheet(one).numbers, budgets_sheet(one).shown
    absent = numbers_of[numbers_of["absent"].notna()]
    assert [*absent["budget"]] == [0.003, 0.03, 0.1]
    assert set(absent["absent"]) == {NEVER}
    kept = numbers_of[(numbers_of["metric"] == "forget_quality_d") & (numbers_of["method"] == "npo")]
    assert kept[["budget", "value", "n"]].to_numpy().tolist() == [[0.01, 0.4, 120]]
    assert [*shown["budget"]] == ["reference", "reference", "0.003", "0.01", "0.03", "0.1", "own"]
    assert shown.iloc[2].tolist()[4] == f"absent: {NEVER}"
    assert shown.iloc[-1].tolist()[1:4] == ["retrained", "1", "0.200"]


def test_the_untouched_model_stands_once_in_the_table():
    untouched = at_budgets({None: measured(0.7, 0.98)}, spec={"method": "untouched"})
    table = budgets_sheet(only(falling({0.01: (0.4, 0.5)}), untouched))
    assert [*table.shown["method"]].count("untouched") == 1
    assert "own" not in [*table.shown["budget"]]
    assert not any(note.startswith("own:") for note in table.notes)


def test_the_table_is_in_order_of_what_is_to_fall_where_nothing_ranks():
    made = [
        at_budgets(
            {0.01: [number("bio_accuracy", value, better="lower", floor=None)]}, spec={"bench": "wmdp-bio", "method": name}
        )
        for name, value in (("a", 0.9), ("b", 0.4), ("c", 0.6))
    ]
    shown = budgets_sheet(only(*made)).shown
    assert [*shown[shown["budget"] == "0.01"]["method"]] == ["b", "c", "a"]


def test_contenders_are_told_apart_by_their_authors_in_every_world(tmp_path: Path):
    """Worlds have authors of their own: a difference is the mean over worlds, its interval leaves out 0 where all agree."""
    results = []
    for model in ("mini", "mini@2"):
        for method, known in (("a", 0.3), ("b", 0.6), ("c", 0.6)):
            results.append(falling({0.01: (0.5, known)}, method, model=model))
    for folder, result in zip(write(tmp_path, *results), results, strict=True):
        known = {"a": 0.3, "b": 0.6, "c": 0.6}[result.spec.method]
        shift = 0.1 if result.spec.model == "mini@2" else 0.0
        probabilities = [known + shift + 0.001 * (i % 7) for i in range(20)]
        rows = [
            {"point": 0, "task": "forget", "row": i, "cluster": f"author {i // 2}", "avg_gt_loss": -math.log(probability)}
            for i, probability in enumerate(probabilities)
        ]
        pd.DataFrame(rows).to_parquet(folder / "per_example.parquet")
    one = only(*results)
    found = told_apart(one, Store(tmp_path), "forget_probability", 0.01)
    by_pair = {(each.gap.first, each.gap.second): each for each in found}
    assert set(by_pair) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert by_pair["a", "b"].gap.value == pytest.approx(-0.3)
    assert by_pair["a", "b"].gap.high < 0
    assert by_pair["a", "b"].p_corrected == pytest.approx(3 * by_pair["a", "b"].gap.p)
    assert by_pair["b", "c"].gap.value == 0
    assert by_pair["b", "c"].gap.clusters == 20  # ten authors in each world
    notes = equal_damage_sheets(one, Store(tmp_path))["differences"].notes
    assert "(authors resampled as wholes in every world" in notes[0]
    assert notes[1:] == ["Worlds: mini, mini@2; seeds: 0; 40 rows of 20 authors."]
    assert told_apart(one, Store(tmp_path), "forget_quality_d", 0.01) == []  # it follows from no means over rows


def test_what_is_compared_is_the_worlds_and_seeds_that_most_share():
    def grid(**places: list[tuple[str, int]]) -> set[tuple[str, int]]:
        runs = [falling({0.01: (0.5, 0.5)}, name, model=m, seed=seed) for name, of in places.items() for m, seed in of]
        return set(shared_grid(only(*runs), 0.01))

    full = [("mini", 0), ("mini", 1), ("mini@2", 0), ("mini@2", 1)]
    assert grid(a=full, b=full, c=full) == set(full)
    assert grid(a=full, b=full, c=full, d=full[:1]) == set(full), "one that lacks much does not take it from the others"
    assert grid(a=full[:3], b=full[:3]) == {("mini", 0), ("mini@2", 0)}, "worlds have the same seeds"
    assert grid(a=full[:1], b=full[3:]) == set(), "who shares nothing is not compared"


# ---------------------------------------------------------------- what is about other runs


@pytest.fixture
def both(tmp_path: Path) -> Store:
    write(tmp_path, run(numbers(0.1, 0.3, 0.8), spec={"method": "ga"}))
    write(tmp_path, falling({0.003: (0.5, 0.9), 0.01: (0.4, 0.7)}))
    return Store(tmp_path)


def without_budgets(store: Store, tmp_path: Path) -> Store:
    write(tmp_path / "alone", run(numbers(0.1, 0.3, 0.8), spec={"method": "ga"}))
    return Store(tmp_path / "alone")


def test_the_ordinary_leaderboard_is_what_it_is_without_them(both: Store, tmp_path: Path):
    alone = build(without_budgets(both, tmp_path).root)
    assert build(both.root)["leaderboard.csv"] == alone["leaderboard.csv"]
    assert build(both.root)["differences.csv"] == alone["differences.csv"]


def test_a_list_gives_them_a_table_of_their_own_and_no_numbers(both: Store):
    rows = {run.result.spec.method: run.row() for run in listed_runs(both, lambda why: pytest.fail(why))}
    assert (rows["ga"]["forget_quality"], rows["npo"]["forget_quality"]) == (0.1, None)
    assert (rows["npo"]["budgets"], rows["npo"]["unreached"]) == ([*BUDGETS], {"0.03": NEVER, "0.1": NEVER})
    assert "budgets" not in rows["ga"]
    shown = text(RunTables(listed_runs(both, lambda why: pytest.fail(why))), width=100)
    assert "budgets 0.003, 0.01, 0.03, 0.1 nats per token" in shown
    assert "met at 0.003, 0.01; absent at 0.03, 0.1" in shown


def test_a_run_is_shown_at_each_of_its_budgets(both: Store):
    result = next(each for each in both.runs() if each.spec.budgets)
    for shown in (text(first_screen(result)), text(comparison([result]))):
        cells = [[cell.strip() for cell in row.split("│")[1:4]] for row in shown.splitlines() if "│ npo" in row]
        assert cells == [["npo", "0.003", "0.0030"], ["npo", "0.01", "0.010"], ["npo", "0.03", "–"], ["npo", "0.1", "–"]]
        assert f"npo at 0.03: absent: {NEVER}" in shown
        assert f"at or under {FLOOR:.3f} are ties" in shown
    assert in_short(result) == "met at 0.003, 0.01; absent at 0.03, 0.1"
    shown = text(run_report(result))
    assert "at a damage of 0.0030 (budget 0.003)" in shown
    assert "at a damage of 0.010 (budget 0.01)" in shown


def test_a_model_at_its_own_damage_says_so():
    result = at_budgets({None: measured(0.1, 0.2)}, spec={"method": "retrained"})
    assert in_short(result) == "its own damage is 0.200"
    row = next(row for row in text(comparison([result])).splitlines() if row.count("retrained") and "own" in row)
    assert [cell.strip() for cell in row.split("│")[1:4]] == ["retrained", "own", "0.200"]


def test_a_sweep_puts_the_best_at_one_budget_together():
    results = [falling({0.003: (0.5, 0.9), 0.01: (d, 0.7)}, config={"lr": d}) for d in (0.4, 0.2)]
    shown = text(sweep_table([{"lr": 0.4}, {"lr": 0.2}], results, by="forget_quality_d"), width=200)
    rows = [[cell.strip() for cell in row.split("│")[1:-1]] for row in shown.splitlines() if row.startswith("│ ")]
    assert len(rows) == 4
    budgets = [next(cell for cell in row if cell in ("0.003", "0.01")) for row in rows]
    assert budgets == ["0.003", "0.003", "0.01", "0.01"]
    assert [row[0] for row in rows[2:]] == [results[1].spec.run_id, results[0].spec.run_id]


def test_python_compares_at_a_budget_that_is_named(both: Store):
    runs = Runs([each for each in both.runs() if each.spec.budgets], both)
    with pytest.raises(UsageError, match=r"several damages \(0.003, 0.01, 0.03, 0.1\): compare\(budget=…\)"):
        runs.compare()
    assert len(runs.compare(budget=0.01)) == 0  # one method alone
    with pytest.raises(UsageError, match=r"has no budget 0\.02; it has 0\.003, 0\.01, 0\.03, 0\.1\."):
        runs.compare(budget=0.02)
    with pytest.raises(UsageError, match="has no budgets"):
        Runs([each for each in both.runs() if not each.spec.budgets], both).compare(budget=0.01)
    assert "met at 0.003, 0.01" in runs._repr_html_()


def test_the_runs_table_says_where_a_number_stands(both: Store):
    frame = frame_of([("folder", each) for each in both.runs() if each.spec.budgets])
    of_run = frame[(frame["arm"] == "method") & (frame["metric"] == "forget_quality_d")]
    assert of_run[["budget", "damage"]].to_numpy().tolist() == [[0.003, pytest.approx(0.00303)], [0.01, pytest.approx(0.0101)]]
    assert set(both.frame()["budget_rows"]) == {"", "rows of mini"}


def test_a_store_is_sound_where_points_share_a_step_and_not_where_a_budget_is_forgotten(both: Store):
    assert [*problems(both)] == []
    forgotten = replace(falling({0.01: (0.4, 0.7)}, "ga"), unreached={"0.03": NEVER, "0.1": NEVER})
    write(both.root, forgotten)
    assert ["neither a point nor a reason for the budgets 0.003" in str(each) for each in problems(both)] == [True]
    backwards = falling({0.03: (0.4, 0.7), 0.003: (0.4, 0.7), 0.01: (0.4, 0.7), 0.1: (0.4, 0.7)}, "ga", seed=5)
    write(both.root, backwards)
    assert any("its budgets do not rise" in str(each) for each in problems(both))


def test_a_sweeps_table_tells_what_is_absent_from_what_nobody_measured():
    found = [
        at_budgets({0.01: [number("forget_quality", 0.3)]}),
        at_budgets({0.01: [Absent(metric="model_utility", reason="no answers")]}),
        at_budgets({0.01: [number("model_utility", 0.2)]}),
        at_budgets({}, {"0.01": NEVER}),
    ]
    settings = [{"lr": i} for i in range(4)]
    shown = [line.split("│") for line in text(sweep_table(settings, found)).splitlines()]
    cells = {line[-4].strip(): [cell.strip() for cell in line[-3:-1]] for line in shown if len(line) > 4}
    assert cells == {"0": ["0.300", "–"], "1": ["–", "absent"], "2": ["–", "0.200"], "3": ["absent", "absent"]}


def test_a_number_that_is_absent_says_why():
    result = at_budgets({0.01: [number("forget_quality_d", 0.3), Absent(metric="model_utility", reason="no answers")]})
    assert "model_utility: absent: no answers" in text(first_screen(result))
    assert SPEC.method in text(first_screen(result))
