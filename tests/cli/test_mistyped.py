"""What is typed wrong: one sentence that says what was meant, wherever a name or a flag is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from harness.cli.app import COMMANDS, register
from harness.cli.mistyped import ELSEWHERE
from harness.core.registry import ROOT
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
        (("run", "kfade"), ("there is no file kfade; write --method kfade (several parted by commas).",)),
        (("run", "kfade,npo", "tofu10"), ("write --method kfade,npo --bench tofu10.",)),
        (("run", *KFADE, "--set", "lr", "1e-4"), ("there is no file 1e-4; a setting is one word, --set key=value.",)),
        (("leaderboard", "tofu10"), ("harness leaderboard takes no word without a flag", "harness leaderboard --help")),
        (("run", "--metod", "kfade"), ("harness run has no flag --metod. Did you mean --method? harness run --help",)),
        (("run", *KFADE, "--lr", "1e-4"), ("--lr is a method's setting, not a flag: write --set lr=1e-4.",)),
        (("run", *KFADE, "--lrr=1e-4"), ("harness run has no flag --lrr. Did you mean --set lr=VALUE?",)),
        (
            ("run", *KFADE, "--jobs", "2"),
            ("harness run has no flag --jobs; it is one of harness meta, harness study and harness sweep.",),
        ),
        (("run", "-m", "kfade", "--task", "tofu10"), ("harness run has no flag --task: write --bench.",)),
        (("run", *KFADE, "--learning_rate", "1e-4"), ("harness run has no flag --learning_rate: write --set lr=VALUE.",)),
        (("--bench", "tofu10", "run"), ("--bench is a flag of ", "write it after the command's name")),
        (("run", "--method"), ("--method lacks its value.",)),
        (("run", "--force=yes"), ("--force takes no value.",)),
        (("run", "-x"), ("harness run has no flag -x. harness run --help",)),
        (
            ("run", "--model", "kfade", "--bench", "tofu10"),
            ("give --method and --bench", "kfade is no model, write --method kfade."),
        ),
        (("run", "--method", "tofu10", "--bench", "kfade"), ("tofu10 is no method: write --bench tofu10.",)),
        (("run", "--method", "npo", "--bench", "kfade"), ("kfade is no benchmark: write --method kfade.",)),
        (("run", "--method", "KFADE", "--bench", "tofu10"), ("Did you mean 'kfade'?",)),
        (("run", "-m", "npo", "-b", "tofu05,tofu10"), ("names several", "harness sweep --bench tofu05,tofu10 takes several.")),
        (("run", *KFADE, "--seed", "0,1"), ("a run has one seed; harness sweep --seeds 0,1 makes one for each.",)),
        (("help",), ("there is no command help: write harness --help.",)),
        (("cache", "help"), ("write harness cache --help.",)),
        (("list", "metrics"), ("metrics are listed by harness list evals.",)),
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

    def paths(group, path=()):
        for name, command in group.commands.items():
            yield from paths(command, (*path, name)) if hasattr(command, "commands") else [(*path, name)]

    every = list(paths(typer.main.get_command(register())))
    assert len(every) > 15
    for path in every:
        refused(harness(*path, "--frobnicate"), f"harness {' '.join(path)} has no flag --frobnicate.", "--help tells of all.")
    for word in ELSEWHERE:
        told = harness("run", f"--{word}", "x")
        assert "harness run has no flag" in told.err or "is a method's setting" in told.err, told
        assert "write " in told.err, told


def test_each_command_is_registered_by_the_module_that_it_is_looked_for_in():
    """A command imports the module that registers it and none of the others."""
    program = register()
    assert set(typer.main.get_command(program).commands) == set(COMMANDS)
    modules = {each.callback.__module__ for each in program.registered_commands} - {"harness.cli.flags"}
    assert modules <= {f"harness.cli.{module}" for module in COMMANDS.values()}
    script = (
        "import sys; from harness.cli.entry import main; sys.argv = ['harness', {word!r}, '--help']\n"
        "try: main()\nexcept SystemExit as left: code = left.code\n"
        "print(code, *sorted(m for m in sys.modules if m.startswith('harness.cli.')))"
    )
    always = {f"harness.cli.{name}" for name in ("app", "entry", "mistyped")}
    beside = {f"harness.cli.{name}" for name in ("control", "flags", "listing")}  # what commands share
    for word in ("list", "validate", "leaderboard"):
        done = subprocess.run(
            [sys.executable, "-c", script.format(word=word)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        code, *imported = done.stdout.splitlines()[-1].split()
        assert code == "0"
        assert f"harness.cli.{COMMANDS[word]}" in imported
        assert set(imported) <= always | beside | {f"harness.cli.{COMMANDS[word]}"}


def test_listing_methods_imports_little():
    """What it costs is what the parser and the table cost."""
    script = (
        "import sys; from harness.cli.entry import main; sys.argv = ['harness', 'list', 'methods', '--json']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = set(done.stdout.splitlines()[-1].split())
    ours = {module for module in imported if module.startswith("harness.")}
    assert not imported & {"torch", "numpy", "pandas", "yaml", "rich", "rich.table"}
    assert not ours & {"harness.core.presets", "harness.core.benchmark", "harness.core.evaluator", "harness.running.request"}
    assert len(ours) < 30
