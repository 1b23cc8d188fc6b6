"""Odd values, documents that hold them, and what must come of any input; `tests/project/test_fuzz.py` is told by them."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st

from harness.core.errors import LONGEST_MESSAGE, UsageError, cut

CASES = 25
"""Of each kind in the gate: always the same ones, however slow the machine is."""
LONG = "HARNESS_FUZZ_SECONDS" in os.environ
SECONDS = float(os.environ.get("HARNESS_FUZZ_SECONDS", "0"))
"""For all kinds together, where they are drawn by hand."""
KINDS = 8
LONGEST = 60.0
"""Seconds of processor time that one case may take."""
MOST_BYTES = 2 * 2**30
"""What all cases of a kind may take in memory, beyond what was there before; no more than four times as much is to be had."""

# ---------------------------------------------------------------- odd values

DEEP = "[" * 3000 + "]" * 3000
NUMBERS = (0, -1, 1, 2, 3, 1e-300, 1e300, 1.5, 10**9, 10**18, 10**30, 10**400, float("nan"), float("inf"))
PLAIN = (None, True, "", "x", "0", "-1", "NaN", "\0", "٣", "a/b", "../x", "[/x]", "x" * 20_000, [], {}, [[]], [None], {"x": 1})
odd: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([*NUMBERS, *PLAIN, *([n] for n in NUMBERS), [1, 1], [0, 0, 0], [10**9] * 100]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=5,
    ),
)
raw = st.sampled_from(
    [
        DEEP,
        "9" * 5000,
        "-" + "9" * 5000,
        r'"\ud800"',
        "NaN",
        "1e999",
        "{",
        "[",
        '"',
        "",
        "null",
        "\0",
        "\ufeff{}",
        "\udcff",
        "\r",
    ]
)
"""What no JSON can be made of."""
words = st.one_of(odd.map(lambda value: json.dumps(value)), raw, st.text(max_size=8)).filter(lambda text: "\0" not in text)
"""Values as they are typed; an argument holds no zero byte."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


@st.composite
def changed(draw: st.DrawFn, document: Any, others: Sequence[str] = (), values: st.SearchStrategy[Any] = odd) -> bytes:
    """The document as JSON with something odd at one or two places, or with its text spoilt.

    Args:
        draw: given by hypothesis.
        document: a JSON document.
        others: fields of its outermost object that it does not have, and that mean something.
        values: what is put there.
    """
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 2))):
        named = [(name,) for name in others] if isinstance(document, dict) else []
        path = draw(st.sampled_from([*places(document), *named]))
        value = copy.deepcopy(draw(values))  # what is drawn may be put into itself
        if not path:
            document = value
            continue
        owner = document
        for key in path[:-1]:
            owner = owner[key]
        if draw(st.integers(0, 3)) or not isinstance(owner, dict):
            owner[path[-1]] = value
        else:
            owner.pop(path[-1], None)
    return spoilt(draw, json.dumps(document))


def spoilt(draw: st.DrawFn, text: str) -> bytes:
    """A text, in one case of four cut off, or with something else in it."""
    content = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 3)):
        return content
    at = draw(st.integers(0, len(content)))
    return content[:at] + draw(st.one_of(st.binary(max_size=4), raw.map(lambda x: x.encode("utf-8", "surrogatepass"))))


# ---------------------------------------------------------------- what is held


class Endless(BaseException):
    """A case that takes longer than any planning may."""


@contextlib.contextmanager
def obeying(case: str) -> Iterator[None]:
    """Fail, naming the case, where an error comes out that is no refusal, or nothing comes out in time."""

    def late(*_: object) -> None:
        raise Endless(f"longer than {LONGEST:.0f} s")

    earlier = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    try:
        yield
    except UsageError as error:
        told(str(error), case)
    except (Exception, Endless):
        pytest.fail(f"{cut(case, 3000)}\n{traceback.format_exc()}", pytrace=False)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, earlier)


def told(message: str, case: str) -> None:
    """Hold that a message says something, in a sentence."""
    assert message.strip(), case
    assert "Traceback" not in message, (case, message)
    assert max(map(len, message.splitlines())) < 2 * LONGEST_MESSAGE, (case, message)


def command(*arguments: str) -> None:
    """Run the entry point here, and hold that it obeys."""
    from harness.cli.entry import main

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=how) for how in ("strict", "backslashreplace"))
    before, code = sys.argv, None
    sys.argv = ["harness", *arguments]
    case = " ".join(cut(word) for word in sys.argv)
    try:
        with obeying(case), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = before
    err.flush()
    said = err.buffer.getvalue().decode(errors="replace")  # type: ignore[attr-defined]
    assert code in (0, 1, 2), (case, code, said)
    assert "Traceback" not in said, (case, said)
    if code == 2:
        told(said, case)


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Fail where memory is taken without bound; what would take all of the machine's is refused before."""
    usage, (soft, hard) = resource.getrusage(resource.RUSAGE_SELF), resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 4 * MOST_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    taken = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - usage.ru_maxrss)
    assert taken < MOST_BYTES, f"{taken / 2**30:.1f} GiB were taken"


def fuzz(property_: Callable[[Any], None], strategy: st.SearchStrategy[Any]) -> None:
    """Hold it for what is drawn: the same cases every time in the gate; by hand others, until the share of the seconds is spent."""
    until, seed, count = time.monotonic() + SECONDS / KINDS, int(time.time()) if LONG else 0, 0

    def counted(value: Any) -> None:
        nonlocal count
        count += 1
        property_(value)

    while not count or time.monotonic() < until:
        settings = hypothesis.settings(
            max_examples=200 if LONG else CASES,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink) if LONG else (Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        hypothesis.seed(seed)(settings(given(strategy)(counted)))()
        seed += 1
    print(f"{count} cases")
