"""A training curve in the journal of a run or of a sweep's trial, and the same curve as MLflow has it."""

from collections.abc import Callable, Iterable
from typing import Any

from shoal.storage.records import Identity, Metadata, Status
from shoal.storage.run_folder import TRIALS, RunFolder
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


def add_trial(sweep: RunFolder, number: int, status: Status = "FINISHED", **identity: Any) -> RunFolder:
    """Add a trial to a sweep's folder, as `shoal.workflows.tune` leaves one; its metadata has one key of its point."""
    trial = sweep.inner(f"{TRIALS}/t{number:04d}")
    point = {"optim.lr": number, "optim.betas": "[0.9, 0.95]", "train.ema": None}
    trial.create_identity(name=f"t{number:04d}", experiment=sweep.identity().experiment, point=point)
    trial.update(Identity, status=status, end_ms=2_000_000_000_000, **identity)
    metadata = sweep.load(Metadata)
    assert metadata is not None
    trial.save(metadata.replace(params={"optim.lr": number}))
    log_curve(trial, range(1, 4))
    return trial
