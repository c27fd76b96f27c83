"""Ray actors that run trials: started in advance, reused, replaced when lost.

It knows neither the order of trials nor their records.
"""

import contextlib
import logging
import math
import threading
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError

from shoal.cluster.ray_private import OUT_OF_MEMORY, STOPPED_ACTOR, actor_id
from shoal.cluster.status_board import on_node, this_node
from shoal.cluster.trial_actor import TrialActor, TrialEnded, TrialReport, TrialSpec, TrialStarted
from shoal.cluster.trial_watch import TrialWatch
from shoal.training.loop import Decision

logger = logging.getLogger(__name__)

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
    """A fixed number of actors; each runs one trial or is idle."""

    def __init__(
        self, size: int, resources: dict[str, float], selector: dict[str, str] | None = None
    ) -> None:
        """Start the actors.

        Args:
            resources: of each, by Ray's names.
            selector: labels of the nodes that they may be on.
        """
        options: dict[str, Any] = {"num_cpus": resources.get("CPU", 0), "num_gpus": resources.get("GPU", 0)}
        options["resources"] = {name: n for name, n in resources.items() if name not in ("CPU", "GPU")}
        if selector:
            options["label_selector"] = selector
        if (
            not resources
        ):  # it leads workers, and lives where the driver does: the loss of a host is that of workers alone
            options["scheduling_strategy"] = on_node(this_node())
        # Threads: one waits for events; others serve `begin`, `answer` and the reports of Ray Train workers meanwhile.
        self._make = ray.remote(TrialActor).options(max_concurrency=4, **options).remote
        self._watch = TrialWatch()
        self.size = size
        self._idle: list[Any] = [self._make() for _ in range(size)]
        self._busy: dict[Any, tuple[Key, Any]] = {}  # by the ref of the next events

    @property
    def free(self) -> int:
        return self.size - len(self._busy)

    def holds(self, key: Key) -> bool:
        """Whether an actor runs a trial."""
        return any(held is key for held, _ in self._busy.values())

    def begin(self, key: Key, spec: TrialSpec) -> None:
        """Start a trial on an idle actor."""
        # A lost one is replaced here, not when it is lost: the call hangs where Ray is dead, and a stop needs none.
        actor = self._idle.pop(0) if self._idle else self._make()
        actor.begin.remote(spec)
        self._listen(key, actor)

    def answer(self, key: Key, decision: Decision) -> None:
        """Answer the report that a running trial waits at."""
        self._actor(key).answer.remote(decision)

    def wait(self, timeout_s: float) -> list[tuple[Key, Event]]:
        """Return the events of all trials, after waiting at most `timeout_s` for the first one.

        A process that hangs is ended: its trial is lost then, as one whose process died.
        """
        self._watch.check([actor for _, actor in self._busy.values()])
        ready, _ = (
            ray.wait(list(self._busy), num_returns=len(self._busy) or 1, timeout=0)
            if self._busy
            else ([], [])
        )
        if not ready and self._busy:
            ready, _ = ray.wait(list(self._busy), num_returns=1, timeout=timeout_s)
        return [event for ref in ready for event in self._collect(ref)]

    def close(self) -> None:
        """Kill all actors; a Ray that is dead itself is not waited for."""
        self._watch.close()
        actors = [*self._idle, *(actor for _, actor in self._busy.values())]
        killing = threading.Thread(target=_kill, args=(actors,), name="shoal-kill", daemon=True)
        killing.start()
        killing.join(CLOSE_S)
        self._idle, self._busy = [], {}

    def _collect(self, ref: Any) -> list[tuple[Key, Event]]:
        key, actor = self._busy.pop(ref)
        try:
            events: list[Event] = ray.get(ref)
        except RayError as error:
            hang, host = self._watch.hangs.get(actor), self._watch.leaving.get(actor)
            lost = ActorLost(hang, False, is_hang=True) if hang else _lost(error, actor_id(actor))
            return [(key, replace(lost, was_drained=host is not None))]
        if isinstance(events[-1], TrialEnded):
            if actor in self._watch.leaving:  # Ray starts the next one elsewhere
                _kill([actor])
            else:
                self._idle.append(actor)
        else:
            self._listen(key, actor)
        return [(key, event) for event in events]

    def _listen(self, key: Key, actor: Any) -> None:
        self._busy[actor.events.remote()] = (key, actor)

    def _actor(self, key: Key) -> Any:
        return next(actor for held, actor in self._busy.values() if held is key)


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
