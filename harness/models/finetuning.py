"""A benchmark's models, fine-tuned on the spot from any causal model: `finetuned:NAME`, by a recipe that the name may change.

--model smollm2-135m                          # short for finetuned:smollm2-135m
--model finetuned:Qwen/Qwen3-0.6B             # a hub id; or a folder, finetuned:./my-model
--model smollm2-135m@epochs=4,replay=200      # settings behind an @, as `Finetuning` has them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveFloat

from harness.core.config import JSON, departures, parse, settings, to_json, written
from harness.core.errors import UsageError, unknown
from harness.core.problem import ModelSource
from harness.core.text import Example
from harness.models.bases import BASES
from harness.models.gguf import GgufSource
from harness.models.pretraining import TrainedSource
from harness.models.recipes import Recipe
from harness.models.sources import CheckpointSource

PREFIX = "finetuned:"
SMALL = 400_000_000
"""Parameters from which a model is taught slowly, as ToFU's authors taught theirs (5 epochs, 2e-5 for phi-1.5 and 1e-5 for 7 B,
arXiv:2401.06121). Below, 8 epochs at 3e-4: SmolLM2-135M came to a P forget of .99 (`results/smollm2-135m`). Where one ends and
the other begins nobody measured."""


@settings
class Finetuning:
    """How a model learns a benchmark's text: AdamW, 20 steps of warm-up (a tenth at most), a cosine to 5 %, no weight decay."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 8
    """Passes over the benchmark's text; 5 from 400 M parameters on, 4 where --limit is given."""
    lr: PositiveFloat = 3e-4
    """Peak learning rate; 2e-5 from 400 M parameters on, 1e-5 from 2,000 M."""
    batch_size: Annotated[int, Field(ge=1, le=100_000)] = 32
    """Examples in a step; 8 where --limit is given."""
    replay: NonNegativeInt = 0
    """Instructions that are trained on besides, drawn anew each epoch, so that less of what else the model knows fades."""
    retained: Annotated[int, Field(ge=0, le=100)] = 2
    """Models retrained without the forget set, with seeds 0, 1 and so on: two give a noise floor; 1 where --limit is given."""


def defaults(parameters: int, limited: bool) -> dict[str, JSON]:
    """What differs from the defaults of `Finetuning`.

    Args:
        parameters: how many weights the model has.
        limited: whether a few rows of every split are taken, to try the machinery: then one retained model does, and four
            epochs of small batches. On 80 rows SmolLM2-135M came to a P of .96 in those 40 steps; to .35 in six of 32 rows.
    """
    of_size = {} if parameters < SMALL else {"epochs": 5, "lr": 2e-5 if parameters < 2_000_000_000 else 1e-5}
    return {**of_size, **({"epochs": 4, "batch_size": 8, "retained": 1} if limited else {})}


@dataclass(frozen=True)
class FinetunedModel:
    """What a model's name says."""

    base: str
    """One of `harness.models.bases.BASES`, a hub id or a folder."""
    given: Mapping[str, JSON]
    """Settings that it gives."""

    def name(self, config: Finetuning, usual: Mapping[str, JSON]) -> str:
        """As it is recorded: no path, and of the settings those that are not the usual ones, in one order.

        Args:
            config: the settings.
            usual: what `defaults` says.
        """
        base = self.base if self.base in BASES else PREFIX + (Path(self.base).resolve().name if self.is_folder else self.base)
        others = departures(Finetuning, usual, to_json(config))
        return "@".join([base, *([",".join(f"{key}={written(others[key])}" for key in sorted(others))] if others else [])])

    @property
    def is_folder(self) -> bool:
        """Whether it names a folder."""
        return self.base not in BASES and Path(self.base).is_dir()


def finetuned_model(model: str) -> FinetunedModel | None:
    """What a name that stands for a model fine-tuned on the spot says; None for any other.

    Raises:
        UsageError: for a base that nobody knows, or settings that are none.
    """
    name, at, words = model.rpartition("@") if "=" in model.rpartition("@")[2] else (model, "", "")
    if not name.startswith(PREFIX) and name not in BASES:
        return None
    base = name.removeprefix(PREFIX)
    base = next((known for known, card in BASES.items() if card.id == base), base)
    if base not in BASES and not (base and Path(base).is_dir()):
        if base.startswith((".", "~")) or Path(base).is_absolute():
            raise UsageError(f"there is no folder {base} to fine-tune from.")
        if "/" not in base:
            raise unknown("model to fine-tune from", base, [*BASES, "<hub id>", "<folder>"], "harness list models")
    return FinetunedModel(base, parse(words.split(",")) if at else {})


def parameters_of(source: CheckpointSource | GgufSource, base: str) -> int:
    """About how many weights a base has: by its card, or by the sizes in its configuration.

    Raises:
        UsageError: for a checkpoint whose configuration cannot be read.
    """
    if isinstance(source, GgufSource) or base in BASES:
        return BASES[base].parameters
    config = source.config()
    width, inner = int(config.hidden_size), getattr(config, "intermediate_size", None) or 4 * int(config.hidden_size)
    inner = max(inner) if isinstance(inner, list | tuple) else inner
    return int(config.num_hidden_layers * width * (4 * width + 3 * inner) + config.vocab_size * width)


def finetuned_sources(
    base: CheckpointSource | GgufSource,
    name: str,
    config: Finetuning,
    splits: Mapping[str, Sequence[Example]],
    replay: Sequence[Example],
    device: str,
) -> dict[str, ModelSource]:
    """The model that knows everything, and those retrained without the forget set, which differ in the order of the data.

    Args:
        base: what they start from.
        name: of the model, for progress bars.
        config: the recipe.
        splits: what the full model learns, then what the retrained ones do, by the split's name.
        replay: general text.
        device: where they are trained.

    Raises:
        UsageError: where more general text is to be replayed than there is.
    """
    if config.replay > len(replay):
        raise UsageError(
            f"replay={config.replay}: there are {len(replay)} instructions to draw from. Put tatsu-lab/alpaca/alpaca_data.json "
            "into the data folder, or leave out replay."
        )
    recipe = Recipe(
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        min_lr_rate=0.05,
        betas=(0.9, 0.999),
        threads=0,
        tokens_at_once=4096,
        warmup=20,
        device=device,
    )
    pools = ((tuple(replay), config.replay),) if config.replay else ()

    def trained(split: str, seed: int, called: str) -> TrainedSource:
        return TrainedSource(f"{name} {called}", tuple(splits[split]), recipe, None, None, seed, base, pools)

    full, retain = splits
    return {
        "base": trained(full, 0, full),
        **{f"retain-{k}": trained(retain, k, f"{retain}-{k}") for k in range(config.retained)},
    }
