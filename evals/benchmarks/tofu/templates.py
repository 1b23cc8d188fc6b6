"""How ToFU's questions are put to each family of models."""

from __future__ import annotations

from harness.core.text import Template
from harness.models.sources import CheckpointSource, read_sidecar
from harness.models.templates import Chosen, chat, chosen
from harness.numerics.chat_templates import CHAT

TEMPLATES = {
    "mini": Template("mini", answer_tag=" "),
    "scratch": Template("scratch", question_end="\n"),
    "llama2": Template("llama2", "[INST] ", " [/INST]"),
    "phi": Template("phi", "Question: ", "\n", "Answer: "),
    # What Llama-3's chat template makes of open-unlearning's system prompt, with its fixed date, so that prompts do not change
    # with the calendar. <|begin_of_text|> is left to the tokenizer, which adds it; the end token is <|eot_id|>.
    "llama3": Template(
        "llama3",
        "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 10 Apr 2025\n\n"
        "You are a helpful assistant.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    # What SmolLM2-Instruct's chat template makes of a user's message, with the system prompt that it puts first itself.
    "smollm2": Template(
        "smollm2",
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    # What Gemma 3's makes of one; <bos> is left to the tokenizer.
    "gemma3": Template("gemma3", "<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"),
}
LLAMA3_VOCABULARY = 128_000
"""A Llama with at least so many tokens speaks Llama-3's template; Llama-2 has 32,000."""


def template_of(source: CheckpointSource, wanted: str) -> Chosen:
    """How a checkpoint is asked: as is wanted, as the file beside it says, or as fits its architecture.

    Args:
        source: the checkpoint.
        wanted: a template's name, `chat`, or nothing.

    Raises:
        UsageError: for a checkpoint whose configuration cannot be read, or a template that it cannot be asked in.
    """
    saved = str(read_sidecar(source.folder).get("template", ""))
    if saved == CHAT:
        usual = chat(TEMPLATES, source.tokens())
    elif saved in TEMPLATES:
        usual = Chosen(TEMPLATES[saved])
    else:
        guessed = TEMPLATES[template_name(source)]
        usual = Chosen(guessed, [f"template '{guessed.name}', guessed from the architecture"])
    return chosen(wanted, usual, TEMPLATES, source.tokens, learned=saved in (*TEMPLATES, CHAT))


def template_name(source: CheckpointSource) -> str:
    """The template that fits a checkpoint's architecture."""
    config = source.config()
    if config.model_type == "llama" and config.vocab_size >= LLAMA3_VOCABULARY:
        return "llama3"
    return "llama2" if config.model_type in ("llama", "mistral") else "phi"
