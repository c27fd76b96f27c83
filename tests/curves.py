"""A training curve in a run folder's journal, and the same curve as MLflow has it."""

from collections.abc import Callable, Iterable
from typing import Any

from shoal.storage.run_folder import RunFolder
from shoal.tracking.journal import Journal


def log_curve(
    folder: RunFolder,
    steps: Iterable[int],
    attempt: int = 1,
    value: Callable[[int], float] = lambda step: 1 / step,
) -> None:
    journal = Journal(folder, attempt)
    for step in steps:
        journal.log(step, {"train/loss": value(step)}, at_s=1e9 * attempt + step)
    journal.sync()


def history(client: Any, run_id: str, key: str = "train/loss") -> list[tuple[int, float, int]]:
    """Return (step, value, milliseconds) of each point of a metric."""
    return [
        (metric.step, metric.value, metric.timestamp) for metric in client.get_metric_history(run_id, key)
    ]
