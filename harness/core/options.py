"""What the command line decides besides benchmark, model, method and its settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Target = Literal["all", "attention", "mlp"]
"""Which linear maps of a decoder layer are adapted."""
Bits = Literal[32, 8]
Masters = Literal["float32", "none"]
Clip = Literal["1", "none"]
Variant = Literal["original", "open-unlearning", "corrected"]
"""Whose metric definitions: those of the benchmark's own code, open-unlearning's, or the first with its quirks put right."""
Points = Literal["all", "last"]
Rows = Literal["all", "last", "none"]
Retain = Literal["all", "general", "neighbours"]
Preset = Literal["published", "tuned", "tuned2"]
"""`tuned2` is the tuned form's second version: twice as many tries, over one constant more. The first keeps its records."""
Protocol = Literal[Preset, "by hand", "other"]
"""How a run's settings were chosen: what they stand on."""
MOST_SEED = 2**32 - 1
"""The largest seed: all generators take it, and what is computed from it stays under 2^64."""


@dataclass(frozen=True)
class Judge:
    """A model that grades answers."""

    kind: Literal["openai", "vllm"]
    """How it is asked: at an OpenAI-compatible address, or served by vLLM on this machine for as long as it is asked."""
    model: str
    """Its name at that address; for vLLM a hub id or a folder."""
    url: str = "https://api.openai.com/v1"
    """The address, up to `/v1`. It may name a machine and is not recorded: the name alone stands for the judge."""
    repetitions: int = 1
    """How often all questions are answered and judged."""

    @property
    def name(self) -> str:
        """As recorded, such as `openai:gpt-4`; a folder's path is cut to its name."""
        folder = Path(self.model)
        cut = folder.is_absolute() or (self.kind == "vllm" and folder.is_dir())
        return f"{self.kind}:{folder.resolve().name if cut else self.model}"


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters that are trained in place of the weights: A and B in W + (alpha / r) B A, measured merged.

    (Hu et al. 2021, arXiv:2106.09685; the defaults are ToFU's, locuslab/tofu `config/forget_lora.yaml`, which go with a
    learning rate of 1e-4.)
    """

    rank: int = 8
    """r."""
    alpha: int = 32
    """The scale of B A is alpha / r."""
    dropout: float = 0.05
    """The share of an adapter's inputs that are dropped while it trains."""
    target: Target = "all"
    """Which linear maps of a decoder layer are adapted."""

    def __str__(self) -> str:
        """All of them, as records keep them."""
        return f"lora:r={self.rank},alpha={self.alpha},dropout={self.dropout:g},target={self.target}"


@dataclass(frozen=True)
class Optimizer:
    """How AdamW is kept in memory where a method trains by it; anything but the defaults changes numbers."""

    bits: Bits = 32
    """Of each number of the two moments; with 8 they are kept in blocks of 256 (Dettmers et al. 2021, arXiv:2110.02861)."""
    masters: Masters = "float32"
    """What steps are added to where weights are bfloat16: float32 masters, or with `none` the weights themselves, rounded
    stochastically (a departure: their published recipes have masters)."""
    clip: Clip = "1"
    """The norm that a step's gradient is scaled down to; `none` leaves it as it is and frees it layer by layer."""

    def __str__(self) -> str:
        """All of it, as records keep it."""
        return f"adamw:bits={self.bits},masters={self.masters},clip={self.clip}"


@dataclass(frozen=True)
class Options:
    """What the command line decides besides benchmark, model, method and its settings."""

    seed: int = 0
    """The unlearning seed: data order, sampled labels."""
    limit: int | None = None
    """At most this many rows of every split; None takes what the benchmark's definition takes."""
    device: str = "cpu"
    """`cpu`, `cuda`, `cuda:1`, `cuda:all` (spread over all GPUs), `mps`."""
    dtype: str = "float32"
    """`float32` or `bfloat16`."""
    variant: Variant = "original"
    """Whose metric definitions: the benchmark's own, open-unlearning's, or its own with their quirks put right."""
    template: str = ""
    """How questions are put: a template's name, `chat` for the tokenizer's own, or the model's usual one."""
    retain: Retain = "all"
    """Which texts guard what is unlearned, where a benchmark has neighbouring and general ones."""
    data_dir: Path | None = None
    """A folder laid out by hub id that is looked at before the hub. Not part of a run's hash."""
    evals: tuple[str, ...] = ()
    """Which evaluators measure; the benchmark's own if none is named."""
    points: Points = "all"
    """Whether every point of the way is measured or the last one only."""
    rows: Rows = "all"
    """Whether the rows and texts of every point are kept, of the last one only, or of none. Not part of a run's hash."""
    reference: Path | None = None
    """An evaluation log that stands in for the retain model."""
    trust_remote_code: bool = False
    """Whether code that comes with a checkpoint may run."""
    judge: Judge | None = None
    """Who grades answers, for evaluators that need it. Part of a run's hash only where one does."""
    generator: str = "hf"
    """The back end that writes answers: `hf` or `vllm`."""
    budgets: tuple[float, ...] = ()
    """Damages at which points are measured, in nats per token on rows held out for it; where the method measures if empty."""
    adapter: LoRA | None = None
    """Low-rank adapters that are trained in place of the weights; none if None."""
    optimizer: Optimizer | None = None
    """AdamW kept otherwise than by default, where the method trains by it."""
    recompute: bool = False
    """Whether training recomputes activations on models of any size and on any device. Not part of a run's hash."""
