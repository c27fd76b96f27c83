"""Whether two models differ on the same rows by more than chance: McNemar's exact test, and a bootstrap."""

from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
SEED = 0
CONFIDENCE = 0.95


class Mcnemar(NamedTuple):
    """The exact test of two classifiers.

    Attributes:
        only_candidate, only_champion: rows that one of them alone has right.
        p_value: two-sided: of as uneven a division of these rows, were both equally good.
    """

    only_candidate: int
    only_champion: int
    p_value: float


class Bootstrap(NamedTuple):
    """A difference of two values of a metric, candidate less champion, when the rows are drawn again.

    Attributes:
        low, high: of the 95% interval.
        p_value: two-sided.
    """

    low: float
    high: float
    p_value: float


def mcnemar(candidate: np.ndarray, champion: np.ndarray) -> Mcnemar:
    """Test two classifiers on the same rows.

    Under the hypothesis that both are equally good, a row that one alone has right is either's with probability 1/2
    (McNemar 1947; exact: binomial).

    Args:
        candidate, champion: bool [n], whether a row is right.
    """
    from scipy.stats import binomtest

    only_candidate = int((candidate & ~champion).sum())
    only_champion = int((champion & ~candidate).sum())
    rows = only_candidate + only_champion
    p_value = float(binomtest(only_candidate, rows).pvalue) if rows else 1.0
    return Mcnemar(only_candidate, only_champion, p_value)


def ratio(terms: np.ndarray, exponent: float) -> np.ndarray:
    """Return a metric of the sums [..., 2] of its terms; NaN without rows."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((terms[..., 0] / terms[..., 1]) ** exponent)


def bootstrap(candidate: np.ndarray, champion: np.ndarray, exponent: float, is_paired: bool) -> Bootstrap:
    """Draw rows anew, with replacement, and measure both models on them (Efron and Tibshirani 1993, chapter 13).

    Args:
        candidate, champion: float64 [n, 2], terms of the metric, as `RowTerms`.
        exponent: of the metric.
        is_paired: whether row i is the same row in both; else both are drawn by themselves.
    """
    draw = np.random.default_rng(SEED)
    differences = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        rows = draw.integers(len(candidate), size=len(candidate))
        others = rows if is_paired else draw.integers(len(champion), size=len(champion))
        ours, theirs = candidate[rows].sum(axis=0), champion[others].sum(axis=0)
        differences[number] = ratio(ours, exponent) - ratio(theirs, exponent)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(differences, (tail, 1 - tail))
    # The observed rows count as one more draw, so that no p-value is 0.
    sides = [(1 + int(side.sum())) / (1 + RESAMPLES) for side in (differences <= 0, differences >= 0)]
    return Bootstrap(float(low), float(high), min(1.0, 2 * min(sides)))
