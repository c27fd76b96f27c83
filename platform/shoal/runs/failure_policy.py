"""What follows when workers fail: the class of the failure, whether they are started again, and the words for it.

Pure functions from what was observed to a decision. It knows neither Ray, whose exceptions
`shoal.cluster.worker_failure` turns into symptoms, nor who starts workers. The record of a failure is all that the next
decision needs of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from shoal.data.sampler import Lanes
from shoal.errors import DataError, DivergedError, WeightsDifferError
from shoal.storage.failures import storage_error
from shoal.storage.records import ErrorRecord, FailedWorker, FailureKind, FailureRecord
from shoal.training.clock import Clock
from shoal.training.device_memory import is_out_of_memory
from shoal.training.divergence import describe_samples, same_losses

# What one worker's end means by itself, the strongest evidence first. Where a process died, another's exception may
# only be a consequence; where one raised, another that lost its connection is one.
Symptom = Literal[
    "storage failed",
    "weights differ",
    "diverged",
    "hung",
    "preempted",
    "killed for memory",
    "died",
    "source away",
    "bad data",
    "out of memory",
    "raised",
    "timed out",
    "lost its peer",
]
ORDER: tuple[Symptom, ...] = Symptom.__args__  # type: ignore[attr-defined]
KINDS: dict[Symptom, FailureKind] = {
    "storage failed": "storage",
    "weights differ": "bad host",
    "diverged": "diverged",
    "hung": "hang",
    "preempted": "preemption",
    "killed for memory": "out of memory",
    "died": "lost worker",
    "source away": "data",
    "bad data": "data",
    "out of memory": "out of memory",
    "raised": "user error",
    "timed out": "hang",
    "lost its peer": "lost worker",
}
# The next attempt may go well. Of the others it would end alike.
RETRIED: tuple[Symptom, ...] = (
    "weights differ",
    "diverged",  # once
    "hung",
    "preempted",
    "killed for memory",
    "died",
    "source away",
    "timed out",
    "lost its peer",
)
# A worker that ended so could not say anything of it.
DEATHS: tuple[Symptom, ...] = ("preempted", "killed for memory", "died")
CHARGED: tuple[Symptom, ...] = ("weights differ", "hung", "died")  # to the host where it happened
FREE: tuple[Symptom, ...] = ("preempted",)
SAID_BY_ALL: tuple[Symptom, ...] = ("weights differ", "diverged")  # of which one worker's account is enough
REMEDIES: dict[FailureKind, str] = {
    "lost worker": "look into the host and its memory",
    "hang": "see in failure.json where each worker was",
    "out of memory": "give each worker more memory, or run fewer on a host",
    "data": "see that the source can be reached",
    "bad host": "leave the host out and test its memory",
}

# What a worker sees when another one dies; the death itself is the cause.
PEER_ERRORS = ("Connection closed by peer", "Connection reset by peer", "is gone", "Broken pipe")
# What it sees when another one does not come: gloo's words, NCCL's, and those of the sum in shared memory.
TIMEOUTS = ("Timed out waiting", "Watchdog caught collective operation timeout", "did not join the gradient")
MOST_WORDS = 160  # characters of what such an exception says
DATA_SECTIONS = ("data", "epoch start")
STEP_SECTIONS = ("step", "first step")
# Of the system's errors those that say something of the path, not of the moment.
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)


@dataclass(frozen=True)
class Fault:
    """The end of one worker."""

    worker: FailedWorker
    symptom: Symptom
    exit_code: int = 1


@dataclass(frozen=True)
class Decision:
    """What follows from a failure, and its record.

    Attributes:
        host: that it is counted against; None: nobody's.
    """

    retries: bool
    record: FailureRecord
    exit_code: int = 1
    host: str | None = None


def account_of(error: Exception, clock: Clock, rank: int = 0, lanes: Lanes | None = None) -> ErrorRecord:
    """Return a worker's own account of what it raised, which its process alone can give.

    Args:
        lanes: its part of the training rows, where it is known.
    """
    section, step = clock.at[0], clock.step
    record = ErrorRecord.from_exception(error, rank).replace(symptom=symptom_of(error, section))
    if isinstance(error, DivergedError) and error.step is not None:
        place = {"rank": error.rank, "host": error.host, "section": "step", "step": error.step}
        return record.replace(**place, samples=error.samples, losses=error.losses)
    if isinstance(error, WeightsDifferError):  # all workers raise it, whichever of them it is about
        record = record.replace(rank=error.rank, host=error.host)
    samples = lanes.rows_of(step).tolist() if lanes and section in STEP_SECTIONS else []
    return record.replace(section=section, step=step, samples=samples)


def fault_of(record: ErrorRecord) -> Fault:
    """Return the end of a worker that could leave its own account."""
    kept = record.model_dump(include=set(FailedWorker.model_fields))
    symptom: Symptom = record.symptom or "raised"  # type: ignore[assignment]  # one of an earlier version has none
    return Fault(FailedWorker(**kept), symptom, record.exit_code)


def symptom_of(error: BaseException, section: str = "") -> Symptom:
    """Return what an exception of a worker's own means.

    Args:
        section: that the worker was in.
    """
    causes = list(_causes(error))
    is_source = section in DATA_SECTIONS and any(
        isinstance(cause, OSError) and not isinstance(cause, LASTING) for cause in causes
    )
    if storage_error(error):
        return "storage failed"
    if isinstance(error, WeightsDifferError):
        return "weights differ"
    if isinstance(error, DivergedError):
        return "diverged"
    if any(word in str(error) for word in TIMEOUTS):
        return "timed out"
    if is_source:
        return "source away"
    if any(word in str(error) for word in PEER_ERRORS):
        return "lost its peer"
    if any(isinstance(cause, DataError) for cause in causes):
        return "bad data"
    return "out of memory" if is_out_of_memory(error) else "raised"


def _causes(error: BaseException | None) -> Sequence[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def decide(
    faults: Sequence[Fault],
    earlier: FailureRecord | None,
    checkpoint_step: int | None,
    max_failures: int,
    replays: bool = True,
) -> Decision:
    """Decide what follows from the ends of an attempt's workers.

    Args:
        faults: one or more.
        earlier: the failure before, in the same job.
        checkpoint_step: of the newest checkpoint, None before the first.
        max_failures: how many there may be without a checkpoint that is later than the last of them.
        replays: whether the steps of a loss that is not finite are made again, once.
    """
    faults = [_at_least(fault, checkpoint_step) for fault in faults]
    root = min(faults, key=lambda fault: (ORDER.index(fault.symptom), fault.worker.rank or 0))
    kind = KINDS[root.symptom]
    before = 0 if earlier is None or _got_further(checkpoint_step, earlier) else earlier.failures
    failures = before + (root.symptom not in FREE)
    repeats = _why_not_again(root, earlier, replays and failures <= max_failures)
    retries = root.symptom in RETRIED and failures <= max_failures and not repeats
    before_it = earlier.replayed if earlier else None
    if retries:
        follows = _resumes(checkpoint_step, failures if root.symptom not in FREE else None, max_failures)
    elif repeats:
        follows = f"not tried again: {repeats}"
    elif root.symptom in RETRIED:
        follows = (
            f"not tried again: {failures} failures without progress, more than "
            f"scale.max_failures={max_failures}: raise it, or {REMEDIES[kind]}; the same command resumes from the "
            "last checkpoint"
        )
    else:
        follows = "not tried again, since it would end alike"
    record = FailureRecord(
        kind=kind,
        is_retried=retries,
        message=f"{kind}: {describe(root)}; {follows}",
        root=root.worker,
        cascade=[fault.worker for fault in faults if fault is not root],
        failures=failures,
        replayed=root.worker if retries and root.symptom == "diverged" else before_it,
        step=max((fault.worker.step for fault in faults if fault.worker.step is not None), default=None),
        checkpoint_step=checkpoint_step,
    )
    return Decision(retries, record, root.exit_code, root.worker.host if root.symptom in CHARGED else None)


def _why_not_again(root: Fault, earlier: FailureRecord | None, replays: bool) -> str | None:
    """Return why the next attempt would end as this one did, where that is known."""
    worker = root.worker
    if root.symptom == "source away" and earlier is not None and _is_same(worker, earlier.root):
        return f"the same at step {worker.step} on worker {worker.rank} as before"
    if root.symptom != "diverged":
        return None
    before = earlier.replayed if earlier else None
    if before is None:
        return None if replays else "its steps are not made again"
    if worker.step != before.step:
        return (
            f"it was at step {before.step} before, and data and model give the same bits each time: look for a host "
            f"whose memory or processor changes bits ({_hosts(before, worker)}), or for operations that are not "
            "deterministic"
        )
    bits = "the same bits" if same_losses(worker.losses, before.losses) else "no finite loss either"
    return f"the same steps made again gave {bits} at step {worker.step}, so it is the data or the model"


def after_replay(earlier: FailureRecord) -> FailureRecord:
    """Return the record of a loss that was not finite, and that is finite since its step was made again."""
    worker = earlier.replayed
    assert worker is not None, "it says whose steps are made again"
    lost = worker.message.partition(":")[0]
    return earlier.replace(
        kind="bad host",
        root=worker,
        cascade=[],
        replayed=None,
        message=f"bad host: {_place(worker)}: {lost}, and finite when the step was made again: its memory or processor "
        "changed a bit, or an operation is not deterministic; training goes on",
    )


def _place(worker: FailedWorker) -> str:
    who = "no worker alone" if worker.rank is None else f"worker {worker.rank}"
    return f"{who} on {worker.host}" if worker.host else who


def _hosts(*workers: FailedWorker) -> str:
    return ", ".join(sorted({worker.host or "several" for worker in workers}))


def _at_least(fault: Fault, checkpoint_step: int | None) -> Fault:
    """Return the end of a worker that may have come further than it said: it tells its step only now and then."""
    step = fault.worker.step
    if fault.symptom not in DEATHS or not step or not checkpoint_step or step >= checkpoint_step:
        return fault
    return replace(fault, worker=fault.worker.model_copy(update={"step": checkpoint_step}))


def _got_further(checkpoint_step: int | None, earlier: FailureRecord) -> bool:
    """Whether the newest checkpoint is later than an earlier failure.

    One that is only newer proves nothing: a resumed attempt writes its first at once, before it comes to that place.
    """
    places = (earlier.checkpoint_step, earlier.step)
    return checkpoint_step is not None and all(place is None or checkpoint_step > place for place in places)


def _resumes(checkpoint_step: int | None, failures: int | None, max_failures: int) -> str:
    place = "the beginning" if checkpoint_step is None else f"the checkpoint of step {checkpoint_step}"
    counted = "not counted" if failures is None else f"failure {failures} of {max_failures}"
    return f"resuming from {place}, {counted}"


def _is_same(worker: FailedWorker, earlier: FailedWorker | None) -> bool:
    keys = ("rank", "step", "type", "message")
    return earlier is not None and all(getattr(worker, key) == getattr(earlier, key) for key in keys)


def describe(fault: Fault) -> str:
    """Return who failed and how, in a line."""
    worker, message = fault.worker, " ".join(fault.worker.message.split())
    if fault.symptom in ("hung", "weights differ"):
        return message
    who = "a worker" if worker.rank is None else f"worker {worker.rank}"
    host = f" on {worker.host}" if worker.host else ""
    at = f" at step {worker.step}" if worker.step else ""
    if fault.symptom in DEATHS:
        return f"{who}{host} was lost{at} ({message or worker.type})"
    if fault.symptom == "lost its peer":
        return f"{who}{host} lost its connection to another one{at} ({message[:MOST_WORDS]})"
    if fault.symptom == "diverged":
        return f"{_place(worker)}: {message}"
    where = f" ({worker.where})" if worker.where else ""
    samples = f", with {describe_samples(worker.samples)}" if worker.samples else ""
    step = at if fault.symptom == "raised" and worker.section in STEP_SECTIONS else ""
    return f"{who}{host}: {worker.type}: {message}{where}{step}{samples}"
