"""Real models that are fine-tuned on the spot on ToFU's questions: on all of them, and without those to forget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from evals.benchmarks.tofu.rows import examples
from evals.benchmarks.tofu.templates import TEMPLATES, template_of
from harness.core.benchmark import Needed
from harness.core.config import resolve
from harness.core.options import Options
from harness.core.problem import ModelSource, Row
from harness.core.text import Template
from harness.data.general import Instructions
from harness.models.bases import BASES, base_source, packaged
from harness.models.finetuning import FinetunedModel, Finetuning, defaults, finetuned_sources, parameters_of
from harness.models.gguf import GgufSource
from harness.models.templates import Chosen, chosen


class RealModels(NamedTuple):
    """What a problem is told of them."""

    name: str
    """As it is recorded."""
    template: Template
    """How they are asked."""
    sources: Mapping[str, ModelSource]
    """The models."""
    notes: Sequence[str]
    """What a reader must know of them."""


def real_sources(
    named: FinetunedModel, rows: Mapping[str, Sequence[Row]], splits: tuple[str, str], options: Options
) -> RealModels:
    """The models of a benchmark that forgets one split and keeps another.

    Under a limit they learn the limited rows alone, so that a first try takes minutes on a CPU.

    Args:
        named: what they are fine-tuned from, and how.
        rows: of every split.
        splits: the one to forget and the one to keep.
        options: device, limit, data folder.

    Raises:
        UsageError: for a base whose weights or configuration cannot be had, or settings that are none.
    """
    forget, retain = splits
    base = base_source(named.base, options.data_dir, options.trust_remote_code)
    usual = defaults(parameters_of(base, named.base), limited=options.limit is not None)
    config = resolve(Finetuning, usual, named.given, owner="finetuned")
    name = named.name(config, usual)
    notes = [f"fine-tuned here on ToFU: {config.epochs} epochs, learning rate {config.lr:g}, batches of {config.batch_size}"]
    if config.replay:
        notes.append(f"{config.replay} instructions were trained on besides in every epoch")
    if isinstance(base, GgufSource):
        notes.append(f"its weights were read from a quantised file ({base.file.name}), before they were trained in full")
    if isinstance(base, GgufSource) or named.base in BASES:
        of_card = Chosen(TEMPLATES[BASES[named.base].template])
        template, of_template = chosen(options.template, of_card, TEMPLATES, base.tokens, learned=False)
    else:
        template, of_template = template_of(base, options.template)
    notes += of_template
    if options.limit:
        notes.append(f"fine-tuned on {options.limit} rows of each split alone: a try of the machinery, no result")
    full = [*rows[forget][: options.limit], *rows[retain][: options.limit]] if options.limit else rows["full"]
    texts = {"full": examples(template, full), retain: examples(template, rows[retain][: options.limit])}
    replay = Instructions(options.data_dir, template) if config.replay else ()
    return RealModels(name, template, finetuned_sources(base, name, config, texts, replay, options.device), notes)


def base_needed(named: FinetunedModel) -> list[Needed]:
    """What of the hub a model to fine-tune from is; nothing where a folder or an installed package holds it."""
    if named.is_folder:
        return []
    card = BASES.get(named.base)
    if card is None:
        return [Needed(named.base, "model")]
    if packaged(card):
        return []
    other = f"; or the package {card.package.partition('=')[0]}" if card.package else ""
    return [Needed(card.id, "model", (), f"safetensors or one GGUF file, {card.licence}{other}", any_of=("*.gguf",))]
