"""A loss that was not finite, while its steps are made again: once it is finite, a host is to blame, and is named.

What follows from the failure itself is `shoal.runs.failure_policy`'s.
"""

import contextlib
import logging
from collections.abc import Iterable

from shoal.runs.failure_policy import after_replay
from shoal.runs.hang import WorkerStatus
from shoal.storage.records import FailureRecord, Metadata
from shoal.storage.run_folder import RunFolder

logger = logging.getLogger(__name__)

SUSPECT_TAG = "shoal.suspect_host"


class Replay:
    """Of one attempt of a group.

    Attributes:
        earlier: the failure before this attempt; its record says so once the replay is over.
    """

    def __init__(self, folder: RunFolder, earlier: FailureRecord | None) -> None:
        self._folder, self.earlier = folder, earlier

    def check(self, statuses: Iterable[WorkerStatus]) -> None:
        """Look how far the workers are."""
        self._finish(max((status.finite_step for status in statuses), default=0))

    def end(self, step: int) -> None:
        """Note that the workers have ended well, at a step."""
        self._finish(step)

    def _finish(self, finite_step: int) -> None:
        earlier = self.earlier
        if earlier is None or earlier.replayed is None or finite_step < (earlier.replayed.step or 0):
            return
        host = earlier.replayed.host
        self.earlier = after_replay(earlier)
        logger.warning("%s", self.earlier.message)
        with contextlib.suppress(OSError):  # training goes on
            self._folder.save(self.earlier)
            if host and (metadata := self._folder.load(Metadata)):
                self._folder.save(metadata.extended(tags={SUSPECT_TAG: host}))
