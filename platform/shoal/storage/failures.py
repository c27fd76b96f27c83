"""What a failing disk or object store leads to: another try while an outage may end, else one error.

The error has the path, the reason that the system gave, and the remedy. An outage of an object store is one for the
whole process: the first call that waited too long ends the patience of all.
"""

import contextlib
import errno
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from shoal.errors import StorageError

OUTAGE_S = 600.0  # how long an object store may be away
STOPPED_OUTAGE_S = 4.0  # the same, for a process that was asked to stop
QUICK_TRIES = 4  # where nobody waits for an outage to end, or the store refuses
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 5.0
SAY_AFTER_S = 10.0  # that the store is away
QUIET_S = 60.0  # failures farther apart are two outages

AGAIN = "then run the same command: it goes on from the last checkpoint"
FREE_SPACE = f"free some space there, {AGAIN}"
ALLOW = "give a folder that this user may write, shared by all nodes"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What the system says of storage that fails; other errors are the caller's.
REMEDIES = {
    errno.ENOSPC: FREE_SPACE,
    errno.EDQUOT: FREE_SPACE,
    errno.EFBIG: f"raise the limit on the size of files (ulimit -f), {AGAIN}",
    errno.EACCES: ALLOW,
    errno.EPERM: ALLOW,
    errno.EROFS: ALLOW,
    errno.EIO: f"look into the disk, {AGAIN}",
    errno.ESTALE: f"mount it again, {AGAIN}",
    errno.ENODEV: f"mount it again, {AGAIN}",
    errno.ENOTCONN: f"mount it again, {AGAIN}",
    errno.ETIMEDOUT: f"look into the file server, {AGAIN}",
}
# What an object store says of a request that no later try would change.
REFUSED = (
    "ACCESS_DENIED",
    "NO_SUCH_BUCKET",
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "status 403",
)

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


def storage_error(error: BaseException | None, where: str = "") -> StorageError | None:
    """Return the error of storage that is full or was given up, or None for any other.

    It may be the cause of `error`, as where a library has wrapped it.

    Args:
        where: the path that could not be written; by default the one that the system named.
    """
    if isinstance(error, StorageError):
        return error
    while error is not None:
        if isinstance(error, StorageError):
            return StorageError(str(error))  # a new one, whose cause may be the error around it
        if isinstance(error, OSError) and (number := _full(error)):
            return _explain(error, number, where)
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn the failure of a disk into a StorageError that names `where`."""
    try:
        yield
    except Exception as error:  # torch wraps the system's error
        if isinstance(error, OSError) and error.errno in REMEDIES:
            raise _explain(error, error.errno, where) from error
        found = storage_error(error, where)
        if found is None or found is error:
            raise
        raise found from error


def _full(error: OSError) -> int | None:
    """Return the number of an error that says a disk is full; where many files were copied the words alone say it."""
    if error.errno is not None:
        return error.errno if error.errno in FULL else None
    return next((number for number in FULL if os.strerror(number) in str(error)), None)


def _explain(error: OSError, number: int, where: str) -> StorageError:
    path = where or error.filename or "a file"
    return StorageError(f"'{path}' cannot be written ({os.strerror(number)}): {REMEDIES[number]}")


class Outage:
    """Whether an object store is away, and since when.

    Attributes:
        is_stopping: whether this process was asked to stop: it waits for `STOPPED_OUTAGE_S` alone.
    """

    def __init__(self) -> None:
        self._lock, self._is_said = threading.Lock(), False
        self._since_s = self._last_s = float("-inf")
        self.is_stopping = False
        self._given_up: StorageError | None = None

    def retry(self, work: Callable[[], Result], where: str, most_tries: int | None = None) -> Result:
        """Do something, again and again while the store is away.

        Args:
            most_tries: None: until it answers, or an outage has lasted for `OUTAGE_S` (see `is_stopping`).

        Raises:
            FileNotFoundError: the store answers that there is no such file.
            StorageError: it was away for too long, or refused.
        """
        if self.is_stopping and self._given_up:
            raise StorageError(str(self._given_up))  # at once: each call would take a second or two
        pause_s = FIRST_PAUSE_S
        for tries in itertools.count(1):
            try:
                found = work()
            except OSError as error:
                if isinstance(error, FileNotFoundError | StorageError):
                    self._end()
                    raise
                away_s = self._begin(where, error)
                most = QUICK_TRIES if any(word in str(error) for word in REFUSED) else most_tries
                patience_s = STOPPED_OUTAGE_S if self.is_stopping else OUTAGE_S
                if away_s > patience_s or (most is not None and tries >= most):
                    failure = _away(error, where, away_s)
                    if self.is_stopping and away_s > patience_s:  # a poll that fails once gives nothing up
                        self._given_up = failure
                    raise failure from error
                self._pause(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                self._end()
                return found
        raise AssertionError("it counts for ever")

    @property
    def is_on(self) -> bool:
        """Whether the last call failed, not long ago."""
        return time.monotonic() - self._last_s < QUIET_S

    def _pause(self, seconds: float) -> None:
        """Wait before the next try; a stop shortens it."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, FIRST_PAUSE_S))
            if self.is_stopping:
                return

    def _begin(self, where: str, error: OSError) -> float:
        """Note a failure; return how many seconds the outage has lasted."""
        with self._lock:
            now = time.monotonic()
            if now - self._last_s > QUIET_S:
                self._since_s, self._is_said = now, False
            self._last_s, away_s = now, now - self._since_s
            says, self._is_said = (
                away_s > SAY_AFTER_S and not self._is_said,
                self._is_said or away_s > SAY_AFTER_S,
            )
        if says:
            logger.warning(
                "storage '%s' does not answer (%s): it is asked again for up to %.0f min, and training goes on",
                where, _reason(error), OUTAGE_S / 60,
            )  # fmt: skip
        return away_s

    def _end(self) -> None:
        with self._lock:
            away_s, was_said = time.monotonic() - self._since_s, self._is_said
            self._since_s, self._last_s, self._is_said = float("-inf"), float("-inf"), False
            self._given_up = None
        if was_said:
            logger.warning("the object store answers again, after %.0f s", away_s)


def _reason(error: OSError) -> str:
    """Return in a line what an object store's client says, without what it was about to do."""
    text = " ".join(str(error).split())
    return text[max(0, text.find("AWS Error")) :][:300]


def _away(error: OSError, where: str, away_s: float) -> StorageError:
    lasted = f" for {away_s:.0f} s" if away_s >= 10 else ""
    return StorageError(
        f"storage '{where}' does not answer{lasted} ({_reason(error)}): "
        f"see that it can be reached and written, {AGAIN}"
    )
