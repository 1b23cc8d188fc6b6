"""Figures and tables as files: read the store, draw, write. Nothing here knows a figure by name; imports no torch.

Files carry no dates and no versions of libraries, and everything is sorted: an unchanged store gives the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.errors import UsageError, unknown
from harness.core.figure import FIGURES, FigureOptions, Sheet
from harness.reading import formats
from harness.reading.named import check_names
from harness.storage.cache import disk_errors
from harness.storage.store import Store

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Drawing

DRAWN = ("svg", "png", "pdf")
"""Formats of drawings."""
WRITTEN = ("csv", "md", "tex")
"""Formats of tables."""
FORMATS = (*DRAWN, *WRITTEN)
NAMELESS = {"svg": ("Date", "Creator"), "png": ("Software",), "pdf": ("CreationDate", "Creator", "Producer")}
"""What matplotlib would write into a file that says when and with what it was made: left out, so that bytes stay the same."""
WIDE, LONG = 6, 60
"""Columns from which a LaTeX table is fitted to the line, characters from which a cell is."""
RESOLUTION = 200
"""Dots per inch of a PNG."""


def formats_of(text: str) -> tuple[str, ...]:
    """The formats in a list parted by commas; all of them if it is empty.

    Raises:
        UsageError: for one that is not known.
    """
    chosen = tuple(part.strip() for part in text.split(",") if part.strip()) or FORMATS
    for name in chosen:
        if name not in FORMATS:
            raise unknown("format", name, FORMATS)
    return chosen


def select(store: Store, bench: str = "", model: str = "", methods: Sequence[str] = ()) -> pd.DataFrame:
    """The runs' table, cut down to a benchmark, a model and methods.

    Raises:
        UsageError: if there are none; names the command that makes them.
    """
    runs = store.frame()
    check_names(bench, methods, *(runs[name] if len(runs) else () for name in ("bench", "method")))
    chosen = runs
    for column, wanted in (("bench", [bench] if bench else []), ("model", [model] if model else []), ("method", methods)):
        chosen = chosen[chosen[column].isin(wanted)] if wanted and len(chosen) else chosen
    if chosen.empty:
        words = [f"--method {','.join(methods) or 'kfade,npo,simnpo'}", f"--bench {bench or 'tofu10'}"]
        words += [f"--model {model}"] if model else []
        limits = [f"of {', '.join(methods)}"] * bool(methods) + [f"on {bench}"] * bool(bench)
        limits += [f"with model {model}"] * bool(model)
        others = ""
        if len(runs):
            pairs = sorted({f"{b} with {m}" for b, m in zip(runs["bench"], runs["model"], strict=True)})
            others = f" (there are runs on {', '.join(pairs)})"
        raise UsageError(
            f"there are no runs {' '.join([*limits, 'in'])} {store.runs_folder}{others}. "
            f"Make some: harness run {' '.join(words)} --results {store.root}"
        )
    return chosen


def draw(name: str, runs: pd.DataFrame, options: FigureOptions, out: Path, chosen: Sequence[str]) -> list[Path]:
    """Draw a figure and write its files.

    Args:
        name: the figure's.
        runs: from `select`.
        options: where the results lie, and which setting is compared.
        out: the folder.
        chosen: the formats.

    Returns:
        What was written, in order.

    Raises:
        UsageError: if there is nothing to show, or the folder cannot be written.
    """
    made = FIGURES.get(name).drawn(runs, options)
    files: dict[str, bytes] = {}
    for part, item in sorted(made.items()):
        stem = re.sub(r"[/\\\0]+", "-", f"{name}-{part}") if part else name  # parts hold names out of records
        for kind in chosen:
            if isinstance(item, Sheet) and kind in WRITTEN:
                files[f"{stem}.{kind}"] = _written(item, kind).encode()
            elif not isinstance(item, Sheet) and kind in DRAWN:
                files[f"{stem}.{kind}"] = _drawn(item, kind)
    if not files:
        what = "drawings" if all(not isinstance(item, Sheet) for item in made.values()) else "tables"
        raise UsageError(f"{name} consists of {what}; none is written as {', '.join(chosen)}. There are: {', '.join(FORMATS)}.")
    with disk_errors(f"the folder {out}", "Choose another with --out", whatever=True):
        out.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (out / file).write_bytes(content)
    return [out / file for file in files]


def _drawn(drawing: Drawing, kind: str) -> bytes:
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "unlearning-harness", "svg.fonttype": "path", "pdf.fonttype": 42}):
        drawing.savefig(buffer, format=kind, dpi=RESOLUTION, metadata=dict.fromkeys(NAMELESS[kind]))
    return buffer.getvalue()


def _written(sheet: Sheet, kind: str) -> str:
    if kind == "csv":
        return str(sheet.numbers.to_csv(index=False, lineterminator="\n"))
    return markdown(sheet) if kind == "md" else latex(sheet)


def markdown(sheet: Sheet) -> str:
    """A table with its caption above and its notes below; text from records is escaped."""
    head = [str(name) for name in sheet.shown.columns]
    lines = [f"**{formats.markdown(sheet.caption)}**", "", _md_row(head), _md_row(["---"] * len(head), plain=True)]
    lines += [_md_row([str(cell) for cell in row]) for row in sheet.shown.itertuples(index=False, name=None)]
    lines += ["", *(f"- {formats.markdown(note)}" for note in sheet.notes)] if sheet.notes else []
    return "\n".join(lines) + "\n"


def _md_row(cells: Iterable[str], plain: bool = False) -> str:
    return "| " + " | ".join(cell if plain else formats.markdown(cell) for cell in cells) + " |"


def latex(sheet: Sheet) -> str:
    """A table for a paper, with booktabs' rules; text from records is escaped, wide tables are fitted to the line."""
    columns = [_tex_column(sheet.shown[name]) for name in sheet.shown.columns]
    fit = (r"\resizebox{\linewidth}{!}{%", "}") if len(columns) > WIDE else ("", "")
    lines = [r"% needs \usepackage{booktabs,graphicx}", r"\begin{table}", r"\centering", r"\small"]
    lines += [rf"\caption{{{formats.latex(sheet.caption)}}}", fit[0]]
    lines += [rf"\begin{{tabular}}{{{''.join(columns)}}}", r"\toprule", _tex_row(sheet.shown.columns), r"\midrule"]
    lines += [_tex_row(row) for row in sheet.shown.itertuples(index=False, name=None)]
    lines += [r"\bottomrule", r"\end{tabular}", fit[1]]
    lines += [rf"\par\smallskip{{\footnotesize {formats.latex(note)}\par}}" for note in sheet.notes]
    return "\n".join([*filter(None, lines), r"\end{table}"]) + "\n"


def _tex_column(cells: pd.Series) -> str:
    """A column of text breaks its lines, a column of numbers does not."""
    return r"p{0.45\linewidth}" if max((len(str(cell)) for cell in cells), default=0) > LONG else "l"


def _tex_row(cells: Iterable[object]) -> str:
    return " & ".join(formats.latex(str(cell)) for cell in cells) + r" \\"
