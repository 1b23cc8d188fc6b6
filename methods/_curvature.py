"""Kronecker-factored Gauss-Newton curvature of a causal language model's MLP layers: fit, store, solve.

The matrix is the Gauss-Newton matrix (= Fisher) of the mean-per-token cross-entropy. For a linear layer with inputs a and
gradients g of the un-averaged token losses with respect to its outputs, labels sampled from the model:

    A = Σ a aᵀ / tokens            over all real positions, prompt included, padding excluded
    S = Σ g gᵀ / labels            (labels: positions on which a loss is taken)
    A = Q_A diag(μ) Q_Aᵀ, S = Q_S diag(ν) Q_Sᵀ
    kfac      E_ij = ν_i μ_j                                             Martens & Grosse 2015, arXiv:1503.05671
    ekfac     E_ij = Σ_seq [(Q_Sᵀ D_seq Q_A)_ij]² / labels, D_seq = Σ_t g_t a_tᵀ   George et al. 2018, Grosse et al. 2023
    diagonal  E = Σ_seq D_seq² / labels, Q = I
    identity  E = 1, Q = I
    (G + λI)⁻¹ g = Q_S [(Q_Sᵀ g Q_A) / (E + λ)] Q_Aᵀ          ‖r‖²_G = Σ (Q_Sᵀ r Q_A)² E

A loss summed over tokens would multiply λ by the number of labels and step sizes by its root.

Own engine: one hook per layer streams inputs and output gradients into what is wanted; no weight gradient is ever formed and
the graph begins at the first targeted layer. It departs from curvlinops-for-pytorch (also offered, as `backend=curvlinops`)
in masking padding and prompts, in accumulating in float32 whatever the model's type, and in clamping eigenvalues at 0.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from harness import anatomy
from harness.data import NO_LABEL, Batch, Encoded, batches, by_length
from harness.errors import Diverged, UsageError
from harness.likelihood import answer_labels, answer_logits, answer_rows
from harness.progress import progress_bar
from harness.saving import save_tensors
from methods._settings import ANY_ARCHITECTURE

log = logging.getLogger(__name__)

Estimator = Literal["kfac", "ekfac", "diagonal", "identity"]
DampingMode = Literal["exact", "per_factor", "heuristic"]
TOKENS_PER_BATCH = 4096
"""Padded tokens of one pass; the result does not depend on it."""


# ---------------------------------------------------------------- layers


@dataclass(frozen=True)
class Layer:
    """One targeted linear map; weight and bias are treated as one matrix [out, in (+ 1)]."""

    name: str
    """As in `model.named_modules()`."""
    block: int
    """The decoder layer it belongs to, from 0."""
    module: nn.Linear | Conv1D
    """GPT-2's Conv1D keeps its weight transposed."""

    @property
    def has_bias(self) -> bool:
        """Whether a 1 is appended to the inputs."""
        return self.module.bias is not None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), the bias counted as one more input."""
        rows, columns = self.module.weight.shape
        out, inputs = (columns, rows) if isinstance(self.module, Conv1D) else (rows, columns)
        return out, inputs + self.has_bias

    def matrix(self) -> Tensor:
        """[out, in (+ 1)] a float32 copy of weight and bias."""
        weight = self.module.weight.detach()
        weight = weight.T if isinstance(self.module, Conv1D) else weight
        if self.has_bias:
            weight = torch.cat([weight, self.module.bias.detach()[:, None]], dim=1)
        return weight.float().clone()

    @torch.no_grad()
    def set_matrix(self, value: Tensor) -> None:
        """Write weight and bias, cast once to their type."""
        if self.has_bias:
            value, bias = value[:, :-1], value[:, -1]
            self.module.bias.copy_(bias)
        self.module.weight.copy_(value.T if isinstance(self.module, Conv1D) else value)


def mlp_layers(model: PreTrainedModel, blocks: Sequence[int] | None = None) -> list[Layer]:
    """The linear maps of the MLPs (gate, up, down; fc1, fc2; c_fc, c_proj), in the order of the forward pass.

    Args:
        model: a decoder.
        blocks: the decoder layers to take, from 0; all if None.

    Raises:
        UsageError: if there are none, if they are experts, or if a block is not there.
    """
    if anatomy.has_experts(model):
        raise UsageError(
            f"{model.config.model_type} has a mixture of experts; its curvature is not built here. {ANY_ARCHITECTURE}."
        )
    decoder = anatomy.decoder_layers(model)
    if not any(layer.mlp for layer in decoder):
        raise UsageError(
            f"the architecture '{model.config.model_type}' has no MLP layers that are known here, which the curvature targets; "
            f"its linear maps are {anatomy.described(model)}. {ANY_ARCHITECTURE}."
        )
    return [
        Layer(linear.name, layer.number, linear.module) for layer in anatomy.chosen(decoder, blocks) for linear in layer.mlp
    ]


@dataclass(frozen=True)
class Sizes:
    """What the curvature of some layers takes, in bytes; modules on the meta device will do."""

    factors: int
    """Both factors of every layer, or the eigenvectors that replace them."""
    spectrum: int
    """One float32 matrix of each layer's shape: an EK-FAC spectrum, a gradient, a direction."""
    decomposition: int
    """The largest factor, its eigenvectors and the solver's workspace in float64."""


def sizes(layers: Sequence[Layer]) -> Sizes:
    """What the curvature of these layers takes."""
    groups = _groups(layers)
    inputs = [layer.shape[1] for i, layer in enumerate(layers) if groups.index(groups[i]) == i]
    outputs = [layer.shape[0] for layer in layers]
    return Sizes(
        factors=4 * sum(n * n for n in (*inputs, *outputs)),
        spectrum=4 * sum(layer.shape[0] * layer.shape[1] for layer in layers),
        decomposition=4 * 8 * max((*inputs, *outputs)) ** 2,
    )


# ---------------------------------------------------------------- one pass over data


OnInput = Callable[[int, Tensor], Tensor | None]
"""(group, [B, T, in (+ 1)] inputs) → what `OnGradient` is to see of them; called once per batch and group."""
OnGradient = Callable[[int, Tensor | None, Tensor], None]
"""(layer, what `OnInput` returned, [B, T, out] gradients); called at every backward pass."""
LogitGradient = Callable[[Tensor, Batch], Iterable[Tensor]]
"""([N, V] logits, the batch) → gradients with respect to the logits, one backward pass for each."""


def _groups(layers: Sequence[Layer]) -> list[int]:
    """For each layer the group it shares its input with: gate and up of one block read the same tensor."""
    groups: list[int] = []
    for i, layer in enumerate(layers):
        is_up = layer.name.endswith(".up_proj") and i > 0 and layers[i - 1].name.endswith(".gate_proj")
        same = is_up and layers[i - 1].block == layer.block and layers[i - 1].has_bias == layer.has_bias
        groups.append(groups[-1] if same else (groups[-1] + 1 if groups else 0))
    return groups


@contextmanager
def _hooks(layers: Sequence[Layer], on_input: OnInput, on_gradient: OnGradient) -> Iterator[Callable[[int], None]]:
    """Inside, the callbacks are shown what passes through the layers; what is yielded is told each batch's sequences first."""
    groups = _groups(layers)
    seen: dict[int, tuple[Tensor, Tensor | None]] = {}
    sequences = 1

    def next_batch(count: int) -> None:
        nonlocal sequences
        sequences = count

    def by_sequence(tensor: Tensor) -> Tensor:
        return tensor.reshape(sequences, -1, tensor.shape[-1])  # OPT's MLP reads and writes [B·T, D]

    def forward(index: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            group, inputs = groups[index], args[0]
            if group not in seen or seen[group][0] is not inputs:
                if groups.index(group) != index:
                    raise RuntimeError(f"{layers[index].name} was expected to read the same input as the layer before it")
                a = by_sequence(inputs.detach())
                if layers[index].has_bias:
                    a = torch.cat([a, a.new_ones(*a.shape[:-1], 1)], dim=-1)
                seen[group] = (inputs, on_input(group, a))
            # Nothing before the first targeted layer needs a gradient, so the graph begins here.
            output = output if output.requires_grad else output.requires_grad_()
            kept = seen[group][1]
            output.register_hook(lambda g: on_gradient(index, kept, by_sequence(g.detach())))
            return output

        return hook

    handles = [layer.module.register_forward_hook(forward(i)) for i, layer in enumerate(layers)]
    try:
        yield next_batch
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise ValueError("gradient checkpointing runs every layer twice and would double A; switch it off first")
    if model.training:
        raise ValueError("the model is in training mode; dropout would enter the curvature")
    wanted = [p for p in model.parameters() if p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_()


def backpropagate(
    model: PreTrainedModel,
    layers: Sequence[Layer],
    data: Iterable[Batch],
    logit_gradient: LogitGradient,
    on_input: OnInput,
    on_gradient: OnGradient,
    label: str = "",
    total: int | None = None,
) -> None:
    """Forward and backward over batches, showing each targeted layer's inputs and output gradients to two callbacks.

    Args:
        model: in eval mode, without gradient checkpointing; left as it was found, also after an exception.
        layers: from `mlp_layers`.
        data: the batches.
        logit_gradient: what is fed into the backward pass.
        on_input: see `OnInput`. Padding is still there.
        on_gradient: see `OnGradient`. Gradients at padding are exactly 0.
        label: of the progress bar.
        total: how many sequences there are, for the bar.
    """
    bar = progress_bar(total=total, desc=label, unit="sequence")
    with bar, _frozen(model), torch.enable_grad(), _hooks(layers, on_input, on_gradient) as next_batch:
        for batch in data:
            next_batch(len(batch.rows))
            logits = answer_logits(model, batch)
            signals = list(logit_gradient(logits.detach(), batch))
            for k, signal in enumerate(signals, start=1):
                logits.backward(signal, retain_graph=k < len(signals))
            bar.update(len(batch.rows))


# ---------------------------------------------------------------- what goes into the backward pass


class SampledLabels:
    """Gradients of the cross-entropy at labels drawn from the model: p − e_ŷ, un-averaged.

    Labels come from uniform numbers seeded by (seed, row of the data set), so they depend neither on batch size nor on order.

    Args:
        encoded: the data set.
        samples: draws per label.
        seed: of the draws.
    """

    def __init__(self, encoded: Sequence[Encoded], samples: int, seed: int) -> None:
        self.samples = samples
        self._uniform = [
            np.random.default_rng([seed, row]).random((samples, len(e.input_ids) - max(1, e.prompt_tokens)), dtype=np.float32)
            for row, e in enumerate(encoded)
        ]

    def __call__(self, logits: Tensor, batch: Batch) -> Iterator[Tensor]:
        """See `LogitGradient`."""
        p = logits.softmax(dim=-1)
        cumulative = p.cumsum(dim=-1)
        uniform = np.concatenate([self._uniform[row] for row in batch.rows.tolist()], axis=1)  # [samples, N]
        for u in torch.from_numpy(uniform).to(p.device):
            # Scaled by the last entry, which rounding keeps from being exactly 1.
            labels = torch.searchsorted(cumulative, (u * cumulative[:, -1])[:, None]).clamp_(max=p.shape[1] - 1)
            yield p.scatter_add(1, labels, p.new_full(labels.shape, -1.0))


def true_labels(labels_in_all: int, objective: Literal["cross_entropy", "margin"], margin_clip: float) -> LogitGradient:
    """The gradient of the forget objective that is to rise, averaged over all labels of the forget set.

    cross_entropy: p − e_y.   margin: −margin = −log(p_y / (1 − p_y)), hence (p − e_y) / (1 − p_y): bounded, and not
    vanishing on memorised tokens. With a clip, the divisor is at least `margin_clip`.

    Args:
        labels_in_all: number of labels the mean is over.
        objective: which.
        margin_clip: 0 for the paper's form.
    """

    def gradient(logits: Tensor, batch: Batch) -> Iterator[Tensor]:
        labels = answer_labels(batch)[:, None]
        p = logits.softmax(dim=-1)
        error = p.scatter_add(1, labels, p.new_full(labels.shape, -1.0))
        if objective == "margin":
            # 1 − p_y as the sum of the others: a difference of floats would be 0 on memorised tokens.
            rest = p.scatter(1, labels, 0.0).sum(dim=1, keepdim=True)
            error = error.scatter(1, labels, -rest) / rest.clamp(min=max(margin_clip, torch.finfo(p.dtype).tiny))
        yield error / labels_in_all

    return gradient


class SequenceObjective:
    """Gradients of minus the NPO or the SimNPO loss, which weigh every sequence by how far it is already forgotten.

    npo:     (2/β) mean_b log σ(β [S − S_θ0]_b)     each label: w_b (p − e_y) / B,  w_b = 2 σ(−β [S − S_θ0]_b)
    simnpo:  (2/β) mean_b log σ(β (S/T − γ)_b)      w_b = 2 σ(−β (S/T − γ)_b) / T_b

    with S a sequence's summed negative log-likelihood and T its labels (arXiv:2404.05868, arXiv:2410.07163).

    Args:
        sequences: B, how many the mean is over.
        objective: which.
        beta: β.
        gamma: γ of simnpo.
        before: S_θ0 of every sequence of the data set, for npo.
    """

    def __init__(
        self, sequences: int, objective: Literal["npo", "simnpo"], beta: float, gamma: float, before: Sequence[float] | None
    ) -> None:
        if (before is None) == (objective == "npo"):
            raise ValueError("npo needs the losses before unlearning, simnpo takes none")
        self._sequences, self._beta, self._gamma, self._before = sequences, beta, gamma, before

    def __call__(self, logits: Tensor, batch: Batch) -> Iterator[Tensor]:
        """See `LogitGradient`."""
        labels = answer_labels(batch)[:, None]
        log_p = logits.log_softmax(dim=-1)
        counts = (batch.labels[:, 1:] != NO_LABEL).sum(dim=1)
        owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        sums = log_p.new_zeros(len(counts)).index_add(0, owner, -log_p.gather(1, labels)[:, 0])
        if self._before is not None:
            rise = sums - sums.new_tensor([self._before[row] for row in batch.rows.tolist()])
            weights = 2 * (-self._beta * rise).sigmoid()
        else:
            weights = 2 * (-self._beta * (sums / counts - self._gamma)).sigmoid() / counts
        error = log_p.exp().scatter_add(1, labels, log_p.new_full(labels.shape, -1.0))
        yield error * weights[owner, None] / self._sequences


# ---------------------------------------------------------------- the curvature


@dataclass
class LayerCurvature:
    """One layer's eigenbasis and spectrum; None stands for the identity basis or for the product spectrum."""

    q_in: Tensor | None
    """[in, in] columns are eigenvectors of A."""
    q_out: Tensor | None
    """[out, out] columns are eigenvectors of S."""
    mu: Tensor | None
    """[in] eigenvalues of A."""
    nu: Tensor | None
    """[out] eigenvalues of S."""
    corrected: Tensor | None = None
    """[out, in] the spectrum where it is not ν μᵀ (ekfac, diagonal)."""

    def spectrum(self, shape: tuple[int, int], device: torch.device) -> Tensor:
        """[out, in] the eigenvalues E of this layer's block of G."""
        if self.corrected is not None:
            return self.corrected
        if self.nu is not None and self.mu is not None:
            return torch.outer(self.nu, self.mu)
        return torch.ones(shape, device=device)

    def rotate(self, matrix: Tensor) -> Tensor:
        """Q_Sᵀ M Q_A."""
        if self.q_in is None or self.q_out is None:
            return matrix
        return self.q_out.T @ matrix @ self.q_in

    def rotate_back(self, matrix: Tensor) -> Tensor:
        """Q_S M Q_Aᵀ."""
        if self.q_in is None or self.q_out is None:
            return matrix
        return self.q_out @ matrix @ self.q_in.T


@dataclass
class Sums:
    """Running sums of one pass; sums of parts of the data add up to the sums of the whole."""

    a: dict[int, Tensor] = field(default_factory=dict)
    """group → Σ a aᵀ."""
    s: dict[int, Tensor] = field(default_factory=dict)
    """layer → Σ g gᵀ / samples."""
    squares: dict[int, Tensor] = field(default_factory=dict)
    """layer → Σ_seq D² / samples."""
    tokens: int = 0
    """Real positions."""
    labels: int = 0
    """Positions on which a loss is taken."""

    def __iadd__(self, other: Sums) -> Sums:
        for mine, theirs in ((self.a, other.a), (self.s, other.s), (self.squares, other.squares)):
            for key, value in theirs.items():
                mine[key] = mine[key] + value if key in mine else value
        self.tokens += other.tokens
        self.labels += other.labels
        return self


def _zeros(into: dict[int, Tensor], key: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
    if key not in into:
        into[key] = torch.zeros(shape, dtype=_accumulator(like), device=like.device)
    return into[key]


def _accumulator(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def covariance_sums(
    model: PreTrainedModel,
    layers: Sequence[Layer],
    encoded: Sequence[Encoded],
    pad_id: int,
    gradient: LogitGradient,
    samples: int = 1,
    rows: Sequence[int] | None = None,
) -> Sums:
    """Σ a aᵀ and Σ g gᵀ over a data set (the first pass).

    Args:
        model: in eval mode.
        layers: from `mlp_layers`.
        encoded: the whole data set.
        pad_id: see `harness.data.pad_id`.
        gradient: usually `SampledLabels`.
        samples: how many backward passes it asks for per batch.
        rows: the part to take (one process's share), all if None.
    """
    sums = Sums()
    mask: list[Tensor | None] = [None]

    def on_input(group: int, a: Tensor) -> None:
        flat = a.flatten(0, 1)
        if mask[0] is not None:
            flat = flat[mask[0].to(flat.device)]
        flat = flat.to(_accumulator(flat))
        _zeros(sums.a, group, (flat.shape[1], flat.shape[1]), flat).addmm_(flat.T, flat)

    def on_gradient(layer: int, _: Tensor | None, g: Tensor) -> None:
        flat = g.flatten(0, 1)
        flat = flat.to(_accumulator(flat))
        _zeros(sums.s, layer, (flat.shape[1], flat.shape[1]), flat).addmm_(flat.T, flat, alpha=1 / samples)

    def counted() -> Iterator[Batch]:
        for batch in _batches(encoded, pad_id, model, rows):
            real = batch.attention_mask.flatten().bool()
            mask[0] = None if bool(real.all()) else real
            sums.tokens += batch.tokens
            sums.labels += len(answer_rows(batch))
            yield batch

    backpropagate(model, layers, counted(), gradient, on_input, on_gradient, "curvature factors", len(rows or encoded))
    return sums


def square_sums(
    model: PreTrainedModel,
    layers: Sequence[Layer],
    encoded: Sequence[Encoded],
    pad_id: int,
    gradient: LogitGradient,
    bases: Sequence[LayerCurvature],
    samples: int = 1,
    rows: Sequence[int] | None = None,
) -> Sums:
    """Σ_seq (Q_Sᵀ D_seq Q_A)² over a data set (the second pass of EK-FAC; the only one of the diagonal).

    Inputs and gradients are rotated first, so that one product per sequence remains. Arguments as in `covariance_sums`;
    `bases` holds a basis per layer.
    """
    sums = Sums()
    groups = _groups(layers)
    buffers: dict[tuple[int, ...], Tensor] = {}

    def on_input(group: int, a: Tensor) -> Tensor:
        a = a.to(_accumulator(a))
        q = bases[groups.index(group)].q_in
        return a if q is None else a @ q

    def on_gradient(layer: int, a: Tensor | None, g: Tensor) -> None:
        assert a is not None
        g = g.to(_accumulator(g))
        q = bases[layer].q_out
        g = g if q is None else g @ q
        total = _zeros(sums.squares, layer, (g.shape[-1], a.shape[-1]), g)
        product = buffers.setdefault(tuple(total.shape), torch.empty_like(total))
        for one_g, one_a in zip(g, a, strict=True):
            torch.mm(one_g.T, one_a, out=product)
            total.addcmul_(product, product, value=1 / samples)

    def counted() -> Iterator[Batch]:
        for batch in _batches(encoded, pad_id, model, rows):
            sums.labels += len(answer_rows(batch))
            yield batch

    backpropagate(model, layers, counted(), gradient, on_input, on_gradient, "curvature spectrum", len(rows or encoded))
    return sums


def _batches(encoded: Sequence[Encoded], pad_id: int, model: PreTrainedModel, rows: Sequence[int] | None) -> Iterator[Batch]:
    from harness.data import collate

    if rows is None:
        yield from batches(encoded, pad_id, TOKENS_PER_BATCH, model.device)
        return
    for group in by_length([encoded[i] for i in rows], TOKENS_PER_BATCH):
        chosen = [rows[i] for i in group]
        yield collate([encoded[i] for i in chosen], chosen, pad_id).to(model.device)


def eigenbases(layers: Sequence[Layer], sums: Sums) -> list[LayerCurvature]:
    """Each layer's eigenvectors and eigenvalues, decomposed in float64 and clamped at 0.

    The sums are taken out of `sums` one after the other: factors and eigenvectors together would take twice the room.
    """
    groups = _groups(layers)
    keep = next(iter(sums.s.values())).dtype
    decomposed = {group: _eigh(sums.a.pop(group) / sums.tokens, keep) for group in list(sums.a)}
    found = []
    for i in progress_bar(range(len(layers)), desc="eigendecomposition", unit="layer"):
        mu, q_in = decomposed[groups[i]]
        nu, q_out = _eigh(sums.s.pop(i) / sums.labels, keep)
        found.append(LayerCurvature(q_in, q_out, mu, nu))
    return found


def _eigh(matrix: Tensor, keep: torch.dtype) -> tuple[Tensor, Tensor]:
    if not bool(torch.isfinite(matrix).all()):
        raise Diverged("a curvature factor is not finite")
    values, vectors = torch.linalg.eigh(matrix.double())
    return values.clamp(min=0), vectors.to(keep)


def gradient_matrices(
    model: PreTrainedModel, layers: Sequence[Layer], encoded: Sequence[Encoded], pad_id: int, gradient: LogitGradient
) -> list[Tensor]:
    """Each layer's gradient [out, in (+ 1)] of the loss whose logit gradient is given, summed over a data set in float32."""
    total: dict[int, Tensor] = {}

    def on_gradient(layer: int, a: Tensor | None, g: Tensor) -> None:
        assert a is not None
        a, g = a.flatten(0, 1), g.flatten(0, 1)
        a, g = a.to(_accumulator(a)), g.to(_accumulator(g))
        _zeros(total, layer, (g.shape[1], a.shape[1]), g).addmm_(g.T, a)

    data = _batches(encoded, pad_id, model, None)
    backpropagate(model, layers, data, gradient, lambda _, a: a, on_gradient, "forget gradient", len(encoded))
    return [total[i] for i in range(len(layers))]


def curvlinops_curvatures(
    model: PreTrainedModel,
    layers: Sequence[Layer],
    encoded: Sequence[Encoded],
    estimator: Literal["kfac", "ekfac"],
    samples: int,
    seed: int,
) -> list[LayerCurvature]:
    """The same curvatures from curvlinops-for-pytorch, where it can give them.

    Raises:
        UsageError: for sequences of different lengths or prompts (it cannot mask them), for Conv1D layers, or a model
            that is not float32 or float64 (it would accumulate in the model's type).
    """
    if len({(len(e.input_ids), e.prompt_tokens) for e in encoded}) != 1:
        raise UsageError(
            "backend=curvlinops cannot mask padding or prompts: all sequences must have one length and one prompt length, "
            "and these do not. Use backend=own."
        )
    if any(isinstance(layer.module, Conv1D) for layer in layers):
        raise UsageError("backend=curvlinops knows no Conv1D layers (GPT-2). Use backend=own.")
    if model.dtype not in (torch.float32, torch.float64):
        raise UsageError(f"backend=curvlinops would accumulate in {model.dtype}. Use --dtype float32 or backend=own.")
    from curvlinops import EKFACLinearOperator, KFACLinearOperator

    length, first = len(encoded[0].input_ids), max(1, encoded[0].prompt_tokens)
    labels = length - first

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, ids: Tensor) -> Tensor:
            logits = self.inner(input_ids=ids, use_cache=False).logits[:, first - 1 : -1]
            return logits.flatten(0, 1)  # type: ignore[no-any-return]

    ids = torch.tensor([e.input_ids for e in encoded], device=model.device)
    size = max(1, TOKENS_PER_BATCH // length)
    data = [(part, part[:, first:].flatten()) for part in ids.split(size)]
    operator = KFACLinearOperator if estimator == "kfac" else EKFACLinearOperator
    with _frozen(model):
        parameters = [p for layer in layers for p in (layer.module.weight, layer.module.bias) if p is not None]
        for parameter in parameters:
            parameter.requires_grad_()
        try:
            found = operator(
                Flat(),
                nn.CrossEntropyLoss(reduction="sum"),
                parameters,
                data,
                check_deterministic=False,
                seed=seed,
                mc_samples=samples,
                num_data=len(encoded),
                num_per_example_loss_terms=labels,
                separate_weight_and_bias=False,
            )
            found.compute_kronecker_factors()
            state = found.state_dict()
            count = len(encoded) * labels
            # Its "sum" reduction leaves S and the spectrum as sums over labels; A is a mean already.
            kfac = [
                (state["input_covariances"][f"inner.{x.name}"], state["gradient_covariances"][f"inner.{x.name}"] / count)
                for x in layers
            ]
            keep = kfac[0][0].dtype
            curvatures = []
            for a, s in kfac:
                (mu, q_in), (nu, q_out) = _eigh(a, keep), _eigh(s, keep)
                curvatures.append(LayerCurvature(q_in, q_out, mu, nu))
            if estimator == "ekfac":
                found.compute_eigenvalue_correction()
                state = found.state_dict()
                for curvature, layer in zip(curvatures, layers, strict=True):
                    name = f"inner.{layer.name}"
                    curvature.q_in = state["input_covariances_eigenvectors"][name]
                    curvature.q_out = state["gradient_covariances_eigenvectors"][name]
                    corrected = state["corrected_eigenvalues"][name]
                    curvature.corrected = (corrected if layer.has_bias else next(iter(corrected.values()))) / count
            return curvatures
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)


# ---------------------------------------------------------------- solving


@dataclass(frozen=True)
class Direction:
    """r = (G + λI)⁻¹ g, and what is known of it."""

    matrices: list[Tensor]
    """[out, in (+ 1)] for each layer."""
    g_norm: float
    """‖r‖_G = sqrt(rᵀ G r), in the undamped metric (sqrt(nats))."""
    damped_norm: float
    """sqrt(rᵀ (G + λI) r) = sqrt(gᵀ r) with exact damping."""
    gain: float
    """gᵀ r: the first-order rise of the forget objective per unit of r."""


class Solver:
    """Solves with one gradient for any damping: the gradient is rotated once, a further λ costs a division and a rotation back.

    Args:
        layers: from `mlp_layers`.
        curvatures: one per layer.
        gradients: one [out, in (+ 1)] matrix per layer.
    """

    def __init__(self, layers: Sequence[Layer], curvatures: Sequence[LayerCurvature], gradients: Sequence[Tensor]) -> None:
        self.curvatures = curvatures
        self._rotated = [c.rotate(g) for c, g in zip(curvatures, gradients, strict=True)]
        self._spectra = [
            c.spectrum(layer.shape, g.device).to(g.dtype) for c, layer, g in zip(curvatures, layers, gradients, strict=True)
        ]
        entries = sum(e.numel() for e in self._spectra)
        self.mean_eigenvalue = sum(float(e.double().sum()) for e in self._spectra) / entries
        """One mean over all layers: the unit of `damping_scale=mean_eigenvalue`."""

    def direction(self, damping: float, mode: DampingMode = "exact") -> Direction:
        """The damped Newton direction.

        Args:
            damping: λ, in the units of G.
            mode: `exact` adds λ to G's eigenvalues; `per_factor` adds it to each factor's; `heuristic` adds √λ π and √λ / π
                (Martens & Grosse 2015, section 6.3).

        Raises:
            UsageError: if the mode needs Kronecker factors and there are none.
            Diverged: if the direction is not finite or does not raise the objective.
        """
        matrices, quad, damped, gain = [], 0.0, 0.0, 0.0
        for curvature, g, e in zip(self.curvatures, self._rotated, self._spectra, strict=True):
            r = g / self._denominator(curvature, e, damping, mode)
            squared = r.double().square()
            quad += float((squared * e).sum())
            damped += float((squared * (e + damping)).sum())
            gain += float((r.double() * g).sum())
            matrices.append(curvature.rotate_back(r))
        if not (np.isfinite(quad) and np.isfinite(gain) and quad > 0 and gain > 0):
            raise Diverged(f"no usable direction at damping {damping:g}: rᵀGr = {quad:g}, gᵀr = {gain:g}")
        return Direction(matrices, quad**0.5, damped**0.5, gain)

    @staticmethod
    def _denominator(curvature: LayerCurvature, spectrum: Tensor, damping: float, mode: DampingMode) -> Tensor:
        if mode == "exact":
            return spectrum + damping
        if curvature.corrected is not None or curvature.mu is None or curvature.nu is None:
            raise UsageError(f"damping_mode={mode} adds λ to Kronecker factors, which only estimator=kfac has. Use exact.")
        mu, nu = curvature.mu, curvature.nu
        if mode == "per_factor":
            return torch.outer(nu + damping, mu + damping).to(spectrum.dtype)
        pi = (mu.mean() / nu.mean().clamp(min=torch.finfo(torch.float64).tiny)).sqrt()
        return torch.outer(nu + damping**0.5 / pi, mu + damping**0.5 * pi).to(spectrum.dtype)


# ---------------------------------------------------------------- warnings and files


def warn_if_thin(layers: Sequence[Layer], curvatures: Sequence[LayerCurvature], tokens: int, damping: float) -> None:
    """Say so when there are too few tokens for the factors, or λ is lost in the rounding of the largest eigenvalues."""
    largest = max(max(layer.shape) for layer in layers)
    if tokens < largest:
        log.warning("the curvature rests on %d tokens, fewer than its largest factor's %d rows", tokens, largest)
    top = max((float(c.mu.max() * c.nu.max()) for c in curvatures if c.mu is not None and c.nu is not None), default=0.0)
    if 0 < damping < 1e-7 * top and tokens < 4 * largest:
        log.warning(
            "damping %.1e is under 1e-7 of the largest eigenvalue %.1e: float32 factors cannot resolve it", damping, top
        )


def save_curvatures(curvatures: Sequence[LayerCurvature], layers: Sequence[Layer], folder: Path) -> None:
    """One safetensors file per layer; an A that two layers share is written once."""
    groups = _groups(layers)
    for i, curvature in enumerate(curvatures):
        tensors: dict[str, Tensor | None] = {"q_out": curvature.q_out, "nu": curvature.nu, "corrected": curvature.corrected}
        if groups.index(groups[i]) == i:
            tensors |= {"q_in": curvature.q_in, "mu": curvature.mu}
        save_tensors({k: v for k, v in tensors.items() if v is not None}, folder / f"{i:04d}.safetensors")


def load_curvatures(layers: Sequence[Layer], folder: Path, device: torch.device | None = None) -> list[LayerCurvature]:
    """What `save_curvatures` wrote, on a device or, if none is given, each layer's beside its weights."""
    groups = _groups(layers)
    found: list[LayerCurvature] = []
    for i in range(len(layers)):
        where = str(device or layers[i].module.weight.device)
        tensors: Mapping[str, Tensor] = load_file(folder / f"{i:04d}.safetensors", device=where)
        owner = groups.index(groups[i])
        q_in, mu = (tensors.get("q_in"), tensors.get("mu")) if owner == i else (found[owner].q_in, found[owner].mu)
        found.append(LayerCurvature(q_in, tensors.get("q_out"), mu, tensors.get("nu"), tensors.get("corrected")))
    return found
