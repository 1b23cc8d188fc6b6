"""How far single answers have moved: quantiles of the KL of every completion, with bootstrap bands (figure 2).

A method can keep its mean KL low and yet break a few answers: the upper end of the curve shows them. Read from the rows that
`alpaca_kl` keeps (the columns `kl_sum` over `kl_tokens`), a panel for each preset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.core.errors import UsageError
from harness.core.figure import FigureOptions, Sheet, figure
from harness.reading.formats import interval, known, number
from harness.reading.looks import look
from harness.reading.recorded import Recorded
from plots import _select, _style
from plots._select import LAST, ORDER, Group, lower_median

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

METRIC, TASK = "alpaca_kl", "instructions"
PERCENT = tuple(range(1, 100))
"""At which quantiles the curves are drawn."""
SHOWN = (5, 25, 50, 75, 95, 99)
"""Those of the table for readers."""
RESAMPLES = 1000
FEWEST_CLUSTERS = 5
"""Under this many clusters there is no band."""
DECADES = 6
"""The axis reaches so far down from its highest value."""


@dataclass(frozen=True)
class Curve:
    """One run's quantiles."""

    method: str
    """Whose."""
    protocol: str
    """Its preset, or how else its settings were chosen."""
    seed: int
    """Of the run."""
    run: str
    """Its id."""
    step: int
    """Of the point that is shown."""
    speaks: bool
    """Whether this seed speaks for the method: its mean is the lower median over seeds."""
    mean: float
    """As recorded: `alpaca_kl`."""
    n: int
    """Completions."""
    values: np.ndarray
    """[99] in nats per token."""
    band: np.ndarray | None
    """[2, 99] lower and upper ends; None for a seed that does not speak, or too few clusters."""


@figure("kl_quantiles")
def kl_quantiles(runs: pd.DataFrame, options: FigureOptions) -> Mapping[str, Drawing | Sheet]:
    """One drawing and one table of its quantiles for each group of comparable runs."""
    made: dict[str, Drawing | Sheet] = {}
    recorded, lacking = Recorded(options.results), None
    for group in _select.groups(runs, (METRIC,), "this figure", advise=_advice):
        ends, protocols, left = _select.split(LAST.pick(group.points))
        curves, missing = _curves(recorded, ends)
        if not curves:
            lacking = group if missing else lacking
            continue
        drawn = [protocol for protocol in protocols if any(curve.protocol == protocol for curve in curves)]
        notes = [*_reading(curves), *_select.same_settings(ends), *missing, *group.notes, *left]
        with _style.style():
            made[group.name] = _draw(group, curves, drawn, notes)
        made[f"{group.name}-points"] = _sheet(group, curves, notes)
    if not made:
        what = "no rows of single completions are kept" if lacking else "there are only references"
        raise UsageError(f"{what}. {_advice(lacking.bench, lacking.model) + ' --force' if lacking else _advice()}")
    return made


def _advice(bench: str = "wmdp", model: str = "mini") -> str:
    return _select.advice(bench, model, "kfade,rmu,elm", METRIC)


# ---------------------------------------------------------------- numbers


def _curves(recorded: Recorded, ends: pd.DataFrame) -> tuple[list[Curve], list[str]]:
    """Every run's curve, and what is missing."""
    curves, missing = [], []
    for (method, protocol), of in ends.groupby(["method", "preset"], sort=True):
        completions: dict[str, pd.DataFrame] = {}
        for run in of.sort_values(["seed", "folder"]).to_dict("records"):
            rows = _rows(recorded, run["folder"], int(run["index"]))
            if rows is None or not known(run[METRIC]):
                why = "no rows are kept" if rows is None else run[f"{METRIC}_absent"]
                missing.append(f"Not shown: {method} ({protocol}, seed {run['seed']}): {why}.")
            else:
                completions[run["folder"]] = rows
        kept = of[of["folder"].isin(list(completions))]
        middle = lower_median(kept, METRIC)
        for run in kept.sort_values(["seed", "folder"]).to_dict("records"):
            rows = completions[run["folder"]]
            per_token = (rows["kl_sum"] / rows["kl_tokens"]).to_numpy(dtype=float)
            speaks = middle is not None and bool(run["folder"] == middle["folder"])
            values, band = quantiles(per_token, rows["cluster"].to_numpy(), band=speaks)
            keys = (str(method), str(protocol), int(run["seed"]), run["run"], int(run["step"]), speaks, run[METRIC])
            curves.append(Curve(*keys, len(rows), values, band))
    order = {name: i for i, name in enumerate(_select.in_order(curve.method for curve in curves))}
    return sorted(curves, key=lambda c: (order[c.method], ORDER.index(c.protocol), not c.speaks, c.seed)), missing


def _rows(recorded: Recorded, folder: str, point: int) -> pd.DataFrame | None:
    """The completions of one point; None where no rows are kept, or their KL was not measured."""
    rows = recorded.rows(folder, point)
    if rows is None or not {"kl_sum", "kl_tokens"} <= set(rows):
        return None
    rows = rows[(rows["task"] == TASK) & rows["kl_tokens"].notna()]
    return rows if len(rows) else None


def quantiles(values: np.ndarray, clusters: np.ndarray, band: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
    """Quantiles of some values at `PERCENT`, and a 95 % percentile bootstrap band at each, whole clusters resampled.

    Q(p) = the smallest value that at least p of all values do not exceed: always one of the values

    Args:
        values: [n].
        clusters: [n] which of them are resampled together.
        band: whether the band is wanted.

    Returns:
        ([99] quantiles, [2, 99] lower and upper ends; None if not wanted, or with fewer than five clusters)
    """
    import numpy as np

    order = np.argsort(values, kind="stable")
    ordered, (_, group) = values[order], np.unique(clusters[order].astype(str), return_inverse=True)
    share = np.array(PERCENT) / 100

    def at(counts: np.ndarray) -> np.ndarray:
        reached = np.cumsum(counts)
        places = np.searchsorted(reached, share * reached[-1] - 1e-9)  # [99]; the sum of whole numbers is exact, p is not
        return np.asarray(ordered[places])

    whole, several = at(np.ones(len(values))), int(group.max()) + 1
    if not band or several < FEWEST_CLUSTERS:
        return whole, None
    rng = np.random.default_rng(0)
    drawn = [at(rng.multinomial(several, np.full(several, 1 / several))[group]) for _ in range(RESAMPLES)]
    return whole, np.percentile(np.array(drawn), (2.5, 97.5), axis=0, method="nearest")


# ---------------------------------------------------------------- drawing


def _draw(group: Group, curves: Sequence[Curve], protocols: Sequence[str], notes: Sequence[str]) -> Drawing:
    title = f"KL of single completions: {group.title}"
    drawing = _style.figure(_style.panels_width(len(protocols)), 3.6, title, notes)
    panels = drawing.subplots(1, len(protocols), sharey=True, squeeze=False)[0]
    lowest, highest = _span(curves)
    for axes, protocol in zip(panels, protocols, strict=True):
        for curve in curves:
            if curve.protocol == protocol:
                _line(axes, curve)
        _style.log_ticks(axes, [lowest, highest], vertical=True)
        axes.set_title(_select.heading(protocol))
        axes.set_xlabel("share of completions with\nat most this KL, %")
        axes.set_xlim(0, 100)
    panels[0].set_ylim(lowest / 1.5, highest * 1.5)
    panels[0].set_ylabel("KL to the untouched model, nats\nper token, log scale  (↓ better)")
    handles = {label: h for axes in panels for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    names = _select.in_order(handles)
    drawing.legend([handles[name] for name in names], names, loc="outside right upper", frameon=False)
    return drawing


def _span(curves: Sequence[Curve]) -> tuple[float, float]:
    """The lowest and the highest KL that the axis shows."""
    import numpy as np

    everything = np.concatenate([part.ravel() for c in curves for part in (c.values, c.band) if part is not None])
    highest = max(float(everything.max()), 1e-12)
    return max(float(everything[everything > 0].min(initial=highest)), highest / 10**DECADES), highest


def _line(axes: Axes, curve: Curve) -> None:
    drawn = look(curve.method)
    if not curve.speaks:
        axes.plot(PERCENT, curve.values, color=drawn.colour, linewidth=0.6, alpha=0.5, zorder=3)
        return
    if curve.band is not None:
        axes.fill_between(PERCENT, *curve.band, color=drawn.colour, alpha=0.2, linewidth=0, zorder=2)
    line = axes.plot(PERCENT, curve.values, color=drawn.colour, marker=drawn.marker, label=curve.method, zorder=4)[0]
    line.set_linewidth(1.3)
    line.set_markevery((len(curve.method) * 5 % 12, 12))  # not all at the same places, where they would hide one another
    line.set_markersize(5)
    line.set_markeredgecolor("white")


def _reading(curves: Sequence[Curve]) -> list[str]:
    several = any(not curve.speaks for curve in curves)
    seeds = " Several seeds: the one whose mean is the lower median has a band, the others are thin lines." if several else ""
    bands = "" if all(c.band is not None for c in curves if c.speaks) else f" No band under {FEWEST_CLUSTERS} clusters."
    lowest, _ = _span(curves)
    below = [f"Values under {number(lowest)} lie below the axis."] if any((c.values < lowest).any() for c in curves) else []
    n = " or ".join(map(str, sorted({curve.n for curve in curves})))
    return [
        f"Each run at its {LAST.name}. Height at p %: the KL that p % of the untouched model's n = {n} sampled "
        "completions do not exceed, each its mean over its tokens. "
        f"Band: 95 % at each p, percentile bootstrap of whole clusters, {RESAMPLES} resamples.{bands}{seeds}",
        *below,
    ]


def _sheet(group: Group, curves: Sequence[Curve], notes: Sequence[str]) -> Sheet:
    """Every quantile with its band."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    shown: list[dict[str, str]] = []
    for curve in curves:
        run = {"method": curve.method, "preset": curve.protocol, "seed": curve.seed, "run": curve.run, "step": curve.step}
        for i, percent in enumerate(PERCENT):
            low, high = (None, None) if curve.band is None else (curve.band[0, i], curve.band[1, i])
            rows.append({**run, "percent": percent, "value": curve.values[i], "low": low, "high": high, "n": curve.n})
        cells = {f"{p} %": _cell(curve, PERCENT.index(p)) for p in SHOWN}
        keys = {"method": curve.method, "preset": curve.protocol, "seed": str(curve.seed)}
        shown.append({**keys, **cells, "mean": number(curve.mean)})
    caption = f"Quantiles of the KL of single completions, nats per token: {group.title}"
    return Sheet(pd.DataFrame(rows), pd.DataFrame(shown), caption, notes)


def _cell(curve: Curve, i: int) -> str:
    text = number(curve.values[i])
    return text if curve.band is None else f"{text} ({interval(curve.band[0, i], curve.band[1, i])})"
