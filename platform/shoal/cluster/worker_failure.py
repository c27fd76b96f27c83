"""What follows when a worker dies: whether the run is tried again, and which error its user gets."""

import errno
import logging
import os

from shoal.cluster.ray_private import is_health_check_error
from shoal.errors import StorageError, TrainingError
from shoal.runs.config import ScaleConfig
from shoal.storage.failures import storage_error
from shoal.storage.records import ErrorRecord
from shoal.storage.run_folder import RunFolder

logger = logging.getLogger(__name__)

FULL = os.strerror(errno.ENOSPC)
# What a surviving worker sees when another dies; the death itself is the cause.
PEER_ERRORS = ("Connection closed by peer", "Connection reset by peer", "is gone", "Broken pipe")


def decide_retry(error: BaseException, lost: int, max_failures: int) -> bool:
    """Whether a failed attempt is worth another: a lost worker or node is, an exception in user code is not."""
    return lost < max_failures and any(is_loss(cause) for cause in _causes(error))


def is_loss(error: BaseException) -> bool:
    """Whether an exception means that a process or a node died."""
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
    return (
        isinstance(error, losses)
        or is_health_check_error(error)
        or any(word in str(error) for word in PEER_ERRORS)
    )


def storage_failure(error: BaseException, folder: RunFolder) -> StorageError | None:
    """Return the error of a failed attempt that storage is to blame for, or None.

    The worker's own record says so, unless it could not be written; then what Ray carried.
    """
    record = load_error(folder)
    if record and record.type == StorageError.__name__:
        return StorageError(f"{record.message} (worker {record.rank} on {record.host})")
    for cause in _causes(error):
        if found := storage_error(getattr(cause, "cause", None) or cause, folder.uri):
            return found
        if FULL in str(cause):  # Ray writes its own state there, and passes on the words alone
            return storage_error(OSError(errno.ENOSPC, FULL), folder.uri)
    return None


def is_peer_error(record: ErrorRecord) -> bool:
    """Whether a worker reports no more than that another one is gone."""
    return any(word in record.message for word in PEER_ERRORS)


def load_error(folder: RunFolder) -> ErrorRecord | None:
    """Return what a worker left; a damaged file must not hide the failure that is being reported."""
    try:
        return folder.load(ErrorRecord)
    except OSError as damage:
        logger.warning("%s", damage)
        return None


def _causes(error: BaseException) -> list[BaseException]:
    failures = getattr(error, "worker_failures", {}) or {}
    return [error, *failures.values()]


def failure_name(error: BaseException) -> str:
    return (
        ", ".join(f"rank {rank}: {type(cause).__name__}" for rank, cause in _failures(error))
        or type(error).__name__
    )


def _failures(error: BaseException) -> list[tuple[int, BaseException]]:
    return sorted((getattr(error, "worker_failures", {}) or {}).items())


def as_training_error(
    error: BaseException, folder: RunFolder, lost: int, scale: ScaleConfig
) -> TrainingError:
    """Return the error for the person who can fix it: the worker's own where it left one, else Ray's."""
    record = load_error(folder)
    if record and not is_peer_error(record):
        logger.debug("%s", record.traceback)
        failure = TrainingError(
            f"worker {record.rank} on {record.host}: {record.type}: {record.message} ({record.where})"
        )
        failure.exit_code = record.exit_code
        return failure
    if lost >= scale.max_failures and any(is_loss(cause) for cause in _causes(error)):
        return TrainingError(
            f"workers were lost {lost + 1} times ({failure_name(error)}), more than "
            f"scale.max_failures={scale.max_failures}: "
            "raise it, or look into the node's memory; the same command resumes from the last checkpoint"
        )
    # It left no record, as where it does not see the folder: Ray has carried the error of each worker.
    causes = [f"rank {rank}: {_described(cause)}" for rank, cause in _failures(error)]
    return TrainingError(causes[0] if causes else _described(error))


def _described(error: BaseException) -> str:
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}"
