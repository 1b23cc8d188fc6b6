"""Low-rank adapters: which linear maps of a decoder they sit on, and how they come off while the model is measured.

peft wraps the maps (`inject_adapter_in_model`); what a method sees is a model that is plain whenever it yields. LoKU, ELM
and RepSelect share this file, and so does the loop of the first-order methods, for adapters in place of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from harness.core.errors import UsageError
from harness.core.memory import MemoryItem
from harness.core.method import UnlearningContext
from harness.core.options import LoRA, Target
from harness.core.streams import streams
from harness.numerics import anatomy
from harness.numerics.anatomy import LinearMap
from methods._settings import ANY_ARCHITECTURE

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

Kind = Target


# ---------------------------------------------------------------- what is adapted


def linear_maps(
    model: PreTrainedModel,
    target_modules: Kind = "all",
    layers: Sequence[int] | None = None,
    setting: str = "target_modules",
    way_out: str = ANY_ARCHITECTURE,
) -> list[LinearMap]:
    """The linear maps to adapt, in the model's order.

    Args:
        model: a decoder.
        target_modules: which maps of a decoder layer.
        layers: the decoder layers to take, from 0; all if None.
        setting: what a message calls `target_modules`.
        way_out: what a message says of an architecture that has none at all.

    Raises:
        UsageError: if there are none of a kind, if they are experts, or if a layer is not there.
    """
    if anatomy.has_experts(model):
        raise UsageError(
            f"{model.config.model_type} has a mixture of experts, whose maps are not taken one by one here. {way_out}."
        )
    decoder = anatomy.decoder_layers(model)
    kinds = ("attention", "mlp") if target_modules == "all" else (target_modules,)
    known = [kind for kind in ("attention", "mlp") if any(getattr(layer, kind) for layer in decoder)]
    if missing := [kind for kind in kinds if kind not in known]:
        instead = f"Set {setting}={known[0]}" if known else way_out
        raise UsageError(
            f"{setting}={target_modules}: the architecture '{model.config.model_type}' has no linear maps known here "
            f"as {' or '.join(missing)}; its linear maps are {anatomy.described(model)}. {instead}."
        )
    return [linear for layer in anatomy.chosen(decoder, layers) for kind in kinds for linear in getattr(layer, kind)]


def memory_items(maps: Sequence[LinearMap], rank: int, weight_bytes: int, where: Literal["device", "cpu"]) -> list[MemoryItem]:
    """The adapted weights kept aside, and float32 adapters with their gradients and AdamW's two moments.

    Args:
        maps: what is adapted.
        rank: r.
        weight_bytes: of one of the weights.
        where: the weights are kept aside.
    """
    return [
        MemoryItem("weights kept aside", weight_bytes * sum(linear.module.weight.numel() for linear in maps), where),
        MemoryItem("adapters", 4 * 4 * rank * sum(sum(linear.module.weight.shape) for linear in maps)),
    ]


# ---------------------------------------------------------------- in place of the weights


def adapted_maps(model: PreTrainedModel, adapter: LoRA) -> list[LinearMap]:
    """What `--adapter` adapts of a model.

    Raises:
        UsageError: for an architecture without such maps.
    """
    return linear_maps(model, adapter.target, setting="target", way_out="Leave out --adapter")


def in_place_of_weights(context: UnlearningContext) -> Adapters | None:
    """The adapters that are trained in place of the weights, not yet on the model; None where the weights are trained.

    Raises:
        UsageError: for an architecture without such maps.
    """
    if (adapter := context.adapter) is None:
        return None
    maps = adapted_maps(context.model, adapter)
    return Adapters(context.model, maps, adapter.rank, adapter.alpha, context.seed, adapter.dropout, aside="cpu")


@contextmanager
def drawn_dropout(context: UnlearningContext, *place: int | str) -> Iterator[None]:
    """Inside, adapters' dropout draws what the seed and the place decide, and nobody else's random numbers move.

    Args:
        context: whose adapters; without any, or without dropout, nothing is done.
        place: tells the draws of one run apart.
    """
    import torch

    if context.adapter is None or not context.adapter.dropout:
        yield
        return
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        streams(context.seed, "adapter dropout", *place).seed_torch()
        yield


# ---------------------------------------------------------------- adapters on and off


@contextmanager
def without_adapters(model: PreTrainedModel) -> Iterator[None]:
    """Inside, a model answers as if it had no adapters, in eval mode and without gradients."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    from harness.numerics.training import evaluating

    adapters: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for adapter in adapters:
        adapter.enable_adapters(False)
    try:
        with evaluating(model):
            yield
    finally:
        for adapter in adapters:
            adapter.enable_adapters(True)


Start = Callable[[int, int], tuple["Tensor", "Tensor"]]
"""(number of the map, a seed) → (A [r, in], B [out, r]) that hold a part of the map's weight."""


class Adapters:
    """Low-rank adapters, W + s·B·A: on while a model trains, merged into its weights and out of sight while it is measured.

    Merging keeps W, so that putting the adapters on again brings back every bit; undoing a merge by subtraction would not.

    Args:
        model: adapted in place.
        maps: what is adapted of it.
        rank: r.
        alpha: s = alpha / r.
        seed: of the random numbers that adapters start from.
        dropout: share of an adapter's inputs that are dropped while it trains.
        aside: the device where W is kept while it is merged, once for all merges: the CPU spares a GPU that memory, for the
            time of a copy. Beside the merged weights, and only while there are such, if None.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        maps: Sequence[LinearMap],
        rank: int,
        alpha: int,
        seed: int,
        dropout: float = 0.0,
        aside: str | None = None,
    ) -> None:
        self._model, self._maps, self._rank, self._alpha, self._dropout = model, maps, rank, alpha, dropout
        self._aside = aside
        self._generator: torch.Generator = streams(seed, "adapters").torch()
        self._gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self._off: dict[str, tuple[nn.Module, Tensor]] = {}  # name → its adapter and W, while they are off
        self._kept: dict[str, Tensor] = {}  # name → W, where it is kept elsewhere

    def make(self, start: Start | None = None) -> None:
        """Put new adapters on the model as it is now.

        Args:
            start: what they start from; it is taken out of the weight, so that the function is unchanged. None starts with A
                random and B = 0, as LoRA does.
        """
        import torch
        from peft import LoraConfig, inject_adapter_in_model

        self._off.clear()
        self._kept.clear()
        lora = LoraConfig(
            r=self._rank,
            lora_alpha=self._alpha,  # peft divides it by r
            lora_dropout=self._dropout,
            target_modules=[linear.name for linear in self._maps],
            fan_in_fan_out=self._maps[0].transposed,
        )
        with torch.random.fork_rng([]):  # peft draws from the global random numbers what is overwritten below
            inject_adapter_in_model(lora, self._model)
        del self._model.peft_config  # peft's mark on the model; what is left of peft are the wrapped modules
        for i, linear in enumerate(self._maps):
            adapter: Any = self._model.get_submodule(linear.name)
            for factor in (adapter.lora_A, adapter.lora_B):
                factor.float()  # peft made them of the weight's type; what they read and give is cast
            down, up = _factors(adapter)
            with torch.no_grad():
                if start is None:
                    drawn = torch.nn.init.kaiming_uniform_(torch.empty(down.shape), a=5**0.5, generator=self._generator)
                    down.copy_(drawn)
                    up.zero_()
                else:
                    seed = int(torch.randint(2**31, (1,), generator=self._generator))
                    first, second = start(i, seed)
                    linear.matrix().copy_(linear.matrix().float() - self._scaling * (second @ first))
                    down.copy_(first)
                    up.copy_(second)
        self._train_adapters_only()

    def take_off(self) -> None:
        """Merge the adapters and leave a plain model; nothing if they are off."""
        import torch

        with torch.no_grad():
            for linear in self._maps:
                adapter = self._model.get_submodule(linear.name)
                if adapter is linear.module:
                    continue
                down, up = _factors(adapter)
                self._off[linear.name] = adapter, self._residual(linear)
                linear.matrix().copy_(linear.matrix().float() + self._scaling * (up @ down))
                self._place(linear.name, linear.module)
        for parameter, had_gradient in self._gradients:
            parameter.requires_grad_(had_gradient)

    def _residual(self, linear: LinearMap) -> Tensor:
        """A copy of W, which no step changes."""
        if self._aside is None:
            return linear.matrix().clone()
        if linear.name not in self._kept:
            self._kept[linear.name] = linear.matrix().to(self._aside, copy=True)
        return self._kept[linear.name]

    def put_on(self) -> None:
        """Go on from the adapters as they were; nothing if they are on."""
        for linear in self._maps:
            if linear.name in self._off:
                adapter, residual = self._off.pop(linear.name)
                linear.matrix().copy_(residual)
                self._place(linear.name, adapter)
        self._train_adapters_only()

    def discard(self) -> None:
        """Throw the adapters away unmerged: left is W, in every bit as `make` left it; nothing if there are none."""
        for linear in self._maps:
            if self._model.get_submodule(linear.name) is not linear.module:
                self._place(linear.name, linear.module)
        self._off.clear()
        self._kept.clear()
        for parameter, had_gradient in self._gradients:
            parameter.requires_grad_(had_gradient)

    def factors(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """A [r, in] and B [out, r] of each map while the adapters are on."""
        return [_factors(self._model.get_submodule(linear.name)) for linear in self._maps]

    @property
    def _scaling(self) -> float:
        return self._alpha / self._rank

    def _train_adapters_only(self) -> None:
        self._model.requires_grad_(False)
        for pair in self.factors():
            for factor in pair:
                factor.requires_grad_(True)

    def _place(self, name: str, module: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        setattr(self._model.get_submodule(parent), child, module)


def _factors(adapter: Any) -> tuple[nn.Parameter, nn.Parameter]:
    """A [r, in] and B [out, r] of one of peft's adapters."""
    return adapter.lora_A["default"].weight, adapter.lora_B["default"].weight
