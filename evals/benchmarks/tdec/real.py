"""The benchmark's data out of the Challenge's files, and the text that guards what real models keep."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from evals._challenge import FOLDER, files
from evals.benchmarks.tdec.cards import RETAIN, RETAIN_FILES
from evals.benchmarks.tdec.models import TEMPLATE, texts
from evals.benchmarks.tdec.rows import Text, forget_sets, numbered
from evals.benchmarks.tdec.rows import texts as texts_of_file
from harness.core.config import JSON
from harness.core.options import Options, Variant
from harness.core.problem import Problem, Stage
from harness.data.corpora import Corpus, Windows
from harness.data.rows import dataset_files, fingerprint, token_ids
from harness.models.sources import CheckpointSource
from harness.storage.cache import digest, file_digest

LENGTH = 200
"""Tokens of a text of the Challenge."""
RETAIN_WINDOWS = 1_000
GENERAL_WINDOWS = 1_000
UNSEEN = 128
"""Texts that the thresholds are measured on; the paper takes 10,000, of which its repository keeps 1,500 at most."""
RUNNING = {"pile": "pile.csv", "wikitext": "wikitext.csv"}
"""Set of texts to be kept → its file."""
BESIDE = ("classification", "dialogue")
"""Evaluators of what these models know from their pre-training; the embedded one knows nothing that they ask."""


def real_problem(bench: str, version: int, model: str, source: CheckpointSource, size: int, options: Options) -> Problem:
    """Texts as they were published, the draw that the seed chooses.

    Args:
        bench: the benchmark's name.
        version: its version.
        model: as asked for.
        source: the model, whose tokenizer counts.
        size: of the forget set.
        options: with the data folder, the limit and the seed.

    Raises:
        UsageError: for a file that is missing or malformed.
    """
    draws = forget_sets(options.data_dir, size)
    number = options.seed % len(draws)
    forget = texts_of_file(draws[number], partial(_tokens, source))[: options.limit]
    running, notes = _running(options.data_dir, source)
    unseen = [text for text in running.get("pile", []) if text.tokens >= LENGTH][:UNSEEN]
    retain_files = tuple(dataset_files(RETAIN, RETAIN_FILES, options.data_dir))
    if "pile" in running and not unseen:
        notes.append(
            f"no text of {FOLDER}/{RUNNING['pile']} has {LENGTH} tokens: no thresholds, and nothing counts as forgotten"
        )
    windows = Windows((Corpus(retain_files, RETAIN_WINDOWS + GENERAL_WINDOWS, lines=True),), source, LENGTH)
    data: dict[str, JSON] = {
        "forget": digest([file_digest(file) for file in draws])[:16],
        "retain": digest([file_digest(file) for file in retain_files])[:16],
        **{name: fingerprint([text.row for text in of]) for name, of in running.items()},
    }
    sets = {"memorized": forget, "unseen": unseen, **running}
    return Problem(
        bench=bench,
        bench_version=version,
        model=model,
        stages=[
            Stage(
                f"{size} texts",
                forget=texts([text.row["text"] for text in forget]),
                retain=windows[:RETAIN_WINDOWS][: options.limit],
            )
        ],
        questions={name: numbered([text.row for text in of[: options.limit]]) for name, of in sets.items() if of},
        template=TEMPLATE,
        sources={"base": source},
        data=data,
        generation_budget=64,
        notes=[
            f"draw {number} of {len(draws)}, by the seed: {draws[number].name}",
            *_short(forget, options.variant),
            *notes,
        ],
        general=windows[RETAIN_WINDOWS:][: options.limit],
        evaluators=BESIDE,
    )


def _tokens(source: CheckpointSource, of: Sequence[str]) -> list[int]:
    return [len(ids) for ids in token_ids(source.tokens(), of)]


def _short(forget: Sequence[Text], variant: Variant) -> list[str]:
    """What a reader must know of texts with fewer tokens than the Challenge's have."""
    short = sum(text.tokens < LENGTH for text in forget)
    what = "they are padded with end tokens, which are scored, as in its code; --variant corrected leaves them as they are"
    if variant == "corrected":
        what = "each counts at its own length"
    return [f"{short} of {len(forget)} texts have under {LENGTH} tokens: {what}"] if short else []


def _running(data_dir: Path | None, source: CheckpointSource) -> tuple[dict[str, list[Text]], list[str]]:
    """Set → its texts, and which of them are not there."""
    sets: dict[str, list[Text]] = {}
    missing = []
    for name, file in RUNNING.items():
        if paths := files(data_dir, file):
            sets[name] = texts_of_file(paths[0], partial(_tokens, source))
        else:
            missing.append(f"{FOLDER}/{file} is not in the data folder: no {name}_perplexity")
    if "pile" not in sets:
        seen = f"without {FOLDER}/{RUNNING['pile']} no text is known that the model never saw"
        missing.append(f"{seen}: no thresholds, and nothing counts as forgotten")
    return sets, missing
