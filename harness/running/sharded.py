"""Which runs can have their weights sharded over the processes that were launched together."""

from __future__ import annotations

from harness.core.errors import UsageError
from harness.core.method import METHODS
from harness.numerics import group, sharding
from harness.running.plan import Plan


def sharded(todo: Plan) -> bool:
    """Whether a run's weights are to be sharded (`harness.numerics.sharding`).

    Raises:
        UsageError: if they are, and the method or an evaluator needs them whole.
    """
    if not sharding.wanted():
        return False
    alone = "Launch without --use_fsdp"
    if (takes := todo.method.takes_shards) is None:
        those = ", ".join(name for name, each in METHODS.all().items() if each.takes_shards)
        raise UsageError(f"{todo.method.name} needs whole weights on every process. {alone}, or take one of {those}.")
    if not takes(todo.config):
        raise UsageError(f"{todo.method.name} keeps a copy of the model with these settings. {alone}, or set retain_loss=nll.")
    if todo.options.adapter or todo.options.optimizer:
        raise UsageError(f"sharded weights are trained themselves, by AdamW in float32. {alone}, --adapter or --optimizer.")
    if changing := [evaluator.name for evaluator in todo.eval_plan.evaluators if evaluator.changes_model]:
        raise UsageError(f"{' and '.join(changing)} needs whole weights on one process. {alone}, or leave it out of --evals.")
    return True


def sharding_notes(todo: Plan) -> list[str]:
    """What a reader must know of such a run."""
    count = group.processes()
    return [f"the weights of decoder layers were sharded over {count} processes (FSDP2)"] if sharded(todo) else []
