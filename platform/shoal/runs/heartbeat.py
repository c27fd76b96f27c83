"""Renews the lease of the attempt that this process makes at a run, from its beginning to its very end."""

import logging
import threading
from typing import Any

from shoal.errors import LeaseLostError
from shoal.storage.lease import now_ms
from shoal.storage.records import Identity, Status
from shoal.storage.run_folder import RunFolder

logger = logging.getLogger(__name__)

CLOSE_S = 5.0  # for a beat that waits for an object store which is away
STATUS_EVERY = 3  # in an object store, where it is a request: beats between two looks at the status
RENEW_EVERY_S = {True: 5.0, False: 25.0}  # by whether the run folder is on a disk


class Heartbeat:
    """A thread that renews the lease of a run folder, to be closed when nothing is left to do.

    Each beat also corrects the status in the folder, if another process took this one for dead and closed the run.
    """

    def __init__(self, folder: RunFolder, status: Status = "RUNNING") -> None:
        self._folder, self._status = folder, status
        self._reason: str | None = None
        self._beats = 0
        self._lock = threading.Lock()
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._work, name="shoal-lease", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop, and release the lease."""
        self._quit.set()
        self._thread.join(CLOSE_S)
        self._folder.release_lease()

    def set_status(self, status: Status, reason: str | None = None) -> None:
        """Write the run's final status into its folder; from now on the beats hold to it."""
        with self._lock:
            self._status, self._reason = status, reason
            self._write_status(end_ms=now_ms())

    def beat(self) -> None:
        """Renew the lease, and correct the status.

        Raises:
            LeaseLostError: another process holds the folder.
        """
        self._folder.renew_lease()
        self._beats += 1
        if not self._folder.is_local and self._beats % STATUS_EVERY:
            return
        with self._lock:
            found = self._folder.identity().status
            if found != self._status:
                logger.warning("'%s' was marked %s by another process; it is %s",
                               self._folder.uri, found, self._status)  # fmt: skip
                self._write_status()

    def _write_status(self, **more: Any) -> None:
        self._folder.update(Identity, status=self._status, reason=self._reason, **more)

    def _work(self) -> None:
        while not self._quit.wait(RENEW_EVERY_S[self._folder.is_local]):
            try:
                self.beat()
            except LeaseLostError:
                return  # the next write of this process ends it
            except OSError:
                logger.debug("lease not renewed", exc_info=True)
