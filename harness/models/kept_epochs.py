"""Where a long training stood after an epoch, in the cache: weights and moments, so that one that was killed goes on.

Random numbers need no place there: an epoch's order and dropout are drawn from its number (`harness.core.streams`). Nothing is
pickled. The latest epoch alone is kept, and it goes when the model is done.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.caching import CacheEntry, CacheView
from harness.core.config import JSON
from harness.core.errors import UsageError
from harness.storage.cache import digest

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness.numerics.training import AdamW

KEPT_EVERY = 60.0
"""Seconds that lie between two epochs that are kept, at least: writing one takes seconds itself."""
OF_A_WEIGHT = 12
"""Bytes of an epoch: three float32 numbers."""
AT_MOST = 2
"""Epochs of a training that lie there together, while one takes the place of another."""
_FILE = "state.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class KeptEpochs:
    """The epochs of one training."""

    cache: CacheView
    """Where."""
    name: str
    """What is trained, for messages."""
    identity: Mapping[str, JSON]
    """What names it."""
    epochs: int
    """How many there are in all; of 0 none is kept."""
    done: int = 0
    """Epochs that need not be done again."""
    seconds: float = 0.0
    """What they took."""
    _moments: Mapping[str, Tensor] = field(default_factory=dict)
    _steps: float = 0.0
    _optimiser: torch.optim.Optimizer | None = None
    _named: Sequence[tuple[str, Tensor]] = ()
    _began: float = 0.0
    _kept_at: float = 0.0

    def restore(self, model: PreTrainedModel) -> None:
        """Put a model where the last kept epoch left it.

        Raises:
            UsageError: where the disk has no room for the epochs that will be kept.
        """
        self._began = self._kept_at = time.perf_counter()
        if not self.epochs:
            return
        entry = self._latest()
        self._check_room(sum(p.numel() for p in model.parameters()), 1 if entry else AT_MOST)
        if entry is None:
            return
        import torch
        from safetensors.torch import load_file

        state = load_file(entry.path / _FILE)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(state.pop(f"weight.{name}"))
        self._moments = state
        self.done, self.seconds, self._steps = entry.facts["epoch"], entry.facts["seconds"], entry.facts["steps"]

    def optimiser(self, constants: AdamW, named: Sequence[tuple[str, Tensor]]) -> torch.optim.Optimizer:
        """The optimiser as the last kept epoch left it; see `harness.numerics.training.MakeOptimiser`."""
        import torch

        from harness.numerics.training import fused_adamw

        self._optimiser, self._named = fused_adamw(constants, named), named
        for name, parameter in named if self._moments else ():
            self._optimiser.state[parameter] = {
                "step": torch.tensor(self._steps, dtype=torch.float32, device=parameter.device),
                **{moment: self._moments[f"{moment}.{name}"].to(parameter.device) for moment in _MOMENTS},
            }
        self._moments = {}
        return self._optimiser

    def keep(self, model: PreTrainedModel, epoch: int) -> None:
        """Keep where the training stands after an epoch, if the last was kept long enough ago."""
        now = time.perf_counter()
        if not self.epochs or now - self._kept_at < KEPT_EVERY or self._optimiser is None:
            return
        states = {name: self._optimiser.state[parameter] for name, parameter in self._named}
        tensors = {f"weight.{name}": parameter.detach() for name, parameter in model.named_parameters()}
        tensors |= {f"{moment}.{name}": state[moment] for name, state in states.items() for moment in _MOMENTS}
        steps = float(next(iter(states.values()))["step"])
        facts = {"epoch": epoch, "steps": steps, "seconds": self.seconds + now - self._began}

        def make(folder: Path) -> Mapping[str, JSON]:
            from harness.models.saving import save_tensors

            save_tensors(tensors, folder / _FILE)
            return facts

        self.cache.get("training", self._key(epoch), make)
        self.forget(before=epoch)
        self._kept_at = time.perf_counter()

    def forget(self, before: int | None = None) -> None:
        """Remove what is kept: all of it, or of the epochs before one."""
        for epoch in range(1, self.epochs if before is None else before):
            self.cache.forget("training", self._key(epoch))

    def _key(self, epoch: int) -> Mapping[str, JSON]:
        return {"of": digest(self.identity), "epoch": epoch}

    def _latest(self) -> CacheEntry | None:
        entries = (self.cache.find("training", self._key(epoch)) for epoch in range(self.epochs - 1, 0, -1))
        return next((entry for entry in entries if entry), None)

    def _check_room(self, parameters: int, more: int) -> None:
        """Refuse a disk on which they do not fit.

        Args:
            parameters: how many weights there are.
            more: how many of `AT_MOST` do not lie there yet; the model, smaller than an epoch, comes when one alone lies there.
        """
        needed, free = more * OF_A_WEIGHT * parameters, shutil.disk_usage(self.cache.root).free
        if free < needed:
            raise UsageError(
                f"fine-tuning {self.name} keeps up to {needed / 2**30:.1f} GiB more in the cache {self.cache.root}, and its "
                f"disk has {free / 2**30:.1f} GiB left. Free some space, or set HARNESS_CACHE elsewhere."
            )
