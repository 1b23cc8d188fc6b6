"""Every method on every family of checkpoints: it works and leaves the model as it found it, or refuses in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architectures import ATTACK, COLUMNS, FAMILIES, SETTINGS, outcome

MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss")
SINGLE_PARTS = ("loku", "rmu", "elm", "kfade", "predictor_corrector", "sham", "repselect", "sage")
"""Methods that change single parts of a decoder, and must know them."""
REFUSED: dict[tuple[str, str], str] = {
    **{(family, method): f"{family} has a mixture of experts" for family in MIXTURES for method in SINGLE_PARTS},
    **{("mamba", method): "the architecture 'mamba' has no" for method in SINGLE_PARTS},
    ("rwkv", "elm"): "elm continues texts token by token from a cache of keys and values, which rwkv does not keep",
}
"""(family, method) → what the one sentence says; everything else works."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_method_works_or_refuses_in_one_sentence(family: str, tmp_path: Path):
    for column in COLUMNS:
        found = outcome(family, column, tmp_path)
        assert not found.faults, f"{column} on {family}"
        expected = REFUSED.get((family, column), "")
        assert bool(expected) == bool(found.refused), f"{column} on {family}: {found.refused or 'was to be refused'}"
        assert expected in found.refused
        assert "\n" not in found.refused


def test_the_table_holds_every_method_that_changes_weights():
    from harness.core.evaluator import EVALUATORS
    from harness.core.method import METHODS

    assert set(METHODS.names()) - set(SETTINGS) == {"untouched", "retrained", "checkpoint"}
    assert ATTACK in EVALUATORS.names()
    assert len(FAMILIES) > 25


def test_padding_beyond_a_table_of_positions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SETTINGS, "kl_min", {**SETTINGS["kl_min"], "pad_length": 129})  # type: ignore[arg-type]
    says = "pad_length=129: this gpt2 has positions for 128 tokens. Set pad_length=128, or kl_positions=answer."
    assert outcome("gpt2", "kl_min", tmp_path).refused == says
    assert not outcome("llama", "kl_min", tmp_path).refused
