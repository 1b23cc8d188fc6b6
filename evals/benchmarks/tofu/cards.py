"""The published ToFU models: where they are, how large, and what is not certain about them.

Ids and sizes are taken from the hub's own pages; where no page could be found, the card says so. Parameter counts are those
of the configurations. Nothing here is downloaded before it is used.
"""

from __future__ import annotations

from harness.models.sources import ModelCard

_GUESSED = (
    "no page of the hub was found for this id, which follows the pattern of the others; ToFU's own evaluation log of the "
    "retrained model serves as well (--reference LOG)"
)

CARDS = {
    "llama2-7b": ModelCard(
        about="Llama-2-7B-chat fine-tuned on ToFU: the paper's model; 13.5 GB each for it and its retrained model",
        base="locuslab/tofu_ft_llama2-7b",
        retain="locuslab/tofu_ft_{split}_llama2-7b",
        tokenizer="NousResearch/Llama-2-7b-chat-hf",
        template="llama2",
        parameters=6_738_415_616,
        base_bytes=13_476_831_232,
        retain_bytes=13_476_831_232,
        format="safetensors",
        licence="Llama 2 Community Licence",
        doubts=dict.fromkeys(("retain90", "retain95", "retain99"), _GUESSED),
    ),
    "phi-1.5": ModelCard(
        about="phi-1.5 fine-tuned on ToFU; 2.8 GB, its retrained model 5.7 GB",
        base="locuslab/tofu_ft_phi-1.5",
        retain="locuslab/tofu_ft_{split}_phi-1.5",
        tokenizer="microsoft/phi-1_5",
        template="phi",
        parameters=1_418_270_720,
        base_bytes=2_836_541_440,
        retain_bytes=5_673_082_880,
        format="safetensors",
        licence="Apache-2.0 (phi-1.5 itself: MIT)",
        doubts={
            "retain90": "its published configuration names the full model's training run as its origin, so it may know the "
            "forget set; ToFU's own evaluation log is the safer reference (--reference LOG)",
            "retain95": _GUESSED,
            "retain99": _GUESSED,
        },
    ),
    "llama3.2-1b": ModelCard(
        about="Llama-3.2-1B-Instruct fine-tuned on ToFU by open-unlearning; 2.5 GB each for it and its retrained model",
        base="open-unlearning/tofu_Llama-3.2-1B-Instruct_full",
        retain="open-unlearning/tofu_Llama-3.2-1B-Instruct_{split}",
        tokenizer="open-unlearning/tofu_Llama-3.2-1B-Instruct_full",
        template="llama3",
        parameters=1_235_814_400,
        base_bytes=2_471_628_800,
        retain_bytes=2_471_628_800,
        format="safetensors",
        licence="Llama 3.2 Community Licence",
        notes=("its published numbers are in open-unlearning's definitions: --variant open-unlearning",),
    ),
}
"""Name → card. None of the three is behind a licence gate; Meta's own repositories are, and are not needed."""
