"""The meta-evaluation as a table: for the terminal, CSV, Markdown and the leaderboard's page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from harness.core.documents import read_json
from harness.core.errors import UsageError
from harness.core.figure import Sheet
from harness.core.pools import RETRAINED
from harness.reading.figures import markdown
from harness.reading.formats import NO_NUMBER
from harness.reading.meta import FORMS, KEPT, ONE_SIDED, SYMMETRIC, MetaEvaluation, Trust, meta_evaluations
from harness.statistics.trust import Estimate
from harness.storage.cache import disk_errors
from harness.storage.record_files import fault
from harness.storage.store import Store

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "meta"
"""Where the records are in a results folder: no list of runs, and no leaderboard, takes them for unlearned models."""
HEADING = "How far to trust each column"
_DIGITS = 2
_BRIEF = (f"relearned, {SYMMETRIC}", f"4 bits, {SYMMETRIC}", f"robustness, {SYMMETRIC}", f"robustness, {ONE_SIDED}")
_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, config=_CONFIG)
class PublishedValues:
    """What a paper says of a metric."""

    name: str
    """As the paper has it."""
    faithfulness: float | None = None
    """Its AUC."""
    robustness: float | None = None
    """Its harmonic mean of both parts."""
    parts: Mapping[str, float] | None = None
    """The parts of that, by disturbance."""


@dataclass(frozen=True, config=_CONFIG)
class PublishedMeta:
    """A paper's meta-evaluation."""

    name: str
    """In one word, for a heading."""
    paper: str
    """Which."""
    source: str
    """Where its numbers stand."""
    models: str
    """What they are of."""
    notes: Sequence[str]
    """What tells its metrics from those here that stand beside them."""
    values: Mapping[str, PublishedValues]
    """By metric, in this harness's names."""


_PUBLISHED = TypeAdapter(PublishedMeta)


def read_published_meta(root: Path, skipped: Callable[[str], None] = lambda text: None) -> list[PublishedMeta]:
    """The papers' own meta-evaluations in a results folder (`published/meta_evaluation/*.json`).

    Args:
        root: the results folder.
        skipped: told of each file that is none.
    """
    papers = []
    for file in sorted((root / "published" / "meta_evaluation").glob("*.json")):
        try:
            papers.append(_PUBLISHED.validate_python(read_json(file)))
        except (UsageError, ValidationError) as error:
            why = fault(error) if isinstance(error, ValidationError) else str(error).rstrip(".")
            skipped(f"published/meta_evaluation/{file.name} is no meta-evaluation: {why}")
    return papers


def meta_sheets(root: Path, skipped: Callable[[str], None] = lambda text: None) -> list[Sheet]:
    """The table of each benchmark whose metrics were tried; none where there are no such records.

    Args:
        root: the results folder.
        skipped: told of each file of published numbers that is none.
    """
    folder = root / FOLDER
    evaluations = meta_evaluations(Store(folder).runs()) if (folder / "runs").is_dir() else []
    papers = read_published_meta(root, skipped) if evaluations else []
    return [meta_sheet(each, papers) for each in evaluations]


def brief(sheet: Sheet) -> pd.DataFrame:
    """What of a table has room on a terminal: of the parts of robustness the two that make it, in the symmetric form."""
    left_out = {_head(form) for form in FORMS if form not in _BRIEF} | {"n"}
    return sheet.shown[[head for head in sheet.shown.columns if head not in left_out]]


def write(root: Path, sheets: Sequence[Sheet]) -> list[Path]:
    """Put the tables beside the records, as CSV and Markdown; returns the files.

    Raises:
        UsageError: if the folder cannot be written, or the disk is full.
    """
    if not sheets:
        return []
    folder = root / FOLDER
    files = {"table.csv": as_csv(sheets), "table.md": "\n".join(map(markdown, sheets))}
    with disk_errors(f"the results folder {root}", "Choose another with --results", whatever=True):
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")
    return [folder / name for name in files]


def as_csv(sheets: Sequence[Sheet]) -> str:
    """Every number."""
    import pandas as pd

    return str(pd.concat([sheet.numbers for sheet in sheets]).to_csv(index=False, lineterminator="\n"))


def meta_sheet(evaluation: MetaEvaluation, papers: Sequence[PublishedMeta] = ()) -> Sheet:
    """One row a metric, in the benchmark's order; a paper's numbers in columns of their own.

    Args:
        evaluation: what the records say.
        papers: what was published.
    """
    import pandas as pd

    rows = [_shown(trust, papers) for trust in evaluation.trust]
    variant = "" if evaluation.variant == "original" else f", {evaluation.variant} definitions"
    caption = f"{HEADING}: {evaluation.bench} on {', '.join(evaluation.worlds)}{variant}"
    return Sheet(_numbers(evaluation), pd.DataFrame(rows), caption, [*_notes(evaluation), *_of_papers(papers)])


def _shown(trust: Trust, papers: Sequence[PublishedMeta]) -> dict[str, str]:
    published = {paper.name: paper.values.get(trust.judged.metric) for paper in papers if not trust.judged.closest}
    cells = {"metric": trust.judged.title, "known": {"higher": "↑", "lower": "↓"}[trust.judged.known]}
    cells["faithful (AUC)"] = _estimate(trust.faithfulness, ends=True)
    cells |= {paper.name: _of_paper(published.get(paper.name), "faithfulness") for paper in papers}
    cells["same words"] = _estimate(trust.same_words, ends=False)
    for form in FORMS:
        whole = form.startswith("robust")
        cells[_head(form)] = _estimate(trust.robustness[form], ends=whole)
        if form == f"robustness, {SYMMETRIC}":
            for paper in papers:
                cells[f"{paper.name}, robust"] = _of_paper(published.get(paper.name), "robustness")
    return {**cells, "n": f"{trust.known} + {trust.never}, {trust.unlearned}"}


def _of_paper(values: PublishedValues | None, what: Literal["faithfulness", "robustness"]) -> str:
    value = getattr(values, what, None)
    return "" if value is None else _two(value)


def _head(form: str) -> str:
    what, _, kind = form.partition(", ")
    return f"{'robust' if what == 'robustness' else what}{' (one-sided)' if kind == ONE_SIDED else ''}"


def _estimate(estimate: Estimate | str, ends: bool) -> str:
    if isinstance(estimate, str):
        return f"absent: {estimate}" if ends else NO_NUMBER
    text = _two(estimate.value)
    return f"{text} [{_two(estimate.ends[0])} to {_two(estimate.ends[1])}]" if ends and estimate.ends else text


def _two(value: float) -> str:
    """A number between 0 and 1 that is looked at beside many others."""
    return f"{value:.{_DIGITS}f}"


def _numbers(evaluation: MetaEvaluation) -> pd.DataFrame:
    """Every number with six digits: what is behind them depends on the machine."""
    import pandas as pd

    rows = []
    for trust in evaluation.trust:
        row: dict[str, Any] = {"bench": evaluation.bench, "variant": evaluation.variant, "worlds": " ".join(evaluation.worlds)}
        row |= {"metric": trust.judged.metric, "title": trust.judged.title, "known": trust.judged.known}
        row |= {"references": evaluation.references if trust.judged.closest else 1}
        for name, estimate in _numbers_of(trust).items():
            key = name.replace(", ", "_").replace(" ", "_").replace("-", "_")
            value, low, high = (
                (estimate.value, *(estimate.ends or (None, None))) if isinstance(estimate, Estimate) else (None,) * 3
            )
            row |= {key: _digits(value), f"{key}_low": _digits(low), f"{key}_high": _digits(high)}
        reasons = [each for each in (trust.faithfulness, *trust.robustness.values()) if isinstance(each, str)]
        row |= {"known_models": trust.known, "never_models": trust.never, "unlearned_models": trust.unlearned}
        rows.append({**row, "absent": "; ".join(dict.fromkeys(reasons))})
    return pd.DataFrame(rows)


def _numbers_of(trust: Trust) -> dict[str, Estimate | str]:
    return {"faithfulness": trust.faithfulness, "faithfulness_same_words": trust.same_words, **trust.robustness}


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _notes(evaluation: MetaEvaluation) -> list[str]:
    """What is needed to read the table."""
    pools = [
        f"{sum(evaluation.count(knows))} that {what} ({sum(evaluation.count(knows, trained=True))} trained from their base)"
        for what, knows in (("know it", True), ("never did", False))
    ]
    averaged = f" The areas of {len(evaluation.worlds)} worlds are averaged." if len(evaluation.worlds) > 1 else ""
    counted = sum(each.counts for each in evaluation.disturbed)
    broken = sum(each.config.method != RETRAINED for each in evaluation.disturbed) - counted
    return [
        "Faithful: how well the metric tells models that know the forget set from models that never saw it; ½ is chance. "
        f"{' and '.join(pools)}; the others are light fine-tunes of those.{averaged} Known: which way the metric lies where "
        "the forget set is known. Same words: of models that learnt the forget answers as they stand, against retrained ones "
        "alone; the others learnt them in other words, or learnt wrong ones.",
        "Relearned: 1 where relearning moves the metric as much as on a retrained model. 8 and 4 bits: 1 where rounded weights "
        "leave it where it was. Robust: the harmonic mean of relearned and 4 bits. Symmetric (UDS): what comes back and what "
        "is lost count alike; one-sided (open-unlearning): what comes back alone.",
        f"Unlearned with {', '.join(evaluation.methods)}: {counted} models; {broken} more are left out, for they kept less "
        f"than {KEPT:.0%} of the untouched model's utility.",
        "In brackets: 95 % intervals. Models made from one trained model are resampled together; for robustness, those of one "
        "method. An area of 1 has nothing to resample. n: models that know + that never did, unlearned models.",
    ]


def _of_papers(papers: Sequence[PublishedMeta]) -> list[str]:
    said = []
    for paper in papers:
        said.append(f"{paper.name}: {paper.paper} ({paper.source}), not measured here. {paper.models}. {' '.join(paper.notes)}")
    return said
