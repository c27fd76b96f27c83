"""A small process that outlives the driver: if the driver dies, it closes the run in MLflow.

It reads from a pipe. "done" means that the driver closed the run itself; a pipe that closes without it means that
the driver is gone. Nothing heavy is imported before that.
"""

import subprocess
import sys
from pathlib import Path

DONE, KILLED = "done", "killed"
PATIENCE_S = 20.0  # for the driver's tracking process to end


class Watchdog:
    """The driver's end."""

    def __init__(self, folder_uri: str) -> None:
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
    words = [line.strip() for line in sys.stdin]
    if DONE in words:
        return
    package = Path(__file__).resolve().parents[2]
    sys.path[0] = str(package)
    from shoal.storage.records import Identity, Status
    from shoal.storage.run_folder import RunFolder
    from shoal.tracking.sweep_sync import make_sync

    folder = RunFolder(folder_uri)
    if folder.holder() is not None or folder.identity().status != "RUNNING":
        return
    status: Status = "KILLED" if KILLED in words else "FAILED"
    reason = "interrupted" if KILLED in words else "the driver died; the same command resumes the run"
    folder.update(Identity, status=status, reason=reason)
    with folder.writing_to_mlflow(PATIENCE_S) as is_alone:
        if not is_alone or folder.holder() is not None:
            return  # a later attempt has taken over
        sync = make_sync(folder)
        sync.open()
        sync.send_points()
        if folder.holder() is None:
            sync.close_run(status, reason)


if __name__ == "__main__":
    main(sys.argv[1])
