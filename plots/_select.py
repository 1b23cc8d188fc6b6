"""Named rules: which records may share a figure, which run and which point speak for a method, which seed for several.

A rule's name and sentence are printed wherever it was used. Nothing is averaged: with several seeds the lower median is
shown, so that every printed number stands in a record, with its own interval.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, get_args

from harness.core.documents import parse_json
from harness.core.errors import UsageError
from harness.core.options import Preset
from harness.reading.compared import protocol

if TYPE_CHECKING:
    import pandas as pd

PRESETS: Sequence[str] = get_args(Preset)
"""The presets that methods are compared in."""
OTHERS = ("by hand", "other")
"""Protocols of runs whose settings are no preset's: they are drawn where there is nothing else."""
ORACLE, REFERENCE = "oracle", "reference"
"""What stands in place of a protocol for points picked afterwards by looking at the results, and for references."""
ORDER = (*PRESETS, *OTHERS, ORACLE, REFERENCE)
REFERENCES = {"untouched": "before unlearning", "retrained": "never saw what is forgotten"}
"""The models that others are compared with, which are methods too where someone ran them as such."""
CHANCE = 0.25
"""Accuracy on questions with four choices by chance: below it nothing more is forgotten, so that there all are equally good."""
NAMES_A_RUN = ["folder", "run", "method", "seed", "preset", "config", "status"]


@dataclass(frozen=True)
class Rule:
    """Which of the measured points speak for a method."""

    name: str
    """As printed."""
    about: str
    """What it takes, in a sentence."""
    pick: Callable[[pd.DataFrame], pd.DataFrame]
    """Points (see `Group.points`) → the chosen ones, one for each (method, protocol, seed)."""


def _last(points: pd.DataFrame) -> pd.DataFrame:
    return points.sort_values(["folder", "index"]).groupby("folder", sort=True).tail(1).reset_index(drop=True)


def _oracle(points: pd.DataFrame) -> pd.DataFrame:
    product = points["forget_quality"] * points["model_utility"]
    known = points.assign(product=product)[product.notna()]
    known = known.sort_values(["product", "folder", "index"], ascending=[False, True, True], kind="stable")
    best = known.groupby(["method", "seed"], sort=True).head(1).drop(columns="product")
    return best.assign(preset=ORACLE).sort_values(["method", "seed"], ignore_index=True)


LAST = Rule("last point", "a run speaks with its last measured point", _last)
BEST = Rule(
    ORACLE,
    "of all points of all runs of a method and seed, whatever their settings, the one with the largest forget quality × "
    "utility, found by looking at the rows that are reported: it flatters, and no user could pick it",
    _oracle,
)
MEDIAN = "median over seeds (the lower one where their number is even, each number on its own)"
"""The rule for several seeds; see `lower_median`."""


def lower_median(values: pd.DataFrame, metric: str) -> pd.Series | None:
    """The row whose value of a metric is the median of the rows that have one, the lower if their number is even."""
    known = values[values[metric].notna()].sort_values([metric, "folder", "index"], kind="stable")
    return None if known.empty else known.iloc[(len(known) - 1) // 2]


@dataclass(frozen=True)
class Group:
    """Runs whose numbers may be compared: one benchmark, model, data, variant, retain set, one version of every metric."""

    name: str
    """For file names."""
    title: str
    """For readers."""
    bench: str
    """The benchmark."""
    model: str
    """The model."""
    runs: pd.DataFrame
    """Their rows of the runs' table, with `preset`."""
    notes: tuple[str, ...]
    """What was left out, and why."""

    @property
    def points(self) -> pd.DataFrame:
        """One row per measured point: what names it, and for each metric `m` the columns `m`, `m_low`, `m_high`, ….

        `m_low` and `m_high` are the 95 % interval, `m_across_low` and `m_across_high` the range over the references,
        `m_floor` the noise floor, `m_n` the rows, `m_better` which way is good, `m_absent` why there is no number.
        """
        return _wide(self.runs[self.runs["arm"] == "method"])

    @property
    def references(self) -> pd.DataFrame:
        """The same for the references, one row each; every run records them, and the first that has a metric tells it."""
        rows = self.runs[self.runs["arm"] != "method"]
        rows = rows[rows["folder"] == rows.groupby(["arm", "metric"])["folder"].transform("min")]
        return _wide(rows.assign(folder=rows.groupby("arm")["folder"].transform("min")))

    @property
    def named_references(self) -> str:
        """The references that these runs have, with what they are, for notes."""
        present = set(self.runs["arm"])
        return ", ".join(f"{name} ({about})" for name, about in REFERENCES.items() if name in present) or "none"

    def floor(self, metric: str) -> float | None:
        """The noise floor of a metric: what two retrained models differ by."""
        floors = self.runs.loc[(self.runs["metric"] == metric) & (self.runs["arm"] == "method"), "floor"].dropna()
        return float(floors.max()) if len(floors) else None

    def n(self, metric: str) -> str:
        """On how many rows a metric rests, for readers."""
        counts = sorted({int(n) for n in self.runs.loc[self.runs["metric"] == metric, "n"].dropna()})
        return " or ".join(map(str, counts)) or "no"


_FIELDS = ("value", "low", "high", "across_low", "across_high", "reference", "floor", "n", "better", "absent")


def _wide(rows: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    keys = [*NAMES_A_RUN, "arm", "index", "step", "seconds", "logged"]
    points: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows[[*keys, "metric", *_FIELDS]].to_dict("records"):
        place = (row["folder"], row["arm"], row["index"] if row["arm"] == "method" else 0)
        point = points.setdefault(place, {key: row[key] for key in keys})
        for name in _FIELDS:
            point[row["metric"] if name == "value" else f"{row['metric']}_{name}"] = row[name]
    return pd.DataFrame(list(points.values()))


IDENTITY = ["bench", "model", "source", "variant", "retain", "comparable"]
"""Columns of the runs' table in which runs of one figure must agree."""


def groups(
    runs: pd.DataFrame,
    metrics: Sequence[str],
    what: str,
    also: Sequence[str] = (),
    advise: Callable[..., str] | None = None,
) -> list[Group]:
    """The runs' table, cut into groups that may share a figure; runs that are not done are left out, and that is said.

    Args:
        runs: from `Store.frame`.
        metrics: those that the figure cannot do without; a run that never measured one is left out.
        what: the figure's name, for the message.
        also: further metrics that it shows where they are there.
        advise: a benchmark and a model, if known → the command that makes such runs; `advice` if not given.

    Raises:
        UsageError: if nothing is left; names a command that makes such runs.
    """
    advise = advise or advice
    if runs.empty:
        raise UsageError(f"there is no run to plot. {advise()}")
    runs = runs.assign(preset=runs["selection"].map(protocol))
    made: list[Group] = []
    for _, together in runs.groupby(IDENTITY, sort=True):
        settled = [(versions, *_settled(rows, metrics)) for versions, rows in _by_versions(together, [*metrics, *also])]
        parts = [part for part in settled if len(part[1])]
        for versions, rows, notes in parts:
            made.append(_group(runs, rows, notes, versions if len(parts) > 1 else ()))
    if not made:
        lacking = runs[runs["metric"].isin(metrics)]  # by a benchmark that has these metrics
        where = () if lacking.empty else (lacking["bench"].iloc[0], lacking["model"].iloc[0])
        raise UsageError(f"no run that is done has {' and '.join(metrics)} at a point, which {what} needs. {advise(*where)}")
    return made


def _group(runs: pd.DataFrame, rows: pd.DataFrame, notes: Sequence[str], versions: Sequence[int]) -> Group:
    """A group with its name and title, which say what sets it apart from other groups; versions where they do."""
    bench, model, source, variant, retain, comparable = (rows[name].iloc[0] for name in IDENTITY)
    same = runs[(runs[["bench", "source", "variant", "retain"]] == [bench, source, variant, retain]).all(axis=1)]
    limit = rows["limit"].iloc[0] if rows["limit"].notna().any() else None
    tags = [str(bench), f"{re.sub('[^A-Za-z0-9@._-]+', '-', str(model))}-{source}"]
    tags += [str(variant)] if variant != "original" else []
    tags += [f"retain-{retain}"] if retain != "all" else []
    tags += [f"limit{int(limit)}"] if limit is not None else []
    tags += [str(comparable)] if same["comparable"].nunique() > 1 else []
    tags += ["v" + ".".join(map(str, versions))] if versions else []
    title = f"{bench} · model {model}" + (f" · {variant} definitions" if variant != "original" else "")
    title += f" · retain set {retain}" if retain != "all" else ""
    title += f" · {int(limit)} rows per split" if limit is not None else ""
    apart = ["Runs with other versions of these metrics have a file of their own."] if versions else []
    return Group("-".join(tags), title, str(bench), str(model), rows, (*notes, *apart))


def advice(bench: str = "tofu10", model: str = "mini", methods: str = "kfade,npo,simnpo", evals: str = "") -> str:
    """The command that makes runs for a figure."""
    return f"Make some: harness run --method {methods} --bench {bench} --model {model}" + (f" --evals {evals}" if evals else "")


def protocols_of(points: pd.DataFrame) -> list[str]:
    """The protocols that a figure shows: the presets, or settings by hand and others where there is no preset."""
    present = set(points["preset"])
    return [name for name in PRESETS if name in present] or [name for name in OTHERS if name in present]


def without_references(points: pd.DataFrame) -> pd.DataFrame:
    """Points of methods; the references may have been run as methods, too."""
    return points[~points["method"].isin(REFERENCES)]


def split(points: pd.DataFrame) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Points of methods → those of the protocols that a figure shows, these protocols, a note on runs that are left out."""
    points = without_references(points)
    protocols = protocols_of(points)
    shown = points["preset"].isin(protocols)
    left = points.loc[~shown, "folder"].nunique()
    return points[shown], protocols, [f"Not shown: {left} runs with settings by hand or swept."] if left else []


def heading(protocol: str) -> str:
    """A protocol as a panel's title."""
    return (
        f"{protocol} preset"
        if protocol in PRESETS
        else f"{protocol} settings"
        if protocol == "other"
        else f"settings {protocol}"
    )


def _settled(rows: pd.DataFrame, metrics: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """Only finished runs of each method's newest version that measured what is needed, one for each way of running it."""
    notes = []
    undone = rows[rows["status"] != "done"].drop_duplicates("folder")
    if len(undone):
        names = ", ".join(f"{r.method} ({r.preset}, seed {r.seed}) {r.status}" for r in undone.itertuples())
        notes.append(f"Not shown, since not done: {names}.")
    rows = rows[rows["status"] == "done"]
    newest = rows.groupby("method")["method_version"].transform("max")
    if len(old := rows[rows["method_version"] < newest].drop_duplicates("folder")):
        names = ", ".join(f"{r.method} version {r.method_version}" for r in old.itertuples())
        notes.append(f"Not shown, since there are runs of a newer version: {names}.")
    rows = rows[rows["method_version"] == newest]

    at_points = rows[rows["arm"] == "method"]
    measured = at_points[at_points["metric"].isin(metrics) & at_points["value"].notna()].groupby("folder")["metric"].nunique()
    complete = set(measured[measured == len(metrics)].index)
    if lacking := len(set(at_points["folder"]) - complete):
        notes.append(f"Not shown, since they did not measure {' and '.join(metrics)}: {lacking} runs.")
    rows = rows[rows["folder"].isin(complete)]

    # The same settings may have been run twice: every point and the last one only, with more or fewer evaluators.
    runs = rows[rows["arm"] == "method"].groupby("folder").size().rename("rows").reset_index()
    runs = runs.merge(rows[NAMES_A_RUN].drop_duplicates("folder"), on="folder")
    runs = runs.sort_values(["rows", "folder"], ascending=[False, True], kind="stable")
    first = runs.drop_duplicates(["method", "seed", "config", "preset"])
    if len(runs) > len(first):
        left = len(runs) - len(first)
        notes.append(f"Of runs with the same settings and seed the one that measured most is shown: {left} left out.")
    # And a preset may have changed between runs: then two settings would pass as one.
    formed = first[first["preset"].isin(PRESETS)]
    twice = formed[formed.duplicated(["method", "seed", "preset"])]
    if len(twice):
        names = ", ".join(sorted({f"{r.method} ({r.preset})" for r in twice.itertuples()}))
        notes.append(f"Presets changed between runs; the run that measured most is shown: {names}.")
    return rows[rows["folder"].isin(set(first["folder"]) - set(twice["folder"]))], notes


def _by_versions(rows: pd.DataFrame, metrics: Sequence[str]) -> Iterator[tuple[tuple[int, ...], pd.DataFrame]]:
    """The runs apart by the versions of the metrics that the figure uses: different ones are never compared."""
    used = rows[rows["metric"].isin(metrics) & rows["version"].notna() & (rows["arm"] == "method")]
    versions: dict[str, dict[str, int]] = {}
    for row in used[["folder", "metric", "version"]].drop_duplicates().itertuples():
        versions.setdefault(row.folder, {})[row.metric] = int(row.version)
    kinds: dict[tuple[int, ...], list[str]] = {}
    newest = {metric: max((of.get(metric, 0) for of in versions.values()), default=0) for metric in metrics}
    for folder in sorted(set(rows["folder"])):
        of = {**newest, **versions.get(folder, {})}  # what a run did not measure cannot set it apart
        kinds.setdefault(tuple(of[metric] for metric in metrics), []).append(folder)
    for kind, folders in sorted(kinds.items()):
        yield kind, rows[rows["folder"].isin(folders)]


def settings_of(points: pd.DataFrame) -> list[Mapping[str, Any]]:
    """Every setting of each point's run."""
    return [parse_json(text, "settings") for text in points["config"]]


def same_settings(points: pd.DataFrame) -> list[str]:
    """Notes on methods of which two presets are the same settings, so that nobody counts them as two findings."""
    alike: dict[tuple[str, str], list[str]] = {}
    for method, of in points[points["preset"].isin(PRESETS)].groupby("method", sort=True):
        settings = {preset: frozenset(rows["config"]) for preset, rows in of.groupby("preset")}
        for one, other in combinations([preset for preset in PRESETS if preset in settings], 2):
            if settings[one] == settings[other]:
                alike.setdefault((one, other), []).append(str(method))
    return [f"{one.capitalize()} and {other} are the same settings for {', '.join(of)}." for (one, other), of in alike.items()]


def in_order(methods: Iterable[str]) -> list[str]:
    """Methods as they are listed everywhere: by name, the references last."""
    return sorted(set(methods), key=lambda m: ([*REFERENCES].index(m) + 1 if m in REFERENCES else 0, m))


def value_of(points: pd.DataFrame, metric: str, fields: Sequence[str] = ("low", "high", "n")) -> dict[str, Any] | None:
    """One number of a method at its points; of several seeds the lower median, and where all of them lie.

    Args:
        points: one for each seed.
        metric: which number.
        fields: what else of it is wanted, see `Group.points`.

    Returns:
        `value`, the fields, `run` and `step` of the run that has the median, `seeds`, `seed_low`, `seed_high`; None where no
        run has a number, see `absence`.
    """
    middle = lower_median(points, metric) if metric in points else None
    if middle is None:
        return None
    values = points[metric]
    seeds = {"seeds": int(values.notna().sum()), "seed_low": values.min(), "seed_high": values.max()}
    kept = {name: middle.get(f"{metric}_{name}") for name in fields}
    return {"value": middle[metric], **kept, **seeds, "run": middle["run"], "step": middle["step"]}


def absence(points: pd.DataFrame, metric: str) -> str:
    """Why no point has a number for a metric."""
    reasons = sorted(set(points[f"{metric}_absent"].dropna())) if f"{metric}_absent" in points else []
    return "; ".join(reasons) or "not measured"


def seeds_note(table: pd.DataFrame) -> list[str]:
    """What stands for several seeds, where a table has them."""
    if table["seeds"].max() <= 1:
        return []
    return [f"Several seeds: {MEDIAN}, with that run's interval; the CSV has the lowest and highest seed."]
