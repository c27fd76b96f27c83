"""Whether a cluster has room for a group of workers, and the words for what is waited for.

Ray Train itself waits without a word. The words are a pure function of what Ray says of its nodes; independent of who
prints them.
"""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shoal.cluster.node_selector import Selector, left_out
from shoal.cluster.ray_private import free_resources

SAY_EVERY_S = 30.0
LOOK_EVERY_S = 1.0
FIND_S = 30.0
TINY = 1e-6  # Ray's resources are fractions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Room:
    """What a cluster has for workers.

    Attributes:
        needs: of each worker, by Ray's names of resources.
        nodes: the resources of each live node.
        free: of the whole cluster.
        hosts: of live nodes.
        is_pending: whether some group of such workers waits for its place.
    """

    needs: Mapping[str, float]
    nodes: Sequence[Mapping[str, float]]
    free: Mapping[str, float]
    hosts: frozenset[str]
    is_pending: bool


def describe_wait(
    room: Room, workers: int, earlier_hosts: frozenset[str], waited_s: float = math.inf
) -> str | None:
    """Return what is waited for before so many workers can start, or None if it is nothing that a cluster lacks.

    Args:
        earlier_hosts: where the workers were before.
        waited_s: so far. Ray needs a while to find that a host is gone, whose resources look as if others used them.
    """
    if not room.is_pending:
        return None
    there = sum(fits(room.needs, node) for node in room.nodes)
    free = fits(room.needs, room.free)
    if there >= workers and free >= workers:
        return None
    gone = sorted(earlier_hosts - room.hosts)
    lost = "".join(f"host {host} is gone; " for host in gone)
    if there < workers:
        return f"{lost}waiting for {_amounts(room.needs, workers - there, there, workers)}"
    if earlier_hosts and waited_s < FIND_S:
        return None
    return f"{lost}waiting for {_amounts(room.needs, workers - free, free, workers)}, which others use"


def fits(needs: Mapping[str, float], has: Mapping[str, float]) -> int:
    """Return how many workers a node has room for."""
    return min(math.floor(has.get(name, 0.0) / amount + TINY) for name, amount in needs.items() if amount)


def _amounts(needs: Mapping[str, float], missing: int, there: int, workers: int) -> str:
    """E.g. 1 CPU (1 of 2 there)."""
    name = next((name for name, amount in needs.items() if amount and name != "CPU"), "CPU")
    each = needs[name]
    return f"{missing * each:g} {name} ({there * each:g} of {workers * each:g} there)"


def look(needs: Mapping[str, float], selector: Selector = None) -> Room:
    """Ask Ray.

    Args:
        selector: labels of the nodes that the workers may be on.
    """
    import ray
    from ray.util import placement_group_table

    others = left_out(selector)
    alive = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in others]
    groups: list[Any] = list(placement_group_table().values())
    pending = [group for group in groups if group["state"] in ("PENDING", "RESCHEDULING")]
    return Room(
        needs,
        [node["Resources"] for node in alive],
        _free_on(node["NodeID"] for node in alive) if others else ray.available_resources(),
        frozenset(node["NodeManagerHostname"] for node in alive),
        any(_is_of(group["bundles"], needs) for group in pending),
    )


def _free_on(nodes: Iterable[str]) -> dict[str, float]:
    free, total = free_resources(), Counter[str]()
    for node in nodes:
        total.update(free.get(node, {}))  # type: ignore[arg-type]  # it adds fractions too
    return dict(total)


def _is_of(bundles: Mapping[int, Mapping[str, float]], needs: Mapping[str, float]) -> bool:
    asked = {name: amount for name, amount in needs.items() if amount}
    return any(dict(bundle) == asked for bundle in bundles.values())


class RoomWatch:
    """Says what is waited for, at once and every `SAY_EVERY_S`, and when it is something else.

    It asks in a thread: where Ray's server is gone, the question waits for it.

    Attributes:
        selector: labels of the nodes that the workers may be on.
    """

    def __init__(
        self,
        needs: Mapping[str, float],
        workers: int,
        earlier_hosts: frozenset[str],
        say: Callable[[str], None],
        selector: Selector = None,
        is_pending: bool = False,
    ) -> None:
        """Take what is waited for.

        Args:
            earlier_hosts: where the workers were before.
            say: is called with the words.
            selector: labels of the nodes that the workers may be on.
            is_pending: whether the driver holds them back until there is room, so that Ray knows of none that waits.
        """
        self.selector = selector
        self._needs, self._workers, self._earlier, self._say = needs, workers, earlier_hosts, say
        self._is_pending = is_pending
        self._look_s = self._say_s = 0.0
        self._since_s = time.monotonic()
        self._said: str | None = None
        self._thread: threading.Thread | None = None

    def check(self) -> None:
        """Have it look, at most every `LOOK_EVERY_S`."""
        now = time.monotonic()
        if now < self._look_s or (self._thread and self._thread.is_alive()):
            return
        self._look_s = now + LOOK_EVERY_S
        self._thread = threading.Thread(target=self._work, name="shoal-room", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self.look()
        except Exception:  # Ray ends as well
            logger.debug("the cluster's room is not known", exc_info=True)

    def look(self) -> None:
        """Ask Ray, and say what is waited for."""
        now = time.monotonic()
        waited_s = now - self._since_s
        room = look(self._needs, self.selector)
        room = replace(room, is_pending=room.is_pending or self._is_pending)
        words = describe_wait(room, self._workers, self._earlier, waited_s)
        if words is not None and (words != self._said or now >= self._say_s):
            self._say(words)
            self._say_s = now + SAY_EVERY_S
        self._said = words

    @property
    def is_waiting(self) -> bool:
        """Whether a cluster lacked room when it was looked at last."""
        return self._said is not None
