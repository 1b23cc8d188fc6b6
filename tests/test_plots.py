"""Figures and tables: what is drawn is what is recorded, chosen by named rules, and the same bytes every time."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.errors import UsageError
from harness.figures import FORMATS, draw, formats, latex, markdown, select
from harness.interfaces import FIGURES, Absent, FigureOptions, GenerationRequest, Measurement, Sampling, Sheet
from harness.registry import ROOT
from harness.store import SCHEMA_VERSION, Point, RunResult, RunSpec, Store
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
QUESTIONS = [
    ("Who was | A?", {"row": 0, "cluster": "a", "question": "Who was | A?", "answer": "A <script>"}),
    ("Where was B?", {"row": 1, "cluster": "b", "question": "Where was B?", "answer": "In $C_1$ & D."}),
]


def number(metric: str, value: float, version: int = 1) -> Measurement | Absent:
    if math.isnan(value):
        return Absent(metric=metric, reason="not | finite")
    interval = (value - 0.01, value + 0.01) if "utility" in metric or "rouge" in metric else None
    return Measurement(
        metric=metric,
        version=version,
        value=value,
        unit="x",
        better=METRICS[metric][0],  # type: ignore[arg-type]
        n=120,
        interval_95=interval,
        across_references=(value / 3, value),
        floor=0.15,
    )


def measured(quality: float, utility: float, version: int = 1) -> list[Measurement | Absent]:
    told = {"forget_quality": quality, "forget_quality_d": 0.1 + 1 / 3, "model_utility": utility, "retain_rouge": 0.9}
    told |= {"real_authors_rouge": 0.8, "world_facts_rouge": 0.7, "forget_rouge": 0.6, "retain_kl": 0.02}
    return [number(metric, value, version) for metric, value in told.items()]


ARMS = {"untouched": measured(1e-30, 0.9), "retrained": measured(1.0, 0.91)}
Way = Sequence[tuple[float, float]]


class Maker:
    """Makes runs in a store, without torch."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)

    def __call__(self, method: str = "ga", way: Way = ((1e-30, 0.8), (0.5, 0.6)), **changes: Any) -> RunSpec:
        result_changes = {key: changes.pop(key) for key in ("selection", "status", "error") if key in changes}
        version = changes.pop("metric_version", 1)
        logged = changes.pop("logged", {"measured_kl": 0.02})
        texts = changes.pop("texts", True)
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
                **changes,
            }
        )
        selection = f"published form: preset of {method} for tofu10 on mini"
        told = {"status": "done", "selection": selection, "arms": ARMS, **result_changes}
        with self.store.open(spec) as record:
            empty = RunResult(schema_version=SCHEMA_VERSION, spec=spec, status="interrupted")
            record.write(replace(empty, **told))
            for index, (quality, utility) in enumerate(way):
                found = measured(quality, utility, version)
                point = Point(
                    index=index,
                    step=index + 1,
                    logged=logged,
                    measurements=found,
                    weights=f"{index}",
                    unlearn_seconds=1.5 + index,
                )
                said = {GenerationRequest((q,), Sampling(5)): f"{method} says\n*{q}*" for q, _ in QUESTIONS}
                record.add(point, {}, said if texts else {})
        if texts:
            self.store.keep_questions(spec, {"retain": [], "forget": QUESTIONS})
        return spec


TUNED = "tuned form: preset of {} for tofu10 on mini"


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    return Maker(tmp_path / "results")


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


@pytest.mark.parametrize("name", FIGURES.names())
def test_an_unchanged_store_gives_the_same_bytes(name: str, filled: Maker, tmp_path: Path):
    one = written(name, filled, tmp_path / "one", by=BY.get(name, ""))
    assert one == written(name, filled, tmp_path / "two", by=BY.get(name, ""))
    for file, content in one.items():
        if not file.endswith(".png"):
            assert b"<dc:date>" not in content
            assert str(tmp_path).encode() not in content


@pytest.mark.parametrize("name", FIGURES.names())
def test_no_runs_is_one_sentence_with_the_command(name: str, make: Maker, capsys: pytest.CaptureFixture[str], monkeypatch):
    from harness.cli import main

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


@pytest.mark.parametrize("name", FIGURES.names())
@pytest.mark.parametrize(
    "other",
    [
        {"bench": "tofu05"},
        {"model": "mini@1", "sources": {"base": {"seed": 2}}},
        {"variant": "open-unlearning"},
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
    assert {Path(file).suffix for file in files} == {".svg", ".png", ".csv", ".md", ".tex"}
    assert all(Path(file).parent == filled.store.root / "figures" and Path(file).is_file() for file in files)


def test_listing_figures_imports_no_matplotlib():
    code = (
        "import sys; sys.modules['matplotlib'] = sys.modules['pandas'] = None; "
        "sys.argv = ['harness', 'list', 'figures', '--json']; from harness.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f'"{name}"' in done.stdout for name in FIGURES.names())


def test_drawing_changes_nothing_outside(filled: Maker, tmp_path: Path):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    written("pareto", filled, tmp_path)
    assert dict(mpl.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_an_unknown_figure_and_an_unknown_format_get_the_nearest(make: Maker):
    with pytest.raises(UsageError, match="Did you mean 'pareto'"):
        FIGURES.get("paretto")
    with pytest.raises(UsageError, match="no format called 'pdf'"):
        formats("svg,pdf")
    assert formats("") == FORMATS


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
    found = table[(table["method"] == method) & (table["protocol"] == protocol) & (table["metric"] == metric)]
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
    assert _select.protocol("tuned form: preset of ga for tofu10 on mini, then lr by hand") == "other settings"
    assert _select.protocol("settings of a recorded run") == "other settings"


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
    assert [q["answer"] for q in found] == ["A <script>", "In $C_1$ & D."]
    assert make.store.texts(one.folder.as_posix(), 1)[("Where was B?",)] == "ga says\n*Where was B?*"
    assert make.store.texts(one.folder.as_posix(), 7) == {}


# ---------------------------------------------------------------- how it looks


def test_every_method_has_a_look_of_its_own():
    from harness.interfaces import METHODS

    looks = [_style.look(name) for name in METHODS.names()]
    assert all(name in _style.LOOKS for name in METHODS.names())
    assert len({(look.colour, look.marker) for look in looks}) == len(looks)
    assert _style.look("my_method") == _style.look("my_method")


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.5, "0.500"), (0.0, "0.000"), (1e-30, "1.0e-30"), (0.0042, "0.004"), (float("nan"), "–"), (None, "–")],
)
def test_numbers_as_they_are_printed(value: float | None, told: str):
    assert _style.number(value) == told


@pytest.mark.parametrize("values", [[1e-30, 1.0], [0.0, 0.5], [], [0.9]])
def test_the_axis_of_p_values_copes_with_all_of_them(values: list[float]):
    axes = _style.figure(3, 3).subplots()
    lowest = _style.log_axis(axes, values, "p")
    low, high = axes.get_ylim()
    assert 0 < low < lowest
    assert all(lowest <= max(value, lowest) < high for value in values)
    assert len(axes.get_yticks()) <= 8
    assert _style.power(1e-12) == "10⁻¹²"
