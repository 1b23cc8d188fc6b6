"""`harness test-plugin`: what it says of a file that keeps its promises, and of files that do not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.core.errors import UsageError
from harness.core.evaluator import EVALUATORS
from harness.core.method import METHODS
from harness.core.plugins import VARIABLE
from harness.running.contracts.files import checks_of, plugins_of
from harness.running.contracts.process import ProcessBefore
from harness.running.contracts.promises import Check, Outcome, outcomes
from harness.running.run import execute
from tests.conftest import Bench, HarnessCli

METHOD = '''"""A method."""

from harness.core.config import settings
from harness.core.method import Progress, method


@settings
class Config:
    """Settings."""

    steps: int = 2
    """{about}"""


@method("{name}", config=Config, source="nobody")
def unlearn(setting, config):
    """Move one matrix."""
    import random
    import torch

    {before}
    for step in range(1, config.steps + 1):
        with torch.no_grad():
            setting.model.lm_head.weight.mul_({scale})
        yield Progress(step, measure_here=True, total=config.steps)
    {end}
'''
GOOD = {"about": "How many steps are taken.", "before": "", "scale": "0.9", "end": "setting.model.eval()"}
SHARED = "the process is left as it was found"


EVALUATOR = '''"""An evaluator."""

import pandas as pd

from harness.core.evaluator import evaluator
from harness.core.metric import Metric, Rows


def build(subject):
    """Two rows."""
    return pd.DataFrame({built})


@evaluator("{name}", version=1, metrics=[Metric("{name}", "Words", "words", None, "a number")])
def measure(subject, metric):
    """What the table holds."""
    table = subject.table("{name}", build)
    return {given}
'''
ROWS_OF_TABLE = "Rows(table['words'].to_numpy(), table['cluster'].to_numpy())"


def told(folder: Path, name: str, **changes: str) -> dict[str, str]:
    file = folder / f"{name}.py"
    file.write_text(METHOD.format(name=name, **{**GOOD, **changes}))
    ((kind, found),) = plugins_of(file)
    assert (kind, found) == ("method", name)
    return {o.promise: o.broken for o in outcomes(checks_of(kind, name, "tofu10", {"steps": 1}, folder))}


@pytest.fixture(autouse=True)
def _no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")


def test_a_method_that_keeps_all_promises(tmp_path: Path):
    found = told(tmp_path, "keeps")
    assert len(found) == 9
    assert not any(found.values()), found


@pytest.mark.parametrize(
    ("changes", "promise", "said"),
    [
        ({"about": "n"}, "every setting is explained", "no sentence stands under the setting 'steps'"),
        ({"scale": "1 + 0.1 * torch.rand(())", "end": "torch.seed()"}, SHARED, "it changes the seed of torch's own random"),
        ({"scale": "1 + 0.1 * random.random()"}, "the same seed gives the same weights", "seed its generators with"),
        ({"end": "import random; random.random()"}, SHARED, "it changes the state of Python's random numbers: take"),
        ({"end": "import numpy; numpy.random.seed(0)"}, SHARED, "it changes the state of numpy's random numbers: take"),
        (
            {"end": "torch.set_default_dtype(torch.float64)"},
            SHARED,
            "it changes torch's default type: put it back in 'finally'",
        ),
        ({"end": "torch.set_default_device('meta')"}, SHARED, "it changes torch's default device"),
        ({"end": "torch.set_num_threads(3)"}, SHARED, "it changes torch's number of threads"),
        ({"end": "torch.use_deterministic_algorithms(True)"}, SHARED, "it changes torch's choice of deterministic"),
        ({"end": "torch.set_grad_enabled(False)"}, SHARED, "it changes whether gradients are taken"),
        ({"before": "torch.set_grad_enabled(False)"}, SHARED, "gradients are taken, and goes on so while a point is measured"),
        ({"end": "setting.model.train()"}, "model and tokenizer come back as they were found", "training mode"),
        ({"end": "yield Progress(config.steps + 1)"}, "steps rise, and the last one is measured", "never measured"),
        ({"end": "1 / 0"}, "the same seed gives the same weights", "division by zero, breaks_"),
        (
            {"end": "setting.model(torch.tensor([[1, 2]])).logits.sum().backward(); setting.model.zero_grad()"},
            "it says what it holds in memory",
            "estimates no memory",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:20],
)
def test_what_a_method_does_not_keep_is_named(tmp_path: Path, changes: dict[str, str], promise: str, said: str):
    before = ProcessBefore.now()
    assert said in told(tmp_path, f"breaks_{abs(hash(str(changes)))}", **changes)[promise]
    before.keep()  # whatever it did, the checks after it, and this process, are none the worse
    assert not torch.overrides._get_current_function_mode_stack(), (
        "nor slower: a default device that is set looks at every call"
    )


@pytest.mark.parametrize(
    ("built", "said"),
    [
        ("{'task': 'forget', 'row': [0, 1], 'words': 1.0}", "table 'their_words' has no column 'cluster'"),
        ("{'task': 'forget', 'cluster': ['a', 'b'], 'words': 1.0}", "table 'their_words' has no column 'row'"),
        ("{'task': 'forget', 'row': [0, 0], 'cluster': ['a', 'b'], 'words': 1.0}", "more than one line for the same task"),
        ("{'task': 'forget', 'row': [0.5, 1], 'cluster': ['a', 'b'], 'words': 1.0}", "row must be a whole number"),
    ],
)
def test_a_table_that_names_no_rows_is_refused(tmp_path: Path, bench: Bench, built: str, said: str):
    (tmp_path / "their_words.py").write_text(EVALUATOR.format(name="their_words", built=built, given=ROWS_OF_TABLE))
    plugins_of(tmp_path / "their_words.py")
    found = {o.promise: o.broken for o in outcomes(checks_of("evaluator", "their_words", "tofu10", {}, tmp_path))}
    assert said in found["its tables name task, row and cluster"]
    unlearnt: list[int] = []
    todo = bench.plan(lambda *_: iter(unlearnt), [EVALUATORS.get("their_words")])
    with pytest.raises(UsageError, match=said):
        execute(todo, bench.store, bench.cache)
    assert not (list(bench.store.places())), "it is refused before anything is unlearned"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("1.0", "their_numbers gives float for 'their_numbers': give Rows"),
        ("None", "their_numbers gives NoneType for 'their_numbers': give Rows"),
        ("table", "their_numbers gives DataFrame for 'their_numbers': give Rows"),
        ("[1.0, 2.0]", "their_numbers gives list of float for 'their_numbers': give Rows"),
        ("Rows(table['words'].to_numpy(), table['cluster'].to_numpy()[:1])", "2 values and 1 clusters for 'their_numbers'"),
        ("Rows(table['words'], table['cluster'])", "values of type Series for 'their_numbers': give numpy arrays"),
    ],
)
def test_what_is_no_rows_and_no_number_is_refused(tmp_path: Path, bench: Bench, given: str, said: str):
    built = "{'task': 'forget', 'row': [0, 1], 'cluster': ['a', 'b'], 'words': 1.0}"
    (tmp_path / "their_numbers.py").write_text(EVALUATOR.format(name="their_numbers", built=built, given=given))
    plugins_of(tmp_path / "their_numbers.py")
    found = {o.promise: o.broken for o in outcomes(checks_of("evaluator", "their_numbers", "tofu10", {}, tmp_path))}
    assert said in found["something is measured where all is there"]
    with pytest.raises(UsageError, match=re.escape(said)):
        execute(bench.plan(lambda *_: iter(()), [EVALUATORS.get("their_numbers")]), bench.store, bench.cache)


def test_an_evaluator_that_takes_all_rows_for_its_own_is_told(tmp_path: Path):
    """A record keeps all tables as one: whoever averages over it whole averages over other evaluators' rows."""
    built = "{'task': 'mine', 'row': [0, 1], 'cluster': ['a', 'b'], 'words': [1.0, 2.0]}"
    (tmp_path / "all_rows.py").write_text(EVALUATOR.format(name="all_rows", built=built, given=ROWS_OF_TABLE))
    plugins_of(tmp_path / "all_rows.py")
    found = {o.promise: o.broken for o in outcomes(checks_of("evaluator", "all_rows", "tofu10", {}, tmp_path))}
    assert "others' rows stand beside its own" in found.pop("so they do from a record, which keeps all tables as one")
    assert not any(found.values()), found


def test_a_benchmark_whose_questions_name_no_rows_is_refused_when_a_run_is_planned(bench: Bench):
    for row, said in (
        ({"row": 0, "question": "Who?"}, "the questions 'forget' of nano lack 'cluster' in row 0"),
        ({"cluster": "a", "question": "Who?"}, "the questions 'forget' of nano lack 'row' in row 0"),
        ({"row": "first", "cluster": "a"}, "lack 'row'"),
        ({"row": 0, "cluster": 1}, "lack 'cluster'"),
    ):
        with pytest.raises(UsageError, match=said):
            bench.plan(lambda *_: iter(()), problem=replace(bench.base, questions={"forget": [row]}))


def test_a_method_that_yields_nothing_is_told_so_wherever_it_is_run(tmp_path: Path, bench: Bench):
    (tmp_path / "no_yield.py").write_text(METHOD.format(name="no_yield", **GOOD).replace("yield Progress", "Progress"))
    plugins_of(tmp_path / "no_yield.py")
    found = {o.promise: o.broken for o in outcomes(checks_of("method", "no_yield", "tofu10", {}, tmp_path))}
    assert "gives NoneType and yields nothing: write yield Progress(" in found["steps rise, and the last one is measured"]
    with pytest.raises(UsageError, match="yields nothing: write yield"):
        execute(bench.plan(lambda *_: None, []), bench.store, bench.cache)  # type: ignore[arg-type, return-value]


def test_settings_that_are_none_are_refused_when_the_file_is_imported(tmp_path: Path):
    (tmp_path / "no_settings.py").write_text(METHOD.format(name="no_settings", **GOOD).replace("@settings\n", ""))
    plugins_of(tmp_path / "no_settings.py")
    with pytest.raises(UsageError, match="are no settings: write @settings above class Config"):
        METHODS.get("no_settings")


def test_one_check_that_breaks_off_does_not_stop_the_next():
    def broken() -> None:
        raise KeyError("row")

    found = list(outcomes([Check("method x", "a", broken), Check("method x", "b", lambda: None)]))
    assert [o.broken for o in found] == ["it breaks off (KeyError: 'row')", ""]
    assert str(Outcome("method x", "a")) == "ok  method x: a"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n", "registers nothing. Decorate a function or class"),
        ("def :\n", "registers nothing|cannot be read"),
        (METHOD.format(name="kfade", **GOOD), "'kfade' is registered twice"),
    ],
)
def test_a_file_that_is_no_plugin_is_refused(tmp_path: Path, text: str, said: str):
    (tmp_path / "theirs.py").write_text(text)
    with pytest.raises(UsageError, match=said):
        plugins_of(tmp_path / "theirs.py")
    with pytest.raises(UsageError, match="there is no such file"):
        plugins_of(tmp_path / "nowhere.py")


def test_a_folder_is_checked_as_the_plugin_that_its_init_file_registers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, "")
    (tmp_path / "parted").mkdir()
    with pytest.raises(
        UsageError, match=r"parted is a folder, and has no __init__\.py that registers something\. Give one file"
    ):
        plugins_of(tmp_path / "parted")
    (tmp_path / "parted" / "__init__.py").write_text('@method("parted", version=1)\ndef unlearn(): ...\n')
    (tmp_path / "parted" / "steps.py").write_text("")
    assert plugins_of(tmp_path / "parted") == [("method", "parted")]


def test_the_command_tells_line_by_line_and_by_its_exit_code(tmp_path: Path, harness_cli: HarnessCli):
    (tmp_path / "theirs.py").write_text(METHOD.format(name="theirs", **{**GOOD, "end": "setting.model.train()"}))
    done = harness_cli("test-plugin", str(tmp_path / "theirs.py"), "--set", "steps=1")
    assert done.returncode == 1, done.stderr
    assert "ok  method theirs: every setting is explained" in done.stdout
    assert (
        "FAIL  method theirs: model and tokenizer come back as they were found: it leaves the model in training" in done.stdout
    )
    assert done.stdout.endswith("9 checks, 1 failed\n") or "checks, 2 failed" in done.stdout
    refused = harness_cli("test-plugin", str(tmp_path / "nowhere.py"))
    assert refused.returncode == 2
    assert "there is no such file or folder" in refused.stderr
