"""Differences between methods: paired, by whole authors, corrected for how much is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.core.benchmark import BENCHMARKS, roles_of
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan
from harness.core.measurement import Difference, Measurement
from harness.core.metric import HARMONIC, harmonic_mean
from harness.reading import differences as kernel
from harness.reading.differences import holm, of_contexts, of_rows
from harness.reading.leaderboard import build
from harness.statistics.measurements import measurements
from harness.statistics.paired import Resampling
from tests import records
from tests.records import numbers, run

PLAN = EvalPlan()
AUTHORS, EACH = 20, 6


def answers(shift: float, own: float = 0.0, seed: int = 0, authors: int = AUTHORS, task: str = "retain") -> pd.DataFrame:
    """ROUGE of rows whose authors differ much; one method adds a shift to all and its own deviations to every author."""
    of_authors = np.random.default_rng(7).uniform(0.1, 0.9, authors).repeat(EACH)
    added = shift + np.random.default_rng(seed).normal(0, own, authors).repeat(EACH)
    names = np.repeat([f"a{i}" for i in range(authors)], EACH)
    return pd.DataFrame({"task": task, "row": range(len(names)), "cluster": names, "rougeL_recall": of_authors + added})


def subjects(tables: Mapping[str, Sequence[pd.DataFrame]], table: str = "answers") -> dict[str, list[EvalContext]]:
    return {method: [EvalContext(None, PLAN, (), {table: rows}) for rows in of_seeds] for method, of_seeds in tables.items()}


def list_of(
    measured: Mapping[str, Sequence[EvalContext]], metrics: Sequence[str], against: str | None = None
) -> list[Difference]:
    return list(of_contexts(measured, metrics, against))


def test_holm_is_the_textbooks():
    # Holm (1979): the smallest times 4, the next times 3, and so on, never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_what_two_methods_share_cancels():
    (alike,) = list_of(subjects({"a": [answers(0.1, 0.001, 1)], "b": [answers(0.0)]}), ["retain_rouge"])
    assert alike.value == pytest.approx(0.1, abs=0.001)
    assert alike.high - alike.low < 0.003, "authors differ by .2 and more, both methods alike"
    assert alike.p < 0.001
    many = {"a": [answers(0.0, 0.2, 1, authors=100)], "b": [answers(0.0, 0.2, 2, authors=100)]}
    (unlike,) = list_of(subjects(many), ["retain_rouge"])
    assert (unlike.high - unlike.low) / 2 == pytest.approx(1.96 * 0.2 * 2**0.5 / 100**0.5, rel=0.2)
    assert (unlike.n, unlike.clusters) == (600, 100)


def test_under_no_difference_p_is_under_five_percent_about_every_twentieth_time():
    below = 0
    for trial in range(120):
        pair = {"a": [answers(0, 0.2, 1000 + trial)], "b": [answers(0, 0.2, 2000 + trial)]}
        below += list_of(subjects(pair), ["retain_rouge"])[0].p <= 0.05
    assert 1 <= below <= 18, "a percentile bootstrap of twenty authors is a little eager"


def test_equal_methods_do_not_differ():
    (same,) = list_of(subjects({"a": [answers(0.1, 0.2, 3)], "b": [answers(0.1, 0.2, 3)]}), ["retain_rouge"])
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_several_seeds_are_averaged():
    (found,) = list_of(subjects({"a": [answers(0.1), answers(0.3)], "b": [answers(0.0)]}), ["retain_rouge"])
    assert found.value == pytest.approx(0.2)


def test_against_one_method_it_is_the_second_everywhere():
    of = {name: [answers(shift)] for name, shift in (("a", 0.1), ("b", 0.2), ("c", 0.4))}
    assert {(d.first, d.second) for d in list_of(subjects(of), ["retain_rouge"])} == {("a", "b"), ("a", "c"), ("b", "c")}
    against = list_of(subjects(of), ["retain_rouge"], against="b")
    assert [(d.first, d.second, round(d.value, 6)) for d in against] == [("a", "b", -0.1), ("c", "b", 0.2)]


def test_what_cannot_be_compared_is_left_out():
    broken = answers(0.0).assign(rougeL_recall=np.nan)
    other_rows = answers(0.0).assign(cluster="x")
    of = {"a": [answers(0.0)], "b": [answers(0.1)], "nan": [broken], "rows": [other_rows], "none": [answers(0, task="forget")]}
    assert [(d.first, d.second) for d in list_of(subjects(of), ["retain_rouge"])] == [("a", "b")]
    few = {"a": [answers(0.0, authors=4)], "b": [answers(0.1, authors=4)]}
    assert list_of(subjects(few), ["retain_rouge"]) == [], "fewer than five authors"


def test_kl_is_weighted_by_tokens_in_every_resample():
    def rows(nats: Sequence[float], tokens: Sequence[int]) -> pd.DataFrame:
        names = [f"a{i}" for i in range(len(nats))]
        return pd.DataFrame({"task": "retain", "row": range(len(nats)), "cluster": names, "kl_sum": nats, "kl_tokens": tokens})

    tokens = [1, 2, 3, 4, 50]
    of = {"a": [rows([1.0] * 5, tokens)], "b": [rows([0.0] * 5, tokens)]}
    (found,) = list_of(subjects(of, "divergence"), ["retain_kl"])
    assert found.value == pytest.approx(5 / 60)
    assert (found.better, found.n) == ("lower", 5)
    assert found.low >= 1 / 50, "a resample of the longest answer alone"
    assert found.high > 5 / 60


def test_utility_is_the_harmonic_mean_of_nine_resampled_means():
    rng = np.random.default_rng(0)
    groups = [(rng.uniform(0.2, 1, (30, 3)), np.repeat(np.arange(10), 3)) for _ in range(3)]
    drawn = Resampling(50).metric(groups, HARMONIC.of_means)
    assert drawn is not None
    assert len(drawn) == 51
    means = np.concatenate([values.mean(axis=0) for values, _ in groups])
    assert drawn[0] == pytest.approx(9 / (1 / means).sum()) == pytest.approx(harmonic_mean(list(means)))


def wmdp_rows(shift: float, kl: float, seed: int = 0, groups: int = 40) -> pd.DataFrame:
    """A run's rows on WMDP: four questions about each thing, hard ones alike for all; a share of the others lost; completions."""
    rng = np.random.default_rng(7)
    hard = rng.uniform(0, 1, 4 * groups) < 0.4
    lost = np.random.default_rng(seed).uniform(0, 1, 4 * groups) < shift
    choices = pd.DataFrame(
        {
            "task": "bio",
            "row": range(4 * groups),
            "cluster": np.repeat([f"e{i}" for i in range(groups)], 4),
            "correct": (~hard & ~lost).astype(float),
            "choice": 0.0,
        }
    )
    said = pd.DataFrame({"task": "instructions", "row": range(30), "cluster": [str(i) for i in range(30)], "kl_tokens": 5.0})
    return pd.concat([choices, said.assign(kl_sum=5 * kl * rng.uniform(0.5, 1.5, 30))], ignore_index=True)


def test_wmdp_compares_accuracies_by_group_and_kl_by_completion():
    measured = {"a": [wmdp_rows(0.0, 0.1)], "b": [wmdp_rows(0.1, 0.3)]}
    found = {d.metric: d for d in of_rows(measured, roles_of("wmdp").compared, "original")}
    assert set(found) == {"bio_accuracy", "alpaca_kl"}, "what was measured"
    bio, kl = found["bio_accuracy"], found["alpaca_kl"]
    correct = [of_run[0].loc[of_run[0]["task"] == "bio", "correct"].mean() for of_run in measured.values()]
    assert bio.value == pytest.approx(correct[0] - correct[1])
    assert (bio.better, bio.n, bio.clusters, kl.better, kl.n, kl.clusters) == ("lower", 160, 40, "lower", 30, 30)
    assert bio.low > 0, "what both find hard cancels: unpaired, ± .1 stands against .06"
    assert kl.value == pytest.approx(-0.2, rel=0.1)
    assert kl.high < 0


def test_below_chance_two_models_differ_in_nothing():
    def right(of_ten: int) -> pd.DataFrame:
        told = {"task": "cyber", "row": range(100), "cluster": [str(i // 4) for i in range(100)]}
        return pd.DataFrame({**told, "correct": [float(i % 10 < of_ten) for i in range(100)], "choice": 0.0})

    measured = {"a": [right(0)], "b": [right(1)], "c": [right(5)]}
    found = of_rows(measured, roles_of("wmdp").compared, "original")  # type: ignore[attr-defined]
    told = {(d.first, d.second): (d.value, d.p) for d in found}
    assert told["a", "b"] == (0, 1)
    assert told["a", "c"][0] == told["b", "c"][0] == pytest.approx(0.25 - 0.5)


def test_a_run_with_an_answer_that_is_not_finite_is_not_compared():
    broken = wmdp_rows(0.1, 0.3).assign(choice=-1.0)
    found = of_rows({"a": [wmdp_rows(0, 0.1)], "b": [broken]}, roles_of("wmdp").compared, "original")  # type: ignore[attr-defined]
    assert [d.metric for d in found] == ["alpaca_kl"]


def test_many_clusters_are_drawn_as_few_are():
    values = np.random.default_rng(0).normal(size=(1200, 1))
    drawn = Resampling(4000).metric([(values, np.arange(1200))], lambda means: means[0])
    assert drawn is not None
    assert drawn[0] == pytest.approx(values.mean())
    assert drawn[1:].mean() == pytest.approx(values.mean(), abs=0.003)
    assert drawn[1:].std() == pytest.approx(values.std() / 1200**0.5, rel=0.05)


# ---------------------------------------------------------------- from a store


def stored(root: Path, method: str, shift: float, seed: int = 0, selection: str = records.PUBLISHED, **config: float) -> None:
    """A run with rows."""
    told = {"method": method, "seed": seed, "config": {"lr": 0.1, **config}}
    made = run(numbers(0.1, 0.2, 0.8), spec=told, selection=selection.replace("kfade", method))
    (folder,) = records.write(root, made)
    answers(shift, 0.02, seed).assign(point=0).to_parquet(folder / "per_example.parquet")


def test_the_leaderboard_compares_each_with_each_within_a_form(tmp_path: Path):
    for seed in (0, 1):
        stored(tmp_path, "ga", 0.0, seed)
        stored(tmp_path, "npo", 0.2, seed)
    stored(tmp_path, "dpo", 0.0, selection=records.TUNED)
    stored(tmp_path, "soul", 0.0, selection=records.TUNED)
    stored(tmp_path, "idk", 0.0, selection=records.BY_HAND)
    stored(tmp_path, "retrained", 0.0)
    files = build(tmp_path)
    lines = files["differences.csv"].decode().splitlines()
    assert len(lines) == 3, "by hand and reference arms are in no comparison"
    told = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    assert (told["protocol"], told["metric"], told["compared"]) == ("published", "retain_rouge", "1")
    assert abs(float(told["difference"])) == pytest.approx(0.2, abs=0.02)
    assert dict(zip(lines[0].split(","), lines[2].split(","), strict=True))["protocol"] == "tuned"
    page = files["index.html"].decode()
    assert "1 of 1 differences between two methods (paired bootstrap) are told apart" in page
    assert "0 of 1 differences" in page
    assert "differences.csv" in files["leaderboard.md"].decode()
    assert build(tmp_path) == files


def test_a_method_of_which_a_run_has_no_rows_is_not_compared(tmp_path: Path):
    stored(tmp_path, "ga", 0.0)
    stored(tmp_path, "npo", 0.2)
    records.write(tmp_path, run(numbers(0.1, 0.2, 0.8), spec={"method": "ga", "seed": 1, "config": {"lr": 0.1}}))
    assert len(build(tmp_path)["differences.csv"].decode().splitlines()) == 1


def test_a_benchmark_that_cannot_say_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stored(tmp_path, "ga", 0.0)
    stored(tmp_path, "npo", 0.2)
    monkeypatch.delattr(type(BENCHMARKS.get("tofu10")), "roles")
    assert len(build(tmp_path)["differences.csv"].decode().splitlines()) == 1
    assert kernel.differences({}, kernel.Store(tmp_path)) == []


# ---------------------------------------------------------------- retain KL


def test_retain_kl_is_that_of_each_row_and_none_before(nano_context):
    """Against a direct computation with the whole model, row by row."""
    import torch

    from harness.data.rows import encode

    context = nano_context
    evaluator = EVALUATORS.get("retain_kl")
    evaluator.before(EvalContext(context, EvalPlan(context.problem), ()))
    (none,) = measurements(evaluator, EvalContext(context, EvalPlan(context.problem), ()))
    assert isinstance(none, Measurement)
    assert none.value == 0

    before = [torch.clone(p) for p in context.model.parameters()]
    with torch.no_grad():
        for p in context.model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    after = [torch.clone(p) for p in context.model.parameters()]

    def log_probs(weights, ids):
        with torch.no_grad():
            for p, w in zip(context.model.parameters(), weights, strict=True):
                p.copy_(w)
            return context.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)

    total, tokens, of_rows = 0.0, 0, []
    for row in context.problem.questions["retain"]:
        (coded,) = encode([context.problem.template.example(row["question"], row["answer"])], context.tokenizer, 200)
        labelled = range(coded.prompt_tokens, len(coded.input_ids))
        old, new = (log_probs(weights, coded.input_ids) for weights in (before, after))
        kl = sum(float((old[i - 1].exp() * (old[i - 1] - new[i - 1])).sum()) for i in labelled)
        total, tokens = total + kl, tokens + len(labelled)
        of_rows.append(kl)
    log_probs(after, [0])
    eval_context = EvalContext(context, EvalPlan(context.problem), ())
    (found,) = measurements(EVALUATORS.get("retain_kl"), eval_context)
    assert isinstance(found, Measurement)
    assert found.value == pytest.approx(total / tokens, rel=1e-4)
    assert (found.n, found.better, found.unit) == (len(of_rows), "lower", "nats per token")
    assert eval_context.tables["divergence"]["kl_sum"].tolist() == pytest.approx(of_rows, rel=1e-3, abs=1e-6)


def test_retain_kl_loads_the_model_before_where_it_was_not_shown(nano_context):
    import torch

    with torch.no_grad():
        nano_context.model.lm_head.weight.mul_(1.5)
    (found,) = measurements(EVALUATORS.get("retain_kl"), EvalContext(nano_context, EvalPlan(nano_context.problem), ()))
    assert isinstance(found, Measurement)
    assert found.value > 0.01


def test_without_a_model_retain_kl_is_absent(nano_problem):
    (found,) = measurements(EVALUATORS.get("retain_kl"), EvalContext(None, EvalPlan(nano_problem), ()))
    assert "a log holds only one model's numbers" in found.reason
