"""Ray Train workers: TorchTrainer around `work`, and what to do when one is lost."""

import contextlib
import json
import logging
import threading
import time
import traceback
from typing import Any

import torch

from shoal.cluster.config import ScaleConfig
from shoal.cluster.deal import Hands, shard_of
from shoal.cluster.worker import Assignment, Judge, work
from shoal.errors import Interrupted, TrainingError
from shoal.runfolder import ERROR, STOP, RunFolder
from shoal.sharding import make_group
from shoal.track.journal import journal_name

logger = logging.getLogger(__name__)

STOP_PATIENCE_S = 60.0
RAY_STATE = ".ray"

# What a surviving worker sees when another dies; the death itself is the cause.
PEER_ERRORS = ("Connection closed by peer", "Connection reset by peer", "is gone", "Broken pipe")


class Workers:
    """The Ray Train workers of one run, in a session that is open already."""

    def __init__(self, scale: ScaleConfig, use_gpu: bool, hands: Hands) -> None:
        self._scale, self._use_gpu, self._hands = scale, use_gpu, hands

    def train(self, told: Assignment, folder: RunFolder, judge: Judge | None = None) -> None:
        """Run `work` on all workers, again after lost ones, until it ends.

        Args:
            judge: asked by rank 0, in its own process; picklable.

        Raises:
            TrainingError: user code raised, or more workers were lost than `scale.max_failures`.
            Interrupted: the stop file is there and the workers did not end by themselves.
        """
        lost = 0
        while True:
            error = self._attempt(told, folder, lost, judge)
            if error is None:
                return
            if folder.exists(STOP):
                raise Interrupted("interrupted; the same command resumes from the last checkpoint")
            if not decide_retry(error, lost, self._scale.max_failures):
                raise _as_shoal_error(error, folder, lost, self._scale) from error
            lost += 1
            logger.warning(
                "a worker was lost (%s); resuming from the last checkpoint, %d of %d",
                _name(error),
                lost,
                self._scale.max_failures,
            )

    def _attempt(
        self, told: Assignment, folder: RunFolder, lost: int, judge: Judge | None
    ) -> BaseException | None:
        """Fit once, in a thread: Ray's signal handler must not replace ours, and a stop must not wait for ever."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        folder.delete(ERROR)
        resources = {"CPU": self._scale.cpus_per_worker} | ({"GPU": 1} if self._use_gpu else {})
        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config={"told": told, "hands": self._hands, "judge": judge},
            torch_config=TorchConfig(backend="nccl" if self._use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=self._scale.num_workers, use_gpu=self._use_gpu, resources_per_worker=resources
            ),
            run_config=RunConfig(
                name=f"attempt-{told.attempt}-{lost}",
                storage_path=f"{folder.uri}/{RAY_STATE}",
                failure_config=FailureConfig(max_failures=0),
            ),
        )
        outcome: list[BaseException | None] = []

        def run() -> None:
            try:
                trainer.fit()
                outcome.append(None)
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=run, name="shoal-trainer", daemon=True)
        thread.start()
        stop_seen: float | None = None
        while thread.is_alive():
            thread.join(timeout=0.1)
            if stop_seen is None and folder.is_local and folder.exists(STOP):
                stop_seen = time.monotonic()
            if stop_seen and not folder.exists(journal_name(told.attempt)):
                raise Interrupted("interrupted before the first step; the same command resumes")
            if stop_seen and time.monotonic() - stop_seen > STOP_PATIENCE_S:
                raise Interrupted(f"interrupted; the workers did not stop within {STOP_PATIENCE_S:.0f} s")
        with contextlib.suppress(OSError):
            folder.delete(RAY_STATE)
        return outcome[0]


def decide_retry(error: BaseException, lost: int, max_failures: int) -> bool:
    """Whether a failed attempt is worth another: a lost worker or node is, an exception in user code is not."""
    return lost < max_failures and any(is_loss(cause) for cause in _causes(error))


def is_loss(error: BaseException) -> bool:
    """Whether this is Ray's word for a process or node that died."""
    from ray.exceptions import (
        NodeDiedError,
        ObjectLostError,
        OutOfMemoryError,
        RayActorError,
        WorkerCrashedError,
    )
    from ray.train import ControllerError

    losses = (
        RayActorError,
        NodeDiedError,
        WorkerCrashedError,
        OutOfMemoryError,
        ObjectLostError,
        ControllerError,
    )
    is_unhealthy = type(error).__name__.startswith("WorkerHealthCheck")  # Ray Train's own, not public
    return isinstance(error, losses) or is_unhealthy or any(word in str(error) for word in PEER_ERRORS)


def _causes(error: BaseException) -> list[BaseException]:
    failures = getattr(error, "worker_failures", {}) or {}
    return [error, *failures.values()]


def _name(error: BaseException) -> str:
    return (
        ", ".join(f"rank {rank}: {type(cause).__name__}" for rank, cause in _failures(error))
        or type(error).__name__
    )


def _failures(error: BaseException) -> list[tuple[int, BaseException]]:
    return sorted((getattr(error, "worker_failures", {}) or {}).items())


def _as_shoal_error(error: BaseException, folder: RunFolder, lost: int, scale: ScaleConfig) -> TrainingError:
    """Say what happened in the terms of whoever can mend it."""
    noted = folder.read_json(ERROR)
    if noted and not any(word in noted["message"] for word in PEER_ERRORS):
        logger.debug("%s", noted["traceback"])
        told = TrainingError(
            f"worker {noted['rank']} on {noted['host']}: {noted['type']}: {noted['message']} ({noted['where']})"
        )
        told.exit_code = noted["exit_code"]
        return told
    if lost >= scale.max_failures and any(is_loss(cause) for cause in _causes(error)):
        return TrainingError(
            f"workers were lost {lost + 1} times ({_name(error)}), more than scale.max_failures={scale.max_failures}: "
            "raise it, or look into the node's memory; the same command resumes from the last checkpoint"
        )
    return TrainingError(f"{_name(error)}: {str(error).splitlines()[0]}")


def _ray_worker(config: dict[str, Any]) -> None:
    """What Ray Train calls in each worker."""
    import ray.train
    import ray.train.torch

    told, hands = config["told"], config["hands"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    try:
        device = ray.train.torch.get_device()
        torch.set_num_threads(max(1, int(told.config.scale.cpus_per_worker)))
        group = make_group(device, told.config.scale)
        shard = shard_of(told, hands, group.data_rank, group.data_size, device)
        work(told, shard, group, device, config["judge"], watches_system=config["judge"] is None)
    except Exception as error:
        _note(error, RunFolder(told.folder), rank)
        raise


def _note(error: Exception, folder: RunFolder, rank: int) -> None:
    """Leave the first worker's own error in the run folder; Ray's account of it buries the cause."""
    import socket

    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "unknown"
    note = {
        "rank": rank,
        "host": socket.gethostname(),
        "type": type(error).__name__,
        "message": str(error),
        "where": where,
        "traceback": "".join(traceback.format_exception(error)),
        "exit_code": getattr(error, "exit_code", 1),
    }
    with contextlib.suppress(OSError):
        earlier = json.loads(folder.read(ERROR)) if folder.exists(ERROR) else None
        if earlier is None or any(word in earlier["message"] for word in PEER_ERRORS):
            folder.write_json(ERROR, note)
