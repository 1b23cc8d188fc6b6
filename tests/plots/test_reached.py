"""Figures of the point at which enough was forgotten: which point speaks, and which runs a line joins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import UsageError
from harness.core.figure import FIGURES, FigureOptions, Sheet
from harness.core.measurement import Absent, Measurement
from harness.reading.figures import select
from harness.storage.records import RunResult
from harness.storage.store import Store
from tests import records

Way = Sequence[tuple[float, float]]
"""(forgotten, perplexity) of each point."""


def measured(forgotten: float, perplexity: float) -> list[Measurement | Absent]:
    told = {"forgotten": "higher", "extraction_likelihood": "lower", "memorization_accuracy": "lower"}
    numbers: list[Measurement | Absent] = [
        records.number(metric, forgotten if metric == "forgotten" else 1 - forgotten, better=better)
        for metric, better in told.items()
    ]
    return [*numbers, records.number("general_perplexity", perplexity, better="lower", range=None)]


def run(method: str, way: Way, seed: int = 0, **config: Any) -> RunResult:
    spec = {"bench": "tdec", "method": method, "seed": seed, "config": config, "evaluators": {"extraction": 1, "perplexity": 1}}
    references = {"untouched": measured(0, 9)}
    selection = records.BY_HAND if config else records.PUBLISHED
    return records.run(*(measured(*point) for point in way), spec=spec, references=references, selection=selection)


def sheet(name: str, root: Path, *runs: RunResult, by: str = "") -> Sheet:
    records.write(root, *runs)
    made = FIGURES.get(name).drawn(select(Store(root)), FigureOptions(root, by=by))
    (found,) = [item for item in made.values() if isinstance(item, Sheet)]
    return found


def test_a_run_speaks_with_the_first_point_that_is_forgotten(tmp_path: Path):
    ga, npo = run("ga", [(0, 10), (1, 20), (0, 30), (1, 40)]), run("npo", [(0, 11), (0, 12)])
    numbers = sheet("forgetting_cost", tmp_path, ga, npo).numbers.set_index("method")
    assert numbers.loc["ga", ["reached", "step", "seconds", "general_perplexity"]].tolist() == [True, 2, 2.0, 20]
    assert numbers.loc["npo", ["reached", "step", "seconds", "general_perplexity"]].tolist() == [False, 2, 2.0, 12]


def test_the_axis_is_scaled_by_what_is_drawn(tmp_path: Path):
    records.write(tmp_path, run("ga", [(0, 10), (1, 20)]), run("ga", [(1, 9000)], lr=1.0))
    made = FIGURES.get("forgetting_cost").drawn(select(Store(tmp_path)), FigureOptions(tmp_path))
    (drawing,) = [item for item in made.values() if not isinstance(item, Sheet)]
    (axes,) = drawing.axes
    assert (axes.get_yscale(), axes.get_ylim()[1] < 30) == ("linear", True)


def test_how_many_draws_were_forgotten_and_their_median_and_range_are_told(tmp_path: Path):
    ways: list[Way] = [[(1, 20)], [(0, 10), (1, 30)], [(0, 10), (0, 40)]]
    (told,) = sheet("forgetting_cost", tmp_path, *(run("ga", way, seed) for seed, way in enumerate(ways))).shown.to_dict(
        "records"
    )
    assert told["forgotten"] == "2 of 3"
    assert told["general_perplexity"] == "30.000 (20.000 to 40.000)"
    assert told["step"] == "2 (1 to 2)"


def test_a_line_joins_runs_that_differ_in_the_number_alone(tmp_path: Path):
    runs = [run("loku", [(1, 10 + rank)], rank=rank, fila=fila) for rank in (4, 8, 16) for fila in (True, False)]
    other = run("loku", [(1, 99)], rank=32, fila=True, lr=0.5)  # nothing else has this learning rate
    found = sheet("ranks", tmp_path, *runs, other)
    assert found.numbers.groupby("line")["rank"].apply(list).to_dict() == {
        "loku, fila=false": [4, 8, 16],
        "loku, fila=true": [4, 8, 16],
    }
    assert 99 not in set(found.numbers["general_perplexity"])


def test_of_several_numbers_one_must_be_named(tmp_path: Path):
    runs = [run("ga", [(1, 10)], lr=lr, epochs=epochs) for lr in (0.1, 0.2) for epochs in (1, 2)]
    with pytest.raises(UsageError, match=r"--by. In these runs vary: epochs, lr\.$"):
        sheet("ranks", tmp_path, *runs)
    assert set(sheet("ranks", tmp_path, *runs, by="epochs").numbers["line"]) == {"ga, lr=0.1", "ga, lr=0.2"}


def test_without_several_values_the_command_is_named(tmp_path: Path):
    with pytest.raises(
        UsageError, match=r"no method was run with several values of 'rank'.*--bench tdec --grid rank=4,8,16,32"
    ):
        sheet("ranks", tmp_path, run("loku", [(1, 10)], rank=4))
