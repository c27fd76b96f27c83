"""Runs trials of a sweep, one after another, in a Ray actor that is reused. Knows one trial at a time.

A trial calls the same `run_worker` as `jobs/train.py`: with one worker in this very process, with several through
`TorchTrainer`, where the workers report to this actor. The sweep's driver asks for events and so learns what
happens; where its scheduler decides, it answers each report with a decision.
"""

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray

from shoal.cluster.session import own_device
from shoal.cluster.shard_store import ShardRefs, make_shard
from shoal.cluster.status_board import Observer
from shoal.cluster.worker_failure import load_error
from shoal.cluster.worker_group import WorkerGroup
from shoal.devices import Kind
from shoal.distributed.process_group import SingleProcess
from shoal.errors import DivergedError, Interrupted, LeaseLostError
from shoal.processes import lossy_streams
from shoal.runs.hang import WorkerStatus
from shoal.runs.mlflow_metadata import run_metadata
from shoal.runs.validate import measure_model
from shoal.runs.worker import DecideFn, WorkerSpec, run_worker
from shoal.storage.failures import storage_error
from shoal.storage.records import Ending, ErrorRecord, Metadata, Outcome
from shoal.storage.run_folder import RunFolder
from shoal.training.clock import Clock
from shoal.training.device_memory import OUT_OF_MEMORY
from shoal.training.loop import Decision

GATHER_S = 0.5

# "left": with a checkpoint, for a host that is being drained.
TrialEnding = Ending | Literal["infeasible", "failed", "left"]


@dataclass(frozen=True)
class TrialSpec:
    """What the driver passes to the actor for one trial; picklable."""

    worker: WorkerSpec
    shard_refs: Mapping[int, ShardRefs]  # by the number of parts
    waits_for_decision: bool  # whether training waits at each report for the driver's decision
    kind: Kind  # of the device that each worker has
    is_distributed: bool


@dataclass(frozen=True)
class TrialStarted:
    """A process has begun to work on a trial."""

    node: str


@dataclass(frozen=True)
class TrialReport:
    """A trial was evaluated."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class TrialEnded:
    """A trial's process is free again.

    Attributes:
        seconds: of work, without waiting for decisions.
        outcome: None for a trial that raised.
        error: of a trial that raised.
    """

    how: TrialEnding
    seconds: float
    outcome: Outcome | None = None
    error: ErrorRecord | None = None


class TrialActor:
    """The actor. Its methods return at once, except `events`, which waits for the next ones."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[TrialStarted | TrialReport | TrialEnded] = queue.SimpleQueue()
        self._decisions: queue.SimpleQueue[Decision] = queue.SimpleQueue()
        self._spec: TrialSpec | None = None
        self._observer: Observer | None = None
        self._waited_s = 0.0
        self._is_to_leave = False
        contextlib.ExitStack().enter_context(lossy_streams())  # for as long as the process lives

    def begin(self, spec: TrialSpec) -> None:
        """Start a trial in a thread; its end comes as an event."""
        self._spec = spec
        threading.Thread(target=self._work, args=(spec,), name="shoal-trial", daemon=True).start()

    def events(self) -> list[TrialStarted | TrialReport | TrialEnded]:
        """Wait for events and return those there are; reports that need no answer are gathered for a while."""
        found = [self._events.get()]
        until = time.monotonic() + (0.0 if self._spec is None or self._spec.waits_for_decision else GATHER_S)
        with contextlib.suppress(queue.Empty):
            # Only reports are gathered. The node of a trial goes out at once: its process may die the next moment.
            while isinstance(found[-1], TrialReport):
                found.append(self._events.get(timeout=max(0.0, until - time.monotonic())))
        return found

    def status(self) -> WorkerStatus | None:
        """Return what the training in this process does; None: there is none."""
        observer = self._observer
        return observer.status() if observer else None

    def leave(self) -> None:
        """Ask the trial to write a checkpoint and end: this host is being drained."""
        self._is_to_leave = True

    def answer(self, decision: Decision) -> None:
        self._decisions.put(decision)

    def report(self, step: int, metrics: dict[str, float]) -> Decision:
        """Pass a report to the driver and return its decision."""
        assert self._spec is not None
        self._events.put(TrialReport(step, metrics))
        if not self._spec.waits_for_decision:
            return "continue"
        since = time.perf_counter()
        decision = self._decisions.get()
        self._waited_s += time.perf_counter() - since
        return decision

    def _work(self, spec: TrialSpec) -> None:
        since, self._waited_s = time.perf_counter(), 0.0
        self._events.put(TrialStarted(socket.gethostname()))
        spec.worker.enter_process()
        folder = spec.worker.open_folder()
        try:
            outcome = self._train(spec, folder)
            how: TrialEnding = outcome.ended
            if how == "interrupted" and self._is_to_leave and not folder.is_stop_requested():
                how = "left"
            ended = TrialEnded(how, self._spent_s(since), outcome)
        except BaseException as error:
            ended = _failed(error, folder, self._spent_s(since))
        self._observer = None
        self._events.put(ended)

    def _train(self, spec: TrialSpec, folder: RunFolder) -> Outcome:
        folder.forget_stop()
        for leftover in (Outcome.file, ErrorRecord.file):
            folder.delete(leftover)
        worker = replace(spec.worker, flops_per_sample=write_metadata(spec.worker, folder))
        if spec.is_distributed:
            decide: DecideFn = _RemoteDecide(ray.get_runtime_context().current_actor)
            group = WorkerGroup(worker.config.scale, spec.kind, spec.shard_refs.__getitem__)
            group.train(worker, folder, decide)
        else:
            device = own_device(spec.kind)
            shard = make_shard(worker, spec.shard_refs[1], rank=0, size=1, device=device)
            clock = Clock()
            self._observer = Observer(0, clock)
            leaves = self._leaves_between_evaluations(worker, clock)
            run_worker(worker, shard, SingleProcess(), device, self.report, False, clock, leaves)
        outcome = folder.load(Outcome)
        assert outcome is not None, "rank 0 writes it when training has ended"
        return outcome

    def _leaves_between_evaluations(self, worker: WorkerSpec, clock: Clock) -> Callable[[], bool]:
        """Return whether the trial is to leave at a step: at one that is evaluated, the driver waits for its report."""
        per_epoch = worker.dataset_info.lanes(worker.preprocessing).steps
        every = worker.config.train.evaluate_every_steps or per_epoch
        return lambda: self._is_to_leave and (clock.step + 1) % every != 0

    def _spent_s(self, since: float) -> float:
        """Return the seconds of work, without those of waiting for decisions."""
        return time.perf_counter() - since - self._waited_s


class _RemoteDecide:
    """Asks the trial's actor from another process."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __call__(self, step: int, metrics: dict[str, float]) -> Decision:
        decision: Decision = ray.get(self._actor.report.remote(step, metrics))
        return decision


def write_metadata(worker: WorkerSpec, folder: RunFolder) -> int:
    """Write the trial's metadata for MLflow once, and return the FLOPs of a forward pass of one sample.

    The environment is left out: it is the sweep's.
    """
    metadata = folder.load(Metadata)
    if metadata is None:
        config, dataset_info = worker.config, worker.dataset_info
        size = measure_model(config, dataset_info)
        metadata = run_metadata(config, dataset_info, size, with_environment=False)
        folder.save(metadata)
    assert metadata.model is not None, "every run's metadata has it"
    return metadata.model.flops_per_sample


def _failed(error: BaseException, folder: RunFolder, seconds: float) -> TrialEnded:
    record = load_error(folder) or ErrorRecord.from_exception(storage_error(error) or error)
    with contextlib.suppress(OSError, LeaseLostError):  # the driver has it anyway
        folder.save(record)
    return TrialEnded(_how(error, record), seconds, error=record)


def _how(error: BaseException, record: ErrorRecord) -> TrialEnding:
    if isinstance(error, Interrupted):
        return "interrupted"
    is_memory = record.type in ("MemoryError", "OutOfMemoryError") or any(
        words in record.message for words in OUT_OF_MEMORY
    )
    return "infeasible" if is_memory or record.type == DivergedError.__name__ else "failed"
