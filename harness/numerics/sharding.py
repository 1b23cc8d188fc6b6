"""Weights of which every process of a group holds a part: torch's FSDP2, switched on by accelerate's own flags.

    accelerate launch --use_fsdp --fsdp_version 2 -m harness run …

Decoder layers are sharded, one after the other, for they are nearly all of a large model; the rest of it (embeddings, norms)
every process holds whole. A layer's weights are gathered for as long as it is read, its gradients are summed, and each process
keeps, and steps, its own part of them.

A pass of the model is thereby an affair of all processes. Those of a step are as many on each of them (`as_many_passes`). While
the first process is alone at work, measuring a point, the others wait for it at their next meeting; it has them take a pass
along, over a single token, whenever it reads, and hand over their parts when it needs whole weights
(`harness.numerics.group.ask`).
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from harness.core.errors import UsageError
from harness.numerics import group

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

B = TypeVar("B")

_SWITCH, _VERSION, _OFFLOAD = "ACCELERATE_USE_FSDP", "FSDP_VERSION", "FSDP_OFFLOAD_PARAMS"
"""What `accelerate launch` says to each process in the environment."""
_MARK = "sharded_by_harness"
"""The attribute of a model that is sharded."""
_has_sharded = False
"""Whether this process has sharded a model."""


def wanted() -> bool:
    """Whether weights are to be sharded: asked for, and among several processes.

    Raises:
        UsageError: for FSDP1, or parts kept on the CPU.
    """
    if not _on(_SWITCH) or group.processes() < 2:
        return False
    if (version := os.environ.get(_VERSION, "1")) != "2":
        raise UsageError(f"weights are sharded by FSDP2 alone, and FSDP{version} was asked for. Launch with --fsdp_version 2.")
    if _on(_OFFLOAD):
        raise UsageError("sharded weights stay on the GPUs. Launch without --fsdp_offload_params.")
    return True


def _on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


def held_share(model: PreTrainedModel) -> float:
    """What part of a model's weights each process would hold; modules on the meta device will do."""
    from harness.numerics.anatomy import decoder_layers

    layers = sum(p.numel() for layer in decoder_layers(model) for p in layer.module.parameters())
    return 1 - layers / sum(p.numel() for p in model.parameters()) * (1 - 1 / group.processes())


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` has been at it."""
    return hasattr(model, _MARK)


def shard(model: PreTrainedModel, device: str) -> None:
    """Shard a model's decoder layers over the processes, in place; all of them come here with the same weights.

    Args:
        model: on the CPU, whole.
        device: where the parts go.

    Raises:
        UsageError: for an architecture whose layers are not found.
    """
    global _has_sharded
    import torch
    from torch import distributed
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    from harness.numerics.anatomy import decoder_layers

    layers = decoder_layers(model)
    if not layers:
        raise UsageError(f"the layers of a {model.config.model_type} are not known here. Launch without --use_fsdp.")
    mesh = DeviceMesh.from_group(cast("distributed.ProcessGroup", distributed.group.WORLD), torch.device(device).type)
    summed_in_float32 = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for layer in layers:
        sharded: Any = fully_shard(layer.module, mesh=mesh, reshard_after_forward=True, mp_policy=summed_in_float32)
        sharded.set_gradient_divide_factor(1.0)  # shares of a loss sum up over processes
        sharded.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    model.to(device)  # type: ignore[arg-type]  # what is not sharded
    setattr(model, _MARK, True)
    _has_sharded = True

    def taken_along(*_: object) -> None:
        group.ask(group.PASS)

    model.base_model.register_forward_pre_hook(taken_along)
    group.answer({group.PASS: lambda: _pass(model), group.WEIGHTS: lambda: list(_gathered(model))})


def end(code: int) -> NoReturn:
    """Part from the other processes and end this one with an exit status.

    What torch keeps of sharded tensors holds the group's threads, and one of them that wakes while the interpreter is taken
    apart aborts the process. So one that has sharded a model ends as soon as all that is registered for the exit is done.
    """
    group.leave()
    if not _has_sharded:
        sys.exit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# ---------------------------------------------------------------- parts


def part(tensor: Tensor) -> Tensor:
    """What this process holds of a weight or a gradient: writing into it changes that; all of it, if it is not sharded."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_part(tensor: Tensor) -> bool:
    """Whether other processes hold the rest of it."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def clip(weights: Sequence[Tensor], sharded: Sequence[bool], most: float) -> float:
    """Scale gradients down to a norm, as `torch.nn.utils.clip_grad_norm_`, where some are parts; the norm before it.

    Args:
        weights: whose gradients.
        sharded: for each, whether it is a part.
        most: the norm.
    """
    from torch.nn.utils import clip_grads_with_norm_, get_total_norm

    pairs = [(weight.grad, is_part) for weight, is_part in zip(weights, sharded, strict=True) if weight.grad is not None]
    parts, whole = (get_total_norm([gradient for gradient, is_part in pairs if is_part is of]) for of in (True, False))
    (squared,) = group.summed(float(parts) ** 2)
    norm = (whole.double() ** 2 + squared).sqrt().float()
    clip_grads_with_norm_(list(weights), most, norm)
    return float(norm)


# ---------------------------------------------------------------- what all do together


def weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A model's tensors by name, in order, each whole for as long as it is looked at; all of them are to be asked for."""
    if is_sharded(model):
        group.ask(group.WEIGHTS)
    yield from _gathered(model)


def state(model: nn.Module) -> Mapping[str, Tensor]:
    """A model's whole tensors: its own, and copies on the CPU of those that are sharded."""
    if not is_sharded(model):
        return model.state_dict()
    held = model.state_dict()
    return {name: tensor.cpu() if is_part(held[name]) else held[name] for name, tensor in weights(model)}


def _gathered(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    from torch.distributed.tensor import DTensor

    for name, tensor in sorted(model.state_dict().items()):
        yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _pass(model: PreTrainedModel) -> Tensor:
    """Read one token, so that every layer's weights are gathered."""
    import torch

    with torch.no_grad():
        return _read(model)


def _read(model: PreTrainedModel) -> Tensor:
    import torch

    token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    hidden: Tensor = model.base_model(input_ids=token, use_cache=False).last_hidden_state
    return hidden


def as_many_passes(model: PreTrainedModel, micro_batches: Sequence[B]) -> Iterable[B]:
    """A step's micro-batches, and behind the last one passes without a share in the loss, until all processes took as many."""
    return _with_passes(model, micro_batches) if is_sharded(model) else micro_batches


def _with_passes(model: PreTrainedModel, micro_batches: Sequence[B]) -> Iterator[B]:
    most = group.most(len(micro_batches))  # before the first pass: who is in one cannot be met
    yield from micro_batches
    for _ in range(most - len(micro_batches)):
        (_read(model).sum() * 0).backward()
