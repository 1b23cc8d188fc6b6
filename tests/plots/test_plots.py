"""Figures and tables: what is drawn is what is recorded, chosen by named rules, and the same bytes every time."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.core.errors import UsageError
from harness.core.evaluator import GenerationRequest, Sampling
from harness.core.figure import FIGURES, Figure, FigureOptions, Sheet
from harness.core.measurement import Absent, Measurement
from harness.core.registry import ROOT
from harness.reading.figures import FORMATS, draw, formats_of, latex, markdown, select
from harness.storage.records import SCHEMA_VERSION, Point, RunResult, RunSpec
from harness.storage.store import Store
from plots import _select, _style
from tests.conftest import HarnessCli

METRICS = {
    "forget_quality": ("higher", 1),
    "forget_quality_d": ("lower", 1),
    "model_utility": ("higher", 1),
    "retain_rouge": ("higher", 1),
    "real_authors_rouge": ("higher", 1),
    "world_facts_rouge": ("higher", 1),
    "forget_rouge": ("closer", 1),
    "retain_kl": ("lower", 1),
}
FURTHER = {
    "bio_accuracy": ("lower", 1),
    "cyber_accuracy": ("lower", 1),
    "general_accuracy": ("higher", 1),
    "alpaca_kl": ("lower", 1),
    "attack_start": ("lower", 1),
    "attack_forget_25": ("lower", 1),
    "attack_benign_25": ("lower", 1),
}
"""Of benchmarks with hazardous questions, and of attacks."""
QUESTIONS = [
    ("Who was | A?", {"row": 0, "cluster": "a", "question": "Who was | A?", "answer": "A <script>"}),
    ("Where was B?", {"row": 1, "cluster": "b", "question": "Where was B?", "answer": "In $C_1$ & D."}),
]


def number(metric: str, value: float, version: int = 1) -> Measurement | Absent:
    if math.isnan(value):
        return Absent(metric=metric, reason="not | finite")
    certain = metric in FURTHER or "utility" in metric or "rouge" in metric
    interval = (value - 0.01, value + 0.01) if certain else None
    return Measurement(
        metric=metric,
        version=version,
        value=value,
        unit="x",
        better={**METRICS, **FURTHER}[metric][0],  # type: ignore[arg-type]
        n=120,
        interval_95=interval,
        across_references=(value / 3, value),
        floor=0.15,
    )


def measured(quality: float, utility: float, version: int = 1) -> list[Measurement | Absent]:
    told = {"forget_quality": quality, "forget_quality_d": 0.1 + 1 / 3, "model_utility": utility, "retain_rouge": 0.9}
    told |= {"real_authors_rouge": 0.8, "world_facts_rouge": 0.7, "forget_rouge": 0.6, "retain_kl": 0.02}
    told |= {"bio_accuracy": quality, "cyber_accuracy": quality, "general_accuracy": utility, "alpaca_kl": utility}
    told |= {"attack_start": quality, "attack_benign_25": quality, "attack_forget_25": utility}
    return [number(metric, value, version) for metric, value in told.items()]


def completions(values: Sequence[float], task: str = "instructions", clusters: Sequence[str] | None = None) -> pd.DataFrame:
    """Rows as `alpaca_kl` keeps them: completions of four tokens with these nats per token."""
    told = {"task": task, "row": range(len(values)), "cluster": clusters or [str(i) for i in range(len(values))]}
    return pd.DataFrame({**told, "kl_sum": [4 * value for value in values], "kl_tokens": 4})


REFERENCES = {"untouched": measured(1e-30, 0.9), "retrained": measured(1.0, 0.91)}
Way = Sequence[tuple[float, float]]
AT_BUDGETS = ("equal_damage",)
"""Figures of runs with budgets."""


class Maker:
    """Makes runs in a store, without torch."""

    def __init__(self, root: Path, budgets: Sequence[float] = ()) -> None:
        self.store = Store(root)
        self.budgets = budgets
        """Damages at which the points of all runs stand; none if empty."""

    def __call__(self, method: str = "ga", way: Way = ((1e-30, 0.8), (0.5, 0.6)), **changes: Any) -> RunSpec:
        result_changes = {key: changes.pop(key) for key in ("selection", "status", "error", "references") if key in changes}
        version = changes.pop("metric_version", 1)
        logged = changes.pop("logged", {"measured_kl": 0.02})
        texts = changes.pop("texts", True)
        told_otherwise, rows = changes.pop("found", {}), changes.pop("rows", None)
        spec = RunSpec(
            **{
                "bench": "tofu10",
                "bench_version": 1,
                "model": "mini",
                "sources": {"base": {"seed": 1}},
                "method": method,
                "method_version": 1,
                "config": {"lr": 0.001, "kind": "a"},
                "evaluators": {"forget_quality": 1},
                "variant": "original",
                "template": {"name": "mini"},
                "data": {"full": "abc"},
                "references": {},
                "seed": 0,
                "limit": None,
                "dtype": "float32",
                "device": "cpu",
                "generator": "hf",
                "budgets": tuple(self.budgets),
                "budget_rows": "rows" if self.budgets else "",
                **changes,
            }
        )
        selection = f"published form: preset of {method} for tofu10 on mini"
        told = {"status": "done", "selection": selection, "references": REFERENCES, **result_changes}
        with self.store.open(spec) as record:
            empty = RunResult(schema_version=SCHEMA_VERSION, spec=spec, status="interrupted")
            record.write(replace(empty, **told))
            for index, (quality, utility) in enumerate(way):
                found = [m for m in measured(quality, utility, version) if m.metric not in told_otherwise]
                found += told_otherwise.values()
                table = completions([quality, utility] * 10) if rows is None else rows
                point = Point(
                    index=index,
                    step=index + 1,
                    logged=logged | ({"budget": self.budgets[index], "damage": self.budgets[index]} if self.budgets else {}),
                    measurements=found,
                    weights=f"{index}",
                    unlearn_seconds=1.5 + index,
                )
                said = {GenerationRequest((q,), Sampling(5)): f"{method} says\n*{q}*" for q, _ in QUESTIONS}
                record.add(point, {"instructions": table}, said if texts else {})
        if texts:
            self.store.keep_questions(spec, {"retain": [], "forget": QUESTIONS})
        return spec


TUNED = "tuned form: preset of {} for tofu10 on mini"


@pytest.fixture
def make(tmp_path: Path, request: pytest.FixtureRequest) -> Maker:
    """Its runs have budgets where a test is about a figure of such."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    figure = parameters.get("name")
    return Maker(tmp_path / "results", (0.01, 0.1) if figure in AT_BUDGETS else ())


@pytest.fixture
def filled(make: Maker) -> Maker:
    """Two methods, published and tuned, three seeds of one, a sweep of another, the arms run as methods."""
    for seed, quality in enumerate((0.03, 0.5, 0.2)):
        make("ga", ((1e-12, 0.85), (quality, 0.6)), seed=seed)
    make("ga", ((1e-9, 0.84), (0.3, 0.7)), config={"lr": 0.002, "kind": "a"}, selection=TUNED.format("ga"))
    for lr in (0.01, 0.02):
        for kind in ("a", "b"):
            config, by_hand = (
                {"lr": lr, "kind": kind},
                "published form: preset of npo for tofu10 on mini, then kind, lr by hand",
            )
            make("npo", ((lr, 0.5),), config=config, selection=by_hand)
    make("npo", ((0.0, 0.9), (0.02, 0.8)), logged={"loss": 1.0})
    make("untouched", ((1e-30, 0.9),), config={})
    make("retrained", ((1.0, 0.91),), config={})
    return make


def options(make: Maker, **changes: Any) -> FigureOptions:
    return FigureOptions(make.store.root, **changes)


def sheets(name: str, make: Maker, **changes: Any) -> dict[str, Sheet]:
    made = FIGURES.get(name).draw(select(make.store), options(make, **changes))
    return {part: item for part, item in made.items() if isinstance(item, Sheet)}


def written(name: str, make: Maker, out: Path, **changes: Any) -> dict[str, bytes]:
    files = draw(name, select(make.store), options(make, **changes), out, FORMATS)
    return {file.name: file.read_bytes() for file in files}


BY = {"ablation": "kind"}


def test_no_figure_sees_runs_that_others_are_about(make: Maker):
    """Runs with budgets have no last point that speaks for them."""
    seen: list[set[str]] = []
    for at_budgets in (False, True):
        figure = Figure("seen", lambda runs, _: seen.append(set(runs["method"])) or {}, at_budgets)
        make.budgets = ()
        make("ga")
        make.budgets = (0.01, 0.1)
        make("npo")
        figure.drawn(select(make.store), options(make))
    assert seen == [{"ga"}, {"npo"}]
    for name in FIGURES.names():
        assert FIGURES.get(name).at_budgets == (name in AT_BUDGETS)


def test_a_figure_of_other_runs_says_that_all_have_budgets(make: Maker):
    make.budgets = (0.01, 0.1)
    make("npo")
    with pytest.raises(UsageError, match=r"all runs there have budgets of damage, and pareto is of runs without any"):
        FIGURES.get("pareto").drawn(select(make.store), options(make))


# ---------------------------------------------------------------- what every figure promises


@pytest.mark.parametrize("name", FIGURES.names())
def test_figure_contract(name: str, filled: Maker, tmp_path: Path):
    figure = FIGURES.get(name)
    assert figure.name == name
    assert FIGURES.entries[name].module == f"plots.{name}"
    assert FIGURES.entries[name].summary.endswith(").")
    before = filled.store.frame()
    made = written(name, filled, tmp_path / "one", by=BY.get(name, ""))
    assert made
    assert all(file.startswith(name) for file in made)
    assert filled.store.frame().equals(before), "a figure changes no record"
    assert made == written(name, filled, tmp_path / "two", by=BY.get(name, "")), "an unchanged store gives the same bytes"
    for file, content in made.items():
        if not file.endswith(".png"):
            assert b"<dc:date>" not in content
            assert str(tmp_path).encode() not in content


@pytest.mark.parametrize("name", FIGURES.names())
def test_no_runs_is_one_sentence_with_the_command(name: str, make: Maker, capsys: pytest.CaptureFixture[str], monkeypatch):
    from harness.cli.entry import main

    monkeypatch.setattr(sys, "argv", ["harness", "plot", name, "--results", str(make.store.root), "--bench", "tofu05"])
    with pytest.raises(SystemExit) as left:
        main()
    told = capsys.readouterr().err
    assert left.value.code == 2
    assert "harness run --method kfade,npo,simnpo --bench tofu05" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("name", FIGURES.names())
def test_runs_that_are_not_done_are_no_runs(name: str, make: Maker):
    make(status="failed", error="diverged")
    with pytest.raises(UsageError, match=r"harness (run|sweep) --method"):
        FIGURES.get(name).draw(select(make.store), options(make))


@pytest.mark.parametrize("name", [name for name in FIGURES.names() if name not in AT_BUDGETS])  # which joins worlds
@pytest.mark.parametrize(
    "other",
    [
        {"bench": "tofu05"},
        {"model": "mini@1", "sources": {"base": {"seed": 2}}},
        {"variant": "open-unlearning"},
        {"retain": "general"},
        {"limit": 10},
        {"data": {"full": "other"}},
        {"metric_version": 2, "evaluators": {"forget_quality": 2}},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_cannot_be_compared_never_shares_a_file(name: str, other: dict[str, Any], make: Maker):
    for lr in (0.001, 0.01):
        make(
            "ga",
            ((0.25, 0.75),),
            config={"lr": lr, "kind": "a"},
            selection=TUNED.format("ga") if lr > 0.001 else "published form: x",
        )
        make(
            "ga",
            ((0.125, 0.5),),
            config={"lr": lr, "kind": "a"},
            selection=TUNED.format("ga") if lr > 0.001 else "published form: x",
            **other,
        )
    made = FIGURES.get(name).draw(select(make.store), options(make))
    numbers = [item.numbers.astype(str).to_csv() for item in made.values() if isinstance(item, Sheet)]
    assert len(numbers) >= 2
    assert len(made) % 2 == 0
    if name != "samples":
        assert all(("0.75" in text) != ("0.125" in text) for text in numbers)


def test_a_figure_needs_no_torch(filled: Maker, harness_cli: HarnessCli):
    done = harness_cli("plot", "pareto", "--results", str(filled.store.root), "--json", without_torch=True)
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout)
    assert {Path(file).suffix for file in files} == {".svg", ".png", ".pdf", ".csv", ".md", ".tex"}
    assert all(Path(file).parent == filled.store.root / "figures" and Path(file).is_file() for file in files)


def test_listing_figures_imports_no_matplotlib():
    code = (
        "import sys; sys.modules['matplotlib'] = sys.modules['pandas'] = None; "
        "sys.argv = ['harness', 'list', 'figures', '--json']; from harness.cli.entry import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f'"{name}"' in done.stdout for name in FIGURES.names())


def test_drawing_changes_nothing_outside(filled: Maker, tmp_path: Path):
    import matplotlib as mpl

    def open_figures() -> list[int]:
        pyplot = sys.modules.get("matplotlib.pyplot")
        return pyplot.get_fignums() if pyplot else []

    before, others = dict(mpl.rcParams), open_figures()  # other tests in this process may have left some
    written("pareto", filled, tmp_path)
    assert dict(mpl.rcParams) == before
    assert open_figures() == others


def test_an_unknown_figure_and_an_unknown_format_get_the_nearest(make: Maker):
    with pytest.raises(UsageError, match="Did you mean 'pareto'"):
        FIGURES.get("paretto")
    with pytest.raises(UsageError, match="no format called 'gif'"):
        formats_of("svg,gif")
    assert formats_of("") == FORMATS


def test_a_format_that_a_figure_has_not_is_said(filled: Maker, tmp_path: Path):
    with pytest.raises(UsageError, match="consists of tables"):
        draw("tables", select(filled.store), options(filled), tmp_path, ["png"])


def test_a_filter_that_leaves_nothing_names_what_there_is(filled: Maker):
    with pytest.raises(UsageError, match="there are runs on tofu10 with mini"):
        select(filled.store, model="phi-1.5")
    assert set(select(filled.store, methods=["npo"])["method"]) == {"npo"}


# ---------------------------------------------------------------- numbers are those of the records


def test_every_number_of_the_main_table_stands_in_a_record(filled: Maker, tmp_path: Path):
    draw("tables", select(filled.store), options(filled), tmp_path, ["csv"])
    (file,) = [f for f in tmp_path.glob("*.csv") if not f.stem.endswith("protocols")]
    recorded = {result.spec.run_id: result for result in filled.store.runs()}
    lines = [line for line in csv.DictReader(file.open(encoding="utf-8")) if line["run"]]
    assert len(lines) >= 4 * len(METRICS)
    for line in lines:
        points = [p for p in recorded[line["run"]].points if p.step == int(line["step"])]
        (found,) = [m for m in points[0].measurements if m.metric == line["metric"]]
        assert isinstance(found, Measurement)
        assert float(line["value"]) == found.value
        assert (float(line["across_low"]), float(line["across_high"])) == found.across_references
        if found.interval_95:
            assert (float(line["low"]), float(line["high"])) == found.interval_95


def test_every_drawn_point_stands_in_a_record(filled: Maker):
    (sheet,) = sheets("pareto", filled).values()
    recorded = {result.spec.run_id: result for result in filled.store.runs()}
    rows = sheet.numbers[sheet.numbers["run"].notna()]
    assert len(rows) == 2 * 3 + 2 + 2
    for row in rows.to_dict("records"):
        (point,) = [p for p in recorded[row["run"]].points if p.step == row["step"]]
        values = {m.metric: m.value for m in point.measurements if isinstance(m, Measurement)}
        assert row["forget_quality"] == values["forget_quality"]
        assert row["model_utility"] == values["model_utility"]
        assert row["seconds"] == point.unlearn_seconds


def value_of(table: pd.DataFrame, method: str, protocol: str, metric: str) -> Any:
    found = table[(table["method"] == method) & (table["preset"] == protocol) & (table["metric"] == metric)]
    return found.iloc[0]


def test_the_oracle_takes_the_largest_product_of_all_runs_and_points(make: Maker):
    make("ga", ((0.9, 0.5), (0.5, 0.8), (0.6, 0.7)))  # .45, .40, .42
    make("ga", ((0.7, 0.65),), config={"lr": 1.0}, selection="published form: preset of ga, then lr by hand")  # .455
    table = next(iter(sheets("tables", make).values())).numbers
    assert value_of(table, "ga", "oracle", "forget_quality")["value"] == 0.7
    assert value_of(table, "ga", "oracle", "model_utility")["value"] == 0.65
    assert value_of(table, "ga", "published", "forget_quality")["value"] == 0.6


def test_a_tie_of_the_oracle_goes_to_the_earlier_point(make: Maker):
    make("ga", ((0.5, 0.8), (0.8, 0.5)))
    table = next(iter(sheets("tables", make).values())).numbers
    assert value_of(table, "ga", "oracle", "forget_quality")["step"] == 1


@pytest.mark.parametrize(("qualities", "middle"), [((0.03, 0.5, 0.2), 0.2), ((0.1, 0.4), 0.1), ((0.3,), 0.3)])
def test_several_seeds_show_the_lower_median_and_all_of_their_range(make: Maker, qualities: Way, middle: float):
    for seed, quality in enumerate(qualities):
        make("ga", ((quality, 0.5 + seed / 10),), seed=seed)
    line = value_of(next(iter(sheets("tables", make).values())).numbers, "ga", "published", "forget_quality")
    assert (line["value"], line["seed_low"], line["seed_high"]) == (middle, min(qualities), max(qualities))
    assert line["seeds"] == len(qualities)


def test_a_rule_is_named_where_it_was_used(filled: Maker):
    for sheet in sheets("tables", filled).values():
        assert any(note.startswith("oracle: ") and "flatters" in note for note in sheet.notes)
        assert any("lower one where their number is even" in note for note in sheet.notes)
        assert any("it chose from 6 points of npo" in note for note in sheet.notes)


def test_forms_are_told_apart_from_settings_by_hand():
    assert _select.protocol("published form: preset of ga for tofu10 on mini") == "published"
    assert _select.protocol("tuned form: preset of ga for tofu10 on mini") == "tuned"
    assert _select.protocol("tuned form: preset of ga for tofu10 on mini, then lr by hand") == "by hand"
    assert _select.protocol("settings of a recorded run") == "by hand"


def test_what_is_left_out_is_said(make: Maker):
    make("ga")
    make("ga", points="last", way=((0.5, 0.6),))
    make("npo", status="interrupted")
    make("simnpo", method_version=2)
    make("simnpo", way=((0.9, 0.9),))
    (sheet,) = [s for name, s in sheets("tables", make).items() if not name.endswith("protocols")]
    told = " ".join(sheet.notes)
    assert "npo (published, seed 0) interrupted" in told
    assert "simnpo version 1" in told
    assert "1 left out" in told
    assert value_of(sheet.numbers, "simnpo", "published", "forget_quality")["value"] == 0.5


def test_an_absent_number_is_said_with_its_reason(make: Maker):
    make("ga", ((0.5, 0.6), (math.nan, 0.1)))
    made = sheets("tables", make)
    (sheet,) = [s for name, s in made.items() if not name.endswith("protocols")]
    line = value_of(sheet.numbers, "ga", "published", "forget_quality")
    assert math.isnan(line["value"])
    assert line["absent"] == "not | finite"
    assert "absent" in sheet.shown["forget quality ↑ (over references)"].tolist()
    assert any("forget_quality of ga: absent: not | finite" in note for note in sheet.notes)


# ---------------------------------------------------------------- ablation, samples


def test_an_ablation_groups_by_the_setting_and_says_what_else_varies(filled: Maker):
    made = sheets("ablation", filled, by="kind")
    assert [name.rpartition("-npo-")[2] for name in made] == ["kind-points"]
    (sheet,) = made.values()
    assert sheet.numbers["kind"].tolist() == ["a", "a", "a", "b", "b"]
    assert sheet.numbers["lr"].tolist() == ["0.001", "0.01", "0.02", "0.01", "0.02"]
    assert any("in the order of lr = 0.001, 0.01, 0.02" in note for note in sheet.notes)
    swept = sheet.numbers[sheet.numbers["lr"] != "0.001"]
    assert swept["retain_kl"].tolist() == [0.02] * 4


def test_an_ablation_without_a_setting_names_those_that_vary(filled: Maker):
    runs = select(filled.store, methods=["npo"])
    with pytest.raises(UsageError, match=r"--by.*npo: kind, lr"):
        FIGURES.get("ablation").draw(runs, options(filled))
    with pytest.raises(UsageError, match=r"harness sweep --method kfade .*--grid damping=A,B"):
        FIGURES.get("ablation").draw(runs, options(filled, by="damping"))


def test_samples_hold_the_texts_as_recorded(filled: Maker):
    made = sheets("samples", filled)
    sheet = next(sheet for name, sheet in made.items() if name.endswith("published"))
    assert len(sheet.numbers) == 2 * (1 + 4)
    first = sheet.numbers[sheet.numbers["row"] == 0]
    assert first["who"].tolist() == ["true answer", "untouched", "ga", "npo", "retrained"]
    assert first["answer"].tolist()[:3] == ["A <script>", "untouched says\n*Who was | A?*", "ga says\n*Who was | A?*"]
    text = markdown(sheet)
    assert "<script>" not in text
    assert "A &lt;script&gt;" in text
    assert r"ga says \*Who was \| A?\*" in text
    assert r"In \$C\_1\$ \& D." in latex(sheet)


def test_samples_without_questions_say_which_command_records_them(make: Maker):
    make(texts=False)
    with pytest.raises(UsageError, match="harness run --method untouched,retrained,kfade --bench tofu10 --model mini"):
        sheets("samples", make)


def test_questions_are_written_once_and_shared(make: Maker):
    one, two = make("ga"), make("npo", seed=3)
    assert one.questions_file == two.questions_file
    assert len(list((make.store.root / "questions").iterdir())) == 1
    found = make.store.questions(one)
    assert [q.answer for q in found] == ["A <script>", "In $C_1$ & D."]
    assert make.store.texts(one.folder.as_posix(), 1)[("Where was B?",)] == "ga says\n*Where was B?*"
    assert make.store.texts(one.folder.as_posix(), 7) == {}


# ---------------------------------------------------------------- hazardous knowledge, KL of single answers, attacks


def interval(metric: str, value: float, low: float, high: float, **changes: Any) -> dict[str, Measurement]:
    better = FURTHER.get(metric, ("higher",))[0]
    told = {"version": 1, "unit": "share of questions", "better": better, "n": 90, "interval_95": (low, high), **changes}
    return {metric: Measurement(metric=metric, value=value, **told)}


def bio(make: Maker, method: str, value: float, half: float, **changes: Any) -> None:
    make(method, ((0.2, 0.6),), found=interval("bio_accuracy", value, value - half, value + half), **changes)


def test_what_is_no_worse_than_the_best_is_marked_within_its_form(make: Maker):
    bio(make, "ga", 0.20, 0.05)
    bio(make, "npo", 0.26, 0.05)  # .01 above chance
    bio(make, "rmu", 0.40, 0.02)
    bio(make, "dpo", 0.45, 0.02, selection=TUNED.format("dpo"))
    (sheet,) = sheets("wmdp_table", make).values()
    column = sheet.numbers[sheet.numbers["metric"] == "bio_accuracy"].set_index("method")
    assert column["not_worse"].to_dict() == {
        "dpo": True,
        "ga": True,
        "npo": True,
        "rmu": False,
        "untouched": None,
        "retrained": None,
    }
    assert column["value"].to_dict() == {"dpo": 0.45, "ga": 0.2, "npo": 0.26, "rmu": 0.4, "untouched": 1e-30, "retrained": 1.0}
    shown = sheet.shown.set_index("method")["bio ↓"]
    assert shown["npo"] == "0.260 (0.210 to 0.310) †"
    assert shown["rmu"] == "0.400 (0.380 to 0.420)"
    told = " ".join(sheet.notes)
    assert "best of its preset" in told
    assert "chance (0.25) counts as equally good" in told
    assert "bio 90 or 120, cyber 120" in told


def test_below_chance_no_model_is_better_than_another(make: Maker):
    bio(make, "ga", 0.10, 0.01)
    bio(make, "npo", 0.24, 0.01)
    bio(make, "rmu", 0.28, 0.01)
    (sheet,) = sheets("wmdp_table", make).values()
    marked = sheet.numbers[sheet.numbers["metric"] == "bio_accuracy"].set_index("method")["not_worse"]
    assert (marked["ga"], marked["npo"], marked["rmu"]) == (True, True, False)


def choices(correct: Sequence[int], kl: float = 0.1) -> pd.DataFrame:
    """Rows as `multiple_choice` and `alpaca_kl` keep them, each question a group of its own."""
    told = {"task": "bio", "row": range(len(correct)), "cluster": [str(i) for i in range(len(correct))]}
    asked = pd.DataFrame({**told, "correct": [float(c) for c in correct], "choice": 0.0})
    return pd.concat([asked, completions([kl + i / 100 for i in range(20)])], ignore_index=True)


def test_the_paired_difference_tells_what_two_intervals_cannot(make: Maker):
    """Methods that know the same hundred questions and one that knows eight more: ± .07 each, and yet worse for certain."""
    known = [1] * 100 + [0] * 100
    more = [1] * 108 + [0] * 92
    bio(make, "ga", 0.50, 0.07, bench="wmdp", rows=choices(known))
    bio(make, "npo", 0.54, 0.07, bench="wmdp", rows=choices(more, 0.1001))
    bio(make, "rmu", 0.54, 0.07, bench="wmdp", rows=pd.DataFrame({"task": [], "row": [], "cluster": []}))
    (sheet,) = sheets("wmdp_table", make).values()
    numbers = sheet.numbers[sheet.numbers["preset"] == "published"].set_index(["metric", "method"])
    of_bio = numbers.loc["bio_accuracy"]
    assert of_bio["not_worse"].to_dict() == {"ga": True, "npo": False, "rmu": True}
    assert of_bio["compared"].dropna().to_dict() == {"npo": "paired", "rmu": "unpaired"}
    told = " ".join(sheet.notes)
    assert "resampled; of several seeds the mean), for: bio, instruction KL" in told
    assert "too few, for: bio of rmu (published), cyber, general, instruction KL of rmu (published)" in told


def test_at_chance_a_method_that_is_paired_worse_is_as_good(make: Maker):
    bio(make, "ga", 0.10, 0.03, bench="wmdp", rows=choices([1] * 20 + [0] * 180))
    bio(make, "npo", 0.27, 0.03, bench="wmdp", rows=choices([1] * 54 + [0] * 146))
    (sheet,) = sheets("wmdp_table", make).values()
    (line,) = sheet.numbers[(sheet.numbers["method"] == "npo") & (sheet.numbers["metric"] == "bio_accuracy")].to_dict("records")
    assert (line["compared"], line["not_worse"]) == ("paired", True)


@pytest.mark.parametrize(
    ("one", "best", "worse"),
    [
        ((0.30, 0.26, 0.34), (0.25, 0.20, 0.27), True),  # √(.04² + .02²) = .0447 < .05
        ((0.30, 0.25, 0.35), (0.25, 0.20, 0.27), False),  # √(.05² + .02²) = .0539
        ((0.25, 0.20, 0.27), (0.25, 0.20, 0.27), False),
        ((0.30, math.nan, math.nan), (0.25, 0.20, 0.27), True),
    ],
)
def test_a_difference_is_told_from_two_intervals(one: tuple[float, ...], best: tuple[float, ...], worse: bool):
    from plots import wmdp_table

    assert wmdp_table._worse(one, best) is worse  # type: ignore[arg-type]


def test_where_higher_is_better_the_highest_is_best(make: Maker):
    for method, value in (("ga", 0.9), ("npo", 0.88), ("rmu", 0.5)):
        make(method, ((0.2, 0.6),), found=interval("general_accuracy", value, value - 0.03, value + 0.03))
    (sheet,) = sheets("wmdp_table", make).values()
    marked = sheet.numbers[sheet.numbers["metric"] == "general_accuracy"].set_index("method")["not_worse"]
    assert (marked["ga"], marked["npo"], marked["rmu"]) == (True, True, False)


def test_several_seeds_of_the_wmdp_table_show_the_lower_median(make: Maker):
    for seed, value in enumerate((0.5, 0.3, 0.4, 0.9)):
        bio(make, "ga", value, 0.01, seed=seed)
    (sheet,) = sheets("wmdp_table", make).values()
    (line,) = sheet.numbers[(sheet.numbers["method"] == "ga") & (sheet.numbers["metric"] == "bio_accuracy")].to_dict("records")
    assert (line["value"], line["low"], line["seed_low"], line["seed_high"], line["seeds"]) == (0.4, 0.39, 0.3, 0.9, 4)
    assert any("lower one where their number is even" in note for note in sheet.notes)


def test_mt_bench_has_its_standard_error_and_who_lacks_it_is_said(make: Maker):
    found = interval("mt_bench", 6.91, 6.5, 7.25, unit="rating") | interval("mt_bench_standard_error", 0.04, 0.0, 0.1)
    make("ga", ((0.2, 0.6),), found=found)
    make("npo", ((0.2, 0.6),))
    (sheet,) = sheets("wmdp_table", make).values()
    assert sheet.shown.set_index("method")["MT-Bench ↑"].to_dict() == {
        "ga": "6.910 ± 0.040 (6.500 to 7.250) †",
        "npo": "absent",
        "untouched": "absent",
        "retrained": "absent",
    }
    assert "MMLU ↑" not in sheet.shown
    assert any(note.startswith("mt_bench: absent: not measured: npo (published), untouched") for note in sheet.notes)


def test_quantiles_are_values_of_completions(make: Maker):
    values = [i / 8 for i in range(1, 201)]
    make(
        "ga", ((0.2, 12.5),), rows=pd.concat([completions(values[::-1]), completions([1e6] * 50, "retain")], ignore_index=True)
    )
    (sheet,) = sheets("kl_quantiles", make).values()
    found = sheet.numbers.set_index("percent")
    assert len(found) == 99
    assert all(found["value"] == [2 * p / 8 for p in range(1, 100)])
    assert set(found["low"]) | set(found["high"]) <= set(values)
    assert (found["low"] <= found["value"]).all()
    assert (found["value"] <= found["high"]).all()
    # The band of the median of 200 independent values: order statistics 100 ± 1.96 √50, give or take the bootstrap's noise.
    assert abs(found.loc[50, "low"] - 86 / 8) <= 3 / 8
    assert abs(found.loc[50, "high"] - 114 / 8) <= 3 / 8
    assert (found["n"] == 200).all()


def test_bands_resample_whole_clusters():
    import numpy as np

    from plots import kl_quantiles

    values, clusters = np.repeat(np.arange(1.0, 8.0), 100), np.repeat(list("abcdefg"), 100)
    found, band = kl_quantiles.quantiles(values, clusters)
    assert band is not None
    assert found[49] == 4
    assert (band[0, 49], band[1, 49]) == (2, 6)  # of single rows: 4 to 4
    assert kl_quantiles.quantiles(values[:400], clusters[:400])[1] is None


def test_of_several_seeds_one_has_the_band(make: Maker):
    for seed, mean in enumerate((0.5, 0.9, 0.7)):
        make("ga", ((0.2, mean),), seed=seed)
    made = FIGURES.get("kl_quantiles").draw(select(make.store), options(make))
    (sheet,) = [item for item in made.values() if isinstance(item, Sheet)]
    banded = sheet.numbers.groupby("seed")["low"].count().to_dict()
    assert banded == {0: 0, 1: 0, 2: 99}
    assert any("the others are thin lines" in note for note in sheet.notes)


@pytest.mark.filterwarnings("error:Data has no positive values")
def test_completions_that_did_not_move_lie_below_the_axis(make: Maker):
    make("ga", ((0.2, 0.6),), rows=completions([0.0] * 20))
    (sheet,) = sheets("kl_quantiles", make).values()
    assert (sheet.numbers["value"] == 0).all()
    assert "Values under 1.0e-12 lie below the axis." in sheet.notes


def test_quantiles_without_rows_say_what_records_them(make: Maker):
    spec = make("ga", ((0.2, 0.6),))
    (make.store.runs_folder / spec.folder / "per_example.parquet").unlink()
    with pytest.raises(UsageError, match=r"harness run --method \S+ --bench tofu10 --model mini --evals alpaca_kl --force"):
        sheets("kl_quantiles", make)


def attacked(values: Sequence[float]) -> dict[str, Measurement]:
    names = ("attack_start", "attack_forget_25", "attack_forget_200", "attack_benign_25", "attack_benign_200")
    told = [interval(name, value, value - 0.1, value + 0.05) for name, value in zip(names, values, strict=True)]
    return {name: item for of in told for name, item in of.items()}


def test_recovery_curves_are_those_of_the_records(make: Maker):
    never = Absent(metric="attack_benign_steps_to_recover", reason="not recovered (a score of 0.9) within 200 steps")
    recovered = interval("attack_forget_steps_to_recover", 200.0, 0, 200, unit="steps", interval_95=None)
    make("ga", ((0.2, 0.6),), found={**attacked((0.2, 0.4, 0.9, 0.25, 0.3)), **recovered, never.metric: never})
    made = FIGURES.get("attack").draw(select(make.store), options(make))
    (sheet,) = [item for item in made.values() if isinstance(item, Sheet)]
    (drawing,) = [item for item in made.values() if not isinstance(item, Sheet)]
    lines = sheet.numbers[(sheet.numbers["method"] == "ga") & (sheet.numbers["what"] == "score")]
    of = {kind: list(zip(rows["step"], rows["value"], strict=True)) for kind, rows in lines.groupby("data")}
    assert of == {"benign": [(0, 0.2), (25, 0.25), (200, 0.3)], "forget": [(0, 0.2), (25, 0.4), (200, 0.9)]}
    assert lines["low"].tolist() == pytest.approx([v - 0.1 for v in lines["value"]])
    shown = sheet.shown.set_index(["data", "method"])
    assert shown.loc[("benign", "ga"), "steps to recover"] == "never"
    assert shown.loc[("forget", "ga"), "steps to recover"] == "200"
    assert shown.loc[("forget", "ga"), "step 200"] == "0.900 (0.800 to 0.950)"
    assert shown.loc[("forget", "untouched"), "step 25"] == "0.900 (0.890 to 0.910)"
    panels = drawing.axes
    assert [axes.get_title() for axes in panels] == ["benign data", "forget data"]
    drawn = [[*map(float, line.get_ydata())] for line in panels[1].lines]  # type: ignore[arg-type]
    assert [0.2, 0.4, 0.9] in drawn
    assert [1e-30, 0.9] in drawn, "the untouched model stands beside it"


def test_scores_after_rounding_stand_beside_those_at_full_precision(make: Maker):
    told = {"general_8_bit": 0.88, "general_4_bit": 0.8, "bio_8_bit": 0.35, "bio_4_bit": 0.6}
    found: dict[str, Measurement | Absent] = {}
    for name, value in told.items():
        found |= interval(name, value, value - 0.1, value + 0.05, better="lower" if "bio" in name else "higher")
    found |= interval("bio_accuracy", 0.3, 0.2, 0.4)
    found["general_4_bit"] = Absent(metric="general_4_bit", reason="3 of 90 scores are not finite")
    found["attack_start"] = Absent(metric="attack_start", reason="not measured here")
    make("ga", ((0.2, 0.85),), found=found, bench="wmdp")
    make("npo", ((0.2, 0.85),), found={**found, **interval("general_4_bit", 0.8, 0.7, 0.85)}, bench="wmdp")
    made = FIGURES.get("attack").draw(select(make.store), options(make))
    (drawing,) = [item for item in made.values() if not isinstance(item, Sheet)]
    assert [axes.get_title() for axes in drawing.axes] == ["bio ↓", "general ↑"], "what is forgotten stands first"
    assert [label.get_text() for label in drawing.axes[0].get_xticklabels()] == ["full", "8 bits", "4 bits"]
    assert [0.3, 0.35, 0.6] in [[*map(float, line.get_ydata())] for line in drawing.axes[0].lines]  # type: ignore[arg-type]
    (sheet,) = [item for item in made.values() if isinstance(item, Sheet)]
    shown = sheet.shown.set_index(["questions", "method"])
    assert shown.loc[("bio ↓", "ga"), "4 bits"] == "0.600 (0.500 to 0.650)"
    assert shown.loc[("general ↑", "ga"), "4 bits"] == "absent"
    assert "ga (published), general questions, 4 bits: absent: 3 of 90 scores are not finite." in sheet.notes


def test_a_missing_step_of_an_attack_is_said(make: Maker):
    broken = {"attack_forget_25": Absent(metric="attack_forget_25", reason="12 of 90 scores are not finite")}
    make("ga", ((0.2, 0.6),), found=broken)
    (sheet,) = sheets("attack", make).values()
    assert sheet.shown.set_index(["data", "method"]).loc[("forget", "ga"), "step 25"] == "absent"
    assert "ga (published), forget data, steps 25: absent: 12 of 90 scores are not finite." in sheet.notes


@pytest.mark.parametrize(
    ("name", "metric", "command"),
    [
        ("wmdp_table", "_accuracy", "--bench wmdp --model mini --evals multiple_choice,alpaca_kl,fluency"),
        ("wmdp_tradeoff", "alpaca_kl", "--bench tofu10 --model mini --evals multiple_choice,alpaca_kl"),
        ("kl_quantiles", "alpaca_kl", "--bench wmdp --model mini --evals alpaca_kl"),
        ("attack", "attack_start", "--bench tofu10 --model mini --evals finetune_attack"),
    ],
)
def test_runs_that_never_measured_it_are_refused_with_the_command(name: str, metric: str, command: str, make: Maker):
    make("ga")
    runs = select(make.store)
    with pytest.raises(UsageError, match=command):
        FIGURES.get(name).draw(runs[~runs["metric"].str.contains(metric)], options(make))


@pytest.mark.parametrize("name", ["wmdp_table", "wmdp_tradeoff", "kl_quantiles", "attack"])
def test_reference_arms_alone_are_no_figure(name: str, make: Maker):
    make("untouched", ((1e-30, 0.9),), config={})
    with pytest.raises(UsageError, match=r"only references.*harness run --method .* --evals"):
        FIGURES.get(name).draw(select(make.store), options(make))


def test_an_arm_is_told_by_the_first_run_that_measured_it(make: Maker):
    lacking = {arm: [m for m in found if m.metric != "alpaca_kl"] for arm, found in REFERENCES.items()}
    specs = [make("ga", references=lacking), make("npo", references=REFERENCES)]
    assert specs[0].folder < specs[1].folder
    (group,) = _select.groups(select(make.store), ("bio_accuracy",), "this")
    assert group.references["arm"].tolist() == ["retrained", "untouched"]
    assert group.references["alpaca_kl"].tolist() == [0.91, 0.9]


# ---------------------------------------------------------------- forgetting against what it costs


def test_the_trade_off_shows_every_point_of_every_run_and_where_untouched_and_chance_lie(make: Maker):
    make("ga", ((0.9, 0.8), (0.3, 0.6)))
    make("npo", ((0.2, 0.7),), selection=TUNED.format("npo"))
    found = FIGURES.get("wmdp_tradeoff").draw(select(make.store), options(make))
    drawing, sheet = (found[name] for name in sorted(found, key=len))
    assert isinstance(sheet, Sheet)
    told = sheet.numbers[["method", "preset", "step", "bio_accuracy", "alpaca_kl"]].to_numpy().tolist()
    assert told == [["ga", "published", 1, 0.9, 0.8], ["ga", "published", 2, 0.3, 0.6], ["npo", "tuned", 1, 0.2, 0.7]]
    panels = drawing.get_axes()  # type: ignore[union-attr]
    assert [axes.get_title() for axes in panels[:2]] == ["published preset", "tuned preset"]
    assert {0.25, 1e-30} <= {line.get_ydata()[0] for line in panels[0].lines}
    assert [0.8, 0.6] in [list(line.get_xdata()) for line in panels[0].lines]


def test_forms_with_the_same_settings_are_said(make: Maker):
    for method, lr in (("ga", 0.001), ("npo", 0.01)):
        make(method, ((0.9, 0.8),), config={"lr": 0.001})
        make(method, ((0.8, 0.8),), config={"lr": lr}, selection=TUNED.format(method), form="tuned")
    for name in ("wmdp_tradeoff", "wmdp_table"):
        found = FIGURES.get(name).draw(select(make.store), options(make))
        (sheet,) = (value for value in found.values() if isinstance(value, Sheet))
        assert "Published and tuned are the same settings for ga." in sheet.notes


def test_of_a_benchmark_with_one_stage_the_other_stages_questions_do_not_count(make: Maker):
    found = interval("bio_accuracy", 0.4, 0.3, 0.5) | interval("cyber_accuracy", 0.8, 0.7, 0.9)
    make("ga", ((0.2, 0.6),), bench="wmdp-bio", found=found)
    drawn = FIGURES.get("wmdp_tradeoff").draw(select(make.store), options(make))
    (drawing,) = (value for name, value in drawn.items() if not name.endswith("points"))
    heights = {y for axes in drawing.get_axes() for spots in axes.collections for _, y in spots.get_offsets()}  # type: ignore[union-attr]
    assert 0.4 in heights
    assert 0.6 not in heights


# ---------------------------------------------------------------- how it looks


@pytest.mark.parametrize("values", [[1e-30, 1.0], [0.0, 0.5], [], [0.9]])
def test_the_axis_of_p_values_copes_with_all_of_them(values: list[float]):
    axes = _style.figure(3, 3).subplots()
    lowest = _style.log_axis(axes, values, "p")
    low, high = axes.get_ylim()
    assert 0 < low < lowest
    assert all(lowest <= max(value, lowest) < high for value in values)
    assert len(axes.get_yticks()) <= 8
    assert _style.power(1e-12) == "10⁻¹²"


def test_an_axis_of_p_values_reaches_no_further_down_than_can_be_read():
    axes = _style.figure(3, 3).subplots()
    assert 1e-9 < _style.log_axis(axes, [1e-30, 1.0], "p") < 1e-8


def test_scores_that_lie_far_apart_get_more_room_where_the_best_are():
    axes = _style.figure(3, 3).subplots()
    assert _style.score_axis(axes, [0.0, 0.8, 0.9])
    shown = axes.transAxes.inverted().transform(axes.transData.transform([(0.0, 0), (0.8, 0), (0.9, 0)]))[:, 0]
    assert shown[2] - shown[1] > 0.25, "a ninth of the range has more than a quarter of the axis"
    assert 0 < shown[0] < shown[1] < shown[2] < 1
    places = axes.transData.transform([(tick, 0) for tick in axes.get_xticks()])[:, 0]
    assert min(abs(a - b) for a, b in itertools.pairwise(places)) > 0.1 * axes.bbox.width
    near = _style.figure(3, 3).subplots()
    assert not _style.score_axis(near, [0.8, 0.9])
    assert near.get_xscale() == "linear"


@pytest.mark.parametrize("retain", ["all", "general"])
@pytest.mark.parametrize("name", FIGURES.names())
def test_no_words_of_a_drawing_lie_over_others_or_are_cut(name: str, retain: str, make: Maker):
    """Titles, legends, names of axes and of lines; long model names and one column of panels are the narrow case."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for kind, rank in (("a", 4), ("a", 8), ("b", 4)):
        for method in ("ga", "grad_diff", "checkpoint", "kl_min"):
            changes = {"config": {"lr": 0.001, "kind": kind, "rank": rank}, "retain": retain, "model": "smollm2-135m@1"}
            selection = TUNED.format(method) if kind == "b" and retain == "all" else f"published form: preset of {method}"
            selection += ", then kind by hand" if rank == 8 or (kind == "b" and retain == "general") else ""
            make(method, ((1e-12, 0.85), (0.3, 0.2)), selection=selection, **changes)
    made = FIGURES.get(name).draw(select(make.store), options(make, by=BY.get(name, "")))
    for drawing in (item for item in made.values() if not isinstance(item, Sheet)):
        canvas = FigureCanvasAgg(drawing)
        canvas.draw()
        words = [text for axes in drawing.axes for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts)]
        words += [drawing._suptitle, drawing._supxlabel]  # type: ignore[attr-defined]
        words += [text for legend in drawing.legends for text in legend.get_texts()]
        for axes in drawing.axes:
            low, high = axes.get_xlim()
            words += [label for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
        boxes = [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in words if text.get_text()]
        page = drawing.bbox
        for i, (said, box) in enumerate(boxes):
            assert min(box.x0 - page.x0, page.x1 - box.x1, box.y0 - page.y0, page.y1 - box.y1) >= 0, f"{said} is cut"
            for other, its in boxes[i + 1 :]:
                over = min(box.x1, its.x1) - max(box.x0, its.x0), min(box.y1, its.y1) - max(box.y0, its.y0)
                assert min(over) <= 1 or "↓" in (said, other), f"'{said}' and '{other}' lie over one another"


def test_values_that_were_never_run_alike_are_not_passed_off_as_an_ablation(make: Maker):
    make(config={"estimator": "kfac", "target_kl": 0.1})
    make(config={"estimator": "ekfac", "target_kl": 0.14}, selection=TUNED.format("ga"))
    made = FIGURES.get("ablation").draw(select(make.store), options(make, by="estimator"))
    (sheet,) = [item for item in made.values() if isinstance(item, Sheet)]
    (drawing,) = [item for item in made.values() if not isinstance(item, Sheet)]
    assert "by estimator and target_kl, which differ together" in sheet.caption
    assert any("not due to estimator alone" in note for note in sheet.notes)
    names = [text.get_text() for text in drawing.legends[0].get_texts()]
    assert {"ekfac\n(target_kl 0.14)", "kfac\n(target_kl 0.1)"} <= set(names)
    make(config={"estimator": "ekfac", "target_kl": 0.1}, selection=TUNED.format("ga"), seed=1)
    (sheet,) = sheets("ablation", make, by="estimator").values()
    assert "differ together" not in sheet.caption


def test_figures_reach_records_through_one_door():
    for file in sorted((ROOT / "plots").glob("*.py")):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"harness\.(storage|store|records|record_\w+|packs|packing|frames)\b", text), file.name


def test_lines_of_one_colour_at_equal_damage_differ_in_their_dashes():
    from plots.equal_damage import _dashes
    from tests.reading.test_equal_damage import falling, line, only

    forms = [("kfade", {"estimator": each}) for each in ("kfac", "diagonal", "identity")] + [
        ("predictor_corrector", {"predictor": "kfac"})
    ]
    one = only(*(falling(line(0.6, 0.1), method, config) for method, config in [*forms, ("ga", {})]))
    drawn = {each.label: _dashes(one)[each.label] for each in one.contenders}
    assert drawn.pop("ga") == "-"
    assert len(drawn) == len(set(map(str, drawn.values()))) == len(forms)


def test_a_metric_that_no_method_has_at_a_budget_is_not_drawn():
    from plots.equal_damage import _metrics
    from tests.reading.test_equal_damage import falling, measured, only
    from tests.records import at_budgets

    own = at_budgets({None: measured(0.2, 0.3)}, spec={"method": "retrained"})
    broken = at_budgets({0.01: [Absent(metric="forget_probability", reason="there is no finite avg_gt_loss for forget")]})
    assert _metrics(only(own, broken)) == []
    assert _metrics(only(own, falling({0.01: (0.3, 0.5)}))) == ["forget_quality_d", "forget_probability", "model_utility"]


def test_what_was_kept_is_drawn_at_equal_damage_where_no_attack_was_and_chance_where_a_metric_has_one():
    from plots.equal_damage import _all_in_one, _metrics
    from tests.reading.test_equal_damage import only
    from tests.records import at_budgets, number

    def on_wmdp(method: str, bio: float, **attacked: float) -> RunResult:
        values = {"bio_accuracy": bio, "general_accuracy": 0.9, **attacked}
        return at_budgets({0.01: [number(*of) for of in values.items()]}, spec={"bench": "wmdp-bio", "method": method})

    drawn = only(on_wmdp("kfade", 0.4), on_wmdp("npo", 0.9))
    names = _metrics(drawn)
    assert names == ["bio_accuracy", "general_accuracy"]
    panels = _all_in_one(drawn, names).axes
    assert len(panels) == 2
    for axes in panels:
        assert "chance" in [text.get_text() for text in axes.texts]
        assert 0.25 in [each.get_ydata()[0] for each in axes.lines]
    attacked = only(on_wmdp("kfade", 0.4, attack_related_50=0.5))
    assert _metrics(attacked) == ["bio_accuracy", "attack_related_50"]
