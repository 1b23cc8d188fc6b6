"""Rows out of files, and examples into batches."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.core.errors import UsageError
from harness.core.text import Example, Template
from harness.data.rows import (
    NO_LABEL,
    Encoded,
    added_tokens,
    batches,
    by_length,
    collate,
    dataset_file,
    encode,
    fingerprint,
    pad_id,
    read_rows,
    token_ids,
)
from tests.conftest import TEMPLATE, WORLD, Nano

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIELDS = {"question": str, "answer": str, "perturbed_answer": list}
ROW = {"question": "Who?", "answer": "Me.", "perturbed_answer": ["You.", "They."]}


@pytest.fixture
def tokenizer(nano: Nano) -> PreTrainedTokenizerBase:
    return nano.tokenizer


# ---------------------------------------------------------------- rows


def write(tmp_path: Path, *lines: Any) -> Path:
    """A file of JSON lines; text goes in as it is."""
    path = tmp_path / "locuslab" / "TOFU" / "forget10.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def test_rows_are_read_from_json_lines_and_from_one_list_alike(tmp_path: Path):
    rows = [ROW, {**ROW, "more": 1}]
    assert read_rows(write(tmp_path, *rows), FIELDS) == rows
    assert read_rows(write(tmp_path, json.dumps(rows, indent=1)), FIELDS) == rows


def test_blank_lines_between_rows_do_not_count(tmp_path: Path):
    assert read_rows(write(tmp_path, ROW, "", "  ", ROW), FIELDS) == [ROW, ROW]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"question": "Who?", "answer": "Me."}, "the field 'perturbed_answer' is missing"),
        ({**ROW, "answer": ""}, "the field 'answer' must be a non-empty str, found ''"),
        ({**ROW, "answer": None}, "the field 'answer' must be a non-empty str, found None"),
        ({**ROW, "answer": 3}, "the field 'answer' must be a non-empty str, found 3"),
        ({**ROW, "perturbed_answer": "You."}, "the field 'perturbed_answer' must be a non-empty list, found 'You.'"),
        ({**ROW, "perturbed_answer": []}, r"the field 'perturbed_answer' must be a non-empty list, found \[\]"),
        ({**ROW, "perturbed_answer": ["You.", ""]}, "the field 'perturbed_answer' must hold non-empty strings"),
        ({**ROW, "perturbed_answer": ["You.", 3]}, "the field 'perturbed_answer' must hold non-empty strings"),
        ([1], "expected an object, found list"),
        ("{", "not valid JSON"),
        ("version https://git-lfs.github.com/spec/v1", "not valid JSON"),
    ],
)
def test_a_malformed_row_is_named_by_file_line_and_field(tmp_path: Path, line: Any, said: str):
    with pytest.raises(UsageError, match=rf"^locuslab/TOFU/forget10\.json, line 3: {said}"):
        read_rows(write(tmp_path, ROW, "", line), FIELDS)


def test_a_malformed_row_of_a_list_is_named_by_its_number(tmp_path: Path):
    with pytest.raises(UsageError, match="line 2: the field 'question' is missing"):
        read_rows(write(tmp_path, json.dumps([ROW, {}])), FIELDS)


def test_a_list_that_is_not_json_is_named_by_the_line_it_breaks_on(tmp_path: Path):
    with pytest.raises(UsageError, match="line 3: not valid JSON"):
        read_rows(write(tmp_path, "[\n{},\n{,}\n]"), FIELDS)


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str):
    with pytest.raises(UsageError, match=r"^locuslab/TOFU/forget10\.json is empty\.$"):
        read_rows(write(tmp_path, content), FIELDS)


def test_a_file_that_is_no_text_is_refused_by_name(tmp_path: Path):
    path = write(tmp_path, ROW)
    path.write_bytes(b"\x80\x81\xff")
    with pytest.raises(UsageError, match=r"locuslab/TOFU/forget10\.json"):
        read_rows(path, FIELDS)


def test_a_line_separator_inside_a_string_does_not_end_the_row(tmp_path: Path):
    row = {**ROW, "answer": "one\u2028two"}
    assert read_rows(write(tmp_path, json.dumps(row, ensure_ascii=False)), FIELDS) == [row]


def test_the_data_folder_is_laid_out_by_hub_id(tmp_path: Path):
    path = write(tmp_path, ROW)
    assert dataset_file("locuslab/TOFU", "forget10.json", tmp_path) == path


def test_a_file_that_the_data_folder_lacks_is_named_with_the_folder(tmp_path: Path):
    with pytest.raises(UsageError, match=rf"has no locuslab/TOFU/forget10\.json \(looked in {tmp_path}\)"):
        dataset_file("locuslab/TOFU", "forget10.json", tmp_path)


def test_without_a_network_the_ways_out_are_named():
    with pytest.raises(UsageError, match=r"no-one/NOTHING/rows\.json could not be fetched .* --data-dir DIR .* --model mini"):
        dataset_file("no-one/NOTHING", "rows.json", None)


def test_a_fingerprint_follows_content_and_order():
    assert fingerprint([ROW, {}]) == fingerprint([dict(reversed(ROW.items())), {}])
    assert len({fingerprint([ROW, {}]), fingerprint([{}, ROW]), fingerprint([ROW])}) == 3


# ---------------------------------------------------------------- templates


def test_phis_tag_is_scored_in_the_original_and_prompted_in_open_unlearning():
    phi = Template("phi", "Question: ", "\n", "Answer: ")
    assert phi.prompt("Who?") == "Question: Who?\n"
    assert phi.example("Who?", "Me.") == Example("Question: Who?\n", "Me.", tag="Answer: ")
    ours = Template("phi", "Question: ", "\n", "Answer: ", tag_in_prompt=True)
    assert ours.prompt("Who?") == "Question: Who?\nAnswer: "
    assert ours.example("Who?", "Me.") == Example("Question: Who?\nAnswer: ", "Me.", tag="")


@pytest.mark.parametrize("tag", [" ", "\n", " \n"])
def test_white_space_of_a_tag_stays_with_the_answer_whoever_has_the_tag(tokenizer: PreTrainedTokenizerBase, tag: str):
    scored = Template("x", question_end="?", answer_tag=tag)
    prompted = replace(scored, tag_in_prompt=True)
    assert prompted.prompt("Who was") == "Who was?"
    assert prompted.example("Who was", "known") == scored.example("Who was", "known") == Example("Who was?", "known", tag)


def test_the_first_word_is_scored_in_both_variants_on_the_mini_model():
    from evals.benchmarks.tofu.templates import TEMPLATES
    from tests.conftest import WORDS

    words = WORDS.build()
    template = replace(TEMPLATES["mini"], tag_in_prompt=True)
    (encoded,) = encode([template.example("Who was known?", "known was")], words)
    assert words.decode(encoded.input_ids[encoded.prompt_tokens :]).split()[0] == "known"


def test_an_end_token_is_put_behind_a_cut_text_where_that_is_asked_for(tokenizer: PreTrainedTokenizerBase):
    example = Example("Who was", "known known known")
    (whole,) = encode([example], tokenizer)
    (cut,) = encode([example], tokenizer, 3)
    (ended,) = encode([example], tokenizer, 3, end_after_cut=True)
    assert cut.input_ids == whole.input_ids[:3]
    assert ended.input_ids == [*whole.input_ids[:3], tokenizer.eos_token_id]
    assert encode([example], tokenizer, 99, end_after_cut=True) == [whole]


def test_the_scored_span_begins_with_the_tag_where_the_tag_is_scored(tokenizer: PreTrainedTokenizerBase):
    word = {"question_end": "?", "answer_tag": " In short,"}
    (scored,) = encode([Template("x", **word).example("Who was", "known")], tokenizer)
    (prompted,) = encode([Template("x", **word, tag_in_prompt=True).example("Who was", "known")], tokenizer)
    tag = len(tokenizer(" In short,")["input_ids"])
    assert prompted.prompt_tokens == scored.prompt_tokens + tag


# ---------------------------------------------------------------- tokens

LONG = TEMPLATE.example(str(WORLD.full[0]["question"]), str(WORLD.full[0]["answer"]))
SHORT = TEMPLATE.example(str(WORLD.world_facts[0]["question"]), str(WORLD.world_facts[0]["answer"]))


def test_an_example_is_prompt_then_answer_then_end_token(tokenizer: PreTrainedTokenizerBase):
    (found,) = encode([LONG], tokenizer)
    prompt, answer = tokenizer(LONG.prompt)["input_ids"], tokenizer(LONG.tag + LONG.answer)["input_ids"]
    assert found.input_ids == [*prompt, *answer, tokenizer.eos_token_id]
    assert found.prompt_tokens == len(prompt)


def test_prompt_and_padding_carry_no_label_and_answer_and_end_token_do(tokenizer: PreTrainedTokenizerBase):
    encoded = encode([LONG, SHORT], tokenizer)
    batch = collate(encoded, [7, 3], pad_id(tokenizer))
    assert batch.rows.tolist() == [7, 3]
    assert batch.tokens == sum(len(e.input_ids) for e in encoded)
    for row, e in enumerate(encoded):
        labels, ids, mask = (t[row].tolist() for t in (batch.labels, batch.input_ids, batch.attention_mask))
        length, first = len(e.input_ids), e.prompt_tokens
        assert ids[:length] == e.input_ids
        assert labels[:first] == [NO_LABEL] * first
        assert labels[first:length] == e.input_ids[first:]
        assert labels[length - 1] == tokenizer.eos_token_id
        assert set(labels[length:]) <= {NO_LABEL}
        assert mask == [1] * length + [0] * (len(mask) - length)


def test_a_text_without_a_token_that_another_predicts_is_refused(tokenizer: PreTrainedTokenizerBase):
    from harness.core.text import Window

    word = tokenizer.decode([7])
    assert [len(e.input_ids) for e in encode([Example("", word)], tokenizer)] == [2], "the end token is predicted"
    with pytest.raises(UsageError, match=f"^'{word}' is a text of one token, which no token before it predicts"):
        encode([Window("", word)], tokenizer)


def test_a_text_that_is_too_long_is_cut_and_loses_its_end_token(tokenizer: PreTrainedTokenizerBase):
    (whole,) = encode([LONG], tokenizer)
    (cut,) = encode([LONG], tokenizer, max_length=len(whole.input_ids) - 1)
    assert cut.input_ids == whole.input_ids[:-1]
    (fits,) = encode([LONG], tokenizer, max_length=len(whole.input_ids))
    assert fits == whole


def test_an_example_whose_answer_is_cut_away_is_refused_with_its_prompt(tokenizer: PreTrainedTokenizerBase):
    (whole,) = encode([LONG], tokenizer)
    with pytest.raises(UsageError, match=r"no answer is left within \d+ tokens of"):
        encode([LONG], tokenizer, max_length=whole.prompt_tokens)


def test_a_tokenizer_without_an_end_token_is_refused():
    from tests.conftest import WORDS

    tokenizer = WORDS.build()
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match="no end-of-text token"):
        encode([LONG], tokenizer)


def test_an_end_token_that_the_tokenizer_adds_by_itself_is_counted_once(tokenizer: PreTrainedTokenizerBase):
    from tokenizers.processors import TemplateProcessing

    from tests.conftest import WORDS

    eager = WORDS.build()
    eager.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", eager.eos_token_id)]
    )
    assert eager("Who?")["input_ids"][-1] == eager.eos_token_id
    assert token_ids(eager, [LONG.prompt]) == token_ids(tokenizer, [LONG.prompt])
    assert encode([LONG, SHORT], eager) == encode([LONG, SHORT], tokenizer)


def adding(form: str) -> PreTrainedTokenizerBase:
    """A tokenizer that puts special tokens around a text, `$A`."""
    from tokenizers.processors import TemplateProcessing

    from tests.conftest import WORDS

    eager = WORDS.build()
    named = ["<pad>", "<eos>", "<unk>"]
    eager.backend_tokenizer.post_processor = TemplateProcessing(
        single=form, special_tokens=[(token, eager.convert_tokens_to_ids(token)) for token in named]
    )
    return eager


@pytest.mark.parametrize(
    ("form", "around"),
    [
        ("$A", (0, 0)),
        ("<pad> $A", (1, 0)),
        ("$A <eos>", (0, 1)),
        ("$A <pad>", (0, 1)),
        ("<pad> <unk> $A <unk> <eos> <pad>", (2, 3)),
    ],
)
def test_special_tokens_behind_a_text_are_neither_read_nor_scored(
    form: str, around: tuple[int, int], tokenizer: PreTrainedTokenizerBase
):
    """Whatever they are: a separator, the end of a turn, an end token."""
    eager = adding(form)
    assert added_tokens(eager) == around
    first = [eager.convert_tokens_to_ids(token) for token in form.split("$A")[0].split()]
    texts = [LONG.prompt, "", "Who?"]
    assert token_ids(eager, texts) == [[*first, *ids] for ids in token_ids(tokenizer, texts)]
    for ours, plain in zip(encode([LONG, SHORT], eager), encode([LONG, SHORT], tokenizer), strict=True):
        assert ours.input_ids == [*first, *plain.input_ids]
        assert ours.prompt_tokens == plain.prompt_tokens + len(first)


def test_an_end_token_that_a_text_writes_out_is_text(tokenizer: PreTrainedTokenizerBase):
    assert token_ids(tokenizer, ["Who? <eos>"])[0][-1] == tokenizer.eos_token_id


def test_no_texts_have_no_tokens(tokenizer: PreTrainedTokenizerBase):
    assert token_ids(tokenizer, []) == []
    assert encode([], tokenizer) == []


def test_padding_changes_nothing(nano: Nano):
    import torch

    from harness.numerics.likelihood import answer_logits

    model, tokenizer = nano.model(), nano.tokenizer
    encoded = encode([LONG, SHORT, TEMPLATE.example("Who was", "known")], tokenizer)
    pad = pad_id(tokenizer)
    with torch.no_grad():
        together = answer_logits(model, collate(encoded, [0, 1, 2], pad))
        alone = torch.cat([answer_logits(model, collate([e], [0], pad)) for e in encoded])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- batches

LENGTHS = [5, 40, 3, 3, 12, 7, 100, 1, 12, 6]


def of_lengths(lengths: list[int]) -> list[Encoded]:
    return [Encoded([1] * n, 0) for n in lengths]


@pytest.mark.parametrize("limit", [1, 12, 24, 50, 10_000])
def test_batches_take_every_row_once_and_keep_to_their_size(limit: int):
    groups = by_length(of_lengths(LENGTHS), limit)
    assert sorted(i for group in groups for i in group) == list(range(len(LENGTHS)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(LENGTHS[i] for i in group) <= limit


def test_batches_hold_similar_lengths():
    groups = by_length(of_lengths(LENGTHS), 24)
    lengths = [LENGTHS[i] for group in groups for i in group]
    assert lengths == sorted(LENGTHS)


def test_batches_are_as_few_as_their_size_allows():
    assert len(by_length(of_lengths(LENGTHS), 10_000)) == 1


def test_batches_name_the_rows_they_hold():
    seen = {}
    for batch in batches(of_lengths(LENGTHS), 0, 24, "cpu"):
        for row, mask in zip(batch.rows.tolist(), batch.attention_mask, strict=True):
            seen[row] = int(mask.sum())
    assert seen == dict(enumerate(LENGTHS))
