"""From a checked plan to a finished run: claims the folder, trains, verifies the model, writes the result.

The same `fit` serves `jobs/train.py`, `ray job submit` and every trial of a sweep.
"""

import logging
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shoal.checkpoint import WEIGHTS, CheckpointStore
from shoal.cluster import session
from shoal.cluster.config import (
    artifact_location,
    resolve_tracking_uri,
)
from shoal.cluster.facts import facts_of
from shoal.cluster.plan import Plan, measure_model
from shoal.cluster.worker import OUTCOME, Assignment, resident_shard, work
from shoal.collective import Alone
from shoal.config import to_yaml
from shoal.data.order import SPLITS, TEST, VALIDATION
from shoal.data.prepare import Prepared, deal_here, number_blocks
from shoal.errors import (
    DataError,
    Interrupted,
    ShoalError,
    TrainingError,
)
from shoal.models import Size
from shoal.predict import DESCRIPTION, describe
from shoal.runfolder import (
    CONFIG,
    ERROR,
    FACTS,
    IDENTITY,
    MODEL,
    PICTURES,
    RESULT,
    STOP,
    RunFolder,
)
from shoal.track.guardian import DONE, KILLED, Guardian
from shoal.track.journal import JournalReader
from shoal.track.pictures import confusion_matrix, loss_curve
from shoal.track.registry import save_model
from shoal.track.tracker import Tracker
from shoal.track.verify import verify
from shoal.train import total_steps

logger = logging.getLogger(__name__)

BEAT_S = 5.0
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
    run = _Run(plan, folder, listen)
    with run:
        run.train()
        return run.finish()


def request_stop(folder: RunFolder, why: str) -> None:
    """Ask a running fit to write a checkpoint and end; `why` is the signal's name, for the record."""
    folder.write(STOP, why.encode())


class _Run:
    """One attempt at a run: everything opened here is closed here, whichever way it ends."""

    def __init__(self, plan: Plan, folder: RunFolder, listen: Listener) -> None:
        self.plan, self.folder, self.listen = plan, folder, listen
        self.config = plan.config
        self.size = plan.size
        self.started = time.time()

    def __enter__(self) -> "_Run":
        _, complaints = CheckpointStore(self.folder).latest()
        if self.plan.prepared:
            self._check_unchanged(self.plan.prepared)
        self._mint()
        for complaint in complaints:
            logger.warning("%s; an earlier one is used", complaint)
        self._quit_beating = threading.Event()
        threading.Thread(target=self._beat, name="shoal-lease", daemon=True).start()
        self.guardian = Guardian(self.folder.uri)
        self.tracker = Tracker(self.folder)
        if self.plan.prepared and self.plan.size:
            self._state_facts(self.plan.prepared, self.plan.size)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        if kind is None:
            status, reason = "FINISHED", None
        elif issubclass(kind, Interrupted | KeyboardInterrupt):
            status, reason = "KILLED", str(error) or "interrupted"
        else:
            status, reason = "FAILED", f"{kind.__name__}: {error}"
        self._quit_beating.set()
        self.folder.update_json(IDENTITY, status=status, reason=reason, end_ms=int(time.time() * 1000))
        if status != "FINISHED":
            self._write_result({"status": status, "reason": reason})
        if not self.tracker.is_started:
            self.tracker.start()
        if not self.tracker.close():
            logger.warning(
                "MLflow at %s does not answer (%s): everything is kept in the run folder; deliver it later with: "
                "python jobs/sync.py %s",
                self.folder.identity()["tracking_uri"],
                self.tracker.problem,
                self.folder.uri,
            )
        if self.config.scale.num_workers:
            session.disconnect()
        self.folder.drop_lease()
        self.guardian.tell(DONE)

    def train(self) -> None:
        """Run the workers until the work is done, restarting after what is not the user's fault."""
        for leftover in (STOP, OUTCOME, ERROR):
            self.folder.delete(leftover)
        if self.config.scale.num_workers == 0:
            self._train_here()
        else:
            self._train_on_cluster()
        self.outcome = self.folder.read_json(OUTCOME)
        if not self.outcome["is_finished"]:
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
        self._draw()
        self._save_and_verify()
        result = self._write_result({"status": "FINISHED"})
        return result

    def _mint(self) -> None:
        config, uri = self.config, resolve_tracking_uri(self.config.track)
        self.folder.create()
        name = self.folder.uri.rpartition("/")[2]
        self.attempt = self.folder.take_lease()
        self.folder.mint(
            name=name,
            experiment=config.experiment_name,
            tracking_uri=uri,
            artifact_location=artifact_location(uri),
        )
        self.folder.update_json(
            IDENTITY,
            status="RUNNING",
            reason=None,
            tracking_uri=uri,
            registered_model_name=config.track.registered_model_name,
        )
        named = config.replace({"run_name": name})
        if not self.folder.exists(CONFIG):
            self.folder.write(CONFIG, to_yaml(named).encode())

    def _beat(self) -> None:
        while not self._quit_beating.wait(BEAT_S):
            try:
                self.folder.beat()
            except OSError:
                logger.debug("lease not renewed", exc_info=True)

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

        workers = Workers(self.plan)
        prepared = workers.prepare()
        if self.plan.prepared is None:
            self._check_unchanged(prepared)
            self._state_facts(prepared, measure_model(self.config, prepared))
        with self._watching(prepared):
            workers.train(self._assignment(prepared), self.folder)

    def _assignment(self, prepared: Prepared) -> Assignment:
        return Assignment(self.config, self.folder.uri, self.attempt, prepared, self.plan.recipe)

    def _watching(self, prepared: Prepared) -> "_Watcher":
        steps = total_steps(self.config.train, prepared.lanes(self.plan.recipe).steps)
        return _Watcher(self.folder, steps, self.listen, self._mark_killed)

    def _mark_killed(self) -> None:
        """Record the interrupt before the workers have stopped: this process may have seconds to live."""
        self.guardian.tell(KILLED)
        self.tracker.mark("KILLED", f"interrupted by {self.folder.read(STOP).decode()}")

    def _draw(self) -> None:
        points: dict[str, list[tuple[int, float]]] = {}
        for point in JournalReader(self.folder).read():
            points.setdefault(point.key, []).append((point.step, point.value))
        names = [name for name in ("train/loss", "val/loss") if name in points]
        curves = {str(name): points[name] for name in names}
        title = self.folder.identity()["name"]
        if curves:
            self.folder.write(f"{PICTURES}/loss_curve.png", loss_curve(curves, title))
        if "confusion" in self.outcome:
            counts = np.array(self.outcome["confusion"])
            classes = self.prepared.transform.label.classes
            matrix = confusion_matrix(counts, classes, f"{title}: {self.outcome['split']} split")
            self.folder.write(f"{PICTURES}/confusion_matrix.png", matrix)

    def _save_and_verify(self) -> None:
        """Save the final weights as a pyfunc model and have a clean process reproduce their metric."""
        config, outcome = self.config, self.outcome
        expected, split = outcome.get("val_metrics"), VALIDATION
        if expected is None:
            expected, split = outcome.get("test_metrics"), TEST
        with tempfile.TemporaryDirectory() as scratch:
            data, model = Path(scratch) / "weights", Path(scratch) / MODEL
            data.mkdir()
            store = CheckpointStore(self.folder)
            name = f"step-{outcome['progress']['step']:06d}"
            (data / WEIGHTS).write_bytes(self.folder.read(f"checkpoints/{name}/{WEIGHTS}"))
            (data / DESCRIPTION).write_text(
                describe(config.model, self.prepared.transform, config.task, config.data, config.seed)
            )
            save_model(model, data, _example(self.plan, split), config.model.name)
            verified = None
            if expected:
                plain = {key.partition("/")[2]: value for key, value in expected.items()}
                verify(model, split, plain)
                metric = f"{split[:3] if split == VALIDATION else split}/loss"
                verified = {"metric": metric, "value": expected[metric], "data": self.prepared.fingerprint}
            self.folder.put_folder(model, MODEL)
        self.folder.update_json(IDENTITY, verified=verified)
        self.verified = verified
        self.best_checkpoint = store.best()

    def _write_result(self, ending: dict[str, Any]) -> dict[str, Any]:
        identity = self.folder.identity()
        outcome = self.folder.read_json(OUTCOME) or {}
        progress = outcome.get("progress", {})
        shares = outcome.get("shares", {})
        seconds = outcome.get("attempt_seconds")
        store = CheckpointStore(self.folder)
        names = store.names()
        result = {
            **ending,
            "run_name": identity["name"],
            "experiment_name": identity["experiment"],
            "mlflow_run_id": identity.get("run_id") or self.tracker.run_id,
            "tracking_uri": identity["tracking_uri"],
            "run_folder": self.folder.uri,
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
            "samples_per_second": _rate(outcome, seconds),
            "world_size": outcome.get("world_size"),
            "device": outcome.get("device"),
            "gradient_transport": outcome.get("transport"),
            "shares": shares,
            "bottleneck": max(shares, key=lambda name: shares[name]) if shares else None,
            "checkpoint_blocked_s": outcome.get("checkpoint_blocked_s"),
            "is_verified": bool(getattr(self, "verified", None)),
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


def _example(plan: Plan, split: str) -> dict[str, np.ndarray]:
    """A few raw rows of a split."""
    for block, number in number_blocks(plan.source, plan.recipe):
        found = np.flatnonzero(number == SPLITS.index(split))[:5]
        if len(found) == 0:
            found = np.arange(min(5, len(number)))
        return {name: column[found] for name, column in block.items()}
    raise AssertionError("the data was checked to hold rows")


def _rate(outcome: dict[str, Any], seconds: float | None) -> float | None:
    shares = outcome.get("shares")
    if not shares or not seconds:
        return None
    busy = seconds * sum(shares[name] for name in ("data", "compute", "gradient_sync"))
    samples = outcome["progress"]["samples"] - outcome["samples_before"]
    return float(samples / busy) if busy > 0 else None
