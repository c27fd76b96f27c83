"""How the driver learns what each worker does: an actor on the driver's host, to which a thread of each worker speaks.

The thread is apart from the training's, so a training that waits for ever still says where; a process that is stopped
says nothing. It imports no torch: the actor is a process of its own. What follows from the words is in
`shoal.runs.hang`.
"""

import contextlib
import os
import pickle
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

from shoal.runs.hang import ENDED, WorkerStatus
from shoal.training.clock import Clock

PUBLISH_S = 0.5
STACK_AFTER_S = 4.0  # of one stay; before, the stack is of no use and costs 0.1 ms
MOST_FRAMES = 40
LAST_S = 2.0  # for the last word of a worker


class StatusBoard:
    """The actor: what each worker said last, and when; and what the driver says to all of them."""

    def __init__(self) -> None:
        self._said: dict[int, tuple[WorkerStatus, float]] = {}
        self._handles: dict[int, bytes] = {}
        self._leave = False

    def join(self, rank: int, handle: bytes) -> None:
        """Note the handle of the actor in which a worker is, pickled: to load it would import all of Ray Train."""
        self._handles[rank] = handle

    def handles(self, ranks: Collection[int]) -> list[bytes]:
        """Return the pickled handles of the actors in which some workers are."""
        return [handle for rank, handle in self._handles.items() if rank in ranks]

    def say(self, status: WorkerStatus) -> bool:
        """Note a status; return whether the workers are to write a checkpoint and end."""
        self._said[status.rank] = status, time.monotonic()
        return self._leave

    def leave(self) -> None:
        """Ask the workers to write a checkpoint and to end."""
        self._leave = True

    def read(self) -> list[WorkerStatus]:
        """Return the last status of each worker, by rank."""
        now = time.monotonic()
        return [replace(status, silent_s=now - at) for _, (status, at) in sorted(self._said.items())]


def open_board() -> Any:
    """Start a board on this host; return the actor's handle."""
    import ray

    return ray.remote(StatusBoard).options(num_cpus=0, scheduling_strategy=on_node(this_node())).remote()


def on_node(node: str) -> Any:
    """Return the scheduling strategy that runs something on one host alone."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def this_node() -> str:
    """Return Ray's name of this host."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


@contextlib.contextmanager
def speaking(board: Any, rank: int, clock: Clock) -> Iterator[Callable[[], bool]]:
    """Say on a board, meanwhile, what the thread that calls this does; yield whether the driver asks it to leave."""
    import ray

    with contextlib.suppress(RuntimeError):  # not in an actor
        board.join.remote(rank, pickle.dumps(ray.get_runtime_context().current_actor))
    speaker = _Speaker(board, Observer(rank, clock))
    speaker.start()
    try:
        yield lambda: speaker.is_to_leave
    finally:
        speaker.close()


class Observer:
    """Sees, from any thread, what the thread that made it does; made in the training's."""

    def __init__(self, rank: int, clock: Clock) -> None:
        self._clock, self._trainer = clock, threading.get_ident()
        self._who: dict[str, Any] = {
            "rank": rank,
            "host": socket.gethostname(),
            "node": this_node(),
            "pid": os.getpid(),
            "log": _log_path(os.getpid()),
        }

    def status(self, has_ended: bool = False) -> WorkerStatus:
        section, since = self._clock.at
        stay_s = time.perf_counter() - since
        return WorkerStatus(
            **self._who,
            section=ENDED if has_ended else section,
            step=self._clock.step,
            stay_s=stay_s,
            slowest_s=self._clock.slowest.get(section),
            stack=self._stack() if stay_s > STACK_AFTER_S else "",
            finite_step=self._clock.finite_step,
            busy_s=self._clock.own_s,
        )

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._trainer)
        return "".join(traceback.format_stack(frame)[-MOST_FRAMES:]) if frame else ""


class _Speaker:
    def __init__(self, board: Any, observer: Observer) -> None:
        self._board, self._observer = board, observer
        self.is_to_leave = self._has_ended = False
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._work, name="shoal-status", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._has_ended = True
        self._quit.set()
        self._thread.join(LAST_S)

    def _work(self) -> None:
        while not self._has_ended:
            self._say(timeout_s=LAST_S)
            self._quit.wait(PUBLISH_S)
        self._say(timeout_s=0.0)

    def _say(self, timeout_s: float) -> None:
        """Say it, and wait until it has arrived: words must not pile up before a board that is gone."""
        import ray

        with contextlib.suppress(Exception):
            said = self._board.say.remote(self._observer.status(self._has_ended))
            if ray.wait([said], timeout=timeout_s)[0]:
                self.is_to_leave = ray.get(said)


def _log_path(pid: int) -> str:
    """Return the path of what a process prints to stderr, if it is a file that can be named."""
    try:
        path = os.readlink(f"/proc/{pid}/fd/2")
    except OSError:
        return ""
    return path if os.path.isfile(path) else ""
