"""What a terminal shows of one run: the headline within 80 columns, everything on request."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from harness.core.measurement import Absent
from harness.reading.run_report import FIRST, first_screen, run_report
from tests.records import number, numbers, run

SHOWN = ("forget_quality ↑", "forget_quality_d ↓", "model_utility ↑")


def text(shown: RenderableType, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), markup=False)
    console.print(shown)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def result(*names: str, **changes: Any) -> Any:
    return run([*numbers(0.00449, 0.2, 0.8), *(number(name, 0.5) for name in names)], **changes)


def test_the_first_screen_is_the_headline_between_its_references_within_80_columns():
    made = result("forget_rouge", "forget_probability", "retain_kl", "retain_rouge")
    shown = text(first_screen(made))
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert shown.count("┏") == 1, "one table: the columns stand side by side"
    (head,) = [line for line in lines if "untouched" in line]
    assert head.index("kfade") < head.index("untouched") < head.index("retrained")
    rows = [line for line in lines if line.startswith("│")]
    assert len(rows) == FIRST
    assert [row.strip("│ ").split("  ")[0] for row in rows[:3]] == [*SHOWN]
    assert "0.800 [0.790 to 0.810]" in shown
    assert f"2 more metrics, all notes, settings and the command: harness show {made.spec.run_id}" in shown


@pytest.mark.parametrize(
    ("marks", "epochs", "says"),
    [
        ((0, 1, 0, 1), 4, "forgotten: after 2 of 4 epochs"),
        ((0, 0, 1), 5, "forgotten: after step 3 of 3"),
        ((0, 0), 2, "forgotten: at none of the measured points"),
    ],
)
def test_the_first_point_at_which_enough_is_forgotten_is_marked(marks: tuple[int, ...], epochs: int, says: str):
    ways = [[number("forgotten", float(mark))] for mark in marks]
    made = run(*ways, spec={"bench": "tdec", "config": {"epochs": epochs}})
    assert says in text(first_screen(made))
    assert says in text(run_report(made), 200)
    assert "forgotten: a" not in text(run_report(result()), 200), "a benchmark that marks nothing"


def test_what_is_measured_only_stands_on_request_and_all_of_it():
    made = result("forget_rouge", "forget_probability", "retain_kl", "own_metric")
    assert "own_metric" not in text(first_screen(made))
    assert "own_metric" in text(run_report(made), 160)
    three = ("forget_rouge", "forget_probability", "retain_kl")
    assert "1 more metric, all notes" in text(first_screen(result(*three)))
    assert "more metric" not in text(first_screen(result()))


def test_metrics_that_nobody_declares_are_shown_where_there_are_no_others():
    made = run([number("own_metric", 0.25), Absent(metric="other", reason="no rows")])
    shown = text(first_screen(made))
    assert "own_metric" in shown
    assert "other: absent: no rows" in shown


def test_the_first_screen_says_what_a_reader_could_stumble_over_once():
    note = "a tie with retraining: D is at or under the noise floor"
    tie = run([number("forget_quality", 0.9, note=note), number("forget_quality_d", 0.1, note=note)])
    shown = text(first_screen(tie))
    assert f"forget_quality, forget_quality_d: {note}" in shown.replace("\n", " ").replace("  ", " ")
    assert "forget_quality_d: two retrained models differ by 0.150, its noise floor" in shown


@pytest.mark.parametrize("show", [first_screen, run_report])
def test_a_run_that_failed_says_so(show: Any):
    shown = text(show(run(status="failed", error="Diverged: the loss is NaN\n  trace", points=())))
    assert "failed: Diverged: the loss is NaN" in shown
    assert "trace" not in shown


@pytest.mark.parametrize(("floor", "said"), [(0.15, "Noise floor: what two"), (None, "No noise floor: it takes two")])
def test_a_noise_floor_that_one_retrained_model_cannot_give_is_not_spoken_of(floor: float | None, said: str):
    shown = text(run_report(run([number("forget_quality_d", 0.1, floor=floor)])), 160).replace("\n", " ")
    assert said in " ".join(shown.split())
