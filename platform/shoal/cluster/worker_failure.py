"""What the ends of workers mean: Ray's exceptions, workers' own records and a hang, as the faults that are decided on.

The decision is `shoal.runs.failure_policy`'s; here is what it is made from, and the errors that its user gets.
"""

import errno
import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence

from shoal.cluster.ray_private import health_check_failure, is_health_check_error
from shoal.errors import StorageError, TrainingError
from shoal.runs.failure_policy import (
    DEATHS,
    PEER_ERRORS,
    SAID_BY_ALL,
    Decision,
    Fault,
    Symptom,
    fault_of,
    symptom_of,
)
from shoal.runs.hang import ENDED, Hang, WorkerStatus
from shoal.storage.failures import storage_error
from shoal.storage.records import ErrorRecord, FailedWorker, FailureRecord, StackGroup
from shoal.storage.run_folder import RunFolder

logger = logging.getLogger(__name__)

FULL = os.strerror(errno.ENOSPC)
MOST_WORDS = 300  # characters of Ray's account of a death
EXIT_CODE = re.compile(r"\bexit code \d+")


def find_faults(
    error: BaseException,
    folder: RunFolder,
    statuses: Mapping[int, WorkerStatus],
    gone_hosts: Collection[str],
) -> list[Fault]:
    """Return the ends of workers that a failed attempt tells of, by rank.

    Args:
        error: of Ray Train.
        statuses: what each worker said last.
        gone_hosts: whose nodes are not part of the cluster any more.
    """
    found = {rank: _fault(rank, cause, statuses.get(rank), gone_hosts) for rank, cause in _failures(error)}
    faults = list(found.values()) or [_fault(None, error, None, gone_hosts)]
    record = load_error(folder)
    if record is None:
        return faults
    if record.symptom in SAID_BY_ALL:
        others = [fault.worker for rank, fault in found.items() if rank != record.rank]
        return [fault_of(record), *(Fault(worker, "lost its peer") for worker in others)]
    own = None if record.rank is None else found.get(record.rank)
    if is_peer_error(record) and own is not None and own.symptom in DEATHS:
        return faults
    return [fault_of(record), *(fault for fault in faults if fault is not own and found)]


def add_lost_peers(
    faults: Sequence[Fault],
    statuses: Mapping[int, WorkerStatus],
    gone_nodes: Collection[str],
    addresses: Mapping[str, str],
) -> list[Fault]:
    """Return faults with those of workers that the others only saw go: Ray may learn of a death later than they.

    Args:
        gone_nodes: Ray's names of hosts that are not part of the cluster any more.
        addresses: of hosts, by Ray's names of them; a peer's error may name one.
    """
    if any(fault.symptom != "lost its peer" for fault in faults):
        return list(faults)
    known = {fault.worker.rank for fault in faults}
    quiet = [one for rank, one in statuses.items() if rank not in known and one.section != ENDED]
    words = " ".join(fault.worker.message for fault in faults)
    named = [one for one in quiet if _is_named(one, words, addresses.get(one.node))]
    gone = [one for one in quiet if one.node in gone_nodes]
    lost = gone or named or (quiet if len(quiet) == 1 else [])
    return [*faults, *(_lost(one, one.node in gone_nodes) for one in lost)]


def _is_named(status: WorkerStatus, words: str, address: str | None) -> bool:
    """Whether the error of a peer names a worker, as the sum in shared memory does, or the address of its host."""
    return f"worker {status.rank} (pid {status.pid}) is gone" in words or bool(
        address and f"[{address}]" in words
    )


def _lost(status: WorkerStatus, is_host_gone: bool) -> Fault:
    message = "its host is gone" if is_host_gone else "its process is gone"
    return Fault(_worker(status).model_copy(update={"type": "WorkerLost", "message": message}), "died")


def faults_of_hang(hang: Hang, states: Mapping[int, str]) -> list[Fault]:
    """Return the ends of workers that were ended since they hung.

    Args:
        states: why processes did not answer, by rank.
    """
    root = hang.root
    state = states.get(root.rank) if root else None
    message = f"{hang}{f': {state}' if state else ''}"
    worker = _worker(root) if root else FailedWorker(step=hang.workers[0].step)
    others = [Fault(_worker(one), "lost its peer") for one in hang.workers if one is not root]
    return [Fault(worker.model_copy(update={"type": "Hang", "message": message}), "hung"), *others]


def group_stacks(stacks: Mapping[int, str]) -> list[StackGroup]:
    """Return workers by equal stacks, the rarest first: there the odd one stands out."""
    ranks: dict[str, list[int]] = {}
    for rank, stack in sorted(stacks.items()):
        if stack:
            ranks.setdefault(stack, []).append(rank)
    return [StackGroup(ranks=those, stack=stack) for stack, those in sorted(ranks.items(), key=_size)]


def _size(item: tuple[str, list[int]]) -> int:
    return len(item[1])


def _worker(status: WorkerStatus) -> FailedWorker:
    return FailedWorker(rank=status.rank, host=status.host, section=status.section, step=status.step)


def _fault(
    rank: int | None, error: BaseException, status: WorkerStatus | None, gone_hosts: Collection[str]
) -> Fault:
    error = health_check_failure(error)
    cause = getattr(error, "cause", None) or error
    symptom = _symptom(error)
    worker = _worker(status) if status else FailedWorker(rank=rank)
    words = " ".join(str(cause).split())
    if symptom in DEATHS:
        words = _death(error, symptom, worker.host in gone_hosts)
    described = worker.model_copy(update={"type": type(cause).__name__, "message": words})
    return Fault(described, symptom, getattr(cause, "exit_code", 1))


def _symptom(error: BaseException) -> Symptom:
    """Return what an exception that Ray carried means."""
    from ray.exceptions import (
        NodeDiedError,
        ObjectLostError,
        OutOfMemoryError,
        RayActorError,
        WorkerCrashedError,
    )
    from ray.train import ControllerError

    cause = getattr(error, "cause", None) or error
    # Ray writes its own state into the run folder, and passes on the words alone.
    if storage_error(cause) or FULL in str(error):
        return "storage failed"
    if getattr(error, "preempted", False):
        return "preempted"
    if isinstance(error, OutOfMemoryError):
        return "killed for memory"
    losses = (RayActorError, NodeDiedError, WorkerCrashedError, ObjectLostError, ControllerError)
    if isinstance(error, losses) or is_health_check_error(error):
        return "died"
    return symptom_of(cause)


def _death(error: BaseException, symptom: Symptom, is_host_gone: bool) -> str:
    from ray.exceptions import RayActorError, WorkerCrashedError

    if is_host_gone:
        return "its host is gone"
    if symptom == "killed for memory":
        return "its host ran out of memory"
    if symptom == "preempted":
        return "its host was taken away"
    words = " ".join(str(error).split())
    if isinstance(error, RayActorError | WorkerCrashedError):
        code = EXIT_CODE.search(words)
        return f"its process is gone{f', with {code.group()}' if code else ''}"
    return f"{type(error).__name__}: {words[:MOST_WORDS]}"


def _failures(error: BaseException) -> list[tuple[int, BaseException]]:
    return sorted((getattr(error, "worker_failures", {}) or {}).items())


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


def error_of(decision: Decision, folder: RunFolder) -> TrainingError | StorageError:
    """Return the error for the person who can fix it, of a failure after which nothing is tried again."""
    record = decision.record
    if record.kind == "storage":
        return _storage_error(record, folder)
    if (left := load_error(folder)) is not None:
        logger.debug("%s", left.traceback)
    failure = TrainingError(record.message)
    failure.exit_code = decision.exit_code
    return failure


def _storage_error(record: FailureRecord, folder: RunFolder) -> StorageError:
    assert record.root is not None, "a failure of storage is always one worker's"
    root = record.root
    if root.type == StorageError.__name__:
        where = f" (worker {root.rank} on {root.host})" if root.host else ""
        return StorageError(f"{root.message}{where}")
    return storage_error(OSError(errno.ENOSPC, FULL), folder.uri) or StorageError(record.message)


def stacks_of(workers: Sequence[WorkerStatus], foreign: Mapping[int, str]) -> list[StackGroup]:
    """Return the stacks of workers that hang: their own words, or what py-spy found of one that does not answer."""
    return group_stacks({worker.rank: foreign.get(worker.rank) or worker.stack for worker in workers})
