"""The display of a job that runs a sweep and trainings one after another, and their interruption."""

import contextlib
from collections.abc import Iterator

from shoal.errors import Interrupted
from shoal.storage.run_folder import RunFolder
from shoal.terminal.errors import on_interrupt
from shoal.terminal.progress import ProgressLine, SweepTable


class Stages:
    """Shows one stage after another; a signal stops the one in progress and lets no other begin."""

    def __init__(self) -> None:
        self._folder: RunFolder | None = None
        self._signal: str | None = None
        on_interrupt(self._stop)

    @contextlib.contextmanager
    def __call__(self, kind: str, folder: RunFolder) -> Iterator[SweepTable | ProgressLine]:
        """Print a stage's folder and yield what listens to its status.

        Args:
            kind: "sweep" or "run".

        Raises:
            Interrupted: a signal came before the stage began.
        """
        self._folder = folder
        if self._signal:
            raise Interrupted(f"interrupted by {self._signal} between two stages; the same command goes on")
        print(f"{kind:<8}{folder.uri}", flush=True)
        with SweepTable() if kind == "sweep" else ProgressLine() as progress:
            yield progress

    def _stop(self, name: str) -> None:
        self._signal = name
        if self._folder:
            self._folder.interrupt(name)
