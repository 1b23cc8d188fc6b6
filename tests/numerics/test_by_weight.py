"""AdamW one weight after another: the halves of float32, stochastic rounding, and the same weights as all at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from harness.core.options import Optimizer
from tests.conftest import Nano

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.data.rows import Batch


def numbers(count: int = 50_000) -> Tensor:
    """Of all sizes and both signs, with zeros, and halves between two bfloat16 numbers."""
    import torch

    drawn = torch.randn(count, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.linspace(-30, 30, count)
    halves = (drawn[:1000].view(torch.int32) & ~0xFFFF | 0x8000).view(torch.float32)
    return torch.cat([drawn, halves, torch.tensor([0.0, -0.0, 1.0, -1.0])])


# ---------------------------------------------------------------- the halves of float32


def test_split_numbers_come_back_to_the_bit_and_their_upper_half_is_the_nearest():
    import torch

    from harness.numerics.by_weight import joined, split

    exact = numbers()
    weights, rest = split(exact)
    assert (weights.dtype, rest.dtype) == (torch.bfloat16, torch.int16)
    assert torch.equal(joined(weights, rest).view(torch.int32), exact.view(torch.int32))
    nearest = exact.to(torch.bfloat16)
    assert torch.equal((weights.double() - exact.double()).abs(), (nearest.double() - exact.double()).abs())
    other = (weights != nearest).nonzero().flatten()
    assert len(other), "there are halves, and torch rounds them to even numbers"
    assert torch.equal(weights[other].abs() > nearest[other].abs(), torch.ones(len(other), dtype=torch.bool))


# ---------------------------------------------------------------- stochastic rounding


def rounded(exact: Tensor, seed: int = 0) -> Tensor:
    import torch

    from harness.numerics.by_weight import stochastically_rounded

    return stochastically_rounded(exact, torch.Generator().manual_seed(seed))


def test_what_bfloat16_holds_is_not_rounded():
    import torch

    exact = numbers().to(torch.bfloat16)
    for seed in range(5):
        assert torch.equal(rounded(exact.float(), seed).view(torch.int16), exact.view(torch.int16))


@pytest.mark.parametrize("number", [1.001, -1.001, 3e-5, -0.7371, 1.00390625 - 2**-17])
def test_stochastic_rounding_gives_the_two_neighbours_and_the_number_on_average(number: float):
    """The mean of n draws lies within five of its standard errors, spacing · √(p (1 − p) / n), of the number."""
    import torch

    count = 200_000
    exact = torch.full((count,), number)
    drawn = rounded(exact).double()
    low, high = sorted(set(drawn.tolist()))
    number = float(exact[0])
    assert low < number < high
    assert math.log2(high - low).is_integer(), "neighbours: the spacing of bfloat16"
    share = (number - low) / (high - low)
    error = (high - low) * math.sqrt(share * (1 - share) / count)
    assert abs(float(drawn.mean()) - number) < 5 * error
    assert torch.equal(rounded(exact), rounded(exact)), "the generator alone decides"
    assert not torch.equal(rounded(exact), rounded(exact, 1))


# ---------------------------------------------------------------- the same weights


def some_batch(rows: int = 4) -> Batch:
    from harness.data.rows import Encoded, collate

    return collate([Encoded([1 + i, 2, 3, 4 + i, 5], 2) for i in range(rows)], range(rows), 0)


def trained(
    model: Any,
    kept: Optimizer | None,
    clip: float,
    steps: int = 4,
    parts: int = 1,
    recompute: bool = False,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """A model's weights after some steps, each of so many parts."""
    from harness.numerics.training import AdamW, optimise, pooled_nll

    batch = some_batch().to(device)
    adamw = AdamW(lr=1e-2, steps=steps, schedule="constant_with_warmup", weight_decay=0.1, max_gradient_norm=clip, kept=kept)
    given = [[batch] * parts] * steps
    for log in optimise(model, given, lambda part: pooled_nll(model, part, 10), adamw, recompute=recompute):
        assert log.gradient_norm > 0
        assert not model.training
    assert all(parameter.grad is None and not parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    import torch

    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(params=[2**25, 256])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Weights whole, and cut into pieces."""
    monkeypatch.setattr("harness.numerics.by_weight.PIECE", request.param)
    return request.param


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_released_gradients_give_the_weights_of_the_ordinary_loop_to_the_bit(nano: Nano, piece: int, dtype: str, parts: int):
    import torch

    def model() -> Any:
        return nano.model().to(getattr(torch, dtype))

    ordinary = trained(model(), None, math.inf, parts=parts)
    assert same(ordinary, trained(model(), Optimizer(clip="none"), 1.0, parts=parts))
    assert same(ordinary, trained(model(), Optimizer(clip="none"), 1.0, parts=parts, recompute=True))
    assert not same(ordinary, trained(model(), Optimizer(clip="none"), 1.0, parts=parts, steps=3))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_clipped_steps_by_weight_are_those_of_the_ordinary_loop_to_the_bit(nano: Nano, piece: int, dtype: str):
    """`masters=float32` and 32 bits are the usual ones, here without the option's name for them."""
    import torch

    def model() -> Any:
        return nano.model().to(getattr(torch, dtype))

    assert same(trained(model(), None, 0.05), trained(model(), Optimizer(), 0.05))


def test_a_gradient_is_freed_before_the_next_one_is_whole(nano: Nano):
    """While a step of one part goes back, no parameter but the one at hand has a gradient."""
    from harness.numerics import by_weight
    from harness.numerics.training import AdamW, optimise, pooled_nll

    model, most = nano.model(), 0

    class Watched(by_weight.ByWeight):
        def _step(self, name: str, scale: Any) -> None:
            nonlocal most
            most = max(most, sum(p.grad is not None for p in model.parameters()))
            super()._step(name, scale)

    adamw = AdamW(lr=1e-3, steps=1, schedule="constant_with_warmup", kept=Optimizer(clip="none"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.numerics.training.ByWeight", Watched)
        list(optimise(model, [[some_batch()]], lambda part: pooled_nll(model, part, 10), adamw))
    assert most == 1


def test_a_weight_that_the_last_part_does_not_reach_is_stepped_too():
    import torch

    from harness.numerics.training import AdamW, optimise

    def end(kept: Optimizer | None) -> list[Tensor]:
        model: Any = torch.nn.ParameterList([torch.ones(3), torch.ones(3)])
        adamw = AdamW(lr=0.1, steps=1, schedule="constant_with_warmup", max_gradient_norm=math.inf, kept=kept)
        list(optimise(model, [[0, 1]], lambda part: model[part].sum() + model[1].sum(), adamw))
        return [weight.detach() for weight in model]

    assert all(map(torch.equal, end(None), end(Optimizer(clip="none"))))
    assert not end(None)[0].equal(torch.ones(3))


def test_weights_without_masters_follow_the_exact_ones_on_average():
    """Steps of 1/256 of the spacing of bfloat16 at 1: rounded to the nearest none is taken, stochastically they sum up."""
    import torch

    from harness.numerics.training import AdamW, optimise

    class Wide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((20_000,), 1.5, dtype=torch.bfloat16))

    steps, rate = 64, 2**-15

    def end(**changes: Any) -> Tensor:
        model: Any = Wide()
        adamw = AdamW(lr=rate, steps=steps, schedule="constant_with_warmup", kept=Optimizer(masters="none"), **changes)
        for _ in optimise(model, [[None]] * steps, lambda _: model.weight.sum(), adamw):
            assert model.weight.dtype == torch.bfloat16
        return model.weight.detach()

    moved = end()
    assert abs(float(moved.double().mean()) - (1.5 - steps * rate)) < 5 * 2**-7 * 0.5 / math.sqrt(20_000) + 1e-5
    assert torch.equal(moved, end())
    assert not torch.equal(moved, end(seed=1))


def test_a_loss_that_is_not_finite_ends_a_released_step_before_it_is_taken(nano: Nano):
    from harness.core.errors import Diverged
    from harness.numerics.training import AdamW, optimise

    model = nano.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weight = next(model.parameters())
    adamw = AdamW(lr=1.0, steps=1, schedule="constant_with_warmup", kept=Optimizer(clip="none"))
    with pytest.raises(Diverged, match="the loss is nan"):
        list(optimise(model, [[None]], lambda _: weight.sum() * math.nan, adamw))
    assert same(before, model.state_dict())


# ---------------------------------------------------------------- moments with 8 bits


def test_moments_of_eight_bits_take_a_quarter_and_steps_close_to_the_exact_ones(nano: Nano):
    """The first step is exact: its moments are not read back. Later ones are off by some hundredths of their length."""
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    import torch

    from harness.numerics.by_weight import ByWeight
    from harness.numerics.training import AdamW, fused_adamw

    class Wide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(64, 256, generator=torch.Generator().manual_seed(0)))

    def steps(bits: Any, count: int) -> tuple[Tensor, nn.Module, ByWeight]:
        model = Wide()
        adamw = AdamW(lr=1e-3, steps=count, kept=Optimizer(bits=bits, clip="none"))
        by_weight = ByWeight(["weight"], [model.weight], adamw, lambda named: fused_adamw(adamw, named))
        for step in range(count):
            drawn = torch.randn(model.weight.shape, generator=torch.Generator().manual_seed(step))
            by_weight.gradient(lambda g: (model.weight * g).sum(), [drawn])
        return model.weight.detach().clone(), model, by_weight

    start = Wide().weight.detach()
    torch.testing.assert_close(steps(8, 1)[0], steps(32, 1)[0], rtol=0, atol=1e-7)
    eight, _, kept = steps(8, 5)
    exact = steps(32, 5)[0]
    assert 0 < float((eight - exact).norm() / (exact - start).norm()) < 0.05
    (state,) = kept.optimiser.state.values()
    held = sum(value.nbytes for value in state.values() if isinstance(value, torch.Tensor))
    assert held < 2 * 64 * 256 * 1.05 + 2 * 256 * 4 + 100
