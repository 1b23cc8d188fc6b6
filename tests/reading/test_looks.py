"""One look a method: stable, distinct, and fit for a dark page."""

from __future__ import annotations

import itertools
import re

from harness.core.method import METHODS
from harness.reading.looks import DARK, KIN, LEAST_CONTRAST, LOOKS, contrast, look

REFERENCES = ("untouched", "retrained")


def test_every_method_has_a_marker_of_its_own_and_a_colour_but_for_kin():
    assert set(METHODS.names()) <= set(LOOKS)
    methods = [name for name in LOOKS if name not in REFERENCES]
    of_their_own = [name for name in methods if name not in KIN]
    assert len({look(name).colour for name in of_their_own}) == len(of_their_own)
    assert all(look(name).colour == look(kin).colour and kin in of_their_own for name, kin in KIN.items())
    assert len({look(name).marker for name in methods}) == len(methods)
    assert look("untouched").marker != look("retrained").marker
    assert all(re.fullmatch("#[0-9a-f]{6}", of.colour) for of in LOOKS.values())


def test_a_new_method_gets_a_stable_look_unlike_the_listed_ones():
    assert look("my_method") == look("my_method")
    further = {look(f"method_{i}") for i in range(300)}
    assert len(further) == 30
    listed = [*LOOKS.values()]
    assert all(one.colour != other.colour for one, other in itertools.product(further, listed))
    assert all(one.marker != other.marker for one, other in itertools.product(further, listed))


def test_colours_stand_out_on_white_and_in_the_dark():
    assert all(contrast(of.colour, "#ffffff") >= 1.8 for of in LOOKS.values())
    assert all(contrast(of.on_dark, DARK) >= LEAST_CONTRAST for of in LOOKS.values())
    assert look("grad_diff").on_dark == look("grad_diff").colour


def test_colours_differ_for_readers_who_lack_a_kind_of_cone():
    """Machado et al. 2009, severity 1; distances as CIE 1976 has them."""
    deuteranopia = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))
    protanopia = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))
    as_it_is = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    colours = {of.colour for of in LOOKS.values()}
    for seen, least in ((as_it_is, 34), (deuteranopia, 20), (protanopia, 20)):
        places = [_lab(_times(seen, _linear(colour))) for colour in colours]
        nearest = min(sum((a - b) ** 2 for a, b in zip(*two, strict=True)) ** 0.5 for two in itertools.combinations(places, 2))
        assert nearest >= least


def _linear(colour: str) -> list[float]:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]


def _times(matrix, vector) -> list[float]:
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def _lab(linear: list[float]) -> tuple[float, float, float]:
    to_xyz = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
    white = (0.95047, 1.0, 1.08883)
    parts = [v / w for v, w in zip(_times(to_xyz, [min(1.0, max(0.0, c)) for c in linear]), white, strict=True)]
    x, y, z = (part ** (1 / 3) if part > 0.008856 else 7.787 * part + 16 / 116 for part in parts)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)
