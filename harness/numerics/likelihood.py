"""What a model thinks of given answers: the numerics that methods and evaluators share.

Logits are computed at answer positions only, and everything after them in float32. Batches are right-padded and
the models causal, so no attention mask is passed: padding cannot reach a token before it, and attention without a
mask is the fast path. Where several texts begin with the same tokens, their likelihoods compute them once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.core.errors import UsageError
from harness.data.rows import Batch, Encoded, batches
from harness.numerics import anatomy, group
from harness.numerics.decoding import can_decode
from harness.numerics.products import is_wide, onednn_products
from harness.numerics.room import with_room
from harness.numerics.sharding import is_sharded
from harness.numerics.shared_prompts import Beginning, continued, shared_beginnings

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

TOKENS_PER_BATCH = 8192
"""Padded tokens of one forward pass where the result does not depend on it."""
TOKENS_ON_CPU = 2048
"""As many on a CPU: what a larger batch computes does not stay in its caches."""
CONTINUED_ON_CPU = 1536
"""As many there of texts that are read behind keys and values of their prompts, which count too."""
POSITIONS_AT_ONCE = 256
"""Positions whose whole distributions, of two models, are compared at a time; the result does not depend on it."""
ENTRIES_AT_ONCE = 2**28
"""Entries of the log-probabilities that are compared with kept ones at a time: 1 GiB in float32."""
ENTRIES_ON_CPU = 2**22
"""As many of a wide model (`harness.numerics.products`) on a CPU, whose caches hold no more."""

# Families whose logits are the output embedding applied to the last hidden state, with nothing after it but a soft cap.
_PLAIN_HEADS = {"llama", "mistral", "phi", "gpt2", "gpt_neo", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"}


def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether its logits are the output embedding of the last hidden state: some can be made without the others."""
    capped = getattr(model.config, "final_logit_softcapping", None) is not None
    return model.config.model_type in _PLAIN_HEADS and not capped


def check_length(model: PreTrainedModel, tokens: int) -> None:
    """Whether a text fits a model's context window; said once where the model only gets worse behind it.

    Args:
        model: any.
        tokens: of the longest text.

    Raises:
        UsageError: if the model has no positions for it.
    """
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(most, int) or tokens <= most or (room := anatomy.window(model)) is None:
        return
    if room.ends:
        raise UsageError(
            f"a text has {tokens} tokens, and this {model.config.model_type} has positions for {room.tokens}. Cut texts where "
            f"there is a setting for it (max_length={room.tokens}), or take a model with a longer context."
        )
    _say_longer(model.config.model_type, room.tokens)


@cache
def _say_longer(kind: str, window: int) -> None:
    log.warning("a text has more than the %d tokens that this %s is made for", window, kind)


def hidden_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The last hidden state at the positions that predict a label, row by row.

    Returns:
        [N, D] with N the number of labels in the batch, in the model's dtype.
    """
    check_length(model, batch.input_ids.shape[1])
    # On several GPUs the last layers lie elsewhere than the batch; on one device `to` does nothing.
    output = model.base_model(input_ids=batch.input_ids, use_cache=False)
    return output.last_hidden_state.to(batch.labels.device)[:, :-1][batch.scored]  # type: ignore[no-any-return]


def answer_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The logits that predict the labels, row by row.

    Returns:
        [N, V] float32, in the order of `answer_labels(batch)`.
    """
    if has_plain_head(model):
        return logits_of(model, hidden_states(model, batch))
    check_length(model, batch.input_ids.shape[1])
    logits = model(input_ids=batch.input_ids, use_cache=False).logits.to(batch.labels.device)
    return logits[:, :-1][batch.scored].float()  # type: ignore[no-any-return]


def logits_of(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """[N, V] float32 logits of a model with a plain head, out of last hidden states [N, D]; beside them."""
    return model.get_output_embeddings()(hidden).float().to(hidden.device)  # type: ignore[no-any-return]


def answer_labels(batch: Batch) -> Tensor:
    """[N] the labelled tokens, row by row."""
    return batch.labels[:, 1:][batch.scored]


def answer_rows(batch: Batch) -> Tensor:
    """[N] for each label, the position of its example in the list the batches were made from."""
    return batch.rows.repeat_interleave(batch.counts)


def sums_by_example(values: Tensor, batch: Batch) -> Tensor:
    """[B] the sum of each example's values.

    Args:
        values: [N] one for each label, in the order of `answer_labels(batch)`.
        batch: the examples.
    """
    counts = batch.counts
    owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return values.new_zeros(len(counts)).index_add(0, owner, values)


def drawn_tokens(cumulative: Tensor, uniform: Tensor) -> Tensor:
    """[N] a token drawn from each row's distribution: where the cumulative probability reaches the uniform number.

    Args:
        cumulative: [N, V] probabilities, summed up.
        uniform: [N] in [0, 1).

    >>> drawn_tokens(torch.tensor([[0.25, 0.75, 1.0]]).repeat(3, 1), torch.tensor([0.2, 0.5, 0.9])).tolist()
    [0, 1, 2]
    """
    # Scaled by the last entry, which rounding keeps from being exactly 1.
    tokens = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None])
    return tokens[:, 0].clamp_(max=cumulative.shape[1] - 1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """How far the right token's logit stands above all others together.

    m = z_y − log Σ_{i≠y} exp(z_i) = log(p_y / (1 − p_y))   (Park et al. 2023, arXiv:2303.14186; K-FADE, section 3)

    Args:
        logits: [..., V], unnormalised, already predicting `labels`.
        labels: [...] token ids.

    Returns:
        [...] in nats, float32.

    Raises:
        ValueError: if the shapes do not match.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {tuple(logits.shape)} do not predict labels {tuple(labels.shape)}")
    z = logits.float()
    index = labels.unsqueeze(-1)
    others = z.scatter(-1, index, float("-inf"))
    return z.gather(-1, index).squeeze(-1) - others.logsumexp(dim=-1)


def kl_per_token(base_log_probs: Tensor, log_probs: Tensor) -> Tensor:
    """KL(base ‖ current) at each position, exact over the vocabulary.

    Args:
        base_log_probs: [N, V] log-softmax of the model before unlearning.
        log_probs: [N, V] log-softmax of the model now.

    Returns:
        [N] in nats; never negative but for rounding.
    """
    return F.kl_div(log_probs, base_log_probs, reduction="none", log_target=True).sum(dim=-1)


@torch.no_grad()
def answer_nll(
    model: PreTrainedModel, encoded: Sequence[Encoded], pad_id: int, progress: Callable[[int], object] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Each example's negative log-likelihood, summed over its labels, and their number.

    Args:
        model: in eval mode.
        encoded: the examples.
        pad_id: see `harness.data.rows.pad_id`.
        progress: told after each batch how many examples it held.

    Returns:
        ([N] nats, [N] token counts), both float64.
    """
    tokens = min(TOKENS_PER_BATCH, TOKENS_ON_CPU) if model.device.type == "cpu" else TOKENS_PER_BATCH
    return _summed(model, encoded, tokens, lambda size: _label_losses(model, encoded, pad_id, size), progress)


def _summed(
    model: PreTrainedModel,
    encoded: Sequence[Encoded],
    tokens: int,
    by_label: Callable[[int], Iterator[tuple[Tensor, Tensor]]],
    progress: Callable[[int], object] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """([N] sums of the examples' labels' values, [N] their numbers), in smaller batches where memory runs out.

    Args:
        model: what reads.
        encoded: the examples.
        tokens: of a batch, at most.
        by_label: ([N] positions of examples, [N] float64 values), one for each label, in batches of so many tokens.
        progress: told how many examples were done since it was told last.
    """
    reported = 0

    def once(size: int) -> tuple[np.ndarray, np.ndarray]:
        nonlocal reported
        sums = torch.zeros(len(encoded), dtype=torch.float64)
        counts = torch.zeros(len(encoded), dtype=torch.float64)
        for rows, values in by_label(size):
            sums.index_add_(0, rows, values)
            counts.index_add_(0, rows, torch.ones_like(values))
            if progress and (done := int(counts.count_nonzero())) > reported:
                progress(done - reported)
                reported = done
        return sums.numpy(), counts.numpy()

    longest = max((len(e.input_ids) for e in encoded), default=1)
    return with_room(model, tokens, longest, once)


def _label_losses(
    model: PreTrainedModel, encoded: Sequence[Encoded], pad_id: int, tokens: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """([N] positions of examples, [N] float64 nats), one for each label, batch by batch: both on the CPU."""
    check_length(model, max((len(e.input_ids) for e in encoded), default=0))
    beginnings = shared_beginnings(encoded)
    if not _can_share(model, encoded, beginnings):
        beginnings = []
    behind = min(tokens, CONTINUED_ON_CPU) if model.device.type == "cpu" else tokens
    for batch in continued(model, encoded, beginnings, pad_id, behind):
        yield batch.rows, _losses(_by_part(model, batch.hidden), batch.labels)[batch.positions]
    shared = {number for beginning in beginnings for number in beginning.texts}
    single = [number for number in range(len(encoded)) if number not in shared]
    for padded in batches([encoded[number] for number in single], pad_id, tokens, model.device):
        losses = _losses(logits_by_part(model, padded), answer_labels(padded))
        yield torch.tensor(single)[answer_rows(padded).cpu()], losses


def _losses(logits: Callable[[slice], Tensor], labels: Tensor) -> Tensor:
    """[N] negative log-likelihoods, float64, on the CPU; of a large vocabulary some positions' logits are there at a time."""
    parts = _parts(len(labels), POSITIONS_AT_ONCE)
    # Copied once: a GPU would wait at each part.
    return torch.cat([F.cross_entropy(logits(part), labels[part], reduction="none") for part in parts]).cpu().double()


def _parts(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, max(1, count), size)]


def _can_share(model: PreTrainedModel, encoded: Sequence[Encoded], beginnings: Sequence[Beginning]) -> bool:
    """Whether texts may be read behind keys and values of their beginnings, and their logits be made at labels only."""
    longest = max((len(b.tokens) for b in beginnings), default=0) + max((e.label_count for e in encoded), default=0)
    room = anatomy.window(model)
    # Padded texts go as far as the longest beginning with the longest answer, beyond which a table of positions may end.
    fits = room is None or not room.ends or longest <= room.tokens
    return fits and has_plain_head(model) and can_decode(model, longest)


@torch.no_grad()
def kl_between(
    base: PreTrainedModel,
    model: PreTrainedModel,
    encoded: Sequence[Encoded],
    pad_id: int,
    progress: Callable[[int], object] | None = None,
    positions: int = POSITIONS_AT_ONCE,
) -> tuple[np.ndarray, np.ndarray]:
    """Each example's KL(base ‖ model), summed over its labels and exact over the vocabulary, and their number.

    Both models read a batch side by side, and their distributions are made and compared some positions at a time: nothing is
    kept but two numbers an example, however many there are.

    Args:
        base: in eval mode, on the same device.
        model: likewise.
        encoded: the examples.
        pad_id: see `harness.data.rows.pad_id`.
        progress: told after each batch how many examples it held.
        positions: how many distributions are compared at a time.

    Returns:
        ([N] nats, [N] token counts), both float64.
    """

    def by_label(tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches(encoded, pad_id, tokens, model.device):
            rows = answer_rows(batch).cpu()
            before, now = (logits_by_part(m, batch) for m in (base, model))
            parts = _parts(len(rows), positions)
            divergences = [kl_per_token(before(part).log_softmax(dim=-1), now(part).log_softmax(dim=-1)) for part in parts]
            yield rows, torch.cat(divergences).double().cpu()

    return _summed(model, encoded, TOKENS_PER_BATCH, by_label, progress)


def logits_by_part(model: PreTrainedModel, batch: Batch) -> Callable[[slice], Tensor]:
    """Makes `answer_logits(model, batch)[part]`, where it can without making the others."""
    if has_plain_head(model):
        return _by_part(model, hidden_states(model, batch))
    logits = answer_logits(model, batch)
    return lambda part: logits[part]


def _by_part(model: PreTrainedModel, hidden: Tensor) -> Callable[[slice], Tensor]:
    """Makes the logits of some positions out of their last hidden states, of a model with a plain head."""
    return lambda part: logits_of(model, hidden[part])


class AnswerDistributions:
    """What the model says now at every answer position of some examples, to measure later how far it has moved.

    Holds the log-probabilities: labels × vocabulary × 4 bytes. Made while processes share their work
    (`harness.numerics.group.together`), each has its share of the examples, and all measure together.

    Args:
        model: the model before unlearning.
        encoded: the examples.
        pad_id: see `harness.data.rows.pad_id`.
        where: what holds them; from the CPU they go to the model's device each time that something is measured.
    """

    @torch.no_grad()
    def __init__(
        self, model: PreTrainedModel, encoded: Sequence[Encoded], pad_id: int, where: torch.device | str = "cpu"
    ) -> None:
        self._processes = group.size()
        self._shared = not is_sharded(model)  # whose passes all processes take together
        mine = group.share(encoded) if self._shared else encoded
        self._batches = list(batches(mine, pad_id, TOKENS_PER_BATCH, "cpu"))
        with onednn_products(model):
            self._base = [[part.to(where) for part in self._log_probs(model, batch)] for batch in self._batches]
        self.labels = sum(e.label_count for e in encoded)
        """Number of answer positions."""

    @torch.no_grad()
    def kl(self, model: PreTrainedModel) -> float:
        """Mean KL(before ‖ now) per answer token, in nats.

        Raises:
            ValueError: if other processes have a part of the examples and do not measure now.
        """
        self._check_processes(group.size())
        total = sum(float(values.double().sum()) for _, values in self._divergences(model))
        return (group.summed(total)[0] if self._shared else total) / self.labels

    @torch.no_grad()
    def kl_sums(self, model: PreTrainedModel) -> tuple[np.ndarray, np.ndarray]:
        """Each example's KL(before ‖ now), summed over its answer tokens, and their number.

        Returns:
            ([N] nats, [N] token counts) in the order of the examples, both float64.

        Raises:
            ValueError: if other processes have a part of the examples.
        """
        self._check_processes(1)
        examples = sum(len(batch.rows) for batch in self._batches)
        sums, counts = torch.zeros(examples, dtype=torch.float64), torch.zeros(examples, dtype=torch.float64)
        for rows, values in self._divergences(model):
            sums.index_add_(0, rows, values.double().cpu())
            counts.index_add_(0, rows, torch.ones(len(rows), dtype=torch.float64))
        return sums.numpy(), counts.numpy()

    def _check_processes(self, measuring: int) -> None:
        if self._processes != measuring:
            raise ValueError(f"{self._processes} processes share these examples, and {measuring} would measure")

    def _divergences(self, model: PreTrainedModel) -> Iterator[tuple[Tensor, Tensor]]:
        """([n] positions of examples, [n] KL(before ‖ now) at their labels), some labels at a time."""
        with onednn_products(model):
            for batch, base in zip(self._batches, self._base, strict=True):
                rows = answer_rows(batch).split([len(part) for part in base])
                for of, before, now in zip(rows, base, self._log_probs(model, batch), strict=True):
                    yield of, kl_per_token(before.to(model.device), now)

    @staticmethod
    def _log_probs(model: PreTrainedModel, batch: Batch) -> Iterator[Tensor]:
        """[n, V] at a batch's labels, at most `ENTRIES_AT_ONCE`."""
        logits = logits_by_part(model, batch.to(model.device))
        most = ENTRIES_ON_CPU if model.device.type == "cpu" and is_wide(model) else ENTRIES_AT_ONCE
        for part in _parts(int(batch.counts.sum()), max(1, most // int(model.config.vocab_size))):
            yield logits(part).log_softmax(dim=-1)
