"""KL on the base model's completions, against whole distributions of both models, and what it holds in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from evals import alpaca_kl
from harness.core.costs import Costs
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan, GenerationRequest
from harness.core.measurement import Absent, Measurement
from harness.core.method import UnlearningContext
from harness.core.problem import Problem
from harness.data.rows import Encoded
from harness.numerics.generation import HFGenerator, generate_all
from harness.statistics.measurements import measurements
from harness.storage.cache import Cache
from tests.conftest import WORLD, Bench, Nano, numbered
from tests.numerics.test_likelihood import FAMILIES, random_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EVALUATOR = EVALUATORS.get("alpaca_kl")


@pytest.fixture
def problem(nano_problem: Problem) -> Problem:
    """Fifty instructions, of which one is given twice."""
    rows = numbered([*WORLD.full[:49], WORLD.full[0]])
    return replace(nano_problem, questions={"instructions": [{**row, "cluster": str(row["row"])} for row in rows]})


def context_of(nano: Nano, problem: Problem, cache: Cache, seed: int = 1) -> EvalContext:
    """A random model where the base is another one, with the base's completions."""
    requests = EVALUATOR.requests(EvalPlan(problem), nano.tokenizer)
    context = EvalContext(
        UnlearningContext(nano.model(seed), nano.tokenizer, problem, 0, cache, Costs(), ""), EvalPlan(problem), ()
    )
    context.generations = generate_all(HFGenerator(), nano.model(0), nano.tokenizer, requests, cache, "base")
    return context


def whole(base: PreTrainedModel, model: PreTrainedModel, ids: Sequence[int], start: int) -> list[float]:
    """KL at each position from `start` on, from the logits of everything in float64."""
    import torch

    with torch.no_grad():
        p, q = (m(torch.tensor([ids])).logits[0].double().log_softmax(-1) for m in (base, model))
    return (p.exp() * (p - q)).sum(-1)[start - 1 : -1].tolist()


def numbers(found: Sequence[Measurement | Absent]) -> dict[str, float]:
    return {item.metric: item.value for item in found if isinstance(item, Measurement)}


def test_it_equals_the_direct_computation(nano: Nano, problem: Problem, cache: Cache):
    context = context_of(nano, problem, cache)
    found = numbers(measurements(EVALUATOR, context))
    sums, means, tokens = [], [], 0
    for request, text in context.generations.items():
        prompt = nano.tokenizer(request.turns[0])["input_ids"]
        ids = nano.tokenizer(f"{request.turns[0]} {text}")["input_ids"]
        ids = [*ids, nano.tokenizer.eos_token_id][: len(prompt) + problem.generation_budget]
        nats = whole(nano.model(0), nano.model(1), ids, len(prompt))
        sums.append(sum(nats))
        means.append(np.mean(nats))
        tokens += len(nats)
    assert found["alpaca_kl"] == pytest.approx(np.mean(means), rel=1e-5)
    assert found["alpaca_kl_pooled"] == pytest.approx(sum(sums) / tokens, rel=1e-5)
    table = context.tables["instructions"]
    assert list(table) == ["task", "row", "cluster", "kl_sum", "kl_tokens"]
    assert table["kl_sum"].tolist() == pytest.approx(sums, rel=1e-5)


def test_equal_instructions_are_one_completion(nano: Nano, problem: Problem, cache: Cache):
    context = context_of(nano, problem, cache)
    found = measurements(EVALUATOR, context)
    assert [item.n for item in found if isinstance(item, Measurement)] == [49, 49]
    assert context.tables["instructions"]["row"].tolist() == list(range(49))


def test_the_base_model_itself_has_a_kl_of_nothing(nano: Nano, problem: Problem, cache: Cache):
    found = numbers(measurements(EVALUATOR, context_of(nano, problem, cache, seed=0)))
    assert found == pytest.approx({"alpaca_kl": 0.0, "alpaca_kl_pooled": 0.0}, abs=1e-8)


def test_completions_are_the_bases_and_are_sampled(problem: Problem, nano: Nano):
    for request in EVALUATOR.requests(EvalPlan(problem), nano.tokenizer):
        assert request.by == "base"
        assert request.sampling.temperature == 1
        assert request.sampling.max_tokens == problem.generation_budget
    roomy = replace(problem, generation_budget=10_000)
    assert {r.sampling.max_tokens for r in EVALUATOR.requests(EvalPlan(roomy), nano.tokenizer)} == {256}


def test_the_end_token_counts_unless_the_budget_was_used_up(nano: Nano, problem: Problem):
    long = " ".join(["was"] * 30)
    short, cut = alpaca_kl._encoded([("Who was", "was was"), ("Who was", long)], EvalPlan(problem), nano.tokenizer)
    assert short.input_ids[-1] == nano.tokenizer.eos_token_id
    assert len(short.input_ids) - short.prompt_tokens == 3
    assert nano.tokenizer.eos_token_id not in cut.input_ids
    assert len(cut.input_ids) - cut.prompt_tokens == problem.generation_budget
    (nothing,) = alpaca_kl._encoded([("Who was", "")], EvalPlan(problem), nano.tokenizer)
    assert nothing.input_ids[nothing.prompt_tokens :] == [nano.tokenizer.eos_token_id]


def test_how_many_are_encoded_at_once_changes_nothing(
    nano: Nano, problem: Problem, cache: Cache, monkeypatch: pytest.MonkeyPatch
):
    whole = measurements(EVALUATOR, context_of(nano, problem, cache))
    monkeypatch.setattr(alpaca_kl, "ENCODED_AT_ONCE", 7)
    assert numbers(measurements(EVALUATOR, context_of(nano, problem, cache))) == pytest.approx(numbers(whole), rel=1e-5)


def test_those_that_moved_most_are_named(nano: Nano, problem: Problem, cache: Cache):
    context = context_of(nano, problem, cache)
    (mean, _) = measurements(EVALUATOR, context)
    assert isinstance(mean, Measurement)
    table = context.tables["instructions"].assign(mean=lambda t: t["kl_sum"] / t["kl_tokens"])
    first = table.sort_values("mean", ascending=False).iloc[0]
    assert str(mean.note).startswith(f"highest in rows {first['row']} ({first['mean']:.3g})")


def test_without_instructions_there_is_a_reason(nano: Nano, problem: Problem, cache: Cache):
    found = measurements(EVALUATOR, context_of(nano, replace(problem, questions={}), cache))
    assert all(isinstance(item, Absent) and "tatsu-lab/alpaca" in item.reason for item in found)


def test_a_run_keeps_the_completions_and_their_rows(bench: Bench):
    from tests.running.test_run import run, steps

    result = run(bench, steps(1), [EVALUATOR])
    rows = bench.store.rows(result.spec, 0)
    assert rows is not None
    texts = bench.store.texts(result.spec.folder.as_posix(), 0)
    assert len(texts) == len(rows) > 5
    assert numbers(result.points[0].measurements)["alpaca_kl"] > 0
    assert numbers(result.references["untouched"])["alpaca_kl"] == 0


def test_two_tables_may_fill_a_column_for_different_tasks(bench: Bench):
    from tests.running.test_run import run, steps

    result = run(bench, steps(1), [EVALUATOR, EVALUATORS.get("retain_kl"), EVALUATORS.get("probability")])
    rows = bench.store.rows(result.spec, 0)
    assert rows is not None
    assert rows.set_index("task")["kl_sum"].notna().groupby(level=0).all().to_dict() == {
        "forget": False, "instructions": True, "real_authors": False, "retain": True, "world_facts": False,
    }  # fmt: skip
    assert len(rows) == len(rows[["task", "row"]].drop_duplicates())


# ---------------------------------------------------------------- the numerics


def texts(lengths: Sequence[int], vocabulary: int = 13) -> list[Encoded]:
    rng = np.random.default_rng(0)
    return [Encoded(rng.integers(0, vocabulary, n).tolist(), 2) for n in lengths]


@pytest.mark.parametrize("family", FAMILIES)
def test_kl_between_two_models_of_every_family(family: str):
    from harness.numerics.likelihood import kl_between

    base, model = random_model(family, 0), random_model(family, 1)
    encoded = texts([5, 9, 3, 12])
    sums, counts = kl_between(base, model, encoded, 0)
    assert counts.tolist() == [3, 7, 1, 10]
    assert sums == pytest.approx([sum(whole(base, model, e.input_ids, 2)) for e in encoded], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("positions", [1, 3, 64])
def test_the_size_of_a_chunk_does_not_change_the_result(positions: int):
    from harness.numerics.likelihood import kl_between

    base, model = random_model("llama", 0), random_model("llama", 1)
    encoded = texts([5, 9, 3, 12, 12, 7])
    usual = kl_between(base, model, encoded, 0)
    chunked = kl_between(base, model, encoded, 0, positions=positions)
    np.testing.assert_allclose(chunked[0], usual[0], rtol=1e-5)
    np.testing.assert_array_equal(chunked[1], usual[1])


def test_no_more_distributions_are_made_at_once_than_asked_for(nano: Nano, monkeypatch: pytest.MonkeyPatch):
    from harness.numerics import likelihood

    seen: list[int] = []
    compare = likelihood.kl_per_token
    monkeypatch.setattr(likelihood, "kl_per_token", lambda p, q: seen.append(max(len(p), len(q))) or compare(p, q))
    likelihood.kl_between(nano.model(0), nano.model(1), texts([40] * 32), 0, positions=16)
    assert max(seen) == 16
    assert sum(seen) == 32 * 38


def test_memory_does_not_grow_with_the_number_of_completions(nano: Nano, monkeypatch: pytest.MonkeyPatch):
    """The bytes that tensors hold at once, for eight times as many completions."""
    import torch

    from harness.numerics import likelihood

    monkeypatch.setattr(likelihood, "TOKENS_PER_BATCH", 256)
    base, model = nano.model(0), nano.model(1)
    peaks = []
    for count in (16, 128):
        encoded = texts([32] * count, len(nano.tokenizer))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            likelihood.kl_between(base, model, encoded, 0, positions=16)
        held, peak = 0, 0
        for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
            if event.name() == "[memory]":
                held += event.nbytes()
                peak = max(peak, held)
        peaks.append(peak)
    assert peaks[0] > 16 * len(nano.tokenizer) * 4
    assert peaks[1] < 1.1 * peaks[0]


# ---------------------------------------------------------------- sampling


def test_sampled_text_follows_from_its_seed_alone(nano: Nano):
    import torch

    from harness.core.evaluator import Sampling

    prompts = [str(row["question"]) for row in WORLD.full[:6]]

    def drawn(seed: int) -> list[str]:
        torch.rand(3)  # whatever was drawn before
        requests = [GenerationRequest((p,), Sampling(8, 1.0, seed)) for p in prompts]
        return HFGenerator().generate(nano.model(), nano.tokenizer, requests)

    assert drawn(0) == drawn(0) != drawn(1)


def test_sampling_leaves_the_random_state_as_it_was(nano: Nano):
    import torch

    from harness.core.evaluator import Sampling

    before = torch.random.get_rng_state()
    HFGenerator().generate(nano.model(), nano.tokenizer, [GenerationRequest(("Who was",), Sampling(8, 1.0))])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_sampled_tokens_are_as_likely_as_the_model_says(nano: Nano):
    """First tokens of many draws against the distribution they are drawn from: mean log-likelihood within four errors."""
    import torch

    from harness.core.evaluator import Sampling

    model, prompt = nano.model(), "Who was"
    requests = [GenerationRequest((prompt,), Sampling(1, 1.0, seed)) for seed in range(300)]
    texts = HFGenerator().generate(model, nano.tokenizer, requests)
    with torch.no_grad():
        log_p = model(torch.tensor([nano.tokenizer(prompt)["input_ids"]])).logits[0, -1].double().log_softmax(-1)
    ids = [nano.tokenizer(text)["input_ids"] or [nano.tokenizer.eos_token_id] for text in texts]
    seen = np.array([float(log_p[i[0]]) for i in ids])
    mean = float((log_p.exp() * log_p).sum())
    deviation = math.sqrt(float((log_p.exp() * (log_p - mean) ** 2).sum()))
    assert abs(seen.mean() - mean) < 4 * deviation / math.sqrt(len(seen))
