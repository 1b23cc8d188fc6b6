"""Several runs in turn: the methods of one command, or a grid of settings. Finished ones are skipped, failed ones kept.

Every try is an ordinary record in the store; what is chosen from them is chosen by reading records.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product

from harness.cache import Cache
from harness.config import JSON, parse
from harness.errors import RunFailed, UsageError
from harness.interfaces import Measurement
from harness.run import Plan, execute
from harness.store import SCHEMA_VERSION, RunResult, Store

log = logging.getLogger(__name__)

MOST_RUNS = 10_000


def axes(grids: Sequence[str]) -> dict[str, list[JSON]]:
    """`["lr=1e-4,1e-3", "layers=[3,4];[5]"]` as name → values, parted by commas, or by semicolons where there are any.

    Raises:
        UsageError: for an axis without values, or one given twice.
    """
    found: dict[str, list[JSON]] = {}
    for text in grids:
        key, equals, values = text.partition("=")
        parts = [part.strip() for part in values.split(";" if ";" in values else ",")]
        if not equals or not all(parts):
            raise UsageError(f"'{text}' is no axis of a grid. Write it as key=value,value, for example lr=1e-4,1e-3.")
        if key.strip() in found:
            raise UsageError(f"the axis '{key.strip()}' is given twice.")
        found[key.strip()] = [parse([f"{key}={part}"])[key.strip()] for part in parts]
    return found


def grid(of: Mapping[str, Sequence[JSON]]) -> Iterator[dict[str, JSON]]:
    """Every combination of the axes' values; one empty combination for no axis."""
    for values in product(*of.values()):
        yield dict(zip(of, values, strict=True))


def run_all(
    plans: Sequence[Plan],
    store: Store,
    cache: Cache,
    force: bool = False,
    told: Callable[[RunResult], None] = lambda result: None,
) -> list[RunResult]:
    """Do every run, or find it done.

    Args:
        plans: in this order; all are decided before the first one starts, so that a slip costs nothing.
        store: where records go.
        cache: where trained models, curvature and texts are kept.
        force: do finished ones anew.
        told: is shown each result as it comes.

    Returns:
        The results in the same order; one that broke off, or was refused when it started (it does not fit, say), has status
        `failed` and the points it came to.
    """
    results = []
    for todo in plans:
        try:
            found = None if force else store.find(todo.spec)
            result = found if found and found.status == "done" else execute(todo, store, cache, force=force)
        except (RunFailed, UsageError) as error:
            log.warning("%s", error if isinstance(error, RunFailed) else f"{todo.method.name} was not run: {error}")
            result = _left(todo, store) or RunResult(
                schema_version=SCHEMA_VERSION, spec=todo.spec, status="failed", error=str(error), selection=todo.selection
            )
        results.append(result)
        told(result)
    return results


def _left(todo: Plan, store: Store) -> RunResult | None:
    """What a run left that did not end well; not the record of an earlier one that did, which a refusal leaves in place."""
    try:
        found = store.find(todo.spec)
    except UsageError:
        return None
    return found if found and found.status != "done" else None


def last_value(result: RunResult, metric: str) -> float | None:
    """A metric at a run's last point, if it was measured."""
    points = result.points[-1:]
    return next((m.value for p in points for m in p.measurements if isinstance(m, Measurement) and m.metric == metric), None)
