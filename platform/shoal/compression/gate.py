"""What speaks against a compressed model: it is worse than may be, or slower than what it was made of."""

from collections.abc import Mapping

from shoal.storage.records import MeasuredModel
from shoal.tasks.metrics import Directions, is_higher_better

# Of two equal models one is slower by chance: interleaved medians on a machine with other work differ by so much.
NOISE = 0.05


def compared_metric(metrics: Mapping[str, float], compared_by: str) -> str:
    """Return the metric by which a variant is compared: the accuracy, else what the task compares models by."""
    return next((name for name in ("accuracy", compared_by) if name in metrics), "loss")


def too_bad(metric: str, before: float, after: float, most: float, said: Directions) -> str | None:
    """Return why a metric has become too bad; None: it has not.

    Args:
        most: a metric of which more is better may fall by so much; another may rise by this share of it.
    """
    if is_higher_better(metric, said):
        loss = before - after
        text = f"{metric} fell by {loss:.4g}, from {before:.4g} to {after:.4g}"
    else:
        loss = (after - before) / abs(before) if before else after
        text = f"{metric} rose by {loss:.2%}, from {before:.4g} to {after:.4g}"
    return None if loss <= most else f"{text}: more than compress.max_loss_of={most:g}"


def too_slow(original: MeasuredModel, variant: MeasuredModel) -> str | None:
    """Return in which batch a variant is slower than the original; None: in none."""
    for rows, before in original.latency.items():
        after = variant.latency[rows]
        if after.p50_ms > before.p50_ms * (1 + NOISE):
            return (
                f"it is slower: {after.p50_ms:.3g} ms instead of {before.p50_ms:.3g} ms for "
                f"{rows} row{'s' * (rows != '1')}"
            )
    return None
