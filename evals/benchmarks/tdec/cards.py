"""The models of the Training Data Extraction Challenge, and the text that guards what they keep."""

from __future__ import annotations

from harness.models.sources import ModelCard

CARDS = {
    f"gpt-neo-{size.lower()}": ModelCard(
        about=f"GPT-Neo {size}, trained on the Pile: the Challenge's; {4 * parameters / 1e9:.1f} GB in float32",
        base=f"EleutherAI/gpt-neo-{size}",
        tokenizer=f"EleutherAI/gpt-neo-{size}",
        template="plain",
        parameters=parameters,
        base_bytes=4 * parameters,
        format="safetensors",
        licence="MIT",
    )
    for size, parameters in (("125M", 125_198_592), ("1.3B", 1_315_575_808), ("2.7B", 2_651_307_520))
}
"""Name → card. There are no retrained models: nobody has trained one of these without the sequences."""
RETAIN = "Salesforce/wikitext"
RETAIN_FILES = ("wikitext-2-raw-v1/train*.parquet", "wikitext-2-raw-v1/train.jsonl")
"""WikiText-2's training split; the Challenge itself retains nothing, and what LoKU took for it is not published."""
