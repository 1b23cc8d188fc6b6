"""WGA, SatImp, CE-U, UNDIAL, PDU, JensUn, NPO+SAM and the retain term as KL, against their published formulas.

As in `test_first_order`: plain torch on the full logits of a nano model in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from evals.benchmarks.tdec.chronicle import vocabulary as chronicle_words
from evals.benchmarks.tofu.world import vocabulary as world_words
from evals.benchmarks.wmdp.crafts import vocabulary as crafts_words
from harness.core.config import resolve
from harness.core.errors import UsageError
from harness.core.method import METHODS, UnlearningContext
from harness.data.rows import NO_LABEL, Batch
from harness.models.recipes import Vocabulary
from harness.models.sources import weights_fingerprint
from methods.first_order.loop import Part
from methods.jensun import refusal_tokens
from methods.npo_sam import Perturbation
from methods.pdu import Dual, PDUConfig
from tests.conftest import ContextMaker
from tests.methods.test_first_order import FORGET, Golden, GoldenMaker, Look, close, golden, looks_at  # noqa: F401

NAMES = ["wga", "satimp", "ceu", "undial", "pdu", "jensun", "npo_sam"]
REFUSAL = {"jensun": {"refusal": "not known"}}


def made(golden: GoldenMaker, name: str, **settings: Any) -> Golden:  # noqa: F811
    return golden(name, **{**REFUSAL.get(name, {}), **settings})


def at_labels(looks: Sequence[Look]) -> tuple[Tensor, Tensor]:
    """[N, V] p and [N, V] e_y at the labels of several batches."""
    return tuple(torch.cat([getattr(look, of)[look.labelled] for look in looks]) for of in ("probabilities", "targets"))  # type: ignore[return-value]


def check_ascent(at: Golden, weights_of_p: Any) -> None:
    """L = −mean_t w(p_t) nll_t, and its gradient w(p)(p − e)·(−1)/N with w held fixed."""
    parts = at.parts("forget")
    looks, _, counts = looks_at(at.model, [part.batch for part in parts])
    p, e = at_labels(looks)
    likely = (p * e).sum(-1)
    weights = weights_of_p(likely)
    value, gradients = at.evaluate(at.terms.forget, parts)
    assert value == pytest.approx(float((weights * likely.log()).sum() / counts.sum()), rel=1e-5)
    close(torch.cat(gradients), weights[:, None] * (e - p) / counts.sum())


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.5])
def test_wga_weighs_each_token_by_its_probability(beta: float, golden: GoldenMaker):  # noqa: F811
    check_ascent(made(golden, "wga", beta=beta).moved(), lambda p: p**beta)


@pytest.mark.parametrize(("beta1", "beta2"), [(5.0, 1.0), (1.0, 2.0)])
def test_satimp_weighs_by_saturation_and_importance(beta1: float, beta2: float, golden: GoldenMaker):  # noqa: F811
    at = made(golden, "satimp", beta1=beta1, beta2=beta2, forget_weight=0.5).moved()
    check_ascent(at, lambda p: 0.5 * p**beta1 * (1 - p) ** beta2)


def test_wga_without_weights_is_gradient_difference(golden: GoldenMaker):  # noqa: F811
    wga, ga = made(golden, "wga", beta=0), golden("grad_diff")
    for side in ("forget", "retain"):
        (one, _), (other, _) = (at.evaluate(getattr(at.terms, side), at.parts(side)) for at in (wga, ga))
        assert one == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize("ignored", [0, 1, 3])
def test_ceu_strikes_out_the_true_token_and_passes_over_an_answers_first(ignored: int, golden: GoldenMaker):  # noqa: F811
    at = made(golden, "ceu", ignored_tokens=ignored).moved()
    parts = at.parts("forget")
    looks, _, _ = looks_at(at.model, [part.batch for part in parts])
    p, e = at_labels(looks)
    place = torch.cat([torch.arange(int(look.labelled[row].sum())) for look in looks for row in range(len(look.labelled))])
    kept = place >= ignored
    others = p * (1 - e)
    q = others / others.sum(-1, keepdim=True)
    cross_entropy = -(q * p.log()).sum(-1)
    value, gradients = at.evaluate(at.terms.forget, parts)
    assert value == pytest.approx(float(cross_entropy[kept].mean()), rel=1e-5)
    expected = kept[:, None] * (p - q) / kept.sum()  # differences of numbers that are nearly equal: float32 shows
    torch.testing.assert_close(torch.cat(gradients), expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    assert at.terms.retain is None


@pytest.mark.parametrize("beta", [1.0, 10.0])
def test_undial_lowers_the_memorised_token_in_the_first_models_logits(beta: float, golden: GoldenMaker):  # noqa: F811
    at = made(golden, "undial", beta=beta).moved()
    parts = at.parts("forget")
    looks, _, _ = looks_at(at.model, [part.batch for part in parts])
    before, _, _ = looks_at(at.before, [part.batch for part in parts])
    (p, e), (p0, _) = at_labels(looks), at_labels(before)
    target = (p0.log() - beta * e).softmax(-1)
    value, gradients = at.evaluate(at.terms.forget, parts)
    assert value == pytest.approx(float(-(target * p.log()).sum(-1).mean()), rel=1e-5)
    close(torch.cat(gradients), (p - target) / len(p))
    assert at.terms.retain is None
    assert made(golden, "undial", retain_weight=0.5).terms.retain is not None


def test_undial_at_all_positions_is_open_unlearnings(golden: GoldenMaker):  # noqa: F811
    """Over prompts and padding of the whole step, where −100 counts from the vocabulary's end."""
    at = made(golden, "undial", beta=3.0, positions="all").moved()
    rows = [at.data.forget[row] for row in FORGET]
    longest = max(len(row.input_ids) for row in rows)
    ids = torch.tensor([[*row.input_ids, *[at.data.pad] * (longest - len(row.input_ids))] for row in rows])
    mask = torch.tensor([[1] * len(row.input_ids) + [0] * (longest - len(row.input_ids)) for row in rows])
    labels = torch.tensor(
        [
            [NO_LABEL] * row.prompt_tokens + row.input_ids[row.prompt_tokens :] + [NO_LABEL] * (longest - len(row.input_ids))
            for row in rows
        ]
    )[:, 1:]
    with torch.no_grad():
        z, z0 = (m(input_ids=ids, attention_mask=mask).logits[:, :-1] for m in (at.model, at.before))
    assert longest != min(len(row.input_ids) for row in rows), "there is padding"
    marked = torch.zeros_like(z0)
    for b in range(len(rows)):
        for t in range(longest - 1):
            marked[b, t, labels[b, t]] = 1  # a negative index counts from the end
    target = (z0 - 3.0 * marked).softmax(-1)
    expected = -(target * z.log_softmax(-1)).sum(-1).mean()
    value, _ = at.evaluate(at.terms.forget, at.parts("forget"))
    assert value == pytest.approx(float(expected), rel=1e-5)


def test_undial_at_all_positions_wants_a_hundred_tokens(golden: GoldenMaker, make_context: ContextMaker):  # noqa: F811
    context = make_context()
    context.model.set_output_embeddings(torch.nn.Linear(context.model.config.hidden_size, 99, bias=False))
    method = METHODS.get("undial")
    with pytest.raises(
        UsageError, match=r"^positions=all: this model's vocabulary has 99 tokens; leave it at positions=answer\.$"
    ):
        next(iter(method.unlearn(context, resolve(method.config, {"positions": "all"}, owner="undial"))))


@pytest.mark.parametrize("positions", ["answer", "shifted"])
def test_pdu_flattens_the_logits(positions: str, golden: GoldenMaker):  # noqa: F811
    at = made(golden, "pdu", positions=positions, forget_weight=0.5).moved()
    parts = at.parts("forget")
    squares = []
    for part in parts:
        z = at.model(input_ids=part.batch.input_ids, attention_mask=part.batch.attention_mask).logits.detach()
        shift = 1 if positions == "answer" else 0
        z = z[:, : z.shape[1] - shift][part.batch.labels[:, shift:] != NO_LABEL]
        squares.append((z.max(-1).values - z.mean(-1)) ** 2)
    value, gradients = at.evaluate(at.terms.forget, parts)
    assert value == pytest.approx(float(0.5 * torch.cat(squares).mean()), rel=1e-5)
    assert sum(float(gradient.sum()) for gradient in gradients) == pytest.approx(0, abs=1e-6), "no direction is common to all"


def test_pdus_weight_rises_above_the_bound_and_falls_below_it_but_not_while_warming_up(golden: GoldenMaker):  # noqa: F811
    config = PDUConfig(retain_weight=2.0, retain_bound=0.3, dual_step=5.0, dual_warmup_epochs=2, batch_size=4)
    dual = Dual(config)
    dual.start(12)  # three steps an epoch
    weights = []
    for step, loss in enumerate([9.0] * 6 + [0.5, 0.1, 0.0, 0.0, 0.4], start=1):
        dual.update(step)
        weights.append(dual.weight)
        dual.seen += loss
    assert weights == pytest.approx([2.0] * 7 + [3.0, 2.0, 0.5, 0.0])
    dual.start(12)
    assert dual.weight == 2.0, "each stage has its own"


def test_pdus_retain_term_is_weighed_by_the_dual(golden: GoldenMaker):  # noqa: F811
    at = made(golden, "pdu").moved()
    parts = at.parts("retain")
    _, sums, counts = looks_at(at.model, [part.batch for part in parts])
    value, _ = at.evaluate(at.terms.retain, parts)
    assert value == pytest.approx(100 * float(sums.sum() / counts.sum()), rel=1e-5)


def js_by_hand(p: Tensor, q: Tensor) -> Tensor:
    """As the public code has it, without its clamps: 0 log 0 is 0."""
    m = (p + q) / 2
    return sum(torch.special.entr(x).neg().sum(-1) - (x * m.log()).sum(-1) for x in (p, q)) / 2


def test_jensun_pulls_forget_answers_to_the_refusal_over_and_over(golden: GoldenMaker):  # noqa: F811
    at = made(golden, "jensun", forget_weight=0.5).moved()
    parts = at.parts("forget")
    words = at.context.tokenizer("not known", add_special_tokens=False)["input_ids"]
    assert len(words) == 2
    looks, _, counts = looks_at(at.model, [part.batch for part in parts])
    p, e = at_labels(looks)
    place = torch.cat([torch.arange(int(n)) for n in counts])
    targets = torch.nn.functional.one_hot(torch.tensor(words)[place % 2], p.shape[-1]).double()
    value, _ = at.evaluate(at.terms.forget, parts)
    assert value == pytest.approx(0.5 * float(js_by_hand(p, targets).mean()), rel=1e-5)
    assert value < 0.5 * math.log(2)


def test_jensuns_retain_term_is_the_divergence_from_the_first_model(golden: GoldenMaker):  # noqa: F811
    at = made(golden, "jensun", retain_weight=0.3)
    parts = at.parts("retain")
    assert at.evaluate(at.terms.retain, parts)[0] == pytest.approx(0, abs=1e-7)
    at.moved()
    (now, _, _), (then, _, _) = (looks_at(m, [part.batch for part in parts]) for m in (at.model, at.before))
    value, _ = at.evaluate(at.terms.retain, parts)
    assert value == pytest.approx(0.3 * float(js_by_hand(at_labels(now)[0], at_labels(then)[0]).mean()), rel=1e-4)
    assert made(golden, "jensun", retain_weight=0).terms.retain is None


def test_jensun_refuses_words_that_the_model_does_not_have(make_context: ContextMaker):
    method = METHODS.get("jensun")
    with pytest.raises(UsageError, match=r"^refusal=' No Idea': this model's tokenizer lacks words of it\."):
        next(iter(method.unlearn(make_context(), resolve(method.config, {"refusal": " No Idea"}, owner="jensun"))))


def test_jensun_takes_the_benchmarks_refusal_where_a_model_lacks_its_authors_words(make_context: ContextMaker):
    context = make_context()
    assert (
        refusal_tokens(context, None) == context.tokenizer(context.problem.refusals[0], add_special_tokens=False)["input_ids"]
    )


@pytest.mark.parametrize(("bench", "words"), [("tofu10", world_words), ("wmdp-bio", crafts_words), ("tdec-8", chronicle_words)])
def test_jensuns_refusal_on_an_embedded_world_is_in_words_of_that_world(bench: str, words: Callable[[], Sequence[str]]):
    tokenizer = Vocabulary("words", tuple(words())).build()
    refusal = METHODS.get("jensun").preset(bench, "mini", "published")["refusal"]
    assert tokenizer.unk_token_id not in tokenizer(refusal, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", ["npo", "simnpo", "dpo", "undial", "wga", "satimp"])
def test_the_retain_term_may_be_the_kl_from_the_model_before(name: str, golden: GoldenMaker):  # noqa: F811
    at = golden(name, retain_weight=0.3, retain_loss="kl")
    parts = at.parts("retain")
    assert at.evaluate(at.terms.retain, parts)[0] == pytest.approx(0, abs=1e-9)
    at.moved()
    (now, _, _), (then, _, _) = (looks_at(m, [part.batch for part in parts]) for m in (at.model, at.before))
    p, p0 = at_labels(now)[0], at_labels(then)[0]
    value, gradients = at.evaluate(at.terms.retain, parts)
    assert value == pytest.approx(0.3 * float((p0 * (p0 / p).log()).sum(-1).mean()), rel=1e-5)
    close(torch.cat(gradients), 0.3 * (p - p0) / len(p))


# ---------------------------------------------------------------- NPO+SAM


def test_a_perturbation_lies_along_the_whole_steps_gradient_and_is_undone_to_the_bit(golden: GoldenMaker):  # noqa: F811
    at = made(golden, "npo_sam", beta=0.5).moved()
    parts = at.parts("forget")
    weights = list(at.model.parameters())
    before, fingerprint = [w.detach().clone() for w in weights], weights_fingerprint(at.model)
    gradient = at.parameter_gradient(torch.stack([at.terms.forget(part) for part in parts]).sum())
    perturbation = Perturbation(at.model, 0.01)
    perturbation.do(at.terms.forget, parts)
    moved = torch.cat([(w.detach() - b).flatten() for w, b in zip(weights, before, strict=True)])
    torch.testing.assert_close(moved, 0.01 * gradient / gradient.norm(), rtol=1e-5, atol=1e-9)
    perturbation.undo()
    assert weights_fingerprint(at.model) == fingerprint
    perturbation.undo()
    assert weights_fingerprint(at.model) == fingerprint, "nothing where it is undone"


@pytest.mark.parametrize(
    ("dtype", "radius", "said"), [("bfloat16", 1e-5, True), ("bfloat16", 10.0, False), ("float32", 0.01, False)]
)
def test_a_perturbation_that_is_rounded_away_is_said_so(
    dtype: str,
    radius: float,
    said: bool,
    golden: GoldenMaker,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
):
    at = made(golden, "npo_sam")
    at.moved()
    parts = at.parts("forget")
    at.model.to(getattr(torch, dtype))
    perturbation = Perturbation(at.model, radius)
    for _ in range(2):
        perturbation.do(at.terms.forget, parts)
        perturbation.undo()
    words = [r.getMessage() for r in caplog.records if "rounded away" in r.getMessage()]
    assert len(words) == said
    assert all("rounded away in bfloat16; take --dtype float32 or a larger radius" in text for text in words)


def test_npo_sam_steps_along_the_forget_gradient_there_and_the_retain_gradient_here(
    make_context: ContextMaker, monkeypatch: pytest.MonkeyPatch
):
    """One step of plain descent, against both gradients by autograd."""
    from harness.numerics import training

    radius, lr, whole = 0.05, 1e-3, training.AdamW
    monkeypatch.setattr(training, "fused_adamw", lambda _, named: torch.optim.SGD([weight for _, weight in named], lr=lr))
    monkeypatch.setattr(training, "AdamW", lambda **more: whole(**{**more, "max_gradient_norm": math.inf}))
    parts: dict[str, list[Part]] = {}
    real = training.optimise

    def noted(model: Any, steps: Any, *rest: Any, **more: Any) -> Any:
        def watched() -> Any:
            for step in steps:
                for side, part in step:
                    parts.setdefault(side, []).append(part)
                yield step

        return real(model, watched(), *rest, **more)

    monkeypatch.setattr(training, "optimise", noted)
    context, twin = make_context(), make_context()
    for at in (context, twin):
        at.model.double()
    method = METHODS.get("npo_sam")
    usual = {"epochs": 1, "batch_size": 12, "warmup_epochs": 0, "beta": 0.5, "radius": radius}
    list(method.unlearn(context, resolve(method.config, usual, owner="npo_sam")))

    weights = list(twin.model.parameters())

    def gradient(of: Any) -> list[Tensor]:
        return list(torch.autograd.grad(of, weights))

    def nll(batch: Batch) -> Tensor:
        return Look.at(twin.model, batch).sums

    before = {tuple(part.rows): nll(part.batch).detach() for part in parts["forget"]}

    def forget() -> Tensor:
        rises = torch.cat([nll(part.batch) - before[tuple(part.rows)] for part in parts["forget"]])
        return (-2 / 0.5 * torch.nn.functional.logsigmoid(0.5 * rises)).mean()

    def retain() -> Tensor:
        return torch.cat([nll(part.batch) for part in parts["retain"]]).sum() / parts["retain"][0].labels

    here, first = gradient(retain()), gradient(forget())
    norm = torch.stack([g.norm() for g in first]).norm()
    with torch.no_grad():
        for weight, g in zip(weights, first, strict=True):
            weight.add_(radius * g / norm)
    there = gradient(forget())
    with torch.no_grad():
        for weight, g, f, r in zip(weights, first, there, here, strict=True):
            weight.sub_(radius * g / norm + lr * (f + r))
    for found, expected in zip(context.model.parameters(), weights, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bench", ["tofu10", "wmdp"])
def test_each_has_settings_for_tofu_and_wmdp_and_runs_with_them(name: str, bench: str, make_context: ContextMaker):
    method = METHODS.get(name)
    few = {"max_steps": 4, "epochs": 2, "batch_size": 4, **REFUSAL.get(name, {})}
    found = []
    for _ in range(2):
        context: UnlearningContext = make_context()
        progress = list(method.unlearn(context, resolve(method.config, method.preset(bench, "mini"), few, owner=name)))
        assert [p.step for p in progress if p.measure_here] == [2, 4]
        assert all(math.isfinite(value) for p in progress for value in p.logged.values())
        found.append(weights_fingerprint(context.model))
    assert found[0] == found[1] != weights_fingerprint(make_context().model)
    large = resolve(method.config, method.preset(bench, "zephyr-7b" if bench == "wmdp" else "llama2-7b"), owner=name)
    small = resolve(method.config, method.preset(bench, "mini"), owner=name)
    assert small.lr == pytest.approx(large.lr * (30 if bench == "wmdp" else 100))
