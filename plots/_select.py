"""Named rules: which records may share a figure, which run and which point speak for a method, which seed for several.

A rule's name and sentence are printed wherever it was used. Nothing is averaged: with several seeds the lower median is
shown, so that every printed number stands in a record, with its own interval.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.core.documents import parse_json
from harness.core.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

PUBLISHED, TUNED, ORACLE = "published", "tuned", "oracle"
PROTOCOLS = (PUBLISHED, TUNED)
"""The forms a method is run in. `oracle` is no form but a way of picking points afterwards."""
OTHER = "other settings"
"""Runs whose settings were set by hand or swept."""
ARMS = ("untouched", "retrained")
"""The two reference arms, which are methods too where someone ran them as such."""
CHANCE = 0.25
"""Accuracy on questions with four choices by chance: below it nothing more is forgotten, so that there all are equally good."""
NAMES_A_RUN = ["folder", "run", "method", "seed", "protocol", "config", "status"]


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
    return best.assign(protocol=ORACLE).sort_values(["method", "seed"], ignore_index=True)


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
    """Their rows of the runs' table, with `protocol`."""
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
    def arms(self) -> pd.DataFrame:
        """The same for the reference arms, one row each; every run records them, and the first that has a metric tells it."""
        found = self.runs[self.runs["arm"] != "method"]
        found = found[found["folder"] == found.groupby(["arm", "metric"])["folder"].transform("min")]
        return _wide(found.assign(folder=found.groupby("arm")["folder"].transform("min")))

    def floor(self, metric: str) -> float | None:
        """The noise floor of a metric: what two retrained models differ by."""
        floors = self.runs.loc[(self.runs["metric"] == metric) & (self.runs["arm"] == "method"), "floor"].dropna()
        return float(floors.max()) if len(floors) else None

    def n(self, metric: str) -> str:
        """On how many rows a metric rests, for readers."""
        found = sorted({int(n) for n in self.runs.loc[self.runs["metric"] == metric, "n"].dropna()})
        return " or ".join(map(str, found)) or "no"


_FIELDS = ("value", "low", "high", "across_low", "across_high", "reference", "floor", "n", "better", "absent")


def _wide(rows: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    keys = [*NAMES_A_RUN, "arm", "index", "step", "seconds", "logged"]
    told: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows[[*keys, "metric", *_FIELDS]].to_dict("records"):
        place = (row["folder"], row["arm"], row["index"] if row["arm"] == "method" else 0)
        point = told.setdefault(place, {key: row[key] for key in keys})
        for name in _FIELDS:
            point[row["metric"] if name == "value" else f"{row['metric']}_{name}"] = row[name]
    return pd.DataFrame(list(told.values()))


def protocol(selection: str) -> str:
    """`published`, `tuned`, or `other settings` for runs whose settings were changed by hand."""
    found = re.match(r"(published|tuned) form: ", selection)
    return found[1] if found and ", then " not in selection else OTHER


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
    runs = runs.assign(protocol=runs["selection"].map(protocol))
    found: list[Group] = []
    shared = ["bench", "model", "source", "variant", "retain", "comparable"]
    for (bench, model, source, variant, retain, comparable), together in runs.groupby(shared, sort=True):
        settled = [(versions, *_settled(rows, metrics)) for versions, rows in _by_versions(together, [*metrics, *also])]
        parts = [part for part in settled if len(part[1])]
        for versions, rows, notes in parts:
            same = runs[(runs[["bench", "source", "variant", "retain"]] == [bench, source, variant, retain]).all(axis=1)]
            tags = [str(bench), f"{re.sub('[^A-Za-z0-9@._-]+', '-', str(model))}-{source}"]
            tags += [str(variant)] if variant != "original" else []
            tags += [f"retain-{retain}"] if retain != "all" else []
            tags += [f"limit{int(rows['limit'].iloc[0])}"] if rows["limit"].notna().any() else []
            tags += [str(comparable)] if same["comparable"].nunique() > 1 else []
            tags += ["v" + ".".join(map(str, versions))] if len(parts) > 1 else []
            title = f"{bench} · model {model}" + (f" · {variant} definitions" if variant != "original" else "")
            title += f" · retain set {retain}" if retain != "all" else ""
            limited = f" · {int(rows['limit'].iloc[0])} rows per split" if rows["limit"].notna().any() else ""
            apart = ["Runs with other versions of these metrics have a file of their own."] if len(parts) > 1 else []
            found.append(Group("-".join(tags), title + limited, str(bench), str(model), rows, (*notes, *apart)))
    if not found:
        asked = runs[runs["metric"].isin(metrics)]  # by a benchmark that has these metrics
        where = () if asked.empty else (asked["bench"].iloc[0], asked["model"].iloc[0])
        raise UsageError(f"no run that is done has {' and '.join(metrics)} at a point, which {what} needs. {advise(*where)}")
    return found


def advice(bench: str = "tofu10", model: str = "mini", methods: str = "kfade,npo,simnpo", evals: str = "") -> str:
    """The command that makes runs for a figure."""
    return f"Make some: harness run --method {methods} --bench {bench} --model {model}" + (f" --evals {evals}" if evals else "")


def forms_of(points: pd.DataFrame) -> list[str]:
    """The forms that a figure shows: published and tuned, or settings by hand where there is nothing else."""
    return [form for form in PROTOCOLS if (points["protocol"] == form).any()] or [OTHER] * bool(len(points))


def _settled(rows: pd.DataFrame, metrics: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """Only finished runs of each method's newest version that measured what is needed, one for each way of running it."""
    notes = []
    undone = rows[rows["status"] != "done"].drop_duplicates("folder")
    if len(undone):
        told = ", ".join(f"{r.method} ({r.protocol}, seed {r.seed}) {r.status}" for r in undone.itertuples())
        notes.append(f"Not shown, since not done: {told}.")
    rows = rows[rows["status"] == "done"]
    newest = rows.groupby("method")["method_version"].transform("max")
    if len(old := rows[rows["method_version"] < newest].drop_duplicates("folder")):
        told = ", ".join(f"{r.method} version {r.method_version}" for r in old.itertuples())
        notes.append(f"Not shown, since there are runs of a newer version: {told}.")
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
    first = runs.drop_duplicates(["method", "seed", "config", "protocol"])
    if len(runs) > len(first):
        left = len(runs) - len(first)
        notes.append(f"Of runs with the same settings and seed the one that measured most is shown: {left} left out.")
    # And a form's presets may have changed between runs: then two settings would pass as one form.
    formed = first[first["protocol"].isin(PROTOCOLS)]
    twice = formed[formed.duplicated(["method", "seed", "protocol"])]
    if len(twice):
        told = ", ".join(sorted({f"{r.method} ({r.protocol})" for r in twice.itertuples()}))
        notes.append(f"Presets changed between runs; the run that measured most is shown: {told}.")
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
    """A note on methods whose published and tuned forms are the same settings, so that nobody counts them as two findings."""
    found = []
    for method, of in points[points["protocol"].isin(PROTOCOLS)].groupby("method", sort=True):
        forms = {form: frozenset(rows["config"]) for form, rows in of.groupby("protocol")}
        if len(forms) > 1 and len(set(forms.values())) == 1:
            found.append(str(method))
    return [f"Published and tuned are the same settings for {', '.join(found)}."] if found else []


def in_order(methods: Iterable[str]) -> list[str]:
    """Methods as they are listed everywhere: by name, the reference arms last."""
    return sorted(set(methods), key=lambda m: (ARMS.index(m) + 1 if m in ARMS else 0, m))
