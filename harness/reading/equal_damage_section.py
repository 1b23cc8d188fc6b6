"""The leaderboard's part about runs with budgets: on the page, in Markdown and as CSV; nothing where there are none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.core.figure import Sheet
from harness.reading.budget_table import OWN
from harness.reading.compared import Run
from harness.reading.equal_damage import EqualDamage, comparisons
from harness.reading.equal_damage_tables import REFERENCE, equal_damage_sheets, title_at
from harness.reading.figures import markdown as sheet_as_markdown
from harness.reading.formats import markdown
from harness.storage.store import Store

if TYPE_CHECKING:
    import pandas as pd

HEADING = "At equal damage"
ABOUT = (
    "Every method at the same damage: KL from the model before unlearning, in nats per token, on rows that nothing trains on "
    "and nothing reports. How a method is ranked depends on the rule for the point that speaks: three stand side by side."
)


@dataclass(frozen=True)
class EqualDamageSection:
    """A comparison with its tables."""

    comparison: EqualDamage
    """Of one benchmark."""
    sheets: Mapping[str, Sheet]
    """By name; see `equal_damage_sheets`."""

    @property
    def title(self) -> str:
        """Its heading."""
        return f"{HEADING}: {title_at(self.comparison)}"

    @property
    def metrics(self) -> list[str]:
        """What was measured, for the glossary."""
        return self.comparison.metrics

    @property
    def methods(self) -> set[str]:
        """Whose numbers it has."""
        return {each.method for each in (*self.comparison.contenders, *self.comparison.fixed)}

    @property
    def by_budget(self) -> list[tuple[str, Sheet]]:
        """The table of each budget, between the references and the models at a damage of their own."""
        whole = self.sheets["budgets"]
        parts = []
        for budget in self.comparison.budgets:
            rows = whole.shown[whole.shown["budget"].isin((REFERENCE, f"{budget:g}", OWN))]
            own = rows["budget"] == OWN  # of the same name as a reference
            rows = rows.assign(method=rows["method"].where(~own, rows["method"] + " (own damage)"))
            caption = f"Damage {budget:g} nats per token"
            parts.append((f"{budget:g}", Sheet(whole.numbers, rows.drop(columns="budget"), caption)))
        return parts


def equal_damage_sections(runs: Sequence[Run], store: Store) -> list[EqualDamageSection]:
    """The comparisons that recorded runs make, those in which something was measured at a budget.

    Args:
        runs: all of a store.
        store: where they lie.
    """
    every = comparisons(store.read(run.folder) for run in runs if run.spec.budgets)
    return [EqualDamageSection(each, equal_damage_sheets(each, store)) for each in every if each.contenders]


def for_page(section: EqualDamageSection, number: int) -> dict[str, Any]:
    """What the page's template shows.

    Args:
        section: which.
        number: its place among its like, from 1.
    """
    others = [(name, section.sheets[name]) for name in ("rules", "differences") if name in section.sheets]
    return {
        "id": f"equal-damage-{number}",
        "title": section.title,
        "about": ABOUT,
        "judged_at": f"{section.comparison.judged_at:g}",
        "budgets": [{"budget": budget, **table_cells(sheet)} for budget, sheet in section.by_budget],
        "notes": section.sheets["budgets"].notes,
        "others": [{"name": name, **table_cells(sheet)} for name, sheet in others],
    }


def table_cells(sheet: Sheet) -> dict[str, Any]:
    """A table as the page's template shows it."""
    rows = []
    for cells in sheet.shown.itertuples(index=False, name=None):
        reason = next((i for i, cell in enumerate(cells) if cell.startswith("absent: ")), None)
        whole = reason is not None and not any(cells[reason + 1 :])  # nothing but the reason: it may run over the other columns
        rows.append(
            {"head": cells[0], "cells": cells[1:reason] if whole else cells[1:], "absent": cells[reason] if whole else ""}
        )
    columns = [*map(str, sheet.shown.columns)]
    return {"caption": sheet.caption, "columns": columns, "rows": rows, "notes": sheet.notes}


def as_markdown(sections: Sequence[EqualDamageSection]) -> Iterator[str]:
    """Lines of the Markdown table; none where there are no sections."""
    for section in sections:
        yield from (f"## {markdown(section.title)}", "", markdown(ABOUT), "")
        for _, sheet in section.by_budget:
            yield sheet_as_markdown(sheet)
        yield from (*(f"- {markdown(note)}" for note in section.sheets["budgets"].notes), "")
        if "rules" in section.sheets:
            yield sheet_as_markdown(section.sheets["rules"])
        if "differences" in section.sheets:
            yield from (
                *(f"- {markdown(note)} See equal\\_damage\\_differences.csv." for note in section.sheets["differences"].notes),
                "",
            )


def as_csv(sections: Sequence[EqualDamageSection]) -> dict[str, str]:
    """Files by name, with every number in full; none where there are no sections."""
    if not sections:
        return {}
    import pandas as pd

    files = {"budgets": "equal_damage.csv", "rules": "equal_damage_rules.csv", "differences": "equal_damage_differences.csv"}
    made = {}
    for name, file in files.items():
        parts = [_of(section, section.sheets[name].numbers) for section in sections if name in section.sheets]
        if parts:
            made[file] = str(pd.concat(parts).to_csv(index=False, lineterminator="\n"))
    return made


def _of(section: EqualDamageSection, numbers: pd.DataFrame) -> pd.DataFrame:
    """Numbers with what names their comparison in front."""
    identity = section.comparison.identity
    place = {"bench": identity["benchmark"], "model": identity["model"], "variant": identity["variant"]}
    place |= {"retain": identity["retain set"]}
    return numbers.drop(columns="bench", errors="ignore").assign(**place)[
        [*place, *(name for name in numbers.columns if name not in place)]
    ]
