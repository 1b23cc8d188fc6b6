"""How a number, a p-value or a piece of text is written: one rule each, for the terminal, pages, tables, CSV and figures.

Whoever shows something to a reader calls these, so that one number reads alike everywhere. Neither pandas nor torch is needed.
The rules, in short: three decimals, yet never fewer than two significant digits; an exponent below a thousandth; a dash where
there is no number; units after a space.
"""

from __future__ import annotations

import html as _html
import math
import re
from collections.abc import Mapping
from typing import Literal, SupportsFloat, TypeAlias

Number: TypeAlias = SupportsFloat | None
"""A float, a whole number, a scalar of numpy; None and NaN say that there is none."""

NO_NUMBER = "–"
"""What stands where there is no number."""
SMALLEST_P = 1e-300
"""p-values below this are 0 in floating point or close to it: they are written as smaller than this."""
ARROWS: Mapping[str | None, str] = {"higher": "↑", "lower": "↓", "closer": "→", None: ""}
"""Which way is better."""


def known(value: Number) -> bool:
    """Whether there is a number: neither None nor NaN."""
    return value is not None and not math.isnan(float(value))


def number(value: Number, digits: int = 3, signed: bool = False) -> str:
    """A number as a reader wants it.

    Rule: `digits` decimals; more where that would leave fewer than two significant digits; an exponent and two significant
    digits below 10 to the power of -digits; 0 is 0.000; a dash where there is none.

    Args:
        value: the number.
        digits: decimals, at least 1. Text that is about one thing keeps the usual three.
        signed: whether a positive one begins with a plus, as differences do.

    >>> [number(value) for value in (12.5, 0.5, 0.0123, 0.0045, 0.00045, 0, None)]
    ['12.500', '0.500', '0.012', '0.0045', '4.5e-04', '0.000', '–']
    """
    if value is None or not known(value):
        return NO_NUMBER
    value, sign = float(value), "+" if signed else ""
    if value != 0 and abs(value) < 10.0**-digits:
        return f"{value:{sign}.1e}"
    if value == 0 or math.isinf(value):
        return f"{0.0 if value == 0 else value:{sign}.{digits}f}"
    return f"{value:{sign}.{max(digits, 1 - math.floor(math.log10(abs(value))))}f}"


def p_value(value: Number) -> str:
    """A p-value, forget quality among them: always as `number` with its three decimals, whatever digits others around it have.

    Rule: 0.034, 0.0045, 4.5e-04; one that is 0 in floating point is `<1e-300`, since no p-value is 0. `p = ` is the caller's.
    """
    return f"<{SMALLEST_P:g}" if known(value) and float(value or 0) < SMALLEST_P else number(value)


def of_unit(value: Number, unit: str, digits: int = 3) -> str:
    """A metric's value: as `p_value` where its unit says that it is one, as `number` else."""
    return p_value(value) if unit == "p-value" else number(value, digits)


def interval(low: Number, high: Number, digits: int = 3, signed: bool = False) -> str:
    """Both ends of an interval or a range, `low to high`, each as `number` writes it; a dash where an end is missing.

    Rule: the word `to` and no dash between, since ends may be negative. Brackets are the caller's: square ones for a 95 %
    interval, round ones for a range over references.
    """
    if not (known(low) and known(high)):
        return NO_NUMBER
    return f"{number(low, digits, signed)} to {number(high, digits, signed)}"


def arrow(better: Literal["higher", "lower", "closer"] | str | None) -> str:
    """↑ where higher is better, ↓ where lower is, → where close to the retrained model is; nothing where nothing is.

    Raises:
        KeyError: for another word.
    """
    return ARROWS[better]


def percent(share: Number, digits: int = 0) -> str:
    """A share of 1 in percent: `12 %`, with a space; a dash where there is none."""
    return f"{100 * float(share or 0):.{digits}f} %" if known(share) else NO_NUMBER


def seconds(value: Number) -> str:
    """Seconds: `12.3 s`, always one decimal and never minutes, so that a column can be compared at a glance."""
    return f"{float(value or 0):.1f} s" if known(value) else NO_NUMBER


def gibibytes(size: Number) -> str:
    """Bytes of memory: `1.25 GiB`, always two decimals."""
    return f"{float(size or 0) / 2**30:.2f} GiB" if known(size) else NO_NUMBER


def mebibytes(size: Number) -> str:
    """Bytes of a file: `1.2 MiB`, always one decimal."""
    return f"{float(size or 0) / 2**20:.1f} MiB" if known(size) else NO_NUMBER


# ---------------------------------------------------------------- text of records in a language with marks

_LATEX: Mapping[str, str] = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "≈": r"$\approx$",
    "±": r"$\pm$",
    "†": r"\textdagger{}",
    "…": r"\dots{}",
    "–": "--",
    "·": r"$\cdot$",
    "\n": " ",
}


def plain(text: str) -> str:
    """Text with nothing to escape, on one line: line breaks become spaces."""
    return re.sub(r"\s*\n\s*", " ", text)


def markdown(text: str) -> str:
    """Text inside Markdown, table cells included: its marks and HTML are escaped, line breaks become spaces."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return plain(re.sub(r"([\\|`*\[\]])", r"\\\1", text))


def latex(text: str) -> str:
    """Text inside LaTeX: commands are escaped, arrows and signs of comparison become their mathematics."""
    return "".join(_LATEX.get(character, character) for character in text)


def html(text: str) -> str:
    """Text inside HTML, attributes in either kind of quotes included."""
    return _html.escape(text, quote=True)
