"""One number reads alike everywhere: the rules of `harness.reading.formats`."""

from __future__ import annotations

import doctest
import math
import subprocess
import sys

import pytest

from harness.core.registry import ROOT
from harness.reading import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.500"),
        (-0.5, "-0.500"),
        (123.4567, "123.457"),
        (0.0, "0.000"),
        (-0.0, "0.000"),
        (0.0123, "0.012"),
        (0.0042, "0.0042"),
        (0.001, "0.0010"),
        (-0.0042, "-0.0042"),
        (0.00042, "4.2e-04"),
        (-0.00042, "-4.2e-04"),
        (1e-30, "1.0e-30"),
        (math.inf, "inf"),
        (math.nan, "–"),
        (None, "–"),
    ],
)
def test_numbers_as_they_are_written(value: float | None, text: str):
    assert formats.number(value) == text


def test_more_digits_move_the_border_to_exponents():
    assert formats.number(0.00042, 4) == "0.00042"
    assert formats.number(0.000042, 4) == "4.2e-05"
    assert formats.number(0.25, 1) == "0.25"
    assert formats.number(2.5, 1) == "2.5"


def test_differences_have_their_sign():
    assert [formats.number(value, signed=True) for value in (0.5, -0.5, 0.0, 4e-5)] == [
        "+0.500",
        "-0.500",
        "+0.000",
        "+4.0e-05",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1.000"), (0.967, "0.967"), (0.0345, "0.035"), (0.0045, "0.0045"), (0.00032, "3.2e-04"), (1e-40, "1.0e-40")],
)
def test_p_values_keep_two_significant_digits(value: float, text: str):
    assert formats.p_value(value) == text


def test_no_p_value_is_0():
    assert formats.p_value(0.0) == formats.p_value(1e-310) == "<1e-300"
    assert formats.p_value(None) == formats.p_value(math.nan) == "–"


def test_intervals_need_both_ends():
    assert formats.interval(0.1, 0.25) == "0.100 to 0.250"
    assert formats.interval(-0.1, 0.0042, signed=True) == "-0.100 to +0.0042"
    assert formats.interval(None, 0.25) == formats.interval(0.1, math.nan) == "–"


def test_units_stand_after_a_space():
    assert formats.percent(0.125) == "12 %"
    assert formats.percent(0.125, 1) == "12.5 %"
    assert formats.seconds(12.345) == "12.3 s"
    assert formats.gibibytes(5 * 2**28) == "1.25 GiB"
    assert formats.mebibytes(3 * 2**19) == "1.5 MiB"
    absent = (formats.percent, formats.seconds, formats.gibibytes, formats.mebibytes)
    assert [write(None) for write in absent] == ["–"] * 4
    assert [write(0) for write in absent] == ["0 %", "0.0 s", "0.00 GiB", "0.0 MiB"]


def test_arrows_say_which_way_is_better():
    assert [formats.arrow(better) for better in ("higher", "lower", "closer", None)] == ["↑", "↓", "→", ""]
    with pytest.raises(KeyError):
        formats.arrow("larger")


def test_text_of_records_has_no_effect():
    assert formats.markdown("a | `b`\n[c](d) <i>&") == "a \\| \\`b\\` \\[c\\](d) &lt;i&gt;&amp;"
    assert formats.latex("5 % of $x_1$ ≤ {2}\n\\input") == r"5 \% of \$x\_1\$ $\leq$ \{2\} \textbackslash{}input"
    assert formats.html("""<a b="c" d='e'>&""") == "&lt;a b=&quot;c&quot; d=&#x27;e&#x27;&gt;&amp;"
    assert formats.plain("a  \n b | c") == "a b | c"


def test_scalars_of_numpy_are_numbers():
    np = pytest.importorskip("numpy")
    assert formats.number(np.float32(0.5)) == "0.500"
    assert formats.p_value(np.float64(math.nan)) == "–"


def test_examples_in_docstrings_hold():
    assert doctest.testmod(formats).failed == 0


def test_it_needs_nothing_heavy():
    heavy = ("torch", "pandas", "numpy", "matplotlib", "rich")
    code = f"import sys, {formats.__name__}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
