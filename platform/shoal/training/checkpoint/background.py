"""Checkpoints written in the background, while training goes on."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shoal.training.checkpoint.contents import Snapshot
from shoal.training.checkpoint.interval import Pause, default_pause
from shoal.training.checkpoint.store import CheckpointStore


class BackgroundSaver:
    """Saves in a thread, one checkpoint in flight; a failure shows at the next call.

    The best so far may wait, copied, for the next checkpoint. That one refers to it and is written after it; a run
    that resumes from an earlier one reaches the best again.

    While an object store is away, the checkpoint in flight is tried again in its thread, training goes on, and of the
    later ones the newest waits. Workers that save together wait together.
    """

    def __init__(
        self,
        store: CheckpointStore,
        metadata: Mapping[str, Any],
        dataset_info: bytes,
        prepare: Callable[[], None] = lambda: None,
        pause: Pause | None = None,
    ) -> None:
        """Set up.

        Args:
            prepare: called in the thread before each checkpoint.
            pause: between two checkpoints, from how long the last one took.
        """
        self._store, self._metadata, self._dataset_info = store, metadata, dataset_info
        self._prepare, self._pause = prepare, pause or default_pause(store.is_local)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._best: Snapshot | None = None
        self._waiting: Snapshot | None = None
        self._spare: Snapshot | None = None
        self._due_s = time.monotonic()  # the first at once: there is something to fall back on
        self.blocked_s = 0.0

    @property
    def is_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() >= self._due_s

    def take_spare(self) -> Snapshot | None:
        """Return the last snapshot that was written, whose memory may be reused, and forget it."""
        spare, self._spare = self._spare, None
        return spare

    def hold(self, best: Snapshot) -> None:
        """Write a snapshot together with the next one, unless there is a better one by then."""
        self._best = best

    def save(self, snapshot: Snapshot, taken_s: float = 0.0) -> None:
        """Write a snapshot, and before it the best one that still waits.

        Args:
            taken_s: for which training was held up to take it.
        """
        if self._store.is_away and self._thread and self._thread.is_alive():
            self._waiting = snapshot
            return
        self.wait()
        self._waiting = None
        is_best = snapshot.progress.best.get("best/step") == snapshot.progress.step
        held, self._best = self._best, None
        snapshots = [snapshot] if held is None or is_best else [held, snapshot]
        self._due_s = float("inf")
        self._thread = threading.Thread(target=self._work, args=(snapshots, taken_s), name="shoal-checkpoint")
        self._thread.start()

    def drop(self) -> None:
        """Forget the snapshots that wait."""
        self._best = self._waiting = None

    def close(self) -> None:
        """Write what still waits, and wait for it."""
        self.wait()
        if (last := self._waiting or self._best) is not None:
            self.save(last)
        self.wait()

    def wait(self) -> None:
        """Wait for the checkpoint in flight, and raise what went wrong with it."""
        since = time.perf_counter()
        if self._thread:
            self._thread.join()
            self._thread = None
        self.blocked_s += time.perf_counter() - since
        if self._error:
            error, self._error = self._error, None
            raise error

    def _work(self, snapshots: Sequence[Snapshot], taken_s: float) -> None:
        since = time.monotonic()
        try:
            self._prepare()
            for snapshot in snapshots:
                self._store.save(snapshot, self._metadata, self._dataset_info)
            self._spare = snapshots[-1]
        except BaseException as error:
            self._error = error
        ended = time.monotonic()
        self._due_s = ended + self._pause(taken_s + ended - since)
