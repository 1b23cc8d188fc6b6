"""Where a decoder's layers, its attention and its MLPs are, whatever an architecture calls them.

One place for all who change or measure single parts: K-FADE's curvature, RMU, the adapters of LoKU and ELM, the quantisation
attack. Layers are found by their number in the configuration, parts by the few names there are for them in transformers, linear
maps by their type, and an MLP's down-projection by its shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.core.errors import UsageError, cut

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D

MOST_LAYERS = 1_000
"""Decoder layers of a model: far more than the deepest known one has."""
ATTENTION = frozenset({"self_attn", "attn", "attention", "self_attention", "multi_head_attention"})
"""What a decoder layer calls its attention."""
MLP = frozenset({"mlp", "ffn", "feed_forward", "mlp_block", "block_sparse_moe", "fc1", "fc2"})
"""What it calls its MLP, or the two maps of an MLP that has no module of its own (OPT)."""
GATE, UP = "gate_proj", "up_proj"
"""The two maps of a gated MLP that read the same input, where they are two (Llama, Mistral, Qwen, Gemma)."""


@dataclass(frozen=True)
class LinearMap:
    """One linear map."""

    name: str
    """As in `model.named_modules()`."""
    module: nn.Linear | Conv1D
    """Itself."""
    transposed: bool
    """Whether it keeps its weight as [in, out], as GPT-2's Conv1D does."""

    def matrix(self) -> Tensor:
        """[out, in] the weight itself: writing into it changes the module."""
        return self.oriented(self.module.weight.detach())

    def oriented(self, like_weight: Tensor) -> Tensor:
        """[out, in] something of the weight's shape."""
        return like_weight.T if self.transposed else like_weight


@dataclass(frozen=True)
class DecoderLayer:
    """One layer of a decoder."""

    number: int
    """From 0."""
    name: str
    """As in `model.named_modules()`."""
    module: nn.Module
    """Itself."""
    attention: Sequence[LinearMap]
    """The linear maps of its attention, in the model's order."""
    mlp: Sequence[LinearMap]
    """Those of its MLP."""
    down: LinearMap | None
    """The MLP's last map, back to the residual stream."""


def decoder_layers(model: PreTrainedModel) -> list[DecoderLayer]:
    """The layers of a decoder; none if they are not found. Modules on the meta device will do."""
    from torch import nn

    decoder, config = model.get_decoder() or model.base_model, model.config.get_text_config()
    names = {id(module): name for name, module in model.named_modules()}
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == getattr(config, "num_hidden_layers", None):
            return [_layer(i, f"{names[id(module)]}.{i}", layer, config.hidden_size) for i, layer in enumerate(module)]
    return []


def _layer(number: int, name: str, layer: nn.Module, width: int) -> DecoderLayer:
    parts = {part: f"{name}.{part}" for part, _ in layer.named_children()}
    attention = [m for part in parts if part in ATTENTION for m in linear_maps_in(layer.get_submodule(part), parts[part])]
    mlp = [m for part in parts if part in MLP for m in linear_maps_in(layer.get_submodule(part), parts[part])]
    down = next((m for m in reversed(mlp) if m.matrix().shape[0] == width), None)
    return DecoderLayer(number, name, layer, attention, mlp, down)


def read_the_same(first: LinearMap, second: LinearMap) -> bool:
    """Whether two neighbouring maps of one decoder layer are a gated MLP's gate and up, which read the same input."""
    return first.name.endswith(f".{GATE}") and second.name.endswith(f".{UP}")


def linear_maps_in(module: nn.Module, name: str = "") -> list[LinearMap]:
    """All linear maps in a module, itself included.

    Args:
        module: where to look.
        name: its own, for theirs.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return [
        LinearMap(inner, layer, isinstance(layer, Conv1D))
        for inner, layer in module.named_modules(prefix=name)
        if isinstance(layer, nn.Linear | Conv1D)
    ]


def experts(model: PreTrainedModel) -> dict[str, tuple[nn.Parameter, bool]]:
    """The weights of a mixture's experts that are kept as one tensor of three dimensions.

    Returns:
        Name → (the weight, whether each expert's is [in, out] and not [out, in]).
    """
    return {
        f"{name}.{inner}": (weight, bool(getattr(module, "is_transposed", False)))
        for name, module in model.named_modules()
        if name.endswith("experts")
        for inner, weight in module.named_parameters(recurse=False)
        if weight.dim() == 3
    }


def has_experts(model: PreTrainedModel) -> bool:
    """Whether it is a mixture of experts."""
    return any(name.endswith("experts") for name, _ in model.named_modules())


def absent_layers(count: int, /, **given: int | Sequence[int] | None) -> str | None:
    """Why settings name decoder layers that a model does not have, and what to set instead; None where it has them all.

    Args:
        count: how many the model has.
        given: setting → a number or numbers, from 0; None stands for all. Settings that belong together are told together:
            none of them can be put right alone.
    """
    wrong: dict[str, tuple[object, object]] = {}
    for setting, value in given.items():
        if isinstance(value, int):
            if value >= count:
                wrong[setting] = value, count - 1
        elif value is not None and max(value, default=0) >= count:
            wrong[setting] = list(value), [*range(count)][-len(value) :]
    if not wrong:
        return None
    named = " and ".join(f"{setting}={cut(str(value))}" for setting, (value, _) in wrong.items())
    instead = " and ".join(f"{setting}={cut(str(value)).replace(' ', '')}" for setting, (_, value) in wrong.items())
    return f"{named}: the model has layers 0 to {count - 1}. Set {instead}"


def chosen(layers: Sequence[DecoderLayer], numbers: Sequence[int] | None) -> list[DecoderLayer]:
    """Those that the setting `layers` names, in the model's order; all if None.

    Raises:
        UsageError: if one is not there.
    """
    if reason := absent_layers(len(layers), layers=numbers):
        raise UsageError(f"{reason}.")
    return list(layers) if numbers is None else [layers[number] for number in sorted(set(numbers))]


@dataclass(frozen=True)
class Window:
    """How long a text may be."""

    tokens: int
    """What the configuration says."""
    ends: bool
    """Whether there is nothing beyond it: positions come out of a table (GPT-2, OPT). Others go on, where they never were
    trained."""


def window(model: PreTrainedModel) -> Window | None:
    """A model's context window; None if it has none (recurrent models, ALiBi)."""
    from torch import nn

    tokens = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(tokens, int) or tokens < 1:
        return None
    words = (model.get_input_embeddings(), model.get_output_embeddings())
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m not in words]
    tables += [buffer for buffer in model.buffers() if buffer.dim() == 2]
    return Window(tokens, any(table.shape[0] in (tokens, tokens + 2) for table in tables))  # OPT's has two rows more


def described(model: PreTrainedModel) -> str:
    """The names of its linear maps, layer numbers left out, as far as a message has room for them."""
    import re

    names = dict.fromkeys(re.sub(r"\.\d+\.", ".N.", m.name) for m in linear_maps_in(model))
    return cut(", ".join(names)) or "none"
