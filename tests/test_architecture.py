"""Who imports whom: the harness knows no plug-in, plug-ins do not know one another, and a listing needs no torch."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from harness.core.benchmark import BENCHMARKS
from harness.core.evaluator import EVALUATORS
from harness.core.figure import FIGURES
from harness.core.method import METHODS
from harness.core.registry import ROOT, Registry

FOLDERS = [name for name in ("harness", "methods", "evals", "plots") if (ROOT / name).is_dir()]
FILES = sorted(file for name in FOLDERS for file in (ROOT / name).rglob("*.py"))

ROOMS: dict[str, set[str]] = {
    "core": set(),
    "storage": {"core"},
    "statistics": {"core"},
    "data": {"core", "storage"},
    "numerics": {"core", "storage", "data"},
    "models": {"core", "storage", "data", "numerics"},
    "running": {"core", "storage", "statistics", "data", "numerics", "models"},
    "reading": {"core", "storage", "statistics"},
    "api": {"core", "reading", "running", "storage"},
    "cli": {"core", "storage", "statistics", "data", "numerics", "models", "running", "reading"},
}
"""Each room of the harness, and the rooms that it may import, for types too."""
PLUGINS = {
    "methods": {"core", "data", "numerics", "models", "storage"},
    "evals": {"core", "data", "numerics", "models", "storage", "statistics"},
    "plots": {"core", "reading"},
}
"""What plug-in folders may import of the harness; of the storage the cache and temporary files alone."""
TORCHLESS = {"core", "storage", "statistics", "running", "reading", "api", "cli"}
"""Rooms that are there without anything heavy, until something of it is needed."""
HEAVY = {
    "torch",
    "transformers",
    "pandas",
    "scipy",
    "numpy",
    "datasets",
    "vllm",
    "lm_eval",
    "peft",
    "matplotlib",
    "curvlinops",
    "seaborn",
}


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, everywhere: bool) -> Iterator[str]:
    """The modules a file imports: when it is imported itself, or (everywhere) also inside functions.

    What stands under `if TYPE_CHECKING` is never imported and passed over. `from a import b` gives both `a` and `a.b`.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not everywhere:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name their module in full"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from imports(node, everywhere)


@cache
def imported(file: Path, everywhere: bool = True) -> frozenset[str]:
    return frozenset(imports(ast.parse(file.read_text(encoding="utf-8")), everywhere))


def tops(modules: Iterable[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def of(folder: str) -> list[Path]:
    return [file for file in FILES if file.relative_to(ROOT).parts[0] == folder]


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@cache
def plugins() -> frozenset[str]:
    """The modules that the registries know: a file, or a folder with an `__init__.py`."""
    registries: tuple[Registry[Any], ...] = (METHODS, EVALUATORS, BENCHMARKS, FIGURES)
    return frozenset(entry.module for each in registries for entry in each.entries.values() if not entry.file)


def is_plugin(file: Path) -> bool:
    return module_of(file) in plugins()


def plugin_of(module: str) -> str:
    """The plug-in that a module is part of, if of any."""
    return next((each for each in plugins() if f"{module}.".startswith(f"{each}.")), "")


def below(file: Path) -> set[Path]:
    """The files of its own folder that a file imports while it is imported itself, and those that they import."""
    folder, found, todo = file.relative_to(ROOT).parts[0], {file}, [file]
    while todo:
        for module in imported(todo.pop(), everywhere=False):
            path = ROOT.joinpath(*module.split("."))
            for each in (path.with_suffix(".py"), path / "__init__.py"):
                if module.startswith(f"{folder}.") and each.is_file() and each not in found:
                    found.add(each)
                    todo.append(each)
    return found


def test_there_is_something_to_look_at():
    assert {
        "harness/running/run.py",
        "methods/kfade.py",
        "evals/rouge.py",
        "evals/benchmarks/tofu/__init__.py",
    } <= set(map(name, FILES))


def test_the_walk_sees_what_it_should():
    tree = ast.parse(
        "import a.b\nfrom c import d\n"
        "if TYPE_CHECKING:\n    import never\n"
        "try:\n    import e\nexcept ImportError:\n    pass\n"
        "def f():\n    import g\n"
        "class C:\n    import h\n    def m(self):\n        if True:\n            from i import j\n"
    )
    assert set(imports(tree, everywhere=False)) == {"a.b", "c", "c.d", "e", "h"}
    assert set(imports(tree, everywhere=True)) == {"a.b", "c", "c.d", "e", "g", "h", "i", "i.j"}


def room_of(file: Path) -> str:
    """The room that a file of the harness lies in; the package itself, and what starts it, in none."""
    parts = file.relative_to(ROOT / "harness").parts
    return parts[0] if len(parts) > 1 else parts[0].removesuffix(".py") if parts[0] == "api.py" else ""


def rooms(file: Path, types: bool = True) -> set[str]:
    """The rooms that a file imports from, for types too."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    modules = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    modules += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {module.split(".")[1] for module in modules if module.startswith("harness.")}


@pytest.mark.parametrize("file", [file for file in of("harness") if room_of(file)], ids=name)
def test_rooms_import_what_lies_below_them(file: Path):
    room = room_of(file)
    assert rooms(file) <= ROOMS[room] | {room}


@pytest.mark.parametrize("file", [file for folder in PLUGINS for file in of(folder)], ids=name)
def test_plugin_folders_import_what_lies_below_them(file: Path):
    folder = file.relative_to(ROOT).parts[0]
    assert rooms(file) <= PLUGINS[folder]
    if folder in ("methods", "evals"):
        known = {module for module in imported(file) if module.startswith("harness.storage.")}
        assert {module.split(".")[2] for module in known} <= {"cache", "temporary"}


def test_every_module_is_in_a_room():
    assert [name(file) for file in of("harness") if not room_of(file)] == ["harness/__init__.py", "harness/__main__.py"]


@pytest.mark.parametrize("file", of("harness"), ids=name)
def test_the_harness_imports_no_plugin(file: Path):
    assert not tops(imported(file)) & {"methods", "evals", "plots", "tests"}


@pytest.mark.parametrize("file", [*of("methods"), *of("evals")], ids=name)
def test_plugins_know_helpers_and_never_one_another(file: Path):
    folder = file.relative_to(ROOT).parts[0]
    found = imported(file)
    assert not tops(found) & ({"methods", "evals", "plots", "tests"} - {folder}), "other folders"
    for module in found:
        parts = module.split(".")
        if parts[0] != folder or len(parts) == 1:
            continue
        assert module not in plugins(), f"{module} is a plug-in"
        assert plugin_of(module) in ("", plugin_of(module_of(file))), f"{module} is part of {plugin_of(module)}"
        if parts[1] == "benchmarks":
            assert "benchmarks" in file.parts, "only benchmarks know the benchmarks' helpers"


@pytest.mark.parametrize("file", of("plots"), ids=name)
def test_plots_read_records_and_nothing_else(file: Path):
    found = imported(file)
    assert not tops(found) & {"torch", "transformers", "methods", "evals"}
    for module in (m for m in found if m.startswith("plots.")):
        assert module.split(".")[1].startswith("_"), f"{module} is a figure"


@pytest.mark.parametrize("file", of("plots"), ids=name)
def test_a_figure_can_be_looked_at_without_what_draws_it(file: Path):
    assert not tops(imported(file, everywhere=False)) & HEAVY


@pytest.mark.parametrize("file", [file for file in of("harness") if room_of(file) in {"", *TORCHLESS}], ids=name)
def test_what_every_command_needs_imports_nothing_heavy(file: Path):
    assert not tops(imported(file, everywhere=False)) & HEAVY


@pytest.mark.parametrize("file", [f for f in [*of("methods"), *of("evals")] if is_plugin(f)], ids=name)
def test_a_plugin_can_be_looked_at_without_torch(file: Path):
    """`harness show` and the finding of a run that is done import the plug-in, but not what it computes with."""
    for each in below(file):
        assert not tops(imported(each, everywhere=False)) & {"torch", "transformers"}, name(each)


def test_what_a_plugin_imports_is_followed_all_the_way():
    assert ROOT / "methods/curvature/layers.py" in below(ROOT / "methods/curvature/files.py")
    assert ROOT / "methods/_settings.py" in below(ROOT / "methods/kfade.py")


def test_only_the_curvature_knows_curvlinops():
    assert [name(file) for file in FILES if "curvlinops" in tops(imported(file))] == ["methods/curvature/by_curvlinops.py"]


def test_heavy_extras_are_imported_only_inside_the_function_that_uses_them():
    for file in FILES:
        assert not tops(imported(file, everywhere=False)) & {"vllm", "lm_eval", "datasets", "peft", "ray"}, name(file)


def graph() -> dict[str, frozenset[str]]:
    """Module → modules of the harness that it imports, also inside functions."""
    modules = {module_of(file): file for file in of("harness")}
    return {module: imported(file) & modules.keys() for module, file in modules.items()}


def test_no_circle_of_imports_in_the_harness():
    edges, done = graph(), set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join((*path, module))
        if module not in done:
            for below in edges[module] - {module, "harness"}:  # the package itself hands names on when they are asked for
                walk(below, (*path, module))
            done.add(module)

    for module in edges.keys() - {"harness"}:
        walk(module, ())
    assert len(done) > 15


def test_the_core_types_stand_on_registry_and_config_alone():
    things = {"caching", "text", "options", "problem", "memory", "method", "measurement", "evaluator", "benchmark", "figure"}
    below = {"harness", *(f"harness.core.{each}" for each in {"config", "registry", "errors", "metric", "presets", *things})}
    for thing in things:
        assert graph()[f"harness.core.{thing}"] <= below, thing
    assert graph()["harness.core.metric"] <= {"harness", "harness.core"}
    assert graph()["harness.core.registry"] <= {"harness", "harness.core", "harness.core.errors", "harness.core.plugins"}
    assert graph()["harness.core.config"] <= {"harness", "harness.core", "harness.core.errors", "harness.core.documents"}
    assert graph()["harness.core.documents"] <= {"harness", "harness.core", "harness.core.errors"}
    assert graph()["harness.core.errors"] <= {"harness"}


def reading_calls(tree: ast.AST) -> Iterator[str]:
    """Calls that parse JSON or YAML, as `json.loads`, `from_json` or `yaml.safe_load`."""
    for node in ast.walk(tree):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        owner, _, method = called.rpartition(".")
        if (owner in ("json", "yaml") and "load" in method) or method in (
            "from_json",
            "read_json",
            "validate_json",
            "JSONDecoder",
        ):
            yield called


def test_reading_calls_are_seen():
    tree = ast.parse("json.loads(x)\nyaml.safe_load(x)\nfrom_json(x)\njson.dumps(x)\npandas.read_json(x)\nfile.load(x)")
    assert list(reading_calls(tree)) == ["json.loads", "yaml.safe_load", "from_json", "pandas.read_json"]


def test_json_and_yaml_are_read_in_one_place():
    """Elsewhere a text that is nested without end, or holds half a character, would end in a traceback."""
    alone = {"harness/core/documents.py", "harness/numerics/vllm_child.py"}  # the child imports nothing of the harness
    found = {name(file): set(reading_calls(ast.parse(file.read_text(encoding="utf-8")))) for file in FILES}
    assert {file: calls - {"read_json"} for file, calls in found.items() if calls - {"read_json"} and file not in alone} == {}
    assert not {name(file) for file in FILES if "yaml" in tops(imported(file))} - {"harness/core/documents.py"}


def test_only_one_module_makes_temporary_files():
    """Theirs are swept after a kill; whoever makes some by itself leaves them behind."""
    assert [name(file) for file in FILES if "tempfile" in tops(imported(file))] == ["harness/storage/temporary.py"]


SEEDING = {"default_rng", "manual_seed", "Generator", "Random", "RandomState"}
SEED_BY_THEMSELVES = {
    "harness/core/streams.py",
    "harness/numerics/generation.py",  # a request's draws are seeded by its text
    "harness/running/contracts/methods.py",  # a check seeds all generators, as a run does
    "harness/running/contracts/tiny.py",  # a tiny model is its seed
    "harness/running/grid.py",  # a search's draws have no seed but its owner and budget
    "plots/kl_quantiles.py",  # a band's draws, the same on every page
}


def seeding_calls(tree: ast.AST) -> set[str]:
    """Calls that make or seed random numbers, as `np.random.default_rng` or `torch.manual_seed`."""
    called = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {call for call in called if call.rpartition(".")[2] in SEEDING}


def test_random_numbers_are_seeded_by_name_in_one_place():
    assert seeding_calls(ast.parse("np.random.default_rng(0)\ntorch.Generator().manual_seed(1)\nrng.random(3)")) == {
        "np.random.default_rng",
        "torch.Generator",
        "torch.Generator().manual_seed",
    }
    found = {name(file) for file in FILES if seeding_calls(ast.parse(file.read_text(encoding="utf-8")))}
    assert found == SEED_BY_THEMSELVES


def test_no_file_is_called_utils():
    assert not [name(file) for file in FILES if file.stem in ("utils", "util", "helpers", "common", "misc")]


# ---------------------------------------------------------------- sizes


MOST_LINES, MOST_IN_A_FUNCTION, MOST_PARAMETERS = 400, 60, 8


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From `def` to its end, docstring included."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """All of them but `self` and `cls`."""
    every = function.args
    names = [each.arg for each in (*every.posonlyargs, *every.args, *every.kwonlyargs, every.vararg, every.kwarg) if each]
    return len([each for each in names if each not in ("self", "cls")])


def test_sizes_are_counted_as_they_should():
    (function,) = functions(ast.parse("def f(self, a, /, b, *c, d=1, **e):\n    x = 1\n\n    return x\n"))
    assert (lines(function), parameters(function)) == (4, 5)


@pytest.mark.parametrize("file", FILES, ids=name)
def test_files_functions_and_lists_of_parameters_are_short(file: Path):
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= MOST_LINES
    for function in functions(ast.parse(text)):
        assert lines(function) <= MOST_IN_A_FUNCTION, function.name
        assert parameters(function) <= MOST_PARAMETERS, function.name


SAY_NOTHING = {"told", "found", "asked", "there", "here", "way"}


def names_given(tree: ast.AST) -> Iterator[str]:
    """Variables, fields, parameters, functions, classes and imports that a file names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name


def test_given_names_are_seen():
    tree = ast.parse(
        "a = 1\nfor b in c: pass\ndef d(e, *f): return g\nclass H: i: int = 0\nif j := k: pass\nl.m = 1\nimport n as o\n"
    )
    assert set(names_given(tree)) == {"a", "b", "d", "e", "f", "H", "i", "j", "m", "o"}


@pytest.mark.parametrize("file", FILES, ids=name)
def test_a_name_says_what_it_is(file: Path):
    given = {each.strip("_").lower() for each in names_given(ast.parse(file.read_text(encoding="utf-8")))}
    assert not given & SAY_NOTHING


def quoted_metrics(tree: ast.AST, names: set[str]) -> set[str]:
    """String literals that are a metric's name."""
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value in names}


def test_the_harness_quotes_no_metric():
    """It reads the roles that a benchmark declares, and the metrics that evaluators declare."""
    from harness.core.benchmark import BENCHMARKS, eval_plan
    from harness.core.evaluator import EVALUATORS
    from harness.core.options import Options

    names: set[str] = set()
    for bench in BENCHMARKS.names():
        benchmark = BENCHMARKS.get(bench)
        plan = eval_plan(benchmark, benchmark.problem("mini", Options(limit=3)), Options(limit=3))
        names |= {metric.name for each in EVALUATORS.names() for metric in EVALUATORS.get(each).metrics_of(plan)}
        names |= {*benchmark.roles.headline}  # type: ignore[attr-defined]
    assert {"forget_quality", "model_utility", "bio_accuracy", "mmlu_accuracy", "alpaca_kl", "selection_score"} <= names
    assert quoted_metrics(ast.parse("x = 'model_utility'"), names) == {"model_utility"}
    found = {name(file): quoted_metrics(ast.parse(file.read_text(encoding="utf-8")), names) for file in of("harness")}
    assert {file: quoted for file, quoted in found.items() if quoted} == {}


def test_the_tests_lie_in_folders_like_the_rooms():
    """What spans rooms lies in `project`, ratios in `perf`; this file and what tests share lie at the top."""
    folders = {*ROOMS, *PLUGINS, "project"}
    misplaced = [file for file in (ROOT / "tests").rglob("test_*.py") if file.parent.name not in folders]
    assert misplaced == [Path(__file__)]
    assert {file.parent.parent for file in (ROOT / "tests").rglob("test_*.py")} == {ROOT / "tests", ROOT}
