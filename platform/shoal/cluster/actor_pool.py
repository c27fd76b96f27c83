"""Ray actors that run trials: started in advance, reused, replaced when lost.

A trial waits for the first actor that is there, whichever it is: where a host is lost, a new actor may find no room as
long as idle ones live. It knows neither the order of trials nor their records.
"""

import contextlib
import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError

from shoal.cluster.node_selector import Selector
from shoal.cluster.ray_private import OUT_OF_MEMORY, STOPPED_ACTOR, actor_id
from shoal.cluster.start_watch import StartWatch
from shoal.cluster.status_board import on_node, this_node
from shoal.cluster.trial_actor import TrialActor, TrialEnded, TrialReport, TrialSpec, TrialStarted
from shoal.cluster.trial_watch import TrialWatch
from shoal.training.loop import Decision

logger = logging.getLogger(__name__)

ANSWER_S = 5.0  # of an idle process that is asked whether it lives
CLOSE_S = 5.0  # `ray.kill` waits for Ray's server, and after 60 s ends the process

Key = TypeVar("Key")


@dataclass(frozen=True)
class ActorLost:
    """A trial's process is gone.

    Attributes:
        was_drained: it was to leave its host, which was taken away before.
    """

    reason: str
    was_out_of_memory: bool
    is_hang: bool = False
    was_drained: bool = False


Event = TrialStarted | TrialReport | TrialEnded | ActorLost


class ActorPool(Generic[Key]):
    """At most so many actors; each is starting, runs one trial or is idle."""

    def __init__(
        self, size: int, resources: dict[str, float], selector: Selector, choose_again: Callable[[], Selector]
    ) -> None:
        """Start the actors.

        Args:
            resources: of each, by Ray's names.
            selector: labels of the nodes that they may be on.
            choose_again: returns a selector, where none of the nodes of the first one may be left.
        """
        options: dict[str, Any] = {"num_cpus": resources.get("CPU", 0), "num_gpus": resources.get("GPU", 0)}
        options["resources"] = {name: n for name, n in resources.items() if name not in ("CPU", "GPU")}
        if (
            not resources
        ):  # it leads workers, and lives where the driver does: the loss of a host is that of workers alone
            options["scheduling_strategy"] = on_node(this_node())
        # Threads: one waits for events; others serve `begin`, `answer` and the reports of Ray Train workers meanwhile.
        self._options = options | {"max_concurrency": 4}
        self._start_watch = StartWatch(resources, selector, choose_again)
        self._watch = TrialWatch()
        self.size = size
        self._waiting: list[tuple[Key, TrialSpec]] = []  # trials, for an actor
        self._given_up: list[Key] = []  # trials that have not begun
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Key, Any]] = {}  # by the ref of the next events
        self._starting: dict[Any, Any] = {}  # actors by a ref that resolves when they live
        for _ in range(size):
            self._start()

    @property
    def free(self) -> int:
        return self.size - len(self._busy) - len(self._waiting) - len(self._given_up)

    def holds(self, key: Key) -> bool:
        """Whether an actor runs a trial, or is to run it."""
        held = [*(held for held, _ in self._busy.values()), *(held for held, _ in self._waiting)]
        return any(one is key for one in held + self._given_up)

    def begin(self, key: Key, spec: TrialSpec) -> None:
        """Start a trial on an idle actor, or on the first one that is there."""
        self._waiting.append((key, spec))
        # A lost one is replaced here, not when it is lost: the call hangs where Ray is dead, and a stop needs none.
        if not self._idle and len(self._busy) + len(self._starting) < self.size:
            self._start()
        self._begin_waiting()

    def answer(self, key: Key, decision: Decision) -> None:
        """Answer the report that a running trial waits at."""
        self._actor(key).answer.remote(decision)

    def interrupt(self, key: Key) -> None:
        """Let a trial go on that waits at a report, and give up one that has not begun: it ends as interrupted."""
        for waiting in self._waiting:
            if waiting[0] is key:
                self._waiting.remove(waiting)
                self._given_up.append(key)
                return
        self.answer(key, "pause")

    def wait(self, timeout_s: float) -> list[tuple[Key, Event]]:
        """Return the events of all trials, after waiting at most `timeout_s` for the first one.

        A process that hangs is ended: its trial is lost then, as one whose process died.
        """
        self._watch.check([actor for _, actor in self._busy.values()])
        given_up, self._given_up = self._given_up, []
        if given_up:
            return [(key, TrialEnded("interrupted", 0.0)) for key in given_up]
        self._check_starts()
        refs = [*self._busy, *self._starting]
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0) if refs else ([], [])
        if not ready and refs:
            ready, _ = ray.wait(refs, num_returns=1, timeout=timeout_s)
        events = [event for ref in ready for event in self._collect(ref)]
        self._begin_waiting()
        return events

    def close(self) -> None:
        """Kill all actors; a Ray that is dead itself is not waited for."""
        self._watch.close()
        actors = [*self._idle, *self._starting.values(), *(actor for _, actor in self._busy.values())]
        killing = threading.Thread(target=_kill, args=(actors,), name="shoal-kill", daemon=True)
        killing.start()
        killing.join(CLOSE_S)
        self._idle, self._busy, self._starting = [], {}, {}

    def _start(self) -> None:
        kind = ray.remote(TrialActor).options(**self._options, label_selector=self._start_watch.selector)
        actor = kind.remote()
        self._starting[actor.__ray_ready__.remote()] = actor

    def _check_starts(self) -> None:
        if self._busy or self._idle or not self._starting:
            self._start_watch.rest()
        elif self._start_watch.check():
            given_up, self._starting = self._starting, {}
            _kill([*given_up.values()])
            for _ in given_up:
                self._start()

    def _begin_waiting(self) -> None:
        while self._waiting and self._idle:
            (key, spec), actor = self._waiting.pop(0), self._idle.pop(0)
            actor.begin.remote(spec)
            self._listen(key, actor)

    def _collect(self, ref: Any) -> list[tuple[Key, Event]]:
        if ref in self._starting:
            return self._collect_start(ref)
        key, actor = self._busy.pop(ref)
        try:
            events: list[Event] = ray.get(ref)
        except RayError as error:
            hang, host = self._watch.hangs.get(actor), self._watch.leaving.get(actor)
            lost = ActorLost(hang, False, is_hang=True) if hang else _lost(error, actor_id(actor))
            self._drop_lost_idle()
            return [(key, replace(lost, was_drained=host is not None))]
        if isinstance(events[-1], TrialEnded):
            if actor in self._watch.leaving:  # Ray starts the next one elsewhere
                _kill([actor])
            else:
                self._idle.append(actor)
        else:
            self._listen(key, actor)
        return [(key, event) for event in events]

    def _collect_start(self, ref: Any) -> list[tuple[Key, Event]]:
        """Take an actor that lives now; one that does not costs a trial that waits."""
        actor = self._starting.pop(ref)
        try:
            ray.get(ref)
        except RayError as error:
            lost = _lost(error, actor_id(actor))
            return [(self._waiting.pop(0)[0], lost)] if self._waiting else []
        self._idle.append(actor)
        return []

    def _drop_lost_idle(self) -> None:
        """Keep the idle actors that answer: others may have been on the host of one that is lost."""
        asked = {actor.__ray_ready__.remote(): actor for actor in self._idle}
        ready, _ = ray.wait([*asked], num_returns=len(asked), timeout=ANSWER_S) if asked else ([], [])
        self._idle = [actor for ref, actor in asked.items() if ref in ready and _succeeds(ref)]
        _kill([actor for actor in asked.values() if actor not in self._idle])

    def _listen(self, key: Key, actor: Any) -> None:
        self._busy[actor.events.remote()] = (key, actor)

    def _actor(self, key: Key) -> Any:
        return next(actor for held, actor in self._busy.values() if held is key)


def _succeeds(ref: Any) -> bool:
    try:
        ray.get(ref)
    except RayError:
        return False
    return True


def _kill(actors: list[Any]) -> None:
    for actor in actors:
        with contextlib.suppress(RayError):
            ray.kill(actor)


def _lost(error: RayError, own_id: str) -> ActorLost:
    text = str(error)
    if any(words in text for words in OUT_OF_MEMORY):
        return ActorLost("the node ran out of memory", _is_largest(text, own_id))
    line = next((line.strip() for line in text.splitlines() if "exit" in line or "died" in line), "")
    return ActorLost(line or text.splitlines()[0], False)


def _is_largest(text: str, own_id: str) -> bool:
    """Whether an actor held the most of the memory that Ray's monitor freed: it may kill smaller ones as well."""
    held = {name: float(size) for name, size in STOPPED_ACTOR.findall(text)}
    return held.get(own_id, math.inf) >= max(held.values(), default=0.0)
