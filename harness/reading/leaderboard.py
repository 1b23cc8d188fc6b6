"""The leaderboard: one static page, a CSV and a Markdown table, out of the records of runs alone.

Only what run.json and points.jsonl say is read, and the papers' own numbers in `published/`. What comes out is sorted, holds no
time of day and fixed number formats, so that regenerating an unchanged store changes no byte. Imports no torch.
"""

from __future__ import annotations

import csv
import gc
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.core.figure import Sheet
from harness.core.measurement import Absent
from harness.reading import equal_damage_section, meta_table
from harness.reading.answers import answers_of
from harness.reading.cells import (
    differences_in_one_line,
    heading,
    headline,
    in_one_line,
    oracle_in_one_line,
    unfinished_in_one_line,
)
from harness.reading.compared import read_runs
from harness.reading.comparing import differences_of, sections
from harness.reading.equal_damage_section import EqualDamageSection, equal_damage_sections
from harness.reading.figures import markdown as sheet_as_markdown
from harness.reading.formats import arrow, gibibytes, markdown, seconds
from harness.reading.meta_table import meta_sheets
from harness.reading.page import LEGEND, in_order, page
from harness.reading.published import read_published
from harness.reading.rows import Row, Section, Value, single
from harness.storage.cache import disk_errors
from harness.storage.store import Store

FOLDER = "leaderboard"
"""Where it lies in a results folder; links to records are relative to it."""


def build(root: Path, skipped: Callable[[str], None] = lambda text: None) -> dict[str, bytes]:
    """The leaderboard's files by name, made from what a results folder holds now.

    Args:
        root: the results folder.
        skipped: told of each record that cannot be read.

    Raises:
        UsageError: if there are no runs, or one was written by a newer version.
    """
    store = Store(root)
    with _uncollected():
        runs = read_runs(root, skipped)
        tables, at_budgets = sections(run for run in runs if not run.spec.budgets), equal_damage_sections(runs, store)
        for section in tables:
            section.differences = differences_of(section, store)
        published, meta = read_published(root, skipped), meta_sheets(root, skipped)
        answers = {section.index: answer for section in tables if (answer := answers_of(section, store))}
        texts = {
            "index.html": page(
                tables, published, answers, (root.resolve().parent / "CITATION.cff").is_file(), at_budgets, meta
            ),
            "leaderboard.csv": as_csv(tables),
            "leaderboard.md": as_markdown(tables, published, at_budgets, meta),
            "differences.csv": differences_as_csv(tables),
            **equal_damage_section.as_csv(at_budgets),
            **({"meta.csv": meta_table.as_csv(meta)} if meta else {}),
        }
    return {name: text.encode() for name, text in texts.items()}


@contextmanager
def _uncollected() -> Iterator[None]:
    """Records hold no circles: a garbage collector that walks over them again and again takes a quarter of the time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def write(root: Path, files: Mapping[str, bytes]) -> Path:
    """Put the files into the results folder; returns the page's path.

    Raises:
        UsageError: if the folder cannot be written, or the disk is full.
    """
    folder = root / FOLDER
    with disk_errors(f"the results folder {root}", "Choose another with --results", whatever=True):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    return folder / "index.html"


def difference(root: Path, files: Mapping[str, bytes]) -> str | None:
    """The first file and line in which the stored leaderboard differs from the files; None if in none."""
    for name, content in files.items():
        path = root / FOLDER / name
        place = f"{FOLDER}/{name}"
        if not path.is_file():
            return f"{place} is missing."
        stored = path.read_bytes()
        if stored == content:
            continue
        old, new = stored.split(b"\n"), content.split(b"\n")
        pairs = zip([*old, None], [*new, None], strict=False)
        line, (was, now) = next((i, pair) for i, pair in enumerate(pairs, 1) if pair[0] != pair[1])
        return f"{place} differs in line {line}.\n stored: {_excerpt(was, now)}\n now:    {_excerpt(now, was)}"
    return None


def _excerpt(line: bytes | None, other: bytes | None) -> str:
    """A line from shortly before where it differs from the other one."""
    if line is None:
        return "(the file ends)"
    text, against = line.decode(errors="replace"), (other or b"").decode(errors="replace")
    start = next((i for i, (a, b) in enumerate(zip(text, against, strict=False)) if a != b), min(len(text), len(against)))
    start = max(0, start - 30)
    return f"{'…' if start else ''}{text[start : start + 100]!r}"


# ---------------------------------------------------------------- tables

PLACE = ("bench", "model", "weights", "variant", "retain", "table")
"""What names a table."""
COLUMNS = (
    *PLACE,
    *("method", "method_version", "protocol", "selection", "settings"),
    *("metric", "version", "value", "unit", "better", "n", "seeds", "seed_low", "seed_high", "low", "high"),
    *("across_low", "across_high", "floor", "rank", "absent"),
    *("seconds", "full_seconds", "peak_bytes", "oracle_step"),
)
"""Behind these the numbers at the oracle's points, by metric, and `runs`."""


def as_csv(tables: Sequence[Section]) -> str:
    """One line per row and metric, numbers in full; `rank` only beside the distance that it ranks."""
    out = io.StringIO()
    factors = dict.fromkeys(f"oracle_{metric}" for section in tables for metric in section.roles.oracle_score)
    sheet = csv.DictWriter(out, [*COLUMNS, *factors, "runs"], lineterminator="\n", restval="")
    sheet.writeheader()
    for section in tables:
        table = _place(section)
        lines: list[tuple[dict[str, object], Mapping[str, Value | Absent], str]] = []
        for name, measured in section.references.items():
            of_reference: dict[str, object] = {"method": name, "protocol": "reference"}
            lines.append((of_reference, {metric: single(item) for metric, item in measured.items()}, "reference"))
        lines += [(_csv_row(row, section.roles.oracle_score), row.values, row.rank) for row in section.rows]
        for of_row, values, rank in lines:
            for metric, value in values.items():
                place = {"metric": metric, "rank": rank if metric == section.roles.ranking else ""}
                sheet.writerow({**table, **of_row, **place, **_csv_value(value)})
    return out.getvalue()


def _place(section: Section) -> dict[str, object]:
    bench, model, variant, retain = section.name
    return dict(zip(PLACE, (bench, model, section.identity["weights"], variant, retain, section.index), strict=True))


def _csv_row(row: Row, factors: Sequence[str]) -> dict[str, object]:
    step, values = row.oracle or ("", [""] * len(factors))
    return {
        "method": row.method,
        "method_version": row.runs[0].spec.method_version,
        "protocol": row.protocol,
        "selection": row.runs[0].selection,
        "settings": row.settings,
        "seconds": row.cost("seconds"),
        "full_seconds": row.cost("full_seconds"),
        "peak_bytes": row.cost("peak_bytes"),
        "oracle_step": step,
        **{f"oracle_{metric}": value for metric, value in zip(factors, values, strict=True)},
        "runs": " ".join(run.folder for run in row.runs),
    }


def _csv_value(value: Value | Absent) -> dict[str, object]:
    if isinstance(value, Absent):
        return {"absent": value.reason}
    shared = value.example
    low, high = value.interval or (None, None)
    across_low, across_high = value.across or (None, None)
    return {
        "version": shared.version,
        "value": value.value,
        "unit": shared.unit,
        "better": shared.better,
        "n": shared.n,
        "seeds": value.seeds,
        "seed_low": value.seed_low,
        "seed_high": value.seed_high,
        "low": low,
        "high": high,
        "across_low": across_low,
        "across_high": across_high,
        "floor": value.floor,
    }


PAIRED = (
    *PLACE,
    *("protocol", "metric", "better", "first", "second"),
    *("difference", "low", "high", "p", "p_holm"),
    *("compared", "n", "clusters"),
)


def differences_as_csv(tables: Sequence[Section]) -> str:
    """One line for every two methods of one form and metric; `compared`: for how many comparisons the p-value is corrected.

    Numbers have six digits: what is behind them depends on the machine.
    """
    out = io.StringIO()
    sheet = csv.DictWriter(out, PAIRED, lineterminator="\n")
    sheet.writeheader()
    for section in tables:
        table = _place(section)
        for preset, pairs in section.differences.items():
            for each in pairs:
                line = {name: getattr(each, name) for name in ("metric", "better", "first", "second", "n", "clusters")}
                names = ("difference", "low", "high", "p", "p_holm")
                numbers = zip(names, (each.value, each.low, each.high, each.p, each.p_corrected), strict=True)
                line |= {name: f"{number:.6g}" for name, number in numbers}
                sheet.writerow({**table, "protocol": preset, **line, "compared": len(pairs)})
    return out.getvalue()


def as_markdown(
    tables: Sequence[Section],
    published: Sequence[Mapping[str, Any]],
    at_budgets: Sequence[EqualDamageSection] = (),
    meta: Sequence[Sheet] = (),
) -> str:
    """The headline columns of every table, for reading in a terminal or on a repository's page."""
    out = ["# Leaderboard", "", *(f"- {markdown(line)}" for line in LEGEND), ""]
    for section in in_order(tables):
        bench, model, *_ = section.name
        out += [f"## {markdown(bench)} · {markdown(model)} · {markdown(section.definitions)}", ""]
        out += [*_markdown_table(section), "", *(f"- {markdown(note)}" for note in section.notes)]
        sentences = [differences_in_one_line(preset, pairs) for preset, pairs in section.differences.items()]
        out += [f"- {markdown(sentence)} See differences.csv." for sentence in sentences]
        out += [f"- {markdown(unfinished_in_one_line(run))}" for run in section.unfinished] + [""]
    out += equal_damage_section.as_markdown(at_budgets)
    for sheet in meta:
        out += [f"## {markdown(sheet.caption)}", "", sheet_as_markdown(sheet)]
    for paper in published:
        out += _markdown_paper(paper)
    return "\n".join(out).rstrip("\n") + "\n"


def _markdown_table(section: Section) -> Iterator[str]:
    metrics = headline(section)
    rank, oracle = ["rank"] * section.ranks, ["oracle*"] * any(row.oracle for row in section.shown)
    heads = ["method", "protocol", "settings", *rank, *(heading(section, m) for m in metrics)]
    heads += ["time", "memory", *oracle, "seeds"]
    yield from (_markdown_row(heads), _markdown_row(["---"] * len(heads)))
    for name, measured in section.references.items():
        cells = [in_one_line(single(measured[m]) if m in measured else None) for m in metrics]
        yield _markdown_row([name, "reference", "", *("" for _ in rank), *cells, "", "", *("" for _ in oracle), ""])
    for row in section.shown:
        cells = [in_one_line(row.values.get(m)) for m in metrics]
        costs = [seconds(row.cost("full_seconds")), gibibytes(row.cost("peak_bytes"))]
        seeds = ", ".join(str(run.spec.seed) for run in row.runs)
        line = [row.method, row.protocol, row.settings, *(row.rank for _ in rank), *cells, *costs]
        yield _markdown_row([*line, *(oracle_in_one_line(row.oracle) for _ in oracle), seeds])


def _markdown_paper(paper: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"## Published, not measured here: {markdown(paper['source'])}", "")
    yield from (markdown(f"{paper['paper']}. {paper['protocol']}"), "")
    for table in paper["tables"]:
        heads = [table["title"], *(f"{column['title']} {arrow(column['better'])}" for column in table["columns"])]
        yield from (_markdown_row(heads), _markdown_row(["---"] * len(heads)))
        yield from (_markdown_row([name, *cells]) for name, cells in table["rows"])
        yield ""
    yield from (*(f"- {markdown(note)}" for note in paper["notes"]), "")


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(markdown, cells))} |"
