"""`harness test-plugin`: what it says of a file that keeps its promises, and of files that do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.core.errors import UsageError
from harness.core.plugins import VARIABLE
from harness.running.contracts.files import checks_of, plugins_of
from harness.running.contracts.promises import Check, Outcome, outcomes
from tests.conftest import HarnessCli

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
    import torch

    for step in range(1, config.steps + 1):
        with torch.no_grad():
            setting.model.lm_head.weight.mul_({scale})
        yield Progress(step, measure_here=True, total=config.steps)
    {end}
'''
GOOD = {"about": "How many steps are taken.", "scale": "0.9", "end": "setting.model.eval()"}


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
    assert len(found) == 8
    assert not any(found.values()), found


@pytest.mark.parametrize(
    ("changes", "promise", "said"),
    [
        ({"about": "n"}, "every setting is explained", "no sentence stands under the setting 'steps'"),
        ({"scale": "1 + 0.1 * torch.rand(())", "end": "torch.seed()"}, "the same seed gives the same weights", ""),
        ({"end": "setting.model.train()"}, "model and tokenizer come back as they were found", "training mode"),
        ({"end": "yield Progress(config.steps + 1)"}, "steps rise, and the last one is measured", "never measured"),
        ({"end": "1 / 0"}, "the same seed gives the same weights", "it breaks off (ZeroDivisionError"),
        (
            {"end": "setting.model(torch.tensor([[1, 2]])).logits.sum().backward(); setting.model.zero_grad()"},
            "it says what it holds in memory",
            "estimates no memory",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:20],
)
def test_what_a_method_does_not_keep_is_named(tmp_path: Path, changes: dict[str, str], promise: str, said: str):
    broken = told(tmp_path, f"breaks_{abs(hash(str(changes)))}", **changes)[promise]
    assert said in broken
    assert bool(said) == bool(broken)


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


def test_the_command_tells_line_by_line_and_by_its_exit_code(tmp_path: Path, harness_cli: HarnessCli):
    (tmp_path / "theirs.py").write_text(METHOD.format(name="theirs", **{**GOOD, "end": "setting.model.train()"}))
    done = harness_cli("test-plugin", str(tmp_path / "theirs.py"), "--set", "steps=1")
    assert done.returncode == 1, done.stderr
    assert "ok  method theirs: every setting is explained" in done.stdout
    assert (
        "FAIL  method theirs: model and tokenizer come back as they were found: it leaves the model in training" in done.stdout
    )
    assert done.stdout.endswith("8 checks, 1 failed\n") or "checks, 2 failed" in done.stdout
    refused = harness_cli("test-plugin", str(tmp_path / "nowhere.py"))
    assert refused.returncode == 2
    assert "there is no such file or folder" in refused.stderr
