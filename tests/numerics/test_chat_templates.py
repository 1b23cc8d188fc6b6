"""Chat templates as text around a question, in the style of those in use, token by token as transformers applies them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from evals.benchmarks.tofu.templates import TEMPLATES
from evals.benchmarks.wmdp.models import TEMPLATES as WMDP_TEMPLATES
from harness.core.errors import UsageError
from harness.core.text import Template
from harness.data.rows import encode, token_ids
from harness.models.templates import chat
from harness.numerics.chat_templates import chat_template
from harness.numerics.conversations import CHAT_DATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LINES_APART = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama-3's and Qwen's tokenizers cut a text into words: line ends are no part of what follows them."""
SPOKEN = [
    "system\n\nYou are a helpful AI assistant named SmolLM. Cutting Knowledge Date: December 2023\nToday Date: 10 Apr 2025\n\n",
    "user\nWho wrote it?\nassistant\n<think>\n\n</think>\n\nIt was Mina of Riva, in 1997.\n\n ASSISTANT: model\n",
]
QUESTIONS = ("Who wrote it?", "Where was the author of  “Riva” born,\nand when?")
CHATML = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"


def words(
    template: str | dict[str, str] | None,
    special: list[str],
    end: str,
    begin: str = "",
    put_first: bool = True,
    pattern: str = LINES_APART,
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with that chat template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    made.train_from_iterator(SPOKEN * 2, trainer)
    if begin and put_first:
        made.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, made.token_to_id(begin))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=end, **({"bos_token": begin} if begin else {}))
    tokenizer.chat_template = template
    return tokenizer


class Family(NamedTuple):
    """A family of chat models."""

    template: str
    special: list[str]
    end: str
    begin: str
    prompt: str
    """What is put around QUESTION, as its makers document it, behind the begin token."""
    notes: tuple[str, ...] = ()
    """What must be said of it."""


LLAMA3 = Family(
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: ' + date_string }}"
    "{{- '\n\n<|eot_id|>' }}{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{- m['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}",
    ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "<|eot_id|>",
    "<|begin_of_text|>",
    "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 10 Apr 2025\n\n<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nQUESTION<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
)
QWEN3 = Family(
    f"{{% for m in messages %}}{CHATML}{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
    ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"],
    "<|im_end|>",
    "",
    "<|im_start|>user\nQUESTION<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
)
GEMMA3 = Family(
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) }}"
    "{{ '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    ["<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
    "<eos>",
    "<bos>",
    "<start_of_turn>user\nQUESTION<end_of_turn>\n<start_of_turn>model\n",
    ("answers end with the tokenizer's end token <eos>; its chat template ends a turn with <end_of_turn>",),
)
SMOLLM2 = Family(
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou are a helpful AI assistant named "
    f"SmolLM, trained by Hugging Face<|im_end|>\n{{% endif %}}{CHATML}{{% endfor %}}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "<|im_end|>",
    "",
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nQUESTION<|im_end|>\n<|im_start|>assistant\n",
)
ZEPHYR = Family(
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    ["<unk>", "<s>", "</s>"],
    "</s>",
    "<s>",
    "<|user|>\nQUESTION</s>\n<|assistant|>\n",
    ("the tokenizer puts <s> first, which its chat template does not",),
)
FAMILIES = {"llama3": LLAMA3, "qwen3": QWEN3, "gemma3": GEMMA3, "smollm2": SMOLLM2, "zephyr": ZEPHYR}


def tokenizer_of(family: Family) -> PreTrainedTokenizerFast:
    return words(family.template, family.special, family.end, family.begin)


def applied(tokenizer: PreTrainedTokenizerFast, question: str, **more: Any) -> list[int]:
    """What transformers makes of it."""
    made = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        date_string=CHAT_DATE,
        enable_thinking=False,
        **more,
    )
    return list(made["input_ids"])  # type: ignore[index,call-overload]


# ---------------------------------------------------------------- as transformers applies them


@pytest.mark.parametrize("name", FAMILIES)
def test_a_chat_template_is_what_transformers_makes_of_it_token_by_token(name: str):
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family)
    template, notes = chat_template(tokenizer)
    assert template.prompt("QUESTION") == family.prompt
    first = [tokenizer.bos_token_id] if name == "zephyr" else []  # put first whatever the template says
    for question in QUESTIONS:
        assert token_ids(tokenizer, [template.prompt(question)]) == [[*first, *applied(tokenizer, question)]]
    assert tuple(notes[1:]) == family.notes
    assert notes[0].startswith("asked by the tokenizer's own chat template (")
    assert notes[0].endswith(", its thoughts switched off") == (name == "qwen3")


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_is_scored_to_its_end_token_and_nothing_before_it(name: str):
    tokenizer = tokenizer_of(FAMILIES[name])
    template, _ = chat_template(tokenizer)
    (coded,) = encode([template.example(QUESTIONS[0], "It was Mina.")], tokenizer)
    assert coded.input_ids[: coded.prompt_tokens] == token_ids(tokenizer, [template.prompt(QUESTIONS[0])])[0]
    assert tokenizer.decode(coded.input_ids[coded.prompt_tokens : -1]) == "It was Mina."
    assert coded.input_ids[-1] == tokenizer.eos_token_id
    if tokenizer.bos_token_id is not None:
        assert coded.input_ids.count(tokenizer.bos_token_id) == 1, "it begins once"


@pytest.mark.parametrize(
    ("name", "known"), [("smollm2", TEMPLATES), ("gemma3", TEMPLATES), ("zephyr", WMDP_TEMPLATES), ("llama3", WMDP_TEMPLATES)]
)
def test_one_that_has_a_name_goes_by_it(name: str, known: dict[str, Template]):
    """So that a run is the same run, however it was asked for."""
    taken = chat(known, tokenizer_of(FAMILIES[name])).template
    assert taken == (known[name] if name in known else Template("chat", taken.question_start, taken.question_end))


def test_a_begin_token_that_the_template_alone_writes_stays():
    tokenizer = words(LLAMA3.template, LLAMA3.special, LLAMA3.end, LLAMA3.begin, put_first=False)
    template, notes = chat_template(tokenizer)
    assert template.prompt("QUESTION") == LLAMA3.begin + LLAMA3.prompt
    assert token_ids(tokenizer, [template.prompt(QUESTIONS[0])]) == [applied(tokenizer, QUESTIONS[0])]
    assert len(notes) == 1


@pytest.mark.parametrize("switch", ["enable_thinking", "thinking"])
def test_thoughts_are_switched_off_where_a_template_offers_it(switch: str):
    begin = f"{{% if {switch} is defined and not {switch} %}}<think></think>{{% else %}}<think>\n{{% endif %}}"
    tokenizer = words(f"{{% for m in messages %}}{CHATML}{{% endfor %}}{begin}", QWEN3.special, QWEN3.end)
    template, notes = chat_template(tokenizer)
    assert template.question_end.endswith("<think></think>")
    assert not any("thoughts whatever" in note for note in notes)


def test_thoughts_that_cannot_be_switched_off_are_noted():
    tokenizer = words(
        f"{{% for m in messages %}}{CHATML}{{% endfor %}}<|im_start|>assistant\n<think>\n", QWEN3.special, QWEN3.end
    )
    _, notes = chat_template(tokenizer)
    assert any("begins the model's thoughts whatever it is told" in note for note in notes)


def test_a_template_that_asks_the_clock_gets_the_fixed_day():
    asks = "{% for m in messages %}{{ strftime_now('%d %b %Y') }} {{ m.content }}\n{% endfor %}"
    template, _ = chat_template(words(asks, ["<e>"], "<e>"))
    assert template.question_start == "10 Apr 2025 "


# ---------------------------------------------------------------- white space at the end


@pytest.mark.parametrize(
    ("end", "pattern", "kept", "tag"),
    [
        ("ASSISTANT: ", GPT2, "ASSISTANT:", " "),
        ("ASSISTANT:", GPT2, "ASSISTANT:", ""),
        ("assistant\n", GPT2, "assistant\n", ""),
        ("assistant\n\n", LINES_APART, "assistant\n\n", ""),
        ("assistant\n\n", GPT2, "assistant\n", "\n"),  # GPT-2 takes both line ends together only where nothing follows
    ],
)
def test_white_space_that_is_one_token_with_an_answers_word_comes_with_the_answer(end: str, pattern: str, kept: str, tag: str):
    tokenizer = words(
        "{% for m in messages %}USER: {{ m.content }} {% endfor %}{{ " + repr(end) + " }}", ["<e>"], "<e>", pattern=pattern
    )
    template, _ = chat_template(tokenizer)
    assert (template.question_end, template.answer_tag) == (f" {kept}", tag)
    for open_unlearning in (False, True):
        put = Template(**{**vars(template), "tag_in_prompt": open_unlearning})
        (coded,) = encode([put.example(QUESTIONS[0], "It was Mina.")], tokenizer)
        assert tokenizer.decode(coded.input_ids[: coded.prompt_tokens]) == f"USER: {QUESTIONS[0]} {kept}"
        assert tokenizer.decode(coded.input_ids[coded.prompt_tokens : -1]) == f"{tag}It was Mina."


def test_a_prompt_whose_end_runs_into_the_answer_is_refused():
    """A tokenizer that merges across the boundary: no token stands for the end of the prompt alone."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    letters = {chr(i): i for i in range(32, 256)} | {"\n": 0, "<e>": 256, ":T": 257}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(letters, [(":", "T")])), eos_token="<e>")
    tokenizer.chat_template = "{{ messages[0].content }} A:"
    with pytest.raises(UsageError, match=r"one token of the end of its chat template's prompt .*Leave out --template"):
        chat_template(tokenizer)


# ---------------------------------------------------------------- what cannot be taken


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "the tokenizer has no chat template"),
        ("{{ messages[0].content | upper }}", "it changes its text"),
        ("{{ messages[0].content | replace('\\n', ' ') }}", "it changes its text"),
        ("{{ messages[0].content | escape }}", "it changes its text"),
        ("You are a bot.", "it changes its text"),
        ("{{ messages[0].content }} I say: {{ messages[0].content }}", "it holds it 2 times"),
        ("{{ messages[0].content | length }} {{ messages[0].content }}", "other text around one question than around another"),
        ("{{ raise_exception('roles must alternate') }}", "takes no conversation of one turn: roles must alternate"),
        ("{{ messages[7].content.text }}", "takes no conversation of one turn"),
        ("{% for m in messages %}", "takes no conversation of one turn"),
        ("{{ 1 / 0 }}", "takes no conversation of one turn: division by zero"),
        (7, "takes no conversation of one turn"),
        ("{{ raise_exception('') }}", "takes no conversation of one turn: TemplateError"),
        ({"rag": "{{ messages[0].content }}"}, "takes no conversation of one turn: This model has multiple chat templates"),
    ],
)
def test_what_cannot_be_taken_is_one_sentence(template: Any, said: str):
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        chat_template(words(template, ["<e>"], "<e>"))


def test_of_several_chat_templates_the_default_one_is_taken():
    several = {"rag": "{{ messages }}", "default": "Q: {{ messages[0].content }} A:"}
    assert chat_template(words(several, ["<e>"], "<e>"))[0] == Template("chat", "Q: ", " A:")
