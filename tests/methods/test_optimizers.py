"""AdamW kept otherwise (`--optimizer`) and recomputed activations (`--recompute`): every method, its name, what is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.core.config import resolve
from harness.core.errors import UsageError
from harness.core.fields import Given, from_python, read
from harness.core.method import METHODS, Progress, UnlearningContext
from harness.core.optimizers import optimizer_of
from harness.core.options import LoRA, Optimizer, Options
from harness.running.plan import plan
from harness.running.recorded import recorded_request
from harness.running.request import RunRequest, SweepRequest, request_file
from tests.architectures import SETTINGS
from tests.conftest import Bench, ContextMaker, giving

if TYPE_CHECKING:
    from torch import Tensor

TAKING = [name for name, method in METHODS.all().items() if method.takes_optimizer]


def weights(name: str, context: UnlearningContext, **settings: Any) -> dict[str, Tensor]:
    """After two epochs."""
    method = METHODS.get(name)
    config = resolve(method.config, {"epochs": 2, "batch_size": 4, **SETTINGS[name]}, settings, owner=name)
    for _ in method.steps(context, config):
        pass
    return {name: tensor.detach().clone() for name, tensor in context.model.named_parameters()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(one[name].equal(other[name]) for name in one)


# ---------------------------------------------------------------- every method


@pytest.mark.parametrize("name", TAKING)
def test_stepped_weight_by_weight_and_recomputed_every_method_gives_the_same_weights(name: str, make_context: ContextMaker):
    """32 bits, masters and a clipped gradient are the usual ones: only the order of the work is another."""
    plain = weights(name, make_context())
    assert same(plain, weights(name, replace(make_context(), optimizer=Optimizer(), recompute=True)))


@pytest.mark.parametrize("name", ["ga", "npo", "npo_sam", "kl_min"])
def test_pure_bfloat16_with_released_gradients_trains(name: str, make_context: ContextMaker):
    import torch

    def pure(seed: int = 0) -> UnlearningContext:
        context = make_context(seed=seed)
        context.model.bfloat16()
        return replace(context, optimizer=Optimizer(masters="none", clip="none"))

    start = {name: tensor.detach().clone() for name, tensor in pure().model.named_parameters()}
    end = weights(name, pure(), lr=1e-3)
    assert {tensor.dtype for tensor in end.values()} == {torch.bfloat16}
    assert not same(start, end)
    assert same(end, weights(name, pure(), lr=1e-3)), "the seed decides how weights are rounded"


def test_adapters_are_stepped_so_too(make_context: ContextMaker):
    lora = LoRA(rank=4, dropout=0.0)
    plain = weights("grad_diff", replace(make_context(), adapter=lora))
    assert same(plain, weights("grad_diff", replace(make_context(), adapter=lora, optimizer=Optimizer())))


# ---------------------------------------------------------------- a whole run


@pytest.fixture
def fake(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A method that takes an optimizer, and does nothing with it."""

    def unlearn(context: UnlearningContext, config: Any) -> Iterator[Progress]:
        yield Progress(1, measure_here=True, total=1)

    bench.plan(unlearn, [giving("anything", lambda context: 1.0)])
    monkeypatch.setitem(METHODS._registered, "fake", replace(METHODS.get("fake"), takes_adapter=True))
    return bench


def test_a_run_with_an_optimizer_has_a_name_of_its_own_and_recomputing_moves_none(fake: Bench):
    kept = Optimizer(clip="none")
    plain, again, own = (
        plan("nano", "mini", "fake", {}, options) for options in (Options(), Options(recompute=True), Options(optimizer=kept))
    )
    assert plain.spec.run_id == again.spec.run_id != own.spec.run_id
    assert "optimizer" not in plain.spec.settings
    assert own.spec.settings["optimizer"] == "adamw:bits=32,masters=float32,clip=none"
    assert own.selection == "published form: defaults of fake, then optimizer by hand"
    assert own.command.endswith("--optimizer adamw:bits=32,masters=float32,clip=none")
    asked = read(RunRequest, recorded_request(own.spec, "a record"))
    assert asked.optimizer == asked.options(0).optimizer == kept


def test_what_has_no_use_for_it_is_refused_with_the_way_out(fake: Bench, monkeypatch: pytest.MonkeyPatch):
    def refused(options: Options, said: str, method: str = "fake") -> None:
        with pytest.raises(UsageError, match=said):
            plan("nano", "mini", method, {}, options)

    pure = Optimizer(masters="none")
    refused(
        Options(optimizer=pure), r"float32 weights need no masters\. Leave out masters=none, or train .* --dtype bfloat16\.$"
    )
    refused(Options(optimizer=pure, dtype="bfloat16", adapter=LoRA()), r"adapters are float32\. Leave out masters=none")
    plan("nano", "mini", "fake", {}, Options(optimizer=pure, dtype="bfloat16"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(
        Options(optimizer=Optimizer(bits=8)),
        r"need bitsandbytes, which is not installed: pip install '.*', or leave out bits=8\.$",
    )
    for name in ("kfade", "rmu", "soul", "untouched"):
        assert not METHODS.get(name).takes_optimizer
    refused(
        Options(optimizer=pure), r"^sham does not train by AdamW alone\. Leave out --optimizer, or take one of .*npo", "sham"
    )


# ---------------------------------------------------------------- as it is written


def test_a_file_and_python_say_it_too(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("method: npo\nbench: tofu10\noptimizer: adamw:bits=8\nrecompute: true\n")
    for kind in (RunRequest, SweepRequest):
        for layer in (
            request_file(kind, tmp_path / "run.yaml"),
            from_python(kind, {"optimizer": "adamw:bits=8", "recompute": True}),
            {"optimizer": Given("adamw:bits=8", "--optimizer …"), "recompute": Given(True, "--recompute")},
        ):
            asked = read(kind, layer)
            assert (asked.optimizer, asked.recompute) == (Optimizer(bits=8), True)


@pytest.mark.parametrize(
    ("text", "optimizer"),
    [
        ("", None),
        ("adamw", None),
        ("adamw:bits=32,clip=1,masters=float32", None),
        ("adamw:bits=8", Optimizer(bits=8)),
        ("adamw:clip=none, masters=none", Optimizer(masters="none", clip="none")),
    ],
)
def test_the_words_of_an_optimizer(text: str, optimizer: Optimizer | None):
    assert optimizer_of(Given(text, f"--optimizer {text}")) == optimizer
    assert optimizer_of(Given(str(optimizer or ""), "again", "file")) == optimizer


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sgd", "is no optimizer. Write adamw:bits=8"),
        ("adamw:bits=4", "bits=4 is not known. There are: 32, 8."),
        ("adamw:masters=bfloat16", "masters=bfloat16 is not known. There are: float32, none."),
        ("adamw:clip=0", "clip=0 is not known. There are: 1, none."),
        ("adamw:lr=1", "'lr=1' is no setting of an optimizer. Write adamw:bits=8"),
        ("adamw:bits=8,bits=8", "says bits twice."),
    ],
)
def test_other_words_are_refused_in_a_sentence(text: str, said: str):
    with pytest.raises(UsageError) as error:
        optimizer_of(Given(text, f"--optimizer {text}"))
    assert str(error.value).startswith(f"--optimizer {text}")
    assert said in str(error.value)
