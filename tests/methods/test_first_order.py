"""The first-order methods against their published formulas, and what the recipe they share promises.

Losses and gradients are compared with plain torch on the full logits of a nano model in double precision; the methods
themselves compute in float32 from the logits on.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import PreTrainedModel

from harness.core.benchmark import BENCHMARKS
from harness.core.config import resolve, to_json
from harness.core.errors import Diverged, UsageError
from harness.core.method import METHODS, Progress, UnlearningContext
from harness.core.options import Options
from harness.core.problem import Problem, Stage
from harness.data.rows import NO_LABEL, Batch, Encoded, collate, encode, pad_id
from harness.models.small import SMALL_MODEL_FACTOR
from harness.models.sources import weights_fingerprint
from harness.numerics import training
from harness.running.plan import plan
from methods.first_order.loop import Data, Losses, Part, unlearn
from methods.first_order.partners import Partners
from methods.first_order.recipe import PairedRecipe, Recipe, Schedule
from methods.first_order.refusals import Refusals
from tests.conftest import ContextMaker, NanoBenchmark

NAMES = ["ga", "grad_diff", "kl_min", "npo", "simnpo", "dpo", "idk"]
NANO: dict[str, dict[str, Any]] = {"kl_min": {"pad_length": 40}, "simnpo": {"beta": 2.5, "gamma": 8.0}}
"""Settings that suit a nano model: its texts have some 20 tokens, and its answers' losses are some 8 nats per token."""
FORGET, RETAIN = (7, 0, 3, 11), (2, 20, 5, 9)
"""The pairs of the step on which the loss terms are looked at."""


# ---------------------------------------------------------------- one step, and the formulas' ingredients


@dataclass
class Golden:
    """A method's loss terms, made at θ0 on a step of four pairs, and the model whose weights they are functions of."""

    context: UnlearningContext
    data: Data
    terms: Losses
    before: PreTrainedModel
    """θ0."""

    @property
    def model(self) -> PreTrainedModel:
        """θ; θ0 until it is moved."""
        return self.context.model

    def moved(self) -> Golden:
        """The same at another θ."""
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for p in self.model.parameters():
                p.add_(0.03 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        return self

    def refusals(self) -> list[Encoded]:
        """The forget questions of the step with the refusals drawn for them."""
        drawn = Refusals(self.context, self.data.stage)
        return [drawn(1, row) for row in FORGET]

    def parts(self, side: str) -> list[Part]:
        """The step's examples of one side, cut into three and one."""
        rows = FORGET if side == "forget" else RETAIN
        forget = self.refusals() if self.terms.forget_texts else [self.data.forget[row] for row in FORGET]
        retain = [self.data.retain[row] for row in RETAIN]
        texts = forget if side == "forget" else retain
        return [
            Part(
                collate(texts[cut], rows[cut], self.data.pad),
                rows[cut],
                step=1,
                examples=4,
                labels=labels(texts),
                all_labels=labels(forget) + labels(retain),
            )
            for cut in (slice(0, 3), slice(3, 4))
        ]

    def evaluate(self, term: Callable[[Part], Tensor] | None, parts: Sequence[Part]) -> tuple[float, list[Tensor]]:
        """A term's value, and its gradient with respect to the logits of every forward pass."""
        assert term is not None
        seen: list[Tensor] = []

        def keep(_module: Any, _inputs: Any, logits: Tensor) -> None:
            logits.retain_grad()
            seen.append(logits)

        handle = self.model.lm_head.register_forward_hook(keep)
        value = torch.stack([term(part) for part in parts]).sum()
        handle.remove()
        value.backward()
        return float(value.detach()), [logits.grad for logits in seen if logits.grad is not None]

    def parameter_gradient(self, loss: Tensor) -> Tensor:
        """With respect to all weights, as one vector."""
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(self.model.parameters()))])


GoldenMaker = Callable[..., Golden]


@pytest.fixture
def golden(make_context: ContextMaker, monkeypatch: pytest.MonkeyPatch) -> GoldenMaker:
    """Makes the loss terms of a method: what it hands to the common loop."""

    def make(name: str, **settings: Any) -> Golden:
        context = make_context()
        context.model.double()
        (stage,) = context.stages
        tokenizer = context.tokenizer
        data = Data(encode(stage.forget, tokenizer), encode(stage.retain, tokenizer), pad_id(tokenizer), stage, [FORGET])
        caught: list[Losses] = []

        def catch(
            _setting: UnlearningContext, _recipe: Recipe, losses: Callable[[Data], Losses], before_step: object = None
        ) -> Iterator[Progress]:
            caught.append(losses(data))
            yield from ()

        before = copy.deepcopy(context.model)
        monkeypatch.setattr(import_module(f"methods.{name}"), "unlearn", catch)
        method = METHODS.get(name)
        list(method.unlearn(context, resolve(method.config, NANO.get(name, {}), settings, owner=name)))
        return Golden(context, data, caught[0], before)

    return make


def labels(texts: Sequence[Encoded]) -> int:
    return sum(len(e.input_ids) - e.prompt_tokens for e in texts)


@dataclass
class Look:
    """What the formulas are made of, for one batch, from the full logits in float64."""

    probabilities: Tensor
    """[B, T, V] p."""
    targets: Tensor
    """[B, T, V] e_y."""
    labelled: Tensor
    """[B, T] where there is a label."""
    sums: Tensor
    """[B] S."""
    counts: Tensor
    """[B] T."""

    @staticmethod
    def at(model: PreTrainedModel, batch: Batch) -> Look:
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
        assert logits.dtype == torch.float64
        answer = batch.labels[:, 1:]
        labelled = answer != NO_LABEL
        targets = torch.nn.functional.one_hot(answer.clamp(min=0), logits.shape[-1]).double()
        nll = -(targets * logits.log_softmax(-1)).sum(-1) * labelled
        return Look(logits.softmax(-1).detach(), targets, labelled, nll.sum(-1), labelled.sum(-1))

    def ascent(self, weights: Tensor) -> Tensor:
        """[N, V] w_b (e_y − p) at the labels, row by row: what raises the answers' losses when it is descended."""
        return (weights[:, None, None] * (self.targets - self.probabilities))[self.labelled]


def looks_at(model: PreTrainedModel, batches: Sequence[Batch]) -> tuple[list[Look], Tensor, Tensor]:
    """A look at each batch; S and T of all of them."""
    looks = [Look.at(model, batch) for batch in batches]
    return looks, torch.cat([look.sums for look in looks]).detach(), torch.cat([look.counts for look in looks])


def close(found: Tensor, expected: Tensor) -> None:
    """Equal but for the rounding of float32."""
    expected = expected.detach().double()
    assert expected.abs().max() > 0
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def check(found: tuple[float, Sequence[Tensor]], loss: Tensor, looks: Sequence[Look], weights: Tensor) -> None:
    """The loss, and w_b (e_y − p) as its gradient with respect to the logits."""
    value, gradients = found
    assert value == pytest.approx(float(loss), rel=1e-5)
    shares = weights.split([len(look.sums) for look in looks])
    assert len(gradients) == len(looks) == len(shares)
    for gradient, look, share in zip(gradients, looks, shares, strict=True):
        close(gradient, look.ascent(share))


# ---------------------------------------------------------------- each method's terms


@pytest.mark.parametrize("name", ["ga", "grad_diff", "kl_min"])
def test_ga_raises_the_pooled_mean(name: str, golden: GoldenMaker):
    at = golden(name).moved()
    parts = at.parts("forget")
    looks, sums, counts = looks_at(at.model, [part.batch for part in parts])
    pooled = sums.sum() / counts.sum()
    weights = torch.ones(4, dtype=torch.float64) / counts.sum()
    check(at.evaluate(at.terms.forget, parts), -pooled, looks, weights)


def test_ga_has_no_retain_term(golden: GoldenMaker):
    assert golden("ga").terms.retain is None


@pytest.mark.parametrize("name", ["npo", "simnpo", "dpo"])
def test_without_a_weight_there_is_no_retain_term(name: str, golden: GoldenMaker):
    assert golden(name, retain_weight=0).terms.retain is None


@pytest.mark.parametrize("name", ["grad_diff", "npo", "simnpo", "dpo"])
def test_the_retain_term_is_the_weighted_pooled_mean(name: str, golden: GoldenMaker):
    at = golden(name, retain_weight=0.3).moved()
    parts = at.parts("retain")
    looks, sums, counts = looks_at(at.model, [part.batch for part in parts])
    weights = -0.3 * torch.ones(4, dtype=torch.float64) / counts.sum()
    check(at.evaluate(at.terms.retain, parts), 0.3 * sums.sum() / counts.sum(), looks, weights)


def test_kl_min_averages_over_every_position_of_padded_sequences(golden: GoldenMaker):
    at = golden("kl_min", retain_weight=0.3, pad_length=40).moved()
    parts = at.parts("retain")
    value, gradients = at.evaluate(at.terms.retain, parts)
    total = torch.zeros((), dtype=torch.float64)
    for part, gradient in zip(parts, gradients, strict=True):
        texts = [at.data.retain[row].input_ids for row in part.rows]
        ids = torch.tensor([text + [at.data.pad] * (40 - len(text)) for text in texts])
        mask = torch.tensor([[1] * len(text) + [0] * (40 - len(text)) for text in texts])
        p, p0 = (m(input_ids=ids, attention_mask=mask).logits.softmax(-1) for m in (at.model, at.before))
        total += (p0 * (p0.log() - p.log())).sum().detach()
        close(gradient, 0.3 * (p - p0) / (4 * 40))
    assert value == pytest.approx(float(0.3 * total / (4 * 40)), rel=1e-5)


def test_kl_min_averages_over_answer_tokens_on_request(golden: GoldenMaker):
    at = golden("kl_min", retain_weight=0.3, kl_positions="answer").moved()
    parts = at.parts("retain")
    value, gradients = at.evaluate(at.terms.retain, parts)
    looks, _, counts = looks_at(at.model, [part.batch for part in parts])
    looks_before, _, _ = looks_at(at.before, [part.batch for part in parts])
    total = 0.0
    for gradient, now, then in zip(gradients, looks, looks_before, strict=True):
        p, p0 = now.probabilities[now.labelled], then.probabilities[then.labelled]
        total += float((p0 * (p0.log() - p.log())).sum())
        close(gradient, 0.3 * (p - p0) / counts.sum())
    assert value == pytest.approx(float(0.3 * total / counts.sum()), rel=1e-5)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_npo_compares_summed_losses(beta: float, golden: GoldenMaker):
    at = golden("npo", beta=beta).moved()
    parts = at.parts("forget")
    looks, now, _ = looks_at(at.model, [part.batch for part in parts])
    _, before, _ = looks_at(at.before, [part.batch for part in parts])
    rise = now - before
    assert rise.min() < 0 < rise.max()
    loss = -2 / beta * torch.log(1 / (1 + torch.exp(-beta * rise))).mean()
    check(at.evaluate(at.terms.forget, parts), loss, looks, 2 * torch.sigmoid(-beta * rise) / 4)


def test_npo_compares_mean_losses_on_request(golden: GoldenMaker):
    at = golden("npo", beta=0.5, reduction="mean").moved()
    parts = at.parts("forget")
    looks, now, counts = looks_at(at.model, [part.batch for part in parts])
    _, before, _ = looks_at(at.before, [part.batch for part in parts])
    rise = now / counts - before / counts
    loss = -2 / 0.5 * torch.log(1 / (1 + torch.exp(-0.5 * rise))).mean()
    check(at.evaluate(at.terms.forget, parts), loss, looks, 2 * torch.sigmoid(-0.5 * rise) / counts / 4)


@pytest.mark.parametrize(("beta", "gamma"), [(2.5, 8.0), (0.5, 0.0)])
def test_simnpo_takes_each_answers_mean_loss(beta: float, gamma: float, golden: GoldenMaker):
    at = golden("simnpo", beta=beta, gamma=gamma, forget_weight=0.125).moved()
    parts = at.parts("forget")
    looks, sums, counts = looks_at(at.model, [part.batch for part in parts])
    mean = sums / counts
    loss = 0.125 * -2 / beta * torch.log(1 / (1 + torch.exp(-beta * (mean - gamma)))).mean()
    weights = 0.125 * 2 * torch.sigmoid(-beta * (mean - gamma)) / counts / 4
    check(at.evaluate(at.terms.forget, parts), loss, looks, weights)


@pytest.mark.parametrize(("scale", "factor"), [("2/beta", 20.0), ("1", 1.0)])
def test_dpo_prefers_the_refusal_to_the_answer(scale: str, factor: float, golden: GoldenMaker):
    at = golden("dpo", beta=0.1, scale=scale).moved()
    parts, refused = at.parts("forget"), at.refusals()
    refusals = [collate(refused[cut], FORGET[cut], at.data.pad) for cut in (slice(0, 3), slice(3, 4))]
    (answer_looks, answer, _), (refusal_looks, refusal, _) = (
        looks_at(at.model, batches) for batches in ([part.batch for part in parts], refusals)
    )
    (_, answer_before, _), (_, refusal_before, _) = (
        looks_at(at.before, batches) for batches in ([part.batch for part in parts], refusals)
    )
    rise = (answer - answer_before) - (refusal - refusal_before)
    loss = -factor * torch.log(1 / (1 + torch.exp(-0.1 * rise))).mean()
    weights = factor * 0.1 * torch.sigmoid(-0.1 * rise) / 4
    value, gradients = at.evaluate(at.terms.forget, parts)
    check((value, gradients[::2]), loss, answer_looks, weights)
    check((value, gradients[1::2]), loss, refusal_looks, -weights)


def test_idk_is_one_pooled_mean_over_both_sides(golden: GoldenMaker):
    at = golden("idk").moved()
    forget, retain = at.parts("forget"), at.parts("retain")
    for row, text in zip(FORGET, at.refusals(), strict=True):
        assert at.terms.forget_texts is not None
        assert at.terms.forget_texts(1, row) == text
    looks, sums, counts = looks_at(at.model, [part.batch for part in [*forget, *retain]])
    weights = -torch.ones(8, dtype=torch.float64) / counts.sum()
    forget_value, forget_gradients = at.evaluate(at.terms.forget, forget)
    retain_value, retain_gradients = at.evaluate(at.terms.retain, retain)
    found = forget_value + retain_value, [*forget_gradients, *retain_gradients]
    check(found, sums.sum() / counts.sum(), looks, weights)


# ---------------------------------------------------------------- values at θ0, signs


def test_npo_starts_as_ga_on_summed_losses(golden: GoldenMaker):
    at = golden("npo", beta=0.1)
    parts = at.parts("forget")
    term = torch.stack([at.terms.forget(part) for part in parts]).sum()
    assert float(term.detach()) == pytest.approx(13.862944, abs=2e-5)
    sums = torch.cat([Look.at(at.model, part.batch).sums for part in parts])
    close(at.parameter_gradient(term), at.parameter_gradient(-sums.mean()))


@pytest.mark.parametrize(("scale", "value"), [("1", 0.693147), ("2/beta", 13.862944)])
def test_dpo_starts_at_ln_2(scale: str, value: float, golden: GoldenMaker):
    at = golden("dpo", scale=scale)
    found, _ = at.evaluate(at.terms.forget, at.parts("forget"))
    assert found == pytest.approx(value, rel=2e-6)


@pytest.mark.parametrize("positions", ["all_padded", "answer"])
def test_kl_mins_k_starts_at_0(positions: str, golden: GoldenMaker):
    at = golden("kl_min", kl_positions=positions)
    value, gradients = at.evaluate(at.terms.retain, at.parts("retain"))
    assert value == pytest.approx(0, abs=1e-9)
    assert all(gradient.abs().max() < 1e-7 for gradient in gradients)


@pytest.mark.parametrize(
    ("name", "settings"),
    [*((name, {}) for name in NAMES if name != "idk"), ("simnpo", {"beta": 4.5, "gamma": 0.0})],
)
def test_a_step_down_raises_the_loss_of_the_answers(name: str, settings: dict[str, Any], golden: GoldenMaker):
    at = golden(name, **settings)
    step_down(at)
    texts = [at.data.forget[row] for row in FORGET]
    (_, now, _), (_, before, _) = (looks_at(m, [collate(texts, FORGET, at.data.pad)]) for m in (at.model, at.before))
    assert now.mean() > before.mean() + 1e-3


@pytest.mark.parametrize("name", ["dpo", "idk"])
def test_a_step_down_lowers_the_loss_of_the_refusals(name: str, golden: GoldenMaker):
    at = golden(name)
    step_down(at)
    (_, now, _), (_, before, _) = (looks_at(m, [collate(at.refusals(), FORGET, at.data.pad)]) for m in (at.model, at.before))
    assert now.mean() < before.mean() - 1e-3


def step_down(at: Golden) -> None:
    """A small step against the gradient of the forget term."""
    gradient = at.parameter_gradient(torch.stack([at.terms.forget(part) for part in at.parts("forget")]).sum())
    step = -1e-3 * gradient / gradient.norm()
    with torch.no_grad():
        for p, move in zip(at.model.parameters(), step.split([p.numel() for p in at.model.parameters()]), strict=True):
            p.add_(move.view_as(p))


# ---------------------------------------------------------------- padding and micro-batches


@pytest.mark.parametrize(("name", "settings"), [*((name, {}) for name in NAMES), ("kl_min", {"kl_positions": "answer"})])
def test_padding_changes_no_loss(name: str, settings: dict[str, Any], golden: GoldenMaker):
    at = golden(name, **settings).moved()

    def longer(part: Part) -> Part:
        b, pad = part.batch, partial(torch.nn.functional.pad, pad=(0, 9))
        batch = Batch(pad(b.input_ids, value=at.data.pad), pad(b.attention_mask), pad(b.labels, value=NO_LABEL), b.rows)
        return replace(part, batch=batch)

    for side, term in (("forget", at.terms.forget), ("retain", at.terms.retain)):
        if term is not None:
            parts = at.parts(side)
            value, _ = at.evaluate(term, parts)
            assert at.evaluate(term, [longer(part) for part in parts])[0] == pytest.approx(value, rel=1e-6)


def test_the_padding_that_counts_is_kl_mins_own(golden: GoldenMaker):
    values = []
    for length in (40, 80):
        at = golden("kl_min", pad_length=length).moved()
        values.append(at.evaluate(at.terms.retain, at.parts("retain"))[0])
    assert values[1] != pytest.approx(values[0], rel=0.05)


def train(name: str, context: UnlearningContext, **settings: Any) -> list[Progress]:
    method = METHODS.get(name)
    usual = {"epochs": 2, "batch_size": 6, "lr": 1e-2, "warmup_epochs": 0}
    return list(method.unlearn(context, resolve(method.config, usual, NANO.get(name, {}), settings, owner=name)))


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_do_not_depend_on_how_a_batch_was_cut(
    name: str, make_context: ContextMaker, monkeypatch: pytest.MonkeyPatch
):
    whole = training.micro_batches
    # AdamW divides by the gradient; without a larger ε the rounding of gradients near 0 would show.
    monkeypatch.setattr(training, "AdamW", partial(training.AdamW, eps=1e-2))
    moves, logs, cuts = [], [], list[list[int]]()

    def counted(*args: Any) -> list[tuple[Batch, int]]:
        parts = whole(*args)
        cuts[-1].append(len(parts))
        return parts

    monkeypatch.setattr(training, "micro_batches", counted)
    for max_tokens in (4096, 50):
        monkeypatch.setattr(training, "TOKENS_PER_MICRO_BATCH", max_tokens)
        cuts.append([])
        context = make_context()
        context.model.double()
        start = [p.detach().clone() for p in context.model.parameters()]
        logs.append([p.logged for p in train(name, context)])
        moves.append(torch.cat([(p.detach() - s).flatten() for p, s in zip(context.model.parameters(), start, strict=True)]))
    one, several = cuts
    assert set(one) == {1}
    assert sum(several) >= 3 * sum(one)
    assert min(several) >= (1 if name == "kl_min" else 3), "kl_min pads retain rows beyond what goes through at once"
    assert moves[0].abs().max() > 1e-3
    torch.testing.assert_close(moves[1], moves[0], rtol=1e-4, atol=1e-6)
    for a, b in zip(*logs, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)


def nothing(context: UnlearningContext) -> Callable[[Data], Losses]:
    """Loss terms that are 0, on both sides."""

    def zero(_part: Part) -> Tensor:
        return context.model.lm_head.weight.sum() * 0.0

    return lambda _data: Losses(zero, zero)


Shown = list[tuple[Sequence[Part], Sequence[Part]]]


def shown(context: UnlearningContext, recipe: Recipe) -> tuple[list[Progress], Shown]:
    """What the loop yields, and the parts of its steps."""
    seen: Shown = []
    progress = list(unlearn(context, recipe, nothing(context), before_step=lambda *parts: seen.append(parts)))
    return progress, seen


def test_a_part_is_told_the_counts_of_its_step(nano_context: UnlearningContext, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "TOKENS_PER_MICRO_BATCH", 50)
    _, steps = shown(nano_context, PairedRecipe(epochs=1, batch_size=5))
    (stage,) = nano_context.stages
    assert len(steps) == 2
    for number, sides in enumerate(steps, start=1):
        counts = []
        for parts, there in zip(sides, (stage.forget, stage.retain), strict=True):
            assert len(parts) > 1
            texts = encode([there[row] for part in parts for row in part.rows], nano_context.tokenizer)
            assert len(texts) == 5
            counts.append(labels(texts))
            assert {(part.step, part.examples, part.labels) for part in parts} == {(number, 5, labels(texts))}
            ids = [
                row[mask.bool()].tolist()
                for p in parts
                for row, mask in zip(p.batch.input_ids, p.batch.attention_mask, strict=True)
            ]
            assert ids == [text.input_ids for text in texts], "rows name the examples that are in the batch"
        assert {part.all_labels for parts in sides for part in parts} == {sum(counts)}


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_weights_other_seed_other_weights(name: str, make_context: ContextMaker):
    found = []
    for seed in (0, 0, 1):
        context = make_context(seed=seed)
        train(name, context, batch_size=4, epochs=1)
        found.append(weights_fingerprint(context.model))
    assert found[0] == found[1] != found[2]


# ---------------------------------------------------------------- partners


@pytest.mark.parametrize(("forget", "retain", "seen"), [(400, 3600, 378), (200, 3800, 195)])
def test_frozen_partners_are_those_of_npos_repository(forget: int, retain: int, seen: int):
    partner = Partners(retain, seed=0, frozen=True)
    state = torch.get_rng_state()
    found = [partner(row) for row in range(forget)]
    assert torch.equal(torch.get_rng_state(), state)
    assert len(set(found)) == seen  # counted by running the repositories' `data_module.py` on ToFU's splits
    assert found == [partner(row) for row in range(forget)]
    assert found == [Partners(retain, seed=1, frozen=True)(row) for row in range(forget)]
    with torch.random.fork_rng(devices=[]):
        for row in range(forget):
            torch.manual_seed(row)
            assert found[row] == (row + int(torch.randint(0, retain, (1,)))) % retain


def test_fresh_partners_are_uniform_and_new_in_every_epoch():
    partner = Partners(24, seed=0, frozen=False)
    epochs = [[partner(row) for row in range(40)] for _ in range(300)]
    counts = Counter(found for epoch in epochs for found in epoch)
    assert sorted(counts) == list(range(24))
    assert chisquare(list(counts.values())).pvalue > 0.01
    assert len({tuple(epoch) for epoch in epochs}) == 300
    of_one_row = Counter(epoch[7] for epoch in epochs)
    assert chisquare([of_one_row[k] for k in range(24)]).pvalue > 0.01
    again, other = (Partners(24, seed=seed, frozen=False) for seed in (0, 1))
    assert [again(row) for row in range(40)] == epochs[0] != [other(row) for row in range(40)]


@pytest.mark.parametrize("frozen", [True, False])
def test_the_loop_keeps_frozen_partners_and_draws_fresh_ones(frozen: bool, nano_context: UnlearningContext):
    _, steps = shown(nano_context, PairedRecipe(epochs=3, batch_size=12, frozen_partner=frozen))
    epochs = []
    for forget, retain in steps:
        # A part's examples stand in the order of their lengths, so pairs are known as two multisets.
        epochs.append(sorted(row for part in retain for row in part.rows))
        assert sorted(row for part in forget for row in part.rows) == list(range(12))
    partner = Partners(24, seed=0, frozen=True)
    of_repository = sorted(partner(row) for row in range(12))
    assert all((epoch == of_repository) == frozen for epoch in epochs)
    assert (epochs[0] == epochs[1] == epochs[2]) == frozen


# ---------------------------------------------------------------- schedule


@pytest.mark.parametrize(
    ("examples", "epochs", "steps", "warmup"),
    [(400, 5, 62, 12), (400, 10, 125, 12), (200, 5, 31, 6), (200, 10, 62, 6), (40, 5, 6, 1), (40, 10, 12, 1)],
)
def test_tofus_schedule(examples: int, epochs: int, steps: int, warmup: int):
    found = Schedule.of(Recipe(epochs=epochs), examples)
    assert (found.batch, found.steps, found.warmup) == (32, steps, warmup)
    assert len(found.epoch_ends) == epochs
    assert max(found.epoch_ends) == steps
    for epoch, step in enumerate(sorted(found.epoch_ends), start=1):
        assert step == pytest.approx(epoch * examples / 32, abs=1)


@pytest.mark.parametrize("name", ["ga", "grad_diff", "kl_min", "npo", "simnpo", "dpo", "idk", "soul", "loku"])
def test_one_step_that_only_warms_up_fails(name: str, nano_context: UnlearningContext):
    """12 examples in a batch of 32 make one step an epoch; the first step of a warm-up has learning rate 0."""
    method = METHODS.get(name)
    config = resolve(method.config, {"batch_size": 32, "epochs": 1, **({"fila": False} if name == "loku" else {})}, owner=name)
    before, steps = weights_fingerprint(nano_context.model), method.unlearn(nano_context, config)
    first = next(steps)
    assert (first.measure_here, first.logged["learning_rate"]) == (True, 0)
    with pytest.raises(
        Diverged, match=r"a warm-up's first step has learning rate 0 and there was no other.*leave out the warm-up"
    ):
        next(steps)
    assert weights_fingerprint(nano_context.model) == before


def test_steps_that_are_counted_do_not_depend_on_the_forget_set():
    """SimNPO's form for WMDP: 500 steps, 50 of them warm-up."""
    for examples in (96, 24_000):
        found = Schedule.of(Recipe(max_steps=500, batch_size=4, warmup_epochs=None, epochs=10), examples)
        assert (found.batch, found.steps, found.warmup) == (4, 500, 50)
        assert sorted(found.epoch_ends) == [50, 100, 150, 200, 250, 300, 350, 400, 450, 500]


def test_texts_are_cut_on_request(nano_context: UnlearningContext):
    _, steps = shown(nano_context, PairedRecipe(epochs=1, batch_size=12, warmup_epochs=0, max_length=18))
    for parts in steps[0]:
        assert max(part.batch.input_ids.shape[1] for part in parts) == 18


@pytest.mark.parametrize("examples", [1, 2, 7, 33, 47, 48, 64])
@pytest.mark.parametrize("epochs", [1, 2, 5, 10])
def test_a_point_is_measured_for_every_epoch_and_at_the_last_step(examples: int, epochs: int):
    found = Schedule.of(Recipe(epochs=epochs), examples)
    assert found.batch == min(32, examples)
    assert len(found.epoch_ends) == epochs
    assert (min(found.epoch_ends) >= 1, max(found.epoch_ends)) == (True, found.steps)


def test_the_loop_warms_up_for_an_epoch_decays_to_0_and_measures_at_epoch_ends(nano_context: UnlearningContext):
    progress, steps = shown(nano_context, Recipe(epochs=5, batch_size=5, lr=1e-3))
    assert [p.step for p in progress] == list(range(1, 13))
    assert len(steps) == 12
    assert {p.total for p in progress} == {12}
    assert [p.step for p in progress if p.measure_here] == [2, 5, 7, 10, 12]
    rising, falling = [0, 1 / 2], [(12 - k) / 10 for k in range(2, 12)]
    assert [p.logged["learning_rate"] for p in progress] == pytest.approx([1e-3 * r for r in [*rising, *falling]])


def test_every_stage_has_a_schedule_of_its_own(make_context: ContextMaker, nano_problem: Problem):
    (stage,) = nano_problem.stages
    stages = [Stage("one", stage.forget[:4], stage.retain[:9]), Stage("two", stage.forget[4:], stage.retain[9:])]
    progress, _ = shown(make_context(problem=replace(nano_problem, stages=stages)), Recipe(epochs=2, batch_size=4, lr=1e-3))
    assert [p.step for p in progress if p.measure_here] == [1, 2, 4, 6]
    assert [p.logged["learning_rate"] for p in progress] == pytest.approx([0, 1e-3, 0, 0.5e-3, 1e-3, 0.5e-3])


# ---------------------------------------------------------------- refusals


def test_refusals_are_drawn_uniformly_by_seed_step_and_row(make_context: ContextMaker):
    settings = [make_context(seed=seed) for seed in (0, 0, 1)]
    count = len(settings[0].problem.refusals)
    drawn, again, other = (
        [[Refusals(context, context.stages[0]).drawn(step, row) for row in range(12)] for step in range(1, 201)]
        for context in settings
    )
    assert drawn == again != other
    counts = Counter(number for step in drawn for number in step)
    assert sorted(counts) == list(range(count))
    assert chisquare(list(counts.values())).pvalue > 0.01
    assert len({tuple(step) for step in drawn}) == 200
    assert all(len(set(row)) == count for row in zip(*drawn, strict=True))


def test_a_refusal_answers_the_forget_question(nano_context: UnlearningContext):
    (stage,), tokenizer = nano_context.stages, nano_context.tokenizer
    refusals = Refusals(nano_context, stage)
    for step, row in ((1, 0), (2, 0), (1, 7)):
        sentence = nano_context.problem.refusals[refusals.drawn(step, row)]
        text = refusals(step, row)
        prompt, answer = text.input_ids[: text.prompt_tokens], text.input_ids[text.prompt_tokens :]
        assert prompt == tokenizer(stage.forget[row].prompt)["input_ids"]
        assert answer == [*tokenizer(sentence)["input_ids"], tokenizer.eos_token_id]


def test_a_refusal_is_cut_where_the_forget_texts_are(nano_context: UnlearningContext):
    (stage,) = nano_context.stages
    whole = Refusals(nano_context, stage)(1, 0)
    cut = Refusals(nano_context, stage, len(whole.input_ids) - 1)(1, 0)
    assert (cut.input_ids, cut.prompt_tokens) == (whole.input_ids[:-1], whole.prompt_tokens)


@pytest.mark.parametrize("method", ["idk", "dpo"])
def test_no_refusal_in_training_is_longer_than_the_texts(
    method: str, make_context: ContextMaker, monkeypatch: pytest.MonkeyPatch
):
    cuts: list[int | None] = []
    original = Refusals.__init__
    monkeypatch.setattr(
        Refusals, "__init__", lambda self, context, stage, cut=None: cuts.append(cut) or original(self, context, stage, cut)
    )
    chosen = METHODS.get(method)
    settings = {"epochs": 1, "batch_size": 12, "max_length": 60, "warmup_epochs": 0}
    list(chosen.unlearn(make_context(), resolve(chosen.config, settings, owner=method)))
    assert cuts == [60]


def test_the_embedded_world_knows_the_words_of_every_refusal(nano_context: UnlearningContext):
    problem, tokenizer = nano_context.problem, nano_context.tokenizer
    question = problem.stages[0].forget[0]
    assert len(set(problem.refusals)) == len(problem.refusals) > 1
    texts = encode([replace(question, answer=sentence) for sentence in problem.refusals], tokenizer)
    assert tokenizer.unk_token_id is not None
    assert tokenizer.unk_token_id in tokenizer("no such wrod")["input_ids"]
    assert not any(tokenizer.unk_token_id in text.input_ids for text in texts)


@pytest.mark.parametrize("name", ["dpo", "idk"])
def test_a_benchmark_without_refusals_is_refused(name: str, nano_problem: Problem, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(BENCHMARKS._registered, "nano", NanoBenchmark(nano_problem))
    assert plan("nano", "mini", name, {}, Options()).method.name == name
    monkeypatch.setitem(BENCHMARKS._registered, "nano", NanoBenchmark(replace(nano_problem, refusals=())))
    with pytest.raises(UsageError, match=rf"^{name} cannot run on nano with mini: [^.\n]*refusal[^.\n]*\.$"):
        plan("nano", "mini", name, {}, Options())
    for other in set(NAMES) - {"dpo", "idk"}:
        assert plan("nano", "mini", other, {}, Options()).method.name == other


# ---------------------------------------------------------------- published settings

RECIPE = {
    "lr": 1e-5,
    "epochs": 5,
    "batch_size": 32,
    "warmup_epochs": 1,
    "weight_decay": 0.01,
    "max_steps": None,
    "max_length": None,
}
PAIRED = {**RECIPE, "frozen_partner": False}
RETAINED = {"retain_weight": 1.0, "retain_loss": "nll"}
OF_ITS_REPOSITORY = {**PAIRED, "epochs": 10, "frozen_partner": True}
PUBLISHED: dict[str, dict[str, Any]] = {
    "ga": RECIPE,
    "grad_diff": {**PAIRED, "retain_weight": 1.0},
    "kl_min": {**PAIRED, "retain_weight": 1.0, "kl_positions": "all_padded", "pad_length": 500},
    "npo": {**OF_ITS_REPOSITORY, "beta": 0.1, **RETAINED, "reduction": "sum"},
    "simnpo": {**OF_ITS_REPOSITORY, "beta": 4.5, "gamma": 0.0, "forget_weight": 0.125, **RETAINED},
    "dpo": {**PAIRED, "beta": 0.1, "scale": "2/beta", **RETAINED},
    "idk": PAIRED,
}
"""On forget10 with Llama-2-7B."""
ON_PHI: dict[str, float] = {"ga": 2e-5, "grad_diff": 2e-5, "kl_min": 2e-5, "dpo": 2e-5, "idk": 2e-5}
"""Learning rates that differ there: ToFU's; NPO's and SimNPO's repositories keep theirs."""
ON_FORGET05: dict[str, dict[str, float]] = {"simnpo": {"beta": 2.5, "forget_weight": 0.1375}}


def published(name: str, bench: str, family: str) -> dict[str, Any]:
    method = METHODS.get(name)
    found = to_json(resolve(method.config, method.preset(bench, family), owner=name))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_published_settings_are_the_documented_ones(name: str):
    forget05 = ON_FORGET05.get(name, {})
    assert published(name, "tofu10", "llama2-7b") == PUBLISHED[name]
    assert published(name, "tofu05", "llama2-7b") == {**PUBLISHED[name], **forget05}
    phi = {**PUBLISHED[name], "lr": ON_PHI.get(name, 1e-5)}
    assert published(name, "tofu10", "phi-1.5") == phi
    assert published(name, "tofu05", "phi-1.5") == {**phi, **forget05}


WMDP_FACTOR = 30.0
"""What `SMALL_MODEL_FACTOR` is on ToFU, one for all methods; see results/tuning/README.md."""
WMDP_RECIPE = {
    "batch_size": 4,
    "warmup_epochs": None,
    "weight_decay": 0.0,
    "max_steps": 500,
    "max_length": 512,
    "frozen_partner": False,
    "retain_weight": 1.0,
}
ON_WMDP: dict[str, dict[str, Any]] = {
    "grad_diff": {"lr": 5e-6, "epochs": 5},
    "npo": {"lr": 5e-6, "epochs": 10, "retain_loss": "nll", "beta": 0.0225, "reduction": "mean"},
    "simnpo": {"lr": 9.5e-6, "epochs": 10, "retain_loss": "nll", "beta": 0.1, "gamma": 0.0, "forget_weight": 1.0},
}


@pytest.mark.parametrize("bench", ["wmdp", "wmdp-bio", "wmdp-cyber"])
@pytest.mark.parametrize("name", ON_WMDP)
def test_settings_for_wmdp_are_those_of_simnpos_authors(name: str, bench: str):
    large, small = published(name, bench, "zephyr-7b"), published(name, bench, "mini")
    assert large == {**WMDP_RECIPE, **ON_WMDP[name]}
    assert small.pop("lr") == pytest.approx(large.pop("lr") * WMDP_FACTOR)
    assert small == large


@pytest.mark.parametrize("family", ["zephyr-7b", "mini"])
def test_ga_takes_grad_diffs_recipe_on_wmdp(family: str):
    paired = published("grad_diff", "wmdp", family)
    alone = published("ga", "wmdp", family)
    assert alone.items() < paired.items()
    assert set(paired) - set(alone) == {"retain_weight", "frozen_partner"}


@pytest.mark.parametrize("name", ["grad_diff", "npo", "simnpo", "soul"])
def test_wmdps_form_runs_on_two_stages_of_texts_without_prompts(name: str, make_context: ContextMaker, nano_problem: Problem):
    (stage,) = nano_problem.stages
    forget, retain = (
        [replace(e, prompt="", answer=e.prompt + e.tag + e.answer, tag="") for e in s] for s in (stage.forget, stage.retain)
    )
    context = make_context(
        problem=replace(nano_problem, stages=[Stage("bio", forget[:6], retain), Stage("cyber", forget[6:], retain)])
    )
    method = METHODS.get(name)
    config = resolve(method.config, method.preset("wmdp", "mini"), {"max_steps": 6, "epochs": 2}, owner=name)
    progress = list(method.unlearn(context, config))
    assert [p.step for p in progress if p.measure_here] == [3, 6, 9, 12]
    assert progress[0].logged["learning_rate"] == progress[6].logged["learning_rate"] == 0
    # Before the first step that moves anything: S − S_θ0 is 0.
    if name == "npo":
        assert progress[0].logged["forget_term"] == pytest.approx(2 * float(torch.log(torch.tensor(2.0))) / 0.0225, rel=1e-5)


@pytest.mark.parametrize("family", ["mini", "scratch"])
@pytest.mark.parametrize("bench", ["tofu10", "tofu05"])
@pytest.mark.parametrize("name", NAMES)
def test_small_models_get_the_published_settings_with_one_factor_on_the_learning_rate(name: str, bench: str, family: str):
    large = published(name, bench, "llama2-7b")
    small = published(name, bench, family)
    assert small.pop("lr") == pytest.approx(large.pop("lr") * SMALL_MODEL_FACTOR)
    assert small == large


def test_a_retain_term_that_pads_sees_no_more_positions_at_once_than_any_other(nano_context: UnlearningContext, monkeypatch):
    """KL-min pads to 500 tokens: what goes through the model together is counted with the padding."""
    from harness.numerics import training

    sizes = []
    real = training.optimise

    def noted(model, steps, *rest, **more):
        def watched():
            for step in steps:
                sizes.extend(part.batch.input_ids.shape[0] for side, part in step if side == "retain")
                yield step

        return real(model, watched(), *rest, **more)

    monkeypatch.setattr(training, "optimise", noted)
    chosen = {"epochs": 1, "batch_size": 12, "warmup_epochs": 0, "pad_length": 500}
    config = resolve(METHODS.get("kl_min").config, chosen, owner="kl_min")
    list(METHODS.get("kl_min").unlearn(nano_context, config))
    assert sizes == [8, 4]
