"""ToFU (arXiv:2401.06121): forget 1 % (tofu01), 5 % (tofu05) or 10 % (tofu10) of fictitious authors, embedded or real ones.

One class serves both: only where rows and models come from differs. `mini` is the embedded world (`world.py`) with a small
Llama trained on the spot (`models.py`); `scratch` a small Llama trained on the spot on the real questions; a card (`cards.py`)
the published models with the real data, `finetuned:NAME` a model fine-tuned on it on the spot from any other, and anything else
a checkpoint (a hub id or a folder) with it. Rows are ToFU's: the
first 300 of a task (`variant=open-unlearning`: all 400).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.benchmarks.tofu.cards import CARDS
from evals.benchmarks.tofu.facts import embedded_facts, row_facts
from evals.benchmarks.tofu.models import mini_sources, scratch_sources, worded_world, world, world_holdout
from evals.benchmarks.tofu.open_unlearning_files import ATTACKS
from evals.benchmarks.tofu.real_models import base_needed, real_sources
from evals.benchmarks.tofu.refusals import REFUSALS, refusal_sentences
from evals.benchmarks.tofu.roles import MEASURED, ROLES
from evals.benchmarks.tofu.rows import (
    DATASET,
    authors,
    examples,
    holdout_rows,
    in_other_words,
    numbered,
    real_rows,
    retold,
    split_names,
)
from evals.benchmarks.tofu.templates import TEMPLATES, template_of
from evals.benchmarks.tofu.world_data import REFUSALS as WORLD_REFUSALS
from harness.core.arithmetic import Arithmetic
from harness.core.benchmark import Needed, benchmark
from harness.core.errors import UsageError, unknown
from harness.core.evaluator import EVALUATORS, Evaluator
from harness.core.options import Options, Variant
from harness.core.problem import ModelSource, Problem, Row, Stage
from harness.core.text import Template
from harness.data.general import Instructions
from harness.data.rows import fingerprint
from harness.models.bases import BASES
from harness.models.finetuning import FinetunedModel, finetuned_model
from harness.models.small import SMALL_MODELS, WORDINGS, small_name, small_world, without_wordings
from harness.models.sources import CheckpointSource, read_sidecar
from harness.models.templates import Chosen, chosen, only
from harness.storage.cache import digest

if TYPE_CHECKING:
    import pandas as pd

FACT_SETS = ("forget", "retain")
"""The sets of questions whose facts are asked for in several ways."""
EVALUATED_ROWS = {"original": 300, "open-unlearning": 400}
MOST_SPARE = 20
"""Retain rows behind a limit that damage may be measured on: a try on a CPU is to take minutes."""


@benchmark("tofu01", "tofu05", "tofu10")
class Tofu:
    """ToFU with 1, 5 or 10 % of the authors to forget.

    Args:
        name: `tofu01`, `tofu05` or `tofu10`.
    """

    version = 1
    variant_versions: Mapping[Variant, int] = {"original": version, "open-unlearning": 2}
    """2: the blank of a tag is scored with the answer, and texts are cut at 512 tokens."""
    models: Mapping[str, str] = {
        "mini": (
            "the embedded world and a 0.9 M-parameter Llama trained on the spot; mini@K for world seed K, mini@portable or "
            "mini@K-portable for weights that are the same on every x86-64 processor; with the last word wordings "
            "(mini@wordings, mini@K-wordings) a model that can be asked for each fact in several ways"
        ),
        "scratch": "the real questions and a 1.7 M-parameter Llama trained on the spot; needs the data (--data-dir or hub)",
        **{name: card.about for name, card in CARDS.items()},
        **{name: card.about for name, card in BASES.items()},
        "finetuned:<hub id or folder>": (
            "any causal model, fine-tuned on the spot on the real questions, with two retrained references; "
            "@epochs=…,lr=…,batch_size=…,replay=…,retained=… behind the name of this kind of model changes how"
        ),
        "<hub id or folder>": "any checkpoint, with the real questions; needs --reference LOG for forget quality",
    }

    templates = TEMPLATES
    roles = ROLES
    in_logs: Mapping[str, Sequence[str]] = {
        "extraction_strength": ("extraction_strength",),
        "exact_memorisation": ("exact_memorisation",),
        "membership": tuple(ATTACKS.values()),
        "paraphrased": ("paraphrased_answer_rouge", "extraction_strength"),
        "open_unlearning_score": ("extraction_strength",),
    }

    def __init__(self, name: str) -> None:
        self.name = name
        percent = int(name.removeprefix("tofu"))
        self.forget = f"forget{percent:02d}"
        self.retain = f"retain{100 - percent:02d}"

    def problem(self, model: str, options: Options) -> Problem:
        """Read the data and name the sources; see `harness.core.benchmark.Benchmark.problem`."""
        if options.variant not in self.variant_versions:
            known = " and ".join(self.variant_versions)
            raise UsageError(f"{self.name} has the definitions {known}; take one of them in place of {options.variant}.")
        if model.partition("@")[0] == "mini":
            plain, worded = without_wordings(model)
            return self._mini(*small_world(plain), worded, options)
        if model == "scratch":
            return self._scratch(options)
        if model in CARDS:
            return self._card(model, options)
        if named := finetuned_model(model):
            return self._finetuned(named, options)
        if not model or ("/" not in model and not Path(model).is_dir()):
            raise unknown("model", model, ["mini", "scratch", *CARDS, *BASES, "<hub id>", "<folder>"], "harness list models")
        return self._checkpoint(model, options)

    def needed(self, model: str) -> list[Needed]:
        """What has to be had from the hub, or from a data folder, for a model; see `harness.core.benchmark.Benchmark`."""
        if model.partition("@")[0] == "mini":
            return []
        files = [f"{name}.json" for name in split_names(self.forget, self.retain)]
        data = Needed(DATASET, "data", files, "JSON lines, 4 MB in all, MIT")
        if named := finetuned_model(model):
            return [data, *base_needed(named)]
        if model not in CARDS:
            return [data] if model == "scratch" or Path(model).is_dir() else [data, Needed(model, "model")]
        card = CARDS[model]
        terms = f"{card.licence}, {'behind a licence gate' if card.gate else 'no licence gate'}"
        retain = card.retain.format(split=self.retain)
        checkpoints = [
            Needed(name, "model", (), f"{card.format}, {size / 1e9:.1f} GB, {terms}", card.gate, doubt)
            for name, size, doubt in (
                (card.base, card.base_bytes, ""),
                (retain, card.retain_bytes, card.doubts.get(self.retain, "")),
            )
        ]
        if card.tokenizer == card.base:
            return [data, *checkpoints]
        return [data, *checkpoints, Needed(card.tokenizer, "tokenizer", (), "a few MB", card.gate)]

    def _mini(self, seed: int, arithmetic: Arithmetic, worded: bool, options: Options) -> Problem:
        rows = {name: world(seed).split(name) for name in split_names(self.forget, self.retain)}
        problem = self._problem(
            small_name(seed, arithmetic, WORDINGS if worded else ""),
            options,
            rows,
            only(options.template, TEMPLATES["mini"], "mini"),
            mini_sources(seed, self.retain, arithmetic, worded),
            generation_budget=64,
            refusals=WORLD_REFUSALS,
            notes=["the embedded world: under a million parameters and invented authors; it ranks nothing beyond itself"],
        )
        about, others = world(seed).general
        ordinary = {name: [row["question"] for row in problem.questions[name]] for name in FACT_SETS}
        return replace(
            problem,
            facts=lambda: embedded_facts(worded_world(seed), problem.template, ordinary, worded),
            general=examples(problem.template, about),
            unseen=examples(problem.template, others),
            guarded=world(seed).guarded,
            holdout=partial(world_holdout, seed, options.limit),
            evaluators=("wordings",) if worded else (),
        )

    def _scratch(self, options: Options) -> Problem:
        rows = real_rows(self.forget, self.retain, options.data_dir)
        sources = scratch_sources({"full": rows["full"], self.retain: rows[self.retain]}, self.retain)
        template = only(options.template, TEMPLATES["scratch"], "scratch")
        notes = ["trained from nothing on ToFU's questions alone: real authors and world facts are unknown to it (near chance)"]
        refusals = refusal_sentences(options.data_dir)
        return self._problem("scratch", options, rows, template, sources, refusals=refusals, notes=notes)

    def _card(self, name: str, options: Options) -> Problem:
        card, rows = CARDS[name], real_rows(self.forget, self.retain, options.data_dir)
        retain, doubt = card.retain.format(split=self.retain), card.doubts.get(self.retain, "")
        source = CheckpointSource(
            card.base,
            tokenizer=card.tokenizer,
            trust_remote_code=options.trust_remote_code,
            data_dir=options.data_dir,
        )
        sources = {"base": source, "retain-0": replace(source, name=retain, doubt=doubt)}
        template, of_template = chosen(options.template, Chosen(TEMPLATES[card.template]), TEMPLATES, source.tokens)
        notes = [*card.notes, *of_template, *([f"retain-0 is {retain}: {doubt}"] if doubt and not options.reference else [])]
        refusals = refusal_sentences(options.data_dir)
        return self._problem(name, options, rows, template, sources, refusals=refusals, notes=notes)

    def _finetuned(self, named: FinetunedModel, options: Options) -> Problem:
        rows = real_rows(self.forget, self.retain, options.data_dir)
        made = real_sources(named, rows, (self.forget, self.retain), options)
        refusals = refusal_sentences(options.data_dir)
        return self._problem(made.name, options, rows, made.template, made.sources, refusals=refusals, notes=made.notes)

    def _checkpoint(self, model: str, options: Options) -> Problem:
        source = CheckpointSource(model, trust_remote_code=options.trust_remote_code, data_dir=options.data_dir)
        about = read_sidecar(source.folder)
        family = str(about.get("model", ""))
        if family.partition("@")[0] in SMALL_MODELS:
            if not str(about.get("bench", self.name)).startswith("tofu"):
                raise UsageError(
                    f"{source.folder} holds a mini model of {about['bench']}; {self.name} asks about other things."
                )
            problem = self.problem(family, options)
            return replace(
                problem, model=model, family=problem.model.partition("@")[0], sources={**problem.sources, "base": source}
            )
        rows = real_rows(self.forget, self.retain, options.data_dir)
        template, notes = template_of(source, options.template)
        refusals = refusal_sentences(options.data_dir)
        problem = self._problem(model, options, rows, template, {"base": source}, refusals=refusals, notes=notes)
        return replace(problem, family=family if family in CARDS else "")

    def _problem(
        self,
        model: str,
        options: Options,
        rows: Mapping[str, Sequence[Row]],
        template: Template,
        sources: Mapping[str, ModelSource],
        generation_budget: int = 200,
        refusals: Sequence[str] = REFUSALS,
        notes: Sequence[str] = (),
    ) -> Problem:
        template = replace(template, tag_in_prompt=options.variant == "open-unlearning")
        if options.reference:  # its log stands in for them
            sources = {name: source for name, source in sources.items() if not name.startswith("retain-")}
        first, holdout = EVALUATED_ROWS[options.variant], self.forget.replace("forget", "holdout")
        questions = {
            "retain": rows["retain_perturbed"][:first],
            "real_authors": rows["real_authors_perturbed"],
            "world_facts": rows["world_facts_perturbed"],
            "forget": rows[f"{self.forget}_perturbed"][:first],
        }
        sets = {name: numbered(of_task[: options.limit]) for name, of_task in questions.items()}
        spare = rows[self.retain][options.limit : options.limit + MOST_SPARE] if options.limit else []
        reworded = in_other_words({name: of_task[: options.limit] for name, of_task in questions.items()})
        return Problem(
            bench=self.name,
            bench_version=self.variant_versions[options.variant],
            model=model,
            stages=[
                Stage(
                    self.forget,
                    forget=examples(template, rows[self.forget][: options.limit]),
                    retain=examples(template, rows[self.retain][: options.limit]),
                    retain_clusters=authors(rows[self.retain][: options.limit]),
                )
            ],
            questions=sets,
            paraphrased_questions=reworded,
            facts=partial(row_facts, template, {name: sets[name] for name in FACT_SETS}, reworded),
            holdout=partial(holdout_rows, holdout, options.data_dir, min(first, options.limit or first)),
            template=template,
            sources=sources,
            data={
                **{name: fingerprint(of_split) for name, of_split in sorted(rows.items())},
                **({} if refusals in (REFUSALS, WORLD_REFUSALS) else {"refusals": digest(list(refusals))[:16]}),
            },
            generation_budget=generation_budget,
            refusals=refusals,
            notes=notes,
            general=Instructions(options.data_dir, template),
            spare=examples(template, spare),
            retold=retold(template, rows[f"{self.forget}_perturbed"][: options.limit]),
            attacks={
                "benign": examples(template, [*questions["real_authors"], *questions["world_facts"]]),
                "related": examples(template, rows[self.retain][: options.limit]),
                # Every other question: an attack is judged by those that it does not train on.
                "forget": examples(template, rows[self.forget][: options.limit : 2]),
            },
        )

    def evaluators(self) -> list[Evaluator]:
        """Forget quality, utility and its parts."""
        return [EVALUATORS.get(name) for name in MEASURED]

    def read_log(self, path: Path, problem: Problem | None = None) -> Mapping[str, pd.DataFrame]:
        """Tables out of ToFU's, SimNPO's, NPO's or open-unlearning's evaluation logs."""
        from evals.benchmarks.tofu.logs import check_same_rows, read_log

        tables = read_log(path)
        if problem:
            check_same_rows(tables, problem, path)
        return tables

    def log_maker(self, path: Path) -> str:
        """Whose a log in open-unlearning's form is; empty for ToFU's own form."""
        from evals.benchmarks.tofu.logs import log_maker

        return log_maker(path)

    def read_summary(self, path: Path) -> Mapping[str, float] | None:
        """The numbers of open-unlearning's `TOFU_SUMMARY.json`, by metric; None for any other file."""
        from evals.benchmarks.tofu.logs import read_summary

        return read_summary(path)

    def write_log(self, rows: pd.DataFrame, numbers: Mapping[str, float], variant: Variant) -> Mapping[str, Mapping[str, Any]]:
        """Open-unlearning's evaluation files of a model: file name → content.

        Raises:
            UsageError: for numbers in other definitions than that project's, or rows that hold none of ToFU's.
        """
        from evals.benchmarks.tofu.open_unlearning_files import EVAL, SUMMARY, evaluation, summary

        if variant != "open-unlearning":
            raise UsageError(
                "open-unlearning's files hold numbers in its own definitions, and this run is in ToFU's: measure it with "
                "--variant open-unlearning."
            )
        log = evaluation(rows, numbers)
        return {EVAL: log, SUMMARY: summary(log)}
