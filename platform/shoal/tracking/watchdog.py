"""A small process that outlives the driver: if the driver dies, it closes the run in MLflow.

It reads from a pipe. "done" means that the driver closed the run itself; a pipe that closes without it means that
the driver is gone. Nothing heavy is imported before that. It receives no signal that asks to stop and is no child of
the driver: `ray job stop` sends signals to the driver and all below it, and kills them seconds later.
"""

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
PATIENCE_S = 20.0  # for the driver's tracking process to end
TRY_FOR_S, RETRY_S = 60.0, 2.0


class Watchdog:
    """The driver's end."""

    def __init__(self, folder_uri: str) -> None:
        from shoal.processes import (
            stop_signals_blocked,
        )  # this file is also a script, which does not find shoal

        with stop_signals_blocked():
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve()), folder_uri],
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


def main(folder_uri: str) -> None:
    """Wait for the driver's end, then close its run unless another process has taken it over."""
    if os.fork():
        os._exit(0)
    words = [line.strip() for line in sys.stdin]
    if DONE in words:
        return
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from shoal.storage.records import Identity
    from shoal.storage.run_folder import RunFolder

    folder = RunFolder(folder_uri)
    if folder.holder() is not None or folder.identity().status != "RUNNING":
        return
    status: Status = "KILLED" if KILLED in words else "FAILED"
    reason = "interrupted" if KILLED in words else "the driver died; the same command resumes the run"
    folder.update(Identity, status=status, reason=reason)
    with folder.writing_to_mlflow(PATIENCE_S) as is_alone:
        if is_alone:
            _close_in_mlflow(folder, status, reason)


def _close_in_mlflow(folder: "RunFolder", status: "Status", reason: str) -> None:
    """Send the points and the status, unless a later attempt has taken over; calls that fail are tried again."""
    from shoal.tracking.sweep_sync import make_sync

    sync, until = make_sync(folder), time.monotonic() + TRY_FOR_S
    while folder.holder() is None:
        try:
            sync.open()
            sync.send_points()
            if folder.holder() is None:
                sync.close_run(status, reason)
            return
        except Exception as error:
            if time.monotonic() > until:
                raise
            sync.forget_if_lost(error)
            time.sleep(RETRY_S)


if __name__ == "__main__":
    main(sys.argv[1])
