"""Syncs a run folder to MLflow in the background while the run lasts; failures of MLflow never stop training."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

from shoal.storage.records import Status
from shoal.storage.run_folder import RunFolder
from shoal.tracking.reaper import reap
from shoal.tracking.sweep_sync import SweepSync, make_sync
from shoal.tracking.sync import LEASE_RENEWAL_S, Ending

SYNC_EVERY_S = 1.0
SYNC_STORE_EVERY_S = 15.0  # a folder in an object store, where each look is a request for each running trial
SYNC_SWEEP_EVERY_S = 0.3  # a sweep's trials may last less than a second each, and pile up
RETRY_S = (1.0, 2.0, 5.0, 10.0)
CLOSE_NEVER_SEEN_S = 3.0
CLOSE_LOST_S = 15.0
CLOSE_KILLED_S = 6.0  # who asked the run to stop does not wait long
MARK_S = 2.0
LOWEST = 19  # as nice counts

logger = logging.getLogger(__name__)


def listens(uri: str) -> bool:
    """Whether a server accepts connections at an http(s) URI; False for a store without a server."""
    parts = urlsplit(uri)
    if parts.hostname is None or not parts.scheme.startswith("http"):
        return False
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname, port), timeout=1):
            return True
    except (OSError, ValueError):  # no server, or a port that is no number
        return False


class Tracker:
    """A thread that syncs a run folder; an error of MLflow is kept in `problem`, and the sync is tried again."""

    def __init__(
        self, folder: RunFolder, gives_way: bool = False, sync_every_s: float = SYNC_EVERY_S
    ) -> None:
        """Set up, without starting.

        Args:
            gives_way: whether the thread gets the lowest priority. Where worker processes keep every CPU busy, all of
                them wait for the one that this thread interrupts. Where training is in this very process, a thread
                of low priority that holds the interpreter's lock would hold up training.
            sync_every_s: pause between two syncs.
        """
        self._folder, self._gives_way = folder, gives_way
        self._sync_every_s = sync_every_s if folder.is_local else SYNC_STORE_EVERY_S
        self._sync = make_sync(folder)
        self._wake = threading.Event()
        self._is_closing = False
        self._was_seen = False
        self._status: str | None = None
        self.problem: str | None = None
        self._thread = threading.Thread(target=self._work, name="shoal-tracker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_started(self) -> bool:
        return self._thread.ident is not None

    @property
    def run_id(self) -> str | None:
        return self._sync.run_id

    @property
    def synced_at_s(self) -> float | None:
        """When all trials of a sweep were in MLflow, in Unix seconds; None while they are not."""
        return self._sync.synced_at_s if isinstance(self._sync, SweepSync) else None

    def wake(self) -> None:
        """Sync now."""
        self._wake.set()

    def close(self, ending: Ending | None = None) -> bool:
        """Sync everything, for as long as it takes while MLflow answers; return whether all arrived.

        A run that was asked to stop does not wait longer than `CLOSE_KILLED_S`.

        Args:
            ending: how the attempt ended; by default what the folder says.
        """
        self._sync.ending = ending
        self._is_closing = True
        self._wake.set()
        self._thread.join(CLOSE_KILLED_S if ending and ending.status == "KILLED" else None)
        if self._thread.is_alive():
            self.problem = self.problem or f"not done within {CLOSE_KILLED_S:g} s"
        return self.problem is None

    def mark(self, status: Status, reason: str) -> None:
        """Set the run's status now, ahead of `close`: the process may have seconds to live."""
        thread = threading.Thread(target=self._mark, args=(status, reason), name="shoal-mark", daemon=True)
        thread.start()
        thread.join(MARK_S)

    def _mark(self, status: Status, reason: str) -> None:
        try:
            if self._sync.is_open:
                self._sync.close_run(status, reason)
        except Exception as error:
            logger.debug("the status was not synced: %s", error)

    def _work(self) -> None:
        # Before the import of mlflow, which takes seconds: a server that dies meanwhile is worth waiting for.
        self._was_seen = listens(str(self._sync.identity.tracking_uri))
        if self._gives_way:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
        # An earlier attempt's watchdog may still be syncing.
        with self._folder.writing_to_mlflow():
            self._keep_in_sync()

    def _keep_in_sync(self) -> None:
        failures = 0
        closing_since: float | None = None
        while True:
            if self._is_closing and closing_since is None:
                closing_since, failures = time.monotonic(), 0
            try:
                self._once(is_last=closing_since is not None)
                self.problem, failures = None, 0
                if closing_since is not None:
                    return
            except Exception as error:
                self.problem = _first_cause(error)
                logger.debug("MLflow did not accept it", exc_info=True)
                if self._is_closing and _is_final(error):
                    return
                patience = CLOSE_LOST_S if self._was_seen else CLOSE_NEVER_SEEN_S
                if closing_since is not None and time.monotonic() - closing_since > patience:
                    return
                failures += 1
            pause = RETRY_S[min(failures, len(RETRY_S)) - 1] if failures else self._sync_every_s
            self._wake.wait(min(pause, LEASE_RENEWAL_S))
            self._wake.clear()

    def _once(self, is_last: bool) -> None:
        if not self._sync.is_open:
            self._sync.open()
            self._was_seen = True
            reap(self._sync.client)
        if is_last:
            self._sync.close()
            return
        self._sync.send_points()
        self._sync.renew_lease()


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and what caused it, innermost last."""
    causes = [error]
    while (inner := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(inner)
    return causes


def _is_final(error: BaseException) -> bool:
    """Whether another try at once would end as this one: the server refuses the user, or did not answer at all."""
    refused = getattr(error, "error_code", None) in ("PERMISSION_DENIED", "UNAUTHENTICATED")
    return refused or any("Timeout" in type(cause).__name__ for cause in _causes(error))


def _first_cause(error: BaseException) -> str:
    """Return the innermost cause of an error in a line; the errors around it repeat the address."""
    error = _causes(error)[-1]
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


class TrackerProcess:
    """The same as `Tracker`, in a process of its own."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self.problem: str | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "shoal.tracking.background", self._folder.uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the driver only
        )

    @property
    def is_started(self) -> bool:
        return self._process is not None

    @property
    def run_id(self) -> str | None:
        return self._folder.tracked().run_id

    @property
    def synced_at_s(self) -> float | None:
        """When all trials of a sweep were in MLflow, in Unix seconds; None while they are not."""
        return self._ask("state")[0]

    def settle(self, patience_s: float) -> None:
        """Wait until all ended trials are in MLflow: `patience_s` at most, and not where it does not answer."""
        until = time.monotonic() + patience_s
        self._ask("wake")
        while time.monotonic() < until:
            synced_at_s, problem = self._ask("state")
            if synced_at_s is not None or problem is not None:
                return
            time.sleep(0.05)

    def mark(self, status: Status, reason: str) -> None:
        """Set the run's status now, ahead of `close`: the process may have seconds to live."""
        self._ask("mark", status, reason)

    def close(self, ending: Ending | None = None) -> bool:
        """Sync everything, for as long as it takes while MLflow answers; return whether all arrived.

        Args:
            ending: how the attempt ended; by default what the folder says.
        """
        _, self.problem = self._ask("close", *(ending or ()))
        if self._process is not None:
            self._process.communicate()
        return self.problem is None

    def _ask(self, *words: str | int | None) -> tuple[float | None, str | None]:
        """Send a command and return (synced_at_s, problem)."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return None, "it was not started"
        try:
            with self._lock:
                process.stdin.write(json.dumps(words) + "\n")
                process.stdin.flush()
                synced_at_s, problem = json.loads(process.stdout.readline())
            return synced_at_s, problem
        except (OSError, ValueError):
            return None, "the tracking process is gone"


def main(folder_uri: str) -> None:
    """Sync a folder and follow the commands on standard input; exit when the driver is gone."""
    tracker = Tracker(RunFolder(folder_uri), sync_every_s=SYNC_SWEEP_EVERY_S)
    tracker.start()
    for line in sys.stdin:
        word, *rest = json.loads(line)
        match word:
            case "wake":
                tracker.wake()
            case "mark":
                tracker.mark(*rest)
            case "close":
                tracker.close(Ending(*rest) if rest else None)
        print(json.dumps([tracker.synced_at_s, tracker.problem]), flush=True)
        if word == "close":
            os._exit(0)  # a call that is not answered does not hold it up
    os._exit(1)  # the watchdog closes the runs


if __name__ == "__main__":
    main(sys.argv[1])
