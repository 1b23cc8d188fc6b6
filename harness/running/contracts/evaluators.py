"""What an evaluator promises."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.core.evaluator import EvalContext, Evaluator, GenerationRequest, Reference
from harness.core.measurement import Absent, Measurement
from harness.models.sources import weights_fingerprint
from harness.running.contracts.methods import as_found
from harness.running.contracts.process import ProcessBefore, process_put_back
from harness.running.contracts.promises import Check, keep
from harness.running.contracts.workshop import Workshop
from harness.running.measuring import check_tables
from harness.statistics.measurements import measurements
from harness.storage.frames import AllInOne, in_one

if TYPE_CHECKING:
    from collections.abc import Callable


def checks(evaluator: Evaluator, shop: Workshop, references: Callable[[], Sequence[Reference]]) -> Iterator[Check]:
    """All of them.

    Args:
        evaluator: whose.
        shop: where it is tried.
        references: makes two retrained models by their tables, as this evaluator builds them.
    """

    def context() -> EvalContext:
        return shop.eval_context(shop.context(), [evaluator], references())

    promises: Mapping[str, Callable[[], None]] = {
        "it asks for texts alone": lambda: requests_are_requests(evaluator, shop),
        "its tables name task, row and cluster": lambda: tables_can_be_recorded(evaluator, context()),
        "its numbers have an interval, or say why not": lambda: numbers_or_reasons(measurements(evaluator, context())),
        "something is measured where all is there": lambda: something_is_measured(evaluator, context()),
        "the same numbers come from its recorded tables alone": lambda: same_from_tables(evaluator, context()),
        "so they do from a record, which keeps all tables as one": lambda: same_from_record(evaluator, shop),
        "what cannot be measured is absent, with the reason": lambda: absent_without_anything(evaluator, shop),
        "a collapsed model gets no bad number": lambda: no_bad_number_of_a_collapsed_model(evaluator, shop, references()),
        "the model stays as it is": lambda: model_stays(evaluator, context()),
        "the process is left as it was found": lambda: process_left_as_found(evaluator, context()),
        "it goes together with the benchmark's own evaluators": lambda: goes_together(evaluator, shop),
    }
    for promise, run in promises.items():
        yield Check(f"evaluator {evaluator.name}", promise, process_put_back()(run))


def references_of(shop: Workshop, evaluators: Sequence[Evaluator]) -> list[Reference]:
    """Two retrained models by their tables, as these evaluators build them."""
    able = [e for e in evaluators if not e.changes_model]
    references = []
    for name in shop.plan.references[:2]:
        sources = {**shop.problem.sources, "base": shop.problem.sources[name]}
        context = shop.eval_context(shop.context(problem=replace(shop.problem, sources=sources)), able)
        for evaluator in able:
            measurements(evaluator, context)
        references.append(Reference(name, context.tables))
    return references


def requests_are_requests(evaluator: Evaluator, shop: Workshop) -> None:
    """A list of them; none is a list of none."""
    for request in evaluator.requests(shop.plan, shop.models.tokenizer):
        keep(isinstance(request, GenerationRequest), f"it asks for {type(request).__name__}: requests gives GenerationRequests")


def tables_can_be_recorded(evaluator: Evaluator, context: EvalContext) -> None:
    """The record puts all tables side by side, so that each row needs its name."""
    measurements(evaluator, context)
    check_tables(context.tables, "what it keeps row by row", context.builders)


def numbers_or_reasons(numbers: Sequence[Measurement | Absent]) -> None:
    """Every number is finite, says what it rests on, and has an interval or why there is none; else there is a reason."""
    names = [item.metric for item in numbers]
    keep(names, "it gives no number at all, not even an absent one")
    twice = sorted({name for name in names if names.count(name) > 1})
    keep(not twice, f"it gives {', '.join(twice)} twice")
    for item in numbers:
        keep(
            re.fullmatch(r"[a-z][a-z0-9_]*", item.metric), f"'{item.metric}' is no name of a metric: write it like forget_rouge"
        )
        if isinstance(item, Absent):
            keep(len(item.reason) > 10, f"{item.metric} is absent for no reason: say why in a sentence")
        else:
            _whole(item)


def _whole(item: Measurement) -> None:
    name = item.metric
    numbers = [item.value, item.reference, item.floor]
    for what, pair in (("range", item.range), ("across_references", item.across_references), ("interval_95", item.interval_95)):
        if pair is not None:
            keep(pair[0] <= pair[1], f"{name} has the {what} {pair}: the lower end comes first")
            numbers += pair
    keep(
        all(math.isfinite(n) for n in numbers if n is not None),
        f"{name} is not finite: such a number is Absent, with its reason",
    )
    keep(item.n > 0, f"{name} rests on {item.n} rows")
    keep(item.version >= 1, f"{name} has version {item.version}: they begin at 1")
    keep(item.unit, f"{name} has no unit")
    if item.range:
        keep(item.range[0] <= item.value <= item.range[1], f"{name}={item.value} lies outside its range {item.range}")
    if item.interval_95 is None:
        keep(
            (item.interval_method or "").startswith("none: "),
            f"{name} has no interval, and {item.interval_method!r} does not say why: begin with 'none: '",
        )
    else:
        keep(item.interval_method and item.resampled, f"{name} does not say how its interval was made, or what was resampled")


def something_is_measured(evaluator: Evaluator, context: EvalContext) -> None:
    """On a problem with references; an evaluator that asks a judge may have none here."""
    numbers = measurements(evaluator, context)
    reasons = "; ".join(item.reason for item in numbers if isinstance(item, Absent))
    keep(
        evaluator.rests_on_more or any(isinstance(item, Measurement) for item in numbers),
        f"all its numbers are absent ({reasons})",
    )


def same_from_tables(evaluator: Evaluator, context: EvalContext) -> None:
    """What makes a recorded run readable for ever: no model, no texts, the same numbers."""
    numbers = measurements(evaluator, context)
    if not evaluator.changes_model:
        again = measurements(evaluator, EvalContext(None, context.plan, context.references, dict(context.tables)))
        other = next((now.metric for now, then in zip(again, numbers, strict=True) if now != then), "")
        keep(not other, f"{other} comes out otherwise from the recorded tables: keep what it rests on by context.table")


def same_from_record(evaluator: Evaluator, shop: Workshop) -> None:
    """Rows of other evaluators and of other sets of questions are no rows of its own."""
    if evaluator.changes_model:
        return
    context = _beside_others(evaluator, shop)
    if (rows := in_one(context.tables.values())) is None:
        return
    numbers, again = (
        measurements(evaluator, EvalContext(None, context.plan, (), tables))
        for tables in (dict(context.tables), AllInOne(rows))
    )
    for now, then in zip(again, numbers, strict=True):
        same = isinstance(now, Absent) and isinstance(then, Absent)
        if isinstance(now, Measurement) and isinstance(then, Measurement):
            same = now.n == then.n and math.isclose(now.value, then.value, rel_tol=1e-9)
        keep(
            same,
            f"{now.metric} comes out otherwise from a record, where others' rows stand beside its own: take its own by "
            "harness.core.evaluator.rows_of(table, 'forget', 'my_column')",
        )


def _beside_others(evaluator: Evaluator, shop: Workshop) -> EvalContext:
    """What holds the tables of it and of the benchmark's own evaluators."""
    others = [e for e in shop.plan.evaluators if e.name != evaluator.name and not e.changes_model]
    context = shop.eval_context(shop.context(), [*others, evaluator])
    for each in (*others, evaluator):
        measurements(each, context)
    return context


def absent_without_anything(evaluator: Evaluator, shop: Workshop) -> None:
    """A log of another program may hold no table of it."""
    numbers = measurements(evaluator, EvalContext(None, shop.plan, ()))
    numbers_or_reasons(numbers)
    wrong = next((item.metric for item in numbers if not isinstance(item, Absent)), "")
    keep(not wrong, f"{wrong} has a value where there is neither a model nor a table: let context.table's LookupError pass")


def no_bad_number_of_a_collapsed_model(evaluator: Evaluator, shop: Workshop, references: Sequence[Reference]) -> None:
    """Weights that are not a number, and weights that are certain of everything."""
    import torch

    for scale in (math.nan, 1e3):
        context = shop.context()
        with torch.no_grad():
            context.model.get_output_embeddings().weight.mul_(scale)
        numbers_or_reasons(measurements(evaluator, shop.eval_context(context, [evaluator], references)))


def model_stays(evaluator: Evaluator, context: EvalContext) -> None:
    """Weights and state, unless it says `changes_model`."""
    assert context.loaded, "it has a model"
    before = weights_fingerprint(context.model)
    measurements(evaluator, context)
    if not evaluator.changes_model:
        same = weights_fingerprint(context.model) == before
        keep(same, "it changes the weights: register it with changes_model=True, so that it runs on a reload")
        as_found(context.loaded)


def process_left_as_found(evaluator: Evaluator, context: EvalContext) -> None:
    """Random numbers' seeds, default type, gradients, threads."""
    before = ProcessBefore.now()
    measurements(evaluator, context)
    before.keep()


def goes_together(evaluator: Evaluator, shop: Workshop) -> None:
    """No number, table or column is named as another evaluator's."""
    others = [e for e in shop.plan.evaluators if e.name != evaluator.name and not e.changes_model]
    context = shop.eval_context(shop.context(), [*others, evaluator])
    names: dict[str, str] = {}
    for each in (*others, evaluator):
        for item in measurements(each, context):
            owner = names.setdefault(item.metric, each.name)
            keep(owner == each.name, f"it gives a number '{item.metric}', and so does {owner}: call it otherwise")
    check_tables(context.tables, "what it keeps beside the benchmark's own evaluators", context.builders)
