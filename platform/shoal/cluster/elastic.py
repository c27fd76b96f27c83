"""How many workers a run has: chosen from the room on live nodes before each start, and compared with it meanwhile.

With one number in `scale.num_workers` it is that number, and nothing is looked at. With a range, the size, when it is
settled and when a larger one is worth a restart are functions of what a look at the nodes found and of the time. Who
ends and starts workers is in `worker_group` and `group_watch`.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shoal.cluster.answering import answering
from shoal.cluster.free_room import RoomWatch, fits
from shoal.cluster.ray_private import START_TIMEOUT, draining_nodes, free_resources
from shoal.runs.config import ScaleConfig

LOOK_EVERY_S, FRESH_S = 0.5, 3.0
CHECK_EVERY_S = 0.1
# Room that is less than for all is taken once it has been the same for so long: the resources of workers that have
# ended come back node by node, within a second.
SETTLE_S = 2.0
# Workers are asked to leave for a larger group once there has been room for it for so long: what a sweep or another job
# leaves between two of its tasks is taken again within a second or two.
ROOM_S = 5.0
# A restart costs some 10 s, in which no worker trains. Hosts that come and go cost a sixth of the time at most.
PAUSE_S = 60.0
# For the places of workers, for which there was room a moment ago; then the size is chosen again. Ray's own is 60 s.
START_S = 10.0

logger = logging.getLogger(__name__)


def choose_size(room: int, sizes: Sequence[int]) -> int | None:
    """Return the largest size that there is room for; None: there is none, and room is waited for.

    Args:
        room: workers that the live nodes have room for.
        sizes: that are possible.
    """
    return max((size for size in sizes if size <= room), default=None)


class Settling:
    """When the size for a start is settled: at once if it is the largest, else once room has stopped to change."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._room: int | None = None
        self._since_s = 0.0

    def see(self, room: int, now_s: float) -> int | None:
        """Note the room that a look found; return the size to start with, or None to go on looking."""
        if room != self._room:
            self._room, self._since_s = room, now_s
        size = choose_size(room, self._sizes)
        is_settled = size == max(self._sizes) or now_s - self._since_s >= SETTLE_S
        return size if is_settled else None


class Growth:
    """When a group of workers is to be left for a larger one."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._since_s: float | None = None
        self._next_s = float("-inf")

    def see(self, workers: int, room: int, now_s: float) -> int | None:
        """Note the room that a look found; return the size to go on with, or None to stay.

        Args:
            workers: that train.
            room: for workers besides.
        """
        size = choose_size(workers + room, self._sizes)
        if size is None or size <= workers:
            self._since_s = None
            return None
        self._since_s = now_s if self._since_s is None else self._since_s
        if now_s - self._since_s < ROOM_S or now_s < self._next_s:
            return None
        self._since_s, self._next_s = None, now_s + PAUSE_S
        return size

    def forget(self) -> None:
        """Begin to wait anew: other workers train."""
        self._since_s = None


class GroupSize:
    """The number of workers of one run; a context, for as long as the run lasts."""

    def __init__(self, scale: ScaleConfig, needs: Mapping[str, float], say: Callable[[str], None]) -> None:
        """Take what is asked for.

        Args:
            needs: of each worker, by Ray's names of resources.
            say: is called with what is waited for.
        """
        self._sizes, self._needs, self._say = scale.sizes, needs, say
        self._look = _Look(needs) if scale.is_elastic else None
        self._growth = Growth(scale.sizes)

    def __enter__(self) -> "GroupSize":
        if self._look:
            os.environ.setdefault(START_TIMEOUT, f"{START_S:g}")
            self._look.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._look:
            self._look.close()

    def choose(self, hosts: frozenset[str], check: Callable[[], None], enter: Callable[[bool], None]) -> int:
        """Return the size for the next start, once there is room.

        Args:
            hosts: where the workers were before.
            check: is called now and then, and raises to end the wait.
            enter: is called with whether room is waited for.
        """
        if self._look is None:
            return self._sizes[-1]
        self._growth.forget()
        settling, since_s = Settling(self._sizes), time.monotonic()
        words = RoomWatch(self._needs, self._sizes[0], hosts, self._say, is_pending=True)
        while True:
            check()
            room, now_s = self._look.since(since_s), time.monotonic()
            size = None if room is None else settling.see(room, now_s)
            if size is not None:
                return size
            if now_s - since_s > SETTLE_S and not (room and choose_size(room, self._sizes)):
                words.check()
            enter(words.is_waiting)
            time.sleep(CHECK_EVERY_S)

    def larger(self, workers: int) -> int | None:
        """Return the size that the workers are to be left for now, or None."""
        if self._look is None or workers >= self._sizes[-1]:
            return None
        room = self._look.since(time.monotonic() - FRESH_S)
        return None if room is None else self._growth.see(workers, room, time.monotonic())


class _Look:
    """Asks for the room on live nodes again and again, in a thread of its own, since Ray's server may not answer."""

    def __init__(self, needs: Mapping[str, float]) -> None:
        self._needs = needs
        self._found: tuple[float, int] | None = None
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._work, name="shoal-elastic", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._quit.set()

    def since(self, since_s: float) -> int | None:
        """Return what the last look found, if it began after a moment, of `time.monotonic`."""
        found = self._found
        return found[1] if found and found[0] >= since_s else None

    def _work(self) -> None:
        while not self._quit.wait(LOOK_EVERY_S):
            began_s = time.monotonic()
            with contextlib.suppress(Exception):  # Ray has ended, or does not answer
                self._found = began_s, free_workers(self._needs)


def free_workers(needs: Mapping[str, float]) -> int:
    """Return how many workers the nodes have room for that are live, answer and are not being drained."""
    import ray

    free, leaving = free_resources(), draining_nodes()
    room = {name: fits(needs, has) for name, has in free.items() if name not in leaving}
    roomy = [node for node in ray.nodes() if room.get(node["NodeID"])]
    return sum(room[node["NodeID"]] for node in answering(roomy))
