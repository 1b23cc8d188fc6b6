"""Random Llamas whose answers differ and end, for what is timed with answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def random_llama(tokenizer: PreTrainedTokenizerBase, spread: float, **shape: Any) -> LlamaForCausalLM:
    """Frozen, in eval mode, of one seed.

    Args:
        tokenizer: whose words and special tokens.
        spread: standard deviation of the initial weights; large ones make answers differ from prompt to prompt.
        shape: further fields of the configuration.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        initializer_range=spread,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)
