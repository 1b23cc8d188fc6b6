"""The published models and data of WMDP: where they are, how large, and what is not certain about them.

Ids and sizes are taken from the hub's own pages. Nothing here is downloaded before it is used.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.models.sources import ModelCard

CARDS = {
    "zephyr-7b": ModelCard(
        about="Zephyr-7B-beta: the paper's model; 14.5 GB, as much again for each published unlearned checkpoint",
        base="HuggingFaceH4/zephyr-7b-beta",
        checkpoints={"checkpoint-rmu": "cais/Zephyr_RMU", "checkpoint-elm": "baulab/elm-zephyr-7b-beta"},
        tokenizer="HuggingFaceH4/zephyr-7b-beta",
        template="zephyr",
        parameters=7_241_732_096,
        base_bytes=14_483_464_192,
        format="safetensors",
        licence="MIT",
    ),
}
"""Name → card. There are no retrained models: nobody has trained one of these without the hazardous texts."""


@dataclass(frozen=True)
class DataCard:
    """A part of a data set, and the names its files may have."""

    id: str
    """The hub id."""
    files: tuple[str, ...]
    """Patterns in the hub's folder, or in the data folder's; the first one that fits any file is taken."""
    about: str
    """For a reader."""
    gate: str = ""
    """Where its terms must be accepted."""
    of_document: int | None = None
    """How many windows are taken of one document, so that a few long ones do not fill the corpus."""
    lines: bool = False
    """Whether its rows are lines of running text."""


CORPORA = {
    "bio-forget": DataCard(
        "cais/wmdp-bio-forget-corpus",
        ("data/*.parquet", "**/*.parquet", "*.jsonl"),
        "some 24,500 papers; any JSON-lines file with a field 'text' serves as well",
        gate="datasets/cais/wmdp-bio-forget-corpus",
        of_document=4,
    ),
    "cyber-forget": DataCard(
        "cais/wmdp-corpora",
        ("cyber-forget-corpus/*.parquet", "cyber-forget-corpus.jsonl"),
        "cyber-forget-corpus, 1,000 documents, 21 MB, MIT",
    ),
    "bio-retain": DataCard(
        "cais/wmdp-corpora",
        ("bio-retain-corpus/*.parquet", "bio-retain-corpus.jsonl"),
        "bio-retain-corpus, 60,887 documents, MIT",
        of_document=1,
    ),
    "cyber-retain": DataCard(
        "cais/wmdp-corpora",
        ("cyber-retain-corpus/*.parquet", "cyber-retain-corpus.jsonl"),
        "cyber-retain-corpus, 4,473 documents, MIT",
        of_document=4,
    ),
    "wikitext": DataCard(
        "Salesforce/wikitext",
        ("wikitext-2-raw-v1/train*.parquet", "wikitext-2-raw-v1/train.jsonl"),
        "WikiText-2, training split, CC BY-SA",
        lines=True,
    ),
}
"""Name → corpus; each a row a document in a field `text`. Of the parquet forms the hub's, of the JSON-lines forms one's own."""

QUESTIONS = {
    name: DataCard(
        "cais/wmdp",
        (f"wmdp-{name}/test*.parquet", f"wmdp-{name}/test*.jsonl", f"wmdp-{name}.jsonl"),
        f"wmdp-{name}, {n:,} questions, MIT",
    )
    for name, n in {"bio": 1273, "cyber": 1987, "chem": 408}.items()
}
MMLU = DataCard("cais/mmlu", ("*/test*.parquet", "*/test*.jsonl"), "14,042 questions of 57 subjects, MIT")
INSTRUCTIONS = DataCard(
    "tatsu-lab/alpaca",
    ("data/train*.parquet", "alpaca_data.json"),
    "52,002 instructions, CC BY-NC; without them there is no alpaca_kl",
)
MMLU_SUBJECTS = 57
NOT_SUBJECTS = ("all", "auxiliary_train")
"""Folders of MMLU that are no subjects."""
