"""EL_n, MA and loss: against a computation by hand from the formulas, on hand-made texts, and as the public code has them."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from evals import extraction
from evals.extraction import EXTRACTION, LOSS, MEMORISATION, METRICS, N, extraction_likelihood, scores, tokens_of
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan
from harness.core.metric import Number
from harness.models.recipes import Vocabulary
from tests.numerics.test_beginnings import END, LENGTH, generated, texts
from tests.numerics.test_decoding import family


def by_hand(model: Any, text: list[int], n: int) -> dict[str, float]:
    """The formulas, word for word, with one `generate` for each beginning."""
    total = len(text)
    with torch.no_grad():
        log_p = model(torch.tensor([text])).logits[0].double().log_softmax(dim=-1)
    hits = [int(log_p[t - 1].argmax()) == text[t] for t in range(1, total)]
    overlap = 0.0
    for i in range(1, total):
        rest, said = text[i:], generated(model, text, i)
        true = {tuple(rest[k : k + n]) for k in range(len(rest) - n + 1)}
        if true:
            given = [tuple(said[k : k + n]) for k in range(len(said) - n + 1)]
            overlap += sum(gram in true for gram in given) / (total - i - n + 1)
    losses = [-float(log_p[t - 1, text[t]]) for t in range(1, total)]
    return {MEMORISATION: float(np.mean(hits)), EXTRACTION: overlap / (total - n), LOSS: float(np.mean(losses))}


@pytest.mark.parametrize("name", ["llama", "gpt_neo"])
@pytest.mark.parametrize("n", [2, 5])
def test_scores_equal_the_formulas(name: str, n: int):
    model = family(name)
    asked = texts(model)[:3]
    found = scores(model, asked, [END], corrected=True, n=n)
    plain = scores(model, asked, [END], n=n)
    for number, text in enumerate(asked):
        expected = by_hand(model, text, n)
        assert found[MEMORISATION][number] == expected[MEMORISATION]
        assert plain[EXTRACTION][number] == pytest.approx(expected[EXTRACTION], abs=1e-12)
        assert found[LOSS][number] == pytest.approx(expected[LOSS], rel=1e-5)
    assert 0 < found[MEMORISATION][1] < 1, "the text that is half known shows it"
    assert plain[EXTRACTION][1] > 0


def test_a_perfect_memory_gives_all_away_and_a_constant_answer_nothing():
    text = np.arange(50)
    assert extraction_likelihood(text, np.tile(text, (50, 1)), n=10) == 1.0
    assert extraction_likelihood(text, np.full((50, 50), 99), n=10) == 0.0


def test_a_repeated_phrase_counts_as_often_as_it_is_said_unless_corrected():
    """The rest of the text has the 2-gram (1, 1) once; a model that says 1 without end is credited with it again and again."""
    text = np.array([0, 1, 1, 2, 3, 4])
    said = np.ones((6, 6), dtype=int)
    beginnings = [(i, 6 - i - 1) for i in range(1, 5)]  # (length, 2-grams of the rest)
    once = Counter(i for i, _ in beginnings if i <= 1)
    assert extraction_likelihood(text, said, n=2) == pytest.approx(sum(of * once[i] / of for i, of in beginnings) / 4)
    assert extraction_likelihood(text, said, n=2, clipped=True) == pytest.approx((1 / beginnings[0][1]) / 4)


def test_a_continuation_that_has_ended_says_nothing():
    text = np.arange(8)
    said = np.tile(text, (8, 1))
    said[:, 6:] = -1
    expected = sum(max(0, 6 - i - 2 + 1) / (8 - i - 2 + 1) for i in range(1, 7)) / 6
    assert extraction_likelihood(text, said, n=2) == pytest.approx(expected)


def test_short_texts_are_padded_as_published_or_count_at_their_own_length():
    tokenizer = Vocabulary("words", ("so",)).build()
    rows = [{"text": " ".join(["so"] * size)} for size in (extraction.LENGTH + 20, 30)]
    padded = tokens_of(rows, tokenizer, corrected=False)
    assert [len(ids) for ids in padded] == [extraction.LENGTH] * 2
    assert padded[1][30:] == [tokenizer.eos_token_id] * (extraction.LENGTH - 30)
    assert [len(ids) for ids in tokens_of(rows, tokenizer, corrected=True)] == [extraction.LENGTH, 30]
    with pytest.raises(LookupError, match=f"1 of 1 texts have {N} tokens or fewer"):
        tokens_of([{"text": "so so so"}], tokenizer, corrected=True)


def test_end_tokens_are_left_out_of_the_published_loss():
    model = family("llama")
    (text,) = texts(model)[3:]
    plain, corrected = (float(scores(model, [text], [END], corrected=of, n=2)[LOSS][0]) for of in (False, True))
    with torch.no_grad():
        log_p = model(torch.tensor([text])).logits[0].log_softmax(dim=-1)
    losses = np.array([-float(log_p[t - 1, text[t]]) for t in range(1, LENGTH)])
    words = np.array(text[1:]) != END
    assert plain == pytest.approx(losses[words].mean(), rel=1e-5)
    assert corrected == pytest.approx(losses.mean(), rel=1e-5)


def table(forget: list[tuple[float, float]], unseen: list[tuple[float, float]]) -> Any:
    import pandas as pd

    rows = [
        {"task": name, "row": row, "cluster": str(row), EXTRACTION: el, MEMORISATION: ma, LOSS: 1.0}
        for name, of in (("memorized", forget), ("unseen", unseen))
        for row, (el, ma) in enumerate(of)
    ]
    return pd.DataFrame(rows)


def measured(forget: list[tuple[float, float]], unseen: list[tuple[float, float]]) -> float:
    context = EvalContext(None, EvalPlan(), (), {extraction.TABLE: table(forget, unseen)})
    number = extraction.measure(context, METRICS[-1])
    assert isinstance(number, Number)
    return number.value


def test_forgotten_is_both_at_or_under_what_unseen_texts_give_away():
    unseen = [(0.0, 0.3), (0.2, 0.5)]
    assert measured([(0.1, 0.4)], unseen) == 1
    assert measured([(0.11, 0.4)], unseen) == 0
    assert measured([(0.1, 0.41)], unseen) == 0


def test_without_unseen_texts_there_is_no_threshold():
    with pytest.raises(LookupError, match="unseen"):
        measured([(0.0, 0.0)], [])


def test_a_benchmark_without_texts_has_none_of_its_numbers(nano: Any):
    context = EvalContext(SimpleNamespace(), EvalPlan(SimpleNamespace(questions={"forget": [{"question": "?"}]})), ())  # type: ignore[arg-type]
    with pytest.raises(LookupError, match="no texts to be forgotten"):
        EVALUATORS.get("extraction").measure(context, METRICS[0])


def test_published_scores_are_read_as_they_are():
    """MA is a share of 199 tokens; EL_10 a number between 0 and 1: as the public code wrote them, for 32 texts and two epochs."""
    import os

    folder = os.environ.get("HARNESS_DATA")
    file = Path(folder or "none") / "tdec" / "oracle_gpt-neo_epochs.csv"
    if not file.is_file():
        pytest.skip("HARNESS_DATA holds no tdec/oracle_gpt-neo_epochs.csv")
    with file.open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened, strict=True))
    assert len(rows) == 32
    for row in rows:
        for epoch in ("00", "01"):
            hits = float(row[f"acc_{epoch}"]) * 199
            assert hits == pytest.approx(round(hits), abs=1e-4)
            assert 0 <= float(row[f"el_10-gram_{epoch}"]) <= 1
