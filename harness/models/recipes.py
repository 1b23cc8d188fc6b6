"""What a model that is trained on the spot is made from: its shape, its tokenizer, and how it is trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal

from harness.core.arithmetic import Arithmetic
from harness.core.config import JSON

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Architecture:
    """A small Llama."""

    hidden_size: int
    """Width of the residual stream."""
    layers: int
    """Decoder layers."""
    intermediate_size: int
    """Width of the MLP."""
    heads: int = 4
    """Attention heads."""
    max_positions: int = 512
    """Longest text."""
    tied_embeddings: bool = False
    """Whether input and output share one embedding."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""


@dataclass(frozen=True)
class Recipe:
    """How one model is trained."""

    epochs: int
    """Passes over the examples."""
    batch_size: int
    """Examples in a step."""
    lr: float
    """Peak learning rate of AdamW; a warm-up, then a cosine."""
    min_lr_rate: float = 0.1
    """Where the cosine ends, as a share of the peak."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's moment decay rates."""
    threads: int = 1
    """Threads of the process; fixed, since sums depend on it. 0 takes as many as there are."""
    tokens_at_once: int = 512
    """Padded tokens of one forward pass at most; a wide model on a CPU takes fewer (`harness.numerics.training`)."""
    arithmetic: Arithmetic = ""
    """`portable`: in a process that gives the same weights on every x86-64 processor; see `harness.core.arithmetic`."""
    warmup: int = 0
    """Steps of the warm-up, at most a tenth of all; 0 takes 5 % of all."""
    device: str = ""
    """Where it is trained: on this device, in bf16 autocast on a GPU, with an epoch kept now and then for who goes on after
    a kill; empty for a small model, on the CPU and in a process of its own."""

    @property
    def portable(self) -> Recipe:
        """The same recipe with weights that do not depend on the processor, nor on the number of threads."""
        return replace(self, arithmetic="portable", threads=1)

    @property
    def identity(self) -> dict[str, JSON]:
        """All of it, of the device the kind alone; what recipes had no choice of at first is left out where it is the usual."""
        fields = {**asdict(self), "betas": list(self.betas), "device": self.device.partition(":")[0]}
        return {name: value for name, value in fields.items() if value or name not in ("arithmetic", "warmup", "device")}


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer is made from."""

    kind: Literal["words", "bytes"]
    """Whole words from a closed list, or byte-level BPE learnt from texts."""
    texts: tuple[str, ...]
    """The words, or the texts."""
    size: int = 0
    """Tokens of a BPE."""

    def build(self) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

        special = ["<pad>", "<eos>", "<unk>"]
        if self.kind == "words":
            words = [word if word in ".,?" else f"▁{word}" for word in self.texts]
            tokens = {token: i for i, token in enumerate([*special, *words])}
            tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="<unk>"))
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Metaspace(), pre_tokenizers.Split(Regex("[.,?]"), "isolated")]
            )
            tokenizer.decoder = decoders.Metaspace()
        else:
            tokenizer = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            trainer = trainers.BpeTrainer(
                vocab_size=self.size,
                special_tokens=special,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            )
            tokenizer.train_from_iterator(self.texts, trainer)
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="right"
        )
