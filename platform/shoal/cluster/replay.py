"""A loss that was not finite, while its steps are made again: once it is finite, a host is to blame, and is named.

What follows from the failure itself is `shoal.runs.failure_policy`'s.
"""

import contextlib
import logging
from collections.abc import Iterable

from shoal.cluster.placement import Placement
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

    def __init__(self, folder: RunFolder, earlier: FailureRecord | None, placement: Placement) -> None:
        self._folder, self.earlier, self._placement = folder, earlier, placement

    @property
    def host(self) -> str | None:
        """The host to make the steps again elsewhere than on; None: there is no replay, or nobody stands out."""
        return self.earlier.replayed.host if self.earlier and self.earlier.replayed else None

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
        host = self.host
        self.earlier = after_replay(earlier)
        self._placement.charge(host, self.earlier.kind, self.earlier.message)
        logger.warning("%s", self.earlier.message)
        with contextlib.suppress(OSError):  # training goes on
            self._folder.save(self.earlier)
            if host and (metadata := self._folder.load(Metadata)):
                self._folder.save(metadata.extended(tags={SUSPECT_TAG: host}))
