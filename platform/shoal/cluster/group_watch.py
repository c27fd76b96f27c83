"""What the driver sees of a group of workers while Ray Train runs it: their words, a hang, the room they wait for.

A group that hangs is ended here, process by process, from each one's own host: Ray Train then reports lost workers, and
what follows is what follows a loss. It decides nothing else.
"""

import contextlib
import logging
import pickle
import time
from dataclasses import replace
from typing import Any

from shoal.cluster import session
from shoal.cluster.draining import DrainWatch
from shoal.cluster.elastic import GroupSize
from shoal.cluster.free_room import RoomWatch
from shoal.cluster.replay import Replay
from shoal.cluster.status_board import open_board
from shoal.cluster.worker_failure import add_lost_peers, faults_of_hang, find_faults, stacks_of
from shoal.cluster.worker_process import ProcessReport, StoppedWorkers, end_workers, last_lines
from shoal.errors import StorageError
from shoal.runs.failure_policy import DEATHS, Decision, Fault, decide
from shoal.runs.hang import Hang, WorkerStatus, find_hang
from shoal.runs.pace import Pace
from shoal.storage.lease import now_ms
from shoal.storage.records import FailureRecord
from shoal.storage.run_folder import RunFolder
from shoal.training.checkpoint.store import CheckpointStore

logger = logging.getLogger(__name__)

READ_EVERY_S = 0.5
UNREACHED = "its host does not answer"
ASK_S = 5.0  # the board, which is on this host
END_AGAIN_S = 60.0  # where the processes of a hang have not ended


class GroupWatch:
    """Of one attempt of a group; a context, for as long as the attempt lasts.

    Attributes:
        board: to which the workers speak.
        statuses: what each worker said last, by rank.
        hang: that ended the attempt.
        room: that the workers wait for.
        replay: of a loss that was not finite.
        left: the hosts that are being drained, for which the workers were asked to end.
        grows_to: the larger size, for which the workers were asked to end.
    """

    def __init__(self, workers: int, room: RoomWatch, size: GroupSize, replay: Replay) -> None:
        self._workers, self.room, self._size, self.replay = workers, room, size, replay
        self.statuses: dict[int, WorkerStatus] = {}
        self.hang: Hang | None = None
        self.left: frozenset[str] = frozenset()
        self.grows_to: int | None = None
        self._draining, self._pace = DrainWatch(), Pace()
        self._reports: dict[int, ProcessReport] = {}
        self._reading: Any = None
        self._read_s = self._end_s = 0.0
        self._is_suspected = False
        self._stopped = StoppedWorkers()

    def __enter__(self) -> "GroupWatch":
        self.board: Any = open_board()
        self._draining.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._draining.__exit__()
        # The actor ends with its last handle; `ray.kill` would wait for Ray's server.
        self._reading = self.board = None

    @property
    def hosts(self) -> frozenset[str]:
        return frozenset(status.host for status in self.statuses.values())

    @property
    def was_left(self) -> bool:
        """Whether the workers were asked to write a checkpoint and to end, so that others go on."""
        return bool(self.left) or self.grows_to is not None

    @property
    def is_waiting(self) -> bool:
        """Whether no worker has spoken yet, since the cluster lacks room."""
        return not self.statuses and self.room.is_waiting

    def check(self, judges: bool) -> None:
        """Look, a few times a second at most.

        Args:
            judges: whether a group that hangs is ended: one that was asked to stop is waited for otherwise.
        """
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            if not self.statuses:
                self.room.check()
            if not self._has_read():
                return
            for words in self._pace.slow(list(self.statuses.values()), self._workers, time.monotonic()):
                logger.warning("%s", words)
            if judges:
                self._judge()
            if not self.was_left:
                self._leave_what_is_drained()
            if judges and not self.was_left and not self.hang:
                self._leave_for_more()

    def _has_read(self) -> bool:
        """Read the board without waiting; return whether there is news."""
        import ray

        now = time.monotonic()
        if self._reading is None:
            if now >= self._read_s:
                self._reading, self._read_s = self.board.read.remote(), now + READ_EVERY_S
            return False
        if not ray.wait([self._reading], timeout=0)[0]:
            return False
        reading, self._reading = self._reading, None
        self.statuses = {status.rank: status for status in ray.get(reading)}
        self.replay.check(self.statuses.values())
        return True

    def _judge(self) -> None:
        """End a group that hangs, if two looks say so: the first may come before words that are on their way."""
        hang = find_hang(self._stopped.judged(list(self.statuses.values())), self._workers)
        was_suspected, self._is_suspected = self._is_suspected, hang is not None
        if hang is None or not was_suspected or time.monotonic() < self._end_s:
            return
        self.hang = self.hang or hang
        self._end_s = time.monotonic() + END_AGAIN_S
        self._reports = end_workers(hang.workers) | self._reports
        unreached = [one.rank for one in hang.workers if one.rank not in self._reports]
        if unreached:
            _give_up(self.board, unreached)

    def _leave_what_is_drained(self) -> None:
        """Ask the workers for a checkpoint and their end, if a host of theirs is about to leave."""
        nodes = self._draining.nodes
        self.left = frozenset(status.host for status in self.statuses.values() if status.node in nodes)
        if self.left:
            self.board.leave.remote()
            logger.warning(
                "%s is being drained: a checkpoint is written, and training goes on elsewhere",
                ", ".join(sorted(self.left)),
            )

    def _leave_for_more(self) -> None:
        """Ask the workers for a checkpoint and their end, if there is room for more of them and all make steps."""
        if len(self.statuses) < self._workers or not all(status.step for status in self.statuses.values()):
            return
        self.grows_to = self._size.larger(self._workers)
        if self.grows_to is not None:
            self.board.leave.remote()
            logger.warning(
                "there is room for %d workers: a checkpoint is written, and training goes on with them",
                self.grows_to,
            )

    def decide(
        self, error: BaseException, folder: RunFolder, max_failures: int, replays: bool = True
    ) -> Decision:
        """Decide what follows from the end of the attempt, and complete its record.

        Args:
            error: of Ray Train.
            replays: see `shoal.runs.failure_policy.decide`.
        """
        earlier = self.replay.earlier
        faults, checkpoint = self._faults(error, folder), _checkpoint_step(folder, earlier)
        decision = decide(faults, earlier, checkpoint, max_failures, replays)
        record = decision.record
        rank = record.root.rank if record.root else None
        report = self._reports.get(rank) if rank is not None else None
        more: dict[str, Any] = {
            "attempt": folder.attempt,
            "at_ms": now_ms(),
            "last_lines": list(report.last_lines) if report else [],
        }
        if self.hang:
            foreign = {rank: report.stack for rank, report in self._reports.items()}
            more["stacks"] = stacks_of(self.hang.workers, foreign)
        return replace(decision, record=record.replace(**more))

    def _faults(self, error: BaseException, folder: RunFolder) -> list[Fault]:
        import ray

        if self.hang:
            silent = {one.rank: UNREACHED for one in self.hang.workers if one.rank not in self._reports}
            states = {rank: report.state for rank, report in self._reports.items() if report.state}
            return faults_of_hang(self.hang, silent | states)
        nodes = ray.nodes() if session.answers() else []
        gone = {node["NodeID"] for node in nodes if not node["Alive"]}
        gone_hosts = {one.host for one in self.statuses.values() if one.node in gone}
        found = find_faults(error, folder, self.statuses, gone_hosts)
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in nodes}
        faults = add_lost_peers(found, self.statuses, gone, addresses)
        dead = [fault.worker.rank for fault in faults if fault.symptom in DEATHS]
        if dead and session.answers():
            with contextlib.suppress(ray.exceptions.RayError):
                self._reports = last_lines([self.statuses[rank] for rank in dead if rank in self.statuses])
        return faults


def _give_up(board: Any, ranks: list[int]) -> None:
    """Have Ray count workers as dead whose hosts do not answer: it would wait for their nodes, a minute and more."""
    import ray

    for handle in ray.get(board.handles.remote(ranks), timeout=ASK_S):
        ray.kill(pickle.loads(handle))


def _checkpoint_step(folder: RunFolder, earlier: FailureRecord | None) -> int | None:
    try:
        return CheckpointStore(folder).newest_step
    except (OSError, StorageError):
        return earlier.checkpoint_step if earlier else None
