"""A small process that outlives the driver: if the driver dies, it closes the run in MLflow.

It reads from a pipe. "done" means that the driver closed the run itself; a pipe that closes without it means that
the driver is gone. Nothing heavy is imported before that. It receives no signal that asks to stop and is no child of
the driver: `ray job stop` sends signals to the driver and all below it, and kills them seconds later.
"""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.storage.records import Status
    from shoal.storage.run_folder import RunFolder

DONE, KILLED = "done", "killed"
DIED = "the driver died; the same command resumes the run"
PATIENCE_S = 20.0  # for the driver's tracking process to end
TRY_FOR_S, RETRY_S = 60.0, 2.0


class Watchdog:
    """The driver's end."""

    def __init__(self, folder_uri: str, attempt: int) -> None:
        from shoal.processes import (
            stop_signals_blocked,
        )  # this file is also a script, which does not find shoal

        with stop_signals_blocked():
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve()), folder_uri, str(attempt)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )

    def send(self, word: str) -> None:
        """Send `done`, or `killed` when a signal asked the driver to end."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(word + "\n")
            stdin.flush()
            if word == DONE:
                stdin.close()
                self._process.wait(timeout=5)
        except (OSError, ValueError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()


def main(folder_uri: str, attempt: int) -> None:
    """Wait for the driver's end, then close its run unless a later attempt has taken it over."""
    if os.fork():
        os._exit(0)
    words = [line.strip() for line in sys.stdin]
    if DONE in words:
        return
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from shoal.errors import LeaseLostError
    from shoal.storage.run_folder import RunFolder

    with contextlib.suppress(LeaseLostError):
        folder = RunFolder(folder_uri).of_attempt(attempt)
        if KILLED in words:
            close_run(folder, "KILLED", "interrupted")
        else:
            close_run(folder, "FAILED", DIED)


def close_run(folder: "RunFolder", status: "Status", reason: str) -> None:
    """Close a run in its folder and in MLflow; each write is refused once a later attempt exists.

    Raises:
        LeaseLostError: one does.
    """
    from shoal.storage.records import Identity

    folder.check_fence()
    if folder.identity().status != "RUNNING":
        return
    folder.update(Identity, status=status, reason=reason)
    with folder.writing_to_mlflow(PATIENCE_S) as is_alone:
        if is_alone:
            _close_in_mlflow(folder, status, reason)


def _close_in_mlflow(folder: "RunFolder", status: "Status", reason: str) -> None:
    """Send the points and the status; calls that fail are tried again."""
    from shoal.errors import LeaseLostError
    from shoal.tracking.sweep_sync import make_sync

    sync, until = make_sync(folder), time.monotonic() + TRY_FOR_S
    while True:
        try:
            sync.open()
            sync.send_points()
            folder.check_fence()
            sync.close_run(status, reason)
            return
        except LeaseLostError:
            raise
        except Exception as error:
            if time.monotonic() > until:
                raise
            sync.forget_if_lost(error)
            time.sleep(RETRY_S)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
