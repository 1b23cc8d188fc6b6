"""RMU: hidden states of the forget corpora are steered to a random direction, those of the retain corpora held as they were.

L = mean (h_θ(x_f) − c u)² + α mean (h_θ(x_r) − h_θ0(x_r))²,   h the residual stream after decoder layer `layer`

(Li et al. 2024, "The WMDP Benchmark", arXiv:2403.03218; `rmu/unlearn.py` and `rmu/utils.py` of centerforaisafety/wmdp.) u is
drawn once for each stage, uniform in [0, 1) in every coordinate and scaled to length 1. The means run over sequences,
positions and coordinates, padding among them: as there, a batch is padded on the left with the end token and read under its
attention mask, so that a position of padding holds what the model makes of an end token that attends to nothing. Only the MLP
down-projections of `layers` are trained, by AdamW without schedule, clipping or decay; stages take turns batch by batch, in the
order of their texts. Nothing behind `layer` is ever computed, and all that h_θ0 needs of the model before unlearning are those
few matrices.
Departures: losses are float32 (bfloat16 there) and bfloat16 weights are trained through float32 masters; texts that are shorter
than `max_length` end with the end token; texts that run out are gone through again (there the run ends);
`coefficient_scale=activation_norm` and `positions` other than `padded` are ours: those pad on the right, where padding is
neither seen nor counted.
open-unlearning (`src/trainer/unlearn/rmu.py`) leaves padding out too, but divides the [B] sums of its sequences by their [B, 1]
numbers of tokens, which makes [B, B] quotients of every sum by every number: in a ragged batch its loss is mean(sums) ·
mean(1 / tokens), and short sequences count for more than their tokens. `positions=tokens` is the mean over tokens.
Version 2: version 1 padded on the right without a mask, so that padding was read as text behind the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveFloat

from harness.core.config import settings
from harness.core.errors import UsageError, cut
from harness.core.memory import MemoryItem, ModelShape
from harness.core.method import Progress, UnlearningContext, method
from harness.core.problem import Problem, Stage
from harness.core.streams import streams
from harness.numerics import anatomy
from harness.numerics.anatomy import DecoderLayer
from methods._settings import (
    ANY_ARCHITECTURE,
    BatchSize,
    LayerNumber,
    LayerNumbers,
    Points,
    Steps,
    Tokens,
    absent_layers,
    of_stage,
    uneven,
)
from methods.first_order.recipe import evenly

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from transformers import PreTrainedModel

    from harness.data.rows import Batch, Encoded

BETAS, EPSILON = (0.9, 0.999), 1e-6
"""AdamW's constants, transformers' defaults at the time."""
NORM_BATCHES = 16
"""Batches of the forget corpus on which its typical norm is measured."""

Weights = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
Lengths = Annotated[tuple[Tokens, ...], Field(min_length=1)]


@settings
class RMUConfig:
    """Settings of RMU; the defaults are the released zephyr-7b's. Lists hold one value for each stage, or one for all."""

    lr: PositiveFloat = 5e-5
    """Learning rate, constant."""
    steps: Steps = 150
    """Steps in all; stages take them in turns."""
    batch_size: BatchSize = 4
    """Forget texts in a step, and as many retain texts."""
    layer: LayerNumber = 7
    """The decoder layer behind which the residual stream is steered, from 0."""
    layers: LayerNumbers = (5, 6, 7)
    """Decoder layers whose MLP down-projections are trained, from 0; none lies behind `layer`."""
    coefficient: Weights = (6.5,)
    """c, the length of the state that forget texts are steered to."""
    coefficient_scale: Literal["absolute", "activation_norm"] = "absolute"
    """Whether c is a length, or a multiple of the residual stream's median norm over the tokens of the forget corpus."""
    alpha: Weights = (1200.0,)
    """α, the weight of the retain term."""
    max_length: Lengths = (512,)
    """Tokens that forget texts are cut to; 512 for bio and 768 for cyber in the original."""
    retain_max_length: Tokens = 512
    """Tokens that retain texts are cut to."""
    positions: Literal["padded", "tokens", "answer"] = "padded"
    """Over what the means run: all positions, padding on the left included, as the original's; tokens; or those of answers
    alone."""
    points: Points = 5
    """At how many steps, evenly spaced, a point is measured."""

    def __post_init__(self) -> None:
        if behind := sorted(number for number in self.layers if number > self.layer):
            raise ValueError(
                f"layers={cut(str(list(self.layers)))}: {cut(str(behind))} lie behind layer={self.layer} and would never move; "
                f"name layers up to {self.layer}"
            )


def memory_items(shape: ModelShape, config: RMUConfig) -> list[MemoryItem]:
    """For the few trained matrices: what they were, gradients, two moments, masters. Activations of the layers they are in."""
    from harness.models.memory_items import TOKENS_AT_ONCE, activations

    layers = decoder(shape.model)
    entries = sum(weight.numel() for weight in trained(layers, config).values())
    passes = activations(replace(shape, trained_at_once=TOKENS_AT_ONCE))  # its batches are not cut
    of_layers = passes.bytes * (config.layer + 1 - min(config.layers)) // len(layers)
    return [
        MemoryItem("weights as they were", entries * shape.weight_bytes),
        MemoryItem("gradients", 4 * entries, while_measured=False),
        MemoryItem("AdamW moments", 8 * entries),
        MemoryItem("float32 masters", 0 if shape.weight_bytes == 4 else 4 * entries),
        replace(passes, bytes=of_layers),
    ]


def clash(problem: Problem, config: RMUConfig) -> str | None:
    """Layers that are not there, and as many values as there are no stages."""
    return absent_layers(problem, layer=config.layer, layers=config.layers) or uneven(
        len(problem.stages), coefficient=config.coefficient, alpha=config.alpha, max_length=config.max_length
    )


@method(
    "rmu",
    version=2,
    config=RMUConfig,
    source="arXiv:2403.03218",
    clash=clash,
    memory=memory_items,
    memory_fallbacks=({"max_length": [256], "retain_max_length": 256},),
)
def rmu(context: UnlearningContext, config: RMUConfig) -> Iterator[Progress]:
    """Train, measuring at evenly spaced steps.

    Raises:
        UsageError: for layers that are not there, or as many values as there are no stages.
        Diverged: at a loss or gradient that is not finite.
    """
    import torch

    from harness.numerics import training

    layers = decoder(context.model)
    weights, layer = trained(layers, config), layers[config.layer].module
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    topics = [_Topic(context, stage, number, layer, config) for number, stage in enumerate(context.stages)]
    adamw: Optimizer
    logged: dict[str, float] = {}

    def make(named: Sequence[tuple[str, Tensor]]) -> Optimizer:
        nonlocal adamw
        adamw = torch.optim.AdamW([p for _, p in named], lr=config.lr, betas=BETAS, eps=EPSILON, weight_decay=0.0, fused=True)
        return adamw

    def steps() -> Iterator[list[Callable[[], Tensor]]]:
        for step in range(config.steps):
            # The original adds ε to the second moment before its bias is taken out; torch adds it afterwards.
            adamw.param_groups[0]["eps"] = EPSILON / (1 - BETAS[1] ** (step + 1)) ** 0.5
            topic, batch = topics[step % len(topics)], step // len(topics)
            yield [partial(forget, topic, batch), partial(retain, topic, batch)]

    def forget(topic: _Topic, number: int) -> Tensor:
        batch = topic.forget(number)
        loss = squared_distance(hidden_states(context.model, layer, batch), topic.target, counted(batch, config.positions))
        logged.update(forget_term=float(loss.detach()), coefficient=topic.coefficient)
        context.costs.count(batch.tokens)
        return loss

    def retain(topic: _Topic, number: int) -> Tensor:
        batch = topic.retain(number)
        with training.evaluating(context.model):
            target = hidden_states(context.model, layer, batch, before)
        now = hidden_states(context.model, layer, batch)
        loss = topic.alpha * squared_distance(now, target.float(), counted(batch, config.positions))
        logged.update(retain_term=float(loss.detach()))
        context.costs.count(2 * batch.tokens)
        return loss

    recipe = training.AdamW(lr=config.lr, steps=config.steps, schedule="constant_with_warmup", max_gradient_norm=float("inf"))
    measured = evenly(config.steps, config.points)
    with _training_only(context.model, weights):
        for log in training.optimise(context.model, steps(), lambda term: term(), recipe, make, recompute=False):
            record = {**logged, "gradient_norm": log.gradient_norm, "learning_rate": log.learning_rate}
            yield Progress(log.step, record, measure_here=log.step in measured, total=config.steps)


# ---------------------------------------------------------------- the loss


def squared_distance(states: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """The mean of (h − target)² over positions, by their weights, and coordinates.

    Args:
        states: [B, T, D] h.
        target: [D], or [B, T, D]; float32.
        weights: [B, T] 1 where a position counts, else 0.

    Returns:
        A float32 number.
    """
    distance = (states.float() - target).square().mean(dim=-1)
    weights = weights.to(distance)
    return (distance * weights).sum() / weights.sum()


def counted(batch: Batch, positions: Literal["padded", "tokens", "answer"]) -> Tensor:
    """[B, T] whether a position counts: all of them, tokens, or tokens of answers."""
    from harness.data.rows import NO_LABEL

    if positions == "answer":
        return batch.labels != NO_LABEL
    return batch.attention_mask.bool() if positions == "tokens" else batch.attention_mask >= 0


def direction(width: int, rng: np.random.Generator) -> Tensor:
    """[width] u, of length 1 and with no negative coordinate: u_i ~ U[0, 1), then u / ‖u‖."""
    import numpy as np
    import torch

    drawn = torch.from_numpy(rng.random(width, dtype=np.float32))
    return torch.nn.functional.normalize(drawn, dim=0)


class _Topic:
    """A stage: its batches, and where its forget texts are steered."""

    def __init__(self, context: UnlearningContext, stage: Stage, number: int, layer: nn.Module, config: RMUConfig) -> None:
        from harness.data.rows import encode, pad_id
        from harness.numerics.likelihood import check_length

        stages = len(context.stages)
        self._pad, self._device, self._size = pad_id(context.tokenizer), context.model.device, config.batch_size
        self._padding_side: Literal["left", "right"] = "left" if config.positions == "padded" else "right"
        most = -(-config.steps // stages) * config.batch_size  # what is never read need not be tokenised
        length = int(of_stage(config.max_length, number, stages, "max_length"))
        self._forget = encode(stage.forget[:most], context.tokenizer, length)
        self._retain = encode(stage.retain[:most], context.tokenizer, config.retain_max_length)
        check_length(context.model, max(len(e.input_ids) for e in (*self._forget, *self._retain)))  # before the first step
        self.alpha = of_stage(config.alpha, number, stages, "alpha")
        self.coefficient = of_stage(config.coefficient, number, stages, "coefficient")
        if config.coefficient_scale == "activation_norm":
            self.coefficient *= self._typical_norm(context, layer)
        self.target = self.coefficient * direction(
            context.model.config.get_text_config().hidden_size, streams(context.seed, "rmu direction", number).numpy()
        ).to(self._device)

    def forget(self, number: int) -> Batch:
        """The batch of that number; from the start again when the texts run out."""
        return self._batch(self._forget, number)

    def retain(self, number: int) -> Batch:
        """Likewise."""
        return self._batch(self._retain, number)

    def _batch(self, texts: Sequence[Encoded], number: int) -> Batch:
        from harness.data.rows import collate

        rows = [i % len(texts) for i in range(number * self._size, (number + 1) * self._size)]
        return collate([texts[row] for row in rows], rows, self._pad, self._padding_side).to(self._device)

    def _typical_norm(self, context: UnlearningContext, layer: nn.Module) -> float:
        # The median: in large models the first token's norm is a thousand times the others'.
        import torch

        norms = []
        with torch.no_grad():
            for number in range(min(NORM_BATCHES, -(-len(self._forget) // self._size))):
                batch = self.forget(number)
                context.costs.count(batch.tokens)
                norms.append(hidden_states(context.model, layer, batch)[batch.attention_mask.bool()].float().norm(dim=-1))
        return float(torch.cat(norms).median())


# ---------------------------------------------------------------- the model, up to a layer


class _Reached(Exception):
    """Everything that is wanted of a forward pass has been computed."""


def hidden_states(
    model: PreTrainedModel, layer: nn.Module, batch: Batch, weights: Mapping[str, Tensor] | None = None
) -> Tensor:
    """The residual stream after a decoder layer; what lies behind it is not computed.

    Args:
        model: a decoder.
        layer: one of its layers.
        batch: texts; where they are padded on the left, they are read under their attention mask (on the right no text sees
            its padding).
        weights: stand in for the model's own of these names.

    Returns:
        [B, T, D] in the model's dtype.
    """
    from torch.func import functional_call

    states: list[Tensor] = []

    def stop(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)
        raise _Reached

    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if not bool(batch.attention_mask[:, 0].all()):
        inputs["attention_mask"] = batch.attention_mask
    handle = layer.register_forward_hook(stop)
    try:
        with suppress(_Reached):
            if weights is None:
                model(**inputs)
            else:
                functional_call(model, dict(weights), (), inputs, tie_weights=False)
    finally:
        handle.remove()
    return states[0].to(batch.input_ids.device)


def decoder(model: PreTrainedModel) -> Sequence[DecoderLayer]:
    """The decoder layers of a model, whose MLPs all have a down-projection.

    Raises:
        UsageError: if they have none that is known here.
    """
    if anatomy.has_experts(model):
        raise UsageError(
            f"{model.config.model_type} has a mixture of experts; rmu trains the down-projections of plain MLPs. "
            f"{ANY_ARCHITECTURE}."
        )
    layers = anatomy.decoder_layers(model)
    if not layers or not all(layer.down for layer in layers):
        raise UsageError(
            f"the architecture '{model.config.model_type}' has no MLP down-projection that rmu knows in every decoder layer; "
            f"its linear maps are {anatomy.described(model)}. {ANY_ARCHITECTURE}."
        )
    return layers


def trained(layers: Sequence[DecoderLayer], config: RMUConfig) -> dict[str, Tensor]:
    """Name and weight of what is trained.

    Raises:
        UsageError: if one of these layers, or the one behind which the stream is steered, is not there.
    """
    if reason := anatomy.absent_layers(len(layers), layer=config.layer, layers=config.layers):
        raise UsageError(f"{reason}.")
    maps = [layer.down for layer in anatomy.chosen(layers, config.layers)]
    return {f"{down.name}.weight": down.module.weight for down in maps if down}


@contextmanager
def _training_only(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, these weights take gradients and no others."""
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    model.requires_grad_(False)
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, had_gradient in wanted:
            parameter.requires_grad_(had_gradient)
