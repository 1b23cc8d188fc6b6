"""The one AdamW loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from harness.core.errors import Diverged
from harness.data.rows import Encoded, collate, encode
from tests.conftest import WORLD, Nano, examples

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel


@pytest.fixture
def encoded(nano: Nano) -> list[Encoded]:
    """Nine examples of different lengths."""
    return encode(examples([*WORLD.full[:12:2], *WORLD.world_facts[:3]]), nano.tokenizer)


def adamw(steps: int, **changes: Any) -> Any:
    from harness.numerics.training import AdamW

    return AdamW(**{"lr": 1e-2, "steps": steps, "schedule": "constant_with_warmup", **changes})


def train(
    model: PreTrainedModel, encoded: list[Encoded], steps: int, seed: int = 0, at_once: int = 4096, **changes: Any
) -> list:
    from harness.numerics.training import micro_batches, optimise, pooled_nll, shuffled_batches

    data = (micro_batches(encoded, rows, 0, "cpu", at_once) for rows in shuffled_batches(len(encoded), 4, steps, seed))
    return list(optimise(model, data, lambda part: pooled_nll(model, *part), adamw(steps, **changes)))


@pytest.mark.parametrize(("width", "tokens"), [(1, 2048), (512, 4096)])
def test_fewer_tokens_of_a_wide_model_go_through_a_cpu_at_once(
    width: int, tokens: int, nano: Nano, monkeypatch: pytest.MonkeyPatch
):
    from harness.numerics import training

    monkeypatch.setattr("harness.numerics.products.LEAST_WIDTH", width)
    assert training.tokens_at_once(nano.model()) == training.tokens_at_once(nano.model(), "cpu") == tokens
    assert training.tokens_at_once(nano.model(), "cuda") == 4096
    monkeypatch.setattr(training, "TOKENS_PER_MICRO_BATCH", 7)
    assert training.tokens_at_once(nano.model()) == 7


# ---------------------------------------------------------------- the pooled loss


def test_micro_batches_sum_to_the_pooled_mean_and_its_gradient(nano: Nano, encoded: list[Encoded]):
    import torch
    import torch.nn.functional as F

    from harness.numerics.training import micro_batches, pooled_nll

    def gradients(model: PreTrainedModel) -> Tensor:
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    parts = micro_batches(encoded, range(len(encoded)), 0, "cpu", max_tokens=40)
    assert len(parts) > 2
    cut = nano.model()
    losses = [pooled_nll(cut, *part) for part in parts]
    for loss in losses:
        loss.backward()

    whole = nano.model()
    batch = collate(encoded, range(len(encoded)), 0)
    logits = whole(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    mean = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten())  # ignores -100
    mean.backward()

    assert sum(loss.item() for loss in losses) == pytest.approx(mean.item(), rel=1e-5)
    torch.testing.assert_close(gradients(cut), gradients(whole), rtol=1e-3, atol=1e-6)


def test_every_micro_batch_is_told_the_labels_of_the_whole_step(encoded: list[Encoded]):
    from harness.numerics.training import label_count, micro_batches

    rows = [8, 0, 5, 3]
    parts = micro_batches(encoded, rows, 0, "cpu", max_tokens=20)
    labels = sum(len(encoded[i].input_ids) - encoded[i].prompt_tokens for i in rows)
    assert len(parts) > 1
    assert {told for _, told in parts} == {labels}
    assert label_count(part for part, _ in parts) == labels
    assert sorted(i for part, _ in parts for i in part.rows.tolist()) == sorted(rows)


def test_a_step_does_not_depend_on_how_its_batch_was_cut(nano: Nano, encoded: list[Encoded]):
    import torch

    one, other = nano.model(), nano.model()
    logs = train(one, encoded, 3), train(other, encoded, 3, at_once=30)
    for a, b in zip(*logs, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-3)
        assert a.gradient_norm == pytest.approx(b.gradient_norm, rel=1e-3)
    # The first step alone: Adam divides by the gradient, so rounding grows from step to step.
    one, other = nano.model(), nano.model()
    train(one, encoded, 1, eps=1e-3)
    train(other, encoded, 1, at_once=30, eps=1e-3)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------- the loop


class Line:
    """A stand-in for a model: weights with a loss that is linear in them, so that the gradient is known."""

    def __new__(cls, dtype: torch.dtype) -> nn.Module:  # type: ignore[misc]
        import torch

        line = torch.nn.Linear(3, 1, bias=False)
        line.weight.data = torch.tensor([[0.5, -0.75, 2.0]])
        return line.to(dtype).eval()


def linear_loss(line: nn.Module) -> Callable[[Any], Tensor]:
    import torch

    return lambda _: (line.weight * torch.tensor([[1.0, -2.0, 3.0]], dtype=line.weight.dtype)).sum()


def test_bfloat16_weights_are_trained_through_float32_masters():
    import torch

    from harness.numerics.training import optimise

    steps = 300
    plain, through_masters, exact = Line(torch.bfloat16), Line(torch.bfloat16), Line(torch.float32)
    start = plain.weight.detach().clone()

    optimiser = torch.optim.AdamW(plain.parameters(), lr=1e-5, weight_decay=0.0)
    for _ in range(steps):
        linear_loss(plain)(None).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert torch.equal(plain.weight, start), "plain bfloat16 loses every update"

    for line in (through_masters, exact):
        for _ in optimise(line, [[None]] * steps, linear_loss(line), adamw(steps, lr=1e-5)):
            pass
    assert not torch.equal(through_masters.weight, start)
    assert torch.equal(through_masters.weight, exact.weight.to(torch.bfloat16))
    assert through_masters.weight.dtype == torch.bfloat16


def test_a_float32_loop_is_torchs_adamw():
    import torch

    from harness.numerics.training import optimise

    line, plain = Line(torch.float32), Line(torch.float32)
    logs = list(
        optimise(
            line, [[None]] * 5, linear_loss(line), adamw(5, betas=(0.8, 0.9), weight_decay=0.1, max_gradient_norm=math.inf)
        )
    )
    optimiser = torch.optim.AdamW(plain.parameters(), lr=1e-2, betas=(0.8, 0.9), weight_decay=0.1)
    losses = []
    for _ in range(5):
        loss = linear_loss(plain)(None)
        loss.backward()
        losses.append(loss.item())
        optimiser.step()
        optimiser.zero_grad()
    torch.testing.assert_close(line.weight, plain.weight)
    assert [log.loss for log in logs] == pytest.approx(losses)
    assert [log.step for log in logs] == [1, 2, 3, 4, 5]
    assert {round(log.gradient_norm, 4) for log in logs} == {round(math.sqrt(1 + 4 + 9), 4)}


def test_micro_batches_of_a_step_add_up_before_it_is_taken():
    import torch

    from harness.numerics.training import optimise

    line = Line(torch.float32)
    (log,) = optimise(line, [[None, None, None]], linear_loss(line), adamw(1))
    assert log.loss == pytest.approx(3 * (0.5 + 1.5 + 6))
    assert log.gradient_norm == pytest.approx(3 * math.sqrt(14))


def test_a_gradient_that_is_too_long_is_scaled_down():
    import torch

    from harness.numerics.training import optimise

    line = Line(torch.float32)
    # With an ε far above the gradient Adam's step is lr · g / ε, which shows the clipped gradient.
    for _ in optimise(line, [[None]], linear_loss(line), adamw(1, lr=1.0, eps=1e6, max_gradient_norm=0.5)):
        pass
    moved = torch.tensor([[0.5, -0.75, 2.0]]) - line.weight
    expected = 0.5 * torch.tensor([[1.0, -2.0, 3.0]]) / math.sqrt(14) / 1e6
    torch.testing.assert_close(moved, expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("linear", [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]),
        ("constant_with_warmup", [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
        ("cosine_with_min_lr", [0.0, 0.5, 1.0, 0.868, 0.55, 0.232]),
    ],
)
def test_the_learning_rate_follows_its_schedule(schedule: str, rates: list[float]):
    import torch

    from harness.numerics.training import optimise

    line = Line(torch.float32)
    low = {"min_lr_rate": 0.1} if schedule == "cosine_with_min_lr" else {}
    logs = list(optimise(line, [[None]] * 6, linear_loss(line), adamw(6, lr=1.0, warmup=2, schedule=schedule, **low)))
    assert [log.learning_rate for log in logs] == pytest.approx(rates, abs=1e-3)


def test_a_schedule_without_any_learning_rate_ends_in_a_failure():
    import torch

    from harness.numerics.training import optimise

    line = Line(torch.float32)
    for schedule in ("linear", "constant_with_warmup", "cosine_with_min_lr"):
        low = {"min_lr_rate": 0.1} if "min_lr" in schedule else {}
        steps = optimise(line, [[None]], linear_loss(line), adamw(1, warmup=1, schedule=schedule, **low))
        assert next(steps).learning_rate == 0
        with pytest.raises(Diverged, match=r"nothing was trained.*leave out the warm-up$"):  # names no method's setting
            next(steps)


def test_training_lowers_the_loss(nano: Nano, encoded: list[Encoded]):
    logs = train(nano.model(), encoded, 30)
    assert logs[-1].loss < 0.8 * logs[0].loss


def test_the_same_seed_gives_the_same_weights_and_another_does_not(nano: Nano, encoded: list[Encoded]):
    from harness.models.sources import weights_fingerprint

    found = []
    for seed in (0, 0, 1):
        model = nano.model()
        train(model, encoded, 4, seed)
        found.append(weights_fingerprint(model))
    assert found[0] == found[1] != found[2]


# ---------------------------------------------------------------- how the loop ends


def as_found(model: nn.Module) -> bool:
    return not model.training and all(p.grad is None for p in model.parameters())


def test_a_loss_that_is_not_finite_ends_the_loop_before_the_step_is_taken(nano: Nano, encoded: list[Encoded]):
    from harness.models.sources import weights_fingerprint
    from harness.numerics.training import micro_batches, optimise, pooled_nll

    model = nano.model()
    steps = [micro_batches(encoded, [0, 1], 0, "cpu")] * 3
    calls = 0

    def loss(part: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return pooled_nll(model, *part) * (math.nan if calls > len(steps[0]) else 1.0)

    loop = optimise(model, steps, loss, adamw(3))
    assert next(loop).step == 1
    after_one = weights_fingerprint(model)
    with pytest.raises(Diverged, match="step 2: the loss is nan"):
        next(loop)
    assert weights_fingerprint(model) == after_one
    assert as_found(model)


@pytest.mark.parametrize("masters", [False, True])
def test_a_gradient_that_is_not_finite_ends_the_loop(masters: bool):
    import torch

    from harness.numerics.training import optimise

    line = Line(torch.bfloat16 if masters else torch.float32)
    start = line.weight.detach().clone()

    def loss(_: None) -> Tensor:
        return (line.weight - line.weight.detach()).abs().sum().sqrt()  # 0, with the gradient ∞ · 0

    with pytest.raises(Diverged, match=r"step 1: the loss is 0\.0 and its gradient's norm nan"):
        list(optimise(line, [[None]], loss, adamw(1)))
    assert torch.equal(line.weight, start)
    assert as_found(line)


def test_the_model_is_left_in_eval_mode_and_without_gradients(nano: Nano, encoded: list[Encoded]):
    from harness.numerics.training import micro_batches, optimise, pooled_nll

    model = nano.model()
    steps = [micro_batches(encoded, [0, 1], 0, "cpu")] * 3
    during = []
    measured = []

    def loss(part: Any) -> Any:
        during.append(model.training)
        return pooled_nll(model, *part)

    for _ in optimise(model, steps, loss, adamw(3)):
        measured.append(model.training)
    assert during == [True] * 3
    assert measured == [False] * 3, "whoever measures between steps finds the model as it is used"
    assert as_found(model)


def test_a_loop_that_is_left_early_leaves_the_model_as_well(nano: Nano, encoded: list[Encoded]):
    from harness.numerics.training import micro_batches, optimise, pooled_nll

    model = nano.model()
    loop = optimise(model, [micro_batches(encoded, [0], 0, "cpu")] * 3, lambda part: pooled_nll(model, *part), adamw(3))
    next(loop)
    loop.close()
    assert as_found(model)


def test_an_interruption_in_the_middle_of_a_step_leaves_no_gradients(nano: Nano, encoded: list[Encoded]):
    from harness.numerics.training import micro_batches, optimise, pooled_nll

    model, (part, *_) = nano.model(), micro_batches(encoded, [0], 0, "cpu")
    calls = 0

    def loss(_: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return pooled_nll(model, *part)

    with pytest.raises(KeyboardInterrupt):
        list(optimise(model, [[part, part]], loss, adamw(1)))
    assert as_found(model)


def test_frozen_parameters_stay_and_stay_frozen(nano: Nano, encoded: list[Encoded]):
    import torch

    model = nano.model()
    frozen = model.get_input_embeddings().weight.requires_grad_(False)
    start, free = frozen.detach().clone(), model.lm_head.weight.detach().clone()
    train(model, encoded, 2)
    assert torch.equal(frozen, start)
    assert not frozen.requires_grad
    assert not torch.equal(model.lm_head.weight, free)


# ---------------------------------------------------------------- the order of the data


@pytest.mark.parametrize(("count", "size"), [(12, 4), (10, 4), (5, 7), (3, 3)])
def test_shuffled_batches_take_every_example_once_in_every_epoch(count: int, size: int):
    from harness.numerics.training import shuffled_batches

    steps = 3 * count // math.gcd(count, size)
    taken = list(shuffled_batches(count, size, steps, seed=0))
    assert [len(batch) for batch in taken] == [size] * steps
    stream = [i for batch in taken for i in batch]
    epochs = [stream[k : k + count] for k in range(0, len(stream) - count + 1, count)]
    assert len(epochs) >= 3
    for epoch in epochs:
        assert sorted(epoch) == list(range(count))
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_shuffled_batches_follow_their_seed_and_not_the_global_one():
    import torch

    from harness.numerics.training import shuffled_batches

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        one = list(shuffled_batches(20, 4, 5, seed=3))
        torch.manual_seed(2)
        again = list(shuffled_batches(20, 4, 5, seed=3))
    assert one == again != list(shuffled_batches(20, 4, 5, seed=4))
