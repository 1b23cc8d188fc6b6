"""What cannot be drawn names the command that makes it; what is printed is printed as it is."""

from __future__ import annotations

from pathlib import Path

from tests.cli.test_cli import Harness, harness  # noqa: F401
from tests.records import numbers, run, write


def test_a_study_of_which_one_value_was_run_names_the_study(harness: Harness, tmp_path: Path):  # noqa: F811
    from harness.core.config import resolve, to_json
    from harness.core.method import METHODS

    method = METHODS.get("kfade")
    config = to_json(resolve(method.config, method.preset("tofu10", "mini", "published"), {"target_kl": 0.1}, owner="kfade"))
    write(tmp_path, run(numbers(0.1, 0.2, 0.8), spec={"config": config}))
    told = harness("plot", "ablation", "--study", "hessian", "--results", tmp_path)
    assert told.code == 2
    assert told.err.rstrip().endswith("Make them: harness study hessian")


def test_brackets_in_a_record_or_a_path_are_no_markup(harness: Harness, tmp_path: Path):  # noqa: F811
    root = tmp_path / "[b] :key: [" / "x]"
    result = run(
        numbers(0.1, 0.2, 0.8), spec={"seed": 3}, selection="[/x] [red]", notes=["[/red]"], error="[/x] [b]", status="failed"
    )
    write(root, result)
    told = harness("show", result.spec.run_id, "--results", root)
    assert told.code == 0
    for text in ("[/x] [red]", "[/red]", "[/x] [b]", f"record: {root}"):
        assert text in told.out
    assert harness("list", "runs", "--results", root).code == 0
