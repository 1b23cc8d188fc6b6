"""No message is longer than a reader has patience for, whatever was given: nearest names, and the command that tells of all."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.core.benchmark import BENCHMARKS
from harness.core.config import parse, resolve
from harness.core.errors import LONGEST_MESSAGE, NEAREST, UsageError, unknown
from harness.core.evaluator import EVALUATORS
from harness.core.figure import FIGURES
from harness.core.judging import judge_of
from harness.core.method import METHODS
from harness.core.options import Options
from harness.numerics.placement import pick_device
from harness.running.grid import axes, axes_of
from harness.running.plan import plan
from harness.running.studies import study_of
from harness.storage.cache import KINDS, Cache
from harness.storage.store import Store

LONG = "x" * 20_000
MANY = [f"name-{i}" for i in range(1000)]


def test_of_many_names_the_nearest_are_told_and_the_command_that_lists_all():
    told = str(unknown("thing", "name-77x", MANY, "harness list things"))
    assert told.startswith("no thing called 'name-77x'. Did you mean 'name-77'? There are: ")
    assert told.count("name-") == NEAREST + 2
    assert told.endswith(" and 995 more; harness list things tells of all.")


@pytest.mark.parametrize("name", ["kfad", "", "x" * 250], ids=["near", "empty", "long"])
@pytest.mark.parametrize(
    ("ask", "command"),
    [
        (METHODS.get, "harness list methods"),
        (BENCHMARKS.get, "harness list benches"),
        (EVALUATORS.get, "harness list evals"),
        (FIGURES.get, "harness list figures"),
        (study_of, "harness list studies"),
        (lambda name: resolve(METHODS.get("kfade").config, {name: 1}, owner="kfade"), "harness show kfade"),
        (lambda name: BENCHMARKS.get("tofu01").problem(name, Options()), "harness list models"),
        (lambda name: BENCHMARKS.get("wmdp").problem(name, Options()), "harness list models"),
    ],
)
def test_a_name_that_nobody_knows_is_answered_shortly(ask: Callable[[str], object], command: str, name: str):
    with pytest.raises(UsageError) as caught:
        ask(name)
    assert len(str(caught.value)) <= LONGEST_MESSAGE
    assert str(caught.value).endswith(f"; {command} tells of all.")


def of_a_run(**given: str) -> Callable[[], object]:
    words = {"bench": "tofu01", "model": "mini", "method": "ga", **given}
    return lambda: plan(**words, settings={}, options=Options())


@pytest.mark.parametrize(
    "do",
    [
        of_a_run(bench=LONG),
        of_a_run(model=LONG[:250]),
        of_a_run(model=f"mini@{LONG}"),
        of_a_run(method=LONG),
        lambda: parse([LONG]),
        lambda: parse([f"{LONG}=1", f"{LONG}=1"]),
        lambda: resolve(METHODS.get("kfade").config, {"layers": [LONG], "estimator": LONG, "damping": LONG}, owner="kfade"),
        lambda: resolve(METHODS.get("rmu").config, {"layers": list(range(900))}, owner="rmu"),
        lambda: plan("tofu01", "mini", "kfade", {"layers": list(range(900))}, Options()),
        lambda: plan("tofu01", "mini", "elm", {"order": list(range(900))}, Options()),
        lambda: plan("tofu01", "mini", "rmu", {"alpha": [1.0] * 900}, Options()),
        lambda: axes([LONG]),
        lambda: axes([f"{LONG}=1..2", f"{LONG}=1..2"]),
        lambda: axes([f"{LONG}=2..1"]),
        lambda: axes_of("ga", ["ga"], {f"{LONG}.lr": [1]}),
        lambda: judge_of(LONG),
        lambda: judge_of("openai:x", f"http://{LONG} "),
        lambda: judge_of("openai:x", repetitions=LONG),
        lambda: pick_device(LONG),
        lambda: Store(Path(LONG[:200])).by_id(LONG),
    ],
)
def test_a_long_value_is_cut_and_the_way_out_stays(do: Callable[[], object]):
    with pytest.raises(UsageError) as caught:
        do()
    told = str(caught.value)
    assert len(told) <= LONGEST_MESSAGE + len("… (20,000 characters left out) …")
    assert "x" * 250 not in told
    assert told[-1] == "."
    assert "characters left out" not in told[-40:], "the way out is cut off"


def test_every_kind_that_is_kept_can_be_cleared(tmp_path: Path):
    kept = set()
    for folder in ("harness", "methods", "evals"):
        for file in (Path(__file__).parents[2] / folder).rglob("*.py"):
            kept |= set(re.findall(r"(?:cache\.get|context\.cached)\(\s*\"([a-z]+)\"", file.read_text(encoding="utf-8")))
    assert kept == set(KINDS)
    assert [Cache(tmp_path).clear(kind) for kind in KINDS] == [0] * len(KINDS)
    with pytest.raises(UsageError, match=r"no kind of cache entry called 'curvatures'\. Did you mean 'curvature'"):
        Cache(tmp_path).clear("curvatures")
    Cache(tmp_path).get("mine", {}, lambda folder: None)
    assert Cache(tmp_path).clear("mine") > 0
