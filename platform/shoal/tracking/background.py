"""Syncs a run folder to MLflow in the background while the run lasts; failures of MLflow never stop training."""

import contextlib
import json
import logging
import os
import select
import socket
import subprocess
import sys
import threading
import time
from typing import TextIO
from urllib.parse import urlsplit

from shoal.errors import LeaseLostError, StorageError, UserError
from shoal.processes import open_answers, start_answering, stop_signals_blocked
from shoal.storage.records import Status
from shoal.storage.run_folder import RunFolder
from shoal.tracking.reaper import Reaper
from shoal.tracking.sweep_sync import SweepSync, make_sync
from shoal.tracking.sync import Ending

SYNC_EVERY_S = 1.0
SYNC_STORE_EVERY_S = 15.0  # a folder in an object store, where each look is a request for each running trial
SYNC_SWEEP_EVERY_S = 0.3  # a sweep's trials may last less than a second each, and pile up
RETRY_S = (1.0, 2.0, 5.0, 10.0)
RETRY_AT_END_S = 1.0
CLOSE_NEVER_SEEN_S = 3.0
CLOSE_LOST_S = 40.0  # without any progress: a server restarts within
CLOSE_KILLED_S = 6.0  # who asked the run to stop does not wait long
CLOSE_AWAY_S = 3.0  # the same for a process that may be waiting for a store that is away
MARK_S = 2.0
CALLS_APART = 10  # the pause after a call, as a multiple of how long it took
LOCK_PATIENCE_S = 30.0
LEASE_RENEWAL_S = 15.0
LOWEST = 19  # as nice counts
GONE = "the tracking process is gone"

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
        self._sync, self._reaper = make_sync(folder), Reaper()
        self._wake, self._has_ended = threading.Event(), threading.Event()
        self._is_closing = False
        self._was_seen = self._was_opened = False
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
        is_stopped = ending is not None and ending.status == "KILLED"
        if is_stopped:
            self._folder.set_stopping(True)
        self._sync.ending = ending
        self._is_closing = True
        self._wake.set()
        self._thread.join(CLOSE_KILLED_S if is_stopped else None)
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
            self._sync.mark(status, reason)
        except Exception as error:
            logger.debug("the status was not synced: %s", error)

    def _work(self) -> None:
        # Before the import of mlflow, which takes seconds: a server that dies meanwhile is worth waiting for.
        self._was_seen = listens(str(self._sync.identity.tracking_uri))
        if self._gives_way:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
        # An earlier attempt's watchdog may still be syncing. What it sends late is refused: no need to wait for long.
        with self._folder.writing_to_mlflow(LOCK_PATIENCE_S):
            self._keep_in_sync()
        self._has_ended.set()

    def _keep_lease(self) -> None:
        """Renew the lease in MLflow, however long a call of the other thread takes."""
        while not self._has_ended.wait(LEASE_RENEWAL_S):
            try:
                self._sync.renew_lease()
            except LeaseLostError:
                return  # the other thread says so
            except Exception:
                logger.debug("the lease in MLflow was not renewed", exc_info=True)

    def _keep_in_sync(self) -> None:
        failures = 0
        closing_since: float | None = None
        while True:
            if self._is_closing and closing_since is None:
                closing_since, failures = time.monotonic(), 0
            was_open, calls, began = self._sync.is_open, self._sync.calls, time.monotonic()
            try:
                self._once(is_last=closing_since is not None)
                self.problem, failures = None, 0
                if closing_since is not None:
                    return
            except LeaseLostError as error:
                self.problem = str(error)
                return
            except Exception as error:
                self.problem = first_cause(error)
                logger.debug("MLflow did not accept it", exc_info=True)
                has_moved = self._sync.calls > calls  # some calls fail, others do not
                is_slow = closing_since is not None and has_moved  # a server that answered a moment ago
                if self._is_closing and (_is_refused(error) or (_is_unanswered(error) and not is_slow)):
                    return
                if closing_since is not None and isinstance(error, StorageError):
                    self._end_anyway(error)  # the folder cannot be read, and was waited for
                    return
                self._sync.forget_if_lost(error)
                failures += 1
                if has_moved:
                    failures = 1
                    closing_since = closing_since and time.monotonic()
                patience = CLOSE_LOST_S if self._was_seen else CLOSE_NEVER_SEEN_S
                if closing_since is not None and time.monotonic() - closing_since > patience:
                    self._end_anyway(error)
                    return
            # The slower a server answers, the more points go into a call.
            per_call_s = was_open * (time.monotonic() - began) / max(1, self._sync.calls - calls)
            usual = max(self._sync_every_s, CALLS_APART * per_call_s)
            pause = usual
            if failures:
                pause = RETRY_AT_END_S if closing_since else RETRY_S[min(failures, len(RETRY_S)) - 1]
            self._wake.wait(min(pause, LEASE_RENEWAL_S))
            self._wake.clear()

    def _once(self, is_last: bool) -> None:
        if not self._sync.is_open:
            self._sync.open()
        if not self._was_opened:
            self._was_opened = True
            threading.Thread(target=self._keep_lease, name="shoal-mlflow-lease", daemon=True).start()
        self._was_seen = True
        if is_last:
            self._sync.close()
        else:
            self._sync.send_points()
        self._reap(is_last)

    def _reap(self, is_last: bool) -> None:
        """Close runs of drivers that are gone; that this fails makes this run's own record no less complete."""
        client = self._sync.client
        try:
            self._reaper.reap(client)
        except Exception as error:
            if _is_unanswered(error) and not is_last:
                raise  # the next call would take as long
            logger.debug("runs whose drivers are gone were not looked for", exc_info=True)

    def _end_anyway(self, error: Exception) -> None:
        """Set the final status although a folder that is damaged or away keeps the rest from MLflow."""
        if isinstance(error, UserError) and self._sync.exists:
            with contextlib.suppress(Exception):
                if self._sync.ending:
                    self._sync.close_run(*self._sync.ending)
                    return
                identity = self._folder.identity()
                self._sync.close_run(identity.status, identity.reason, identity.end_ms)


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and what caused it, innermost last."""
    causes = [error]
    while True:
        last = causes[-1]
        inner = last.__cause__ or (None if last.__suppress_context__ else last.__context__)
        if inner is None:
            return causes
        causes.append(inner)


def _is_refused(error: BaseException) -> bool:
    """Whether the server refuses the user, and will at the next try."""
    return getattr(error, "error_code", None) in ("PERMISSION_DENIED", "UNAUTHENTICATED")


def _is_unanswered(error: BaseException) -> bool:
    """Whether a call was not answered at all: each further one would take as long."""
    return any("Timeout" in type(cause).__name__ for cause in _causes(error))


def first_cause(error: BaseException) -> str:
    """Return the innermost cause of an error in a line; the errors around it repeat the address."""
    error = _causes(error)[-1]
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


class TrackerProcess:
    """The same as `Tracker`, in a process of its own, whose only signal is the end of its standard input."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self._answers: TextIO | None = None
        self._lock = threading.Lock()
        self.problem: str | None = None

    def start(self) -> None:
        with stop_signals_blocked():
            self._process, self._answers = start_answering(
                ["-m", "shoal.tracking.background", self._folder.uri, str(self._folder.attempt)],
                start_new_session=True,
            )

    @property
    def is_started(self) -> bool:
        return self._process is not None

    @property
    def run_id(self) -> str | None:
        return self._folder.tracked().run_id

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
        self._ask("mark", status, reason, patience_s=CLOSE_KILLED_S)

    def close(self, ending: Ending | None = None) -> bool:
        """Sync everything, for as long as it takes while MLflow answers; return whether all arrived.

        Where the process was killed, or hangs while a run is asked to stop, this one does the rest.

        Args:
            ending: how the attempt ended; by default what the folder says.
        """
        is_stopped = ending is not None and ending.status == "KILLED"
        patience_s = None
        if is_stopped:  # the process ends by itself after half of it
            patience_s = CLOSE_AWAY_S if self._folder.is_away else 2 * CLOSE_KILLED_S
        _, self.problem = self._ask("close", *(ending or ()), patience_s=patience_s)
        if self._process is not None:
            self._process.communicate()
        if self._answers is not None:
            self._answers.close()
        if self.problem == GONE:
            self.problem = self._close_here(ending)
        return self.problem is None

    def _close_here(self, ending: Ending | None) -> str | None:
        """Sync everything from this process; return the problem."""
        try:
            instead = Tracker(self._folder)
        except StorageError as error:
            return str(error)
        instead.start()
        instead.close(ending)
        return instead.problem

    def _ask(
        self, *words: str | int | None, patience_s: float | None = None
    ) -> tuple[float | None, str | None]:
        """Send a command and return (synced_at_s, problem).

        Args:
            patience_s: after which a process that does not answer is killed: it may wait for a store that is away.
        """
        process, answers = self._process, self._answers
        if process is None or process.stdin is None or answers is None:
            return None, "it was not started"
        try:
            with self._lock:
                process.stdin.write(json.dumps(words) + "\n")
                process.stdin.flush()
                if not select.select([answers], [], [], patience_s)[0]:
                    process.kill()
                synced_at_s, problem = json.loads(answers.readline())
            return synced_at_s, problem
        except (OSError, ValueError):
            return None, GONE


def main(folder_uri: str, attempt: str, pipe: str) -> None:
    """Sync a folder and follow the commands on standard input; exit when the driver is gone."""
    answers = open_answers(pipe)
    tracker = Tracker(RunFolder(folder_uri).of_attempt(int(attempt)), sync_every_s=SYNC_SWEEP_EVERY_S)
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
        answers.write(json.dumps([tracker.synced_at_s, tracker.problem]) + "\n")
        answers.flush()
        if word == "close":
            os._exit(0)  # a call that is not answered does not hold it up
    os._exit(1)  # the watchdog closes the runs


if __name__ == "__main__":
    main(*sys.argv[1:])
