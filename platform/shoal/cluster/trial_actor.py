"""Runs trials of a sweep, one after another, in a Ray actor that is reused. Knows one trial at a time.

A trial calls the same `run_worker` as `jobs/train.py`: of one worker in this very process, of several through
`TorchTrainer`, whose workers report to this actor. What happens is told to the sweep's driver as events, when it
asks for them; the driver answers a report with a verdict where its scheduler gives one.
"""

import contextlib
import queue
import socket
import threading
import time
import traceback
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch

from shoal.cluster.shard_store import ShardRefs, make_shard
from shoal.cluster.worker_group import WorkerGroup
from shoal.distributed.process_group import SingleProcess
from shoal.errors import DivergedError, Interrupted
from shoal.runs.mlflow_metadata import run_metadata
from shoal.runs.validate import measure_model
from shoal.runs.worker import OUTCOME, DecideFn, WorkerSpec, run_worker
from shoal.storage.run_folder import ERROR, METADATA, STOP, RunFolder
from shoal.training.device_memory import OUT_OF_MEMORY
from shoal.training.loop import Decision

GATHER_S = 0.5


@dataclass(frozen=True)
class TrialSpec:
    """What the driver tells the actor of one trial; picklable."""

    worker: WorkerSpec
    shard_refs: ShardRefs
    waits_for_decision: bool  # whether reports wait for a verdict
    use_gpu: bool
    is_distributed: bool


@dataclass(frozen=True)
class TrialStarted:
    """A trial's process has taken it up."""

    node: str


@dataclass(frozen=True)
class TrialReport:
    """A trial measured itself."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class TrialEnded:
    """A trial's process is free again.

    Attributes:
        how: finished, stop, pause, interrupted, infeasible or failed.
        error: of a trial that failed: type, message, where.
    """

    how: str
    seconds: float
    outcome: dict[str, Any]
    error: dict[str, str] | None = None


class TrialActor:
    """The actor. Its methods return at once, but for `events`, which waits for the next ones."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[TrialStarted | TrialReport | TrialEnded] = queue.SimpleQueue()
        self._decisions: queue.SimpleQueue[Decision] = queue.SimpleQueue()
        self._spec: TrialSpec | None = None
        self._waited_s = 0.0

    def begin(self, spec: TrialSpec) -> None:
        """Start a trial in a thread; its end comes as an event."""
        self._spec = spec
        threading.Thread(target=self._work, args=(spec,), name="shoal-trial", daemon=True).start()

    def events(self) -> list[TrialStarted | TrialReport | TrialEnded]:
        """Wait for events and return those there are; reports that nobody has to answer are gathered for a while."""
        found = [self._events.get()]
        until = time.monotonic() + (0.0 if self._spec is None or self._spec.waits_for_decision else GATHER_S)
        with contextlib.suppress(queue.Empty):
            # Where a trial runs is told at once: it may be lost the next moment.
            while isinstance(found[-1], TrialReport):
                found.append(self._events.get(timeout=max(0.0, until - time.monotonic())))
        return found

    def answer(self, decision: Decision) -> None:
        self._decisions.put(decision)

    def report(self, step: int, metrics: dict[str, float]) -> Decision:
        """Pass a report on, and its verdict back once there is one."""
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
        folder = RunFolder(spec.worker.folder)
        try:
            for leftover in (STOP, OUTCOME, ERROR):
                folder.delete(leftover)
            spec = replace(
                spec, worker=replace(spec.worker, flops_per_sample=write_metadata(spec.worker, folder))
            )
            if spec.is_distributed:
                decide: DecideFn = _RemoteJudge(ray.get_runtime_context().current_actor)
                WorkerGroup(spec.worker.config.scale, spec.use_gpu, spec.shard_refs).train(
                    spec.worker, folder, decide
                )
            else:
                _work_here(spec, self.report)
            outcome = folder.read_json(OUTCOME)
            ended = TrialEnded(outcome["ended"], self._spent_s(since), outcome)
        except BaseException as error:
            ended = _failed(error, folder, self._spent_s(since))
        self._events.put(ended)

    def _spent_s(self, since: float) -> float:
        """Seconds of work: without those spent waiting for verdicts."""
        return time.perf_counter() - since - self._waited_s


class _RemoteJudge:
    """Asks the trial's actor from another process."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __call__(self, step: int, metrics: dict[str, float]) -> Decision:
        decision: Decision = ray.get(self._actor.report.remote(step, metrics))
        return decision


def _work_here(spec: TrialSpec, decide: DecideFn) -> None:
    device = torch.device("cuda:0" if spec.use_gpu else "cpu")
    shard = make_shard(spec.worker, spec.shard_refs, rank=0, size=1, device=device)
    run_worker(spec.worker, shard, SingleProcess(), device, decide, watches_system=False)


def write_metadata(worker: WorkerSpec, folder: RunFolder) -> int:
    """Write down what MLflow is to know of the trial, and return the FLOPs of a forward pass of a sample.

    The environment is the sweep's, not each trial's.
    """
    metadata = folder.read_json(METADATA)
    if metadata is None:
        config, dataset_info = worker.config, worker.dataset_info
        metadata = run_metadata(
            config, dataset_info, measure_model(config, dataset_info), with_environment=False
        )
        folder.write_json(METADATA, metadata)
    flops: int = metadata["model"]["flops_per_sample"]
    return flops


def _failed(error: BaseException, folder: RunFolder, seconds: float) -> TrialEnded:
    noted = folder.read_json(ERROR) or _described(error)
    folder.write_json(ERROR, noted)
    return TrialEnded(_how(error, noted), seconds, {}, noted)


def _how(error: BaseException, noted: dict[str, Any]) -> str:
    if isinstance(error, Interrupted):
        return "interrupted"
    is_memory = noted["type"] in ("MemoryError", "OutOfMemoryError") or any(
        words in noted["message"] for words in OUT_OF_MEMORY
    )
    return "infeasible" if is_memory or noted["type"] == DivergedError.__name__ else "failed"


def _described(error: BaseException) -> dict[str, Any]:
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "rank": 0,
        "host": socket.gethostname(),
        "type": type(error).__name__,
        "message": str(error) or type(error).__name__,
        "where": f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "unknown",
        "traceback": "".join(traceback.format_exception(error)),
        "exit_code": getattr(error, "exit_code", 1),
    }
