"""The leaderboard: its numbers are the records', it compares only what may be compared, and it regenerates byte for byte."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from harness.core.costs import Phase
from harness.core.errors import UsageError
from harness.core.measurement import Absent
from harness.core.registry import ROOT
from harness.reading.compared import protocol, read_runs
from harness.reading.comparing import sections
from harness.reading.leaderboard import FOLDER, build, difference, write
from harness.storage.records import SCHEMA_VERSION
from tests import records
from tests.browser import CHROMIUM, Page, chromium
from tests.records import BY_HAND, FLOOR, PUBLISHED, TUNED, number, numbers, run

SCRIPT = "<script>document.title = 'pwned'</script>\"'&"


def of(method: str, *ways, **changes):
    """A run of another method; settings differ by method, so that each is a row of its own."""
    return run(*ways, spec={"method": method, **changes.pop("spec", {})}, **changes)


def lines(root: Path, **wanted: str) -> list[dict[str, str]]:
    """Lines of leaderboard.csv with these values."""
    table = csv.DictReader(io.StringIO(build(root)["leaderboard.csv"].decode()))
    return [line for line in table if all(line[key] == value for key, value in wanted.items())]


def line(root: Path, **wanted: str) -> dict[str, str]:
    (found,) = lines(root, **wanted)
    return found


def page(root: Path) -> str:
    return build(root)["index.html"].decode()


def notes(root: Path) -> str:
    return "\n".join(note for section in sections(read_runs(root, print)) for note in section.notes)


class Elements(HTMLParser):
    """Every element with its attributes, and the text that a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._hidden = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag):
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data):
        self.text += "" if self._hidden else data


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three methods in two protocols; kfade with three seeds."""
    for seed, (quality, distance, utility) in enumerate([(0.02, 0.2, 0.8), (0.01, 0.22, 0.85), (0.05, 0.18, 0.7)]):
        records.write(tmp_path, run(numbers(quality, distance, utility), spec={"seed": seed}))
    records.write(
        tmp_path,
        of("ga", numbers(1e-3, 0.4, 0.6), numbers(0.5, 0.1, 0.55), numbers(0.9, 0.05, 0.2)),
        of("npo", numbers(0.3, FLOOR, 0.75)),
        of("npo", numbers(1e-7, 0.5, 0.9), selection=TUNED, spec={"config": {"beta": 0.5}}),
        of("dpo", numbers(1e-9, 0.6, 0.9), selection=TUNED),
    )
    return tmp_path


# ---------------------------------------------------------------- numbers


def test_values_equal_the_records(tmp_path: Path):
    measured = [*numbers(0.1 + 0.2, 1 / 3, 2 / 3, forget_rouge=0.123456789012345), Absent(metric="extra", reason="no rows")]
    (folder,) = records.write(tmp_path, run(numbers(0.9, 0.1, 0.9), measured, spec={"seed": 7}))
    for found in measured[:-1]:
        told = line(tmp_path, method="kfade", metric=found.metric)
        assert float(told["value"]) == found.value
        assert (told["unit"], told["better"], int(told["n"])) == (found.unit, found.better, found.n)
        assert told["runs"] == folder.relative_to(tmp_path / "runs").as_posix()
        low, high = found.interval_95 or ("", "")
        assert (told["low"], told["high"]) == (str(low), str(high))
    assert line(tmp_path, method="kfade", metric="extra")["absent"] == "no rows"
    cost = line(tmp_path, method="kfade", metric="model_utility")
    assert (float(cost["seconds"]), float(cost["full_seconds"]), int(cost["peak_bytes"])) == (2.0, 2.5, 2**30)
    assert "Absent: extra: no rows" in Elements(page(tmp_path)).text


def test_several_seeds_give_the_median_with_the_range(store: Path):
    told = line(store, method="kfade", metric="model_utility")
    assert (float(told["value"]), float(told["seed_low"]), float(told["seed_high"]), told["seeds"]) == (0.8, 0.7, 0.85, "3")
    assert (float(told["low"]), float(told["high"])) == (0.79, 0.81)
    assert "3 seeds: 0.700 to 0.850" in Elements(page(store)).text
    assert len(told["runs"].split()) == 3


def test_the_last_point_stands_for_a_run_and_the_oracle_stands_apart(store: Path):
    told = line(store, method="ga", metric="forget_quality")
    assert float(told["value"]) == 0.9
    assert (told["oracle_step"], told["oracle_forget_quality"], told["oracle_model_utility"]) == ("2", "0.5", "0.55")
    assert line(store, method="npo", protocol="tuned", metric="model_utility")["oracle_step"] == "", "one point is no choice"


def test_the_reference_arms_are_shown_and_not_ranked(store: Path):
    for arm, value in (("untouched", 0.6), ("retrained", 0.0)):
        told = line(store, method=arm, metric="forget_quality_d")
        assert (float(told["value"]), told["rank"]) == (value, "reference")
    records.write(store, of("untouched", numbers(1e-20, 0.3, 0.9)))
    assert line(store, method="untouched", protocol="published", metric="forget_quality_d")["rank"] == "reference"
    assert line(store, method="kfade", metric="forget_quality_d")["rank"] == "3", "its run takes no rank either"


def test_what_is_compared_is_declared_once_on_the_record():
    """A new dimension is a field of the spec and a line of `IDENTITY`; settings are all that is left."""
    from dataclasses import fields

    from harness.storage.identity import FIELDS, IDENTITY, NAME

    names = {field.name for field in fields(records.SPEC)}
    assert names >= {*FIELDS}
    assert {*NAME} <= {part.title for part in IDENTITY}
    settings = {
        "method",
        "method_version",
        "config",
        "adapter",
        "optimizer",
        "evaluators",
        "seed",
        "dtype",
        "device",
        "generator",
        "points",
        "form",
        "evaluator_inputs",
        "budgets",
        "general",
    }
    assert names == {*FIELDS} | settings, "say of a new field whether it must be equal in what is compared"


# ---------------------------------------------------------------- ranks


def test_at_or_under_the_floor_is_a_tie_and_others_rank_within_their_protocol(store: Path):
    ranks = {(t["protocol"], t["method"]): t["rank"] for t in lines(store, metric="forget_quality_d")}
    assert ranks == {
        ("reference", "untouched"): "reference",
        ("reference", "retrained"): "reference",
        ("published", "ga"): "tie",
        ("published", "npo"): "tie",
        ("published", "kfade"): "3",
        ("tuned", "npo"): "1",
        ("tuned", "dpo"): "2",
    }


def test_ties_are_sorted_by_utility_and_not_by_forget_quality(store: Path):
    (section,) = sections(read_runs(store, print))
    assert [(row.method, row.protocol) for row in section.rows][:3] == [
        ("npo", "published"),
        ("ga", "published"),
        ("kfade", "published"),
    ]


def test_equal_distances_share_a_rank(tmp_path: Path):
    records.write(tmp_path, *[of(m, numbers(0.01, d, 0.5)) for m, d in (("ga", 0.3), ("npo", 0.3), ("dpo", 0.4))])
    assert [t["rank"] for t in lines(tmp_path, metric="forget_quality_d", protocol="published")] == ["1", "1", "3"]


def test_not_ranked_under_five_authors(tmp_path: Path):
    note = "not to be ranked: fewer than five forget authors"
    measured = [number("forget_quality", 0.1, note=note), number("forget_quality_d", 0.3, note=note)]
    records.write(tmp_path, of("ga", measured, spec={"bench": "tofu01"}), of("npo", measured, spec={"bench": "tofu01"}))
    assert {t["rank"] for t in lines(tmp_path, metric="forget_quality_d", protocol="published")} == {"not ranked"}
    assert "Not ranked on forget quality: fewer than five forget authors." in Elements(page(tmp_path)).text


def test_no_floor_no_tie(tmp_path: Path):
    records.write(tmp_path, of("ga", [number("forget_quality_d", 0.01, floor=None)]))
    assert line(tmp_path, method="ga", metric="forget_quality_d")["rank"] == "1"
    assert "No noise floor" in notes(tmp_path)


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (PUBLISHED, "published"),
        ("published form: defaults of ga", "published"),
        (TUNED, "tuned"),
        ("tuned2 form: preset of ga for tofu10 on mini", "tuned2"),
        (BY_HAND, "by hand"),
        ("tuned form: preset of ga for tofu10 on mini, then lr by hand", "by hand"),
        ("settings of a recorded run", "by hand"),
        ("", "other"),
    ],
)
def test_the_protocol_is_read_from_how_settings_were_chosen(selection: str, expected: str):
    assert protocol(selection) == expected


def test_the_protocol_is_that_of_real_plans():
    from harness.core.options import Options
    from harness.running.plan import plan

    assert protocol(plan("tofu10", "mini", "kfade", {}, Options()).selection) == "published"
    assert protocol(plan("tofu10", "mini", "kfade", {}, Options(), preset="tuned").selection) == "tuned"
    assert protocol(plan("tofu10", "mini", "kfade", {}, Options(), preset="tuned2").selection) == "tuned2"
    assert protocol(plan("tofu10", "mini", "kfade", {"damping": 0.5}, Options()).selection) == "by hand"


# ---------------------------------------------------------------- what may be compared


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "mini@1"}, ""),
        ({"bench": "tofu05"}, ""),
        ({"variant": "open-unlearning"}, ""),
        ({"retain": "general"}, ""),
        ({"bench_version": 2}, "benchmark version (1 here)"),
        ({"limit": 10}, "rows per split (all here)"),
        ({"data": {"full": "other"}}, "data ("),
        ({"sources": {**records.SPEC.sources, "base": {"kind": "hub"}}}, "weights ("),
        ({"sources": {**records.SPEC.sources, "retain-0": {"kind": "hub"}}}, "retrained models ("),
        ({"template": {"name": "phi"}}, "template ("),
    ],
)
def test_what_differs_is_never_in_one_table(tmp_path: Path, change: dict, said: str):
    records.write(tmp_path, of("ga", numbers(0.1, 0.2, 0.3)), of("npo", numbers(0.1, 0.2, 0.3), spec=change))
    assert [[row.method for row in s.rows] for s in sections(read_runs(tmp_path, print))] in (
        [["ga"], ["npo"]],
        [["npo"], ["ga"]],
    )
    assert said in notes(tmp_path)
    assert ("Not to be compared" in notes(tmp_path)) == bool(said)


def test_a_table_says_which_retain_set_it_was(tmp_path: Path):
    few = {"bench": "wmdp", "retain": "general"}
    records.write(tmp_path, of("ga", numbers(0.1, 0.2, 0.3)), of("ga", numbers(0.1, 0.2, 0.3), spec=few))
    assert {(told["bench"], told["retain"]) for told in lines(tmp_path)} == {("tofu10", "all"), ("wmdp", "general")}
    heading = "original definitions, retain set general"
    assert heading in Elements(page(tmp_path)).text
    assert heading in build(tmp_path)["leaderboard.md"].decode()


def test_versions_of_a_metric_are_never_in_one_table(tmp_path: Path):
    newer = [number("forget_quality_d", 0.1, version=2), number("model_utility", 0.5)]
    changed = {"evaluators": {**records.SPEC.evaluators, "forget_quality": 2}}
    records.write(tmp_path, of("ga", numbers(0.1, 0.2, 0.3)), of("npo", newer, spec=changed))
    assert len(sections(read_runs(tmp_path, print))) == 2
    assert "metric versions (forget_quality 1, forget_quality_d 1 here)" in notes(tmp_path)
    assert "metric versions (forget_quality 2, forget_quality_d 2 here)" in Elements(page(tmp_path)).text


def test_fewer_evaluators_of_the_same_versions_stay_in_the_table(tmp_path: Path):
    few = of("npo", [number("model_utility", 0.5)], spec={"evaluators": {"model_utility": 1}})
    records.write(tmp_path, of("ga", numbers(0.1, 0.2, 0.3)), few)
    (section,) = sections(read_runs(tmp_path, print))
    assert {row.method: row.rank for row in section.rows} == {"ga": "1", "npo": ""}


def test_settings_tell_rows_of_a_method_apart(store: Path):
    told = {(t["method"], t["protocol"]): t["settings"] for t in lines(store, metric="model_utility")}
    assert told["npo", "tuned"] == "beta=0.5"
    assert "damping=0.1" in told["npo", "published"]
    assert told["ga", "published"] == ""


def test_runs_that_did_not_finish_are_named_and_count_for_nothing(store: Path):
    failed = of("soul", numbers(0.99, 0.01, 0.99), status="failed", error="Diverged: the loss is NaN\n  trace", points=())
    cut = of("loku", numbers(0.99, 0.01, 0.99), status="interrupted")
    records.write(store, failed, cut)
    assert not lines(store, method="soul") + lines(store, method="loku")
    text = Elements(page(store)).text
    assert "failed: soul, seed 0" in text
    assert "Diverged: the loss is NaN" in text
    assert "trace" not in text
    assert "interrupted: loku, seed 0" in text
    assert "interrupted: loku" in build(store)["leaderboard.md"].decode()


# ---------------------------------------------------------------- the page


def test_every_run_has_its_record_and_its_command(store: Path):
    elements = Elements(page(store))
    links = [a["href"] for tag, a in elements.found if tag == "a" and a["href"].startswith("..")]
    assert len(links) == 7
    for link in links:
        assert (store / FOLDER / unquote(link) / "run.json").resolve().is_file()
    assert elements.text.count(records.PROVENANCE.command) == 7


def test_the_page_asks_for_nothing(store: Path):
    elements = Elements(page(store))
    addresses = [a.get(name) for _, a in elements.found for name in ("src", "href") if a.get(name)]
    own = ("../runs/", "#", "data:,", "leaderboard.csv", "leaderboard.md", "differences.csv")
    papers = [a["href"] for tag, a in elements.found if tag == "a" and a["href"].startswith("https://arxiv.org/abs/")]
    assert all(address.startswith(own) for address in addresses if address not in papers)
    assert not re.search(r"url\(|@import|https?:", re.sub(r'<a href="https://arxiv.org/abs/', "", page(store)))


def test_directions_n_and_versions_are_told(store: Path):
    text = Elements(page(store)).text
    for told in ("Forget quality ↑", "KS distance ↓", "Utility ↑", "noise floor 0.150", "p-value", "120"):
        assert told in text


def test_what_comes_from_records_is_text(tmp_path: Path):
    bad = [
        number("model_utility", 0.5, unit=SCRIPT, note=SCRIPT),
        number(SCRIPT, 0.5),
        Absent(metric="b" + SCRIPT, reason=SCRIPT),
    ]
    made = replace(records.PROVENANCE, command=SCRIPT, processor=SCRIPT)
    records.write(
        tmp_path,
        of("ga", bad, selection=SCRIPT, notes=[SCRIPT], provenance=made, spec={"model": SCRIPT, "config": {"lr": SCRIPT}}),
    )
    records.write(tmp_path, of("npo", bad, status="failed", error=SCRIPT, spec={"model": SCRIPT}))
    (tmp_path / "published").mkdir()
    paper = dict.fromkeys(("paper", "source", "model", "protocol"), SCRIPT) | {"notes": [SCRIPT]}
    column = {"metric": "m", "title": SCRIPT, "better": "higher", "decimals": 1}
    rows = [{"method": "m", "name": SCRIPT, "values": {"m": {"value": 1.0, "plus_minus": 0.5}}}]
    paper |= {"columns": [column], "tables": [{"bench": SCRIPT, "rows": rows}]}
    (tmp_path / "published" / "bad.json").write_text(json.dumps(paper))
    clean = tmp_path / "clean"
    records.write(clean, of("ga", numbers(0.1, 0.2, 0.3)))
    elements = Elements(page(tmp_path))
    scripts = [tag for tag, _ in Elements(page(clean)).found].count("script")
    assert [tag for tag, _ in elements.found].count("script") == scripts
    assert elements.text.count(SCRIPT) >= 15
    assert not [a for _, a in elements.found if any(name.startswith("on") for name in a)]
    markdown = build(tmp_path)["leaderboard.md"].decode()
    assert "<script" not in markdown.replace("\\<script", "")


def test_a_cell_of_markdown_stays_one_cell(tmp_path: Path):
    records.write(tmp_path, of("ga", numbers(0.1, 0.2, 0.3), notes=["a | b\n# c"], spec={"config": {"a": "x|y"}}))
    records.write(tmp_path, of("ga", numbers(0.1, 0.2, 0.3), spec={"config": {"a": "z\n|"}}))
    table = [t for t in build(tmp_path)["leaderboard.md"].decode().split("\n") if t.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", t)) for t in table}) == 1


def test_the_page_opens_with_what_it_is_and_the_table_in_which_most_is_ranked(store: Path):
    records.write(store, of("ga", numbers(0.1, 0.2, 0.3), spec={"bench": "tofu01"}))
    text = Elements(page(store)).text
    assert text.index("Unlearning takes a trained language model") < text.index("tofu10 · mini") < text.index("tofu01 · mini")
    assert [line["table"] for line in lines(store, bench="tofu01")][:1] == ["1"], "the CSV counts by name, as before"
    assert 'id="table-2"' in page(store)


def test_the_glossary_has_metrics_references_and_papers(store: Path):
    elements = Elements(page(store))
    glossary = elements.text[elements.text.index("Glossary") :]
    for word in ("forget_quality ↑", "Kolmogorov-Smirnov", "untouched", "noise floor", "arXiv:2404.05868"):
        assert word in glossary
    assert "https://arxiv.org/abs/2404.05868" in [a.get("href") for tag, a in elements.found if tag == "a"]


def test_a_reference_stands_once_and_keeps_its_records(store: Path):
    records.write(store, of("untouched", numbers(1e-20, 0.6, 0.9)))
    elements = Elements(page(store))
    table = build(store)["leaderboard.md"].decode()
    assert [line.split(" | ")[1] for line in table.split("\n") if line.startswith("| untouched |")] == ["reference"]
    assert sum("/untouched/" in (a.get("href") or "") for _, a in elements.found) == 1
    assert len({line["protocol"] for line in lines(store, method="untouched")}) == 2, "the CSV has both"


def test_there_is_no_column_for_ranks_where_nothing_ranks(tmp_path: Path):
    records.write(tmp_path, of("ga", [number("bio_accuracy", 0.2, better="lower")], spec={"bench": "wmdp"}, references={}))
    assert "| method | protocol | settings | Bio ↓ |" in build(tmp_path)["leaderboard.md"].decode()
    assert not re.search(r">Rank<|>Oracle<", page(tmp_path))


def test_a_method_has_one_colour_on_the_page_and_in_figures(store: Path):
    from harness.reading.looks import look

    text = page(store)
    assert f'<span class="dot" style="--colour:{look("npo").colour}' in text
    assert f'style="--colour:{look("npo").colour};--dark:{look("npo").on_dark}" data-method="npo"' in text


def test_one_p_value_reads_alike_in_a_run_a_comparison_and_on_the_page(tmp_path: Path):

    from rich.console import Console

    from harness.reading.comparison_table import comparison
    from harness.reading.run_report import first_screen, run_report

    result = run(numbers(0.00449, 0.2, 0.8))
    records.write(tmp_path, result)
    for shown in (run_report(result), first_screen(result), comparison([result])):
        console = Console(width=160, file=io.StringIO())
        console.print(shown)
        assert " 0.0045 " in console.file.getvalue()  # type: ignore[attr-defined]
    assert ">0.0045<" in page(tmp_path)
    assert "| 0.0045 " in build(tmp_path)["leaderboard.md"].decode()


def test_answers_are_those_to_the_first_question_that_was_to_be_forgotten(store: Path):
    from harness.reading.answers import Answers
    from harness.reading.page import page as rendered

    (section,) = sections(read_runs(store, print))
    answers = Answers("Who wrote it?", "She did.", [("untouched", "She did.")], [("npo", "tuned", SCRIPT)])
    text = Elements(rendered([section], [], {section.index: answers}, project=False)).text
    for word in ("One question, before and after", "Who wrote it?", "before (untouched)", "npo, tuned", SCRIPT):
        assert word in text
    assert "One question" not in Elements(page(store)).text, "nothing is made up where no answers are recorded"


# ---------------------------------------------------------------- published numbers


def test_published_numbers_stand_apart(store: Path):
    (store / "published").symlink_to(ROOT / "results" / "published")
    text = Elements(page(store)).text
    for told in ("arXiv:2602.10568, table 1", "arXiv:2602.10568, table 2", "4.61e-07", "30.1 ± 1.3", "2.9 [2.4, 3.5]", "6.86?"):
        assert told in text
    assert not [t for t in lines(store) if "4.61e-07" in t.values()]
    before, _, after = build(store)["leaderboard.md"].decode().partition("Published, not measured here")
    assert "| K-FADE |" not in before
    assert "| K-FADE |" in after


def test_the_published_tables_are_the_papers():
    """Values as printed; the distances behind them lie on the grid of the rows that the paper used."""
    from scipy.stats import ks_2samp

    table = json.loads((ROOT / "results" / "published" / "kfade_table2.json").read_text())
    for part, rows in zip(table["tables"], (200, 300), strict=True):
        for row in part["rows"]:
            if row["method"] == "retrained":
                continue
            quality = row["values"]["forget_quality"]
            grid = (ks_2samp(range(rows), [v + k - 0.5 for v in range(rows)]).pvalue for k in range(1, rows))
            assert any(abs(p - quality) <= 0.006 * quality for p in grid), (part["bench"], row["name"])


def test_a_published_file_that_is_none_is_named(store: Path):
    (store / "published").mkdir()
    (store / "published" / "x.json").write_text("[]")
    told: list[str] = []
    build(store, told.append)
    assert told == [
        "published/x.json is no table of published numbers: a field is unknown or of a wrong type (Input should be a "
        "dictionary or an instance of Paper)"
    ]


# ---------------------------------------------------------------- the same again


def test_regenerating_changes_no_byte(store: Path):
    first = build(store)
    write(store, first)
    assert build(store) == first
    assert difference(store, first) is None


def test_the_order_of_writing_does_not_matter(tmp_path: Path):
    made = [of(m, numbers(q, d, 0.5)) for m, q, d in (("ga", 0.1, 0.2), ("npo", 0.2, 0.1), ("dpo", 0.3, 0.3))]
    records.write(tmp_path / "a", *made)
    records.write(tmp_path / "b", *reversed(made))
    assert build(tmp_path / "a") == build(tmp_path / "b")


@pytest.mark.parametrize("name", ["index.html", "leaderboard.csv", "leaderboard.md"])
@pytest.mark.parametrize("at", [0, 0.5, 1], ids=["first", "middle", "last"])
def test_one_differing_byte_is_found(store: Path, name: str, at: float):
    files = build(store)
    write(store, files)
    content = bytearray(files[name])
    place = round(at * (len(content) - 1))
    content[place] ^= 1
    (store / FOLDER / name).write_bytes(content)
    told = difference(store, files)
    assert told is not None
    assert told.startswith(f"{FOLDER}/{name} differs in line {files[name].count(bytes([10]), 0, place) + 1}.")


def test_a_missing_and_a_shortened_file_are_found(store: Path):
    files = build(store)
    write(store, files)
    (store / FOLDER / "leaderboard.md").write_bytes(files["leaderboard.md"][:-1])
    assert "(the file ends)" in (difference(store, files) or "")
    (store / FOLDER / "leaderboard.md").unlink()
    assert difference(store, files) == f"{FOLDER}/leaderboard.md is missing."


# ---------------------------------------------------------------- the command


def test_the_command_and_its_check(store: Path, harness_cli):
    done = harness_cli("leaderboard", "--results", str(store), without_torch=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(store / FOLDER / "index.html")
    assert harness_cli("leaderboard", "--check", "--results", str(store), without_torch=True).returncode == 0
    path = store / FOLDER / "leaderboard.csv"
    path.write_bytes(path.read_bytes().replace(b"0.85", b"0.86", 1))
    before = path.read_bytes()
    done = harness_cli("leaderboard", "--check", "--results", str(store))
    assert done.returncode == 1
    assert "leaderboard/leaderboard.csv differs in line " in done.stderr
    assert "0.86" in done.stderr
    assert path.read_bytes() == before, "a check writes nothing"


def test_the_command_needs_nothing_heavy(store: Path):
    script = (
        "import sys; from harness.cli.app import register; register()(['leaderboard', '--results', sys.argv[1]], standalone_mode=False);"
        # Not numpy: the metrics' headings stand beside their formulas.
        "print(sorted({'torch', 'transformers', 'matplotlib', 'scipy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(store)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_store_with_no_runs_says_what_makes_them(tmp_path: Path, harness_cli):
    for option in ([], ["--check"]):
        done = harness_cli("leaderboard", "--results", str(tmp_path), *option)
        assert done.returncode == 2
        assert "there are no runs in" in done.stderr
        assert "harness run --method kfade --bench tofu10 makes one" in done.stderr
    assert not (tmp_path / FOLDER).exists()


def test_a_newer_record_says_which_version_is_needed(store: Path, harness_cli):
    (folder,) = records.write(store, of("soul", numbers(0.1, 0.2, 0.3)))
    told = json.loads((folder / "run.json").read_text())
    told["provenance"]["harness_version"] = "3.1.4"
    (folder / "run.json").write_text(json.dumps({**told, "schema_version": SCHEMA_VERSION + 1, "more": 1}))
    done = harness_cli("leaderboard", "--results", str(store))
    assert done.returncode == 2
    assert f"soul/{folder.name}/run.json: written by a newer version" in done.stderr
    assert f"(schema {SCHEMA_VERSION + 1}, this one reads up to {SCHEMA_VERSION})" in done.stderr
    assert "update to version 3.1.4 or later" in done.stderr
    (folder / "run.json").write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(UsageError, match=r"\(schema 99, .* update to a later version"):
        build(store)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema_version": "x"}', '{"schema_version": 1}'])
def test_a_broken_record_is_named_and_skipped(store: Path, content: str):
    expected = build(store)
    (folder,) = records.write(store, of("soul", numbers(0.1, 0.2, 0.3)))
    (folder / "run.json").write_text(content)
    told: list[str] = []
    assert build(store, told.append) == expected
    assert len(told) == 1
    assert f"soul/{folder.name}/run.json cannot be read" in told[0]


def test_a_run_without_costs_or_provenance_is_shown(tmp_path: Path):
    records.write(tmp_path, of("ga", numbers(0.1, 0.2, 0.3), costs={}, provenance=None, references={}))
    assert line(tmp_path, method="ga", metric="model_utility")["seconds"] == ""
    assert "no command on record" in Elements(page(tmp_path)).text


def test_runs_that_began_with_different_weights_are_told_apart(tmp_path: Path):
    records.write(tmp_path, of("ga", numbers(0.1, 0.2, 0.3)), of("npo", numbers(0.1, 0.2, 0.3)))
    assert "one recipe made" not in build(tmp_path)["leaderboard.md"].decode()
    elsewhere = replace(records.PROVENANCE, weights="def")
    records.write(tmp_path, of("soul", numbers(0.1, 0.2, 0.3), provenance=elsewhere))
    assert "began with 2 models that one recipe made" in build(tmp_path)["leaderboard.md"].decode()


def test_times_of_several_processes_are_told_from_those_of_one(tmp_path: Path):
    records.write(tmp_path, of("ga", numbers(0.1, 0.2, 0.3)))
    shared = replace(records.PROVENANCE, processes=2)
    records.write(tmp_path, of("npo", numbers(0.1, 0.2, 0.3), provenance=shared))
    told = "Times and memory are those of: 2 processes, each a CPU, 2 cores, float32; a CPU, 2 cores, float32."
    assert told in build(tmp_path)["leaderboard.md"].decode()


def test_metrics_that_nobody_knows_are_shown(tmp_path: Path):
    records.write(tmp_path, of("ga", [number("wmdp_bio", 0.5, better="lower")], spec={"bench": "wmdp"}, references={}))
    elements = Elements(page(tmp_path))
    assert "wmdp bio ↓" in elements.text
    assert not [a for tag, a in elements.found if tag == "td" and "more" in (a.get("class") or "")]


def test_hazardous_accuracies_stand_first_and_end_at_chance(tmp_path: Path):
    told = [number("alpaca_kl_pooled", 0.1, better="lower"), number("general_accuracy", 0.9)]
    told += [number("bio_accuracy", 0.2, better="lower")]
    records.write(tmp_path, of("ga", told, spec={"bench": "wmdp"}, references={}))
    text = build(tmp_path)["leaderboard.md"].decode()
    assert "| Bio ↓ | General ↑ | time |" in text
    assert "end at chance (0.25): below it nothing more is forgotten" in text


def test_the_cost_without_a_cache_stands_first(tmp_path: Path):
    records.write(tmp_path, of("ga", numbers(0.1, 0.2, 0.3), costs={"unlearning": Phase(1.0, 9.0, 2**31, 1)}))
    text = Elements(page(tmp_path)).text
    assert "9.0 s1.0 s with a cache" in text
    assert "2.00 GiB" in text


# ---------------------------------------------------------------- in a browser

needs_browser = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as tab:
        yield tab


@pytest.fixture
def tab(store: Path, browser: Page) -> Page:
    (store / "published").symlink_to(ROOT / "results" / "published")
    records.write(store, of("soul", numbers(0.2, 0.3, 0.4), selection=SCRIPT), of("idk", status="failed", error=SCRIPT))
    write(store, build(store))
    browser.complaints.clear()
    browser.requests.clear()
    browser.size(1280, 1000)
    browser.open(store / FOLDER / "index.html")
    return browser


def column(tab: Page, title: str) -> list[str]:
    """What a column's cells are sorted by, top to bottom."""
    return tab.run(
        f"(() => {{ const th = [...document.querySelectorAll('.board thead th')].find(t => t.textContent.startsWith('{title}'));"
        "return [...document.querySelectorAll('.board tbody.runs tr')].map(r => r.cells[th.cellIndex].dataset.v); })()"
    )


def click(tab: Page, title: str) -> None:
    tab.run(f"[...document.querySelectorAll('.board thead button')].find(t => t.textContent.startsWith('{title}')).click()")


@pytest.mark.browser
@needs_browser
class TestBrowser:
    def test_nothing_is_said_on_the_console_and_nothing_asked_for(self, tab: Page, store: Path):
        click(tab, "Utility")
        assert tab.complaints == []
        assert tab.requests == [(store / FOLDER / "index.html").resolve().as_uri()]

    @pytest.mark.parametrize(("title", "best_first"), [("Utility", True), ("KS distance", False), ("Time", False)])
    def test_a_column_sorts_best_first_then_the_other_way(self, tab: Page, title: str, best_first: bool):
        click(tab, title)
        values = [float(v) for v in column(tab, title)]
        assert values == sorted(values, reverse=best_first)
        click(tab, title)
        values = [float(v) for v in column(tab, title)]
        assert values == sorted(values, reverse=not best_first)
        assert tab.run("document.querySelectorAll('[aria-sort]').length") == 1

    def test_text_sorts_and_what_is_missing_comes_last(self, tab: Page):
        click(tab, "Method")
        assert column(tab, "Method") == ["dpo", "ga", "kfade", "npo", "npo", "soul"]
        for _ in range(2):
            click(tab, "Oracle")
            assert column(tab, "Oracle")[1:] == [""] * 5

    def test_the_reference_arms_stay_on_top(self, tab: Page):
        click(tab, "Utility")
        first = tab.run("[...document.querySelectorAll('.board tbody tr')].slice(0, 2).map(r => r.cells[0].textContent)")
        assert first == ["untouched", "retrained"]

    def test_filters_hold_for_rows_points_and_failed_runs(self, tab: Page):
        shown = "[...document.querySelectorAll('{} [data-method]:not([hidden])')].map(r => r.dataset.method)"
        tab.run("document.querySelector('[value=tuned][data-filter]').click()")
        assert set(tab.run(shown.format("tbody"))) == {"kfade", "ga", "npo", "soul"}
        tab.run("document.querySelector('[data-set=\"\"]').click()")
        assert tab.run(shown.format("body")) == []
        tab.run("document.querySelector('[value=kfade][data-filter]').click()")
        assert tab.run(shown.format("tbody")) == ["kfade"]
        assert tab.run(shown.format("svg")) == ["kfade"]
        assert tab.run(shown.format("ul")) == []
        assert tab.run("document.getElementById('shown').textContent") == "1 of 6 rows shown"
        tab.run(
            "document.querySelector('[data-set=\"1\"]').click(); document.querySelector('[value=tuned][data-filter]').click()"
        )
        assert len(tab.run(shown.format("tbody"))) == 6

    def test_points_are_named_on_hover_and_on_focus(self, tab: Page):
        tip = "document.getElementById('tip').hidden ? null : document.getElementById('tip').textContent"
        x, y = tab.run(
            "(() => { const b = document.querySelector('.point[data-method=ga] .hit').getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        tab.point_at(x, y)
        assert tab.run(tip) == "ga (published)\nutility 0.200 [0.190 to 0.210]\nKS distance 0.050 (tie), forget quality 0.900"
        tab.point_at(1, 1)
        assert tab.run(tip) is None
        tab.run("document.querySelector('figure svg g[tabindex=\"0\"]').focus()")
        named = {tab.run(tip)}
        for _ in range(7):
            tab.press("ArrowRight")
            named.add(tab.run(tip))
        assert len(named) == 8, "two arms and six points"

    def test_text_of_records_does_nothing(self, tab: Page):
        assert tab.run("document.title") == "Unlearning leaderboard"
        assert SCRIPT in tab.run("document.body.textContent")
        assert tab.run("[...document.querySelectorAll('script')].some(s => s.textContent.includes('pwned'))") is False

    @pytest.mark.parametrize("width", [320, 390, 768, 1280])
    def test_the_page_fits_the_screen_and_tables_scroll_within_it(self, tab: Page, store: Path, width: int):
        tab.size(width, 844, phone=width < 500)
        tab.open(store / FOLDER / "index.html")
        assert tab.run("document.documentElement.scrollWidth") <= width
        assert (
            tab.run("Math.max(...[...document.querySelectorAll('.scroll')].map(s => s.getBoundingClientRect().right))") <= width
        )
        smallest = "Math.min(...[...document.querySelectorAll('main small, main td')].map(e => parseFloat(getComputedStyle(e).fontSize)))"
        assert tab.run(smallest) >= 9
        if width == 390:  # beside the method there is room for its rank and a whole number
            tab.run("document.getElementById('filters').open = false")
            number = "[...document.querySelectorAll('.board tbody.runs td')].find(td => td.dataset.v === '0.9').getBoundingClientRect()"
            assert tab.run(f"{number}.right") <= width
        # Letters of the first column are not stacked one above the other.
        assert tab.run("Math.min(...[...document.querySelectorAll('.board th[scope=row]')].map(e => e.offsetWidth))") >= 80

    def test_every_metric_can_be_shown(self, tab: Page, store: Path):
        records.write(store, of("grad_diff", numbers(0.1, 0.2, 0.3, retain_truth_ratio=0.5)))
        write(store, build(store))
        tab.open(store / FOLDER / "index.html")
        seen = "getComputedStyle([...document.querySelectorAll('.board th')].find(t => t.textContent.includes('truth ratio'))).display"
        assert tab.run(seen) == "none"
        tab.run("document.getElementById('all-metrics').click()")
        assert tab.run(seen) == "table-cell"
