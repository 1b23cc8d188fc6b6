"""One colour and one marker for a method, on the page and in every figure.

Kin share a hue and differ in lightness; every method has a marker of its own, so that a figure can be read in grey too. The
colours were moved apart until any two differ by at least 20 (CIE 1976) as people without red or green cones see them (Machado
et al. 2009, doi:10.1109/TVCG.2009.113), and by 34 as others do; there is little room for more, so that most later methods share
the colour of one that they are close to. Who is close to none (`repselect`) has its own. Needs no matplotlib.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal, TypeAlias

Marker: TypeAlias = "str | tuple[int, Literal[0, 1, 2], int]"


@dataclass(frozen=True)
class Look:
    """How a method is drawn."""

    colour: str
    """As hexadecimal, for a light background; `on_dark` for a dark one."""
    marker: Marker
    """In matplotlib's alphabet; stars of so many points for methods that are not listed here."""

    @property
    def on_dark(self) -> str:
        """The colour on a dark background: mixed with white until its contrast there is 3 : 1, as WCAG 2 asks of graphics."""
        return next(colour for share in range(101) if contrast(colour := _lighter(self.colour, share), DARK) >= LEAST_CONTRAST)


KIN = {
    "wga": "grad_diff",
    "satimp": "ga",
    "ceu": "kl_min",
    "undial": "idk",
    "jensun": "dpo",
    "pdu": "soul",
    "npo_sam": "npo",
    "altpo": "dpo",
    "sage": "npo",
    "predictor_corrector": "kfade",
    "task_vector": "loku",
    "sham": "rmu",
}
"""Methods that share the colour of another one, and differ in their marker."""
LOOKS = {
    "kfade": Look("#d55e00", "D"),
    "ga": Look("#0066ca", "o"),
    "grad_diff": Look("#20b4ff", "s"),
    "kl_min": Look("#011996", "^"),
    "npo": Look("#004a43", "v"),
    "simnpo": Look("#5fd3a8", "P"),
    "dpo": Look("#c694c2", "<"),
    "idk": Look("#7c3783", ">"),
    "soul": Look("#dca45d", "X"),
    "loku": Look("#580e00", "p"),
    "rmu": Look("#868176", "h"),
    "elm": Look("#ceb805", "d"),
    "checkpoint": Look("#cd1c2f", "8"),
    "wga": Look("#20b4ff", "1"),
    "satimp": Look("#0066ca", "2"),
    "ceu": Look("#011996", "3"),
    "undial": Look("#7c3783", "4"),
    "jensun": Look("#c694c2", "|"),
    "pdu": Look("#dca45d", "x"),
    "npo_sam": Look("#004a43", "+"),
    "predictor_corrector": Look("#d55e00", "H"),
    "altpo": Look("#c694c2", (6, 2, 0)),
    "sage": Look("#004a43", (8, 2, 0)),
    "task_vector": Look("#580e00", "_"),
    "repselect": Look("#7a1aff", (5, 0, 180)),
    "sham": Look("#868176", "."),
    "untouched": Look("#000000", "s"),
    "retrained": Look("#000000", "*"),
}
"""The project's own methods, and the references, which share the colour of text and differ in their marker."""
FURTHER_COLOURS = ("#e7298a", "#66a61e", "#6a3d9a", "#00a0a0", "#a6761d", "#4d4d4d")
FURTHER_POINTS = (4, 6, 3, 8, 7)
"""For methods that are not listed: six colours and five markers, which have no common divisor, make thirty looks."""
DARK = "#15181c"
"""The background that `on_dark` is for."""
LEAST_CONTRAST = 3.0


def look(method: str) -> Look:
    """A method's colour and marker; one that is not listed gets its own by its name, whatever else is in the figure."""
    listed = LOOKS.get(method)
    if listed:
        return listed
    number = zlib.crc32(method.encode())
    marker = FURTHER_POINTS[number % len(FURTHER_POINTS)]
    return Look(FURTHER_COLOURS[number % len(FURTHER_COLOURS)], (marker, 1, 0))


def contrast(one: str, other: str) -> float:
    """How far two colours' luminances are apart, from 1 to 21 (WCAG 2.2).

    >>> round(contrast("#000000", "#ffffff"))
    21
    """
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _parts(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def _luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in _parts(colour))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _lighter(colour: str, percent: int) -> str:
    """The colour with so much white in it."""
    return "#" + "".join(f"{part + (255 - part) * percent // 100:02x}" for part in _parts(colour))
