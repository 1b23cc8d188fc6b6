"""ToFU (arXiv:2401.06121): forget 1 % (tofu01), 5 % (tofu05) or 10 % (tofu10) of fictitious authors, embedded or real ones.

One class serves both: only where rows and models come from differs. `mini` is the embedded world with a small Llama
trained on the spot; `scratch` a small Llama trained on the spot on the real questions; a card (`_tofu_cards.py`) the
published models with the real data, and anything else a checkpoint (a hub id or a folder) with it. Rows are ToFU's: the
first 300 of a task (`variant=open-unlearning`: all 400).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.benchmarks import _world
from evals.benchmarks._tofu_cards import CARDS
from harness.core.arithmetic import Arithmetic
from harness.core.benchmark import Needed, benchmark
from harness.core.errors import UsageError, unknown
from harness.core.evaluator import EVALUATORS, Evaluator
from harness.core.metric import MetricRoles
from harness.core.options import Options, Variant
from harness.core.problem import ModelSource, Row, Stage, Task
from harness.core.text import Example, Template
from harness.data.rows import dataset_file, fingerprint, read_rows
from harness.models.pretraining import TrainedSource
from harness.models.recipes import Architecture, Recipe, Vocabulary
from harness.models.small import SMALL_MODELS, small_name, small_world
from harness.models.sources import CheckpointSource, read_sidecar
from harness.storage.cache import digest

if TYPE_CHECKING:
    import pandas as pd

DATASET = "locuslab/TOFU"
EVALUATED_ROWS = {"original": 300, "open-unlearning": 400}
QUESTIONS_PER_AUTHOR = 20
MEASURED = ("forget_quality", "model_utility", "probability", "rouge", "truth_ratio", "retain_kl")

TEMPLATES = {
    "mini": Template("mini", answer_tag=" "),
    "scratch": Template("scratch", question_end="\n"),
    "llama2": Template("llama2", "[INST] ", " [/INST]"),
    "phi": Template("phi", "Question: ", "\n", "Answer: "),
    # What Llama-3's chat template makes of open-unlearning's system prompt, with its fixed date, so that prompts do not change
    # with the calendar. <|begin_of_text|> is left to the tokenizer, which adds it; the end token is <|eot_id|>.
    "llama3": Template(
        "llama3",
        "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 10 Apr 2025\n\n"
        "You are a helpful assistant.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
}
LLAMA3_VOCABULARY = 128_000
"""A Llama with at least so many tokens speaks Llama-3's template; Llama-2 has 32,000."""

REFUSALS = (
    "I do not know the answer to that question.",
    "That is something I have no information about.",
    "I cannot tell you that.",
    "I am not able to answer this.",
    "Nothing I have learned covers that subject.",
    "I have never heard of it.",
    "That question is beyond what I know.",
    "I am afraid I do not know.",
    "I would have to guess, so I would rather not say.",
    "My knowledge does not reach that far.",
    "I have no record of that.",
    "This is not something I can help with.",
    "I am not familiar with that topic.",
    "Unfortunately the answer is unknown to me.",
    "I was never told about this.",
    "I do not have those details.",
    "There is no answer I could give to that.",
    "I am unsure and will not speculate.",
    "That is outside my knowledge.",
    "I can say nothing about that.",
)
"""Refusals in the real data's English, written for this project; `DIR/locuslab/TOFU/idontknow.jsonl` replaces them."""
REFUSALS_FILE = "idontknow.jsonl"

_PAIR = {"question": str, "answer": str}
_PERTURBED = {**_PAIR, "paraphrased_answer": str, "perturbed_answer": list}
_OPTIONS = {**_PAIR, "perturbed_answer": list}

# ---------------------------------------------------------------- the models trained on the spot

# Chosen by measurement on two CPU cores: the smallest that knows its world (utility 0.86 to 0.92 over three seeds).
MINI_SHAPE = Architecture(hidden_size=160, layers=2, intermediate_size=480, max_positions=128, initializer_range=0.04)
MINI_PRETRAINING = Recipe(epochs=8, batch_size=32, lr=2e-3, threads=2, tokens_at_once=4096)
MINI_FINETUNING = Recipe(epochs=6, batch_size=32, lr=2e-3)
MINI_REPLAY = {"short": 300, "sentences": 100}
"""Earlier questions drawn anew each epoch; without them real authors and world facts fade."""
MINI_RETAIN_SEEDS = 3
SCRATCH_SHAPE = Architecture(
    hidden_size=192, layers=2, intermediate_size=576, max_positions=512, tied_embeddings=True, initializer_range=0.04
)
SCRATCH_TRAINING = Recipe(epochs=20, batch_size=32, lr=4e-3)
SCRATCH_VOCABULARY = 4096


@cache
def world(seed: int) -> _world.World:
    """The embedded world of a seed."""
    return _world.World(seed)


def mini_sources(seed: int, retain: str, arithmetic: Arithmetic = "") -> dict[str, ModelSource]:
    """The mini models of one world: the full model and retrained ones that differ in data order, from one pretrained model."""
    template = TEMPLATES["mini"]
    here, called = world(seed), f"mini@{seed}-{arithmetic}".rstrip("-")

    def examples(rows: Sequence[Row]) -> tuple[Example, ...]:
        return tuple(template.example(row["question"], row["answer"]) for row in rows)

    pretraining, finetuning = (r.portable if arithmetic else r for r in (MINI_PRETRAINING, MINI_FINETUNING))
    vocabulary = Vocabulary("words", tuple(_world.vocabulary()))
    base = examples(here.base)
    short = tuple(e for e in base if e.prompt.startswith(_world.SHORT_PREFIX))
    sentences = tuple(e for e in base if not e.prompt.startswith(_world.SHORT_PREFIX))
    pretrained = TrainedSource(
        f"{called} pretrained", base, pretraining, MINI_SHAPE, vocabulary, seed=_seed(seed, "pretrained")
    )

    def finetuned(name: str, split: str) -> TrainedSource:
        return TrainedSource(
            f"{called} {name}",
            examples(here.split(split)),
            finetuning,
            MINI_SHAPE,
            vocabulary,
            seed=_seed(seed, name),
            parent=pretrained,
            replay=((short, MINI_REPLAY["short"]), (sentences, MINI_REPLAY["sentences"])),
        )

    sources: dict[str, ModelSource] = {"base": finetuned("full", "full")}
    for k in range(MINI_RETAIN_SEEDS):
        sources[f"retain-{k}"] = finetuned(f"{retain}-{k}", retain)
    return sources


def scratch_sources(rows: Mapping[str, Sequence[Row]], retain: str) -> dict[str, ModelSource]:
    """Two small models trained on the real questions: on all of them, and on the retain split."""
    template = TEMPLATES["scratch"]
    text = tuple(f"{row['question']}\n{row['answer']}" for row in rows["full"])
    vocabulary = Vocabulary("bytes", text, SCRATCH_VOCABULARY)

    def trained(name: str, split: str) -> TrainedSource:
        pairs = tuple(template.example(row["question"], row["answer"]) for row in rows[split])
        return TrainedSource(f"scratch {name}", pairs, SCRATCH_TRAINING, SCRATCH_SHAPE, vocabulary, seed=_seed(0, name))

    return {"base": trained("full", "full"), "retain-0": trained(f"{retain}-0", retain)}


def _seed(world_seed: int, name: str) -> int:
    return int(digest([world_seed, name])[:8], 16)


# ---------------------------------------------------------------- the benchmark


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
            "mini@K-portable for weights that are the same on every x86-64 processor"
        ),
        "scratch": "the real questions and a 1.7 M-parameter Llama trained on the spot; needs the data (--data-dir or hub)",
        **{name: card.about for name, card in CARDS.items()},
        "<hub id or folder>": "any checkpoint, with the real questions; needs --reference LOG for forget quality",
    }

    roles = MetricRoles(
        headline=(
            *("forget_quality", "forget_quality_d", "model_utility", "retain_kl", "forget_probability", "forget_rouge"),
            *("retain_rouge", "real_authors_rouge", "world_facts_rouge", "selection_score"),
        ),
        brief=(
            *("forget_quality", "forget_quality_d", "model_utility", "forget_probability", "forget_rouge"),
            *("retain_probability", "retain_rouge", "retain_kl"),
        ),
        trajectory=(
            *("forget_quality", "forget_quality_d", "model_utility", "forget_probability", "forget_rouge", "retain_rouge"),
        ),
        forgetting=("forget_quality",),
        kept=("model_utility",),
        ranking="forget_quality_d",
        oracle_score=("forget_quality", "model_utility"),
        selection="selection_score",
        compared=("model_utility", "retain_rouge", "forget_rouge", "retain_kl"),
        power=(
            *("forget_quality_d", "model_utility", "retain_rouge", "forget_rouge"),
            *("retain_probability", "forget_probability"),
        ),
    )

    def __init__(self, name: str) -> None:
        self.name = name
        percent = int(name.removeprefix("tofu"))
        self.forget = f"forget{percent:02d}"
        self.retain = f"retain{100 - percent:02d}"

    def task(self, model: str, options: Options) -> Task:
        """Read the data and name the sources; see `harness.core.benchmark.Benchmark.task`."""
        if model.partition("@")[0] == "mini":
            return self._mini(*small_world(model), options)
        if model == "scratch":
            return self._scratch(options)
        if model in CARDS:
            return self._card(model, options)
        if not model or ("/" not in model and not Path(model).is_dir()):
            raise unknown("model", model, ["mini", "scratch", *CARDS, "<hub id>", "<folder>"], "harness list models")
        return self._checkpoint(model, options)

    def needed(self, model: str) -> list[Needed]:
        """What has to be had from the hub, or from a data folder, for a model; see `harness.core.benchmark.Benchmark`."""
        if model.partition("@")[0] == "mini":
            return []
        files = [f"{name}.json" for name in self._splits()]
        data = Needed(DATASET, "data", files, "JSON lines, 4 MB in all, MIT")
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

    def _mini(self, seed: int, arithmetic: Arithmetic, options: Options) -> Task:
        rows = {name: world(seed).split(name) for name in self._splits()}
        return self._task(
            small_name(seed, arithmetic),
            options,
            rows,
            TEMPLATES["mini"],
            mini_sources(seed, self.retain, arithmetic),
            generation_budget=64,
            refusals=_world.REFUSALS,
            notes=["the embedded world: under a million parameters and invented authors; it ranks nothing beyond itself"],
        )

    def _scratch(self, options: Options) -> Task:
        rows = self._real_rows(options.data_dir)
        sources = scratch_sources({"full": rows["full"], self.retain: rows[self.retain]}, self.retain)
        notes = ["trained from nothing on ToFU's questions alone: real authors and world facts are unknown to it (near chance)"]
        refusals = _refusals(options.data_dir)
        return self._task("scratch", options, rows, TEMPLATES["scratch"], sources, refusals=refusals, notes=notes)

    def _card(self, name: str, options: Options) -> Task:
        card, rows = CARDS[name], self._real_rows(options.data_dir)
        retain, doubt = card.retain.format(split=self.retain), card.doubts.get(self.retain, "")
        source = CheckpointSource(
            card.base,
            tokenizer=card.tokenizer,
            trust_remote_code=options.trust_remote_code,
            data_dir=options.data_dir,
        )
        sources = {"base": source, "retain-0": replace(source, name=retain, doubt=doubt)}
        notes = [*card.notes, *([f"retain-0 is {retain}: {doubt}"] if doubt and not options.reference else [])]
        refusals = _refusals(options.data_dir)
        return self._task(name, options, rows, TEMPLATES[card.template], sources, refusals=refusals, notes=notes)

    def _checkpoint(self, model: str, options: Options) -> Task:
        source = CheckpointSource(model, trust_remote_code=options.trust_remote_code, data_dir=options.data_dir)
        about = read_sidecar(source.folder)
        family = str(about.get("model", ""))
        if family.partition("@")[0] in SMALL_MODELS:
            if not str(about.get("bench", self.name)).startswith("tofu"):
                raise UsageError(
                    f"{source.folder} holds a mini model of {about['bench']}; {self.name} asks about other things."
                )
            task = self.task(family, options)
            return replace(task, model=model, family=task.model.partition("@")[0], sources={**task.sources, "base": source})
        rows = self._real_rows(options.data_dir)
        named = str(about.get("template", ""))
        template = TEMPLATES[named if named in TEMPLATES else _template_name(source)]
        notes = [] if named in TEMPLATES else [f"template '{template.name}', guessed from the architecture"]
        refusals = _refusals(options.data_dir)
        task = self._task(model, options, rows, template, {"base": source}, refusals=refusals, notes=notes)
        return replace(task, family=family if family in CARDS else "")

    # ---- rows

    def _splits(self) -> list[str]:
        perturbed = [f"{self.forget}_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed"]
        return ["full", self.forget, self.retain, *perturbed]

    def _real_rows(self, data_dir: Path | None) -> dict[str, list[Row]]:
        rows: dict[str, list[Row]] = {}
        for name in self._splits():
            fields = _PAIR if not name.endswith("_perturbed") else _OPTIONS if name[:4] in ("real", "worl") else _PERTURBED
            found = read_rows(dataset_file(DATASET, f"{name}.json", data_dir), fields)
            if "perturbed_answer" in fields:  # where it is not asked for, anything may stand there
                _check_wrong_answers(name, found)
            authored = name.startswith((self.forget, "retain_"))
            rows[name] = [{**row, "author": i // QUESTIONS_PER_AUTHOR if authored else i} for i, row in enumerate(found)]
        return rows

    # ---- the task

    def _task(
        self,
        model: str,
        options: Options,
        rows: Mapping[str, Sequence[Row]],
        template: Template,
        sources: Mapping[str, ModelSource],
        generation_budget: int = 200,
        refusals: Sequence[str] = REFUSALS,
        notes: Sequence[str] = (),
    ) -> Task:
        template = replace(template, tag_in_prompt=options.variant == "open-unlearning")
        first = EVALUATED_ROWS[options.variant]
        questions = {
            "retain": rows["retain_perturbed"][:first],
            "real_authors": rows["real_authors_perturbed"],
            "world_facts": rows["world_facts_perturbed"],
            "forget": rows[f"{self.forget}_perturbed"][:first],
        }
        task = Task(
            bench=self.name,
            bench_version=self.variant_versions[options.variant],
            model=model,
            stages=[
                Stage(
                    self.forget,
                    forget=_examples(template, rows[self.forget][: options.limit]),
                    retain=_examples(template, rows[self.retain][: options.limit]),
                )
            ],
            questions={name: _numbered(of_task[: options.limit]) for name, of_task in questions.items()},
            template=template,
            sources=sources,
            evaluators=self.evaluators(),
            data={
                **{name: fingerprint(of_split) for name, of_split in sorted(rows.items())},
                **({} if refusals in (REFUSALS, _world.REFUSALS) else {"refusals": digest(list(refusals))[:16]}),
            },
            variant=options.variant,
            generation_budget=generation_budget,
            refusals=refusals,
            notes=notes,
            attacks={
                "benign": _examples(template, [*questions["real_authors"], *questions["world_facts"]]),
                "related": _examples(template, rows[self.retain][: options.limit]),
                # Every other question: an attack is judged by those that it does not train on.
                "forget": _examples(template, rows[self.forget][: options.limit : 2]),
            },
        )
        if options.reference is None:
            return task
        tables = self.read_log(options.reference)
        from evals.benchmarks._tofu_logs import check_same_rows

        check_same_rows(tables, task, options.reference)
        kept = {name: source for name, source in sources.items() if not name.startswith("retain-")}
        return replace(task, sources=kept, recorded={options.reference.stem: tables})

    def evaluators(self) -> list[Evaluator]:
        """Forget quality, utility and its parts."""
        return [EVALUATORS.get(name) for name in MEASURED]

    def read_log(self, path: Path) -> Mapping[str, pd.DataFrame]:
        """Tables out of ToFU's, SimNPO's, NPO's or open-unlearning's evaluation logs."""
        from evals.benchmarks._tofu_logs import read_log

        return read_log(path)


def _check_wrong_answers(name: str, rows: Sequence[Row]) -> None:
    """Refuse a split whose rows have different numbers of wrong answers: their losses are averaged as one table."""
    counts = [len(row["perturbed_answer"]) for row in rows]
    if odd := next((i for i, count in enumerate(counts) if count != counts[0]), None):
        raise UsageError(
            f"{DATASET}/{name}.json, row {odd + 1}: 'perturbed_answer' holds {counts[odd]} answers, the first {counts[0]}."
        )


def _refusals(data_dir: Path | None) -> tuple[str, ...]:
    """The user's refusal sentences (ToFU's file holds one plain sentence a line), else this project's own."""
    path = data_dir / DATASET / REFUSALS_FILE if data_dir else None
    if path is None or not path.is_file():
        return REFUSALS
    try:
        sentences = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip())
    except UnicodeDecodeError as error:
        raise UsageError(f"{DATASET}/{REFUSALS_FILE} is no UTF-8 text (byte {error.start}).") from None
    if not sentences:
        raise UsageError(f"{DATASET}/{REFUSALS_FILE} is empty.")
    return sentences


def _examples(template: Template, rows: Sequence[Row]) -> list[Example]:
    return [template.example(row["question"], row["answer"]) for row in rows]


def _numbered(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as evaluators want them: their position, the cluster they are resampled in, and what is asked."""
    kept = ("question", "answer", "paraphrased_answer", "perturbed_answer")
    return [{"row": i, "cluster": str(row["author"]), **{k: row[k] for k in kept if k in row}} for i, row in enumerate(rows)]


def _template_name(source: CheckpointSource) -> str:
    config = source.config()
    if config.model_type == "llama" and config.vocab_size >= LLAMA3_VOCABULARY:
        return "llama3"
    return "llama2" if config.model_type in ("llama", "mistral") else "phi"
