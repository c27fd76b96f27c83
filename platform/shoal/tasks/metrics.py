"""Metric names: in which direction it is better, and how sums over all samples become means.

Everything is summed first, over batches and workers, and divided once, so that a mean does not depend on how the
samples were divided.
"""

import math
from collections.abc import Mapping

HIGHER_IS_BETTER = ("accuracy", "r2", "precision", "recall", "f1")


def is_higher_better(name: str) -> bool:
    """Whether a metric such as 'val/accuracy' is better when it is larger."""
    return name.rpartition("/")[2].endswith(HIGHER_IS_BETTER)


def is_better(name: str, value: float, than: float | None) -> bool:
    """Whether a value beats the best so far; NaN never does."""
    if math.isnan(value):
        return False
    if than is None or math.isnan(than):
        return True
    return value > than if is_higher_better(name) else value < than


def reaches(name: str, value: float, target: float) -> bool:
    """Whether a metric is at its target or beyond."""
    return value >= target if is_higher_better(name) else value <= target


def update_best(best: Mapping[str, float], metrics: Mapping[str, float], step: int) -> dict[str, float]:
    """Return `best/*` after an evaluation: each metric's own best, and the step of the best loss."""
    updated = dict(best)
    for name, value in metrics.items():
        key = f"best/{name.replace('/', '_')}"
        if is_better(name, value, updated.get(key)):
            updated[key] = value
            if name == "val/loss":
                updated["best/step"] = float(step)
    return updated
