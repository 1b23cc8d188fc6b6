"""AltPO against its published formula; how its alternatives are drawn, drawn again and taken in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evals.benchmarks.tofu.templates import TEMPLATES
from harness.core.benchmark import BENCHMARKS
from harness.core.config import resolve
from harness.core.errors import UsageError
from harness.core.evaluator import GenerationRequest
from harness.core.method import METHODS, UnlearningContext
from harness.core.options import Options
from harness.core.problem import Problem, Stage
from harness.core.text import Example
from harness.data.corpora import Corpus, Windows
from harness.data.rows import collate, encode
from harness.models.small import SMALL_MODEL_FACTOR
from harness.numerics.generation import HFGenerator
from harness.running.plan import plan
from methods.altpo import LEAD_IN, Alternatives, AltPOConfig, alternatives, prompt
from methods.first_order.preference import dpo_term
from tests.conftest import ContextMaker, Nano, NanoBenchmark
from tests.methods.test_first_order import FORGET, Golden, GoldenMaker, check, golden, looks_at  # noqa: F401

SHORT = {"instruction": "", "max_tokens": 5, "alternatives": 3}


def config_of(**settings: Any) -> AltPOConfig:
    return resolve(AltPOConfig, SHORT, settings, owner="altpo")


def drawn(context: UnlearningContext, **settings: Any) -> list[list[str]]:
    return alternatives(context, context.stages[0], config_of(**settings))


Say = Callable[[str, int], str]
"""(prompt, how often it was asked before) → what is said."""


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Say], list[list[GenerationRequest]]]:
    """Has a script answer in place of the model; gives what was asked, round after round."""

    def install(say: Say) -> list[list[GenerationRequest]]:
        rounds: list[list[GenerationRequest]] = []

        def generate(_self: Any, _model: Any, _tokenizer: Any, requests: Sequence[GenerationRequest]) -> list[str]:
            if requests:
                rounds.append(list(requests))
            return [say(request.turns[0], len(rounds) - 1) for request in requests]

        monkeypatch.setattr(HFGenerator, "generate", generate)
        return rounds

    return install


# ---------------------------------------------------------------- the loss


def check_preference(at: Golden, term: Any, winners: Alternatives, step: int, beta: float) -> None:
    """−(2/β) mean log σ(β [log-ratio of the winner − log-ratio of the true answer]), and its gradients."""
    cuts = (slice(0, 3), slice(3, 4))
    parts = [replace(part, step=step) for part in at.parts("forget")]
    preferred = [collate([winners(step, row) for row in FORGET[cut]], FORGET[cut], at.data.pad) for cut in cuts]
    (lose_looks, lose, _), (win_looks, win, _) = (looks_at(at.model, b) for b in ([p.batch for p in parts], preferred))
    (_, lose_before, _), (_, win_before, _) = (looks_at(at.before, b) for b in ([p.batch for p in parts], preferred))
    margin = beta * ((-win + win_before) - (-lose + lose_before))
    loss = -2 / beta * torch.log(1 / (1 + torch.exp(-margin))).mean()
    value, gradients = at.evaluate(term, parts)
    weights = 2 * torch.sigmoid(-margin) / 4
    check((value, gradients[::2]), loss, lose_looks, weights)
    check((value, gradients[1::2]), loss, win_looks, -weights)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_altpo_prefers_what_the_model_drew_before(beta: float, golden: GoldenMaker):  # noqa: F811
    at = golden("altpo", **SHORT, beta=beta)
    winners = Alternatives(at.context, at.data, drawn(at.context))
    check_preference(at.moved(), at.terms.forget, winners, 1, beta)


def test_each_step_has_an_alternative_of_its_own(golden: GoldenMaker):  # noqa: F811
    at = golden("altpo", **SHORT)
    data = replace(at.data, steps=[FORGET] * 3)
    winners = Alternatives(at.context, data, drawn(at.context))
    term = dpo_term(at.context, data, winners, 0.5, 4.0)
    at.moved()
    for step in (1, 2, 3):
        check_preference(at, term, winners, step, 0.5)
    values = {at.evaluate(term, [replace(part, step=step) for part in at.parts("forget")])[0] for step in (1, 2, 3)}
    assert len(values) == 3, "several winners"


def test_a_question_without_alternatives_pulls_nowhere(golden: GoldenMaker):  # noqa: F811
    at = golden("altpo", **SHORT)
    texts = [[] if row in FORGET else ["not known"] for row in range(len(at.data.forget))]
    term = dpo_term(at.context, at.data, Alternatives(at.context, at.data, texts), 0.5, 4.0)
    at.moved()
    loss = torch.stack([term(part) for part in at.parts("forget")]).sum()
    assert float(loss.detach()) == pytest.approx(4 * 0.693147, rel=1e-5)
    assert at.parameter_gradient(loss).abs().max() < 1e-6


@pytest.mark.parametrize(("loss", "weight"), [("nll", 1.0), ("kl", 0.5), ("nll", 0.0)])
def test_the_retain_term_is_that_of_dpo(loss: str, weight: float, golden: GoldenMaker):  # noqa: F811
    one, other = (
        golden(name, retain_loss=loss, retain_weight=weight, **more).moved() for name, more in (("altpo", SHORT), ("dpo", {}))
    )
    assert (one.terms.retain is None) == (other.terms.retain is None) == (weight == 0)
    if weight:
        values = [at.evaluate(at.terms.retain, at.parts("retain"))[0] for at in (one, other)]
        assert values[0] == values[1] > 0


# ---------------------------------------------------------------- alternatives in turn


def test_all_alternatives_come_in_turn_in_orders_of_their_own(golden: GoldenMaker, make_context: ContextMaker):  # noqa: F811
    data = replace(golden("altpo", **SHORT).data, steps=[FORGET] * 8)
    texts = [["one", "two", "three", "four"] for _ in data.forget]

    def orders(seed: int) -> list[list[int]]:
        winners = Alternatives(make_context(seed=seed), data, texts)
        return [[winners.drawn(step, row) for step in range(1, 9)] for row in FORGET]

    assert all(sorted(order[:4]) == [0, 1, 2, 3] and order[4:] == order[:4] for order in orders(0))
    assert len({tuple(order) for order in orders(0)}) > 1
    assert orders(0) == orders(0) != orders(1)


def test_an_alternative_answers_its_question(golden: GoldenMaker):  # noqa: F811
    at = golden("altpo", **SHORT)
    texts = [["not known"] for _ in at.data.forget]
    example = at.data.stage.forget[FORGET[0]]
    (expected,) = encode([replace(example, answer="not known")], at.context.tokenizer)
    assert Alternatives(at.context, at.data, texts)(1, FORGET[0]) == expected


def test_an_alternative_is_cut_as_the_true_answer_is(golden: GoldenMaker):  # noqa: F811
    at = golden("altpo", **SHORT)
    long = " ".join(["known"] * 50)
    alternative = Alternatives(at.context, replace(at.data, max_length=30), [[long] for _ in at.data.forget])(1, FORGET[0])
    assert len(alternative.input_ids) == 30


# ---------------------------------------------------------------- how they are drawn


def test_the_seed_decides_what_is_drawn(make_context: ContextMaker):
    first, again, other = (drawn(make_context(seed=seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert {len(row) for row in first} == {3}
    assert all(len(set(row)) > 1 for row in first), "different seeds for each of a question"


def test_what_was_drawn_is_kept_and_its_cost_too(make_context: ContextMaker, scripted: Any):
    context = make_context()
    with context.costs.phase("alternatives"):
        first = drawn(context)
    assert context.costs.phases["alternatives"].tokens > 12 * 3 * 5
    asked = scripted(lambda _prompt, _round: "never")
    with context.costs.phase("again"):
        assert drawn(context) == first
    assert not asked
    again = context.costs.phases["again"]
    assert again.full_seconds > again.seconds
    drawn(context, temperature=2.0)
    assert len(asked) == 1, "other settings, other alternatives"


def test_the_true_answer_and_nothing_at_all_are_drawn_again(make_context: ContextMaker, scripted: Any):
    context = make_context()
    examples = context.stages[0].forget
    answers = {e.prompt: e.answer for e in examples}
    stubborn, silent, late = (e.prompt for e in examples[:3])
    assert len(answers) == len(examples) == 12

    def say(asked: str, number: int) -> str:
        if asked == stubborn or (asked == late and number < 2):
            return "  ".join(answers[asked].split()) + " "
        return "" if asked == silent and number == 0 else " Question: and what then?" if asked == silent else "something else"

    rounds = scripted(say)
    texts = drawn(context, redraws=2)
    assert [len(requests) for requests in rounds] == [36, 9, 9], "those that are accepted are not asked for again"
    assert len({r.sampling.seed for requests in rounds for r in requests}) == 36 + 9 + 9
    assert texts == [[], [], *[["something else"] * 3] * 10]


def test_an_alternative_ends_before_a_next_question_and_begins_behind_the_tag(make_context: ContextMaker, scripted: Any):
    context = make_context()
    stage = context.stages[0]
    scripted(lambda _prompt, _round: "Answer: it is known.\nQ: and then?")
    tagged = Stage("tagged", [replace(e, tag="Answer: ") for e in stage.forget], stage.retain)
    assert alternatives(context, tagged, config_of()) == [["it is known."] * 3] * 12


def test_where_nothing_but_true_answers_come_the_run_is_refused(make_context: ContextMaker, scripted: Any):
    context = make_context()
    answers = {e.prompt: e.answer for e in context.stages[0].forget}
    scripted(lambda asked, _round: answers[asked])
    method = METHODS.get("altpo")
    config = resolve(method.config, SHORT, {"temperature": 0.5, "redraws": 1}, owner="altpo")
    with pytest.raises(
        UsageError, match=r"^temperature=0\.5, redraws=1: [^.]* of all 12 forget questions\. Set one .* higher\.$"
    ):
        list(method.unlearn(context, config))


def test_a_run_says_how_many_questions_have_no_alternative(make_context: ContextMaker, scripted: Any):
    context = make_context()
    first = context.stages[0].forget[0]
    scripted(lambda asked, _round: "" if asked == first.prompt else "something else")
    method = METHODS.get("altpo")
    config = resolve(method.config, SHORT, {"epochs": 2, "batch_size": 6, "warmup_epochs": 0}, owner="altpo")
    progress = list(method.unlearn(context, config))
    assert [p.logged["questions_without_alternative"] for p in progress] == [1] * 4
    assert context.costs.phases["alternatives"].tokens > 0


# ---------------------------------------------------------------- what the model is asked


def rendered(template: str, make_context: ContextMaker, problem: Problem) -> str:
    put = TEMPLATES[template]
    context = make_context(problem=replace(problem, template=put))
    return prompt(context, put.example("Who?", "It is known."), "known")


def test_the_model_is_shown_question_answer_and_instruction(make_context: ContextMaker, nano_problem: Problem):
    asked = "Question: Who?\nAnswer: It is known.\nknown"
    assert rendered("llama2", make_context, nano_problem) == f"[INST] {asked} [/INST] {LEAD_IN}"
    assert rendered("phi", make_context, nano_problem) == f"Question: {asked}\n{LEAD_IN}"
    llama3 = rendered("llama3", make_context, nano_problem)
    assert llama3.endswith(f"<|end_header_id|>\n\n{asked}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n{LEAD_IN}")


def test_without_an_instruction_it_answers_the_question_alone(nano_context: UnlearningContext):
    example = nano_context.stages[0].forget[0]
    assert prompt(nano_context, example, "") == example.prompt
    assert config_of(instruction=" \n").instruction == ""


def test_an_instruction_in_words_that_the_model_lacks_is_refused(nano_context: UnlearningContext):
    with pytest.raises(UsageError, match=r"^instruction: this model's tokenizer lacks words of it\. .*--set instruction="):
        alternatives(nano_context, nano_context.stages[0], AltPOConfig())


# ---------------------------------------------------------------- where it runs, and how


def test_a_benchmark_of_running_text_is_refused(nano: Nano, nano_problem: Problem, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(BENCHMARKS._registered, "nano", NanoBenchmark(nano_problem))
    assert plan("nano", "mini", "altpo", {}, Options()).method.name == "altpo"
    (stage,) = nano_problem.stages
    unread = Windows((Corpus((Path("not-there.jsonl"),), 10),), nano.source(0), 64)
    for forget in ([Example("", e.answer) for e in stage.forget], unread):
        text = replace(nano_problem, stages=[Stage("text", forget, stage.retain)])
        monkeypatch.setitem(BENCHMARKS._registered, "nano", NanoBenchmark(text))
        with pytest.raises(
            UsageError, match=r"^altpo cannot run on nano with mini: it draws other answers to forget questions"
        ):
            plan("nano", "mini", "altpo", {}, Options())


def test_published_settings_are_those_of_its_repository():
    method = METHODS.get("altpo")
    large, small = (resolve(method.config, method.preset("tofu10", family), owner="altpo") for family in ("llama2-7b", "mini"))
    assert (large.lr, large.beta, large.retain_weight, large.alternatives, large.temperature) == (5e-5, 0.1, 1.0, 5, 1.0)
    assert (large.epochs, large.warmup_epochs, large.max_tokens) == (2 * 5, 5, 200)
    assert large.instruction
    assert small.lr == pytest.approx(SMALL_MODEL_FACTOR * large.lr)
    assert replace(small, lr=large.lr, instruction=large.instruction, max_tokens=large.max_tokens) == large
    assert method.preset("tofu10", "scratch")["instruction"] == ""
