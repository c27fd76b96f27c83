"""Runs trials of a sweep, one after another, in a Ray actor that is reused. Knows one trial at a time.

A trial calls the same `work` as `jobs/train.py`: of one worker in this very process, of several through
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

from shoal.cluster.deal import Hands, shard_of
from shoal.cluster.facts import facts_of
from shoal.cluster.plan import measure_model
from shoal.cluster.worker import OUTCOME, Assignment, Judge, work
from shoal.cluster.workers import Workers
from shoal.collective import Alone
from shoal.errors import DivergedError, Interrupted
from shoal.memory import OUT_OF_MEMORY
from shoal.runfolder import ERROR, FACTS, STOP, RunFolder
from shoal.train import Verdict

GATHER_S = 0.5


@dataclass(frozen=True)
class Order:
    """What the driver tells the actor of one trial; picklable."""

    told: Assignment
    hands: Hands
    judges: bool  # whether reports wait for a verdict
    use_gpu: bool
    is_distributed: bool


@dataclass(frozen=True)
class Began:
    """A trial's process has taken it up."""

    node: str


@dataclass(frozen=True)
class Reported:
    """A trial measured itself."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Ended:
    """A trial's process is free again.

    Attributes:
        how: finished, stop, pause, interrupted, infeasible or failed.
        error: of a trial that failed: type, message, where.
    """

    how: str
    seconds: float
    outcome: dict[str, Any]
    error: dict[str, str] | None = None


class TrialRunner:
    """The actor. Its methods return at once, but for `events`, which waits for the next ones."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Began | Reported | Ended] = queue.SimpleQueue()
        self._verdicts: queue.SimpleQueue[Verdict] = queue.SimpleQueue()
        self._order: Order | None = None
        self._waited_s = 0.0

    def begin(self, order: Order) -> None:
        """Start a trial in a thread; its end comes as an event."""
        self._order = order
        threading.Thread(target=self._work, args=(order,), name="shoal-trial", daemon=True).start()

    def events(self) -> list[Began | Reported | Ended]:
        """Wait for events and return those there are; reports that nobody has to answer are gathered for a while."""
        found = [self._events.get()]
        until = time.monotonic() + (0.0 if self._order is None or self._order.judges else GATHER_S)
        with contextlib.suppress(queue.Empty):
            # Where a trial runs is told at once: it may be lost the next moment.
            while isinstance(found[-1], Reported):
                found.append(self._events.get(timeout=max(0.0, until - time.monotonic())))
        return found

    def answer(self, verdict: Verdict) -> None:
        self._verdicts.put(verdict)

    def report(self, step: int, metrics: dict[str, float]) -> Verdict:
        """Pass a report on, and its verdict back once there is one."""
        assert self._order is not None
        self._events.put(Reported(step, metrics))
        if not self._order.judges:
            return "continue"
        since = time.perf_counter()
        verdict = self._verdicts.get()
        self._waited_s += time.perf_counter() - since
        return verdict

    def _work(self, order: Order) -> None:
        since, self._waited_s = time.perf_counter(), 0.0
        self._events.put(Began(socket.gethostname()))
        folder = RunFolder(order.told.folder)
        try:
            for leftover in (STOP, OUTCOME, ERROR):
                folder.delete(leftover)
            order = replace(order, told=replace(order.told, flops_per_sample=state_facts(order.told, folder)))
            if order.is_distributed:
                judge: Judge = _RemoteJudge(ray.get_runtime_context().current_actor)
                Workers(order.told.config.scale, order.use_gpu, order.hands).train(order.told, folder, judge)
            else:
                _work_here(order, self.report)
            outcome = folder.read_json(OUTCOME)
            ended = Ended(outcome["ended"], self._spent_s(since), outcome)
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

    def __call__(self, step: int, metrics: dict[str, float]) -> Verdict:
        verdict: Verdict = ray.get(self._actor.report.remote(step, metrics))
        return verdict


def _work_here(order: Order, judge: Judge) -> None:
    device = torch.device("cuda:0" if order.use_gpu else "cpu")
    shard = shard_of(order.told, order.hands, rank=0, size=1, device=device)
    work(order.told, shard, Alone(), device, judge, watches_system=False)


def state_facts(told: Assignment, folder: RunFolder) -> int:
    """Write down what MLflow is to know of the trial, and return the FLOPs of a forward pass of a sample.

    The environment is the sweep's, not each trial's.
    """
    facts = folder.read_json(FACTS)
    if facts is None:
        config, prepared = told.config, told.prepared
        facts = facts_of(config, prepared, measure_model(config, prepared), with_environment=False)
        folder.write_json(FACTS, facts)
    flops: int = facts["model"]["flops_per_sample"]
    return flops


def _failed(error: BaseException, folder: RunFolder, seconds: float) -> Ended:
    noted = folder.read_json(ERROR) or _described(error)
    folder.write_json(ERROR, noted)
    return Ended(_how(error, noted), seconds, {}, noted)


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
