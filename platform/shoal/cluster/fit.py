"""From a checked plan to a finished run: claims the folder, trains, verifies the model, writes the result.

`jobs/train.py` calls it; a trial of a sweep goes its own way (`shoal.cluster.tune`) to the same `work`.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch

from shoal.checkpoint import CheckpointStore
from shoal.cluster import session
from shoal.cluster.attempt import Attempt
from shoal.cluster.deal import deal, spare_cpus
from shoal.cluster.deliver import deliver
from shoal.cluster.facts import facts_of
from shoal.cluster.plan import Plan, measure_model
from shoal.cluster.worker import OUTCOME, Assignment, resident_shard, work
from shoal.collective import Alone
from shoal.data.prepare import Prepared, deal_here
from shoal.errors import DataError, Interrupted, ShoalError, TrainingError
from shoal.models import Size
from shoal.runfolder import ERROR, FACTS, RESULT, SAMPLE, STOP, RunFolder
from shoal.track.journal import JournalReader
from shoal.train import total_steps

logger = logging.getLogger(__name__)

WATCH_S = 0.25


@dataclass(frozen=True)
class Status:
    """Where a running fit stands, for whoever shows it."""

    step: int
    steps: int
    metrics: dict[str, float]
    note: str = ""
    is_training: bool = False  # whether this attempt has made a step


Listener = Callable[[Status], None]


def fit(plan: Plan, folder: RunFolder, listen: Listener = lambda status: None) -> dict[str, Any]:
    """Train to the end, or from where an earlier attempt left off; returns what `result.json` holds.

    Raises:
        Interrupted: the folder's stop file appeared; there is a checkpoint and the run is KILLED.
        ShoalError: the run failed; it is recorded as FAILED with the reason.
    """
    with _Run(plan, folder, listen) as run:
        run.train()
        return run.finish()


class _Run(Attempt):
    """One attempt at a run."""

    def __init__(self, plan: Plan, folder: RunFolder, listen: Listener) -> None:
        super().__init__(plan.config, folder)
        self.plan, self.listen = plan, listen
        self.size = plan.size
        self.has_workers_apart = plan.config.scale.num_workers > 0
        self.is_verified = False

    def __enter__(self) -> Self:
        _, complaints = CheckpointStore(self.folder).latest()
        if self.plan.prepared:
            self._check_unchanged(self.plan.prepared)
        super().__enter__()
        for complaint in complaints:
            logger.warning("%s; an earlier one is used", complaint)
        if self.plan.prepared and self.plan.size:
            self._state_facts(self.plan.prepared, self.plan.size)
        return self

    def train(self) -> None:
        """Run the workers until the work is done, restarting after what is not the user's fault."""
        for leftover in (STOP, OUTCOME, ERROR):
            self.folder.delete(leftover)
        if self.config.scale.num_workers == 0:
            self._train_here()
        else:
            self._train_on_cluster()
        self.outcome = self.folder.read_json(OUTCOME)
        if self.outcome["ended"] == "interrupted":
            self.folder.delete(STOP)
            step = self.outcome["progress"]["step"]
            raise Interrupted(
                f"interrupted at step {step}, after a checkpoint; the same command resumes there"
            )

    def finish(self) -> dict[str, Any]:
        """Draw, save and verify the model, and write the result."""
        self.listen(
            Status(self.outcome["progress"]["step"], self.outcome["steps_planned"], {}, "verifying the model")
        )
        plan = self.plan
        self.is_verified = deliver(
            self.folder, plan.config, plan.source, plan.recipe, self.prepared, self.outcome
        )
        return self.write_result({"status": "FINISHED"})

    def _state_facts(self, prepared: Prepared, size: Size) -> None:
        """Write down what MLflow is to know of the run, and let it be told."""
        if not self.folder.exists(FACTS):
            self.folder.write_json(FACTS, facts_of(self.config, prepared, size))
        self.prepared, self.size = prepared, size
        self.tracker.start()

    def _check_unchanged(self, prepared: Prepared) -> None:
        """Refuse to go on with other data than the run began with."""
        earlier = self.folder.read_json(FACTS)
        if earlier and earlier["dataset"]["digest"] != prepared.fingerprint:
            raise DataError(
                f"data.source='{self.config.data.source}' has changed since this run began (fingerprint "
                f"{earlier['dataset']['digest']}, now {prepared.fingerprint}): set if_exists=new to train on it"
            )

    def _train_here(self) -> None:
        prepared = self.plan.prepared
        assert prepared is not None
        told = self._assignment(prepared)
        device = torch.device("cuda:0" if self.config.scale.use_gpu and session.local_gpus() else "cpu")
        hand = deal_here(self.plan.source, self.plan.recipe, prepared, 1)[0]
        with self._watching(prepared):
            try:
                work(told, resident_shard(told, hand, 0, 1, device), Alone(), device)
            except (ShoalError, KeyboardInterrupt):
                raise
            except Exception as error:
                raise TrainingError(f"{type(error).__name__}: {error}") from error

    def _train_on_cluster(self) -> None:
        from shoal.cluster.workers import Workers

        scale = self.config.scale
        use_gpu = session.connect(scale, spare_cpus(self.plan))
        prepared, hands = deal(self.plan, scale.data_size)
        if self.plan.prepared is None:
            self._check_unchanged(prepared)
            self._state_facts(prepared, measure_model(self.config, prepared))
        with self._watching(prepared):
            Workers(scale, use_gpu, hands).train(self._assignment(prepared), self.folder)

    def _assignment(self, prepared: Prepared) -> Assignment:
        flops = self.size.flops_per_sample if self.size else None
        return Assignment(self.config, self.folder.uri, self.attempt, prepared, self.plan.recipe, flops)

    def _watching(self, prepared: Prepared) -> "_Watcher":
        steps = total_steps(self.config.train, prepared.lanes(self.plan.recipe).steps)
        return _Watcher(self.folder, steps, self.listen, self.mark_killed)

    def write_result(self, ending: dict[str, Any]) -> dict[str, Any]:
        """Write `result.json`, described in the README."""
        outcome = self.folder.read_json(OUTCOME) or {}
        progress = outcome.get("progress", {})
        shares = outcome.get("shares", {})
        rates = outcome.get("rates", {})
        store = CheckpointStore(self.folder)
        names = store.names()
        result = {
            **ending,
            **self.who(),
            "checkpoint": f"{self.folder.uri}/checkpoints/{names[-1]}" if names else None,
            "metrics": progress.get("metrics", {}) | outcome.get("test_metrics", {}),
            "test_loss": outcome.get("test_metrics", {}).get("test/loss"),
            "best": progress.get("best", {}),
            "model": self.size.as_dict() if self.size else None,
            "steps": progress.get("step"),
            "samples_seen": progress.get("samples"),
            "reached_target": progress.get("reached_target"),
            "seconds": outcome.get("seconds"),
            "total_seconds": time.time() - self.started,
            "samples_per_second": rates.get("samples_per_second"),
            "tokens_per_second": rates.get("tokens_per_second"),
            "flops_per_second": rates.get("flops_per_second"),
            "mfu": rates.get("mfu"),
            "peak_memory_bytes": max(outcome["peak_memory_bytes"]) if outcome else None,
            "micro_batch_size": outcome.get("micro_batch_size"),
            "world_size": outcome.get("world_size"),
            "device": outcome.get("device"),
            "gradient_transport": outcome.get("transport"),
            "shares": shares,
            "bottleneck": max(shares, key=lambda name: shares[name]) if shares else None,
            "checkpoint_blocked_s": outcome.get("checkpoint_blocked_s"),
            "is_verified": self.is_verified,
            "sample": self.folder.read(SAMPLE).decode() if self.folder.exists(SAMPLE) else None,
            "attempt": self.attempt,
        }
        self.folder.write_json(RESULT, result)
        return result


class _Watcher:
    """Tells the listener how the journal grows, while the workers work."""

    def __init__(self, folder: RunFolder, steps: int, listen: Listener, on_stop: Callable[[], None]) -> None:
        self._reader, self._steps, self._listen = JournalReader(folder), steps, listen
        self._folder, self._on_stop = folder, on_stop
        self._is_stopping = False
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._work, name="shoal-watcher", daemon=True)
        self._metrics: dict[str, float] = {}
        self._step = 0
        self._began_at: int | None = None

    def __enter__(self) -> None:
        self._tell()
        self._began_at = self._step
        self._thread.start()

    def __exit__(self, *_: Any) -> None:
        self._quit.set()
        self._thread.join()
        self._tell()

    def _work(self) -> None:
        while not self._quit.wait(WATCH_S):
            self._tell()

    def _tell(self) -> None:
        if not self._is_stopping and self._folder.exists(STOP):
            self._is_stopping = True
            self._on_stop()
        for point in self._reader.read():
            self._metrics[point.key] = point.value
            if not point.key.startswith("system/"):
                self._step = max(self._step, point.step)
        is_training = self._began_at is not None and self._step > self._began_at
        self._listen(Status(self._step, self._steps, dict(self._metrics), is_training=is_training))
