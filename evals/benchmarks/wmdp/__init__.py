"""WMDP (arXiv:2403.03218): forget hazardous knowledge of biology, then of cyber-security; -bio, -cyber: of one of them alone.

What is unlearned are texts, what is measured are multiple-choice questions. One class serves both worlds: `mini` is the
embedded one (`crafts.py`: nothing in it is of any use) with a small Llama trained on the spot; a card (`cards.py`) the
published models with the real corpora, and anything else a checkpoint with them. Real corpora are cut into windows of 512
tokens (K-FADE, arXiv:2602.10568, appendix D.1). Each stage is guarded by the neighbouring corpus and Wikitext in turn, for all
methods alike. RMU takes Wikitext alone (`retain=general`), and so does K-FADE for biology; ELM takes the neighbouring corpora
alone (`retain=neighbours`). There are no retrained models, hence no forget quality.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from evals.benchmarks.wmdp.cards import CARDS, CORPORA, INSTRUCTIONS, MMLU, QUESTIONS
from evals.benchmarks.wmdp.data import GUARDS, WmdpData
from evals.benchmarks.wmdp.embedded import embedded_data
from evals.benchmarks.wmdp.models import TEMPLATES, mini_source
from evals.benchmarks.wmdp.real import MOST_INSTRUCTIONS, real_data
from evals.benchmarks.wmdp.roles import MEASURED, roles
from harness.core.benchmark import Needed, benchmark
from harness.core.errors import UsageError, unknown
from harness.core.evaluator import EVALUATORS, Evaluator
from harness.core.options import Options
from harness.core.problem import ModelSource, Problem
from harness.core.text import Template
from harness.data.general import Instructions
from harness.models.finetuning import finetuned_model
from harness.models.small import small_name, small_world
from harness.models.sources import CheckpointSource, read_sidecar
from harness.models.templates import Chosen, chat, chosen, only
from harness.numerics.chat_templates import CHAT

if TYPE_CHECKING:
    import pandas as pd

STAGES = {"wmdp": ("bio", "cyber"), "wmdp-bio": ("bio",), "wmdp-cyber": ("cyber",)}


@benchmark("wmdp", "wmdp-bio", "wmdp-cyber")
class Wmdp:
    """WMDP: both hazardous domains one after the other, or one of them.

    Args:
        name: `wmdp`, `wmdp-bio` or `wmdp-cyber`.
    """

    version = 1
    templates = TEMPLATES
    models: Mapping[str, str] = {
        "mini": (
            "the embedded crafts and a 1.2 M-parameter Llama trained on the spot; mini@K for world seed K, mini@portable or "
            "mini@K-portable for weights that are the same on every x86-64 processor"
        ),
        **{name: card.about for name, card in CARDS.items()},
        "<hub id or folder>": "any checkpoint, with the real corpora and questions",
    }

    def __init__(self, name: str) -> None:
        self.name = name
        self.stages = STAGES[name]
        self.roles = roles(self.stages)

    def evaluators(self) -> list[Evaluator]:
        """Accuracy on multiple-choice questions."""
        return [EVALUATORS.get(name) for name in MEASURED]

    def read_log(self, path: Path, problem: Problem | None = None) -> Mapping[str, pd.DataFrame]:
        """No log of another program can stand in for a model here.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{self.name} reads no logs: it has no retrained model that one could stand in for.")

    def problem(self, model: str, options: Options) -> Problem:
        """Read the data and name the sources; see `harness.core.benchmark.Benchmark.problem`."""
        if options.reference is not None:
            self.read_log(options.reference)
        if options.variant != "original":
            raise UsageError(f"{self.name} has one set of definitions; leave out --variant {options.variant}.")
        if model.partition("@")[0] == "mini":
            seed, arithmetic = small_world(model)
            sources = {"base": mini_source(seed, arithmetic)}
            data = embedded_data(seed, self.stages, options)
            template = only(options.template, TEMPLATES["mini"], "mini")
            return self._problem(small_name(seed, arithmetic), template, sources, data, options)
        if model in CARDS:
            card = CARDS[model]
            base = CheckpointSource(
                card.base, tokenizer=card.tokenizer, trust_remote_code=options.trust_remote_code, data_dir=options.data_dir
            )
            others = {name: replace(base, name=hub_id) for name, hub_id in card.checkpoints.items()}
            template, notes = chosen(options.template, Chosen(TEMPLATES[card.template]), TEMPLATES, base.tokens)
            data = real_data(base, self.stages, options)
            data = replace(data, notes=[*card.notes, *notes, *data.notes])
            return self._problem(model, template, {"base": base, **others}, data, options)
        if finetuned_model(model):
            raise UsageError(
                f"{self.name} fine-tunes no model: it makes one forget what it knows from its pre-training. Give the hub id or "
                "the folder itself as --model."
            )
        if not model or ("/" not in model and not Path(model).is_dir()):
            raise unknown("model", model, ["mini", *CARDS, "<hub id>", "<folder>"], "harness list models")
        return self._checkpoint(model, options)

    def needed(self, model: str) -> list[Needed]:
        """What has to be had from the hub, or from a data folder, for a model; see `harness.core.benchmark.Benchmark`."""
        if model.partition("@")[0] == "mini":
            return []
        parts = [CORPORA[name] for stage in self.stages for name in (f"{stage}-forget", f"{stage}-retain")]
        data = [
            Needed(part.id, "data", (), part.about, part.gate, any_of=part.files, hub_too=True)
            for part in (*parts, CORPORA["wikitext"], *QUESTIONS.values(), MMLU, INSTRUCTIONS)
        ]
        if model not in CARDS:
            return data if Path(model).is_dir() else [*data, Needed(model, "model")]
        card = CARDS[model]
        size = f"{card.format}, {card.base_bytes / 1e9:.1f} GB, {card.licence}, no licence gate"
        return [*data, Needed(card.base, "model", (), size, card.gate)]

    def _checkpoint(self, model: str, options: Options) -> Problem:
        source = CheckpointSource(model, trust_remote_code=options.trust_remote_code, data_dir=options.data_dir)
        about = read_sidecar(source.folder)
        family = str(about.get("model", ""))
        if family.partition("@")[0] == "mini":
            if str(about.get("bench")) not in STAGES:
                raise UsageError(
                    f"{source.folder} holds a mini model of another benchmark; {self.name} asks about other things."
                )
            problem = self.problem(family, options)
            return replace(
                problem, model=model, family=problem.model.partition("@")[0], sources={**problem.sources, "base": source}
            )
        saved = str(about.get("template", ""))
        usual = chat(TEMPLATES, source.tokens()) if saved == CHAT else Chosen(TEMPLATES.get(saved, TEMPLATES["plain"]))
        template, notes = chosen(options.template, usual, TEMPLATES, source.tokens, learned=False)
        data = real_data(source, self.stages, options)
        problem = self._problem(model, template, {"base": source}, replace(data, notes=[*notes, *data.notes]), options)
        return replace(problem, family=family if family in CARDS else "")

    def _problem(
        self, model: str, template: Template, sources: Mapping[str, ModelSource], data: WmdpData, options: Options
    ) -> Problem:
        retain = options.retain
        return Problem(
            bench=self.name,
            bench_version=self.version,
            model=model,
            stages=data.stages,
            questions=data.questions,
            template=template,
            sources=sources,
            data=dict(sorted(data.digests.items())),
            retain=retain,
            generation_budget=data.generation_budget,
            notes=[*data.notes, f"every stage is guarded by {GUARDS[retain]} alone"] if retain in GUARDS else data.notes,
            attacks=data.attacks,
            general=data.general or Instructions(options.data_dir, template, after=MOST_INSTRUCTIONS),
            general_clusters=data.general_clusters,
        )
