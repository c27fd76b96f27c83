"""Trials that train in their actor's own process: each is asked what it does.

One that hangs is ended, and one whose host is being drained is asked to leave. Trials of several workers are watched by
their own `GroupWatch`. What follows from a process that ended is decided by those who wait for it.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from shoal.cluster.draining import DrainWatch
from shoal.cluster.worker_process import StoppedWorkers, end_workers
from shoal.runs.hang import Hang, WorkerStatus, find_trial_hang

LOOK_EVERY_S = 0.5


class TrialWatch:
    """Of the actors of a pool.

    Attributes:
        hangs: what the trials that hung did, in words, by their actors.
        leaving: the hosts that are being drained, by the actors that were asked to leave them.
    """

    def __init__(self) -> None:
        self.hangs: dict[Any, str] = {}
        self.leaving: dict[Any, str] = {}
        self._draining = DrainWatch()
        self._draining.__enter__()
        self._asked: dict[
            Any, tuple[Any, float]
        ] = {}  # by actor: the ref of its answer, and when it was asked
        self._said: dict[Any, WorkerStatus] = {}
        self._suspected: set[Any] = set()
        self._stopped, self._look_s = StoppedWorkers(), 0.0

    def check(self, busy: Sequence[Any]) -> None:
        """Look, a few times a second at most, and end the processes that hang.

        Args:
            busy: the actors that run a trial.
        """
        import ray

        if time.monotonic() < self._look_s:
            return
        self._look_s = time.monotonic() + LOOK_EVERY_S
        with contextlib.suppress(ray.exceptions.RayError):
            self._hear()
            self._ask(busy)
            self._leave_what_is_drained(busy)
            found = {actor: hang for actor, hang in self._find(busy).items() if actor not in self.hangs}
            for actor, hang in found.items():
                if actor in self._suspected:  # two looks: an answer may be on its way
                    self._end(actor, hang)
            self._suspected = set(found)

    def close(self) -> None:
        self._draining.__exit__()

    def _leave_what_is_drained(self, busy: Sequence[Any]) -> None:
        for actor in busy:
            status = self._said.get(actor)
            if status and status.node in self._draining.nodes and actor not in self.leaving:
                self.leaving[actor] = status.host
                actor.leave.remote()

    def _hear(self) -> None:
        import ray

        refs = {ref: actor for actor, (ref, _) in self._asked.items()}
        ready, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0) if refs else ([], [])
        for ref in ready:
            actor = refs[ref]
            del self._asked[actor]
            self._said.pop(actor, None)
            with contextlib.suppress(ray.exceptions.RayError):
                if status := ray.get(ref):
                    self._said[actor] = status

    def _ask(self, busy: Sequence[Any]) -> None:
        now = time.monotonic()
        self._asked |= {actor: (actor.status.remote(), now) for actor in busy if actor not in self._asked}

    def _find(self, busy: Sequence[Any]) -> dict[Any, Hang]:
        now = time.monotonic()
        actors = [actor for actor in busy if actor in self._said]
        statuses = [
            replace(self._said[actor], rank=rank, silent_s=now - self._asked[actor][1])
            for rank, actor in enumerate(actors)
        ]
        found = map(find_trial_hang, self._stopped.judged(statuses))
        return {actor: hang for actor, hang in zip(actors, found, strict=True) if hang}

    def _end(self, actor: Any, hang: Hang) -> None:
        self.hangs[actor] = f"hang: {hang}"
        report = end_workers(hang.workers).get(0)
        if report and report.state:
            self.hangs[actor] += f": {report.state}"
