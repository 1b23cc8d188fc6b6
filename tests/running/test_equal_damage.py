"""The study at equal damage: tries are drawn alike, the choice follows the records, and what is missing is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.core import ranges
from harness.core.config import resolve
from harness.core.errors import UsageError
from harness.core.measurement import Measurement
from harness.core.method import METHODS, Method
from harness.core.options import Options
from harness.core.ranges import Arm, OneOf, Range, arm_of, arms
from harness.running.equal_damage import EqualDamageStudy
from harness.running.trials import EvalPlans, TrialSpec
from harness.storage.records import SCHEMA_VERSION, Point, RunResult
from harness.storage.store import Store
from tests.cli.test_cli import Harness, harness, refused  # noqa: F401

PLANS: EvalPlans = {}
SCORES = [0.1, 0.3, 0.2, 0.3, *[0.05] * 8]


def study(root: Path, *methods: str, benches: tuple[str, ...] = ("tofu10",)) -> EqualDamageStudy:
    return EqualDamageStudy(Store(root), Options(), benches, methods, eval_plans=PLANS)


def arm(name: str) -> Arm:
    return next(each for each in arms() if each.name == name)


def record(root: Path, tries: list[TrialSpec], scores: list[float | None], status: str = "done", at: float = 0.01) -> None:
    """What tries leave; no point where there is no score."""
    for todo, score in zip(tries, scores, strict=True):
        spec = todo.plan(PLANS).spec
        with Store(root).open(spec) as opened:
            opened.write(RunResult(schema_version=SCHEMA_VERSION, spec=spec, status=status))  # type: ignore[arg-type]
            if score is not None:
                measured = Measurement(metric="selection_score", version=1, value=score, unit="x", better="higher", n=1)
                one = {"index": 0, "step": 1, "measurements": [measured], "weights": "w", "unlearn_seconds": 1.0}
                opened.add(Point(logged={"budget": at}, **one), {}, {})


# ---------------------------------------------------------------- what is tried


def test_every_method_is_tried_over_a_learning_rate_and_a_constant_or_over_two_constants():
    for each in arms():
        fixed = METHODS.get(each.method).reach == "fixed" or each.name in ("sham", "retain training")
        (tries,) = [each.tries("tofu10", "mini", 12)]
        varied = {key for one in tries for key in one if len({str(one[key]) for one in tries}) > 1}
        assert fixed or len(varied) >= 2, f"{each.name} lacks a range in methods/presets/ranges.toml"


@pytest.mark.parametrize("bench", ["tofu10", "wmdp-bio"])
def test_tries_are_different_allowed_and_the_same_ones_each_time(bench: str):
    for each in arms():
        if METHODS.get(each.method).reach == "fixed":
            continue
        tries = each.tries(bench, "mini", 12)
        assert tries == each.tries(bench, "mini", 12)
        assert each.tries(bench, "mini", 6) == tries[:6], "fewer tries are the first of more"
        if each.tried:
            assert len({str(one) for one in tries}) == 12, each.name
        method = METHODS.get(each.method)
        for one in tries:
            resolve(method.config, method.preset(bench, "mini"), each.settings, one, owner=each.name)


def test_learning_rates_are_the_same_multiples_of_every_presets():
    factors = {}
    for name in ("npo", "simnpo", "soul", "loku", "undial"):
        preset = METHODS.get(name).preset("tofu10", "mini")["lr"]
        factors[name] = [one["lr"] / preset for one in arm(name).tries("tofu10", "mini", 12)]
    assert all(found == pytest.approx(factors["npo"], rel=6e-3) for found in factors.values())
    assert factors["npo"][0] == 1.0, "the first try is the preset's"
    assert min(factors["npo"]) < 0.2
    assert max(factors["npo"]) > 5
    assert all(0.1 <= factor <= 10 for factor in factors["npo"])


def test_ranges_give_their_ends_and_whole_numbers_where_both_ends_are():
    assert [Range(1, 6, "linear").at(share / 12) for share in range(12)] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert Range(2.0, 20.0, "log").at(0.5) == 6.32
    assert Range(2.0, 20.0, "linear").at(0.5) == 11.0
    assert {Range(2, 20, "log").at(share / 1000) for share in range(1000)} == {*range(2, 21)}
    assert [OneOf(("a", "b")).at(share) for share in (0.0, 0.49, 0.5, 0.99)] == ["a", "a", "b", "b"]


def test_a_form_of_a_method_is_known_by_its_settings():
    every = arms()
    forms = [each for each in every if each.method == "kfade"]
    assert [each.name for each in forms] == ["kfade", "kfade diagonal", "kfade identity"]
    for form in forms:
        for one in form.tries("tofu10", "mini", 12):
            assert arm_of("kfade", {**one, **form.settings}, every) == form.name
    assert arm_of("gone", {}, every) == "gone"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ranges.npo.beta = [1.0, 0.1, 'log']", "ranges.toml, ranges.npo: beta is no range from a lowest"),
        ("ranges.npo.beta = [0.0, 0.1, 'log']", "above 0 on a logarithmic scale"),
        ("ranges.npo.beta = 3", "ranges.npo: beta is no range: write"),
        ("ranges.npo.betta = [0.1, 1.0, 'log']", "ranges.npo: no setting of npo called 'betta'. Did you mean 'beta'"),
        ("ranges.npo.beta = [-1.0, 1.0, 'linear']", "ranges.npo: npo: beta"),
        ("ranges.nppo.beta = [0.1, 1.0, 'log']", "Did you mean 'npo'"),
        ("range.npo.beta = [0.1, 1.0, 'log']", "Did you mean 'ranges'"),
        ("variants.a = { method = 'npo' }", "variants.a is no form of a method"),
        ("variants.a = { method = 'npo', settings = { beta = 'x' } }", "variants.a: npo: beta"),
        ("variants.npo = { method = 'npo', settings = { beta = 1.0 } }", "variants.npo has the name of a method"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str):
    (tmp_path / "ranges.toml").write_text(text)
    monkeypatch.setattr(ranges, "ranges_files", lambda: [tmp_path / "ranges.toml"])
    with pytest.raises(UsageError) as error:
        arms()
    assert said in str(error.value)


# ---------------------------------------------------------------- what is chosen


def test_the_choice_follows_the_records_and_the_earlier_of_equal_ones_wins(tmp_path: Path):
    of = study(tmp_path, "npo")
    tries = of.tries()
    record(tmp_path, tries, SCORES)
    chosen = of.chosen_settings(arm("npo"), "tofu10")
    assert chosen.settings == tries[1].chosen
    assert chosen.selection == (
        "tuned form: best of 12 tries on tofu10 with mini@1, seed 0, by selection_score at a damage of 0.01 nats per token (number 2)"
    )
    reported = of.reported()
    assert all(todo.chosen == tries[1].chosen and todo.plan(PLANS).selection == chosen.selection for todo in reported)


def test_tofu05_takes_the_choice_of_tofu10(tmp_path: Path):
    of = study(tmp_path, "npo", benches=("tofu05",))
    assert {todo.bench for todo in of.tries()} == {"tofu10"}
    record(tmp_path, of.tries(), SCORES)
    assert of.chosen_settings(arm("npo"), "tofu05") == of.chosen_settings(arm("npo"), "tofu10")
    assert {todo.bench for todo in of.reported()} == {"tofu05"}
    assert {todo.bench for todo in study(tmp_path, "npo", benches=("tofu05", "tofu10")).tries()} == {"tofu10"}


def test_a_try_that_failed_or_did_less_damage_is_not_chosen(tmp_path: Path):
    of = study(tmp_path, "npo")
    tries = of.tries()
    record(tmp_path, tries[:6], [None] * 6, status="failed")
    record(tmp_path, tries[6:11], [None] * 5)
    record(tmp_path, tries[11:], [1e-30])
    chosen = of.chosen_settings(arm("npo"), "tofu10")
    assert chosen.settings == tries[11].chosen
    assert chosen.selection.startswith("tuned form: best of 12 tries (6 failed) on tofu10")


def test_a_method_of_which_no_try_did_the_damage_keeps_its_preset_and_says_so(tmp_path: Path):
    of = study(tmp_path, "npo")
    record(tmp_path, of.tries(), [0.5] * 12, at=0.003)
    chosen = of.chosen_settings(arm("npo"), "tofu10")
    assert chosen.settings == {}
    assert chosen.selection.startswith("published form: none of 12 tries on tofu10 with mini@1")


def refusing(monkeypatch: pytest.MonkeyPatch, above: float) -> None:
    """Let NPO take no beta above a value."""

    def refusal(method: Method[Any], _problem: object, config: Any) -> str | None:
        return f"beta is above {above}" if method.name == "npo" and config.beta > above else None

    monkeypatch.setattr(Method, "refusal", refusal)


def test_the_choice_is_among_the_tries_that_can_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    of = study(tmp_path, "npo")
    tries = of.tries()
    most = sorted(todo.chosen["beta"] for todo in tries)[5]
    able = [todo for todo in tries if todo.chosen["beta"] <= most]
    refusing(monkeypatch, most)
    record(tmp_path, able, [0.1] * 5 + [0.2])
    chosen = of.chosen_settings(arm("npo"), "tofu10")
    assert chosen.settings == able[5].chosen
    assert chosen.selection.startswith("tuned form: best of 12 tries (6 refused) on tofu10")
    assert chosen.selection.endswith(f"(number {tries.index(able[5]) + 1})")


def test_a_method_that_cannot_run_stops_no_other(
    tmp_path: Path,
    harness: Harness,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    refusing(monkeypatch, 0.0)
    assert study(tmp_path, "npo").chosen_settings(arm("npo"), "tofu10").settings == {}
    words = (
        "study",
        "equal-damage",
        "-b",
        "tofu10",
        "--methods",
        "npo,sham",
        "--phase",
        "reported",
        "--results",
        tmp_path / "r",
    )
    listed = harness(*words, "--dry-run")
    assert listed.code == 0
    assert "npo is left out on tofu10: beta is above 0.0" in listed.out
    assert "12 runs" in listed.out, "those of sham"


def test_what_is_reported_needs_the_tries_and_names_the_command(tmp_path: Path):
    of = study(tmp_path, "kfade identity", benches=("tofu05",))
    record(tmp_path, of.tries()[:5], [0.1] * 5)
    record(tmp_path, of.tries()[5:6], [0.1], status="interrupted")
    with pytest.raises(UsageError) as error:
        of.reported()
    assert str(error.value) == (
        "of the 12 tries of kfade identity on tofu10 5 are recorded. Make them, other flags as here: "
        "harness study equal-damage --bench tofu10 --method 'kfade identity' --phase tries."
    )


def test_controls_have_nothing_to_choose(tmp_path: Path):
    of = study(tmp_path, "sham", "untouched", "retrained")
    assert of.tries() == []
    assert all(todo.selection == "" and not todo.chosen for todo in of.reported())


# ---------------------------------------------------------------- what is run


def test_reported_runs_are_likelihoods_at_all_budgets_and_answers_at_two_with_attacks_on_one_seed(tmp_path: Path):
    specs = study(tmp_path, "sham").reported()
    assert {(todo.model, todo.options.seed) for todo in specs} == {(m, s) for m in ("mini", "mini@2") for s in (0, 1, 2)}
    likelihoods, answers = specs[::2], specs[1::2]
    assert {todo.options.budgets for todo in likelihoods} == {(0.003, 0.01, 0.03, 0.1)}
    assert {todo.options.budgets for todo in answers} == {(0.01, 0.1)}
    assert [todo.options.evals for todo in answers] == [("+finetune_attack",), (), ()] * 2
    bio = study(tmp_path, "sham", benches=("wmdp-bio",)).reported()
    assert {todo.options.budgets for todo in bio if not todo.options.evals[0].endswith("attack")} == {
        (0.003, 0.01, 0.03, 0.1, 0.3)
    }
    assert [todo.options.seed for todo in bio if todo.options.evals == ("finetune_attack",)] == [0, 0]


def test_tries_say_their_place_in_the_search_and_keep_no_rows(tmp_path: Path):
    tries = study(tmp_path, "npo").tries()
    assert {(todo.model, todo.options.seed, todo.options.rows, todo.options.budgets) for todo in tries} == {
        ("mini@1", 0, "none", (0.01,))
    }
    assert [todo.trial and (todo.trial.index, todo.trial.tries, todo.trial.metric, todo.trial.search) for todo in tries] == [
        (index, 12, "selection_score", "even") for index in range(12)
    ]
    assert len(study(tmp_path, "npo", benches=("wmdp-bio",)).tries()) == 6


def test_a_dry_run_lists_everything_and_does_nothing(harness: Harness, tmp_path: Path):  # noqa: F811
    words = ("study", "equal-damage", "-b", "tofu10", "--methods", "npo,sham", "--results", tmp_path / "r")
    listed = harness(*words, "--dry-run")
    assert listed.code == 0
    assert "36 runs, 0 of them done" in listed.out
    assert "npo, try 12 on tofu10 lr=" in listed.out
    assert "npo, likelihoods, mini@2, to be chosen on tofu10 seed 2" in listed.out
    assert "sham, answers, mini on tofu10 seed 0" in listed.out
    assert not (tmp_path / "r").exists()
    document = json.loads(harness(*words, "--dry-run", "--json").out)
    assert (document["runs"], len(document["tries"])) == (36, 36), "one document, whatever the phases"
    assert "npo, answers" not in harness(*words, "--phase", "tries", "--dry-run").out
    refused(harness(*words, "--phase", "reported"), "of the 12 tries of npo on tofu10 0 are recorded", "--phase tries")


def test_what_the_study_says_itself_is_refused(harness: Harness):  # noqa: F811
    refused(harness("study", "equal-damage", "--budgets", ".5"), "says budgets itself", "Leave out --budgets")
    refused(harness("study", "equal-damage", "--model", "phi-1.5"), "says model itself")
    refused(harness("study", "equal-damage", "--phase", "tries", "--seeds", "1"), "tries have one seed", "Leave out --seeds")
    refused(harness("study", "equal-damage", "-b", "tofu01"), "no benchmark of the study equal-damage called 'tofu01'")
    refused(harness("study", "equal-damage", "-m", "nppo"), "Did you mean 'npo'")
    refused(harness("study", "hessian", "--phase", "tries"), "has no phases")
    refused(harness("study", "hessian", "-m", "npo"), "no method of this study called 'npo'")
    refused(harness("study", "equal-damge"), "Did you mean 'equal-damage'")
    assert "equal-damage" in harness("list", "studies").out
