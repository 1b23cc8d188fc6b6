"""What is typed wrong: one sentence that says what was meant, wherever a name or a flag is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli.entry import app
from harness.cli.mistyped import ELSEWHERE
from tests.cli.test_cli import Harness, harness, refused  # noqa: F401
from tests.records import numbers, run, write

KFADE = ("--method", "kfade", "--bench", "tofu10")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("frobnicate",), ("no command called 'frobnicate'.", "leaderboard")),
        (("lsit", "methods"), ("no command called 'lsit'. Did you mean 'list'?",)),
        (("cache", "lst"), ("no command called 'lst'. Did you mean 'list'?", "harness cache --help")),
        (("list", "metods"), ("no kind of thing to list called 'metods'. Did you mean 'methods'?", "benches")),
        (("list",), ("harness list lacks KIND: what to list: methods, benches",)),
        (("show",), ("harness show lacks NAME: a run's id",)),
        (("show", "kfde"), ("no method or run called 'kfde'. Did you mean 'kfade'?",)),
        (("show", "tofu10"), ("tofu10 is a benchmark", "harness list benches")),
        (("plot", "paretoo"), ("no figure called 'paretoo'. Did you mean 'pareto'?",)),
        (("study", "hesian"), ("no study called 'hesian'. Did you mean 'hessian'?",)),
        (("power", "--bench", "tofu1"), ("no benchmark called 'tofu1'. Did you mean 'tofu10'?",)),
        (("test-plugin", "nowhere.py"), ("error: nowhere.py: there is no such file or folder.",)),
        (("run",), ("give --method and --bench",)),
        (("run", "kfade"), ("there is no file kfade; write --method kfade.",)),
        (("run", "kfade,npo", "tofu10"), ("write --method kfade,npo --bench tofu10.",)),
        (("run", *KFADE, "--set", "lr", "1e-4"), ("there is no file 1e-4; a setting is one word, --set key=value.",)),
        (("leaderboard", "tofu10"), ("harness leaderboard takes no word without a flag", "harness leaderboard --help")),
        (("run", "--metod", "kfade"), ("harness run has no flag --metod. Did you mean --method? harness run --help",)),
        (("run", *KFADE, "--lr", "1e-4"), ("--lr is a method's setting, not a flag: write --set lr=1e-4.",)),
        (("run", *KFADE, "--lrr=1e-4"), ("harness run has no flag --lrr. Did you mean --set lr=VALUE?",)),
        (("run", *KFADE, "--jobs", "2"), ("harness run has no flag --jobs; it is one of harness study and harness sweep.",)),
        (("run", "-m", "kfade", "--task", "tofu10"), ("harness run has no flag --task: write --bench.",)),
        (("run", *KFADE, "--learning_rate", "1e-4"), ("harness run has no flag --learning_rate: write --set lr=VALUE.",)),
        (("--bench", "tofu10", "run"), ("--bench is a flag of ", "write it after the command's name")),
        (("run", "--method"), ("--method lacks its value.",)),
        (("run", "--force=yes"), ("--force takes no value.",)),
        (("run", "-x"), ("harness run has no flag -x. harness run --help",)),
        (("sweep", *KFADE, "--grid", "target_kl=.1,.2", "--by", "forget_qualty"), ("Did you mean 'forget_quality'?",)),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
def test_a_slip_is_answered_with_what_was_meant(harness: Harness, words: tuple[str, ...], said: tuple[str, ...]):  # noqa: F811
    refused(harness(*words), *said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--method", "kfde"), "no method called 'kfde'. Did you mean 'kfade'?"),
        (("--bench", "tofu1"), "no benchmark called 'tofu1'. Did you mean 'tofu10'?"),
    ],
)
def test_a_figure_of_what_nobody_knows_is_refused_by_the_name(harness: Harness, tmp_path: Path, words, said):  # noqa: F811
    write(tmp_path, run(numbers(0.1, 0.2, 0.8)))
    refused(harness("plot", "pareto", *words, "--results", tmp_path), said)


def test_a_figure_by_a_setting_that_no_run_has_is_refused_by_its_name(harness: Harness, tmp_path: Path):  # noqa: F811
    for strength in (0.1, 0.2):
        write(tmp_path, run(numbers(0.1, 0.2, 0.8), spec={"config": {"damping": strength}}))
    told = harness("plot", "ablation", "--by", "dampin", "--results", tmp_path)
    refused(told, "no setting of a method called 'dampin'. Did you mean 'damping'?")


def test_every_command_answers_an_unknown_flag_with_the_way_out(harness: Harness):  # noqa: F811
    import typer

    def paths(group, path=()):
        for name, command in group.commands.items():
            yield from paths(command, (*path, name)) if hasattr(command, "commands") else [(*path, name)]

    every = list(paths(typer.main.get_command(app)))
    assert len(every) > 15
    for path in every:
        refused(harness(*path, "--frobnicate"), f"harness {' '.join(path)} has no flag --frobnicate.", "--help tells of all.")
    for word in ELSEWHERE:
        told = harness("run", f"--{word}", "x")
        assert "harness run has no flag" in told.err or "is a method's setting" in told.err, told
        assert "write " in told.err, told
