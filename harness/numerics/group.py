"""Processes that share out one run's work: who they are, whose share is whose, and their sums.

`torchrun` or `accelerate launch` begins the same command so many times. Every process holds the model and takes the same
steps; of each pass over data it works on its share of the rows, and what is summed over rows is summed over processes. The
first process alone measures, prints and writes. There are shares only inside `together`: elsewhere, and with a single process,
whoever asks is alone and has everything, so that nothing here changes a number of an ordinary run.

Sums of numbers go over sockets (gloo), those of tensors over what is fastest between their devices (NCCL between GPUs). Before
each sum all meet over the sockets. A socket closes with its process, however that ends: then whoever waits is told at once, and
no time limit is needed, which an evaluation of hours by the first process would not meet.

Torch is imported by what needs it, since the command line asks here too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from harness.core.errors import RunFailed, UsageError, cut
from harness.core.memory import ran_out

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ReduceOp
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")

_LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""What a launcher says to each process in the environment."""
_BEGINNING, _LONGEST = timedelta(minutes=10), timedelta(days=30)
"""How long processes wait for the others to begin, and for what they do."""
_BROKEN = re.compile(r"closed by peer|reset by peer|broken pipe|NCCL", re.IGNORECASE)
"""What torch says of a collective that another process does not come to."""
END = -1
"""What the first process announces when there are no more runs."""
PASS, WEIGHTS = -2, -3
"""What it asks the others for while it is alone at work: to take a pass of a sharded model along, and their parts of its
weights (`harness.numerics.sharding`)."""


class ProcessLost(RunFailed):
    """Another process of the group has ended, so that no sum can be made any more."""


class MovedOn(Exception):
    """The first process has broken off what the others are in the middle of.

    Args:
        run: what it does next.
    """

    def __init__(self, run: int) -> None:
        super().__init__(run)
        self.run = run


@dataclass
class _Group:
    """The processes that were launched together."""

    rank: int
    """This one's number, from 0."""
    size: int
    """How many there are."""
    local_rank: int
    """This one's number among those on its machine."""
    store: Store
    """What all of them can write to and read."""
    together: bool = False
    """Whether work is shared at the moment."""
    answers: dict[int, Callable[[], object]] = field(default_factory=dict)
    """What this process does when it is asked for something."""


_group: _Group | None = None


# ---------------------------------------------------------------- beginning


def join() -> None:
    """Become one of the processes that a launcher has begun together; nothing where there is no launcher, or one process.

    What this process starts from here on is not in the group: the environment no longer says so.

    Raises:
        UsageError: if torch cannot do it, or the others do not come.
    """
    global _group
    if _group is not None or not os.environ.get("WORLD_SIZE", "").isdecimal() or "RANK" not in os.environ:
        return
    if int(os.environ["WORLD_SIZE"]) < 2:
        return
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    if not distributed.is_available():
        raise UsageError("this build of torch has no torch.distributed, so processes cannot share a run. Begin a single one.")
    gpus = torch.cuda.is_available()
    try:
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if gpus and local_rank < torch.cuda.device_count():
            torch.cuda.set_device(local_rank)  # from here on "cuda" is this process's own
        store, rank, size = next(rendezvous("env://", timeout=_BEGINNING))
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_LONGEST)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"the launched processes do not find one another ({reason}). Launch them anew.") from error
    _group = _Group(rank, size, local_rank, store)
    for name in _LAUNCHED:
        os.environ.pop(name, None)


def leave() -> None:
    """Part from the others, when all is done."""
    global _group
    if _group is not None:
        from torch import distributed

        _group = None
        distributed.destroy_process_group()


def speaks() -> bool:
    """Whether this process is the one to say why all of them end: whoever comes first; always, without a group."""
    if _group is None:
        return True
    with suppress(RuntimeError):
        return _group.store.add("said", 1) == 1
    return True  # what counts them has ended, too


# ---------------------------------------------------------------- who


def processes() -> int:
    """How many processes were launched together."""
    return _group.size if _group else 1


def is_first() -> bool:
    """Whether this is the process that measures, prints and writes."""
    return _group is None or _group.rank == 0


def check_device(wanted: str) -> None:
    """Refuse a device that processes cannot have one of each.

    Args:
        wanted: as in `harness.core.options.Options.device`.

    Raises:
        UsageError: naming what is possible.
    """
    if _group is None or wanted == "cpu":
        return
    import torch

    if wanted not in ("auto", "cuda"):
        raise UsageError(
            f"'{cut(wanted)}' is no device for {_group.size} processes: each takes a GPU of its own. Use --device cuda or cpu."
        )
    if torch.cuda.is_available() and _group.local_rank >= (gpus := torch.cuda.device_count()):
        raise UsageError(f"there are more processes than GPUs on this machine ({gpus}). Launch {gpus}, or use --device cpu.")


@contextmanager
def together() -> Iterator[None]:
    """Inside, work is shared: all processes come here at the same place of the same run."""
    if _group is None:
        yield
        return
    if not _group.together:
        _meet()  # the others wait here for the first one, and do meanwhile what it asks for
    before, _group.together = _group.together, True
    try:
        yield
    finally:
        _group.together = before


def size() -> int:
    """How many processes share the work at the moment."""
    return _group.size if _group and _group.together else 1


def share(items: Sequence[T]) -> Sequence[T]:
    """What this process takes of some items: every so many-th, so that the shares of a sorted list are alike.

    >>> share([1, 2, 3])
    [1, 2, 3]
    """
    return items[_group.rank :: _group.size] if _group and _group.together else items


def share_of(rows: int) -> Sequence[int] | None:
    """Which of so many rows this process takes; None where it takes all of them and nothing is summed over processes.

    Args:
        rows: how many; of fewer than there are processes each takes all.

    >>> share_of(3)
    """
    return share(range(rows)) if 1 < size() <= rows else None


# ---------------------------------------------------------------- sums


def summed(*numbers: float) -> list[float]:
    """Each number summed over the processes, the same on all of them to the last bit.

    >>> summed(1.0, 2.0)
    [1.0, 2.0]
    """
    if size() == 1:
        return list(numbers)
    import torch

    _meet()
    total = torch.tensor(numbers, dtype=torch.float64)
    _all_reduce(total)
    return total.tolist()


def add_up(tensors: Sequence[Tensor]) -> None:
    """Sum tensors over the processes, in place; all processes give the same shapes in the same order."""
    if size() == 1:
        return
    _meet()
    for tensor in tensors:
        if tensor.is_contiguous():
            _all_reduce(tensor)
        else:
            whole = tensor.contiguous()
            _all_reduce(whole)
            tensor.copy_(whole)


def give_from_first(tensors: Sequence[Tensor]) -> None:
    """Put the first process's tensors in place of everybody's, so that all go on from the same bits."""
    if size() == 1:
        return
    if not is_first():
        for tensor in tensors:
            tensor.zero_()
    add_up(tensors)


def add_up_gradients(tensors: Sequence[Tensor]) -> None:
    """Sum gradients over the processes; a tensor that has one anywhere has it everywhere afterwards."""
    if size() == 1:
        return
    import torch

    anywhere = summed(*(float(tensor.grad is not None) for tensor in tensors))
    with_gradient = [tensor for tensor, count in zip(tensors, anywhere, strict=True) if count]
    for tensor in with_gradient:
        if tensor.grad is None:
            tensor.grad = torch.zeros_like(tensor)
    add_up([tensor.grad for tensor in with_gradient if tensor.grad is not None])


def most(value: int) -> int:
    """The largest of what the processes say."""
    if size() == 1:
        return value
    import torch
    from torch.distributed import ReduceOp

    _meet()
    largest = torch.tensor([value])
    _all_reduce(largest, ReduceOp.MAX)
    return int(largest)


def first_says(value: int) -> int:
    """What the first process says here, on all of them."""
    return int(summed(value if is_first() else 0)[0])


# ---------------------------------------------------------------- asked for by the first one


def answer(answers: Mapping[int, Callable[[], object]]) -> None:
    """What this process does, from now on, where the first one asks for it."""
    if _group is not None:
        _group.answers.update(answers)


def ask(what: int) -> None:
    """Have the others do their part of what the first process, alone at work, begins now; elsewhere all are at it anyway."""
    if _group is not None and not _group.together and _group.rank == 0:
        _say(what)


# ---------------------------------------------------------------- which run


def announce(run: int) -> None:
    """Said by the first process: which run comes next, or `END`; the others break off what they are in the middle of.

    Args:
        run: not 0.
    """
    if _group is not None:
        _say(run)


def awaited() -> int:
    """What the first process announces next.

    Raises:
        RunFailed: if it is in the middle of a run that this process has broken off.
    """
    if run := _heard():
        return run
    raise RunFailed(f"process {_group.rank if _group else 0} of the group broke off a run that the first one goes on with.")


@contextmanager
def letting_go() -> Iterator[None]:
    """Inside, the first process does what was asked for; then, or when it breaks off, the others are told that it is over."""
    try:
        yield
    except ProcessLost:
        raise
    except Exception:
        with suppress(ProcessLost):
            announce(END)
        raise
    announce(END)


def _meet() -> None:
    """Wait until all are here.

    Raises:
        MovedOn: if the first process announces something in place of it.
        ProcessLost: if one of them has ended.
    """
    if run := _heard():
        raise MovedOn(run)


def _heard() -> int:
    """What the first process says when it comes here, after all that it has asked for until then."""
    while (word := _say(0)) in (PASS, WEIGHTS):
        assert _group is not None
        _group.answers[word]()
    return word


def _say(run: int) -> int:
    """What the first process says; the others say 0."""
    import torch

    word = torch.tensor([run])
    _all_reduce(word)
    return int(word)


def _all_reduce(tensor: Tensor, how: ReduceOp.RedOpType | None = None) -> None:
    from torch import distributed

    try:
        distributed.all_reduce(tensor, how or distributed.ReduceOp.SUM)
    except RuntimeError as error:
        if ran_out(error):
            raise
        raise _lost() from error


def _lost() -> ProcessLost:
    return ProcessLost(
        f"another of the {processes()} processes that share this run has ended. What was measured is kept; "
        "the same command goes on from there."
    )


def check_lost(error: Exception) -> None:
    """Whether it came from a sum that torch makes by itself, in a pass of a sharded model, and another process has ended.

    Raises:
        ProcessLost: if so.
    """
    if processes() > 1 and isinstance(error, RuntimeError) and _BROKEN.search(str(error)):
        raise _lost() from error
