"""LoKU's settings."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat

from harness.core.config import settings
from methods._settings import BatchSize, LayerNumbers, Rank
from methods.first_order.adapters import Kind
from methods.first_order.recipe import PairedRecipe


@settings
class LoKUConfig(PairedRecipe):
    """Settings of LoKU; the defaults are its repository's for Llama-2-7B on ToFU."""

    lr: PositiveFloat = 1e-4
    """Peak learning rate, of the adapters."""
    loss: Literal["ihl", "grad_diff"] = "ihl"
    """The forget term: the inverted hinge loss, or minus the cross-entropy (its ablation)."""
    fila: bool = True
    """Whether the adapters start from the Fisher-weighted part of the weights; otherwise as LoRA's do, A random and B = 0."""
    importance: Literal["fila", "vila"] = "fila"
    """Whose Fisher information weighs the weights: their own (LoKU), or that of random adapters on them (VILA)."""
    rank: Rank = 16
    """r, the adapters' rank; the paper runs 4, 8, 16 and 32 on ToFU, and 16 is this project's choice among them."""
    target_modules: Kind = "all"
    """Which linear maps of a decoder layer are adapted."""
    layers: LayerNumbers | None = None
    """Decoder layers that are adapted, from 0; all if not given."""
    fisher_batch: BatchSize = 2
    """Examples of each side in a mini-batch of the importances; the repository takes 2 with Llama-2-7B, 4 with phi-1.5."""
