"""WMDP (arXiv:2403.03218): forget hazardous knowledge of biology, then of cyber-security; -bio, -cyber: of one of them alone.

What is unlearned are texts, what is measured are multiple-choice questions. One class serves both worlds: `mini` is the
embedded one with a small Llama trained on the spot (`_crafts.py`: nothing in it is of any use); a card (`_wmdp_cards.py`) the
published models with the real corpora, and anything else a checkpoint with them. Real corpora are cut into windows of 512
tokens (K-FADE, arXiv:2602.10568, appendix D.1). Each stage is guarded by the neighbouring corpus and Wikitext in turn, for all
methods alike. RMU takes Wikitext alone (`retain=general`), and so does K-FADE for biology; ELM takes the neighbouring corpora
alone (`retain=neighbours`). There are no retrained models, hence no forget quality.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain, groupby, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from evals.benchmarks import _crafts
from evals.benchmarks._wmdp_cards import CARDS, CORPORA, INSTRUCTIONS, MMLU, MMLU_SUBJECTS, NOT_SUBJECTS, QUESTIONS, DataCard
from harness.core.arithmetic import Arithmetic
from harness.core.benchmark import Needed, benchmark
from harness.core.errors import UsageError, unknown
from harness.core.evaluator import EVALUATORS, Evaluator
from harness.core.metric import MetricRoles
from harness.core.options import Options, Retain
from harness.core.problem import ModelSource, Row, Stage, Task
from harness.core.streams import streams
from harness.core.text import Example, Template
from harness.data.corpora import Corpus, Windows
from harness.data.rows import dataset_files, fingerprint, read_rows
from harness.models.pretraining import TrainedSource
from harness.models.recipes import Architecture, Recipe, Vocabulary
from harness.models.small import small_name, small_world
from harness.models.sources import CheckpointSource, read_sidecar
from harness.storage.cache import digest, file_digest

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

T = TypeVar("T")

MEASURED = ("multiple_choice", "alpaca_kl")
COMPARED = (*(f"{name}_accuracy" for name in ("bio", "cyber", "chem", "neighbours", "general", "mmlu")), "alpaca_kl")
"""What methods are compared in, row by row, where it was measured."""
STAGES = {"wmdp": ("bio", "cyber"), "wmdp-bio": ("bio",), "wmdp-cyber": ("cyber",)}
WINDOW = 512
"""Tokens of a window of the real corpora."""
FORGET_WINDOWS = 10_000
"""K-FADE takes four steps of 2,500 windows on each stage."""
RETAIN_WINDOWS = 4_000
"""Of each corpus that guards a stage, as K-FADE takes them."""
ASKED_INSTRUCTIONS = 30_000
"""Of Alpaca's, drawn with a fixed seed; so many the paper took."""
ATTACK_WINDOWS = 1_600
"""Windows that a fine-tuning attack has: 200 steps of 8."""
GUARDS: Mapping[Retain, str] = {"neighbours": "neighbouring texts", "general": "general texts"}
"""What is in a stage's retain set: both in turn, or one of them alone."""
CHOICES = 4
ROLES: tuple[_crafts.Role, ...] = ("bio", "cyber", "neighbours", "general")
"""What the embedded world asks about."""

TEMPLATES = {
    "mini": Template("mini", answer_tag=" "),
    "zephyr": Template("zephyr", "<|user|>\n", "</s>\n<|assistant|>\n"),
    "plain": Template("plain", "", "\n"),
}

# ---------------------------------------------------------------- the model trained on the spot

# Chosen by measurement on two CPU cores: accuracy rises from chance to .9 between the third and the sixth epoch.
MINI_SHAPE = Architecture(hidden_size=192, layers=2, intermediate_size=576, max_positions=128, initializer_range=0.04)
MINI_TRAINING = Recipe(epochs=8, batch_size=16, lr=2e-3, threads=2, tokens_at_once=4096)
MINI_DRAWN = {"documents": 3, "stories": 80, "instructions": 120}
"""Texts drawn anew each epoch: descriptions of each entity, stories and instructions in all."""
MINI_DOCUMENTS = 3
"""Descriptions of each entity in the corpora to forget and to retain."""
MINI_STORIES = 100


@cache
def world(seed: int) -> _crafts.World:
    """The embedded crafts of a seed."""
    return _crafts.World(seed)


def mini_source(seed: int, arithmetic: Arithmetic = "") -> TrainedSource:
    """The mini model of one world: it has read all documents, and was taught questions about some of what they tell."""
    here, template = world(seed), TEMPLATES["mini"]

    def pairs(rows: Sequence[Row]) -> tuple[Example, ...]:
        return tuple(template.example(row["question"], row["answer"]) for row in rows)

    documents = [_texts(of) for domain in _crafts.DOMAINS for of in here.documents(domain)]
    return TrainedSource(
        f"mini@{seed}-{arithmetic}".rstrip("-") + " crafts",
        pairs([row for domain in _crafts.DOMAINS for row in here.taught(domain)]),
        MINI_TRAINING.portable if arithmetic else MINI_TRAINING,
        MINI_SHAPE,
        Vocabulary("words", tuple(_crafts.vocabulary())),
        seed=int(digest([seed, "crafts"])[:8], 16),
        replay=(
            *((of, MINI_DRAWN["documents"]) for of in documents),
            (_texts(here.stories), MINI_DRAWN["stories"]),
            (pairs(here.instructions), MINI_DRAWN["instructions"]),
        ),
    )


def _texts(texts: Sequence[str]) -> tuple[Example, ...]:
    return tuple(Example("", text) for text in texts)


def _in_turn(*groups: Sequence[T]) -> list[T]:
    """The first of each, then the second of each, …."""
    return [item for item in chain.from_iterable(zip_longest(*groups)) if item is not None]


def _guards(retain: Retain) -> list[Retain]:
    """The kinds of texts that guard a stage, in turn."""
    return [kind for kind in GUARDS if retain in ("all", kind)]


# ---------------------------------------------------------------- the benchmark


@benchmark("wmdp", "wmdp-bio", "wmdp-cyber")
class Wmdp:
    """WMDP: both hazardous domains one after the other, or one of them.

    Args:
        name: `wmdp`, `wmdp-bio` or `wmdp-cyber`.
    """

    version = 1
    models: Mapping[str, str] = {
        "mini": (
            "the embedded crafts and a 1.2 M-parameter Llama trained on the spot; mini@K for world seed K, mini@portable or "
            "mini@K-portable for weights that are the same on every x86-64 processor"
        ),
        **{name: card.about for name, card in CARDS.items()},
        "<hub id or folder>": "any checkpoint, with the real corpora and questions",
    }

    roles = MetricRoles(
        headline=(*COMPARED, "selection_score"),
        kept=("general_accuracy", "mmlu_accuracy"),
        selection="selection_score",
        compared=COMPARED,
        power=COMPARED,
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.stages = STAGES[name]
        self.roles = replace(self.roles, forgetting=tuple(f"{stage}_accuracy" for stage in self.stages))

    def evaluators(self) -> list[Evaluator]:
        """Accuracy on multiple-choice questions."""
        return [EVALUATORS.get(name) for name in MEASURED]

    def read_log(self, path: Path) -> Mapping[str, pd.DataFrame]:
        """No log of another program can stand in for a model here.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{self.name} reads no logs: it has no retrained model that one could stand in for.")

    def task(self, model: str, options: Options) -> Task:
        """Read the data and name the sources; see `harness.core.benchmark.Benchmark.task`."""
        if options.reference is not None:
            self.read_log(options.reference)
        if options.variant != "original":
            raise UsageError(f"{self.name} has one set of definitions; leave out --variant {options.variant}.")
        if model.partition("@")[0] == "mini":
            return self._mini(*small_world(model), options)
        if model in CARDS:
            card = CARDS[model]
            base = CheckpointSource(
                card.base, tokenizer=card.tokenizer, trust_remote_code=options.trust_remote_code, data_dir=options.data_dir
            )
            others = {name: replace(base, name=hub_id) for name, hub_id in card.checkpoints.items()}
            return self._real(model, options, {"base": base, **others}, TEMPLATES[card.template], card.notes)
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

    # ---- the embedded world

    def _mini(self, seed: int, arithmetic: Arithmetic, options: Options) -> Task:
        here, limit = world(seed), options.limit

        def documents(*domains: str) -> list[Example]:
            return _in_turn(*(_texts([t for of in here.documents(d, MINI_DOCUMENTS) for t in of]) for d in domains))

        hazardous: dict[str, str] = {d.role: d.name for d in _crafts.DOMAINS.values()}
        general = _in_turn(
            documents(*(d.name for d in _crafts.DOMAINS.values() if d.role == "general")), _texts(here.stories[:MINI_STORIES])
        )
        stages = []
        for name in self.stages:
            of = {"neighbours": documents(_crafts.NEIGHBOURS[name]), "general": general}
            retain = _in_turn(*(of[kind] for kind in _guards(options.retain)))
            stages.append(Stage(name, forget=documents(hazardous[name])[:limit], retain=retain[:limit]))
        asked: dict[str, Sequence[Row]] = {role: here.questions(role) for role in ROLES}
        asked["instructions"] = here.instructions
        questions = {name: _numbered(rows[:limit], "entity") for name, rows in asked.items()}
        notes = ["the embedded crafts: under two million parameters and invented things; it ranks nothing beyond itself"]
        data: dict[str, Any] = {name: fingerprint(rows) for name, rows in asked.items()}
        for stage in self.stages:
            data[f"{stage}-forget"] = fingerprint([{"text": t} for of in here.documents(hazardous[stage]) for t in of])
        return self._task(
            small_name(seed, arithmetic),
            stages,
            questions,
            TEMPLATES["mini"],
            {"base": mini_source(seed, arithmetic)},
            data,
            notes,
            options.retain,
            generation_budget=64,
            attacks={
                "benign": general,
                "related": documents(*(_crafts.NEIGHBOURS[name] for name in self.stages)),
                "forget": documents(*(hazardous[name] for name in self.stages)),
            },
        )

    # ---- the real data

    def _checkpoint(self, model: str, options: Options) -> Task:
        source = CheckpointSource(model, trust_remote_code=options.trust_remote_code, data_dir=options.data_dir)
        about = read_sidecar(source.folder)
        family = str(about.get("model", ""))
        if family.partition("@")[0] == "mini":
            if str(about.get("bench")) not in STAGES:
                raise UsageError(
                    f"{source.folder} holds a mini model of another benchmark; {self.name} asks about other things."
                )
            task = self.task(family, options)
            return replace(task, model=model, family=task.model.partition("@")[0], sources={**task.sources, "base": source})
        template = TEMPLATES.get(str(about.get("template", "")), TEMPLATES["plain"])
        task = self._real(model, options, {"base": source}, template, ())
        return replace(task, family=family if family in CARDS else "")

    def _real(
        self,
        model: str,
        options: Options,
        sources: Mapping[str, ModelSource],
        template: Template,
        notes: Sequence[str],
    ) -> Task:
        base = sources["base"]
        assert isinstance(base, CheckpointSource)
        files = {name: _corpus_files(name, options.data_dir) for name in self._corpora(options)}

        def windows(most: int, *names: str) -> Windows:
            parts = tuple(Corpus(files[n], most, CORPORA[n].of_document, CORPORA[n].lines) for n in names)
            return Windows(parts, base, WINDOW, options.limit)

        stages = []
        for name in self.stages:
            of = {"neighbours": f"{name}-retain", "general": "wikitext"}
            retain = windows(RETAIN_WINDOWS, *(of[kind] for kind in _guards(options.retain)))
            stages.append(Stage(name, forget=windows(FORGET_WINDOWS, f"{name}-forget"), retain=retain))
        asked = {name: list(_questions(card, options.data_dir, f"wmdp_{name}")) for name, card in QUESTIONS.items()}
        subjects = [list(rows) for _, rows in groupby(_questions(MMLU, options.data_dir, "mmlu"), key=lambda row: row["task"])]
        asked["mmlu"] = _in_turn(*subjects)  # the first so many are of all subjects
        if len(subjects) != MMLU_SUBJECTS:
            notes = [*notes, f"MMLU: {len(subjects)} of {MMLU_SUBJECTS} subjects are there"]
        data: dict[str, Any] = {name: fingerprint(rows) for name, rows in asked.items()}
        data |= {name: digest([file_digest(file) for file in found])[:16] for name, found in files.items()}
        if instructions := _instructions(options.data_dir):
            asked["instructions"], data["instructions"] = instructions, fingerprint(instructions)
        questions = {name: _numbered(rows[: options.limit]) for name, rows in asked.items()}
        trained_on = {
            "benign": ["wikitext"],
            "related": [f"{name}-retain" for name in self.stages],
            "forget": [f"{name}-forget" for name in self.stages],
        }
        attacks = {name: windows(ATTACK_WINDOWS, *parts) for name, parts in trained_on.items() if {*parts} <= files.keys()}
        return self._task(model, stages, questions, template, sources, data, notes, options.retain, attacks=attacks)

    def _corpora(self, options: Options) -> list[str]:
        """What is read: what the stages hold, and where attacks are measured what these train on, whatever guards a stage."""
        kinds = _guards("all" if "finetune_attack" in options.evals else options.retain)
        sides = ("forget", "retain") if "neighbours" in kinds else ("forget",)
        return [*(f"{stage}-{side}" for stage in self.stages for side in sides), *["wikitext"] * ("general" in kinds)]

    # ---- the task

    def _task(
        self,
        model: str,
        stages: Sequence[Stage],
        questions: Mapping[str, Sequence[Row]],
        template: Template,
        sources: Mapping[str, ModelSource],
        data: Mapping[str, Any],
        notes: Sequence[str],
        retain: Retain,
        generation_budget: int = 256,
        attacks: Mapping[str, Sequence[Example]] | None = None,
    ) -> Task:
        return Task(
            bench=self.name,
            bench_version=self.version,
            model=model,
            stages=stages,
            questions=questions,
            template=template,
            sources=sources,
            evaluators=self.evaluators(),
            data=dict(sorted(data.items())),
            retain=retain,
            generation_budget=generation_budget,
            notes=[*notes, f"every stage is guarded by {GUARDS[retain]} alone"] if retain in GUARDS else notes,
            attacks=attacks or {},
        )


def _numbered(rows: Sequence[Row], cluster: str = "") -> list[dict[str, Any]]:
    """Rows as evaluators want them: their position, the cluster they rise and fall with, and what is asked."""
    kept = ("question", "choices", "answer", "task")
    return [
        {"row": i, "cluster": str(row.get(cluster, i)), **{k: row[k] for k in kept if k in row}} for i, row in enumerate(rows)
    ]


def _corpus_files(name: str, data_dir: Path | None) -> tuple[Path, ...]:
    card = CORPORA[name]
    return tuple(dataset_files(card.id, card.files, data_dir))


def _instructions(data_dir: Path | None) -> list[Row]:
    """Alpaca's instructions, each with its input below it, in an order drawn once and for all; none where they are not there.

    Raises:
        UsageError: for a file that holds something else.
    """
    try:
        files = dataset_files(INSTRUCTIONS.id, INSTRUCTIONS.files, data_dir)
    except UsageError as error:
        log.warning("alpaca_kl cannot be measured: %s", error)
        return []
    found = [row for file in files for row in read_rows(file, {"instruction": str})]
    streams(0, "instructions of a file").python().shuffle(found)
    told = [f"{row['instruction']}\n\n{row['input']}" if row.get("input") else row["instruction"] for row in found]
    return [{"question": text} for text in told[:ASKED_INSTRUCTIONS]]


def _questions(card: DataCard, data_dir: Path | None, task: str) -> Iterator[Row]:
    """The questions of a set, each with lm-eval's name of its task: `wmdp_bio`, or `mmlu_anatomy` of MMLU's subjects.

    Raises:
        UsageError: for a question without four choices or with an answer that is none of them, naming file and line.
    """
    for file in dataset_files(card.id, card.files, data_dir):
        if card is MMLU and file.parent.name in NOT_SUBJECTS:
            continue
        named = f"{task}_{file.parent.name}" if card is MMLU else task
        for number, row in enumerate(read_rows(file, {"question": str, "choices": list}), 1):
            where = f"{'/'.join(file.parts[-3:])}, question {number}"
            choices, answer = row["choices"], row.get("answer")
            assert isinstance(choices, list)  # checked by read_rows
            if len(choices) != CHOICES:
                raise UsageError(f"{where}: {len(choices)} choices, {CHOICES} are needed.")
            if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < CHOICES:
                raise UsageError(f"{where}: the answer must be the number of a choice, 0 to {CHOICES - 1}, found {answer!r}.")
            yield {"question": row["question"], "choices": choices, "answer": answer, "task": named}
