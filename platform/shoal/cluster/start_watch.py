"""What becomes of a sweep's processes that do not start: what they wait for is said, and hosts are chosen again.

It decides when; `actor_pool` starts them.
"""

import logging
import time
from collections.abc import Callable, Mapping

from shoal.cluster import session
from shoal.cluster.free_room import FIND_S, RoomWatch
from shoal.cluster.node_selector import Selector

logger = logging.getLogger(__name__)

CHOOSE_AFTER_S = 60.0  # as long as Ray Train waits for the places of workers


class StartWatch:
    """Looks at processes of which none lives yet, or any more.

    Attributes:
        selector: labels of the nodes that they may be on.
    """

    def __init__(
        self, needs: Mapping[str, float], selector: Selector, choose_again: Callable[[], Selector]
    ) -> None:
        """Take what a process asks of a node.

        Args:
            needs: by Ray's names of resources; where it is nothing, no room is waited for.
            choose_again: returns a selector, where none of the nodes of the first one may be left.
        """
        self.selector = selector
        self._needs, self._choose_again = needs, choose_again
        self.rest()

    def rest(self) -> None:
        """Note that one lives, or that none is started."""
        self._since_s = self._chosen_s = time.monotonic()
        self._room: RoomWatch | None = None

    def check(self) -> bool:
        """Say what is waited for; return whether all are to be started again, by another selector."""
        now_s = time.monotonic()
        if not self._needs or now_s - self._since_s < FIND_S:
            return False
        self._room = self._room or RoomWatch(
            self._needs, 1, frozenset(), logger.warning, self.selector, is_pending=True
        )
        self._room.check()
        if now_s - self._chosen_s < CHOOSE_AFTER_S or not session.answers():
            return False
        self._chosen_s, earlier = now_s, self.selector
        self.selector = self._choose_again()
        if self.selector == earlier:
            return False
        self._room = None
        return True
