"""A recorded run, asked for again: what its record says, what nobody may say otherwise, and what came out otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.core.fields import Given
from harness.core.judging import recorded_judge

if TYPE_CHECKING:
    from harness.running.request import RunRequest
    from harness.storage.records import RunSpec


def recorded_request(spec: RunSpec, name: str) -> dict[str, Given]:
    """A layer out of a record: all that it says of a run but its settings.

    Raises:
        UsageError: for a record with a judge that is none.
    """
    judge, repetitions = recorded_judge(spec.evaluator_inputs.values())
    values: dict[str, Any] = {
        "method": spec.method,
        "bench": spec.bench,
        "model": spec.model,
        "template": spec.template.get("name", ""),
        "seed": spec.seed,
        "limit": spec.limit,
        "dtype": spec.dtype,
        "generator": spec.generator,
        "variant": spec.variant,
        "retain": spec.retain,
        "evals": list(spec.evaluators),
        "points": spec.points,
        "preset": spec.form or "published",
        "budgets": list(spec.budgets),
        "adapter": spec.adapter,
        "optimizer": spec.optimizer,
        "judge": judge,
        "judge_repetitions": repetitions,
    }
    return {key: Given(value, f"{name}: {key}={value}", "file") for key, value in values.items()}


RECORDED = frozenset(
    ("method", "bench", "seed", "limit", "dtype", "generator", "variant", "retain", "evals", "points", "preset")
) | {"judge_repetitions", "budgets", "template", "adapter", "optimizer"}
"""What a recorded run says and nobody may say otherwise beside it; its model may lie elsewhere here."""


def differs(recorded: RunSpec, request: RunRequest, now: RunSpec) -> list[str]:
    """What of a recorded run is otherwise when it is planned again, settings given beside it apart."""
    from harness.storage.records import changes

    return [] if request.settings else changes(recorded, now)
