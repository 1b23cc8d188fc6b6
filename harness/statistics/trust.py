"""How far a metric is to be trusted: faithfulness on two pools of models, robustness under disturbances. Knows no metric.

Values are oriented: larger where more of the forget set is known.

    faithfulness            AUC = P(value of a model that knows > one that never did) + ½ P(equal)

    relearning, symmetric   R = 1 − |Δ − Δ_ret| / (|Δ| + |Δ_ret|)       Δ = after − before, of the unlearned model
    relearning, one-sided   R = clip(Δ_ret / Δ, 0, 1)                   Δ_ret: of a model that never saw the forget set
    rounding, symmetric     Q = 1 − |after − before| / (|before| + |after|)
    rounding, one-sided     Q = clip(before / after, 0, 1)
    robustness              HM(mean R, mean Q)

(Symmetric: UDS, arXiv:2605.24614, `docs/data/meta_eval.json`; one-sided: open-unlearning, arXiv:2506.12618, section 4.2.) The
one-sided forms punish what comes back and nothing that is lost: where nothing came back, each is 1, as the symmetric ones are
where nothing moved. UDS's script writes the
one-sided Q the other way round, after / before, which would punish a loss; R leaves no doubt which of them is meant. The
faithfulness of several worlds is the mean over them: values of different worlds are never compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from harness.core.metric import harmonic
from harness.statistics.bootstrap import interval
from harness.statistics.ranks import placements

if TYPE_CHECKING:
    import numpy as np


class Estimate(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    """The number."""
    ends: tuple[float, float] | None
    """Lower and upper end; None where there are too few clusters to resample."""


class Pool(NamedTuple):
    """A metric's values on the models of a pool and world."""

    values: np.ndarray
    """[n], oriented."""
    clusters: np.ndarray
    """[n] the model, trained from its base, that each was made from."""


def faithfulness(worlds: Sequence[tuple[Pool, Pool]]) -> Estimate:
    """How well a metric tells models that know from models that never did, the mean over worlds.

    The interval resamples the clusters of each pool of each world, by both samples' placements (`harness.statistics.ranks`).

    Args:
        worlds: for each the models that know, and those that never did; none of them empty.
    """
    import numpy as np

    groups, areas = [], []
    for known, never in worlds:
        below, above = placements(never.values, known.values)
        groups += [(below[:, None], never.clusters), (above[:, None], known.clusters)]
        areas.append(float(above.mean()))
    area = float(np.mean(areas))
    ends = interval(groups, lambda means: (means.sum(axis=0) / len(worlds) - area).clip(0, 1))
    return Estimate(area, ends)


def relearning(change: np.ndarray, of_retrained: np.ndarray, symmetric: bool) -> np.ndarray:
    """R of each unlearned model.

    Args:
        change: [n] by how much its value rose when it was relearned.
        of_retrained: [n] by how much a retrained model's did.
        symmetric: UDS's form, or open-unlearning's.

    Returns:
        [n] in [0, 1].

    >>> import numpy as np
    >>> change, of_retrained = np.array([0.4, 0.1, 0.0]), np.array([0.2, 0.2, 0.0])
    >>> relearning(change, of_retrained, True).round(3).tolist(), relearning(change, of_retrained, False).tolist()
    ([0.667, 0.667, 1.0], [0.5, 1.0, 1.0])
    """
    import numpy as np

    if symmetric:
        return _alike(change, of_retrained)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.clip(of_retrained / change, 0, 1)
    return np.where(change <= 0, 1.0, ratio)  # nothing came back


def rounding(before: np.ndarray, after: np.ndarray, symmetric: bool) -> np.ndarray:
    """Q of each unlearned model.

    Args:
        before: [n] values.
        after: [n] values once its weights are rounded.
        symmetric: UDS's form, or open-unlearning's.

    Returns:
        [n] in [0, 1].

    >>> import numpy as np
    >>> before, after = np.array([0.2, 0.4, 0.0]), np.array([0.4, 0.2, 0.0])
    >>> rounding(before, after, True).round(3).tolist(), rounding(before, after, False).tolist()
    ([0.667, 0.667, 1.0], [0.5, 1.0, 1.0])
    """
    import numpy as np

    if symmetric:
        return _alike(after, before)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.clip(before / after, 0, 1)
    return np.where(after == 0, 1.0, ratio)


def _alike(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """1 − |a − b| / (|a| + |b|): 1 where both are 0."""
    import numpy as np

    whole = np.abs(first) + np.abs(second)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole == 0, 1.0, 1 - np.abs(first - second) / whole)


def mean(values: np.ndarray, clusters: np.ndarray) -> Estimate:
    """A mean over models, whole clusters resampled."""
    return Estimate(float(values.mean()), interval([(values[:, None], clusters)], lambda means: means[0]))


def robustness(relearned: np.ndarray, rounded: np.ndarray, clusters: np.ndarray) -> Estimate:
    """The harmonic mean of both means.

    Args:
        relearned: [n] R.
        rounded: [n] Q.
        clusters: [n] what is resampled whole.
    """
    import numpy as np

    both = np.column_stack([relearned, rounded])
    return Estimate(float(harmonic(both.mean(axis=0))), interval([(both, clusters)], harmonic))
