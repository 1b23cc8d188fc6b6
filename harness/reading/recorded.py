"""What a figure reads beside the runs' table: rows, answers and questions of single points, by a run's place.

`FigureOptions.results` says where. Figures know neither the store nor its files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.figure import Sheet
from harness.reading.equal_damage import EqualDamage, comparisons
from harness.reading.equal_damage_tables import equal_damage_sheets
from harness.storage.record_files import Question
from harness.storage.records import RunSpec
from harness.storage.store import Store

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Question", "Recorded"]


class Recorded:
    """The records of a results folder, as figures need them; a record is read once."""

    def __init__(self, results: Path) -> None:
        self._store = Store(results)
        self._specs: dict[str, RunSpec] = {}

    def rows(self, folder: str, point: int) -> pd.DataFrame | None:
        """The single rows that a point's metrics were made of; None where none are kept.

        Args:
            folder: the run's place, as the runs' table has it.
            point: its index in the run.
        """
        return self._store.rows(self._spec(folder), point)

    def texts(self, folder: str, point: int) -> Mapping[tuple[str, ...], str]:
        """Question (its turns) → what the model answered at a point, as far as answers are kept."""
        return self._store.texts(folder, point)

    def questions(self, folder: str) -> Sequence[Question]:
        """What the runs of this one's benchmark and data were asked, with the true answers; empty where it is not kept."""
        return self._store.questions(self._spec(folder))

    def at_equal_damage(self, folders: Sequence[str]) -> list[EqualDamage]:
        """The comparisons at equal damage of those runs among some that have budgets.

        Args:
            folders: the runs' places, as the runs' table has them.
        """
        return comparisons(self._store.read(folder) for folder in folders)

    def tables(self, comparison: EqualDamage) -> dict[str, Sheet]:
        """A comparison's tables by name, as the leaderboard has them."""
        return equal_damage_sheets(comparison, self._store)

    def _spec(self, folder: str) -> RunSpec:
        if folder not in self._specs:
            self._specs[folder] = self._store.read(folder).spec
        return self._specs[folder]
