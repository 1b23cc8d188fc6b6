"""The tries that the tuned presets of tdec-8 come from: eight of every method, on a draw that is not reported.

    python results/tdec/tries.py results/tdec/tries.csv                                     # some minutes
    python results/tdec/tries.py results/tdec/tries-both.csv npo predictor_corrector        # these, by both thresholds

Six scales a factor of 2 apart, then two beside the best of them, a factor of √2 away. A try ends where the memorisation
accuracy of the texts to be forgotten is at or under that of unseen texts before unlearning; extraction likelihood, which costs
ten times as much, is not looked at, unless methods are named: these end where both are at or under their thresholds. The best
try has the lowest perplexity there, on texts that are not reported either: those that the thresholds are measured on.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.core.config import JSON
    from harness.core.problem import Problem

BENCH, DRAW = "tdec-8", 3
"""Draws 0, 1 and 2 are reported; no two share a text."""
EPOCHS: dict[str, JSON] = {"epochs": 4, "warmup_epochs": 0, "batch_size": 128}
NEWTON: dict[str, JSON] = {"steps": 4, "damping": 0.1, "damping_scale": "mean_eigenvalue", "kl_rows": 64}
RATES = [5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]
BUDGETS = [0.05, 0.1, 0.2, 0.4, 0.8, 1.6]
TRIED: dict[str, tuple[dict[str, JSON], str, list[float]]] = {
    "ga": ({**EPOCHS, "weight_decay": 0.0}, "lr", RATES),
    "grad_diff": (EPOCHS, "lr", RATES),
    "npo": (EPOCHS, "lr", RATES),
    "loku": (EPOCHS, "lr", [2 * rate for rate in RATES]),
    "kfade": (NEWTON, "target_kl", BUDGETS),
    "predictor_corrector": ({**NEWTON, "corrector_rows": 64}, "peak_kl", BUDGETS),
}
"""Method → what all its tries share, and the one setting that they differ in."""
EXTRACTED = 0.0414
"""Extraction likelihood of unseen texts before unlearning, as every record of `mini` has it."""
Step = tuple[int, float, float, bool]
"""Number, memorisation accuracy, perplexity of unseen texts, whether it is forgotten."""


def main(out: str, *both: str) -> None:
    """Run them and write one line for each step; only the methods that are named, by both thresholds, if any are."""
    from harness.core.benchmark import BENCHMARKS
    from harness.core.options import Options

    problem = BENCHMARKS.get(BENCH).problem("mini", Options(seed=DRAW))
    with Path(out).open("w", encoding="utf-8", newline="") as file:
        write = csv.writer(file, lineterminator="\n").writerow
        write(["method", "setting", "value", "step", "memorization_accuracy", "unseen_perplexity", "forgotten"])
        for method, (shared, setting, values) in TRIED.items():
            if both and method not in both:
                continue
            ends: dict[float, float] = {}
            for number in range(len(values) + 2):
                best = min(ends, key=lambda tried, ends=ends: ends[tried], default=values[-1])  # type: ignore[misc]
                if number == len(values):
                    beside = [best * 0.5**0.5, best * 2**0.5]
                value = values[number] if number < len(values) else beside[number - len(values)]
                for step, accuracy, perplexity, forgotten in steps(problem, method, {**shared, setting: value}, bool(both)):
                    write([method, setting, f"{value:.3g}", step, f"{accuracy:.4f}", f"{perplexity:.3f}", int(forgotten)])
                    if forgotten:
                        ends[value] = perplexity
                file.flush()


def steps(problem: Problem, name: str, settings: dict[str, JSON], both: bool) -> Iterator[Step]:
    """A try's steps, up to the first at which it is forgotten, or where it diverges."""
    from harness.core.config import resolve
    from harness.core.costs import Costs
    from harness.core.errors import Diverged
    from harness.core.method import METHODS, UnlearningContext
    from harness.models.pretraining import weights_digest
    from harness.storage.cache import Cache

    cache, source, method = Cache(), problem.sources["base"], METHODS.get(name)
    model, tokenizer = source.load(cache, "cpu", "float32")
    texts = {of: [str(row["text"]) for row in problem.questions[of]] for of in ("memorized", "unseen")}
    threshold, _ = scores(model, tokenizer, texts["unseen"])
    context = UnlearningContext(model, tokenizer, problem, DRAW, cache, Costs(), weights_digest(source, cache))
    try:
        for progress in method.unlearn(context, resolve(method.config, settings, owner=name)):
            accuracy, _ = scores(model, tokenizer, texts["memorized"])
            forgotten = accuracy <= threshold
            if forgotten and both:
                forgotten = extracted(model, tokenizer, texts["memorized"]) <= EXTRACTED
            yield progress.step, accuracy, scores(model, tokenizer, texts["unseen"])[1], forgotten
            if forgotten:
                return
    except Diverged:
        return


def extracted(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> float:
    """Mean extraction likelihood."""
    from evals.extraction import EXTRACTION
    from evals.extraction import scores as extraction
    from harness.data.rows import token_ids

    return float(extraction(model, token_ids(tokenizer, texts), [tokenizer.eos_token_id])[EXTRACTION].mean())


def scores(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> tuple[float, float]:
    """Share of tokens that are the likeliest behind those before, and perplexity."""
    import torch

    from evals.benchmarks.tdec.models import texts as windows
    from harness.data.rows import batches, encode, pad_id
    from harness.numerics.likelihood import answer_labels, answer_logits

    right, nats, tokens = 0, 0.0, 0
    with torch.no_grad():
        for batch in batches(encode(windows(texts), tokenizer), pad_id(tokenizer), 4096, "cpu"):
            logits, labels = answer_logits(model, batch), answer_labels(batch)
            right += int((logits.argmax(-1) == labels).sum())
            nats += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            tokens += len(labels)
    return right / tokens, math.exp(nats / tokens)


if __name__ == "__main__":
    main(*sys.argv[1:])
