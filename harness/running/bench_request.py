"""What is asked of a benchmark alone: what it can show, and the metrics of an evaluation log."""

from __future__ import annotations

from dataclasses import dataclass

from harness.running.request import BenchName, DataFolder, ModelName, ReferenceLog, RowLimit, WhoseMetrics


@dataclass(frozen=True, kw_only=True)
class PowerRequest:
    """What a benchmark can show."""

    bench: BenchName = ""
    """The benchmark; see harness list benches."""
    model: ModelName = "mini"
    """A card, mini, mini@SEED, scratch, a hub id or a folder."""
    limit: RowLimit = None
    """At most this many rows per split."""
    variant: WhoseMetrics = "original"
    """Whose metric definitions: original or open-unlearning."""
    data_dir: DataFolder = None
    """A folder laid out by hub id, used before the hub."""


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """The metrics of an evaluation log."""

    bench: BenchName = "tofu10"
    """The benchmark whose log it is."""
    variant: WhoseMetrics = "original"
    """Whose metric definitions: original or open-unlearning."""
    reference: ReferenceLog = None
    """A retrained model's evaluation log to compare with."""
