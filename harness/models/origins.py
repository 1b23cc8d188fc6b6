"""Where a model comes from: whose configuration it has, and what a reader must know of how it was made here."""

from __future__ import annotations

from collections.abc import Mapping

from harness.core.arithmetic import in_words, kind_of_machine
from harness.core.caching import CacheView
from harness.core.problem import ModelSource
from harness.models.gguf import GgufSource
from harness.models.pretraining import TrainedSource
from harness.models.sources import CheckpointSource
from harness.numerics.identity import versions

WELL_KNOWN = 0.9
"""The probability of its answers from which a model counts as knowing what it was fine-tuned on."""


def configured_by(source: ModelSource | None) -> CheckpointSource | GgufSource | None:
    """What has a model's configuration: itself, or what it is fine-tuned from; None where there is none yet."""
    if isinstance(source, TrainedSource):
        source = source.parent
    return source if isinstance(source, CheckpointSource | GgufSource) else None


def made_elsewhere(sources: Mapping[str, ModelSource], cache: CacheView) -> list[str]:
    """Which of the cached models were made by another kind of machine or other libraries, where others would be made here now.

    One sentence for those of which the same is to be said.
    """
    trained = {name: source for name, source in sources.items() if isinstance(source, TrainedSource)}
    if not trained:
        return []
    machine, releases = kind_of_machine(), versions()
    said: dict[tuple[str, str], list[str]] = {}
    for name, source in trained.items():
        entry = cache.find("model", source.identity)
        facts = entry.facts if entry else {}
        made_with, made = facts.get("libraries", {}), facts.get("arithmetic")
        if others := [f"{package} {release}" for package, release in made_with.items() if releases.get(package) != release]:
            how = f"with {', '.join(others)}; trained with what is installed now"
            said.setdefault((how, "may have other weights (harness cache clear model has it made again)"), []).append(name)
        if isinstance(made, dict) and made != machine and source.recipe.arithmetic != "portable":
            how = f"on another kind of processor ({in_words(made)}); trained here ({in_words(machine)})"
            said.setdefault((how, "would have other weights"), []).append(name)
    return [
        f"{', '.join(names)} {'was' if len(names) == 1 else 'were'} trained {how} {'it' if len(names) == 1 else 'they'} {end}."
        for (how, end), names in said.items()
    ]


def badly_learned(sources: Mapping[str, ModelSource], cache: CacheView) -> list[str]:
    """Which of the cached models do not know what they were fine-tuned on: such a model has little to forget.

    One sentence each, with the probability that it gives the answers it was shown.
    """
    trained = {name: source for name, source in sources.items() if isinstance(source, TrainedSource)}
    entries = {name: cache.find("model", source.identity) for name, source in trained.items()}
    known = {name: entry.facts.get("probability", 1.0) for name, entry in entries.items() if entry}
    return [
        f"{name} did not learn well what it was fine-tuned on: it gives those answers a probability of {probability:.2f} only "
        "(by the token, the mean); more epochs, or a higher learning rate, teach it more."
        for name, probability in known.items()
        if probability < WELL_KNOWN
    ]
