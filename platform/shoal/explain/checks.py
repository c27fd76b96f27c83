"""What an explanation must pass before it is believed: each check a number, its limit, and whether it is within.

- completeness: the attributions of a row sum to its output less that at the baseline (Sundararajan et al. 2017,
  proposition 1), within 0.001 of the difference.
- randomised weights: another model of the same architecture, whose weights are random, has another map (Adebayo et al.
  2018, "Sanity Checks for Saliency Maps"): the rank correlation is within 0.3 of none.
- learned: the model's loss is below that of one constant answer: there is something to explain.
"""

import math

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from shoal.explain.attribution import STEPS, TOLERANCE, Attribution, Method, attribute_once
from shoal.explain.rows import Rows
from shoal.explain.subject import Subject
from shoal.storage.records import ExplanationCheck

MOST_CORRELATION = 0.3
CHECKED_ROWS = 16
DRAWS_BY_UNITS = (
    100  # correlations of n units scatter by 1 / sqrt(n - 1): the mean over draws by 0.1 at the most
)
FEWEST_DRAWS, MOST_DRAWS = 6, 100
COMPLETENESS, RANDOMISED, LEARNED = "completeness", "randomised_weights", "learned"


def completeness(found: Attribution) -> ExplanationCheck:
    """Check that the attributions of all rows together sum to what they explain."""
    return _check(COMPLETENESS, found.relative_error(), TOLERANCE)


def correlations_with_redrawn(
    subject: Subject, method: Method, inputs: Tensor, targets: Tensor, values: Tensor, seed: int
) -> np.ndarray:
    """Return the rank correlation of each row's map with that of re-drawn weights, the mean over several draws [n].

    Signs are kept: magnitudes have |input - baseline| in common, whatever the weights are. Several draws are needed
    since few columns are alike by chance in any one of them.
    """
    draws = min(MOST_DRAWS, max(FEWEST_DRAWS, -(-DRAWS_BY_UNITS // max(1, len(subject.units) - 1))))
    known = torch.where(subject.is_there(inputs), values, math.nan).numpy()
    found = []
    for number in range(draws):
        other = subject.with_redrawn_weights(seed + number)
        redrawn = attribute_once(other, method, inputs, targets, STEPS)
        found.append(rank_correlations(known, redrawn.numpy()))
    defined = np.ma.masked_invalid(np.stack(found))
    return np.asarray(defined.mean(axis=0).filled(math.nan))


def rank_correlations(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation of each row [n, units] with the same row of another map; NaN of constants.

    Units that are NaN in the first map are left out.
    """
    others = np.where(np.isnan(some), math.nan, others)
    ranks = [rankdata(values, axis=1, nan_policy="omit") for values in (some, others)]
    a, b = (rank - np.nanmean(rank, axis=1, keepdims=True) for rank in ranks)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(
            np.nansum(a * b, axis=1) / np.sqrt(np.nansum(a**2, axis=1) * np.nansum(b**2, axis=1))
        )


def randomised_weights(correlation: float) -> ExplanationCheck:
    """Check that a map depends on the weights."""
    return _check(RANDOMISED, abs(correlation), MOST_CORRELATION)


def learned(subject: Subject, rows: Rows) -> ExplanationCheck:
    """Check that the model's mean loss is below that of the constant answer that is best on these rows.

    Of a loss of the user's own, of which that answer is not known, by how much it is below that of the answer at the
    baseline: such a loss may be negative, so that their ratio would say nothing.
    """
    loss, labels = float(rows.losses.mean()), rows.features.labels
    constant = subject.answers.constant_loss(labels)
    if constant is not None:
        return learned_beside(loss, constant)
    rise = loss - float(subject.losses(subject.baseline.expand_as(rows.inputs).contiguous(), labels).mean())
    return ExplanationCheck(name=LEARNED, value=rise, limit=0.0, is_passed=rise < 0.0)


def learned_beside(loss: float, constant: float) -> ExplanationCheck:
    """Check that a mean loss is below that of a constant answer."""
    ratio = loss / constant if constant > 0 else math.nan
    return ExplanationCheck(name=LEARNED, value=ratio, limit=1.0, is_passed=ratio < 1.0)


def _check(name: str, value: float, limit: float) -> ExplanationCheck:
    return ExplanationCheck(name=name, value=value, limit=limit, is_passed=value <= limit)  # NaN is not
