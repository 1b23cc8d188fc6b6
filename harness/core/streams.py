"""Random numbers by name: `streams(seed, "partners")` decides which retain examples are partners, and nothing else does.

A stream is the seed of a run, a name for what is drawn, and a place where it is drawn (a step, a row), so that no draw depends
on how many there were before it or on anybody else's. Names that were in use before there were names keep the seeds that they
had then (`HISTORIC`), bit for bit: two runs of one record give the same numbers for ever. Every other name is hashed together
with seed and place.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

Entropy = int | tuple[int, ...] | str
"""What a generator is seeded with: a tuple by numpy alone, a text by Python's alone."""

HISTORIC: Mapping[str, Callable[..., Entropy]] = {
    # Who trains, on what, in which order.
    "run": lambda seed: seed,
    "initial weights": lambda seed: seed,
    "order": lambda seed: f"order {seed}",
    "batches": lambda seed: seed,
    "partners": lambda seed: seed + 1,
    "frozen partner": lambda _seed, row: row,
    "refusals": lambda seed, step, row: (seed, step, row),
    "adapters": lambda seed: seed,
    "singular vectors": lambda seed: seed,
    # Single methods.
    "curvature labels": lambda seed, row: (seed, row),
    "kfade rows": lambda seed: (seed, 1),
    "rmu direction": lambda seed, stage: (seed, stage),
    "elm texts": lambda seed, stage, turn, purpose: (seed, stage, turn, purpose),
    "elm dropout": lambda seed, step, steps, term, terms: (seed * steps + step) * terms + term,
    "sophia labels": lambda seed, *place: (seed, *place),
    # Statistics.
    "bootstrap": lambda seed: seed,
    "paired resamples": lambda seed, sample, clusters: (seed, sample, clusters),
    # The embedded worlds, and instructions out of a file.
    "world": lambda seed: f"world {seed}",
    "wrong answers": lambda seed, author: f"wrong {seed} {author}",
    "real authors": lambda seed: f"real authors {seed}",
    "world facts": lambda seed: f"world facts {seed}",
    "crafts": lambda seed, domain: f"crafts {seed} {domain}",
    "documents": lambda seed, title: f"documents {seed} {title}",
    "stories": lambda seed: f"stories {seed}",
    "instructions": lambda seed: f"instructions {seed}",
    "choices": lambda seed, question: f"choices {seed} {question}",
    "instructions of a file": lambda seed: seed,
}
"""Name → (seed, place) → what seeded its generator before it had a name. Nothing is added here: a new name is hashed."""


@dataclass(frozen=True)
class Stream:
    """Where random numbers come from; each call begins them anew."""

    entropy: Entropy
    """What its generators are seeded with."""

    def numpy(self) -> np.random.Generator:
        """As numpy's generator."""
        import numpy as np

        return np.random.default_rng(self.entropy)  # type: ignore[arg-type]

    def torch(self, device: torch.device | str = "cpu") -> torch.Generator:
        """As torch's generator on a device."""
        import torch

        return torch.Generator(device).manual_seed(self.entropy)  # type: ignore[arg-type]

    def python(self) -> random.Random:
        """As Python's generator."""
        return random.Random(self.entropy)  # type: ignore[arg-type]

    def seed_torch(self) -> None:
        """Seed torch's global generators, for what draws from nothing else (dropout, a fresh model's weights)."""
        import torch

        torch.manual_seed(self.entropy)


def streams(seed: int, name: str, *place: int | str) -> Stream:
    """The random numbers of a name.

    Args:
        seed: of the run.
        name: what is drawn.
        place: where: a step, a row, whatever tells draws of one name apart.

    >>> streams(0, "partners") == streams(0, "partners"), streams(0, "partners") == streams(1, "partners")
    (True, False)
    >>> streams(3, "refusals", 10, 7).entropy  # as ever
    (3, 10, 7)
    >>> streams(3, "a new name", 10, 7).entropy
    578023008141216189
    """
    if historic := HISTORIC.get(name):
        return Stream(historic(seed, *place))
    return Stream(int(hashlib.sha256(repr((seed, name, *place)).encode()).hexdigest()[:15], 16))
