"""From a checked plan to a finished run: trains, verifies the model, writes the result.

`jobs/train.py` calls it. Trials of a sweep call the same `run_worker` (`shoal.cluster.trial_actor`).
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self

from shoal.cluster import session
from shoal.cluster.shard_store import ShardRefs, Shards, spare_cpus
from shoal.data.dataset_info import DatasetInfo
from shoal.data.loader import Shard
from shoal.data.partition import partition_source
from shoal.data.redraw import RedrawnRows, RedrawnShard
from shoal.data.sampler import Lanes
from shoal.distributed.process_group import SingleProcess
from shoal.errors import DataError, Interrupted, ShoalError, TrainingError
from shoal.models.size import ModelSize
from shoal.runs.data_notes import data_notes, write_data_report
from shoal.runs.failure_policy import KINDS, account_of, decide, describe, fault_of
from shoal.runs.finalize import note_resizes, package_and_verify, show_goodput
from shoal.runs.goodput import measure_goodput, why_submitted
from shoal.runs.lifecycle import RunLifecycle
from shoal.runs.locations import this_command
from shoal.runs.machine import local_device
from shoal.runs.mlflow_metadata import model_record, run_metadata
from shoal.runs.resident import resident_shard
from shoal.runs.resolve import as_begun
from shoal.runs.timeline import Timeline
from shoal.runs.validate import RunPlan, check_training
from shoal.runs.worker import WorkerSpec, run_worker
from shoal.storage.failures import storage_error
from shoal.storage.lease import now_ms
from shoal.storage.records import ErrorRecord, FailureRecord, Metadata, Outcome, Status, TrainResult
from shoal.storage.run_folder import CHECKPOINTS, SAMPLE, SAVING, RunFolder
from shoal.tracking.journal import JournalReader
from shoal.tracking.status import Listener, TrainStatus, ignore
from shoal.training.checkpoint.contents import checkpoint_name, checkpoint_step
from shoal.training.checkpoint.store import CheckpointStore
from shoal.training.clock import Clock
from shoal.training.loop import total_steps

logger = logging.getLogger(__name__)

WATCH_S = 0.25
SAY_AFTER_S, SAY_EVERY_S = 5.0, 30.0  # that a stop is waited for


def train(plan: RunPlan, folder: RunFolder, listen: Listener = ignore) -> TrainResult:
    """Train to the end, from the last checkpoint of an earlier attempt where there is one.

    Raises:
        Interrupted: the folder's stop file appeared; there is a checkpoint and the run is KILLED.
        ShoalError: the run failed; it is recorded as FAILED with the reason.
    """
    plan = replace(plan, config=as_begun(plan.config, folder))
    with _TrainingRun(plan, folder, listen) as run:
        run.train()
        return run.finish()


def read_and_check(plan: RunPlan) -> RunPlan:
    """Have a cluster read data that are too large for this process, and check the rest of the config against them.

    Raises:
        UserError: the first rule that is broken.
    """
    from shoal.cluster import ingest

    session.connect(plan.config.scale, spare_cpus(plan))
    try:
        _, dataset_info, _ = ingest.read_and_inspect(plan.source, plan.preprocessing)
    finally:
        session.disconnect()
    size = check_training(plan.config, dataset_info, plan.source, plan.preprocessing)
    return replace(plan, dataset_info=dataset_info, size=size)


class _TrainingRun(RunLifecycle):
    """One attempt at a run."""

    def __init__(self, plan: RunPlan, folder: RunFolder, listen: Listener) -> None:
        super().__init__(plan.config, folder)
        self.plan, self.listen = plan, listen
        self.size = plan.size
        self.has_workers_apart = plan.config.scale.most_workers > 0
        self.is_verified = False

    def __enter__(self) -> Self:
        checkpoint, complaints = CheckpointStore(self.folder).latest()
        self._resumes_at = (checkpoint_step(checkpoint) if checkpoint else None) or 0
        if self.plan.dataset_info:
            self._check_unchanged(self.plan.dataset_info)
        why = why_submitted(self.folder)
        super().__enter__()
        self.timeline = Timeline(self.folder, self.attempt)
        lost = "down" if self.attempt > 1 else None
        self.timeline.mark("start", at_ms=session.submitted_ms(self.plan.submitted_ms), why=why, lost=lost)
        for complaint in complaints:
            logger.warning("%s; an earlier one is used", complaint)
        return self

    def train(self) -> None:
        """Run the workers until they finish; lost ones are restarted."""
        if self.plan.dataset_info and self.plan.size:
            self._write_metadata(self.plan.dataset_info, self.plan.size)
        self.folder.forget_stop()
        for leftover in (Outcome.file, ErrorRecord.file, FailureRecord.file):
            self.folder.delete(leftover)
        try:
            if self.config.scale.most_workers == 0:
                self._train_here()
            else:
                self._train_on_cluster()
        except BaseException:
            self.timeline.mark("down", lost="down")
            raise
        self.timeline.mark("delivery")
        outcome = self._outcome()
        if outcome.ended == "interrupted":
            self.folder.forget_stop()
            raise Interrupted(
                f"interrupted at step {outcome.progress.step}, after a checkpoint; the same command resumes there"
            )

    def finish(self) -> TrainResult:
        """Draw, save and verify the model, and write the result."""
        plan, outcome = self.plan, self._outcome()
        self.listen(TrainStatus(outcome.progress.step, outcome.steps_planned, {}, "verifying the model"))
        with self.stops_at_once():
            self.is_verified = package_and_verify(
                self.folder, plan.config, plan.source, plan.preprocessing, self.dataset_info, outcome
            )
        return self.write_result("FINISHED")

    def _outcome(self) -> Outcome:
        outcome = self.folder.load(Outcome)
        if outcome is None:
            raise TrainingError(
                f"worker 0 ended without '{self.folder.uri}/{Outcome.file}': run the same command"
            )
        return outcome

    def _write_metadata(self, dataset_info: DatasetInfo, size: ModelSize) -> None:
        """Write what MLflow receives besides metrics, and start the sync."""
        if self.folder.load(Metadata) is None:
            self.folder.save(run_metadata(self.config, dataset_info, size))
        write_data_report(self.folder, self.plan.source, dataset_info)
        self.dataset_info, self.size = dataset_info, size
        self.tracker.start()

    def _check_unchanged(self, dataset_info: DatasetInfo) -> None:
        """Refuse to continue with other data than the run began with."""
        earlier = self.folder.load(Metadata)
        if earlier and earlier.dataset and earlier.dataset.digest != dataset_info.fingerprint:
            raise DataError(
                f"data.source='{self.config.data.source}' has changed since this run began (fingerprint "
                f"{earlier.dataset.digest}, now {dataset_info.fingerprint}): set if_exists=new to train on it"
            )

    def _train_here(self) -> None:
        dataset_info = self.plan.dataset_info
        assert dataset_info is not None
        spec = self._worker_spec(dataset_info)
        device = local_device(self.config.scale)
        rows = partition_source(self.plan.source, self.plan.preprocessing, dataset_info, 1)[0]
        shard: Shard = resident_shard(spec, rows, 0, 1, device)
        if redrawn := RedrawnRows.of(self.plan.source, self.plan.preprocessing, dataset_info):
            shard = RedrawnShard(shard, redrawn, device)
        clock = Clock()
        self.timeline.mark("start", workers=0)
        with self._watching(dataset_info):
            try:
                run_worker(spec, shard, SingleProcess(), device, clock=clock)
            except Exception as error:
                self._write_failure(error, clock, shard.lanes)
                failure = storage_error(error, self.folder.uri)
                if failure and self.folder.is_stop_requested(by_others=False):
                    raise Interrupted(f"interrupted without a new checkpoint: {failure}") from error
                if isinstance(error, ShoalError):
                    raise
                raise failure or TrainingError(f"{type(error).__name__}: {error}") from error

    def _write_failure(self, error: Exception, clock: Clock, lanes: Lanes) -> None:
        """Leave the record that a failure of workers has; nothing is tried again in this process."""
        fault = fault_of(account_of(error, clock, lanes=lanes))
        failure = decide([fault], None, None, max_failures=0).record.replace(
            message=f"{KINDS[fault.symptom]}: {describe(fault)}",
            attempt=self.attempt,
            at_ms=now_ms(),
            next_command=this_command(),
        )
        with contextlib.suppress(OSError):  # it may be what failed
            self.folder.save(failure)

    def _train_on_cluster(self) -> None:
        from shoal.cluster.worker_group import WorkerGroup

        scale = self.config.scale
        self.closing.callback(session.disconnect)
        kind = session.connect(scale, spare_cpus(self.plan))
        with self.stops_at_once():
            shards = Shards(self.plan, scale.data_size)
        dataset_info = shards.dataset_info
        if self.plan.dataset_info is None:
            self._check_unchanged(dataset_info)
            for note in data_notes(self.plan.source, dataset_info):
                logger.warning("%s", note)
            plan = self.plan
            size = check_training(plan.config, dataset_info, plan.source, plan.preprocessing)
            self._write_metadata(dataset_info, size)

        def divide(parts: int) -> ShardRefs:
            with self.stops_at_once():
                return shards(parts)

        with self._watching(dataset_info):
            group = WorkerGroup(scale, kind, divide, this_command(), self.timeline)
            group.train(self._worker_spec(dataset_info), self.folder)

    def _worker_spec(self, dataset_info: DatasetInfo) -> WorkerSpec:
        flops = self.size.flops_per_sample if self.size else None
        return WorkerSpec(
            self.config,
            self.folder.uri,
            self.attempt,
            dataset_info,
            self.plan.preprocessing,
            flops,
            objects=self.objects,
        )

    def _watching(self, dataset_info: DatasetInfo) -> "_Watcher":
        per_epoch = dataset_info.lanes(self.plan.preprocessing).steps
        steps = total_steps(self.config.train, per_epoch)
        return _Watcher(self.folder, steps, per_epoch, self._resumes_at, self.listen, self.mark_killed)

    def write_result(self, status: Status, reason: str | None = None) -> TrainResult:
        """Write `result.json`, as docs/reference/result.md describes it."""
        outcome = self.folder.load(Outcome)
        goodput = measure_goodput(self.folder, self.timeline.mark("down"))
        if goodput and outcome and status == "FINISHED":
            show_goodput(self.folder, self.attempt, outcome.progress.step, goodput)
        names = CheckpointStore(self.folder).names()
        result = TrainResult(
            status=status,
            reason=reason,
            **self.who(),
            **(_measured(outcome) if outcome else {}),
            checkpoint=f"{self.folder.uri}/{CHECKPOINTS}/{_result_checkpoint(names, outcome)}"
            if names
            else None,
            model=model_record(self.size) if self.size else None,
            total_seconds=self.seconds,
            is_verified=self.is_verified,
            sample=self.folder.read(SAMPLE).decode() if self.folder.exists(SAMPLE) else None,
            attempt=self.attempt,
            goodput=goodput,
            resizes=note_resizes(self.folder) if self.config.scale.is_elastic else [],
        )
        self.folder.save(result)
        return result


def _result_checkpoint(names: Sequence[str], outcome: Outcome | None) -> str:
    """Return the checkpoint of the weights that are the result, or the last one."""
    selected = checkpoint_name(outcome.weights_step) if outcome else names[-1]
    return selected if selected in names else names[-1]


def _measured(outcome: Outcome) -> dict[str, Any]:
    """Return the fields of a result that rank 0 measured."""
    progress, shares, rates = outcome.progress, outcome.shares, outcome.rates
    return {
        "metrics": outcome.metrics,
        "test_loss": outcome.test_metrics.get("test/loss"),
        "best": progress.best,
        "steps": progress.step,
        "samples_seen": progress.samples,
        "reached_target": progress.reached_target,
        "ended": outcome.ended_because,
        "stopped_early": progress.ended_by == "early_stopping",
        "steps_planned": outcome.steps_planned,
        "selected_step": outcome.selected_step,
        "seconds": outcome.seconds,
        "samples_per_second": rates.get("samples_per_second"),
        "tokens_per_second": rates.get("tokens_per_second"),
        "flops_per_second": rates.get("flops_per_second"),
        "mfu": rates.get("mfu"),
        "peak_memory_bytes": max(outcome.peak_memory_bytes, default=None),
        "micro_batch_size": outcome.micro_batch_size,
        "world_size": outcome.world_size,
        "depends_on_workers": outcome.depends_on_workers,
        "device": outcome.device,
        "gradient_transport": outcome.transport,
        "shares": shares,
        "bottleneck": max(shares, key=lambda name: shares[name]) if shares else None,
        "checkpoint_blocked_s": outcome.checkpoint_blocked_s,
    }


class _Watcher:
    """Tells the listener how the journal grows, while the workers work."""

    def __init__(
        self,
        folder: RunFolder,
        steps: int,
        per_epoch: int,
        resumes_at: int,
        listen: Listener,
        on_stop: Callable[[], None],
    ) -> None:
        self._reader, self._steps, self._listen = JournalReader(folder), steps, listen
        self._steps_per_epoch = per_epoch
        self._folder, self._on_stop = folder, on_stop
        self._stopping_since_s: float | None = None
        self._said = 0  # how often it was said that the stop is waited for
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._work, name="shoal-watcher", daemon=True)
        self._metrics: dict[str, float] = {}
        self._step = resumes_at
        self._began_at: int | None = None

    def __enter__(self) -> None:
        self._reader.skip()
        self._tell()
        self._began_at = self._step
        self._thread.start()

    def __exit__(self, *_: Any) -> None:
        self._quit.set()
        self._thread.join()
        self._reader.look_again()
        self._tell()

    def _work(self) -> None:
        while not self._quit.wait(WATCH_S):
            self._tell()

    def _tell(self) -> None:
        try:
            if self._stopping_since_s is None and self._folder.is_stop_requested(by_others=False):
                self._stopping_since_s = time.monotonic()
                self._on_stop()
            self._say_what_is_waited_for()
            points = self._reader.read()
        except OSError:  # storage that is away for a moment; what fails for good fails the training itself
            logger.debug("the run folder cannot be read", exc_info=True)
            return
        for point in points:
            self._metrics[point.key] = point.value
            # Before the first step these are earlier attempts' points, which may lie beyond the checkpoint.
            if self._began_at is not None and not point.key.startswith("system/"):
                self._step = max(self._step, point.step)
        is_training = self._began_at is not None and self._step > self._began_at
        self._listen(
            TrainStatus(
                self._step,
                self._steps,
                dict(self._metrics),
                is_training=is_training,
                steps_per_epoch=self._steps_per_epoch,
                new_points=points,
            )
        )

    def _say_what_is_waited_for(self) -> None:
        if self._stopping_since_s is None:
            return
        waited_s = time.monotonic() - self._stopping_since_s
        if waited_s < SAY_AFTER_S + self._said * SAY_EVERY_S:
            return
        self._said += 1
        what = (
            "the checkpoint is being written" if self._folder.exists(SAVING) else "the workers end their step"
        )
        note = f"stopping: {what}, {waited_s:.0f} s so far; a second Ctrl-C ends the job without it"
        self._listen(TrainStatus(self._step, self._steps, {}, note))
