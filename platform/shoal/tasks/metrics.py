"""Metric names: in which direction it is better, and how sums over all samples become means.

Everything is summed first, over batches and workers, and divided once, so that a mean does not depend on how the
samples were divided.
"""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

HIGHER_IS_BETTER = ("accuracy", "r2", "precision", "recall", "f1", "f1_macro")
AVERAGE_PRECISION = "map"  # and map_50, map_class_NAME, ...
LOWER_IS_BETTER = ("loss", "error", "rmse", "mae", "mse", "perplexity", "bits_per_byte", "wer", "cer")

# Whether a metric is better when it is larger, of those that say so themselves, without "val/".
Directions = Mapping[str, bool]
BY_NAME: Directions = {}


def is_higher_better(name: str, said: Directions = BY_NAME) -> bool:
    """Whether a metric such as 'val/accuracy' is better when it is larger."""
    short = name.rpartition("/")[2]
    return said.get(short, short.endswith(HIGHER_IS_BETTER) or _is_average_precision(short))


def says_direction(name: str) -> bool:
    """Whether a metric's name says in which direction it is better."""
    return name.endswith((*HIGHER_IS_BETTER, *LOWER_IS_BETTER)) or _is_average_precision(
        name.rpartition("/")[2]
    )


def _is_average_precision(short: str) -> bool:
    """Whether a name is `map` or one of it with a suffix; mape, an error, is none."""
    return short.partition("_")[0] == AVERAGE_PRECISION


def is_better(name: str, value: float, than: float | None, said: Directions = BY_NAME) -> bool:
    """Whether a value beats the best so far; NaN never does."""
    if math.isnan(value):
        return False
    if than is None or math.isnan(than):
        return True
    return value > than if is_higher_better(name, said) else value < than


def reaches(name: str, value: float, target: float, said: Directions = BY_NAME) -> bool:
    """Whether a metric is at its target or beyond."""
    return value >= target if is_higher_better(name, said) else value <= target


def best_name(metric: str) -> str:
    """Return the name of a metric's best value: `best/val_loss` of `val/loss`."""
    return f"best/{metric.replace('/', '_')}"


def update_best(
    best: Mapping[str, float],
    metrics: Mapping[str, float],
    step: int,
    said: Directions = BY_NAME,
    selects: str = "val/loss",
) -> dict[str, float]:
    """Return `best/*` after an evaluation: each metric's own best, and the step of that of the metric `selects`."""
    updated = dict(best)
    for name, value in metrics.items():
        key = best_name(name)
        if is_better(name, value, updated.get(key), said):
            updated[key] = value
            if name == selects:
                updated["best/step"] = float(step)
    return updated


def per_class(confusion: npt.ArrayLike) -> dict[str, list[float]]:
    """Return precision, recall and support of each class; 0 for a class that was never predicted or never true.

    Args:
        confusion: [true class, predicted class] counts.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    hit, support, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    return {
        "precision": (hit / predicted.clip(min=1)).tolist(),
        "recall": (hit / support.clip(min=1)).tolist(),
        "support": support.tolist(),
    }
