"""The leaderboard's part about runs with budgets: made of records, and nowhere where there are none."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from harness.reading.leaderboard import build
from tests.reading.test_equal_damage import NEVER, falling, measured
from tests.records import at_budgets, numbers, run, write

FILES = {"index.html", "leaderboard.csv", "leaderboard.md", "differences.csv"}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write(tmp_path, run(numbers(0.1, 0.3, 0.8), spec={"method": "ga"}))
    for model in ("mini", "mini@2"):
        write(tmp_path, falling({0.003: (0.5, 0.9), 0.01: (0.4, 0.15)}, model=model))
        write(tmp_path, falling({0.003: (0.55, 0.9), 0.01: (0.45, 0.3)}, "sham", model=model))
        own = {"method": "retrained", "model": model, "budget_rows": f"rows of {model}"}
        write(tmp_path, at_budgets({None: measured(0.1, 0.2)}, spec=own))
    return tmp_path


def test_there_is_no_trace_of_it_without_such_runs(tmp_path: Path):
    write(tmp_path, run(numbers(0.1, 0.3, 0.8), spec={"method": "ga"}))
    files = build(tmp_path)
    assert set(files) == FILES
    for name in FILES:
        assert b"equal damage" not in files[name].lower()
        assert b"budget" not in files[name]


def test_each_budget_has_its_table_between_the_references(store: Path):
    text = build(store)["leaderboard.md"].decode()
    section = text.partition("## At equal damage: tofu10 · model mini")[2]
    table = section.partition("**Damage 0.01 nats per token**")[2].partition("**Damage 0.03")[0]
    rows = [row.split(" | ") for row in table.splitlines() if row.startswith("| ")][2:]
    assert [row[0].lstrip("| ") for row in rows] == ["untouched", "retrained", "npo", "sham", "retrained (own damage)"]
    assert rows[2][1:3] == ["2", "0.010"]
    later = section.partition("**Damage 0.03 nats per token**")[2].partition("**Damage 0.1 ")[0]
    assert f"| npo |  |  | absent: {NEVER} (2 of 2) |" in later
    assert "| npo | 0.400 | 1 |" in section.partition("**Three rules")[2]


def test_every_number_and_reason_is_in_the_csv(store: Path):
    lines = [*csv.DictReader(io.StringIO(build(store)["equal_damage.csv"].decode()))]
    of_npo = [
        (line["world"], line["budget"], line["value"])
        for line in lines
        if line["method"] == "npo" and line["metric"] == "forget_quality_d"
    ]
    assert of_npo == [
        (world, budget, value) for world in ("mini", "mini@2") for budget, value in (("0.003", "0.5"), ("0.01", "0.4"))
    ]
    reasons = {(line["budget"], line["absent"]) for line in lines if line["absent"]}
    assert reasons == {("0.03", NEVER), ("0.1", NEVER)}
    ranks = [*csv.DictReader(io.StringIO(build(store)["equal_damage_rules.csv"].decode()))]
    assert [(line["contender"], line["A_rank"], line["B_rank"], line["B_value"]) for line in ranks] == [
        ("npo", "1", "1", ranks[0]["B_value"]),
        ("sham", "2", "2", ""),  # it never gets there
    ]
    assert 0.003 < float(ranks[0]["B_value"]) < 0.01


def test_the_page_links_to_it_and_escapes_what_records_say(tmp_path: Path):
    write(tmp_path, falling({0.01: (0.4, 0.15)}, config={"note": "<script>x</script>"}))
    write(tmp_path, falling({0.01: (0.3, 0.15)}, config={"note": "other"}))
    page = build(tmp_path)["index.html"].decode()
    assert '<a href="#equal-damage-1">At equal damage: tofu10 · model mini</a>' in page
    assert 'id="equal-damage-1"' in page
    assert "<script>x" not in page
    assert "&lt;script&gt;x" in page


def test_an_unchanged_store_gives_the_same_bytes(store: Path):
    assert build(store) == build(store)
