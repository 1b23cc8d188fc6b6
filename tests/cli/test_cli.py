"""The command line: what is typed wrong gets one sentence and exit code 2; what is asked for imports no more than it needs."""

from __future__ import annotations

import errno
import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from harness import __version__
from harness.core.benchmark import BENCHMARKS
from harness.core.evaluator import EVALUATORS
from harness.core.measurement import Absent, Measurement
from harness.core.method import METHODS
from harness.core.options import Options
from harness.core.registry import ROOT
from harness.running.plan import plan
from harness.storage.records import SCHEMA_VERSION, Point, RunResult
from harness.storage.store import Store
from tests.conftest import Bench, HarnessCli
from tests.judge_server import judge_server


@dataclass
class Told:
    """What a command left: its exit code and both streams."""

    code: int
    out: str
    err: str


Harness = Callable[..., Told]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Harness]:
    """Runs the entry point in this process, from an empty folder."""
    from harness.cli.entry import main

    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    handlers = list(logging.getLogger().handlers)

    def run(*words: object) -> Told:
        monkeypatch.setattr(sys, "argv", ["harness", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        streams = capsys.readouterr()
        return Told(int(left.value.code or 0), streams.out, streams.err)

    yield run
    logging.getLogger().handlers[:] = handlers


RUN = ("run", "--method", "kfade", "--bench", "tofu10", "--device", "cpu")


def refused(told: Told, *said: str) -> None:
    """Exit code 2, nothing on stdout, and one sentence that says all of this."""
    assert told.code == 2, told
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1, "one line, no traceback"
    assert told.err.endswith(".\n")
    for part in said:
        assert part in told.err


def test_a_place_that_one_may_not_enter_is_one_sentence(harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(store: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "closed" / "runs"))

    monkeypatch.setattr(
        "harness.storage.store.Store.check", refused
    )  # Path.is_dir raises it where a folder on the way is closed
    told = harness("list", "runs", "--results", tmp_path / "closed" / "runs")
    refused_with = f"error: '{tmp_path / 'closed' / 'runs'}' may not be opened (permission denied)."
    assert (told.code, told.out) == (2, "")
    assert told.err.startswith(refused_with)
    assert told.err.count("\n") == 1


# ---------------------------------------------------------------- what is typed wrong


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--method", "kfad"), ("no method called 'kfad'. Did you mean 'kfade'?", "harness list methods tells of all")),
        (("--bench", "tofu1O"), ("no benchmark called 'tofu1O'. Did you mean 'tofu10'?", "tofu01")),
        (("--method", "ga", "--model", "minni"), ("no model called 'minni'. Did you mean 'mini'?", "scratch")),
        (("--model", "minni"), ("no model called 'minni'. Did you mean 'mini'?",)),
        (("--model", "mini@x"), ("'mini@x' is no model", "mini@1")),
        (("--set", "dampign=1"), ("no setting of kfade called 'dampign'. Did you mean 'damping'?",)),
        (("--set", "damping=-1"), ("kfade: damping=-1 is not allowed", "greater than or equal to 0")),
        (("--set", "damping=0"), ("damping=0 divides by eigenvalues that are 0",)),
        (("--method", "ga", "--set", "lr=abc"), ('ga: lr="abc" is not allowed', "number")),
        (("--set", "step_size=nan"), ('kfade: step_size="nan" is not allowed', "finite")),
        (("--set", "layers=[x]"), ('kfade: layers="[x]" is not allowed',)),
        (("--set", "damping"), ("'damping' is not a setting", "key=value")),
        (("--set", "damping=1", "--set", "damping=2"), ("'damping' is given twice",)),
        (("--set", "step_size=1", "--set", "target_kl=1"), ("step_size and target_kl contradict each other",)),
        (("--dtype", "float16"), ("--dtype float16 is not known", "bfloat16")),
        (("--generator", "vlm"), ("no generator called 'vlm'", "hf, vllm")),
        (("--retain", "general"), ("tofu10 has one retain set; leave out --retain general.",)),
        (("--bench", ""), ("give --method and --bench",)),
        (("--method", ","), ("give --method and --bench",)),
        (("--evals", "probability,rouge,probability"), ("--evals probability,rouge,probability names an evaluator twice",)),
        (("--evals", ","), ("--evals , names no evaluator",)),
        (("--device", "cuda:77"), ("this machine has", "'cuda:77' is not among them", "--device cpu")),
        (("--device", "tpu"), ("no device called 'tpu'",)),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_a_slip_gets_one_sentence_and_exit_code_2(harness: Harness, words: tuple[str, ...], said: tuple[str, ...]):
    refused(harness(*RUN, *words), *said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--seed", "-1"), "--seed"),
        (("--seed", "x"), "--seed"),
        (("--limit", "0"), "--limit"),
        (("--variant", "mine"), "open-unlearning"),
        (("--retain", "mine"), "neighbours"),
        (("--no-such-flag",), "--no-such-flag"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_flag_that_the_parser_refuses_gets_one_line_and_exit_code_2(harness: Harness, words: tuple[str, ...], said: str):
    told = harness(*RUN, *words)
    assert (told.code, told.out) == (2, "")
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert said in told.err


SWEEP = ("sweep", "--method", "kfade", "--bench", "tofu10", "--device", "cpu")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--grid", "dampign=1,2"), ("no setting of kfade called 'dampign'. Did you mean 'damping'?",)),
        (("--method", "ga,kfade", "--grid", "damping=1,2"), ("no setting of ga called 'damping'",)),
        (("--grid", "damping="), ("'damping=' is no axis of a grid",)),
        (("--grid", "ga.lr=1"), ("no method of this sweep called 'ga'",)),
        (("--seeds", "0,x"), ("--seeds 0,x is no list of seeds",)),
        (("--bench", "tofu10,tofu10"), ("names a benchmark twice",)),
        (("--bench", ""), ("give --method and --bench",)),
        (("--bench", ","), ("--bench , names no benchmark",)),
        (("--seeds", "0,00"), ("--seeds 0,00 names a seed twice",)),
        (("--evals", "rouge,rouge"), ("--evals rouge,rouge names an evaluator twice",)),
        (("--set", "damping=1", "--grid", "kfade.damping=1,2"), ("'damping' is both set and an axis of the grid",)),
        (("--budget", "3"), ("the grid of kfade has 1 settings and the budget is 3",)),
        (("--grid", f"damping={','.join(map(str, range(1, 10_002)))}"), ("that is 10001 runs", "--yes")),
        (("nowhere.yaml",), ("nowhere.yaml cannot be read",)),
    ],
    ids=lambda value: " ".join(value)[:40] if value and value[0].startswith("-") else "",
)
def test_a_slip_in_a_sweep_gets_one_sentence(harness: Harness, words: tuple[str, ...], said: tuple[str, ...]):
    refused(harness(*SWEEP, *words), *said)


def test_a_sweep_of_a_file_shows_what_is_done(harness: Harness, done: tuple[Path, RunResult], tmp_path: Path):
    (tmp_path / "sweep.yaml").write_text("method: untouched\nbench: tofu05\nlimit: 2\npoints: all\nby: forget_quality\n")
    words = ("sweep", tmp_path / "sweep.yaml", "--device", "cpu", "--results", done[0])
    told = harness(*words, "--bench", "tofu10", "--json")
    (result,) = json.loads(told.out)
    assert told.err == ""
    assert result["trial"] == {
        "index": 0, "tries": 1, "search": "grid", "metric": "forget_quality", "split": "first 2 rows per split of tofu10 on mini, seed 0",
    }  # fmt: skip
    shown = harness(*words, "--bench", "tofu10").out
    assert "1/1 untouched seed 0: done" in shown
    quiet = harness(*words, "--bench", "tofu10", "--quiet").out
    assert "1/1" not in quiet
    assert "untouched" in quiet, "the table stays"
    show = ("show", done[1].spec.run_id, "--results", done[0])
    assert "try 1 of 1" not in harness(*show).out, "a record that was done before the sweep stays as it is"
    record = done[0] / "runs" / done[1].spec.folder / "run.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "trial": result["trial"]}))
    shown = harness(*show).out
    assert "try 1 of 1 (grid), chosen by forget_quality on first 2 rows per split of tofu10 on mini, seed 0" in shown


@pytest.mark.parametrize(
    "words", [["sweep", "-m", "untouched", "-b", "tofu01", "--device", "cpu"], ["study", "tofu-table", "-b", "tofu01"]]
)
def test_single_runs_of_a_sweep_show_no_bars(words: list[str]):
    """tqdm asks for TQDM_DISABLE once, when it is imported: it takes a process in which nothing has done that before."""
    script = (
        "import sys; from harness.cli import sweeps; from harness.cli.entry import main\n"
        "def tries(*_): print('disabled:', __import__('tqdm').tqdm([]).disable); sys.exit(0)\n"
        f"sweeps._run_tries = tries; sys.argv = ['harness', *{words!r}]; main()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert "disabled: True" in told.stdout, told.stderr


def test_a_method_typed_wrong_is_answered_with_all_there_are_or_the_command_that_lists_them(harness: Harness):
    refused(harness(*RUN, "--method", "xyz"), f" and {len(METHODS.names()) - 5} more; harness list methods tells of all.")
    refused(harness(*RUN, "--bench", "xyz"), *BENCHMARKS.names())


def test_a_data_folder_without_the_data_is_named_with_the_file_and_where_to_get_it(harness: Harness, tmp_path: Path):
    told = harness(*RUN, "--model", "scratch", "--data-dir", tmp_path)
    refused(told, f"the data folder has no locuslab/TOFU/full.json (looked in {tmp_path})", "hub")


def test_data_that_is_malformed_is_named_by_file_and_line(harness: Harness, tmp_path: Path):
    folder = tmp_path / "locuslab" / "TOFU"
    folder.mkdir(parents=True)
    (folder / "full.json").write_text('{"question": "Who?", "answer": "Me."}\n{"question": "Who?"}\n')
    refused(harness(*RUN, "--model", "scratch", "--data-dir", tmp_path), "full.json, line 2", "'answer' is missing")


def test_the_data_folder_may_come_from_the_environment(harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    refused(harness(*RUN, "--model", "scratch"), f"looked in {tmp_path}")
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "gone"))
    refused(harness(*RUN), f"HARNESS_DATA {tmp_path}/gone: there is no such folder")
    refused(harness(*RUN, "--data-dir", tmp_path / "lost"), f"--data-dir {tmp_path}/lost: there is no such folder")


def test_a_results_folder_that_cannot_be_written_is_named(harness: Harness, tmp_path: Path):
    (tmp_path / "file").write_text("")
    told = harness(*RUN, "--limit", 2, "--results", tmp_path / "file" / "results")
    refused(told, f"the results folder {tmp_path}/file/results cannot be written", "--results")


def test_a_cache_that_cannot_be_written_is_named(harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file" / "cache"))
    refused(harness("cache", "list"), "cannot be written", "HARNESS_CACHE")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("{", "not valid JSON"),
        ("[]", "is no evaluation log"),
        ('{"eval_log_forget.json": {"avg_gt_loss": {"0": 1.0}}}', "has 1 forget rows, tofu10 has 120 here"),
    ],
    ids=str,
)
def test_a_reference_that_is_no_log_of_these_rows_is_refused(harness: Harness, tmp_path: Path, content: str | None, said: str):
    log = tmp_path / "reference.json"
    if content is not None:
        log.write_text(content)
    refused(harness(*RUN, "--reference", log), "reference.json", said)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"spec": 1}'])
def test_a_spec_that_is_no_record_is_refused(harness: Harness, tmp_path: Path, content: str | None):
    file = tmp_path / "run.json"
    if content is not None:
        file.write_text(content)
    refused(harness("run", "--spec", file), "run.json is no run.json of this harness")


@pytest.mark.parametrize("spec", [{}, {"bench": "tofu10"}, {"variant": "mine"}], ids=str)
def test_a_spec_that_lacks_something_is_refused(harness: Harness, tmp_path: Path, spec: dict[str, Any]):
    told = {"bench": "tofu10", "method": "ga", "seed": 0, "limit": 2, "dtype": "float32", "generator": "hf", "model": "mini"}
    (tmp_path / "run.json").write_text(json.dumps({"spec": {**told, **spec} if "variant" in spec else spec}))
    lacking = "run.json is no run.json of this harness (it lacks bench"
    refused(harness("run", "--spec", tmp_path / "run.json"), lacking if spec == {} else "")


@pytest.mark.parametrize("words", [("show", "nothing"), ("show", "0123abcd"), ("score", "nowhere.json"), ("list", "things")])
def test_other_commands_refuse_what_is_not_there(harness: Harness, words: tuple[str, ...]):
    refused(harness(*words), words[1])


def test_no_command_at_all_shows_the_help(harness: Harness):
    told = harness()
    assert all(word in told.out for word in ("Usage", "run", "list", "show", "score", "cache"))
    assert told.code == 2


def test_no_command_at_all_is_no_error(harness: Harness):
    assert harness().err == ""


def test_an_interruption_says_how_to_go_on(harness: Harness, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*args: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.running.plan.plan", interrupted)
    told = harness(*RUN)
    assert told.code == 130
    assert told.err == "interrupted; the same command goes on from here.\n"


# ---------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(("kind", "registry"), [("methods", METHODS), ("benches", BENCHMARKS), ("evals", EVALUATORS)])
def test_lists_name_every_plugin_with_its_first_line(harness: Harness, kind: str, registry: Any):
    told = harness("list", kind, "--json")
    assert told.code == 0
    assert json.loads(told.out) == [{"name": e.name, "about": e.summary} for e in registry.entries.values()]
    table = harness("list", kind).out
    assert all(name in table for name in registry.names())


def test_models_are_listed_with_their_benchmarks(harness: Harness):
    rows = {row["model"]: row for row in json.loads(harness("list", "models", "--json").out)}
    assert {"tofu01", "tofu05", "tofu10"} <= set(rows["mini"]["benches"].split(", "))
    assert rows["mini"]["about"]
    assert {"smollm2-135m", "gemma3-270m", "finetuned:<hub id or folder>"} <= rows.keys()


def test_the_settings_of_models_fine_tuned_on_the_spot_are_shown(harness: Harness):
    rows = {row["setting"]: row for row in json.loads(harness("show", "finetuned", "--json").out)}
    assert {name: row["default"] for name, row in rows.items()} == {
        **{"epochs": 8, "lr": 3e-4, "batch_size": 32, "replay": 0, "retained": 2}
    }
    assert all(row["about"] for row in rows.values())
    assert "replay" in harness("show", "finetuned").out


def test_a_methods_settings_are_shown_with_default_and_meaning(harness: Harness):
    rows = {row["setting"]: row for row in json.loads(harness("show", "kfade", "--json").out)}
    assert rows["damping"]["default"] == 1e-8
    assert "λ" in rows["damping"]["about"]
    text = harness("show", "kfade").out
    assert "damping" in text
    assert "published for any benchmark on mini, scratch: " in text


def test_a_run_is_shown_with_what_its_settings_mean_and_without_python(harness: Harness):
    shown = harness("show", "3e662ae9e08c", "--results", ROOT / "results").out
    assert "λ in G + λI" in shown
    assert "made with torch 2" in shown
    assert "{" not in shown


NUMBER = Measurement(metric="forget_quality", version=1, value=0.25, unit="p-value", better="higher", n=3)


@pytest.fixture
def done(tmp_path: Path) -> tuple[Path, RunResult]:
    """A results folder with a run that is done, though nothing was ever trained."""
    todo = plan("tofu10", "mini", "untouched", {}, Options(limit=2))
    point = Point(
        index=0,
        step=0,
        logged={},
        measurements=[NUMBER, Absent(metric="model_utility", reason="there are no retain rows")],
        weights="w",
        unlearn_seconds=0.0,
    )
    result = RunResult(schema_version=SCHEMA_VERSION, spec=todo.spec, status="done", selection=todo.selection)
    with Store(tmp_path / "results").open(todo.spec) as record:
        record.write(result)
        record.add(point, {}, {})
    return tmp_path / "results", replace(result, points=[point])


DONE = ("run", "--method", "untouched", "--bench", "tofu10", "--limit", "2", "--device", "cpu")


def test_a_run_that_is_done_is_shown_as_recorded(harness: Harness, done: tuple[Path, RunResult]):
    results, result = done
    told = json.loads(harness(*DONE, "--results", results, "--json").out)
    assert told["spec"]["method"] == "untouched"
    assert told["points"][0]["measurements"][0]["value"] == 0.25
    text = harness(*DONE, "--results", results).out
    assert result.spec.run_id in text
    assert "model_utility: absent: there are no retain rows" in text
    assert str(results) in text


def test_quiet_keeps_the_table(harness: Harness, done: tuple[Path, RunResult]):
    told = harness(*DONE, "--results", done[0], "--quiet")
    assert (told.code, told.err) == (0, "")
    assert "forget_quality" in told.out


def test_a_run_is_shown_by_the_beginning_of_its_name(harness: Harness, done: tuple[Path, RunResult]):
    results, result = done
    told = json.loads(harness("show", result.spec.run_id[:6], "--results", results, "--json").out)
    assert told["spec"]["limit"] == 2
    assert told["points"][0]["measurements"][1] == {"metric": "model_utility", "reason": "there are no retain rows"}
    assert "forget_quality" in harness("show", result.spec.run_id, "--results", results).out


def test_a_list_of_runs_has_the_columns_that_some_run_fills(harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from rich.console import Console

    from tests import records

    monkeypatch.setattr("harness.reading.console.stdout", lambda: Console(width=120))
    wmdp = [records.number(f"{name}_accuracy", value) for name, value in (("bio", 0.2222), ("cyber", 0.6778), ("general", 0.9))]
    records.write(tmp_path, records.run(wmdp, spec={"bench": "wmdp", "method": "rmu"}))
    told = harness("list", "runs", "--results", tmp_path)
    for word in (" bio ", "0.222", " cyber ", "0.678", " general ", "0.900"):
        assert word in told.out
    assert "forget" not in told.out
    assert "mmlu" not in told.out
    records.write(tmp_path, records.run(records.numbers(2.77e-26, 0.6, 0.8)))
    both = harness("list", "runs", "--results", tmp_path).out
    assert max(map(len, both.splitlines())) <= 120
    assert both.count("preset") == 2, "one table for each benchmark"
    for word in ("utility", "2.8e-26", "0.800", "0.222"):
        assert word in both


def test_runs_are_listed_and_a_broken_record_is_named(harness: Harness, done: tuple[Path, RunResult]):
    results, result = done
    (row,) = json.loads(harness("list", "runs", "--results", results, "--json").out)
    assert (row["run"], row["status"], row["forget_quality"], row["model_utility"]) == (result.spec.run_id, "done", 0.25, None)
    assert row["preset"] == "published"
    (results / "runs" / result.spec.folder / "run.json").write_text("{")
    told = harness("list", "runs", "--results", results)
    assert told.code == 0
    assert told.out == "none\n"
    assert told.err.startswith("skipped: ")
    assert result.spec.run_id in told.err


def test_a_recorded_run_can_be_asked_for_again_by_its_record(harness: Harness, done: tuple[Path, RunResult]):
    results, result = done
    file = results / "runs" / result.spec.folder / "run.json"
    told = json.loads(harness("run", "--spec", file, "--device", "cpu", "--results", results, "--json").out)
    assert told["points"][0]["weights"] == "w", "the same run, found as done"


@pytest.mark.parametrize(
    "words",
    [
        *(
            ("--seed", "0"),
            ("--evals", "rouge"),
            ("--method", "ga"),
            ("--form", "tuned"),
            ("--points", "last"),
            ("--limit", "3"),
        ),
        ("--retain", "general"),
    ],
    ids=" ".join,
)
def test_a_flag_that_contradicts_a_spec_is_refused(harness: Harness, done: tuple[Path, RunResult], words: tuple[str, str]):
    results, result = done
    file = results / "runs" / result.spec.folder / "run.json"
    refused(
        harness("run", "--spec", file, "--device", "cpu", "--results", results, *words),
        f"--spec and {words[0]}".replace("--form", "--preset"),
        "--set",
    )


def test_a_setting_typed_beside_a_spec_wins_over_its_alternative(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from harness.core.config import to_json

    spec = to_json(plan("tofu10", "mini", "kfade", {}, Options(limit=2)).spec)
    assert spec["config"]["target_kl"] is not None
    (tmp_path / "run.json").write_text(json.dumps({"spec": spec}))
    planned: list[Any] = []

    def stop(todo: Any, *args: Any) -> None:
        planned.append(todo.config)
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.running.run.execute", stop)
    harness("run", "--spec", tmp_path / "run.json", "--set", "step_size=0.5", "--device", "cpu", "--results", tmp_path)
    assert [(c.step_size, c.target_kl) for c in planned] == [(0.5, None)]


def test_a_run_from_the_command_line_leaves_a_record(harness: Harness, bench: Bench, tmp_path: Path):
    """From the words that are typed to the record, on random weights."""
    from tests.running.test_run import NORM, steps

    bench.plan(steps(2), [NORM])  # registers the method `fake` and the benchmark `nano`
    words = ("run", "--method", "fake", "--bench", "nano", "--device", "cpu", "--results", tmp_path / "results")
    told = harness(*words, "--set", "strength=0.5", "--seed", 3, "--json")
    assert told.code == 0
    result = json.loads(told.out)
    assert [p["logged"] for p in result["points"]] == [{"strength": 0.5}] * 2
    assert result["spec"]["seed"] == 3
    assert result["provenance"]["command"] == "harness run --method fake --bench nano --model mini --set strength=0.5 --seed 3"
    assert result["provenance"]["harness_version"] == __version__
    (row,) = json.loads(harness("list", "runs", "--results", tmp_path / "results", "--json").out)
    assert row["points"] == 2


def test_a_run_that_broke_off_by_itself_gets_one_sentence(harness: Harness, bench: Bench, tmp_path: Path):
    from harness.core.errors import Diverged
    from tests.running.test_run import NORM, breaks_after_first

    bench.plan(breaks_after_first(Diverged("step 2: the loss is nan")), [NORM])
    words = ("run", "--method", "fake", "--bench", "nano", "--device", "cpu", "--results", tmp_path / "results", "--quiet")
    refused(harness(*words), "fake broke off: step 2: the loss is nan")


def test_a_run_that_runs_out_of_memory_gets_one_sentence(harness: Harness, bench: Bench, tmp_path: Path):
    from tests.running.test_run import NORM, breaks_after_first

    bench.plan(breaks_after_first(MemoryError()), [NORM])
    words = ("run", "--method", "fake", "--bench", "nano", "--device", "cpu", "--results", tmp_path / "results", "--quiet")
    refused(harness(*words), "fake ran out of memory on cpu. Try --dtype bfloat16, or fewer rows with --limit.")


def test_a_log_is_scored(harness: Harness, tmp_path: Path):
    rows = {str(i): 0.5 for i in range(6)}
    tasks = ("eval_log", "eval_log_forget", "eval_real_author_wo_options", "eval_real_world_wo_options")
    told = {f"{name}.json": {"avg_gt_loss": rows} for name in tasks}
    (tmp_path / "log.json").write_text(json.dumps(told))
    found = json.loads(harness("score", tmp_path / "log.json", "--json").out)
    assert found["forget_probability"]["value"] == pytest.approx(0.6065306597126334)  # exp(−0.5)
    assert "avg_paraphrased_loss for forget" in found["forget_quality"]["reason"]
    assert "retain_probability" in harness("score", tmp_path / "log.json").out


def test_a_run_is_exported_in_open_unlearnings_form_alone_where_its_numbers_are_in_its_definitions(
    harness: Harness, bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    from harness.running.run import execute
    from tests.running.test_run import steps

    benchmark = BENCHMARKS.get("tofu10")
    words = ("results", "export", "--results", tmp_path / "results", "--out", tmp_path / "out")
    for variant in ("original", "open-unlearning"):
        todo = bench.plan(steps(1), [EVALUATORS.get("probability")], options=Options(variant=variant))  # type: ignore[arg-type]
        monkeypatch.setattr(BENCHMARKS.get("nano"), "write_log", benchmark.write_log, raising=False)  # type: ignore[attr-defined]
        spec = execute(todo, Store(tmp_path / "results"), bench.cache).spec
        if variant == "original":
            refused(harness(*words, spec.run_id), "measure it with --variant open-unlearning.")
    assert harness(*words, spec.run_id).out.split() == [str(tmp_path / "out" / f"TOFU_{n}.json") for n in ("EVAL", "SUMMARY")]
    assert json.loads((tmp_path / "out" / "TOFU_SUMMARY.json").read_text())["made_by"].endswith(spec.run_id)
    refused(harness(*words, spec.run_id), "give --out another folder.")
    refused(harness(*words, "ffff"), "no run")


def test_the_cache_is_listed_and_cleared(harness: Harness):
    from harness.storage.cache import Cache

    def make(folder: Path) -> dict[str, Any]:
        (folder / "file").write_bytes(b"x" * 2**20)
        return {"name": "mini@0 full"}

    Cache().get("model", {"a": 1}, make)
    (row,) = json.loads(harness("cache", "list", "--json").out)
    assert (row["kind"], row["about"], row["MiB"]) == ("model", "mini@0 full", 1.0)
    assert "1.0 MiB in " in harness("cache", "list").out
    assert harness("cache", "clear", "curvature").out == "freed 0.0 MiB\n"
    refused(
        harness("cache", "clear", "models"), "no kind of cache entry called 'models'. Did you mean 'model'? There are: attack"
    )
    refused(harness("cache", "clear", "x" * 20_000), "harness cache list tells of all")
    refused(harness("cache", "clear", ""), "no kind of cache entry called ''")
    assert harness("cache", "clear").out == "freed 1.0 MiB\n"
    assert json.loads(harness("cache", "list", "--json").out) == []


# ---------------------------------------------------------------- several runs


@pytest.fixture
def fake(bench: Bench) -> None:
    """The method `fake` on the benchmark `nano`, on random weights."""
    from tests.running.test_run import NORM, steps

    bench.plan(steps(2), [NORM])


ON_NANO = ("--bench", "nano", "--device", "cpu")


@pytest.mark.usefixtures("fake")
def test_a_grid_is_run_and_shown(harness: Harness, tmp_path: Path):
    words = ("sweep", "--method", "fake", *ON_NANO, "--grid", "strength=0.1,0.2", "--seeds", "0,1", "--results", tmp_path / "r")
    told = harness(*words)
    assert told.code == 0, told
    assert "4/4 fake strength=0.2 seed 1: done" in told.out
    found = json.loads(harness(*words, "--json").out)
    assert [(r["spec"]["config"]["strength"], r["spec"]["seed"]) for r in found] == [(0.1, 0), (0.2, 0), (0.1, 1), (0.2, 1)]
    assert [len(r["points"]) for r in found] == [1] * 4, "only the last point is measured"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--grid", "strenght=1,2"), ("no setting of fake called 'strenght'. Did you mean 'strength'?",)),
        (("--grid", "strength="), ("is no axis of a grid",)),
        (("--seeds", "a"), ("--seeds a is no list of seeds",)),
        (("--seeds", ",".join(map(str, range(10_001)))), ("10001 runs", "--yes")),
        (("--method", "fake,fake"), ("names a method twice",)),
        (("--method", ","), ("--method , names no method",)),
        (("--seeds", "0,1,0"), ("--seeds 0,1,0 names a seed twice",)),
        (("--set", "strength=1", "--grid", "strength=1,2"), ("'strength' is both set and an axis of the grid",)),
        (("--form", "tuned"), ("fake has no tuned preset for nano on mini",)),
    ],
    ids=lambda v: v[0] if v and v[0].startswith("--") else "",
)
@pytest.mark.usefixtures("fake")
def test_a_sweep_that_cannot_be_is_refused(harness: Harness, tmp_path: Path, words: tuple[str, ...], said: tuple[str, ...]):
    refused(harness("sweep", "--method", "fake", *ON_NANO, "--results", tmp_path / "r", *words), *said)
    assert not list((tmp_path / "r").glob("runs/*/*/*/*/run.json"))


def test_several_methods_keep_no_model(harness: Harness, tmp_path: Path):
    told = harness(*RUN[:2], "ga,npo", *RUN[3:], "--save-model", tmp_path)
    refused(told, "--save-model", "give one method")


@pytest.mark.usefixtures("fake")
def test_several_methods_end_in_one_table(harness: Harness, bench: Bench, tmp_path: Path):
    told = harness("run", "--method", "fake,untouched", *ON_NANO, "--results", tmp_path / "r")
    assert told.code == 0, told
    assert "fake: done" in told.out
    assert "norm" in told.out
    assert "best on the way" not in told.out, "there is no forget quality"
    found = json.loads(harness("run", "--method", "fake,untouched", *ON_NANO, "--results", tmp_path / "r", "--json").out)
    assert [r["spec"]["method"] for r in found] == ["fake", "untouched"]


@pytest.mark.parametrize("quiet", [(), ("--quiet",), ("--json",)], ids=["table", "quiet", "json"])
def test_one_of_several_methods_that_breaks_is_named_at_the_end(
    harness: Harness, bench: Bench, tmp_path: Path, quiet: tuple[str, ...]
):
    from tests.running.test_run import NORM, breaks_after_first

    bench.plan(breaks_after_first(RuntimeError("a bug")), [NORM])
    told = harness("run", "--method", "fake,untouched", *ON_NANO, "--results", tmp_path / "r", *quiet)
    assert told.code == 2
    (line,) = told.err.splitlines()
    assert line.startswith("not done: fake (failed, run ")
    assert line.endswith("): RuntimeError: a bug")
    assert {r.spec.method: r.status for r in Store(tmp_path / "r").runs()} == {"fake": "failed", "untouched": "done"}


# ---------------------------------------------------------------- judges


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--judge", "gpt-4"), ("--judge gpt-4 is no judge: write openai:MODEL or vllm:MODEL",)),
        (("--judge", "openai:"), ("--judge openai: is no judge",)),
        (("--judge", "azure:gpt-4"), ("--judge azure:gpt-4 is no judge",)),
        (("--judge-url", "http://host/v1"), ("add --judge openai:MODEL",)),
        (("--judge", "openai:m", "--judge-url", "host:8000"), ("--judge-url host:8000 is no address",)),
        (("--judge", "openai:m", "--judge-url", "file:///etc/passwd"), ("is no address",)),
        (("--judge", "vllm:m", "--judge-url", "http://host/v1"), ("--judge vllm:MODEL is served here",)),
        (("--judge", "openai:m", "--evals", "mt_bench"), ("mt_bench reads FastChat's files: give --data-dir DIR",)),
    ],
    ids=lambda v: " ".join(v) if v[0].startswith("--judge") else "",
)
def test_a_judge_that_cannot_be_is_refused(harness: Harness, words: tuple[str, ...], said: tuple[str, ...]):
    refused(harness(*RUN, *words), *said)


def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM is not installed meanwhile."""
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "vllm" else find(name, *more))


def test_a_judge_that_is_not_here_is_refused(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: None, judge_files: Path
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    without_vllm(monkeypatch)
    words = ("run", "--method", "fake", *ON_NANO, "--evals", "mt_bench", "--data-dir", judge_files, "--results", tmp_path / "r")
    refused(harness(*words, "--judge", "openai:gpt-4"), "needs a key in the environment variable OPENAI_API_KEY")
    refused(harness(*words, "--judge", "vllm:some/model"), "needs vLLM, which is not installed here")


def test_vllm_that_is_not_here_is_refused_and_leaves_no_record(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: None
):
    without_vllm(monkeypatch)
    words = ("run", "--method", "fake", *ON_NANO, "--results", tmp_path / "r", "--generator", "vllm")
    refused(harness(*words), "--generator vllm needs vLLM, which is not installed here: pip install vllm", "--generator hf")
    assert not list((tmp_path / "r").rglob("run.json"))


def test_the_back_end_is_part_of_a_runs_name(harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: None):
    """The two differ in rounding, so their records are two."""
    from harness.numerics.generation import HFGenerator

    class Other(HFGenerator):
        name = "vllm"

    monkeypatch.setattr(
        "harness.numerics.generation.choose_generator", lambda name, device: {"hf": HFGenerator, "vllm": Other}[name]()
    )
    specs = []
    for name in ("hf", "vllm", "auto"):
        words = ("run", "--method", "fake", *ON_NANO, "--results", tmp_path / "r", "--generator", name, "--json")
        specs.append(json.loads(harness(*words).out))
    assert [told["spec"]["generator"] for told in specs] == ["hf", "vllm", "hf"]
    assert "--generator vllm" in specs[1]["provenance"]["command"]
    assert len(list((tmp_path / "r").rglob("run.json"))) == 2


def test_a_judged_run_says_what_it_will_cost_and_who_judged(
    harness: Harness,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fake: None,
    judge_files: Path,
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-nobodys")
    words = ("run", "--method", "fake", *ON_NANO, "--evals", "mt_bench", "--data-dir", judge_files, "--results", tmp_path / "r")
    with judge_server() as server:
        judge = ("--judge", "openai:gpt-4", "--judge-url", f"{server.url}/")
        told = harness(*words, *judge, "--judge-repetitions", "2")
        assert told.code == 0, told
        assert "4 answers are put to openai:gpt-4 (0 verdicts are here already): about" in caplog.text
        assert "mt_bench_standard_error" in told.out
        assert "judged by openai:gpt-4, which answered as gpt-4-0613" in told.out
        asked = len(server.asked)
        (file,) = (tmp_path / "r").glob("runs/*/*/*/*/run.json")
        again = harness(
            "run", "--spec", file, "--device", "cpu", "--data-dir", judge_files, "--results", tmp_path / "r", "--json"
        )
        assert json.loads(again.out)["spec"]["basis"]["mt_bench"]["repetitions"] == 2
        assert len(server.asked) == asked, "found as done: by the record's judge"
    refused(harness("run", "--spec", file, "--judge-repetitions", "3"), "--spec and --judge-repetitions contradict each other")
    assert "sk-nobodys" not in file.read_text()


def test_a_sweep_is_judged_as_its_file_says(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: None, judge_files: Path
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-nobodys")
    with judge_server() as server:
        (tmp_path / "sweep.yaml").write_text(
            f"method: fake\nbench: nano\ndevice: cpu\nevals: mt_bench\ndata_dir: {judge_files}\njudge: openai:gpt-4\n"
            "judge_repetitions: 2\ngrid:\n  strength: [0.1, 0.2]\n"
        )
        words = ("sweep", tmp_path / "sweep.yaml", "--judge-url", server.url, "--results", tmp_path / "r", "--json")
        found = json.loads(harness(*words).out)
    assert [r["points"][0]["measurements"][0]["value"] for r in found] == [7, 7]
    assert (
        found[0]["spec"]["basis"]["mt_bench"] | {"judge": "openai:gpt-4", "repetitions": 2}
        == found[0]["spec"]["basis"]["mt_bench"]
    )


def test_a_sweeps_file_alone_sends_nothing_to_the_server_it_names(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: None, judge_files: Path
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-nobodys")
    with judge_server() as server:
        (tmp_path / "sweep.yaml").write_text(
            f"method: fake\nbench: nano\ndevice: cpu\nevals: mt_bench\ndata_dir: {judge_files}\njudge: openai:gpt-4\n"
            f"judge_url: {server.url}\ngrid:\n  strength: [0.1]\n"
        )
        told = harness("sweep", tmp_path / "sweep.yaml", "--results", tmp_path / "r")
        assert not server.asked
    refused(told, "judge_url is not taken from a file", "--judge-url")


@pytest.fixture
def judge_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """FastChat's files with one question, to be answered in a few words."""
    from tests.evals.test_mt_bench import PROMPTS, QUESTIONS, REFERENCES, write

    monkeypatch.setattr("evals.mt_bench.answers.MAX_TOKENS", 4)
    write(tmp_path / "data", "question.jsonl", QUESTIONS[:1])
    write(tmp_path / "data", "reference_answer/gpt-4.jsonl", REFERENCES)
    write(tmp_path / "data", "judge_prompts.jsonl", PROMPTS)
    return tmp_path / "data"


# ---------------------------------------------------------------- in a process of its own, where torch cannot be imported


@pytest.mark.parametrize("words", [("list", "methods"), ("list", "models"), ("show", "kfade")], ids=" ".join)
def test_listing_and_showing_need_no_torch(harness_cli: HarnessCli, words: tuple[str, ...]):
    done = harness_cli(*words, without_torch=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) > 3


def test_finding_a_run_that_is_done_needs_no_torch(harness_cli: HarnessCli, done: tuple[Path, RunResult]):
    told = harness_cli(*DONE, "--results", str(done[0]), "--json", without_torch=True)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["status"] == "done"


def test_a_slip_in_a_process_of_its_own_leaves_exit_code_2_and_one_sentence(harness_cli: HarnessCli):
    told = harness_cli(*RUN, "--set", "dampign=1", without_torch=True)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith("error: no setting of kfade called 'dampign'. Did you mean 'damping'? There are: ")
    assert told.stderr.count("\n") == 1


def test_the_doctors_json_names_what_was_looked_at_what_was_found_and_whether_it_is_fine(harness: Harness):
    lines = json.loads(harness("doctor", "--json").out)
    assert {frozenset(line) for line in lines} == {frozenset(("what", "found", "fine"))}
