"""How much each unit matters over many rows, with 95% intervals over the rows."""

from typing import NamedTuple

import torch
from torch import Tensor

from shoal.data.tree import map_tensors
from shoal.explain.rows import Rows
from shoal.explain.subject import Subject

Z95 = 1.96  # of the normal distribution
REPEATS = 5


class Importance(NamedTuple):
    """Means over rows [units], and the bounds of their 95% intervals: mean +- 1.96 standard errors."""

    mean: Tensor
    low: Tensor
    high: Tensor


def mean_with_interval(values: Tensor) -> Importance:
    """Return the mean over rows of values [n, units]."""
    mean = values.mean(dim=0)
    half = Z95 * values.std(dim=0, correction=min(1, len(values) - 1)) / len(values) ** 0.5
    return Importance(mean, mean - half, mean + half)


def permutation_importance(subject: Subject, rows: Rows, seed: int) -> Importance:
    """Return by how much the loss rises when a column is shuffled among the rows (Breiman 2001, section 10).

    All features of a column are shuffled together. The rise of a row is its mean over `REPEATS` shuffles.
    """
    draw = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(rows), generator=draw) for _ in range(REPEATS)]
    shuffled = torch.cat([rows.inputs[order] for order in orders])
    kept = rows.inputs.repeat(REPEATS, *(1,) * (rows.inputs.dim() - 1))
    labels = map_tensors(lambda one: torch.cat([one] * REPEATS), rows.features.labels)
    rises = torch.empty(len(rows), len(subject.units), dtype=torch.float64)
    for unit in range(len(subject.units)):
        mask = (subject.groups == unit).view(1, *subject.baseline.shape)
        losses = subject.losses(torch.where(mask, shuffled, kept), labels).view(REPEATS, len(rows))
        rises[:, unit] = losses.mean(dim=0) - rows.losses
    return mean_with_interval(rises)
