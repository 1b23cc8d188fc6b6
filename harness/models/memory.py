"""What a run will hold in memory, estimated from configurations before any weight is read.

Weights, optimiser state and curvature are counted exactly, from the model's shapes on the meta device; activations and the
key-value cache of generation are rough. A run is refused only for what is certain; what is rough is told.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from harness.core.config import JSON, to_json, written
from harness.core.config import resolve as resolve_settings
from harness.core.errors import UsageError
from harness.core.evaluator import EvalPlan, Evaluator
from harness.core.memory import MemoryItem, ModelShape
from harness.core.method import Method
from harness.core.options import LoRA, Optimizer, Options
from harness.core.problem import Problem
from harness.models.device_memory import GIB, Room, gib, room_on
from harness.models.memory_items import budget_items, measuring_bytes, size_of
from harness.models.origins import configured_by
from harness.numerics import sharding
from harness.numerics.configurations import meta_model
from harness.numerics.placement import ALL_GPUS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Estimate:
    """What a run holds at its largest moment."""

    working: Mapping[str, int]
    """For certain while the method works: name → bytes, the weights first."""
    rough: int
    """What comes on top of it then: activations and logits."""
    measured: Mapping[str, int]
    """For certain while a point is measured, by the evaluator that takes most; likewise."""
    measuring: int
    """All that is held then, keys and values of generated text included."""
    cpu: int
    """What the method, or an evaluator, holds in the machine's memory instead."""
    portions: int = 1
    """In how many portions layers take turns, with passes over the data for each."""

    @property
    def certain(self) -> Mapping[str, int]:
        """What is held for certain, at the moment when that is most."""
        return max(self.working, self.measured, key=lambda parts: sum(parts.values()))

    @property
    def total(self) -> int:
        """Bytes at the largest moment."""
        return max(sum(self.working.values()) + self.rough, self.measuring)

    def __str__(self) -> str:
        parts = {**self.working, "activations": self.rough, "while a point is measured": self.measuring}
        sizes = ", ".join(f"{what} {gib(size)}" for what, size in parts.items() if size)
        on_cpu = f" and {gib(self.cpu)} on the CPU" if self.cpu > GIB / 10 else ""
        turns = f", its layers in {self.portions} portions with passes for each" if self.portions > 1 else ""
        return f"{gib(self.total)} GiB ({sizes}){on_cpu}{turns}"


# ---------------------------------------------------------------- shapes


def shape_of(problem: Problem, options: Options) -> ModelShape | None:
    """The shape of the checkpoint that is unlearned and of its problem.

    None for a model that is trained on the spot, and where a checkpoint's configuration cannot be read or brings code of its
    own: what is wrong with it is told when it is loaded.
    """
    from harness.numerics.training import RECOMPUTED_FROM, tokens_at_once

    source = configured_by(problem.sources.get("base"))
    if source is None:
        return None
    try:
        model = meta_model(source.config())
    except UsageError:
        return None
    retain = [example for stage in problem.stages for example in stage.retain]
    rows = [*retain, *(example for stage in problem.stages for example in stage.forget)]
    texts = sorted(len(e.prompt + e.tag + e.answer) for e in rows)
    characters = sum(len(e.tag + e.answer) for e in retain) / max(1, len(retain))
    large = sum(p.numel() for p in model.parameters()) > RECOMPUTED_FROM
    return ModelShape(
        model,
        2 if options.dtype == "bfloat16" else 4,
        max((len(stage.retain) for stage in problem.stages), default=0),
        round(characters / 4) + 1,
        adapter=options.adapter,
        optimizer=options.optimizer,
        held_share=sharding.held_share(model) if sharding.wanted() else 1.0,
        recompute=options.recompute or (large and options.device.startswith("cuda")),
        row_tokens=texts[len(texts) * 19 // 20] // 4 + 1 if texts else 0,
        trained_at_once=tokens_at_once(model, options.device),
    )


# ---------------------------------------------------------------- what is held


def estimate(shape: ModelShape, items: Sequence[MemoryItem], evaluators: Sequence[Evaluator] = ()) -> Estimate:
    """A run's largest moment: while the method works, or while a point is measured.

    Args:
        shape: of the model.
        items: what the method says it holds.
        evaluators: what measures; one at a time holds something.
    """
    size = shape.parameters * shape.weight_bytes
    weights = MemoryItem("weights", round(size * shape.held_share))
    layer = MemoryItem("a layer gathered", size // size_of(shape, "num_hidden_layers", 1), certain=False)
    working = [weights, *([layer] if shape.held_share < 1 else []), *(h for h in items if h.where == "device")]
    kept = [h for h in working if h.while_measured]
    read = MemoryItem("evaluation", measuring_bytes(shape), certain=False)
    measured = [[*kept, read], *([*kept, *(h for h in e.memory(shape) if h.where == "device")] for e in evaluators)]
    return Estimate(
        working=_certain(working),
        rough=sum(h.bytes for h in working if not h.certain),
        measured=max(map(_certain, measured), key=lambda parts: sum(parts.values())),
        measuring=max(sum(h.bytes for h in moment) for moment in measured),
        cpu=sum(h.bytes for h in items if h.where == "cpu")
        + max((sum(h.bytes for h in e.memory(shape) if h.where == "cpu") for e in evaluators), default=0),
    )


def fitting(shape: ModelShape, plan: EvalPlan, method: Method[Any], config: Any, free: int) -> Estimate:
    """The estimate with layers in as few portions as have room; in one where even most of them do not help.

    Args:
        shape: of the model.
        plan: whose evaluators measure.
        method: whose layers.
        config: its settings.
        free: bytes that a GPU has left.
    """

    def of(portions: int) -> Estimate:
        turned = replace(shape, portions=portions)
        items = [*method.memory(turned, config), *budget_items(turned, plan.problem)]
        return replace(estimate(turned, items, plan.evaluators), portions=portions)

    whole, most = of(1), size_of(shape, "num_hidden_layers", 1)
    if sum(whole.certain.values()) <= free:
        return whole
    return next((each for each in map(of, range(2, most + 1)) if sum(each.working.values()) + each.rough <= free), whole)


def _certain(items: Sequence[MemoryItem]) -> dict[str, int]:
    largest: dict[str, int] = {}
    for each in items:  # a method and an evaluator may both hold an optimiser
        if each.certain and each.bytes:
            largest[each.what] = largest.get(each.what, 0) + each.bytes
    return largest


# ---------------------------------------------------------------- does it fit


def check(plan: EvalPlan, method: Method[Any], config: Any, options: Options) -> None:
    """Tell what a run on a checkpoint needs, and refuse it where it cannot fit.

    Raises:
        UsageError: saying what it needs, what there is, and which settings would fit by the same estimate.
    """
    problem, shape = plan.problem, shape_of(plan.problem, options)
    if shape is None:
        return
    room = room_on(options.device)
    if options.device.startswith("cuda"):
        needed = fitting(shape, plan, method, config, room.free)
    else:
        needed = estimate(shape, [*method.memory(shape, config), *budget_items(shape, problem)], plan.evaluators)
    log.info("%s on %s needs about %s, %s", method.name, problem.model, needed, room)
    certain = sum(needed.certain.values())
    if certain <= room.free:
        if needed.total > room.free:
            log.warning("this may not fit: about %s GiB are needed, %s", gib(needed.total), room)
        return
    parts = ", ".join(f"{what} {gib(size)}" for what, size in needed.certain.items())
    ways = _ways_out(shape, plan, method, config, options, room)
    raise UsageError(
        f"{room}, {method.name} on {problem.model} needs {gib(certain)} GiB ({parts}) beside its activations. "
        + (f"Set {' or '.join(ways)}." if ways else "No setting known here makes it fit; take a larger GPU or a smaller model.")
    )


def machine_bytes(plan: EvalPlan, method: Method[Any], config: Any, options: Options) -> int:
    """What a run on a checkpoint takes of the machine's memory, about; 0 where nothing is known of it.

    A model passes through the machine's memory on its way to a GPU.
    """
    shape = shape_of(plan.problem, options)
    if shape is None:
        return 0
    needed = estimate(shape, [*method.memory(shape, config), *budget_items(shape, plan.problem)], plan.evaluators)
    return needed.cpu + (needed.total if options.device == "cpu" else shape.parameters * shape.weight_bytes)


def _ways_out(shape: ModelShape, plan: EvalPlan, method: Method[Any], config: Any, options: Options, room: Room) -> list[str]:
    """Settings and flags that fit by the same estimate: one change if one is enough, else two together.

    What costs the result least comes first: nothing, then fewer layers, then rounding, then another training.
    """
    large = [e.name for e in plan.evaluators if e.memory(shape)]
    others = [e for e in plan.evaluators if e.name not in large]

    def fits(shape: ModelShape, config: Any, free: int, evaluators: Sequence[Evaluator] = plan.evaluators) -> bool:
        most = size_of(shape, "num_hidden_layers", 1) if options.device.startswith("cuda") else 1
        totals = [_total(replace(shape, portions=portions), method, config, evaluators) for portions in (1, most)]
        return any(total is not None and total <= free for total in totals)

    proposals = _proposals(shape, plan.problem, method, config)
    half = replace(shape, weight_bytes=2) if options.dtype == "float32" else None
    ways = ["--recompute"] if _recomputes(method, shape) and fits(replace(shape, recompute=True), config, room.free) else []
    ways += [" and ".join(_typed(each.settings)) for each in proposals if fits(shape, each.config, room.free)]
    if half and fits(half, config, room.free):
        ways.append("--dtype bfloat16")
    if large and others and fits(shape, config, room.free, others):
        ways.append(f"--evals {','.join(e.name for e in others)}")
    if not ways and half:
        fitting = [each.settings for each in proposals if fits(half, each.config, room.free)]
        ways = [f"{' and '.join(_typed(settings))} with --dtype bfloat16" for settings in fitting]
    if options.device.startswith("cuda") and options.device != ALL_GPUS and fits(shape, config, room_on(ALL_GPUS).free):
        ways.append("--device cuda:all")
    if method.takes_optimizer and not (options.optimizer or options.adapter):
        lighter = [text for text, each in _LIGHTER.items() if fits(replace(shape, optimizer=each), config, room.free)]
        ways += [f"--optimizer {text}" for text in lighter[:1]]
    if method.takes_adapter and options.adapter is None and fits(replace(shape, adapter=LoRA()), config, room.free):
        ways.append("--adapter lora:r=8")  # last, for it is another training
    return ways


_LIGHTER = {"adamw:bits=8": Optimizer(bits=8), "adamw:bits=8,clip=none": Optimizer(bits=8, clip="none")}
"""Ways to keep AdamW that are proposed; the first one that is enough."""


def _recomputes(method: Method[Any], shape: ModelShape | None) -> bool:
    """Whether `--recompute` would change what a run holds."""
    return method.takes_adapter and not (shape and shape.recompute)


def _total(shape: ModelShape, method: Method[Any], config: Any, evaluators: Sequence[Evaluator] = ()) -> int | None:
    """Bytes at a run's largest moment; None where the method refuses the model with these settings."""
    try:
        return estimate(shape, method.memory(shape, config), evaluators).total
    except UsageError:
        return None


class _Proposal(NamedTuple):
    """Settings that may need less memory."""

    settings: Mapping[str, JSON]
    """What is set."""
    config: Any
    """All settings of the method with it."""


def _proposals(shape: ModelShape | None, problem: Problem, method: Method[Any], config: Any) -> list[_Proposal]:
    """What the method proposes where memory is short and accepts; nothing that is set already, or is known to take more."""
    proposals = []
    for settings in method.memory_fallbacks:
        try:
            changed = resolve_settings(method.config, to_json(config), settings, owner=method.name)
        except UsageError:
            continue
        if changed != config and method.refusal(problem, changed) is None:
            proposals.append(_Proposal(settings, changed))
    if shape is None:
        return proposals
    now, then = _total(shape, method, config), [_total(shape, method, each.config) for each in proposals]
    return [each for each, total in zip(proposals, then, strict=True) if total is not None and (now is None or total <= now)]


def _typed(settings: Mapping[str, JSON]) -> list[str]:
    return [f"{key}={written(value)}" for key, value in settings.items()]


# ---------------------------------------------------------------- it did not fit


def advice(problem: Problem, method: Method[Any], config: Any, options: Options) -> str:
    """What to say of a run that ran out of memory: where, and what to try.

    Args:
        problem: what was unlearned.
        method: by which method.
        config: its settings.
        options: where, in which type.
    """
    kind = options.device.partition(":")[0]
    shape = shape_of(problem, options)
    ways = ["--recompute"] if _recomputes(method, shape) and not options.recompute else []
    for proposal in _proposals(shape, problem, method, config):
        ways.append(" ".join(f"--set {each}" for each in _typed(proposal.settings)))
    if options.dtype == "float32":
        ways.append("--dtype bfloat16")
    if kind == "cuda" and options.device != ALL_GPUS:
        ways.append(f"--device {ALL_GPUS}")
    if kind != "cpu":
        ways.append("--device cpu")
    others = f"{', '.join(ways)}, or " if ways else ""
    return f"{method.name} ran out of memory on {options.device}. Try {others}fewer rows with --limit."
