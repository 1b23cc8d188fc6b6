"""SAGE: another method's whole update, damped along what retain texts activate.

ΔW ← argmin_X ‖X − ΔW‖² + tr(X Σ Xᵀ)/τ = ΔW (I + Σ/τ)⁻¹,   Σ = mean_t a_t a_tᵀ over the tokens of retain rows

with ΔW = W − W_0 since before the first step, a the map's inputs in the model before unlearning (a bias reads a 1) and
τ = t · tr Σ / dim Σ. Along an eigenvector of Σ with eigenvalue σ the share τ/(σ + τ) of the update is left.

The paper's abstract (arXiv:2606.18309) names a closed form of an objective that is anchored at the given update and suppresses
what lies along retain inputs of much energy, and no code is public: formula, unit of τ and the choice of maps are this
project's reading. Its update is NPO's or gradient difference's. Those train as they always do: at every point the damped
update stands in the model, and training goes on from the undamped one. Embeddings, norms and the head keep theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from harness.core.config import settings
from harness.core.memory import MemoryItem, ModelShape
from harness.core.method import Progress, UnlearningContext, method
from methods._settings import Epochs
from methods.first_order.loop import Data, Losses, Part, unlearn
from methods.first_order.losses import retain_term
from methods.first_order.preference import npo_term
from methods.first_order.recipe import RetainedRecipe, retained_memory_items

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from harness.data.rows import Encoded
    from methods.curvature.layers import Layer
    from methods.first_order.adapters import Kind


@settings
class SAGEConfig(RetainedRecipe):
    """Settings of SAGE; those of the method whose update is damped are NPO's."""

    epochs: Epochs = 10
    """Passes over the forget set."""
    frozen_partner: bool = True
    """Give a forget example the same retain partner in every epoch, as NPO's repository does."""
    update: Literal["npo", "grad_diff"] = "npo"
    """Whose update is damped."""
    beta: PositiveFloat = 0.1
    """β of NPO."""
    reduction: Literal["sum", "mean"] = "sum"
    """Whether NPO sums an answer's loss over its tokens, or takes their mean."""
    threshold: Annotated[float, Field(ge=1e-9, le=1e9)] = 1.0
    """t: along an eigenvector of t times the mean energy, half of the update is left."""
    target_modules: Literal["all", "attention", "mlp"] = "all"
    """Which linear maps of the decoder layers are damped."""
    moment_rows: PositiveInt = 200
    """How many retain sequences of each stage Σ is taken over."""


def memory_items(shape: ModelShape, config: SAGEConfig) -> list[MemoryItem]:
    """What training holds, (I + Σ/τ)⁻¹ of each input, and the maps before training and undamped."""
    from methods.curvature.layers import first_of_groups, sizes

    layers = damped_layers(shape.model, config.target_modules)
    first = first_of_groups(layers)
    inverses = sum(layer.shape[1] ** 2 for i, layer in enumerate(layers) if first[i] == i)
    return [
        *retained_memory_items(shape, config),
        MemoryItem("second moments", 4 * inverses),
        MemoryItem("undamped weights", 2 * sizes(layers).spectrum),
    ]


@method(
    "sage",
    config=SAGEConfig,
    source="arXiv:2606.18309",
    memory=memory_items,
    takes_adapter=True,
)
def sage(context: UnlearningContext, config: SAGEConfig) -> Iterator[Progress]:
    """Train, measuring the damped update after every epoch.

    Raises:
        UsageError: for a model whose linear maps are not known.
    """
    from harness.numerics.training import pooled_nll

    with context.costs.phase("second moments"):
        damping = Damping(context, config)

    def ascent(part: Part) -> Tensor:
        return -pooled_nll(context.model, part.batch, part.labels)

    def losses(data: Data) -> Losses:
        forget = npo_term(context, data, config.beta, config.reduction) if config.update == "npo" else ascent
        return Losses(forget, retain_term(context, config))

    for progress in unlearn(context, config, losses):
        kept = damping.do()
        yield replace(progress, logged={**progress.logged, "update_kept": kept})
        if progress.step != progress.total:
            damping.undo()


class Damping:
    """Puts the damped update in place of a model's own, and takes it back to the bit.

    Args:
        context: whose model, as it is now, the update starts from.
        config: what is damped, and how much.
    """

    def __init__(self, context: UnlearningContext, config: SAGEConfig) -> None:
        import torch

        from methods.curvature.layers import input_groups

        self._layers = damped_layers(context.model, config.target_modules)
        self._groups = input_groups(self._layers)
        self._start = [layer.matrix() for layer in self._layers]
        self._undamped: list[Tensor] = []
        moments = second_moments(context, self._layers, config.moment_rows, config.max_length)
        self._inverse = {}
        for group, moment in moments.items():
            tau = config.threshold * moment.diagonal().mean()
            identity = torch.eye(len(moment), dtype=torch.float64, device=moment.device)
            self._inverse[group] = torch.linalg.inv(identity + moment.double() / tau).float()

    def do(self) -> float:
        """Put it in place.

        Returns:
            The norm of what is left of the update, as a share of the whole; 1 where there is none.
        """
        self._undamped = [layer.matrix() for layer in self._layers]
        left = whole = 0.0
        for layer, group, start, matrix in zip(self._layers, self._groups, self._start, self._undamped, strict=True):
            damped = (matrix - start) @ self._inverse[group]
            left, whole = left + float(damped.square().sum()), whole + float((matrix - start).square().sum())
            layer.set_matrix(start + damped)
        return float((left / whole) ** 0.5) if whole else 1.0

    def undo(self) -> None:
        """The model's own update again."""
        for layer, matrix in zip(self._layers, self._undamped, strict=True):
            layer.set_matrix(matrix)


def damped_layers(model: PreTrainedModel, target_modules: Kind) -> list[Layer]:
    """The linear maps that are damped, in the model's order.

    Raises:
        UsageError: if there are none of a kind, or if they are experts.
    """
    from harness.numerics import anatomy
    from methods.curvature.layers import Layer
    from methods.first_order.adapters import linear_maps

    names = {linear.name for linear in linear_maps(model, target_modules)}
    blocks = anatomy.decoder_layers(model)
    return [Layer(m, block.number) for block in blocks for m in (*block.attention, *block.mlp) if m.name in names]


def second_moments(
    context: UnlearningContext, layers: Sequence[Layer], rows: int, max_length: int | None = None
) -> dict[int, Tensor]:
    """Σ of each input that some maps share, over so many retain sequences of each stage, drawn by the seed.

    Args:
        context: whose model reads them.
        layers: the maps.
        rows: at most so many sequences of a stage.
        max_length: tokens they are cut to; not at all if None.

    Returns:
        Group of maps (`input_groups`) → [in (+ 1), in (+ 1)] float32.
    """
    import torch

    from harness.core.streams import streams
    from harness.data.rows import encode, pad_id
    from methods.curvature.passes import batches_of
    from methods.curvature.products import mirrored

    chosen: list[Encoded] = []
    for stage in context.stages:
        order = streams(context.seed, "sage rows", stage.name).numpy().permutation(len(stage.retain))[:rows].tolist()
        chosen += encode([stage.retain[i] for i in sorted(order)], context.tokenizer, max_length)
    reader, tokens = _Reader(layers), 0
    with torch.no_grad(), reader.listening():
        for batch in batches_of(chosen, pad_id(context.tokenizer), context.model):
            reader.real = batch.attention_mask.flatten().bool()
            context.model.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
            tokens += batch.tokens
    context.costs.count(tokens)
    return {group: mirrored(total) / tokens for group, total in reader.sums.items()}


class _Reader:
    """Sums up what some maps read.

    Args:
        layers: the maps; of those that share an input the first one is listened to.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        from methods.curvature.layers import first_of_groups, input_groups

        first, groups = first_of_groups(layers), input_groups(layers)
        self._read = [(layer, groups[i]) for i, layer in enumerate(layers) if first[i] == i]
        self.sums: dict[int, Tensor] = {}
        """Group → [in (+ 1), in (+ 1)] Σ a aᵀ."""
        self.real: Tensor | None = None
        """[B · T] which positions of the batch are no padding."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, whatever the model reads is summed up."""
        handles = [layer.module.register_forward_pre_hook(partial(self._add, layer, group)) for layer, group in self._read]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _add(self, layer: Layer, group: int, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        import torch

        from methods.curvature.products import add_square, total_of

        assert self.real is not None  # set before the model reads a batch
        a = inputs[0].flatten(0, -2)[self.real.to(inputs[0].device)]
        if layer.has_bias:
            a = torch.cat([a, a.new_ones(len(a), 1)], dim=1)
        add_square(total_of(self.sums, group, (a.shape[1], a.shape[1]), a), a, onednn=layer.by_onednn)
