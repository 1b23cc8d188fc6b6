"""AdamW one weight after another: what is in float32 is a piece of one weight, and gradients may be freed on the way.

The numbers of each weight are its own affair, so that stepping weight after weight gives what stepping all at once gives. What
stays in memory of a bfloat16 weight beside it and its two moments is, by `Optimizer.masters`,

- `float32`: the 16 bits that the weight lacks of its float32 master (split SGD of Kalamkar et al. 2020, arXiv:2005.04680). It
  departs in one point: the weight is the master *rounded*, halves away from 0, not its upper 16 bits;
- `none`: nothing. The step is rounded to one of the two neighbours, to the nearer one more often, right on average (stochastic
  rounding; pure bfloat16 training as in Zamirai et al. 2020, arXiv:2010.06192). A departure from every published recipe here.

Without clipping a weight is stepped and its gradient freed as soon as it is whole, in the last backward pass of the step, while
the layers below still wait for theirs (Lv et al. 2023, arXiv:2306.09782): of a step of one part no two gradients are held.
Where several processes share a step, all gradients wait for their sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from harness.core.streams import streams
from harness.numerics.group import add_up_gradients, size, summed

if TYPE_CHECKING:
    from harness.numerics.training import AdamW, MakeOptimiser

B = TypeVar("B")
PIECE = 2**25
"""Numbers of a weight that are in float32 at once: 128 MiB, a quarter of a 7B model's embedding. A multiple of the blocks of
256 in which moments are kept with 8 bits."""


# ---------------------------------------------------------------- float32 in two halves


def split(exact: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 numbers as bfloat16, halves rounded away from 0, and the 16 bits that `joined` needs to give them back."""
    bits = exact.view(torch.int32)
    rest = bits.to(torch.int16)  # the lower half with a sign, so that the upper one is rounded and not cut
    return _upper(bits - rest), rest


def joined(weights: Tensor, rest: Tensor) -> Tensor:
    """The float32 numbers that `split` took apart, to the bit."""
    return ((weights.view(torch.int16).to(torch.int32) << 16) + rest).view(torch.float32)


def stochastically_rounded(exact: Tensor, generator: torch.Generator) -> Tensor:
    """Float32 numbers as bfloat16: up or down with the probability that makes the mean exact; what fits stays as it is."""
    bits = exact.view(torch.int32)
    below_one = torch.randint(2**16, bits.shape, generator=generator, dtype=torch.int32, device=bits.device)
    return _upper(bits + below_one)


def _upper(bits: Tensor) -> Tensor:
    return (bits >> 16).to(torch.int16).view(torch.bfloat16)


# ---------------------------------------------------------------- the steps


@dataclass
class _Piece:
    """Neighbouring numbers of one weight, and what its optimiser steps: empty but while it does."""

    start: int
    stop: int
    master: torch.nn.Parameter
    rest: Tensor | None
    """Of float32 masters of bfloat16 weights, the lower half."""


class ByWeight:
    """Steps some parameters one after the other.

    Args:
        names: of the parameters.
        parameters: stepped in place; contiguous, float32 or bfloat16.
        adamw: the optimiser's constants; `kept` says how.
        make: named float32 parameters → their optimiser.
        shared: whether losses and gradients are summed over the processes that share a step (`harness.numerics.group`).
    """

    def __init__(
        self, names: Sequence[str], parameters: Sequence[Tensor], adamw: AdamW, make: MakeOptimiser, shared: bool = False
    ) -> None:
        assert adamw.kept is not None
        self._shared = shared and size() > 1
        self._kept, self._seed, self._steps = adamw.kept, adamw.seed, 0
        self._most = adamw.max_gradient_norm
        self._named = dict(zip(names, parameters, strict=True))
        self._pieces = {name: self._pieces_of(parameter) for name, parameter in self._named.items()}
        self._norms: list[Tensor] = []
        self.optimiser = make([(name, piece.master) for name, pieces in self._pieces.items() for piece in pieces])

    def gradient(self, loss: Callable[[B], Tensor], micro_batches: Iterable[B]) -> tuple[float, float]:
        """A step's loss and its gradient's norm before clipping; without clipping the step is then taken."""
        total = 0.0
        self._steps += 1
        self._norms.clear()
        for number, micro_batch in enumerate(parts := list(micro_batches), start=1):
            value = loss(micro_batch)
            total += float(value.detach())
            if not math.isfinite(total):
                break  # nothing is stepped by it
            with ExitStack() as hooks:
                if number == len(parts) and self._kept.clip == "none" and not self._shared:
                    for name, parameter in self._named.items():
                        hook: Any = parameter.register_post_accumulate_grad_hook(lambda _, name=name: self._take(name))
                        hooks.callback(hook.remove)
                value.backward()
        if self._shared:
            add_up_gradients(list(self._named.values()))
            (total,) = summed(total)
        for name, parameter in self._named.items():
            if (
                parameter.grad is not None and self._kept.clip == "none" and math.isfinite(total)
            ):  # not reached by the last part
                self._take(name)
            elif parameter.grad is not None:
                self._norms.append(_norm(parameter.grad))
        return total, float(self._whole_norm())

    def step(self) -> None:
        """Take the step that `gradient` prepared, if it is not taken yet."""
        clipped = (self._most / (self._whole_norm() + 1e-6)).clamp(max=1.0)  # as torch's clip_grad_norm_
        for name, parameter in self._named.items():
            if parameter.grad is not None:
                self._step(name, clipped)

    def _take(self, name: str) -> None:
        gradient = self._named[name].grad
        assert gradient is not None
        self._norms.append(_norm(gradient))
        self._step(name, None)

    def _whole_norm(self) -> Tensor:
        if not self._norms:
            return torch.zeros(())
        norms = torch.stack([norm.to(self._norms[0].device) for norm in self._norms])
        return cast("Tensor", torch.linalg.vector_norm(norms))

    def _pieces_of(self, parameter: Tensor) -> list[_Piece]:
        pieces = []
        for start in range(0, parameter.numel(), PIECE):
            stop = min(start + PIECE, parameter.numel())
            master = torch.nn.Parameter(torch.empty(0, device=parameter.device))
            split = parameter.dtype == torch.bfloat16 and self._kept.masters == "float32"
            rest = torch.zeros(stop - start, dtype=torch.int16, device=parameter.device) if split else None
            pieces.append(_Piece(start, stop, master, rest))
        return pieces

    @torch.no_grad()
    def _step(self, name: str, scale: Tensor | None) -> None:
        parameter = self._named[name]
        assert parameter.grad is not None
        gradient, parameter.grad = parameter.grad.reshape(-1), None
        weights = parameter.detach().view(-1)
        for piece in self._pieces[name]:
            now, master = weights[piece.start : piece.stop], piece.master
            master.data = now.float() if piece.rest is None else joined(now, piece.rest)  # float32 weights are stepped in place
            own = gradient[piece.start : piece.stop].float()
            master.grad = own if scale is None else own * scale.to(own.device)
            self.optimiser.step()
            if piece.rest is not None:
                rounded, rest = split(master.data)
                now.copy_(rounded)
                piece.rest.copy_(rest)
            elif now.dtype == torch.bfloat16:
                place = streams(self._seed, "stochastic rounding", name, piece.start, self._steps)
                now.copy_(stochastically_rounded(master.data, place.torch(now.device)))
            master.grad, master.data = None, torch.empty(0, device=now.device)


def _norm(gradient: Tensor) -> Tensor:
    return cast("Tensor", torch.linalg.vector_norm(gradient, dtype=torch.float32))
