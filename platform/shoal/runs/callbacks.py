"""What a run attaches to one worker's training loop: checkpoints, throughput beside the metrics, the stop file.

It knows the run folder and the journal; it does not know how the loop came about or who compares trials.
"""

import contextlib
import threading
import time
from types import TracebackType
from typing import Any, Self

import torch

from shoal.data.dataset_info import DatasetInfo
from shoal.distributed.dtensor_io import gather_full_tensors
from shoal.runs.timeline import WorkerTimeline
from shoal.storage.run_folder import SAVING, STOP_POLL_S, RunFolder
from shoal.tracking.journal import Journal, NoJournal
from shoal.training.checkpoint.agreement import check_agreement, weight_sums
from shoal.training.checkpoint.background import BackgroundSaver
from shoal.training.checkpoint.contents import TrainingProgress, random_state, snapshot
from shoal.training.checkpoint.interval import Pause
from shoal.training.checkpoint.store import CheckpointStore
from shoal.training.clock import STORAGE, Clock
from shoal.training.device_memory import peak_bytes
from shoal.training.loop import TrainingLoop
from shoal.training.throughput import Workload

LOCAL_STOP_POLL_S = 0.2
WORKERS_METRIC = "perf/num_workers"


class Attempt:
    """The account of one attempt: where it started, how far it is, and what its time went to."""

    def __init__(
        self, progress: TrainingProgress, workload: Workload, clock: Clock, size: int | None = None
    ) -> None:
        """Start now, from where `progress` is; the loop updates it, and the clock.

        Args:
            size: the number of workers, where it may change.
        """
        self.progress, self.workload, self.clock, self.size = progress, workload, clock, size
        self.seconds_before, self.samples_before = progress.seconds, progress.samples
        self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since this attempt started."""
        return time.perf_counter() - self._since

    def rates(self, samples_before: int, busy_before_s: float = 0.0) -> dict[str, float]:
        """Return throughput by name since so many samples and so many seconds of training proper."""
        samples, busy_s = self.progress.samples - samples_before, self.clock.busy_s - busy_before_s
        return self.workload.rates(samples / max(busy_s, 1e-9))


class CheckpointWriter:
    """Takes snapshots of the loop, which a thread writes; a context, left when all are written.

    All workers take part: each contributes its random state, and under sharding its part of the tensors.
    """

    def __init__(
        self,
        loop: TrainingLoop,
        store: CheckpointStore,
        folder: RunFolder,
        journal: Journal | NoJournal,
        attempt: Attempt,
        metadata: dict[str, Any],
        dataset_info: DatasetInfo,
        timeline: WorkerTimeline,
        pause: Pause | None = None,
    ) -> None:
        """Take what goes into every checkpoint besides the loop's state.

        Args:
            pause: between two checkpoints, from how long the last one took.
            metadata: of the run and the attempt; the MLflow run's id is added once it is known.
        """
        self._loop, self._store, self._folder, self._journal = loop, store, folder, journal
        self._attempt, self._metadata, self._timeline = attempt, metadata, timeline
        info = dataset_info.model_dump_json().encode()
        self._saver = BackgroundSaver(store, metadata, info, self._prepare, pause)

    @property
    def blocked_s(self) -> float:
        """Seconds that training waited for a checkpoint in flight."""
        return self._saver.blocked_s

    def is_due(self) -> bool:
        return self._saver.is_due

    def save(self, progress: TrainingProgress, is_due: bool) -> None:
        """Snapshot the loop's state; write it now, or (not `is_due`) together with the next one."""
        loop, collective = self._loop, self._loop.collective
        # One state per part of the data: workers of a tensor-parallel group share theirs.
        states = self._random_states(progress.step)
        progress.seconds = self._attempt.seconds_before + self._attempt.seconds
        if not (collective.rank == 0 or collective.is_sharded):
            return
        since = time.perf_counter()
        spare = self._saver.take_spare()
        own = loop.user_callbacks.state_dict()
        taken = snapshot(loop.model, loop.optimizer, progress, states, loop.scaler, loop.ema, spare, own)
        if not is_due:
            self._saver.hold(taken)
            return
        with self._attempt.clock.on(STORAGE):
            self._saver.save(taken, time.perf_counter() - since)

    def _random_states(self, step: int) -> list[dict[str, Any]]:
        """Return the random states of the data's parts, once all workers were seen to hold the same weights."""
        loop, collective = self._loop, self._loop.collective
        if collective.is_sharded or collective.size == 1:
            return collective.gather(random_state())[:: collective.size // collective.data_size]
        found = collective.gather((random_state(), weight_sums(loop.model)))
        check_agreement(loop.model, [sums for _, sums in found], step)
        return [state for state, _ in found]

    def _prepare(self) -> None:
        """Bring the journal to the disk, in the saver's thread: what a checkpoint counts as trained must be in it."""
        self._journal.sync()
        self._timeline.sync()
        if self._metadata.get("mlflow_run_id") is None:
            self._metadata["mlflow_run_id"] = self._folder.tracked().run_id

    def finish(self) -> None:
        """Write what still waits, and wait for it."""
        with self._attempt.clock.on(STORAGE):
            self._saver.close()

    def add_full_weights(self, step: int) -> None:
        """Add the full weights of a sharded model to the checkpoint of the step that they are of, to be packaged."""
        collective = self._loop.collective
        if not collective.is_sharded:
            return
        weights = gather_full_tensors(self._loop.model.state_dict(), keeps=collective.rank == 0)
        if collective.rank == 0:
            self._store.add_weights(step, weights)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Other workers may not come to write their shards of it; storage that failed would fail again.
        if error is not None and (self._loop.collective.is_sharded or isinstance(error, OSError)):
            self._saver.drop()
        self._saver.close()


class ThroughputLog:
    """A metric log that adds throughput and peak memory to the metrics of each evaluation.

    The number of workers is added where it may change, and logged at once.
    """

    def __init__(
        self, journal: Journal | NoJournal, attempt: Attempt, device: torch.device, timeline: WorkerTimeline
    ) -> None:
        self._journal, self._attempt, self._device, self._timeline = journal, attempt, device, timeline
        self._samples, self._busy_s = attempt.samples_before, 0.0
        self._own = {} if attempt.size is None else {WORKERS_METRIC: float(attempt.size)}
        if self._own:
            journal.log(attempt.progress.step, self._own)

    def log(self, step: int, metrics: dict[str, float], at_s: float | None = None) -> None:
        if "val/loss" in metrics:
            perf = self._attempt.rates(self._samples, self._busy_s)
            self._samples, self._busy_s = self._attempt.progress.samples, self._attempt.clock.busy_s
            perf["peak_memory_bytes"] = float(peak_bytes(self._device))
            # MLflow shows system/* on a page of their own, and samples per second among the curves.
            groups = {name: "perf" if name == "samples_per_second" else "system" for name in perf}
            metrics = metrics | {f"{groups[name]}/{name}": value for name, value in perf.items()} | self._own
        self._journal.log(step, metrics, at_s)

    def flush(self) -> None:
        with self._attempt.clock.on(STORAGE):
            since = time.perf_counter()
            self._journal.flush()
            self._attempt.clock.spent["journal"] += time.perf_counter() - since
        self._timeline.steps(self._attempt.progress.step)


class StopFile:
    """Whether the driver has requested a stop; looks for the file a few times a second at most.

    An object store is asked in a thread: its answer may take a while, or not come.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self._next_s, self._found = folder, 0.0, False
        self._thread: threading.Thread | None = None

    def __call__(self) -> bool:
        if self._found or time.monotonic() < self._next_s:
            return self._found
        if self._folder.is_local:
            self._next_s = time.monotonic() + LOCAL_STOP_POLL_S
            self._look()
        elif self._thread is None or not self._thread.is_alive():
            self._next_s = time.monotonic() + STOP_POLL_S
            self._thread = threading.Thread(target=self._look, name="shoal-stop", daemon=True)
            self._thread.start()
        return self._found

    def _look(self) -> None:
        """Look for the file; where it is, say that a checkpoint follows."""
        with contextlib.suppress(OSError):
            self._found = self._folder.is_stop_requested()
            if self._found:
                self._folder.write(SAVING, b"")
