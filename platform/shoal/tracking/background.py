"""The background shipper: keeps MLflow close behind the journal while a run lasts, and never in its way."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

from shoal.storage.run_folder import RunFolder
from shoal.tracking.reaper import reap
from shoal.tracking.sweep_sync import make_sync
from shoal.tracking.sync import LEASE_BEAT_S

SHIP_EVERY_S = 1.0
SHIP_SWEEP_EVERY_S = 0.3  # a sweep's trials may last less than a second each, and pile up
RETRY_S = (1.0, 2.0, 5.0, 10.0)
CLOSE_NEVER_SEEN_S = 3.0
CLOSE_LOST_S = 30.0
LOWEST = 19  # as nice counts

logger = logging.getLogger(__name__)


def listens(uri: str) -> bool:
    """Whether something accepts connections where an http(s) URI points; False for a store without a server."""
    parts = urlsplit(uri)
    if parts.hostname is None or not parts.scheme.startswith("http"):
        return False
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname, port), timeout=1):
            return True
    except (OSError, ValueError):  # nobody there, or a port that is no number
        return False


class Tracker:
    """A thread that ships a run's points; whatever MLflow does, training does not notice."""

    def __init__(
        self, folder: RunFolder, gives_way: bool = False, ship_every_s: float = SHIP_EVERY_S
    ) -> None:
        """Set up, without starting.

        Args:
            gives_way: whether the thread yields the CPUs to all other processes. Where the workers of a run keep every
                CPU busy, each waits for whichever is interrupted; where training is in this very process, a thread
                that yields with the interpreter's lock in its hand would hold it up.
            ship_every_s: pause between two looks into the folder.
        """
        self._folder, self._gives_way, self._ship_every_s = folder, gives_way, ship_every_s
        self._mirror = make_sync(folder)
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
        return self._mirror.run_id

    @property
    def synced_at_s(self) -> float | None:
        """When all trials of a sweep were in MLflow, in Unix seconds; None while they are not."""
        return getattr(self._mirror, "level_s", None)

    def wake(self) -> None:
        """Have what is waiting sent now."""
        self._wake.set()

    def close(self) -> bool:
        """Deliver everything, for as long as it may take while MLflow answers; return whether it all arrived."""
        self._is_closing = True
        self._wake.set()
        self._thread.join()
        return self.problem is None

    def mark(self, status: str, reason: str) -> None:
        """Set the run's status now, ahead of `close`: the process may have seconds to live."""
        try:
            if self._mirror.is_open:
                self._mirror.close_run(status, reason)
        except Exception as error:
            logger.debug("status not delivered: %s", error)

    def _work(self) -> None:
        # Ahead of importing mlflow, which takes seconds: a server may die in them, and is no less worth waiting for.
        self._was_seen = listens(self._folder.identity()["tracking_uri"])
        if self._gives_way:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
        # An earlier attempt's guardian may still be at it.
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
                logger.debug("MLflow did not take it", exc_info=True)
                patience = CLOSE_LOST_S if self._was_seen else CLOSE_NEVER_SEEN_S
                if closing_since is not None and time.monotonic() - closing_since > patience:
                    return
                failures += 1
            pause = RETRY_S[min(failures, len(RETRY_S)) - 1] if failures else self._ship_every_s
            self._wake.wait(min(pause, LEASE_BEAT_S))
            self._wake.clear()

    def _once(self, is_last: bool) -> None:
        if not self._mirror.is_open:
            self._mirror.open()
            self._was_seen = True
            reap(self._mirror.client)
        if is_last:
            self._mirror.close()
            return
        self._mirror.ship()
        self._mirror.renew_lease()


def _first_cause(error: BaseException) -> str:
    """Say in a line what is at the bottom of an error; what is wrapped around it says the address three times."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
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
            start_new_session=True,  # Ctrl-C is the driver's to hear
        )

    @property
    def is_started(self) -> bool:
        return self._process is not None

    @property
    def run_id(self) -> str | None:
        return self._folder.identity().get("run_id")

    @property
    def synced_at_s(self) -> float | None:
        """When all trials of a sweep were in MLflow, in Unix seconds; None while they are not."""
        return self._ask("level")[0]  # type: ignore[no-any-return]

    def settle(self, patience_s: float) -> None:
        """Wait until all trials that have ended are in MLflow: so long at most, and not where it does not answer."""
        until = time.monotonic() + patience_s
        self._ask("wake")
        while time.monotonic() < until:
            synced_at_s, problem = self._ask("level")
            if synced_at_s is not None or problem is not None:
                return
            time.sleep(0.05)

    def mark(self, status: str, reason: str) -> None:
        """Set the run's status now, ahead of `close`: the process may have seconds to live."""
        self._ask("mark", status, reason)

    def close(self) -> bool:
        """Deliver everything, for as long as it may take while MLflow answers; return whether it all arrived."""
        _, self.problem = self._ask("close")
        if self._process is not None:
            self._process.communicate()
        return self.problem is None

    def _ask(self, *words: str) -> tuple[float | None, str | None]:
        """Say something and return (level_s, problem)."""
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
    """Track a folder and do as standard input says; end without a word when the driver is gone."""
    tracker = Tracker(RunFolder(folder_uri), ship_every_s=SHIP_SWEEP_EVERY_S)
    tracker.start()
    for line in sys.stdin:
        word, *rest = json.loads(line)
        match word:
            case "wake":
                tracker.wake()
            case "mark":
                tracker.mark(*rest)
            case "close":
                tracker.close()
        print(json.dumps([tracker.synced_at_s, tracker.problem]), flush=True)
        if word == "close":
            return
    os._exit(1)  # the guardian closes the runs


if __name__ == "__main__":
    main(sys.argv[1])
