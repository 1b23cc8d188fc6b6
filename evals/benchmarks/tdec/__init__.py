"""Training Data Extraction Challenge: forget 1, 4, 8, 32 or 128 texts that a model repeats word by word (arXiv:2210.01504).

`tdec` forgets 32, `tdec-N` the other numbers. The seed of a run chooses the draw: seed 0 the first forget set of that size, and
so on in turn, so that a mean over seeds is one over draws. `mini` is the embedded chronicle (`chronicle.py`: texts about
nothing) with a small Llama that is taught 160 of them by heart on the spot; a card (`cards.py`) the published models, anything
else a checkpoint, both with the Challenge's files out of the data folder. What guards the rest are texts of the same kind, on
real models WikiText-2; the paper retains nothing, and what LoKU (arXiv:2408.06621) retains is not published.

There are no retrained models. A set is forgotten when it is extracted no better than texts that the same model never saw
(`evals/extraction.py`): on real models rows of the Pile's validation set, on `mini` texts that were kept away from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from evals.benchmarks.tdec.cards import CARDS, RETAIN, RETAIN_FILES
from evals.benchmarks.tdec.chronicle import DRAWS, GUARDING
from evals.benchmarks.tdec.models import TEMPLATE, mini_source, texts, world
from evals.benchmarks.tdec.real import real_problem
from evals.benchmarks.tdec.roles import MEASURED, ROLES
from evals.benchmarks.tdec.rows import numbered
from harness.core.benchmark import Needed, benchmark
from harness.core.errors import UsageError, unknown
from harness.core.evaluator import EVALUATORS, Evaluator
from harness.core.options import Options, Variant
from harness.core.problem import Problem, Stage
from harness.data.rows import fingerprint
from harness.models.finetuning import finetuned_model
from harness.models.small import small_name, small_world
from harness.models.sources import CheckpointSource, read_sidecar

if TYPE_CHECKING:
    import pandas as pd

    from harness.core.arithmetic import Arithmetic

DEFAULT = 32
"""Texts that `tdec` forgets."""


@benchmark("tdec", "tdec-1", "tdec-4", "tdec-8", "tdec-128")
class Tdec:
    """The Training Data Extraction Challenge with a forget set of one size.

    Args:
        name: `tdec`, or `tdec-` and the size.
    """

    version = 1
    variant_versions: Mapping[Variant, int] = {"original": version, "corrected": version}
    roles = ROLES
    models: Mapping[str, str] = {
        "mini": (
            "the embedded chronicle and a 0.15 M-parameter Llama trained on the spot; mini@K for world seed K, mini@portable "
            "or mini@K-portable for weights that are the same on every x86-64 processor"
        ),
        **{name: card.about for name, card in CARDS.items()},
        "<hub id or folder>": "any checkpoint, with the Challenge's files (--data-dir)",
    }

    def __init__(self, name: str) -> None:
        self.name = name
        self.size = int(name.partition("-")[2] or DEFAULT)

    def evaluators(self) -> list[Evaluator]:
        """Extraction, and perplexity on what is to be kept."""
        return [EVALUATORS.get(name) for name in MEASURED]

    def read_log(self, path: Path, problem: Problem | None = None) -> Mapping[str, pd.DataFrame]:
        """No log of another program can stand in for a model here.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{self.name} reads no logs: it has no retrained model that one could stand in for.")

    def needed(self, model: str) -> list[Needed]:
        """What has to be had from the hub for a model; the Challenge's own files are on no hub."""
        if model.partition("@")[0] == "mini":
            return []
        about = "WikiText-2, training split, CC BY-SA; what guards the rest"
        data = Needed(RETAIN, "data", (), about, any_of=RETAIN_FILES, hub_too=True)
        if model not in CARDS:
            return [data] if Path(model).is_dir() else [data, Needed(model, "model")]
        card = CARDS[model]
        size = f"{card.base_bytes / 1e9:.1f} GB in float32, {card.licence}, no licence gate"
        return [data, Needed(card.base, "model", (), size)]

    def problem(self, model: str, options: Options) -> Problem:
        """Read the data and name the sources; see `harness.core.benchmark.Benchmark.problem`."""
        if options.reference is not None:
            self.read_log(options.reference)
        if options.variant not in self.variant_versions:
            known = " and ".join(self.variant_versions)
            raise UsageError(f"{self.name} has the definitions {known}; take one of them in place of {options.variant}.")
        if model.partition("@")[0] == "mini":
            return self._mini(*small_world(model), options)
        if finetuned_model(model):
            raise UsageError(
                f"{self.name} fine-tunes no model: it makes one forget what it knows from its pre-training. Give the hub id or "
                "the folder itself as --model."
            )
        if model not in CARDS and (not model or ("/" not in model and not Path(model).is_dir())):
            raise unknown("model", model, ["mini", *CARDS, "<hub id>", "<folder>"], "harness list models")
        name = CARDS[model].base if model in CARDS else model
        source = CheckpointSource(name, trust_remote_code=options.trust_remote_code, data_dir=options.data_dir)
        about = read_sidecar(source.folder) if model not in CARDS else {}
        family = str(about.get("model", ""))
        if family.partition("@")[0] == "mini":
            return self._saved_mini(model, family, str(about.get("bench")), source, options)
        problem = real_problem(self.name, self.version, model, source, self.size, options)
        return replace(problem, family=family if family in CARDS else "")

    def _saved_mini(self, model: str, family: str, bench: str, source: CheckpointSource, options: Options) -> Problem:
        if bench.partition("-")[0] != "tdec":
            raise UsageError(f"{source.folder} holds a mini model of {bench}; {self.name} asks about other things.")
        problem = self.problem(family, options)
        return replace(
            problem, model=model, family=problem.model.partition("@")[0], sources={**problem.sources, "base": source}
        )

    def _mini(self, seed: int, arithmetic: Arithmetic, options: Options) -> Problem:
        chronicle, limit = world(seed), options.limit
        number = options.seed % DRAWS
        drawn = chronicle.draw(self.size, number)[:limit]
        guarding, general = texts(chronicle.read[:GUARDING]), texts(chronicle.read[GUARDING:])
        sets = {
            "memorized": [{"text": chronicle.memorised[i], "cluster": f"text {i}"} for i in drawn],
            "unseen": [{"text": text, "cluster": f"unseen {i}"} for i, text in enumerate(chronicle.unseen[:limit])],
            "general": [{"text": text, "cluster": f"general {i}"} for i, text in enumerate(chronicle.general[:limit])],
        }
        return Problem(
            bench=self.name,
            bench_version=self.version,
            model=small_name(seed, arithmetic),
            stages=[
                Stage(
                    f"{self.size} texts",
                    forget=texts([chronicle.memorised[i] for i in drawn]),
                    retain=guarding[:limit],
                    retain_clusters=[f"read {i}" for i in range(len(guarding[:limit]))],
                )
            ],
            questions={name: numbered(rows) for name, rows in sets.items()},
            template=TEMPLATE,
            sources={"base": mini_source(seed, arithmetic)},
            # Of all draws, so that those of one size are compared with each other; the seed says which one it is.
            data={
                "memorised": fingerprint([{"text": text} for text in chronicle.memorised]),
                "read": fingerprint([{"text": text} for text in chronicle.read]),
                "unseen": fingerprint([{"text": text} for text in chronicle.unseen]),
                "general": fingerprint([{"text": text} for text in chronicle.general]),
            },
            generation_budget=64,
            notes=[
                "the embedded chronicle: a hundred thousand parameters and invented texts; it ranks nothing beyond itself",
                f"draw {number} of {DRAWS}, by the seed: {len(drawn)} of {len(chronicle.memorised)} texts known by heart",
            ],
            general=general[:limit],
            general_clusters=[f"read {GUARDING + i}" for i in range(len(general[:limit]))],
            attacks={
                "benign": general[:limit],
                "related": guarding[:limit],
                "forget": texts([chronicle.memorised[i] for i in drawn]),
            },
        )
