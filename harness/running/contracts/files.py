"""The plug-ins of a file, and all their checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from harness.core.benchmark import BENCHMARKS
from harness.core.config import JSON, settings
from harness.core.errors import UsageError
from harness.core.evaluator import EVALUATORS
from harness.core.figure import FIGURES
from harness.core.method import METHODS, Method, Progress, UnlearningContext
from harness.core.options import Options
from harness.core.plugins import add_plugins
from harness.core.registry import Registry
from harness.running.contracts import benchmarks, evaluators, figures, methods
from harness.running.contracts.promises import Check, keep
from harness.running.contracts.workshop import Workshop
from harness.storage.cache import Cache
from harness.storage.store import Store

REGISTRIES: tuple[Registry[Any], ...] = (BENCHMARKS, METHODS, EVALUATORS, FIGURES)


def plugins_of(file: Path) -> list[tuple[str, str]]:
    """Kind and name of all that a file registers.

    Raises:
        UsageError: if it is not there, cannot be imported, registers nothing or takes a name that is taken.
    """
    place = file.expanduser().resolve()
    if not place.exists():
        raise UsageError(f"{file}: there is no such file or folder.")
    add_plugins(file)
    if place.is_dir():
        place /= "__init__.py"
        if not place.is_file():
            raise UsageError(f"{file} is a folder, and has no __init__.py that registers something. Give one file of it.")
    plugins = [
        (registry.kind, entry.name)
        for registry in REGISTRIES
        for entry in registry.entries.values()
        if entry.file and entry.file.path == place
    ]
    if not plugins:
        kinds = ", ".join(f'@{registry.decorator}("name", …)' for registry in REGISTRIES)
        raise UsageError(
            f"{file} registers nothing. Decorate a function or class at its top level, its name written out, by {kinds}."
        )
    return plugins


def checks_of(kind: str, name: str, bench: str, given: Mapping[str, JSON], folder: Path) -> Iterator[Check]:
    """All checks of one plug-in.

    Args:
        kind: of which kind it is.
        name: its name.
        bench: the benchmark on whose data it is tried.
        given: a method's settings that differ from its defaults and presets.
        folder: an empty folder for what is made on the way.

    Raises:
        UsageError: for a file that cannot be imported, a benchmark or a setting that is not there.
    """
    if kind == BENCHMARKS.kind:
        yield from benchmarks.checks(name, BENCHMARKS.get(name))
        return
    shop = Workshop.of(bench, folder)
    if kind == METHODS.kind:
        method = METHODS.get(name)
        if why := method.skip_reason(shop.problem):
            keep(isinstance(why, str), "skip_reason gives None, or in one sentence why not")
            raise UsageError(f"{name} cannot be tried on {bench}: {why}. Try it on another benchmark: --bench NAME.")
        config = methods.cheap(method, method.preset(bench, shop.problem.family or "mini"), given)
        yield from methods.checks(method, config, shop.context)
    elif kind == EVALUATORS.kind:
        evaluator = EVALUATORS.get(name)
        yield from evaluators.checks(evaluator, shop, cache(lambda: evaluators.references_of(shop, [evaluator])))
    else:
        store = recorded(shop, bench, folder / "results")
        yield from figures.checks(FIGURES.get(name), store.frame(), store.root)


@settings
class _Shrink:
    """Settings of the method below."""

    share: float = 0.1
    """How much of the output matrix goes."""


def _shrink(context: UnlearningContext, config: _Shrink) -> Iterator[Progress]:
    """Makes a model less certain, in two steps."""
    import torch

    for step in (1, 2):
        with torch.no_grad():
            context.model.get_output_embeddings().weight.mul_(1 - config.share)
        yield Progress(step, measure_here=True, total=2)


def recorded(shop: Workshop, bench: str, root: Path) -> Store:
    """Two runs of a method that takes no time, for figures."""
    from harness.running.plan import plan
    from harness.running.run import execute

    METHODS.register("shrink_output", Method("shrink_output", _Shrink, "a trial", _shrink))
    store = Store(root)
    cheap = replace(shop.plan, evaluators=[e for e in shop.plan.evaluators if not e.changes_model])
    for seed in (0, 1):
        execute(plan(bench, "mini", "shrink_output", {}, Options(seed=seed), measured=cheap), store, Cache(root / "cache"))
    return store
