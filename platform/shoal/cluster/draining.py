"""Which nodes are about to leave the cluster: `ray drain-node` names them, SIGTERM to a node's Ray, a cloud's notice.

Ray schedules nothing new on them, and ends them at their deadline.
"""

import contextlib
import threading
from typing import Any

from shoal.cluster.ray_private import draining_nodes

LOOK_EVERY_S = 1.0


class DrainWatch:
    """Looks again and again, in a thread of its own, since Ray's server may not answer; a context.

    Attributes:
        nodes: Ray's names of the nodes that are being drained.
    """

    def __init__(self) -> None:
        self.nodes: frozenset[str] = frozenset()
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._work, name="shoal-drain", daemon=True)

    def __enter__(self) -> "DrainWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._quit.set()

    def _work(self) -> None:
        while not self._quit.wait(LOOK_EVERY_S):
            with contextlib.suppress(Exception):  # Ray has ended, or does not answer
                self.nodes = draining_nodes()
