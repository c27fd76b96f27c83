"""Count, mean and variance of numbers, of blocks that can be merged."""

from dataclasses import dataclass
from typing import Any

import numpy as np

ROUNDED_BITS = 24  # of statistics that are kept, as many as a float32 has
CONSTANT = 1e-12  # a std below this share of the mean is a constant's, up to rounding


@dataclass
class Moments:
    """Count, mean and squared deviations, merged by eq. 2.1 of Chan, Golub and LeVeque (1979)."""

    count: np.ndarray
    mean: np.ndarray
    deviations: np.ndarray

    @classmethod
    def of(cls, numbers: np.ndarray) -> "Moments":
        """Summarise [rows, ...] over the rows, without NaN; what overflows is inf."""
        is_known = ~np.isnan(numbers)
        count = is_known.sum(axis=0)
        known = np.where(is_known, numbers, 0.0)
        with np.errstate(over="ignore", invalid="ignore"):
            mean = known.sum(axis=0) / np.maximum(count, 1)
            deviations = np.where(is_known, (numbers - mean) ** 2, 0.0).sum(axis=0)
        return cls(count, mean, deviations)

    @classmethod
    def weighted(cls, numbers: np.ndarray, weights: np.ndarray) -> "Moments":
        """Summarise numbers [n] that occur so many times each, without NaN."""
        total = weights.sum()
        mean = np.asarray((numbers * weights).sum() / max(total, 1))
        return cls(np.asarray(total), mean, np.asarray((weights * (numbers - mean) ** 2).sum()))

    @property
    def total(self) -> int:
        """How many numbers there are in all."""
        return int(np.sum(self.count))

    @np.errstate(over="ignore", invalid="ignore")
    def merge(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        safe = np.maximum(count, 1)
        delta = other.mean - self.mean
        mean = self.mean + delta * other.count / safe
        deviations = self.deviations + other.deviations + delta**2 * self.count * other.count / safe
        return Moments(count, mean, deviations)

    @np.errstate(over="ignore", invalid="ignore")
    def fitted(self) -> tuple[Any, Any]:
        """Return (mean, std), rounded so that they do not depend on the order of summation; a constant has std 1."""
        std = np.sqrt(self.deviations / np.maximum(self.count, 1))
        std = np.where(std > CONSTANT * np.abs(self.mean), std, 1.0)
        return _rounded(self.mean, std), _rounded(std, std)


def _rounded(numbers: np.ndarray, std: np.ndarray) -> Any:
    """Return numbers as lists, rounded to `ROUNDED_BITS` binary digits of the std."""
    unit = np.ldexp(1.0, np.frexp(std)[1] - ROUNDED_BITS)
    return (np.round(numbers / unit) * unit).tolist()
