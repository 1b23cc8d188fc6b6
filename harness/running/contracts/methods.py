"""What a method promises."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.core.config import describe, field_names, resolve
from harness.core.errors import UsageError
from harness.core.memory import ModelShape
from harness.core.method import Method, Progress, UnlearningContext
from harness.core.options import LoRA
from harness.core.problem import Problem
from harness.models.sources import weights_fingerprint
from harness.numerics.anatomy import decoder_layers
from harness.running.contracts.process import ProcessBefore, process_put_back
from harness.running.contracts.promises import Check, keep

if TYPE_CHECKING:
    from collections.abc import Mapping

MakeContext = Callable[..., UnlearningContext]
"""A fresh context each time; takes `seed` and `problem`."""
ADAPTER = LoRA(rank=2, dropout=0.5)
"""What stands in for the weights of a method that takes adapters."""
LARGEST = 100
"""How many times the weights in float32 a method may say that it holds."""


def checks(method: Method[Any], config: Any, make: MakeContext) -> Iterator[Check]:
    """All of them.

    Args:
        method: whose.
        config: its settings: cheap ones.
        make: makes what it is given.
    """
    promises: Mapping[str, Callable[[], None]] = {
        "every setting is explained": lambda: settings_are_explained(method),
        "a setting that it does not have is refused": lambda: unknown_settings_are_refused(method),
        "what it refuses, it refuses in a sentence": lambda: refusals_are_texts(method, config, make().problem),
        "steps rise, and the last one is measured": lambda: steps_rise(list(method.steps(make(), config))),
        "the same seed gives the same weights": lambda: same_seed_same_weights(method, config, make),
        "model and tokenizer come back as they were found": lambda: left_as_found(method, config, make()),
        "so they do when it is stopped early": lambda: left_as_found_when_stopped(method, config, make()),
        "the process is left as it was found": lambda: process_left_as_found(method, config, make()),
        "it says what it holds in memory": lambda: memory_is_told(method, config, make()),
    }
    for promise, run in promises.items():
        yield Check(f"method {method.name}", promise, process_put_back()(run))
    if method.takes_adapter:
        promise = "adapters in place of the weights move the linear maps alone"
        yield Check(f"method {method.name}", promise, process_put_back()(lambda: adapters_alone(method, config, make())))


def settings_are_explained(method: Method[Any]) -> None:
    """A line of text under each, as a sentence."""
    for name, _, about in describe(method.config):
        keep(
            len(about) > 5 and about.endswith((".", ")")),
            f"no sentence stands under the setting '{name}': write one, with its unit, and end it with a full stop",
        )


def unknown_settings_are_refused(method: Method[Any]) -> None:
    """`@settings` does that."""
    try:
        resolve(method.config, {"no_such_setting": 1}, owner=method.name)
    except UsageError:
        return
    keep(False, "its settings take anything: decorate their class with @settings")


def refusals_are_texts(method: Method[Any], config: Any, problem: Problem) -> None:
    """None, or why it cannot run."""
    for what, why in (("skip_reason", method.skip_reason(problem)), ("clash", method.clash(problem, config))):
        keep(
            why is None or (isinstance(why, str) and len(why) > 10),
            f"{what} gave {why!r}: it gives None, or in one sentence why not",
        )


def steps_rise(progress: Sequence[Progress]) -> None:
    """Steps rise from one progress to the next, all say how many there will be, and the last one is measured."""
    keep(progress, "it yields nothing: yield Progress(step, measure_here=True) where a point is to be measured")
    keep(all(isinstance(p, Progress) for p in progress), "it yields something else than Progress")
    keep(progress[-1].measure_here, "its last progress has no measure_here: what comes after the last point is never measured")
    steps = [p.step for p in progress]
    keep(steps == sorted(set(steps)), f"its steps are {steps[:8]}: they must rise from one progress to the next")
    totals = {p.total for p in progress}
    keep(
        totals <= {steps[-1]},
        f"it says that there are {sorted(map(str, totals))} steps and takes {steps[-1]}: give every Progress the same total",
    )
    for p in progress:
        for name, value in p.logged.items():
            keep(
                isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
                f"it logs {name}={value!r} at step {p.step}: log finite numbers; for a loss that is not finite raise Diverged",
            )


def same_seed_same_weights(method: Method[Any], config: Any, make: MakeContext) -> None:
    """Random numbers come from the context's seed, or from the global generator, which is seeded before a run."""
    import torch

    weights = []
    for _ in range(2):
        context = make(seed=3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            list(method.steps(context, config))
        weights.append(weights_fingerprint(context.model))
    keep(weights[0] == weights[1], "two runs with one seed come to different weights: seed its generators with context.seed")


def left_as_found(method: Method[Any], config: Any, context: UnlearningContext) -> None:
    """Eval mode, no gradients, no hooks, the same parameters frozen, the same tokenizer, weights of the same shape and type."""
    frozen = next(name for name, _ in context.model.named_parameters())
    context.model.get_parameter(frozen).requires_grad_(False)
    words, side = dict(context.tokenizer.get_vocab()), context.tokenizer.padding_side
    shapes = {name: (p.shape, p.dtype) for name, p in context.model.state_dict().items()}
    list(method.steps(context, config))
    as_found(context, [frozen])
    keep(context.tokenizer.get_vocab() == words, "it changes the tokenizer's words: put them back")
    keep(context.tokenizer.padding_side == side, f"it leaves the tokenizer's padding_side other than {side}: put it back")
    now = {name: (p.shape, p.dtype) for name, p in context.model.state_dict().items()}
    keep(now == shapes, "it leaves weights of other names, shapes or types: evaluators and checkpoints need the model's own")


def left_as_found_when_stopped(method: Method[Any], config: Any, context: UnlearningContext) -> None:
    """A generator that is closed puts things back in `finally`."""
    steps = method.steps(context, config)
    next(iter(steps))
    getattr(steps, "close", lambda: None)()
    as_found(context)


def as_found(context: UnlearningContext, frozen: Sequence[str] = ()) -> None:
    """In eval mode, no gradient, no hook, and only those parameters frozen that were before."""
    model = context.model
    keep(
        not any(m.training for m in model.modules()),
        "it leaves the model in training mode: end with model.eval()",
    )
    keep(all(p.grad is None for p in model.parameters()), "it leaves gradients behind: zero_grad(set_to_none=True) at the end")
    now = [name for name, p in model.named_parameters() if not p.requires_grad]
    keep(now == list(frozen), f"it leaves {', '.join(now) or 'nothing'} frozen, and {', '.join(frozen) or 'nothing'} was")
    for module in model.modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        keep(not any(hooks), "it leaves hooks on the model: remove them in 'finally'")


def process_left_as_found(method: Method[Any], config: Any, context: UnlearningContext) -> None:
    """Random numbers' seeds, default type, gradients, threads: at each yield, when others go on, and at the end."""
    before = ProcessBefore.now()
    for _ in method.steps(context, config):
        before.keep(", and goes on so while a point is measured")
    before.keep()


def adapters_alone(method: Method[Any], config: Any, context: UnlearningContext) -> None:
    """All else keeps every bit; and the model is plain at every yield, of the same parameters as before."""
    model = context.model
    maps = {f"{linear.name}.weight" for layer in decoder_layers(model) for linear in (*layer.attention, *layer.mlp)}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in method.steps(replace(context, adapter=ADAPTER), config):
        now = [name for name, _ in model.named_parameters()]
        keep(now == list(before), "it yields a model with adapters on it: merge them before each yield")
    moved = {name for name, parameter in model.named_parameters() if not parameter.detach().equal(before[name])}
    keep(moved, "it says that it takes adapters in place of the weights, and nothing moves with them")
    others = ", ".join(sorted(moved - maps))
    keep(not others, f"with adapters in place of the weights it moves {others} too: leave out takes_adapter")


def memory_is_told(method: Method[Any], config: Any, context: UnlearningContext) -> None:
    """An estimate where it takes gradients of the weights, whole numbers of bytes, and none that no machine has."""
    with _gradients(context) as taken:
        list(method.steps(context, config))
    shape = ModelShape(context.model, 4, max(len(stage.retain) for stage in context.stages), 20)
    items = list(method.memory(shape, config))
    keep(
        items or not taken,
        "it takes gradients of the weights and estimates no memory: give memory=, such as the list of "
        "harness.models.memory_items.adamw",
    )
    weights = 4 * shape.parameters
    for each in items:
        keep(
            isinstance(each.bytes, int) and each.bytes >= 0,
            f"it holds {each.bytes!r} bytes of {each.what}: give a whole number of bytes",
        )
        keep(
            each.bytes <= LARGEST * weights + 2**30,
            f"it says that it holds {each.bytes:,} bytes of {each.what} beside {weights:,} bytes of weights",
        )


@contextmanager
def _gradients(context: UnlearningContext) -> Iterator[set[str]]:
    """The names of parameters that a gradient is added to meanwhile."""
    taken: set[str] = set()
    handles = [
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: taken.add(name))
        for name, parameter in context.model.named_parameters()
        if parameter.requires_grad
    ]
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def cheap(method: Method[Any], preset: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """Its settings for a trial: those of the preset, but one epoch and small steps of data where it has such, then those given.

    Raises:
        UsageError: for settings that it does not have, or that contradict each other.
    """
    little = {key: value for key, value in {"epochs": 1, "batch_size": 4}.items() if key in field_names(method.config)}
    return resolve(method.config, preset, little, given, owner=method.name)
